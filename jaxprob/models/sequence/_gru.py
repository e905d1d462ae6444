"""The gated recurrent unit.

Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder for statistical machine
translation"; the equations are those of PyTorch's GRU, in which the reset gate comes after the recurrent product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.sequence._cells import Gates, Initializer, Recurrent, check_cell, remembering
from jaxprob.models.sequence._core import Core


class _Gru(Recurrent):
    """Gates in the order of PyTorch: reset, update, candidate."""

    factory = "gru"
    gates = 3

    def setup(self) -> None:
        super().setup()
        self.candidate_bias = self.param("candidate_bias", nn.initializers.zeros, (self.size,), jnp.float32)

    def first_biases(self) -> tuple[float | Initializer, ...]:
        return (0.0, 0.0 if self.horizon is None else remembering(self.horizon), 0.0)

    def cell(self) -> Callable[[Any, Gates], tuple[Any, jax.Array]]:
        weights, bias = self.recurrent.astype(jnp.float32), self.candidate_bias.astype(jnp.float32)

        def step(h: jax.Array, of_input: Gates) -> tuple[jax.Array, jax.Array]:
            of_state = jnp.split(h @ weights, 3)
            reset = core.sigmoid(of_input[0] + of_state[0])
            update = of_input[1] + of_state[1]
            new = jnp.tanh(of_input[2] + reset * (of_state[2] + bias))
            # Not one less the gate, which has few digits where that is near one.
            h = core.sigmoid(-update) * new + core.sigmoid(update) * h
            return h, h

        return step


def gru(width: int, *, state: int | None = None, horizon: int | None = None) -> Core:
    """The gated recurrent unit.

        r = sigmoid(W_r x + U_r h + b_r), z = sigmoid(W_z x + U_z h + b_z)
        n = tanh(W_n x + b_n + r * (U_n h + c_n)), h' = (1 - z) * n + z * h

    Args:
      width: numbers of an input and of an output.
      state: hidden units, followed by a linear map to the outputs; None for as many as the width, which then are the
        outputs.
      horizon: the longest time, in steps, over which it remembers at first (see Tallec and Ollivier, 2018); None for
        b_z = 0, about two steps.

    Returns:
      a core; each U is orthogonal at first.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = gru(3)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> ys, h = net.apply(params, jnp.ones((5, 3)))
    >>> ys.shape, bool(jnp.all(ys[-1] == h))
    ((5, 3), True)
    """
    check_cell(_Gru, width, state, horizon)
    return _Gru(width, state, horizon)
