"""Means and (co)variances accumulated one position at a time, and pooled over chains.

Source: Welford (1962); Chan, Golub & LeVeque (1983) for pooling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core

SMALL = 32  # size up to which sums of products are spelled out, so that their bits depend on nothing else


class Moments(NamedTuple):
    """Moments of the positions of one chain.

    Attributes:
      number: (), of positions so far.
      mean: (size,).
      squares: (size,) sums of squared deviations, or (size, size) of their products for a dense metric.
    """

    number: jax.Array
    mean: jax.Array
    squares: jax.Array


def start(size: int, dtype: Any, dense: bool) -> Moments:
    """No positions yet."""
    squares = (size, size) if dense else (size,)
    return Moments(jnp.zeros((), dtype), jnp.zeros((size,), dtype), jnp.zeros(squares, dtype))


def update(moments: Moments, position: jax.Array) -> Moments:
    """Adds one position (size,)."""
    number = moments.number + 1
    before = position - moments.mean
    mean = moments.mean + before / number
    after = position - mean
    product = before * after if moments.squares.ndim == 1 else jnp.expand_dims(before, 1) * jnp.expand_dims(after, 0)
    return Moments(number, mean, moments.squares + product)


def add(moments: Moments, rows: jax.Array, weights: jax.Array) -> Moments:
    """Adds one position of each of several chains.

    Args:
      moments: of all chains together.
      rows: (chain, size).
      weights: (chain,), 1 for a position that counts and 0 for one that does not.
    """
    weights = jnp.expand_dims(weights, 1)
    added = core.ordered_sum(weights)[0]
    number = moments.number + added
    centre = core.ordered_sum(weights * rows) / jnp.maximum(added, 1)
    apart = weights * (rows - jnp.expand_dims(centre, 0))
    shift = jnp.where(added > 0, centre - moments.mean, 0)
    # The shift of the mean is one more row, so that one product makes all.
    weight = jnp.sqrt(moments.number * added / jnp.maximum(number, 1))
    rows = jnp.concatenate([apart, jnp.expand_dims(weight * shift, 0)])
    if moments.squares.ndim == 1:
        squares = core.ordered_sum(rows * rows)
    elif rows.shape[1] <= SMALL:
        squares = core.ordered_sum(jnp.expand_dims(rows, 2) * jnp.expand_dims(rows, 1))
    else:
        rows = lax.optimization_barrier(rows)
        squares = lax.optimization_barrier(core.matmul(rows.T, rows))
    mean = moments.mean + added / jnp.maximum(number, 1) * shift
    return Moments(number, mean, moments.squares + squares)


def pool(moments: Moments) -> Moments:
    """The moments of all chains together.

    Args:
      moments: with a leading axis of chains, which may have different numbers.

    Returns:
      moments without that axis. The order of the sums is that of the chains.
    """
    total = core.ordered_sum(moments.number)
    weights = moments.number.reshape(-1, 1)
    mean = core.ordered_sum(weights * moments.mean) / jnp.maximum(total, 1)
    apart = moments.mean - jnp.expand_dims(mean, 0)
    if moments.squares.ndim == 2:
        between = core.ordered_sum(weights * apart * apart)
    else:
        weighted = weights * apart
        between = core.ordered_sum(jnp.expand_dims(weighted, 2) * jnp.expand_dims(apart, 1))
    return Moments(total, mean, core.ordered_sum(moments.squares) + between)


def covariance(moments: Moments) -> jax.Array:
    """The (co)variance, shrunk towards a small multiple of the identity as Stan does.

    Returns:
      (size,) or (size, size): n / (n + 5) times the sample (co)variance plus 1e-3 * 5 / (n + 5).
    """
    number = moments.number
    sample = moments.squares / jnp.maximum(number - 1, 1)
    small = 1e-3 * 5 / (number + 5)
    shrunk = number / (number + 5) * sample
    return shrunk + (small if shrunk.ndim == 1 else small * jnp.eye(shrunk.shape[0], dtype=shrunk.dtype))
