"""Functions with fixed arguments that are compared by value, as what is static under `jit` must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Bound:
    """A function whose first arguments are fixed; equal to another of the same function and equal arguments.

    Unlike a `functools.partial`, two of which are never equal, so that each would compile its own program.

    Args:
      function: what is called.
      *values: its first arguments, hashable.

    >>> Bound(max, 2)(3), Bound(max, 2) == Bound(max, 2)
    (3, True)
    """

    def __init__(self, function: Callable[..., Any], *values: Any) -> None:
        self._parts = function, values

    def __call__(self, *arguments: Any) -> Any:
        """The function's value for the fixed arguments and these."""
        function, values = self._parts
        return function(*values, *arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        function, values = self._parts
        return f"Bound({', '.join([getattr(function, '__qualname__', repr(function)), *map(repr, values)])})"
