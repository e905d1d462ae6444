"""A diagonal metric with a few directions of their own, and how it is learnt from draws and gradients.

For x of covariance S and gradients g = -S^-1 x of a normal law, x + g is in the span of the directions in which S is
not one, and as large in those that are narrow as in those that are wide. Those directions are the principal components
of x + g; in their span, where draws are many beside dimensions, the metric solves A G A = C as a dense one does. What
is left tells the scales of the coordinates better than the draws did, among which a few wide directions drown all
else: scales and directions are learnt in turn.

Estimates agree to rounding on any number of devices, and not to the bit as those of other metrics do.

Source: after Seyboldt, Carlson & Carpenter (2026), "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
Divergence"; directions from x + g, and scales learnt in turn with them, are ours.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._metric_estimation import fisher_factor

RANK = 16  # directions by default
CUTOFF = 2.0  # a variance between this and its inverse is as good as one
SWEEPS = 5  # times that scales and directions are learnt in turn


@core.pytree
class LowRankMetric(Metric):
    """An inverse mass matrix `L L'` with `L = diag(factor) (I + U (sqrt(values) - 1) U')`; a step costs O(size rank).

    Attributes:
      factor: (size,), the scales of the coordinates.
      vectors: (size, rank), U, with orthonormal columns, in units of the scales.
      values: (rank,), variances along them, above zero; 1 for a direction that counts for nothing.

    >>> metric = LowRankMetric(jnp.ones(3), jnp.eye(3)[:, :1], jnp.array([4.0]))
    >>> metric.velocity(jnp.ones(3)).tolist()
    [2.0, 1.0, 1.0]
    """

    vectors: jax.Array
    values: jax.Array

    def __post_init__(self) -> None:
        size, rank = jnp.shape(self.factor), jnp.shape(self.values)
        if len(size) != 1 or len(rank) != 1 or jnp.shape(self.vectors) != size + rank:
            got = f"of shape {jnp.shape(self.vectors)} with factor {size} and values {rank}"
            raise core.bad_value("LowRankMetric", "vectors", got, "(size, rank) with factor (size,) and values (rank,)")

    def velocity(self, momentum: jax.Array) -> jax.Array:
        """L z, the velocity of a whitened momentum (size,)."""
        return self.factor * self._stretch(momentum)

    def force(self, gradient: jax.Array) -> jax.Array:
        """L'g, the force on a whitened momentum where the log density has the gradient g (size,)."""
        return self._stretch(self.factor * gradient)

    def astype(self, dtype: Any) -> LowRankMetric:
        """The same metric in another dtype."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def _stretch(self, vector: jax.Array) -> jax.Array:
        # A matrix product with few columns adds in an order that depends on how many chains are mapped together.
        along = core.ordered_dot(jnp.expand_dims(vector, 1), self.vectors)
        return vector + core.ordered_dot(jnp.expand_dims((jnp.sqrt(self.values) - 1) * along, 1), self.vectors.T)


class Rows(NamedTuple):
    """The last draws of a window, of all chains together, and the gradients of the log density there.

    Attributes:
      number: (), of draws so far; draw n is in row n modulo rows.
      positions: (rows, size).
      gradients: (rows, size).
    """

    number: jax.Array
    positions: jax.Array
    gradients: jax.Array

    def add(self, positions: jax.Array, gradients: jax.Array | None, weights: jax.Array) -> Rows:
        """Adds a draw of each chain; see `_metric_estimation.update`."""
        assert gradients is not None
        rows, order = self.positions.shape[0], jnp.cumsum((weights > 0).astype("int32"))
        counts = (weights > 0) & (order > order[-1] - rows)
        row = jnp.where(counts, (self.number + order - 1) % rows, rows)
        return Rows(
            self.number + order[-1],
            self.positions.at[row].set(positions, mode="drop"),
            self.gradients.at[row].set(gradients, mode="drop"),
        )

    def learn(self, old: Metric) -> LowRankMetric:
        """The metric that the draws teach; the old one where it cannot be used."""
        assert isinstance(old, LowRankMetric)
        new = low_rank(self, old)
        usable = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(new)])) & jnp.all(new.values > 0)
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, old)


def start(size: int, dtype: Any, rank: int) -> tuple[Rows, LowRankMetric]:
    """An empty window, and the identity."""
    rank = min(rank, size)
    rows = jnp.zeros((max(100, 10 * rank), size), dtype)
    unit = LowRankMetric(jnp.ones((size,), dtype), jnp.eye(size, rank, dtype=dtype), jnp.ones((rank,), dtype))
    return Rows(jnp.int32(0), rows, rows), unit


def low_rank(window: Rows, old: LowRankMetric, cutoff: float = CUTOFF) -> LowRankMetric:
    """The low-rank Fisher metric.

    Args:
      window: draws and gradients.
      old: where to begin; its scales are those of coordinates that the draws say nothing about.
      cutoff: a variance between this and its inverse becomes 1.
    """
    (rows, size), rank = window.positions.shape, old.values.size
    used = jnp.minimum(window.number, rows)
    counts = jnp.expand_dims(jnp.arange(rows, dtype="int32") < used, 1)

    def centred(values: jax.Array) -> jax.Array:
        mean = jnp.sum(jnp.where(counts, values, 0), 0) / jnp.maximum(used, 1).astype(values.dtype)
        return jnp.where(counts, values - jnp.expand_dims(mean, 0), 0)

    draws, gradients = centred(window.positions), centred(window.gradients)

    def in_units(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        return draws / jnp.expand_dims(factor, 0), gradients * jnp.expand_dims(factor, 0)

    def sweep(_: Any, carry: tuple[LowRankMetric, jax.Array]) -> tuple[LowRankMetric, jax.Array]:
        old, basis = carry
        scaled, slopes = in_units(old.factor)
        whitened = _stretch(scaled, old.vectors, 1 / jnp.sqrt(old.values))
        forces = _stretch(slopes, old.vectors, jnp.sqrt(old.values))
        ratio = jnp.sqrt(jnp.sqrt(jnp.sum(whitened**2, 0) / jnp.sum(forces**2, 0)))
        factor = old.factor * jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1)
        if not rank:
            return LowRankMetric(factor, old.vectors, old.values), basis
        scaled, slopes = in_units(factor)
        basis = _principal(scaled + slopes, basis)
        return LowRankMetric(factor, *_directions(scaled, slopes, basis, used, rank, cutoff)), basis

    # Any basis but an orthogonal one.
    any_basis = np.random.default_rng(0).normal(size=(size, min(2 * rank, rows, size)))
    basis = jnp.asarray(any_basis, draws.dtype)
    return core.fori_loop(0, SWEEPS if rank else 1, sweep, (old, basis))[0]


def _principal(rows: jax.Array, basis: jax.Array) -> jax.Array:
    """An orthonormal basis (size, breadth) close to the principal components of rows (rows, size), by iteration."""
    for _ in range(2):
        basis = jnp.linalg.qr(core.matmul(rows.T, core.matmul(rows, basis)))[0]
    return basis


def _directions(
    draws: jax.Array, gradients: jax.Array, basis: jax.Array, used: jax.Array, rank: int, cutoff: float
) -> tuple[jax.Array, jax.Array]:
    """Vectors (size, rank) and values (rank,) in the span of a basis (size, breadth).

    Args:
      draws: (rows, size), in the units of the coordinates.
      gradients: (rows, size).
      basis: the columns that matter most first.
      used: (), rows that are not zero.
      rank: how many.
      cutoff: as in `low_rank`.
    """
    # Four draws for each direction at least; a direction of those left out has variance one and meets no other.
    counts = (jnp.arange(basis.shape[1], dtype="int32") < used // 4).astype(basis.dtype)
    basis = basis * jnp.expand_dims(counts, 0)
    parts = (core.matmul(x, basis) for x in (draws, gradients))
    one, other = (core.matmul(part.T, part) + jnp.diag(1 - counts) for part in parts)
    root = fisher_factor(one, other, used)
    inner, roots, _ = jnp.linalg.svd(root)
    apart = jnp.abs(jnp.log(roots)) * 2
    apart, chosen = lax.top_k(jnp.where(apart > math.log(cutoff), apart, 0), rank)
    return core.matmul(basis, inner)[:, chosen], jnp.where(apart > 0, roots[chosen] ** 2, 1)


def _stretch(rows: jax.Array, vectors: jax.Array, by: jax.Array) -> jax.Array:
    """Each row stretched along the vectors."""
    if by.size == 0:
        return rows
    return rows + core.matmul(core.matmul(rows, vectors) * jnp.expand_dims(by - 1, 0), vectors.T)
