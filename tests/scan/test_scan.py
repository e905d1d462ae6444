"""`scan.scan` against a loop in float64 NumPy: resets, directions, chunks, memory, traces, devices, errors.

The recurrence contracts, so that an error of float32 stays within a few roundings of a state of size one.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import scan
from tests.scan import _loops as loops

EPS = np.finfo(np.float32).eps
BOUND = 16 * EPS  # each of the sums of a step has 8 terms below one, and the loop forgets in about two steps
STEPS = 12
WEIGHTS = np.float32(np.random.default_rng(1).normal(size=(2, 3, 3)) / 4)


def step(state, x):
    """A state and a count of steps; the output has another structure than the state."""
    h = jnp.tanh(WEIGHTS[0] @ state["h"] + x["gate"] * (WEIGHTS[1] @ x["u"]))
    count = state["count"] + 1
    return {"h": h, "count": count}, (2 * h, {"count": count})


def draw(steps, seed=0):
    rng = np.random.default_rng(seed)
    xs = {"u": np.float32(rng.normal(size=(steps, 3))), "gate": np.float32(rng.uniform(size=steps))}
    init = {"h": np.float32(rng.normal(size=3)), "count": np.int32(5)}
    return init, xs, loops.masks(rng, steps)


def expected(init, xs, steps, reverse=False, reset=None):
    """The loop in float64: final h and count, outputs of h and count."""
    W, V = np.float64(WEIGHTS)

    def one(state, t):
        h = np.tanh(W @ state[0] + np.float64(xs["gate"][t]) * (V @ np.float64(xs["u"][t])))
        state = h, state[1] + 1
        return state, (2 * h, state[1])

    final, outputs = loops.loop(one, (np.float64(init["h"]), int(init["count"])), steps, reverse=reverse, reset=reset)
    return final, (np.array([h for h, _ in outputs]).reshape(steps, 3), np.array([n for _, n in outputs]))


def check(got, init, xs, steps, reverse=False, reset=None):
    (h, count), (outputs, counts) = expected(init, xs, steps, reverse, reset)
    final, (states, extra) = got
    assert loops.error(final["h"], h) <= BOUND
    assert loops.error(states, outputs) <= BOUND
    assert int(final["count"]) == count
    np.testing.assert_array_equal(extra["count"], counts.astype(int))
    assert (final["h"].dtype, final["count"].dtype, states.dtype) == (jnp.float32, jnp.int32, jnp.float32)


WAYS = {
    "plain": {},
    "chunk 1": {"chunk": 1},
    "chunk that divides": {"chunk": 4},
    "chunk that does not": {"chunk": 5},
    "chunk of all": {"chunk": STEPS},
    "chunk of more": {"chunk": 50},
    "remat": {"remat": True},
    "remat, chunk that does not divide": {"remat": True, "chunk": 5},
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("way", WAYS)
def test_equals_a_loop(way, reverse):
    """With every kind of reset; compiled and not."""
    init, xs, resets = draw(STEPS)
    run = jax.jit(functools.partial(scan.scan, step, reverse=reverse, **WAYS[way]))
    for reset in resets.values():
        check(run(init, xs, reset=reset), init, xs, STEPS, reverse, reset)
    eager = scan.scan(step, init, xs, reset=resets["random"], reverse=reverse, **WAYS[way])
    check(eager, init, xs, STEPS, reverse, resets["random"])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_steps(steps):
    init, xs, resets = draw(steps, seed=2)
    ways = itertools.cycle([{}, {"chunk": 1}, {"chunk": 3, "remat": True}])
    for reverse, reset in itertools.product([False, True], resets.values()):
        got = scan.scan(step, init, xs, reverse=reverse, reset=reset, **next(ways))
        check(got, init, xs, steps, reverse, reset)
    if steps == 0:
        assert jax.tree.map(jnp.shape, got[1]) == ((0, 3), {"count": (0,)})
        np.testing.assert_array_equal(got[0]["h"], init["h"])


def test_without_inputs():
    """`length` says how many steps; where there are inputs as well it must fit them."""
    double = functools.partial(scan.scan, lambda s, x: (2 * s, s if x is None else s + x), jnp.float32(1))
    assert double(length=4)[1].tolist() == [1, 2, 4, 8]
    assert double(length=5, chunk=2, remat=True)[1].tolist() == [1, 2, 4, 8, 16]
    assert double(length=4, reset=jnp.array([False, False, True, False]))[1].tolist() == [1, 2, 1, 2]
    assert double(length=4, reverse=True, reset=jnp.array([False, True, False, False]))[1].tolist() == [2, 1, 2, 1]
    assert double(jnp.ones(3), length=3)[1].tolist() == [2, 3, 5]
    final, outputs = double(length=0)
    assert (float(final), outputs.shape) == (1, (0,))


@pytest.mark.parametrize("way", ["plain", "chunk that does not", "remat, chunk that does not divide"])
@pytest.mark.parametrize("restarts", [False, True], ids=["", "resets"])
def test_random_keys_in_the_state(way, restarts):
    """The key is split once a step. Where the state is `init` again so is its key, and JAX's checker would object."""

    def draw(state, x):
        key, own = jax.random.split(state["key"])
        value = x + jax.random.uniform(own)
        return {"key": key, "sum": state["sum"] + value}, (value, own)

    def start():
        return {"key": jax.random.key(3), "sum": jnp.float32(0)}

    xs, reset = np.zeros(7, np.float32), np.array([0, 0, 1, 0, 0, 1, 0], bool) if restarts else None
    state, values, splits = start(), [], []
    for t in range(7):
        state, (value, own) = draw(start() if restarts and reset[t] else state, xs[t])
        values.append(float(value))
        splits.append(jax.random.key_data(own))
    with jax.debug_key_reuse(not restarts):
        final, (outputs, keys) = scan.scan(draw, start(), xs, reset=reset, **WAYS[way])
    np.testing.assert_array_equal(outputs, np.float32(values))
    np.testing.assert_array_equal(jax.random.key_data(keys), splits)
    np.testing.assert_array_equal(jax.random.key_data(final["key"]), jax.random.key_data(state["key"]))
    assert loops.error(final["sum"], state["sum"]) <= BOUND


