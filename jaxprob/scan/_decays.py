"""What multiplies the state of an affine recurrence: numbers, logarithms of numbers, or matrices.

Complex numbers come and go as pairs of real arrays: the gradient with respect to a complex leaf points the wrong way
for optimisers. Inside they are complex. A decay that comes near one is given by its logarithm: 0.9999 is 1 in bfloat16,
while its logarithm keeps all digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core

# The size of a logarithm below which a decay is near one.
_NEAR = 0.25


class Complex(NamedTuple):
    """Complex numbers as a pair of real arrays of one shape.

    Attributes:
      real: any shape.
      imaginary: the same shape.
    """

    real: Any
    imaginary: Any


class Exponential(NamedTuple):
    """The decay `exp(log_modulus + i phase)`, kept as its logarithm.

    Attributes:
      log_modulus: any shape; negative where the recurrence forgets.
      phase: radians, a shape that broadcasts with it, or None for a real decay.
    """

    log_modulus: Any
    phase: Any = None


class Structure(NamedTuple):
    """The algebra of one kind of decay. All functions take leading axes.

    Attributes:
      kind: "elementwise" or "matrix", as in the table of methods.
      apply: `(decay, state) -> state`.
      pull: `(decay, cotangent) -> cotangent`, by the transposed decay.
      compose: `(after, before) -> decay`, the decay of two steps.
      reduce: `decay -> decay`, the same one in a form whose compositions keep their digits.
      transpose: `decay -> decay` of the transposed recurrence.
      keep: `decay -> decay` of the same shape that changes nothing.
    """

    kind: str
    apply: Callable[[jax.Array, jax.Array], jax.Array]
    pull: Callable[[jax.Array, jax.Array], jax.Array]
    compose: Callable[[jax.Array, jax.Array], jax.Array]
    reduce: Callable[[jax.Array], jax.Array]
    transpose: Callable[[jax.Array], jax.Array]
    keep: Callable[[jax.Array], jax.Array]


def times_exp(decay: jax.Array, state: jax.Array) -> jax.Array:
    """exp(decay) times the state, in the dtype of the state."""
    # Near one it is 1 + expm1(decay), and the state plus a little: exp(decay) is rounded to the same side at every
    # step, which over a memory of 10,000 steps is 6e-4 in float32.
    near = jnp.abs(decay) < _NEAR
    # A real logarithm stays real beside complex states.
    part = jnp.where(near, jnp.expm1(decay), jnp.exp(decay)).astype(state.dtype) * state
    return jnp.where(near, state + part, part)


def wrapped(angle: jax.Array) -> jax.Array:
    """The angle between -pi and pi, so that its multiples keep their digits."""
    turns = jnp.round(angle / (2.0 * math.pi))
    # The first part of 2 pi has so few digits that its multiples are exact.
    return (angle - turns * 6.28125) - turns * (2.0 * math.pi - 6.28125)


def _without_turns(decay: jax.Array) -> jax.Array:
    """A logarithm with its angle between -pi and pi."""
    return jax.lax.complex(decay.real, wrapped(decay.imag)) if jnp.iscomplexobj(decay) else decay


def _identity_matrices(decay: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(decay.shape[-1], dtype=decay.dtype), decay.shape)


STRUCTURES = {
    "elementwise": Structure(
        "elementwise",
        jnp.multiply,
        jnp.multiply,
        jnp.multiply,
        lambda decay: decay,
        lambda decay: decay,
        jnp.ones_like,
    ),
    "logarithm": Structure(
        "elementwise",
        times_exp,
        times_exp,
        jnp.add,
        _without_turns,
        lambda decay: decay,
        jnp.zeros_like,
    ),
    "matrix": Structure(
        "matrix",
        core.matvec,
        lambda decay, state: core.matmul(state[..., None, :], decay)[..., 0, :],
        core.matmul,
        lambda decay: decay,
        lambda decay: jnp.swapaxes(decay, -1, -2),
        _identity_matrices,
    ),
}


def as_array(argument: str, value: Any) -> jax.Array:
    """A real or complex array, in float32 at least, of numbers or a `Complex`.

    Raises:
      TypeError: if it is not made of numbers.
    """
    try:
        if isinstance(value, Complex):
            real, imaginary = (core.as_float(part) for part in value)
            dtype = core.accumulator_dtype(core.result_dtype(real, imaginary))
            return jax.lax.complex(*jnp.broadcast_arrays(real.astype(dtype), imaginary.astype(dtype)))
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            return value
        value = core.as_float(value)
    except (TypeError, ValueError):
        raise core.bad_type(
            "scan.affine", argument, value, "an array of numbers, or a `Complex` of one shape"
        ) from None
    return value.astype(core.accumulator_dtype(value.dtype))


def as_logarithm(argument: str, decay: Exponential) -> jax.Array:
    """The logarithm of a decay as a real or complex array."""
    if decay.phase is None:
        return as_array(argument, decay.log_modulus)
    return as_array(argument, Complex(*decay))


def low_dtype(value: Any) -> Any:
    """The real dtype in which numbers came."""
    leaves = jax.tree.leaves(value)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.finfo(jnp.result_type(*[core.as_float(x) if not jnp.iscomplexobj(x) else x for x in leaves])).dtype
