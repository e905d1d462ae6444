"""Mamba-2: a state-space layer whose decay, input and output maps depend on the input, with one decay a head.

Source: Dao and Gu (2024), "Transformers are SSMs: generalized models and efficient algorithms through structured state
space duality", section 7.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob.core import bad_value, check_whole, inverse_softplus, random, softplus
from jaxprob.models.sequence._chunks import check_chunks
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._layers import Linear, Norm
from jaxprob.models.sequence._memory import MemoryState
from jaxprob.models.sequence._short_convolution import ShortConvolution, convolution_state
from jaxprob.models.sequence._ssd import state_space_duality

# Sizes of a step and rates of decay at first, as in the reference code.
_STEPS = (1e-3, 1e-1)
_RATES = (1.0, 16.0)


def decay_parameters(module: nn.Module, heads: int) -> tuple[jax.Array, jax.Array]:
    """The logarithm of each head's rate of decay, and what is added before the softplus of its step."""

    def log_rate(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.log(random.uniform(key, shape, dtype, *_RATES))

    def step_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        low, high = (math.log(x) for x in _STEPS)
        return inverse_softplus(jnp.exp(random.uniform(key, shape, dtype, low, high)))

    return (
        module.param("decay_log_rate", log_rate, (heads,), jnp.float32),
        module.param("decay_step_bias", step_bias, (heads,), jnp.float32),
    )


def log_decays(steps: jax.Array, log_rate: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sizes of the steps, softplus(steps + bias), and logarithms of the decays; both (time, heads)."""
    log_rate, bias = (jnp.expand_dims(x.astype(steps.dtype), 0) for x in (log_rate, bias))
    sizes = softplus(steps + bias)
    return sizes, -sizes * jnp.exp(log_rate)


class _Mamba2(Core):
    """In-projection, short convolution, state-space duality, gated norm, out-projection."""

    state_size: int = 64
    heads: int = 1
    head_width: int = 64
    groups: int = 1
    convolution: int = 4
    chunk: int = 64
    method: str = "auto"

    factory = "mamba2"
    mixes_channels = True
    runs_in_pieces = True

    def setup(self) -> None:
        inner = self.heads * self.head_width
        self.project_in = Linear(inner + self._channels + self.heads, bias=False, wide=True)
        self.convolve = ShortConvolution(self.convolution, self._channels)
        self.decay_log_rate, self.decay_step_bias = decay_parameters(self, self.heads)
        self.skip = self.param("skip", nn.initializers.ones, (self.heads,), jnp.float32)
        self.norm = Norm("rms")
        self.project_out = Linear(self.width, bias=False)

    @property
    def _channels(self) -> int:
        """Of the short convolution: inputs, and how they enter and leave the state."""
        return self.heads * self.head_width + 2 * self.groups * self.state_size

    def initial_state(self) -> MemoryState:
        return MemoryState(
            convolution_state(self.convolution, self._channels),
            jnp.zeros((self.heads, self.state_size, self.head_width), jnp.float32),
        )

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        return self._mixed(xs, state, reset, self.method)

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        ys, state = self._mixed(jnp.expand_dims(x, 0), check_state(self, state), None, "sequential")
        return ys[0], state

    def _mixed(
        self, xs: jax.Array, state: MemoryState, reset: jax.Array | None, method: str
    ) -> tuple[jax.Array, MemoryState]:
        time, inner = xs.shape[0], self.heads * self.head_width
        whole = self.project_in(xs).astype(jnp.float32)
        gate, channels, steps = jnp.split(whole, (inner, inner + self._channels), 1)
        channels, window = self.convolve(channels, state.convolution, reset)
        x, b, c = jnp.split(channels, (inner, inner + self.groups * self.state_size), 1)
        x = x.reshape(time, self.heads, self.head_width)
        b, c = (part.reshape(time, self.groups, self.state_size) for part in (b, c))
        sizes, log_decay = log_decays(steps, self.decay_log_rate, self.decay_step_bias)
        entering = x * jnp.expand_dims(sizes, 2)
        ys, memory = state_space_duality(
            entering, log_decay, b, c, state.memory, reset, chunk=self.chunk, method=method
        )
        ys = ys + jnp.expand_dims(self.skip.astype(x.dtype), (0, 2)) * x
        ys = self.norm(ys.reshape(time, inner) * nn.silu(gate))
        return self.project_out(ys.astype(xs.dtype)), MemoryState(window, memory)


def mamba2(
    width: int,
    *,
    state: int = 64,
    heads: int | None = None,
    head_width: int | None = None,
    groups: int = 1,
    expand: int = 2,
    convolution: int = 4,
    chunk: int = 64,
    method: str = "auto",
) -> Core:
    """Mamba-2, whose state forgets at a rate that the input chooses.

        S_t = exp(-r d_t) S_{t-1} + d_t b_t x_t^T,  y_t = W norm((S_t^T c_t + D x_t) * silu(z_t)),
        d_t = softplus(e_t + bias)

    for each head, with x, b and c behind a short convolution, and x, b, c, z and e linear in the input.

    Args:
      width: numbers of an input and an output.
      state: numbers of the state for each channel of a head.
      heads, head_width: their product is `expand * width`. One of them is enough; by default heads are as wide as
        divides it, 64 channels at most.
      groups: heads of a group share b and c; divides the heads.
      expand: channels inside as a multiple of the width.
      convolution: taps of the short causal convolution; 1 for none.
      chunk: steps of a chunk.
      method: "chunked" (what "auto" takes) or "sequential".

    Returns:
      a core, whose state is a `MemoryState`.

    Raises:
      ValueError: if a number is not positive, `heads * head_width` is not `expand * width`, the groups do not divide
        the heads, or there is no such method.

    >>> net = mamba2(width=8, state=4, heads=2)
    >>> xs = jnp.ones((5, 8))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.memory.shape
    ((5, 8), (2, 4, 8))

    Source: Dao and Gu (2024), figure 6 (the parallel block).
    """
    name = "sequence.mamba2"
    check_whole(name, width=width, state=state, groups=groups, expand=expand, convolution=convolution)
    check_chunks(name, chunk, method)
    inner = expand * width
    if heads is None and head_width is None:
        head_width = next(size for size in range(min(64, inner), 0, -1) if inner % size == 0)
    for argument, value in (("heads", heads), ("head_width", head_width)):
        if value is not None:
            check_whole(name, **{argument: value})
            if inner % value:
                raise bad_value(name, argument, value, f"a number that divides expand * width = {inner}")
    heads = inner // head_width if heads is None and head_width is not None else heads
    assert heads is not None
    head_width = inner // heads if head_width is None else head_width
    if heads * head_width != inner:
        got = f"{heads}, with heads of {head_width} channels"
        raise bad_value(name, "heads", got, f"heads * head_width = expand * width = {inner}", "Give one of the two")
    if heads % groups:
        raise bad_value(name, "groups", groups, f"a number that divides the {heads} heads")
    return _Mamba2(width, state, heads, head_width, groups, convolution, chunk, method)
