"""Gibbs, mixtures and cycles: exact matrices and autocorrelations, stale states, kernels of all kinds as blocks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc
from tests.inference.mcmc._targets import TARGETS

CHAINS = 16_000
FALSE_ALARM = 1e-6


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def evolve(algorithm, positions, transitions, seed):
    """Positions of many chains after some transitions, and the infos of the last."""

    @jax.jit
    @jax.vmap
    def chain(key, position):
        state = algorithm.init(position, core.fold(key, 0))
        state = jax.lax.fori_loop(
            1, transitions, lambda index, state: algorithm.step(core.fold(key, index), state)[0], state
        )
        state, info = algorithm.step(core.fold(key, transitions), state)
        return core.position_of(state), info

    return chain(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(positions)[0])), positions)


def check_gaussian(algorithm, transitions=6):
    """Exact draws of the correlated Gaussian of the battery, moved by an algorithm, have its laws."""
    target = TARGETS["gaussian"]
    starts = as_float32(target.draw(np.random.default_rng(0), CHAINS))
    after, info = evolve(algorithm, starts, transitions, 3)
    moved = np.mean(np.asarray(after["a"] != starts["a"])), np.mean(np.asarray(after["b"] != starts["b"]))
    assert min(moved) > 0.5
    after = jax.tree.map(lambda x: np.asarray(x, float), after)
    for name, (values, cdf) in target.laws(after).items():
        assert scipy.stats.kstest(values, cdf).pvalue > FALSE_ALARM, name
    return info


def rough(f):
    """A kernel for which acceptance is far below one, so that a stale density would be seen."""
    return mcmc.hmc(f, step_size=0.55, num_integration_steps=3)


@pytest.mark.parametrize("order", ["systematic", "random"])
def test_two_continuous_blocks(order):
    info = check_gaussian(mcmc.gibbs(TARGETS["gaussian"].log_density, {"a": rough, "b": rough}, order=order))
    assert 0.5 < float(jnp.mean(info["a"].acceptance_rate)) < 0.97


def test_a_stale_state_would_be_noticed(monkeypatch):
    from jaxprob.inference.mcmc import _gibbs

    monkeypatch.setattr(_gibbs, "refresh", lambda begin, changed, arguments, state: state)
    with pytest.raises(AssertionError):
        check_gaussian(mcmc.gibbs(TARGETS["gaussian"].log_density, {"a": rough, "b": rough}))


class MomentumState(NamedTuple):
    position: jax.Array
    log_density: jax.Array
    log_density_gradient: jax.Array
    momentum: jax.Array
    steps: jax.Array


def persistent(f, step_size=0.5, persistence=0.8):
    """Generalised HMC (Horowitz 1991) on an array, written out here: one leapfrog step, momentum kept or turned."""

    def init(position, key):
        value, gradient = jax.value_and_grad(f)(position)
        return MomentumState(position, value, gradient, jax.random.normal(key, position.shape), jnp.int32(0))

    def step(key, state):
        noise = jax.random.normal(core.fold(key, 0), state.momentum.shape)
        old = persistence * state.momentum + np.sqrt(1 - persistence**2) * noise
        halfway = old + 0.5 * step_size * state.log_density_gradient
        position = state.position + step_size * halfway
        value, gradient = jax.value_and_grad(f)(position)
        momentum = halfway + 0.5 * step_size * gradient
        gain = value - state.log_density - 0.5 * jnp.sum(momentum**2 - old**2)
        accepted = jnp.log(jax.random.uniform(core.fold(key, 1))) < gain
        new = MomentumState(position, value, gradient, momentum, state.steps)
        stay = state._replace(momentum=-old)
        chosen = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, stay)
        return chosen._replace(steps=state.steps + 1), mcmc.MetropolisInfo(
            jnp.minimum(1, jnp.exp(gain)), accepted, value
        )

    return core.Algorithm(init, step)


@pytest.mark.parametrize("order", ["systematic", "random"])
def test_momentum_and_counters_survive(order):
    """A momentum that persists is exact, as is all else; and it does persist."""
    target = TARGETS["gaussian"]
    algorithm = mcmc.gibbs(target.log_density, {"a": persistent, "b": rough}, order=order)
    check_gaussian(algorithm)
    still = mcmc.gibbs(
        target.log_density, {"a": partial(persistent, step_size=1e-4, persistence=1.0), "b": rough}, order=order
    )
    state = first = still.init(as_float32(target.far), jax.random.key(0))
    for index in range(5):
        state, _ = still.step(core.fold(jax.random.key(1), index), state)
    old, new = first.blocks["a"], state.blocks["a"]
    assert int(new.steps) == 5
    np.testing.assert_allclose(new.momentum, old.momentum, atol=0.02)  # five forces of at most ten, times 1e-4
    assert abs(float(new.log_density - old.log_density)) > 0.1  # the other block has moved


def test_tuning_survives_in_a_block():
    """A kernel that warms up inside Gibbs comes to the step size that it comes to alone, and keeps it.

    The conditional is Gaussian with one covariance whatever the rest, so that both are tuned for the same law.
    """

    def tuned(f):
        return mcmc.warmup(mcmc.nuts, f, num_steps=200)

    density, far = TARGETS["gaussian"].log_density, as_float32(TARGETS["gaussian"].far)
    inside = mcmc.gibbs(density, {"a": tuned, "b": rough})
    alone = tuned(lambda a: density({"a": a, "b": jnp.float32(2.0)}))

    def run(algorithm, position, tuning):
        @jax.jit
        @jax.vmap
        def chain(key):
            def step(index, state):
                return algorithm.step(core.fold(key, index), state)[0]

            state = algorithm.init(position, core.fold(key, 10**6))
            state = jax.lax.fori_loop(0, 200, step, state)
            return state, jax.lax.fori_loop(200, 220, step, state)

        end, later = chain(jax.random.split(jax.random.key(0), 8))
        assert np.all(tuning(end).transitions == 200)
        np.testing.assert_array_equal(tuning(end).step_size, tuning(later).step_size)
        return np.log(np.asarray(tuning(end).step_size))

    ours = run(inside, far, lambda state: state.blocks["a"].shared)
    theirs = run(alone, far["a"], lambda state: state.shared)
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 8)
    assert abs(ours.mean() - theirs.mean()) < 6 * error + 0.02
    assert error < 0.2
    assert abs(ours.mean()) > 1e-3  # not where it began


KERNELS = {
    "nuts": partial(mcmc.nuts, step_size=0.3),
    "hmc": partial(mcmc.hmc, step_size=0.3, num_integration_steps=3),
    "mala": partial(mcmc.mala, step_size=0.3),
    "barker": partial(mcmc.barker, step_size=0.3),
    "random walk": partial(mcmc.random_walk_metropolis, step_size=0.5),
    "coordinate slice": mcmc.coordinate_slice,
    "hit and run": mcmc.hit_and_run_slice,
    "elliptical slice": lambda f: mcmc.elliptical_slice(lambda a: f(a) + 0.5 * jnp.sum(a * a), 0.0, 1.0),
    "crank-nicolson": lambda f: mcmc.preconditioned_crank_nicolson(
        lambda a: f(a) + 0.5 * jnp.sum(a * a), 0.0, 1.0, 0.5
    ),
    "metropolis": lambda f: mcmc.metropolis_hastings(
        f, lambda key, a: a + 0.5 * jax.random.normal(key, a.shape, a.dtype)
    ),
    "mixture": lambda f: mcmc.mixture([rough(f), mcmc.nuts(f, step_size=0.5)], [0.5, 0.5]),
    "cycle of two kinds": lambda f: mcmc.cycle([rough(f), mcmc.random_walk_metropolis(f, step_size=0.5)]),
    "warm-up": lambda f: mcmc.warmup(mcmc.nuts, f, num_steps=20),
    "sghmc": lambda f: mcmc.sghmc(mcmc.full_gradient(f), step_size=1e-3),
    "psgld": lambda f: mcmc.psgld(mcmc.full_gradient(f), step_size=1e-3),
    "marginal latent Gaussian": lambda f: mcmc.marginal_latent_gaussian(
        lambda a: f(a) + 0.5 * jnp.sum(a * a), 0.0, 1.0, 0.7
    ),
    "delayed acceptance": lambda f: mcmc.delayed_acceptance(
        f, lambda a: 0.9 * f(a), lambda key, a: a + 0.5 * jax.random.normal(key, a.shape, a.dtype)
    ),
    "surrogate transition": lambda f: mcmc.surrogate_transition(
        f, mcmc.random_walk_metropolis(lambda a: 0.9 * f(a), step_size=0.5), num_steps=2
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_the_package_as_blocks_beside_a_discrete_one(name):
    """Each runs inside jit, keeps the structure of its state, and moves as it does alone where nothing else moves."""

    def log_density(q):
        on = q["on"].astype(q["a"].dtype)
        return -0.5 * jnp.sum((q["a"] - on) ** 2) + 0.2 * on

    algorithm = mcmc.gibbs(log_density, {"a": KERNELS[name], "on": partial(mcmc.discrete_gibbs, num_categories=2)})
    position = {"a": jnp.array([0.5, -1.0]), "on": jnp.int32(1)}
    state = algorithm.init(position, jax.random.key(0))
    step = jax.jit(
        lambda key, state: jax.lax.fori_loop(
            0, 3, lambda index, state: algorithm.step(core.fold(key, index), state)[0], state
        )
    )
    after = step(jax.random.key(1), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert np.isfinite(after.position["a"]).all()
    assert np.any(after.position["a"] != position["a"])
    new, info = algorithm.step(jax.random.key(2), state)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(info))
    alone = KERNELS[name](lambda a: log_density({"a": a, "on": position["on"]}))
    key = core.fold(jax.random.key(2), 0)  # of the first block
    expected, _ = alone.step(core.fold(key, 1), state.blocks["a"])
    np.testing.assert_allclose(new.position["a"], core.position_of(expected), rtol=1e-6)


def test_systematic_gibbs_on_a_bivariate_normal_has_the_known_autocorrelation():
    """x, y standard normal with correlation r, both drawn exactly: x is autoregressive with coefficient r^2."""
    r = 0.8

    def given(name):
        def draw(key, position):
            other = position[name]
            return r * other + np.sqrt(1 - r**2) * jax.random.normal(key, other.shape, other.dtype)

        return mcmc.Exact(draw)

    algorithm = mcmc.gibbs(lambda q: 0.0 * q["x"], {"x": given("y"), "y": given("x")})
    normal = np.random.default_rng(0).multivariate_normal([0, 0], [[1, r], [r, 1]], CHAINS)
    starts = as_float32({"x": normal[:, 0], "y": normal[:, 1]})
    after, info = evolve(algorithm, starts, 1, 5)
    assert info == {}
    for name, square in (("x", r**2), ("y", r**2)):
        correlation = np.corrcoef(after[name], normal[:, 1] if name == "y" else normal[:, 0])[0, 1]
        z = (np.arctanh(correlation) - np.arctanh(square)) * np.sqrt(CHAINS - 3)
        assert abs(z) < 5
    assert scipy.stats.kstest(np.asarray(after["y"]), scipy.stats.norm.cdf).pvalue > FALSE_ALARM


TABLE = np.log([[0.1, 0.2, 0.05], [0.3, 0.05, 0.3]])  # of a in {0, 1} and b in {0, 1, 2}


def table_density(q):
    return jnp.asarray(TABLE, jnp.float32)[q["a"], q["b"]]


def block_matrices():
    """The exact matrices over the six states (a, b) of drawing a given b, and b given a."""
    p = np.exp(TABLE)
    of_a, of_b = np.zeros((6, 6)), np.zeros((6, 6))
    for a in range(2):
        for b in range(3):
            for c in range(2):
                of_a[3 * a + b, 3 * c + b] = p[c, b] / p[:, b].sum()
            for c in range(3):
                of_b[3 * a + b, 3 * a + c] = p[a, c] / p[a].sum()
    return of_a, of_b


def counts_of(algorithm, steps=20_000):
    states = {"a": np.repeat([0, 0, 0, 1, 1, 1], steps), "b": np.repeat([0, 1, 2, 0, 1, 2], steps)}
    after, _ = evolve(algorithm, jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), states), 1, 9)
    codes = (3 * np.asarray(after["a"]) + np.asarray(after["b"])).reshape(6, steps)
    return np.stack([np.bincount(row, minlength=6) for row in codes])


def check_matrix(algorithm, matrix):
    np.testing.assert_allclose(np.exp(TABLE).ravel() @ matrix, np.exp(TABLE).ravel(), atol=1e-12)
    for row, p in zip(counts_of(algorithm), matrix, strict=True):
        assert np.all(row[p == 0] == 0)
        assert scipy.stats.chisquare(row[p > 0], row.sum() * p[p > 0]).pvalue > FALSE_ALARM


A = partial(mcmc.discrete_gibbs, num_categories=2)
B = partial(mcmc.discrete_gibbs, num_categories=3)


def test_orders_and_combinators_have_the_exact_matrices():
    of_a, of_b = block_matrices()
    check_matrix(mcmc.gibbs(table_density, {"a": A, "b": B}), of_a @ of_b)
    check_matrix(mcmc.gibbs(table_density, {"b": B, "a": A}), of_b @ of_a)
    check_matrix(mcmc.gibbs(table_density, {"a": A, "b": B}, order="random"), (of_a @ of_b + of_b @ of_a) / 2)
    p = np.exp(TABLE)
    joint = mcmc.gibbs(table_density, {("a", "b"): partial(mcmc.discrete_gibbs, num_categories={"a": 2, "b": 3})})
    check_matrix(joint, of_a @ of_b)
    given_b = mcmc.block_metropolis(table_density, lambda rest: mcmc.JointCategorical(jnp.zeros(2), (2,), ()), "a")
    uniform = np.zeros((6, 6))
    for a in range(2):
        for b in range(3):
            uniform[3 * a + b, 3 * (1 - a) + b] = 0.5 * min(1, p[1 - a, b] / p[a, b])
    uniform += np.diag(1 - uniform.sum(axis=1))
    sweep = mcmc.discrete_gibbs(table_density, {"a": 2, "b": 3})
    check_matrix(mcmc.mixture([given_b, sweep], [0.3, 0.7]), 0.3 * uniform + 0.7 * of_a @ of_b)
    check_matrix(mcmc.cycle([given_b, sweep]), uniform @ of_a @ of_b)
    # States of two kinds: made anew at each step.
    blocks = mcmc.gibbs(table_density, {"b": B, "a": A})
    check_matrix(mcmc.mixture([given_b, blocks], jnp.array([0.3, 0.7])), 0.3 * uniform + 0.7 * of_b @ of_a)
    check_matrix(mcmc.cycle([blocks, given_b]), of_b @ of_a @ uniform)


def test_mixture_picks_by_its_probabilities_and_says_which():
    kernels = [mcmc.hmc(lambda x: -0.5 * x**2, size) for size in (0.1, 0.2, 0.3)]

    @jax.jit
    def picked(probabilities):
        algorithm = mcmc.mixture(kernels, probabilities)
        state = algorithm.init(jnp.float32(0.0), jax.random.key(0))
        return jax.vmap(lambda key: algorithm.step(key, state)[1])(jax.random.split(jax.random.key(3), 4000))

    info = picked(jnp.array([0.2, 0.0, 0.8]))
    counts = np.bincount(info.kernel, minlength=3)
    assert counts[1] == 0
    assert scipy.stats.binomtest(int(counts[0]), 4000, 0.2).pvalue > FALSE_ALARM
    np.testing.assert_allclose(info.info.step_size, np.array([0.1, 0.2, 0.3])[info.kernel], rtol=1e-6)
    assert picked(jnp.array([0.0, 1.0, 0.0])).kernel.tolist() == [1] * 4000


def counted(algorithm, position, calls):
    state = jax.block_until_ready(jax.jit(algorithm.init)(position, jax.random.key(0)))
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(jax.jit(algorithm.step)(jax.random.key(1), state))
    jax.effects_barrier()
    return len(calls)


def test_evaluations_are_as_many_as_promised():
    calls = []

    def log_density(q):
        jax.debug.callback(lambda _: calls.append(1), q["x"])
        return -0.5 * (q["x"] ** 2 + q["y"] ** 2)

    position = {"x": jnp.float32(0.1), "y": jnp.float32(0.2)}
    walk = partial(mcmc.random_walk_metropolis, step_size=0.5)
    hmc = partial(mcmc.hmc, step_size=0.5, num_integration_steps=4)
    draw = mcmc.Exact(lambda key, q: jax.random.normal(key))
    assert counted(mcmc.gibbs(log_density, {"x": walk, "y": walk}), position, calls) == 4  # one each, and one more each
    assert counted(mcmc.gibbs(log_density, {"x": hmc, "y": walk}), position, calls) == 7
    assert counted(mcmc.gibbs(log_density, {"x": hmc, "y": draw}), position, calls) == 5
    assert counted(mcmc.gibbs(log_density, {("x", "y"): hmc}), position, calls) == 4
    both = [hmc(log_density), mcmc.hmc(log_density, 0.1, num_integration_steps=4)]
    assert counted(mcmc.cycle(both), position, calls) == 8
    assert counted(mcmc.mixture(both, [0.5, 0.5]), position, calls) == 4
    assert counted(mcmc.cycle([both[0], walk(log_density)]), position, calls) == 7  # two states made anew


class Pair(NamedTuple):
    x: jax.Array
    y: jax.Array


@core.pytree
class Record:
    x: jax.Array
    y: jax.Array


@pytest.mark.parametrize("make", [Pair, Record, lambda x, y: {"x": x, "y": y}])
@pytest.mark.parametrize("order", ["systematic", "random"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_positions_of_every_kind(make, order, dtype):
    with jax.enable_x64(dtype == jnp.float64):

        def log_density(q):
            x, y = (q["x"], q["y"]) if isinstance(q, dict) else (q.x, q.y)
            return -0.5 * jnp.sum(x**2) - jnp.sum(x) * y - y**2

        algorithm = mcmc.gibbs(
            log_density,
            {"x": partial(mcmc.nuts, step_size=0.4), "y": partial(mcmc.random_walk_metropolis, step_size=0.4)},
            order=order,
        )
        position = make(x=jnp.ones(3, dtype), y=jnp.asarray(0.3, dtype))
        state = algorithm.init(position, jax.random.key(0))
        after, info = algorithm.step(jax.random.key(1), state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert [x.dtype for x in jax.tree.leaves(after.position)] == [dtype, dtype]
        last = "y" if order == "systematic" else None
        if last:
            np.testing.assert_allclose(info[last].log_density, log_density(after.position), rtol=1e-6)


@pytest.mark.parametrize("hole", [-np.inf, np.nan])
def test_blocks_stay_out_of_holes(hole):
    def log_density(q):
        value = -0.5 * (q["x"] ** 2 + q["y"] ** 2)
        return jnp.where(q["x"] + q["y"] < 0.5, value, hole)

    walk = partial(mcmc.random_walk_metropolis, step_size=1.0)
    starts = as_float32({"x": -np.ones(500), "y": -np.ones(500)})
    after, info = evolve(mcmc.gibbs(log_density, {"x": walk, "y": rough}), starts, 20, 2)
    total = np.asarray(after["x"] + after["y"])
    assert (total < 0.5).all()
    assert total.max() > 0.2
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in (info["x"].log_density, info["y"].log_density))


def test_bad_arguments():
    def log_density(q):
        return -0.5 * (q["x"] ** 2 + q["y"] ** 2)

    good = {"x": rough, "y": rough}
    position = {"x": jnp.float32(0.0), "y": jnp.float32(0.0)}
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="^gibbs: log_density is 3; expected a function"):
        mcmc.gibbs(3, good)
    with pytest.raises(
        TypeError, match=r"^gibbs: blocks is an object of type dict; expected a dict .* at least one block"
    ):
        mcmc.gibbs(log_density, {})
    with pytest.raises(ValueError, match="^gibbs: blocks is with 'x' in two places; expected each name in one block"):
        mcmc.gibbs(log_density, {"x": rough, ("y", "x"): rough})
    with pytest.raises(TypeError, match="^gibbs: blocks is with the key 3; expected names"):
        mcmc.gibbs(log_density, {3: rough})
    with pytest.raises(TypeError, match="^gibbs: block 'y' is 0.3; expected a function of a log density, or an Exact"):
        mcmc.gibbs(log_density, {"x": rough, "y": 0.3})
    with pytest.raises(ValueError, match="^gibbs: order is 'any'; expected 'systematic' or 'random'"):
        mcmc.gibbs(log_density, good, order="any")
    with pytest.raises(
        ValueError, match=r"^gibbs: blocks is without 'y'; expected the entries \['x', 'y'\]. Add a block"
    ):
        mcmc.gibbs(log_density, {"x": rough}).init(position, key)
    with pytest.raises(ValueError, match="^gibbs: blocks is with unknown name 'z'"):
        mcmc.gibbs(log_density, {**good, "z": rough}).init(position, key)
    with pytest.raises(TypeError, match="^gibbs: position is .*; expected a dict, a NamedTuple or a dataclass"):
        mcmc.gibbs(log_density, good).init(jnp.zeros(2), key)
    wrong = mcmc.gibbs(log_density, {"x": mcmc.Exact(lambda key, q: jnp.zeros(2)), "y": rough})
    with pytest.raises(ValueError, match="^gibbs: what the sampler of block 'x' returns, leaf 'value', is float32 of"):
        wrong.step(key, wrong.init(position, jax.random.key(1)))
    with pytest.raises(ValueError, match="^mixture: probabilities is .*; expected 1 numbers"):
        mcmc.mixture([rough(log_density)], [0.5, 0.5])
    with pytest.raises(ValueError, match="^mixture: probabilities is .*; expected numbers of at least 0 that sum to 1"):
        mcmc.mixture([rough(log_density)] * 2, [0.5, 0.6])
    with pytest.raises(ValueError, match="^cycle: kernels is .*; expected a list of at least one algorithm"):
        mcmc.cycle([])
    with pytest.raises(TypeError, match=r"^mixture: kernels\[0\] is .*; expected an algorithm"):
        mcmc.mixture([rough], [1.0])
