"""The covariance that a linear recurrence keeps.

`P = F P F^T + Q` is a sum of `F^k Q F^kT` over all k, added up by doubling the number of terms: each term is a
covariance, so that no digits cancel, and twenty doublings serve a recurrence that forgets as slowly as `0.99999^k`.

Source: Smith (1968), "Matrix equation XA + BX = C"; Anderson & Moore (1979), "Optimal filtering", section 6.7.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core._dtypes import as_float, result_dtype
from jaxprob.core._errors import bad_value
from jaxprob.core._linalg import check_matrix, matmul, symmetrize, widen


def discrete_lyapunov(a: Any, q: Any) -> jax.Array:
    """The solution P of `P = a P a^T + q`: the stationary covariance of `x_{t+1} = a x_t + N(0, q)`.

    Args:
      a: (n, n).
      q: (n, n), symmetric.

    Returns:
      P, (n, n); NaN where an eigenvalue of `a` is not within the unit circle to rounding. Derivatives are those of the
      solution, at the price of one more.

    Raises:
      ValueError: if shapes do not fit.

    >>> discrete_lyapunov(jnp.array([[0.8]]), jnp.array([[0.36]])).round(4).tolist()
    [[1.0]]

    Source: Smith (1968).
    """
    a, q = as_float(a), as_float(q)
    check_matrix("discrete_lyapunov", "a", a, square=True)
    if a.ndim != 2 or q.shape != a.shape:
        raise bad_value("discrete_lyapunov", "q", q, f"shape {a.shape[-2:]}, that of a", "vmap makes many")
    dtype = result_dtype(a, q)
    a, q = widen(a.astype(dtype)), widen(q.astype(dtype))
    fixed = lax.stop_gradient(a)
    solution = lax.custom_linear_solve(
        lambda p: p - matmul(matmul(a, p), a.T),
        q,
        solve=lambda _, right: _sum(fixed, right),
        transpose_solve=lambda _, right: _sum(fixed.T, right),
    )
    return symmetrize(solution).astype(dtype)


def _sum(a: jax.Array, q: jax.Array) -> jax.Array:
    """The sum of `a^k q a^kT` over all k."""
    limits = jnp.finfo(a.dtype)

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        power, _, count = state
        # Where no eigenvalue is one to rounding, as many doublings as there are bits, and a few, are enough.
        return (jnp.max(jnp.abs(power), initial=0) > limits.eps) & (count < limits.nmant + 6)

    def double(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        power, total, count = state
        return matmul(power, power), total + matmul(matmul(power, total), power.T), count + 1

    power, total, _ = lax.while_loop(unfinished, double, (a, q, jnp.int32(0)))
    return jnp.where(jnp.max(jnp.abs(power), initial=0) <= limits.eps, total, jnp.nan)
