"""Linear algebra at the highest precision, batched over leading axes.

The default matrix product is less than float32 on TPU and on GPUs since Ampere, so every product here asks for the
highest precision. Covariances are carried as lower-triangular factors L, A = L L^T. What cannot be factorised is NaN in
the result, never an exception at run time. Leading axes broadcast; whether a right-hand side is one vector or a matrix
of columns is declared by `vector`, never guessed from shapes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core._dtypes import accumulator_dtype, as_float, result_dtype
from jaxprob.core._errors import bad_value
from jaxprob.core._scalars import safe_log


def check_matrix(function: str, argument: str, a: jax.Array, square: bool = False) -> None:
    """Raises unless `a` is (..., n, m), with n = m if `square`."""
    if a.ndim < 2 or (square and a.shape[-1] != a.shape[-2]):
        shape = "(..., n, n)" if square else "(..., n, m)"
        raise bad_value(function, argument, f"of shape {a.shape}", f"shape {shape}")


def check_right(function: str, argument: str, b: jax.Array, size: int, vector: bool, todo: str = "") -> None:
    """Raises unless `b` is (..., size) if `vector`, (..., size, k) if not."""
    expected, position = (f"(..., {size})", -1) if vector else (f"(..., {size}, k)", -2)
    if b.ndim < -position or b.shape[position] != size:
        raise bad_value(function, argument, f"of shape {b.shape}", f"shape {expected}", todo)


def widen(a: jax.Array) -> jax.Array:
    """Float32 for the lower precisions, in which there are no factorisations."""
    return a.astype(accumulator_dtype(a.dtype))


def align(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two arrays with the same number of axes, the missing leading ones of length one."""
    ndim = max(x.ndim, y.ndim)
    return jnp.expand_dims(x, range(ndim - x.ndim)), jnp.expand_dims(y, range(ndim - y.ndim))


def swap_axes(a: jax.Array) -> jax.Array:
    """The transpose of each matrix."""
    return jnp.swapaxes(a, -1, -2)


def matmul(a: Any, b: Any) -> jax.Array:
    """The matrix product `a b` at the highest precision.

    Args:
      a: (..., n, k).
      b: (..., k, m).

    Returns:
      (..., n, m), leading axes broadcast.

    >>> matmul(jnp.eye(2), jnp.ones((2, 3))).shape
    (2, 3)
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    check_matrix("matmul", "a", a)
    check_right("matmul", "b", b, a.shape[-1], vector=False)
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def matvec(a: Any, x: Any) -> jax.Array:
    """The product of a matrix and a vector, `a x`, at the highest precision.

    Args:
      a: (..., n, m).
      x: (..., m).

    Returns:
      (..., n), leading axes broadcast.

    >>> matvec(2 * jnp.eye(2), jnp.array([1.0, 3.0])).tolist()
    [2.0, 6.0]
    """
    a, x = jnp.asarray(a), jnp.asarray(x)
    check_matrix("matvec", "a", a)
    check_right("matvec", "x", x, a.shape[-1], vector=True)
    return jnp.matmul(a, x[..., None], precision=lax.Precision.HIGHEST)[..., 0]


def symmetrize(a: Any) -> jax.Array:
    """`(a + a^T) / 2`, exactly symmetric.

    Args:
      a: (..., n, n).
    """
    a = as_float(a)
    check_matrix("symmetrize", "a", a, square=True)
    return 0.5 * a + 0.5 * swap_axes(a)


def cholesky(a: Any, jitter: float | jax.Array = 0.0) -> jax.Array:
    """The lower-triangular L with positive diagonal and `L L^T = a`; NaN where `a` is not positive definite.

    Args:
      a: (..., n, n), symmetric (its two triangles are averaged).
      jitter: adds `jitter * eps * mean(diagonal)` to the diagonal, with eps that of the dtype: 10 or 100 repairs what
        rounding has made indefinite, at any scale and in any dtype. None by default.

    Returns:
      (..., n, n). A matrix that is singular to rounding gives NaN or a factor whose small pivots are noise.

    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    a = as_float(a)
    check_matrix("cholesky", "a", a, square=True)
    dtype, size = a.dtype, a.shape[-1]
    if not isinstance(jitter, (int, float)) or jitter != 0:
        scale = jnp.finfo(dtype).eps * jnp.trace(a, axis1=-2, axis2=-1)[..., None, None] / size
        a = a + jitter * scale * jnp.broadcast_to(jnp.eye(size, dtype=dtype), a.shape)
    return jnp.linalg.cholesky(widen(a), symmetrize_input=True).astype(dtype)


