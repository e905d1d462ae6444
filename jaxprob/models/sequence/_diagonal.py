"""Diagonal linear systems x' = a x + b u: made discrete in time, and their impulse responses without a state per time.

Sources: Gu, Gupta, Goel and Re (2022), "On the parameterization and initialization of diagonal state space models",
sections 2 and 3; Tustin (1947), for the bilinear transform. Complex numbers come and go as pairs of real arrays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.models.sequence._core import linear_states
from jaxprob.models.sequence._hippo import INITIALIZATIONS
from jaxprob.models.sequence._options import check_choice, check_pairs
from jaxprob.scan import Complex, Exponential
from jaxprob.scan._decays import times_exp, wrapped

DISCRETIZATIONS = ("zoh", "bilinear")


class Discretized(NamedTuple):
    """One step of a discrete system, x_t = exp(decay) x_{t-1} + gain b u_t.

    Attributes:
      decay: logarithms of what multiplies the state.
      gain: what multiplies the input.
    """

    decay: Exponential
    gain: Complex


def discretize(eigenvalues: Any, step: Any, discretization: str = "zoh") -> Discretized:
    """A diagonal system x' = a x + b u, looked at every `step`.

    With z = a step, "zoh" (zero-order hold: the input is constant between two times) has the decay exp(z) and the gain
    step (exp(z) - 1) / z, which is `step` at z = 0 with finite derivatives; "bilinear" has (1 + z / 2) / (1 - z / 2)
    and step / (1 - z / 2).

    Args:
      eigenvalues: a, `scan.Complex` or a complex array of any shape, real parts negative or zero.
      step: time between two inputs, a shape that broadcasts with it.
      discretization: "zoh" or "bilinear".

    Returns:
      the decay by its logarithm and the gain, of the common shape.

    Raises:
      ValueError: if there is no such discretisation.

    >>> from jaxprob import scan
    >>> system = discretize(scan.Complex(jnp.zeros(1), jnp.zeros(1)), 0.5)
    >>> system.gain.real.tolist(), system.decay.log_modulus.tolist()
    ([0.5], [0.0])
    """
    if discretization not in DISCRETIZATIONS:
        expected = f"one of {', '.join(map(repr, DISCRETIZATIONS))}"
        raise core.bad_value("sequence.discretize", "discretization", discretization, expected)
    a = as_complex(eigenvalues)
    a, step = jnp.broadcast_arrays(a, jnp.asarray(step, a.dtype))
    z = a * step
    if discretization == "zoh":
        return Discretized(Exponential(z.real, wrapped(z.imag)), as_pair(step * core.expm1_over_x(z)))
    return Discretized(_log_cayley(0.5 * z.real, 0.5 * z.imag), as_pair(step / (1.0 - 0.5 * z)))


def _log_cayley(real: jax.Array, imaginary: jax.Array) -> Exponential:
    """The logarithm of (1 + z) / (1 - z), which is 0 at z = -1."""
    above, below = 1.0 + real, 1.0 - real
    square = imaginary * imaginary
    top, bottom = above * above + square, below * below + square
    tiny = jnp.finfo(top.dtype).tiny
    small = top < 0.5 * bottom
    # Slow modes are near one, where the difference of two logarithms would cancel.
    near = jnp.log1p(jnp.where(small, 0.0, 4.0 * real / bottom))
    far = jnp.log(jnp.maximum(top, tiny)) - jnp.log(bottom)
    vanishes = top < tiny
    angle = jnp.arctan2(jnp.where(vanishes, 0.0, imaginary), jnp.where(vanishes, 1.0, above))
    return Exponential(0.5 * jnp.where(small, far, near), wrapped(angle + jnp.arctan2(imaginary, below)))


def diagonal_states(
    decay: Exponential,
    increment: Complex,
    state: Complex,
    reset: jax.Array | None,
    method: str,
    chunk: int | None,
) -> tuple[Complex, Complex]:
    """States (time, ...) and the last one of x_t = exp(decay) x_{t-1} + b_t, with one decay for all times."""
    factor = jax.tree.map(lambda x: jnp.expand_dims(x, 0), decay)
    return linear_states(factor, increment, state, reset, method=method, chunk=chunk)


def state_one_later(decay: Exponential, increment: Complex, state: Complex) -> Complex:
    """exp(decay) x + b, in the dtype of the increment."""
    increments = as_complex(increment)
    return as_pair(times_exp(as_complex(decay), as_complex(state).astype(increments.dtype)) + increments)


def like(state: Complex, old: Complex) -> Complex:
    """A state in the dtype of another."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), state, old)


