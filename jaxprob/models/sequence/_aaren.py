"""Attention as a recurrent network: soft-max attention of a fixed query is a prefix scan with a state of fixed size.

The running maximum, normaliser and numerator of a soft-max form a monoid, so that the attention over each prefix of a
sequence comes from one scan. Source: Feng et al. (2024), "Attention as an RNN".
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.sequence._chunks import einsum
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._memory import check_heads
from jaxprob.models.sequence._time_axis import TIME, cuts, in_pieces, is_first
from jaxprob.scan.monoids import Monoid, RunningSoftmax

# Of all heads at once.
_SOFTMAX = Monoid(jax.vmap(scan.monoids.softmax.combine), scan.monoids.softmax.identity)


def attention_prefix(
    scores: Any,
    values: Any,
    state: RunningSoftmax | None = None,
    reset: Any = None,
    *,
    method: str = "auto",
    chunk: int | None = None,
) -> tuple[jax.Array, RunningSoftmax]:
    """Soft-max attention over everything up to each time.

        y_t = sum_{s <= t} exp(score_s) v_s / sum_{s <= t} exp(score_s)

    Args:
      scores: (time, heads), below inf; -inf masks a value as soon as another score is finite.
      values: (time, heads, value)
      state: of what came before: `max` (heads,), `sum` (heads,) and `numerator` (heads, value). Nothing by default.
      reset: booleans (time,): where true nothing came before.
      method, chunk: as for `scan.associative`.

    Returns:
      ys (time, heads, value) in the dtype of `values`, and the state after the last step, in float32 at least.

    Raises:
      ValueError: if shapes do not fit, or there is no such method.

    >>> ys, state = attention_prefix(jnp.zeros((3, 1)), jnp.array([[[1.0]], [[2.0]], [[6.0]]]))
    >>> ys[:, 0, 0].tolist()
    [1.0, 1.5, 3.0]

    Source: Feng et al. (2024), section 3.2.
    """
    name = "sequence.attention_prefix"
    shape = jnp.shape(values)
    if len(shape) != 3 or shape[0] == 0:
        raise core.bad_value(name, "values", f"of shape {shape}", "(time, heads, value), at least one time")
    if jnp.shape(scores) != shape[:2]:
        raise core.bad_value(name, "scores", f"of shape {jnp.shape(scores)}", f"(time, heads) = {shape[:2]}")
    dtype = core.accumulator_dtype(core.result_dtype(scores, values))
    score, value = (jnp.asarray(x).astype(dtype) for x in (scores, values))
    elements = RunningSoftmax(score, jnp.ones_like(score), value)
    fresh = nothing(shape[1], shape[2], dtype)
    if state is not None:
        state = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), state)
        core.check_same_structure(name, "state", state, fresh)
    in_parts = cuts(shape[0])

    def run(state: RunningSoftmax | None, xs: Any) -> tuple[RunningSoftmax, RunningSoftmax]:
        elements, reset = xs
        if state is not None:
            # The start becomes part of the first element: resets go to nothing, never to it.
            first = jax.tree.map(lambda x: x[0], elements)
            goes_on = is_first() if in_parts else jnp.bool_(True)
            goes_on = goes_on if reset is None else goes_on & ~reset[0]
            joined = jax.tree.map(lambda x, y: jnp.where(goes_on, y, x), first, _SOFTMAX.combine(state, first))
            elements = jax.tree.map(lambda x, y: x.at[0].set(y), elements, joined)
        axis = TIME if in_parts else None
        found = scan.associative(_SOFTMAX, elements, reset=reset, method=method, chunk=chunk, axis_name=axis)
        return found.states, found.final

    xs = (elements, None if reset is None else jnp.asarray(reset))
    states, final = in_pieces(run, state, xs) if in_parts else run(state, xs)
    ys = states.numerator / jnp.expand_dims(states.sum, 2)
    return ys.astype(jnp.result_type(values)), final


def nothing(heads: int, value_width: int, dtype: Any = jnp.float32) -> RunningSoftmax:
    """The soft-max of no values."""
    zeros = jnp.zeros((heads,), dtype)
    return RunningSoftmax(zeros - jnp.inf, zeros, jnp.zeros((heads, value_width), dtype))


class _Aaren(Core):
    """Keys and values of each head, and a query that is a parameter."""

    heads: int = 1
    method: str = "auto"
    chunk: int | None = None

    factory = "aaren"
    mixes_channels = True
    runs_in_pieces = True

    def setup(self) -> None:
        self.query = self.param("query", nn.initializers.normal(1.0), (self.heads, self._share), jnp.float32)
        self.project_in = Linear(2 * self.width, bias=False, wide=True)
        self.project_out = Linear(self.width, bias=False)

    @property
    def _share(self) -> int:
        return self.width // self.heads

    def initial_state(self) -> RunningSoftmax:
        return nothing(self.heads, self._share)

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        return self._mixed(xs, state, reset, self.method)

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        ys, state = self._mixed(jnp.expand_dims(x, 0), check_state(self, state), None, "sequential")
        return ys[0], state

    def _mixed(
        self, xs: jax.Array, state: RunningSoftmax, reset: jax.Array | None, method: str
    ) -> tuple[jax.Array, RunningSoftmax]:
        both = self.project_in(xs).astype(jnp.float32).reshape(xs.shape[0], 2, self.heads, self._share)
        scores = einsum("thd,hd->th", both[:, 0], self.query.astype(both.dtype) * self._share**-0.5)
        ys, state = attention_prefix(scores, both[:, 1], state, reset, method=method, chunk=self.chunk)
        return self.project_out(ys.reshape(xs.shape).astype(xs.dtype)), state


def aaren(width: int, heads: int = 4, *, method: str = "auto", chunk: int | None = None) -> Core:
    """Soft-max attention of a learned query over all inputs so far, with a state that does not grow.

        y_t = W sum_{s <= t} softmax_s(q . K x_s / sqrt(d)) V x_s

    for each head, of d = width / heads numbers.

    Args:
      width: numbers of an input and an output.
      heads: queries, each with keys and values of its own; divides the width.
      method, chunk: as for `scan.associative`.

    Returns:
      a core, whose state is a `scan.monoids.RunningSoftmax` of all heads.

    Raises:
      ValueError: if a number is not positive, or the heads do not divide the width.

    >>> net = aaren(width=8, heads=2)
    >>> xs = jnp.ones((5, 8))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.numerator.shape
    ((5, 8), (2, 4))

    Source: Feng et al. (2024), section 3.3.
    """
    core.check_whole("sequence.aaren", width=width, heads=heads)
    check_heads("sequence.aaren", width, heads)
    return _Aaren(width, heads, method, chunk)
