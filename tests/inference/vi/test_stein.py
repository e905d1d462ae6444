"""Stein variational gradient descent: one step and the discrepancy by a double loop, rest at a Gaussian, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import models, runtime
from jaxprob.distributions import Normal
from jaxprob.inference import vi

MEAN, PRECISION = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 1.0]])


def log_density(x):
    away = x - jnp.asarray(MEAN, x.dtype)
    return -0.5 * jnp.dot(
        away, jnp.dot(jnp.asarray(PRECISION, x.dtype), away, precision="highest"), precision="highest"
    )


def by_loops(x, width):
    """The direction of each particle and the squared discrepancy, term by term."""
    number, size = x.shape
    score = -(x - MEAN) @ PRECISION
    direction, discrepancy = np.zeros_like(x), 0.0
    for i in range(number):
        for j in range(number):
            away = x[i] - x[j]
            k = np.exp(-away @ away / (2 * width**2))
            direction[i] += (k * score[j] + k * away / width**2) / number
            trace = k * (size / width**2 - away @ away / width**4)
            both = k * (away / width**2) @ score[i] - k * (away / width**2) @ score[j]
            discrepancy += (k * score[i] @ score[j] + both + trace) / number**2
    return direction, discrepancy


@pytest.mark.parametrize("bandwidth", [0.7, None])
def test_a_step_is_the_double_loop(bandwidth, x64):
    x = np.random.default_rng(0).normal(size=(9, 2))
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    width = np.sqrt(np.median(squares) / (2 * np.log(10))) if bandwidth is None else bandwidth
    direction, discrepancy = by_loops(x, width)
    algorithm = vi.stein(log_density, optimizer=optax.sgd(1.0), bandwidth=bandwidth)
    state, info = jax.jit(algorithm.step)(jax.random.key(0), algorithm.init(jnp.asarray(x), jax.random.key(1)))
    np.testing.assert_allclose(state.position - x, direction, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(info.discrepancy, discrepancy, rtol=1e-9)
    np.testing.assert_allclose(info.bandwidth, width, rtol=1e-9)


def test_particles_rest_where_they_stand_for_the_density():
    algorithm = vi.stein(log_density, particles=80, initial=lambda key: 3 * jax.random.normal(key, (2,)))
    state = algorithm.init(None, jax.random.key(0))
    run = runtime.run(algorithm, jax.random.key(1), state, 700, keep=lambda x: x[:1])
    x = np.asarray(run.state.position)
    covariance = np.linalg.inv(PRECISION)
    assert run.draws.shape == (1, 700, 1, 2)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.02)
    # A finite number of particles is a little too narrow: 5 % in each standard deviation is what is asked.
    np.testing.assert_allclose(x.std(0), np.sqrt(np.diag(covariance)), rtol=0.05)
    np.testing.assert_allclose(
        np.corrcoef(x.T)[0, 1], covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]), atol=0.03
    )
    _, info = algorithm.step(jax.random.key(2), run.state)
    # Of as many independent draws it would be (trace of the precision + 2 / h^2) / 80 = 0.14 in the mean.
    assert info.discrepancy < 0.01


def test_particles_of_a_posterior_keep_its_structure():
    @models.joint
    def program():
        a = yield "a", Normal(jnp.zeros(3), 1.0)
        yield "y", Normal(jnp.sum(a), 1.0)

    algorithm = vi.stein(program().condition(y=jnp.array(1.0)), particles=4)
    state, info = algorithm.step(jax.random.key(1), algorithm.init(None, jax.random.key(0)))
    assert state.position["a"].shape == (4, 3)
    assert bool(info.finite)


def test_a_gradient_that_is_not_finite_moves_nothing():
    algorithm = vi.stein(lambda x: -jnp.sqrt(-x), optimizer=optax.sgd(1.0))
    state = algorithm.init(jnp.array([1.0, -1.0]), jax.random.key(0))
    after, info = algorithm.step(jax.random.key(1), state)
    assert not bool(info.finite)
    np.testing.assert_array_equal(after.position, state.position)


def test_particles_in_one_place_stay_finite():
    algorithm = vi.stein(log_density, optimizer=optax.sgd(0.1))
    state, info = algorithm.step(jax.random.key(1), algorithm.init(jnp.zeros((3, 2)), jax.random.key(0)))
    assert bool(info.finite)
    assert np.isfinite(state.position).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vi.stein(log_density, particles=1), "particles is 1"),
        (lambda: vi.stein(log_density, bandwidth=0.0), "bandwidth"),
        (lambda: vi.stein(log_density, optimizer="adam"), "optimizer"),
        (lambda: vi.stein(3.0), "log_density"),
        (lambda: vi.stein(log_density).init(None, jax.random.key(0)), "initial"),
        (lambda: vi.stein(log_density).init(jnp.zeros((1, 2)), jax.random.key(0)), "two or more"),
        (lambda: vi.stein(log_density).init(jnp.zeros(()), jax.random.key(0)), "two or more"),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
