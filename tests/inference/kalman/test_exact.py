"""Filters and smoothers against the joint normal law of all states and observations, in float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from tests.inference.kalman._dense import condition, joint, loop
from tests.inference.kalman._models import MODELS, make

METHODS = ("sequential", "parallel")


def errors(found, expected, scale):
    return np.max(np.abs(np.asarray(found, np.float64) - expected) / scale)


def check(model, ys, method, likelihood_error, error):
    """Filtered, predicted and smoothed moments, in units of prior standard deviations, and the log likelihood."""
    times = len(ys)
    prior_sd = np.sqrt(np.diag(joint(model, times)[1])).reshape(times, -1)
    likelihood, mean, covariance = condition(model, ys)
    filtered = kalman.filter(model, ys, method=method)
    smoothed = kalman.smooth(model, ys, method=method)
    for value in (filtered.log_likelihood, smoothed.log_likelihood, kalman.log_likelihood(model, ys, method=method)):
        assert abs(float(value) - likelihood) < likelihood_error * abs(likelihood)
    # A mean is of the size of the data, however little is left uncertain of it.
    unit = np.sqrt(prior_sd**2 + np.max(np.abs(mean), initial=1) ** 2)
    assert errors(smoothed.mean, mean, unit) < error
    sd = np.sqrt(np.maximum(np.einsum("titi->ti", covariance), 0)) + 1e-4 * prior_sd
    blocks = np.stack([covariance[t, :, t] for t in range(times)])
    assert errors(smoothed.covariance, blocks, sd[:, :, None] * sd[:, None, :] + 1e-30) < 300 * error
    for t in range(times - 1):
        size = sd[t, :, None] * sd[t + 1, None, :] + 1e-30
        assert errors(smoothed.lag_one_covariance[t], covariance[t, :, t + 1], size) < 300 * error
    for t in (0, times // 2, times - 1):
        for upto, m, c in (
            (t + 1, filtered.mean, filtered.covariance),
            (t, filtered.predicted_mean, filtered.predicted_covariance),
        ):
            _, mean, covariance = condition(model, ys, upto)
            assert errors(m[t], mean[t], np.sqrt(prior_sd[t] ** 2 + np.max(np.abs(mean), initial=1) ** 2)) < error
            assert errors(c[t], covariance[t, :, t], np.outer(prior_sd[t], prior_sd[t]) + 1e-30) < error


AWKWARD = ["autoregression", "growing_noise", "static_parameter", "known_start", "everything_varies"]


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "sequential") for name in MODELS]
    + [(name, "parallel") for name in AWKWARD[:1]]
    + [pytest.param(name, "parallel", marks=pytest.mark.slow) for name in AWKWARD[1:]],
)
def test_float32(name, method):
    for gaps in (False, True):
        check(*make(name, gaps=gaps, dtype=np.float32), method, 2e-5, 2e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    [pytest.param(name, "parallel", marks=pytest.mark.slow) for name in ("autoregression", "correlated_noise")]
    + [(name, "sequential") for name in ("random", "autoregression", "growing_noise", "correlated_noise")],
)
def test_float64(name, method, x64):
    check(*make(name, gaps=True), method, 1e-10, 1e-8)


@pytest.mark.parametrize("method", ["sequential", "steady", "parallel"])
@pytest.mark.parametrize("name", ["random", "autoregression", "constant_velocity", "static_parameter"])
def test_long_series_in_float32(name, method):
    """20,000 times against a float64 filter."""
    if name == "static_parameter" and method == "steady":
        method = "auto"
    model, ys = make(name, times=20_000, dtype=np.float32)
    total, means = loop(model, ys)
    found = kalman.filter(model, ys, method=method)
    assert abs(float(found.log_likelihood) - total) < 2e-5 * abs(total)
    assert np.max(np.abs(np.asarray(found.mean) - means)) < 2e-4 * np.max(np.abs(means))


def test_a_steady_series_with_a_gap_is_filtered_step_by_step():
    model, ys = make("random", times=1_000, dtype=np.float32)
    ys[700] = np.nan
    one, other = (kalman.filter(model, ys, method=method) for method in ("steady", "sequential"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_standardised_innovations_are_those_of_the_joint_law():
    """The Cholesky factor of the covariance of all observations whitens them, in order."""
    model, ys = make("random", gaps=False)
    mean, covariance, emission, offset, noise = joint(model, len(ys))
    factor = np.linalg.cholesky(emission @ covariance @ emission.T + noise)
    white = np.linalg.solve(factor, ys.ravel() - offset - emission @ mean)
    # A number is seen after those before it in the same time.
    np.testing.assert_allclose(kalman.filter(model, ys).innovation.ravel(), white, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["random", "autoregression"])
def test_gradients(name, x64):
    """Against differences of the joint law; with a gap, and for both methods."""
    model, ys = make(name, gaps=True)

    def likelihood(scale, shift, method):
        entries = {k: getattr(model, k) * scale for k in ("dynamics", "dynamics_covariance", "emission")}
        moved = dataclasses.replace(model, **entries, initial_mean=model.initial_mean + shift)
        return kalman.log_likelihood(moved, ys, method=method) if method else condition(moved, ys)[0]

    eps = 1e-5
    expected = [
        (likelihood(1 + eps, 0.3, None) - likelihood(1 - eps, 0.3, None)) / (2 * eps),
        (likelihood(1.0, 0.3 + eps, None) - likelihood(1.0, 0.3 - eps, None)) / (2 * eps),
    ]
    for method in METHODS if name == "random" else ["sequential"]:
        found = jax.grad(likelihood, argnums=(0, 1))(1.0, 0.3, method)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_gradients_are_finite_in_every_entry():
    """With a singular noise, a known start, missing entries and a missing time."""
    for name in ("autoregression", "known_start", "static_parameter"):
        model, ys = make(name, gaps=True, dtype=np.float32)
        for method in METHODS if name == "known_start" else ["sequential"]:
            found = jax.grad(lambda model, ys=ys, how=method: kalman.log_likelihood(model, ys, method=how))(model)
            assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


def test_a_batch_is_a_vmap():
    model, ys = make("random", times=600, dtype=np.float32)
    batch = jnp.stack([ys, ys[::-1], np.where(ys > 3, np.nan, ys)])
    found = jax.vmap(lambda ys: kalman.log_likelihood(model, ys))(batch)
    np.testing.assert_allclose(found, [kalman.log_likelihood(model, y) for y in batch], rtol=1e-5)


def test_one_time_and_none():
    model, ys = make("random", gaps=False)
    check(model, ys[:1], "sequential", 2e-5, 2e-5)
    assert kalman.log_likelihood(model, ys[:0]) == 0
    assert kalman.filter(model, ys[:0]).mean.shape == (0, 3)
    assert kalman.smooth(model, ys[:1]).lag_one_covariance.shape == (0, 3, 3)


def test_all_missing_is_the_prior():
    model, ys = make("random")
    found = kalman.smooth(model, np.full_like(ys, np.nan))
    mean = joint(model, len(ys))[0]
    np.testing.assert_allclose(found.mean, mean.reshape(-1, 3), rtol=1e-4, atol=1e-4)
    assert found.log_likelihood == 0


def test_a_fixed_lag_knows_what_a_stream_would():
    model, ys = make("random", gaps=True, dtype=np.float32)
    found = kalman.smooth(model, ys, lag=2)
    for t in range(len(ys)):
        _, mean, covariance = condition(model, ys, upto=t + 3)
        np.testing.assert_allclose(found.mean[t], mean[t], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.covariance[t], covariance[t, :, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_paths_are_drawn_from_the_joint_law(method):
    """4,000 draws; means and variances of all states within 5 standard errors (false alarms: 1 in 30,000)."""
    model, ys = make("random", gaps=True, dtype=np.float32)
    _, mean, covariance = condition(model, ys)
    draws = kalman.sample(jax.random.key(1), model, ys, shape=(4000,), method=method)
    flat, size = np.asarray(draws, np.float64).reshape(4000, -1), mean.size
    covariance = covariance.reshape(size, size)
    sd = np.sqrt(np.diag(covariance))
    assert np.max(np.abs(flat.mean(0) - mean.ravel()) / sd) < 5 / np.sqrt(4000)
    # The variance of a product of two correlated normal numbers.
    spread = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2) / 4000)
    assert np.max(np.abs(np.cov(flat.T) - covariance) / spread) < 5.5