def test_mapped_equals_a_loop():
    """Over inits, inputs and resets."""
    cases = [draw(7, seed) for seed in range(4)]
    inits, xs = (jax.tree.map(lambda *x: np.stack(x), *[case[part] for case in cases]) for part in (0, 1))
    resets = np.stack([case[2]["random"] for case in cases])
    for way in ("plain", "remat, chunk that does not divide"):
        run = jax.jit(lambda i, x, r, way=way: scan.scan(step, i, x, reset=r, **WAYS[way]))
        got = jax.vmap(run)(inits, xs, resets)
        for k, (init, x, _) in enumerate(cases):
            check(jax.tree.map(lambda leaf, k=k: leaf[k], got), init, x, 7, False, resets[k])


def loss(W, init, xs, **options):
    def own(state, x):
        h = jnp.tanh(W[0] @ state + x["gate"] * (W[1] @ x["u"]))
        return h, h * h

    final, outputs = scan.scan(own, init, xs, **options)
    return jnp.sum(final) + jnp.sum(outputs)


def by_hand(W, init, xs, reverse, reset):
    """The same loss, and its gradients by backpropagation written out in float64."""
    W, u, gate, h = (np.float64(x) for x in (W, xs["u"], xs["gate"], init))
    kept, total = [], 0.0
    for t in loops.order(len(gate), reverse):
        before = np.float64(init) if reset[t] else h
        h = np.tanh(W[0] @ before + gate[t] * (W[1] @ u[t]))
        kept.append((t, before, h))
        total += np.sum(h * h)
    dW, du, dgate, dinit, flow = np.zeros_like(W), np.zeros_like(u), np.zeros_like(gate), np.zeros(3), np.ones(3)
    for t, before, after in reversed(kept):
        inner = (flow + 2 * after) * (1 - after**2)
        dW += np.stack([np.outer(inner, before), gate[t] * np.outer(inner, u[t])])
        du[t], dgate[t] = gate[t] * (W[1].T @ inner), inner @ (W[1] @ u[t])
        flow = W[0].T @ inner
        if reset[t]:
            dinit, flow = dinit + flow, np.zeros(3)
    return total + np.sum(h), (dW, dinit + flow, {"u": du, "gate": dgate})


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradients(reverse):
    """By hand in float64; and recomputing gives the very same numbers as storing.

    But for `W`, which every step uses: there chunks are summed on their own, whether they are recomputed or not.
    """
    init, xs, resets = draw(STEPS, seed=4)
    reset = resets["random"] | resets["first"]
    want_loss, want = by_hand(WEIGHTS, init["h"], xs, reverse, reset)
    found = {}
    ways = {"plain": {}, "chunk": {"chunk": 5}, "remat": {"remat": True}, "both": {"remat": True, "chunk": 5}}
    for way, options in ways.items():
        run = jax.jit(jax.value_and_grad(functools.partial(loss, reverse=reverse, **options), (0, 1, 2)))
        value, gradients = found[way] = run(WEIGHTS, init["h"], xs, reset=reset)
        # A gradient sums over 12 steps what a state holds.
        assert abs(value - want_loss) <= STEPS * BOUND * abs(want_loss)
        for got, exact in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
            assert loops.error(got, exact) <= STEPS * BOUND
    jax.tree.map(np.testing.assert_array_equal, found["both"], found["chunk"])
    for way in ("remat", "both"):
        jax.tree.map(np.testing.assert_array_equal, found[way][1][1:], found["plain"][1][1:])


