"""Variational smoothing: exact for normal observations, a bound below the evidence for others, its own fixed point."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Bernoulli, Normal, Poisson, StudentT
from jaxprob.inference import kalman
from jaxprob.inference.kalman._conjugate import positive_part
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.kalman._models import make
from tests.inference.kalman._wrapped import grid_filter, wrap

YS = np.array([2.0, 5, 1, np.nan, 9, 7, np.nan, np.nan, 0, 1])


def move(scale, x, t):
    return Normal(0.9 * x, scale)


def look(x, t):
    return Poisson(jnp.exp(1 + x))


def toss(x, t):
    return Bernoulli(logits=3 * x)


def counts(scale=0.3):
    return StateSpaceModel(Normal(0.0, 1.0), jax.tree_util.Partial(move, jnp.asarray(scale)), look)


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def grid(look, ys):
    return grid_filter(
        np.linspace(-7, 7, 2001), lambda x: normal(x, 0, 1), lambda x, after: normal(after, 0.9 * x, 0.3), look, ys
    )


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_normal_observations_are_smoothed_exactly_at_once(dtype):
    with jax.enable_x64(dtype == np.float64):
        model, ys = make("random", gaps=True, dtype=dtype)
        found, expected = kalman.conjugate_smooth(wrap(model), ys, max_iterations=1), kalman.smooth(model, ys)
        error = 3e-5 if dtype == np.float32 else 1e-11
        for name in ("mean", "covariance", "lag_one_covariance"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=error, atol=error)
        np.testing.assert_allclose(found.elbo, expected.log_likelihood, rtol=error)
        assert found.converged
        assert found.mean.dtype == dtype


def bound(mean, covariance, ys):
    """The evidence lower bound of a normal law of the whole path, in NumPy: Poisson terms in closed form."""
    size = len(ys)
    precision, log_det = np.zeros((size, size)), 0.0
    precision[0, 0] = 1.0
    for t in range(size - 1):
        precision[t : t + 2, t : t + 2] += np.array([[0.81, -0.9], [-0.9, 1]]) / 0.09
        log_det += np.log(0.09)
    prior = -0.5 * (mean @ precision @ mean + np.trace(precision @ covariance) + log_det + size * np.log(2 * np.pi))
    entropy = 0.5 * (np.linalg.slogdet(covariance)[1] + size * (1 + np.log(2 * np.pi)))
    likelihood = sum(
        y * (1 + m) - np.exp(1 + m + v / 2) - math.lgamma(y + 1)
        for y, m, v in zip(ys, mean, np.diag(covariance), strict=True)
        if not np.isnan(y)
    )
    return prior + entropy + likelihood, precision


def whole_covariance(found):
    """Of a scalar state that is Markov, from its variances and those with the next."""
    size = len(found.mean)
    covariance = np.zeros((size, size))
    variance, crossed = np.asarray(found.covariance)[:, 0, 0], np.asarray(found.lag_one_covariance)[:, 0, 0]
    for s in range(size):
        covariance[s, s] = variance[s]
        for t in range(s + 1, size):
            covariance[s, t] = covariance[t, s] = covariance[s, t - 1] * crossed[t - 1] / variance[t - 1]
    return covariance


def test_counts_have_the_best_bound_below_the_evidence(x64):
    found = kalman.conjugate_smooth(counts(), YS)
    assert found.converged
    mean, covariance = np.asarray(found.mean)[:, 0], whole_covariance(found)
    value, precision = bound(mean, covariance, YS)
    np.testing.assert_allclose(found.elbo, value, rtol=1e-9)
    # Stationary: the mean's slope is zero, and the precision is that of the prior with the expected curvatures.
    seen = ~np.isnan(YS)
    rate = np.where(seen, np.exp(1 + mean + np.diag(covariance) / 2), 0)
    np.testing.assert_allclose(np.where(seen, YS, 0) - rate - precision @ mean, 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.inv(covariance), precision + np.diag(rate), atol=1e-5)
    log_factorial = np.vectorize(math.lgamma)
    _, (later, variance), likelihood = grid(lambda x, y: y * (1 + x) - np.exp(1 + x) - log_factorial(y + 1), YS)
    assert 0 < likelihood - found.elbo < 0.1
    assert np.max(np.abs(mean - later) / np.sqrt(variance)) < 0.1


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_coins_and_a_slower_rate(rate, x64):
    ys = np.array([1.0, 1, 0, np.nan, 1, 0, 0, 0, 1, 1])
    model = StateSpaceModel(Normal(0.0, 1.0), jax.tree_util.Partial(move, jnp.asarray(0.3)), toss)
    found = kalman.conjugate_smooth(model, ys, learning_rate=rate, max_iterations=300)
    assert found.converged
    _, (later, variance), likelihood = grid(lambda x, y: y * 3 * x - np.logaddexp(0, 3 * x), ys)
    assert 0 < likelihood - found.elbo < 0.1
    assert np.max(np.abs(found.mean[:, 0] - later) / np.sqrt(variance)) < 0.2


def test_heavy_tails_have_no_site_of_negative_precision(x64):
    """A Student's log density is not concave far out, where a site may say nothing."""
    ys = np.array([0.1, 0.3, 9.0, 0.2, np.nan, -0.1])
    model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, 0.3), lambda x, t: StudentT(3.0, x, 0.3))
    found = kalman.conjugate_smooth(model, ys, learning_rate=0.5, max_iterations=500)
    density = lambda x, y: (  # noqa: E731
        math.lgamma(2)
        - math.lgamma(1.5)
        - 0.5 * np.log(3 * np.pi)
        - np.log(0.3)
        - 2 * np.log1p(((y - x) / 0.3) ** 2 / 3)
    )
    likelihood = grid(density, ys)[2]
    assert np.isfinite(found.elbo)
    assert found.elbo < likelihood


