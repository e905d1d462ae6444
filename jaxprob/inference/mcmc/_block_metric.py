"""A metric that is dense within blocks of coordinates and diagonal elsewhere; nothing is kept between blocks.

For models whose parameters hang together in groups that are known beforehand: the size of the whole does not matter,
only that of the largest block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation
from jaxprob.inference.mcmc._metric import Metric, product
from jaxprob.inference.mcmc._metric_estimation import Window

Ranges = tuple[tuple[int, int], ...]  # of a block in a flat position: (first, behind the last) of each piece


@core.pytree
class BlockMetric(Metric):
    """An inverse mass matrix of blocks.

    Attributes:
      factor: (size,), square roots of the diagonal outside of the blocks, and 1 within.
      blocks: factors of the blocks, (block size, block size) each.
      ranges: of each block, where its coordinates are in a flat position.

    >>> metric = BlockMetric(jnp.ones(3), (2 * jnp.eye(2),), (((0, 1), (2, 3)),))
    >>> metric.velocity(jnp.ones(3)).tolist()
    [2.0, 1.0, 2.0]
    """

    blocks: tuple[jax.Array, ...]
    ranges: tuple[Ranges, ...] = core.static()

    def velocity(self, momentum: jax.Array) -> jax.Array:
        """L z, the velocity of a whitened momentum (size,)."""
        return self._apply(momentum, [block.T for block in self.blocks])

    def force(self, gradient: jax.Array) -> jax.Array:
        """L'g, the force on a whitened momentum where the log density has the gradient g (size,)."""
        return self._apply(gradient, self.blocks)

    def astype(self, dtype: Any) -> BlockMetric:
        """The same metric in another dtype."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def _apply(self, vector: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
        result = self.factor * vector
        for ranges, matrix in zip(self.ranges, matrices, strict=True):
            part, done = product(take(vector, ranges), matrix), 0
            for first, behind in ranges:
                piece = part[done : done + behind - first]
                result = lax.dynamic_update_slice_in_dim(result, piece, first, 0)
                done += behind - first
        return result


@core.pytree
class BlockWindow:
    """What is remembered of a window.

    Attributes:
      single: of all coordinates, each on its own.
      parts: of each block.
      ranges: of each block, as in `BlockMetric`.
    """

    single: Window
    parts: tuple[Window, ...]
    ranges: tuple[Ranges, ...] = core.static()

    @property
    def number(self) -> jax.Array:
        """Draws so far."""
        return self.single.number

    def add(self, positions: jax.Array, gradients: jax.Array | None, weights: jax.Array) -> BlockWindow:
        """Adds a draw of each chain; see `_metric_estimation.update`."""
        parts = []
        for part, ranges in zip(self.parts, self.ranges, strict=True):
            mine = [None if x is None else take(x, ranges) for x in (positions, gradients)]
            assert mine[0] is not None
            parts.append(part.add(mine[0], mine[1], weights))
        return BlockWindow(self.single.add(positions, gradients, weights), tuple(parts), self.ranges)

    def learn(self, old: Metric) -> BlockMetric:
        """The metric that the draws teach; the old one, block by block, where it cannot be used."""
        assert isinstance(old, BlockMetric)
        blocks = [part.learn(Metric(block)).factor for part, block in zip(self.parts, old.blocks, strict=True)]
        alone = np.ones(old.factor.size, bool)
        for ranges in self.ranges:
            for first, behind in ranges:
                alone[first:behind] = False
        factor = jnp.where(alone, self.single.learn(Metric(old.factor)).factor, 1)
        return BlockMetric(factor, tuple(blocks), self.ranges)


def take(vectors: jax.Array, ranges: Ranges) -> jax.Array:
    """The coordinates of a block, of vectors (..., size)."""
    return jnp.concatenate([vectors[..., first:behind] for first, behind in ranges], axis=-1)


def start(position: Any, dtype: Any, blocks: Any, fisher: bool) -> tuple[BlockWindow, BlockMetric]:
    """An empty window, and the identity.

    Args:
      position: pytree of arrays, for the names of its leaves.
      dtype: the working dtype.
      blocks: as `warmup` takes them.
      fisher: whether gradients are known.
    """
    ranges = ranges_of(position, blocks)
    sizes = [sum(behind - first for first, behind in block) for block in ranges]
    windows = [metric_estimation.start(size, dtype, True, fisher) for size in sizes]
    single = metric_estimation.start(core.size(position), dtype, False, fisher)
    metric = BlockMetric(
        jnp.ones((core.size(position),), dtype), tuple(jnp.eye(size, dtype=dtype) for size in sizes), ranges
    )
    return BlockWindow(single, tuple(windows), ranges), metric


def ranges_of(position: Any, blocks: Any) -> tuple[Ranges, ...]:
    """Where the blocks are in a flat position.

    Raises:
      ValueError: for a name that is no leaf's, or that occurs twice.

    >>> ranges_of({"a": jnp.ones(2), "b": 1.0, "c": jnp.ones(3)}, ("c", ("a", "b")))
    (((3, 6),), ((0, 2), (2, 3)))
    """
    places, end = {}, 0
    for name, leaf in core.named_leaves(position):
        places[name] = (end, end + int(jnp.size(leaf)))
        end = places[name][1]
    groups = [(block,) if isinstance(block, str) else tuple(block) for block in blocks]
    seen: list[Any] = []
    for name in (name for group in groups for name in group):
        if name not in places:
            raise core.bad_value("warmup", "blocks", f"with {name!r}", f"names of leaves among {list(places)}")
        if name in seen:
            raise core.bad_value("warmup", "blocks", f"with {name!r} twice", "each name at most once")
        seen.append(name)
    return tuple(tuple(places[name] for name in group) for group in groups)
