"""What recurrences with gates have in common: one product for the inputs of all times, the recurrence, a way back.

Source of the gates' biases: Tallec and Ollivier (2018), "Can recurrent neural networks warp time?".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.sequence._core import Core, check_inputs, check_state, name_of, recurrent_states
from jaxprob.models.sequence._layers import Linear

Initializer = Callable[..., jax.Array]
Gates = tuple[jax.Array, ...]  # what the inputs give to each gate: (size,), or (time, size)


class Projected(Core):
    """Inputs to gates, gates through a recurrence in float32, hidden units to outputs.

    Subclasses give `gates`, `recur` and `advance`.

    Attributes:
      units: hidden units; None for as many as the width, which then are the outputs.
      horizon: how many steps the first gates remember, at most; None for the bias of the subclass.
    """

    units: int | None = None
    horizon: int | None = None

    # Numbers that the inputs give to each hidden unit.
    gates = 1

    @property
    def size(self) -> int:
        """Hidden units."""
        return self.width if self.units is None else self.units

    def setup(self) -> None:
        """Makes the parameters outside of the recurrence."""
        self.inward = Linear(self.gates * self.size, wide=True, bias_init=biases(self.size, self.first_biases()))
        if self.units is not None:
            self.outward = Linear(self.width)

    def first_biases(self) -> tuple[float | Initializer, ...]:
        """The bias with which each gate starts."""
        return (0.0,) * self.gates

    def initial_state(self) -> Any:
        """Zeros."""
        return jnp.zeros(self.size, jnp.float32)

    def recur(self, gates: Gates, state: Any, reset: jax.Array | None) -> tuple[jax.Array, Any]:
        """Hidden units (time, size) and the last state, of gates (time, size) each."""
        raise NotImplementedError

    def advance(self, gates: Gates, state: Any) -> tuple[jax.Array, Any]:
        """The same for one time."""
        raise NotImplementedError

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        """Projects, recurs and projects back."""
        hidden, state = self.recur(self._gates_of(xs), state, reset)
        return self._outwards(hidden.astype(xs.dtype)), state

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        """One input (width,): the output (width,) and the state after it."""
        check_inputs(self, x, 1)
        hidden, state = self.advance(self._gates_of(x), check_state(self, state))
        return self._outwards(hidden.astype(x.dtype)), state

    def _gates_of(self, xs: jax.Array) -> Gates:
        # An array for each: a loop that takes one of all apart at every step is three times as slow on CPU.
        return tuple(jnp.split(self.inward(xs).astype(jnp.float32), self.gates, -1))

    def _outwards(self, hidden: jax.Array) -> jax.Array:
        return hidden if self.units is None else self.outward(hidden)


class Recurrent(Projected):
    """One with a matrix between hidden units: a step after another. Subclasses give `gates` and `cell`."""

    mixes_channels = True

    def setup(self) -> None:
        """Makes the parameters, the matrix orthogonal for each gate."""
        super().setup()
        shape = (self.size, self.gates * self.size)
        self.recurrent = self.param("recurrent", orthogonal(self.gates), shape, jnp.float32)

    def cell(self) -> Callable[[Any, Gates], tuple[Any, jax.Array]]:
        """The function `(state, gates of the input) -> (state, hidden units)`."""
        raise NotImplementedError

    def recur(self, gates: Gates, state: Any, reset: jax.Array | None) -> tuple[jax.Array, Any]:
        """One step after another."""
        return recurrent_states(self.cell(), state, gates, self.initial_state(), reset)

    def advance(self, gates: Gates, state: Any) -> tuple[jax.Array, Any]:
        """One step."""
        state, hidden = self.cell()(state, gates)
        return hidden, state


def orthogonal(gates: int) -> Initializer:
    """An orthogonal matrix for each gate, side by side."""

    def make(key: Any, shape: tuple[int, int], dtype: Any) -> jax.Array:
        one = nn.initializers.orthogonal()
        parts = [one(part, (shape[0], shape[0]), dtype) for part in core.random.split(key, gates)]
        return jnp.concatenate(parts, 1)

    return make


def biases(size: int, parts: tuple[float | Initializer, ...]) -> Initializer:
    """For each gate a number or an initialiser, one after another."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        keys = core.random.split(key, len(parts))
        made = [
            part(key, (size,), dtype) if callable(part) else jnp.full(size, part, dtype)
            for key, part in zip(keys, parts, strict=True)
        ]
        return jnp.concatenate(made)

    return make


def remembering(horizon: int, sign: float = 1.0) -> Initializer:
    """Biases of gates sigmoid(b) that keep the state for 1 to about `horizon` steps: b = log(steps), evenly spread.

    Source: Tallec and Ollivier (2018), section 2: b ~ log(Uniform(1, horizon - 1)); `sign` -1 for gates that forget.
    """

    def make(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return sign * jnp.log(core.random.uniform(key, shape, dtype, 1.0, max(horizon - 1.0, 1.0)))

    return make


def check_cell(module: Any, width: Any, state: Any, horizon: Any) -> None:
    """Checks the arguments that all factories of this kind have."""
    name = name_of(module)
    core.check_whole(name, width=width)
    if state is not None:
        core.check_whole(name, state=state)
    if horizon is not None and (not core.is_number(horizon) or not 2 <= horizon < math.inf):
        raise core.bad_value(name, "horizon", horizon, "a number of steps, 2 or more, or None")
