"""S4D: in each channel a diagonal linear system in continuous time, run as a convolution or as a recurrence.

Source: Gu, Gupta, Goel and Re (2022), "On the parameterization and initialization of diagonal state space models".
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._diagonal import (
    Discretized,
    as_complex,
    as_pair,
    check_system,
    convolve,
    diagonal_states,
    discretize,
    like,
    response,
    state_after,
    state_one_later,
)
from jaxprob.models.sequence._hippo import initial_modes, legs_modes
from jaxprob.models.sequence._options import (
    METHODS,
    check_choice,
    check_chunk,
    constant,
    log_uniform,
)
from jaxprob.models.sequence._time_axis import cuts, in_pieces, of_last, on_device, state_before
from jaxprob.scan import Complex

# From how many times on a convolution is faster, forward and backward.
_CONVOLVED = 16


class _S4D(Core):
    """One system of `state` numbers a channel, of which the modes with a positive frequency are kept."""

    state: int = 64
    initialization: str = "lin"
    discretization: str = "zoh"
    step_min: float = 1e-3
    step_max: float = 1e-1
    rate: float = 1.0
    method: str = "auto"
    chunk: int | None = None

    factory = "s4d"
    runs_in_pieces = True

    def setup(self) -> None:
        shape = (self.width, self.state // 2)
        rates, frequencies = initial_modes("sequence.s4d", self.initialization, self.state)
        weights = np.ones(self.state // 2, complex)
        if self.initialization == "legs":
            # Half of the input vector, in the basis of the eigenvectors: theorem 3.
            weights = legs_modes(self.state)[1].conj().T @ np.sqrt(2.0 * np.arange(self.state) + 1.0) / 2.0
        self.decay_log_rate = self.param("decay_log_rate", constant(np.log(rates)), shape)
        draw = nn.initializers.normal(1.0) if frequencies is None else constant(frequencies)
        self.decay_frequency = self.param("decay_frequency", draw, shape)
        self.decay_log_step = self.param("decay_log_step", log_uniform(self.step_min, self.step_max), shape[:1])
        self.input_real = self.param("input_real", constant(weights.real), shape)
        self.input_imaginary = self.param("input_imaginary", constant(weights.imag), shape)
        self.output_real = self.param("output_real", nn.initializers.normal(0.5**0.5), shape)
        self.output_imaginary = self.param("output_imaginary", nn.initializers.normal(0.5**0.5), shape)
        self.skip = self.param("skip", nn.initializers.normal(1.0), shape[:1])

    def initial_state(self) -> Complex:
        zero = jnp.zeros((self.width, self.state // 2), jnp.float32)
        return Complex(zero, zero)

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        system, weights, inputs = self._system(xs)
        if reset is None and self._convolves(xs.shape[0]):
            ys, final = self._convolved(system, weights, inputs, state)
        else:
            added = jax.tree.map(lambda gain: jnp.expand_dims(gain, 0) * jnp.expand_dims(inputs, -1), system.gain)
            method = "auto" if self.method == "convolution" else self.method
            states, final = diagonal_states(system.decay, added, state, reset, method, self.chunk)
            ys = 2.0 * (
                jnp.einsum("twn,wn->tw", states.real, weights.real, precision=lax.Precision.HIGHEST)
                - jnp.einsum("twn,wn->tw", states.imaginary, weights.imag, precision=lax.Precision.HIGHEST)
            )
        return self._output(xs, ys, inputs), final

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        state = check_state(self, state)
        system, weights, inputs = self._system(x)
        added = jax.tree.map(lambda gain: gain * jnp.expand_dims(inputs, -1), system.gain)
        after = state_one_later(system.decay, added, state)
        y = 2.0 * jnp.sum((weights * as_complex(after)).real, -1)
        return self._output(x, y, inputs), like(after, state)

    def _system(self, xs: jax.Array) -> tuple[Discretized, jax.Array, jax.Array]:
        """The discrete system with the input weights in its gain, the output weights, and the inputs in its dtype."""
        dtype = core.accumulator_dtype(core.result_dtype(xs, self.skip))
        real, imaginary = -jnp.exp(self.decay_log_rate), self.decay_frequency
        step = jnp.expand_dims(self.rate * jnp.exp(self.decay_log_step), -1).astype(dtype)
        system = discretize(Complex(real.astype(dtype), imaginary.astype(dtype)), step, self.discretization)
        into = lax.complex(self.input_real.astype(dtype), self.input_imaginary.astype(dtype))
        out = lax.complex(self.output_real.astype(dtype), self.output_imaginary.astype(dtype))
        return Discretized(system.decay, as_pair(as_complex(system.gain) * into)), out, xs.astype(dtype)

    def _convolves(self, time: int) -> bool:
        return self.method == "convolution" or (self.method == "auto" and time >= _CONVOLVED)

    def _convolved(
        self, system: Discretized, weights: jax.Array, inputs: jax.Array, state: Complex
    ) -> tuple[jax.Array, Complex]:
        decay, gain = as_complex(system.decay), as_complex(system.gain)
        before = as_complex(state).astype(decay.dtype)
        whole = (decay, gain, weights, before)
        ys, after = in_pieces(_piece, whole, inputs) if cuts(inputs.shape[0]) else _by_convolution(whole, inputs)
        return ys, like(as_pair(after), state)

    def _output(self, xs: jax.Array, ys: jax.Array, inputs: jax.Array) -> jax.Array:
        skip = jnp.broadcast_to(self.skip.astype(ys.dtype), ys.shape)
        return (ys + skip * inputs).astype(xs.dtype)


def _by_convolution(whole: tuple[jax.Array, ...], inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The response to the inputs and the free one of the state before them, and the state after them."""
    (decay, gain, weights, before), time = whole, inputs.shape[0]
    kernel = response(decay, weights * gain, time)
    free = response(decay, weights * jnp.exp(decay) * before, time)
    after = gain * state_after(decay, inputs) + jnp.exp(decay * time) * before
    return convolve(inputs, kernel.T) + free.T, after


