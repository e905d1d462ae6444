"""Two-stage kernels: exact matrices, frequencies, saved evaluations, awkward densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc

STATES = 6


def tables():
    """A target, a surrogate that has one state which the target has not, and proposals that depend on the state."""
    rng = np.random.default_rng(5)
    target, surrogate = rng.dirichlet(np.full(STATES, 0.8)), rng.dirichlet(np.ones(STATES))
    target[3] = 0.0
    return target / target.sum(), surrogate, rng.dirichlet(np.ones(STATES), size=STATES)


def logs(*arrays):
    with np.errstate(divide="ignore"):
        return [jnp.asarray(np.log(array)) for array in arrays]


def metropolis_matrix(law, proposals):
    """Metropolis-Hastings of a law with these proposals, entry by entry."""
    matrix = np.zeros((STATES, STATES))
    for x in range(STATES):
        for y in range(STATES):
            if y != x:
                up, down = law[y] * proposals[y, x], law[x] * proposals[x, y]
                matrix[x, y] = proposals[x, y] * (1.0 if down == 0 else min(1.0, up / down))
        matrix[x, x] = 1 - matrix[x].sum()
    return matrix


def test_the_exact_matrix_of_a_surrogate_transition_is_reversible(x64):
    """Every move of the surrogate's chain, with the probability of acceptance that the step reports for it."""
    target, surrogate, proposals = tables()
    log_target, log_surrogate = logs(target, surrogate)
    inner = metropolis_matrix(surrogate, proposals)

    @jax.jit
    def rate(x, y):
        def go(key, state):
            there = mcmc.MetropolisState(y, log_surrogate[y])
            return there, mcmc.MetropolisInfo(jnp.float64(1), jnp.bool_(True), there.log_density)

        forced = core.Algorithm(lambda x, key: mcmc.MetropolisState(x, log_surrogate[x]), go)
        kernel = mcmc.surrogate_transition(lambda x: log_target[x], forced)
        return kernel.step(jax.random.key(0), kernel.init(x, jax.random.key(1)))[1].acceptance_rate

    matrix = np.array([[inner[x, y] * rate(x, y) for y in range(STATES)] for x in range(STATES)])
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    flow = target[:, None] * matrix
    np.testing.assert_allclose(target @ matrix, target, atol=1e-13)
    np.testing.assert_allclose(flow, flow.T, atol=1e-13)
    assert np.all(np.delete(matrix[:, 3], 3) == 0)
    assert matrix[3, 3] < 1
    # Christen & Fox's formula: the second stage is Metropolis-Hastings whose proposals are those that pass the first.
    alive = np.delete(np.arange(STATES), 3)
    expected = metropolis_matrix(target, inner)
    np.testing.assert_allclose(matrix[alive], expected[alive], atol=1e-13)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_follow_the_exact_matrix(steps, x64):
    """Pairs (before, after) of 40,000 steps, chi-squared: false-alarm rate 1e-5. Three inner steps cube the matrix."""
    target, surrogate, proposals = tables()
    log_target, log_surrogate, log_q = logs(target, surrogate, proposals)
    inner = np.linalg.matrix_power(metropolis_matrix(surrogate, proposals), steps)
    flow, repeats = target[:, None] * metropolis_matrix(target, inner), 40_000
    before = np.random.default_rng(0).choice(STATES, size=repeats, p=target)

    def propose(key, x):
        return jax.random.categorical(key, log_q[x])

    def ratio(x, y):
        return log_q[y, x] - log_q[x, y]

    if steps == 1:
        kernel = mcmc.delayed_acceptance(lambda x: log_target[x], lambda x: log_surrogate[x], propose, ratio)
    else:
        cheap = mcmc.metropolis_hastings(lambda x: log_surrogate[x], propose, ratio)
        kernel = mcmc.surrogate_transition(lambda x: log_target[x], cheap, num_steps=steps)

    @jax.jit
    @jax.vmap
    def run(key, x):
        state, info = kernel.step(key, kernel.init(x, key))
        return state.position, info

    after, info = run(jax.random.split(jax.random.key(1), repeats), jnp.asarray(before))
    after = np.asarray(after)
    counts = np.zeros((STATES, STATES))
    np.add.at(counts, (before, after), 1)
    assert counts[flow == 0].sum() == 0
    possible = flow * repeats > 5
    expected = flow[possible] * repeats
    observed = counts[possible]
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-5
    np.testing.assert_array_equal(info.accepted, after != before)
    rate, moved = np.asarray(info.acceptance_rate), after != before
    assert np.all(rate[np.asarray(info.evaluations) == 0] == 0)
    assert abs(np.mean(moved - rate)) < 5 * 0.5 / np.sqrt(repeats)
    assert 0.05 < np.mean(info.evaluations) < 0.95


def drift(key, x):
    return x + jax.random.normal(key, x.shape, x.dtype)


