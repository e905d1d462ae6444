"""Long short-term memory, with forget gates and, where asked for, peepholes.

Source: Hochreiter and Schmidhuber (1997), "Long short-term memory"; Gers, Schmidhuber and Cummins (2000), "Learning to
forget"; Gers, Schraudolph and Schmidhuber (2002), "Learning precise timing with LSTM recurrent networks", for the
peepholes. The equations without them are those of PyTorch's LSTM.
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


class _Lstm(Recurrent):
    """Gates in the order of PyTorch: input, forget, cell, output."""

    peephole: bool = False
    forget_bias: float = 1.0

    factory = "lstm"
    gates = 4

    def setup(self) -> None:
        super().setup()
        if self.peephole:
            self.peepholes = self.param("peepholes", nn.initializers.normal(0.1), (3, self.size), jnp.float32)

    def first_biases(self) -> tuple[float | Initializer, ...]:
        if self.horizon is None:
            return (0.0, self.forget_bias, 0.0, 0.0)
        return (remembering(self.horizon, -1.0), remembering(self.horizon), 0.0, 0.0)

    def initial_state(self) -> Any:
        return {"c": jnp.zeros(self.size, jnp.float32), "h": jnp.zeros(self.size, jnp.float32)}

    def cell(self) -> Callable[[Any, Gates], tuple[Any, jax.Array]]:
        weights = self.recurrent.astype(jnp.float32)
        of_input, of_forget, of_output = self.peepholes.astype(jnp.float32) if self.peephole else (None, None, None)

        def seen(gate: jax.Array, weight: jax.Array | None, c: jax.Array) -> jax.Array:
            return core.sigmoid(gate if weight is None else gate + weight * c)

        def step(state: Any, of_inputs: Gates) -> tuple[Any, jax.Array]:
            c = state["c"]
            i, f, g, o = (a + b for a, b in zip(of_inputs, jnp.split(state["h"] @ weights, 4), strict=True))
            c = seen(f, of_forget, c) * c + seen(i, of_input, c) * jnp.tanh(g)
            h = seen(o, of_output, c) * jnp.tanh(c)
            return {"c": c, "h": h}, h

        return step


def lstm(
    width: int,
    *,
    state: int | None = None,
    peephole: bool = False,
    forget_bias: float = 1.0,
    horizon: int | None = None,
) -> Core:
    """Long short-term memory.

        i, f, o = sigmoid(W x + U h + b), each with its own W, U, b; g = tanh(W_g x + U_g h + b_g)
        c' = f * c + i * g, h' = o * tanh(c')

    Args:
      width: numbers of an input and of an output.
      state: hidden units, followed by a linear map to the outputs; None for as many as the width, which then are the
        outputs.
      peephole: whether i and f see c, and o sees c', each unit its own.
      forget_bias: b_f at first; 1 is to remember for about four steps.
      horizon: the longest time, in steps, over which it remembers at first, instead of `forget_bias`: b_f is
        log(Uniform(1, horizon - 1)) and b_i = -log of such numbers (see Tallec and Ollivier, 2018).

    Returns:
      a core with the state {"c": (state,), "h": (state,)}; each U is orthogonal at first.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = lstm(3, state=8, peephole=True)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> ys, state = net.apply(params, jnp.ones((5, 3)))
    >>> ys.shape, state["c"].shape
    ((5, 3), (8,))
    """
    check_cell(_Lstm, width, state, horizon)
    if not isinstance(peephole, bool):
        raise core.bad_value("sequence.lstm", "peephole", peephole, "True or False")
    if not core.is_number(forget_bias):
        raise core.bad_value("sequence.lstm", "forget_bias", forget_bias, "a number")
    return _Lstm(width, state, horizon, peephole, forget_bias)
