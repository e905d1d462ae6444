"""Checks that the data sources share."""

from __future__ import annotations

import operator
from typing import Any

from jaxprob import core


def as_seed(function: str, seed: Any) -> int:
    """A seed as an integer."""
    try:
        return operator.index(seed)
    except TypeError:
        raise core.bad_type(function, "seed", seed, "an integer") from None


def as_count(function: str, argument: str, value: Any) -> int:
    """A number of things, 1 or more."""
    try:
        count = operator.index(value)
    except TypeError:
        raise core.bad_type(function, argument, value, "an integer") from None
    if count < 1:
        raise core.bad_value(function, argument, value, "1 or more")
    return count
