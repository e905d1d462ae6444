"""Bounds of log weights: values and gradients in closed form or by float64 NumPy, weights of zero, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxprob.inference.vi import _bounds as bounds

LOG_WEIGHTS = np.array([[0.3, -2.0], [1.7, -2.5], [-0.4, -1000.0], [0.9, -3.0]])
LOG_Q = np.array([[-1.0, -2.0], [-3.0, -0.5], [-0.7, -1.1], [-2.2, -0.9]])
DTYPES = ["float32", "float64"]


def renyi(log_weights, order):
    """Float64, away from order 1."""
    power = 1 - order
    return (logsumexp(power * log_weights, axis=0) - np.log(len(log_weights))) / power


def value_and_gradient(function, *arrays):
    @jax.jit
    def run(*arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, pull(jnp.ones_like(value))

    return run(*arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_importance_weighted_bound(dtype, x64):
    log_weights = jnp.asarray(LOG_WEIGHTS, dtype)
    value, (gradient,) = value_and_gradient(bounds.importance_weighted_bound, log_weights)
    assert value.dtype == gradient.dtype == dtype
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(value, logsumexp(LOG_WEIGHTS, axis=0) - np.log(4), rtol=tolerance)
    np.testing.assert_allclose(gradient, softmax(LOG_WEIGHTS, axis=0), rtol=10 * tolerance, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_renyi_of_every_order(dtype, x64):
    """Orders next to 1 too, where the formula divides by zero: in float32 to seven digits, value and gradient."""
    log_weights = jnp.asarray(LOG_WEIGHTS[:, 0], dtype)
    both = jax.jit(jax.value_and_grad(bounds.renyi_bound))
    tolerance = 5e-7 if dtype == "float32" else 1e-13
    for order in (-2.0, 0.0, 0.3, 0.9, 0.975, 1.1, 2.0, 30.0):
        value, gradient = both(log_weights, order)
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(value, renyi(LOG_WEIGHTS[:, 0], order), rtol=20 * tolerance)
        expected = softmax((1 - order) * LOG_WEIGHTS[:, 0])
        np.testing.assert_allclose(gradient, expected, rtol=20 * tolerance, atol=1e-8)
    mean, variance = LOG_WEIGHTS[:, 0].mean(), LOG_WEIGHTS[:, 0].var()
    for gap in (0.0, 1e-3, 1e-4, -1e-4, 1e-6):
        # To the second order in the gap; float32's orders near 1 are 6e-8 apart.
        gap = float(1 - np.asarray(1 - gap, dtype))
        value, gradient = both(log_weights, 1 - gap)
        np.testing.assert_allclose(value, mean + gap * variance / 2, rtol=tolerance, atol=3 * gap**2)
        expected = (1 + gap * (LOG_WEIGHTS[:, 0] - mean)) / 4
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=3 * gap**2)


def test_renyi_joins_its_two_formulas(x64):
    """Either side of where powers stop being near 1; orders 1 and 0 are the ELBO and the importance-weighted bound."""
    log_weights = np.array([-1.0, 0.2, 0.8])
    bound = jax.jit(bounds.renyi_bound)
    for power in (0.99999, 1.00001):
        found = bound(jnp.asarray(log_weights), 1 - power)
        np.testing.assert_allclose(found, renyi(log_weights, 1 - power), rtol=1e-12)
    np.testing.assert_allclose(bound(jnp.asarray(LOG_WEIGHTS), 1.0), LOG_WEIGHTS.mean(axis=0))
    expected = bounds.importance_weighted_bound(jnp.asarray(LOG_WEIGHTS))
    np.testing.assert_allclose(bound(jnp.asarray(LOG_WEIGHTS), 0.0), expected)


def test_a_bound_does_not_increase_in_its_order(rng):
    log_weights = jnp.asarray(rng.normal(size=(5, 20)), jnp.float32)
    orders = jnp.asarray([-1.0, 0.0, 0.5, 0.999, 1.0, 1.001, 2.0])
    values = jax.jit(jax.vmap(bounds.renyi_bound, (None, 0)))(log_weights, orders)
    assert jnp.all(values[1:] <= values[:-1] + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_doubly_reparameterized_gradient_has_squared_weights(dtype, x64):
    log_weights = jnp.asarray(LOG_WEIGHTS, dtype)
    value, (gradient,) = value_and_gradient(bounds.doubly_reparameterized_bound, log_weights)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, logsumexp(LOG_WEIGHTS, axis=0) - np.log(4), rtol=1e-6)
    np.testing.assert_allclose(gradient, softmax(LOG_WEIGHTS, axis=0) ** 2, rtol=1e-5, atol=1e-30)


def vimco_credit(log_weights):
    """What each draw adds to the bound, by loops in float64."""
    number = len(log_weights)
    credit = np.zeros(number)
    for i in range(number):
        others = np.delete(log_weights, i)
        without = np.append(others, others.mean())
        credit[i] = logsumexp(log_weights) - logsumexp(without)
    return credit


@pytest.mark.parametrize("dtype", DTYPES)
def test_vimco_credits_each_draw_with_what_it_adds(dtype, x64):
    log_weights, log_q = jnp.asarray(LOG_WEIGHTS, dtype), jnp.asarray(LOG_Q, dtype)
    value, (by_weights, by_q) = value_and_gradient(bounds.vimco_bound, log_weights, log_q)
    assert value.dtype == by_weights.dtype == by_q.dtype == dtype
    np.testing.assert_allclose(value, logsumexp(LOG_WEIGHTS, axis=0) - np.log(4), rtol=1e-6)
    np.testing.assert_allclose(by_weights, softmax(LOG_WEIGHTS, axis=0), rtol=1e-5, atol=1e-30)
    expected = np.stack([vimco_credit(column) for column in LOG_WEIGHTS.T], axis=1)
    np.testing.assert_allclose(by_q, expected, rtol=1e-5, atol=3e-7)
    # The credit of a level that all weights share is not lost to rounding.
    shifted = value_and_gradient(bounds.vimco_bound, log_weights + jnp.asarray(2.0**17, dtype), log_q)[1][1]
    np.testing.assert_allclose(shifted[:, 0], expected[:, 0], atol=0.03 if dtype == "float32" else 1e-9)


def test_the_forward_divergence():
    log_weights, log_q = jnp.asarray(LOG_WEIGHTS), jnp.asarray(LOG_Q)
    value, (by_weights, by_q) = value_and_gradient(bounds.forward_divergence, log_weights, log_q)
    weights = softmax(LOG_WEIGHTS, axis=0)
    expected = np.log(4) + np.sum(np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0), axis=0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(by_q, -(weights - 1 / 4), rtol=1e-5, atol=1e-7)
    assert not np.any(by_weights)
    equal = value_and_gradient(bounds.forward_divergence, jnp.full(3, 2.0), log_q[:3, 0])
    np.testing.assert_allclose(equal[0], 0, atol=1e-6)
    np.testing.assert_allclose(equal[1][1], 0, atol=1e-7)


BOUNDS = {
    "importance_weighted": lambda w, q: bounds.importance_weighted_bound(w),
    "renyi 0.5": lambda w, q: bounds.renyi_bound(w, 0.5),
    "renyi -1": lambda w, q: bounds.renyi_bound(w, -1.0),
    "doubly_reparameterized": lambda w, q: bounds.doubly_reparameterized_bound(w),
    "vimco": bounds.vimco_bound,
    "forward_divergence": bounds.forward_divergence,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_weights_of_zero(name):
    """Finite unless all are zero, where the value is not and the step is refused; a zero has the limit of gradients."""
    infinite = -jnp.inf
    log_weights = jnp.asarray(
        [[0.3, infinite, infinite, infinite], [1.7, 0.5, infinite, 0.1], [-0.4, -0.2, 1.0, infinite]]
    )
    log_q = jnp.asarray(np.tile(LOG_Q[:3, :1], (1, 4)), jnp.float32)
    small = jnp.where(jnp.isinf(log_weights), -70.0, log_weights)
    every = jnp.stack([log_weights, small, jnp.full_like(log_weights, infinite)], axis=1)
    values, (by_weights, by_q) = value_and_gradient(BOUNDS[name], every, jnp.stack([log_q] * 3, axis=1))
    (value, gradients), limits, nothing = ((values[i], (by_weights[:, i], by_q[:, i])) for i in range(3))
    assert np.all(np.isfinite(value))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert np.all(np.asarray(gradients[0])[np.isinf(log_weights)] == 0)
    if name != "vimco":  # whose geometric means depend on the logarithms of small weights
        np.testing.assert_allclose(value, limits[0], atol=1e-5)
        np.testing.assert_allclose(gradients[1], limits[1][1], atol=1e-5)
    np.testing.assert_allclose(gradients[0], limits[1][0], atol=1e-5)
    # Nothing but zeros: not finite, and no NaN in the gradient.
    assert np.all(np.isinf(nothing[0]))
    assert all(np.all(np.isfinite(gradient)) for gradient in nothing[1])


def test_vimco_with_weights_of_zero(x64):
    """By hand: the others' geometric mean is that of the two weights above zero, or zero."""
    infinite = -np.inf
    credit = jax.jit(lambda w: jax.grad(lambda q: bounds.vimco_bound(w, q))(jnp.zeros_like(w)))
    total, both = np.log1p(np.exp(0.7)), np.log(1 + np.exp(0.7) + np.exp(0.35))
    np.testing.assert_allclose(credit(jnp.asarray([infinite, 0.0, 0.7])), [total - both, total - 0.7, total])
    # The others say nothing: no baseline, so that the credit is the bound itself.
    np.testing.assert_allclose(credit(jnp.asarray([infinite, 3.0])), [-np.log(2), 3 - np.log(2)])
    np.testing.assert_allclose(credit(jnp.asarray([3.0])), [3.0])


def test_orders_from_one_on_do_not_forgive_a_zero():
    log_weights = jnp.asarray([[0.0, 0.0], [-jnp.inf, 1.0]])
    for order in (1.0, 1.5):
        value, (gradient,) = value_and_gradient(lambda w, order=order: bounds.renyi_bound(w, order), log_weights)
        assert value[0] == -jnp.inf
        assert jnp.isfinite(value[1])
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", BOUNDS)
def test_nan_is_not_hidden(name):
    log_weights = jnp.asarray([0.0, jnp.nan, 1.0])
    assert jnp.isnan(BOUNDS[name](log_weights, jnp.zeros(3)))


def test_a_value_with_the_gradient_of_another():
    """Infinities of the surrogate do not reach the value; batches and compilation."""

    def function(x):
        return bounds.with_gradient_of(jnp.round(x), jnp.where(x > 3, jnp.inf, 0.0) + x**3)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(function)))(jnp.asarray([1.6, 3.4]))
    np.testing.assert_allclose(values, [2, 3])
    np.testing.assert_allclose(gradients, [3 * 1.6**2, 3 * 3.4**2], rtol=1e-6)
