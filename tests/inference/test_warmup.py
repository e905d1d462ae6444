"""Warm-up: its schedule, dual averaging and metric against plain NumPy; chains pooled the same on any devices."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _dual_averaging as dual_averaging
from jaxprob.inference.mcmc import _metric, _warmup, _welford
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation

POOLED = core.Shared(0, None)


def stan_windows(num_steps):
    """The transitions after which Stan learns a metric, in the words of its windowed_adaptation (0-based counter)."""
    if num_steps < 20:
        return []
    start, term, size = 75, 50, 25
    if start + size + term > num_steps:
        start, term = int(0.15 * num_steps), int(0.1 * num_steps)
        size = num_steps - (start + term)
    ends, next_window = [], start + size - 1
    for counter in range(num_steps):
        if start <= counter < num_steps - term and counter == next_window:
            ends.append(counter + 1)
            if next_window == num_steps - term - 1:
                continue
            size *= 2
            next_window = counter + size
            if next_window + 2 * size >= num_steps - term:
                next_window = num_steps - term - 1
    return ends


@pytest.mark.parametrize("num_steps", [0, 5, 19, 20, 21, 100, 149, 150, 175, 200, 500, 1000, 1001, 5000])
def test_windows_are_those_of_stan(num_steps):
    plan, ends = _warmup.schedule(num_steps), []
    end = int(_warmup.window_end_of(plan, plan.start, 0))
    while plan.start < end <= plan.stop and (not ends or end > ends[-1]):
        ends.append(end)
        end = int(_warmup.window_end_of(plan, end, len(ends)))
    assert ends == stan_windows(num_steps)


# A kernel that never looks at a density: draws are independent normals of known covariance, and the acceptance rate is
# a known function of the step size.
class ToyInfo(NamedTuple):
    acceptance_rate: jax.Array
    step_size: jax.Array


COVARIANCE = np.array([[4.0, 0.9, 0.0], [0.9, 0.25, 0.0], [0.0, 0.0, 1e-4]])


def toy(rate):
    def kernel(log_density, step_size, inverse_mass_matrix):
        def init(position, key):
            return mcmc.State(position, jnp.float32(0), position)

        def step(key, state):
            root = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)
            position = jnp.sum(root * jnp.expand_dims(jax.random.normal(key, (3,)), 0), axis=1) + 5
            return mcmc.State(position, state.log_density, position), ToyInfo(rate(step_size), step_size)

        return core.Algorithm(init, step)

    return kernel


def run_pooled(tuning, key, chains, num_steps, positions):
    """All steps in one program; returns the last state and the info of every step."""
    state = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")(positions, jax.random.split(key, chains))

    def body(state, index):
        keys = jax.vmap(lambda chain: core.fold(key, chain, index))(jnp.arange(chains))
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")
        return step(keys, state)

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(num_steps)))(state)


def numpy_dual_averaging(rates_of, num_steps, target, step):
    """Hoffman & Gelman (2014), equation 6, with windows as Stan's."""
    ends, steps = stan_windows(num_steps), []
    mu, error, average, t = np.log(10 * step), 0.0, 0.0, 0
    for counter in range(1, num_steps + 1):
        steps.append(step)
        t += 1
        error = (1 - 1 / (t + 10)) * error + (target - rates_of(step)) / (t + 10)
        log_step = mu - np.sqrt(t) / 0.05 * error
        average = t**-0.75 * log_step + (1 - t**-0.75) * average
        step = np.exp(log_step)
        if counter in ends:
            step = np.exp(average)
            mu, error, average, t = np.log(10 * step), 0.0, 0.0, 0
    return np.array(steps), np.exp(average)


