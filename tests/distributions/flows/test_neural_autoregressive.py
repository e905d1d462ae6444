"""Mixtures of sigmoids, and the autoregressive flows made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}


@functools.cache
def flow(size=2, layers=2, context_size=0, dtype=jnp.float32, one_pass="density", seed=1):
    factory = flows.neural_autoregressive(layers, (8,), 4, one_pass=one_pass)
    return check.made(factory, size, context_size, dtype, seed)


def mixture(dtype=jnp.float32, scale=1.5):
    parts = np.random.default_rng(0).normal(size=(3, 5)) * scale
    return flows.SigmoidMixture(*jnp.asarray(parts, dtype))


@DTYPES
def test_inverse_and_log_determinant(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        bijector = flow(3, dtype=dtype, one_pass="sampling").bijector
        check.check_map(bijector, check.points(3, dtype), TOLERANCE[dtype])


def test_a_mixture_is_its_formula():
    logits, log_scales, shifts = (np.asarray(leaf, float) for leaf in jax.tree.leaves(mixture()))
    u = np.linspace(-3, 3, 13)
    weights = special.softmax(logits)
    inner = special.expit(np.exp(log_scales) * u[:, None] + shifts)
    p = (weights * inner).sum(axis=1)
    slope = (weights * np.exp(log_scales) * inner * (1 - inner)).sum(axis=1) / (p * (1 - p))
    x, log_det = mixture().forward_and_log_det(jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose(x, special.logit(p), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_det, np.log(slope), rtol=1e-5, atol=1e-5)


def test_far_out_a_mixture_is_its_flattest_line():
    # It tends to the line of the smallest slope, up to the logarithm of its weight, at both ends.
    made = flows.SigmoidMixture(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.5, 2.0])), jnp.array([1.0, -1.0]))
    x, log_det = made.forward_and_log_det(jnp.array([-1e4, 1e4]))
    np.testing.assert_allclose(x, [-5000, 5000], rtol=1e-3)
    np.testing.assert_allclose(log_det, np.log(0.5), atol=2e-3)


@DTYPES
def test_the_inverse_of_steep_mixtures(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        made = mixture(dtype, 3.0)
        x = jnp.asarray(np.concatenate([np.linspace(-40, 40, 101), [1e4, -1e4, 0.0]]), dtype)
        u = jax.jit(made.inverse)(x)
        size = 1 + np.abs(np.asarray(x, float))
        np.testing.assert_array_less(np.abs(made.forward(u) - x) / size, 60 * jnp.finfo(dtype).eps)
        assert u.dtype == dtype
        assert np.isnan(made.inverse(jnp.asarray([jnp.nan], dtype))).all()


def test_parameters_of_zero_are_near_the_identity():
    made = flows.SigmoidTransformer(8)(jnp.zeros(24))
    u = jnp.linspace(-3, 3, 7)
    x, log_det = check.forward(made, u)
    assert np.abs(x - u).max() < 0.3
    assert np.abs(log_det).max() < 0.2
    # Units that are the same would stay the same.
    gradients = jax.jit(jax.grad(lambda leaves: flows.SigmoidTransformer(8)(leaves).forward(0.5)))(jnp.zeros(24))
    assert len(np.unique(np.round(np.asarray(gradients), 6))) == 24


def test_densities_of_a_context_have_mass_one():
    check.check_mass(flow(context_size=2, seed=4), 2, jnp.array([[1.0, -2.0], [-1.0, 0.5]]))


def test_a_density_of_one_number_has_mass_one():
    check.check_mass(flow(1), 1)


def test_draws_have_the_density():
    check.check_draws(flow())


def test_far_out_everything_is_finite_and_gradients_are_right():
    check.check_tails(flow(3, one_pass="sampling").bijector, 3)


@pytest.mark.slow
def test_far_out_all_is_finite_where_the_density_takes_one_pass():
    check.check_tails(flow(3).bijector, 3)


def test_depth_costs_no_program():
    few, many = (flows.neural_autoregressive(layers, (8,), 4) for layers in (2, 32))
    assert check.equations(few, 3) == check.equations(many, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.neural_autoregressive(0), "layers is 0"),
        (lambda: flows.neural_autoregressive(1, "64"), "hidden is 64"),
        (lambda: flows.neural_autoregressive(1, (8,), 0), "units is 0"),
        (lambda: flows.neural_autoregressive(1, one_pass="both"), "one_pass is both"),
        (lambda: flows.neural_autoregressive(1).init(jax.random.key(0), (2, 3)), "that of a vector"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
