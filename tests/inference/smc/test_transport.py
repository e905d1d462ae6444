"""Resampling by optimal transport: margins, an independent Sinkhorn in float64, and gradients through a filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import particle, smc
from tests.inference.particle import _autoregression as oracle

WEIGHTS = np.array([0.45, 0.05, 0.0, 0.3, 0.2])
STATES = np.array([[0.0, 1.0], [2.0, -1.0], [9.0, 9.0], [0.5, 0.3], [-1.0, 2.0]])


def population(dtype=np.float32):
    with np.errstate(divide="ignore"):
        return smc.Population(jnp.asarray(STATES, dtype), jnp.asarray(np.log(3 * WEIGHTS), dtype))


def sinkhorn(epsilon, iterations=20_000):
    """The plan of scaling factors, in plain arithmetic."""
    spread = ((STATES - STATES.mean(0)) ** 2).sum() / len(STATES)
    cost = ((STATES[:, None] - STATES[None]) ** 2).sum(-1) / spread
    kernel, v = np.exp(-cost / epsilon), np.ones(len(STATES))
    for _ in range(iterations):
        u = WEIGHTS / (kernel @ v)
        v = np.full(len(STATES), 1 / len(STATES)) / (kernel.T @ u)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_the_plan_is_that_of_an_independent_iteration(epsilon, x64):
    found = smc.transport(population(np.float64), epsilon, 3000)
    assert np.abs(np.asarray(found.plan) - sinkhorn(epsilon)).max() < 1e-7
    assert float(found.error) < 1e-7


@pytest.mark.parametrize("iterations", [1, 10, 300])
def test_margins_and_the_mean_are_exact_however_few_the_iterations(iterations):
    found = smc.transport(population(), 0.1, iterations)
    assert np.abs(np.asarray(found.plan).sum(1) - WEIGHTS).max() < 1e-6
    assert np.abs(np.asarray(found.plan).sum(0) - 0.2).max() < 1e-6
    assert (np.asarray(found.plan) >= -1e-7).all()
    new, ancestors = smc.optimal_transport(0.1, iterations)(jax.random.key(0), population())
    assert ancestors is None
    assert np.abs(np.asarray(new.particles).mean(0) - WEIGHTS @ STATES).max() < 1e-5
    assert abs(float(new.log_evidence) - np.log(3)) < 1e-6
    assert new.particles.dtype == jnp.float32


def test_the_error_says_whether_the_iteration_has_converged():
    errors = [float(smc.transport(population(), 0.1, n).error) for n in (1, 10, 300)]
    assert errors[0] > 0.05
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_gradients_are_finite_at_no_weight_no_mass_and_no_spread():
    def total(states, log_weights):
        new, _ = smc.optimal_transport(0.3, 20)(jax.random.key(0), smc.Population(states, log_weights))
        return jnp.sum(jnp.sin(new.particles)) + new.log_evidence

    states, log_weights = population().particles, population().log_weights
    gradient = jax.jit(jax.grad(total, (0, 1)))
    for x, w in (
        (states, log_weights),
        (jnp.zeros_like(states), log_weights),
        (states, jnp.full_like(log_weights, -jnp.inf)),
        (1e15 * states, log_weights),
    ):
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in gradient(x, w))


def log_likelihood(parameters, key, dtype, number=30, iterations=30):
    model = oracle.model_of(jnp.asarray(parameters, dtype))
    seen = ~np.isnan(oracle.YS)
    data = particle.Datum(jnp.asarray(np.where(seen, oracle.YS, 0), dtype), jnp.asarray(seen))
    rule = smc.optimal_transport(0.2, iterations)
    return smc.run(key, particle.feynman_kac(model), data, number, resampler=rule).log_likelihood


def test_the_gradient_through_a_filter_is_that_of_differences(x64):
    run = jax.jit(lambda p: log_likelihood(p, jax.random.key(0), jnp.float64, 12, 10))
    parameters = jnp.asarray(oracle.PARAMETERS)
    found = np.asarray(jax.jit(jax.grad(run))(parameters))
    ahead = 1e-6 * np.eye(2)
    differences = np.array([float(run(parameters + e) - run(parameters - e)) for e in ahead]) / 2e-6
    assert np.abs(found - differences).max() < 1e-5 * (1 + np.abs(differences).max())


@pytest.mark.slow
def test_the_mean_gradient_is_near_the_score():
    gradient = jax.grad(lambda p, key: log_likelihood(p, key, jnp.float32))
    keys = jax.random.split(jax.random.key(5), 60)
    found = np.asarray(jax.jit(jax.vmap(gradient, (None, 0)))(jnp.asarray(oracle.PARAMETERS, jnp.float32), keys))
    exact = oracle.score()
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    print(f"transport: {found.mean(0)} +- {error} against {exact}")
    # Biased by the entropy and by the particles being 30: to a quarter, and the error of the mean beside.
    assert (np.abs(found.mean(0) - exact) < 0.25 * np.abs(exact).max() + 4.5 * error).all()


def test_bad_arguments_are_one_line():
    for make in (lambda: smc.optimal_transport(0.0), lambda: smc.optimal_transport(0.1, 0)):
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            make()
    whole = smc.Population(jnp.arange(3), jnp.zeros(3))
    with pytest.raises(TypeError, match="floating"):
        smc.optimal_transport()(jax.random.key(0), whole)
