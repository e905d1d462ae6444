"""Causal soft-max attention over a window of the last inputs, whose keys and values are the state.

The state is a ring buffer of fixed size. A sequence is attended block by block: the queries of a block to its own keys
and those of the window before it, so that memory grows with time, not with its square.
Source: Vaswani et al. (2017), "Attention is all you need"; Su et al. (2021), "RoFormer: enhanced transformer with
rotary position embedding"; Beltagy, Peters and Cohan (2020), "Longformer", for the sliding window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core, scan
from jaxprob.models.sequence._chunks import einsum
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._memory import check_heads

# Queries that are taken at once.
_BLOCK = 128
# The slowest rotation has 2 pi times this many steps, as in Su et al.
_SLOWEST = 10_000.0


class Cache(NamedTuple):
    """The last keys and values.

    Attributes:
      keys: (context, heads, head_width), before rotation; input number i since the last reset is at i modulo context.
      values: (context, heads, head_width)
      count: int32, the number of inputs since the last reset; from `context` on less a multiple of `context`, so that
        it stays between `context` and twice that.
    """

    keys: jax.Array
    values: jax.Array
    count: jax.Array  # type: ignore[assignment]


def _rotated(x: jax.Array, positions: np.ndarray, order: jax.Array | None = None) -> jax.Array:
    """Vectors (n, heads, d), pairs of numbers (i, i + d / 2) turned by position * 10000^(-2 i / d).

    Args:
      x: the vectors.
      positions: (n,), known when traced, so that the angles are computed in float64.
      order: (n,), indices into `positions`, where they are known later.
    """
    half = x.shape[-1] // 2
    angles = positions[:, None] * _SLOWEST ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angles)[:, None, :], x.dtype) for f in (np.cos, np.sin))
    if order is not None:
        cos, sin = cos[order], sin[order]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def _weighted(scores: jax.Array, seen: jax.Array, values: jax.Array) -> jax.Array:
    """Values weighted by the soft-max of the scores (heads, queries, keys) that are seen."""
    weights = jax.nn.softmax(jnp.where(jnp.expand_dims(seen, 0), scores, -jnp.inf), axis=-1)
    return einsum("hqk,khd->qhd", weights, values)


class _Attention(Core):
    """Queries, keys and values of each head; a window of `context` inputs, the present one among them."""

    heads: int = 1
    context: int = 1
    rotary: bool = True

    factory = "attention"
    mixes_channels = True

    def setup(self) -> None:
        self.project_in = Linear(3 * self.width, bias=False, wide=True)
        self.project_out = Linear(self.width, bias=False)

    def initial_state(self) -> Cache:
        zeros = jnp.zeros((self.context, self.heads, self.width // self.heads), jnp.float32)
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32))

    def _projected(self, xs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, scaled, keys and values (time, heads, head_width)."""
        whole = self.project_in(xs).astype(jnp.float32).reshape(xs.shape[0], 3, self.heads, -1)
        return whole[:, 0] * whole.shape[-1] ** -0.5, whole[:, 1], whole[:, 2]

    def run(self, xs: jax.Array, state: Cache, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        time, size = xs.shape[0], self.context
        q, k, v = self._projected(xs)
        begun = jnp.zeros(time, bool) if reset is None else reset
        segment = jnp.cumsum(begun, dtype=jnp.int32)
        # The ring in order of time, the latest last. What it never held, or forgot, is of no segment.
        held = [jnp.roll(x, -state.count, 0) for x in (state.keys, state.values)]
        is_held = jnp.arange(size, dtype=jnp.int32) >= size - state.count
        keys, values = (jnp.concatenate([x, y]) for x, y in zip(held, (k, v), strict=True))
        segments = jnp.concatenate([jnp.where(is_held, 0, -1), segment])

        def attend(window: int) -> jax.Array:
            first = size + 1 - window
            return self._attended(q, segment, keys[first:], values[first:], segments[first:], window)

        # With an empty cache nothing before this sequence need be looked at.
        ys = attend(size) if time >= size else lax.cond(state.count > 0, lambda: attend(size), lambda: attend(time))

        since = jnp.argmax(begun[::-1]).astype(jnp.int32) + 1
        count = jnp.where(jnp.any(begun), since, state.count + time)
        last = jnp.expand_dims(segments[time:] == segment[-1], (1, 2))
        keys, values = (jnp.roll(jnp.where(last, x[time:], 0), count, 0) for x in (keys, values))
        return self.project_out(ys.reshape(xs.shape).astype(xs.dtype)), Cache(keys, values, self._wrapped(count))

    def _attended(
        self, q: jax.Array, segment: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int
    ) -> jax.Array:
        """Attention of queries (time, ...) to keys (window - 1 + time, ...), each to the `window` up to its time."""
        time, past = q.shape[0], window - 1
        block = min(_BLOCK, time)

        def cut(x: jax.Array) -> jax.Array:
            filled = jnp.concatenate([x, jnp.zeros((-time % block, *x.shape[1:]), x.dtype)])
            return filled.reshape(-1, block, *x.shape[1:])

        ages = past + np.arange(block)[:, None] - np.arange(past + block)[None]
        near = jnp.asarray((ages >= 0) & (ages < window))

        def step(before: Any, new: Any) -> tuple[Any, jax.Array]:
            query, own, *added = new
            key, value, others = (jnp.concatenate(pair) for pair in zip(before, added, strict=True))
            seen = near & (jnp.expand_dims(own, 1) == jnp.expand_dims(others, 0))
            after = (key[block:], value[block:], others[block:])
            if self.rotary:
                query = _rotated(query, past + np.arange(block))
                key = _rotated(key, np.arange(past + block))
            return after, _weighted(einsum("qhd,khd->hqk", query, key), seen, value)

        before = (k[:past], v[:past], segments[:past])
        new = (q, segment, k[past:], v[past:], segments[past:])
        _, ys = scan.scan(jax.checkpoint(step, prevent_cse=False), before, jax.tree.map(cut, new))
        return ys.reshape(-1, *ys.shape[2:])[:time]

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        state, size = check_state(self, state), self.context
        q, k, v = self._projected(jnp.expand_dims(x, 0))
        place = state.count % size
        keys, values = (
            lax.dynamic_update_slice_in_dim(ring, new, place, 0) for ring, new in ((state.keys, k), (state.values, v))
        )
        age = (place - jnp.arange(size, dtype=jnp.int32)) % size
        seen = jnp.expand_dims(age <= state.count, 0)
        turned = _rotated(keys, -np.arange(size), age) if self.rotary else keys
        y = _weighted(einsum("qhd,khd->hqk", q, turned), seen, values)
        return self.project_out(y.reshape(x.shape).astype(x.dtype)), Cache(keys, values, self._wrapped(state.count + 1))

    def _wrapped(self, count: jax.Array) -> jax.Array:
        return jnp.where(count < self.context, count, self.context + count % self.context)


def attention(width: int, heads: int = 4, *, context: int = 1024, rotary: bool = True) -> Core:
    """Causal soft-max attention to the last `context` inputs, the present one among them.

        y_t = W sum_s softmax_s(q_t . R(t - s) k_s / sqrt(d)) v_s,  t - context < s <= t

    for each head, of d = width / heads numbers; R turns pairs of them by an angle that grows with the distance. A
    sequence longer than the context gets sliding-window attention, exactly what `step` gives.

    Args:
      width: numbers of an input and an output.
      heads: divides the width.
      context: capacity of the cache of keys and values, which is the state.
      rotary: whether queries and keys are rotated by their positions; otherwise attention knows no order.

    Returns:
      a core, whose state is a `Cache`. A number that is not finite spreads to what comes later in its block.

    Raises:
      ValueError: if a number is not positive, the heads do not divide the width, or heads to rotate have an odd width.

    >>> net = attention(width=8, heads=2, context=16)
    >>> xs = jnp.ones((5, 8))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.keys.shape, state.count.item()
    ((5, 8), (16, 2, 4), 5)

    Source: Vaswani et al. (2017), section 3.2; Su et al. (2021), equation 34.
    """
    name = "sequence.attention"
    core.check_whole(name, width=width, heads=heads, context=context)
    check_heads(name, width, heads)
    if rotary and width // heads % 2:
        todo = "Take other heads, or rotary=False"
        raise core.bad_value(name, "heads", heads, f"heads of an even width, not {width // heads}, to rotate", todo)
    return _Attention(width, heads, context, rotary)
