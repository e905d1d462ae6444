"""SoftAbs: a positive definite metric from any Hessian, and its derivative.

Each eigenvalue becomes lambda coth(alpha lambda), a smooth absolute value that never is below 1 / alpha. It is x coth x
of alpha times the matrix, over alpha.

Source: Betancourt (2013), "A general metric for Riemannian manifold Hamiltonian Monte Carlo".
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import zeta

from jaxprob import core

CLOSE = 0.25  # below this distance a difference of values, divided, is a mean of slopes: exact to 1e-15 for x coth x
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)
SMALL = 0.5  # below this the slope is a series, which here has a remainder of 1e-16
_POWERS = np.arange(1, 11)
# x coth x = 1 + 2 sum_n (-1)^(n + 1) zeta(2n) (x / pi)^(2n).
COEFFICIENTS = 4 * _POWERS * (-1.0) ** (_POWERS + 1) * zeta(2.0 * _POWERS) / math.pi ** (2.0 * _POWERS)


def softabs(matrix: jax.Array, alpha: jax.Array) -> jax.Array:
    """The matrix with each eigenvalue lambda replaced by lambda coth(alpha lambda), positive definite.

    Its derivative is exact, to rounding, where eigenvalues are equal or close as well.

    Args:
      matrix: (size, size), symmetric (its two triangles are averaged).
      alpha: (), positive: the inverse of the least eigenvalue of the result. As alpha grows the map becomes the
        absolute value.

    Returns:
      (size, size); NaN where the matrix holds anything that is not a finite number.

    >>> softabs(jnp.diag(jnp.array([-3.0, 0.0])), jnp.float32(2.0)).round(4).tolist()
    [[3.0, 0.0], [0.0, 0.5]]
    """
    return x_coth_x(alpha * core.symmetrize(matrix)) / alpha


@jax.custom_jvp
def x_coth_x(matrix: jax.Array) -> jax.Array:
    """The function x coth x of a symmetric matrix (size, size)."""
    return _rebuild(*_eigen(matrix))


@x_coth_x.defjvp
def _derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Q (J * Q' dX Q) Q', with the divided differences J of the function between eigenvalues.
    values, vectors = _eigen(primals[0])
    inner = core.matmul(core.matmul(vectors.T, core.symmetrize(tangents[0])), vectors)
    change = core.matmul(core.matmul(vectors, divided_differences(values) * inner), vectors.T)
    return _rebuild(values, vectors), change


def divided_differences(values: jax.Array) -> jax.Array:
    """The matrix (f(x) - f(y)) / (x - y) of f = x coth x for all pairs of values (size,); on the diagonal f'(x)."""
    f, dtype = _function(values), values.dtype
    x, y = jnp.expand_dims(values, 1), jnp.expand_dims(values, 0)
    distance = x - y
    close = jnp.abs(distance) < CLOSE
    halfway = y + 0.5 * distance
    mean = sum(
        jnp.asarray(weight / 2, dtype) * _slope(halfway + jnp.asarray(node / 2, dtype) * distance)
        for node, weight in zip(NODES, WEIGHTS, strict=True)
    )
    ratio = (jnp.expand_dims(f, 1) - jnp.expand_dims(f, 0)) / jnp.where(close, 1, distance)
    return jnp.where(close, mean, ratio)


def _function(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x / jnp.tanh(jnp.where(x == 0, 1, x)))


def _slope(x: jax.Array) -> jax.Array:
    """coth x - x / sinh^2 x."""
    small = jnp.abs(x) < SMALL
    large = jnp.clip(jnp.where(small, 1, x), -40, 40)  # sinh^2 is finite in float32, and the slope is +-1 well before
    direct = 1 / jnp.tanh(large) - large / jnp.sinh(large) ** 2
    near = jnp.where(small, x, 0)
    series = near * jnp.polyval(jnp.asarray(COEFFICIENTS[::-1], x.dtype), near * near)
    return jnp.where(small, series, direct)


def _eigen(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    # What an eigensolver does with a NaN depends on the library.
    finite = jnp.all(jnp.isfinite(matrix))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, 0), symmetrize_input=False)
    return jnp.where(finite, values, jnp.nan), vectors


def _rebuild(values: jax.Array, vectors: jax.Array) -> jax.Array:
    return core.matmul(vectors * jnp.expand_dims(_function(values), 0), vectors.T)
