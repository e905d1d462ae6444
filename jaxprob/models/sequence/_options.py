"""Checks of the arguments that factories of cores have in common, and how time steps begin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core

METHODS = ("auto", "sequential", "chunked", "associative", "parallel")


def check_pairs(function: str, argument: str, value: Any) -> None:
    """Checks the size of a state whose modes come in conjugate pairs."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 2 or value % 2:
        raise core.bad_value(function, argument, value, "an even number, 2 or more", "Modes come in conjugate pairs")


def check_choice(function: str, argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks one of several names."""
    if not isinstance(value, str) or value not in choices:
        raise core.bad_value(function, argument, value, f"one of {', '.join(map(repr, choices))}")


def check_chunk(function: str, chunk: Any) -> None:
    """Checks the number of steps of a chunk, or None."""
    if chunk is not None:
        core.check_whole(function, chunk=chunk)


def log_uniform(low: float, high: float) -> Callable[..., jax.Array]:
    """An initialiser of logarithms of numbers between `low` and `high`, uniform in the logarithm."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return core.random.uniform(key, shape, dtype, math.log(low), math.log(high))

    return make


def constant(values: Any) -> Callable[..., jax.Array]:
    """An initialiser that fills leading axes with copies of an array."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(values, dtype), shape)

    return make
