"""Checks of numbers that functions are called with, which need no array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxprob.core._errors import bad_value


def is_number(value: Any) -> bool:
    """Whether it is a Python number, of NumPy or not, and no boolean.

    >>> is_number(1.5), is_number(True)
    (True, False)
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_whole(function: str, least: int = 1, **numbers: Any) -> None:
    """Checks that arguments, by their names, are whole numbers.

    Raises:
      ValueError: if one is not, or is below `least`.

    >>> check_whole("sequence.s5", width=4, state=8)
    """
    for argument, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
            raise bad_value(function, argument, number, f"a whole number, {least} or more")


def check_positive(function: str, **numbers: Any) -> None:
    """Checks that arguments, by their names, are positive finite numbers.

    Raises:
      ValueError: if one is not.

    >>> check_positive("sequence.s4d", rate=0.5)
    """
    for argument, number in numbers.items():
        if not is_number(number) or not 0 < number < math.inf:
            raise bad_value(function, argument, number, "a positive number")
