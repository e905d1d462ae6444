"""Log-sum-exp against exact sums, and at every combination of infinite terms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core
from jaxprob.distributions import Normal

INF = np.inf
EPS = np.finfo(np.float32).eps
both = jax.jit(jax.value_and_grad(core.logsumexp))
pair = jax.jit(jax.value_and_grad(core.logaddexp, (0, 1)))
weighted = jax.jit(jax.value_and_grad(lambda x, w: core.logsumexp(x, weights=w), (0, 1)))


def expected_gradient(x):
    """The limit of softmax: shared by the infinite terms where there are some, zero where all are -inf."""
    if (x == -INF).all():
        return np.zeros_like(x)
    if (x == INF).any():
        return (x == INF) / np.sum(x == INF)
    return scipy.special.softmax(x)


@pytest.mark.parametrize("x", list(itertools.product([-INF, -2.0, 3.0, INF], repeat=3)))
def test_values_and_gradients_at_infinity(x):
    x = np.array(x, np.float32)
    value, gradient = both(x)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(value, np.log(np.sum(np.exp(x.astype(np.float64)))), rtol=2 * EPS)
    np.testing.assert_allclose(gradient, expected_gradient(x.astype(np.float64)), rtol=1e-6, atol=1e-9)
    value, gradient = pair(x[0], x[1])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(value, np.log(np.sum(np.exp(x[:2].astype(np.float64)))), rtol=2 * EPS)
    np.testing.assert_allclose(gradient, expected_gradient(x[:2].astype(np.float64)), rtol=1e-6, atol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), st.sampled_from([0.0, 1e4, -1e30]))
def test_values_and_gradients_in_float32(terms, shift):
    x = (np.array(terms, np.float32) + np.float32(shift)).astype(np.float32)
    wide = x.astype(np.longdouble)
    top = wide.max()
    want = top + np.log(np.sum(np.exp(wide - top)))
    value, gradient = both(x)
    # A sum cannot be known better than its terms: half an eps of the largest, and the rounding of the result.
    np.testing.assert_allclose(value, float(want), rtol=2 * EPS, atol=2 * EPS)
    shares = np.exp(wide - top) / np.sum(np.exp(wide - top))
    # exp(x - top) carries the rounding of the difference.
    assert (np.abs(np.asarray(gradient) - shares) <= (4 + top - wide) * EPS * shares + 1e-37).all()
    pair_want = np.logaddexp(wide[0], wide[1])
    np.testing.assert_allclose(pair(x[0], x[1])[0], float(pair_want), rtol=2 * EPS, atol=2 * EPS)


def test_a_small_term_beside_zero_keeps_its_digits():
    """log(1 + exp(-30)) is 9.4e-14, not 0."""
    for value in (both(jnp.array([-30.0, 0.0, -jnp.inf]))[0], pair(-30.0, 0.0)[0]):
        np.testing.assert_allclose(value, math.exp(-30.0), rtol=1e-6)


def test_axes(rng):
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    choices = [(axis, keep) for axis in (None, 0, -1, (0, 2), 1) for keep in (False, True)]
    results = jax.jit(lambda x: [core.logsumexp(x, axis, keepdims=keep) for axis, keep in choices])(x)
    for got, (axis, keep) in zip(results, choices, strict=True):
        want = scipy.special.logsumexp(x.astype(np.float64), axis=axis, keepdims=keep)
        assert got.shape == np.shape(want)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_weights_and_their_gradients(rng, x64):
    x, w = rng.normal(size=(2, 5)) * 20, rng.uniform(0, 2, size=(2, 5))
    w[0, 1] = 0.0
    value, slopes = jax.jit(jax.value_and_grad(lambda x, w: core.logsumexp(x, 1, weights=w).sum(), (0, 1)))(x, w)
    total = np.sum(w * np.exp(x), 1)
    np.testing.assert_allclose(value, np.log(total).sum(), rtol=1e-14)
    np.testing.assert_allclose(slopes[0], w * np.exp(x) / total[:, None], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(slopes[1], np.exp(x) / total[:, None], rtol=1e-12)


def test_a_term_of_weight_zero_is_not_there():
    x, mask = jnp.array([jnp.nan, 1.0, jnp.inf, 2.0]), jnp.array([False, True, False, True])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: core.logsumexp(x, weights=mask)))(x)
    # Alone and with its derivative the value goes through different code.
    for found in (value, core.logsumexp(x, weights=mask)):
        np.testing.assert_allclose(found, np.log(np.exp(1) + np.exp(2)), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0, 1 / (1 + np.e), 0, np.e / (1 + np.e)], rtol=1e-6)
    _, slopes = weighted(x, jnp.zeros(4))
    np.testing.assert_array_equal(slopes, np.zeros((2, 4)))
    # Terms so small beside one of weight zero that the ratio overflows.
    value, slopes = weighted(jnp.array([500.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[0], [0.0, 0.5, 0.0, 0.5])


def test_weights_broadcast():
    call = jax.jit(lambda x, w: core.logsumexp(x, 1, weights=w))
    np.testing.assert_allclose(call(jnp.zeros((2, 3)), jnp.array([1.0, 2.0, 3.0])), np.log([6.0, 6.0]), rtol=1e-6)
    assert jax.eval_shape(call, jnp.zeros(3), jnp.ones((2, 3))).shape == (2,)


def test_negative_totals_and_nan_are_nan():
    assert np.isnan(weighted(jnp.zeros(4), jnp.array([1.0, -2.0, 0.0, 0.0]))[0])
    assert np.isnan(both(jnp.array([jnp.nan, 0.0, 0.0]))[0])
    assert np.isnan(pair(jnp.nan, 0.0)[0])


def test_nothing_to_sum():
    assert core.logsumexp(jnp.zeros((0,))) == -INF
    np.testing.assert_array_equal(core.logsumexp(jnp.zeros((2, 0)), 1), [-INF, -INF])


def test_second_derivatives(rng, x64):
    """The Hessian is diag(p) - p p^T, and zero where nothing is finite."""
    x = rng.normal(size=4)
    p = scipy.special.softmax(x)
    hessian = jax.jit(jax.hessian(core.logsumexp))
    np.testing.assert_allclose(hessian(x), np.diag(p) - np.outer(p, p), rtol=1e-12, atol=1e-14)
    x[1] = -INF
    p = scipy.special.softmax(x)
    np.testing.assert_allclose(hessian(x), np.diag(p) - np.outer(p, p), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(hessian(np.full(4, -INF)), np.zeros((4, 4)))
    s = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(jax.jit(jax.hessian(core.logaddexp))(1.0, 0.0), s * (1 - s), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    def everything(x):
        gradient = jax.grad(core.logsumexp)(x)
        sums = core.logsumexp(x), core.logsumexp(x, weights=2), core.logsumexp(x, weights=jnp.arange(5))
        return gradient, sums, core.logaddexp(x, 0), core.logaddexp(x, 0.0), core.logaddexp(jnp.arange(5), x)

    for leaf in jax.tree.leaves(jax.eval_shape(everything, jax.ShapeDtypeStruct((5,), dtype))):
        assert leaf.dtype == dtype


def test_logaddexp_is_associative_enough_for_a_scan(rng):
    """Terms of -inf are the identity, so that an associative scan may pad with them."""
    x = rng.normal(size=7).astype(np.float32)
    x[[0, 3]] = -INF
    got = jax.jit(lambda x: jax.lax.associative_scan(core.logaddexp, x))(x)
    np.testing.assert_allclose(got, np.logaddexp.accumulate(x.astype(np.float64)), rtol=1e-5)


def test_terms_that_are_computed_once_more_for_each_sum():
    """XLA may compute the terms anew for the largest and for the sums, and round them otherwise each time.

    A sum that looked for the largest by equality found none in 13 % of these, and was NaN.
    """

    def terms(key):
        states = Normal(0.0, 1.0).sample(key, (4,))
        return Normal(0.5 * states, 0.7).log_prob(1.3) - jnp.log(4.0)

    with jax.debug_key_reuse(False):  # the same terms, in a program of their own
        keys = jax.random.split(jax.random.key(0), 4000)
        values = jax.jit(jax.vmap(lambda key: core.logsumexp(terms(key))))(keys)
        kept = jax.jit(jax.vmap(terms))(keys)
    wanted = np.log(np.sum(np.exp(np.asarray(kept, np.float64)), 1))
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6)
