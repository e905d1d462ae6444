"""Roots of covariances: what is not a number stays so, and derivatives are those of the covariance at any rank."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.inference import kalman
from jaxprob.inference.kalman._square_root import square_root
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._models import make


def test_a_covariance_that_is_no_number_makes_no_number():
    assert np.isnan(square_root(jnp.array([[jnp.nan, 0.0], [0.0, 1.0]]))[0, 0])
    assert np.isnan(square_root(jnp.array([[-1.0, 0.0], [0.0, 1.0]]))[0, 0])


def test_a_variance_of_zero_keeps_its_derivative(x64):
    def crossed(theta):
        root = square_root(jnp.array([[1.0, 0.0], [0.0, 0.0]]) + theta * jnp.array([[0.0, 1.0], [1.0, theta]]))
        return (root @ root.T)[0, 1]

    np.testing.assert_allclose(jax.vmap(jax.grad(crossed))(jnp.array([0.0, 0.1, -2.0])), 1, rtol=1e-12)


def test_derivatives_with_states_that_are_known_exactly(x64):
    """A moving average of differences with states (last value, this noise, the one before) and no noise of its own."""
    ys = np.cumsum(np.random.default_rng(0).normal(size=60))
    ys[[0, 1, 30, 31]] = np.nan

    @jax.jit
    def likelihood(theta):
        emission = jnp.stack([jnp.ones(()), jnp.ones(()), theta])
        dynamics = jnp.zeros((3, 3)).at[0].set(emission).at[2, 1].set(1.0)
        noises = np.diag([0.0, 1.0, 1.0]), np.diag([0.0, 1.0, 0.0])
        diffuse = np.eye(3)[:, :1]
        model = LinearGaussian(
            np.zeros(3), noises[0], dynamics, noises[1], emission[None], np.zeros(1), initial_diffuse=diffuse
        )
        return kalman.log_likelihood(model, ys)

    for theta in (-0.87, 0.3):
        expected = (likelihood(theta + 1e-5) - likelihood(theta - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(likelihood)(theta), expected, rtol=1e-6)


def test_what_a_batch_found_has_the_likelihood_of_each():
    model, ys = make("random", dtype=np.float32)
    both = jnp.stack([ys, 2 * ys])
    found = jax.vmap(lambda ys: kalman.filter(model, ys))(both)
    np.testing.assert_allclose(found.log_likelihood, [kalman.log_likelihood(model, one) for one in both], rtol=1e-5)


def test_innovations_are_read_off_what_a_filter_found():
    model, ys = make("random", dtype=np.float32)
    found = kalman.filter(model, ys)
    one, other = kalman.innovation_tests(found, lags=3), kalman.innovation_tests(found.innovation, lags=3)
    np.testing.assert_array_equal(one.whiteness, other.whiteness)
