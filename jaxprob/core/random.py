"""Random numbers: the functions of `jax.random`, the same numbers from the same keys, by code that fuses.

On a CPU jax computes its generator as a loop over arrays in memory, five rounds of four turns, which nothing can be
fused with. Written out it is one pass that stays in registers together with whatever is made of the bits: a normal
number costs half, the bits alone a quarter, and there is less to compile. (On a GPU jax writes it out itself.) Inside a
program that is compiled, draws of this package go through here.

Source: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", Threefry-2x32, 20 rounds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import random as generators

P = ParamSpec("P")
T = TypeVar("T")

_THREEFRY = generators.threefry_prng_impl
_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


@jax.jit  # traced and lowered once a shape
def _threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block cipher on counters of two words, with a key (2,)."""
    words = key[0], key[1], key[0] ^ key[1] ^ _PARITY
    x, y = high + words[0], low + words[1]
    for i in range(5):
        for turn in _TURNS[i % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _counters(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The index of each element among all, in two words of which the first is zero."""
    low, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        low = low + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return jnp.zeros(shape, jnp.uint32), low


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    if math.prod(shape) >= 2**32:
        found: jax.Array = _THREEFRY.random_bits(key, width, shape)
        return found
    high, low = _threefry(key, *_counters(shape))
    if width == 64:
        return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{width}")


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_threefry(key, *_counters(shape)), -1)


def _fold_in(key: jax.Array, index: Any) -> jax.Array:
    index = jnp.asarray(index).astype(jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(index), index))


_WRITTEN_OUT = generators.define_prng_impl(
    key_shape=(2,),
    seed=_THREEFRY.seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="threefry2x32_written_out",
    tag="fry_out",
)


def _applies(key: Any) -> bool:
    # Eagerly there is nothing to fuse with; and jax tells which keys are used twice by the type of keys it knows.
    return (
        isinstance(key, jax.core.Tracer)
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and jax.threefry_partitionable.value
        and not jax.debug_key_reuse.value
    )


def _of_numbers(function: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(function)
    def call(key: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        if _applies(key):
            key = jax.random.wrap_key_data(jax.random.key_data(key), impl=_WRITTEN_OUT)
        return function(key, *args, **kwargs)

    return call


def _of_keys(function: Callable[Concatenate[Any, P], jax.Array]) -> Callable[Concatenate[Any, P], jax.Array]:
    drawn = _of_numbers(function)

    @functools.wraps(function)
    def call(key: Any, *args: P.args, **kwargs: P.kwargs) -> jax.Array:
        found = drawn(key, *args, **kwargs)
        return jax.random.wrap_key_data(jax.random.key_data(found), impl="threefry2x32") if _applies(key) else found

    return call


fold_in = _of_keys(jax.random.fold_in)
split = _of_keys(jax.random.split)

bernoulli = _of_numbers(jax.random.bernoulli)
bits = _of_numbers(jax.random.bits)
categorical = _of_numbers(jax.random.categorical)
cauchy = _of_numbers(jax.random.cauchy)
exponential = _of_numbers(jax.random.exponential)
gumbel = _of_numbers(jax.random.gumbel)
laplace = _of_numbers(jax.random.laplace)
logistic = _of_numbers(jax.random.logistic)
loggamma = _of_numbers(jax.random.loggamma)
normal = _of_numbers(jax.random.normal)
permutation = _of_numbers(jax.random.permutation)
rademacher = _of_numbers(jax.random.rademacher)
randint = _of_numbers(jax.random.randint)
uniform = _of_numbers(jax.random.uniform)
