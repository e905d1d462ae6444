"""Normal distributions of states in time whose precision is banded: each state depends on the one before it alone.

The posterior of the states of a linear-Gaussian model is of this family. Its parameters grow with the number of times,
those of a dense covariance with its square.

Source: Archer, Park, Buesing, Cunningham & Paninski (2015), "Black box variational inference for state space models".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions.flows._affine import RealVectorBijector


@core.pytree
class MarkovAffine(RealVectorBijector):
    """x_t = loc_t + d_t with d_0 = L_0 z_0 and d_t = A_t d_{t-1} + L_t z_t, as vectors (time * n,).

    Args:
      loc: (time, n).
      log_diagonal: (time, n), logarithms of the diagonals of the lower triangular L_t.
      lower: (time, n, n), of which what lies strictly below the diagonal counts.
      coupling: (time - 1, n, n), A_1 and the following.
    """

    loc: Any
    log_diagonal: Any
    lower: Any
    coupling: Any

    @property
    def factors(self) -> jax.Array:
        """L, (time, n, n)."""
        return jax.vmap(lambda lower, log: jnp.tril(lower, -1) + jnp.diag(jnp.exp(log)))(self.lower, self.log_diagonal)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        decay = jnp.concatenate([jnp.zeros_like(self.lower[:1]), self.coupling])
        factors = self.factors

        def one(z: jax.Array) -> jax.Array:
            increments = jax.vmap(core.matvec)(factors, z.reshape(self.loc.shape))
            return (self.loc + scan.affine(decay, increments).states).reshape(-1)

        return jax.vmap(one)(u.reshape(-1, self.loc.size)).reshape(u.shape), self._log_det(u)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        factors = self.factors

        def one(x: jax.Array) -> jax.Array:
            away = x.reshape(self.loc.shape) - self.loc
            new = away.at[1:].add(-jax.vmap(core.matvec)(self.coupling, away[:-1]))
            solve = jax.vmap(lambda factor, d: core.solve_triangular(factor, d[:, None])[:, 0])
            return solve(factors, new).reshape(-1)

        return jax.vmap(one)(x.reshape(-1, self.loc.size)).reshape(x.shape), -self._log_det(x)

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]

    def _log_det(self, like: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.sum(self.log_diagonal), like.shape[:-1])
