"""Random keys: typed everywhere inside, legacy keys accepted at the edge.

Streams are told apart by folding in global indices (chain, step), never by splitting a batch: with `rbg` keys, draws
under `vmap` depend on the first key alone, and a split depends on how many devices there are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.core import random
from jaxprob.core._errors import bad_type

Key = jax.Array


def is_key(value: Any) -> bool:
    """Whether `value` is a typed key array (`jax.random.key`), of any shape."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def as_key(key: Any, function: str = "as_key") -> Key:
    """A typed scalar key from a typed key or a legacy `uint32` key.

    Args:
      key: `jax.random.key(seed)`, or `jax.random.PRNGKey(seed)`.
      function: name of the caller, for the error message.

    Raises:
      TypeError: for anything else, an integer seed included.

    >>> as_key(jax.random.PRNGKey(0)).shape
    ()
    """
    if is_key(key):
        if key.shape == ():
            return key
    elif isinstance(key, (jax.Array, np.ndarray)) and key.dtype == jnp.uint32:
        with contextlib.suppress(TypeError):  # raised for key data of another shape than the default generator's
            wrapped = jax.random.wrap_key_data(jnp.asarray(key))
            if wrapped.shape == ():
                return wrapped
    raise bad_type(function, "key", key, "one random key", "Make one with jax.random.key(seed)")


def fold(key: Key, *indices: Any) -> Key:
    """Folds each index into `key` in turn: `fold_in(fold_in(key, i), j)`.

    Args:
      key: a scalar typed key; it may be folded with different indices as often as needed.
      *indices: non-negative integers or scalar integer arrays.
    """
    for index in indices:
        key = random.fold_in(key, index)
    return key


def chain_keys(key: Key, indices: jax.Array) -> Key:
    """One key a chain: `fold_in(key, global chain index)`.

    The key of a chain depends on its global index and nothing else, so any number of devices gives the same draws.

    Args:
      key: scalar typed key.
      indices: (chain,) integers, the global indices of the chains wanted.

    Returns:
      (chain,) keys.
    """
    return jax.vmap(lambda index: random.fold_in(key, index))(jnp.asarray(indices))
