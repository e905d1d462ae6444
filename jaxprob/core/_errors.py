"""Error messages in the one format of the package.

`<function>: <argument> is <what was got>; expected <what is wanted>. <what to do>`
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def describe(value: Any) -> str:
    """A short description of a value for an error message: its type, shape and dtype, or the value itself.

    >>> describe(3.5)
    '3.5'
    """
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.dtype} array of shape {value.shape}"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if value.ndim == 0 and _is_readable(value):
            return f"{np.asarray(value)}"
        return f"a {value.dtype} array of shape {tuple(value.shape)}"
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    if isinstance(value, (tuple, list)) and len(repr(value)) <= 80:
        return repr(value)
    return f"an object of type {type(value).__name__}"


def _is_readable(value: Any) -> bool:
    """Whether the numbers are there to be read: not a random key, not donated, not on another process."""
    if not isinstance(value, jax.Array):
        return True
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return not is_key and not value.is_deleted() and value.is_fully_addressable


def message(function: str, argument: str, got: Any, expected: str, todo: str = "") -> str:
    """One line: `function: argument is got; expected expected. todo`.

    Args:
      function: name of the public function that was called.
      argument: name of the argument at fault.
      got: what was got. A string is used as it stands; anything else goes through `describe`.
      expected: what is wanted.
      todo: what to do about it, one sentence without a full stop.
    """
    got = got if isinstance(got, str) else describe(got)
    line = f"{function}: {argument} is {got}; expected {expected}."
    line = f"{line} {todo}." if todo else line
    return " ".join(line.split())


def bad_value(function: str, argument: str, got: Any, expected: str, todo: str = "") -> ValueError:
    """A `ValueError` with a message in the one format (see `message`), to be raised by the caller."""
    return ValueError(message(function, argument, got, expected, todo))


def bad_type(function: str, argument: str, got: Any, expected: str, todo: str = "") -> TypeError:
    """A `TypeError` with a message in the one format (see `message`), to be raised by the caller."""
    return TypeError(message(function, argument, got, expected, todo))
