"""A loop that fills a fixed buffer: one compiled program for every number of steps up to its capacity.

It is the loop under every chunked run: the host decides how many steps a chunk has, and nothing is compiled again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core

Carry = TypeVar("Carry")


def bounded(
    step: Callable[[Carry, jax.Array], tuple[Carry, Any]],
    init: Carry,
    count: Any,
    capacity: int,
    until: Callable[[Carry], Any] | None = None,
) -> tuple[Carry, Any]:
    """Runs `step` `count` times and keeps its outputs in a buffer of `capacity` rows.

    Args:
      step: `(carry, index) -> (carry, row)`; the carry keeps its structure, shapes and dtypes; `index` is an int32
        scalar that counts from 0.
      init: the first carry.
      count: number of steps, at most `capacity`; may be traced, so that it is decided at run time.
      capacity: rows of the buffer; part of the program.
      until: `carry -> bool`, looked at before each step: once it is true there are no more. A carry that counts says
        how many there were.

    Returns:
      the last carry, and the rows: a pytree like `row` whose leaves have a leading axis of `capacity`; rows from
      the last step on are zero.

    >>> carry, rows = bounded(lambda total, i: (total + i, total), jnp.int32(0), 3, 5)
    >>> int(carry), rows.tolist()
    (3, [0, 0, 1, 0, 0])
    """
    # Jitted, so that finding the shape of a row and building the loop trace `step` once between them.
    step = jax.jit(step)
    row = jax.eval_shape(step, init, jnp.int32(0))[1]
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)

    def body(state: tuple[jax.Array, Carry, Any]) -> tuple[jax.Array, Carry, Any]:
        index, carry, buffer = state
        carry, new = step(carry, index)
        buffer = jax.tree.map(lambda whole, part: lax.dynamic_update_index_in_dim(whole, part, index, 0), buffer, new)
        return index + 1, carry, buffer

    bound = jnp.minimum(jnp.asarray(count, jnp.int32), capacity)

    def going(state: tuple[jax.Array, Carry, Any]) -> jax.Array:
        more = state[0] < bound
        return more if until is None else more & ~jnp.asarray(until(state[1]))

    _, carry, rows = core.while_loop(going, body, (jnp.int32(0), init, rows))
    return carry, rows


def repeat(step: Callable[[Carry, jax.Array], Carry], init: Carry, count: Any) -> Carry:
    """Runs `carry = step(carry, index)` `count` times; `count` may be traced.

    >>> int(repeat(lambda total, i: total + i, jnp.int32(0), 4))
    6
    """
    return core.fori_loop(0, count, lambda index, carry: step(carry, index), init)
