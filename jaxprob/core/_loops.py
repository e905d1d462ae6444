"""Loops and branches of JAX that need not be typed by hand inside `shard_map`.

There JAX types every array by the mesh axes over which it varies, and a loop's carry must have one type throughout:
zeros that a loop begins with vary over none, and what takes their place does. Outside of `shard_map`, and where it is
told not to look (`check_vma=False`), these are those of `jax.lax`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


def while_loop(condition: Callable[[Carry], Any], body: Callable[[Carry], Carry], init: Carry) -> Carry:
    """`jax.lax.while_loop`.

    Args:
      condition: `carry -> bool`.
      body: `carry -> carry`.
      init: the first carry.

    >>> int(while_loop(lambda x: x < 100, lambda x: 2 * x, jnp.int32(1)))
    128
    """
    return lax.while_loop(condition, body, typed_carry(body, init))


def fori_loop(low: Any, high: Any, body: Callable[[Any, Carry], Carry], init: Carry) -> Carry:
    """`jax.lax.fori_loop`.

    Args:
      low: the first index.
      high: the index after the last.
      body: `(index, carry) -> carry`.
      init: the first carry.

    >>> int(fori_loop(0, 4, lambda index, total: total + index, jnp.int32(0)))
    6
    """
    return lax.fori_loop(low, high, body, typed_carry(lambda carry: body(jnp.asarray(low), carry), init))


def cond(predicate: Any, true: Callable[..., Any], false: Callable[..., Any], *operands: Any) -> Any:
    """`jax.lax.cond`.

    Inside `shard_map` both branches are computed, as under `vmap`: of a condition that is mapped there JAX makes a
    choice between values, and refuses branches that type what they are given. Where that would cost too much, and both
    branches vary alike, take that of `jax.lax`.

    Args:
      predicate: bool, ().
      true: of the operands, where it holds.
      false: of the operands, where it does not.
      *operands: pytrees.

    >>> int(cond(True, lambda x: 2 * x, lambda x: x, jnp.int32(4)))
    8
    """
    if _are_typed():
        return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), true(*operands), false(*operands))
    return lax.cond(predicate, true, false, *operands)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`jax.lax.switch`; inside `shard_map` all branches are computed, as in `cond`.

    Args:
      index: integer, (); the nearest one where there is no such branch.
      branches: functions of the operands.
      *operands: pytrees.

    >>> int(switch(1, [lambda x: x, lambda x: 2 * x], jnp.int32(4)))
    8
    """
    if not _are_typed():
        return lax.switch(index, branches, *operands)
    result = branches[0](*operands)
    for place, branch in enumerate(branches[1:], 1):
        result = jax.tree.map(partial(jnp.where, index >= place), branch(*operands), result)
    return result


def typed_carry(body: Callable[[Carry], Carry], init: Carry) -> Carry:
    """The first carry of a loop, typed as varying over the mesh axes over which `body` makes it vary.

    Args:
      body: `carry -> carry`.
      init: the first carry.
    """
    if not _are_typed():
        return init
    carry = jax.tree.map(jnp.asarray, init)
    while True:
        found = _axes_of(body, carry)
        leaves, structure = jax.tree.flatten(carry)
        # One of another structure is told of by the loop itself.
        if len(found) != len(leaves) or all(map(frozenset.issubset, found, map(varies_over, leaves))):
            return carry
        carry = jax.tree.unflatten(structure, [_over(*pair) for pair in zip(leaves, found, strict=True)])


def _are_typed() -> bool:
    """Whether this is traced inside a `shard_map` that looks at what varies over its axes."""
    axes: tuple[str, ...] = getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())
    return bool(axes) and bool(varies_over(lax.axis_index(axes[0])))


def _axes_of(function: Callable[..., Any], *operands: Any) -> list[frozenset[str]]:
    """The mesh axes over which the leaves of a function's result vary."""
    found: list[frozenset[str]] = []

    def types(*operands: Any) -> Any:
        result = function(*operands)
        found[:] = map(varies_over, jax.tree.leaves(result))
        return result

    jax.eval_shape(types, *operands)
    return found


def varying(tree: Any, *like: Any, axis_name: str | None = None) -> Any:
    """The same arrays, typed inside `shard_map` as varying over the mesh axes that the leaves of `like` vary over.

    A loop's carry must have one type throughout, and what is made inside `shard_map` varies over no axis.
    """
    axes = frozenset() if axis_name is None else frozenset({axis_name})
    axes = axes.union(*[varies_over(leaf) for leaf in jax.tree.leaves(like)])
    return jax.tree.map(lambda x: _over(x, axes), tree)


def _over(x: Any, axes: frozenset[str]) -> Any:
    missing = tuple(sorted(axes - varies_over(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and type of an array, also over which mesh axes it varies, for a program that is traced for such."""
    kind = jax.typeof(x)
    if not varies_over(x):
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    over = {name: getattr(kind, name), "sharding": kind.sharding}
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type, **over)


def varies_over(x: Any) -> frozenset[str]:
    """The mesh axes over which an array inside `shard_map` is typed as varying."""
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # `vma` in earlier versions of JAX
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying
