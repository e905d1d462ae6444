"""The largest Lyapunov exponent of a trajectory, from the Jacobians along it.

Source: Benettin, Galgani, Giorgilli and Strelcyn (1980), "Lyapunov characteristic exponents for smooth dynamical
systems", for the growth of one vector; products of scaled matrices in parallel otherwise.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core


def lyapunov_exponent(kind: str, method: str, chunk: int, jacobians: jax.Array, reverse: bool) -> jax.Array:
    """Mean logarithmic growth a step, of the unit or block that grows fastest.

    Args:
      kind: "elementwise", jacobians (time, size), or "matrix", (time, ..., n, n).
      method: "sequential" follows one vector; the others multiply matrices, all chunks side by side.
    """
    steps = jacobians.shape[0]
    if kind == "elementwise":
        return jnp.max(jnp.mean(jnp.log(jnp.abs(jacobians)), 0))
    ordered = jacobians[::-1] if reverse else jacobians
    if method == "sequential":
        direction = np.random.default_rng(0).normal(size=jacobians.shape[1:-1])
        start = jnp.asarray(direction / np.linalg.norm(direction, axis=-1, keepdims=True), jacobians.dtype)

        def follow(carry: Any, jacobian: jax.Array) -> tuple[Any, None]:
            vector, growth = carry
            vector, size = _scaled(core.matvec(jacobian, vector), 1)
            return (vector, growth + size), None

        (_, growth), _ = lax.scan(follow, (start, jnp.zeros(start.shape[:-1], start.dtype)), ordered)
        return jnp.max(growth) / steps
    count = -(-steps // chunk)
    size = jacobians.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=jacobians.dtype), (count * chunk - steps, *jacobians.shape[1:]))
    cut = jnp.concatenate([ordered, eye]).reshape(count, chunk, *jacobians.shape[1:])

    def multiply(carry: Any, factor: Any) -> tuple[Any, None]:
        matrix, growth = carry
        later, more = factor
        matrix, size = _scaled(core.matmul(later, matrix), 2)
        return (matrix, growth + more + size), None

    def product(factors: jax.Array, growths: jax.Array) -> Any:
        return lax.scan(multiply, (factors[0], growths[0]), (factors[1:], growths[1:]))[0]

    matrix, growth = product(
        *product(jnp.swapaxes(cut, 0, 1), jnp.zeros((chunk, count, *jacobians.shape[1:-2]), jacobians.dtype))
    )
    norm = jnp.sqrt(jnp.sum(matrix**2, (-2, -1)) / size)
    return jnp.max(growth + jnp.log(norm)) / steps


def _scaled(x: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """The array with its largest entry one, and the logarithm of what that was; -inf for zeros."""
    over = tuple(range(-axes, 0))
    top = jnp.max(jnp.abs(x), over, keepdims=True)
    return x / jnp.where(top > 0, top, 1.0), jnp.log(jnp.squeeze(top, over))
