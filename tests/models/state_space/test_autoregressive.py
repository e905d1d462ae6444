"""ARMA to SARIMAX against statsmodels: likelihoods, forecasts, missing months, derivatives, float32."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxprob.models.state_space as ss
from jaxprob.inference import kalman

sarimax = pytest.importorskip("statsmodels.tsa.statespace.sarimax")
datasets = pytest.importorskip("statsmodels.datasets")


@pytest.fixture(scope="module")
def data():
    """Sunspots (109 years), carbon dioxide (84 months, of which five are missing), the Nile."""
    return {
        "sunspots": datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()[200:],
        "co2": datasets.co2.load_pandas().data["co2"].resample("MS").mean().to_numpy()[:84],
        "nile": datasets.nile.load_pandas().data["volume"].to_numpy(),
    }


# Compiled without optimisations, which take most of the time and change no rounding.
QUICK = {"xla_backend_optimization_level": 0}
SLOW = pytest.mark.slow


def some(quick, names):
    """All names as parameters, those not among the quick ones marked slow."""
    return [pytest.param(name, marks=() if name in quick else SLOW) for name in names]


TREND = np.arange(109.0)[:, None] / 50
# Series, ours of parameters, parameters, theirs of the same, and how theirs is built.
CASES = {
    "ar": ("sunspots", lambda a, s: ss.arma(a, [], s), ([1.3, -0.6], 17.0), [1.3, -0.6, 17.0**2], {"order": (2, 0, 0)}),
    "arma": (
        "sunspots",
        lambda a, b, s: ss.arma(a, b, s),
        ([1.2, -0.5], [0.3, 0.2, -0.4], 17.0),
        [1.2, -0.5, 0.3, 0.2, -0.4, 17.0**2],
        {"order": (2, 0, 3)},
    ),
    "mean": (
        "nile",
        lambda a, c, s: ss.arima(a, [], s, differences=0, intercept=c),
        ([0.5], 460.0, 140.0),
        [460.0, 0.5, 140.0**2],
        {"order": (1, 0, 0), "trend": "c"},
    ),
    "arima": (
        "nile",
        lambda a, b, c, s: ss.arima(a, b, s, intercept=c),
        ([0.25], [-0.87], -2.0, 140.0),
        [-2.0, 0.25, -0.87, 140.0**2],
        {"order": (1, 1, 1), "trend": "c"},
    ),
    "twice": (
        "nile",
        lambda b, s: ss.arima([], b, s, differences=2),
        ([-1.3, 0.4], 150.0),
        [-1.3, 0.4, 150.0**2],
        {"order": (0, 2, 2)},
    ),
    "airline": (
        "co2",
        lambda b, c, s: ss.sarimax(ma=b, seasonal_ma=c, noise=s, differences=1, period=12, seasonal_differences=1),
        ([-0.4], [-0.7], 0.3),
        [-0.4, -0.7, 0.09],
        {"order": (0, 1, 1), "seasonal_order": (0, 1, 1, 12)},
    ),
    "seasons": (
        "co2",
        lambda a, b, c, e, s, r: (
            ss.sarimax(a, b, seasonal_ar=c, seasonal_ma=e, period=4, noise=s, differences=1) + ss.observed_with(r)
        ),
        ([0.6], [0.3], [-0.5], [0.4], 0.8, 0.2),
        [0.6, 0.3, -0.5, 0.4, 0.04, 0.64],
        {"order": (1, 1, 1), "seasonal_order": (1, 0, 1, 4), "measurement_error": True},
    ),
    "inputs": (
        "sunspots",
        lambda w, a, b, s: ss.sarimax(a, b, noise=s, differences=1, inputs=TREND, coefficients=w),
        ([12.0], [0.4], [-0.2], 20.0),
        [12.0, 0.4, -0.2, 400.0],
        {"order": (1, 1, 1), "exog": TREND},
    ),
}


def theirs(data, name):
    series, _, _, parameters, options = CASES[name]
    model = sarimax.SARIMAX(data[series], use_exact_diffuse=True, enforce_invertibility=False, **options)
    return model, model.smooth(parameters)


def arrays(parameters, dtype):
    return tuple(jnp.asarray(np.asarray(value, dtype)) for value in parameters)


@pytest.mark.parametrize("name", some(["inputs"], CASES))
def test_likelihood_is_that_of_statsmodels(name, data, x64):
    series, build, parameters, *_ = CASES[name]
    model = build(*parameters)
    found = kalman.log_likelihood(model, data[series])
    np.testing.assert_allclose(found, theirs(data, name)[1].llf, rtol=1e-8)


@pytest.mark.parametrize("name", some(["arma"], ["arma", "twice", "airline", "seasons"]))
def test_float32(name, data):
    series, build, parameters, *_ = CASES[name]
    ys = data[series]
    ys = ys - ys[0] * (name in ("twice", "airline"))  # which changes nothing but the digits that are kept
    found = kalman.log_likelihood(build(*arrays(parameters, np.float32)), ys.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs(data, name)[1].llf, rtol=1e-4)


@pytest.mark.parametrize("name", some(["arima"], ["arima", "airline"]))
def test_forecasts_are_those_of_statsmodels(name, data, x64):
    series, build, parameters, *_ = CASES[name]
    model = build(*parameters)
    filtered, reference = kalman.filter(model, data[series]), theirs(data, name)[1]
    np.testing.assert_allclose(filtered.log_likelihood, reference.llf, rtol=1e-8)
    found, expected = kalman.forecast(model, filtered, steps=15), reference.get_forecast(15)
    np.testing.assert_allclose(found.mean[:, 0], expected.predicted_mean, rtol=1e-8)
    np.testing.assert_allclose(found.covariance[:, 0, 0], expected.var_pred_mean, rtol=1e-6)


@SLOW
def test_differences_of_the_series_have_the_likelihood_of_the_series(data, x64):
    """A series differenced beforehand has lost its first values only: theirs of simple differences is ours of all."""
    ys = data["nile"]
    model = sarimax.SARIMAX(ys, order=(1, 1, 1), simple_differencing=True)
    expected = model.loglike([0.25, -0.87, 140.0**2])
    np.testing.assert_allclose(kalman.log_likelihood(ss.arma([0.25], [-0.87], 140.0), np.diff(ys)), expected, rtol=1e-8)
    found = kalman.filter(ss.arima([0.25], [-0.87], 140.0), ys)
    np.testing.assert_allclose(found.log_likelihood - found.log_likelihoods[0], expected, rtol=1e-8)


@pytest.mark.parametrize("name", some(["arima"], ["arma", "arima", "airline", "seasons", "inputs"]))
def test_derivatives(name, data, x64):
    """Of each parameter, against differences; missing months at the start, in the middle and at the end."""
    series, build, parameters, *_ = CASES[name]
    ys = data[series].copy()
    ys[[0, 1, 30, 31, 32, -1]] = np.nan
    flat, unravel = jax.flatten_util.ravel_pytree(arrays(parameters, np.float64))
    density = jax.value_and_grad(lambda x: kalman.log_likelihood(build(*unravel(x)), ys))
    likelihood = jax.jit(density, compiler_options=QUICK)
    gradient = likelihood(flat)[1]
    assert np.isfinite(gradient).all()
    for i, value in enumerate(flat):
        step = np.zeros(flat.size)
        step[i] = 1e-5 * max(1, abs(value))
        expected = (likelihood(flat + step)[0] - likelihood(flat - step)[0]) / (2 * step[i])
        np.testing.assert_allclose(gradient[i], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_derivatives_where_all_coefficients_are_zero(data, x64):
    """Where an optimiser begins: no noise and no initial law is singular there."""
    ys = data["nile"] - 900

    def density(x):
        return kalman.log_likelihood(ss.arma(x[:2], x[2:], 140.0), ys)

    likelihood = jax.jit(jax.value_and_grad(density), compiler_options=QUICK)
    gradient = likelihood(jnp.zeros(4))[1]
    for i in range(4):
        step = 1e-5 * np.eye(4)[i]
        expected = (likelihood(step)[0] - likelihood(-step)[0]) / 2e-5
        np.testing.assert_allclose(gradient[i], expected, rtol=1e-6, atol=1e-6)


def test_the_stationary_law(x64):
    for ar, ma in (([1.6, -0.7], [0.5]), ([], [0.4, 0.3])):
        model = ss.arma(ar, ma, 2.0)
        f, p, q = (np.asarray(x) for x in (model.dynamics, model.initial_covariance, model.dynamics_covariance))
        np.testing.assert_allclose(p, scipy.linalg.solve_discrete_lyapunov(f, q), rtol=1e-9)


@SLOW
def test_float32_near_a_unit_root():
    """Two roots of 0.99 and one of 0.9999: digits are lost to the roots, not to the law."""
    rng = np.random.default_rng(0)
    for ar in ([1.98, -0.9801], [0.9999]):
        ar = np.asarray(ar, np.float32)
        ys = np.zeros(80, np.float32)
        for t in range(2, 80):
            ys[t] = sum(a * ys[t - 1 - i] for i, a in enumerate(ar)) + rng.normal()
        with jax.enable_x64(True):
            expected = kalman.log_likelihood(ss.autoregressive(ar.astype(float), 1.0), ys.astype(float))
        np.testing.assert_allclose(kalman.log_likelihood(ss.autoregressive(ar, 1.0), ys), expected, rtol=1e-4)


@SLOW
def test_sums_with_structural_components(data, x64):
    """Statsmodels' level, cycle of unknown start, autoregression, season, waves and regression, on two series."""
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    ys = data["co2"]
    xs = np.sin(np.arange(len(ys)))[:, None]
    model = ss.local_linear_trend(0.1, 0.05) + ss.seasonal(12, 0.2) + ss.autoregressive([0.5, 0.2], 0.3)
    model = model + ss.regression(xs) + ss.observed_with(0.15)
    reference = structural.UnobservedComponents(
        ys,
        level="local linear trend",
        seasonal=12,
        autoregressive=2,
        exog=xs,
        mle_regression=False,
        use_exact_diffuse=True,
    )
    expected = reference.loglike([0.15**2, 0.1**2, 0.05**2, 0.2**2, 0.3**2, 0.5, 0.2])
    np.testing.assert_allclose(kalman.log_likelihood(model, ys), expected, rtol=1e-8)

    ys = data["sunspots"]
    moving = ss.cycle(10.7, 0.95, 9.0)
    none = jnp.zeros_like(moving.initial_covariance)
    moving = dataclasses.replace(moving, initial_covariance=none, initial_diffuse=jnp.eye(2))
    model = ss.local_level(3.0) + ss.trigonometric_seasonal(5, 1.5, harmonics=1) + moving
    model = model + ss.autoregressive([0.4, -0.3], 8.0) + ss.observed_with(2.0)
    reference = structural.UnobservedComponents(
        ys,
        level="local level",
        freq_seasonal=[{"period": 5, "harmonics": 1}],
        cycle=True,
        stochastic_cycle=True,
        damped_cycle=True,
        autoregressive=2,
        use_exact_diffuse=True,
    )
    names = {
        "sigma2.irregular": 4.0,
        "sigma2.level": 9.0,
        "sigma2.freq_seasonal_5(1)": 2.25,
        "sigma2.cycle": 81.0,
        "frequency.cycle": 2 * np.pi / 10.7,
        "damping.cycle": 0.95,
        "sigma2.ar": 64.0,
        "ar.L1": 0.4,
        "ar.L2": -0.3,
    }
    expected = reference.loglike([names[name] for name in reference.param_names])
    np.testing.assert_allclose(kalman.log_likelihood(model, ys), expected, rtol=1e-8)


