"""Gated linear attention: a matrix memory whose key channels each forget at a rate that the input chooses.

Source: Yang, Wang, Shen, Panda and Kim (2024), "Gated linear attention transformers with hardware-efficient training";
Katharopoulos, Vyas, Pappas and Fleuret (2020), "Transformers are RNNs", for the plain form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob.core import check_whole, log_sigmoid
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._linear_attention import linear_attention
from jaxprob.models.sequence._memory import Memory, check_memory

# The root that is taken of a gate, so that memories are long at first.
_TEMPERATURE = 16.0


class _GatedLinearAttention(Memory):
    """Queries, keys and values; decays of low rank in the input."""

    rank: int = 16

    factory = "gated_linear_attention"

    def setup(self) -> None:
        super().setup()
        if self.gate:
            self.decay_down = Linear(self.rank, bias=False, wide=True)
            self.decay_up = Linear(self.heads * self.key_width)

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
        log_decay = None
        if self.gate:
            logits = self.decay_up(self.decay_down(xs)).astype(jnp.float32)
            log_decay = (log_sigmoid(logits) / _TEMPERATURE).reshape(keys.shape)
        scaled = queries * self.key_width**-0.5
        return linear_attention(scaled, keys, values, log_decay, memory, reset, chunk=self.chunk, method=method)


def gated_linear_attention(
    width: int,
    heads: int = 4,
    *,
    key_width: int | None = None,
    value_width: int | None = None,
    gate: bool = True,
    rank: int = 16,
    convolution: int = 1,
    chunk: int = 64,
    method: str = "auto",
) -> Core:
    """Linear attention whose memory forgets, channel by channel, at a rate that the input chooses.

        S_t = diag(a_t) S_{t-1} + k_t v_t^T,  y_t = W (norm(S_t^T q_t) * silu(V x_t)),
        a_t = sigmoid(B A x_t + b)^(1/16)

    Args:
      width: numbers of an input and an output.
      heads: memories side by side.
      key_width, value_width: numbers of a key and of a value of one head; width / heads by default.
      gate: False for plain linear attention: a_t = 1 and no silu gate.
      rank: of B A.
      convolution: taps of a short causal convolution in front of queries, keys and values; 1 for none.
      chunk: steps of a chunk, best a multiple of 16.
      method: "chunked" (what "auto" takes) or "sequential".

    Returns:
      a core, whose state is a `MemoryState`.

    Raises:
      ValueError: if a number is not positive, the heads do not divide the width, or there is no such method.

    >>> net = gated_linear_attention(width=8, heads=2)
    >>> xs = jnp.ones((5, 8))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.memory.shape
    ((5, 8), (2, 4, 4))

    Source: Yang et al. (2024), section 4.4. The norm here is that of root mean squares, and keys have as many channels
    as values.
    """
    name = "sequence.gated_linear_attention"
    key, value = check_memory(name, width, heads, key_width, value_width, convolution, chunk, method)
    check_whole(name, rank=rank)
    return _GatedLinearAttention(width, heads, key, value, gate, convolution, chunk, method, rank)
