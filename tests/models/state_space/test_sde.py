"""Linear stochastic differential equations against matrix exponentials, other discretisations and dense processes."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxprob.models.state_space as ss
from jaxprob.inference import kalman

SLOW = pytest.mark.slow
TIMES = np.array([0.0, 0.1, 0.1, 0.13, 1.5, 1.500001, 4.0, 30.0, 30.5])
YS = np.array([0.3, -0.2, 0.1, 0.5, 1.2, 1.1, -0.7, 0.4, 0.9])
GAPS = np.array([1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4])


def oscillator():
    """Damped, of period 3, driven in its velocity, beside a mode that forgets a thousand times faster."""
    drift = np.array([[0.0, 1.0, 0.3], [-4.4, -0.6, 0.0], [0.0, 0.0, -300.0]])
    dispersion = np.array([[0.0, 0.0], [1.5, 0.0], [0.2, 1.0]])
    return drift, dispersion, np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def exact(drift, noise, gap):
    """Flow and noise over a gap, by the exponential of Van Loan's matrix over a part of it, and sums of those."""
    n = len(drift)
    parts = max(0, int(np.ceil(np.log2(max(gap * np.abs(drift).max(), 1)))))
    block = np.block([[drift, noise], [np.zeros((n, n)), -drift.T]]) * gap / 2**parts
    whole = scipy.linalg.expm(block)
    flow = whole[:n, :n]
    gained = whole[:n, n:] @ flow.T
    for _ in range(parts):
        gained, flow = gained + flow @ gained @ flow.T, flow @ flow
    return flow, gained


def model_of(gaps, dtype=np.float64, **options):
    drift, dispersion, emission = (x.astype(dtype) for x in oscillator())
    return ss.linear_sde(np.concatenate([[0.0], np.cumsum(gaps)]), drift, dispersion, emission, **options)


def test_gaps_short_and_long(x64):
    drift, dispersion, _ = oscillator()
    density = np.array([[1.0, 0.3], [0.3, 2.0]])
    model = model_of(GAPS, spectral_density=density)
    for t, gap in enumerate(np.diff(np.concatenate([[0.0], np.cumsum(GAPS)]))):
        flow, gained = exact(drift, dispersion @ density @ dispersion.T, gap)
        np.testing.assert_allclose(model.dynamics[t], flow, rtol=1e-8, atol=1e-13)
        np.testing.assert_allclose(model.dynamics_covariance[t], gained, rtol=1e-8, atol=1e-14 * gained.max())


@pytest.mark.parametrize("gap", [1e-6, 1e-3, 1.0, 1e3])
def test_float32_keeps_the_digits_of_each_entry(gap):
    """Of a Wiener acceleration, whose entries have orders that differ by gap^4."""
    drift, times = np.eye(3, k=1, dtype=np.float32), np.array([0.0, gap])
    model = ss.linear_sde(times, drift, np.eye(3)[:, 2:], np.eye(1, 3), initial_diffuse=np.eye(3))
    h = float(np.float32(gap))
    flow = [[1, h, h**2 / 2], [0, 1, h], [0, 0, 1]]
    gained = [[h**5 / 20, h**4 / 8, h**3 / 6], [h**4 / 8, h**3 / 3, h**2 / 2], [h**3 / 6, h**2 / 2, h]]
    assert model.dynamics.dtype == np.float32
    np.testing.assert_allclose(model.dynamics[0], flow, rtol=1e-6)
    np.testing.assert_allclose(model.dynamics_covariance[0], gained, rtol=2e-5)


def test_float32_of_gaps_short_and_long():
    """Of two time scales; errors in units of the deviations of the noise gathered."""
    model = model_of(GAPS, np.float32)
    drift, dispersion, _ = (x.astype(np.float32).astype(np.float64) for x in oscillator())
    for t, gap in enumerate(np.diff(np.concatenate([[0.0], np.cumsum(GAPS)])).astype(np.float32)):
        flow, gained = exact(drift, dispersion @ dispersion.T, float(gap))
        size = np.sqrt(np.diag(gained))
        error = np.abs(np.asarray(model.dynamics_covariance[t], np.float64) - gained) / size / size[:, None]
        assert error.max() < 2e-4, gap
        np.testing.assert_allclose(model.dynamics[t], flow, rtol=1e-3, atol=2e-5)


