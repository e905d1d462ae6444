"""Bijectors onto vectors and matrices under constraints: simplex, ordered, Cholesky factors, matrices, directions.

Densities on a constrained set are with respect to: the first n - 1 coordinates (simplex), the strictly lower triangle
(Cholesky factor of a correlation matrix), the lower triangle (Cholesky factor, positive-definite matrix), and surface
measure (sphere, angle).

Source: Stan Development Team, Stan Reference Manual, "Constraint Transforms".
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, Shape, floating, log_sech_squared


class VectorBijector(Bijector):
    """Base of the bijectors from vectors to vectors."""

    @property
    def event_ndims_in(self) -> int:
        return 1

    @property
    def event_ndims_out(self) -> int:
        return 1


class _MatrixBijector(Bijector):
    @property
    def event_ndims_in(self) -> int:
        return 1

    @property
    def event_ndims_out(self) -> int:
        return 2


def _cumsum_before(x: jax.Array) -> jax.Array:
    """Sum of the entries before each one, along the last axis."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), jnp.cumsum(x[..., :-1], axis=-1)], axis=-1)


def _sum_from(x: jax.Array) -> jax.Array:
    """Sum of each entry and those after it, along the last axis."""
    return jnp.flip(jnp.cumsum(jnp.flip(x, -1), axis=-1), -1)


def _tiny(dtype: Any) -> Any:
    return np.asarray(jnp.finfo(dtype).tiny, dtype)


@core.pytree
class StickBreaking(VectorBijector):
    """From n - 1 real numbers to n positive ones that sum to one; u = 0 is the uniform vector.

    Each part of the stick is s_i = sigmoid(u_i - log(n - 1 - i)) of what the parts before it left; computed through
    logarithms, so that small parts keep all their digits.
    """

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        z = u - self._offset(u)
        log_part, log_rest = -jax.nn.softplus(-z), -jax.nn.softplus(z)
        log_x = _cumsum_before(log_rest) + log_part
        last = jnp.sum(log_rest, axis=-1, keepdims=True)
        x = jnp.exp(jnp.concatenate([log_x, last], axis=-1))
        return jnp.maximum(x, _tiny(u.dtype)), jnp.sum(log_x + log_rest, axis=-1)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        x = jnp.maximum(x, _tiny(x.dtype))
        z = jnp.log(x[..., :-1]) - jnp.log(_sum_from(x[..., 1:]))
        return z + self._offset(z)

    @staticmethod
    def _offset(z: jax.Array) -> jax.Array:
        offset = np.log(np.arange(z.shape[-1], 0, -1)).astype(z.dtype)
        return jnp.broadcast_to(offset, z.shape)

    def forward_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], shape[-1] - 1)


