"""`scan.stream`: chunks from a host give what one scan of all of them gives, with one program a length of chunk."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from tests.scan import _loops as loops

BOUND = 8 * np.finfo(np.float32).eps  # the state halves at each step, and each step rounds three times
LENGTHS = [4, 1, 4, 0, 7, 4]
STEPS = sum(LENGTHS)


def step(state, x):
    total = 0.5 * state["total"] + x["u"] * x["v"]
    return {"total": total, "count": state["count"] + 1}, (total, state["count"])


def start():
    return {"total": jnp.array([1.0, -2.0]), "count": jnp.int32(3)}


def draw():
    rng = np.random.default_rng(0)
    return {"u": np.float32(rng.normal(size=(STEPS, 2))), "v": np.float32(rng.normal(size=(STEPS, 2)))}, loops.masks(
        rng, STEPS
    )


def cut(tree):
    ends = list(itertools.accumulate(LENGTHS))
    for begin, end in zip([0, *ends], ends, strict=False):
        yield jax.tree.map(lambda x: x[begin:end], tree)  # noqa: B023


def joined(outputs):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


@pytest.mark.parametrize("name", ["none", "random", "first", "all"])
def test_equals_a_loop_and_one_scan(name):
    """States after each chunk as well; resets go back to the first state of all."""
    xs, resets = draw()
    reset = resets[name]

    def one(state, t):
        total = 0.5 * state[0] + np.float64(xs["u"][t]) * np.float64(xs["v"][t])
        after = total, state[1] + 1
        return after, (*after, state[1])

    first = np.array([1.0, -2.0]), 3
    _, kept = loops.loop(one, first, STEPS, reset=reset)
    totals, counts, before = (np.array(x) for x in zip(*kept, strict=True))

    got = list(scan.stream(step, start(), cut(xs), resets=None if reset is None else cut(reset)))
    outputs = joined([outputs for _, outputs in got])
    assert loops.error(outputs[0], totals) <= BOUND
    np.testing.assert_array_equal(outputs[1], before)
    for (state, _), end in zip(got, itertools.accumulate(LENGTHS), strict=True):
        assert loops.error(state["total"], totals[end - 1]) <= BOUND
        assert int(state["count"]) == counts[end - 1]
        assert (state["total"].dtype, state["count"].dtype) == (jnp.float32, jnp.int32)

    final, whole = scan.scan(step, start(), xs, reset=reset)
    jax.tree.map(np.testing.assert_array_equal, outputs, jax.tree.map(np.asarray, whole))
    jax.tree.map(np.testing.assert_array_equal, got[-1][0], final)


def test_masks_for_some_chunks_only():
    """None stands for no reset in a chunk."""
    xs, _ = draw()
    masks = [None if k % 2 else np.arange(n) % 3 == 1 for k, n in enumerate(LENGTHS)]
    whole = np.concatenate([np.zeros(n, bool) if m is None else m for m, n in zip(masks, LENGTHS, strict=True)])
    got = joined([outputs for _, outputs in scan.stream(step, start(), cut(xs), resets=masks)])
    jax.tree.map(
        np.testing.assert_array_equal, got, jax.tree.map(np.asarray, scan.scan(step, start(), xs, reset=whole)[1])
    )


def test_a_saved_state_goes_on_with_the_same_numbers():
    """Through NumPy, as a file would."""
    xs, _ = draw()
    chunks = list(cut(xs))
    whole = list(scan.stream(step, start(), chunks))
    saved = jax.tree.map(np.asarray, whole[2][0])
    rest = list(scan.stream(step, saved, chunks[3:]))
    jax.tree.map(np.testing.assert_array_equal, rest, whole[3:])


def test_random_keys_in_the_state():
    def draw(key, x):
        key, own = jax.random.split(key)
        return key, x + jax.random.normal(own)

    got = [outputs for _, outputs in scan.stream(draw, jax.random.key(1), [jnp.zeros(2), jnp.zeros(3)])]
    np.testing.assert_array_equal(joined(got), scan.scan(draw, jax.random.key(1), jnp.zeros(5))[1])


@pytest.mark.parametrize("resets", [False, True])
def test_a_step_is_traced_once_and_compiled_once_a_length(resets):
    traces = []

    def own(state, x):
        traces.append(None)
        return 0.5 * state + x, state

    lengths = [4, 4, 3, 4, 3, 4]
    chunks = (np.ones(n, np.float32) for n in lengths)
    masks = (np.zeros(n, bool) for n in lengths) if resets else None
    compiled = []
    stream = scan.stream(own, np.float32(0), chunks, resets=masks)
    for _ in lengths:
        with loops.compilations() as new:
            next(stream)
        compiled.append(len([name for name in new if "run" in name]))
    assert len(traces) == 1
    assert compiled == [1, 0, 1, 0, 0, 0]


def test_chunks_are_read_as_they_are_asked_for():
    read = []

    def chunks():
        for k in itertools.count():
            read.append(k)
            yield np.full(2, k, np.float32)

    stream = scan.stream(lambda s, x: (s + x, s), jnp.float32(0), chunks(), resets=itertools.repeat(None))
    assert read == []
    for k in range(3):
        state, _ = next(stream)
        assert read == list(range(k + 1))
        assert float(state) == sum(2 * j for j in range(k + 1))


def test_no_chunks():
    assert list(scan.stream(step, start(), [])) == []


def unequal():
    yield {"u": jnp.zeros((2, 2)), "v": jnp.zeros((2, 2))}
    yield {"u": jnp.zeros((2, 2)), "v": jnp.zeros((3, 2))}


@pytest.mark.parametrize(
    ("chunks", "resets", "kind", "match"),
    [
        (lambda: cut(draw()[0]), [None, None], ValueError, r"resets is of 2 chunks; expected one mask for each chunk"),
        (lambda: cut(draw()[0]), [], ValueError, r"resets is of 0 chunks; expected one mask for each chunk"),
        (lambda: cut(draw()[0]), [np.zeros(3, bool)], ValueError, r"reset is of shape \(3,\); expected shape \(4,\)"),
        (lambda: cut(draw()[0]), [np.zeros(4)], TypeError, r"reset is of dtype float32; expected booleans"),
        (unequal, None, ValueError, r"chunk 1, leaf 'v', is of 3 steps of time; expected the 2 steps of chunk 1, leaf"),
        (
            unequal,
            [None, None],
            ValueError,
            r"chunk 1, leaf 'v', is of 3 steps of time; expected the 2 steps of chunk 1, leaf 'u'\.",
        ),
        (lambda: [None], None, ValueError, r"chunk 0 is without arrays; expected at least one"),
    ],
    ids=["too few masks", "no masks", "short mask", "numbers", "unequal leaves", "unequal leaves, masks", "no arrays"],
)
def test_errors_are_one_line(chunks, resets, kind, match):
    with pytest.raises(kind, match=f"^scan.stream: {match}") as raised:
        list(scan.stream(step, start(), chunks(), resets=resets))
    assert re.fullmatch(r"scan\.stream: .+ is .+; expected [^\n]+\.", str(raised.value))


@pytest.mark.parametrize("resets", [None, itertools.repeat(None), (np.zeros(n, bool) for n in LENGTHS)])
def test_a_step_that_changes_the_state(resets):
    def own(state, x):
        return {**state, "count": jnp.float32(0)}, None

    with pytest.raises(ValueError, match=r"leaf 'count', is float32 of shape \(\); expected int32 of shape \(\)\."):
        next(scan.stream(own, start(), cut(draw()[0]), resets=resets))


def test_a_reset_after_going_on_from_a_saved_state_goes_back_to_the_first():
    def add(state, x):
        return state + x, state + x

    parts = [np.ones(3, np.float32), np.ones(3, np.float32)]
    masks = [np.zeros(3, bool), np.array([False, True, False])]
    whole = [outputs.tolist() for _, outputs in scan.stream(add, jnp.float32(10), parts, resets=masks)]
    ((saved, _),) = scan.stream(add, jnp.float32(10), parts[:1], resets=masks[:1])
    ((_, outputs),) = scan.stream(add, jnp.float32(10), parts[1:], resets=masks[1:], state=saved)
    assert whole[1] == outputs.tolist() == [14.0, 11.0, 12.0]
