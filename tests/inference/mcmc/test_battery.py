"""What every kernel owes: exactness, a Geweke test, the same under every transformation, dtypes, no step into a hole.

Kernels are rows of `_cases_*.py`. A new family adds a file of rows and its name here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import core
from tests.inference.mcmc import (
    _cases_discrete,
    _cases_hamiltonian,
    _cases_metropolis,
    _cases_microcanonical,
    _cases_populations,
    _cases_riemannian,
    _cases_stochastic_gradient,
)
from tests.inference.mcmc._case import Case
from tests.inference.mcmc._targets import TARGETS, Target

FAMILIES = (
    _cases_metropolis,
    _cases_hamiltonian,
    _cases_populations,
    _cases_discrete,
    _cases_stochastic_gradient,
    _cases_riemannian,
    _cases_microcanonical,
)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
CHAINS = 16_000
FALSE_ALARM = 1e-6  # of one law or one table


def marks(case):
    return [pytest.mark.slow] if case.slow else []


# Long to compile eight times over; a sibling with the same mechanism is run always.
SLOW_TO_COMPILE = {
    "gibbs in random order",
    "gibbs of untrained proposals",
    "mixture of block proposals",
    "parallel tempering, random walk",
    "gibbs, exact and hmc",
    "nuts, coarse",
}


def by_target(cases):
    return [
        pytest.param(case, name, id=f"{case.name}-{name}", marks=marks(case)) for case in cases for name in case.targets
    ]


def each(cases):
    return [pytest.param(case, id=case.name, marks=marks(case)) for case in cases]


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype.kind == "f" else None), tree)


def grouped(tree, walkers):
    return tree if walkers is None else jax.tree.map(lambda x: x.reshape(-1, walkers, *x.shape[1:]), tree)


def single(tree, walkers):
    """Positions of all walkers, in float64 on the host."""
    tree = jax.tree.map(lambda x: np.asarray(x, float) if x.dtype.kind == "f" else np.asarray(x), tree)
    return tree if walkers is None else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def program(build, transitions):
    """A compiled function of keys, positions and what `build` makes an algorithm of: positions, infos of the last."""

    @jax.jit
    def chains(keys, positions, *arguments):
        algorithm = build(*arguments)

        def chain(key, position):
            def step(index, state):
                return algorithm.step(core.fold(key, index + 1), state)[0]

            state = algorithm.init(position, core.fold(key, 0))
            state = jax.lax.fori_loop(0, transitions - 1, step, state)
            state, info = algorithm.step(core.fold(key, transitions), state)
            return core.position_of(state), info

        return jax.vmap(chain)(keys, positions)

    return chains


def keys_for(positions, seed):
    return jax.random.split(jax.random.key(seed), len(jax.tree.leaves(positions)[0]))


def check_laws(target: Target, positions):
    for name, (values, cdf) in target.laws(positions).items():
        assert scipy.stats.kstest(values, cdf).pvalue > FALSE_ALARM, name
    if target.table is not None:
        codes, probabilities = target.table(positions)
        counts = np.bincount(codes, minlength=len(probabilities))
        # Rare states together, so that chi-squared holds.
        rare = probabilities * len(codes) < 10
        seen, expected = np.append(counts[~rare], counts[rare].sum()), probabilities * len(codes)
        expected = np.append(expected[~rare], expected[rare].sum())
        seen, expected = seen[expected > 0], expected[expected > 0]
        assert scipy.stats.chisquare(seen, expected).pvalue > FALSE_ALARM


def scores(target: Target, positions):
    """Every known law as standard normal scores, and every state of the table as an indicator: (n, quantities)."""
    columns = [
        scipy.stats.norm.ppf(np.clip(cdf(values), 1e-9, 1 - 1e-9)) for values, cdf in target.laws(positions).values()
    ]
    if target.table is not None:
        codes = target.table(positions)[0]
        columns += [(codes >> bit) & 1 for bit in range(int(codes.max()).bit_length())]
    return np.stack(columns, axis=1).astype(float)


@pytest.mark.parametrize(("case", "name"), by_target(case for case in CASES if case.exact and case.stationary))
def test_draws_of_the_target_stay_draws_of_the_target(case, name):
    """Laws, and how they hang together: products of scores and the log density against fresh exact draws."""
    target, rng = TARGETS[name], np.random.default_rng(0)
    starts = grouped(as_float32(target.draw(rng, CHAINS)), case.walkers)
    after, _ = program(lambda: case.build(target), case.transitions)(keys_for(starts, 11), starts)
    assert jax.tree.structure(after) == jax.tree.structure(starts)
    moved = np.mean([np.mean(np.asarray(a != b)) for a, b in zip(*map(jax.tree.leaves, (after, starts)), strict=True)])
    assert moved > case.moved
    after = single(after, case.walkers)
    check_laws(target, after)
    fresh = single(as_float32(target.draw(rng, CHAINS)), None)
    ours, theirs = scores(target, after), scores(target, fresh)
    for one in range(ours.shape[1]):
        for two in range(one):
            a, b = ours[:, one] * ours[:, two], theirs[:, one] * theirs[:, two]
            error = np.sqrt((a.var() + b.var()) / CHAINS)
            assert abs(a.mean() - b.mean()) < 5 * error + 1e-6, (one, two)  # false alarm 6e-7
    density = jax.jit(jax.vmap(target.log_density))
    a, b = (np.asarray(density(as_float32(x))) for x in (after, fresh))
    if len(np.unique(b)) > 1000:
        assert scipy.stats.ks_2samp(a, b).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("case", "name"), by_target(case for case in CASES if case.exact))
def test_chains_from_afar_find_the_target(case, name):
    """z-scores of means and mean squares of the scores of 64 chains; the error is from the chains' own means."""
    target, chains = TARGETS[name], 64
    algorithm = case.build(target)
    walkers = () if case.walkers is None else (case.walkers,)

    def start(x):
        x = jnp.broadcast_to(x, (chains, *walkers, *x.shape))
        if not jnp.issubdtype(x.dtype, jnp.floating) or not walkers:
            return x
        return x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape)  # an ensemble must not be one point

    @jax.jit
    @jax.vmap
    def run(key, position):
        def step(state, index):
            state, _ = algorithm.step(core.fold(key, index), state)
            return state, core.position_of(state)

        state = algorithm.init(position, core.fold(key, 2**31))
        return jax.lax.scan(step, state, jnp.arange(case.steps))[1]

    draws = run(jax.random.split(jax.random.key(5), chains), jax.tree.map(start, as_float32(target.far)))
    draws = jax.tree.map(lambda x: x[:, case.steps // 3 :], draws)
    length = jax.tree.leaves(draws)[0].shape[1]
    flat = single(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws), case.walkers)
    expected = scores(target, single(as_float32(target.draw(np.random.default_rng(1), 1000)), None)).shape[1]
    values = scores(target, flat).reshape(chains, -1, expected)
    assert values.shape[1] == length * (case.walkers or 1)
    continuous = len(target.laws(flat))
    means, squares = values.mean(axis=1), (values**2).mean(axis=1)
    for column in range(continuous):
        for of_chains, truth, widest in ((means[:, column], 0.0, 0.06), (squares[:, column], 1.0, 0.1)):
            error = of_chains.std(ddof=1) / np.sqrt(chains)
            assert error < widest  # or the test could see nothing
            assert abs(of_chains.mean() - truth) < 5.5 * error, column  # Student t, 63: false alarm 8e-7
    if target.table is not None:
        codes, probabilities = target.table(flat)
        bits = np.stack([(codes >> bit) & 1 for bit in range((len(probabilities) - 1).bit_length())], axis=1)
        states = np.arange(len(probabilities))
        for one in range(bits.shape[1]):
            for two in range(one + 1):
                both = (bits[:, one] & bits[:, two]).reshape(chains, -1).mean(axis=1)
                truth = np.sum(probabilities * ((states >> one) & (states >> two) & 1))
                error = both.std(ddof=1) / np.sqrt(chains)
                assert error < 0.03
                assert abs(both.mean() - truth) <= 5.5 * error, (one, two)  # both 0 for bits of no state


# Geweke (2004): parameters from the prior and data given them are exact draws of the joint law. Data drawn anew given
# the parameters, and parameters moved by the kernel given the data, must leave that law as it is: the parameters stay
# draws of the prior. The kernel is built of traced data inside jit.
def _no_draws(*_):
    raise AssertionError("a kernel is built of densities alone")


def curve(a):
    return a[0] + a[1] * jnp.array([-1.0, 0.0, 1.0, 2.0], a.dtype) + a[2] * jnp.array([1.0, 0.0, 1.0, 0.0], a.dtype)


def _continuous(y):
    def log_density(q):
        prior = -0.5 * (jnp.sum(q["a"] ** 2) + q["b"] ** 2)
        return prior - 0.5 * jnp.sum((y - curve(q["a"])) ** 2) * jnp.exp(-q["b"]) - 2.0 * q["b"]

    return Target(log_density, _no_draws, _no_draws)


def _latent(y):
    def log_likelihood(x):
        return jnp.sum(y * x - jnp.exp(x))

    def log_density(x):
        precision = jnp.asarray(np.linalg.inv(LATENT), x.dtype)
        return log_likelihood(x) - 0.5 * jnp.sum(precision * jnp.expand_dims(x, 0) * jnp.expand_dims(x, 1))

    return Target(log_density, _no_draws, _no_draws, None, (np.zeros(3), LATENT), log_likelihood)


def _discrete(y):
    def log_density(x):
        x = x.astype(y.dtype)
        return -0.5 * jnp.sum((y - jnp.sum(x)) ** 2) + x[0] * 0.7

    return Target(log_density, _no_draws, _no_draws)


def _both(y):
    def log_density(q):
        mean = q["x"] * (2.0 * q["label"].astype(y.dtype) - 1)
        return -0.5 * q["x"] ** 2 - 0.5 * jnp.sum((y - mean) ** 2)

    return Target(log_density, _no_draws, _no_draws)


LATENT = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.5], [0.2, 0.5, 0.8]])
FIRST = np.exp(0.7) / (1 + np.exp(0.7))
GEWEKE = {
    "continuous": (
        lambda rng, n: {"a": rng.normal(size=(n, 3)), "b": rng.normal(size=n)},
        lambda key, q: curve(q["a"]) + jnp.exp(q["b"] / 2) * jax.random.normal(key, (4,)),
        _continuous,
        lambda q: {
            **{f"a{k}": (q["a"][:, k], scipy.stats.norm.cdf) for k in range(3)},
            "b": (q["b"], scipy.stats.norm.cdf),
        },
    ),
    "latent": (
        lambda rng, n: rng.normal(size=(n, 3)) @ np.linalg.cholesky(LATENT).T,
        lambda key, x: jax.random.poisson(key, jnp.exp(x)).astype(x.dtype),
        _latent,
        lambda x: {
            "sum": (x.sum(1), scipy.stats.norm(0, np.sqrt(LATENT.sum())).cdf),
            "last": (x[:, 2], scipy.stats.norm(0, np.sqrt(0.8)).cdf),
        },
    ),
    "discrete": (
        lambda rng, n: (rng.uniform(size=(n, 4)) < np.array([FIRST, 0.5, 0.5, 0.5])).astype(np.int32),
        lambda key, x: jnp.sum(x).astype(jnp.float32) + jax.random.normal(key, (2,)),
        _discrete,
        lambda x: {},
    ),
    "mixed": (
        lambda rng, n: {"label": rng.integers(0, 2, n).astype(np.int32), "x": rng.normal(size=n)},
        lambda key, q: q["x"] * (2.0 * q["label"].astype(jnp.float32) - 1) + jax.random.normal(key, (2,)),
        _both,
        lambda q: {"x": (q["x"], scipy.stats.norm.cdf)},
    ),
}


