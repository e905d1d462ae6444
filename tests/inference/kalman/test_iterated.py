"""Iterated smoothers: the smoother on linear models, the most probable path of a pendulum, derivatives, honesty."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxprob.distributions import MultivariateNormal, Normal
from jaxprob.inference import kalman
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.kalman._models import make
from tests.inference.kalman._wrapped import wrap

STEP = 0.1


def swing(noise, x, t):
    return MultivariateNormal(jnp.stack([x[0] + STEP * x[1], x[1] - 9.81 * STEP * jnp.sin(x[0])]), noise)


def look(noise, x, t):
    return Normal(jnp.sin(x[0]), noise)


def pendulum(strength=0.2, noise=0.3, dtype=np.float64):
    matrix = np.array([[STEP**3 / 3, STEP**2 / 2], [STEP**2 / 2, STEP]], dtype)
    return StateSpaceModel(
        MultivariateNormal(np.array([1.5, 0.0], dtype), np.asarray(0.1 * np.eye(2), dtype)),
        jax.tree_util.Partial(swing, jnp.asarray(strength, dtype) * matrix),
        jax.tree_util.Partial(look, jnp.asarray(noise, dtype)),
    )


def series(times=25):
    """Angles seen through their sine, with gaps, in NumPy."""
    rng = np.random.default_rng(3)
    matrix = 0.2 * np.array([[STEP**3 / 3, STEP**2 / 2], [STEP**2 / 2, STEP]])
    x, ys = np.array([1.5, 0.0]), []
    for _ in range(times):
        ys.append(np.sin(x[0]) + 0.3 * rng.normal())
        drift = np.array([x[0] + STEP * x[1], x[1] - 9.81 * STEP * np.sin(x[0])])
        x = drift + np.linalg.cholesky(matrix) @ rng.normal(size=2)
    ys = np.array(ys)
    ys[[t for t in (5, 12, 13, 14) if t < times]] = np.nan
    return ys


def cost(path, ys, strength=0.2):
    """Minus the log density of a path, and its slope, in NumPy."""
    path = path.reshape(len(ys), 2)
    precision = np.linalg.inv(strength * np.array([[STEP**3 / 3, STEP**2 / 2], [STEP**2 / 2, STEP]]))
    first = (path[0] - [1.5, 0.0]) / 0.1
    total, slope = 0.5 * (path[0] - [1.5, 0.0]) @ first, np.zeros_like(path)
    slope[0] += first
    for t, y in enumerate(ys):
        if not np.isnan(y):
            residual = (y - np.sin(path[t, 0])) / 0.3
            total += 0.5 * residual**2
            slope[t, 0] -= residual * np.cos(path[t, 0]) / 0.3
        if t + 1 < len(ys):
            a, w = path[t]
            residual = path[t + 1] - [a + STEP * w, w - 9.81 * STEP * np.sin(a)]
            pulled = precision @ residual
            total += 0.5 * residual @ pulled
            slope[t + 1] += pulled
            slope[t] -= np.array([[1, STEP], [-9.81 * STEP * np.cos(a), 1]]).T @ pulled
    return total, slope.ravel()


@pytest.mark.parametrize(
    ("search", "method"),
    [
        ("line", "sequential"),
        ("levenberg_marquardt", "sequential"),
        ("relax", "sequential"),
        (None, "sequential"),
        pytest.param("line", "parallel", marks=pytest.mark.slow),
    ],
)
def test_the_extended_one_reaches_the_most_probable_path(search, method, x64):
    ys = series()
    model = pendulum()
    found = kalman.iterated_smooth(model, ys, search=search, method=method)
    start = np.asarray(kalman.smooth(model, ys).mean)
    best = minimize(cost, start.ravel(), args=(ys,), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 3000})
    assert found.converged
    assert found.iterations < 30
    sd = np.sqrt(np.einsum("tii->ti", found.covariance))
    assert np.max(np.abs(found.mean - best.x.reshape(-1, 2)) / sd) < 1e-6
    assert np.max(np.abs(cost(np.asarray(found.mean).ravel(), ys)[1])) < 1e-5


@pytest.mark.parametrize("search", ["line", pytest.param("levenberg_marquardt", marks=pytest.mark.slow)])
def test_a_path_from_far_away_is_found_by_a_search(search, x64):
    """Whole steps from there need not arrive; searched ones lower the cost until the slope is zero."""
    ys = series()
    far = np.tile([3.0, 4.0], (len(ys), 1)) * np.linspace(1, -1, len(ys))[:, None]
    found = kalman.iterated_smooth(pendulum(), ys, search=search, initial=far, max_iterations=200)
    assert found.converged
    assert np.max(np.abs(cost(np.asarray(found.mean).ravel(), ys)[1])) < 1e-4


def test_too_few_sweeps_are_not_convergence(x64):
    found = kalman.iterated_smooth(pendulum(), series(), max_iterations=2)
    assert not found.converged
    assert found.iterations == 2
    assert found.change > 1e-6


@pytest.mark.parametrize(("rule", "search"), [("extended", "line"), ("extended", None), ("cubature", None)])
def test_nothing_finite_is_no_convergence(rule, search):
    model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x / 0 * 0, 1.0), lambda x, t: Normal(x, 1.0))
    found = kalman.iterated_smooth(model, np.ones(40, np.float32), linearize=rule, search=search)
    assert not found.converged
    assert np.isnan(found.mean).any()


@pytest.mark.parametrize(
    ("rule", "dtype", "method"),
    [
        ("extended", np.float32, "sequential"),
        pytest.param("cubature", np.float64, "sequential", marks=pytest.mark.slow),
        pytest.param("extended", np.float64, "parallel", marks=pytest.mark.slow),
        pytest.param("unscented", np.float32, "parallel", marks=pytest.mark.slow),
    ],
)
def test_on_a_linear_model_they_are_the_smoother(rule, dtype, method):
    with jax.enable_x64(dtype == np.float64):
        model, ys = make("random", gaps=True, dtype=dtype)
        found = kalman.iterated_smooth(wrap(model), ys, linearize=rule, method=method)
        expected = kalman.smooth(model, ys)
        for name in ("mean", "covariance", "lag_one_covariance", "log_likelihood"):
            error = 1e-5 if dtype == np.float32 else 1e-13
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=error, atol=error)
        assert found.converged
        assert found.iterations <= 3
        assert found.mean.dtype == dtype


@pytest.mark.parametrize("rule", ["extended", "cubature"])
def test_states_that_are_known_are_linearised_by_derivatives(rule, x64):
    """R = 0 and Q of rank one: smoothed laws have no variance, and the next law does not depend on their points."""
    model, ys = make("autoregression", gaps=True)
    found, expected = kalman.iterated_smooth(wrap(model), ys, linearize=rule), kalman.smooth(model, ys)
    assert found.converged
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-7)


@pytest.mark.slow
def test_posterior_linearisation_is_a_fixed_point(x64):
    """Each law is the smoother's of the model made linear, by the textbook sums, under these very laws."""
    ys = np.array([0.5, np.nan, 1.4, 0.2])
    model = StateSpaceModel(Normal(0.3, 0.8), lambda x, t: Normal(jnp.sin(2 * x), 0.4), lambda x, t: Normal(x**3, 0.5))
    whole = kalman.iterated_smooth(model, ys, linearize=kalman.gauss_hermite(5), search=None)
    assert not whole.converged  # it goes to and fro
    found = kalman.iterated_smooth(model, ys, linearize=kalman.gauss_hermite(5), max_iterations=300)
    assert found.converged
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()

    def regress(function, noise, mean, variance):
        x = mean + np.sqrt(variance) * nodes
        z = function(x)
        slope = weights @ ((x - mean) * (z - weights @ z)) / variance
        left = weights @ (z - weights @ z) ** 2 - slope**2 * variance
        return slope, weights @ z - slope * mean, left + noise**2

    m, v = np.asarray(found.mean)[:, 0], np.asarray(found.covariance)[:, 0, 0]
    size = len(ys)
    # The joint precision of the linear model.
    precision, shift = np.zeros((size, size)), np.zeros(size)
    precision[0, 0] += 1 / 0.64
    shift[0] += 0.3 / 0.64
    for t in range(size):
        if t + 1 < size:
            a, b, q = regress(lambda x: np.sin(2 * x), 0.4, m[t], v[t])
            precision[t : t + 2, t : t + 2] += np.array([[a * a, -a], [-a, 1]]) / q
            shift[t : t + 2] += np.array([-a * b, b]) / q
        if not np.isnan(ys[t]):
            a, b, r = regress(lambda x: x**3, 0.5, m[t], v[t])
            precision[t, t] += a * a / r
            shift[t] += a * (ys[t] - b) / r
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(m, covariance @ shift, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(v, np.diag(covariance), rtol=1e-6)


def summary(model, ys, rule):
    found = kalman.iterated_smooth(model, ys, linearize=rule, tolerance=1e-10)
    return found.mean[4, 0] + found.factor[2, 1, 0] + found.log_likelihood


@pytest.mark.parametrize("rule", ["extended", pytest.param("cubature", marks=pytest.mark.slow)])
def test_derivatives_at_the_fixed_point(rule, x64):
    """Against differences."""
    ys, eps = series(8), 1e-4

    def parameter(strength):
        return summary(pendulum(strength), ys, rule)

    expected = (parameter(0.2 + eps) - parameter(0.2 - eps)) / (2 * eps)
    np.testing.assert_allclose(jax.grad(parameter)(0.2), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["extended", "cubature"])
def test_derivatives_with_respect_to_what_a_function_closes_over(rule, x64):
    ys, eps = series(8), 1e-4

    def closure(noise):
        model = dataclasses.replace(pendulum(), observation=lambda x, t: Normal(jnp.sin(x[0]), noise))
        return summary(model, ys, rule)

    other = [summary(pendulum(noise=0.3 + e), ys, rule) for e in (eps, -eps)]
    np.testing.assert_allclose(jax.grad(closure)(jnp.asarray(0.3)), (other[0] - other[1]) / (2 * eps), rtol=1e-5)


@pytest.mark.slow
def test_float32_and_short_series():
    ys = series().astype(np.float32)
    model = pendulum(dtype=np.float32)
    found = kalman.iterated_smooth(model, ys)
    assert found.converged
    assert found.mean.dtype == np.float32
    assert np.max(np.abs(cost(np.asarray(found.mean, np.float64).ravel(), series())[1])) < 0.2
    for few in (ys[:0], ys[:1], np.full(1, np.nan, np.float32)):
        found = kalman.iterated_smooth(model, few)
        assert found.mean.shape == (len(few), 2)
        assert found.converged
    np.testing.assert_allclose(found.mean[0], [1.5, 0.0], atol=1e-5)
    linear, values = make("random", dtype=np.float32)
    found = kalman.iterated_smooth(linear, values)
    np.testing.assert_array_equal(found.mean, kalman.smooth(linear, values).mean)


BAD = {
    "no sweep": (lambda m, ys: kalman.iterated_smooth(m, ys, max_iterations=0), "max_iterations is 0"),
    "no tolerance": (lambda m, ys: kalman.iterated_smooth(m, ys, tolerance=0.0), "tolerance is 0.0"),
    "an unknown search": (lambda m, ys: kalman.iterated_smooth(m, ys, search="grid"), "search is 'grid'"),
    "a search with points": (
        lambda m, ys: kalman.iterated_smooth(m, ys, search="line", linearize="cubature"),
        "search is 'line'",
    ),
    "densities": (lambda m, ys: kalman.iterated_smooth(m, ys, linearize="laplace"), "conjugate_smooth"),
    "a path of another shape": (lambda m, ys: kalman.iterated_smooth(m, ys, initial=np.zeros(3)), "initial"),
    "an unknown method": (lambda m, ys: kalman.iterated_smooth(m, ys, method="steady"), "method is 'steady'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        call(pendulum(dtype=np.float32), series().astype(np.float32))
    assert "\n" not in str(error.value)