def square(x):
    return -0.5 * jnp.sum(x * x)


def test_an_exact_surrogate_makes_the_second_stage_idle():
    """The chain is that of Metropolis-Hastings, and whatever moves is accepted for sure."""
    kernel, plain = mcmc.delayed_acceptance(square, square, drift), mcmc.metropolis_hastings(square, drift)
    state, other = kernel.init(jnp.ones(2), jax.random.key(0)), plain.init(jnp.ones(2), jax.random.key(0))
    for seed in range(40):
        state, info = jax.jit(kernel.step)(jax.random.key(seed), state)
        other, expected = jax.jit(plain.step)(core.fold(jax.random.key(seed), 0, 0), other)
        np.testing.assert_array_equal(state.position, other.position)
        assert info.accepted == expected.accepted
        assert info.acceptance_rate == float(expected.accepted)


def test_the_density_is_evaluated_only_where_the_surrogate_accepts():
    calls = []

    def costly(x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return square(x)

    kernel = mcmc.delayed_acceptance(costly, lambda x: 1.2 * square(x), lambda key, x: drift(key, 2 * x) - x)

    @jax.jit
    def run(key):
        def one(index, carry):
            state, info = kernel.step(core.fold(key, index), carry[0])
            return state, carry[1] + info.evaluations

        return jax.lax.fori_loop(0, 300, one, (kernel.init(jnp.ones(3), core.fold(key, 1000)), jnp.int32(0)))

    state, evaluations = run(jax.random.key(0))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(calls) == evaluations + 1
    assert 30 < evaluations < 270


@pytest.mark.parametrize("hole", [-np.inf, np.nan])
@pytest.mark.parametrize("where", ["density", "surrogate", "both"])
def test_holes(where, hole):
    """No density beyond 1, and no surrogate beyond 1: nobody goes there; a chain that starts there gets out."""

    def holed(factor):
        return lambda x: jnp.where(x[0] > 1, hole, factor * square(x))

    density = holed(1.0) if where != "surrogate" else square
    surrogate = holed(0.8) if where != "density" else lambda x: 0.8 * square(x)
    kernel = mcmc.delayed_acceptance(density, surrogate, drift)
    for start in (0.0, 2.0):
        if where == "surrogate" and start == 2.0:
            continue  # the density is there and the surrogate is not: what the surrogate must never be
        state = kernel.init(jnp.array([start, 0.0]), jax.random.key(0))
        inside = start < 1
        for seed in range(60):
            state, info = jax.jit(kernel.step)(jax.random.key(seed), state)
            inside |= bool(state.position[0] <= 1)
            assert inside == bool(state.position[0] <= 1)
            assert np.isfinite(info.acceptance_rate)
        assert inside


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes_and_gradient_kernels_inside(dtype, x64):
    for inner in (mcmc.hmc(lambda q: 0.9 * square(q["a"]), 0.3), mcmc.coordinate_slice(lambda q: 0.9 * square(q["a"]))):
        kernel = mcmc.surrogate_transition(lambda q: square(q["a"]), inner, num_steps=2)
        state = kernel.init({"a": jnp.ones(2, dtype)}, jax.random.key(0))
        assert core.position_of(state)["a"].dtype == dtype
        for seed in range(5):
            new, info = jax.jit(kernel.step)(jax.random.key(seed), state)
            assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)
            state = new
        assert np.all(state.position["a"] != 1)
        assert str(info.acceptance_rate.dtype) == ("float32" if dtype == "bfloat16" else dtype)
        assert info.evaluations == 1


def test_bad_arguments():
    with pytest.raises(TypeError, match="delayed_acceptance: log_density is None; expected a function"):
        mcmc.delayed_acceptance(None, square, drift)
    with pytest.raises(TypeError, match="delayed_acceptance: surrogate is 1; expected a function"):
        mcmc.delayed_acceptance(square, 1, drift)
    with pytest.raises(TypeError, match="delayed_acceptance: propose is 1; expected a function"):
        mcmc.delayed_acceptance(square, square, 1)
    with pytest.raises(ValueError, match="delayed_acceptance: the value of log_density is of shape \\(2,\\)"):
        mcmc.delayed_acceptance(lambda x: x, square, drift).init(jnp.ones(2), jax.random.key(0))
    inner = mcmc.hmc(square, 0.1)
    with pytest.raises(ValueError, match="surrogate_transition: num_steps is 0; expected an integer of at least 1"):
        mcmc.surrogate_transition(square, inner, num_steps=0)
    bare = core.Algorithm(lambda x, key: mcmc.warmup(mcmc.hmc, square).init(x, key), inner.step)
    with pytest.raises(TypeError, match="surrogate_transition: kernel is an object of type Algorithm; expected"):
        mcmc.surrogate_transition(square, bare).init(jnp.ones(2), jax.random.key(0))
