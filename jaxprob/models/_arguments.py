"""Which arguments of a model are data, and which belong to its structure.

Arrays and Python floats are data: leaves of the program, so that they can be traced, mapped, differentiated and
sharded. Everything else (integers, booleans, strings, functions, modules, None) is structure: it can be a size or a
choice inside the model, and another value means another compilation.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class Structure(NamedTuple):
    """The part of the arguments that is not data. Hashable, compared by value.

    Attributes:
      treedef: structure of the arguments with every leaf in place.
      leaves: the leaves that are not data, and a mark in place of those that are.
    """

    treedef: Any
    leaves: tuple[Any, ...]


class _Mark(enum.Enum):
    DATA = "data"


def split(function: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Structure]:
    """The arguments with None in place of every leaf that is structure, and the structure.

    Raises:
      TypeError: if a leaf is neither an array nor hashable.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(arguments)
    data: list[jax.Array | None] = []
    fixed: list[Any] = []
    for path, leaf in paths:
        if _is_data(leaf):
            data.append(jnp.asarray(leaf))
            fixed.append(_Mark.DATA)
            continue
        try:
            hash(leaf)
        except TypeError:
            todo = "Pass its arrays, or register its class as a pytree"
            name = f"argument {core.leaf_name(path)!r}"
            raise core.bad_type(function, name, leaf, "arrays, numbers, or something hashable", todo) from None
        data.append(None)
        fixed.append(int(leaf) if isinstance(leaf, np.integer) else leaf)
    return jax.tree.unflatten(treedef, data), Structure(treedef, tuple(fixed))


def join(data: dict[str, Any], structure: Structure) -> dict[str, Any]:
    """The arguments again, from the two parts that `split` made."""
    arrays = iter(jax.tree.leaves(data))
    return jax.tree.unflatten(
        structure.treedef, [next(arrays) if leaf is _Mark.DATA else leaf for leaf in structure.leaves]
    )


def _is_data(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)
    return isinstance(leaf, (jax.Array, float, complex, np.floating))
