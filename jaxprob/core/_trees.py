"""Pytrees as vectors: ravel, dot, norms and maps over named leaves.

Positions are any pytree of floating arrays; kernels work on one flat vector in one working dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxprob.core._errors import bad_type, bad_value


def ravel(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Flattens a pytree of floating arrays into one vector.

    Args:
      tree: pytree of floating-point arrays; leaves of different precision are promoted to the highest.

    Returns:
      vector (size,), and the function that maps such a vector back to a pytree with the shapes and dtypes of `tree`.

    Raises:
      TypeError: if a leaf is not floating point.
    """
    for name, leaf in named_leaves(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise bad_type(
                "ravel", f"leaf {name!r}", f"of dtype {jnp.result_type(leaf)}", "a floating-point array",
                "Only continuous quantities can be part of a vector",
            )
    if not jax.tree.leaves(tree):
        return jnp.zeros((0,)), lambda vector: tree
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(tree)


def size(tree: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(tree))


def dot(a: Any, b: Any) -> jax.Array:
    """Inner product of two pytrees of the same structure: the sum over leaves of `sum(a * b)`."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def norm(tree: Any, order: float = 2.0) -> jax.Array:
    """The `order`-norm of a pytree seen as one vector (2 by default; `jnp.inf` for the largest absolute value)."""
    leaves = [jnp.abs(jnp.ravel(leaf)) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros(())
    if order == jnp.inf:
        return jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
    # Scaled by the largest entry, so that squares neither overflow nor underflow.
    scale = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
    safe = jnp.where(scale > 0, scale, 1)
    total = sum(jnp.sum((leaf / safe) ** order) for leaf in leaves)
    return jnp.where(scale > 0, safe * total ** (1.0 / order), 0)


def _part(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf from its path: `theta`, `layers.0.kernel`; `value` for a bare array."""
    return ".".join(_part(key) for key in path) or "value"


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their dotted names, in flattening order.

    >>> [name for name, _ in named_leaves({"b": 1.0, "a": (2.0, 3.0)})]
    ['a.0', 'a.1', 'b']
    """
    return [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(name, leaf, *other_leaves)` over the leaves of a pytree."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest)


def check_same_structure(function: str, argument: str, got: Any, expected: Any) -> None:
    """Raises a `ValueError` that names the first leaf whose name, shape or dtype differs."""
    got_leaves, expected_leaves = dict(named_leaves(got)), dict(named_leaves(expected))
    if missing := [name for name in expected_leaves if name not in got_leaves]:
        raise bad_value(function, argument, f"without leaf {missing[0]!r}", f"leaves {list(expected_leaves)}")
    if unknown := [name for name in got_leaves if name not in expected_leaves]:
        raise bad_value(function, argument, f"with unknown leaf {unknown[0]!r}", f"leaves {list(expected_leaves)}")
    for name, leaf in expected_leaves.items():
        found = got_leaves[name]
        want = (jnp.shape(leaf), jnp.result_type(leaf))
        have = (jnp.shape(found), jnp.result_type(found))
        if want != have:
            raise bad_value(
                function, f"{argument}, leaf {name!r},", f"{have[1]} of shape {have[0]}", f"{want[1]} of shape {want[0]}"
            )
    if jax.tree.structure(got) != jax.tree.structure(expected):
        raise bad_value(
            function, argument, f"a pytree {jax.tree.structure(got)}", f"the structure {jax.tree.structure(expected)}"
        )
