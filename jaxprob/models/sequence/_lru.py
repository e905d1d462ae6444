"""LRU, the linear recurrent unit: a diagonal complex recurrence in discrete time, stable by its parameters.

Source: Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu and De (2023), "Resurrecting recurrent neural networks for long
sequences".
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._multiple import Multiple
from jaxprob.models.sequence._options import METHODS, check_choice, check_chunk
from jaxprob.scan import Complex, Exponential


class _LRU(Multiple):
    """Decays exp(-exp(log_rate) + i exp(log_phase)), and inputs scaled so that the state keeps their size."""

    state: int = 64
    radius_min: float = 0.0
    radius_max: float = 0.99
    phase_max: float = 2.0 * math.pi
    method: str = "auto"
    chunk: int | None = None

    factory = "lru"

    def setup(self) -> None:
        ring = _log_rates(self.radius_min, self.radius_max)
        self.decay_log_rate = self.param("decay_log_rate", ring, (self.state,))
        self.decay_log_phase = self.param("decay_log_phase", _log_phases(self.phase_max), (self.state,))
        into, out = (nn.initializers.normal(math.sqrt(1.0 / size)) for size in (2 * self.width, self.state))
        self.input_real = self.param("input_real", into, (self.state, self.width))
        self.input_imaginary = self.param("input_imaginary", into, (self.state, self.width))
        self.output_real = self.param("output_real", out, (self.width, self.state))
        self.output_imaginary = self.param("output_imaginary", out, (self.width, self.state))
        self.skip = self.param("skip", nn.initializers.normal(1.0), (self.width,))

    @property
    def modes(self) -> int:
        """The state, all of whose modes are kept."""
        return self.state

    def system(self, dtype: Any) -> tuple[Exponential, Complex]:
        rate = jnp.exp(self.decay_log_rate.astype(dtype))
        gain = core.sqrt_one_minus_exp(2.0 * rate)
        return Exponential(-rate, jnp.exp(self.decay_log_phase.astype(dtype))), Complex(gain, jnp.zeros_like(gain))


def _log_rates(low: float, high: float) -> Any:
    """An initialiser: log(-log |decay|) with the decays uniform in area between two circles."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        # Away from zero, whose logarithm would be a decay that no gradient moves.
        square = core.random.uniform(key, shape, dtype, max(low**2, 1e-12 * high**2), high**2)
        return jnp.log(-0.5 * jnp.log(square))

    return make


def _log_phases(high: float) -> Any:
    """An initialiser: logarithms of uniform phases."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.log(core.random.uniform(key, shape, dtype, 1e-6 * high, high))

    return make


def lru(
    width: int,
    *,
    state: int = 64,
    radius_min: float = 0.0,
    radius_max: float = 0.99,
    phase_max: float = 2.0 * math.pi,
    method: str = "auto",
    chunk: int | None = None,
) -> Core:
    """A core with one diagonal recurrence of many inputs and outputs (LRU), in discrete time

        x_t = a x_{t-1} + sqrt(1 - |a|^2) B u_t,    y_t = Re(C x_t) + d u_t

    with a = exp(-exp(log_rate) + i exp(log_phase)), which no step of an optimiser makes unstable. The factor before B
    follows a, where the paper takes it as a parameter that begins there. Parameters of the state's dynamics are named
    `decay_...`: they want a smaller learning rate and no weight decay.

    Args:
      width: inputs and outputs.
      state: complex modes of the state; all are kept, without conjugates.
      radius_min, radius_max: the ring, uniform in area, from which a is drawn at first: 0 <= min < max < 1.
      phase_max: the largest phase at first, radians; smaller ones for long series.
      method: "sequential", "chunked", "associative", "parallel" or "auto", as in `scan.affine`.
      chunk: steps of a chunk for "chunked".

    Returns:
      a core whose state is a `scan.Complex` of (`state`,) arrays.

    Raises:
      ValueError: if an option is not one of those above.

    >>> net = lru(width=3, state=4)
    >>> xs = jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.real.shape
    ((5, 3), (4,))

    Source: Orvieto et al. (2023), section 3 and appendix A.
    """
    name = "sequence.lru"
    core.check_whole(name, width=width)
    core.check_whole(name, state=state)
    for argument, value in (("radius_min", radius_min), ("radius_max", radius_max)):
        if not core.is_number(value) or not 0 <= value < 1:
            raise core.bad_value(name, argument, value, "a number from 0 to less than 1")
    if radius_min >= radius_max:
        raise core.bad_value(name, "radius_min", radius_min, f"less than radius_max, {radius_max}")
    core.check_positive(name, phase_max=phase_max)
    check_choice(name, "method", method, METHODS)
    check_chunk(name, chunk)
    return _LRU(width, state, radius_min, radius_max, phase_max, method, chunk)
