"""Square roots of sums of covariances: `tria` by QR, and the Cholesky factor after a change of low rank.

Source of the downdate: Bojanczyk, Brent, Van Dooren and de Hoog (1987), "A note on downdating the Cholesky
factorization".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core._dtypes import as_float, result_dtype
from jaxprob.core._errors import bad_value
from jaxprob.core._linalg import align, check_matrix, check_right, matmul, matvec, solve_triangular, swap_axes, widen
from jaxprob.core._primitive import primitive
from jaxprob.core._scalars import safe_sqrt


def _qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`a = L Q` for a (..., n, m) with m >= n: L lower triangular, diagonal >= 0, and Q Q^T = 1."""
    q, r = jnp.linalg.qr(swap_axes(a), mode="reduced")
    sign = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(a.dtype)[..., None, :]
    return jnp.tril(swap_axes(r) * sign), swap_axes(q * sign)


def _qr_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """With P = da Q^T and any skew-symmetric K, dL = P + L K satisfies dL L^T + L dL^T = d(a a^T).

    K is chosen so that dL is lower triangular: it takes the strict upper triangle of -L^-1 P. A row of `a` that
    depends on those before it has a zero on the diagonal of L, where no such K exists: it is left out, and that row of
    dL keeps what is above the diagonal. The derivative of whatever depends on L through L L^T is right all the same.
    """
    (a,), (da,) = primals, tangents
    factor, q = _lower_orthogonal(a)
    n, m = a.shape[-2:]
    # Householder QR of a^T is stable for each row of `a` at its own scale, so dependence is judged against the row.
    length = jnp.sqrt(jnp.sum(a * a, -1))
    dependent = jnp.abs(jnp.diagonal(factor, axis1=-2, axis2=-1)) <= 4 * m * jnp.finfo(a.dtype).eps * length
    rows = dependent[..., :, None]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=a.dtype), factor.shape)
    regular = jnp.where(rows, eye, factor)

    p = matmul(da, swap_axes(q))
    upper = jnp.triu(solve_triangular(regular, jnp.where(rows, 0.0, p)), 1)
    skew = swap_axes(upper) - upper
    dfactor = p + matmul(factor, skew)
    dfactor = jnp.where(rows, dfactor, jnp.tril(dfactor))
    # What da adds outside the row space of Q, seen through L.
    outside = jnp.where(rows, 0.0, da - matmul(p, q))
    return (factor, q), (dfactor, solve_triangular(regular, outside) - matmul(skew, q))


def _r(a: jax.Array) -> tuple[jax.Array]:
    """L alone."""
    r = jnp.linalg.qr(swap_axes(a), mode="r")
    sign = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(a.dtype)[..., None, :]
    return (jnp.tril(swap_axes(r) * sign),)


def _r_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[tuple[jax.Array], tuple[jax.Array]]:
    (factor, _), (dfactor, _) = _qr_jvp(primals, tangents)
    return (factor,), (dfactor,)


_lower_orthogonal = primitive(_qr, _qr_jvp, lambda shape: ((*shape[:-1], shape[-2]), shape))
_lower = primitive(_r, _r_jvp, lambda shape: ((*shape[:-1], shape[-2]),))


def tria(a: Any) -> jax.Array:
    """The lower-triangular L with non-negative diagonal and `L L^T = a a^T`, by QR, without forming `a a^T`.

    It carries square roots of covariances: `tria([F L, L_Q])` is a factor of `F L L^T F^T + L_Q L_Q^T`. Any rank will
    do, zero included. Where `a` has full row rank the factor is the Cholesky factor of `a a^T`, and so are its
    derivatives of any order. Elsewhere the derivatives are finite, and right for whatever depends on `L L^T`.

    Args:
      a: (..., n, m), m smaller or larger than n.

    Returns:
      (..., n, n).

    >>> tria(jnp.array([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    a = as_float(a)
    check_matrix("tria", "a", a)
    n, m = a.shape[-2:]
    if m < n:
        a = jnp.concatenate([a, jnp.zeros((*a.shape[:-1], n - m), a.dtype)], -1)
    return _lower(widen(a))[0].astype(a.dtype)


def cholesky_update(factor: Any, vectors: Any, sign: int = +1) -> jax.Array:
    """The Cholesky factor of `L L^T + V V^T` (`sign` +1) or of `L L^T - V V^T` (`sign` -1).

    The update is a QR decomposition of `[L, V]`; the downdate goes over the columns with hyperbolic Householder
    reflections in their mixed form. It is NaN where `L L^T - V V^T` is not positive definite.

    Args:
      factor: (..., n, n), lower triangular; with a positive diagonal for a downdate.
      vectors: (..., n, k), the k columns of V; `v[:, None]` for a rank-one change.
      sign: +1 or -1.

    Returns:
      (..., n, n), leading axes broadcast.

    >>> cholesky_update(2.0 * jnp.eye(1), jnp.array([[1.5]]), +1).tolist()
    [[2.5]]
    """
    factor, vectors = as_float(factor), as_float(vectors)
    check_matrix("cholesky_update", "factor", factor, square=True)
    check_right("cholesky_update", "vectors", vectors, factor.shape[-1], False, "Write one vector v as v[:, None]")
    if sign not in (1, -1):
        raise bad_value("cholesky_update", "sign", sign, "+1 or -1")
    if sign == -1:
        one = jnp.vectorize(_downdate, signature="(n,n),(n,k)->(n,n)")
        return one(*align(widen(factor), widen(vectors))).astype(result_dtype(factor, vectors))
    batch = jnp.broadcast_shapes(factor.shape[:-2], vectors.shape[:-2])
    parts = (jnp.broadcast_to(part, batch + part.shape[-2:]) for part in (factor, vectors))
    return tria(jnp.concatenate(list(parts), -1))


def _downdate(factor: jax.Array, vectors: jax.Array) -> jax.Array:
    n = factor.shape[0]

    def column(left: jax.Array, j: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        old, row = factor[:, j], left[j]
        pivot, length = old[j], safe_sqrt(jnp.sum(row * row))
        square = (pivot - length) * (pivot + length)
        fits = (pivot > 0) & (square > 0)
        pivot, new_pivot = jnp.where(fits, pivot, 1.0), jnp.sqrt(jnp.where(fits, square, 1.0))
        product = matvec(left, row)
        new = (pivot * old - product) / new_pivot
        left = left - jnp.outer(new + product / (pivot + new_pivot), row) / pivot
        return left, (new, fits)

    # Adding nothing of the factor makes the carry vary over the same mesh axes from the start, as shard_map wants.
    _, (columns, fits) = lax.scan(column, vectors + 0.0 * factor[:, :1], jnp.arange(n))
    return jnp.where(jnp.all(fits), jnp.tril(columns.T), jnp.nan)
