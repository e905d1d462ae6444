"""What every scan needs to know of its time axis: its length, where it starts again, and its neighbours.

Time is the first axis of every leaf. `reverse` runs from the last step to the first; "before" and "after" are meant in
the order of processing. Inside `shard_map` with the time axis over devices, neighbours may live on another device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core


def time_length(function: str, argument: str, tree: Any, length: int | None = None) -> int:
    """The common length of the leading axes of a pytree's leaves.

    Raises:
      ValueError: if two leaves differ (names both), a leaf is a scalar, or there is neither a leaf nor a `length`.
    """
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise core.bad_value(function, "length", length, "a number of steps, 0 or more")
    first = None if length is None else ("length", length)
    for name, leaf in core.named_leaves(tree):
        label = argument if name == "value" else f"{argument}, leaf {name!r},"
        if jnp.ndim(leaf) == 0:
            raise core.bad_value(function, label, "a scalar", "an array whose first axis is time")
        steps = jnp.shape(leaf)[0]
        if first is None:
            first = (label.rstrip(","), steps)
        elif steps != first[1]:
            raise core.bad_value(
                function, label, f"of {steps} steps of time", f"the {first[1]} steps of {first[0]}", "Time leads"
            )
    if first is None:
        raise core.bad_value(function, argument, "without arrays", "at least one, or `length`")
    return first[1]


def reset_mask(function: str, reset: Any, length: int) -> jax.Array | None:
    """The mask (length,) as booleans, or None.

    Raises:
      TypeError: if it is not made of booleans.
      ValueError: if it has another shape.
    """
    if reset is None:
        return None
    mask = jnp.asarray(reset)
    if mask.dtype != jnp.bool_:
        raise core.bad_type(function, "reset", f"of dtype {mask.dtype}", "booleans, one a step", "Compare with zero")
    if mask.shape != (length,):
        raise core.bad_value(function, "reset", f"of shape {mask.shape}", f"shape ({length},), one a step")
    return mask


def where(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Chooses between two pytrees of equal shapes; `mask` has the leading axes of every leaf."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jnp.reshape(mask, mask.shape + (1,) * (jnp.ndim(b) - mask.ndim))
        return jnp.where(wide, a, b)

    return jax.tree.map(one, yes, no)


def take(tree: Any, index: Any) -> Any:
    """The leaves at an index (or slice) of the time axis."""
    return jax.tree.map(lambda x: x[index], tree)


def last(tree: Any, reverse: bool) -> Any:
    """What is processed last."""
    return take(tree, 0 if reverse else -1)


def pad(tree: Any, filler: Any, count: int, reverse: bool) -> Any:
    """Adds `count` steps equal to `filler` (no time axis) to what is processed last."""
    if count == 0:
        return tree

    def one(x: jax.Array, fill: jax.Array) -> jax.Array:
        extra = jnp.broadcast_to(fill, (count, *x.shape[1:]))
        return jnp.concatenate([extra, x] if reverse else [x, extra])

    return jax.tree.map(one, tree, filler)


def unpad(tree: Any, count: int, reverse: bool) -> Any:
    """Takes away what `pad` added."""
    return tree if count == 0 else take(tree, slice(count, None) if reverse else slice(None, -count))


def neighbour(tree: Any, ahead: bool, axis_name: str) -> Any:
    """The arrays of the device before this one in time (`ahead` false) or after it; zeros where there is none."""
    count = lax.axis_size(axis_name)
    step = -1 if ahead else 1
    pairs = [(i, i + step) for i in range(count) if 0 <= i + step < count]
    return jax.tree.map(lambda x: lax.ppermute(x, axis_name, pairs), tree)


def is_first_device(axis_name: str, reverse: bool) -> jax.Array:
    """Whether this device has what is processed first."""
    return lax.axis_index(axis_name) == (lax.axis_size(axis_name) - 1 if reverse else 0)


def shift(tree: Any, first: Any, reverse: bool, axis_name: str | None = None) -> Any:
    """At each step what stood at the step before it, in the order of processing; `first` at the first step."""
    if axis_name is not None:
        edge = neighbour(last(tree, reverse), reverse, axis_name)
        first = where(is_first_device(axis_name, reverse), first, edge)

    def one(x: jax.Array, start: jax.Array) -> jax.Array:
        start = jnp.expand_dims(start, 0)
        return jnp.concatenate([x[1:], start] if reverse else [start, x[:-1]])

    return jax.tree.map(one, tree, first)
