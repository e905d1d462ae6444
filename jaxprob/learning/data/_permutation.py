"""Pseudo-random permutations that are computed one index at a time.

A batch then costs the work of its own examples and not a sort of the whole data, and any step can be computed without
those before it.

Source: Black and Rogaway (2002), "Ciphers with arbitrary finite domains", method 3 (a Feistel network in mixed radix,
with cycle walking); the mixing of bits is that of Appleby's MurmurHash3.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core

_ROUNDS = 8


def permuted(key: core.Key, indices: jax.Array, size: int) -> jax.Array:
    """Where the permutation of 0, ..., size - 1 that belongs to `key` sends these indices.

    Args:
      key: scalar key.
      indices: (...) int32, from 0 to size - 1.
      size: number of things permuted, 1 to 2^30.

    Returns:
      (...) int32, from 0 to size - 1; different indices go to different places.
    """
    # A cell (left, right) of a grid of rows x columns is an index; the grid has fewer than `rows` cells too many, so
    # that walking on from one of them is rare.
    rows = max(2, math.isqrt(size - 1) + 1)
    columns = max(2, -(-size // rows))
    keys = core.random.bits(key, (_ROUNDS, 2), jnp.uint32)

    def shuffle(index: jax.Array) -> jax.Array:
        left, right = index // np.uint32(columns), index % np.uint32(columns)
        for number in range(0, _ROUNDS, 2):
            left = (left + _hash(right, keys[number]) % np.uint32(rows)) % np.uint32(rows)
            right = (right + _hash(left, keys[number + 1]) % np.uint32(columns)) % np.uint32(columns)
        return left * np.uint32(columns) + right

    # From outside of the range the walk goes on until it comes back: the cycle through an index of the range does.
    found = lax.while_loop(
        lambda index: jnp.any(index >= np.uint32(size)),
        lambda index: jnp.where(index >= np.uint32(size), shuffle(index), index),
        shuffle(indices.astype(jnp.uint32)),
    )
    return found.astype(jnp.int32)


def _hash(x: jax.Array, key: jax.Array) -> jax.Array:
    """32 bits of which each depends on all bits of `x` and of the two words of the key."""
    x = x ^ key[0]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x = (x ^ (x >> np.uint32(16))) + key[1]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
