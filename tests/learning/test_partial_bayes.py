"""Partially Bayesian regression against its closed form in NumPy float64, and what training makes of awkward input."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprob
from jaxprob import learning, scan
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc

NOISE, PRIOR, NUMBER = 0.7, 1.5, 60
LEVELS = np.array([0.2, -0.6])  # of the deterministic parameters, at which most of the tests are


def start(key):
    return {"slopes": jnp.zeros(3), "levels": jnp.asarray(LEVELS, jnp.float32)}


def log_likelihood(params, example):
    x, z, y = example
    return Normal(x @ params["slopes"] + z @ params["levels"], NOISE).log_prob(y)


def regression(**changes):
    """y = x slopes + z levels + noise, of which the slopes are stochastic."""
    options = {"init": start, "log_likelihood": log_likelihood, "stochastic": "slopes", "prior": Normal(0.0, PRIOR)}
    return learning.PartialBayes(**(options | changes))


@pytest.fixture(scope="module")
def data():
    """x (60, 3), which is correlated, z (60, 2) and y (60,), in float64."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(NUMBER, 3)), rng.normal(size=(NUMBER, 2))
    x[:, 1] += 0.8 * x[:, 0]
    return x, z, x @ [1, -0.5, 0.3] + z @ [0.5, -1] + NOISE * rng.normal(size=NUMBER)


def as_batch(data):
    return tuple(jnp.asarray(part, jnp.float32) for part in data)


def exact(data, levels=LEVELS, power=1, prior=PRIOR):
    """Mean and covariance of the slopes given data that count `power` times, and the log evidence of the data."""
    x, z, y = data
    left = y - z @ levels
    covariance = np.linalg.inv(np.eye(3) / prior**2 + power * x.T @ x / NOISE**2)
    mean = covariance @ (power * x.T @ left) / NOISE**2
    marginal = prior**2 * x @ x.T + NOISE**2 * np.eye(len(y))
    evidence = left @ np.linalg.solve(marginal, left) + np.linalg.slogdet(marginal)[1] + len(y) * math.log(2 * math.pi)
    return mean, covariance, -0.5 * evidence


def test_evidence_and_moments_are_those_of_the_closed_form(data):
    """Sixteen samplers of 1,000 particles; z-scores by how they differ, of which 4.5 has one chance in 300."""
    network = regression()
    params = network.start(jax.random.key(0), 1)
    draw = jax.vmap(lambda key: learning.partial_posterior(key, network, params, as_batch(data), particles=1000))
    found, run = jax.jit(draw)(jax.random.split(jax.random.key(1), 16))
    assert run.state.done.all()
    mean, covariance, evidence = exact(data)
    errors = np.asarray(run.state.log_evidence) - evidence
    assert abs(errors.mean()) < 0.1  # the bar; the standard error is 0.02
    assert errors.std() < 0.2
    slopes = np.asarray(found.particles["slopes"], np.float64)
    for values, expected in [(slopes, mean), ((slopes - mean) ** 2, np.diag(covariance))]:
        means = values.mean(1)
        assert np.all(np.abs(means.mean(0) - expected) < 4.5 * means.std(0) / 4)
    off = ((slopes[..., 0] - mean[0]) * (slopes[..., 1] - mean[1])).mean(1)
    assert abs(off.mean() - covariance[0, 1]) < 4.5 * off.std() / 4
    np.testing.assert_array_equal(found.deterministic["levels"][0], params.deterministic["levels"])


@pytest.fixture(scope="module")
def gradients():
    """Of 32 steps of gradient descent by samplers of 200 particles, from a batch: gradients, their step's infos."""
    task = learning.stochastic_gradient_smc(regression(), optax.sgd(1.0), size=NUMBER, particles=200)
    init, step = learning.training(task)
    state = init(task.init(jax.random.key(0)))
    steps = jax.jit(jax.vmap(step, in_axes=(0, None, None)))

    def of(data):
        new, info = steps(jax.random.split(jax.random.key(2), 32), state, as_batch(data))
        return LEVELS - np.asarray(new.params.deterministic["levels"], np.float64), new, info

    return of


