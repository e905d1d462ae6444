"""Fixed points x = T(x) of a sweep over a series, differentiated by the implicit function theorem.

What a sweep maps to itself does not depend on how it was found: derivatives solve one linear system, by Krylov steps of
which each is a derivative of one sweep. Where that system is not solved they are NaN, never something else.

Source: Blondel et al. (2022), "Efficient and modular implicit differentiation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxprob import core

DIRECTIONS = 60  # of a Krylov space at the most


def fixed_point(sweep: Callable[[Any], Any], start: Any, solve: Callable[[Any], Any]) -> Any:
    """What `solve(start)` finds of x = sweep(x), with what else it returns, as derivatives see a fixed point.

    Args:
      sweep: from a pytree of floating arrays to another of the same structure.
      start: where to begin; derivatives do not see it.
      solve: `start -> (x, anything else)`, of floating arrays.
    """

    def apart(x: Any) -> Any:
        return jax.tree.map(jnp.subtract, sweep(x), x)

    return lax.custom_root(apart, start, lambda _, start: solve(start), _tangent, has_aux=True)


def _tangent(function: Callable[[Any], Any], value: Any) -> Any:
    return lax.custom_linear_solve(function, value, _krylov, _krylov)


def _krylov(function: Callable[[Any], Any], value: Any) -> Any:
    """The solution of function(x) = value by GMRES; NaN where it is not found.

    The function appears once in the program, in the loop: it is a whole sweep, and slow to compile.
    """
    b, unravel = ravel_pytree(value)
    if not b.shape[0]:
        return value
    dtype, size = b.dtype, core.norm(b)
    most = min(DIRECTIONS, b.shape[0])
    tolerance = jnp.finfo(dtype).eps ** (2 / 3)
    # Columns that are not there yet meet rows of their own, so that what stands for them is zero.
    unused = jnp.eye(most + 1, most, -1, dtype=dtype)
    right = jnp.zeros((most + 1,), dtype).at[0].set(size)

    def step(carry: Any) -> Any:
        basis, matrix, _, _, count = carry
        new, _ = ravel_pytree(function(unravel(basis[count])))
        shares = jnp.zeros((most + 1,), dtype)
        for _ in range(2):  # what rounding leaves of the directions before is taken out again
            along = core.matvec(basis, new)
            new, shares = new - core.matvec(basis.T, along), shares + along
        length = core.norm(new)
        basis = basis.at[count + 1].set(jnp.where(length > 0, new / jnp.where(length > 0, length, 1), 0))
        matrix = matrix.at[:, count].set(shares.at[count + 1].set(length))
        q, r = jnp.linalg.qr(matrix)
        weights = jax.scipy.linalg.solve_triangular(r, core.matvec(q.T, right))
        return basis, matrix, weights, core.norm(right - core.matvec(matrix, weights)), count + 1

    def going(carry: Any) -> jax.Array:
        return (carry[3] > tolerance * size) & (carry[4] < most)

    basis = jnp.zeros((most + 1, b.shape[0]), dtype).at[0].set(b / jnp.where(size > 0, size, 1))
    start = (basis, unused, jnp.zeros((most,), dtype), size, 0)
    basis, _, weights, left, _ = core.while_loop(going, step, start)
    solved = left <= 10 * tolerance * size
    return unravel(jnp.where(solved, core.matvec(basis[:-1].T, weights), jnp.nan))
