"""Functions as pytrees, so that what they hold are arguments of compiled programs and not constants in them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from jaxprob.core._bound import Bound


def as_partial(function: Any) -> Any:
    """A function as a pytree: `functools.partial(apply, params)` has the arrays of `params` as leaves.

    Its arrays and floats are leaves; whatever else it holds (flags, names, functions) is part of the structure,
    compared by value. A callable pytree stays as it is, None too, and any other function is one without leaves. Two of
    the same function, with arguments of the same shapes, share their compiled programs. It is called with positions
    alone.

    >>> jax.tree.leaves(as_partial(functools.partial(print, 1.5, sep=" ")))
    [1.5]
    """
    if not jax.tree_util.all_leaves([function]):
        return function
    if not isinstance(function, functools.partial):
        return Partial(function)
    leaves, structure = jax.tree.flatten((function.args, function.keywords))
    is_traced = tuple(isinstance(leaf, (jax.Array, np.ndarray, np.floating, float)) for leaf in leaves)
    fixed = tuple(leaf for leaf, traced in zip(leaves, is_traced, strict=True) if not traced)
    traced = [leaf for leaf, traced in zip(leaves, is_traced, strict=True) if traced]
    return Partial(Bound(_call, structure, is_traced, fixed), as_partial(function.func), traced)


def _call(
    structure: Any, is_traced: tuple[bool, ...], fixed: tuple[Any, ...], function: Any, traced: Any, *rest: Any
) -> Any:
    numbers, others = iter(traced), iter(fixed)
    leaves = [next(numbers) if from_traced else next(others) for from_traced in is_traced]
    arguments, keywords = jax.tree.unflatten(structure, leaves)
    return function(*arguments, *rest, **keywords)