def test_the_gradient_is_that_of_the_log_evidence(data, gradients):
    """By central differences of the closed form; z-scores of 32 repeats: one in 50,000 seeds fails."""
    found, new, info = gradients(data)
    step = 1e-5
    shifts = step * np.eye(2)
    exact_ones = [-(exact(data, LEVELS + s)[2] - exact(data, LEVELS - s)[2]) / (2 * step * NUMBER) for s in shifts]
    assert np.all(np.abs(found.mean(0) - exact_ones) < 4.5 * found.std(0) / math.sqrt(32))
    assert np.all(found.std(0) < 0.02)  # so that the bars are narrow: the gradient is near (-0.67, 0.92)
    # The norm that is reported is that of this gradient, whatever way the particles have gone.
    np.testing.assert_allclose(info["gradient_norm"], np.linalg.norm(found, axis=1), rtol=1e-3)
    assert np.all(info["inverse_temperature"] == 1)
    assert np.all(info["temperatures"] > 1)
    assert abs(info["log_evidence"].mean() - exact(data)[2]) < 0.15  # 3 standard errors
    assert new.params.particles["slopes"].shape == (32, 200, 3)


def test_a_batch_counts_for_all_data(data, gradients):
    """20 examples of 60 count three times, and the gradient is a mean over the 20."""
    x, z, y = part = tuple(a[:20] for a in data)
    found, new, _ = gradients(part)
    mean, covariance, _ = exact(part, power=3)
    expected = -z.T @ (y - z @ LEVELS - x @ mean) / NOISE**2 / 20
    assert np.all(np.abs(found.mean(0) - expected) < 4.5 * found.std(0) / math.sqrt(32))
    assert np.all(found.std(0) < 0.03)
    # Of 6,400 particles, as many as 4,000 independent ones at least: standard errors of 2 %.
    variances = np.asarray(new.params.particles["slopes"]).var(1).mean(0)
    np.testing.assert_allclose(variances, np.diag(covariance), rtol=0.1)


def train(task, source, steps, chains):
    """Chains of training, each on epochs of its own: last states, infos and moments of the slopes of each step."""
    init, step = learning.training(task)

    def one(key, state, index):
        state, info = step(jax.random.fold_in(key, index), state, source.batch(index))
        slopes = state.params.particles["slopes"]
        mean = jnp.mean(slopes, 0)
        centred = slopes - jnp.expand_dims(mean, 0)
        return state, (info, mean, centred.T @ centred / slopes.shape[0])

    def chain(index):
        key = jax.random.fold_in(jax.random.key(4), index)
        state = init(task.init(jax.random.fold_in(key, chains * steps)))
        return scan.scan(partial(one, key), state, index * steps + jnp.arange(steps))

    state, (info, mean, covariance) = jax.jit(jax.vmap(chain))(jnp.arange(chains))
    return state, info, np.asarray(mean, np.float64), np.asarray(covariance, np.float64)


def test_batches_add_up_to_the_posterior(data):
    """15 of 60 examples a step, under a prior that counts for a quarter: means and covariances of the exact law."""
    network = regression(prior=Normal(0.0, 0.15))
    task = learning.open_horizon_smc(network, optax.set_to_zero(), size=NUMBER, particles=400)
    _, info, means, covariances = train(task, learning.data.arrays(as_batch(data), 15), 150, 8)
    mean, covariance, _ = exact(data, prior=0.15)
    scale = np.sqrt(np.diag(covariance))
    means, covariances = means[:, 30:], covariances[:, 30:]
    # The centres of 8 chains are off by 0.4 standard deviations, for some seven steps each: 0.03 for the mean of 120.
    assert np.all(np.abs(means.mean((0, 1)) - mean) < 0.15 * scale)
    np.testing.assert_allclose(np.diag(covariances.mean((0, 1))), np.diag(covariance), rtol=0.06)
    np.testing.assert_allclose(covariances.mean((0, 1))[0, 1], covariance[0, 1], rtol=0.1)
    # What single steps add to the spread of a prediction, since they know the last 60 examples or so.
    assert np.all((means - mean).std((0, 1)) < 0.6 * scale)
    assert info["inverse_temperature"][:, 30:].mean() > 0.9
    assert np.all(info["effective_sample_size"] > 199)  # half of them, whatever a batch says
    assert np.all(info["inverse_temperature"][:, 0] < 1)  # a prior this far off is not left at once


@pytest.fixture(scope="module")
def moved(data):
    """Training on all data with moves until it is at rest."""
    task = learning.open_horizon_smc(regression(), optax.sgd(0.3), size=NUMBER, particles=200, move=mcmc.mala)
    return train(task, learning.data.arrays(as_batch(data), NUMBER), 150, 4)


