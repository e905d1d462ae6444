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
from jaxprob.inference.mcmc._metric import Metric, from_covariance
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


def start(size: int, dtype: Any, dense: bool, fisher: bool) -> Window:
    """An empty window."""
    empty = welford.start(size, dtype, dense)
    return Window(empty, empty if fisher else None)


def update(window: Window, positions: jax.Array, gradients: jax.Array | None, weights: jax.Array) -> Window:
    """Adds a draw of each chain.

    Args:
      window: so far.
      positions: (chain, size).
      gradients: (chain, size), or None.
      weights: (chain,), 1 for a draw that counts and 0 for one that does not.
    """
    moved = welford.add(window.positions, positions, weights)
    if window.gradients is None:
        return Window(moved, None)
    assert gradients is not None
    return Window(moved, welford.add(window.gradients, gradients, weights))


def estimate(window: Window, old: Metric) -> Metric:
    """The metric learnt from a window; the old one as far as it taught nothing that can be used."""
    if window.gradients is None:
        new = from_covariance(welford.covariance(window.positions), old)
    elif window.positions.squares.ndim == 1:
        new = _fisher_diagonal(window.positions, window.gradients, old)
    else:
        new = _fisher_dense(window.positions, window.gradients, old)
    return Metric(jnp.where(window.positions.number < FEWEST, old.factor, new.factor))


def _fisher_diagonal(positions: Moments, gradients: Moments, old: Metric) -> Metric:
    variances = jnp.sqrt(positions.squares) / jnp.sqrt(gradients.squares)
    usable = jnp.isfinite(variances) & (variances > 0)
    return Metric(jnp.where(usable, jnp.sqrt(variances), old.factor))


def _fisher_dense(positions: Moments, gradients: Moments, old: Metric) -> Metric:
    # In units in which draws and gradients have variances of one size, coordinate by coordinate. Both are sums over
    # equally many draws, which is all that their ratio asks for.
    scale = jnp.sqrt(jnp.sqrt(jnp.diagonal(positions.squares) / jnp.diagonal(gradients.squares)))
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
    inverse, size = 1 / scale, scale.shape[0]
    draws = positions.squares * (jnp.expand_dims(inverse, 1) * jnp.expand_dims(inverse, 0))
    slopes = gradients.squares * (jnp.expand_dims(scale, 1) * jnp.expand_dims(scale, 0))
    # Directions that fewer draws than dimensions say nothing about keep the scale of their coordinate.
    few = jnp.where(positions.number < 2 * size, 0.1, 1e-5)
    ridge = 1 + few * jnp.eye(size, dtype=scale.dtype)
    factor = jnp.expand_dims(scale, 1) * _geometric_mean_factor(draws * ridge, slopes * ridge)
    factor = core.tria(lax.optimization_barrier(factor))
    usable = jnp.isfinite(factor).all() & jnp.all(jnp.diagonal(factor) > 0)
    return Metric(jnp.where(usable, factor, old.factor))


def _geometric_mean_factor(one: jax.Array, other: jax.Array) -> jax.Array:
    """A factor F of the positive definite A = F F' with A other A = one."""
    values, vectors = jnp.linalg.eigh(lax.optimization_barrier(core.symmetrize(other)))
    root = jnp.sqrt(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    half = vectors * jnp.expand_dims(root, 0)
    values, inner = jnp.linalg.eigh(lax.optimization_barrier(core.symmetrize(_product(_product(half.T, one), half))))
    inner = inner * jnp.expand_dims(jnp.sqrt(jnp.sqrt(jnp.maximum(values, 0))), 0)
    return _product(vectors / jnp.expand_dims(root, 0), inner)


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    """A matrix product that is never made part of anything around it, where its bits could be others."""
    return lax.optimization_barrier(core.matmul(*lax.optimization_barrier((one, other))))
