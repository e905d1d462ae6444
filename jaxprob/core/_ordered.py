"""Sums whose bits depend on the numbers alone, and not on the shape of the batch they are computed in.

XLA orders a reduction as it likes, and may fuse a product and a sum into one rounding. It chooses by the shapes it
sees, so that a chain mapped alone and the same chain among sixteen differ in the last bit. Where bits must agree on
any number of devices the additions are spelled out.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp


def ordered_sum(values: jax.Array) -> jax.Array:
    """The sum over the leading axis, halves added elementwise until one row is left, and odd rows after that.

    Args:
      values: (n, ...).

    Returns:
      (...), with an error that grows as log n, like any pairwise sum; zero for n = 0.

    >>> ordered_sum(jnp.arange(5))
    Array(10, dtype=int32)
    """
    if values.shape[0] == 0:
        return jnp.zeros(values.shape[1:], values.dtype)
    odd = []
    while values.shape[0] > 1:
        half = values.shape[0] // 2
        odd += [values[-1]] * (values.shape[0] % 2)
        values = values[:half] + values[half : 2 * half]
    return functools.reduce(operator.add, odd, values[0])


def rounded(product: jax.Array) -> jax.Array:
    """A product that is rounded before it becomes part of a sum, not both as one; -inf becomes the lowest number.

    >>> rounded(jnp.float32(2) * jnp.float32(3)).item()
    6.0
    """
    return jnp.maximum(product, jnp.finfo(product.dtype).min)


def ordered_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of x * y over the leading axis; a product of -inf counts as the lowest finite number.

    Args:
      x, y: (n, ...), floating, of shapes that broadcast.

    Returns:
      (...).

    >>> float(ordered_dot(jnp.arange(4.0), jnp.ones(4)))
    6.0
    """
    return ordered_sum(rounded(x * y))
