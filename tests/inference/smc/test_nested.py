"""Nested sampling against evidences and posteriors in closed form, computed by NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from jaxprob import models
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, smc
from tests.inference.smc.test_tempered import regression


def runs(algorithm, number, seed=0, of=lambda run: run.state, **options):
    """What is asked `of` independent runs, as NumPy arrays with a leading axis."""
    run = jax.jit(jax.vmap(lambda key: of(smc.run_sampler(key, algorithm, **options))))
    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(seed), number)))


def summary(run):
    """All that a test may ask of a run; the particles themselves are many."""
    state, population = run.state, run.state.population
    mean = population.expectation()
    return {
        "done": state.done,
        "remainder": state.remainder,
        "log_evidence": state.log_evidence,
        "variance": state.log_evidence_variance,
        "information": state.information,
        "size": population.effective_sample_size,
        "mean": mean,
        "square": population.expectation(lambda x: jax.tree.map(jnp.square, x)),
        "num_steps": run.num_steps,
        "info": run.info,
    }


def z_score(estimates, exact):
    """How far the mean of independent estimates is from the exact value, in its standard error."""
    return (estimates.mean(0) - exact) / (estimates.std(0, ddof=1) / np.sqrt(len(estimates)))


WALK = {"move": mcmc.random_walk_metropolis}


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"particles": 128}),
        (2, WALK | {"particles": 128}),
        pytest.param(5, {}, marks=pytest.mark.slow),
        pytest.param(5, {"batch": 64, "max_steps": 200}, marks=pytest.mark.slow),
        pytest.param(10, {}, marks=pytest.mark.slow),
    ],
)
def test_the_evidence_and_the_posterior_of_a_regression(size, options):
    parts, evidence, mean, covariance = regression(size, 3 * size)
    options = {"particles": 256, "max_steps": 100} | options
    number, batch = options["particles"], options.get("batch", options["particles"] // 2)
    found = runs(smc.nested(**parts, **options), 64, of=summary, max_steps=options["max_steps"])
    assert found["done"].all()
    assert (found["remainder"] <= 0.01).all()
    # The evidence is unbiased, and not its logarithm, whose mean is lower by half of the variance.
    logs = found["log_evidence"].astype(float)
    spread = logs.std(ddof=1)
    assert abs(logs.mean() + spread**2 / 2 - evidence) < 3 * spread / 8
    assert 3 * spread / 8 < 0.2
    # A ratio of chi-squares with 63 degrees of freedom to its mean is outside of (1 / 2, 2) once in 1e5.
    assert 0.5 < found["variance"].mean() / logs.var(ddof=1) < 2
    exact = 0.5 * (np.trace(covariance) + mean @ mean - size - np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(found["information"].mean(), exact, rtol=0.03)
    scales = np.sqrt(np.diag(covariance))
    deviations = np.sqrt((found["square"] - found["mean"] ** 2).mean(0))
    np.testing.assert_allclose(deviations, scales, rtol=0.03)
    np.testing.assert_allclose((found["mean"].mean(0) - mean) / scales, 0, atol=0.03)
    assert (found["size"] > number).all()
    for steps, info in zip(found["num_steps"], zip(*found["info"], strict=True), strict=True):
        info = smc.NestedInfo(*(x[:steps] for x in info))
        assert (np.diff(info.log_likelihood) > 0).all()
        left = np.log1p(-batch / number)
        np.testing.assert_allclose(info.log_volume, left * np.arange(1, steps + 1), rtol=1e-4)
        assert (info.remainder[:-1] > 0.01).all()
        assert (info.correlation <= 3 / np.sqrt(batch) + 1e-6).all()


SCALE = 0.1
UNIFORM = {
    "log_prior": lambda x: jnp.where((x > 0) & (x < 1), 0.0, -jnp.inf),
    "sample_prior": jax.random.uniform,
    # On an interval one line is a draw that forgets where it came from.
    "move": partial(mcmc.hit_and_run_slice, width=4.0),
    "moves": 1,
}


def test_the_evidence_is_unbiased_wherever_it_stops():
    parts = UNIFORM | {"log_likelihood": lambda x: -0.5 * (x / SCALE) ** 2}
    exact = SCALE * np.sqrt(2 * np.pi) * (stats.norm.cdf(1 / SCALE) - 0.5)
    for batch, steps in ((3, 40), (8, 3)):
        algorithm = smc.nested(**parts, particles=12, batch=batch, max_steps=steps)
        of = lambda run: (run.state.log_evidence, run.state.log_evidence_variance, run.state.done)  # noqa: E731
        logs, variances, done = runs(algorithm, 2000, of=of)
        assert done.all()
        ratios = np.exp(logs.astype(float)) / exact
        # With 1 / 13 for 1 / 12, the mean of a spacing of volumes, it would be 8 % off.
        assert ratios.std() / np.sqrt(2000) < 0.02
        assert abs(z_score(ratios, 1)) < 3
        assert 0.7 < variances.mean() / logs.var() < 1.4


def levels(x):
    return jnp.where(x < 0.5, -jnp.inf, jnp.where(x < 0.9, 0.0, jnp.log(100.0)))


def test_plateaus_are_passed_and_count_for_what_they_are():
    # Where a line crosses from one plateau to another a draw remembers on which it was.
    algorithm = smc.nested(**UNIFORM | {"moves": 5}, log_likelihood=levels, particles=64, batch=16)

    def of(run):
        population = run.state.population
        top = population.expectation(lambda x: (x > 0.9).astype(jnp.float32))
        return run.state.log_evidence, run.state.log_evidence_variance, top, run.state.done, population.expectation()

    logs, variances, top, done, mean = runs(algorithm, 200, of=of)
    exact = 0.4 + 0.1 * 100
    assert done.all()
    assert abs(z_score(np.exp(logs.astype(float)), exact)) < 3
    assert 0.6 < variances.mean() / logs.var() < 1.6  # 199 degrees of freedom: once in 1e5
    np.testing.assert_allclose(top.mean(), 10 / exact, rtol=0.01)
    np.testing.assert_allclose(mean.mean(), (0.4 * 0.7 + 10 * 0.95) / exact, rtol=0.003)


def test_a_likelihood_that_says_nothing_has_no_information():
    algorithm = smc.nested(**UNIFORM, log_likelihood=lambda x: 0 * x - 3, particles=16)
    state = runs(algorithm, 8)
    assert state.done.all()
    np.testing.assert_allclose(state.log_evidence, -3, rtol=1e-5)
    np.testing.assert_allclose(state.log_evidence_variance, 0, atol=1e-5)
    np.testing.assert_allclose(state.information, 0, atol=1e-5)


def test_where_no_particle_of_the_prior_has_a_likelihood_it_finds_some():
    # One in two hundred has one, and of 32 particles mostly none.
    algorithm = smc.nested(
        **UNIFORM, log_likelihood=lambda x: jnp.where(x > 0.995, 0.0, -jnp.inf), particles=32, batch=8
    )
    state = runs(algorithm, 200)
    assert state.done.all()
    first, live = state.log_likelihoods[:, 32:40], state.log_likelihoods[:, :32]
    assert (first == -np.inf).all()
    assert abs(z_score(np.exp(state.log_evidence.astype(float)), 0.005)) < 3
    assert ((live == 0) == (state.position[:, :32] > 0.995)).all()
    assert (live == 0).any(1).mean() > 0.9  # a line hits it once in two hundred times


@pytest.mark.parametrize(("value", "steps"), [(-np.inf, 20), (np.nan, 0)])
def test_data_that_are_impossible_or_no_number_are_told_by_the_evidence(value, steps):
    algorithm = smc.nested(**UNIFORM, log_likelihood=lambda x: value + 0 * x, particles=8, max_steps=20)
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.state.done
    assert run.num_steps == steps
    np.testing.assert_equal(float(run.state.log_evidence), value)
    np.testing.assert_equal(float(run.state.population.log_evidence), value)
    assert np.isnan(run.state.log_evidence_variance)
    assert np.isfinite(run.state.position).all()


def test_moves_to_where_the_likelihood_is_no_number_are_refused():
    # No draw is there, but the prior that moves are given does not say so.
    parts = UNIFORM | {"log_prior": lambda x: jnp.where((x > -1) & (x < 1), 0.0, -jnp.inf)}
    algorithm = smc.nested(**parts, log_likelihood=lambda x: jnp.where(x < 0, jnp.nan, -(x**2)), particles=16, batch=4)
    state = runs(algorithm, 64)
    exact = np.sqrt(np.pi) * (stats.norm.cdf(np.sqrt(2)) - 0.5)
    assert abs(z_score(np.exp(state.log_evidence.astype(float)), exact)) < 3
    assert (state.position[:, :16] > 0).all()


def mixture(modes, deviation, prior):
    """Equal normal modes (mode, size) and a normal prior: the parts, the log evidence and the shares of the modes."""
    size = modes.shape[1]
    marginal = stats.multivariate_normal(cov=(deviation**2 + prior**2) * np.eye(size))
    terms = marginal.logpdf(modes) - np.log(len(modes))
    evidence = logsumexp(terms)
    places = jnp.asarray(modes, jnp.float32)

    def log_normal(x, deviation):
        return -0.5 * jnp.sum((x / deviation) ** 2, -1) - size * np.log(deviation * np.sqrt(2 * np.pi))

    parts = {
        "log_prior": lambda x: log_normal(x, prior),
        "log_likelihood": lambda x: jax.nn.logsumexp(log_normal(places - x[None], deviation)) - np.log(len(modes)),
        "sample_prior": lambda key: prior * jax.random.normal(key, (size,)),
    }
    return parts, evidence, np.exp(terms - evidence)


@pytest.mark.slow
def test_nine_modes_that_lie_twenty_deviations_apart_keep_their_shares():
    modes = 4.0 * np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    parts, evidence, shares = mixture(modes, 0.2, 4.0)

    def of(run):
        near = jnp.argmin(jnp.sum((run.state.position[:, None] - jnp.asarray(modes, jnp.float32)[None]) ** 2, -1), 1)
        found = jnp.zeros(len(modes)).at[near].add(run.state.population.weights)
        return run.state.log_evidence, run.state.log_evidence_variance, found

    logs, variances, found = runs(smc.nested(particles=500, **parts), 12, of=of)
    errors = logs.astype(float) + variances / 2 - evidence
    assert np.abs(errors / np.sqrt(variances)).max() < 4.5
    assert abs(z_score(errors, 0)) < 4.5  # Student's t with 11 degrees of freedom: once in a thousand
    assert 0.2 < errors.var(ddof=1) / variances.mean() < 4
    # A mode is lost by none of the runs, and has on average what it should have.
    assert (found / shares).min() > 0.3
    assert np.abs(z_score(found, shares)).max() < 6  # of nine


def test_both_modes_are_kept():
    centres, scale, box = np.array([[-3.0, 1.0], [3.0, -1.0]]), 0.3, 10.0
    weights = np.array([0.3, 0.7])

    def log_likelihood(x):
        distances = jnp.sum((jnp.expand_dims(x, 0) - jnp.asarray(centres, x.dtype)) ** 2, 1)
        terms = jnp.log(jnp.asarray(weights, x.dtype)) - 0.5 * distances / scale**2
        return jax.nn.logsumexp(terms) - np.log(2 * np.pi * scale**2)

    algorithm = smc.nested(
        log_prior=lambda x: jnp.where(jnp.all(jnp.abs(x) < box / 2), -2 * np.log(box), -jnp.inf),
        log_likelihood=log_likelihood,
        sample_prior=lambda key: jax.random.uniform(key, (2,), minval=-box / 2, maxval=box / 2),
        particles=300,
        moves=8,
    )

    def of(run):
        share = run.state.population.expectation(lambda x: (x[0] < 0).astype(jnp.float32))
        return run.state.log_evidence, run.state.log_evidence_variance, share, run.state.done

    logs, variances, share, done = runs(algorithm, 32, of=of)
    assert done.all()
    assert abs(z_score(np.exp(logs.astype(float)), 1 / box**2)) < 3  # a mass of one in the box, but for 1e-10
    assert 0.4 < variances.mean() / logs.var(ddof=1) < 2.5  # 31 degrees of freedom: once in 1e4
    assert (share > 0).all()
    assert abs(z_score(share, 0.3)) < 3
    assert share.std() < 0.15


def test_a_step_takes_the_least_likely_and_copies_the_others():
    parts, _, _, _ = regression(2, 5)
    algorithm = smc.nested(**parts, particles=96, batch=40, max_steps=5, moves=3)
    state = algorithm.init(None, jax.random.key(0))
    step = jax.jit(algorithm.step)
    terms = []
    for time in range(3):
        values, live = np.asarray(state.log_likelihoods[:96]), np.asarray(state.position[:96])
        np.testing.assert_allclose(values, jax.vmap(parts["log_likelihood"])(state.position[:96]), rtol=1e-4)
        order = np.argsort(values)
        state, info = step(jax.random.key(time), state)
        assert info.log_likelihood == values[order[39]]
        place = slice(96 + 40 * time, 136 + 40 * time)
        np.testing.assert_array_equal(state.position[place], live[order[:40]])
        np.testing.assert_array_equal(state.log_likelihoods[place], values[order[:40]])
        np.testing.assert_array_equal(state.position[:96][order[40:]], live[order[40:]])
        assert (np.asarray(state.log_likelihoods)[order[:40]] > info.log_likelihood).all()
        assert np.unique(np.asarray(state.position[:96]), axis=0).shape == (96, 2)
        terms += list(np.exp(values[order[:40]].astype(float)) * (56 / 96) ** time / 96)
        rest = np.exp(np.asarray(state.log_likelihoods[:96], float)) * (56 / 96) ** (time + 1) / 96
        total = sum(terms) + rest.sum()
        assert float(state.log_evidence) == pytest.approx(np.log(total), rel=1e-4)
        assert float(info.log_evidence) == pytest.approx(np.log(total), rel=1e-4)
        assert float(state.remainder) == pytest.approx(rest.sum() / total, rel=1e-3)
    assert state.population.num_particles == 96 + 5 * 40
    weights = np.concatenate([rest, terms, np.zeros(80)]) / total
    np.testing.assert_allclose(state.population.weights, weights, rtol=1e-3, atol=1e-12)
    assert float(state.population.log_evidence) == pytest.approx(np.log(total), rel=1e-4)
    values = np.asarray(state.log_likelihoods, float)
    np.testing.assert_array_equal(values[216:], 0)
    assert float(state.information) == pytest.approx(weights @ (values - np.log(total)), rel=1e-3)
    # The variance of the log evidence by simulating volumes: Beta(n, 1) of each at the death of one of n.
    values = np.concatenate([values[96:216], np.sort(values[:96])])
    alive = np.concatenate([np.tile(np.arange(96, 56, -1), 3), np.arange(96, 0, -1)])
    volumes = np.cumprod(np.random.default_rng(0).uniform(size=(20_000, alive.size)) ** (1 / alive), axis=1)
    shells = -np.diff(volumes, axis=1, prepend=1)
    logs = np.log((shells * np.exp(values)).sum(1))
    # The variance of a sample of 20,000 is within 3 % of the exact one; the derivative is the first term of a series.
    assert float(state.log_evidence_variance) == pytest.approx(logs.var(), rel=0.1)


def test_copies_stay_at_their_level_of_ties():
    algorithm = smc.nested(**UNIFORM, log_likelihood=levels, particles=400, batch=100)
    state = algorithm.init(None, jax.random.key(0))
    step = jax.jit(algorithm.step)
    for time in range(6):
        before = state
        state, info = step(jax.random.key(time), state)
        changed = np.asarray(state.ties != before.ties)
        assert changed.sum() == 100
        level = np.asarray(state.log_likelihoods[:400] == info.log_likelihood)
        if time == 0:  # all of likelihood zero, and those that are left have numbers beyond those of the dead
            assert info.log_likelihood == -np.inf
            assert (np.asarray(state.ties)[level] > np.asarray(before.ties)[changed].max()).all()
            share = 0.25 / 0.75 * 0.75
            assert abs(level.mean() - 0.25 / 0.75) < 4 * np.sqrt(share / 400)
    # A quarter dies at a time: 0.75^6 of the volume is left, 0.178, of which 0.1 are the highest plateau.
    assert abs(np.asarray(state.position[:400] > 0.9).mean() - 0.1 / 0.75**6) < 0.15


def test_nothing_changes_once_it_is_done(x64):
    algorithm = smc.nested(
        log_prior=lambda x: -0.5 * (jnp.sum(x["a"] ** 2) + x["b"] ** 2),
        log_likelihood=lambda x: -0.1 * (jnp.sum(x["a"] ** 2) + x["b"]),
        particles=64,
        tolerance=0.2,
        moves=2,
    )
    draw = np.random.default_rng(0)
    positions = {"a": draw.normal(size=(32, 3)), "b": draw.normal(size=(32,))}
    state = algorithm.init(positions, jax.random.key(0))
    step = jax.jit(algorithm.step)
    assert state.position["a"].shape == (32 + 100 * 16, 3)
    assert state.remainder == 1
    mean = np.log(np.exp(-0.1 * ((positions["a"] ** 2).sum(1) + positions["b"])).mean())
    assert float(state.log_evidence) == pytest.approx(mean, rel=1e-12)
    while not state.done:
        assert state.remainder > 0.2
        state, _ = step(jax.random.key(1 + int(state.steps)), state)
    assert state.remainder <= 0.2
    assert 1 < state.steps < 100
    for leaf in (*jax.tree.leaves(state.population), state.information, state.log_evidence_variance):
        assert leaf.dtype == np.float64
    again, info = step(jax.random.key(0), state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert info.remainder == state.remainder
    assert info.log_evidence == state.log_evidence


def test_places_for_the_dead_that_are_filled_end_it():
    parts, _, _, _ = regression(2, 5)
    algorithm = smc.nested(**parts, particles=16, max_steps=2, moves=1)
    run = jax.jit(partial(smc.run_sampler, algorithm=algorithm))(jax.random.key(0))
    assert run.num_steps == run.state.steps == 2
    assert run.state.done
    assert run.state.remainder > 0.01
    again, _ = jax.jit(algorithm.step)(jax.random.key(1), run.state)
    jax.tree.map(np.testing.assert_array_equal, again, run.state)


GOOD = {"log_prior": jnp.sum, "log_likelihood": jnp.sum, "sample_prior": jax.random.normal}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_prior": 3}, TypeError, "log_prior is 3; expected a function"),
        ({"posterior": jnp.sum}, TypeError, "posterior is given with a prior and a likelihood"),
        ({"sample_prior": 3}, TypeError, "sample_prior is 3; expected a function"),
        ({"move": 3}, TypeError, "move is 3; expected a function"),
        ({"particles": 1}, ValueError, "particles is 1; expected a whole number, 2 or more"),
        ({"batch": 0}, ValueError, "batch is 0; expected an integer of at least 1"),
        ({"batch": 1024}, ValueError, "batch is 1024; expected fewer than the 1024 particles"),
        ({"batch": 1}, ValueError, "moves is None; expected a number where a batch, here 1, is below 36"),
        ({"particles": 71}, ValueError, "moves is None; expected a number where a batch, here 35, is below 36"),
        ({"tolerance": 0}, ValueError, "tolerance is 0.0; expected a share between 0 and 1"),
        ({"max_steps": 0}, ValueError, "max_steps is 0"),
        ({"moves": 0}, ValueError, "moves is 0"),
        ({"max_moves": 0}, ValueError, "max_moves is 0"),
        ({"step_size": 1.0}, ValueError, "step_size is 1.0; expected None where"),
        ({"acceptance": 2.0}, ValueError, "acceptance is 2.0"),
    ],
)
def test_bad_arguments_are_told_in_one_line(change, error, words):
    with pytest.raises(error, match=words) as caught:
        smc.nested(**(GOOD | change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("smc.nested: ")


def test_bad_positions_are_told_in_one_line():
    algorithm = smc.nested(**GOOD, batch=100)
    with pytest.raises(ValueError, match="batch is 100; expected fewer than the 64 particles"):
        algorithm.init(jnp.zeros(64), jax.random.key(0))
    with pytest.raises(ValueError, match="position is of leaves without one leading axis"):
        algorithm.init({"a": jnp.zeros(300), "b": jnp.zeros((400, 2))}, jax.random.key(0))
    with pytest.raises(TypeError, match="sample_prior is None"):
        smc.nested(log_prior=jnp.sum, log_likelihood=jnp.sum).init(None, jax.random.key(0))


@models.joint
def measurements(y):
    mean = yield "mean", Normal(1.0, 2.0)
    yield "y", Normal(jnp.full(len(y), mean), 0.5)


def test_a_conditioned_model_is_a_target_by_itself():
    y = np.array([0.2, 0.9, 1.3, 0.4])
    exact = stats.multivariate_normal(np.ones(4), 4 * np.ones((4, 4)) + 0.25 * np.eye(4)).logpdf(y)
    waiting = smc.nested(particles=128, moves=2)
    found = runs(waiting(measurements(y).condition(y=y)), 32, of=summary)
    assert found["done"].all()
    assert abs(z_score(np.exp(found["log_evidence"] - exact), 1)) < 3
    precision = 4 / 0.25 + 1 / 4
    np.testing.assert_allclose(found["mean"]["mean"].mean(), (y.sum() / 0.25 + 1 / 4) / precision, rtol=0.03)
    with pytest.raises(TypeError, match="particle"):
        smc.nested(particle=16)
