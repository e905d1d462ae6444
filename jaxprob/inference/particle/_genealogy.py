"""Genealogies: the lines of descent of particles, and how few of them are left at early times.

Source: Kitagawa (1996), "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models"; Jacob, Murray
& Rubenthaler (2015), "Path storage in the particle filter", for how few.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob import core, scan


def trace(ancestors: jax.Array, index: jax.Array) -> jax.Array:
    """The lines of descent of particles of the last time.

    Args:
      ancestors: (time, particle) integers, row t those of the particles of time t among those of t - 1; row 0 is not
        looked at. A `smc.Run` has them in `info.ancestors` where it kept anything.
      index: (draw,) integers, of particles of the last time.

    Returns:
      (time, draw) int32, of the particle at each time.

    Raises:
      ValueError: if `ancestors` are not (time, particle).

    >>> trace(jnp.array([[0, 1, 2], [0, 0, 2], [1, 2, 2]]), jnp.array([0, 2])).tolist()
    [[0, 2], [1, 2], [0, 2]]
    """
    if jnp.ndim(ancestors) != 2:
        raise core.bad_value("trace", "ancestors", ancestors, "integers (time, particle)")
    last = jnp.asarray(index).astype(jnp.int32)

    def back(index: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = row[index].astype(jnp.int32)
        return index, index

    _, before = scan.scan(back, last, ancestors[1:], reverse=True)
    return jnp.concatenate([before, jnp.expand_dims(last, 0)])


def num_distinct(ancestors: jax.Array) -> jax.Array:
    """How many particles of each time have descendants at the last.

    Args:
      ancestors: (time, particle), as for `trace`.

    Returns:
      (time,) int32.

    >>> num_distinct(jnp.array([[0, 1, 2], [0, 0, 2], [1, 2, 2]])).tolist()
    [2, 2, 3]
    """
    number = ancestors.shape[1]
    lines = trace(ancestors, jnp.arange(number))
    present = jax.vmap(lambda line: jnp.zeros((number,), jnp.int32).at[line].set(1))(lines)
    return jnp.sum(present, axis=1)
