"""Linear recurrences of matrices in chunks: matrix products inside a chunk, one state between two chunks.

What every chunked form needs: time cut into chunks, products of decays that keep their digits, and resets as segments.
Source: Yang, Wang, Shen, Panda and Kim (2024), "Gated linear attention transformers with hardware-efficient training".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core, scan
from jaxprob.models.sequence._time_axis import cuts, in_pieces, of_last, on_device, state_before

METHODS = ("auto", "chunked", "sequential")

# Sums of multiples of this are exact in float32 up to a million.
_COARSE = 1 / 16


class Sums(NamedTuple):
    """Cumulative sums of logarithms as an exact and a small part, whose differences keep their digits."""

    coarse: jax.Array
    fine: jax.Array


def cumulative(logarithm: jax.Array) -> Sums:
    """Sums along the first axis, of numbers up to 0.

    A difference of plain sums has the rounding error of the sums: after a few strong decays the weak ones that follow
    would be lost.
    """
    # The exponential of anything lower is 0, and -inf would be NaN in a difference.
    lowest = np.log(np.finfo(logarithm.dtype).smallest_subnormal)
    logarithm = jnp.maximum(logarithm, jnp.asarray(lowest, logarithm.dtype))
    coarse = lax.stop_gradient(jnp.round(logarithm / _COARSE) * _COARSE)
    return Sums(jnp.cumsum(coarse, 0), jnp.cumsum(logarithm - coarse, 0))


def product(after: Sums, before: Sums, connected: jax.Array) -> jax.Array:
    """exp(after - before), the product of the decays between two times, where they are connected; 0 elsewhere."""
    gap = (after.coarse - before.coarse) + (after.fine - before.fine)
    # Not zero after the exponential: that of an unconnected pair may overflow, and NaN would reach the derivative.
    return jnp.exp(jnp.where(connected, gap, -jnp.inf))


class Products(NamedTuple):
    """Products of decays inside a chunk, with one decay a time and head.

    Attributes:
      pairs: (heads, time, time), [t, s] from after step s to after step t; 0 where s > t or a reset lies between.
      start: (time, heads), from before the chunk to after step t; 0 from the first reset on.
      end: (time, heads), from after step s to the end of the chunk; 0 before the last reset.
      whole: (heads,), from before the chunk to its end; 0 with a reset.
    """

    pairs: jax.Array
    start: jax.Array
    end: jax.Array
    whole: jax.Array


def products(log_decay: jax.Array, segment: jax.Array) -> Products:
    """All products of the decays (time, heads) of a chunk whose times are of these segments (time,)."""
    sums = cumulative(log_decay)
    by_head = jax.tree.map(jnp.transpose, sums)
    to, of = (jax.tree.map(lambda x, axis=axis: jnp.expand_dims(x, axis), by_head) for axis in (2, 1))
    zero = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), sums)
    last = jax.tree.map(lambda x: x[-1:], sums)
    continued = jnp.expand_dims(segment == 0, 1)
    return Products(
        product(to, of, jnp.expand_dims(connections(segment), 0)),
        product(sums, zero, continued),
        product(last, sums, jnp.expand_dims(segment == segment[-1], 1)),
        product(last, zero, continued[-1:])[0],
    )


def connections(segment: jax.Array) -> jax.Array:
    """Whether time t (first axis) sees time s: (time, time), true where s <= t and no reset lies between."""
    time = jnp.arange(segment.shape[0])
    causal = jnp.expand_dims(time, 1) >= jnp.expand_dims(time, 0)
    return causal & (jnp.expand_dims(segment, 1) == jnp.expand_dims(segment, 0))


def einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    """`jnp.einsum` at the highest precision."""
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def over_chunks(
    step: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, xs: Any, reset: jax.Array | None, chunk: int
) -> tuple[jax.Array, Any]:
    """Runs `state, ys = step(state, (segment, xs))` over chunks of time.

    Args:
      step: of one chunk; `segment` (chunk,) counts the resets in it so far: 0 is what goes on from the state, which is
        the initial one after a reset. Inputs of zero must leave the state as it is.
      state: before the first step.
      xs: pytree of (time, ...).
      reset: booleans (time,) or None.
      chunk: steps of a chunk; it need not divide time.

    Returns:
      ys (time, ...) and the last state. Under grad only the states between chunks are kept.
    """
    time = jax.tree.leaves(xs)[0].shape[0]
    chunk = min(chunk, time)
    extra = -time % chunk

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.concatenate([x, jnp.zeros((extra, *x.shape[1:]), x.dtype)]) if extra else x
        return filled.reshape(-1, chunk, *x.shape[1:])

    begun = jnp.zeros(time, bool) if reset is None else reset
    segment = jnp.cumsum(cut(begun), 1, dtype=jnp.int32)
    final, ys = scan.scan(jax.checkpoint(step, prevent_cse=False), state, (segment, jax.tree.map(cut, xs)))
    return ys.reshape(-1, *ys.shape[2:])[:time], final


def over_pieces(
    run: Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]],
    state: jax.Array,
    values: jax.Array,
    rest: Any,
    reset: jax.Array | None,
    diagonal: bool,
) -> tuple[jax.Array, jax.Array]:
    """`run(state, values, rest, reset)`, on the devices that time lies over where there are such.

    Args:
      run: S_t = A_t S_{t-1} + (something of `rest`) values_t^T for each head, giving ys and the last state.
      state: (heads, key, value)
      values: (time, heads, value)
      rest: pytree of (time, ...)
      reset: booleans (time,) or None.
      diagonal: whether the A_t are.
    """
    if not cuts(values.shape[0]):
        return run(state, values, rest, reset)

    def piece(state: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        values, rest, reset = xs
        # What a piece does to any state is what it makes of a basis, without values. That is one more state beside.
        heads, key, width = state.shape
        basis = jnp.ones((key, 1), state.dtype) if diagonal else jnp.eye(key, dtype=state.dtype)
        basis = jnp.broadcast_to(basis, (heads, *basis.shape))
        beside = on_device(jnp.concatenate([jnp.zeros_like(state), basis], 2))
        none = jnp.zeros((*values.shape[:2], basis.shape[2]), values.dtype)
        _, after = run(beside, jnp.concatenate([values, none], 2), rest, reset)
        added, kept = jnp.split(after, (width,), 2)
        apply = jnp.multiply if diagonal else functools.partial(einsum, "hij,hjv->hiv")
        ys, final = run(state_before(apply, kept, added, state), values, rest, reset)
        return ys, of_last(final)

    return in_pieces(piece, state, (values, rest, reset))


class Arguments(NamedTuple):
    """What a recurrence is given, checked and in the dtype in which it is computed."""

    arrays: tuple[jax.Array, ...]
    state: jax.Array
    reset: jax.Array | None
    chunked: bool


def arguments(
    function: str, arrays: dict[str, tuple[Any, str]], state: Any, shape: str, reset: Any, chunk: Any, method: Any
) -> Arguments:
    """Checks the arguments of a pure function.

    Args:
      function: its name, for error messages.
      arrays: of each array its value and its axes by name, separated by spaces. A name is one length everywhere.
      state: the state before the first step; None for zeros.
      shape: its axes by name.
      reset, chunk, method: as given.
    """
    lengths: dict[str, int] = {}
    given = {**arrays, **({} if state is None else {"state": (state, shape)})}
    for name, (value, axes) in given.items():
        got, names = jnp.shape(value), axes.split()
        fits = len(got) == len(names)
        if not fits or any(lengths.setdefault(n, size) != size for n, size in zip(names, got, strict=True)):
            known = ", ".join(f"{n} = {lengths[n]}" for n in names if n in lengths)
            wanted = f"({', '.join(names)})" + (f" with {known}" if fits else "")
            raise core.bad_value(function, name, f"of shape {got}", wanted, "Use jax.vmap for a batch")
    if lengths["time"] == 0:
        raise core.bad_value(function, next(iter(arrays)), "a sequence of no time", "at least one time")
    if reset is not None:
        reset = jnp.asarray(reset)
        if reset.shape != (lengths["time"],) or reset.dtype != jnp.bool_:
            found = f"{reset.dtype} of shape {reset.shape}"
            raise core.bad_value(function, "reset", found, f"booleans, one a time: ({lengths['time']},)")
    check_chunks(function, chunk, method)
    dtype = core.accumulator_dtype(core.result_dtype([value for value, _ in given.values()]))
    ready = tuple(jnp.asarray(value).astype(dtype) for value, _ in arrays.values())
    zeros = jnp.zeros([lengths[n] for n in shape.split()], dtype)
    start = zeros if state is None else jnp.asarray(state).astype(dtype)
    return Arguments(ready, start, reset, method != "sequential")


def check_chunks(function: str, chunk: Any, method: Any) -> None:
    """Checks the length of a chunk and the method."""
    core.check_whole(function, chunk=chunk)
    if method not in METHODS:
        raise core.bad_value(function, "method", method, f"one of {', '.join(map(repr, METHODS))}")
