"""Discrete kernels against exact transition matrices, written out in float64 NumPy from the papers' equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc

CATEGORIES = np.array([2, 3, 2])  # of three sites: 12 states
STATES = np.array(list(itertools.product(*map(range, CATEGORIES))))
STEPS = 20_000  # from each state
FALSE_ALARM = 1e-6  # of one row of one matrix

_RNG = np.random.default_rng(5)
PAIRS = np.triu(_RNG.normal(size=(3, 3)) * 0.5, 1)
FIELD = _RNG.normal(size=3) * 0.6
HOT_PAIRS = _RNG.normal(size=(3, 3, 3, 3)) * 0.35  # site, value, site, value
HOT_FIELD = _RNG.normal(size=(3, 3)) * 0.5
TABLE = np.where(np.arange(12) % 5 == 3, -np.inf, _RNG.normal(size=12))  # hard constraints: two states are impossible


def ordered(x):
    """A quadratic function of the values."""
    x = x.astype(jnp.result_type(float)) if jnp.issubdtype(x.dtype, jnp.integer) else x
    products = jnp.expand_dims(x, 0) * jnp.expand_dims(x, 1)
    return jnp.sum(jnp.asarray(PAIRS, x.dtype) * products) + jnp.sum(jnp.asarray(FIELD, x.dtype) * x)


def hot(z):
    """A quadratic function of indicators (site, value)."""
    pairs = jnp.asarray(HOT_PAIRS, z.dtype)
    return jnp.einsum("iajb,ia,jb->", pairs, z, z) + jnp.sum(jnp.asarray(HOT_FIELD, z.dtype) * z)


def constrained(x):
    return jnp.asarray(TABLE, jnp.result_type(float))[x[0] * 6 + x[1] * 2 + x[2]]


def densities(kind):
    """The log density of each state, and d (state, site, value): what the gradient says of a change. NumPy."""
    gains = np.full((12, 3, 3), -np.inf)
    if kind == "constrained":
        return TABLE, None
    if kind == "ordered":
        values = np.einsum("si,ij,sj->s", STATES, PAIRS, STATES) + STATES @ FIELD
        slopes = STATES @ (PAIRS + PAIRS.T) + FIELD
        for s, i in itertools.product(range(12), range(3)):
            for c in range(CATEGORIES[i]):
                gains[s, i, c] = slopes[s, i] * (c - STATES[s, i])
        return values, gains
    z = (STATES[:, :, None] == np.arange(3)).astype(float)
    values = np.einsum("iajb,sia,sjb->s", HOT_PAIRS, z, z) + np.einsum("ia,sia->s", HOT_FIELD, z)
    slopes = np.einsum("iajb,sjb->sia", HOT_PAIRS, z) + np.einsum("iajb,sia->sjb", HOT_PAIRS, z) + HOT_FIELD
    for s, i in itertools.product(range(12), range(3)):
        for c in range(CATEGORIES[i]):
            gains[s, i, c] = slopes[s, i, c] - slopes[s, i, STATES[s, i]]
    return values, gains


def index(state):
    return int(np.ravel_multi_index(tuple(state), tuple(CATEGORIES)))


def with_value(state, site, value):
    state = np.array(state)
    state[site] = value
    return index(state)


def site_matrix(log_p, site, metropolized):
    """Gibbs at one site, or Liu's (1996) modification of it."""
    matrix = np.zeros((12, 12))
    weights = np.exp(log_p)
    for s, state in enumerate(STATES):
        line = [with_value(state, site, c) for c in range(CATEGORIES[site])]
        if weights[line].sum() == 0:
            matrix[s, s] = 1
            continue
        p = weights[line] / weights[line].sum()
        here = state[site]
        if not metropolized:
            matrix[s, line] = p
            continue
        for c, t in enumerate(line):
            if c != here and p[c] > 0:
                ratio = (1 - p[here]) / (1 - p[c]) if p[c] < 1 else np.inf
                matrix[s, t] = p[c] / (1 - p[here]) * min(1, ratio)
        matrix[s, s] = 1 - matrix[s].sum()
    return matrix


