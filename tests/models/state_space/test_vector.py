"""Several series at once against statsmodels: vector autoregressions, moving averages, dynamic factors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxprob.models.state_space as ss
from jaxprob.inference import kalman

varmax = pytest.importorskip("statsmodels.tsa.statespace.varmax")
dynamic_factor = pytest.importorskip("statsmodels.tsa.statespace.dynamic_factor")
datasets = pytest.importorskip("statsmodels.datasets")

SLOW = pytest.mark.slow
A = np.array(
    [
        [[0.3, 0.2, 0.05], [0.1, 0.2, 0.0], [0.9, 0.4, -0.3]],
        [[-0.1, 0.1, 0.0], [0.2, 0.1, -0.02], [-0.3, 0.5, 0.1]],
    ]
)
M = np.array([[[0.2, -0.1, 0.0], [0.05, -0.2, 0.02], [0.3, 0.0, 0.4]]])
ROOT = np.array([[0.8, 0.0, 0.0], [0.3, 0.6, 0.0], [1.5, 0.4, 3.5]])
INTERCEPT = np.array([0.5, 0.4, 0.2])
LOADINGS = np.array([[0.6], [0.4], [2.0]])
DEVIATIONS = np.array([0.5, 0.4, 2.5])


@pytest.fixture(scope="module")
def ys():
    """Growth of output, consumption and investment, in percent: 80 quarters, of which some numbers are missing."""
    levels = datasets.macrodata.load_pandas().data[["realgdp", "realcons", "realinv"]].to_numpy()
    growth = 100 * np.diff(np.log(levels), axis=0)[:80]
    growth[30, 1] = growth[50:52, 0] = growth[60] = np.nan
    return growth


def numbers(name):
    """Which series a statsmodels parameter is of, as "L1.e(y2).y3" says: [1, 2]."""
    return [int(digits) - 1 for digits in re.findall(r"y(\d)", name)]


def varma_parameters(names):
    values = []
    for name in names:
        of = numbers(name)
        if name.startswith("intercept"):
            values.append(INTERCEPT[of[0]])
        elif name.startswith("sqrt"):
            values.append(ROOT[max(of), min(of)])
        else:
            values.append((M if "e(" in name else A)[int(name[1]) - 1, of[1], of[0]])
    return values


def factor_parameters(names, own):
    values = []
    for name in names:
        of = numbers(name)
        if name.startswith("loading"):
            values.append(LOADINGS[of[0], 0])
        elif name.startswith("sigma2"):
            values.append(DEVIATIONS[of[0]] ** 2)
        else:
            values.append({"L1": 0.7, "L2": 0.15}[name[:2]] if "f1" in name else own[0, of[0]])
    return values


@pytest.mark.parametrize("order", [pytest.param((2, 0), marks=SLOW), (1, 1), pytest.param((0, 1), marks=SLOW)])
def test_likelihood_is_that_of_statsmodels(order, ys, x64):
    p, q = order
    reference = varmax.VARMAX(ys, order=order, trend="c", enforce_invertibility=False)
    expected = reference.smooth(varma_parameters(reference.param_names))
    covariance = ROOT @ ROOT.T
    if q:
        model = ss.vector_arma(A[:p], M[:q], covariance, intercept=INTERCEPT)
    else:
        model = ss.vector_autoregression(A[:p], covariance, intercept=INTERCEPT)
    found = kalman.filter(model, ys)
    np.testing.assert_allclose(found.log_likelihood, expected.llf, rtol=1e-9)
    ahead = kalman.forecast(model, found, steps=8)
    theirs = expected.get_forecast(8)
    np.testing.assert_allclose(ahead.mean, theirs.predicted_mean, rtol=1e-7)
    np.testing.assert_allclose(ahead.covariance, theirs_covariance(theirs), rtol=1e-7)


def theirs_covariance(forecast):
    return np.moveaxis(np.asarray(forecast.prediction_results.forecasts_error_cov)[:, :, -8:], -1, 0)


@pytest.mark.parametrize("remembers", [False, pytest.param(True, marks=SLOW)])
def test_factors_are_those_of_statsmodels(remembers, ys, x64):
    ys = ys - np.nanmean(ys, 0)
    reference = dynamic_factor.DynamicFactor(ys, k_factors=1, factor_order=2, error_order=int(remembers))
    own = np.array([[0.3, -0.2, 0.1]])
    expected = reference.smooth(factor_parameters(reference.param_names, own))
    factor = np.array([[[0.7]], [[0.15]]])
    model = ss.dynamic_factor(LOADINGS, factor, np.eye(1), DEVIATIONS, noise_coefficients=own if remembers else None)
    found = kalman.smooth(model, ys)
    np.testing.assert_allclose(found.log_likelihood, expected.llf, rtol=1e-9)
    np.testing.assert_allclose(found.mean[:, 0], expected.factors.smoothed[0], rtol=1e-6, atol=1e-9)


@SLOW
def test_float32(ys):
    covariance = (ROOT @ ROOT.T).astype(np.float32)
    found = kalman.log_likelihood(ss.vector_arma(*(x.astype(np.float32) for x in (A, M)), covariance), ys)
    with jax.enable_x64(True):
        expected = kalman.log_likelihood(ss.vector_arma(A, M, ROOT @ ROOT.T), ys)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@SLOW
def test_the_stationary_law_and_a_singular_covariance(x64):
    covariance = np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0])
    model = ss.vector_arma(A, M, covariance)
    f, q = np.asarray(model.dynamics), np.asarray(model.dynamics_covariance)
    np.testing.assert_allclose(
        model.initial_covariance, scipy.linalg.solve_discrete_lyapunov(f, q), rtol=1e-8, atol=1e-12
    )
    assert np.isfinite(kalman.log_likelihood(model, kalman.simulate(jax.random.key(0), model, 20)[1]))


@SLOW
def test_derivatives(ys, x64):
    """Of coefficients, shocks and intercept against differences; with averages that are zero, where one begins."""

    @jax.jit
    @jax.value_and_grad
    def likelihood(x):
        ar, ma, root, intercept = x
        return kalman.log_likelihood(ss.vector_arma(ar, ma, root @ root.T, intercept=intercept), ys)

    point = tuple(jnp.asarray(x) for x in (A[:1], 0 * M, ROOT, INTERCEPT))
    gradient = likelihood(point)[1]
    for i, at in ((0, (0, 0, 1)), (0, (0, 2, 2)), (1, (0, 0, 0)), (1, (0, 2, 1)), (2, (1, 0)), (2, (2, 2)), (3, (1,))):
        ends = []
        for sign in (1, -1):
            moved = list(point)
            moved[i] = moved[i].at[at].add(sign * 1e-5)
            ends.append(likelihood(tuple(moved))[0])
        np.testing.assert_allclose(gradient[i][at], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ss.vector_autoregression(np.eye(2), np.eye(2)), "coefficients is a float32 array of shape"),
        (lambda: ss.vector_autoregression(A, np.eye(2)), "expected shape \\(lags, 2, 2\\)"),
        (lambda: ss.vector_autoregression(2 * A, np.eye(3)), "coefficients is that of a process with an eigenvalue"),
        (lambda: ss.vector_arma(A, M, np.eye(3), intercept=np.zeros(2)), "intercept is a float32 array of shape"),
        (lambda: ss.dynamic_factor(LOADINGS.T, A, np.eye(3), DEVIATIONS), "noise is a float32 array of shape"),
        (lambda: ss.dynamic_factor(LOADINGS, A, np.eye(3), DEVIATIONS), "loadings is a float32 array of shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
