"""How a position lies in a vector: hashable, so that it may be part of a pytree's structure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core


@dataclasses.dataclass(frozen=True)
class Layout:
    """The structure of a position.

    Attributes:
      structure: treedef of the position.
      shapes: of each leaf.
      dtypes: names of the dtype of each leaf.
      names: of each leaf.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, position: Any) -> Layout:
        """The layout of a position, or of its shapes (`jax.ShapeDtypeStruct`).

        Raises:
          TypeError: if a leaf is not floating.
          ValueError: if there is no leaf.
        """
        leaves, structure = jax.tree.flatten(position)
        if not leaves:
            raise core.bad_value("vi", "the position", "without arrays", "a pytree with one array at least")
        names = tuple(name for name, _ in core.named_leaves(position))
        for name, leaf in zip(names, leaves, strict=True):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                got, todo = f"of dtype {jnp.result_type(leaf)}", "Sum discrete quantities out, or treat them apart"
                raise core.bad_type("vi", f"position, leaf {name!r},", got, "real floating numbers", todo)
        dtypes = tuple(str(jnp.result_type(leaf)) for leaf in leaves)
        return cls(structure, tuple(tuple(jnp.shape(leaf)) for leaf in leaves), dtypes, names)

    @property
    def size(self) -> int:
        """Numbers in a position."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def dtype(self) -> Any:
        """Of vectors: the highest precision of a leaf, float32 at least."""
        return core.accumulator_dtype(core.result_dtype([jnp.zeros((), dtype) for dtype in self.dtypes]))

    def ravel(self, position: Any) -> jax.Array:
        """A position (*lead, ...) as a vector (*lead, size).

        Raises:
          ValueError: for another structure or other shapes.
        """
        leaves, structure = jax.tree.flatten(position)
        if structure != self.structure:
            raise core.bad_value("vi", "position", structure, f"the structure {self.structure}")
        leads = []
        for name, leaf, shape in zip(self.names, leaves, self.shapes, strict=True):
            found = jnp.shape(leaf)
            leads.append(found[: len(found) - len(shape)])
            if leads[-1] != leads[0] or found != leads[0] + shape:
                expected = f"shape {leads[0] + shape}"
                raise core.bad_value("vi", f"position, leaf {name!r},", f"of shape {found}", expected)
        flat = [jnp.reshape(leaf, (*leads[0], -1)).astype(self.dtype) for leaf in leaves]
        return jnp.concatenate(flat, axis=-1)

    def unravel(self, vector: jax.Array) -> Any:
        """The position (*lead, ...) of a vector (*lead, size)."""
        lead = vector.shape[:-1]
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = jnp.split(vector, list(itertools.accumulate(sizes))[:-1], axis=-1)
        leaves = [
            part.reshape(lead + shape).astype(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)
