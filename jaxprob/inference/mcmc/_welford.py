"""Means and (co)variances accumulated one position at a time, and pooled over chains.

Source: Welford (1962); Chan, Golub & LeVeque (1983) for pooling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core


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


def pool(moments: Moments) -> Moments:
    """The moments of all chains together.

    Args:
      moments: with a leading axis of chains, each of the same number.

    Returns:
      moments without that axis. The order of the sums is that of the chains.
    """
    mean = core.ordered_sum(moments.mean) / moments.mean.shape[0]
    apart = moments.mean - jnp.expand_dims(mean, 0)
    if moments.squares.ndim == 2:
        between = core.ordered_sum(apart * apart)
    else:
        between = core.ordered_sum(jnp.expand_dims(apart, 2) * jnp.expand_dims(apart, 1))
    squares = core.ordered_sum(moments.squares) + moments.number[0] * between
    return Moments(core.ordered_sum(moments.number), mean, squares)


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
