"""What cores with a matrix for a state have in common: projections, a short convolution, a norm, an output gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core import bad_value, check_whole
from jaxprob.models.sequence._chunks import check_chunks
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._layers import Linear, Norm
from jaxprob.models.sequence._short_convolution import ShortConvolution, convolution_state


class MemoryState(NamedTuple):
    """What a core with a matrix for a state keeps.

    Attributes:
      convolution: (taps - 1, channels), the last inputs of the short convolution; None where there is none.
      memory: (heads, key, value)
    """

    convolution: jax.Array | None
    memory: jax.Array


class Memory(Core):
    """Queries, keys and values of each head, a linear recurrence of their products, and the way out.

    Subclasses give `recur`, and their own parameters in `setup`.
    """

    heads: int = 1
    key_width: int = 1
    value_width: int = 1
    gate: bool = True
    convolution: int = 1
    chunk: int = 64
    method: str = "auto"

    mixes_channels = True
    runs_in_pieces = True

    def setup(self) -> None:
        self.project_in = Linear(self._channels, bias=False, wide=True)
        self.convolve = ShortConvolution(self.convolution, self._channels)
        self.norm = Norm("rms")
        if self.gate:
            self.project_gate = Linear(self.heads * self.value_width, bias=False, wide=True)
        self.project_out = Linear(self.width, bias=False)

    @property
    def _channels(self) -> int:
        return self.heads * (2 * self.key_width + self.value_width)

    def initial_state(self) -> MemoryState:
        return MemoryState(
            convolution_state(self.convolution, self._channels),
            jnp.zeros((self.heads, self.key_width, self.value_width), jnp.float32),
        )

    def recur(
        self,
        xs: jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        memory: jax.Array,
        reset: jax.Array | None,
        method: str,
    ) -> tuple[jax.Array, jax.Array]:
        """What is read at each time, (time, heads, value), and the last memory."""
        raise NotImplementedError

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        return self._mixed(xs, state, reset, self.method)

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        ys, state = self._mixed(jnp.expand_dims(x, 0), check_state(self, state), None, "sequential")
        return ys[0], state

    def _mixed(
        self, xs: jax.Array, state: MemoryState, reset: jax.Array | None, method: str
    ) -> tuple[jax.Array, MemoryState]:
        channels, window = self.convolve(self.project_in(xs).astype(jnp.float32), state.convolution, reset)
        ends = (self.heads * self.key_width, 2 * self.heads * self.key_width)
        q, k, v = (part.reshape(xs.shape[0], self.heads, -1) for part in jnp.split(channels, ends, 1))
        ys, memory = self.recur(xs, q, k, v, state.memory, reset, method)
        ys = self.norm(ys)
        if self.gate:
            ys = ys * nn.silu(self.project_gate(xs).astype(jnp.float32)).reshape(ys.shape)
        return self.project_out(ys.reshape(xs.shape[0], -1).astype(xs.dtype)), MemoryState(window, memory)


def unit(x: jax.Array) -> jax.Array:
    """Vectors on the last axis, of length one; a zero vector stays as it is."""
    return x * lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-6)


def check_memory(
    function: str, width: Any, heads: Any, key_width: Any, value_width: Any, convolution: Any, chunk: Any, method: Any
) -> tuple[int, int]:
    """Checks what the factories have in common.

    Returns:
      the numbers of a key and of a value of one head, `width / heads` where they are not given.
    """
    check_whole(function, width=width, heads=heads, convolution=convolution)
    check_chunks(function, chunk, method)
    given = {"key_width": key_width, "value_width": value_width}
    if None in given.values():
        check_heads(function, width, heads, " ".join(name for name, value in given.items() if value is None))
    check_whole(function, **{name: value for name, value in given.items() if value is not None})
    share = width // heads
    return (share if key_width is None else key_width), (share if value_width is None else value_width)


def check_heads(function: str, width: int, heads: int, todo: str = "") -> None:
    """Checks that the heads divide the width."""
    if width % heads:
        todo = f"Or give {todo.replace(' ', ' and ')}" if todo else ""
        raise bad_value(function, "heads", heads, f"a number that divides the width {width}", todo)
