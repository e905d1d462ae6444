"""Sinkhorn's iteration on logarithms: the scalings that give a kernel its margins.

Source: Cuturi (2013), "Sinkhorn distances: lightspeed computation of optimal transport", algorithm 1, on logarithms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.core._log_sums import logsumexp


def sinkhorn_rows(cost: jax.Array, log_columns: Any, column: jax.Array) -> jax.Array:
    """Potentials of rows, (row,), with which the plan has the right sums of rows.

    Args:
      cost: (row, column), over the weight of the entropy.
      log_columns: (column,) or (), the logarithms of the sums of columns.
      column: (column,), potentials of columns.
    """
    return -logsumexp(jnp.expand_dims(log_columns + column, 0) - cost, axis=1)


def sinkhorn_columns(cost: jax.Array, log_rows: Any, row: jax.Array) -> jax.Array:
    """Potentials of columns, (column,), with which the plan has the right sums of columns; see `sinkhorn_rows`."""
    return -logsumexp(jnp.expand_dims(log_rows + row, 1) - cost, axis=0)


def sinkhorn_log_plan(cost: jax.Array, log_rows: Any, log_columns: Any, row: jax.Array, column: jax.Array) -> jax.Array:
    """Logarithms of the plan of potentials, (row, column)."""
    return jnp.expand_dims(log_rows + row, 1) + jnp.expand_dims(log_columns + column, 0) - cost