def check_system(
    function: str,
    width: Any,
    state: Any,
    initialization: Any,
    discretization: Any,
    step_min: Any,
    step_max: Any,
    rate: Any,
) -> None:
    """Checks what the factories of systems in continuous time have in common."""
    core.check_whole(function, width=width)
    check_pairs(function, "state", state)
    check_choice(function, "initialization", initialization, INITIALIZATIONS)
    check_choice(function, "discretization", discretization, DISCRETIZATIONS)
    core.check_positive(function, step_min=step_min, step_max=step_max)
    if step_min > step_max:
        raise core.bad_value(function, "step_min", step_min, f"at most step_max, {step_max}")
    core.check_positive(function, rate=rate)


def s4d_kernel(eigenvalues: Any, weights: Any, step: Any, length: int, *, discretization: str = "zoh") -> jax.Array:
    """The impulse responses of diagonal systems, K_l = 2 Re sum_n weights_n gain_n exp(l decay_n).

    One mode of each conjugate pair is given. The powers are products of those of a block and those between blocks, so
    that a matrix product of (modes, sqrt(length)) arrays makes the responses, and no (modes, length) array is held.

    Args:
      eigenvalues: `scan.Complex` or complex array (..., modes), of the continuous system.
      weights: `scan.Complex` or complex array (..., modes): the products of input and output weights.
      step: time between two inputs, a shape that broadcasts with (..., modes).
      length: number of times.
      discretization: "zoh" or "bilinear"; see `sequence.discretize`.

    Returns:
      (..., length), real.

    Raises:
      ValueError: if `length` is not a positive whole number, or there is no such discretisation.

    >>> from jaxprob import scan
    >>> one = scan.Complex(jnp.ones(1), jnp.zeros(1))
    >>> decay = scan.Complex(-jnp.ones(1), jnp.zeros(1))
    >>> [f"{x:.4f}" for x in s4d_kernel(decay, one, 1.0, 3).tolist()]
    ['1.2642', '0.4651', '0.1711']

    Source: Gu et al. (2022), section 3.2, equation 5.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise core.bad_value("sequence.s4d_kernel", "length", length, "a positive number of times")
    system = discretize(eigenvalues, step, discretization)
    return response(as_complex(system.decay), as_complex(weights) * as_complex(system.gain), length)


def response(decay: jax.Array, weights: jax.Array, length: int) -> jax.Array:
    """2 Re sum_n weights_n exp(l decay_n) for l = 0 ... length - 1, of complex (..., modes), as (..., length)."""
    low, high = _powers(decay, length)
    high = jnp.expand_dims(weights, -1) * high
    left = jnp.concatenate([high.real, -high.imag], -2)
    values = 2.0 * core.matmul(jnp.swapaxes(left, -1, -2), jnp.concatenate([low.real, low.imag], -2))
    return values.reshape(*values.shape[:-2], -1)[..., :length]


def state_after(decay: jax.Array, xs: jax.Array) -> jax.Array:
    """sum_t exp((length - 1 - t) decay_n) u_t, of complex decays (width, modes) and real xs (length, width)."""
    length, width = xs.shape
    low, high = _powers(decay, length)
    blocks, block = high.shape[-1], low.shape[-1]
    back = jnp.pad(xs[::-1], ((0, blocks * block - length), (0, 0)))
    back = jnp.transpose(back.reshape(blocks, block, width), (2, 1, 0))
    real, imaginary = (core.matmul(part, back) for part in (low.real, low.imag))
    return jnp.sum(high * lax.complex(real, imaginary), -1)


def _powers(decay: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """exp(j decay) within a block of about sqrt(length) and exp(i block decay) between blocks, on a last axis."""
    block = max(1, math.isqrt(length - 1) + 1)
    blocks = -(-length // block)
    decay = jnp.expand_dims(decay, -1)

    def powers(count: int, stride: int) -> jax.Array:
        numbers = jnp.arange(0, count * stride, stride, dtype=decay.real.dtype)
        numbers = jnp.expand_dims(numbers, range(decay.ndim - 1))
        return jnp.exp(lax.complex(decay.real * numbers, decay.imag * numbers))

    return powers(block, 1), powers(blocks, block)


def convolve(xs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The causal convolution of each channel, sum_l kernel_l u_{t-l}, by FFT: both (length, width)."""
    length = xs.shape[0]
    size = 1 << (2 * length - 1).bit_length()  # so long that nothing wraps around
    product = jnp.fft.rfft(xs, size, axis=0) * jnp.fft.rfft(kernel, size, axis=0)
    return jnp.fft.irfft(product, size, axis=0)[:length]


def as_complex(value: Any) -> jax.Array:
    """A complex array of one, of a pair of real ones, or of the logarithm of a decay."""
    if isinstance(value, (Complex, Exponential)):
        return lax.complex(*map(jnp.asarray, value))
    value = jnp.asarray(value)
    return value if jnp.iscomplexobj(value) else lax.complex(value, jnp.zeros_like(value))


def as_pair(value: jax.Array) -> Complex:
    """The pair of real arrays of a complex one."""
    return Complex(value.real, value.imag)
