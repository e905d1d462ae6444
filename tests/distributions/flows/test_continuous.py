"""Continuous flows: closed-form fields, the two divergences, failures of the solver."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import linalg

from jaxprob import distributions as d
from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

CONTEXTS = jnp.array([[1.0, -2.0], [-1.0, 0.5]])


@functools.cache
def flow(size=2, context_size=0, dtype=jnp.float32, seed=1, **options):
    return check.made(flows.continuous((8,), **options), size, context_size, dtype, seed, 0.5)


def linear(matrix, t, x, context):
    return jnp.matmul(matrix, x)


MATRIX = np.array([[0.3, -1.0, 0.2], [0.5, -0.4, 0.1], [0.0, 0.7, 0.6]])


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)])
def test_a_linear_field_is_a_matrix_exponential(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-12
        bijector = flows.Continuous(Partial(linear, jnp.asarray(MATRIX, dtype)), tolerance=tolerance)
        u = check.points(3, dtype)
        x, log_det = check.forward(bijector, u)
        error = 1e-4 if dtype == jnp.float32 else 1e-10
        np.testing.assert_allclose(x, np.asarray(u) @ linalg.expm(MATRIX).T, atol=error * 30)
        np.testing.assert_allclose(log_det, np.full(8, np.trace(MATRIX)), atol=error)
        back, back_log_det = check.inverse(bijector, x)
        np.testing.assert_allclose(back, u, atol=error * 30)
        np.testing.assert_allclose(back_log_det, -log_det, atol=error)
        assert x.dtype == log_det.dtype == dtype


def test_time_runs_from_noise_to_data():
    # dx/dt = t x + 3 t^2: x(1) = sqrt(e) u + a constant, and the divergence is that of t.
    bijector = flows.Continuous(Partial(lambda t, x, context: t * x + 3 * t**2), tolerance=1e-6)
    x, log_det = check.forward(bijector, jnp.array([[0.0], [1.0]]))
    constant = float(x[0, 0])
    s = np.linspace(0, 1, 20001)
    integral = np.trapezoid(3 * s**2 * np.exp((1 - s**2) / 2), s)
    np.testing.assert_allclose(constant, integral, rtol=1e-5)
    np.testing.assert_allclose(x[1, 0] - constant, np.exp(0.5), rtol=1e-5)
    np.testing.assert_allclose(log_det, 0.5, rtol=1e-5)


def test_inverse_and_log_determinant():
    with jax.enable_x64(True):
        bijector = flow(3, dtype=jnp.float64, tolerance=1e-12).bijector
        check.check_map(bijector, check.points(3, jnp.float64), 1e-10, reverse_mode=True)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_densities_of_a_context_have_mass_one(size):
    check.check_mass(flow(size, context_size=2, seed=4), size, CONTEXTS)


@pytest.mark.slow
def test_draws_have_the_density():
    check.check_draws(flow())


def test_far_out_everything_is_finite_and_gradients_are_right():
    check.check_tails(flow(3).bijector, 3)


def test_probes_give_an_unbiased_log_determinant():
    exact = flows.Continuous(Partial(linear, jnp.asarray(MATRIX, jnp.float32)))
    u = jnp.ones((1, 3))
    draws = jax.random.rademacher(jax.random.key(0), (400, 2, 3), jnp.float32)

    def estimate(noise):
        return dataclasses.replace(exact, noise=noise).forward_and_log_det(u)[1][0]

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(draws))
    # Of e^T A e the variance is sum over i < j of (A_ij + A_ji)^2, and half of it for two probes. z-scores of mean and
    # variance of 400 independent repeats: 1 in 5,000 fails by chance.
    off = (MATRIX + MATRIX.T)[np.triu_indices(3, 1)]
    variance = np.sum(off**2) / 2
    assert abs(estimates.mean() - np.trace(MATRIX)) < 3.9 * np.sqrt(variance / 400)
    assert abs(estimates.var() / variance - 1) < 3.9 * np.sqrt(2 / 400)


def test_probes_of_a_seed_are_the_same_at_all_points_and_both_ways():
    bijector = flows.Continuous(Partial(linear, jnp.asarray(MATRIX, jnp.float32)), probes=2, seed=3)
    signs = np.asarray(jax.random.rademacher(jax.random.key(3), (2, 3)), float)
    expected = np.mean([sign @ MATRIX @ sign for sign in signs])
    assert abs(expected - np.trace(MATRIX)) > 0.01
    u = check.points(3, jnp.float32)
    x, log_det = check.forward(bijector, u)
    np.testing.assert_allclose(log_det, np.full(8, expected), atol=1e-4)
    np.testing.assert_allclose(check.inverse(bijector, x)[1], np.full(8, -expected), atol=1e-4)


def test_no_key_is_used_twice():
    check.check_keys(flows.continuous((8, 8)), 3)


def test_a_network_sees_the_place_the_time_and_the_context():
    velocity = flows.Velocity(Partial(lambda inputs: inputs))
    seen = velocity(jnp.array(0.25), jnp.array([1.0, 2.0]), CONTEXTS[0])
    np.testing.assert_array_equal(seen, [1.0, 2.0, 0.25, 1.0, -2.0])


def test_where_the_solver_fails_the_density_is_missing():
    # dx/dt = x^2 is infinite at t = 1 / u: rows that get there are NaN, and the others what they are alone.
    bijector = flows.Continuous(Partial(lambda t, x, context: x**2), max_steps=64)
    x, log_det = check.forward(bijector, jnp.array([[2.0], [0.5], [-3.0]]))
    np.testing.assert_array_equal(np.isnan(np.asarray(x)[:, 0]), [True, False, False])
    np.testing.assert_array_equal(np.isnan(log_det), [True, False, False])
    np.testing.assert_allclose(np.asarray(x)[1:, 0], [1.0, -0.75], rtol=1e-3)
    density = d.Transformed(flows.StandardNormal(1), d.Inverse(bijector))
    np.testing.assert_array_equal(np.isnan(density.log_prob(jnp.array([[2.0], [0.5]]))), [True, False])


def test_without_diffrax_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    for call in (flows.continuous, lambda: flows.Continuous(Partial(linear, jnp.eye(2)))):
        with pytest.raises(ImportError, match=r"pip install 'jaxprob\[flows\]'") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.continuous((8, 0)), "hidden is 0"),
        (lambda: flows.continuous(probes=-1), "probes is -1"),
        (lambda: flows.continuous(tolerance=0.0), "tolerance is 0.0"),
        (lambda: flows.continuous().init(jax.random.key(0), (2, 2)), "that of a vector"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
