"""The dtype policy: dtype in is dtype out, and sums of low-precision numbers are kept in float32.

A Python scalar takes the dtype of what it meets; where it meets nothing, JAX's default float. Nothing requires
float64.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.core._errors import bad_type


def as_float(value: Any) -> jax.Array:
    """An array of floating dtype from an array, NumPy array or Python scalar.

    Python scalars stay weakly typed (they take the dtype of what they meet); integers and booleans become the default
    float; floating arrays keep their dtype.

    Raises:
      TypeError: for complex numbers, random keys and whatever is not a number.
    """
    if isinstance(value, (bool, int)):
        return jnp.asarray(float(value))
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool:
        return array.astype(jnp.result_type(float))
    raise bad_type("as_float", "value", f"of dtype {array.dtype}", "real numbers")


def result_dtype(*values: Any) -> Any:
    """The floating dtype of an operation between these pytrees: the highest among their floating leaves."""
    leaves = [leaf for value in values for leaf in jax.tree.leaves(value)]
    with jax.numpy_dtype_promotion("standard"):
        floats = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        return jnp.result_type(*floats) if floats else jnp.result_type(float)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are summed: float32 for bfloat16 and float16, else `dtype` itself."""
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)
