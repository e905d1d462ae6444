"""Roots of increasing functions: accuracy where Newton's method alone fails, derivatives, what is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions.flows._roots import increasing_root

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
# Flat far out, flat at the root, steep at the root, and with a corner.
FUNCTIONS = {
    "tanh": (lambda u: jnp.tanh(4 * u) + 1e-3 * u, lambda u: np.tanh(4 * u) + 1e-3 * u),
    "cube": (lambda u: u**3, lambda u: u**3),
    "cube root": (lambda u: jnp.cbrt(u), np.cbrt),
    "corner": (lambda u: jnp.where(u < 0, 100 * u, 0.01 * u), lambda u: np.where(u < 0, 100 * u, 0.01 * u)),
}


@DTYPES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_roots_in_wide_brackets(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        function, oracle = FUNCTIONS[name]
        expected = np.array([-900.0, -3.0, -0.5, 0.001, 0.7, 2.0, 800.0])
        target = jnp.asarray(oracle(expected), dtype)
        ends = jnp.full(7, 1000.0, dtype)
        root = jax.jit(lambda target: increasing_root(lambda u: function(u) - target, -ends, ends))(target)
        assert root.dtype == dtype
        # What a rounding of the value does to the root, and one of the root.
        eps = jnp.finfo(dtype).eps
        slope = (oracle(expected + 1e-6) - oracle(expected - 1e-6)) / 2e-6
        allowed = 16 * eps * (1 + np.abs(expected) + (1e-2 * eps + np.abs(oracle(expected))) / slope)
        np.testing.assert_array_less(np.abs(root - expected), allowed)


def test_derivatives_of_both_orders_are_those_of_the_inverse():
    with jax.enable_x64(True):

        def root(a, target):
            return increasing_root(lambda u: jnp.sinh(a * u) - target, jnp.float64(-9), jnp.float64(9))

        a, target = jnp.float64(0.7), jnp.float64(2.3)

        def closed(a, target):
            return jnp.arcsinh(target) / a

        for order in (jax.grad, lambda f, n: jax.jacfwd(jax.grad(f, n), n)):
            for argument in (0, 1):
                value = jax.jit(order(root, argument))(a, target)
                np.testing.assert_allclose(value, order(closed, argument)(a, target), rtol=1e-12)


def test_missing_and_infinite_ends():
    target = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf, -2.0])
    root = jax.jit(lambda target: increasing_root(lambda u: 2 * u - target, target - 9, target + 9))(target)
    np.testing.assert_allclose(root[jnp.array([0, 4])], [0.5, -1.0], rtol=1e-6)
    assert np.isnan(root[1])
    assert not np.isfinite(root[2:4]).any()


@DTYPES
def test_where_only_bisection_gets_to_the_root(dtype):
    # Newton's steps are two thirds of the distance here, and never half of the step before.
    with jax.enable_x64(dtype == jnp.float64):
        ends = jnp.asarray([-900.0, 1000.0], dtype)
        root = jax.jit(lambda ends: increasing_root(lambda u: u**3, ends[:1], ends[1:]))(ends)
        assert abs(root[0]) < 16 * jnp.finfo(dtype).eps


def test_a_root_at_an_end():
    ends = jnp.array([0.1, 1e4])
    root = jax.jit(lambda ends: increasing_root(lambda u: u - ends, ends, ends))(ends)
    np.testing.assert_allclose(root, ends, rtol=1e-6)
