"""The gated delta rule: a fast weight matrix that replaces what a key held before, in chunks of time.

Inside a chunk the corrections are the solution of a unit triangular system, one for each head: the UT form of the WY
representation of products of Householder-like matrices.
Source: Yang, Wang, Zhang, Shen and Kim (2024), "Parallelizing linear transformers with the delta rule over sequence
length"; Yang, Kautz and Hatamizadeh (2025), "Gated delta networks: improving Mamba2 with delta rule".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.models.sequence._chunks import arguments, einsum, over_chunks, over_pieces, products
from jaxprob.models.sequence._core import recurrent_states

_BLOCK = 16  # times whose systems are inverted row by row


def delta_rule(
    queries: Any,
    keys: Any,
    values: Any,
    rate: Any,
    log_decay: Any = None,
    state: Any = None,
    reset: Any = None,
    *,
    chunk: int = 64,
    method: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Reads from an associative memory that is corrected towards each value as it comes.

        S_t = a_t (I - rate_t k_t k_t^T) S_{t-1} + rate_t k_t v_t^T,  y_t = S_t^T q_t,  a_t = exp(log_decay_t)

    Args:
      queries: (time, heads, key)
      keys: (time, heads, key); stable for `rate |k|^2` from 0 to 2, so best of length one.
      values: (time, heads, value)
      rate: (time, heads), from 0 (leave the memory) to 1 (replace what the key held).
      log_decay: (time, heads), up to 0; -inf forgets everything. None for no decay.
      state: (heads, key, value), before the first step; zeros by default.
      reset: booleans (time,): where true the state is zero before that step.
      chunk: steps of a chunk; it need not divide time.
      method: "chunked" (what "auto" takes) or "sequential". Both give the same numbers; a number that is not finite
        spreads over its chunk.

    Returns:
      ys (time, heads, value) in the dtype of `values`, and the state after the last step, in float32 at least.

    Raises:
      ValueError: if shapes do not fit or there is no such method.

    >>> keys = jnp.ones((2, 1, 1))
    >>> ys, state = delta_rule(keys, keys, jnp.array([[[3.0]], [[5.0]]]), jnp.ones((2, 1)))
    >>> ys[:, 0, 0].tolist()  # the second value replaces the first
    [3.0, 5.0]

    Source: Yang, Kautz and Hatamizadeh (2025), equation 10 and section 3.3.
    """
    if log_decay is None:
        log_decay = jnp.zeros_like(rate)
    arrays = {
        "queries": (queries, "time heads key"),
        "keys": (keys, "time heads key"),
        "values": (values, "time heads value"),
        "rate": (rate, "time heads"),
        "log_decay": (log_decay, "time heads"),
    }
    given = arguments("sequence.delta_rule", arrays, state, "heads key value", reset, chunk, method)

    def run(state: jax.Array, v: jax.Array, rest: Any, reset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        inputs = (*rest[:2], v, *rest[2:])
        if given.chunked:
            return over_chunks(_chunk, state, inputs, reset, chunk)
        return recurrent_states(_step, state, inputs, jnp.zeros_like(state), reset)

    q, k, v, rate, log_decay = given.arrays
    ys, final = over_pieces(run, given.state, v, (q, k, rate, log_decay), given.reset, False)
    return ys.astype(jnp.result_type(values)), final


def _chunk(state: jax.Array, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, jax.Array]:
    """One chunk of time."""
    segment, (q, k, v, rate, log_decay) = inputs
    decays = products(log_decay, segment)
    start, end = (jnp.expand_dims(x, 2) for x in (decays.start, decays.end))
    # Corrections u_t = rate_t (v_t - what the memory held for k_t), which depend on the earlier ones of the chunk.
    earlier = jnp.tril(decays.pairs, -1) * einsum("thk,shk->hts", k, k)
    system = jnp.expand_dims(jnp.transpose(rate), 2) * earlier
    wanted = jnp.expand_dims(rate, 2) * (v - start * einsum("thk,hkv->thv", k, state))
    corrections = jax.vmap(_substitute)(system, jnp.swapaxes(wanted, 0, 1))
    weights = decays.pairs * einsum("thk,shk->hts", q, k)
    y = start * einsum("thk,hkv->thv", q, state) + einsum("hts,hsv->thv", weights, corrections)
    state = jnp.expand_dims(decays.whole, (1, 2)) * state
    return state + einsum("shk,hsv->hkv", end * k, corrections), y


def _substitute(below: jax.Array, right: jax.Array) -> jax.Array:
    """x with (I + N) x = b, for N (t, t) with nothing on its diagonal and above, and b (t, v).

    In blocks, and made of products: the LAPACK of jaxlib 0.10, given batches, waits for ever for a thread of its own
    where a CPU has few.
    """

    def backward(solve: Any, right: jax.Array) -> jax.Array:
        # The transpose, with time turned round, is a system like the others.
        return jnp.flip(_forward_substitute(jnp.flip(below, (0, 1)).T, jnp.flip(right, 0)), 0)

    return lax.custom_linear_solve(
        lambda x: x + core.matmul(below, x), right, lambda _, right: _forward_substitute(below, right), backward
    )


def _forward_substitute(below: jax.Array, right: jax.Array) -> jax.Array:
    time = below.shape[0]
    block = min(_BLOCK, time)
    extra = -time % block
    below, right = jnp.pad(below, (0, extra)), jnp.pad(right, ((0, extra), (0, 0)))
    starts = range(0, time + extra, block)
    diagonal = jnp.stack([below[i : i + block, i : i + block] for i in starts])
    eye = jnp.eye(block, dtype=below.dtype)

    def row(i: Any, inverses: jax.Array) -> jax.Array:
        known = jnp.sum(jnp.expand_dims(diagonal[:, i], 2) * inverses, 1)
        return inverses.at[:, i].set(jnp.expand_dims(eye[i], 0) - known)

    inverses = core.fori_loop(0, block, row, jnp.zeros_like(diagonal))
    found = right[:0]
    for inverse, start in zip(inverses, starts, strict=True):
        rest = right[start : start + block] - core.matmul(below[start : start + block, :start], found)
        found = jnp.concatenate([found, core.matmul(inverse, rest)])
    return found[:time]


def _step(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """One time."""
    q, k, v, rate, log_decay = inputs
    state = jnp.expand_dims(jnp.exp(log_decay), (1, 2)) * state
    correction = jnp.expand_dims(rate, 1) * (v - einsum("hk,hkv->hv", k, state))
    state = state + jnp.expand_dims(k, 2) * jnp.expand_dims(correction, 1)
    return state, einsum("hk,hkv->hv", q, state)