@pytest.mark.parametrize("chains", [1, 8])
def test_step_size_and_metric(chains):
    tuning = mcmc.warmup(
        toy(lambda step: jnp.exp(-step)),
        lambda q: 0.0,
        num_steps=500,
        axis_name="chain",
        metric="dense",
        estimate="covariance",
        target_acceptance=0.8,
    )
    state, info = run_pooled(tuning, jax.random.key(3), chains, 510, jnp.zeros((chains, 3)))
    steps, final = numpy_dual_averaging(lambda step: np.exp(-step), 500, 0.8, 1.0)
    # ONE update with the mean acceptance, however many chains: the path is that of one chain.
    np.testing.assert_allclose(info.step_size[:500, 0], steps, rtol=2e-4)
    np.testing.assert_allclose(info.step_size[500:], final, rtol=2e-4)
    np.testing.assert_allclose(final, -np.log(0.8), rtol=0.05)
    # The metric of the last window (250 draws a chain): entries within 5 standard errors (false alarm below 1e-5).
    learnt = np.asarray(state.shared.metric.factor, float)
    learnt = learnt @ learnt.T
    variances = np.diag(COVARIANCE)
    errors = np.sqrt((COVARIANCE**2 + np.outer(variances, variances)) / (250 * chains))
    shrunk = 250 * chains / (250 * chains + 5) * COVARIANCE + 5e-3 / (250 * chains + 5) * np.eye(3)
    assert np.all(np.abs(learnt - shrunk) < 5 * errors)
    assert state.shared.windows == len(stan_windows(500))


def test_rates_that_are_nan_count_as_zero():
    averaging = dual_averaging.start(jnp.float32(0.3))
    nan, zero = (dual_averaging.update(averaging, jnp.float32(rate), 0.8) for rate in (np.nan, 0.0))
    assert jax.tree.map(float, nan) == jax.tree.map(float, zero)
    # One chain of two reports NaN: the mean is that of (0, 1).
    tuning = mcmc.warmup(
        toy(lambda step: jnp.float32(np.nan)), lambda q: 0.0, num_steps=4, axis_name="chain", target_acceptance=0.8
    )
    state, _ = run_pooled(tuning, jax.random.key(0), 2, 1, jnp.zeros((2, 3)))
    np.testing.assert_allclose(state.shared.averaging.error, 0.8 / 11, rtol=1e-6)


# A metric from draws and gradients. For a Gaussian the gradients are known functions of the draws, and the metric is
# the covariance itself as soon as there are more draws than dimensions, however few and however correlated they are.
def window_of(draws, gradients, dense, weights=None):
    window = metric_estimation.start(draws.shape[-1], draws.dtype, dense, True)
    for row in range(draws.shape[0]):
        counts = jnp.ones(draws.shape[1], draws.dtype) if weights is None else weights[row]
        window = metric_estimation.update(window, draws[row], gradients[row], counts)
    return window


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fisher_metric_of_a_gaussian_is_its_covariance(dtype, x64, rng):
    size = 6
    root = np.tril(rng.normal(size=(size, size))) * np.geomspace(1e-3, 1e3, size)[:, None] + np.diag(
        np.geomspace(1e-3, 1e3, size)
    )
    draws = rng.normal(size=(10, 4, size)) @ root.T + 3.0
    gradients = -np.linalg.solve(root @ root.T, (draws - 3.0).reshape(-1, size).T).T.reshape(draws.shape)
    draws, gradients = jnp.asarray(draws, dtype), jnp.asarray(gradients, dtype)
    for dense in (True, False):
        unit = jnp.ones(size, dtype)
        old = _metric.Metric(jnp.diag(unit) if dense else unit)
        metric = jax.jit(metric_estimation.estimate)(window_of(draws, gradients, dense), old)
        factor = np.asarray(metric.factor, float)
        if dense:
            learnt, scales = factor @ factor.T, np.sqrt(np.diag(root @ root.T))
            error = (learnt - root @ root.T) / np.outer(scales, scales)
            assert np.abs(error).max() < (5e-3 if dtype == "float64" else 2e-2)  # the ridge's share, not chance
            assert np.all(np.diagonal(factor) > 0)
            assert np.allclose(factor, np.tril(factor))
        else:
            variances = draws.reshape(-1, size).std(0) / gradients.reshape(-1, size).std(0)
            np.testing.assert_allclose(factor**2, variances, rtol=1e-4)


