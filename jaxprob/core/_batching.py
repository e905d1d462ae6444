"""One answer for a whole batch, so that a branch on it stays a branch under `vmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def all_of_batch(flag: jax.Array) -> jax.Array:
    """Whether a flag is true; under `vmap`, whether it is so in all of the batch.

    A `lax.cond` whose predicate is batched becomes a selection, for which both branches always run.

    Args:
      flag: boolean scalar.

    >>> jax.vmap(all_of_batch)(jnp.array([True, False])).tolist()
    [False, False]
    """
    return flag


@all_of_batch.def_vmap
def _(axis_size: int, in_batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    return all_of_batch(jnp.all(flag, 0)) if in_batched[0] else flag, False
