"""Batches of a stream for a chunk of steps: read while the device works, stacked, with the position behind them."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxprob import core, learning
from jaxprob.runtime._mesh import place
from jaxprob.runtime._sharding import batch_specs

MOST, BYTES = 1024, 32 * 2**20  # batches of a block, and their bytes together


class Block(NamedTuple):
    """Batches that lie on the mesh.

    Attributes:
      batches: pytree (capacity, example, ...); those from `size` on are not meant.
      size: how many there are; fewer than asked for only at the end of the stream.
      position: of the stream behind them; None where it has none.
    """

    batches: Any
    size: int
    position: Any


class Feed:
    """A stream as blocks of batches. The next batch is always at hand, so that its shapes and the end are known.

    Args:
      stream: the stream, at the position where the run begins.

    Raises:
      ValueError: if it has no batch.
    """

    def __init__(self, stream: learning.data.Stream) -> None:
        self._stream = stream
        self._taken = 0
        self._next = next(stream, None)
        if self._next is None:
            raise core.bad_value("fit", "data", "a stream without a batch", "one batch at least")
        self.batch = jax.tree.map(_shape, self._next)
        size = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(self.batch))
        self.capacity = int(np.clip(BYTES // max(size, 1), 1, MOST))

    @property
    def ended(self) -> bool:
        """Whether there is no batch left."""
        return self._next is None

    def go_to(self, position: Any) -> None:
        """Goes on at a position that a block had."""
        self._stream.set_state(position)
        self._next = next(self._stream, None)

    def read(self, count: int, mesh: Mesh) -> Block:
        """The next `count` batches, or as many as there are.

        Raises:
          ValueError: if a batch has other shapes or dtypes than the first.
        """
        stacked = jax.tree.map(lambda x: np.zeros((self.capacity, *x.shape), x.dtype), self.batch)
        size, position = 0, None
        while size < count and self._next is not None:
            name = f"batch {self._taken} of the stream"
            core.check_same_structure("fit", name, jax.tree.map(_shape, self._next), self.batch)
            for whole, part in zip(jax.tree.leaves(stacked), jax.tree.leaves(self._next), strict=True):
                whole[size] = part
            position = self._stream.get_state() if self._stream.can_resume else None
            size, self._taken = size + 1, self._taken + 1
            self._next = next(self._stream, None)
        return Block(place(stacked, mesh, batch_specs(stacked, mesh, lead=(None,))), size, position)


def encode(position: Any) -> Any:
    """A position as JSON: positions are JSON already, or bytes (grain has both)."""
    return {"base64": base64.b64encode(position).decode()} if isinstance(position, bytes) else {"json": position}


def decode(value: Any) -> Any:
    """The position that `encode` made this of."""
    return base64.b64decode(value["base64"]) if "base64" in value else value["json"]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
