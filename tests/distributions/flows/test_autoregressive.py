"""Autoregressive layers and the flows made of them, in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import distributions as d
from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
TRANSFORMERS = pytest.mark.parametrize("transformer", ["affine", "spline"])
MOSTLY_AFFINE = pytest.mark.parametrize("transformer", ["affine", pytest.param("spline", marks=pytest.mark.slow)])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}


@functools.cache
def flow(factory=flows.masked_autoregressive, size=2, context_size=0, dtype=jnp.float32, transformer="affine", seed=1):
    architecture = factory(2, (8,), transformer=transformer)
    return check.made(architecture, size, context_size, dtype, seed, 0.2 if transformer == "affine" else 0.1)


@DTYPES
@TRANSFORMERS
def test_inverse_and_log_determinant(transformer, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        bijector = flow(flows.inverse_autoregressive, 3, dtype=dtype, transformer=transformer).bijector
        ends = np.array([[4.0, -4.0, 4.0], [-4.0, 4.0, -4.0]])  # of the intervals of splines
        check.check_map(bijector, check.points(3, dtype, (ends,)), TOLERANCE[dtype])
        if dtype == jnp.float64 and transformer == "affine":
            check.check_gradients(bijector, check.points(3, dtype)[:5])


def test_an_affine_layer_is_its_formula():
    network = check.perturbed(flows.MaskedPerceptron.init(jax.random.key(0), 3, (8,), 2), 2)
    layer = flows.Autoregressive(network, flows.AffineTransformer())
    u = jnp.array([0.5, -1.0, 2.0])
    shifts, raw = np.asarray(network(u)).T
    log_scales = 3 * np.tanh(raw / 3)
    x, log_det = layer.forward_and_log_det(u)
    np.testing.assert_allclose(x, shifts + np.exp(log_scales) * u, rtol=1e-6)
    np.testing.assert_allclose(log_det, log_scales.sum(), rtol=1e-6)
    np.testing.assert_allclose(d.Inverse(layer).forward(x), u, rtol=1e-5)


def test_a_conditional_gaussian_is_the_density_of_one_layer():
    network = check.perturbed(flows.MaskedPerceptron.init(jax.random.key(0), 2, (8,), 2), 2)
    density = d.Transformed(
        flows.StandardNormal(2), d.Inverse(flows.Autoregressive(network, flows.AffineTransformer()))
    )
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    shifts, raw = np.moveaxis(np.asarray(network(x)), -1, 0)
    scales = np.exp(-3 * np.tanh(raw / 3))  # u = shift + exp(log_scale) x
    expected = stats.norm(-shifts * scales, scales).logpdf(x).sum(axis=-1)
    np.testing.assert_allclose(density.log_prob(x), expected, rtol=2e-5)


def test_the_two_flows_are_each_other_s_inverse():
    masked, inverse = flow(size=3), flow(flows.inverse_autoregressive, 3)
    layer = jax.tree.map(lambda leaf: leaf[0], (masked.bijector.layers, inverse.bijector.layers))
    x = check.points(3, jnp.float32)[:4]
    one, log_det = layer[0].bijectors[0].forward_and_log_det(x)
    other, other_log_det = layer[1].bijectors[0].inverse_and_log_det(x)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(log_det, other_log_det, rtol=1e-6)
    # One call of the networks in the quick direction, and a scan over the numbers in the other.
    assert "length=3" not in str(jax.make_jaxpr(masked.log_prob)(x))
    assert "length=3" in str(jax.make_jaxpr(inverse.log_prob)(x))


def test_the_order_is_reversed_between_layers():
    bijector = flow(flows.inverse_autoregressive, 3).bijector
    jacobian = np.asarray(jax.jit(jax.jacfwd(bijector.forward))(jnp.ones(3)))
    assert (jacobian != 0).all()
    first = jax.tree.map(lambda leaf: leaf[0], bijector.layers)
    jacobian = np.asarray(jax.jit(jax.jacfwd(first.forward))(jnp.ones(3)))
    np.testing.assert_array_equal(np.flip(jacobian, 0) != 0, np.tril(np.ones((3, 3), bool)))


@pytest.mark.parametrize(
    ("factory", "transformer"),
    [
        (flows.masked_autoregressive, "spline"),
        (flows.inverse_autoregressive, "affine"),
        pytest.param(flows.masked_autoregressive, "affine", marks=pytest.mark.slow),
        pytest.param(flows.inverse_autoregressive, "spline", marks=pytest.mark.slow),
    ],
)
def test_densities_of_a_context_have_mass_one(factory, transformer):
    made = flow(factory, context_size=2, transformer=transformer, seed=4)
    contexts = jnp.array([[1.0, -2.0], [-1.0, 0.5]])
    check.check_mass(made, 2, contexts)


@TRANSFORMERS
def test_a_density_of_one_number_has_mass_one(transformer):
    check.check_mass(flow(size=1, transformer=transformer), 1)


@MOSTLY_AFFINE
def test_draws_have_the_density(transformer):
    check.check_draws(flow(transformer=transformer))


@MOSTLY_AFFINE
def test_far_out_everything_is_finite_and_gradients_are_right(transformer):
    check.check_tails(flow(size=3, transformer=transformer).bijector, 3)
    check.check_tails(flow(flows.inverse_autoregressive, 3, transformer=transformer).bijector, 3)


def test_it_starts_as_the_standard_normal():
    x = check.points(3, jnp.float32)[:4]
    start = flows.masked_autoregressive(3, (8,)).init(jax.random.key(0), 3)
    np.testing.assert_allclose(start.log_prob(x), stats.norm.logpdf(x).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("factory", [flows.masked_autoregressive, flows.inverse_autoregressive])
def test_depth_costs_no_program(factory):
    assert check.equations(factory(2, (8,)), 3) == check.equations(factory(32, (8,)), 3)


def test_no_key_is_used_twice():
    check.check_keys(flows.masked_autoregressive(2, (8, 8)), 3, 4)


def test_all_leaves_are_real_and_trained():
    gradients = check.densities(flow(size=3).bijector, check.points(3, jnp.float32))[1][0]
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert leaf.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.masked_autoregressive(0), "layers is 0"),
        (lambda: flows.inverse_autoregressive(2, (8, 0)), "hidden is 0"),
        (lambda: flows.masked_autoregressive(2, 8), "hidden is 8; expected sizes"),
        (lambda: flows.masked_autoregressive(2, transformer="cubic"), "transformer is cubic"),
        (lambda: flows.masked_autoregressive(2).init(jax.random.key(0), (2, 2)), "that of a vector"),
        (lambda: flows.inverse_autoregressive(2).init(jax.random.key(0), 0), "that of a vector"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