@pytest.mark.parametrize(
    "case", each([case for case in CASES if case.walkers is None and case.exact and case.stationary])
)
def test_geweke(case):
    draw, simulate, target, laws = GEWEKE[case.kind]
    starts = as_float32(draw(np.random.default_rng(2), CHAINS))

    @jax.jit
    @jax.vmap
    def chain(key, position):
        def sweep(index, position):
            algorithm = case.build(target(simulate(core.fold(key, index, 0), position)))
            state = algorithm.init(position, core.fold(key, index, 1))
            for move in range(2):
                state, _ = algorithm.step(core.fold(key, index, 2 + move), state)
            return core.position_of(state)

        return jax.lax.fori_loop(0, 5, sweep, position)

    after = single(chain(jax.random.split(jax.random.key(3), CHAINS), starts), None)
    for name, (values, cdf) in laws(after).items():
        assert scipy.stats.kstest(values, cdf).pvalue > FALSE_ALARM, name
    if case.kind == "discrete":
        seen = np.bincount(after @ np.array([1, 2, 4, 8]), minlength=16)
        first = np.where(np.arange(16) & 1, FIRST, 1 - FIRST)
        assert scipy.stats.chisquare(seen, CHAINS * first / 8).pvalue > FALSE_ALARM
    if case.kind == "mixed":
        assert scipy.stats.binomtest(int(after["label"].sum()), CHAINS).pvalue > FALSE_ALARM


