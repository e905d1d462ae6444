"""What S5 and LRU share: one diagonal complex system that all inputs drive and all outputs read.

Source: Smith, Warrington and Linderman (2023), "Simplified state space layers for sequence modeling", section 3;
Orvieto et al. (2023), "Resurrecting recurrent neural networks for long sequences", section 3.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._diagonal import as_complex, diagonal_states, like, state_one_later
from jaxprob.models.sequence._layers import own
from jaxprob.scan import Complex, Exponential


class Multiple(Core):
    """x_t = exp(decay) x_{t-1} + gain (B u_t), y_t = multiple Re(C x_t) + d u_t.

    Subclasses give `modes` and `system`, have the attributes `method` and `chunk`, and set the parameters `input_real`
    and `input_imaginary` (modes, width), `output_real` and `output_imaginary` (width, modes) and `skip` (width,).
    """

    # Two where one mode of each conjugate pair is kept.
    multiple = 1.0
    runs_in_pieces = True

    @property
    def modes(self) -> int:
        """The number of complex modes kept."""
        raise NotImplementedError

    def system(self, dtype: Any) -> tuple[Exponential, Complex]:
        """The logarithms of the decays and the gains, (modes,) in this dtype."""
        raise NotImplementedError

    def initial_state(self) -> Complex:
        zero = jnp.zeros(self.modes, jnp.float32)
        return Complex(zero, zero)

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        decay, added = self._driven(xs)
        states, final = diagonal_states(decay, added, state, reset, self.method, self.chunk)
        return self._read(xs, states), final

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        state = check_state(self, state)
        decay, added = self._driven(x)
        after = state_one_later(decay, added, state)
        return self._read(x, after), like(after, state)

    def _driven(self, xs: jax.Array) -> tuple[Exponential, Complex]:
        """The decays, and what the inputs add to the state: gain (B u)."""
        dtype = core.accumulator_dtype(core.result_dtype(xs, self.skip))
        decay, gain = self.system(dtype)
        # The gain multiplies B, which is smaller than what the inputs add.
        inputs = Complex(self.input_real.astype(dtype), self.input_imaginary.astype(dtype))
        into = jnp.expand_dims(as_complex(gain), 1) * as_complex(inputs)
        added = product(xs, jnp.concatenate([into.real, into.imag])).astype(dtype)
        return decay, Complex(*jnp.split(added, 2, -1))

    def _read(self, xs: jax.Array, states: Complex) -> jax.Array:
        out = jnp.concatenate([self.output_real, -self.output_imaginary], -1)
        ys = self.multiple * product(jnp.concatenate([states.real, states.imaginary], -1), out)
        return (ys + jnp.broadcast_to(self.skip.astype(ys.dtype), ys.shape) * xs.astype(ys.dtype)).astype(xs.dtype)


def product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x W^T over the last axis: with factors in the dtype of `x` and sums in float32 at least."""
    sums = core.accumulator_dtype(x.dtype)
    weights = own(weights.astype(x.dtype).T, x)
    return jnp.matmul(x, weights, precision=lax.Precision.HIGHEST, preferred_element_type=sums)
