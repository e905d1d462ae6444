"""Metropolis-Hastings-Green: exact transition matrices, a jump between dimensions, awkward densities, pytrees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import core, scan
from jaxprob.inference import mcmc

STATES = 7


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles for the shortest compile time: these programs run once, on little data."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Choice(NamedTuple):
    """A distribution over 0, 1, ...; `forced` if not None is the value that is drawn whatever the key."""

    log_probabilities: jax.Array
    forced: jax.Array | None = None

    def sample(self, key):
        return jax.random.categorical(key, self.log_probabilities) if self.forced is None else self.forced

    def log_prob(self, value):
        return self.log_probabilities[value]


def swap(x, v):
    """The auxiliary value is the proposed state."""
    return v, x, 0.0


def shift(x, v):
    """The auxiliary value is a displacement on a circle."""
    return (x + v) % STATES, (-v) % STATES, 0.0


def tables():
    """A target over STATES states, one of them impossible, and proposals that depend on the state; float64."""
    rng = np.random.default_rng(3)
    target = rng.dirichlet(np.full(STATES, 0.7))
    target[4] = 0.0
    return target / target.sum(), rng.dirichlet(np.ones(STATES), size=STATES)


def discrete_kernel(kind, forced=None):
    """The kernel on the discrete target, from one of the two factories."""
    target, proposals = tables()
    with np.errstate(divide="ignore"):
        log_target, log_q = jnp.asarray(np.log(target)), jnp.asarray(np.log(proposals))
    if kind == "plain":

        def propose(key, x):
            return jax.random.categorical(key, log_q[x]) if forced is None else forced

        return mcmc.metropolis_hastings(lambda x: log_target[x], propose, lambda x, y: log_q[y, x] - log_q[x, y])
    involution = swap if kind == "swap" else shift
    return mcmc.metropolis_hastings_green(lambda x: log_target[x], lambda x: Choice(log_q[x], forced), involution)


def transition_matrix(kind):
    """Every proposal from every state, with the acceptance probability that the step reports for it."""
    _, proposals = tables()

    def acceptance(x, v):
        kernel = discrete_kernel(kind, forced=v)
        return kernel.step(jax.random.key(0), kernel.init(x, jax.random.key(1)))[1].acceptance_rate

    index = jnp.arange(STATES)
    rates = np.asarray(jax.jit(jax.vmap(jax.vmap(acceptance, (None, 0)), (0, None)))(index, index))
    matrix = np.zeros((STATES, STATES))
    for x in range(STATES):
        for v in range(STATES):
            there = v if kind in ("plain", "swap") else (x + v) % STATES
            matrix[x, there] += proposals[x, v] * rates[x, v]
            matrix[x, x] += proposals[x, v] * (1 - rates[x, v])
    return matrix


@pytest.mark.parametrize("kind", ["plain", "swap", "shift"])
def test_the_exact_transition_matrix_leaves_the_target_invariant(kind, x64):
    target, _ = tables()
    matrix = transition_matrix(kind)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)  # reversible
    alive = np.delete(np.arange(STATES), 4)
    assert np.all(matrix[alive][:, 4] == 0)  # the impossible state is never entered,
    assert matrix[4, 4] < 0.5  # and left,
    assert np.sort(np.abs(np.linalg.eigvals(matrix)))[-2] < 0.95  # and all others are visited


@pytest.mark.parametrize("kind", ["plain", "shift"])
def test_steps_follow_the_exact_transition_matrix(kind, x64):
    """Pairs (before, after) of 40,000 steps, chi-square: false-alarm rate 1e-4 each."""
    target, _ = tables()
    flow = target[:, None] * transition_matrix(kind)
    kernel, repeats = discrete_kernel(kind), 40_000
    before = np.random.default_rng(0).choice(STATES, size=repeats, p=target)

    @jax.jit
    @jax.vmap
    def run(key, x):
        state, info = kernel.step(key, kernel.init(x, key))
        return state.position, info

    after, info = run(jax.random.split(jax.random.key(1), repeats), jnp.asarray(before))
    counts = np.zeros((STATES, STATES))
    np.add.at(counts, (before, np.asarray(after)), 1)
    possible = flow * repeats > 1
    assert counts[flow == 0].sum() == 0
    observed, expected = counts[possible], flow[possible] * repeats
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4
    assert np.all(np.asarray(info.accepted)[np.asarray(after) != before])
    gap = np.mean(np.asarray(info.accepted) - np.asarray(info.acceptance_rate))
    assert abs(gap) < 4 * 0.5 / np.sqrt(repeats)


# --- a jump between models of one and of two parameters ---------------------------------------------------------

WEIGHTS = (0.3, 0.7)  # exact probabilities of the two models
ONE, TWO = (1.0, 0.5), ((0.5, 0.6), (1.5, 0.4))  # mean and sd of each parameter in each


def log_normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * np.log(2 * np.pi)


def two_models(position):
    a, b = position["theta"]
    first = np.log(WEIGHTS[0]) + log_normal(a, *ONE)
    second = np.log(WEIGHTS[1]) + log_normal(a, *TWO[0]) + log_normal(b, *TWO[1])
    return jnp.where(position["model"] == 0, first, second)


class SplitOrWalk(NamedTuple):
    """With probability a half a jump, which needs one number in the first model and none in the second; else a walk."""

    model: jax.Array

    def scales(self, jump):
        first, both = jnp.array([True, False]), jnp.arange(2) <= self.model
        used = jnp.where(jump, first & (self.model == 0), both)
        return used, jnp.where(jump, 0.8, 0.4)

    def sample(self, key):
        jump = jax.random.bernoulli(core.fold(key, 0))
        used, scale = self.scales(jump)
        return {"jump": jump, "step": jnp.where(used, scale * jax.random.normal(core.fold(key, 1), (2,)), 0.0)}

    def log_prob(self, value):
        used, scale = self.scales(value["jump"])
        return np.log(0.5) + jnp.sum(jnp.where(used, log_normal(value["step"], 0.0, scale), 0.0))


def split_or_merge(position, auxiliary, log_two):
    """(a, u) <-> (a + u, a - u), whose determinant is 2 one way and 1/2 the other; or a walk by `step`."""
    (a, b), step, jump = position["theta"], auxiliary["step"], auxiliary["jump"]
    up = position["model"] == 0
    jumped = jnp.where(up, jnp.array([a + step[0], a - step[0]]), jnp.array([(a + b) / 2, 0.0]))
    back = jnp.where(up, jnp.zeros(2), jnp.array([(a - b) / 2, 0.0]))
    there = {
        "model": jnp.where(jump, 1 - position["model"], position["model"]),
        "theta": jnp.where(jump, jumped, position["theta"] + step),
    }
    log_det = jnp.where(jump, jnp.where(up, log_two, -log_two), 0.0)
    return there, {"jump": jump, "step": jnp.where(jump, back, -step)}, log_det


def test_a_jump_between_dimensions_finds_the_exact_model_probabilities():
    """8,000 chains of 60 steps, half from the exact joint law and half from a point of the first model.

    False alarms: 12 z-scores at 4, 8e-4. Without the Jacobian the same statistics are off by more than 20.
    """
    chains, rng = 4000, np.random.default_rng(5)
    model = (rng.uniform(size=chains) < WEIGHTS[1]).astype(np.int32)
    a = np.where(model == 0, rng.normal(*ONE, chains), rng.normal(*TWO[0], chains))
    b = np.where(model == 0, 0.0, rng.normal(*TWO[1], chains))
    exact = {"model": model, "theta": np.stack([a, b], axis=1).astype(np.float32)}
    point = jax.tree.map(np.zeros_like, exact)
    starts = jax.tree.map(lambda *leaves: jnp.concatenate([jnp.asarray(leaf) for leaf in leaves]), exact, point)

    @jax.jit
    def run(key, log_two):
        kernel = mcmc.metropolis_hastings_green(
            two_models, lambda position: SplitOrWalk(position["model"]), lambda x, v: split_or_merge(x, v, log_two)
        )

        def chain(index, position):
            mine = core.fold(key, index)
            state = kernel.init(position, mine)
            return scan.repeat(lambda state, i: kernel.step(core.fold(mine, i), state)[0], state, 60).position

        return jax.vmap(chain)(jnp.arange(2 * chains), starts)

    def z_scores(positions, part):
        model, (a, b) = np.asarray(positions["model"])[part], np.asarray(positions["theta"], np.float64)[part].T
        values = np.stack([model, (model == 0) * a, model * a, model * b, model * a**2, model * a * b])
        (m1, m2), p, q = (TWO[0][0], TWO[1][0]), WEIGHTS[1], WEIGHTS[0]
        truth = np.array([p, q * ONE[0], p * m1, p * m2, p * (m1**2 + TWO[0][1] ** 2), p * m1 * m2])
        assert np.all(b[model == 0] == 0)
        return (values.mean(axis=1) - truth) / values.std(axis=1) * np.sqrt(chains)

    positions = run(jax.random.key(2), np.log(2.0))
    assert np.all(np.abs(z_scores(positions, slice(chains))) < 4)
    assert np.all(np.abs(z_scores(positions, slice(chains, None))) < 4)
    assert np.abs(z_scores(run(jax.random.key(2), 0.0), slice(chains)))[0] > 20


# --- densities that are nowhere, infinite or not a number -------------------------------------------------------


def step_from(log_density, start, to):
    """One step of a symmetric kernel that proposes `to`."""
    kernel = mcmc.metropolis_hastings(log_density, lambda key, x: jnp.full_like(x, to))
    return kernel.step(jax.random.key(0), kernel.init(start, jax.random.key(1)))


@pytest.mark.parametrize(
    ("here", "there", "moves"),
    [
        (0.0, -np.inf, False),
        (0.0, np.nan, False),
        (-np.inf, -np.inf, False),
        (np.nan, -np.inf, False),
        (np.nan, np.nan, False),
        (-np.inf, -5.0, True),  # a chain that starts outside the support gets in
        (np.nan, -5.0, True),
        (0.0, 80.0, True),
        (0.0, 0.0, True),
        (0.0, np.inf, True),  # and stays there, with an infinite log density for all to see
    ],
)
def test_awkward_densities(here, there, moves):
    state, info = step_from(lambda x: jnp.where(x == 1.0, here, there), jnp.float32(1.0), 2.0)
    assert bool(info.accepted) == moves
    assert info.acceptance_rate == float(moves)
    assert state.position == (2.0 if moves else 1.0)
    np.testing.assert_equal(np.asarray(info.log_density), np.float32(there if moves else here))


def test_a_proposal_that_could_not_be_undone_is_rejected():
    kernel = mcmc.metropolis_hastings(lambda x: 0.0 * x, lambda key, x: x + 1.0, lambda x, y: -jnp.inf)
    state, info = kernel.step(jax.random.key(0), kernel.init(jnp.float32(0.0), jax.random.key(1)))
    assert not info.accepted
    assert state.position == 0.0


# --- contracts --------------------------------------------------------------------------------------------------


def walk(key, x):
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape, leaf.dtype), x)


def standard_normal(x):
    return -0.5 * jnp.sum(x["a"] * x["a"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(dtype, x64):
    kernel = mcmc.metropolis_hastings(standard_normal, walk)
    state = kernel.init({"a": jnp.ones(2, dtype)}, jax.random.key(0))
    new, info = jax.jit(kernel.step)(jax.random.key(1), state)
    assert new.position["a"].dtype == state.position["a"].dtype == dtype
    working = "float32" if dtype == "bfloat16" else dtype
    assert {str(x.dtype) for x in (state.log_density, new.log_density, *info[::2])} == {working}
    assert all(jnp.shape(field) == () for field in info)


def test_jit_vmap_scan_grad_and_trace_count():
    traces = []

    def log_density(x):
        traces.append(None)
        return standard_normal(x)

    kernel = mcmc.metropolis_hastings(log_density, walk)
    starts = {"a": jnp.arange(6.0).reshape(3, 2)}

    def chain(key, position):
        state = kernel.init(position, key)
        return scan.bounded(lambda state, i: kernel.step(core.fold(key, i), state), state, 4, 4)

    keys = jax.random.split(jax.random.key(3), 3)
    states, infos = jax.jit(jax.vmap(chain))(keys, starts)
    assert len(traces) <= 2
    assert type(states) is mcmc.MetropolisState
    assert infos.accepted.shape == (3, 4)
    np.testing.assert_allclose(states.log_density, -0.5 * np.sum(np.square(states.position["a"]), axis=1), rtol=1e-6)
    np.testing.assert_array_equal(infos.log_density[:, -1], states.log_density)
    step = jax.jit(kernel.step)
    for i, key in enumerate(jax.random.split(jax.random.key(3), 3)):
        state = kernel.init({"a": starts["a"][i]}, key)
        for t in range(4):
            state, _ = step(core.fold(key, t), state)
        np.testing.assert_allclose(state.position["a"], states.position["a"][i], rtol=1e-6)
    gradient = jax.grad(lambda state: state.log_density * 2 + jnp.sum(state.position["a"]))(state)
    assert type(gradient) is mcmc.MetropolisState
    assert gradient.log_density == 2
    start = jax.grad(lambda a: kernel.init({"a": a}, keys[0]).log_density)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(start, [-1.0, -2.0])


def test_checkpoint_round_trip(tmp_path):
    from orbax.checkpoint import v1 as ocp

    state = mcmc.MetropolisState({"a": jnp.arange(2.0), "model": jnp.int32(3)}, jnp.float32(-1.5))
    ocp.save(tmp_path / "state", state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    back = ocp.load(tmp_path / "state", abstract)
    assert type(back) is mcmc.MetropolisState
    jax.tree.map(np.testing.assert_array_equal, back, state)


def run_once(kernel, position=None):
    return kernel.step(jax.random.key(0), kernel.init({"a": jnp.zeros(2)} if position is None else position, None))


def gaussian(x):
    return Choice(jnp.zeros(3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: run_once(mcmc.metropolis_hastings(lambda x: x["a"], walk)),
            "metropolis_hastings: the value of log_density",
        ),
        (lambda: run_once(mcmc.metropolis_hastings(standard_normal, lambda key, x: x["a"])), "propose returns"),
        (lambda: run_once(mcmc.metropolis_hastings(standard_normal, lambda k, x: {"a": jnp.zeros(3)})), "leaf 'a'"),
        (
            lambda: run_once(mcmc.metropolis_hastings(standard_normal, walk, lambda x, y: x["a"])),
            "the value of log_proposal_ratio is of shape \\(2,\\); expected one number",
        ),
        (
            lambda: run_once(
                mcmc.metropolis_hastings_green(standard_normal, gaussian, lambda x, v: (x, {"v": v}, 0.0)),
            ),
            "metropolis_hastings_green: the auxiliary value that involution returns",
        ),
        (
            lambda: run_once(mcmc.metropolis_hastings_green(standard_normal, gaussian, lambda x, v: (x["a"], v, 0.0))),
            "metropolis_hastings_green: the position that involution returns",
        ),
        (
            lambda: run_once(mcmc.metropolis_hastings_green(standard_normal, gaussian, lambda x, v: (x, v, x["a"]))),
            "\\|det\\| of involution is of shape \\(2,\\)",
        ),
    ],
)
def test_bad_shapes_give_one_line(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_what_cannot_be_called_is_named():
    with pytest.raises(TypeError, match=r"metropolis_hastings: propose is 1.0; expected a function"):
        mcmc.metropolis_hastings(standard_normal, 1.0)
    with pytest.raises(TypeError, match=r"metropolis_hastings_green: log_density is None; expected a function"):
        mcmc.metropolis_hastings_green(None, gaussian, swap)
