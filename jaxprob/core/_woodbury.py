"""A diagonal plus a matrix of low rank, `A = diag(d) + U U^T`, in time linear in its size.

Woodbury's identity on `W = D^-1/2 U`. The small matrix `I + W^T W` is never formed: its factor comes from a QR
decomposition of `[I; W]`, which keeps the I where W is large.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.core._dtypes import as_float
from jaxprob.core._linalg import (
    align,
    check_matrix,
    check_right,
    cholesky_solve,
    log_determinant,
    matmul,
    matvec,
    swap_axes,
)
from jaxprob.core._scalars import safe_log
from jaxprob.core._tria import tria


def _scaled_low_rank(function: str, diagonal: Any, low_rank: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The root of the diagonal D, `W = D^-1/2 U`, and the factor of `I + W^T W`, by QR so that it keeps the I."""
    diagonal, low_rank = as_float(diagonal), as_float(low_rank)
    check_matrix(function, "low_rank", low_rank)
    n, k = low_rank.shape[-2:]
    check_right(function, "diagonal", diagonal, n, vector=True)
    batch = jnp.broadcast_shapes(diagonal.shape[:-1], low_rank.shape[:-2])
    root = jnp.sqrt(jnp.broadcast_to(diagonal, (*batch, n)))
    scaled = jnp.broadcast_to(low_rank, (*batch, n, k)) / root[..., None]
    eye = jnp.broadcast_to(jnp.eye(k, dtype=scaled.dtype), (*batch, k, k))
    return root, scaled, tria(jnp.concatenate([eye, swap_axes(scaled)], -1))


def woodbury_solve(diagonal: Any, low_rank: Any, b: Any, *, vector: bool = False) -> jax.Array:
    """`A^-1 b` for `A = diag(d) + U U^T`, in time linear in n.

    Args:
      diagonal: (..., n), the positive d.
      low_rank: (..., n, r), U.
      b: (..., n, k), a matrix of k right-hand sides, or (..., n) if `vector`.
      vector: whether b holds one vector in its last axis.

    Returns:
      the shape of b, leading axes broadcast.

    >>> woodbury_solve(jnp.ones(2), jnp.ones((2, 1)), jnp.ones(2), vector=True).tolist()  # 1 / (1 + 2)
    [0.333..., 0.333...]
    """
    root, scaled, factor = _scaled_low_rank("woodbury_solve", diagonal, low_rank)
    b = as_float(b)
    check_right("woodbury_solve", "b", b, root.shape[-1], vector)
    if vector:
        b = b[..., None]
    y, root = align(b, root[..., None])
    y = y / root
    solution = (y - matmul(scaled, cholesky_solve(factor, matmul(swap_axes(scaled), y)))) / root
    return solution[..., 0] if vector else solution


def woodbury_log_determinant(diagonal: Any, low_rank: Any) -> jax.Array:
    """`log det A` for `A = diag(d) + U U^T`.

    Args:
      diagonal: (..., n), the positive d.
      low_rank: (..., n, r), U.

    Returns:
      (...), leading axes broadcast.

    >>> round(woodbury_log_determinant(jnp.ones(2), jnp.ones((2, 1))).item(), 4)  # log(3)
    1.0986
    """
    root, _, factor = _scaled_low_rank("woodbury_log_determinant", diagonal, low_rank)
    return 2.0 * jnp.sum(safe_log(root), -1) + log_determinant(factor)


def woodbury_quadratic_form(diagonal: Any, low_rank: Any, x: Any) -> jax.Array:
    """`x^T A^-1 x` for `A = diag(d) + U U^T`, never negative.

    It is the ridge regression `min_c |y - W c|^2 + |c|^2` with `y = D^-1/2 x` and `W = D^-1/2 U`: a sum of squares at
    the solution, where Woodbury's difference of squares would cancel.

    Args:
      diagonal: (..., n), the positive d.
      low_rank: (..., n, r), U.
      x: (..., n).

    Returns:
      (...), leading axes broadcast.

    >>> round(woodbury_quadratic_form(jnp.ones(2), jnp.ones((2, 1)), jnp.ones(2)).item(), 4)  # 2 / (1 + 2)
    0.6667
    """
    root, scaled, factor = _scaled_low_rank("woodbury_quadratic_form", diagonal, low_rank)
    x = as_float(x)
    check_right("woodbury_quadratic_form", "x", x, root.shape[-1], vector=True)
    y, root = align(x, root)
    y = y / root
    c = cholesky_solve(factor, matvec(swap_axes(scaled), y), vector=True)
    residual = y - matvec(scaled, c)
    return jnp.sum(residual * residual, -1) + jnp.sum(c * c, -1)
