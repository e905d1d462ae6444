"""S5: one diagonal linear system in continuous time with many inputs and many outputs.

Source: Smith, Warrington and Linderman (2023), "Simplified state space layers for sequence modeling".
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._diagonal import check_system, discretize
from jaxprob.models.sequence._hippo import initial_modes
from jaxprob.models.sequence._multiple import Multiple
from jaxprob.models.sequence._options import (
    METHODS,
    check_choice,
    check_chunk,
    constant,
    log_uniform,
)
from jaxprob.scan import Complex, Exponential


class _S5(Multiple):
    """A state of `state` numbers, of which the modes with a positive frequency are kept."""

    state: int = 64
    blocks: int = 1
    initialization: str = "legs"
    discretization: str = "zoh"
    step_min: float = 1e-3
    step_max: float = 1e-1
    rate: float = 1.0
    method: str = "auto"
    chunk: int | None = None

    factory = "s5"
    multiple = 2.0

    def setup(self) -> None:
        modes = self.state // 2
        rates, frequencies = initial_modes("sequence.s5", self.initialization, self.state // self.blocks)
        self.decay_log_rate = self.param("decay_log_rate", constant(np.tile(np.log(rates), self.blocks)), (modes,))
        draw = nn.initializers.normal(1.0) if frequencies is None else constant(np.tile(frequencies, self.blocks))
        self.decay_frequency = self.param("decay_frequency", draw, (modes,))
        self.decay_log_step = self.param("decay_log_step", log_uniform(self.step_min, self.step_max), (modes,))
        # Real Gaussian B (state, width) of variance 1 / width and C (width, state) of 1 / state, in the basis of the
        # eigenvectors V: as V is unitary and has its columns in conjugate pairs, V* B and C V are complex Gaussian,
        # with independent entries and parts.
        into, out = (nn.initializers.normal(math.sqrt(0.5 / size)) for size in (self.width, self.state))
        self.input_real = self.param("input_real", into, (modes, self.width))
        self.input_imaginary = self.param("input_imaginary", into, (modes, self.width))
        self.output_real = self.param("output_real", out, (self.width, modes))
        self.output_imaginary = self.param("output_imaginary", out, (self.width, modes))
        self.skip = self.param("skip", nn.initializers.normal(1.0), (self.width,))

    @property
    def modes(self) -> int:
        """Half of the state."""
        return self.state // 2

    def system(self, dtype: Any) -> tuple[Exponential, Complex]:
        real, imaginary = -jnp.exp(self.decay_log_rate), self.decay_frequency
        step = (self.rate * jnp.exp(self.decay_log_step)).astype(dtype)
        found = discretize(Complex(real.astype(dtype), imaginary.astype(dtype)), step, self.discretization)
        return found.decay, found.gain


def s5(
    width: int,
    *,
    state: int = 64,
    blocks: int = 1,
    initialization: str = "legs",
    discretization: str = "zoh",
    step_min: float = 1e-3,
    step_max: float = 1e-1,
    rate: float = 1.0,
    method: str = "auto",
    chunk: int | None = None,
) -> Core:
    """A core with one diagonal system of many inputs and outputs (S5),

        x' = a x + B u,    y = 2 Re(C x) + d u

    with a = -exp(log_rate) + i frequency, made discrete with a time step for each mode. Parameters of the state's
    dynamics are named `decay_...`: they want a smaller learning rate and no weight decay.

    Args:
      width: inputs and outputs.
      state: numbers of the state, even. `state` / 2 complex modes are kept, one of each conjugate pair.
      blocks: number of equal blocks whose eigenvalues begin alike; `state` / `blocks` is even.
      initialization: of the eigenvalues of a block, as in `sequence.s4d`: "legs" (HiPPO-N: the normal part of
        HiPPO-LegS), "lin", "inv", "real" or "random".
      discretization: "zoh" or "bilinear"; see `sequence.discretize`.
      step_min, step_max: the range of the time steps at first, uniform in the logarithm.
      rate: multiplies the time steps. Parameters trained with 1 run with 2 on a series sampled half as often.
      method: "sequential", "chunked", "associative", "parallel" or "auto", as in `scan.affine`.
      chunk: steps of a chunk for "chunked".

    Returns:
      a core whose state is a `scan.Complex` of (`state` / 2,) arrays.

    Raises:
      ValueError: if an option is not one of those above.

    >>> net = s5(width=3, state=4)
    >>> xs = jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.real.shape
    ((5, 3), (2,))

    Source: Smith, Warrington and Linderman (2023), sections 3 and 4.
    """
    name = "sequence.s5"
    check_system(name, width, state, initialization, discretization, step_min, step_max, rate)
    core.check_whole(name, blocks=blocks)
    if state % (2 * blocks):
        raise core.bad_value(name, "blocks", blocks, f"a number that divides half of the state, {state // 2}")
    check_choice(name, "method", method, METHODS)
    check_chunk(name, chunk)
    return _S5(width, state, blocks, initialization, discretization, step_min, step_max, rate, method, chunk)