@core.pytree
class Ordering(VectorBijector):
    """From n real numbers to n increasing ones: the first as it is, then exp(u_i) is the step to the next."""

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        steps = jnp.concatenate([u[..., :1], jnp.exp(u[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1), jnp.sum(u[..., 1:], axis=-1)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        return jnp.concatenate([x[..., :1], jnp.log(x[..., 1:] - x[..., :-1])], axis=-1)


def _side(size: int, strict: bool) -> int:
    """Side of the square matrix whose (strictly) lower triangle has `size` entries."""
    side = (math.isqrt(8 * size + 1) + (1 if strict else -1)) // 2
    expected = side * (side - 1) // 2 if strict else side * (side + 1) // 2
    if expected != size:
        what = "n (n - 1) / 2" if strict else "n (n + 1) / 2"
        raise core.bad_value(
            "forward", "u", f"of length {size}", f"a length {what}", "It fills the lower triangle of an (n, n) matrix"
        )
    return side


def _fill_lower(entries: jax.Array, side: int, offset: int) -> jax.Array:
    """Puts (..., m) entries, row by row, below the diagonal (offset -1) or on it and below (offset 0)."""
    rows, columns = np.tril_indices(side, offset)
    matrix = jnp.zeros((*entries.shape[:-1], side, side), entries.dtype)
    return matrix.at[..., rows, columns].set(entries)


def _read_lower(matrix: jax.Array, offset: int) -> jax.Array:
    rows, columns = np.tril_indices(matrix.shape[-1], offset)
    return matrix[..., rows, columns]


def _diagonal_entries(side: int) -> np.ndarray:
    """Where the diagonal of a lower triangle lies in its row-by-row vector."""
    return np.cumsum(np.arange(1, side + 1)) - 1


@core.pytree
class FillTriangular(_MatrixBijector):
    """From n (n + 1) / 2 real numbers to a lower-triangular matrix with a positive (exponentiated) diagonal."""

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        side = _side(u.shape[-1], strict=False)
        diagonal = _diagonal_entries(side)
        log_det = jnp.sum(u[..., diagonal], axis=-1)
        return _fill_lower(u.at[..., diagonal].set(jnp.exp(u[..., diagonal])), side, 0), log_det

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        diagonal = _diagonal_entries(x.shape[-1])
        u = _read_lower(x, 0)
        return u.at[..., diagonal].set(jnp.log(u[..., diagonal]))

    def forward_shape(self, shape: Shape) -> Shape:
        side = _side(shape[-1], strict=False)
        return (*shape[:-1], side, side)

    def inverse_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)


@core.pytree
class OuterProduct(_MatrixBijector):
    """From n (n + 1) / 2 real numbers to a positive-definite matrix L L^T, L as in `FillTriangular`."""

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        factor, log_det = FillTriangular().forward_and_log_det(u)
        side = factor.shape[-1]
        # |d(L L^T) / dL| = 2^n prod_i L_ii^(n - i) over the lower triangles, i from 0.
        powers = np.arange(side, 0, -1).astype(factor.dtype)
        log_diagonal = floating(u)[..., _diagonal_entries(side)]
        log_det = log_det + jnp.sum(log_diagonal * jnp.broadcast_to(powers, log_diagonal.shape), axis=-1)
        log_det = log_det + side * np.log(2).astype(factor.dtype)
        return core.matmul(factor, jnp.swapaxes(factor, -1, -2)), log_det

    def inverse(self, x: Any) -> jax.Array:
        return FillTriangular().inverse(core.cholesky(floating(x)))

    def forward_shape(self, shape: Shape) -> Shape:
        return FillTriangular().forward_shape(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        return FillTriangular().inverse_shape(shape)


@core.pytree
class SignedStickBreaking(_MatrixBijector):
    """From n (n - 1) / 2 real numbers to the Cholesky factor of a correlation matrix.

    Row by row, L_ij = tanh(u_ij) sqrt(1 - sum_{k<j} L_ik^2), and the diagonal takes what is left; the remainders are
    products of sech(u_ij), kept as logarithms.

    Source: Lewandowski, Kurowicka and Joe (2009); Stan Reference Manual, "Cholesky factors of correlation matrices".
    """

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        side = _side(u.shape[-1], strict=True)
        log_sech2 = log_sech_squared(u)
        matrix = _fill_lower(log_sech2, side, -1)
        log_left = _cumsum_before(matrix) / 2
        diagonal = jnp.broadcast_to(np.eye(side, dtype=bool), matrix.shape)
        left = jnp.exp(log_left)
        x = jnp.where(diagonal, jnp.maximum(left, _tiny(u.dtype)), left * _fill_lower(jnp.tanh(u), side, -1))
        return x, jnp.sum(log_sech2 + _read_lower(log_left, -1), axis=-1)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        # sinh(u_ij) = L_ij / sqrt(sum_{k>j} L_ik^2): no subtraction from one, so no digits are lost near |L_ij| = 1.
        left = jnp.sqrt(jnp.maximum(_sum_from(x**2), _tiny(x.dtype)))
        rows, columns = np.tril_indices(x.shape[-1], -1)
        return jnp.arcsinh(x[..., rows, columns] / left[..., rows, columns + 1])

    def forward_shape(self, shape: Shape) -> Shape:
        side = _side(shape[-1], strict=True)
        return (*shape[:-1], side, side)

    def inverse_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1] * (shape[-1] - 1) // 2)


# The radius of an overparameterised direction is chi distributed with this many degrees of freedom more than the
# space has dimensions. Its density then vanishes at the origin, where the direction is undefined, and a posterior that
# is narrow in the direction has no funnel there.
_RADIUS_EXTRA = 4


def _log_radius_factor(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A direction u / |u| and log q(|u|) - (n - 1) log |u|, for the chi density q with n + 4 degrees of freedom."""
    n = u.shape[-1]
    # Scaled before squaring, by a number that no gradient sees; at the origin any direction will do.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(u), axis=-1, keepdims=True))
    nonzero = largest > 0
    first = jnp.broadcast_to(np.eye(1, n, dtype=u.dtype)[0], u.shape)
    scale = jnp.where(nonzero, largest, 1)
    scaled = jnp.where(nonzero, u, first) / scale
    length = jnp.sqrt(jnp.sum(scaled**2, axis=-1, keepdims=True))
    log_radius = jnp.where(nonzero, jnp.log(length) + jnp.log(scale), np.log(_tiny(u.dtype)))
    degrees = n + _RADIUS_EXTRA
    constant = (degrees / 2 - 1) * math.log(2) + math.lgamma(degrees / 2)
    log_factor = _RADIUS_EXTRA * log_radius[..., 0] - jnp.sum(u**2, axis=-1) / 2 - constant
    return scaled / length, log_factor


@core.pytree
class Direction(VectorBijector):
    """From R^n without the origin to the unit sphere in it: x = u / |u|.

    The sphere has one dimension less than u, so the radius |u| is an extra coordinate that carries a density q of its
    own (chi with n + 4 degrees of freedom). The log-determinant is log q(|u|) - (n - 1) log |u|: a density p(x) on the
    sphere becomes p(u / |u|) q(|u|) |u|^(1 - n) on R^n, which has the same total mass and gives x the density p. Unlike
    a stereographic map it singles out no pole. `inverse` returns the point of radius 2 in the direction of x, where
    that factor is largest; `inverse(forward(u))` is therefore not u.
    """

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return _log_radius_factor(floating(u))

    def inverse(self, x: Any) -> jax.Array:
        return floating(x) * math.sqrt(_RADIUS_EXTRA)


@core.pytree
class PlaneAngle(Bijector):
    """From the plane without the origin to an angle in [-pi, pi]: x = atan2(u_1, u_0).

    There is no cut: a sampler walks through pi to -pi. The radius is an extra coordinate with a density of its own, as
    in `Direction`.
    """

    @property
    def event_ndims_in(self) -> int:
        return 1

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        direction, log_factor = _log_radius_factor(floating(u))
        return jnp.arctan2(direction[..., 1], direction[..., 0]), log_factor

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        return jnp.stack([jnp.cos(x), jnp.sin(x)], axis=-1) * math.sqrt(_RADIUS_EXTRA)

    def forward_shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != 2:
            raise core.bad_value("forward_shape", "shape", str(tuple(shape)), "a shape that ends in 2")
        return tuple(shape[:-1])

    def inverse_shape(self, shape: Shape) -> Shape:
        return (*shape, 2)
