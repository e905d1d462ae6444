"""Affine recurrences x_t = A_t x_{t-1} + b_t: any structure of A, any algorithm, any direction, over devices.

The whole recurrence is one linear system in the states, so that every algorithm has the same derivatives, of any order
and in both modes: a gradient is one more affine recurrence, run backwards by the same algorithm. Nothing but the states
is kept for it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.scan._decays import STRUCTURES, Complex, Exponential, as_array, as_logarithm, low_dtype
from jaxprob.scan._methods import Choice, choose, chunk_length
from jaxprob.scan._recurrence import adjoint_states, states_of
from jaxprob.scan._time import is_first_device, last, pad, reset_mask, shift, unpad, where


class Trajectory(NamedTuple):
    """What a recurrence went through.

    Attributes:
      states: after each step, time leading.
      final: after the last step, in the order of processing.
    """

    states: Any
    final: Any


def affine(
    decay: Any,
    increment: Any,
    init: Any = None,
    *,
    reverse: bool = False,
    reset: Any = None,
    method: str = "auto",
    chunk: int | None = None,
    axis_name: str | None = None,
    mesh: Mesh | None = None,
) -> Trajectory:
    """The states of x_t = A_t x_{t-1} + b_t, or of x_t = A_t x_{t+1} + b_t with `reverse`.

    Args:
      decay: A, by its number of axes: (time,), one number a step; the axes of `increment`, each of its length or 1,
        elementwise; one axis more, (time, ..., n, n), matrices on the last axis of the state, so that the axes between
        are the blocks of a block-diagonal matrix. A time axis of length 1 is the same decay at every step. Also an
        `Exponential` (by its logarithm; for decays near one) or `Complex`.
      increment: b (time, *state), floating, complex or `Complex`.
      init: the state before the first step, (*state); zeros by default.
      reverse: run from the last step to the first.
      reset: booleans (time,): where true the state is `init` again just before that step.
      method: "sequential", "chunked", "associative", "parallel" or "auto" (see `explain`). All give the same values, as
        long as products of decays are finite: a system whose decays multiply beyond all numbers wants "sequential".
      chunk: steps of a chunk for "chunked"; about sqrt(time) by default. It need not divide the number of steps.
      axis_name: inside `shard_map`, the mesh axis over which time goes: each device passes its own piece.
      mesh: outside of it, a mesh with the axis `axis_name` over which to run; the number of steps need not be a
        multiple of its size.

    Returns:
      `states` (time, *state) in the dtype of increment and init, and `final` (*state). Sums are kept in float32 for
      lower precisions; `final` has the dtype of `init`, or that of the sums where there is none, so that a recurrence
      continued from it is the uninterrupted one. Complex numbers come back as they came in.

    Raises:
      ValueError: if shapes or time axes do not fit.
      TypeError: if an argument is not made of numbers.

    >>> affine(jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0])).states.tolist()
    [1.0, 1.5]
    """
    kind, a, b, start = _arrays(decay, increment, init)
    mask = reset_mask("scan.affine", reset, b.shape[0])
    how = choose("scan.affine", method, STRUCTURES[kind].kind, b.shape[0]).method
    chunk = chunk_length("scan.affine", chunk, b.shape[0])
    back, back_final = _way_back(decay, increment, init)
    if mesh is not None and axis_name not in mesh.shape:
        raise core.bad_value("scan.affine", "axis_name", axis_name, f"an axis of the mesh, {tuple(mesh.shape)}")
    if b.shape[0] == 0:
        return Trajectory(back(b), back_final(start))
    if mesh is None:
        states, final = _affine(kind, how, chunk, reverse, axis_name, a, b, start, mask)
    else:
        states, final = _over_mesh(kind, how, chunk, reverse, axis_name, mesh, a, b, start, mask)
    return Trajectory(back(states), back_final(final))


def explain_affine(decay: Any, increment: Any, init: Any = None, *, method: str = "auto", **_: Any) -> Choice:
    """Which method `affine` takes for these arguments, and why."""
    kind, _a, b, _start = _arrays(decay, increment, init)
    return choose("scan.affine", method, STRUCTURES[kind].kind, b.shape[0])


def _arrays(decay: Any, increment: Any, init: Any) -> tuple[str, jax.Array, jax.Array, jax.Array]:
    """The kind of decay; decay, increment and start as arrays of one dtype, checked."""
    a = as_logarithm("decay", decay) if isinstance(decay, Exponential) else as_array("decay", decay)
    b = as_array("increment", increment)
    start = None if init is None else as_array("init", init)
    if b.ndim == 0:
        raise core.bad_value("scan.affine", "increment", "a scalar", "an array (time, *state)")
    if a.ndim == 0:
        raise core.bad_value(
            "scan.affine", "decay", "a scalar", "an array whose first axis is time", "Write decay[None]"
        )
    if start is not None and start.shape != b.shape[1:]:
        raise core.bad_value("scan.affine", "init", f"of shape {start.shape}", f"the shape of a state, {b.shape[1:]}")
    if a.shape[0] not in (1, b.shape[0]):
        raise core.bad_value(
            "scan.affine",
            "decay",
            f"of {a.shape[0]} steps of time",
            f"the {b.shape[0]} steps of increment, or one for all",
            "Time leads",
        )
    kind = "logarithm" if isinstance(decay, Exponential) else "elementwise"
    if a.ndim == 1:
        a = a.reshape(a.shape + (1,) * (b.ndim - 1))
    elif a.ndim == b.ndim + 1 and b.ndim > 1 and kind == "elementwise":
        kind = "matrix"
    want = (*b.shape[1:], b.shape[-1]) if kind == "matrix" else b.shape[1:]
    free = want[: len(want) - 2] if kind == "matrix" else want
    have = a.shape[1:]
    fits = len(have) == len(want) and have[len(free) :] == want[len(free) :]
    if not fits or any(h not in (1, w) for h, w in zip(have, free, strict=False)):
        raise core.bad_value(
            "scan.affine",
            "decay",
            f"of shape {a.shape}",
            f"(time,), (time, ...) like increment {b.shape}, or (time, ..., n, n) with n = {b.shape[-1]}"
            if b.ndim > 1
            else f"shape ({b.shape[0]},), as increment is",
        )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(a, b, *([] if start is None else [start]))
        # A real logarithm beside complex increments stays real: exp of it multiplies either.
        a = a.astype(dtype if kind != "logarithm" or jnp.iscomplexobj(a) else jnp.finfo(dtype).dtype)
        b = b.astype(dtype)
        start = jnp.zeros(b.shape[1:], dtype) if start is None else start.astype(dtype)
    return kind, a, b, start


def _way_back(decay: Any, increment: Any, init: Any) -> tuple[Any, Any]:
    """Functions that give states and final the form and dtype in which the numbers came."""
    pairs = not any(not isinstance(x, (Complex, Exponential)) and jnp.iscomplexobj(x) for x in (decay, increment, init))

    def form(x: jax.Array, dtype: Any) -> Any:
        if not jnp.iscomplexobj(x):
            return x.astype(dtype)
        # There are no complex numbers of low precision.
        return Complex(x.real.astype(dtype), x.imag.astype(dtype)) if pairs else x

    given = low_dtype(increment) if init is None else low_dtype((increment, init))
    kept = None if init is None else low_dtype(init)

    def final(x: jax.Array) -> Any:
        return form(x, jnp.finfo(x.dtype).dtype if kept is None else kept)

    return lambda x: form(x, given), final


@functools.partial(jax.jit, static_argnums=range(6))
def _over_mesh(
    kind: str,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str,
    mesh: Mesh,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`_affine` on the devices of a mesh, filled up with steps that change nothing."""
    structure, steps = STRUCTURES[kind], increment.shape[0]
    extra = -steps % mesh.shape[axis_name]
    constant = decay.shape[0] == 1 != steps and extra == 0
    if not constant:
        decay = jnp.broadcast_to(decay, (steps, *decay.shape[1:]))
        decay = pad(decay, structure.keep(decay[0]), extra, reverse)
    increment = pad(increment, jnp.zeros_like(increment[0]), extra, reverse)
    reset = None if reset is None else pad(reset, jnp.bool_(False), extra, reverse)
    time = P(axis_name)
    run = jax.shard_map(
        functools.partial(_affine, kind, method, chunk, reverse, axis_name),
        mesh=mesh,
        in_specs=(P() if constant else time, time, P(), time),
        out_specs=(time, P()),
    )
    states, final = run(decay, increment, start, reset)
    return unpad(states, extra, reverse), final


