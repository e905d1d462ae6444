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


def ordered_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of x * y over the leading axis; a product of -inf counts as the lowest finite number.

    Args:
      x, y: (n, ...), floating, of shapes that broadcast.

    Returns:
      (...).

    >>> float(ordered_dot(jnp.arange(4.0), jnp.ones(4)))
    6.0
    """
    # The maximum stands between each product and the sum, or the two could be rounded as one.
    return ordered_sum(jnp.maximum(x * y, jnp.finfo(x.dtype).min))
