"""Structural models against statsmodels' exact diffuse likelihoods, states and components; sums; traced deviations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob.models.state_space as ss
from jaxprob import models
from jaxprob.distributions import HalfNormal
from jaxprob.inference import kalman

structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
T = 60


@pytest.fixture
def ys(rng):
    t = np.arange(T)
    return 10 + 0.3 * t + 2 * np.sin(2 * np.pi * t / 4) + np.cumsum(rng.normal(size=T)) * 0.5 + rng.normal(size=T)


def diffuse_cycle():
    """That of statsmodels, which begins it diffuse though it is stationary."""
    moving = ss.cycle(7.5, 0.8, 0.6)
    none = jnp.zeros_like(moving.initial_covariance)
    return dataclasses.replace(moving, initial_covariance=none, initial_diffuse=jnp.eye(2, dtype=none.dtype))


def theirs(ys, parameters, **options):
    """Log likelihood and smoothed means of `UnobservedComponents`, whose parameters are variances."""
    model = structural.UnobservedComponents(ys, use_exact_diffuse=True, **options)
    return model.loglike(parameters), model.smooth(parameters)


CASES = {
    "level": (lambda: ss.local_level(0.5) + ss.observed_with(1.2), [1.44, 0.25], {"level": "local level"}),
    "trend": (
        lambda: ss.local_linear_trend(0.5, 0.1) + ss.observed_with(1.2),
        [1.44, 0.25, 0.01],
        {"level": "local linear trend"},
    ),
    "seasonal": (
        lambda: ss.local_linear_trend(0.5, 0.1) + ss.seasonal(4, 0.3) + ss.observed_with(1.2),
        [1.44, 0.25, 0.01, 0.09],
        {"level": "local linear trend", "seasonal": 4},
    ),
    "waves": (
        lambda: ss.local_level(0.5) + ss.trigonometric_seasonal(4, 0.3) + ss.observed_with(1.2),
        [1.44, 0.25, 0.09],
        {"level": "local level", "freq_seasonal": [{"period": 4}]},
    ),
    "cycle": (
        lambda: ss.local_level(0.5) + diffuse_cycle() + ss.observed_with(1.2),
        [1.44, 0.25, 0.36, 2 * np.pi / 7.5, 0.8],
        {"level": "local level", "cycle": True, "stochastic_cycle": True, "damped_cycle": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_likelihood_and_states_are_those_of_statsmodels(name, ys, x64):
    build, parameters, options = CASES[name]
    ys = np.where(np.arange(T) == 20, np.nan, ys)
    likelihood, result = theirs(ys, parameters, **options)
    found = kalman.smooth(build(), ys)
    np.testing.assert_allclose(found.log_likelihood, likelihood, rtol=1e-9)
    # Theirs has one more state for the wave of half a period, which nothing depends on.
    expected = result.smoothed_state.T[:, : found.mean.shape[1]]
    np.testing.assert_allclose(found.mean, expected, rtol=1e-6, atol=1e-7)


def test_a_cycle_begins_in_its_stationary_law(x64):
    moving = ss.cycle(7.5, 0.8, 0.6)
    f, p = np.asarray(moving.dynamics), np.asarray(moving.initial_covariance)
    np.testing.assert_allclose(f @ p @ f.T + np.asarray(moving.dynamics_covariance), p, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.linalg.eigvals(f), 0.8 * np.exp([2j * np.pi / 7.5, -2j * np.pi / 7.5]), rtol=1e-12)


@pytest.mark.parametrize("name", ["trend", "seasonal", "cycle"])
def test_float32(name, ys):
    build, parameters, options = CASES[name]
    np.testing.assert_allclose(kalman.log_likelihood(build(), ys), theirs(ys, parameters, **options)[0], rtol=1e-5)


def test_a_regression_is_least_squares(ys, rng, x64):
    """With no state that moves, the coefficients are those of least squares, and so are their variances."""
    xs = np.stack([np.ones(T), np.arange(T), rng.normal(size=T)], 1)
    found = kalman.smooth(ss.regression(xs) + ss.observed_with(1.3), ys)
    expected = np.linalg.lstsq(xs, ys, rcond=None)[0]
    np.testing.assert_allclose(found.mean[-1], expected, rtol=1e-8)
    np.testing.assert_allclose(found.covariance[0], 1.69 * np.linalg.inv(xs.T @ xs), rtol=1e-7, atol=1e-12)


def test_components_add_up(ys, x64):
    parts = {
        "trend": ss.local_linear_trend(0.5, 0.1),
        "season": ss.seasonal(4, 0.3),
        "holidays": ss.regression(np.eye(T)[:, [17]]),
        "noise": ss.observed_with(1.2),
    }
    model = parts["trend"] + parts["season"] + parts["holidays"] + parts["noise"]
    smoothed = kalman.smooth(model, ys)
    found = ss.decompose(parts, smoothed)
    whole = np.sum(np.asarray(model.emission)[:, 0] * np.asarray(smoothed.mean), 1)
    np.testing.assert_allclose(sum(part.mean for part in found.values()), whole, rtol=1e-10)
    np.testing.assert_allclose(found["trend"].variance, smoothed.covariance[:, 0, 0], rtol=1e-10)
    assert found["noise"].mean.tolist() == [0.0] * T
    np.testing.assert_allclose(whole[17], ys[17], rtol=1e-8)  # its own coefficient takes it all
    with pytest.raises(ValueError, match="of 5 states, and what was smoothed has 6"):
        ss.decompose({k: v for k, v in parts.items() if k != "holidays"}, smoothed)


def test_deviations_may_be_traced_and_tiny(ys):
    def likelihood(deviations):
        level, slope, season, noise = deviations
        model = ss.local_linear_trend(level, slope) + ss.seasonal(4, season) + ss.observed_with(noise)
        return kalman.log_likelihood(model, ys)

    for deviations in ([0.5, 0.1, 0.3, 1.2], [0.5, 1e-6, 1e-8, 1.2], [0.0, 0.1, 0.0, 1.2]):
        value, gradient = jax.jit(jax.value_and_grad(likelihood))(jnp.array(deviations))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_the_tour(ys):
    """A structural model in a joint one; the states are integrated out."""

    @models.joint
    def series(length):
        level = yield "level", HalfNormal(0.5)
        slope = yield "slope", HalfNormal(0.05)
        season = yield "season", HalfNormal(0.5)
        noise = yield "noise", HalfNormal(0.5)
        model = ss.local_linear_trend(level, slope) + ss.seasonal(4, season) + ss.observed_with(noise)
        yield "ys", kalman.marginal(model, length)

    posterior = series(T).condition(ys=ys.astype(np.float32))
    position = posterior.initial(jax.random.key(0))
    assert np.isfinite(posterior.log_density(position))
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.grad(posterior.log_density)(position)))


def test_a_traced_period_below_two_has_no_density():
    """A period of -8 or of 8 / 7 would be that of 8, and a sampler would find each law many times."""

    def density(period):
        model = ss.cycle(period, 0.8, 0.6) + ss.observed_with(1.0)
        return kalman.log_likelihood(model, np.sin(np.arange(9, dtype=np.float32)))

    found = jax.jit(jax.vmap(density))(jnp.array([8.0, 2.0, 1.99, 8 / 7, 0.0, -8.0]))
    assert np.isfinite(found).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.local_level(-1.0), "level is -1.0; expected a standard deviation"),
        (lambda: ss.seasonal(1, 0.1), "period is 1"),
        (lambda: ss.trigonometric_seasonal(12, 0.1, harmonics=7), "harmonics is 7; expected an integer from 1 to 6"),
        (lambda: ss.cycle(5.0, 1.0, 0.1), "damping is 1.0"),
        (lambda: ss.cycle(-5.0, 0.9, 0.1), "period is -5.0; expected at least 2"),
        (lambda: ss.cycle(1.9, 0.9, 0.1), "period is 1.9; expected at least 2"),
        (lambda: ss.regression(np.zeros(5)), "xs is a float32 array"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