def test_recomputing_takes_a_tenth_of_the_memory():
    """4,096 steps of a state of 64: sqrt(time) states and a chunk are kept, where all were."""

    def bytes_of(**options):
        def total(W, xs):
            return jnp.sum(scan.scan(lambda h, x: (jnp.tanh(W @ h + x), None), jnp.zeros(64), xs, **options)[0])

        run = jax.jit(jax.grad(total)).lower(jnp.zeros((64, 64)), jnp.zeros((4096, 64)))
        return run.compile().memory_analysis().temp_size_in_bytes

    assert bytes_of() >= 10 * bytes_of(remat=True) > 0


def counted():
    """A step, and the list that grows when it is traced."""
    traces = []

    def own(state, x):
        traces.append(None)
        return 0.5 * state + x, state

    return own, traces


RESET = np.arange(7) == 3
OPTIONS = [
    {},
    {"reset": RESET},
    {"chunk": 3},
    {"chunk": 3, "reset": RESET, "reverse": True},
    {"remat": True},
    {"remat": True, "chunk": 3, "reset": RESET},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o) or "plain")


@each_option
def test_the_step_is_traced_once(options):
    """By a call, and by its gradient; a second call with the same step traces and compiles nothing."""
    own, traces = counted()
    xs = jnp.arange(7.0)
    first = scan.scan(own, jnp.float32(0), xs, **options)
    assert len(traces) == 1
    with loops.compilations() as compiled:
        second = scan.scan(own, jnp.float32(0), xs, **options)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len(traces) == 1
    assert compiled == []

    own, traces = counted()
    jax.jit(jax.grad(lambda start: scan.scan(own, start, xs, **options)[0]))(jnp.float32(1))
    assert len(traces) == 1


class Halving:
    def __init__(self, factor):
        self.factor = factor

    def step(self, state, x):
        return self.factor * state + x, state

    __call__ = step

    def __eq__(self, other):
        return True

    __hash__ = None