def test_too_few_sweeps_are_no_convergence_and_still_a_bound(x64):
    best = kalman.conjugate_smooth(counts(), YS)
    found = kalman.conjugate_smooth(counts(), YS, max_iterations=1, learning_rate=0.1)
    assert not found.converged
    assert found.elbo < best.elbo


@pytest.mark.slow
def test_the_gradient_of_the_bound_and_of_what_was_found(x64):
    def summary(scale):
        found = kalman.conjugate_smooth(counts(scale), YS, tolerance=1e-11)
        return jnp.stack([found.elbo, found.mean[3, 0], found.factor[5, 0, 0]])

    eps = 1e-4
    expected = (summary(0.3 + eps) - summary(0.3 - eps)) / (2 * eps)
    np.testing.assert_allclose(jax.jacrev(summary)(0.3), expected, rtol=1e-5)


@pytest.mark.slow
def test_short_series_and_a_state_of_several_numbers():
    for ys in (np.zeros(0, np.float32), np.array([3.0], np.float32), np.full(3, np.nan, np.float32)):
        found = kalman.conjugate_smooth(counts(), ys)
        assert found.mean.shape == (len(ys), 1)
        assert found.converged
        if np.isnan(ys).all():
            assert abs(float(found.elbo)) < 1e-5
    # Only the first number is seen: sites are of rank one.
    model = StateSpaceModel(
        Normal(jnp.zeros(2), 1.0),
        lambda x, t: Normal(jnp.stack([0.9 * x[0] + 0.2 * x[1], 0.8 * x[1]]), 0.3),
        lambda x, t: Poisson(jnp.exp(1 + x[0])),
    )
    found = kalman.conjugate_smooth(model, YS.astype(np.float32))
    assert found.converged
    assert np.isfinite(found.elbo)


def test_the_positive_part_and_its_derivative(x64, rng):
    for values in ([2.0, 1.0, 0.5], [2.0, -1.0, -1.0], [1.0, 0.0, 0.0], [3.0, 3.0, -2.0]):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        matrix = turn * values @ turn.T
        expected = turn * np.maximum(values, 0) @ turn.T
        np.testing.assert_allclose(positive_part(jnp.asarray(matrix)), expected, atol=1e-12)
        if 0.0 in values:
            continue
        tangent = rng.normal(size=(3, 3))
        tangent = jnp.asarray(tangent + tangent.T)
        found = jax.jvp(positive_part, (jnp.asarray(matrix),), (tangent,))[1]
        eps = 1e-6
        one, other = (positive_part(matrix + e * tangent) for e in (eps, -eps))
        np.testing.assert_allclose(found, (one - other) / (2 * eps), atol=1e-7)


BAD = {
    "no rate": (lambda m: kalman.conjugate_smooth(m, YS, learning_rate=0.0), "learning_rate is 0.0"),
    "too high a rate": (lambda m: kalman.conjugate_smooth(m, YS, learning_rate=1.5), "at most 1"),
    "no points": (lambda m: kalman.conjugate_smooth(m, YS, expectation="extended"), "sigma points"),
    "no sweep": (lambda m: kalman.conjugate_smooth(m, YS, max_iterations=0), "max_iterations is 0"),
    "an unknown method": (lambda m: kalman.conjugate_smooth(m, YS, method="steady"), "method is 'steady'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        call(counts())
    assert "\n" not in str(error.value)


def test_a_linear_model_is_for_the_smoother():
    with pytest.raises(TypeError, match=r"kalman\.smooth"):
        kalman.conjugate_smooth(make("random", dtype=np.float32)[0], YS)
