"""Parameters of multivariate distributions: locations, and positive-definite matrices given in any of several ways."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._odds import one_of
from jaxprob.distributions._parameters import REAL, check_shapes, check_values, convert, is_concrete


def matrix_factor(function: str, **given: Any) -> jax.Array:
    """The Cholesky factor (*batch, n, n) of a positive-definite matrix given in one of several ways.

    Args:
      function: name of the caller, for the error message.
      **given: `cholesky` (the factor itself), `precision` (the inverse of the matrix), or the matrix under any other
        name; exactly one is not None.

    Raises:
      ValueError: if not exactly one is given, if it is not square, or if its concrete values are not those of a
        Cholesky factor or of a symmetric positive-definite matrix.
    """
    one_of(function, **given)
    name, value = next((name, value) for name, value in given.items() if value is not None)
    matrix = convert(function, name, value)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        todo = "Use MultivariateNormalDiagonal for a vector of scales" if matrix.ndim < 2 else ""
        raise core.bad_value(function, name, f"of shape {matrix.shape}", "a square matrix (*batch, n, n)", todo)
    check_values(function, name, value, REAL)
    concrete = np.asarray(value, dtype=np.float64) if is_concrete(value) else None
    if name == "cholesky":
        if concrete is not None and (np.triu(concrete, 1).any() or (np.diagonal(concrete, 0, -2, -1) <= 0).any()):
            todo = "Give a covariance or scale matrix by that name"
            raise core.bad_value(function, name, matrix, "lower triangular with a positive diagonal", todo)
        return matrix
    if concrete is not None:
        # Symmetric to the rounding of products of its own dtype.
        tolerance = 100 * float(jnp.finfo(matrix.dtype).eps) * np.max(np.abs(concrete), initial=0.0)
        if (np.abs(concrete - np.swapaxes(concrete, -1, -2)) > tolerance).any():
            raise core.bad_value(function, name, "not symmetric", "a symmetric matrix", "Pass (m + m.T) / 2")
    factor = _factor_of_inverse(matrix) if name == "precision" else core.cholesky(matrix)
    if is_concrete(factor) and concrete is not None and not np.isfinite(np.asarray(factor, np.float64)).all():
        todo = "Give its factor as cholesky=core.cholesky(m, jitter=100) if rounding has made it so"
        raise core.bad_value(function, name, "not positive definite", "a positive-definite matrix", todo)
    return factor


def _factor_of_inverse(matrix: jax.Array) -> jax.Array:
    """The Cholesky factor of the inverse of a matrix.

    Reversing rows and columns turns the lower factor of one into an upper factor of the other, so one triangular solve
    is enough and the inverse is never formed.
    """
    upper = jnp.flip(core.cholesky(jnp.flip(matrix, (-2, -1))), (-2, -1))
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return core.solve_triangular(jnp.swapaxes(upper, -1, -2), eye)


def same_dtype(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in their common floating dtype, shapes as they are."""
    dtype = core.result_dtype(arrays)
    return [array if array.dtype == dtype else array.astype(dtype) for array in arrays]


def set_location(distribution: Any, loc: Any, size: int, batch: tuple[int, ...]) -> None:
    """Converts and checks `loc`: a scalar, which is spread over the vector, or (*batch, size)."""
    name = type(distribution).__name__
    array = convert(name, "loc", loc)
    check_values(name, "loc", loc, REAL)
    array = jnp.broadcast_to(array, (size,)) if array.ndim == 0 else array
    if array.shape[-1] != size:
        raise core.bad_value(name, "loc", f"of shape {array.shape}", f"shape (*batch, {size})")
    check_shapes(name, **{"loc without its last axis": array.shape[:-1], "the batch of the other parameters": batch})
    object.__setattr__(distribution, "loc", array)


def vector_shape(name: str, argument: str, vector: jax.Array) -> tuple[int, ...]:
    """The shape (*batch, n) of a parameter that must be a vector."""
    if vector.ndim == 0:
        raise core.bad_value(name, argument, "a scalar", "a vector (*batch, n)", "Use jnp.full(n, value)")
    return vector.shape


def split_infinite(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors `x` with 0 in place of infinite entries, and the log density 0 of finite vectors and -inf of others."""
    infinite = jnp.isinf(x)
    penalty = jnp.where(jnp.any(infinite, axis=-1), -jnp.inf, jnp.zeros((), x.dtype))
    return jnp.where(infinite, 0, x), penalty
