"""Roots of covariances: what is not a number stays so, and derivatives are those of the covariance at any rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("once", [False, True])
def test_derivatives_of_a_root_are_those_of_a_cholesky_factor(once, x64):
    noise = np.random.default_rng(1).normal(size=(2, 5, 5))
    covariance, moved = noise[0] @ noise[0].T * np.outer(*[10.0 ** np.arange(-6, 4, 2)] * 2), noise[1] + noise[1].T

    def found(of):
        along = lambda t: of(covariance + t * covariance * moved)  # noqa: E731
        slope = lambda t: jax.jvp(along, (t,), (1.0,))[1]  # noqa: E731
        return along(0.0), *jax.jvp(slope, (0.0,), (1.0,)), jax.jacrev(of)(covariance)

    cholesky = jax.jit(lambda covariance: found(jnp.linalg.cholesky))(covariance)
    for one, other in zip(jax.jit(lambda c: found(lambda c: square_root(c, once)))(covariance), cholesky, strict=True):
        # The gradient of one may be put on either side of the diagonal.
        one, other = (x + jnp.swapaxes(x, 2, 3) if x.ndim == 4 else x for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * np.max(np.abs(other)))


@pytest.mark.parametrize("independent", [[0, 1], [1, 3], [0, 3]])
def test_derivatives_of_a_root_without_full_rank(independent, x64):
    """P = A A^T for two columns of A: what depends on P moves as P does, and so does what depends on its derivative."""
    rng = np.random.default_rng(2)
    rows, ways, weight = np.zeros((4, 2)), rng.normal(size=(2, 4, 2)), rng.normal(size=(4, 4))
    rows[independent] = rng.normal(size=(2, 2))
    for i in range(independent[0] + 1, 4):
        # A row is zero, or depends on those above it.
        rows[i] = rows[i] if i in independent else rows[:i].sum(0)
    ways[:, np.setdiff1d(range(independent[0] + 1), independent)] = 0

    def total(covariance, t):
        return jnp.sum(weight * covariance * jnp.exp(t * covariance))

    def both(root, t):
        columns = rows + t * (rows @ ways[0, :2])
        covariance = columns @ columns.T
        return total(covariance if root is None else (lambda L: L @ L.T)(root(covariance)), t)

    for root in (square_root, lambda covariance: jax.vmap(square_root)(covariance[None])[0]):
        for order in (jax.grad, lambda f: jax.grad(jax.grad(f))):
            got, expected = (order(lambda t, r=r: both(r, t))(0.3) for r in (root, None))
            np.testing.assert_allclose(got, expected, rtol=1e-8)
