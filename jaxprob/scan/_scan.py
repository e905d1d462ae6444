"""Sequential recurrences over pytrees: with resets, in chunks that are recomputed under grad, and streamed from a host.

Source of the chunks: Griewank and Walther (2000), "Revolve: checkpointing for the reverse mode"; Chen, Xu, Zhang and
Guestrin (2016), "Training deep nets with sublinear memory cost", for the square root. The choice between storing and
recomputing is that between optics and lenses in Gavranović (2022), "Space-time tradeoffs of lenses and optics".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.scan._functions import made_of
from jaxprob.scan._time import reset_mask, take, time_length, where

Step = Callable[[Any, Any], tuple[Any, Any]]


def scan(
    step: Step,
    init: Any,
    xs: Any = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    reset: Any = None,
    chunk: int | None = None,
    remat: bool = False,
) -> tuple[Any, Any]:
    """Runs `state, output = step(state, x)` over the leading axis of `xs`.

    Args:
      step: `(state, x) -> (state, output)`; the state keeps its structure, shapes and dtypes.
      init: pytree, the state before the first step.
      xs: pytree of arrays (time, ...), or None if `length` is given.
      length: number of steps; needed where `xs` has no arrays.
      reverse: run from the last step to the first. Outputs stay at the time of their input.
      reset: booleans (time,): where true the state is `init` again just before that step.
      chunk: number of steps of a chunk. It need not divide the number of steps.
      remat: under grad, keep the states between chunks only and compute the others again: with chunks of `sqrt(time)`
        steps (the default with `remat`) memory is O(sqrt(time)), for one more forward pass.

    Returns:
      the final state, and the outputs with time leading: as `jax.lax.scan` does. With no steps, `init` and empty
      outputs.

    Raises:
      ValueError: if the time axes of two leaves differ, `step` changes the state's structure, a shape or a dtype, or
        `reset` has another length.

    >>> final, sums = scan(lambda total, x: (total + x, total + x), jnp.float32(0), jnp.arange(4.0))
    >>> sums.tolist()
    [0.0, 1.0, 3.0, 6.0]
    """
    steps = time_length("scan.scan", "xs", xs, length)
    mask = reset_mask("scan.scan", reset, steps)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise core.bad_value("scan.scan", "chunk", chunk, "a number of steps, 1 or more")
    init = core.varying(jax.tree.map(jnp.asarray, init), xs, mask)
    if steps:
        init = core.typed_carry(lambda state: step(state, jax.tree.map(lambda x: x[0], xs))[0], init)

    if remat and chunk is None:
        chunk = max(1, math.isqrt(steps))
    run = lax.scan if chunk is None or steps == 0 else functools.partial(_in_chunks, chunk=chunk, remat=remat)
    if mask is None:
        return run(_checked(step), init, xs, steps, reverse)
    (final, _), outputs = run(_restarted(step), (init, init), (mask, xs), steps, reverse)
    return final, outputs


@made_of
def _checked(step: Step) -> Step:
    """The step, which must keep the structure, shapes and dtypes of its state."""

    def checked(state: Any, x: Any) -> tuple[Any, Any]:
        after, output = step(state, x)
        name = "the state after a step"
        core.check_same_structure("scan.scan", name, after, state, dtypes=False)
        like = jax.tree.map(lambda old, new: new if _is_weak(old) else old, state, after)
        core.check_same_structure("scan.scan", name, after, like)
        # A constant is typed as the same on every device, and the state it replaces may not be.
        return jax.tree.map(core.varying, after, state), output

    return checked


def _is_weak(leaf: Any) -> bool:
    """Whether it came from a Python number, which takes the dtype of what it meets."""
    return getattr(jax.typeof(leaf), "weak_type", False)


@made_of
def _restarted(step: Step) -> Step:
    """The step on a carry (state, init), with inputs (whether to start from init again, x)."""

    def restarted(carry: Any, x: Any) -> tuple[Any, Any]:
        (state, init), (restart, x) = carry, x
        after, output = _checked(step)(where(restart, init, state), x)
        return (after, init), output

    return restarted


@made_of
def _one_chunk(body: Step, length: int, reverse: bool, remat: bool, inside: bool) -> Step:
    def one(state: Any, xs: Any) -> tuple[Any, Any]:
        return lax.scan(body, state, xs, length, reverse)

    return jax.checkpoint(one, prevent_cse=not inside) if remat else one


def _in_chunks(
    body: Step, init: Any, xs: Any, steps: int, reverse: bool, *, chunk: int, remat: bool
) -> tuple[Any, Any]:
    count, rest = divmod(steps, chunk)
    whole = jax.tree.map(lambda x: x[: count * chunk].reshape(count, chunk, *x.shape[1:]), xs)

    def chunks(state: Any) -> tuple[Any, Any]:
        state, outputs = lax.scan(_one_chunk(body, chunk, reverse, remat, True), state, whole, count, reverse)
        return state, jax.tree.map(lambda x: x.reshape(count * chunk, *x.shape[2:]), outputs)

    if rest == 0:
        return chunks(init)
    remaining = take(xs, slice(count * chunk, None))
    run = _one_chunk(body, rest, reverse, remat, False)
    if reverse:
        state, late = run(init, remaining)
        final, early = chunks(state)
    else:
        state, early = chunks(init)
        final, late = run(state, remaining)
    return final, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)


def stream(
    step: Step, init: Any, chunks: Iterable[Any], *, resets: Iterable[Any] | None = None, state: Any = None
) -> Iterator[tuple[Any, Any]]:
    """Runs a recurrence over chunks that come one by one from the host: files, a socket, more than memory holds.

    Args:
      step: `(state, x) -> (state, output)`, as for `scan`.
      init: the state before the first step.
      chunks: yields pytrees of arrays (time, ...); chunks of one length share a compiled program.
      resets: yields booleans (time,) for each chunk, or None: where true the state is `init` again.
      state: a state to go on from, one that an earlier stream yielded; `init` by default. Resets go back to `init`.

    Yields:
      the state after each chunk, and the outputs (time, ...) of its steps. A state can be saved, and passed as `state`
      to go on with the same numbers.

    Raises:
      ValueError: as `scan`; and if there are fewer resets than chunks.

    >>> parts = [jnp.arange(2.0), jnp.arange(2.0, 4.0)]
    >>> [float(state) for state, _ in stream(lambda s, x: (s + x, s), jnp.float32(0), parts)]
    [1.0, 6.0]
    """
    init = jax.tree.map(jnp.asarray, init)

    @jax.jit
    def run(start: Any, state: Any, xs: Any, mask: Any) -> tuple[Any, Any]:
        if mask is None:
            return scan(step, state, xs)

        (state, _), outputs = lax.scan(_restarted(step), (state, start), (mask, xs))
        return state, outputs

    state = init if state is None else jax.tree.map(jnp.asarray, state)
    core.check_same_structure("scan.stream", "state", state, init, dtypes=False)
    masks = None if resets is None else iter(resets)
    for index, xs in enumerate(chunks):
        steps, mask = time_length("scan.stream", f"chunk {index}", xs), None
        if masks is not None:
            try:
                mask = reset_mask("scan.stream", next(masks), steps)
            except StopIteration:
                raise core.bad_value(
                    "scan.stream", "resets", f"of {index} chunks", "one mask for each chunk, or None for none"
                ) from None
        state, outputs = run(init, state, xs, mask)
        yield state, outputs
