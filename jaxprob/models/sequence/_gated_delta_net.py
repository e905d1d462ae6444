"""The gated DeltaNet: an associative memory in which a key's new value replaces the old one, and which forgets.

Source: Yang, Kautz and Hatamizadeh (2025), "Gated delta networks: improving Mamba2 with delta rule"; Yang et al.
(2024), "Parallelizing linear transformers with the delta rule over sequence length", for the form without decay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob.core import sigmoid
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._delta_rule import delta_rule
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._mamba2 import decay_parameters, log_decays
from jaxprob.models.sequence._memory import Memory, check_memory, unit


class _GatedDeltaNet(Memory):
    """Unit queries and keys; a writing rate and a decay of each head."""

    factory = "gated_delta_net"

    def setup(self) -> None:
        super().setup()
        self.project_rate = Linear(self.heads, bias=False, wide=True)
        if self.gate:
            self.project_decay = Linear(self.heads, bias=False, wide=True)
            self.decay_log_rate, self.decay_step_bias = decay_parameters(self, self.heads)

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
        rate = sigmoid(self.project_rate(xs).astype(jnp.float32))
        log_decay = None
        if self.gate:
            steps = self.project_decay(xs).astype(jnp.float32)
            _, log_decay = log_decays(steps, self.decay_log_rate, self.decay_step_bias)
        inputs = (unit(queries), unit(keys), values, rate, log_decay)
        return delta_rule(*inputs, memory, reset, chunk=self.chunk, method=method)


def gated_delta_net(
    width: int,
    heads: int = 4,
    *,
    key_width: int | None = None,
    value_width: int | None = None,
    gate: bool = True,
    convolution: int = 4,
    chunk: int = 64,
    method: str = "auto",
) -> Core:
    """A memory that is corrected towards each value as it comes, and forgets at a rate that the input chooses.

        S_t = a_t (I - r_t k_t k_t^T) S_{t-1} + r_t k_t v_t^T,  y_t = W (norm(S_t^T q_t) * silu(V x_t)),
        r_t = sigmoid(R x_t),  a_t = exp(-exp(l) softplus(D x_t + d))

    with queries and keys of length one, all three behind a short convolution.

    Args:
      width: numbers of an input and an output.
      heads: memories side by side.
      key_width, value_width: numbers of a key and of a value of one head; width / heads by default. A memory holds at
        most `key_width` independent keys.
      gate: False for the plain DeltaNet: a_t = 1 and no silu gate.
      convolution: taps of the short causal convolution in front of queries, keys and values; 1 for none.
      chunk: steps of a chunk.
      method: "chunked" (what "auto" takes) or "sequential".

    Returns:
      a core, whose state is a `MemoryState`.

    Raises:
      ValueError: if a number is not positive, the heads do not divide the width, or there is no such method.

    >>> net = gated_delta_net(width=8, heads=2)
    >>> xs = jnp.ones((5, 8))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.memory.shape
    ((5, 8), (2, 4, 4))

    Source: Yang, Kautz and Hatamizadeh (2025), section 3.4.
    """
    key, value = check_memory(
        "sequence.gated_delta_net", width, heads, key_width, value_width, convolution, chunk, method
    )
    return _GatedDeltaNet(width, heads, key, value, gate, convolution, chunk, method)
