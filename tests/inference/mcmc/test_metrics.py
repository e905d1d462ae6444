"""Low-rank and block metrics: factors and estimates against NumPy in float64, warm-ups that learn them, resumption."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxprob
from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _block_metric as block_metric
from jaxprob.inference.mcmc import _low_rank_metric as low_rank_metric
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation
from jaxprob.inference.mcmc._metric import as_metric
from tests.runtime.test_resume import Stopper

POOLED = core.Shared(0, None)


def orthonormal(rng, size, rank):
    return np.linalg.qr(rng.normal(size=(size, rank)))[0]


def low_rank_root(scales, vectors, values):
    return scales[:, None] * (np.eye(len(scales)) + (vectors * (np.sqrt(values) - 1)) @ vectors.T)


def as_low_rank(scales, vectors, values, dtype="float32"):
    return mcmc.LowRankMetric(*(jnp.asarray(x, dtype) for x in (scales, vectors, values)))


def matrix_of(metric):
    """The inverse mass of a metric, from the velocities of all momenta."""
    size = metric.factor.shape[0]
    root = np.asarray(jax.vmap(metric.velocity)(jnp.eye(size, dtype=metric.factor.dtype)), float).T
    return root @ root.T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "rank"), [(5, 2), (60, 1), (60, 3), (200, 40), (7, 0), (4, 4)])
def test_a_low_rank_metric_is_its_matrix(size, rank, dtype, x64, rng):
    scales, vectors, values = rng.lognormal(size=size), orthonormal(rng, size, rank), rng.lognormal(0, 3, size=rank)
    root = low_rank_root(scales, vectors, values)
    metric = as_low_rank(scales, vectors, values).astype(dtype)
    vector = rng.normal(size=size)
    given = jnp.asarray(vector, dtype)
    tolerance = {"rtol": 0, "atol": 2e-6 * np.abs(root).max() * np.sqrt(size)}  # the metric itself is of float32
    for computed, expected in ((metric.velocity(given), root @ vector), (metric.force(given), root.T @ vector)):
        assert computed.dtype == dtype
        np.testing.assert_allclose(computed, expected, **tolerance)
    assert metric.inverse_mass.dtype == dtype
    np.testing.assert_allclose(metric.inverse_mass, root @ root.T, rtol=0, atol=2e-6 * np.abs(root @ root.T).max())


def test_a_block_metric_is_its_matrix(rng):
    position = {"a": np.zeros((2, 3)), "b": np.zeros(40), "c": np.zeros(()), "d": np.zeros(2), "e": np.zeros(35)}
    ranges = block_metric.ranges_of(position, (("c", "a"), "e"))
    assert ranges == (((46, 47), (0, 6)), ((49, 84),))
    roots = [np.tril(rng.normal(size=(n, n))) for n in (7, 35)]
    scales = rng.lognormal(size=84)
    expected = np.diag(scales)
    for index, root in zip(([46, *range(6)], list(range(49, 84))), roots, strict=True):
        expected[np.ix_(index, index)] = root
        scales[index] = 1
    metric = mcmc.BlockMetric(jnp.asarray(scales, "float32"), tuple(jnp.asarray(x, "float32") for x in roots), ranges)
    vector = rng.normal(size=84)
    np.testing.assert_allclose(metric.velocity(jnp.asarray(vector, "float32")), expected @ vector, atol=1e-4)
    np.testing.assert_allclose(metric.force(jnp.asarray(vector, "float32")), expected.T @ vector, atol=1e-4)
    np.testing.assert_allclose(metric.inverse_mass, expected @ expected.T, rtol=0, atol=1e-4)
    assert {x.dtype for x in jax.tree.leaves(metric.astype("bfloat16"))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("size", [3, 40])
def test_a_metric_gives_back_what_it_was_made_of(size, x64, rng):
    root = np.tril(rng.normal(size=(size, size))) + 3 * np.eye(size)
    for given in (2.5, rng.lognormal(size=size), root @ root.T):
        for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
            metric = as_metric(jnp.asarray(given, dtype), "test")
            found = jax.jit(lambda metric: metric.inverse_mass)(metric)
            assert found.dtype == dtype
            assert found.shape == np.shape(given)
            np.testing.assert_allclose(found, given, rtol=0, atol=tolerance * np.max(given))


@pytest.mark.parametrize("kernel", [partial(mcmc.hmc, num_integration_steps=4), mcmc.mala], ids=["hmc", "mala"])
def test_kernels_take_them(kernel, x64, rng):
    """A dense factor with the same numbers makes the kernel take the same steps."""
    size, rank = 6, 2
    scales, vectors, values = rng.lognormal(size=size), orthonormal(rng, size, rank), np.array([9.0, 0.1])
    low_rank = as_low_rank(scales, vectors, values, "float64")
    dense = mcmc.Metric(jnp.asarray(low_rank_root(scales, vectors, values)))
    ranges = (((0, 2),), ((2, 6),))
    roots = [jnp.asarray(rng.normal(size=(n, n)) + 2 * np.eye(n)) for n in (2, 4)]
    block = mcmc.BlockMetric(jnp.ones(size), tuple(roots), ranges)
    for metric, same in ((low_rank, dense), (block, mcmc.Metric(jnp.asarray(scipy.linalg.block_diag(*roots))))):
        ends = []
        for one in (metric, same):
            algorithm = kernel(lambda q: -0.5 * jnp.sum(q**2) - 0.1 * jnp.sum(q**4), 0.2, inverse_mass_matrix=one)
            state = algorithm.init(jnp.ones(size), jax.random.key(0))
            for index in range(5):
                state, _ = jax.jit(algorithm.step)(jax.random.key(index), state)
            ends.append(state.position)
        assert jnp.any(ends[0] != 1)
        np.testing.assert_allclose(*ends, rtol=1e-9)


def test_a_metric_of_another_size_is_said():
    metric = as_low_rank(np.ones(3), np.eye(3)[:, :1], np.ones(1))
    with pytest.raises(ValueError, match=r"nuts: inverse_mass_matrix is of shape \(3,\); expected"):
        mcmc.nuts(lambda q: -0.5 * jnp.sum(q * q), 0.1, metric).init(jnp.ones(4), jax.random.key(0))
    with pytest.raises(ValueError, match=r"LowRankMetric: vectors is of shape \(3, 2\) with factor \(3,\) and values"):
        as_low_rank(np.ones(3), np.ones((3, 2)), np.ones(1))


# What a window teaches.
def window_of(window, draws, gradients, dtype="float32", weights=None):
    """Draws (transition, chain, size)."""
    add = jax.jit(metric_estimation.update)
    for row in range(draws.shape[0]):
        counts = jnp.ones(draws.shape[1], dtype) if weights is None else jnp.asarray(weights[row], dtype)
        window = add(window, jnp.asarray(draws[row], dtype), jnp.asarray(gradients[row], dtype), counts)
    return window


def test_the_ring_holds_the_last_draws_that_count(rng):
    for chains in (3, 150):  # fewer than it has rows, and more
        draws = rng.normal(size=(70, chains, 2))
        weights = rng.uniform(size=(70, chains)) < 0.7
        draws[~weights] = np.nan
        window, _ = low_rank_metric.start(2, "float32", 2)
        window = window_of(window, draws, -draws, weights=weights)
        kept = draws.reshape(-1, 2)[weights.reshape(-1)].astype(np.float32)
        assert int(window.number) == len(kept)
        rows = np.roll(np.asarray(window.positions), -(len(kept) % 100), axis=0)
        np.testing.assert_array_equal(rows, kept[-100:])
        np.testing.assert_array_equal(window.gradients, -window.positions)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_more_draws_than_dimensions_it_is_the_covariance(dtype, x64, rng):
    """Of a normal law, whatever its covariance, if there are as many directions as dimensions."""
    size = 6
    root = rng.normal(size=(size, size)) * np.geomspace(1e-3, 1e3, size)[:, None]
    draws = rng.normal(size=(20, 4, size)) @ root.T
    gradients = -draws @ np.linalg.inv(root @ root.T)
    window, unit = low_rank_metric.start(size, dtype, size)
    window = window_of(window, draws + np.float32(3.0) * np.abs(root).max(1), gradients, dtype)
    metric = jax.jit(partial(low_rank_metric.low_rank, cutoff=1.0))(window, unit)
    scales = np.sqrt(np.diag(root @ root.T))
    error = (matrix_of(metric) - root @ root.T) / np.outer(scales, scales)
    assert np.abs(error).max() < (1e-3 if dtype == "float64" else 2e-2)


@pytest.mark.parametrize("values", [np.full(5, 1e4), np.full(5, 1e-4), np.array([100.0, 30, 0.03, 0.01, 300])])
def test_directions_are_found_with_fewer_draws_than_dimensions(values, rng):
    """120 dimensions in units that differ, 100 draws: every direction of the whitened law has a variance near one."""
    size = 120
    scales, vectors = rng.lognormal(size=size), orthonormal(rng, size, 5)
    root = low_rank_root(scales, vectors, values)
    draws = rng.normal(size=(25, 4, size)) @ root.T
    gradients = -np.linalg.solve(root @ root.T, draws.reshape(-1, size).T).T.reshape(draws.shape)
    window, unit = low_rank_metric.start(size, "float32", 8)
    window = window_of(window, draws, gradients)
    metric = unit
    for _ in range(4):  # as four windows do
        metric = jax.jit(metric_estimation.estimate)(window, metric)
    whitened = np.linalg.solve(np.linalg.cholesky(matrix_of(metric)), root)
    variances = np.linalg.eigvalsh(whitened @ whitened.T)
    assert variances[-1] / variances[0] < 5, variances[[0, 1, 5, 60, -6, -2, -1]]
    vectors = np.asarray(metric.vectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-5)
    values = np.asarray(metric.values)
    assert np.all((values == 1) | (values > 2) | (values < 0.5))


def test_without_directions_it_is_the_diagonal(rng):
    size = 9
    draws, gradients = rng.normal(size=(30, 3, size)) * np.geomspace(0.1, 10, size), rng.normal(size=(30, 3, size))
    window, unit = low_rank_metric.start(size, "float32", 0)
    metric = metric_estimation.estimate(window_of(window, draws, gradients), unit)
    expected = np.sqrt(draws.reshape(-1, size).std(0) / gradients.reshape(-1, size).std(0))
    np.testing.assert_allclose(metric.factor, expected, rtol=1e-5)
    momentum = jnp.arange(9.0)
    np.testing.assert_array_equal(metric.velocity(momentum), metric.factor * momentum)


def test_what_cannot_be_used_leaves_the_metric(rng):
    draws = rng.normal(size=(20, 3, 5))
    _, unit = low_rank_metric.start(5, "float32", 2)
    old = mcmc.LowRankMetric(2 * unit.factor, unit.vectors, 3 * unit.values)
    few, broken = draws[:3], draws.copy()
    broken[4, 1, 2] = np.nan
    for given in (few, broken):
        learnt = metric_estimation.estimate(window_of(low_rank_metric.start(5, "float32", 2)[0], given, -given), old)
        jax.tree.map(np.testing.assert_array_equal, learnt, old)
    # A coordinate that never moves keeps its scale, and the others are learnt.
    draws[:, :, 3] = 7.0
    learnt = metric_estimation.estimate(window_of(low_rank_metric.start(5, "float32", 2)[0], draws, -draws), unit)
    np.testing.assert_allclose(learnt.factor, [1, 1, 1, 1, 1], rtol=1e-4)


def test_blocks_are_dense_estimates_and_the_rest_is_diagonal(rng):
    position = {"a": np.zeros(3), "b": np.zeros(2), "c": np.zeros(2)}
    index = [0, 1, 2, 5, 6]
    root = rng.normal(size=(7, 7)) + 2 * np.eye(7)
    draws = rng.normal(size=(50, 2, 7)) @ root.T
    gradients = rng.normal(size=(50, 2, 7)) @ root
    for fisher in (True, False):
        window, unit = block_metric.start(position, "float32", (("a", "c"),), fisher)
        matrix = matrix_of(metric_estimation.estimate(window_of(window, draws, gradients), unit))
        assert np.all(matrix[np.ix_(index, [3, 4])] == 0)
        assert matrix[3, 4] == 0
        c, g = (np.cov(x.reshape(-1, 7).T) for x in (draws, gradients))
        if fisher:
            half = scipy.linalg.sqrtm(g[np.ix_(index, index)])
            inner = scipy.linalg.sqrtm(half @ c[np.ix_(index, index)] @ half)
            block, rest = np.linalg.solve(half, inner) @ np.linalg.inv(half), np.sqrt(np.diag(c) / np.diag(g))
        else:
            c = 100 / 105 * c + 5e-3 / 105 * np.eye(7)
            block, rest = c[np.ix_(index, index)], np.diag(c)
        np.testing.assert_allclose(matrix[np.ix_(index, index)], block, atol=2e-3 * np.abs(block).max())
        np.testing.assert_allclose(np.diag(matrix)[3:5], rest[3:5], rtol=1e-4)


# Warm-up.
def run(tuning, starts, num_steps, of_draw):
    """(num_steps, chain, ...) of draws, the leapfrogs, and the last state."""
    chains = starts.shape[0]

    @jax.jit
    def program(starts):
        state = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")(
            starts, jax.random.split(jax.random.key(0), chains)
        )

        def body(state, index):
            keys = jax.vmap(lambda chain: core.fold(jax.random.key(1), chain, index))(jnp.arange(chains))
            step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")
            state, info = step(keys, state)
            return state, (of_draw(state.chain.position), info.num_steps)

        return jax.lax.scan(body, state, jnp.arange(num_steps))

    state, (draws, steps) = program(starts)
    return np.asarray(draws), np.asarray(steps), state


def test_a_thousand_dimensions_with_ten_long_ones(rng):
    """Standard deviations of 100 along ten directions that are no axes, and of 1 along 990: as cheap as white noise."""
    size, variance = 1000, 1e4
    vectors = jnp.asarray(orthonormal(rng, size, 10), jnp.float32)

    def along(q):
        return jnp.matmul(q, vectors, precision="highest")

    def log_density(q):
        return -0.5 * jnp.sum(q * q) + 0.5 * (1 - 1 / variance) * jnp.sum(along(q) ** 2)

    starts = jnp.asarray(rng.normal(size=(4, size)), jnp.float32)
    tuning = mcmc.warmup(mcmc.nuts, log_density, num_steps=300, metric="low-rank", axis_name="chain")
    draws, steps, state = run(tuning, starts, 400, along)
    # White noise of that size takes 15 steps of 0.26 for a draw, and a diagonal metric gets nowhere in 15 of 0.13.
    assert steps[300:].mean() < 17
    assert float(state.shared.step_size) > 0.22
    # NUTS draws of a normal law are at least as good as independent ones: 400 of them, means within 5 errors and
    # variances within 6 (false alarm below 1e-4 for twenty numbers).
    whitened = draws[300:].reshape(-1, 10) / np.sqrt(variance)
    assert np.abs(whitened.mean(0)).max() < 5 / 20
    assert np.abs((whitened**2).mean(0) - 1).max() < 6 * np.sqrt(2 / 400)
    assert np.sum(np.asarray(state.shared.metric.values) != 1) >= 10


def target(q):
    # Sums in an order that does not depend on how many chains share a device.
    apart, wide = q["b"] - q["a"][:2], jnp.abs(q["c"])
    return -0.5 * core.ordered_dot(q["a"], q["a"]) - 20 * core.ordered_dot(apart, apart) - core.ordered_sum(wide)


def starts_of(chains):
    a, b, c = (jnp.linspace(-1, 1, n * chains).reshape(chains, n) for n in (3, 2, 40))
    return {"a": a, "b": b, "c": c}


OPTIONS = {"low-rank": {"rank": 3}, "block": {"blocks": (("a", "b"),)}}


@pytest.mark.parametrize("metric", ["block"])  # a low-rank one is the same to rounding only
def test_devices_change_no_bit(metric):
    """Sixteen chains on 1, 2 and 8 devices: every leaf of every state the same, through windows and beyond the end."""
    tuning = mcmc.warmup(
        partial(mcmc.hmc, num_integration_steps=3),
        target,
        num_steps=40,
        metric=metric,
        axis_name=("devices", "chain"),
        initial_step_size=0.2,
        **OPTIONS[metric],
    )
    states = []
    for devices in (1, 2, 8):
        mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        local = 16 // devices
        init = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")

        def program(key, start, local=local, init=init, step=step):
            keys = core.chain_keys(key, jax.lax.axis_index("devices") * local + jnp.arange(local))

            def body(index, state):
                return step(jax.vmap(lambda key: core.fold(key, index))(keys), state)[0]

            return jax.lax.fori_loop(0, 45, body, init(start, keys))

        specs = {"mesh": mesh, "in_specs": (P(), P("devices")), "out_specs": core.Shared(P("devices"), P())}
        spread = jax.jit(jax.shard_map(program, check_vma=False, **specs))
        states.append(jax.tree.map(np.asarray, spread(jax.random.key(5), starts_of(16))))
    assert int(states[0].shared.windows) >= 1
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


@pytest.mark.parametrize("metric", OPTIONS)
def test_a_warmup_that_was_stopped_goes_on_with_the_same_bits(metric, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprob.runtime._loop.SECONDS_PER_CHUNK", 0.02)
    algorithm = partial(mcmc.warmup, mcmc.nuts, metric=metric, **OPTIONS[metric])
    options = {"initial": lambda key: jax.tree.map(lambda x: x[0], starts_of(1)), "algorithm": algorithm, "chains": 4}
    options |= {"warmup": 150, "draws": 50, "devices": 2}
    whole = jaxprob.sample(target, jax.random.key(3), **options)
    stopped = jaxprob.sample(target, jax.random.key(3), out=tmp_path / "run", progress=Stopper(60), **options)
    assert stopped.status == "stopped"
    assert stopped.draws["a"].shape[1] == 0  # in the warm-up
    resumed = jaxprob.sample(target, jax.random.key(3), out=tmp_path / "run", resume=True, **options)
    assert resumed.status == "finished"
    jax.tree.map(np.testing.assert_array_equal, dict(resumed.draws), dict(whole.draws))
    np.testing.assert_array_equal(resumed.stats["step_size"], whole.stats["step_size"])
    assert (
        resumed.meta["algorithm"]
        == {
            "low-rank": "nuts(metric='low-rank', rank=3)",
            "block": "nuts(blocks=(('a', 'b'),), metric='block')",
        }[metric]
    )


def test_bad_arguments():
    make = partial(mcmc.warmup, mcmc.nuts, target)

    def init(**options):
        return make(**options).init(jax.tree.map(lambda x: x[0], starts_of(1)), jax.random.key(0))

    for options, said in (
        ({"metric": "dense", "rank": 3}, "warmup: rank is 3 with metric='dense'; expected an integer of at least 0"),
        ({"metric": "low-rank", "rank": -1}, "warmup: rank is -1 with metric='low-rank'; expected an integer"),
        ({"metric": "low-rank", "estimate": "covariance"}, "warmup: estimate is 'covariance'; expected 'fisher' for"),
        ({"metric": "block"}, "warmup: blocks is None with metric='block'; expected a tuple of names of leaves"),
        ({"metric": "block", "blocks": "a"}, "warmup: blocks is 'a' with metric='block'; expected a tuple"),
        ({"blocks": ("a",)}, r"warmup: blocks is \('a',\) with metric='auto'; expected"),
        ({"metric": "block", "blocks": ("a", ("b", "z"))}, "warmup: blocks is with 'z'; expected names of leaves"),
        ({"metric": "block", "blocks": ("a", ("b", "a"))}, "warmup: blocks is with 'a' twice; expected each name"),
    ):
        with pytest.raises(ValueError, match=said):
            init(**options)
    walk = mcmc.warmup(mcmc.random_walk_metropolis, target, metric="low-rank")
    with pytest.raises(ValueError, match="warmup: metric is 'low-rank' for a kernel whose state has no"):
        walk.init(jax.tree.map(lambda x: x[0], starts_of(1)), jax.random.key(0))
