"""Numbers that a caller gives a kernel: checked where they are known, arrays or tracers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


def known_number(
    function: str, argument: str, value: Any, possible: Callable[[float], bool], expected: str
) -> jax.Array:
    """A number as a scalar array; what is traced is taken as it is.

    Args:
      function: name of the public function that was called, for the message.
      argument: name of the argument, for the message.
      value: what the caller gave.
      possible: whether a number can be this argument.
      expected: what is wanted, for the message.

    Raises:
      TypeError: for what is no number.
      ValueError: for several numbers, or a known one that is not possible.
    """
    if value is None or isinstance(value, (str, bytes)):  # NumPy reads both as something else
        raise core.bad_type(function, argument, core.describe(value), expected)
    try:
        if isinstance(value, jax.core.Tracer):
            array, fine = core.as_float(value), True
        else:
            with jax.ensure_compile_time_eval():
                array = core.as_float(value)
                fine = array.ndim == 0 and possible(float(array))
    except TypeError as error:
        raise core.bad_type(function, argument, value, expected) from error
    if array.ndim or not fine:
        raise core.bad_value(function, argument, array, expected)
    return array


def known_vector(
    function: str, argument: str, value: Any, possible: Callable[[np.ndarray], bool], expected: str, todo: str = ""
) -> jax.Array:
    """Numbers as an array of one axis; what is traced is taken as it is. Arguments and errors as for `known_number`."""
    if isinstance(value, jax.core.Tracer):
        array, fine = core.as_float(value), True
    else:
        with jax.ensure_compile_time_eval():
            array = core.as_float(jnp.asarray(value))
            values = np.asarray(array, float)
        fine = values.ndim == 1 and possible(values)
    if array.ndim != 1 or not fine:
        got = str(value) if isinstance(value, (list, tuple)) else array
        raise core.bad_value(function, argument, got, expected, todo)
    return array


def known_count(function: str, argument: str, value: Any) -> int:
    """An integer of at least 1; raises a `ValueError` for anything else."""
    if not isinstance(value, Integral) or value < 1:
        raise core.bad_value(function, argument, core.describe(value), "an integer of at least 1")
    return int(value)


def known_range(function: str, argument: str, value: Any) -> tuple[int, int]:
    """The least and the greatest of a number of steps, given as one or as both; raises a `ValueError` for others."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, Integral) for n in pair) or not 1 <= pair[0] <= pair[1]:
        expected = "an integer of at least 1, or a pair of them in order"
        raise core.bad_value(function, argument, core.describe(value), expected)
    return int(pair[0]), int(pair[1])
