"""Affine bijectors of vectors whose parameters are any real numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._parameters import align
from jaxprob.distributions._vector_bijectors import VectorBijector
from jaxprob.distributions.flows._networks import times


class RealVectorBijector(VectorBijector):
    """Base of the bijectors of real vectors onto all real vectors, whose parameters may be any real numbers."""

    @property
    def keeps_reals(self) -> bool:
        return True


@core.pytree
class DiagonalAffine(RealVectorBijector):
    """x = loc + exp(log_scale) * u.

    Args:
      loc: (n,).
      log_scale: (n,).

    >>> DiagonalAffine(jnp.ones(2), jnp.zeros(2)).forward(jnp.zeros(2)).tolist()
    [1.0, 1.0]
    """

    loc: Any
    log_scale: Any

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, loc, log_scale = align(u, self.loc, self.log_scale)
        x = loc + jnp.exp(log_scale) * u
        return x, jnp.broadcast_to(jnp.sum(log_scale, axis=-1), x.shape[:-1])

    def inverse(self, x: Any) -> jax.Array:
        x, loc, log_scale = align(x, self.loc, self.log_scale)
        return (x - loc) * jnp.exp(-log_scale)


@core.pytree
class TriangularAffine(RealVectorBijector):
    """x = loc + L u, with L lower triangular: exp(log_diagonal) on its diagonal.

    Args:
      loc: (n,).
      log_diagonal: (n,).
      lower: (n, n), of which what lies strictly below the diagonal counts.

    >>> TriangularAffine(jnp.zeros(2), jnp.zeros(2), jnp.ones((2, 2))).forward(jnp.ones(2)).tolist()
    [1.0, 2.0]
    """

    loc: Any
    log_diagonal: Any
    lower: Any

    @property
    def factor(self) -> jax.Array:
        """L, (n, n)."""
        return jnp.tril(self.lower, -1) + jnp.diag(jnp.exp(self.log_diagonal))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, loc = align(u, self.loc)
        x = loc + times(u, self.factor.T)
        return x, jnp.broadcast_to(jnp.sum(self.log_diagonal), x.shape[:-1])

    def inverse(self, x: Any) -> jax.Array:
        x, loc = align(x, self.loc)
        rows = (x - loc).reshape(-1, x.shape[-1])  # one solve with many right-hand sides, whatever the leading axes
        return core.solve_triangular(self.factor, rows.T).T.reshape(x.shape)
