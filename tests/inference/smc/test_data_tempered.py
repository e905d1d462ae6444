"""Data tempering against conjugate posteriors and predictive densities in closed form, computed by NumPy and SciPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import models
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, smc
from tests.inference.smc._regression import moments, regression_by_datum, repeats

WALK = partial(mcmc.random_walk_metropolis, step_size=0.5)


def normal_mean(data, **options):
    """Data y ~ N(x, 1) of a mean x ~ N(0, 1)."""
    options = {"sample_prior": jax.random.normal, "move": WALK, "particles": 128} | options
    return smc.data_tempered(
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x, y: -0.5 * (y - x) ** 2 - 0.5 * np.log(2 * np.pi),
        data=jnp.asarray(data, jnp.float32),
        **options,
    )


@pytest.mark.slow
def test_the_evidence_and_posterior_of_a_regression_in_ten_dimensions():
    parts, evidences, mean, covariance = regression_by_datum(10, 30)
    move = partial(mcmc.hmc, num_integration_steps=3, jitter=0.5)
    run = repeats(smc.data_tempered(move=move, particles=4096, **parts), 16, max_steps=30)
    assert run.state.done.all()
    estimates = run.state.log_evidence
    assert abs(estimates.mean() - evidences[-1]) < 0.1
    assert np.abs(estimates - evidences[-1]).max() < 5 * np.sqrt(run.state.log_evidence_variance.mean())
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / 4)
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)
    # What every datum adds, in the standard error of its mean.
    errors = np.diff(run.info.log_evidence - evidences, axis=1)
    assert np.abs(errors.mean(0) / (errors.std(0, ddof=1) / 4)).max() < 5  # 29 times


@pytest.mark.slow
def test_the_evidence_of_a_regression_in_ten_dimensions_by_default():
    parts, evidences, _, covariance = regression_by_datum(10, 30)
    run = repeats(smc.data_tempered(particles=1024, **parts), 32, max_steps=30)
    errors = run.state.log_evidence.astype(float) - evidences[-1]
    # Its standard deviation is 0.18; all at once the first data say so much that it was 0.36, and the mean -0.19.
    assert abs(errors.mean()) < 0.1
    assert errors.std(ddof=1) < 0.28
    _, variances = moments(run.state.population)
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)


@pytest.fixture(scope="module", params=[None, 8])
def many(request):
    """Hundreds of runs on two dimensions and six data, with and without chains."""
    parts, evidences, mean, covariance = regression_by_datum(2, 6)
    move = partial(mcmc.random_walk_metropolis, step_size=1.0)
    options = {"moves": 6} if request.param is None else {"waste_free": request.param, "scheme": smc.systematic}
    algorithm = smc.data_tempered(move=move, particles=512, **options, **parts)
    return repeats(algorithm, 200, max_steps=8), evidences, mean, covariance


def test_the_evidence_after_each_datum_and_its_variance(many):
    run, evidences, _, _ = many
    assert (run.num_steps == 6).all()
    assert run.state.done.all()
    np.testing.assert_array_equal(run.info.num_data[0], [1, 2, 3, 4, 5, 6, 0, 0])
    ratios = np.exp(run.info.log_evidence[:, :6].astype(float) - evidences)
    errors = ratios.std(0, ddof=1) / np.sqrt(200)
    assert errors.max() < 0.03
    assert np.abs((ratios.mean(0) - 1) / errors).max() < 4  # six that depend on each other
    increments = np.diff(run.info.log_evidence[:, :6], axis=1, prepend=0)
    np.testing.assert_allclose(run.info.log_predictive[:, :6], increments, atol=1e-5)
    logs = run.state.log_evidence.astype(float)
    np.testing.assert_allclose(logs, run.info.log_evidence[:, 5])
    # Two hundred runs give a variance to a tenth.
    assert 0.5 < run.state.log_evidence_variance.mean() / logs.var(ddof=1) < 2


def test_what_it_returns_is_equally_weighted(many):
    run, _, mean, covariance = many
    assert np.ptp(run.state.population.log_weights) == 0
    assert run.info.resampled[:, 5].all()
    means, variances = moments(run.state.population)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / np.sqrt(200))
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(np.diag(covariance)), rtol=0.03)


def test_particles_are_moved_where_few_are_effective_and_after_the_last_datum(many):
    run, _, _, _ = many
    few = run.info.effective_sample_size[:, :6] < 0.5
    few[:, 5] = True
    assert 0 < few[:, :5].mean() < 1
    np.testing.assert_array_equal(run.info.resampled[:, :6], few)
    np.testing.assert_array_equal(run.info.num_moves[:, :6] > 0, few)
    np.testing.assert_array_equal(np.isnan(run.info.acceptance_rate[:, :6]), ~few)
    # A datum that says very much is taken in by powers of its likelihood.
    assert (run.state.resamplings > few.sum(1)).any()
    assert (run.state.resamplings <= 3 * few.sum(1)).all()


def test_weights_are_carried_from_datum_to_datum():
    data = [0.5, -1.0, 1.5, 0.2]
    algorithm = normal_mean(data, effective_sample_size=0.05)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(0))
    draws = np.asarray(state.position, float)
    for time in range(1, 5):
        state, info = step(jax.random.key(time), state)
        logs = stats.norm.logpdf(np.expand_dims(data[:time], 1), draws).sum(0)
        weights = np.exp(logs)
        assert float(state.log_evidence) == pytest.approx(np.log(weights.mean()), abs=1e-4)
        effective = weights.sum() ** 2 / (weights**2).sum() / 128
        assert float(info.effective_sample_size) == pytest.approx(effective, rel=1e-3)
        variance = weights.var(ddof=1) / 128 / weights.mean() ** 2  # of a mean of independent numbers
        assert float(state.log_evidence_variance) == pytest.approx(variance, rel=1e-3)
        if time < 4:
            np.testing.assert_array_equal(state.position, draws.astype(np.float32))
            np.testing.assert_allclose(state.population.weights, weights / weights.sum(), rtol=1e-3, atol=1e-7)
    assert state.done
    assert info.resampled
    assert not np.array_equal(state.position, draws.astype(np.float32))


def test_chains_add_the_variance_of_each_time_they_are_resampled():
    data = [1.0, 1.5, 4.0, 0.0, 1.9]
    algorithm = normal_mean(data, waste_free=16, scheme=smc.systematic, effective_sample_size=0.6)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(0))
    moved, rests = [], []
    for time, datum in enumerate(data):
        before, logs = state, np.asarray(state.population.log_weights, float)
        means = np.exp(logs + stats.norm.logpdf(datum, np.asarray(state.position, float))).reshape(8, 16).mean(1)
        state, info = step(jax.random.key(time), state)
        moved.append(int(state.resamplings - before.resamplings))
        if info.effective_sample_size >= 0.6:  # at once, with the weights of those before
            variance = means.var(ddof=1) / 8 / means.mean() ** 2
            whole = float(before.variance_when_moved) + variance
            assert float(state.log_evidence_variance) == pytest.approx(whole, rel=1e-3)
            rests.append(float(before.variance_when_moved))
        if moved[-1]:
            assert state.variance_when_moved > before.variance_when_moved
            assert (np.asarray(state.eves).reshape(8, 16) == np.asarray(state.eves).reshape(8, 16)[:, :1]).all()
        else:
            assert state.variance_when_moved == before.variance_when_moved
    assert moved[-1] == 1
    assert 0 in moved
    assert sum(moved[:-1]) > 0
    assert max(rests) > 0


def test_a_datum_that_says_very_much_is_taken_in_by_powers():
    """One normal datum with a noise of 0.01: all at once hardly any draw of the prior is left."""
    algorithm = smc.data_tempered(
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x, y: -0.5 * ((y - x) / 0.01) ** 2 - np.log(0.01 * np.sqrt(2 * np.pi)),
        data=jnp.array([1.0, 1.01, 1.0]),
        sample_prior=jax.random.normal,
        move=mcmc.random_walk_metropolis,
        particles=256,
    )
    run = repeats(algorithm, 32, max_steps=4)
    marginal = 1 + 1e-4 * np.eye(3)
    exact = [stats.multivariate_normal(cov=marginal[:n, :n]).logpdf([1.0, 1.01, 1.0][:n]) for n in (1, 2, 3)]
    errors = run.info.log_evidence[:, :3].astype(float) - exact
    assert run.info.effective_sample_size[:, 0].max() < 0.05
    assert run.state.resamplings.min() > 4
    assert run.info.num_moves[:, 0].min() > run.info.num_moves[:, 1].max()
    # Each of about six powers has a relative variance of one in 256: 0.15 is what a run may be off by.
    assert errors.std(0).max() < 0.3
    assert np.abs(errors.mean(0) / (errors.std(0, ddof=1) / np.sqrt(32))).max() < 4.5
    draws = run.state.position
    assert draws.mean() == pytest.approx(1.0033, abs=0.001)
    assert draws.std() == pytest.approx(0.01 / np.sqrt(3), rel=0.05)


def test_data_that_are_impossible_for_nearly_all_are_taken_in_at_the_first_power():
    """Where one particle in ten is possible, those are what a share is a share of."""
    algorithm = smc.data_tempered(
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x, y: jnp.where(x > y, 0.0, -jnp.inf),
        data=jnp.array([float(stats.norm.ppf(0.9))]),
        sample_prior=jax.random.normal,
        move=WALK,
        particles=512,
        moves=2,
    )
    run = repeats(algorithm, 4, max_steps=2)
    assert (run.state.position > stats.norm.ppf(0.9)).all()
    assert run.state.log_evidence.mean() == pytest.approx(np.log(0.1), abs=0.2)
    assert (run.state.resamplings == 1).all()


def test_a_batch_need_not_divide_the_data_and_one_datum_will_do():
    data = np.array([0.5, -1.0, 1.5, 0.2, 0.8])
    exact = [stats.multivariate_normal(cov=np.eye(n) + 1).logpdf(data[:n]) for n in (3, 5)]
    run = repeats(normal_mean(data, batch=3, particles=1024, moves=2), 16, max_steps=4)
    assert (run.num_steps == 2).all()
    np.testing.assert_array_equal(run.info.num_data[0], [3, 5, 0, 0])
    errors = run.info.log_evidence[:, :2] - exact
    assert np.abs(errors).max() < 0.3
    assert np.abs(errors.mean(0) / (errors.std(0, ddof=1) / 4)).max() < 4.5
    draws = run.state.position.ravel()
    assert draws.mean() == pytest.approx(data.sum() / 6, abs=0.03)
    assert draws.std() == pytest.approx(np.sqrt(1 / 6), rel=0.03)
    one = repeats(normal_mean(data[:1], batch=3, particles=1024, moves=2), 4, max_steps=4)
    assert (one.num_steps == 1).all()
    assert np.abs(one.state.log_evidence - stats.norm(scale=np.sqrt(2)).logpdf(0.5)).max() < 0.1


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value):
    algorithm = smc.data_tempered(
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x, y: y + 0 * x,
        data=jnp.array([0.0, value, 0.0]),
        sample_prior=jax.random.normal,
        move=WALK,
        particles=8,
        moves=1,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm, max_steps=5))(jax.random.key(0))
    assert run.state.done
    assert run.num_steps == 3
    np.testing.assert_array_equal(run.info.log_evidence[:3], [0.0, value, value])
    np.testing.assert_array_equal(run.info.log_predictive[:2], [0.0, value])
    assert run.info.resampled[1]
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()
    assert np.isfinite(run.state.population.log_weights).all()


def test_particles_with_an_impossible_likelihood_do_not_count():
    least = stats.norm.ppf(0.9)
    algorithm = smc.data_tempered(
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x, y: jnp.where(x > y, 0.0, jnp.where(y < 0, jnp.nan, -jnp.inf)),
        data=jnp.array([least, 0.0]),
        sample_prior=jax.random.normal,
        move=WALK,
        effective_sample_size=0.05,
        moves=2,
    )
    run = repeats(algorithm, 8, max_steps=2)
    assert not run.info.resampled[:, 0].any()
    assert (run.state.position > least).all()
    assert run.state.log_evidence.mean() == pytest.approx(np.log(0.1), abs=0.1)


def test_data_to_come_do_not_spoil_the_moves():
    # The gradient of the likelihood of an infinite datum is infinite, and infinite times zero is no number.
    algorithm = normal_mean([1.0, np.inf], move=mcmc.mala, effective_sample_size=0.999, moves=3)
    state, info = jax.jit(algorithm.step)(jax.random.key(1), algorithm.init(None, jax.random.key(0)))
    assert info.resampled
    assert info.acceptance_rate > 0.3
    assert np.isfinite(state.position).all()


def test_nothing_changes_once_it_is_done(x64):
    positions = np.random.default_rng(0).normal(size=(32, 3))
    algorithm = smc.data_tempered(
        log_prior=lambda x: -0.5 * jnp.sum(x**2),
        log_likelihood=lambda x, y: -0.1 * jnp.sum((x - y) ** 2),
        data=jnp.zeros((1, 3)),
        move=mcmc.mala,
        moves=2,
    )
    step = jax.jit(algorithm.step)
    state, _ = step(jax.random.key(1), algorithm.init(jnp.asarray(positions), jax.random.key(0)))
    assert state.done
    assert state.position.shape == (32, 3)
    assert state.position.dtype == state.log_evidence.dtype == np.float64
    mean = np.log(np.exp(-0.1 * (positions**2).sum(1)).mean())
    assert float(state.log_evidence) == pytest.approx(mean, rel=1e-12)
    again, info = step(jax.random.key(2), state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert not info.resampled
    assert info.log_predictive == 0


@models.joint
def two_series(n):
    mean = yield "mean", Normal(0.0, 1.0)
    yield "y", Normal(jnp.full(n, mean), 1.0)
    yield "z", Normal(jnp.full((n, 2), 2 * mean), 1.0)


def test_a_conditioned_model_whose_observations_have_one_axis_is_a_stream_of_data():
    y, z = np.array([0.5, -0.3, 1.0]), np.array([[0.8, 1.1], [0.2, -0.4], [1.7, 0.9]])
    algorithm = smc.data_tempered(two_series(3).condition(y=y, z=z), particles=512, moves=3)
    run = repeats(algorithm, 16, max_steps=3)
    rows, loads = np.column_stack([y, z]).ravel(), np.tile([1, 2, 2], 3)
    exact = [
        stats.multivariate_normal(cov=np.eye(n) + np.outer(loads[:n], loads[:n])).logpdf(rows[:n]) for n in (3, 6, 9)
    ]
    errors = run.info.log_evidence - exact
    assert np.abs(errors).max() < 0.5
    assert np.abs(errors.mean(0) / (errors.std(0, ddof=1) / 4)).max() < 4.5
    waiting = smc.data_tempered(particles=16, batch=2)
    state = waiting(two_series(3).condition(y=y, z=z)).init(None, jax.random.key(0))
    assert state.position["mean"].shape == (16,)


@models.joint
def one_number():
    mean = yield "mean", Normal(0.0, 1.0)
    yield "y", Normal(mean, 1.0)


GOOD = {"log_prior": jnp.sum, "log_likelihood": lambda x, y: jnp.sum(x), "data": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_prior": None}, TypeError, "log_prior is None; expected a function"),
        ({"log_likelihood": 3}, TypeError, "log_likelihood is 3; expected a function"),
        ({"sample_prior": 3}, TypeError, "sample_prior is 3; expected a function"),
        ({"data": None}, ValueError, "data is without data that have one leading axis in common"),
        ({"data": jnp.zeros(())}, ValueError, "data is without data"),
        ({"data": jnp.zeros((0, 2))}, ValueError, "data is without data"),
        ({"data": {"a": jnp.zeros(2), "b": jnp.zeros(3)}}, ValueError, "data is without data"),
        ({"posterior": one_number().condition(y=1.0)}, TypeError, "log_prior is given with a posterior"),
        ({"posterior": jnp.sum, "log_prior": None, "log_likelihood": None, "data": None}, TypeError, "a conditioned"),
        ({"batch": 0}, ValueError, "batch is 0"),
        ({"particles": 1}, ValueError, "particles is 1; expected a whole number, 2 or more"),
        ({"effective_sample_size": 1.0}, ValueError, "effective_sample_size is 1.0; expected a share"),
        ({"waste_free": 1}, ValueError, "waste_free is 1"),
        ({"scheme": 3}, TypeError, "scheme is 3; expected a function"),
    ],
)
def test_bad_arguments_are_told_in_one_line(change, error, words):
    with pytest.raises(error, match=words) as caught:
        smc.data_tempered(**(GOOD | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.data_tempered: ")


def test_a_model_without_an_axis_of_data_is_told_in_one_line():
    with pytest.raises(ValueError, match="posterior is without data that have one leading axis in common"):
        smc.data_tempered(one_number().condition(y=1.0))
    with pytest.raises(ValueError, match="waste_free is 6; expected a number that divides 32 particles"):
        smc.data_tempered(**GOOD, waste_free=6).init(jnp.zeros(32), jax.random.key(0))
