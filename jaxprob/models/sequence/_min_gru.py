"""minGRU and minLSTM: gates that see the inputs only, so that the recurrence is linear and runs in parallel.

The logarithm of what is kept comes from the gate itself, so that a gate that keeps 0.9999 does so in float32. Where the
paper takes cumulative sums of logarithms, which loses digits over long series, this is an affine scan.
Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi (2024), "Were RNNs all we needed?".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.sequence._cells import Gates, Initializer, Projected, check_cell, remembering
from jaxprob.models.sequence._core import Core, linear_states
from jaxprob.models.sequence._options import METHODS, check_choice, check_chunk


class _Minimal(Projected):
    """h' = keep * h + take * candidate, all three of the inputs alone."""

    positive: bool = False
    method: str = "auto"
    chunk: int | None = None

    runs_in_pieces = True

    def parts(self, gates: Gates) -> tuple[jax.Array, jax.Array]:
        """log(keep) and take * candidate."""
        raise NotImplementedError

    def candidate(self, x: jax.Array) -> jax.Array:
        """The paper's candidate, or its g that is positive."""
        return jnp.where(x >= 0, x + 0.5, core.sigmoid(x)) if self.positive else x

    def recur(self, gates: Gates, state: Any, reset: jax.Array | None) -> tuple[jax.Array, Any]:
        log_keep, increment = self.parts(gates)
        return linear_states(scan.Exponential(log_keep), increment, state, reset, method=self.method, chunk=self.chunk)

    def advance(self, gates: Gates, state: Any) -> tuple[jax.Array, Any]:
        log_keep, increment = self.parts(gates)
        state = jnp.exp(log_keep) * state + increment
        return state, state


class _MinGru(_Minimal):
    """h' = (1 - z) * h + z * candidate."""

    factory = "min_gru"
    gates = 2

    def first_biases(self) -> tuple[float | Initializer, ...]:
        return (0.0 if self.horizon is None else remembering(self.horizon, -1.0), 0.0)

    def parts(self, gates: Gates) -> tuple[jax.Array, jax.Array]:
        z, value = gates
        return core.log_sigmoid(-z), core.sigmoid(z) * self.candidate(value)


class _MinLstm(_Minimal):
    """h' = f / (f + i) * h + i / (f + i) * candidate."""

    factory = "min_lstm"
    gates = 3

    def first_biases(self) -> tuple[float | Initializer, ...]:
        if self.horizon is None:
            return (0.0, 0.0, 0.0)
        return (remembering(self.horizon), remembering(self.horizon, -1.0), 0.0)

    def parts(self, gates: Gates) -> tuple[jax.Array, jax.Array]:
        f, i, value = gates
        # f / (f + i) is the sigmoid of the difference of logarithms, which loses nothing where both are tiny.
        difference = core.log_sigmoid(f) - core.log_sigmoid(i)
        return core.log_sigmoid(difference), core.sigmoid(-difference) * self.candidate(value)


def min_gru(
    width: int,
    *,
    state: int | None = None,
    horizon: int | None = None,
    positive: bool = False,
    method: str = "auto",
    chunk: int | None = None,
) -> Core:
    """The minimal gated recurrent unit.

        z = sigmoid(W_z x + b_z), h' = (1 - z) * h + z * (W_h x + b_h)

    Args:
      width: numbers of an input and of an output.
      state: hidden units, followed by a linear map to the outputs; None for as many as the width, which then are the
        outputs.
      horizon: the longest time, in steps, over which it remembers at first: b_z is -log(Uniform(1, horizon - 1)). None
        for b_z = 0, about two steps.
      positive: whether the candidate goes through x + 1/2 where it is positive and sigmoid(x) elsewhere.
      method, chunk: how the recurrence runs (see `scan.affine`).

    Returns:
      a core.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = min_gru(3, state=8)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> ys, h = net.apply(params, jnp.ones((5, 3)))
    >>> ys.shape, h.shape
    ((5, 3), (8,))

    Source: Feng et al. (2024), section 3.1; `positive` is their appendix B.
    """
    _check(_MinGru, width, state, horizon, positive, method, chunk)
    return _MinGru(width, state, horizon, positive, method, chunk)


def min_lstm(
    width: int,
    *,
    state: int | None = None,
    horizon: int | None = None,
    positive: bool = False,
    method: str = "auto",
    chunk: int | None = None,
) -> Core:
    """The minimal long short-term memory, whose two gates are normalised to a sum of one.

        f = sigmoid(W_f x + b_f), i = sigmoid(W_i x + b_i), h' = f / (f + i) * h + i / (f + i) * (W_h x + b_h)

    Args:
      width, state, positive, method, chunk: as for `min_gru`.
      horizon: as for `min_gru`; b_f and -b_i are log(Uniform(1, horizon - 1)).

    Returns:
      a core.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = min_lstm(3)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> net.apply(params, jnp.ones((5, 3)))[0].shape
    (5, 3)

    Source: Feng et al. (2024), section 3.2.
    """
    _check(_MinLstm, width, state, horizon, positive, method, chunk)
    return _MinLstm(width, state, horizon, positive, method, chunk)


def _check(module: Any, width: Any, state: Any, horizon: Any, positive: Any, method: Any, chunk: Any) -> None:
    name = f"sequence.{module.factory}"
    check_cell(module, width, state, horizon)
    if not isinstance(positive, bool):
        raise core.bad_value(name, "positive", positive, "True or False")
    check_choice(name, "method", method, METHODS)
    check_chunk(name, chunk)
