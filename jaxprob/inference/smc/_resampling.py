"""Resampling: which particles survive, drawn in proportion to their weights.

Every scheme inverts the cumulative weights, kept as integers: the whole and the fractional part of the number of
offspring expected of the first particles. Sums of integers are exact, so that a particle without weight is never drawn
and a million particles in float32 get what is theirs; a cumulative sum of float32 weights has a resolution of 6e-8,
some 6 % of a weight of one in a million, and need not even increase.

Source: Douc, Cappe & Moulines (2005), "Comparison of resampling schemes for particle filtering".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan

Scheme: TypeAlias = Callable[[core.Key, jax.Array, int], jax.Array]


def systematic(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by systematic resampling: one uniform number for all draws, which then lie a fixed distance apart.

    Particle i, with normalised weight w_i, is drawn `floor(n w_i)` or `ceil(n w_i)` times, n w_i times on average. The
    ancestors come in increasing order.

    Args:
      key: random key.
      log_weights: (particle,), need not be normalised. Where their total is not a finite positive number (all -inf, a
        NaN) there is nothing to go by, and particles are drawn as if all weights were equal.
      num_draws: n, how many to draw.

    Returns:
      (num_draws,) int32, indices of particles.

    >>> systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4).tolist()
    [0, 0, 2, 3]
    """
    key = core.as_key(key, "systematic")
    return _invert(log_weights, jnp.arange(num_draws, dtype=jnp.int32), jax.random.bits(key, (), jnp.uint32), num_draws)


def multinomial(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by multinomial resampling: independent draws, each of particle i with probability w_i.

    Args:
      key: random key.
      log_weights: (particle,), as for `systematic`.
      num_draws: how many to draw.

    Returns:
      (num_draws,) int32, indices of particles, in no order.
    """
    key = core.as_key(key, "multinomial")
    cells = jax.random.randint(core.fold(key, 0), (num_draws,), 0, num_draws, jnp.int32)
    return _invert(log_weights, cells, jax.random.bits(core.fold(key, 1), (num_draws,), jnp.uint32), num_draws)


@partial(jax.jit, static_argnames="total")
def shares(log_weights: jax.Array, total: int) -> jax.Array:
    """Weights (..., particle) scaled so that they sum to `total`; all zero where there is no mass."""
    # Relative to the largest and not to their sum: subtracting a sum near -1e4 would leave three digits in float32.
    top = lax.stop_gradient(jnp.max(log_weights, axis=-1, keepdims=True))
    relative = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    mass = jnp.sum(relative, axis=-1, keepdims=True)
    return relative * (total / jnp.where(mass == 0, 1, mass))


@partial(jax.jit, static_argnames="num_draws")
def _invert(log_weights: jax.Array, cells: jax.Array, fractions: jax.Array, num_draws: int) -> jax.Array:
    """The particle on whose share of [0, num_draws) each point `cells + fractions / 2^32` lies."""
    log_weights = lax.stop_gradient(log_weights).astype(core.accumulator_dtype(log_weights.dtype))
    number = log_weights.shape[0]
    share = shares(log_weights, num_draws)
    share = jnp.where(jnp.sum(share) > 0, share, num_draws / number)
    floor = jnp.floor(share)
    fraction = ((share - floor) * 2.0**32).astype(jnp.uint32)
    low = jnp.cumsum(fraction, dtype=jnp.uint32)
    # Unsigned sums wrap round; one that is less than its last term has just done so, and is carried.
    carried = (low < fraction).astype(jnp.int32)
    high = jnp.cumsum(floor.astype(jnp.int32) + carried, dtype=jnp.int32)

    def halve(bounds: tuple[jax.Array, jax.Array], _: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, last = bounds
        middle = (first + last) // 2
        beyond = (high[middle] > cells) | ((high[middle] == cells) & (low[middle] > fractions))
        return jnp.where(beyond, first, jnp.minimum(middle + 1, last)), jnp.where(beyond, middle, last)

    # The shares add up to num_draws but for rounding: what lies beyond them belongs to the last particle with weight.
    last = jnp.max(jnp.where(share > 0, jnp.arange(number, dtype=jnp.int32), 0))
    bounds = jnp.zeros_like(cells), jnp.broadcast_to(last, cells.shape)
    return scan.repeat(halve, bounds, number.bit_length())[0]