@functools.partial(jax.jit, static_argnums=range(5))
def _affine(
    kind: str,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str | None,
    decay: jax.Array,
    increment: jax.Array,
    start: jax.Array,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    structure = STRUCTURES[kind]
    # The unknowns are the start and the states. `solve` gets both as right-hand sides.
    decay, start, increment = core.varying(
        (decay, start, increment), decay, increment, start, reset, axis_name=axis_name
    )

    def before(start: jax.Array, states: jax.Array) -> jax.Array:
        previous = shift(states, start, reverse, axis_name)
        if reset is None:
            return previous
        return where(reset, jnp.broadcast_to(start, previous.shape), previous)

    def system(unknowns: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, states = unknowns
        return _tied(start, states - structure.apply(decay, before(start, states)))

    def solve(_: Any, right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, increment = right
        return start, states_of(structure, method, chunk, reverse, axis_name, decay, increment, start, reset)

    def solve_transposed(_: Any, right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """What flows back into the first step, or into a reset, is the start's."""
        of_start, of_states = right
        found = adjoint_states(structure, method, chunk, reverse, axis_name, decay, of_states, reset)
        here = True if axis_name is None else is_first_device(axis_name, reverse)
        if reset is None:
            edge = structure.pull(last(decay, not reverse), last(found, not reverse))
            edge = jnp.where(here, edge, jnp.zeros_like(edge))
        else:
            first = found.shape[0] - 1 if reverse else 0
            enters = reset | ((jnp.arange(found.shape[0]) == first) & here)
            flows = structure.pull(decay, found)
            edge = jnp.sum(where(enters, flows, jnp.zeros_like(flows)), 0)
        return of_start + edge, found

    _, states = lax.custom_linear_solve(system, _tied(start, increment), solve, solve_transposed)
    final = last(states, reverse)
    if axis_name is not None:
        ends = is_first_device(axis_name, not reverse)
        final = lax.psum(where(ends, final, jnp.zeros_like(final)), axis_name)
    return states, final


def _tied(start: jax.Array, states: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both unchanged, and to JAX each a linear function of the other as well.

    Its rule for the transpose of a linear solve wants either all right-hand sides to be variables or none, also where
    one of the two is not differentiated. XLA removes both selections.
    """
    no, none = jnp.zeros(start.shape, bool), jnp.zeros(states.shape, bool)
    return lax.select(no, states[0], start), lax.select(none, jnp.broadcast_to(start, states.shape), states)