def metropolis(log_p, proposals):
    """The matrix of Metropolis-Hastings with these proposals (state, state)."""
    matrix = np.zeros((12, 12))
    for s, t in itertools.product(range(12), range(12)):
        if s != t and proposals[s, t] > 0:
            ratio = np.exp(log_p[t] - log_p[s]) * proposals[t, s] / proposals[s, t]
            matrix[s, t] = proposals[s, t] * min(1, ratio)
    return matrix + np.diag(1 - matrix.sum(axis=1))


def one_change(gains, balance):
    """Grathwohl et al. (2021): one site and its value, with probability proportional to g(exp(d))."""
    proposals = np.zeros((12, 12))
    for s, state in enumerate(STATES):
        for i in range(3):
            for c in range(CATEGORIES[i]):
                if c != state[i]:
                    proposals[s, with_value(state, i, c)] = balance(np.exp(gains[s, i, c]))
    return proposals / proposals.sum(axis=1, keepdims=True)


def all_sites(gains, alpha, squared):
    """Zhang, Liu & Liu (2022): every site on its own."""
    proposals = np.ones((12, 12))
    for s, state in enumerate(STATES):
        for i in range(3):
            c = np.arange(CATEGORIES[i])
            weights = np.exp(0.5 * gains[s, i, c] - squared(c, state[i]) / (2 * alpha))
            proposals[s] *= (weights / weights.sum())[STATES[:, i]]
    return proposals


def ordinal(c, here):
    return (c - here) ** 2.0


def nominal(c, here):
    return 2.0 * (c != here)


def barker(t):
    return t / (1 + t)


def sweep(kind, metropolized):
    sites = [site_matrix(densities(kind)[0], site, metropolized) for site in range(3)]
    return sites[0] @ sites[1] @ sites[2]


def random_sites(kind, metropolized):
    mean = sum(site_matrix(densities(kind)[0], site, metropolized) for site in range(3)) / 3
    return mean @ mean @ mean


def guided(kind, balance):
    log_p, gains = densities(kind)
    return metropolis(log_p, one_change(gains, balance))


def langevin(kind, alpha, squared, adjusted=True):
    log_p, gains = densities(kind)
    proposals = all_sites(gains, alpha, squared)
    return metropolis(log_p, proposals) if adjusted else proposals


KERNELS = {
    "gibbs": (mcmc.discrete_gibbs(ordered, CATEGORIES), "ordered", lambda: sweep("ordered", False)),
    "gibbs, random": (
        mcmc.discrete_gibbs(ordered, CATEGORIES, order="random"),
        "ordered",
        lambda: random_sites("ordered", False),
    ),
    "gibbs, constrained": (
        mcmc.discrete_gibbs(constrained, CATEGORIES),
        "constrained",
        lambda: sweep("constrained", False),
    ),
    "metropolized": (mcmc.metropolized_gibbs(ordered, CATEGORIES), "ordered", lambda: sweep("ordered", True)),
    "metropolized, random": (
        mcmc.metropolized_gibbs(ordered, CATEGORIES, order="random"),
        "ordered",
        lambda: random_sites("ordered", True),
    ),
    "metropolized, constrained": (
        mcmc.metropolized_gibbs(constrained, CATEGORIES),
        "constrained",
        lambda: sweep("constrained", True),
    ),
    "gradients": (mcmc.gibbs_with_gradients(ordered, CATEGORIES), "ordered", lambda: guided("ordered", np.sqrt)),
    "gradients, barker": (
        mcmc.gibbs_with_gradients(ordered, CATEGORIES, balancing="barker"),
        "ordered",
        lambda: guided("ordered", barker),
    ),
    "gradients, one-hot": (
        mcmc.gibbs_with_gradients(hot, CATEGORIES, one_hot=True),
        "hot",
        lambda: guided("hot", np.sqrt),
    ),
    "langevin": (
        mcmc.discrete_langevin(ordered, CATEGORIES, 1.5),
        "ordered",
        lambda: langevin("ordered", 1.5, ordinal),
    ),
    "langevin, one-hot": (
        mcmc.discrete_langevin(hot, CATEGORIES, 0.8, one_hot=True),
        "hot",
        lambda: langevin("hot", 0.8, nominal),
    ),
    "langevin, unadjusted": (
        mcmc.discrete_langevin(ordered, CATEGORIES, 1.5, adjusted=False),
        "ordered",
        lambda: langevin("ordered", 1.5, ordinal, adjusted=False),
    ),
}


