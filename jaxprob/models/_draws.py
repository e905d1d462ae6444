"""Doing something for each of many draws, in bounded memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models._survey import Site

BUDGET = 2**24
"""Numbers that the intermediate arrays of one batch of draws may take, by a rough count."""


def leading_shape(function: str, draws: dict[str, Any], sites: dict[str, Site]) -> tuple[int, ...]:
    """The leading shape that all draws have in front of the shapes of their sites.

    Raises:
      ValueError: if an array does not end in the shape of its site, or two differ in what comes before.
    """
    lead, first = None, ""
    for name, value in draws.items():
        shape, event = jnp.shape(value), sites[name].shape
        cut = len(shape) - len(event)
        if cut < 0 or shape[cut:] != event:
            raise core.bad_value(function, name, f"of shape {shape}", f"a shape that ends in {event}")
        if lead is None:
            lead, first = shape[:cut], name
        if shape[:cut] != lead:
            expected = f"{lead + event}, for the leading shape {lead} of {first!r}"
            raise core.bad_value(function, name, f"of shape {shape}", expected)
    return lead or ()


def over_draws(
    task: Callable[..., Any],
    model: Any,
    key: core.Key | None,
    draws: dict[str, Any],
    lead: tuple[int, ...],
    size: int = 1,
) -> Any:
    """`task(model, key, draw)` for every draw, compiled, in batches that keep to `BUDGET`.

    Args:
      task: a module-level function of (model, key, draw), which makes a pytree of arrays.
      model: pytree passed on.
      key: the i-th draw, in flattened order, gets this key with i folded in; None if there is no need of one.
      draws: name to array (*lead, ...).
      lead: leading shape.
      size: numbers that one call of `task` handles, by a rough count.

    Returns:
      what `task` makes, with `lead` in front of every shape.
    """
    count = math.prod(lead)
    flat = {name: jnp.reshape(value, (count, *jnp.shape(value)[len(lead) :])) for name, value in draws.items()}
    batch = max(1, min(count, BUDGET // max(size, 1)))
    result = _over_flat(task, batch, model, key, jnp.arange(count), flat)
    return jax.tree.map(lambda array: jnp.reshape(array, lead + array.shape[1:]), result)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _over_flat(
    task: Callable[..., Any], batch: int, model: Any, key: Any, indices: jax.Array, draws: dict[str, jax.Array]
) -> Any:
    def one(item: tuple[jax.Array, dict[str, jax.Array]]) -> Any:
        index, draw = item
        return task(model, None if key is None else core.fold(key, index), draw)

    if batch >= indices.size:
        return jax.vmap(one)((indices, draws))
    return jax.lax.map(one, (indices, draws), batch_size=batch)
