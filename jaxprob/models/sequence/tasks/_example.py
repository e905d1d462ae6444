"""What a task gives, and the checks that tasks share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprob import core


class Example(NamedTuple):
    """One sequence, or many with a leading axis.

    Attributes:
      inputs: (time,) int32 tokens, or (time, width) floating numbers.
      targets: (time,) int32 tokens or labels, or (time, width) floating numbers; of no account where `mask` is false.
      mask: booleans (time,), where the output counts.
    """

    inputs: jax.Array
    targets: jax.Array
    mask: jax.Array


def check_whole(function: str, least: int = 1, **numbers: Any) -> None:
    """Checks whole numbers."""
    for argument, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
            raise core.bad_value(f"tasks.{function}", argument, number, f"a whole number, {least} or more")


def check_positive(function: str, **numbers: Any) -> None:
    """Checks positive finite numbers."""
    for argument, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise core.bad_value(f"tasks.{function}", argument, number, "a positive number")
