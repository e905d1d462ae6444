"""Shapes that a caller gives."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from jaxprob.core._errors import bad_value


def as_shape(function: str, shape: Any) -> tuple[int, ...]:
    """A shape from a whole number or several; raises a `ValueError` for anything else.

    >>> as_shape("sample", 3), as_shape("sample", (2, 3))
    ((3,), (2, 3))
    """
    try:
        axes = tuple(map(operator.index, shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        axes = (-1,)
    if any(axis < 0 for axis in axes):
        raise bad_value(function, "shape", shape, "a whole number that is not negative, or a tuple of them")
    return axes
