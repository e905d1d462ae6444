"""Algorithms for affine recurrences of arrays that are already of one dtype; no derivative is taken through them.

All run the same arguments: `decay` (time or 1, ...), `increment` (time, *state), `start` (*state), `reset` (time,) or
None. Source of the tree: Blelloch (1990), "Prefix sums and their applications".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.scan._decays import Structure
from jaxprob.scan._time import last, neighbour, pad, shift, unpad, where


def states_of(
    structure: Structure,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str | None,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
) -> jax.Array:
    """The states, by one of the algorithms; no derivative is taken of what happens here."""
    if method == "sequential" and axis_name is None:
        return _sequential(structure, reverse, decay, increment, start, reset, start)
    if method == "chunked" and axis_name is None:
        return _chunked(structure, chunk, reverse, decay, increment, start, reset, start)
    decay = core.varying(jnp.broadcast_to(decay, (increment.shape[0], *decay.shape[1:])), increment)
    origin = start
    if axis_name is not None:
        start = _start_of_piece(structure, method, chunk, reverse, axis_name, decay, increment, start, reset)
    if method == "sequential":
        return _sequential(structure, reverse, decay, increment, start, reset, origin)
    if method == "chunked":
        return _chunked(structure, chunk, reverse, decay, increment, start, reset, origin)
    return _associative(structure, reverse, decay, increment, start, reset, origin)


def adjoint_states(
    structure: Structure,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str | None,
    decay: jax.Array,
    cotangents: jax.Array,
    reset: jax.Array | None,
) -> jax.Array:
    """The transposed recurrence l_t = g_t + A_{t+1}^T l_{t+1}, which does not cross a reset.

    Args:
      reverse: the direction of the recurrence that is transposed; this one runs against it.
    """
    if method == "sequential" and axis_name is None:
        return _sequential_adjoint(structure, reverse, decay, cotangents, reset)
    transposed = structure.transpose(decay)
    # One decay for all steps needs no shift; a piece of one step on a device looks the same and does.
    constant = decay.shape[0] == 1 != cotangents.shape[0]
    later = transposed if constant else _next(transposed, reverse, axis_name)
    ended = None if reset is None else _next(reset, reverse, axis_name)
    if ended is not None and not constant:
        # Nothing flows back across a reset, not even zero times a decay that is not a number.
        later = where(ended, jnp.zeros_like(later), later)
    zero = core.varying(jnp.zeros_like(cotangents[0]), cotangents)
    return states_of(structure, method, chunk, not reverse, axis_name, later, cotangents, zero, ended)


def _next(x: jax.Array, reverse: bool, axis_name: str | None) -> jax.Array:
    """At each step what stands at the step after it; zero at the last one."""
    edge = last(x, not reverse)
    edge = jnp.zeros_like(edge) if axis_name is None else neighbour(edge, not reverse, axis_name)
    return shift(x, edge, not reverse)


def _restarted(reset: jax.Array | None, origin: jax.Array, state: jax.Array) -> jax.Array:
    """The state before a step. It is selected and not multiplied by zero, so that no NaN crosses a reset."""
    return state if reset is None else where(reset, jnp.broadcast_to(origin, state.shape), state)


def _sequential(
    structure: Structure,
    reverse: bool,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
    origin: jax.Array,
) -> jax.Array:
    """The states from `start` on; a reset goes back to `origin`, which is another state where this is a piece."""
    constant = decay[0] if decay.shape[0] == 1 else None

    def step(state: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        factor, added, restart = x
        before = _restarted(restart, origin, state)
        after = structure.apply(factor if constant is None else constant, before) + added
        return after, after

    return lax.scan(step, start, (decay if constant is None else None, increment, reset), reverse=reverse)[1]


def _sequential_adjoint(
    structure: Structure, reverse: bool, decay: jax.Array, cotangents: jax.Array, reset: jax.Array | None
) -> jax.Array:
    """The carry is what flows out of a step, A_t^T l_t, so that no decay is moved in time."""
    constant = decay[0] if decay.shape[0] == 1 else None

    def step(flow: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        factor, added, restart = x
        here = flow + added
        flow = structure.pull(factor if constant is None else constant, here)
        return (flow if restart is None else jnp.where(restart, jnp.zeros_like(flow), flow)), here

    zero = core.varying(jnp.zeros_like(cotangents[0]), decay, cotangents, reset)
    return lax.scan(step, zero, (decay if constant is None else None, cotangents, reset), reverse=not reverse)[1]


def _side_by_side(
    structure: Structure,
    chunk: int,
    reverse: bool,
    decay: jax.Array | None,
    increment: jax.Array,
    reset: jax.Array | None,
) -> tuple[tuple[Any, jax.Array, Any], int]:
    """All as (step of chunk, chunk, ...), filled up with steps that change nothing; and how many those are."""
    steps = increment.shape[0]
    count = -(-steps // chunk)
    extra = count * chunk - steps
    keep = None if decay is None else structure.keep(decay[0])
    filler = (keep, jnp.zeros_like(increment[0]), None if reset is None else jnp.bool_(False))
    cut = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(count, chunk, *x.shape[1:]), 0, 1),
        pad((decay, increment, reset), filler, extra, reverse),
    )
    return cut, extra


def _combine(structure: Structure, before: Any, after: Any) -> Any:
    """What two pieces do one after the other: (decay, increment, whether there is a reset in them)."""
    decay = structure.compose(after[0], before[0])
    increment = structure.apply(after[0], before[1]) + after[1]
    if after[2] is None:
        return decay, increment, None
    return decay, where(after[2], after[1], increment), before[2] | after[2]


def _totals(
    structure: Structure,
    reverse: bool,
    decay: jax.Array,
    increment: jax.Array,
    reset: jax.Array | None,
    origin: jax.Array,
) -> Any:
    """What all steps together do to a state; axes after the first are side by side."""

    constant = decay[0] if decay.shape[0] == 1 else None

    def step(total: Any, x: Any) -> tuple[Any, None]:
        factor, added, restart = x
        factor = factor if constant is None else constant
        state = structure.apply(factor, _restarted(restart, origin, total[1])) + added
        product = structure.reduce(structure.compose(factor, total[0]))
        return (product, state, None if restart is None else total[2] | restart), None

    nothing = (structure.keep(decay[0]), jnp.zeros_like(increment[0]), None if reset is None else reset[0] & False)
    xs = (decay if constant is None else None, increment, reset)
    return lax.scan(step, core.varying(nothing, decay, increment, reset), xs, reverse=reverse)[0]


def _starts(structure: Structure, reverse: bool, totals: Any, start: jax.Array) -> jax.Array:
    """The state before each piece, from what the pieces do."""

    def step(state: jax.Array, total: Any) -> tuple[jax.Array, jax.Array]:
        after = structure.apply(total[0], state) + total[1]
        return (after if total[2] is None else where(total[2], total[1], after)), state

    return lax.scan(step, core.varying(start, totals), totals, reverse=reverse)[1]


def _chunked(
    structure: Structure,
    chunk: int,
    reverse: bool,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
    origin: jax.Array,
) -> jax.Array:
    # The chunks run twice, once for their totals and once for their states: that moves fewer bytes than keeping states
    # and decays of the first run, and no product of decays meets a state from before its chunk.
    constant = decay.shape[0] == 1
    cut, extra = _side_by_side(structure, chunk, reverse, None if constant else decay, increment, reset)
    # What fills up the last chunk comes after all states, so that one decay for all steps needs no filling.
    same = jnp.expand_dims(decay, 1)
    decay, increment, reset = cut
    decay = same if constant else decay
    product, *rest = _totals(structure, reverse, decay, increment, reset, origin)
    product = jnp.broadcast_to(product, (increment.shape[1], *product.shape[1:]))
    starts = _starts(structure, reverse, (product, *rest), start)
    states = _sequential(structure, reverse, decay, increment, starts, reset, origin)
    whole = jnp.swapaxes(states, 0, 1).reshape(-1, *states.shape[2:])
    return unpad(whole, extra, reverse)


def _associative(
    structure: Structure,
    reverse: bool,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
    origin: jax.Array,
) -> jax.Array:
    index = -1 if reverse else 0
    first = structure.apply(decay[index], start)
    if reset is not None:
        # The state from which a reset starts is part of that step's increment.
        flows = structure.apply(decay, jnp.broadcast_to(origin, increment.shape))
        first = jnp.where(reset[index], jnp.zeros_like(first), first)
        increment = where(reset, increment + flows, increment)
    increment = increment.at[index].add(first)

    def combine(before: Any, after: Any) -> Any:
        return _combine(structure, before, after)

    return lax.associative_scan(combine, (decay, increment, reset), reverse=reverse)[1]


def _start_of_piece(
    structure: Structure,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
) -> jax.Array:
    """The state before this device's piece: the totals of all pieces, gathered, then one after another."""
    if method == "sequential":
        total = _totals(structure, reverse, decay, increment, reset, start)
    else:
        cut, _ = _side_by_side(structure, chunk, reverse, decay, increment, reset)
        pieces = _totals(structure, reverse, *cut, start)
        nothing = (
            structure.keep(pieces[0][0]),
            jnp.zeros_like(pieces[1][0]),
            None if reset is None else pieces[2][0] & False,
        )
        total = lax.scan(
            lambda total, piece: (_combine(structure, total, piece), None),
            core.varying(nothing, pieces),
            pieces,
            reverse=reverse,
        )[0]
    gathered = lax.all_gather(total, axis_name)
    return _starts(structure, reverse, gathered, start)[lax.axis_index(axis_name)]