def typical(case, rng, number):
    target = TARGETS[case.targets[0]]
    return target, grouped(as_float32(target.draw(rng, number * (case.walkers or 1))), case.walkers)


def close(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if core.is_key(x):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("case", each([c._replace(slow=c.slow or c.name in SLOW_TO_COMPILE) for c in CASES]))
def test_jit_vmap_and_devices_change_nothing(case, rng):
    target, positions = typical(case, rng, 8)
    algorithm = case.build(target)

    def two(key, position):
        state = algorithm.init(position, core.fold(key, 0))
        state, _ = algorithm.step(core.fold(key, 1), state)
        return algorithm.step(core.fold(key, 2), state)

    def keys():
        return jax.random.split(jax.random.key(8), 8)

    def at(tree, index):
        return jax.tree.map(lambda x: x[index], tree)

    together, separate = jax.jit(jax.vmap(two))(keys(), positions), keys()
    for index in range(2):  # neither compiled as one program nor batched
        close(at(together, index), two(separate[index], at(positions, index)))
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(
        jax.vmap(two), mesh=mesh, in_specs=(P("devices"), P("devices")), out_specs=P("devices"), check_vma=False
    )
    close(jax.jit(spread)(keys(), positions), together)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", each(CASES))
def test_dtype_in_is_dtype_out(case, dtype, x64, rng):
    target, positions = typical(case, rng, 1)
    algorithm = case.build(target)
    position = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], dtype if x.dtype.kind == "f" else x.dtype), positions
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(algorithm.init, position, key)
    after, info = jax.eval_shape(algorithm.step, key, state)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (after, state)]
    assert shapes[0] == shapes[1]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: x.dtype, core.position_of(after)) == jax.tree.map(lambda x: x.dtype, position)
    floats = [x for x in jax.tree.leaves((after, info)) if jnp.issubdtype(x.dtype, jnp.floating)]
    # A discrete position says nothing of a dtype: the density decides.
    if case.kind != "discrete":
        assert {str(x.dtype) for x in floats} == {dtype}
    assert all(x.shape == () for x in jax.tree.leaves(info))


