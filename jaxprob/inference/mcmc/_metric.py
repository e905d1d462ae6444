"""The metric of Hamiltonian methods: an inverse mass matrix, kept as the factor that whitens momenta.

With M^-1 = L L' the kernels carry z = L'p, which is standard normal, in place of the momentum p: velocity is L z, the
force on z is L' times the gradient, kinetic energy is z'z / 2, and the inner product of two momenta is that of their z.
No step factorises or solves anything, and U-turn checks cost the same for every metric.

Source: Neal (2011), "MCMC using Hamiltonian dynamics", section 4.1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core

LARGE = 32  # scalars in a position above which a dense metric is applied by the library's matrix product


@core.pytree
class Metric:
    """An inverse mass matrix by its factor.

    Attributes:
      factor: (size,), square roots of a diagonal inverse mass; (size, size), lower Cholesky factor of a dense one; or
        (), square root of a multiple of the identity.
    """

    factor: jax.Array

    @property
    def inverse_mass(self) -> jax.Array:
        """The matrix itself, in the order of a flat position: (size, size), or its diagonal (size,), or a scalar."""
        if type(self) is Metric and self.factor.ndim < 2:
            return self.factor**2
        axes = jnp.eye(self.factor.shape[0], dtype=self.factor.dtype)
        return core.symmetrize(jax.vmap(lambda axis: self.velocity(self.force(axis)))(axes))

    def velocity(self, momentum: jax.Array) -> jax.Array:
        """L z, the velocity of a whitened momentum (size,)."""
        if self.factor.ndim < 2:
            return self.factor * momentum
        return product(momentum, self.factor.T)

    def force(self, gradient: jax.Array) -> jax.Array:
        """L'g, the force on a whitened momentum where the log density has the gradient g (size,)."""
        if self.factor.ndim < 2:
            return self.factor * gradient
        return product(gradient, self.factor)

    def whiten(self, displacement: jax.Array) -> jax.Array:
        """L^-1 x, for a displacement x (size,)."""
        if self.factor.ndim < 2:
            return displacement / self.factor
        return core.solve_triangular(self.factor, displacement, vector=True)

    def astype(self, dtype: Any) -> Metric:
        """The same metric in another dtype."""
        return Metric(self.factor.astype(dtype))


def product(vector: jax.Array, matrix: jax.Array) -> jax.Array:
    """vector' matrix, with bits that do not depend on how many chains are mapped together."""
    if vector.size <= LARGE:
        return core.ordered_dot(jnp.expand_dims(vector, 1), matrix)
    # A chain alone would be a product with a vector, which adds in another order than the product of matrices that
    # several chains make. A second row makes it one of matrices always.
    return jnp.matmul(jnp.stack([vector, 0.5 * vector]), matrix, precision="highest")[0]


def as_metric(inverse_mass_matrix: Any, function: str) -> Metric:
    """Factorises an inverse mass matrix; a `Metric` is returned as it is.

    Args:
      inverse_mass_matrix: scalar, (size,) diagonal, or (size, size) symmetric positive definite.
      function: name of the caller, for the error message.

    Raises:
      ValueError: for any other shape, or where the values are known and not positive definite.
    """
    if isinstance(inverse_mass_matrix, Metric):
        return inverse_mass_matrix
    if isinstance(inverse_mass_matrix, jax.core.Tracer):
        return Metric(factorise(_checked(core.as_float(inverse_mass_matrix), function)))
    with jax.ensure_compile_time_eval():  # a known matrix is factorised once, in somebody's jit as well
        factor = factorise(_checked(core.as_float(inverse_mass_matrix), function))
        diagonal = jnp.diagonal(factor) if factor.ndim == 2 else factor
        positive = bool(jnp.all(jnp.isfinite(diagonal) & (diagonal > 0)))
    if not positive:
        todo = "It is an estimate of the posterior covariance, or of its diagonal"
        raise core.bad_value(function, "inverse_mass_matrix", "not positive definite", "positive variances", todo)
    return Metric(factor)


def _checked(matrix: jax.Array, function: str) -> jax.Array:
    if matrix.ndim > 2 or (matrix.ndim == 2 and matrix.shape[0] != matrix.shape[1]):
        raise core.bad_value(function, "inverse_mass_matrix", matrix, "a scalar, a vector or a square matrix")
    return matrix


def factorise(matrix: jax.Array) -> jax.Array:
    """The factor L of an inverse mass: square roots of a scalar or diagonal, the lower Cholesky factor of a matrix."""
    return jnp.linalg.cholesky(matrix) if matrix.ndim == 2 else jnp.sqrt(matrix)


def check_size(metric: Metric, size: int, function: str, argument: str = "inverse_mass_matrix") -> None:
    """Raises a `ValueError` unless the metric fits positions of `size` scalars."""
    if metric.factor.ndim and metric.factor.shape[0] != size:
        got, want = f"of shape {metric.factor.shape}", f"({size},) or ({size}, {size})"
        raise core.bad_value(function, argument, got, want, "A position has that many scalars in all")


def from_covariance(covariance: jax.Array, old: Metric) -> Metric:
    """The metric whose inverse mass is an estimated covariance; the old one where the estimate is not usable.

    Args:
      covariance: (size,) variances, or (size, size).
      old: of the same shape.
    """
    if covariance.ndim == 1:
        factor = jnp.sqrt(covariance)
    else:
        # Factorised as a correlation, whose conditioning does not depend on the units of the parameters.
        scale = jnp.sqrt(jnp.diagonal(covariance))
        correlation = covariance / (jnp.expand_dims(scale, 1) * jnp.expand_dims(scale, 0))
        factor = jnp.expand_dims(scale, 1) * jnp.linalg.cholesky(correlation)
    usable = jnp.all(jnp.isfinite(factor)) & jnp.all(jnp.diagonal(factor) > 0 if factor.ndim == 2 else factor > 0)
    return Metric(jnp.where(usable, factor, old.factor))
