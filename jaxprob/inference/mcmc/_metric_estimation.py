"""Metrics learnt from the draws of a window, pooled over chains: from their covariance, or with their gradients too.

The metric that minimises the Fisher divergence between the whitened posterior and a standard normal needs both: with C
the covariance of the draws and G that of the gradients of the log density, the inverse mass A solves A G A = C. For a
Gaussian posterior G is the precision and A = C, known without error as soon as there are more draws than dimensions,
however correlated they are: a covariance alone has an error of 1 / sqrt(effective draws).

Source: Seyboldt, Carlson & Carpenter (2026), "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher Divergence";
the covariance and its shrinkage are Stan's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _welford as welford
from jaxprob.inference.mcmc._metric import LARGE, Metric, from_covariance
from jaxprob.inference.mcmc._welford import Moments

FEWEST = 10  # draws of all chains that a metric is learnt from


class Window(NamedTuple):
    """What is remembered of a window, of all chains together.

    Attributes:
      positions: moments of their positions.
      gradients: moments of the gradients of the log density there; None where the covariance is all that is wanted.
    """

    positions: Moments
    gradients: Moments | None

    @property
    def number(self) -> jax.Array:
        """Draws so far."""
        return self.positions.number

    def add(self, positions: jax.Array, gradients: jax.Array | None, weights: jax.Array) -> Window:
        """Adds a draw of each chain; see `update`."""
        moved = welford.add(self.positions, positions, weights)
        if self.gradients is None:
            return Window(moved, None)
        assert gradients is not None
        return Window(moved, welford.add(self.gradients, gradients, weights))

    def learn(self, old: Metric) -> Metric:
        """The metric that the draws teach; the old one as far as that cannot be used."""
        if self.gradients is None:
            return from_covariance(welford.covariance(self.positions), old)
        if self.positions.squares.ndim == 1:
            return _fisher_diagonal(self.positions, self.gradients, old)
        return _fisher_dense(self.positions, self.gradients, old)


def start(size: int, dtype: Any, dense: bool, fisher: bool) -> Window:
    """An empty window."""
    empty = welford.start(size, dtype, dense)
    return Window(empty, empty if fisher else None)


def update(window: Any, positions: jax.Array, gradients: jax.Array | None, weights: jax.Array) -> Any:
    """Adds a draw of each chain.

    Args:
      window: so far; a `Window`, or anything with `number`, `add` and `learn`.
      positions: (chain, size).
      gradients: (chain, size), or None.
      weights: (chain,), 1 for a draw that counts and 0 for one that does not.
    """
    return window.add(positions, gradients, weights)


def estimate(window: Any, old: Metric) -> Any:
    """The metric learnt from a window; the old one as far as it taught nothing that can be used."""
    few = window.number < FEWEST
    return jax.tree.map(lambda old, new: jnp.where(few, old, new), old, window.learn(old))


def _fisher_diagonal(positions: Moments, gradients: Moments, old: Metric) -> Metric:
    variances = jnp.sqrt(positions.squares) / jnp.sqrt(gradients.squares)
    usable = jnp.isfinite(variances) & (variances > 0)
    return Metric(jnp.where(usable, jnp.sqrt(variances), old.factor))


def _fisher_dense(positions: Moments, gradients: Moments, old: Metric) -> Metric:
    # Both are sums over equally many draws, which is all that their ratio asks for.
    factor = fisher_factor(positions.squares, gradients.squares, positions.number)
    factor = core.tria(lax.optimization_barrier(factor))
    usable = jnp.isfinite(factor).all() & jnp.all(jnp.diagonal(factor) > 0)
    return Metric(jnp.where(usable, factor, old.factor))


def fisher_factor(draws: jax.Array, slopes: jax.Array, number: jax.Array) -> jax.Array:
    """A factor F of the metric A = F F' with A slopes A = draws; not finite where there is none.

    Args:
      draws: (size, size), sum over draws of products of their deviations from the mean.
      slopes: (size, size), the same of the gradients.
      number: (), of draws.
    """
    # In units in which draws and gradients have variances of one size, coordinate by coordinate.
    scale = jnp.sqrt(jnp.sqrt(jnp.diagonal(draws) / jnp.diagonal(slopes)))
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
    inverse, size = 1 / scale, scale.shape[0]
    draws = draws * (jnp.expand_dims(inverse, 1) * jnp.expand_dims(inverse, 0))
    slopes = slopes * (jnp.expand_dims(scale, 1) * jnp.expand_dims(scale, 0))
    # Directions that fewer draws than dimensions say nothing about keep the scale of their coordinate.
    few = jnp.where(number < 2 * size, 0.1, 1e-5).astype(scale.dtype)
    ridge = 1 + few * jnp.eye(size, dtype=scale.dtype)
    return jnp.expand_dims(scale, 1) * _geometric_mean_factor(draws * ridge, slopes * ridge)


def _geometric_mean_factor(one: jax.Array, other: jax.Array) -> jax.Array:
    """A factor F of the positive definite A = F F' with A other A = one.

    With other = R R', A = R^-T (R' one R)^(1/2) R^-1. For a normal law the root is that of a multiple of the identity.
    """
    root = core.cholesky(lax.optimization_barrier(other))
    inside = core.symmetrize(matmul(matmul(root.T, one), root))
    values, vectors = jnp.linalg.eigh(lax.optimization_barrier(inside))
    inner = vectors * jnp.expand_dims(jnp.sqrt(jnp.sqrt(jnp.maximum(values, 0))), 0)
    root, inner = lax.optimization_barrier((root, inner))
    return core.solve_triangular(root, inner, transpose=True)


def matmul(one: jax.Array, other: jax.Array) -> jax.Array:
    """A matrix product whose bits do not depend on the program it is part of.

    Nothing around it becomes part of it; and a small one, which XLA may add in another order for another layout of the
    same numbers, is spelled out.
    """
    if max(*one.shape, *other.shape) <= LARGE:
        return core.ordered_dot(jnp.expand_dims(one.T, 2), jnp.expand_dims(other, 1))
    return lax.optimization_barrier(core.matmul(*lax.optimization_barrier((one, other))))
