"""Functions made of a user's function, kept for as long as that lives.

JAX finds a compiled loop again by the identity of its body. A wrapper made anew at each call would be compiled anew.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def made_of(make: Callable[..., F]) -> Callable[..., F]:
    """Decorator of a `make(function, *options)`: the same function and options give the same result again.

    `options` are hashable. What is made sees the function through a weak reference, so that neither keeps the other
    alive; a function that allows none is used as it is, and nothing is kept.
    """
    kept: weakref.WeakKeyDictionary[Any, tuple[Callable[..., Any], dict[Any, F]]] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def get(function: Callable[..., Any], *options: Any) -> F:
        try:
            if function not in kept:
                kept[function] = (_through(weakref.ref(function)), {})
        except TypeError:
            return make(function, *options)
        call, entries = kept[function]
        if options not in entries:
            entries[options] = make(call, *options)
        return entries[options]

    return get


def _through(reference: weakref.ref[Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        alive = reference()
        assert alive is not None
        return alive(*args)

    return call