def test_traced_coefficients_that_are_not_stationary_have_no_likelihood(data):
    likelihood = jax.jit(lambda ar: kalman.log_likelihood(ss.autoregressive(ar, 1.0), data["nile"].astype(np.float32)))
    assert not np.isfinite(likelihood(jnp.array([0.5, 0.6])))
    assert np.isfinite(likelihood(jnp.array([0.5, 0.4])))


def test_the_dtype_is_that_of_the_arrays(x64):
    half = jnp.array([0.5], jnp.float32)

    def dtype(build):
        return jax.eval_shape(build).dynamics.dtype

    assert dtype(lambda: ss.arma([0.5], (), np.float32(1.0))) == np.float64  # nothing but numbers
    assert dtype(lambda: ss.arma(half, [0.3], 1.0)) == np.float32
    assert dtype(lambda: ss.sarimax(ma=[0.3], noise=jnp.float32(1.0), differences=1)) == np.float32
    assert dtype(lambda: ss.vector_autoregression(0.5 * jnp.ones((1, 1, 1), jnp.float32), half[None])) == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.autoregressive([1.0], 1.0), "coefficients is that of a process with an eigenvalue of size 1;"),
        (lambda: ss.arma(0.5, [], 1.0), "ar is 0.5; expected a vector of coefficients"),
        (lambda: ss.arma([0.5], [], -1.0), "noise is -1.0"),
        (lambda: ss.arima([0.5], [], 1.0, differences=-1), "differences is -1"),
        (lambda: ss.sarimax(seasonal_ar=[0.5], noise=1.0), "period is 1; expected a number of times, at least 2"),
        (lambda: ss.sarimax(seasonal_ar=[1.5], noise=1.0, period=4), "seasonal_ar is that of a process"),
        (lambda: ss.sarimax(noise=1.0, inputs=np.ones((5, 1))), "coefficients is None"),
        (lambda: ss.sarimax(noise=1.0, inputs=np.ones((5, 1)), coefficients=[1.0, 2.0]), "emission_input is"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