def test_the_fisher_metric_solves_its_equation(x64, rng):
    """A G A = C for covariances that are no inverses of each other, in the terms of scipy.linalg.sqrtm."""
    draws, gradients = rng.normal(size=(40, 3, 5)) @ rng.normal(size=(5, 5)), rng.standard_t(5, size=(40, 3, 5))
    window = window_of(jnp.asarray(draws), jnp.asarray(gradients), True)
    factor = metric_estimation.estimate(window, _metric.Metric(jnp.eye(5))).factor
    c, g = (np.cov(x.reshape(-1, 5).T) for x in (draws, gradients))
    root = scipy.linalg.sqrtm(g)
    expected = np.linalg.solve(root, scipy.linalg.sqrtm(root @ c @ root)) @ np.linalg.inv(root)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_what_a_window_does_not_teach_stays_as_it_was(rng):
    old = _metric.Metric(jnp.array([2.0, 3.0]))
    few = jnp.asarray(rng.normal(size=(2, 4, 2)), jnp.float32)
    assert jnp.array_equal(metric_estimation.estimate(window_of(few, few, False), old).factor, old.factor)
    # A coordinate without a gradient (a flat direction), one that never moves: the old scale.
    draws = jnp.asarray(rng.normal(size=(20, 4, 2)) * [1.0, 0.0], jnp.float32)
    learnt = metric_estimation.estimate(window_of(draws, -draws, False), old).factor
    assert learnt[1] == 3.0
    assert abs(learnt[0] - 1) < 0.01
    # Draws of weight zero, however large, change nothing.
    draws = jnp.asarray(rng.normal(size=(20, 4, 2)), jnp.float32)
    weights = jnp.asarray(rng.uniform(size=(20, 4)) < 0.5, jnp.float32)
    wild = jnp.where(weights[..., None] > 0, draws, 1e10)
    one, two = (window_of(x, -x, True, weights).positions for x in (draws, wild))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, two)
    kept = np.asarray(draws, float)[np.asarray(weights) > 0]
    np.testing.assert_allclose(one.squares / (one.number - 1), np.cov(kept.T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.mean, kept.mean(0), rtol=1e-4, atol=1e-5)


def test_chains_on_their_way_teach_nothing():
    """Three chains in the bulk of a narrow valley and one far up its wall: the metric is that of the valley."""
    covariance = np.array([[1.0, 0.999], [0.999, 1.0]])
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def valley(q):
        return -0.5 * jnp.sum(precision * jnp.expand_dims(q, 0) * jnp.expand_dims(q, 1))

    tuning = mcmc.warmup(mcmc.nuts, valley, num_steps=60, metric="dense", axis_name="chain")
    starts = jnp.array([[0.1, 0.1], [0.5, 0.5], [-0.5, -0.5], [3000.0, -3000.0]])
    state, _ = run_pooled(tuning, jax.random.key(3), 4, 60, starts)
    factor = np.asarray(state.shared.metric.factor, float)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=0.02)
    assert state.shared.windows >= 1


def test_a_chain_that_begins_far_away_arrives():
    """A regression on years that are not centred, scale unknown: one chain starts where it would drift for ever."""
    years, y = jnp.arange(1952.0, 2014.0), jnp.asarray(np.random.default_rng(0).normal(5, 1.1, 62), jnp.float32)

    def log_density(q):
        alpha, beta, log_sigma = q
        prior = -0.5 * ((alpha - 5) / 100) ** 2 - 0.5 * (beta / 0.03) ** 2 + log_sigma
        return prior - 62 * log_sigma - 0.5 * jnp.sum(((y - alpha - beta * years) * jnp.exp(-log_sigma)) ** 2)

    tuning = mcmc.warmup(mcmc.nuts, log_density, num_steps=400, metric="dense", axis_name="chain")
    starts = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.1, 0.0], [-1.0, -1.3, 0.2], [-1.7, 1.9, 0.7]])
    _, info = run_pooled(tuning, jax.random.key(2), 4, 400, starts)
    assert np.asarray(info.log_density)[100:].min() > np.median(info.log_density[300:]) - 25
    assert (
        np.asarray(info.num_steps)[300:].mean() < 12
    )  # and the metric is learnt: alpha and beta have a correlation of -1


@pytest.mark.parametrize("given", [None, 0.8])
def test_narrow_places_are_met_with_smaller_steps(given):
    def funnel(q):
        return -0.5 * (q[0] / 3) ** 2 - 0.5 * jnp.sum(q[1:] ** 2 * jnp.exp(-q[0])) - 0.5 * (q.size - 1) * q[0]

    def normal(q):
        return -0.5 * jnp.sum(q * q)

    starts = jax.random.normal(jax.random.key(0), (4, 6))
    aim, careful = (0.85, 0.95) if given is None else (given, given)
    for log_density, narrow in ((funnel, True), (normal, False)):

        def run(log_density=log_density, **acceptance):
            tuning = mcmc.warmup(mcmc.nuts, log_density, num_steps=400, axis_name="chain", **acceptance)
            return run_pooled(tuning, jax.random.key(1), 4, 400, starts)

        state, info = run(target_acceptance=given)
        assert bool(state.shared.narrow) == narrow
        # The tuning is, to the bit, one that aims at these two, and its last steps are near the one that counts.
        told = run(target_acceptance=aim, narrow_acceptance=careful)[0]
        np.testing.assert_array_equal(state.shared.step_size, told.shared.step_size)
        reached = np.asarray(info.acceptance_rate)[-40:].mean()
        np.testing.assert_allclose(reached, careful if narrow else aim, atol=0.04)


