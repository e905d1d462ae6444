"""Waste-free sequential Monte Carlo: chains whose states are all particles, against closed forms."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.inference import mcmc, smc
from tests.inference.smc._regression import moments, regression, repeats


class Place(NamedTuple):
    position: jax.Array


def climb(log_density):
    """A move that says where it is in its chain."""
    return core.Algorithm(lambda position, key: Place(position), lambda key, state: climbed(state))


def climbed(state):
    return Place(state.position + 1), None


@pytest.fixture(scope="module")
def found():
    """Eight runs on ten dimensions."""
    parts, evidence, mean, covariance = regression(10, 30)
    move = partial(mcmc.hmc, num_integration_steps=3, jitter=0.5)
    return repeats(smc.tempered(move=move, waste_free=16, **parts), 16, max_steps=30), evidence, mean, covariance


def test_the_evidence_and_posterior_of_a_regression(found):
    run, evidence, mean, covariance = found
    assert run.state.done.all()
    estimates = run.state.log_evidence
    assert abs(estimates.mean() - evidence) < 0.1
    assert np.abs(estimates - evidence).max() < 5 * np.sqrt(run.state.log_evidence_variance.mean())
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / 4)
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)
    assert np.ptp(run.state.population.log_weights) == 0
    assert (run.info.num_moves[:, 0] == 15).all()


def test_on_a_fixed_ladder_the_evidence_is_unbiased_and_its_variance_known():
    parts, evidence, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.6, inverse_mass_matrix=1.0)
    ladder = [0.01, 0.05, 0.2, 0.5, 1.0]
    algorithm = smc.tempered(move=move, **parts, particles=512, inverse_temperatures=ladder, waste_free=16)
    run = repeats(algorithm, 400, max_steps=10)
    assert (run.num_steps == 5).all()
    logs = run.state.log_evidence.astype(float)
    ratios = np.exp(logs - evidence)
    error = ratios.std() / np.sqrt(ratios.size)
    assert error < 0.03
    assert abs(ratios.mean() - 1) < 3 * error
    assert 0.5 < run.state.log_evidence_variance.mean() / logs.var() < 2


def test_all_states_of_a_chain_are_particles_and_its_first_is_one_of_those_before():
    likelihood = lambda x: jnp.where(x > 0.5, 0.0, -jnp.inf)  # noqa: E731
    algorithm = smc.tempered(
        move=climb, log_prior=jnp.zeros_like, log_likelihood=likelihood, waste_free=4, scheme=smc.systematic
    )
    positions = jnp.arange(12.0) / 12
    state = algorithm.init(positions, jax.random.key(0))
    state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    chains = np.asarray(state.position).reshape(3, 4)
    np.testing.assert_allclose(np.diff(chains, axis=1), 1, atol=1e-5)
    eves = np.asarray(state.eves).reshape(3, 4)
    np.testing.assert_array_equal(eves, np.repeat(eves[:, :1], 4, axis=1))
    np.testing.assert_allclose(chains[:, 0], positions[eves[:, 0]], atol=1e-6)
    assert (chains[:, 0] > 0.5).all()
    assert len(set(eves[:, 0])) == 3  # of five that are possible
    assert float(state.log_evidence) == pytest.approx(np.log(5 / 12), abs=1e-5)
    assert info.num_moves == 3
    assert float(info.correlation) == pytest.approx(1)


def test_the_variance_is_what_chains_differ_by_at_all_temperatures_together():
    parts, _, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.5)
    algorithm = smc.tempered(move=move, **parts, particles=256, waste_free=8, scheme=smc.systematic)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(0))
    assert state.log_evidence_variance == 0
    total, beta = 0.0, 0.0
    for time in range(3):
        tilts = np.asarray(jax.vmap(parts["log_likelihood"])(state.position), float)
        state, _ = step(jax.random.key(time), state)
        means = np.exp((float(state.inverse_temperature) - beta) * tilts).reshape(32, 8).mean(1)
        total, beta = total + means.var(ddof=1) / 32 / means.mean() ** 2, float(state.inverse_temperature)
        assert float(state.log_evidence_variance) == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value, x64):
    algorithm = smc.tempered(
        move=partial(mcmc.random_walk_metropolis, step_size=1.0),
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x: value + 0 * x,
        sample_prior=lambda key: jax.random.normal(key, dtype=float),
        particles=8,
        waste_free=2,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.state.done
    np.testing.assert_equal(float(run.state.log_evidence), value)
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()
    assert run.state.position.dtype == run.state.log_evidence_variance.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "number", "words"),
    [
        ({"waste_free": 1}, 8, "waste_free is 1; expected a whole number, 2 or more"),
        ({"waste_free": 3}, 8, "waste_free is 3; expected a number that divides 8 particles"),
        ({"waste_free": 8}, 8, "into two or more chains"),
        ({"waste_free": 4, "moves": 2}, 8, "moves is 2; expected None with waste_free"),
    ],
)
def test_chains_that_do_not_fit_are_told_in_one_line(options, number, words):
    with pytest.raises(ValueError, match=words) as caught:
        smc.tempered(log_prior=jnp.sum, log_likelihood=jnp.sum, **options).init(jnp.zeros(number), jax.random.key(0))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.tempered: ")
