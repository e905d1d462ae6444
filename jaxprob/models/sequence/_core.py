"""What every sequence core is: a Flax Linen module `(xs, state, reset) -> (ys, state)` for one sequence.

Time leads, `vmap` makes batches. A core goes on from the state that it returned as if it had never stopped, its `step`
takes one input at a time and agrees with the whole sequence, and `reset` starts a new sequence inside a long one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.sequence._time_axis import TIME, check_time, cuts, in_pieces, is_first


class Core(nn.Module):
    """A sequence core. Subclasses give `width`, `initial_state`, `run` and, where one exists, `step`.

    Attributes:
      width: numbers of an input and of an output at one time.
    """

    width: int

    # The public name of the factory, for error messages.
    factory = "core"
    # Whether outputs already mix what the channels hold and went through a non-linearity, so that a block adds no
    # gate of its own.
    mixes_channels = False
    # Whether it runs on a mesh that cuts time; cores that only pass a sequence on leave the question to those inside.
    runs_in_pieces = False

    def initial_state(self) -> Any:
        """The state before the first input: a pytree of float32 arrays that depends on the configuration only."""
        raise NotImplementedError

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        """The whole sequence, arguments checked; called in the `setup` style, so submodules are attributes."""
        raise NotImplementedError

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        """One input.

        Args:
          x: (width,)
          state: what an earlier call returned; the initial state by default.

        Returns:
          (width,) and the state after it.
        """
        raise NotImplementedError

    def __call__(
        self, xs: jax.Array, state: Any = None, reset: Any = None, *, deterministic: bool = True
    ) -> tuple[jax.Array, Any]:
        """A whole sequence.

        Args:
          xs: (time, width), at least one time.
          state: what an earlier call returned; the initial state by default.
          reset: booleans (time,): where true a new sequence begins, so that the state before it is the initial one.
          deterministic: without dropout; otherwise the module wants an rng named "dropout".

        Returns:
          ys (time, width) in the dtype of `xs`, and the state after the last input.

        Raises:
          ValueError: if `xs` is not (time, width), has no time, or `state` or `reset` are of another shape; if the mesh
            in force cuts time, and this core does not run in pieces or their number does not divide time.
        """
        check_inputs(self, xs, 2)
        check_time(self, name_of(self), xs.shape[0])
        state = check_state(self, state)
        return self.run(xs, state, check_reset(self, reset, xs.shape[0]), deterministic)


def name_of(module: nn.Module) -> str:
    """The public name of what made a core, for error messages."""
    return f"sequence.{module.factory}"


def check_inputs(module: Any, xs: Any, ndim: int) -> None:
    """Checks one input (width,) or a sequence of them (time, width)."""
    shape = jnp.shape(xs)
    wanted = f"(time, {module.width})" if ndim == 2 else f"({module.width},)"
    if len(shape) != ndim or shape[-1] != module.width:
        todo = "Use jax.vmap for a batch" if len(shape) > ndim else ""
        raise core.bad_value(name_of(module), "xs" if ndim == 2 else "x", f"of shape {shape}", wanted, todo)
    if not jnp.issubdtype(jnp.result_type(xs), jnp.floating):
        raise core.bad_value(
            name_of(module), "xs", f"of {jnp.result_type(xs)}", "floating numbers", "Embed integers first"
        )
    if ndim == 2 and shape[0] == 0:
        raise core.bad_value(name_of(module), "xs", "a sequence of no time", "at least one time")


def check_state(module: Any, state: Any) -> Any:
    """The state to begin with, of the structure and shapes of the initial one."""
    fresh = module.initial_state()
    if state is None:
        return fresh
    wanted, got = (_shapes(x) for x in (fresh, state))
    if wanted != got:
        raise core.bad_value(
            name_of(module), "state", got, f"{wanted}, that of this core", "Pass what this core returned, or None"
        )
    return state


def _shapes(state: Any) -> str:
    """Names and shapes of the leaves, as text."""
    return ", ".join(f"{name} {tuple(jnp.shape(leaf))}" for name, leaf in core.named_leaves(state)) or "nothing"


def check_reset(module: Any, reset: Any, time: int) -> jax.Array | None:
    """Resets as booleans (time,), or None."""
    if reset is None:
        return None
    reset = jnp.asarray(reset)
    if reset.shape != (time,) or reset.dtype != jnp.bool_:
        raise core.bad_value(
            name_of(module), "reset", f"{reset.dtype} of shape {reset.shape}", f"booleans, one a time: ({time},)"
        )
    return reset


def linear_states(
    decay: Any,
    increment: Any,
    state: Any,
    reset: jax.Array | None,
    *,
    method: str = "auto",
    chunk: int | None = None,
) -> tuple[Any, Any]:
    """States of x_t = a_t x_{t-1} + b_t from `state` on, with zero before a step that is reset.

    Args:
      decay, increment, method, chunk: as for `scan.affine`; increments in float32 at least.
      state: (*state), before the first step; an array, or `scan.Complex` where the increment is.
      reset: booleans (time,) or None.

    Returns:
      (time, *state) and the last one.
    """
    if not cuts(jax.tree.leaves(increment)[0].shape[0]):
        return _linear_states(decay, increment, state, reset, method, chunk, None)
    # A decay of all times goes to every device whole.
    constant = jax.tree.leaves(decay)[0].shape[0] == 1

    def piece(whole: Any, xs: Any) -> tuple[Any, Any]:
        (state, same), (each, increment, reset) = whole, xs
        return _linear_states(same if constant else each, increment, state, reset, method, chunk, TIME)

    same, each = (decay, None) if constant else (None, decay)
    return in_pieces(piece, (state, same), (each, increment, reset))


def _linear_states(
    decay: Any, increment: Any, state: Any, reset: jax.Array | None, method: str, chunk: int | None, axis: str | None
) -> tuple[Any, Any]:
    """`linear_states` of a whole sequence, or of the piece of it that this device has."""
    if reset is None:
        found = scan.affine(decay, increment, state, method=method, chunk=chunk, axis_name=axis)
        return found.states, found.final
    # `scan.affine` resets to where it started, which is not the initial state here. So the first step is taken apart
    # and becomes an increment, and the recurrence starts from zero.
    decay_0, increment_0 = jax.tree.map(lambda x: x[:1], (decay, increment))
    first = scan.affine(decay_0, increment_0, state, method="sequential").states
    begun, begins = reset[0], jnp.bool_(True) if axis is None else is_first()
    increment = jax.tree.map(
        lambda b, x: b.at[0].set(jnp.where(begun | ~begins, b[0], x[0].astype(b.dtype))), increment, first
    )
    zero = jax.tree.map(jnp.zeros_like, state)
    reset = reset.at[0].set(begun | begins)
    found = scan.affine(decay, increment, zero, reset=reset, method=method, chunk=chunk, axis_name=axis)
    return found.states, found.final


def recurrent_states(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any, fresh: Any, reset: jax.Array | None
) -> tuple[Any, Any]:
    """Runs `state, y = step(state, x)` from `state` on, with `fresh` before a step that is reset.

    Returns:
      the outputs, time leading, and the last state.
    """
    if reset is None:
        final, ys = scan.scan(step, state, xs)
        return ys, final

    def from_fresh(state: Any, x: Any) -> tuple[Any, Any]:
        here, x = x
        return step(jax.tree.map(lambda old, new: jnp.where(here, new, old), state, fresh), x)

    final, ys = scan.scan(from_fresh, state, (reset, xs))
    return ys, final
