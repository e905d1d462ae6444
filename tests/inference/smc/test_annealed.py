"""Annealed importance sampling against closed forms and weights computed by NumPy."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import core, models
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, smc
from tests.inference.smc._regression import moments, regression, repeats


class Place(NamedTuple):
    position: jax.Array


def shift(log_density, step_size=0.0):
    """A move that leaves no density as it is: it goes a step up."""
    return core.Algorithm(lambda position, key: Place(position), lambda key, state: shifted(state, step_size))


def shifted(state, step_size):
    return Place(state.position + step_size), None


@pytest.mark.slow
def test_the_evidence_and_posterior_of_a_regression_in_ten_dimensions():
    parts, evidence, mean, covariance = regression(10, 30)
    ladder = np.linspace(0, 1, 101)[1:] ** 4
    move = partial(mcmc.hmc, num_integration_steps=3, jitter=0.5, inverse_mass_matrix=covariance.astype(np.float32))
    algorithm = smc.annealed(
        move=move, inverse_temperatures=ladder, step_size=0.5 / np.sqrt(ladder + 0.01), moves=4, **parts
    )
    run = repeats(algorithm, 16)
    assert run.state.done.all()
    assert abs(run.state.log_evidence.mean() - evidence) < 0.1
    assert run.info.effective_sample_size[:, -1].mean() > 0.1
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / 4)
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)


@pytest.mark.slow
def test_the_default_moves_suit_a_posterior_narrower_than_its_prior():
    parts, evidence, mean, covariance = regression(10, 30)
    run = repeats(smc.annealed(**parts), 16)
    errors = run.state.log_evidence - evidence
    assert abs(errors.mean()) < 0.1
    assert run.info.effective_sample_size[:, 99].mean() > 0.04
    weights = np.exp(run.state.population.log_weights.astype(float))
    squares = (np.expand_dims(weights, -1) * (run.state.position - mean) ** 2).sum(1) / np.diag(covariance)
    z = (squares.mean(0) - 1) / (squares.std(0, ddof=1) / 4)
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    np.testing.assert_allclose(np.sqrt(squares.mean()), 1, atol=0.03)


def test_moves_are_tuned_to_each_temperature():
    parts, evidence, _, covariance = regression(10, 30)
    run = repeats(smc.annealed(particles=512, **parts), 2)
    # Of a posterior as narrow as 0.04 and a prior of 1.
    assert (np.abs(run.info.acceptance_rate[:, 50:100] - 0.8) < 0.1).all()
    assert (np.abs(run.state.step_size - 0.9) < 0.3).all()
    assert np.abs(run.state.log_evidence - evidence).max() < 1.5
    deviations = run.state.pilot.std(1).mean(0)
    np.testing.assert_allclose(deviations, np.sqrt(np.diag(covariance)), rtol=0.25)


def test_the_pilot_is_of_particles_of_their_own_and_of_those_given():
    parts, _, _, _ = regression(2, 5)
    algorithm = smc.annealed(particles=64, **parts)
    state = algorithm.init(None, jax.random.key(0))
    assert state.pilot.shape == (16, 2)
    assert not np.isin(state.pilot, state.position).any()
    given = algorithm.init(state.position, jax.random.key(0))
    np.testing.assert_array_equal(given.pilot, state.position[:16])
    assert smc.annealed(step_size=0.1, **parts).init(None, jax.random.key(0)).pilot is None
    # What the pilot is tells the particles only how to move.
    step = jax.jit(algorithm.step)
    one, _ = step(jax.random.key(1), state)
    other, _ = step(jax.random.key(1), state._replace(pilot=0.1 * state.pilot))
    np.testing.assert_array_equal(one.population.log_weights, other.population.log_weights)
    assert one.log_evidence == other.log_evidence
    assert not np.array_equal(one.position, other.position)


@pytest.mark.parametrize("pilot", [False, True])
def test_the_evidence_is_unbiased_and_its_variance_known(pilot):
    parts, evidence, mean, covariance = regression(2, 5)
    ladder = np.geomspace(0.003, 1, 12)
    algorithm = smc.annealed(
        move=mcmc.random_walk_metropolis,
        particles=512,
        inverse_temperatures=ladder,
        step_size=None if pilot else 1 / np.sqrt(1 + 20 * ladder),
        moves=2,
        **parts,
    )
    run = repeats(algorithm, 400, max_steps=20)
    assert (run.num_steps == 12).all()
    np.testing.assert_allclose(run.info.inverse_temperature[0, :12], ladder, rtol=1e-6)
    logs = run.state.log_evidence.astype(float)
    np.testing.assert_allclose(logs, run.info.log_evidence[:, 11])
    ratios = np.exp(logs - evidence)
    error = ratios.std() / np.sqrt(ratios.size)
    assert error < 0.03
    assert abs(ratios.mean() - 1) < 3 * error
    assert 0.5 < run.state.log_evidence_variance.mean() / logs.var() < 2
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / 20)
    assert np.abs(z).max() < 4 + 20 * 2 / 512  # a ratio of means is biased by some 1 / particles
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)


def test_without_moves_the_weights_are_the_likelihood():
    algorithm = smc.annealed(
        move=shift,
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x: -0.5 * (x - 1) ** 2,
        inverse_temperatures=[0.2, 0.7, 1.0],
        step_size=1e-30,
    )
    positions = np.random.default_rng(0).normal(size=64)
    state = algorithm.init(jnp.asarray(positions, jnp.float32), jax.random.key(0))
    step = jax.jit(algorithm.step)
    for beta in (0.2, 0.7, 1.0, 1.0):  # once more than there are
        before = state
        state, info = step(jax.random.key(0), state)
        weights = np.exp(-beta * 0.5 * (positions - 1) ** 2)
        np.testing.assert_allclose(state.population.weights, weights / weights.sum(), rtol=1e-4)
        assert float(state.log_evidence) == pytest.approx(np.log(weights.mean()), abs=1e-5)
        assert float(state.population.log_evidence) == pytest.approx(np.log(weights.mean()), abs=1e-5)
        effective = weights.sum() ** 2 / (weights**2).sum() / 64
        assert float(info.effective_sample_size) == pytest.approx(effective, rel=1e-4)
        variance = weights.var(ddof=1) / 64 / weights.mean() ** 2
        assert float(state.log_evidence_variance) == pytest.approx(variance, rel=1e-3)
        assert float(info.inverse_temperature) == pytest.approx(beta)
    jax.tree.map(np.testing.assert_array_equal, before, state)


def test_every_temperature_has_its_step_size_and_weighs_before_it_moves():
    algorithm = smc.annealed(
        move=shift,
        log_prior=jnp.zeros_like,
        log_likelihood=lambda x: x,
        inverse_temperatures=[0.1, 0.4, 1.0],
        step_size=[1.0, 10.0, 100.0],
        moves=2,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0), position=jnp.zeros(4))
    np.testing.assert_allclose(run.state.position, 222)
    assert float(run.state.log_evidence) == pytest.approx(0.1 * 0 + 0.3 * 2 + 0.6 * 22, rel=1e-5)


def test_particles_with_an_impossible_likelihood_do_not_count():
    least = stats.norm.ppf(0.9)
    algorithm = smc.annealed(
        move=mcmc.random_walk_metropolis,
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x: jnp.where(x > least, 0.0, -jnp.inf),
        sample_prior=jax.random.normal,
        inverse_temperatures=[0.5, 1.0],
        moves=2,
    )
    run = repeats(algorithm, 8, max_steps=5)
    positions, weights = run.state.position, np.exp(run.state.population.log_weights)
    # Some have moved to where they are possible, and yet do not count.
    assert ((positions > least) & (weights == 0)).any()
    assert (positions[weights > 0] > least).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-4)
    assert run.state.log_evidence.mean() == pytest.approx(np.log(0.1), abs=0.1)
    np.testing.assert_allclose(run.info.effective_sample_size[:, 1], np.exp(run.state.log_evidence), rtol=1e-3)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value, x64):
    algorithm = smc.annealed(
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x: value + 0 * x,
        sample_prior=lambda key: jax.random.normal(key, dtype=float),
        inverse_temperatures=[0.5, 1.0],
        particles=8,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.state.done
    assert run.num_steps == 2
    np.testing.assert_equal(float(run.state.log_evidence), value)
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()
    assert np.isfinite(run.state.population.log_weights).all()
    assert run.state.position.dtype == run.state.log_evidence.dtype == np.float64


@models.joint
def normal_mean(n):
    mean = yield "mean", Normal(0.0, 1.0)
    yield "y", Normal(jnp.full(n, mean), 1.0)


def test_a_conditioned_model_is_a_target_by_itself():
    y = np.array([0.5, -0.3, 1.0])
    waiting = smc.annealed(particles=256, inverse_temperatures=[0.1, 0.4, 1.0])
    run = repeats(waiting(normal_mean(3).condition(y=y)), 16, max_steps=4)
    errors = run.state.log_evidence - stats.multivariate_normal(cov=np.eye(3) + 1).logpdf(y)
    assert np.abs(errors).max() < 0.5
    assert abs(errors.mean()) < 4.5 * errors.std(ddof=1) / 4


GOOD = {"log_prior": jnp.sum, "log_likelihood": jnp.sum, "inverse_temperatures": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_prior": 3}, TypeError, "log_prior is 3; expected a function"),
        ({"posterior": jnp.sum}, TypeError, "posterior is given with a prior and a likelihood"),
        ({"move": 3}, TypeError, "move is 3; expected a function"),
        ({"particles": 1}, ValueError, "particles is 1; expected a whole number, 2 or more"),
        ({"moves": None}, ValueError, "moves is None; expected an integer of at least 1"),
        ({"inverse_temperatures": [0.5, 0.2, 1.0]}, ValueError, "increase to 1"),
        ({"step_size": -1.0}, ValueError, "step_size is -1.0; expected a positive number"),
        ({"step_size": [1.0, 1.0, 1.0]}, ValueError, "step_size is .*; expected one positive number, or 2"),
        ({"step_size": [1.0, 0.0]}, ValueError, "step_size is .*; expected one positive number, or 2"),
        ({"move": partial(mcmc.hmc, step_size=0.1), "step_size": 0.1}, ValueError, "expected None where"),
    ],
)
def test_bad_arguments_are_told_in_one_line(change, error, words):
    with pytest.raises(error, match=words) as caught:
        smc.annealed(**(GOOD | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.annealed: ")