def _solve(factor: jax.Array, b: jax.Array, transpose: bool) -> jax.Array:
    """Solves for the columns of b (..., n, k), with one factor for all where it has no leading axes."""
    one = partial(jax.scipy.linalg.solve_triangular, trans=int(transpose), lower=True)
    solution = jnp.vectorize(one, signature="(n,n),(n,k)->(n,k)")(*align(widen(factor), widen(b)))
    return solution.astype(result_dtype(factor, b))


def solve_triangular(factor: Any, b: Any, transpose: bool = False, *, vector: bool = False) -> jax.Array:
    """`L^-1 b`, or `L^-T b`, for a lower-triangular L.

    Args:
      factor: (..., n, n), lower triangular; what is above the diagonal is not read.
      b: (..., n, k), a matrix of k right-hand sides, or (..., n) if `vector`.
      transpose: solve with `L^T` instead.
      vector: whether b holds one vector in its last axis.

    Returns:
      the shape of b, leading axes broadcast with those of `factor`.

    >>> solve_triangular(2 * jnp.eye(2), jnp.ones(2), vector=True).tolist()
    [0.5, 0.5]
    """
    factor, b = _checked("solve_triangular", factor, "b", b, vector)
    return _unpack(_solve(factor, b, transpose), vector)


def cholesky_solve(factor: Any, b: Any, *, vector: bool = False) -> jax.Array:
    """`A^-1 b` for `A = L L^T`, from its Cholesky factor L.

    Args:
      factor: (..., n, n), lower triangular.
      b: (..., n, k), a matrix of k right-hand sides, or (..., n) if `vector`.
      vector: whether b holds one vector in its last axis.

    Returns:
      the shape of b, leading axes broadcast with those of `factor`.

    >>> cholesky_solve(2 * jnp.eye(2), jnp.ones(2), vector=True).tolist()
    [0.25, 0.25]
    """
    factor, b = _checked("cholesky_solve", factor, "b", b, vector)
    return _unpack(_solve(factor, _solve(factor, b, False), True), vector)


def _checked(function: str, factor: Any, argument: str, b: Any, vector: bool) -> tuple[jax.Array, jax.Array]:
    """The factor and the right-hand sides as columns."""
    factor, b = as_float(factor), as_float(b)
    check_matrix(function, "factor", factor, square=True)
    todo = "" if vector else "Pass vector=True if its last axis is one vector"
    check_right(function, argument, b, factor.shape[-1], vector, todo)
    return factor, b[..., None] if vector else b


def _unpack(solution: jax.Array, vector: bool) -> jax.Array:
    return solution[..., 0] if vector else solution


def log_determinant(factor: Any) -> jax.Array:
    """`log det A` for `A = L L^T`, from its triangular factor L; -inf with a zero gradient where A is singular.

    Args:
      factor: (..., n, n), triangular.

    Returns:
      (...).

    >>> round(log_determinant(jnp.diag(jnp.array([2.0, 3.0]))).item(), 4)  # log(4 * 9)
    3.5835
    """
    factor = as_float(factor)
    check_matrix("log_determinant", "factor", factor, square=True)
    return 2.0 * jnp.sum(safe_log(jnp.abs(jnp.diagonal(factor, axis1=-2, axis2=-1))), -1)


def quadratic_form(factor: Any, x: Any) -> jax.Array:
    """`x^T A^-1 x = |L^-1 x|^2` for `A = L L^T`, the squared Mahalanobis length of x.

    Args:
      factor: (..., n, n), lower triangular.
      x: (..., n).

    Returns:
      (...), leading axes broadcast.

    >>> quadratic_form(2 * jnp.eye(2), jnp.ones(2)).item()
    0.5
    """
    factor, columns = _checked("quadratic_form", factor, "x", x, vector=True)
    whitened = _solve(factor, columns, False)
    return jnp.sum(whitened * whitened, (-2, -1))