def test_it_begins_in_the_law_in_which_it_stays(x64):
    drift, dispersion, _ = oscillator()
    model = model_of(GAPS)
    expected = scipy.linalg.solve_continuous_lyapunov(drift, -dispersion @ dispersion.T)
    np.testing.assert_allclose(model.initial_covariance, expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(model.dynamics_covariance[-1], expected, rtol=1e-9, atol=1e-14)


@SLOW
@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_a_matern_process_is_one(smoothness, x64):
    """Written as an equation, it has the likelihood of `matern`, whose noise is found by other means."""
    p, rate = int(smoothness - 0.5), np.sqrt(2 * smoothness) / 0.8
    drift = np.eye(p + 1, k=1)
    drift[-1] = -(np.poly(-rate * np.ones(p + 1))[:0:-1])
    spread = np.eye(p + 1)[:, [p]]
    unit = scipy.linalg.solve_continuous_lyapunov(drift, -spread @ spread.T)[0, 0]
    model = ss.linear_sde(TIMES, drift, 1.3 / np.sqrt(unit) * spread, np.eye(1, p + 1)) + ss.observed_with(0.4)
    expected = kalman.log_likelihood(ss.matern(TIMES, 0.8, 1.3, smoothness) + ss.observed_with(0.4), YS)
    np.testing.assert_allclose(kalman.log_likelihood(model, YS), expected, rtol=1e-9)


def test_a_sum_of_kernels_is_that_of_a_dense_process(x64):
    """Two Matern processes, a Wiener process of unknown start, and a mean, at irregular and repeated times."""
    apart = np.abs(TIMES[:, None] - TIMES)
    rough = 0.7**2 * np.exp(-apart / 2.0)
    a = np.sqrt(5) * apart / 0.5
    smooth = 1.1**2 * (1 + a + a**2 / 3) * np.exp(-a)
    reverting = 0.9**2 / (2 * 0.3) * np.exp(-0.3 * apart)
    variance = rough + smooth + reverting + 0.4**2 * np.eye(len(TIMES))
    residual = YS - 0.25
    weights = np.linalg.solve(variance, residual)
    expected = -0.5 * (residual @ weights + np.linalg.slogdet(variance)[1] + len(YS) * np.log(2 * np.pi))
    model = ss.matern(TIMES, 2.0, 0.7, 0.5) + ss.matern(TIMES, 0.5, 1.1, 2.5)
    model = model + ss.ornstein_uhlenbeck(TIMES, 0.3, 0.9, mean=0.25) + ss.observed_with(0.4)
    np.testing.assert_allclose(kalman.log_likelihood(model, YS), expected, rtol=1e-8)


def test_an_ornstein_uhlenbeck_process_of_rate_zero_is_the_wiener_process(x64):
    def likelihood(rate):
        process = ss.ornstein_uhlenbeck(TIMES, rate, 0.9, stationary=False)
        return kalman.log_likelihood(process + ss.observed_with(0.4), YS)

    expected = kalman.log_likelihood(ss.integrated_wiener(TIMES, 0.9, order=0) + ss.observed_with(0.4), YS)
    np.testing.assert_allclose(likelihood(0.0), expected, rtol=1e-12)
    slope = jax.jit(jax.grad(likelihood))(0.0)
    np.testing.assert_allclose(slope, (likelihood(1e-5) - likelihood(-1e-5)) / 2e-5, rtol=1e-5)


@SLOW
def test_gradients(x64):
    """Of the drift, the dispersion and the noise, with repeated times, against finite differences."""
    drift, dispersion, emission = oscillator()

    @jax.jit
    def likelihood(parameters):
        f, spread, noise = parameters
        model = ss.linear_sde(TIMES, f, spread, emission[:1]) + ss.observed_with(noise)
        return kalman.log_likelihood(model, YS)

    parameters = (jnp.asarray(drift), jnp.asarray(dispersion), jnp.asarray(0.4))
    gradient = jax.jit(jax.grad(likelihood))(parameters)
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)
    found = jax.flatten_util.ravel_pytree(gradient)[0]
    for i, value in enumerate(found):
        step = np.zeros(flat.size)
        step[i] = 1e-5 * max(1, abs(flat[i]))
        expected = (likelihood(unravel(flat + step)) - likelihood(unravel(flat - step))) / (2 * step[i])
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_a_drift_of_zero_and_one_time():
    model = ss.linear_sde(np.zeros(1), np.zeros((2, 2)), np.eye(2), np.eye(2), initial_covariance=np.eye(2))
    assert model.dynamics.shape == (0, 2, 2)
    assert np.isfinite(kalman.log_likelihood(model, np.ones((1, 2))))
    still = ss.linear_sde(np.array([0.0, 3.0]), np.zeros((2, 2)), np.eye(2), np.eye(2), initial_diffuse=np.eye(2))
    np.testing.assert_allclose(still.dynamics[0], np.eye(2))
    np.testing.assert_allclose(still.dynamics_covariance[0], 3 * np.eye(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.linear_sde(TIMES, np.eye(2, k=1), np.ones((2, 1)), np.eye(2)), "eigenvalue has the real part 0"),
        (lambda: ss.linear_sde(TIMES, -np.eye(2), np.ones(2), np.eye(2)), "dispersion is a float32 array of shape"),
        (lambda: ss.linear_sde(TIMES, -np.eye(2), np.eye(2), np.eye(3)), "emission is a float32 array of shape"),
        (lambda: ss.linear_sde(TIMES[::-1], -np.eye(2), np.eye(2), np.eye(2)), "falling or not finite"),
        (lambda: ss.ornstein_uhlenbeck(TIMES, 0.0, 1.0), "rate is 0.0; expected above 0"),
        (lambda: ss.ornstein_uhlenbeck(TIMES, 1.0, -1.0), "dispersion is -1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