def test_with_moves_it_comes_to_the_largest_evidence(data, moved):
    """Generalised least squares for the levels, and the posterior there for the slopes."""
    state, info, means, covariances = moved
    x, z, y = data
    inverse = np.linalg.inv(PRIOR**2 * x @ x.T + NOISE**2 * np.eye(NUMBER))
    best = np.linalg.solve(z.T @ inverse @ z, z.T @ inverse @ y)
    np.testing.assert_allclose(state.params.deterministic["levels"], np.tile(best, (4, 1)), atol=0.02)
    mean, covariance, _ = exact(data, best)
    scale = np.sqrt(np.diag(covariance))
    means, covariances = means[:, 75:].mean((0, 1)), covariances[:, 75:].mean((0, 1))
    assert np.all(np.abs(means - mean) < 0.05 * scale)
    np.testing.assert_allclose(np.diag(covariances), np.diag(covariance), rtol=0.05)
    assert np.all(info["inverse_temperature"][:, 75:] == 1)
    assert np.all(info["effective_sample_size"][:, 75:] > 190)  # the target stands nearly still
    assert np.all(info["correlation"][:, 75:] < 0.6)
    rate = info["acceptance_rate"][:, 75:].mean()
    assert abs(rate - 0.574) < 0.03
    assert np.unique(state.params.carried.step_size).size == 4  # each has adapted its own


def test_predictions_are_those_of_the_exact_posterior(data, moved):
    state = jax.tree.map(lambda leaf: leaf[0], moved[0])
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    y = 2 * rng.normal(size=50)
    levels = np.asarray(state.params.deterministic["levels"], np.float64)
    mean, covariance, _ = exact(data, levels)
    variance = np.einsum("ij,jk,ik->i", x, covariance, x) + NOISE**2
    error = y - x @ mean - z @ levels
    expected = -0.5 * (error**2 / variance + np.log(2 * math.pi * variance))
    found = learning.log_predictive(regression(), state.params, as_batch((x, z, y)))
    # Particles that are known to 1 / sqrt(200) standard deviations: errors grow with how far off an example is.
    assert np.all(np.abs(found - expected) < 0.05 * (1 + np.abs(expected)))
    assert abs(np.mean(found - expected)) < 0.05