@pytest.mark.parametrize("case", each([case for case in CASES if case.kind in ("continuous", "latent")]))
def test_no_chain_goes_where_there_is_no_density(case, rng):
    """A density that is -inf or NaN beyond the first coordinate's 0.5: no chain is ever there, no rate is NaN."""
    walkers = case.walkers or 1

    def build(hole):
        def log_likelihood(x):
            x = jnp.ravel(x)
            return jnp.where(x[0] < 0.5, -0.5 * jnp.sum(x * x), hole.astype(x.dtype))

        def log_density(x):
            return log_likelihood(x) - 0.5 * jnp.sum(x * x)

        prior = (np.zeros(4), np.eye(4))
        return case.build(Target(log_density, _no_draws, _no_draws, None, prior, log_likelihood))

    starts = grouped(as_float32(-np.abs(rng.normal(size=(200 * walkers, 4)))), case.walkers)
    chains = program(build, 20)
    for hole in (-np.inf, np.nan):
        positions, info = chains(keys_for(starts, 4), starts, jnp.float32(hole))
        positions = single(positions, case.walkers)
        assert np.isfinite(positions).all()
        assert (positions[:, 0] < 0.5).all()
        assert positions[:, 0].max() > 0.0  # and they come close
        for name in ("acceptance_rate", "log_density", "energy"):
            if hasattr(info, name):
                assert np.isfinite(np.asarray(getattr(info, name))).all(), name
