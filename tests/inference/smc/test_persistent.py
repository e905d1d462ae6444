"""Persistent sampling against closed forms and mixture weights computed by NumPy in double precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import models
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, smc
from tests.inference.smc._regression import moments, regression, repeats


@pytest.fixture(scope="module")
def found():
    """Sixteen runs on ten dimensions."""
    parts, evidence, mean, covariance = regression(10, 30)
    move = partial(mcmc.hmc, num_integration_steps=3, jitter=0.5)
    return repeats(smc.persistent(move=move, max_steps=40, **parts), 16), evidence, mean, covariance


def test_the_evidence_and_posterior_of_a_regression(found):
    run, evidence, mean, covariance = found
    assert run.state.done.all()
    estimates = run.state.log_evidence
    assert abs(estimates.mean() - evidence) < 0.1
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / 4)
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)


def test_there_are_more_effective_particles_than_a_generation_has(found):
    run, _, _, _ = found
    for number, info in zip(run.num_steps, zip(*run.info, strict=True), strict=True):
        info = smc.PersistentInfo(*info)
        assert 3 < number < 40
        assert (np.diff(info.inverse_temperature[:number]) >= 0).all()
        assert info.inverse_temperature[number - 1] == 1
        # Two generations there are not before the second temperature, which is the prior's once more.
        assert info.inverse_temperature[0] == 0
        assert info.effective_sample_size[0] == pytest.approx(1)
        later = info.effective_sample_size[1:number]
        assert (later[info.inverse_temperature[1:number] < 1] < 2.02).all()
        assert later[-1] >= 2
        assert np.median(later) == pytest.approx(2, rel=0.02)
    counted = np.isfinite(run.state.population.log_weights).sum(1)
    np.testing.assert_array_equal(counted, 256 * (run.num_steps + 1))
    weights = np.exp(run.state.population.log_weights.astype(float))
    assert (1 / (weights**2).sum(1) > 2.5 * 256).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-3)


@pytest.mark.parametrize("size", [0.6, 1.5])
def test_every_temperature_weighs_all_particles_as_a_mixture(size):
    parts, _, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.5)
    number = 64
    algorithm = smc.persistent(move=move, **parts, particles=number, effective_sample_size=size, max_steps=9, moves=4)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(0))
    betas, logs = [0.0], [0.0]
    for time in range(5):
        if state.done:
            break
        there = np.asarray(state.position, float)[: number * (time + 1)]
        tilts = np.asarray(jax.vmap(parts["log_likelihood"])(jnp.asarray(there, jnp.float32)), float)

        def weights_at(beta, tilts):
            densities = np.exp(np.outer(tilts, betas) - np.expand_dims(logs, 0))
            return np.exp(beta * tilts) / densities.sum(1)

        before, (state, info) = state, step(jax.random.key(time), state)
        beta = float(state.inverse_temperature)
        weights = weights_at(beta, tilts)
        assert float(state.log_evidence) == pytest.approx(np.log(weights.sum() / number), abs=2e-3)
        effective = weights.sum() ** 2 / (weights**2).sum() / number
        assert float(info.effective_sample_size) == pytest.approx(effective, rel=2e-3)
        if beta > betas[-1]:
            assert effective == pytest.approx(size, rel=2e-3) or beta == 1
        else:
            assert effective < size
        np.testing.assert_array_equal(state.position[: there.shape[0]], before.position[: there.shape[0]])
        new = np.asarray(state.position, float)[there.shape[0] : there.shape[0] + number]
        assert not np.array_equal(new, np.asarray(before.position)[there.shape[0] : there.shape[0] + number])
        betas.append(beta)
        logs.append(float(state.log_evidence))
        tilts = np.append(tilts, np.asarray(jax.vmap(parts["log_likelihood"])(jnp.asarray(new, jnp.float32)), float))
        weights = weights_at(beta, tilts)
        expected = np.zeros(10 * number)
        expected[: weights.size] = weights / weights.sum()
        np.testing.assert_allclose(state.population.weights, expected, rtol=0.01, atol=1e-6)
        assert float(state.population.log_evidence) == pytest.approx(logs[-1], abs=1e-4)
    assert len(betas) > 3


def test_the_evidence_is_hardly_biased_and_varies_less_than_that_of_one_generation():
    parts, evidence, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.6)
    algorithm = smc.persistent(move=move, **parts, particles=128, effective_sample_size=1.0, max_steps=20, moves=5)
    state = repeats(algorithm, 100, max_steps=20).state
    logs = state.log_evidence.astype(float)
    ratios = np.exp(logs - evidence)
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / 10 + 2 / 128
    # A hundred runs give a variance to a seventh.
    assert 0.6 < state.log_evidence_variance.mean() / logs.var(ddof=1) < 1.6
    alone = smc.tempered(move=move, **parts, particles=128, moves=5, scheme=smc.systematic)
    assert logs.std() < 0.9 * repeats(alone, 100, seed=1, max_steps=20).state.log_evidence.std()


def influences(tilts, betas, logs):
    """Derivatives of the last log evidence by how often particles are there, and the evidence, in closed form."""
    last, number = len(tilts) - 1, tilts.shape[1]
    powers = np.stack([beta * tilts if beta else np.zeros_like(tilts) for beta in betas])
    relative = powers - np.reshape(logs, (-1, 1, 1))
    direct, through = np.zeros((last + 1, *tilts.shape)), np.zeros((last + 1, last + 1))
    for t in range(1, last + 1):
        shares = np.exp(relative[:t, :t] - np.logaddexp.reduce(relative[:t, :t], axis=0))
        direct[t, :t] = np.exp(relative[t, :t]) / np.exp(relative[:t, :t]).sum(0) / number
        through[t, :t] = (direct[t, :t] * shares).sum((1, 2))
    whole = np.zeros_like(direct)
    for t in range(1, last + 1):
        whole[t] = direct[t] + np.tensordot(through[t], whole, 1)
    return whole[last], logs[-1] + np.log(direct[last].sum())


@pytest.mark.parametrize("bound", [-np.inf, -3.0])
def test_the_variance_is_that_of_the_influence_of_every_particle(bound):
    """Also where some particles are impossible."""
    parts, _, _, _ = regression(2, 5)
    likelihood = parts["log_likelihood"]
    parts["log_likelihood"] = lambda q: jnp.where(q[0] > bound, likelihood(q), -jnp.inf)
    move = partial(mcmc.random_walk_metropolis, step_size=0.6)
    algorithm = smc.persistent(move=move, **parts, particles=32, effective_sample_size=0.8, max_steps=12, moves=3)
    init, step = algorithm
    first, again, *keys = jax.random.split(jax.random.key(0), 14)
    state = init(None, first)
    if bound > -4:
        state = init(state.position[:32].at[3, 0].set(-9.0), again)
    for key in keys:
        assert np.isnan(state.log_evidence_variance)
        state, _ = jax.jit(step)(key, state)
        if state.done:
            break
    last = int(state.steps)
    assert 2 < last < 12
    assert np.isinf(state.tilts[0, 3]) == (bound > -4)
    tilts, betas, logs = (np.asarray(x, float)[: last + 1] for x in state[1:2] + state[3:5])
    influence, log_evidence = influences(tilts, betas, logs)
    assert log_evidence == pytest.approx(logs[-1], abs=1e-5)
    expected = (influence.var(axis=1, ddof=1) * 32).sum()
    assert float(state.log_evidence_variance) == pytest.approx(expected, rel=1e-3)


def test_the_last_step_goes_to_the_posterior_and_the_info_tells():
    parts, _, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.6)
    algorithm = smc.persistent(move=move, **parts, effective_sample_size=0.9, max_steps=2, moves=1)
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.num_steps == 2
    assert run.state.done
    assert run.info.inverse_temperature[0] < 0.5
    assert run.info.effective_sample_size[0] == pytest.approx(0.9, rel=0.02)
    assert run.info.effective_sample_size[1] < 0.5
    again, info = jax.jit(algorithm.step)(jax.random.key(2), run.state)
    jax.tree.map(np.testing.assert_array_equal, again, run.state)
    assert info.inverse_temperature == 1


def test_particles_with_an_impossible_likelihood_do_not_count():
    least = stats.norm.ppf(0.9)
    algorithm = smc.persistent(
        move=mcmc.random_walk_metropolis,
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x: jnp.where(x > least, 0.0, -jnp.inf),
        sample_prior=jax.random.normal,
        particles=1024,
        effective_sample_size=0.05,
        max_steps=4,
    )
    run = repeats(algorithm, 8)
    assert (run.num_steps == 1).all()
    positions, weights = run.state.position, np.exp(run.state.population.log_weights)
    assert (positions[weights > 0] > least).all()
    # Those of the prior that are possible count among all of them with the weight they should.
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-4)
    assert run.state.log_evidence.mean() == pytest.approx(np.log(0.1), abs=0.1)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value, x64):
    algorithm = smc.persistent(
        move=partial(mcmc.random_walk_metropolis, step_size=1.0),
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x: value + 0 * x,
        sample_prior=lambda key: jax.random.normal(key, dtype=float),
        particles=8,
        max_steps=5,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.state.done
    assert run.num_steps == 1
    np.testing.assert_equal(float(run.state.log_evidence), value)
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()
    weights = np.exp(run.state.population.log_weights)
    np.testing.assert_allclose(weights, np.where(np.arange(48) < 16, 1 / 16, 0))
    assert run.state.position.dtype == run.state.log_evidence.dtype == np.float64


@models.joint
def normal_mean(n):
    mean = yield "mean", Normal(0.0, 1.0)
    yield "y", Normal(jnp.full(n, mean), 1.0)


def test_a_conditioned_model_is_a_target_by_itself():
    y = np.array([0.5, -0.3, 1.0])
    waiting = smc.persistent(particles=256, effective_sample_size=0.8, max_steps=10)
    run = repeats(waiting(normal_mean(3).condition(y=y)), 16)
    errors = run.state.log_evidence - stats.multivariate_normal(cov=np.eye(3) + 1).logpdf(y)
    assert run.state.done.all()
    assert np.abs(errors).max() < 0.5
    assert abs(errors.mean()) < 4.5 * errors.std(ddof=1) / 4 + 2 / 256


GOOD = {"log_prior": jnp.sum, "log_likelihood": jnp.sum}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_prior": 3}, TypeError, "log_prior is 3; expected a function"),
        ({"posterior": jnp.sum}, TypeError, "posterior is given with a prior and a likelihood"),
        ({"particles": 1}, ValueError, "particles is 1; expected a whole number, 2 or more"),
        ({"effective_sample_size": 0.0}, ValueError, "effective_sample_size is 0.0; expected a positive number"),
        ({"max_steps": 0}, ValueError, "max_steps is 0"),
        ({"moves": 0}, ValueError, "moves is 0"),
        ({"scheme": 3}, TypeError, "scheme is 3; expected a function"),
    ],
)
def test_bad_arguments_are_told_in_one_line(change, error, words):
    with pytest.raises(error, match=words) as caught:
        smc.persistent(**(GOOD | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.persistent: ")
