"""Parameters and values of distributions: conversion, checks at construction, one rank and one dtype for arithmetic.

Checks look at concrete numbers with NumPy and skip tracers, so they cost nothing inside `jit`; they run at
construction and never when a transformation rebuilds a distribution from its leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class Rule(NamedTuple):
    """What the values of a parameter must satisfy.

    Attributes:
      expected: words for the error message ("positive numbers").
      holds: NumPy predicate, elementwise; must be False for NaN.
      todo: what to do about it.
    """

    expected: str
    holds: Callable[[np.ndarray], Any]
    todo: str = ""


_UNCONSTRAINED = "Build it from an unconstrained number x as jnp.exp(x) if it comes out of a computation"

ANY = Rule("numbers that are not NaN", lambda x: ~np.isnan(x))
REAL = Rule("finite numbers", np.isfinite)
POSITIVE = Rule("positive numbers", lambda x: (x > 0) & np.isfinite(x), _UNCONSTRAINED)
NON_NEGATIVE = Rule("non-negative numbers", lambda x: (x >= 0) & np.isfinite(x), _UNCONSTRAINED)
PROBABILITY = Rule("numbers between 0 and 1", lambda x: (x >= 0) & (x <= 1), "Use logits for unconstrained numbers")


def is_concrete(value: Any) -> bool:
    """Whether the numbers in `value` can be looked at now: not a tracer and not an abstract shape."""
    return not isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct))


def check_values(function: str, argument: str, value: Any, rule: Rule) -> None:
    """Raises a `ValueError` that shows the first number of a concrete `value` that breaks `rule`."""
    if not is_concrete(value):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "fiub":  # bfloat16 and its relatives, which NumPy's predicates do not know
        numbers = numbers.astype(np.float32)
    holds = np.asarray(rule.holds(numbers))
    if holds.all():
        return
    index = tuple(int(i) for i in np.argwhere(~holds)[0])
    got = f"{numbers[index]}" + (f" at index {index}" if index else "")
    raise core.bad_value(function, argument, got, rule.expected, rule.todo)


def check_shapes(function: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the named shapes broadcast to.

    Raises:
      ValueError: names the two that do not fit together.
    """
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        names = list(shapes)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            try:
                np.broadcast_shapes(shapes[first], shapes[second])
            except ValueError:
                raise core.bad_value(
                    function,
                    second,
                    f"of shape {shapes[second]}",
                    f"a shape that broadcasts with {first} of shape {shapes[first]}",
                ) from None
    raise core.bad_value(function, ", ".join(names), f"of shapes {list(shapes.values())}", "shapes that broadcast")


def convert(function: str, argument: str, value: Any) -> jax.Array:
    """A floating array from a parameter (see `core.as_float`), or a `TypeError` in the one format."""
    if isinstance(value, (int, float, jax.Array, np.ndarray, np.number, list, tuple)):
        try:
            array = core.as_float(value if not isinstance(value, (list, tuple)) else np.asarray(value))
        except (TypeError, ValueError):
            pass
        else:
            if not jnp.issubdtype(jnp.result_type(value if hasattr(value, "dtype") else array), jnp.complexfloating):
                return array
    raise core.bad_type(function, argument, value, "a real number or an array of them")


def set_parameters(distribution: Any, **rules: Rule) -> None:
    """Converts and checks parameters of a distribution under construction: sizes always, values where concrete.

    Args:
      distribution: the instance whose fields, named by the keywords, are converted in place and must broadcast.
      **rules: what the values of each field must satisfy.

    Raises:
      ValueError: if shapes do not broadcast together or a concrete value breaks its rule.
      TypeError: if a parameter is not an array of numbers.
    """
    name = type(distribution).__name__
    shapes = {}
    for field, rule in rules.items():
        raw = getattr(distribution, field)
        array = convert(name, field, raw)
        # The raw value is looked at: inside `jit` a Python number is still concrete while its array may not be.
        check_values(name, field, raw, rule)
        object.__setattr__(distribution, field, array)
        shapes[field] = array.shape
    check_shapes(name, **shapes)


def check_order(function: str, low: Any, high: Any) -> None:
    """Raises a `ValueError` if concrete `low` and `high` are not in increasing order everywhere."""
    if not (is_concrete(low) and is_concrete(high)):
        return
    try:
        ordered = np.asarray(low) < np.asarray(high)
    except (TypeError, ValueError):
        return  # Not numbers, or shapes that do not fit: `set_parameters` has the words for both.
    if not ordered.all():
        low, high = np.broadcast_arrays(low, high)
        index = tuple(np.argwhere(~ordered)[0])
        raise core.bad_value(function, "high", f"{high[index]}", f"numbers above low, here {low[index]}")


def set_integers(distribution: Any, field: str, rule: Rule) -> None:
    """Converts a count parameter (number of trials) to an integer array in place and checks its concrete values.

    Whole floating numbers are accepted; integers keep their dtype.
    """
    name = type(distribution).__name__
    raw = getattr(distribution, field)
    convert(name, field, raw)
    check_values(name, field, raw, Rule("whole numbers", lambda x: x == np.round(x)))
    check_values(name, field, raw, rule)
    array = jnp.asarray(raw)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(int)
    object.__setattr__(distribution, field, array)


def align(*values: Any, rank: int = 0) -> list[jax.Array]:
    """The values as arrays of one floating dtype and one rank, ready for elementwise arithmetic.

    Shapes get leading axes of length one where ranks differ (scalars are left alone), which is what broadcasting
    does silently and rank-promotion checks forbid. Integers take the dtype of the floating values beside them.

    Args:
      *values: arrays, NumPy arrays or Python numbers.
      rank: the least rank to give to what is not a scalar.

    >>> [x.shape for x in align(jnp.ones((2, 3)), jnp.ones(3), 1.0)]
    [(2, 3), (1, 3), ()]
    """
    arrays = [value if isinstance(value, jax.Array) else jnp.asarray(value) for value in values]
    dtype = arrays[0].dtype
    if any(array.dtype != dtype for array in arrays) or not jnp.issubdtype(dtype, jnp.floating):
        dtype = core.result_dtype(arrays)
        arrays = [array if array.dtype == dtype else array.astype(dtype) for array in arrays]
    rank = max(rank, *(array.ndim for array in arrays))
    return [_expand(array, rank) for array in arrays]


def _expand(array: jax.Array, rank: int) -> jax.Array:
    return array if array.ndim in (0, rank) else jnp.expand_dims(array, tuple(range(rank - array.ndim)))


def broadcast_to(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jnp.broadcast_to` that adds nothing to the program when the shape is right already."""
    return value if value.shape == tuple(shape) else jnp.broadcast_to(value, shape)


def static_number(value: Any) -> float | None:
    """The one Python number in a concrete scalar, or None."""
    return float(np.asarray(value)) if is_concrete(value) and math.prod(np.shape(value)) == 1 else None