def transitions(algorithm, states, steps, dtype=jnp.int32):
    """Where steps from each state end, counted (states, states), and the infos."""

    @jax.jit
    @jax.vmap
    def one(key, position):
        state = algorithm.init(position, core.fold(key, 0))
        state, info = algorithm.step(core.fold(key, 1), state)
        return core.position_of(state), info

    starts = jnp.repeat(jnp.asarray(states, dtype), steps, axis=0)
    ends, info = one(jax.random.split(jax.random.key(7), len(starts)), starts)
    codes = np.ravel_multi_index(tuple(np.asarray(ends).T), tuple(CATEGORIES)).reshape(len(states), steps)
    return np.stack([np.bincount(row, minlength=12) for row in codes]), info


def check_rows(counts, matrix):
    for row, expected in zip(counts, matrix * counts.sum(axis=1, keepdims=True), strict=True):
        assert np.all(row[expected < 1e-9 * row.sum()] == 0)
        common = expected > 5
        observed = np.append(row[common], row[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        if wanted[-1] < 1:
            assert observed[-1] <= 10  # Poisson with mean below 1: 1e-8
            observed, wanted = observed[:-1], wanted[:-1]
        if len(wanted) > 1:
            wanted = wanted * observed.sum() / wanted.sum()
            assert scipy.stats.chisquare(observed, wanted).pvalue > FALSE_ALARM


@pytest.mark.parametrize("name", KERNELS)
def test_steps_from_each_state_are_those_of_the_exact_matrix(name):
    algorithm, kind, exact = KERNELS[name]
    matrix, log_p = exact(), densities(kind)[0]
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    assert np.all(matrix >= -1e-12)
    p = np.exp(log_p) / np.exp(log_p).sum()
    if "unadjusted" in name:
        assert np.abs(p @ matrix - p).max() > 1e-3
    else:
        np.testing.assert_allclose(p @ matrix, p, atol=1e-12)
    counts, info = transitions(algorithm, STATES, STEPS)
    check_rows(counts, matrix)
    stayed = np.asarray(info.acceptance_rate).reshape(12, STEPS).mean(axis=1)
    assert np.all((stayed >= 0) & (stayed <= 1 + 1e-6))


@pytest.mark.parametrize("name", ["gradients", "langevin", "gradients, one-hot"])
def test_acceptance_rates_are_the_exact_ones(name):
    """The mean rate from each state is the sum over proposals of q times the acceptance probability."""
    algorithm, kind, _ = KERNELS[name]
    log_p, gains = densities(kind)
    proposals = all_sites(gains, 1.5, ordinal) if name == "langevin" else one_change(gains, np.sqrt)
    rates = np.asarray(transitions(algorithm, STATES, STEPS)[1].acceptance_rate, float).reshape(12, STEPS)
    accepted = metropolis(log_p, proposals)
    np.fill_diagonal(accepted, np.diag(proposals))
    errors = rates.std(axis=1) / np.sqrt(STEPS)
    z = (rates.mean(axis=1) - accepted.sum(axis=1)) / np.maximum(errors, 1e-6)
    assert np.abs(z).max() < 5.5  # false alarm 5e-7


def test_a_wrong_matrix_is_noticed():
    """Without the correction the counts of Gibbs with gradients do not fit."""
    gains = densities("ordered")[1]
    counts, _ = transitions(KERNELS["gradients"][0], STATES, STEPS)
    with pytest.raises(AssertionError):
        check_rows(counts, one_change(gains, np.sqrt))
    with pytest.raises(AssertionError):
        check_rows(counts, guided("ordered", barker))


def test_metropolized_gibbs_dominates_gibbs():
    """Peskun: no larger probability off the diagonal in Gibbs, site by site."""
    for kind, site in itertools.product(("ordered", "hot"), range(3)):
        plain, modified = (site_matrix(densities(kind)[0], site, flag) for flag in (False, True))
        off = ~np.eye(12, dtype=bool)
        assert np.all(modified[off] >= plain[off] - 1e-12)


def test_chains_leave_impossible_states_and_never_return():
    impossible = STATES[np.isneginf(TABLE)]
    for kernel in (mcmc.discrete_gibbs, mcmc.metropolized_gibbs):
        counts, info = transitions(kernel(constrained, CATEGORIES), impossible, 100)
        assert counts[:, np.isneginf(TABLE)].sum() == 0
        assert np.isfinite(np.asarray(info.log_density)).all()


@pytest.mark.parametrize("hole", [-np.inf, np.nan])
@pytest.mark.parametrize("adjusted", [True, False])
def test_gradient_kernels_stay_out_of_holes(hole, adjusted):
    def log_density(x):
        x = x.astype(jnp.result_type(float))
        return jnp.where(x[0] + x[1] + x[2] < 2.5, ordered(x), hole)

    kernels = [mcmc.discrete_langevin(log_density, CATEGORIES, 2.0, adjusted=adjusted)]
    for algorithm in [*kernels, mcmc.gibbs_with_gradients(log_density, CATEGORIES)]:
        outside = STATES.sum(axis=1) > 2.5
        counts, info = transitions(algorithm, STATES[~outside], 1000)
        assert counts[:, outside].sum() == 0
        assert np.isfinite(np.asarray(info.log_density)).all()
        assert np.isfinite(np.asarray(info.acceptance_rate)).all()
        counts, _ = transitions(algorithm, STATES[outside], 1000)  # and find out of them
        assert counts[:, ~outside].sum() > 0


def test_a_density_without_gradient_still_makes_an_exact_kernel():
    """Rounding hides the gradient: proposals are uniform, and the matrix is that of a plain Metropolis kernel."""
    log_p = densities("ordered")[0]
    algorithm = mcmc.gibbs_with_gradients(lambda x: ordered(jnp.round(x.astype(float))), CATEGORIES)
    counts, _ = transitions(algorithm, STATES, 5000)
    check_rows(counts, metropolis(log_p, one_change(np.zeros((12, 3, 3)), np.sqrt)))


FACTORIES = {
    "discrete_gibbs": mcmc.discrete_gibbs,
    "metropolized_gibbs": mcmc.metropolized_gibbs,
    "gibbs_with_gradients": mcmc.gibbs_with_gradients,
    "discrete_langevin": mcmc.discrete_langevin,
}


def tree_density(q):
    a, b = (x.astype(jnp.result_type(float)) for x in (q["a"], q["b"]))
    return 0.7 * jnp.sum(a * a) - 0.4 * jnp.sum(a) * b


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(("one", "two"), [("int32", "int8"), ("uint8", "bool"), ("int32", "bool")])
@pytest.mark.parametrize("wide", [False, True])
def test_leaves_keep_their_types(name, one, two, wide):
    with jax.enable_x64(wide):
        algorithm = FACTORIES[name](tree_density, {"a": np.array([3, 2]), "b": 2})
        position = {"a": jnp.ones((2, 2), one), "b": jnp.zeros((), two)}
        state = algorithm.init(position, jax.random.key(0))
        for step in range(3):
            state, info = algorithm.step(core.fold(jax.random.key(1), step), state)
        assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state.position) == {"a": ((2, 2), one), "b": ((), two)}
        assert state.log_density.dtype == (jnp.float64 if wide else jnp.float32)
        np.testing.assert_allclose(info.log_density, tree_density(state.position), rtol=1e-6)
        assert np.all(np.asarray(state.position["a"])[:, 1] < 2)  # the columns have 3 and 2 categories


@pytest.mark.parametrize("name", FACTORIES)
def test_scalars_single_categories_and_no_sites(name):
    algorithm = FACTORIES[name](lambda x: 0.5 * jnp.sum(x.astype(float)), 2)
    seen = set()
    state = algorithm.init(jnp.int32(0), jax.random.key(0))
    for step in range(30):
        state, _ = algorithm.step(core.fold(jax.random.key(1), step), state)
        seen.add(int(state.position))
    assert seen == {0, 1}
    alone = FACTORIES[name](lambda x: 0.5 * jnp.sum(x.astype(float)), 1)
    state, info = alone.step(jax.random.key(1), alone.init(jnp.zeros(4, int), jax.random.key(0)))
    assert not np.any(state.position)
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in info)
    state, info = algorithm.step(jax.random.key(1), algorithm.init(jnp.zeros(0, int), jax.random.key(0)))
    assert state.position.shape == (0,)
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in info)


