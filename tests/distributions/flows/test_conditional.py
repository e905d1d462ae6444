"""Bijectors whose parameters depend on a context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxprob import distributions as d
from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

CONTEXTS = jnp.array([[1.0, -2.0], [-1.0, 0.5]])


def triangular(size=3, dtype=jnp.float32):
    return flows.TriangularAffine(*(jnp.zeros(shape, dtype) for shape in ((size,), (size,), (size, size))))


def made(bijector, seed=1, dtype=jnp.float32):
    total = sum(leaf.size for leaf in jax.tree.leaves(bijector))

    def make():
        network = flows.Perceptron.init(jax.random.key(0), (2, 8, total), last_scale=0.3, dtype=dtype)
        return check.perturbed(flows.Conditional(bijector, network, 2), seed)

    return jax.jit(make)()


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_inverse_and_log_determinant(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        bijector = flows.Repeated.of([made(triangular(3, dtype), seed, dtype) for seed in range(2)])
        assert bijector.context_size == 2
        bijector = bijector.given(CONTEXTS[0].astype(dtype))
        at = check.points(3, dtype)
        x, log_det = check.forward(bijector, at)
        back, back_log_det = check.inverse(bijector, x)
        tolerance = 1e-4 if dtype == jnp.float32 else 1e-10
        np.testing.assert_allclose(back, at, atol=tolerance * 30)
        np.testing.assert_allclose(back_log_det, -log_det, atol=tolerance)
        np.testing.assert_allclose(log_det, check.differentiated(bijector, at)[1], atol=tolerance)
        assert x.dtype == dtype


def test_leaves_are_themselves_and_what_the_network_adds_in_order():
    bijector = made(triangular())
    loc, log_diagonal, lower = np.split(np.asarray(bijector.network(CONTEXTS[0])), [3, 6])
    inner = bijector.bijector
    factor = np.tril(np.asarray(inner.lower) + lower.reshape(3, 3), -1)
    factor += np.diag(np.exp(np.asarray(inner.log_diagonal) + log_diagonal))
    u = np.array([0.3, -1.0, 2.0], np.float32)
    expected = np.asarray(inner.loc) + loc + factor @ u
    np.testing.assert_allclose(bijector.given(CONTEXTS[0]).forward(u), expected, rtol=1e-5)


def test_densities_of_a_context_have_mass_one():
    flow = check.made(flows.conditional(flows.block_autoregressive(1, 4), (8,)), 2, 2, scale=0.15)
    assert flow.context_size == 2
    check.check_mass(flow, 2, CONTEXTS)


def test_the_network_is_zero_at_first():
    architecture = flows.masked_autoregressive(2, (8,))
    flow = flows.conditional(architecture, (8,)).init(jax.random.key(0), 2, context_size=2)
    x = check.points(2, jnp.float32)[:4]
    values = check.log_probs(flow, x, CONTEXTS)
    np.testing.assert_array_equal(values[0], values[1])
    plain = d.Transformed(flow.base, flow.bijector.bijector)
    np.testing.assert_allclose(values[0], plain.log_prob(x), rtol=1e-6)


def test_no_key_is_used_twice():
    check.check_keys(flows.conditional(flows.masked_autoregressive(2, (8, 8)), (8,)), 3, 4)


def test_shapes_and_what_it_maps_are_those_of_the_bijector():
    inner = flows.TriangularAffine(jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 2)))
    outer = flows.Conditional(d.Chain((inner, d.Exp())), Partial(lambda context: jnp.zeros(8)), 2)
    assert (outer.event_ndims_in, outer.event_ndims_out, outer.keeps_reals) == (1, 1, False)
    assert outer.forward_shape((5, 2)) == outer.inverse_shape((5, 2)) == (5, 2)
    density = d.Transformed(flows.StandardNormal(2), outer.given(CONTEXTS[0]))
    assert density.log_prob(jnp.array([-1.0, 1.0])) == -jnp.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(triangular()).forward(jnp.ones(3)), "context is None; expected a context"),
        (
            lambda: (
                flows.Conditional(triangular(), Partial(lambda context: context), 2).given(CONTEXTS[0]).forward(1.0)
            ),
            r"network is one with an output of shape \(2,\); expected shape \(15,\)",
        ),
        (lambda: flows.Conditional(d.Identity(), Partial(jnp.sin), 2), "bijector is without leaves"),
        (lambda: flows.Conditional(made(triangular()), Partial(jnp.sin), 2), "bijector is one that takes a context"),
        (lambda: flows.conditional("spline"), "architecture is spline"),
        (lambda: flows.conditional(flows.block_autoregressive(), 8), "hidden is 8"),
        (lambda: flows.conditional(flows.block_autoregressive()).init(jax.random.key(0), 2), "context_size is 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_context_that_is_missing_is_told():
    for architecture in (flows.spline_coupling(2, (8,)), flows.masked_autoregressive(2, (8,))):
        flow = architecture.init(jax.random.key(0), 2, context_size=3)
        for call in (
            flow.log_prob,
            lambda x, flow=flow: flow.sample(jax.random.key(0)),
            lambda x, flow=flow: flow.sample_and_log_prob(jax.random.key(0)),
        ):
            with pytest.raises(ValueError, match=r"context is missing; expected 3 numbers. Use flow.given\(context\)"):
                call(jnp.zeros(2))
        assert flow.given(jnp.zeros(3)).log_prob(jnp.zeros(2)).shape == ()
