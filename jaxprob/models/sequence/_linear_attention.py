"""Linear attention with a decay for each key channel, in chunks that are stable for any decay.

Weights exp(sum of log decays) of pairs of times do not factorise into one number a time without overflow. They do
relative to a time in between: blocks of a chunk meet at the start of the later one, and inside a block pairs are taken
one by one. Source: Yang, Wang, Shen, Panda and Kim (2024), "Gated linear attention transformers with hardware-efficient
training", section 4.3 (secondary chunks).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.models.sequence._chunks import (
    Sums,
    arguments,
    connections,
    cumulative,
    einsum,
    over_chunks,
    over_pieces,
    product,
)
from jaxprob.models.sequence._core import recurrent_states
from jaxprob.models.sequence._ssd import state_space_duality

# Steps of a block, within which every pair of times has a product of its own for each channel.
_BLOCK = 16


def linear_attention(
    queries: Any,
    keys: Any,
    values: Any,
    log_decay: Any = None,
    state: Any = None,
    reset: Any = None,
    *,
    chunk: int = 64,
    method: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Causal linear attention, with a decay for each key channel where one is given.

        S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T,  y_t = S_t^T q_t

    Args:
      queries: (time, heads, key)
      keys: (time, heads, key)
      values: (time, heads, value)
      log_decay: (time, heads, key), up to 0; -inf forgets everything. None for no decay.
      state: (heads, key, value), before the first step; zeros by default.
      reset: booleans (time,): where true the state is zero before that step.
      chunk: steps of a chunk, best a multiple of 16; it need not divide time.
      method: "chunked" (what "auto" takes) or "sequential". Both give the same numbers; a number that is not finite
        spreads over its chunk.

    Returns:
      ys (time, heads, value) in the dtype of `values`, and the state after the last step, in float32 at least.

    Raises:
      ValueError: if shapes do not fit or there is no such method.

    >>> ones = jnp.ones((3, 1, 1))
    >>> ys, state = linear_attention(ones, ones, ones, jnp.log(0.5) * ones)
    >>> ys[:, 0, 0].tolist()
    [1.0, 1.5, 1.75]

    Source: Yang et al. (2024), equation 4; Katharopoulos et al. (2020), "Transformers are RNNs", without a decay.
    """
    arrays = {
        "queries": (queries, "time heads key"),
        "keys": (keys, "time heads key"),
        "values": (values, "time heads value"),
        **({} if log_decay is None else {"log_decay": (log_decay, "time heads key")}),
    }
    given = arguments("sequence.linear_attention", arrays, state, "heads key value", reset, chunk, method)
    if log_decay is None:
        q, k, v = given.arrays
        none = jnp.zeros(q.shape[:2], q.dtype)
        ys, final = state_space_duality(v, none, k, q, given.state, given.reset, chunk=chunk, method=method)
    else:

        def run(state: jax.Array, v: jax.Array, rest: Any, reset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            inputs = (*rest[:2], v, rest[2])
            if given.chunked:
                return over_chunks(_chunk, state, inputs, reset, _whole_blocks(chunk, v.shape[0]))
            return recurrent_states(_step, state, inputs, jnp.zeros_like(state), reset)

        q, k, v, log_decay = given.arrays
        ys, final = over_pieces(run, given.state, v, (q, k, log_decay), given.reset, True)
    return ys.astype(jnp.result_type(values)), final


def _whole_blocks(chunk: int, time: int) -> int:
    """A chunk no longer than time, or than time filled up to whole blocks."""
    return min(chunk, time if time <= _BLOCK else -(-time // _BLOCK) * _BLOCK)


def _chunk(state: jax.Array, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, jax.Array]:
    """One chunk of time."""
    segment, (q, k, v, log_decay) = inputs
    size = q.shape[0]
    block = next(length for length in range(min(_BLOCK, size), 0, -1) if size % length == 0)
    sums = cumulative(log_decay)
    sees = connections(segment)

    def blocks(x: jax.Array) -> jax.Array:
        return x.reshape(-1, block, *x.shape[1:])

    # What is before a block: both its queries and all keys are brought to its start.
    starts = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[block - 1 : -1 : block]]), sums)
    after = jax.tree.map(lambda x: jnp.expand_dims(x, 1), starts)
    whole = jax.tree.map(lambda x: jnp.expand_dims(x, 0), sums)
    index = jnp.arange(size) // block
    earlier = jnp.expand_dims(jnp.arange(size // block), 1) > jnp.expand_dims(index, 0)
    here = blocks(q) * product(jax.tree.map(blocks, sums), after, jnp.ones((1, 1, 1, 1), bool))
    there = jnp.expand_dims(k, 0) * product(after, whole, jnp.expand_dims(earlier, (2, 3)))
    weights = einsum("ibhk,ishk->hibs", here, there).reshape(q.shape[1], size, size)
    y = einsum("hts,shv->thv", jnp.where(jnp.expand_dims(sees, 0), weights, 0), v)

    # Inside a block: pair by pair.
    def pairs(x: jax.Array, axis: int) -> jax.Array:
        return jnp.expand_dims(blocks(x), axis)

    to, of = (Sums(pairs(sums.coarse, axis), pairs(sums.fine, axis)) for axis in (2, 1))
    inside = jax.vmap(connections)(blocks(segment))
    terms = pairs(q, 2) * pairs(k, 1) * product(to, of, jnp.expand_dims(inside, (3, 4)))
    y = y + einsum("ntsh,nshv->nthv", jnp.sum(terms, -1), blocks(v)).reshape(y.shape)

    continued = jnp.expand_dims(segment == 0, (1, 2))
    first, last = (jax.tree.map(take, sums) for take in (lambda x: jnp.zeros_like(x[:1]), lambda x: x[-1:]))
    y = y + einsum("thk,hkv->thv", q * product(sums, first, continued), state)
    kept = product(last, sums, jnp.expand_dims(segment == segment[-1], (1, 2)))
    state = jnp.expand_dims(product(last, first, continued[-1:])[0], 2) * state
    return state + einsum("shk,shv->hkv", k * kept, v), y


def _step(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """One time."""
    q, k, v, log_decay = inputs
    state = jnp.expand_dims(jnp.exp(log_decay), 2) * state + jnp.expand_dims(k, 2) * jnp.expand_dims(v, 1)
    return state, einsum("hk,hkv->hv", q, state)
