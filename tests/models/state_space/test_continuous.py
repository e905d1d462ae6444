"""Processes in continuous time against dense Gaussian processes, matrix exponentials and quadrature, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import jaxprob.models.state_space as ss
from jaxprob.inference import kalman

TIMES = np.array([0.0, 0.1, 0.1, 0.13, 1.5, 1.500001, 4.0, 30.0, 30.5])
YS = np.array([0.3, -0.2, 0.1, 0.5, 1.2, 1.1, -0.7, 0.4, 0.9])


def kernel(r, smoothness):
    """Matern covariances of unit scale and lengthscale, as they are in textbooks."""
    a = np.sqrt(2 * smoothness) * r
    return np.exp(-a) * {0.5: 1.0, 1.5: 1 + a, 2.5: 1 + a + a**2 / 3}[smoothness]


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_regression_is_that_of_a_dense_process(smoothness, x64):
    lengthscale, scale, noise = 0.8, 1.3, 0.4
    apart = np.abs(TIMES[:, None] - TIMES) / lengthscale
    prior = scale**2 * kernel(apart, smoothness)
    variance = prior + noise**2 * np.eye(len(TIMES))
    weights = np.linalg.solve(variance, YS)
    likelihood = -0.5 * (YS @ weights + np.linalg.slogdet(variance)[1] + len(YS) * np.log(2 * np.pi))
    model = ss.matern(TIMES, lengthscale, scale, smoothness) + ss.observed_with(noise)
    found = kalman.smooth(model, YS)
    np.testing.assert_allclose(found.log_likelihood, likelihood, rtol=1e-9)
    np.testing.assert_allclose(found.mean[:, 0], prior @ weights, rtol=1e-8, atol=1e-10)
    after = prior - prior @ np.linalg.solve(variance, prior)
    np.testing.assert_allclose(found.covariance[:, 0, 0], np.diag(after), rtol=1e-7)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, 3.5])
def test_a_step_is_the_exponential_of_the_drift(smoothness, x64):
    """Also its noise, from the shortest steps to the longest, to the digits of each entry."""
    p = int(smoothness - 0.5)
    drift = np.eye(p + 1, k=1)
    drift[-1] = -np.poly(-np.ones(p + 1))[:0:-1]
    for u in (1e-4, 0.1, 3.0, 50.0):
        step = np.array([0.0, u / np.sqrt(2 * smoothness)])
        model = ss.matern(step, 1.0, 1.0, smoothness)
        flow = scipy.linalg.expm(drift * u)
        np.testing.assert_allclose(model.dynamics[0], flow, rtol=1e-9, atol=1e-13 * np.abs(flow).max())
        q = 1 / scipy.integrate.quad(lambda s: scipy.linalg.expm(drift * s)[0, -1] ** 2, 0, 60, limit=200)[0]
        for i in range(p + 1):
            expected = (
                q
                * scipy.integrate.quad(
                    lambda s, i=i: scipy.linalg.expm(drift * s)[i, -1] ** 2, 0, min(u, 40), epsabs=0, limit=200
                )[0]
            )
            np.testing.assert_allclose(model.dynamics_covariance[0, i, i], expected, rtol=1e-6)


@pytest.mark.slow
def test_float32_keeps_its_digits():
    """At dates a hundred years from zero, with steps of minutes and of months."""
    start = 36525.0
    times = start + np.concatenate([np.arange(30) / 1440, 30 + np.arange(20) * 30.0])
    ys = np.sin(times / 40) + 0.1 * np.cos(7 * times)
    for smoothness in (0.5, 1.5, 2.5):
        with jax.enable_x64(True):
            expected = kalman.log_likelihood(ss.matern(times, 20.0, 1.0, smoothness) + ss.observed_with(0.1), ys)
        found = kalman.log_likelihood(ss.matern(times, 20.0, 1.0, smoothness) + ss.observed_with(0.1), ys)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_integrated_noise(order, x64):
    model = ss.integrated_wiener(np.array([0.0, 0.7]), 1.3, order)
    drift = np.eye(order + 1, k=1)
    np.testing.assert_allclose(model.dynamics[0], scipy.linalg.expm(0.7 * drift), rtol=1e-12)
    for i in range(order + 1):
        for j in range(order + 1):
            expected = scipy.integrate.quad(
                lambda s, i=i, j=j: scipy.linalg.expm(s * drift)[i, -1] * scipy.linalg.expm(s * drift)[j, -1], 0, 0.7
            )[0]
            np.testing.assert_allclose(model.dynamics_covariance[0, i, j], 1.69 * expected, rtol=1e-10)


def test_a_smoothed_velocity_process_is_a_spline(x64):
    """With next to no noise it goes through the points of a cubic spline, natural at both ends."""
    interpolate = pytest.importorskip("scipy.interpolate")
    knots, ys = np.array([0.0, 1.0, 2.5, 4.0, 5.0]), np.array([0.0, 1.0, -0.5, 2.0, 1.0])
    times = np.linspace(0, 5, 51)
    seen = np.full(51, np.nan)
    seen[np.round(knots * 10).astype(int)] = ys
    found = kalman.smooth(ss.integrated_wiener(times, 1.0) + ss.observed_with(1e-6), seen)
    expected = interpolate.CubicSpline(knots, ys, bc_type="natural")(times)
    np.testing.assert_allclose(found.mean[:, 0], expected, atol=1e-6)


@pytest.mark.slow
def test_gradients_with_repeated_times():
    def likelihood(parameters):
        model = ss.matern(TIMES, parameters[0], parameters[1], 2.5) + ss.observed_with(parameters[2])
        return kalman.log_likelihood(model, YS.astype(np.float32))

    gradient = jax.grad(likelihood)(jnp.array([0.8, 1.3, 0.4]))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.matern(np.array([0.0, 2.0, 1.0]), 1.0, 1.0), "falling or not finite after entry 1"),
        (lambda: ss.matern(np.zeros((3, 1)), 1.0, 1.0), "times is a float64 array"),
        (lambda: ss.matern(TIMES, 0.0, 1.0), "lengthscale is 0.0"),
        (lambda: ss.matern(TIMES, 1.0, 1.0, 2.0), "smoothness is 2.0; expected 0.5, 1.5, 2.5"),
        (lambda: ss.integrated_wiener(TIMES, 1.0, order=-1), "order is -1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
