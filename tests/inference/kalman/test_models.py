"""Diffuse starts against statsmodels, sums, inputs, forecasts, streams, innovations, series as sites; bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import models
from jaxprob.distributions import HalfNormal
from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._dense import condition
from tests.inference.kalman._models import make

NILE = (
    "1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 "
    "1100 1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 "
    "831 726 456 824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 "
    "781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860 874 848 890 "
    "744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740 "
)
NILE = np.array(NILE.split(), np.float32)


def trend(slope=10.0, dtype=np.float32):
    """Local linear trend with the published variances of the Nile, nothing known of the start."""
    entries = {
        "initial_mean": np.zeros(2),
        "initial_covariance": np.zeros((2, 2)),
        "dynamics": np.array([[1.0, 1.0], [0.0, 1.0]]),
        "dynamics_covariance": np.diag([1469.1, slope]),
        "emission": np.array([[1.0, 0.0]]),
        "emission_covariance": np.array([15098.5]),
        "initial_diffuse": np.eye(2),
    }
    return LinearGaussian(**{name: x.astype(dtype) for name, x in entries.items()})


def level(dtype=np.float32):
    one = np.ones((1, 1), dtype)
    return LinearGaussian(
        np.zeros(1, dtype), 0 * one, one, 1469.1 * one, one, np.array([15098.5], dtype), initial_diffuse=one
    )


@pytest.mark.parametrize("method", ["sequential", pytest.param("parallel", marks=pytest.mark.slow)])
def test_an_exact_diffuse_start_is_that_of_statsmodels(method):
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    for spec, model, parameters in (
        ("local level", level(), [15098.5, 1469.1]),
        ("local linear trend", trend(), [15098.5, 1469.1, 10.0]),
    ):
        theirs = structural.UnobservedComponents(NILE.astype(float), spec, use_exact_diffuse=True)
        result, n = theirs.smooth(parameters), model.state_size
        found, smoothed = kalman.filter(model, NILE, method=method), kalman.smooth(model, NILE, method=method)
        assert abs(float(found.log_likelihood) - theirs.loglike(parameters)) < 2e-6 * abs(theirs.loglike(parameters))
        np.testing.assert_allclose(found.mean[n:], result.filtered_state.T[n:], rtol=1e-4, atol=0.02)
        np.testing.assert_allclose(found.covariance[n:], np.moveaxis(result.filtered_state_cov, -1, 0)[n:], rtol=1e-3)
        np.testing.assert_allclose(smoothed.mean, result.smoothed_state.T, rtol=1e-4, atol=0.02)
        np.testing.assert_allclose(smoothed.covariance, np.moveaxis(result.smoothed_state_cov, -1, 0), rtol=1e-3)
        errors = result.standardized_forecasts_error[0]
        np.testing.assert_allclose(found.innovation[n:, 0], errors[n:], rtol=1e-3, atol=1e-4)
        # Nothing predicts the first n observations.
        assert np.isnan(found.innovation[:n]).all()
        assert np.isnan(found.mean[0]).tolist() == [False, True][:n]
        assert np.isinf(found.covariance[0, n - 1, n - 1]) == (n == 2)


def test_a_diffuse_start_with_gaps_is_the_limit_of_a_vague_one(x64):
    model = trend(dtype=np.float64)
    ys = np.where(np.arange(100) % 7 == 3, np.nan, NILE.astype(float))
    ys[0] = np.nan
    vague = dataclasses.replace(model, initial_diffuse=np.zeros((2, 0)), initial_covariance=1e9 * np.eye(2))
    expected = condition(vague, ys[:, None])
    found = kalman.smooth(model, ys)
    # The limit: the likelihood times the square root of each variance that grows.
    assert abs(float(found.log_likelihood) - (expected[0] + np.log(1e9))) < 1e-3
    np.testing.assert_allclose(found.mean, expected[1], rtol=1e-4, atol=1e-3)
    draws = kalman.sample(jax.random.key(0), model, ys, shape=2000)
    sd = np.sqrt(np.einsum("titi->ti", expected[2]))
    assert np.max(np.abs(np.mean(draws, 0) - expected[1]) / sd) < 5 / np.sqrt(2000)  # false alarms: 1 in 10,000
    assert np.max(np.abs(np.std(draws, 0) / sd - 1)) < 5 / np.sqrt(2 * 2000)


def test_what_is_never_seen_stays_unknown():
    model = dataclasses.replace(trend(), emission=np.array([[0.0, 1.0]], np.float32))
    found = kalman.filter(model, NILE[:5])
    assert np.isnan(found.mean[:, 0]).all()
    assert np.isfinite(found.mean[:, 1]).all()
    assert np.isfinite(found.log_likelihood)


def test_the_gradient_with_a_diffuse_start(x64):
    model = trend(dtype=np.float64)

    def likelihood(log_slope):
        moved = jnp.diag(jnp.stack([jnp.asarray(1469.1), jnp.exp(log_slope)]))
        return kalman.log_likelihood(dataclasses.replace(model, dynamics_covariance=moved), NILE.astype(float))

    eps = 1e-4
    expected = (likelihood(2.3 + eps) - likelihood(2.3 - eps)) / (2 * eps)
    np.testing.assert_allclose(jax.grad(likelihood)(2.3), expected, rtol=1e-5)


def test_a_sum_has_the_states_of_both():
    model, ys = make("random", gaps=True, dtype=np.float32)
    other, _ = make("everything_varies", dtype=np.float32)
    both = model + other
    assert both.state_size == 6
    mean, factor = np.asarray(model.initial_mean), np.asarray(other.initial_mean)
    np.testing.assert_array_equal(both.initial_mean, np.concatenate([mean, factor]))
    likelihood, smoothed, _ = condition(both, ys)
    found = kalman.smooth(both, ys)
    np.testing.assert_allclose(found.log_likelihood, likelihood, rtol=1e-5)
    np.testing.assert_allclose(found.mean, smoothed, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="as many times for both"):
        other + other.until(5)


def test_noise_of_two_kinds_adds_up():
    full, _ = make("everything_varies", dtype=np.float32)
    m = full.observation_size
    plain = dataclasses.replace(full, emission_covariance=np.full((9, m), 0.5, np.float32))
    both = full + plain
    np.testing.assert_allclose(
        both.emission_covariance, np.asarray(full.emission_covariance) + 0.5 * np.eye(m), rtol=1e-6
    )


def test_inputs_are_offsets(rng):
    model, ys = make("random", dtype=np.float32)
    u, b, d = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 2), (3, 2), (2, 2)))
    driven = model.with_inputs(u, dynamics_input=b, emission_input=d)
    np.testing.assert_allclose(kalman.log_likelihood(driven, ys), condition(driven, ys)[0], rtol=1e-5)
    np.testing.assert_allclose(driven.emission_offset[4], model.emission_offset + d @ u[4], rtol=1e-5)


@pytest.mark.parametrize("name", ["random", "everything_varies"])
def test_a_forecast_is_what_missing_observations_are(name):
    model, ys = make(name, times=12, dtype=np.float32)
    filtered = kalman.filter(model.until(8), ys[:8])
    ahead = kalman.forecast(model, filtered, steps=4)
    padded = np.concatenate([ys[:8], np.full((4, 2), np.nan, np.float32)])
    _, mean, covariance = condition(model, padded)
    e = np.asarray(model.emission)
    for step, t in enumerate(range(8, 12)):
        h = e[t] if name == "everything_varies" else e
        noise = np.asarray(model.emission_covariance)
        noise = noise[t] if name == "everything_varies" else noise
        offset = np.asarray(model.emission_offset)
        offset = offset[t] if name == "everything_varies" else offset
        np.testing.assert_allclose(ahead.mean[step], h @ mean[t] + offset, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ahead.covariance[step], h @ covariance[t, :, t] @ h.T + noise, rtol=1e-4, atol=1e-4)
    low, high = ahead.interval(0.95)
    np.testing.assert_allclose(high - low, 2 * 1.959964 * np.sqrt(np.einsum("tii->ti", ahead.covariance)), rtol=1e-4)


@pytest.mark.parametrize("name", ["random", "everything_varies"])
def test_forecasts_from_many_origins(name):
    """Each against the joint law given the observations up to its origin; the model ends with the last step."""
    model, ys = make(name, times=9, gaps=True, dtype=np.float32)
    origins, steps = [5, 0, 3], 3
    ahead = kalman.forecast(model, kalman.filter(model, ys), steps, origins=origins)
    assert ahead.mean.shape == (3, 3, 2)
    assert ahead.interval()[0].shape == (3, 3, 2)
    for i, origin in enumerate(origins):
        _, mean, covariance = condition(model, ys, origin + 1)
        for j, t in enumerate(range(origin + 1, origin + 1 + steps)):
            h, noise, offset = (
                np.asarray(getattr(model, entry))[t if entry in model.time_varying else ...]
                for entry in ("emission", "emission_covariance", "emission_offset")
            )
            np.testing.assert_allclose(ahead.mean[i, j], h @ mean[t] + offset, rtol=1e-4, atol=1e-4)
            spread = h @ covariance[t, :, t] @ h.T + noise
            np.testing.assert_allclose(ahead.covariance[i, j], spread, rtol=1e-4, atol=1e-4)


def test_bad_origins():
    model, ys = make("everything_varies", times=9, dtype=np.float32)
    found = kalman.filter(model, ys)
    for origins, message in (
        ([9], r"origins is \[9\]; expected times from 0 to 8"),
        ([-1], "times from 0 to 8"),
        ([0.5], "expected whole numbers"),
        ([], "at least one"),
        ([6, 7], "expected one of 10 times"),
    ):
        with pytest.raises(ValueError, match=message):
            kalman.forecast(model, found, 2, origins=origins)


def test_innovations_of_the_right_model_and_of_a_wrong_one():
    """p-values above 1e-4 where the model is right (false alarms: 1 in 3,000), below it where it is not."""
    model = dataclasses.replace(make("random", dtype=np.float32)[0])
    _, ys = kalman.simulate(jax.random.key(3), model, 1_500)
    right = kalman.innovation_tests(kalman.filter(model, ys).innovation)
    assert right.number == 3_000
    assert min(float(right.squared_p_value), *map(float, right.whiteness_p_value)) > 1e-4
    louder = dataclasses.replace(model, emission_covariance=4 * model.emission_covariance)
    assert kalman.innovation_tests(kalman.filter(louder, ys).innovation).squared_p_value < 1e-4
    slower = dataclasses.replace(model, dynamics=0.2 * model.dynamics)
    assert kalman.innovation_tests(kalman.filter(slower, ys).innovation).whiteness_p_value.min() < 1e-4


def test_a_simulated_series_has_the_moments_of_the_law():
    """Means of 4,000 series within 5 standard errors (false alarms: 1 in 50,000)."""
    model = make("everything_varies", dtype=np.float32)[0]
    draws = kalman.marginal(model, 9).sample(jax.random.key(2), 4_000)
    assert draws.shape == (4_000, 9, 2)
    from tests.inference.kalman._dense import joint

    mean, covariance, emission, offset, noise = joint(model, 9)
    spread = np.sqrt(np.diag(emission @ covariance @ emission.T + noise))
    flat = np.asarray(draws, np.float64).reshape(4_000, -1)
    assert np.max(np.abs(flat.mean(0) - emission @ mean - offset) / spread) < 5 / np.sqrt(4_000)
    assert np.max(np.abs(flat.std(0) / spread - 1)) < 5 / np.sqrt(8_000)


def test_a_whole_series_is_a_site_of_a_joint_model():
    """Its states are integrated out; NaN is missing in the data; the posterior density is that by hand."""

    @models.joint
    def river(length):
        noise = yield "noise", HalfNormal(100.0)
        one = jnp.ones((1, 1))
        model = LinearGaussian(
            jnp.zeros(1), 0 * one, one, 1469.1 * one, one, jnp.expand_dims(noise**2, 0), initial_diffuse=one
        )
        yield "ys", kalman.marginal(model, length)

    ys = np.where(np.arange(100) == 40, np.nan, NILE)
    posterior = river(100).condition(ys=ys)
    position = {"noise": jnp.log(120.0)}
    model = dataclasses.replace(level(), emission_covariance=np.array([120.0**2], np.float32))
    prior = HalfNormal(100.0).log_prob(120.0) + jnp.log(120.0)
    expected = kalman.log_likelihood(model, ys) + prior
    np.testing.assert_allclose(posterior.log_density(position), expected, rtol=1e-5)
    assert np.isfinite(jax.grad(posterior.log_density)(position)["noise"])


BAD = {
    "an indefinite covariance": (
        lambda m: dataclasses.replace(m, initial_covariance=np.array([[1.0, 2.0, 0], [2, 1, 0], [0, 0, 1]])),
        "initial_covariance is not positive semi-definite",
    ),
    "a covariance that is not symmetric": (
        lambda m: dataclasses.replace(m, dynamics_covariance=np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])),
        "dynamics_covariance is not symmetric",
    ),
    "NaN in the model": (lambda m: dataclasses.replace(m, emission=np.full((2, 3), np.nan)), "emission is nan at"),
    "an undeclared axis": (
        lambda m: dataclasses.replace(m, emission=np.ones((9, 2, 3))),
        r"Declare time_varying=\('emission',\)",
    ),
    "times that do not fit": (
        lambda m: kalman.filter(make("everything_varies")[0], np.zeros((5, 2))),
        "as many times as the model spans",
    ),
    "the wrong axis first": (lambda m: kalman.filter(m, np.zeros((2, 9))), r"expected shape \(time, 2\)"),
    "infinite data": (lambda m: kalman.filter(m, np.full((4, 2), np.inf)), "ys is infinite somewhere"),
    "an unknown method": (lambda m: kalman.smooth(m, np.zeros((4, 2)), method="fast"), "expected one of"),
    "a steady filter of what varies": (
        lambda m: kalman.filter(make("everything_varies")[0], np.zeros((9, 2)), method="steady"),
        "varies in time",
    ),
    "a mask of another shape": (
        lambda m: kalman.filter(m, np.zeros((4, 2)), missing=np.zeros((3, 2), bool)),
        "missing",
    ),
    "no step ahead": (lambda m: kalman.forecast(m, kalman.filter(m, np.zeros((4, 2))), 0), "steps is 0"),
    "nothing to forecast from": (lambda m: kalman.forecast(m, kalman.filter(m, np.zeros((0, 2))), 1), "of no times"),
    "no shape of draws": (lambda m: kalman.sample(jax.random.key(0), m, np.zeros((4, 2)), shape=2.5), "shape is 2.5"),
    "a negative lag": (lambda m: kalman.smooth(m, np.zeros((4, 2)), lag=-1), "lag is -1"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        call(make("random", dtype=np.float32)[0])
    assert "\n" not in str(error.value)
