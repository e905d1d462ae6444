"""Pytrees as vectors: ravel, dot, norms and maps over named leaves.

Positions are any pytree of floating arrays; kernels work on one flat vector in one working dtype.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core._dtypes import result_dtype
from jaxprob.core._errors import bad_type, bad_value, describe


def check_floating(function: str, tree: Any) -> None:
    """Raises a `TypeError` that names the first leaf that is not floating point; nothing is computed."""
    for name, leaf in named_leaves(tree):
        try:
            dtype = None if isinstance(leaf, (str, bytes)) else jnp.result_type(leaf)
        except TypeError:  # of what is no array
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            got = describe(leaf) if dtype is None else f"of dtype {dtype}"
            todo = "Only continuous quantities can be part of a vector"
            raise bad_type(function, f"leaf {name!r}", got, "a floating-point array", todo)


def ravel(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Flattens a pytree of floating arrays into one vector.

    Args:
      tree: pytree of floating-point arrays; leaves of different precision are promoted to the highest.

    Returns:
      vector (size,), and the function that maps such a vector back to a pytree with the shapes and dtypes of `tree`.

    Raises:
      TypeError: if a leaf is not floating point.

    >>> vector, unravel = ravel({"b": 1.0, "a": (2.0, 3.0)})
    >>> vector.tolist()
    [2.0, 3.0, 1.0]
    """
    check_floating("ravel", tree)
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    shapes, dtypes = [leaf.shape for leaf in leaves], [leaf.dtype for leaf in leaves]
    dtype = result_dtype(leaves)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    length = ends[-1] if ends else 0

    def unravel(vector: jax.Array) -> Any:
        if jnp.shape(vector) != (length,):
            raise bad_value("unravel", "vector", f"of shape {jnp.shape(vector)}", f"shape ({length},)")
        parts = jnp.split(vector, ends[:-1]) if ends else []
        rebuilt = [part.reshape(shape).astype(dtype) for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)]
        return jax.tree.unflatten(structure, rebuilt)

    return jnp.concatenate([jnp.zeros((0,), dtype)] + [leaf.ravel().astype(dtype) for leaf in leaves]), unravel


def is_function(x: Any) -> bool:
    """Whether something is to be called: a function or a `Partial`, and no pytree of arrays that can be called as well.

    Networks are such pytrees in some libraries, and a position may be one.

    >>> is_function(abs), is_function(jax.tree_util.Partial(abs)), is_function({"x": 1.0})
    (True, True, False)
    """
    return callable(x) and (isinstance(x, jax.tree_util.Partial) or jax.tree_util.all_leaves([x]))


def size(tree: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(tree))


def dot(a: Any, b: Any) -> jax.Array:
    """Inner product of two pytrees of the same structure and shapes: the sum over leaves of `sum(a * b)`.

    Raises:
      ValueError: if the structures or the shapes of two leaves differ.

    >>> dot({"x": 2.0, "y": 3.0}, {"x": 4.0, "y": 5.0}).item()
    23.0
    """
    check_same_structure("dot", "b", b, a, dtypes=False)
    dtype = result_dtype(a, b)
    products = jax.tree.map(lambda x, y: jnp.sum(jnp.asarray(x, dtype) * jnp.asarray(y, dtype)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def norm(tree: Any, order: float = 2.0) -> jax.Array:
    """The `order`-norm of a pytree seen as one vector, with gradient zero at zero.

    Args:
      tree: pytree of real arrays.
      order: a positive number: 2 for the Euclidean norm, `jnp.inf` for the largest absolute value.

    >>> norm({"x": 3.0, "y": 4.0}).item()
    5.0
    """
    dtype = result_dtype(tree)
    leaves = [jnp.abs(jnp.asarray(leaf, dtype)) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros((), dtype)
    largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
    # XLA's maximum of many numbers on CPU overlooks those that are NaN.
    undefined = jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in leaves]))
    largest = jnp.where(undefined, jnp.nan, largest)
    if order == jnp.inf:
        return jnp.where(largest == 0, 0.0, largest)
    # Scaled by the largest entry, so that squares neither overflow nor underflow; the norm does not depend on it.
    scale = lax.stop_gradient(jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0))
    total = sum(jnp.sum((leaf / scale) ** order) for leaf in leaves)
    return jnp.where(largest == 0, 0.0, scale * jnp.where(largest == 0, 1.0, total) ** (1.0 / order))


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


def match_patterns(function: str, argument: str, patterns: Sequence[str], names: Sequence[str]) -> list[int]:
    """For each name the place of the first glob pattern that meets it; the number of patterns where none does.

    `*` stands for any characters, dots included; `?` for one; `[ab]` for one of them.

    Args:
      function: name of the public function, for the message.
      argument: how the message names a pattern, with `{}` for it.
      patterns: of whole names.
      names: of leaves, as `named_leaves` spells them.

    Raises:
      ValueError: if a pattern takes no name.

    >>> match_patterns("by_path", "pattern {}", ["*.bias", "core.*"], ["core.bias", "core.kernel", "out"])
    [0, 1, 2]
    """
    places = [next((i for i, p in enumerate(patterns) if fnmatchcase(name, p)), len(patterns)) for name in names]
    for place, pattern in enumerate(patterns):
        if place in places:
            continue
        where = argument.format(repr(pattern))
        if any(fnmatchcase(name, pattern) for name in names):
            expected = "one that meets leaves which no rule before it takes"
            raise bad_value(function, where, "never reached", expected, "Put it earlier")
        near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names[:5]
        expected = f"one that meets a leaf, such as {', '.join(map(repr, near))}"
        raise bad_value(function, where, "without a leaf", expected, "Paths are written with dots")
    return places


def check_same_structure(function: str, argument: str, got: Any, expected: Any, dtypes: bool = True) -> None:
    """Raises a `ValueError` that names the first leaf whose name, shape or dtype differs.

    Args:
      function: name of the public function, for the message.
      argument: name of the argument that `got` is, for the message.
      got: pytree of arrays (or of `jax.ShapeDtypeStruct`).
      expected: pytree of arrays (or of `jax.ShapeDtypeStruct`).
      dtypes: whether dtypes must be the same as well.
    """
    got_leaves, expected_leaves = named_leaves(got), named_leaves(expected)
    got_names, expected_names = [name for name, _ in got_leaves], [name for name, _ in expected_leaves]
    if missing := [name for name in expected_names if name not in got_names]:
        raise bad_value(function, argument, f"without leaf {missing[0]!r}", f"leaves {expected_names}")
    if unknown := [name for name in got_names if name not in expected_names]:
        raise bad_value(function, argument, f"with unknown leaf {unknown[0]!r}", f"leaves {expected_names}")
    structure: Any = jax.tree.structure(got)
    expected_structure: Any = jax.tree.structure(expected)
    if structure != expected_structure:
        raise bad_value(function, argument, f"a pytree {structure}", f"the structure {expected_structure}")
    for (name, found), (_, leaf) in zip(got_leaves, expected_leaves, strict=True):
        want = (jnp.shape(leaf), jnp.result_type(leaf))
        have = (jnp.shape(found), jnp.result_type(found))
        if want[0] != have[0] or (dtypes and want[1] != have[1]):
            raise bad_value(
                function,
                f"{argument}, leaf {name!r},",
                f"{have[1]} of shape {have[0]}",
                f"{want[1]} of shape {want[0]}",
            )