def test_log_predictive_is_the_mixture():
    rng = np.random.default_rng(2)
    slopes = rng.normal(size=(7, 3))
    x, z, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=5)
    y[3] = 60.0  # whose density is 0 in float32 at every particle
    params = learning.PartialParams({"levels": jnp.asarray(LEVELS, jnp.float32), "slopes": None}, None)
    params = params._replace(particles={"levels": None, "slopes": jnp.asarray(slopes, jnp.float32)})
    error = y - slopes @ x.T - z @ LEVELS
    terms = -0.5 * (error / NOISE) ** 2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi)
    top = terms.max(0)
    expected = top + np.log(np.mean(np.exp(terms - top), 0))
    found = learning.log_predictive(regression(), params, as_batch((x, z, y)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert params.num_particles == 7
    whole = params.each(lambda p: p["slopes"].sum() + p["levels"].sum())
    np.testing.assert_allclose(whole, slopes.sum(1) + LEVELS.sum(), rtol=1e-4)


def test_partition_and_combine_are_inverse():
    params = {"a": (jnp.ones(2), jnp.zeros(())), "b": {"kernel": jnp.ones(3), "bias": None}}
    fixed, free = learning.partition(params, ["a.1", "*.kernel"])
    assert jax.tree.map(jnp.shape, (fixed, free)) == (
        {"a": ((2,), None), "b": {"kernel": None, "bias": None}},
        {"a": (None, ()), "b": {"kernel": (3,), "bias": None}},
    )
    again = learning.combine(fixed, free)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(one is other for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True))


def test_priors_go_by_leaf():
    shapes = {}

    def prior(name, shape):
        shapes[name] = shape
        return Normal(0.0, 2.0) if name == "layer.kernel" else Normal(jnp.full(shape, 5.0), jnp.full(shape, 0.1))

    def init(key):
        return {"layer": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "scale": jnp.ones(())}

    network = learning.PartialBayes(init, lambda params, example: 0.0, "layer.*", prior)
    assert shapes == {"layer.kernel": (2, 3), "layer.bias": (3,)}
    particles = network.start(jax.random.key(0), 4000).particles
    assert particles["scale"] is None
    kernel, bias = particles["layer"]["kernel"], particles["layer"]["bias"]
    assert kernel.shape == (4000, 2, 3)
    assert bias.shape == (4000, 3)
    # 24,000 and 12,000 draws: five standard errors.
    assert abs(kernel.mean()) < 5 * 2 / math.sqrt(24000)
    assert abs(kernel.std() - 2) < 5 * 2 / math.sqrt(48000)
    assert abs(bias.mean() - 5) < 5 * 0.1 / math.sqrt(12000)
    assert abs(np.corrcoef(kernel[:, 0, 0], bias[:, 0])[0, 1]) < 5 / math.sqrt(4000)  # no key serves twice
    one = jax.tree.map(lambda leaf: leaf[0], particles)
    k, b = np.asarray(one["layer"]["kernel"], np.float64), np.asarray(one["layer"]["bias"], np.float64)
    expected = np.sum(-0.5 * (k / 2) ** 2 - math.log(2)) + np.sum(-0.5 * ((b - 5) / 0.1) ** 2 - math.log(0.1))
    np.testing.assert_allclose(network.log_prior(one), expected - 9 * 0.5 * math.log(2 * math.pi), rtol=1e-4)


@pytest.mark.parametrize("move", [None, mcmc.random_walk_metropolis])
def test_particles_without_a_likelihood_die(data, move):
    """NaN where the first slope is negative, as half of the prior is."""

    def broken(params, example):
        return jnp.where(params["slopes"][0] < 0, jnp.nan, log_likelihood(params, example))

    network = regression(log_likelihood=broken)
    task = learning.open_horizon_smc(network, optax.sgd(0.1), size=NUMBER + 1, particles=50, move=move)
    init, step = learning.training(task)
    state = init(task.init(jax.random.key(0)))
    assert np.any(state.params.particles["slopes"][:, 0] < 0)
    step = jax.jit(step)
    for index in range(3):
        before = np.asarray(state.params.deterministic["levels"], np.float64)
        state, info = step(jax.random.fold_in(jax.random.key(1), index), state, as_batch(data))
        assert info["finite"]
        assert np.all(state.params.particles["slopes"][:, 0] >= 0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
        assert info["effective_sample_size"] >= (10 if index == 0 else 20)
    assert np.any(state.params.deterministic["levels"] != jnp.asarray(LEVELS, jnp.float32))
    if move is not None:  # what the next weights are taken relative to: 60 examples that count for 61
        x, z, y = data
        slopes = np.asarray(state.params.particles["slopes"], np.float64)
        error = y - slopes @ x.T - z @ before
        terms = -0.5 * (error / NOISE) ** 2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi)
        expected = (NUMBER + 1) / NUMBER * terms.sum(1) * float(info["inverse_temperature"])
        np.testing.assert_allclose(state.params.carried.log_tilt, expected, rtol=1e-4)


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
@pytest.mark.parametrize(
    "make", [learning.open_horizon_smc, partial(learning.open_horizon_smc, move=mcmc.mala, moves=1)]
)
def test_a_step_that_nobody_survives_is_not_taken(data, make, value):
    network = regression(log_likelihood=lambda params, example: value + 0 * log_likelihood(params, example))
    task = make(network, optax.sgd(0.1), size=NUMBER + 1, particles=10)
    init, step = learning.training(task)
    state = init(task.init(jax.random.key(0)))
    new, info = jax.jit(step)(jax.random.key(1), state, as_batch(data))
    assert not info["finite"]
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("move", [None, mcmc.mala])
def test_dtypes_are_kept(x64, data, move, dtype):
    network = regression(init=lambda key: jax.tree.map(lambda leaf: leaf.astype(dtype), start(key)))
    task = learning.open_horizon_smc(network, optax.adam(0.1), size=NUMBER, particles=2, move=move, moves=1)
    init, step = learning.training(task)
    state = init(task.init(jax.random.key(0)))
    batch = tuple(jnp.asarray(part[:7], dtype) for part in data)
    new, info = step(jax.random.key(1), state, batch)
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new.params)} == {dtype}
    assert info["loss"].dtype == dtype


def test_a_run_that_is_cut_has_the_bits_of_one_that_is_not(data, tmp_path):
    """Through `fit`, with validation, early stopping's best parameters, and all that is carried."""
    task = learning.open_horizon_smc(regression(), optax.adam(0.05), size=NUMBER, particles=20, move=mcmc.mala)
    source = learning.data.arrays(as_batch(data), NUMBER)
    held_out = learning.data.arrays(tuple(part[:20] for part in as_batch(data)), 20)
    run = partial(jaxprob.fit, task, source, validation=held_out, evaluate_every=3, devices=1, progress=None)
    whole = run(steps=12)
    run(steps=6, out=tmp_path)
    parts = run(steps=12, out=tmp_path, resume=True)
    assert parts.step == 12
    for one, other in zip(*(jax.tree.leaves((r.state, r.best)) for r in (whole, parts)), strict=True):
        np.testing.assert_array_equal(one, other)
    expected = -np.mean(learning.log_predictive(regression(), whole.params, held_out.batch(0)))
    np.testing.assert_allclose(whole.history["validation/loss"][-1], expected, rtol=1e-5)
    assert np.nanmin(whole.history["validation/loss"]) < whole.history["validation/loss"][2]