def test_a_descent_goes_to_the_highest_point_of_its_trajectory():
    """Each of many transitions ends as high as any point that a plain one from the same state, with its key, can."""
    starts = jnp.asarray(np.random.default_rng(3).normal(size=(500, 3)) * 4, jnp.float32)

    def go(descend):
        kernel = mcmc.nuts(lambda q: -0.5 * jnp.sum(q * q), 0.3, descend=descend)
        keys = jax.random.split(jax.random.key(1), 500)
        states, info = jax.jit(jax.vmap(lambda key, q: kernel.step(key, kernel.init(q, key))))(keys, starts)
        return np.asarray(states.log_density), np.asarray(info.num_steps)

    (high, steps), (plain, plain_steps) = go(True), go(False)
    np.testing.assert_array_equal(steps, plain_steps)  # the same trajectories
    assert np.all(high >= plain - 3)  # but for the start's share, which is small where chains are away
    assert np.mean(high > plain) > 0.3


def test_moments_of_chains_together(rng):
    draws = rng.normal([100.0, -3.0], [1.0, 0.01], (5, 40, 2))
    for dense in (False, True):

        @jax.jit
        def pooled_moments(draws, dense=dense):
            def add(moments, position):
                return _welford.update(moments, position), None

            one = jax.vmap(lambda chain: jax.lax.scan(add, _welford.start(2, jnp.float32, dense), chain)[0])
            return _welford.pool(one(draws))

        pooled = pooled_moments(jnp.asarray(draws, jnp.float32))
        together = draws.reshape(-1, 2)
        expected = np.cov(together.T) if dense else together.var(axis=0, ddof=1)
        np.testing.assert_allclose(pooled.mean, together.mean(axis=0), rtol=1e-6)
        scale = np.sqrt(np.outer(*[together.var(axis=0)] * 2)) if dense else 1
        np.testing.assert_allclose(pooled.squares / 199 / scale, expected / scale, rtol=1e-3, atol=1e-3 if dense else 0)


def test_a_covariance_that_cannot_be_used_leaves_the_metric():
    old = _metric.Metric(jnp.eye(2))
    for bad in ([[1.0, 2.0], [2.0, 1.0]], [[np.nan, 0.0], [0.0, 1.0]], [[np.inf, 0.0], [0.0, 1.0]]):
        assert jnp.array_equal(_metric.from_covariance(jnp.asarray(bad, jnp.float32), old).factor, old.factor)
    # Scales a billion apart and a correlation of 0.999 factorise in float32.
    root = np.array([[1e5, 0.0], [0.999e-4, 4.5e-6]])
    factor = _metric.from_covariance(jnp.asarray(root @ root.T, jnp.float32), old).factor
    np.testing.assert_allclose(factor, root, rtol=2e-2)


def correlated(q):
    return -0.5 * jnp.sum(q["a"] ** 2) - 2 * (q["b"] - q["a"][0]) ** 2


def positions(chains):
    return {"a": jnp.linspace(-1, 1, 3 * chains).reshape(chains, 3), "b": jnp.linspace(1, 2, chains)}


