"""A metric of a diagonal and a matrix of low rank, as quasi-Newton methods find one.

Updates of BFGS multiply the factor of the inverse Hessian by matrices I - p q', which are invertible whatever the
rounding, so that there is nothing to factorise and nothing that could fail to be positive definite. The products are
kept multiplied out, those of the inverse as well: no operation solves anything, and each costs O(update size).

Source: Brodlie, Gourlay & Greenstadt (1973), "Rank-one and rank-two corrections to positive definite matrices expressed
in product form".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._metric import Metric, product


@core.pytree
class QuasiNewtonMetric(Metric):
    """An inverse mass matrix L L' with L = (I - P'R) diag(factor) and L^-1 = diag(factor)^-1 (I + S'Q).

    Attributes:
      factor: (size,), square roots of the diagonal that the updates start from.
      left: (update, size), P; rows of zeros are no update.
      right: (update, size), R.
      inverse_left: (update, size), S.
      inverse_right: (update, size), Q.
      log_determinant: (), log |det L|, half that of the inverse mass matrix.
    """

    left: jax.Array
    right: jax.Array
    inverse_left: jax.Array
    inverse_right: jax.Array
    log_determinant: jax.Array

    def velocity(self, momentum: jax.Array) -> jax.Array:
        """L z, the velocity of a whitened momentum (size,)."""
        scaled = self.factor * momentum
        return scaled - product(product(scaled, self.right.T), self.left)

    def force(self, gradient: jax.Array) -> jax.Array:
        """L'g, the force on a whitened momentum where the log density has the gradient g (size,)."""
        return self.factor * (gradient - product(product(gradient, self.left.T), self.right))

    def whiten(self, displacement: jax.Array) -> jax.Array:
        """L^-1 x, for a displacement x (size,)."""
        moved = displacement + product(product(displacement, self.inverse_right.T), self.inverse_left)
        return moved / self.factor

    def mass(self, displacement: jax.Array) -> jax.Array:
        """M x = (L L')^-1 x, for a displacement x (size,)."""
        scaled = self.whiten(displacement) / self.factor
        return scaled + product(product(scaled, self.inverse_left.T), self.inverse_right)

    def astype(self, dtype: Any) -> QuasiNewtonMetric:
        """The same metric in another dtype."""
        return jax.tree.map(lambda leaf: leaf.astype(dtype), self)


def from_diagonal(variances: jax.Array, updates: int) -> QuasiNewtonMetric:
    """The metric with a diagonal inverse mass (size,), and room for updates."""
    factor = jnp.sqrt(variances)
    none = jnp.zeros((updates, factor.size), factor.dtype)
    return QuasiNewtonMetric(factor, none, none, none, none, jnp.sum(jnp.log(factor)))


def from_moves(variances: jax.Array, steps: jax.Array, changes: jax.Array) -> QuasiNewtonMetric:
    """The inverse Hessian that BFGS makes of a diagonal and of moves.

    With p = s / s'y and q = y - sqrt(s'y / s'Bs) B s an update of the factor is (I - p q') L, where B is the Hessian
    estimated before it. It multiplies the determinant by sqrt(s'Bs / s'y), above zero.

    Args:
      variances: (size,), of the diagonal, above zero.
      steps: (update, size), the moves s, oldest first; those with s'y <= 0 are left out.
      changes: (update, size), by how much the gradient of the log density fell, y.
    """

    def update(index: Any, metric: QuasiNewtonMetric) -> QuasiNewtonMetric:
        step, change = steps[index], changes[index]
        image = metric.mass(step)
        curvature, estimated = core.ordered_dot(step, change), core.ordered_dot(step, image)
        ratio = curvature / estimated
        p, q = step / curvature, change - jnp.sqrt(ratio) * image
        new = QuasiNewtonMetric(
            factor=metric.factor,
            left=metric.left.at[index].set(p),
            right=metric.right.at[index].set(q - product(product(q, metric.left.T), metric.right)),
            inverse_left=metric.inverse_left.at[index].set(
                jnp.sqrt(ratio) * (p + product(product(p, metric.inverse_right.T), metric.inverse_left))
            ),
            inverse_right=metric.inverse_right.at[index].set(q),
            log_determinant=metric.log_determinant - 0.5 * jnp.log(ratio),
        )
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
        sound = (curvature > 0) & (estimated > 0) & finite
        return jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, metric)

    return core.fori_loop(0, steps.shape[0], update, from_diagonal(variances, steps.shape[0]))