def _piece(whole: tuple[jax.Array, ...], inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same on one device of those that time lies over."""
    decay, gain, weights, before = whole
    kept, added = on_device(jnp.exp(decay * inputs.shape[0])), gain * state_after(decay, inputs)
    before = state_before(jnp.multiply, kept, added, before)
    ys, after = _by_convolution((decay, gain, weights, before), inputs)
    return ys, of_last(after)


def s4d(
    width: int,
    *,
    state: int = 64,
    initialization: str = "lin",
    discretization: str = "zoh",
    step_min: float = 1e-3,
    step_max: float = 1e-1,
    rate: float = 1.0,
    method: str = "auto",
    chunk: int | None = None,
) -> Core:
    """A core with one diagonal system a channel (S4D), in each of them

        x' = a x + b u,    y = 2 Re(sum_n c_n x_n) + d u

    with a = -exp(log_rate) + i frequency, made discrete with a time step of its own. Parameters of the state's dynamics
    are named `decay_...`: they want a smaller learning rate and no weight decay.

    Args:
      width: channels.
      state: numbers of the state of a channel, even. `state` / 2 complex modes are kept, one of each conjugate pair.
      initialization: of the eigenvalues, n = 0 ... `state` / 2 - 1: "lin" -1/2 + i pi n; "inv" -1/2 + i (N / pi)
        (N / (2 n + 1) - 1); "legs" those of the normal part of HiPPO-LegS, with half its input vector; "real" -(n + 1);
        "random" -1/2 + i times a standard normal number.
      discretization: "zoh" or "bilinear"; see `sequence.discretize`.
      step_min, step_max: the range of the time steps at first, uniform in the logarithm.
      rate: multiplies the time steps. Parameters trained with 1 run with 2 on a series sampled half as often.
      method: "convolution" by FFT, in memory (time width + width `state` sqrt(time)); "sequential", "chunked",
        "associative" or "parallel" for the recurrence, as in `scan.affine`, in memory (time width `state`); "auto" for
        the convolution of 16 times or more. With resets the recurrence runs in place of a convolution.
        A convolution spreads a NaN over all times.
      chunk: steps of a chunk for "chunked".

    Returns:
      a core whose state is a `scan.Complex` of (width, `state` / 2) arrays.

    Raises:
      ValueError: if an option is not one of those above.

    >>> net = s4d(width=3, state=4)
    >>> xs = jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.real.shape
    ((5, 3), (3, 2))

    Source: Gu, Gupta, Goel and Re (2022), sections 3 and 4.
    """
    name = "sequence.s4d"
    check_system(name, width, state, initialization, discretization, step_min, step_max, rate)
    check_choice(name, "method", method, ("convolution", *METHODS))
    check_chunk(name, chunk)
    return _S4D(width, state, initialization, discretization, step_min, step_max, rate, method, chunk)