def on_devices(tuning, key, chains, devices, num_steps):
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    local, states = chains // devices, core.Shared(P("devices"), P())
    init = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")
    step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")

    def program(key, start):
        indices = jax.lax.axis_index("devices") * local + jnp.arange(local)
        keys = core.chain_keys(key, indices)

        def body(index, state):
            return step(jax.vmap(lambda key: core.fold(key, index))(keys), state)[0]

        return jax.lax.fori_loop(0, num_steps, body, init(start, keys))

    run = jax.shard_map(program, mesh=mesh, in_specs=(P(), P("devices")), out_specs=states, check_vma=False)
    return jax.tree.map(np.asarray, jax.jit(run)(key, positions(chains)))


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
def test_devices_change_no_bit(metric):
    """Sixteen chains on 1, 2 and 8 devices: every leaf of every state the same, through a window and beyond the end."""
    options = {"num_integration_steps": 3} if metric == "dense" else {}
    kernel = mcmc.hmc if metric == "dense" else mcmc.nuts
    tuning = mcmc.warmup(
        kernel,
        correlated,
        num_steps=40,
        metric=metric,
        axis_name=("devices", "chain"),
        initial_step_size=0.5,
        **options,
    )
    states = [on_devices(tuning, jax.random.key(5), 16, devices, 45) for devices in (1, 2, 8)]
    assert int(states[0].shared.windows) >= 1
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


@pytest.fixture(scope="module")
def tuned():
    tuning = mcmc.warmup(mcmc.nuts, correlated, num_steps=60)
    state = tuning.init({"a": jnp.ones(3), "b": jnp.ones(())}, jax.random.key(0))
    run = jax.jit(
        lambda state, begin, end: jax.lax.fori_loop(
            begin, end, lambda index, state: tuning.step(core.fold(jax.random.key(9), index), state)[0], state
        )
    )
    return tuning, state, run


def test_frozen_step_is_that_of_the_kernel(tuned):
    tuning, state, run = tuned
    state = run(state, 0, 60)
    assert state.shared.transitions == 60
    kernel = tuning.finish(state)
    step, kernel_step = jax.jit(tuning.step), jax.jit(kernel.step)
    plain = state.chain.kernel
    for index in range(20):
        warm, info = step(core.fold(jax.random.key(1), index), state)
        plain, kernel_info = kernel_step(core.fold(jax.random.key(1), index), plain)
        jax.tree.map(np.testing.assert_array_equal, warm.chain.kernel, plain)
        jax.tree.map(np.testing.assert_array_equal, info, kernel_info)
        jax.tree.map(np.testing.assert_array_equal, warm.shared, state.shared)
        state = warm
    jax.tree.map(np.testing.assert_array_equal, core.position_of(state), plain.position)


def test_chunks_equal_one_run(tuned):
    _, state, run = tuned
    whole = run(state, 0, 70)
    for cut in (1, 9, 33, 60, 65):
        jax.tree.map(np.testing.assert_array_equal, run(run(state, 0, cut), cut, 70), whole)


def test_another_length_compiles_nothing():
    step = None
    for num_steps in (0, 10, 100, 1000):
        tuning = mcmc.warmup(toy(lambda step: jnp.exp(-step)), lambda q: 0.0, num_steps=num_steps, metric="diagonal")
        state = tuning.init(jnp.zeros(3), jax.random.key(0))
        step = step or jax.jit(tuning.step)
        step(jax.random.key(1), state)
    assert step._cache_size() == 1


def test_state_is_a_pytree_of_one_dtype(x64):
    for dtype in (jnp.float32, jnp.float64):
        tuning = mcmc.warmup(mcmc.nuts, lambda q: -0.5 * jnp.sum(q * q), num_steps=30, metric="dense")
        state = jax.eval_shape(tuning.init, jax.ShapeDtypeStruct((2,), dtype), jax.random.key(0))
        after, info = jax.eval_shape(tuning.step, jax.random.key(0), state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        before = jax.tree.leaves(state)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [(x.shape, x.dtype) for x in before]
        floats = [x for x in jax.tree.leaves((state, info)) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in floats} == {jnp.dtype(dtype)}


def test_bad_arguments():
    make = partial(mcmc.warmup, mcmc.nuts, lambda q: -0.5 * q**2)
    with pytest.raises(ValueError, match="warmup: metric is 'full'; expected 'auto', 'diagonal', 'dense', 'low"):
        make(metric="full")
    with pytest.raises(ValueError, match="warmup: estimate is 'draws'; expected 'fisher' or 'covariance'"):
        make(estimate="draws")
    with pytest.raises(ValueError, match="warmup: num_steps is -1"):
        make(num_steps=-1)
    with pytest.raises(ValueError, match="warmup: target_acceptance is 1.5"):
        make(target_acceptance=1.5)
    with pytest.raises(ValueError, match="warmup: step_size is 0"):
        make(initial_step_size=0.0)
    with pytest.raises(TypeError, match="warmup: log_density is 3"):
        mcmc.warmup(mcmc.nuts, 3)
