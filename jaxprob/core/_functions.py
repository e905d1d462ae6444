"""Functions as pytrees, so that what they hold are arguments of compiled programs and not constants in them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial


def as_partial(function: Callable[..., Any]) -> Any:
    """A function as a pytree: `functools.partial(apply, params)` has the arrays of `params` as leaves.

    A callable pytree stays as it is, and any other function is one without leaves. Two of the same function, with
    arguments of the same shapes, share their compiled programs.

    >>> jax.tree.leaves(as_partial(functools.partial(max, 1, 2)))
    [1, 2]
    """
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(function)):
        return function
    if isinstance(function, functools.partial):
        return Partial(as_partial(function.func), *function.args, **function.keywords)
    return Partial(function)