def test_any_callable_is_a_step():
    """Methods made on the fly, partial functions, and objects that have no hash."""
    xs, half = jnp.arange(7.0), Halving(0.5)
    want = loops.loop(lambda s, t: (0.5 * s + t, s), 1.0, 7, reset=RESET)
    for make in (lambda: half.step, lambda: half, lambda: functools.partial(Halving.step, half)):
        for _ in range(2):
            run = lambda start: scan.scan(make(), start, xs, reset=RESET, chunk=3, remat=True)  # noqa: B023, E731
            final, outputs = run(jnp.float32(1))
            assert loops.error(final, want[0]) <= BOUND
            assert loops.error(outputs, want[1]) <= BOUND
            assert jax.grad(lambda start: run(start)[0])(jnp.float32(1)) == 0.5**4  # noqa: B023
    # One that says it equals another is still its own.
    assert scan.scan(Halving(0.0), jnp.float32(1), xs)[0] == 6


def test_what_is_kept_of_a_step_does_not_keep_it():
    """Steps made on the fly are let go."""
    import gc
    import weakref

    class Step:
        def __call__(self, state, x):
            return state + x, state

    own = Step()
    gone = weakref.ref(own)
    scan.scan(own, jnp.float32(0), jnp.ones(3), reset=jnp.zeros(3, bool))
    jax.clear_caches()
    del own
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[5]], ids=["plain", "remat, resets"])
def test_inside_shard_map_with_an_init_made_there(options, checked):
    """Eight sequences over eight devices; one part of the state is counted, one is a constant."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    xs = jnp.asarray(np.random.default_rng(5).normal(size=(8, 7)), jnp.float32)

    def own(state, x):
        total, count, _ = state
        return (0.5 * total + x, count + 1, jnp.float32(2)), total

    def sums(xs):
        start = jnp.zeros(()), jnp.int32(0), jnp.float32(0)
        final, outputs = scan.scan(own, start, xs[0], **options)
        return jax.tree.map(lambda x: x[None], (final, outputs))

    run = jax.shard_map(sums, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=checked)
    (total, count, constant), outputs = jax.jit(run)(xs)
    slopes = jax.jit(jax.grad(lambda xs: jnp.sum(run(xs)[0][0])))(xs)
    for k in range(8):
        reset = options.get("reset")
        final, before = loops.loop(lambda s, t: (0.5 * s + float(xs[k, t]), s), 0.0, 7, reset=reset)  # noqa: B023
        assert loops.error(total[k], final) <= BOUND
        assert loops.error(outputs[k], before) <= BOUND
        since = 0 if reset is None else int(np.flatnonzero(reset)[-1])
        np.testing.assert_allclose(slopes[k], np.where(np.arange(7) < since, 0, 0.5 ** np.arange(6, -1, -1.0)), EPS)
    assert count.tolist() == [7 if reset is None else 7 - since] * 8
    assert constant.tolist() == [2.0] * 8


def test_dtypes_are_kept(x64):
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        final, outputs = scan.scan(
            lambda s, x: (s + x, s * x), jnp.zeros(2, dtype), jnp.ones((5, 2), dtype), reset=jnp.arange(5) == 2
        )
        assert (final.dtype, outputs.dtype) == (dtype, dtype)
        assert final.tolist() == [3, 3]


def test_a_python_number_takes_the_dtype_of_what_it_meets():
    final, _ = scan.scan(lambda s, x: (s + x, None), 0, jnp.arange(4.0))
    assert (final.dtype, float(final)) == (jnp.float32, 6)


X = {"u": jnp.zeros((5, 2)), "gate": jnp.zeros(5)}
STATE = {"h": jnp.zeros(2), "count": jnp.int32(0)}


def changed(**leaves):
    return lambda state, x: ({**state, **leaves}, None)


def unchanged(state, x):
    return state, None


ERRORS = {
    "xs of two lengths": (
        (unchanged, STATE, {**X, "gate": jnp.zeros(4)}),
        {},
        r"xs, leaf 'u', is of 5 steps of time; expected the 4 steps of xs, leaf 'gate'\.",
    ),
    "xs with a scalar": ((unchanged, STATE, {**X, "gate": 1.0}), {}, r"xs, leaf 'gate', is a scalar; expected "),
    "xs of another length": (
        (unchanged, STATE, jnp.zeros(3)),
        {"length": 4},
        r"xs is of 3 steps of time; expected the 4 steps of length\.",
    ),
    "neither xs nor length": ((unchanged, STATE), {}, r"xs is without arrays; expected at least one, or `length`\."),
    "length below zero": ((unchanged, STATE), {"length": -1}, r"length is -1; expected "),
    "length not whole": ((unchanged, STATE), {"length": 2.0}, r"length is 2\.0; expected "),
    "reset of another length": (
        (unchanged, STATE, X),
        {"reset": jnp.zeros(4, bool)},
        r"reset is of shape \(4,\); expected shape \(5,\)",
    ),
    "reset with too many axes": (
        (unchanged, STATE, X),
        {"reset": jnp.zeros((5, 2), bool)},
        r"reset is of shape \(5, 2\); expected shape \(5,\)",
    ),
    "chunk 0": ((unchanged, STATE, X), {"chunk": 0}, r"chunk is 0; expected "),
    "chunk not whole": ((unchanged, STATE, X), {"chunk": 2.5}, r"chunk is 2\.5; expected "),
    "chunk true": ((unchanged, STATE, X), {"chunk": True}, r"chunk is True; expected "),
    "state of another shape": (
        (changed(h=jnp.zeros(3)), STATE, X),
        {},
        r"the state after a step, leaf 'h', is float32 of shape \(3,\); expected float32 of shape \(2,\)\.",
    ),
    "state of another dtype": (
        (changed(count=jnp.float32(0)), STATE, X),
        {},
        r"the state after a step, leaf 'count', is float32 of shape \(\); expected int32 of shape \(\)\.",
    ),
    "state of another dtype beside a Python number": (
        (changed(count=jnp.float32(0)), {**STATE, "other": 0.0}, X),
        {},
        r"the state after a step, leaf 'count', is float32 of shape \(\); expected int32 of shape \(\)\.",
    ),
    "a key for an array": (
        (changed(h=jax.random.split(jax.random.key(0), 2)), STATE, X),
        {},
        r"the state after a step, leaf 'h', is key<fry> of shape \(2,\); expected float32 of shape \(2,\)\.",
    ),
    "state with a leaf less": (
        (lambda state, x: ({"h": state["h"]}, None), STATE, X),
        {},
        r"the state after a step is without leaf 'count'; expected ",
    ),
    "state with a leaf more": (
        (changed(more=0.0), STATE, X),
        {},
        r"the state after a step is with unknown leaf 'more'",
    ),
    "state a tuple for a list": (
        (lambda state, x: (tuple(state), None), [jnp.zeros(2)], X),
        {},
        r"the state after a step is a pytree .*; expected the structure ",
    ),
}


def one_line(function, text):
    """The one format of errors."""
    assert re.fullmatch(rf"{re.escape(function)}: .+ is .+; expected [^\n]+\.", text), text


MORE = [{}, {"chunk": 2, "remat": True}, {"reset": np.zeros(5, bool)}]
# Each fault beside the options that it is not about; a reset of five steps does not go with another length.
FAULTS = [
    pytest.param(name, more, id=f"{name}-{' '.join(more)}")
    for name, (_, options, _) in ERRORS.items()
    for more in MORE
    if not set(more) & set(options) and not ("reset" in more and "length" in options)
]


@pytest.mark.parametrize(("name", "more"), FAULTS)
def test_errors_are_one_line_and_come_before_compiling(name, more):
    args, options, match = ERRORS[name]
    with loops.compilations() as compiled, pytest.raises(ValueError, match=f"^scan.scan: {match}") as raised:
        jax.jit(lambda: scan.scan(*args, **options, **more))()
    one_line("scan.scan", str(raised.value))
    assert compiled == []


def test_resets_must_be_booleans():
    with pytest.raises(TypeError, match=r"^scan.scan: reset is of dtype int32; expected booleans") as raised:
        scan.scan(unchanged, STATE, X, reset=jnp.zeros(5, jnp.int32))
    one_line("scan.scan", str(raised.value))
