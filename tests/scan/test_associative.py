"""`scan.associative` against explicit loops, with operations that notice any change of order.

Words are kept as their hash, h -> 31^length h + hash modulo 2^32: to join two words is exact in integers and does not
commute, and the oracle joins Python strings. Matrices are products of rotations and dilations in float64 NumPy.
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
from tests.scan._loops import quick

METHODS = ("sequential", "chunked", "associative")
each_method = pytest.mark.parametrize("method", METHODS)
MESHES = {n: jax.make_mesh((n,), ("time",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]) for n in (8, 4)}


# --- words


def join(before, after):
    """The hash of a word followed by another, its power of 31, and its number of letters."""
    (a, p, n), (b, q, m) = (tuple(x[k] for k in ("hash", "power", "letters")) for x in (before, after))
    return {"hash": a * q + b, "power": p * q, "letters": n + m}


WORDS = scan.monoids.Monoid(
    join, lambda x: {"hash": jnp.zeros_like(x["hash"]), "power": x["power"] ** 0, "letters": 0 * x["letters"]}
)


def hash_of(word):
    value = functools.reduce(lambda h, letter: (31 * h + ord(letter)) % 2**32, word, 0)
    return {"hash": np.uint32(value), "power": np.uint32(pow(31, len(word), 2**32)), "letters": np.int32(len(word))}


def hashes(words):
    columns = [hash_of(word) for word in words]
    like = hash_of("")
    return {k: np.array([c[k] for c in columns], like[k].dtype).reshape(len(words)) for k in like}


def draw_words(steps, seed=0):
    rng = np.random.default_rng([seed, steps])
    return ["".join(rng.choice(list("abcdefgh"), rng.integers(0, 4))) for _ in range(steps)]


def joined(words, init="", reverse=False, reset=None):
    """The prefixes as words. In reverse the last word comes first."""

    def step(state, t):
        return (state + words[t],) * 2

    return loops.loop(step, init, len(words), reverse=reverse, reset=reset)[1]


def check_words(got, words, init="", reverse=False, reset=None):
    want = joined(words, init, reverse, reset)
    jax.tree.map(np.testing.assert_array_equal, got.states, hashes(want))
    final = want[0 if reverse else -1] if words else init
    jax.tree.map(np.testing.assert_array_equal, got.final, hash_of(final))
    assert jax.tree.map(jnp.result_type, got.final) == jax.tree.map(jnp.result_type, hash_of(""))


WAYS = [
    {"method": "sequential"},
    {"method": "associative"},
    *({"method": "chunked", "chunk": k} for k in (None, 1, 3, 99)),
]
LENGTHS = (1, 2, 3, 17, 1000)
# A way, whether there is an init, whether it is a Monoid: with every length, each with another direction and resets.
ROWS = list(itertools.product(range(len(WAYS)), [False, True], [False, True]))
CHOICES = list(itertools.product([False, True], ["none", "random", "first", "all"]))


@pytest.mark.parametrize(("way", "starts", "whole"), ROWS)
def test_words(way, starts, whole):
    row = ROWS.index((way, starts, whole))
    for k, steps in enumerate(LENGTHS):
        reverse, reset = CHOICES[(3 * row + k + row // 8) % 8]
        words, mask = draw_words(steps, row), loops.masks(np.random.default_rng(row), steps)[reset]
        run = functools.partial(scan.associative, WORDS if whole else join, reverse=reverse, **WAYS[way])
        init = hash_of("start") if starts else None
        got = quick(run)(hashes(words), init, reset=mask)
        check_words(got, words, "start" if starts else "", reverse, mask)


@each_method
def test_eager(method):
    for reverse, reset in CHOICES:
        words, mask = draw_words(6), loops.masks(np.random.default_rng(3), 6)[reset]
        init = "xy" if reset == "random" else None
        options = {"reverse": reverse, "reset": mask, "method": method}
        got = scan.associative(join, hashes(words), None if init is None else hash_of(init), **options)
        check_words(got, words, init or "", reverse, mask)


@each_method
def test_without_steps(method):
    """`init`, else the identity of the monoid; a function alone has none."""
    nothing = hashes([])
    for combine in (join, WORDS):
        got = scan.associative(combine, nothing, hash_of("start"), method=method, reset=np.zeros(0, bool))
        check_words(got, [], "start")
    check_words(scan.associative(WORDS, nothing, method=method), [], "")
    with pytest.raises(
        ValueError, match=r"^scan.associative: elements is of 0 steps; expected one step, or `init`, or"
    ):
        scan.associative(join, nothing, method=method)


@each_method
def test_mapped_equals_a_loop(method):
    lines = [draw_words(5, seed) for seed in range(3)]
    resets = np.stack([loops.masks(np.random.default_rng(seed), 5)["random"] for seed in range(3)])
    elements = jax.tree.map(lambda *x: np.stack(x), *map(hashes, lines))
    one = lambda e, r: scan.associative(join, e, hash_of("ab"), reset=r, method=method, reverse=True, chunk=2)  # noqa: E731
    got = quick(jax.vmap(one))(elements, resets)
    for k, words in enumerate(lines):
        check_words(jax.tree.map(lambda x: x[k], got), words, "ab", True, resets[k])  # noqa: B023


# --- over devices

SHARDED = [
    ("sequential", 4, 17, False, "random", True),
    ("sequential", 8, 3, True, "none", False),
    ("sequential", 8, 1000, True, "random", True),
    ("chunked", 4, 1000, False, "none", False),
    ("chunked", 8, 16, True, "random", False),
    ("chunked", 4, 17, True, "first", True),
    ("associative", 8, 8, False, "all", True),
    ("associative", 4, 17, True, "random", True),
    ("associative", 4, 1, False, "none", False),
    ("associative", 4, 1000, False, "random", False),
]


@pytest.mark.parametrize(("method", "devices", "steps", "reverse", "reset", "starts"), SHARDED)
def test_words_over_devices(method, devices, steps, reverse, reset, starts):
    words, mask = draw_words(steps, 1), loops.masks(np.random.default_rng(1), steps)[reset]
    run = functools.partial(scan.associative, join, mesh=MESHES[devices], axis_name="time", method=method)
    got = quick(functools.partial(run, reverse=reverse, reset=mask))(
        hashes(words), hash_of("start") if starts else None
    )
    check_words(got, words, "start" if starts else "", reverse, mask)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(got.final))


@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
@pytest.mark.parametrize(
    ("method", "reverse", "resets"),
    [("sequential", True, True), ("chunked", False, True), ("associative", True, False)],
)
def test_words_inside_shard_map(method, reverse, resets, checked):
    """Two sequences over one axis of the mesh, time over the other; `init`, or the identity, is made inside."""
    mesh = jax.make_mesh((2, 4), ("batch", "time"), axis_types=(AxisType.Auto,) * 2)
    lines = [draw_words(12, seed) for seed in range(2)]
    elements = jax.tree.map(lambda *x: np.stack(x), *map(hashes, lines))
    masks = np.random.default_rng(0).random((2, 12)) < 0.2 if resets else None

    def piece(elements, masks):
        init = jax.tree.map(jnp.asarray, hash_of("ab")) if resets else None
        one = functools.partial(scan.associative, WORDS, reverse=reverse, method=method, axis_name="time")
        return jax.vmap(lambda e, r: one(e, init, reset=r))(elements, masks)

    over = P("batch", "time")
    run = jax.shard_map(
        piece,
        mesh=mesh,
        in_specs=(over, over if resets else None),
        out_specs=scan.Trajectory(over, P("batch")),
        check_vma=checked,
    )
    got = quick(run)(elements, masks)
    for k, words in enumerate(lines):
        own = jax.tree.map(lambda x: x[k], got)  # noqa: B023
        check_words(own, words, "ab" if resets else "", reverse, masks[k] if resets else None)


# --- matrices

BAR = 1e-5  # of the largest number: over 17 steps float32 loses 17 times a few eps


def product(before, after):
    """What acts first stands on the right."""
    return jnp.matmul(after, before, precision="highest")


def draw_matrices(steps, seed=0):
    """Rotations times dilations, so that the product of many stays of size one and depends on their order."""
    rng = np.random.default_rng([seed, steps])
    angle, size = rng.uniform(-3, 3, size=steps), rng.uniform(0.7, 1.4, size=(steps, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.float32(np.moveaxis(turn, -1, 0) * size[:, None]), np.float32(rng.normal(size=(2, 2)))


def multiplied(matrices, init, reverse, reset):
    start = np.eye(2) if init is None else np.float64(init)

    def step(state, t):
        return (np.float64(matrices[t]) @ state,) * 2

    return np.array(loops.loop(step, start, len(matrices), reverse=reverse, reset=reset)[1])


@each_method
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_matrices(method, reverse):
    """With and without init and resets, and over devices."""
    matrices, init = draw_matrices(17)
    mask = loops.masks(np.random.default_rng(0), 17)["random"]
    run = functools.partial(scan.associative, product, reverse=reverse, method=method, chunk=5)
    for start, reset in itertools.product([None, init], [None, mask]):
        want = multiplied(matrices, start, reverse, reset)
        got = quick(run)(matrices, start, reset=reset)
        assert loops.error(got.states, want) <= BAR
        np.testing.assert_array_equal(got.final, got.states[0 if reverse else -1])
    got = quick(functools.partial(run, mesh=MESHES[4], axis_name="time"))(matrices, init, reset=mask)
    assert loops.error(got.states, multiplied(matrices, init, reverse, mask)) <= BAR


def objective(matrices, init, **options):
    found = scan.associative(product, matrices, init, **options)
    return jnp.sum(jnp.sin(found.states + 0.1 * jnp.arange(4.0).reshape(1, 2, 2))) + jnp.sum(found.final[0])


@functools.cache
def slopes_by_hand(reverse, resets):
    """Backpropagation through the loop, written out in float64."""
    matrices, init = (np.float64(x) for x in draw_matrices(7, 2))
    mask = np.array([1, 0, 0, 1, 0, 1, 0], bool) if resets else np.zeros(7, bool)
    state, kept = init, []
    for t in loops.order(7, reverse):
        before = init if mask[t] else state
        state = matrices[t] @ before
        kept.append((t, before, state))
    flow, slopes, of_init = np.array([[1.0, 1.0], [0.0, 0.0]]), np.zeros_like(matrices), np.zeros((2, 2))
    for t, before, after in reversed(kept):
        flow = flow + np.cos(after + 0.1 * np.arange(4.0).reshape(2, 2))
        slopes[t], flow = flow @ before.T, matrices[t].T @ flow
        if mask[t]:
            of_init, flow = of_init + flow, np.zeros((2, 2))
    return slopes, of_init + flow


@each_method
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
def test_gradients(method, resets, devices):
    """With respect to elements and init; over devices by the transposed communication."""
    reverse = METHODS.index(method) == 1
    options = {} if devices == 1 else {"mesh": MESHES[4], "axis_name": "time"}
    mask = np.array([1, 0, 0, 1, 0, 1, 0], bool) if resets else None
    total = functools.partial(objective, method=method, reverse=reverse, reset=mask, chunk=3, **options)
    got = quick(jax.grad(total, (0, 1)))(*draw_matrices(7, 2))
    for x, y in zip(got, slopes_by_hand(reverse, resets), strict=True):
        assert loops.error(x, y) <= 2 * BAR


@each_method
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("options", [{}, {"mesh": MESHES[8], "axis_name": "time"}], ids=["", "over devices"])
def test_what_fills_up_harms_no_gradient(options, reverse, method):
    """Nine numbers of which the last is large: powers of it would be infinite, and zero times that not a number."""
    x = np.full(9, 0.1, np.float32)
    x[0 if reverse else -1] = 1e13
    total = lambda x: scan.associative(jnp.multiply, x, reverse=reverse, method=method, chunk=4, **options).states.sum()  # noqa: E731
    exact = np.cumprod(np.float64(x[::-1] if reverse else x))
    want = np.cumsum(exact[::-1])[::-1]
    want = (want[::-1] if reverse else want) / x
    assert loops.error(quick(jax.grad(total))(x), want) <= BAR


@each_method
def test_dtypes_are_kept(method, x64):
    """On one device and over four, with a step more than these."""
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.int8, jnp.bool_):
        combine = jnp.logical_xor if dtype == jnp.bool_ else jnp.add
        for options in ({}, {"mesh": MESHES[4], "axis_name": "time"}):
            run = functools.partial(scan.associative, combine, method=method, **options)
            got = quick(run)(jnp.ones(5, dtype), reset=jnp.arange(5) == 3)
            assert (got.states.dtype, got.final.dtype) == (dtype, dtype)
            assert got.states.tolist() == ([1, 0, 1, 1, 0] if dtype == jnp.bool_ else [1, 2, 3, 1, 2])


# --- traces

RESET = np.arange(6) == 3


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("reset", [None, RESET], ids=["", "resets"])
def test_a_second_call_traces_nothing(reset, starts):
    """Step by step."""
    traces = []

    def add(before, after):
        traces.append(None)
        return before + after

    run = functools.partial(scan.associative, add, jnp.arange(6.0), jnp.float32(1) if starts else None, reset=reset)
    first = run(method="sequential")
    assert len(traces) == 1
    second = run(method="sequential")
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, first, second)


@each_method
@pytest.mark.parametrize("reset", [None, RESET], ids=["", "resets"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_second_call_compiles_nothing(devices, reset, method):
    def add(before, after):
        return before + after

    options = {} if devices == 1 else {"mesh": MESHES[4], "axis_name": "time"}
    run = functools.partial(scan.associative, add, jnp.arange(6.0), method=method, reset=reset, **options)
    first = run()
    with loops.compilations() as compiled:
        second = run()
    assert compiled == []
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- errors

X = {"a": jnp.zeros((4, 2)), "b": jnp.zeros(4)}


def add(before, after):
    return jax.tree.map(jnp.add, before, after)


def changed(**leaves):
    return lambda before, after: {**add(before, after), **leaves}


ERRORS = {
    "elements of two lengths": (
        (add, {**X, "b": jnp.zeros(3)}),
        {},
        r"elements, leaf 'b', is of 3 steps of time; expected the 4 steps of elements, leaf 'a'\.",
    ),
    "a scalar": ((add, jnp.float32(1)), {}, r"elements is a scalar; expected "),
    "no arrays": ((add, ()), {}, r"elements is without arrays; expected "),
    "a function that changes a shape": (
        (changed(a=jnp.zeros(3)), X),
        {},
        r"what combine returns, leaf 'a', is float32 of shape \(3,\); expected float32 of shape \(2,\)\.",
    ),
    "a function that changes a dtype": (
        (changed(b=jnp.int32(0)), X),
        {},
        r"what combine returns, leaf 'b', is int32 of shape \(\); expected float32 of shape \(\)\.",
    ),
    "a function that loses a leaf": (
        (lambda x, y: {"a": x["a"]}, X),
        {},
        r"what combine returns is without leaf 'b'; expected ",
    ),
    "a monoid that changes a dtype": (
        (scan.monoids.Monoid(changed(b=jnp.int32(0)), lambda x: x), X),
        {},
        r"what combine returns, leaf 'b', is int32 of shape \(\); expected float32 of shape \(\)\.",
    ),
    "init of another shape": (
        (add, X, {"a": jnp.zeros(3), "b": jnp.zeros(())}),
        {},
        r"init, leaf 'a', is float32 of shape \(3,\); expected float32 of shape \(2,\)\.",
    ),
    "init of another dtype": (
        (add, X, {"a": jnp.zeros(2), "b": jnp.int32(0)}),
        {},
        r"init, leaf 'b', is int32 of shape \(\); expected float32 of shape \(\)\.",
    ),
    "init with a leaf less": ((add, X, {"a": jnp.zeros(2)}), {}, r"init is without leaf 'b'; expected "),
    "reset of another length": (
        (add, X),
        {"reset": jnp.zeros(3, bool)},
        r"reset is of shape \(3,\); expected shape \(4,\)",
    ),
    "no such method": (
        (add, X),
        {"method": "newton"},
        r"method is newton; expected 'auto', 'parallel' or one of 'sequential'",
    ),
    "chunk below one": ((add, X), {"chunk": -1}, r"chunk is -1; expected "),
    "mesh without axis_name": (
        (add, X),
        {"mesh": MESHES[8]},
        r"axis_name is None; expected an axis of the mesh, \('time'",
    ),
    "no such axis": (
        (add, X),
        {"mesh": MESHES[8], "axis_name": "space"},
        r"axis_name is space; expected an axis of the mesh, \('time',\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@each_method
def test_errors_are_one_line_and_come_before_compiling(name, method):
    args, options, match = ERRORS[name]
    with loops.compilations() as compiled, pytest.raises(ValueError, match=f"^scan.associative: {match}") as raised:
        jax.jit(lambda: scan.associative(*args, **{"method": method, **options}))()
    assert re.fullmatch(r"scan\.associative: .+ is .+; expected [^\n]+\.", str(raised.value))
    assert compiled == []


def test_resets_must_be_booleans():
    with pytest.raises(TypeError, match=r"^scan.associative: reset is of dtype float32; expected booleans[^\n]*\.$"):
        scan.associative(add, X, reset=jnp.zeros(4))
