"""Expectation propagation: exact cases, matched moments by SciPy's quadrature, evidence on a grid, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxprob.inference import vi


def probit(f, y):
    return jax.scipy.stats.norm.logcdf(y * f)


def gaussian(f, datum):
    return -0.5 * ((datum[0] - f) / datum[1]) ** 2 - jnp.log(datum[1]) - 0.5 * jnp.log(2 * jnp.pi)


def problem(number, size, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return rng.normal(size=size), root @ root.T / size + 0.3 * np.eye(size), rng.normal(size=(number, size))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gaussian_factors_give_the_exact_posterior(dtype, x64):
    mean, covariance, rows = problem(6, 4)
    y, noise = np.random.default_rng(1).normal(size=6), np.linspace(0.5, 1.0, 6)
    data = jnp.stack([jnp.asarray(y, dtype), jnp.asarray(noise, dtype)], axis=1)
    cast = [jnp.asarray(a, dtype) for a in (mean, covariance, rows)]
    found = vi.expectation_propagation(gaussian, data, cast[0], cast[1], projections=cast[2])
    precision = np.linalg.inv(covariance) + rows.T @ np.diag(1 / noise**2) @ rows
    exact = np.linalg.inv(precision)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == jnp.float32 else {"rtol": 1e-4, "atol": 1e-4}
    assert bool(found.converged)
    assert found.mean.dtype == dtype
    np.testing.assert_allclose(found.covariance, exact, **tolerance)
    shift = np.linalg.solve(covariance, mean) + rows.T @ (y / noise**2)
    np.testing.assert_allclose(found.mean, exact @ shift, **tolerance)
    law = stats.multivariate_normal(rows @ mean, rows @ covariance @ rows.T + np.diag(noise**2))
    np.testing.assert_allclose(found.log_evidence, law.logpdf(y), rtol=1e-3)


def test_one_factor_is_exact(x64):
    # Of a probit factor all is known: Rasmussen & Williams (2006), equations 3.82 to 3.85.
    mean, variance = 0.7, 2.0
    found = vi.expectation_propagation(probit, jnp.array([-1.0]), mean, jnp.array([[variance]]), damping=1.0, nodes=200)
    z = -mean / np.sqrt(1 + variance)
    ratio = stats.norm.pdf(z) / stats.norm.cdf(z)
    np.testing.assert_allclose(found.log_evidence, stats.norm.logcdf(z), rtol=1e-8)
    np.testing.assert_allclose(found.mean[0], mean - variance * ratio / np.sqrt(1 + variance), rtol=1e-8)
    exact = variance - variance**2 * ratio / (1 + variance) * (z + ratio)
    np.testing.assert_allclose(found.covariance[0, 0], exact, rtol=1e-8)


def test_moments_are_matched_at_the_end(x64):
    mean, covariance, rows = problem(7, 3)
    y = np.where(np.random.default_rng(2).random(7) < 0.5, -1.0, 1.0)
    found = vi.expectation_propagation(probit, jnp.asarray(y), mean, covariance, projections=rows, tolerance=1e-10)
    assert bool(found.converged)
    # The Gaussian is what its factors and the prior make, and each marginal is that of the true factor in its cavity.
    precision, shift = np.asarray(found.precision), np.asarray(found.shift)
    exact = np.linalg.inv(np.linalg.inv(covariance) + rows.T @ np.diag(precision) @ rows)
    np.testing.assert_allclose(found.covariance, exact, rtol=1e-8)
    np.testing.assert_allclose(found.mean, exact @ (np.linalg.solve(covariance, mean) + rows.T @ shift), rtol=1e-8)
    for i in range(7):
        m, v = rows[i] @ np.asarray(found.mean), rows[i] @ exact @ rows[i]
        left = 1 / v - precision[i]
        cavity = stats.norm((m / v - shift[i]) / left, 1 / np.sqrt(left))
        moments = [
            integrate.quad(lambda f: f**k * cavity.pdf(f) * stats.norm.cdf(y[i] * f), -20, 20)[0]  # noqa: B023
            for k in range(3)
        ]
        np.testing.assert_allclose(moments[1] / moments[0], m, rtol=1e-6)
        np.testing.assert_allclose(moments[2] / moments[0] - (moments[1] / moments[0]) ** 2, v, rtol=1e-6)


def test_evidence_is_close_to_that_on_a_grid():
    covariance = np.array([[3.0, 2.0], [2.0, 3.0]])
    y = np.array([1.0, -1.0])
    found = vi.expectation_propagation(probit, jnp.asarray(y, jnp.float32), 0.0, covariance)
    grid = np.linspace(-10, 10, 801)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    density = stats.multivariate_normal([0, 0], covariance).pdf(np.stack([a, b], -1))
    density *= stats.norm.cdf(y[0] * a) * stats.norm.cdf(y[1] * b)
    total = density.sum() * (grid[1] - grid[0]) ** 2
    # An approximation, known to be close for probit factors.
    assert abs(float(found.log_evidence) - np.log(total)) < 0.01
    assert abs(float(found.mean[0]) - (a * density).sum() / density.sum()) < 0.02


def test_a_factor_of_no_finite_mass_is_left_and_told():
    found = vi.expectation_propagation(
        lambda f, y: jnp.where(y > 0, jnp.nan, probit(f, -1.0)), jnp.array([1.0, 0.0]), 0.0, jnp.eye(2)
    )
    assert not bool(found.converged)
    assert np.isfinite(found.mean).all()


def test_it_compiles_once_and_crosses_vmap():
    traced = []

    def factor(f, y):
        traced.append(1)
        return probit(f, y)

    for shift in (0.0, 1.0):
        vi.expectation_propagation(factor, jnp.ones(2), shift, jnp.eye(2))
    number = len(traced)
    vi.expectation_propagation(factor, -jnp.ones(2), 0.5, 2 * jnp.eye(2))
    assert len(traced) == number
    many = jax.vmap(lambda m: vi.expectation_propagation(probit, jnp.ones(2), m, jnp.eye(2)).mean)(jnp.zeros((3, 2)))
    np.testing.assert_allclose(many, 1 / np.sqrt(np.pi), rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior_covariance": jnp.ones((2, 3))}, "prior_covariance"),
        ({"prior_mean": jnp.zeros(3)}, "prior_mean"),
        ({"projections": jnp.ones((2, 3))}, "projections"),
        ({"data": jnp.ones(3)}, "data"),
        ({"damping": 0.0}, "damping"),
        ({"nodes": 0}, "nodes is 0"),
        ({"max_sweeps": 0}, "max_sweeps is 0"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_bad_input_is_told_in_one_line(options, words):
    given = {"data": jnp.ones(2), "prior_mean": 0.0, "prior_covariance": jnp.eye(2), **options}
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        vi.expectation_propagation(
            probit, given.pop("data"), given.pop("prior_mean"), given.pop("prior_covariance"), **given
        )
    assert "\n" not in str(caught.value)
