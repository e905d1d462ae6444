"""The simple recurrent network: each hidden unit sees all others of the step before.

Source: Elman (1990), "Finding structure in time"; the equation is that of PyTorch's RNN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.models.sequence._cells import Gates, Recurrent, check_cell
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._options import check_choice

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class _Elman(Recurrent):
    """h' = activation(W x + U h + b)."""

    activation: str = "tanh"

    factory = "elman"

    def cell(self) -> Callable[[Any, Gates], tuple[Any, jax.Array]]:
        weights, activation = self.recurrent.astype(jnp.float32), ACTIVATIONS[self.activation]

        def step(h: jax.Array, of_input: Gates) -> tuple[jax.Array, jax.Array]:
            h = activation(of_input[0] + h @ weights)
            return h, h

        return step


def elman(width: int, *, state: int | None = None, activation: str = "tanh") -> Core:
    """The simple recurrent network.

        h_t = activation(W x_t + U h_{t-1} + b)

    Args:
      width: numbers of an input and of an output.
      state: hidden units, followed by a linear map to the outputs; None for as many as the width, which then are the
        outputs.
      activation: "tanh" or "relu".

    Returns:
      a core; U is orthogonal at first.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = elman(3, state=8)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> ys, h = net.apply(params, jnp.ones((5, 3)))
    >>> ys.shape, h.shape
    ((5, 3), (8,))
    """
    check_cell(_Elman, width, state, None)
    check_choice("sequence.elman", "activation", activation, tuple(ACTIVATIONS))
    return _Elman(width, state, activation=activation)