def test_evaluations_are_as_many_as_promised():
    calls = []

    def log_density(x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return 0.5 * jnp.sum(x.astype(float))

    def count(algorithm):
        state = jax.block_until_ready(jax.jit(algorithm.init)(jnp.zeros(5, int), jax.random.key(0)))
        jax.effects_barrier()
        calls.clear()
        jax.block_until_ready(jax.jit(algorithm.step)(jax.random.key(1), state))
        jax.effects_barrier()
        return len(calls)

    assert count(mcmc.discrete_gibbs(log_density, 3)) == 15
    assert count(mcmc.metropolized_gibbs(log_density, 3)) == 15
    assert count(mcmc.gibbs_with_gradients(log_density, 3)) == 1
    assert count(mcmc.discrete_langevin(log_density, 3)) == 1


def test_step_size_is_traced():
    """A step size that goes to zero leaves everything where it is; one program serves all."""
    traced = []

    @jax.jit
    def changed(step_size, key):
        traced.append(1)
        algorithm = mcmc.discrete_langevin(ordered, CATEGORIES, step_size)
        return algorithm.step(key, algorithm.init(jnp.zeros(3, int), jax.random.key(0)))[1].changed

    keys = jax.random.split(jax.random.key(2), 3)
    assert float(changed(jnp.float32(1e-3), keys[0])) == 0.0
    assert max(float(changed(jnp.float32(50.0), key)) for key in keys[1:]) > 0
    assert len(traced) == 1


@pytest.mark.parametrize("name", FACTORIES)
def test_bad_arguments(name):
    kernel = FACTORIES[name]
    with pytest.raises(TypeError, match=f"^({name}: )?.*log_density is 3; expected a function"):
        kernel(3, 2)
    with pytest.raises(ValueError, match=rf"^{name}: num_categories is 0; expected integers of at least 1"):
        kernel(ordered, 0)
    with pytest.raises(ValueError, match=rf"^{name}: num_categories is 1.5; expected integers"):
        kernel(ordered, 1.5)
    with pytest.raises(TypeError, match=rf"^{name}: num_categories is a traced .*; expected known integers"):
        jax.jit(lambda n: kernel(ordered, n).step(jax.random.key(0), None))(3)
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=rf"^{name}: leaf 'value' of the position is of dtype float32; expected int"):
        kernel(ordered, 2).init(jnp.zeros(3), key)
    with pytest.raises(ValueError, match=rf"^{name}: num_categories of leaf 'value' is of shape \(2,\)"):
        kernel(ordered, np.array([2, 2])).init(jnp.zeros(3, int), key)
    with pytest.raises(ValueError, match=rf"^{name}: num_categories of leaf 'value' is 3; expected at most 2 for bool"):
        kernel(ordered, 3).init(jnp.zeros(3, bool), key)
    with pytest.raises(ValueError, match=rf"^{name}: num_categories is .*; expected an integer or a pytree"):
        kernel(tree_density, {"a": 2}).init({"a": jnp.zeros(3, int), "b": jnp.int32(0)}, key)


def test_bad_options_and_densities():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="^discrete_gibbs: order is 'backwards'; expected 'systematic' or 'random'"):
        mcmc.discrete_gibbs(ordered, 2, order="backwards")
    with pytest.raises(ValueError, match="^gibbs_with_gradients: balancing is 'min'; expected 'sqrt' or 'barker'"):
        mcmc.gibbs_with_gradients(ordered, 2, balancing="min")
    with pytest.raises(ValueError, match="^discrete_langevin: step_size is -1"):
        mcmc.discrete_langevin(ordered, 2, -1.0)
    with pytest.raises(TypeError, match="^gibbs_with_gradients: log_density is a function that fails on floating"):
        mcmc.gibbs_with_gradients(lambda x: jnp.array([0.1, 0.2])[x].sum(), 2).init(jnp.zeros(3, int), key)
    with pytest.raises(ValueError, match=r"log_density: its value is float32 of shape \(3,\)"):
        mcmc.discrete_langevin(lambda x: x.astype(float), 2).init(jnp.zeros(3, int), key)
    with pytest.raises(ValueError, match="^discrete_gibbs: the value of log_density is of shape"):
        mcmc.discrete_gibbs(lambda x: x.astype(float), 2).init(jnp.zeros(3, int), key)
