"""Tempered sequential Monte Carlo against conjugate posteriors and evidences in closed form, computed by NumPy."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import core, models
from jaxprob.distributions import Bernoulli, Beta, HalfNormal, Normal
from jaxprob.inference import mcmc, smc
from jaxprob.inference.smc import _moves as moves_of
from tests.inference.smc._regression import regression, repeats


@pytest.fixture(scope="module")
def found():
    """Sixteen runs on ten dimensions."""
    parts, evidence, mean, covariance = regression(10, 30)
    algorithm = smc.tempered(move=partial(mcmc.hmc, num_integration_steps=3, jitter=0.5), **parts)
    return repeats(algorithm, 16, max_steps=30), evidence, mean, covariance


def test_the_evidence_of_a_regression(found):
    run, evidence, _, _ = found
    assert run.state.done.all()
    estimates = run.state.log_evidence
    assert abs(estimates.mean() - evidence) < 0.1
    assert np.abs(estimates - evidence).max() < 5 * np.sqrt(run.state.log_evidence_variance.mean())


def test_the_posterior_of_a_regression(found):
    run, _, mean, covariance = found
    # Of the runs, that are independent: how far their means are from the exact one, in its standard error.
    means = run.state.position.mean(1)
    z = (means.mean(0) - mean) / (means.std(0, ddof=1) / np.sqrt(len(means)))
    assert np.abs(z).max() < 4.5  # Student's t with 15 degrees of freedom, ten times
    draws = run.state.position.reshape(-1, 10)
    deviations = np.sqrt(((draws - mean) ** 2).mean(0))
    np.testing.assert_allclose(deviations, np.sqrt(np.diag(covariance)), rtol=0.03)
    correlation = stats.pearsonr(draws[:, 0], draws[:, 1])[0]
    assert abs(correlation - covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])) < 0.05


def test_every_temperature_but_the_last_meets_the_target(found):
    run, _, _, _ = found
    for number, info in zip(run.num_steps, zip(*run.info, strict=True), strict=True):
        info = smc.TemperedInfo(*info)
        assert 3 < number < 30
        assert (np.diff(info.inverse_temperature[:number]) > 0).all()
        assert info.inverse_temperature[number - 1] == 1
        assert not info.inverse_temperature[number:].any()
        np.testing.assert_allclose(info.effective_sample_size[: number - 1], 0.5, rtol=0.02)
        assert info.effective_sample_size[number - 1] >= 0.5
        assert (info.num_moves[:number] < 30).all()
        assert (info.correlation[:number] <= 0.1).all()
        assert 0.65 < info.acceptance_rate[number - 1] < 0.95


def test_a_step_weighs_its_particles_by_the_difference_of_temperatures():
    parts, _, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.5)
    algorithm = smc.tempered(move=move, **parts, particles=256, effective_sample_size=0.7)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(0))
    log_evidence, beta = 0.0, 0.0
    for time in range(3):
        tilts = np.asarray(jax.vmap(parts["log_likelihood"])(state.position), float)
        eves = np.asarray(state.eves)
        state, info = step(jax.random.key(time), state)
        weights = np.exp((float(state.inverse_temperature) - beta) * tilts)
        # Of pairs of particles that have no forebear in common.
        pairs = np.outer(weights, weights)[np.not_equal.outer(eves, eves)].sum() / weights.sum() ** 2
        assert float(state.log_evidence_variance) == pytest.approx(1 - (256 / 255) ** (time + 1) * pairs, rel=0.01)
        if time == 0:  # the variance of a mean of independent numbers
            exact = weights.var(ddof=1) / 256 / weights.mean() ** 2
            assert float(state.log_evidence_variance) == pytest.approx(exact, rel=0.01)
        log_evidence, beta = log_evidence + np.log(weights.mean()), float(state.inverse_temperature)
        assert beta < 1
        assert weights.sum() ** 2 / (weights**2).sum() / 256 == pytest.approx(0.7, rel=1e-3)
        assert float(info.effective_sample_size) == pytest.approx(0.7, rel=1e-3)
        assert float(state.log_evidence) == pytest.approx(log_evidence, rel=1e-4)
        assert float(state.population.log_evidence) == pytest.approx(log_evidence, rel=1e-4)
        assert np.ptp(np.asarray(state.population.log_weights)) == 0


def test_on_a_fixed_ladder_the_evidence_is_unbiased_and_its_variance_known():
    parts, evidence, _, _ = regression(2, 5)
    move = partial(mcmc.random_walk_metropolis, step_size=0.6, inverse_mass_matrix=1.0)
    ladder = [0.01, 0.05, 0.2, 0.5, 1.0]
    algorithm = smc.tempered(move=move, **parts, particles=256, inverse_temperatures=ladder, moves=4)
    run = repeats(algorithm, 400, max_steps=10)
    assert (run.num_steps == 5).all()
    np.testing.assert_allclose(run.info.inverse_temperature[0, :5], ladder, rtol=1e-6)
    logs = run.state.log_evidence.astype(float)
    ratios = np.exp(logs - evidence)
    error = ratios.std() / np.sqrt(ratios.size)
    assert error < 0.03
    assert abs(ratios.mean() - 1) < 3 * error
    assert 0.5 < run.state.log_evidence_variance.mean() / logs.var() < 2


def test_particles_with_an_impossible_likelihood_do_not_count():
    # Nine in ten are impossible, which is more than a share of one half would allow of all particles.
    least = stats.norm.ppf(0.9)
    algorithm = smc.tempered(
        move=mcmc.random_walk_metropolis,
        log_prior=lambda x: -0.5 * x**2 - 0.5 * np.log(2 * np.pi),
        log_likelihood=lambda x: jnp.where(x > least, 0.0, -jnp.inf),
        sample_prior=jax.random.normal,
        effective_sample_size=0.9,
    )
    run = repeats(algorithm, 8, max_steps=5)
    assert (run.num_steps == 1).all()
    assert run.state.done.all()
    assert (run.state.position > least).all()
    assert run.state.log_evidence.mean() == pytest.approx(np.log(0.1), abs=0.1)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value):
    algorithm = smc.tempered(
        move=partial(mcmc.random_walk_metropolis, step_size=1.0),
        log_prior=lambda x: -0.5 * x**2,
        log_likelihood=lambda x: value + 0 * x,
        sample_prior=jax.random.normal,
        particles=8,
    )
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.state.done
    assert run.num_steps == 1
    np.testing.assert_equal(float(run.state.log_evidence), value)
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()


def test_data_that_say_very_much():
    # A thousand standard deviations away and a million times as precise as the prior.
    precision, value = 1e6, 3.0
    algorithm = smc.tempered(
        lambda x: -0.5 * x["x"] ** 2 - 0.5 * precision * (x["x"] - value) ** 2,
        move=mcmc.random_walk_metropolis,
        reference=lambda x: -0.5 * x["x"] ** 2,
        sample_prior=lambda key: {"x": jax.random.normal(key)},
        scheme=smc.systematic,
    )
    run = repeats(algorithm, 4)
    assert run.state.done.all()
    assert (run.num_steps > 5).all()
    exact = -0.5 * value**2 * precision / (1 + precision) - 0.5 * np.log1p(precision)
    assert np.abs(run.state.log_evidence - exact).max() < 0.5
    draws = run.state.position["x"].astype(float)
    assert abs(draws.mean() - value) < 2e-4
    assert draws.std() == pytest.approx(1e-3, rel=0.08)
    assert np.isnan(run.state.log_evidence_variance).all()


def test_nothing_changes_once_it_is_done(x64):
    algorithm = smc.tempered(
        move=mcmc.mala,
        log_prior=lambda x: -0.5 * jnp.sum(x**2),
        log_likelihood=lambda x: -0.1 * jnp.sum(x**2),
        particles=64,
    )
    positions = np.random.default_rng(0).normal(size=(32, 3))
    state = algorithm.init(jnp.asarray(positions), jax.random.key(0))
    step = jax.jit(algorithm.step)
    state, _ = step(jax.random.key(1), state)
    assert state.done
    assert state.position.shape == (32, 3)
    assert state.position.dtype == np.float64
    assert state.log_evidence.dtype == np.float64
    mean = np.log(np.exp(-0.1 * (positions**2).sum(1)).mean())
    assert float(state.log_evidence) == pytest.approx(mean, rel=1e-12)
    again, info = step(jax.random.key(2), state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert info.inverse_temperature == 1
    assert info.log_evidence == state.log_evidence


@pytest.mark.parametrize("size", [3, 40])
def test_the_metric_is_the_covariance_of_the_weighted_particles(size):
    draw = np.random.default_rng(0)
    particles = draw.normal(size=(128, size)) @ draw.normal(size=(size, size)) + 5
    weights = draw.dirichlet(np.ones(128))
    weights[0], particles[0] = 0, np.nan
    weights /= weights.sum()
    metric = moves_of.metric_of(jnp.asarray(particles, jnp.float32), jnp.asarray(weights, jnp.float32))
    covariance = np.cov(particles[1:].T, aweights=weights[1:], ddof=0)
    factor = np.asarray(metric.factor)
    if size == 3:
        np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(factor**2, np.diag(covariance), rtol=1e-3)


def test_particles_that_are_all_the_same_leave_a_metric_that_moves():
    metric = moves_of.metric_of(jnp.ones((64, 2)), jnp.full((64,), 1 / 64))
    np.testing.assert_array_equal(metric.factor, np.eye(2))


def test_a_move_is_given_only_what_it_takes():
    free = moves_of.as_move("f", mcmc.random_walk_metropolis, 1, 9, None, None)
    assert free.tunes_step_size
    assert free.tunes_metric
    assert float(free.acceptance) == pytest.approx(0.234)
    bound = moves_of.as_move("f", partial(mcmc.mala, step_size=0.1), 1, 9, None, None)
    assert not bound.tunes_step_size
    assert bound.tunes_metric
    assert float(bound.acceptance) == pytest.approx(0.574)
    neither = moves_of.as_move("f", lambda log_density: mcmc.hmc(log_density), 1, 9, None, None)
    assert not neither.tunes_step_size
    assert not neither.tunes_metric
    assert float(neither.acceptance) == pytest.approx(0.8)


def test_moves_go_on_until_particles_have_left_their_places():
    particles = {"a": jax.random.normal(jax.random.key(0), (400, 2)), "b": jax.random.normal(jax.random.key(1), (400,))}
    move = moves_of.as_move("f", mcmc.random_walk_metropolis, None, 200, None, None)
    metric = moves_of.metric_of(particles, jnp.full((400,), 1 / 400))
    density = lambda x: -0.5 * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)  # noqa: E731
    after = {}
    for most in (200, 3):
        go = jax.jit(partial(moves_of.go, move._replace(number=most), log_density=density, metric=metric))
        moved = go(jax.random.key(2), particles=particles, step_size=jnp.float32(0.1))
        one, other = (np.column_stack([x["a"], x["b"]]) for x in (particles, moved.particles))
        one, other = (np.column_stack([x, (x - x.mean(0)) ** 2]) for x in (one, other))
        exact = max(abs(np.corrcoef(one[:, i], other[:, i])[0, 1]) for i in range(6))
        after[most] = moved
        if most == 3:  # where moves go on it is the least that there was
            assert float(moved.correlation) == pytest.approx(exact, abs=1e-5)
        assert float(moved.correlation) <= exact + 1e-5
    assert after[200].correlation <= 0.15 < after[3].correlation
    assert 3 == after[3].number < after[200].number < 200
    assert float(after[200].step_size) == pytest.approx(2.38 / np.sqrt(3), rel=0.3)


def test_few_particles_go_on_for_as_long_as_chance_hides_what_they_remember():
    # An autoregression of 0.8: at 3 / sqrt(100) after 5.4 moves, and at a tenth after 10.3.
    def factory(log_density):
        def step(key, state):
            return Place(0.8 * state.position + 0.6 * jax.random.normal(key)), None

        return core.Algorithm(lambda position, key: Place(position), step)

    move = moves_of.as_move("f", factory, None, 100, None, None)

    def moves(number, key):
        one, other = jax.random.split(key)
        particles = jax.random.normal(one, (number,))
        go = partial(moves_of.go, move, other, jnp.sum, particles, jnp.float32(1), None)
        return go().number

    def mean(number):
        return jax.jit(jax.vmap(partial(moves, number)))(jax.random.split(jax.random.key(number), 200)).mean()

    few, many = mean(100), mean(2000)
    # Where they ended at what chance makes it were 6.2; the standard error is 0.17.
    assert 8.5 < few < 12
    assert 9.5 < many < 11.5


class Place(NamedTuple):
    position: jax.Array


@pytest.mark.parametrize(
    ("slowest", "others", "least", "most"), [(0.99, 0.5, 2, 2), (0.97, 0.5, 45, 80), (0.995, 0.995, 100, 100)]
)
def test_moves_end_where_one_scalar_goes_too_slowly_and_not_where_all_do(slowest, others, least, most):
    # Autoregressions: correlations are powers of these, those of squares powers of their squares. One that is 0.16 by
    # the hundredth move goes by 0.982; after two moves all others of twenty scalars but the slowest are small.
    rate = jnp.array([slowest] + [others] * 19)

    def factory(log_density):
        def step(key, state):
            return Place(rate * state.position + jnp.sqrt(1 - rate**2) * jax.random.normal(key, (20,))), None

        return core.Algorithm(lambda position, key: Place(position), step)

    particles = jax.random.normal(jax.random.key(0), (400, 20))
    go = partial(moves_of.go, moves_of.as_move("f", factory, None, 100, None, None), log_density=jnp.sum, metric=None)
    moved = jax.jit(go)(jax.random.key(1), particles=particles, step_size=jnp.float32(1))
    assert least <= int(moved.number) <= most
    assert (moved.correlation <= 0.161) == (slowest < 0.98)


@pytest.mark.parametrize(("number", "moves"), [(1000, 10), (999, 1)])
def test_a_metric_that_is_fitted_to_all_of_the_covariance_takes_more_moves(number, moves):
    # Each move forgets everything at once. A hundred scalars; below ten particles for each only variances are learnt.
    def factory(log_density, inverse_mass_matrix):
        return core.Algorithm(
            lambda position, key: Place(position), lambda key, state: (Place(jax.random.normal(key, (100,))), None)
        )

    move = moves_of.as_move("f", factory, None, 100, None, None)
    particles = jax.random.normal(jax.random.key(0), (number, 100))
    moved = moves_of.resample_and_move(
        move, smc.systematic, jax.random.key(1), jnp.sum, particles, jnp.zeros(number), jnp.float32(1)
    )[0]
    assert moved.number == moves


@pytest.mark.slow
def test_the_evidence_of_a_hundred_scalars_at_a_thousand_particles():
    # Through a rotation, variances from 0.01 to 100. Moves that end once no scalar remembers are 2.4 nats off here.
    draw = np.random.default_rng(0)
    design = np.linalg.qr(draw.normal(size=(100, 100)))[0] / np.expand_dims(np.geomspace(0.1, 10, 100), 1)
    values = design @ (10 * draw.normal(size=100)) + draw.normal(size=100)
    evidence = stats.multivariate_normal(cov=100 * design @ design.T + np.eye(100)).logpdf(values)
    x, y = jnp.asarray(design, jnp.float32), jnp.asarray(values, jnp.float32)
    algorithm = smc.tempered(
        log_prior=lambda q: jnp.sum(-0.5 * (q / 10) ** 2 - np.log(10 * np.sqrt(2 * np.pi))),
        log_likelihood=lambda q: jnp.sum(-0.5 * (y - core.matvec(x, q)) ** 2 - np.log(np.sqrt(2 * np.pi))),
        sample_prior=lambda key: 10 * jax.random.normal(key, (100,)),
    )
    run = repeats(algorithm, 3)
    assert abs(run.state.log_evidence.mean() - evidence) < 1


GOOD = {"log_prior": jnp.sum, "log_likelihood": jnp.sum, "sample_prior": jax.random.normal}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_prior": 3}, TypeError, "log_prior is 3; expected a function"),
        ({"posterior": jnp.sum}, TypeError, "posterior is given with a prior and a likelihood"),
        ({"sample_prior": 3}, TypeError, "sample_prior is 3; expected a function"),
        ({"move": 3}, TypeError, "move is 3; expected a function"),
        ({"particles": 1}, ValueError, "particles is 1; expected a whole number, 2 or more"),
        ({"effective_sample_size": 1.0}, ValueError, "effective_sample_size is 1.0; expected a share"),
        ({"moves": 0}, ValueError, "moves is 0"),
        ({"max_moves": 0}, ValueError, "max_moves is 0"),
        ({"step_size": -1.0}, ValueError, "step_size is -1.0; expected a positive number"),
        ({"acceptance": 2.0}, ValueError, "acceptance is 2.0"),
        ({"inverse_temperatures": [0.5, 0.2, 1.0]}, ValueError, "increase to 1"),
        ({"inverse_temperatures": [0.0, 1.0]}, ValueError, "increase to 1"),
        ({"inverse_temperatures": [0.5]}, ValueError, "increase to 1"),
        ({"scheme": 3}, TypeError, "scheme is 3; expected a function"),
        ({"move": partial(mcmc.hmc, step_size=0.1), "step_size": 0.1}, ValueError, "expected None where"),
    ],
)
def test_bad_arguments_are_told_in_one_line(change, error, words):
    with pytest.raises(error, match=words) as caught:
        smc.tempered(**({"move": mcmc.hmc} | GOOD | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.tempered: ")


def test_bad_positions_and_paths_without_a_beginning_are_told_in_one_line():
    with pytest.raises(TypeError, match="reference is None; expected a function"):
        smc.tempered(jnp.sum)
    algorithm = smc.tempered(log_prior=jnp.sum, log_likelihood=jnp.sum)
    with pytest.raises(TypeError, match="sample_prior is None; expected a function where init has no positions"):
        algorithm.init(None, jax.random.key(0))
    with pytest.raises(ValueError, match="position is of leaves without one leading axis"):
        algorithm.init({"a": jnp.zeros(3), "b": jnp.zeros((4, 2))}, jax.random.key(0))
    with pytest.raises(ValueError, match="max_steps is 0"):
        smc.run_sampler(jax.random.key(0), algorithm, jnp.zeros(3), max_steps=0)


@models.joint
def two_groups(y):
    scale = yield "scale", HalfNormal(1.0)
    mean = yield "mean", Normal(0.0, 2.0)
    rate = yield "rate", Beta(2.0, 2.0)
    which = yield "which", Bernoulli(jnp.full(len(y), rate))
    yield "y", Normal(jnp.where(which == 1, mean, 0.0), scale)


def test_a_conditioned_model_is_a_target_by_itself():
    y = np.array([0.2, -0.3, 2.1, 1.7, 0.1])
    posterior = two_groups(y).condition(y=y, marginalize="which")

    scales, means, rates = np.linspace(0.02, 5, 120), np.linspace(-8, 8, 161), np.linspace(0.005, 0.995, 40)
    scale, mean, rate = scales[:, None, None], means[:, None], rates
    prior = stats.halfnorm.pdf(scale) * stats.norm.pdf(mean, 0, 2) * stats.beta.pdf(rate, 2, 2)
    values = [rate * stats.norm.pdf(x, mean, scale) + (1 - rate) * stats.norm.pdf(x, 0, scale) for x in y]
    cell = np.diff(scales)[0] * np.diff(means)[0] * np.diff(rates)[0]
    exact = np.log((prior * np.prod(values, axis=0)).sum() * cell)
    run = repeats(smc.tempered(posterior, particles=512), 16)
    logs = run.state.log_evidence
    assert run.state.done.all()
    assert abs(logs.mean() - exact) < 0.03 + 3 * logs.std(ddof=1) / 4
    assert logs.std(ddof=1) < 0.15


def test_without_a_density_the_options_wait_for_one():
    waiting = smc.tempered(particles=16)
    state = waiting(two_groups(np.ones(2)).condition(y=np.ones(2), marginalize="which")).init(None, jax.random.key(0))
    assert state.position["mean"].shape == (16,)
    with pytest.raises(TypeError, match="particle"):
        smc.tempered(particle=16)
