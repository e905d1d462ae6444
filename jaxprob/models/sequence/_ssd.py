"""State-space duality: a state-space layer with one decay a head, as products of matrices inside chunks of time.

The recurrence is a masked quadratic form, like attention. Inside a chunk that form is computed; between chunks the
state is carried. Source: Dao and Gu (2024), "Transformers are SSMs: generalized models and efficient algorithms through
structured state space duality", sections 3 and 6.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.core import bad_value
from jaxprob.models.sequence._chunks import arguments, einsum, over_chunks, over_pieces, products
from jaxprob.models.sequence._core import recurrent_states


def state_space_duality(
    x: Any,
    log_decay: Any,
    b: Any,
    c: Any,
    state: Any = None,
    reset: Any = None,
    *,
    chunk: int = 64,
    method: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Outputs of a linear system whose state is a matrix and whose decay is one number a head.

        S_t = exp(log_decay_t) S_{t-1} + b_t x_t^T,  y_t = S_t^T c_t

    Args:
      x: (time, heads, head_width), inputs.
      log_decay: (time, heads), up to 0; -inf forgets everything.
      b: (time, groups, state), how an input enters the state. The heads of a group, neighbours, share it.
      c: (time, groups, state), how an output reads the state.
      state: (heads, state, head_width), before the first step; zeros by default.
      reset: booleans (time,): where true the state is zero before that step.
      chunk: steps of a chunk; it need not divide time.
      method: "chunked" (what "auto" takes) or "sequential". Both give the same numbers; a number that is not finite
        spreads over its chunk.

    Returns:
      ys (time, heads, head_width) in the dtype of `x`, and the state after the last step, in float32 at least.

    Raises:
      ValueError: if shapes do not fit, the groups do not divide the heads, or there is no such method.

    >>> x, b = jnp.ones((3, 1, 1)), jnp.ones((3, 1, 1))
    >>> ys, state = state_space_duality(x, jnp.full((3, 1), jnp.log(0.5)), b, b)
    >>> ys[:, 0, 0].tolist()
    [1.0, 1.5, 1.75]

    Source: Dao and Gu (2024), listing 1.
    """
    name = "sequence.state_space_duality"
    arrays = {
        "x": (x, "time heads head_width"),
        "log_decay": (log_decay, "time heads"),
        "b": (b, "time groups state"),
        "c": (c, "time groups state"),
    }
    given = arguments(name, arrays, state, "heads state head_width", reset, chunk, method)
    (xs, log_decay, b, c), groups = given.arrays, jnp.shape(b)[1]
    if groups == 0 or xs.shape[1] % groups:
        raise bad_value(name, "b", f"of {groups} groups", f"a number that divides the {xs.shape[1]} heads")

    def run(state: jax.Array, x: jax.Array, rest: Any, reset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if given.chunked:
            return over_chunks(_chunk, state, (x, *rest), reset, chunk)
        return recurrent_states(_step, state, (x, *rest), jnp.zeros_like(state), reset)

    ys, final = over_pieces(run, given.state, xs, (log_decay, b, c), given.reset, True)
    return ys.astype(jnp.result_type(x)), final


def _by_group(x: jax.Array, groups: int, axis: int) -> jax.Array:
    """The axis of heads split into groups and the heads of each."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])


def _chunk(state: jax.Array, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, jax.Array]:
    """One chunk of time."""
    segment, (x, log_decay, b, c) = inputs
    groups, decays = b.shape[1], products(log_decay, segment)
    grouped, held = _by_group(x, groups, 1), _by_group(state, groups, 0)
    weights = jnp.expand_dims(einsum("tgn,sgn->gts", c, b), 1) * _by_group(decays.pairs, groups, 0)
    inside = einsum("grts,sgrp->tgrp", weights, grouped).reshape(x.shape)
    before = einsum("tgn,grnp->tgrp", c, held).reshape(x.shape)
    y = inside + jnp.expand_dims(decays.start, 2) * before
    added = einsum("sgn,sgrp->grnp", b, _by_group(jnp.expand_dims(decays.end, 2) * x, groups, 1))
    return jnp.expand_dims(decays.whole, (1, 2)) * state + added.reshape(state.shape), y


def _step(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """One time."""
    x, log_decay, b, c = inputs
    b, c = (jnp.repeat(part, x.shape[0] // part.shape[0], 0) for part in (b, c))
    state = jnp.expand_dims(jnp.exp(log_decay), (1, 2)) * state + jnp.expand_dims(b, 2) * jnp.expand_dims(x, 1)
    return state, einsum("hn,hnp->hp", c, state)
