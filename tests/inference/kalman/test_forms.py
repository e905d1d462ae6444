"""Filters with covariances and with information, and the two-filter smoother: all agree with the joint law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._dense import condition, joint
from tests.inference.kalman._models import MODELS, make
from tests.inference.kalman.test_exact import check
from tests.inference.kalman.test_models import NILE

SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["random", pytest.param("everything_varies", marks=SLOW), "independent_noise"])
def test_covariances_in_float64(name, x64):
    check(*make(name, gaps=True), "covariance", 1e-10, 1e-8)


@pytest.mark.parametrize("name", ["random", pytest.param("large", marks=SLOW)])
def test_covariances_in_float32(name):
    check(*make(name, gaps=True, dtype=np.float32), "covariance", 1e-4, 1e-4)


def test_a_covariance_that_is_lost_is_not_a_number():
    """Two numbers without noise that say the same, which roots take."""
    model, ys = make("random", dtype=np.float32)
    changes = dict(emission=np.ones((2, 3)), emission_covariance=np.zeros((2, 2)), emission_offset=np.zeros(2))
    model = dataclasses.replace(model, **{name: array.astype(np.float32) for name, array in changes.items()})
    same = np.repeat(ys[:, :1], 2, 1)
    assert np.isfinite(kalman.log_likelihood(model, same))
    assert np.isnan(kalman.log_likelihood(model, same, method="covariance"))


def test_the_gradient_with_covariances(x64):
    model, ys = make("random", gaps=True)

    def slopes(method):
        return jax.grad(lambda model: kalman.log_likelihood(model, ys, method=method))(model)

    found, expected = slopes("covariance"), slopes("sequential")
    for name in ("initial_mean", "dynamics", "dynamics_offset", "emission"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-7, atol=1e-9)
    for name in ("initial_covariance", "dynamics_covariance", "emission_covariance"):
        # Of a symmetric matrix, however the two triangles share it.
        one, other = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        np.testing.assert_allclose(one + one.T, other + other.T, rtol=1e-7, atol=1e-9)


TWO = ("random", "autoregression", "known_start", "static_parameter", "independent_noise")


@pytest.mark.parametrize("name", [name if name in TWO else pytest.param(name, marks=SLOW) for name in MODELS])
def test_two_filters_in_float32(name):
    """Singular noise, a known start, a state that does not move, variances over twelve orders of magnitude."""
    model, ys = make(name, gaps=True, dtype=np.float32)
    times = len(ys)
    _, mean, covariance = condition(model, ys)
    found = kalman.smooth(model, ys, method="two_filter")
    prior = np.sqrt(np.diag(joint(model, times)[1])).reshape(times, -1)
    unit = np.sqrt(prior**2 + np.max(np.abs(mean)) ** 2)
    assert np.max(np.abs(found.mean - mean) / unit) < 2e-5
    sd = np.sqrt(np.maximum(np.einsum("titi->ti", covariance), 0)) + 1e-4 * prior
    for t in range(times):
        gap = np.abs(found.covariance[t] - covariance[t, :, t])
        assert np.max(gap / (np.outer(sd[t], sd[t]) + 1e-30)) < 6e-3
    for t in range(times - 1):
        gap = np.abs(found.lag_one_covariance[t] - covariance[t, :, t + 1])
        assert np.max(gap / (np.outer(sd[t], sd[t + 1]) + 1e-30)) < 6e-3


def trend(dtype, noise=15099.0, **changes):
    entries = dict(
        initial_mean=np.zeros(2),
        initial_covariance=np.zeros((2, 2)),
        dynamics=np.array([[1.0, 1.0], [0.0, 1.0]]),
        dynamics_covariance=np.diag([1469.1, 10.0]),
        emission=np.array([[1.0, 0.0]]),
        emission_covariance=np.array([noise]),
        initial_diffuse=np.eye(2),
    )
    return LinearGaussian(**{name: np.asarray(array, dtype) for name, array in {**entries, **changes}.items()})


PARTLY = dict(initial_covariance=np.diag([0.0, 4.0]), initial_diffuse=np.array([[2.0], [0.0]]))


@pytest.mark.parametrize("changes", [{}, PARTLY])
@pytest.mark.slow
def test_a_diffuse_start(changes, x64):
    """Against the filter that knows diffuse numbers; the smoothers too."""
    model = trend(np.float64, **changes)
    ys = np.where(np.arange(100) % 7 == 1, np.nan, NILE.astype(float))[:20]
    expected, found = kalman.filter(model, ys), kalman.information_filter(model, ys)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
    known = np.isfinite(expected.mean).all(1)
    np.testing.assert_allclose(found.covariance[known], expected.covariance[known], rtol=1e-8, atol=1e-6)
    np.testing.assert_allclose(found.log_likelihoods[known], expected.log_likelihoods[known], rtol=1e-10)
    assert np.isnan(found.log_likelihoods[~known]).all()
    assert known.sum() == (18 if not changes else 20)
    one, two = (kalman.smooth(model, ys, method=method) for method in ("sequential", "two_filter"))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-7, atol=1e-6)


def check_information(model, ys, error):
    found = kalman.information_filter(model, ys)
    likelihood = condition(model, ys)[0]
    assert abs(float(found.log_likelihood) - likelihood) < error * abs(likelihood)
    for t in (0, len(ys) // 2, len(ys) - 1):
        _, mean, covariance = condition(model, ys, t + 1)
        sd = np.sqrt(np.diag(covariance[t, :, t]))
        unit = np.sqrt(np.diag(joint(model, len(ys))[1])).reshape(len(ys), -1)[t] + np.max(np.abs(mean[t]))
        assert np.max(np.abs(found.mean[t] - mean[t]) / unit) < error
        assert np.max(np.abs(found.covariance[t] - covariance[t, :, t]) / np.outer(sd, sd)) < 300 * error
        np.testing.assert_allclose(
            found.vector[t], np.linalg.solve(covariance[t, :, t], mean[t]), rtol=1e-2, atol=300 * error * np.max(1 / sd)
        )


@pytest.mark.parametrize("name", ["random", pytest.param("everything_varies", marks=SLOW), "independent_noise"])
def test_information(name, x64):
    check_information(*make(name, gaps=True), 1e-9)


def test_information_of_many_numbers_in_float32():
    """200 numbers observed of two states, a third of them missing."""
    rng = np.random.default_rng(0)
    model, _ = make("random", dtype=np.float32)
    emission = rng.normal(size=(200, 3)).astype(np.float32)
    variances = rng.uniform(0.5, 2, size=200).astype(np.float32)
    model = dataclasses.replace(
        model, emission=emission, emission_covariance=variances, emission_offset=np.zeros(200, np.float32)
    )
    ys = np.array(kalman.simulate(jax.random.key(0), model, 4)[1])
    ys[rng.uniform(size=ys.shape) < 0.3] = np.nan
    found = kalman.information_filter(model, ys)
    likelihood, mean, covariance = condition(model, ys, 4)
    assert abs(float(found.log_likelihood) - likelihood) < 2e-5 * abs(likelihood)
    np.testing.assert_allclose(found.mean[3], mean[3], atol=1e-4)
    np.testing.assert_allclose(found.covariance[3], covariance[3, :, 3], rtol=1e-3, atol=1e-6)


def test_information_without_noise_is_not_a_number():
    model, ys = make("autoregression", dtype=np.float32)
    assert np.isnan(kalman.information_filter(model, ys).log_likelihood)


def test_short_series_and_errors():
    model, ys = make("random", dtype=np.float32)
    assert kalman.information_filter(model, ys[:0]).log_likelihood == 0
    one = kalman.smooth(model, ys[:1], method="two_filter")
    np.testing.assert_allclose(one.mean, kalman.filter(model, ys[:1]).mean, rtol=1e-5)
    nothing = np.full_like(ys, np.nan)
    assert kalman.information_filter(model, nothing).log_likelihood == pytest.approx(0, abs=1e-4)
    assert kalman.log_likelihood(model, nothing, method="covariance") == 0
    with pytest.raises(ValueError, match="with a lag"):
        kalman.smooth(model, ys, method="two_filter", lag=1)
    with pytest.raises(ValueError, match="expected one of"):
        kalman.filter(model, ys, method="two_filter")
    with pytest.raises(TypeError, match="LinearGaussian"):
        kalman.information_filter(jnp.zeros(3), ys)