NETWORK = regression()
ADAM = optax.adam(0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: regression(init=3), TypeError, "PartialBayes: init is 3; expected a function."),
        (lambda: regression(prior="normal"), TypeError, "PartialBayes: prior is normal; expected a distribution, or"),
        (lambda: regression(prior=lambda n, s: 1.0), TypeError, "PartialBayes: prior for 'slopes' is 1.0; expected"),
        (lambda: regression(prior=Normal(0.0, jnp.ones(2))), ValueError, "PartialBayes: prior is of shape (2,); exp"),
        (lambda: regression(stochastic=[]), ValueError, "PartialBayes: stochastic is []; expected one pattern"),
        (lambda: regression(stochastic="slope"), ValueError, "partition: pattern 'slope' is without a leaf; expected"),
        (lambda: NETWORK.start(jax.random.key(0), 0), ValueError, "PartialBayes.start: num_particles is 0; expected"),
        (lambda: learning.open_horizon_smc(3, ADAM, size=5), TypeError, "open_horizon_smc: network is 3; expected a l"),
        (lambda: learning.open_horizon_smc(NETWORK, 3, size=5), TypeError, "open_horizon_smc: optimizer is 3; expect"),
        (lambda: learning.open_horizon_smc(NETWORK, ADAM, size=0), ValueError, "open_horizon_smc: size is 0; expect"),
        (
            lambda: learning.open_horizon_smc(NETWORK, ADAM, size=9, particles=1),
            ValueError,
            "open_horizon_smc: particles is 1; expected a whole number, 2 or more.",
        ),
        (
            lambda: learning.open_horizon_smc(NETWORK, ADAM, size=9, effective_sample_size=1.5),
            ValueError,
            "open_horizon_smc: effective_sample_size is 1.5; expected a share between 0 and 1.",
        ),
        (
            lambda: learning.open_horizon_smc(NETWORK, ADAM, size=9, move=3),
            TypeError,
            "open_horizon_smc: move is 3; expected a function.",
        ),
        (
            lambda: learning.open_horizon_smc(NETWORK, ADAM, size=9, move=mcmc.mala, moves=0),
            ValueError,
            "open_horizon_smc: moves is 0; expected an integer of at least 1.",
        ),
        (
            lambda: learning.stochastic_gradient_smc(NETWORK, ADAM, size=9, max_steps=0),
            ValueError,
            "stochastic_gradient_smc: max_steps is 0; expected a whole number, 1 or more.",
        ),
        (
            lambda: learning.stochastic_gradient_smc(NETWORK, ADAM, size=9, particles=1),
            ValueError,
            "smc.tempered: particles is 1; expected a whole number, 2 or more.",
        ),
        (
            lambda: learning.partial_posterior(jax.random.key(0), NETWORK, NETWORK.start(jax.random.key(0), 1), 3.0),
            ValueError,
            "partial_posterior: data is of first axes [()]; expected arrays of 1 or more examples",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "examples", "message"),
    [
        (partial(learning.open_horizon_smc, size=9), 9, "batch is of 9 examples; expected 8 at the most. Give a move"),
        (partial(learning.open_horizon_smc, size=9, move=mcmc.mala), 10, "batch is of 10 examples; expected 9 at the"),
        (partial(learning.stochastic_gradient_smc, size=9), 10, "batch is of 10 examples; expected 9 at the most"),
    ],
)
def test_batches_too_large_are_told_in_one_line(data, make, examples, message):
    task = make(NETWORK, ADAM)
    batch = tuple(part[:examples] for part in as_batch(data))
    with pytest.raises(ValueError, match="_smc: ") as caught:
        jax.eval_shape(task.loss, jax.eval_shape(task.init, jax.random.key(0)), batch, jax.random.key(1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_likelihood_of_several_numbers_is_told(data):
    network = regression(log_likelihood=lambda params, example: params["slopes"])
    with pytest.raises(ValueError, match=r"^PartialBayes: the value of log_likelihood is .* shape \(3,\); exp"):
        learning.log_predictive(network, network.start(jax.random.key(0), 2), as_batch(data))


def test_tasks_are_static():
    task = learning.open_horizon_smc(NETWORK, ADAM, size=9)
    assert hash(task) == hash(task)
    assert dataclasses.replace(task) == task
