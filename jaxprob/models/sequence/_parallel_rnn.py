"""A GRU and an LSTM whose units see no past but their own, so that Newton's method runs them in parallel over time.

The Jacobian of a step is diagonal, or has one two-by-two block a unit. What Newton's method does not solve is run step
by step (see `scan.newton`), so that the outputs are always those of the recurrence.
Source: Danieli, Rodríguez, Sarabia, Suau and Zappella (2025), "ParaRNN: unlocking parallel training of nonlinear RNNs
for large language models".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.sequence._cells import Gates, Initializer, Projected, check_cell, remembering
from jaxprob.models.sequence._core import Core, recurrent_states
from jaxprob.models.sequence._options import check_choice
from jaxprob.scan._methods import platform

SOLVERS = ("auto", "newton", "sequential")


def _signs(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return core.random.uniform(key, shape, dtype, -1.0, 1.0)


class _Diagonal(Projected):
    """One whose hidden units are coupled by the inputs only. Subclasses give `cell` and `hidden`."""

    method: str = "auto"
    max_iterations: int = 50

    # Recurrent weights of each unit, and the structure of the Jacobian.
    weights = 3
    jacobian = "diagonal"

    def setup(self) -> None:
        super().setup()
        self.own = self.param("own", _signs, (self.weights, self.size), jnp.float32)

    def cell(self) -> Callable[[Any, Gates], Any]:
        """The function `(state, gates of the input) -> state`."""
        raise NotImplementedError

    def hidden(self, state: Any) -> jax.Array:
        """The hidden units of a state, or of states."""
        return state

    def recur(self, gates: Gates, state: Any, reset: jax.Array | None) -> tuple[jax.Array, Any]:
        step, fresh = self.cell(), self.initial_state()
        if self.method == "sequential" or (self.method == "auto" and platform() == "cpu"):

            def both(state: Any, x: Gates) -> tuple[Any, jax.Array]:
                state = step(state, x)
                return state, self.hidden(state)

            return recurrent_states(both, state, gates, fresh, reset)

        # A reset of `scan.newton` would go to the state that was passed in.
        def from_fresh(state: Any, x: Any) -> Any:
            here, x = x
            if here is not None:
                state = jax.tree.map(lambda old, new: jnp.where(here, new, old), state, fresh)
            return step(state, x)

        found = scan.newton(
            from_fresh, state, (reset, gates), jacobian=self.jacobian, max_iterations=self.max_iterations
        )
        report = {"converged": found.converged, "iterations": found.iterations, "residual": found.residual}
        self.sow("intermediates", "newton", report)
        return self.hidden(found.states), found.final

    def advance(self, gates: Gates, state: Any) -> tuple[jax.Array, Any]:
        state = self.cell()(state, gates)
        return self.hidden(state), state


class _ParaGru(_Diagonal):
    """Gates: update, reset, candidate."""

    factory = "para_gru"
    gates = 3

    def first_biases(self) -> tuple[float | Initializer, ...]:
        return (0.0 if self.horizon is None else remembering(self.horizon, -1.0), 0.0, 0.0)

    def cell(self) -> Callable[[Any, Gates], Any]:
        of_update, of_reset, of_new = self.own.astype(jnp.float32)

        def step(h: jax.Array, x: Gates) -> jax.Array:
            update, reset, new = x
            z = core.sigmoid(update + of_update * h)
            r = core.sigmoid(reset + of_reset * h)
            return (1 - z) * h + z * jnp.tanh(new + of_new * (r * h))

        return step


class _ParaLstm(_Diagonal):
    """Gates: forget, cell, output; the input gate is one less the forget gate."""

    factory = "para_lstm"
    gates = 3
    weights = 5
    jacobian = "block"

    def first_biases(self) -> tuple[float | Initializer, ...]:
        return (1.0 if self.horizon is None else remembering(self.horizon), 0.0, 0.0)

    def initial_state(self) -> Any:
        return {"c": jnp.zeros(self.size, jnp.float32), "h": jnp.zeros(self.size, jnp.float32)}

    def hidden(self, state: Any) -> jax.Array:
        return state["h"]

    def cell(self) -> Callable[[Any, Gates], Any]:
        of_forget, of_new, of_output, forget_sees, output_sees = self.own.astype(jnp.float32)

        def step(state: Any, x: Gates) -> Any:
            forget, new, output = x
            c, h = state["c"], state["h"]
            keep = forget + of_forget * h + forget_sees * c
            # Not one less the gate, which has few digits where that is near one.
            c = core.sigmoid(keep) * c + core.sigmoid(-keep) * jnp.tanh(new + of_new * h)
            o = core.sigmoid(output + of_output * h + output_sees * c)
            return {"c": c, "h": o * jnp.tanh(c)}

        return step


def para_gru(
    width: int,
    *,
    state: int | None = None,
    horizon: int | None = None,
    method: str = "auto",
    max_iterations: int = 50,
) -> Core:
    """A GRU with diagonal recurrent weights.

        z = sigmoid(W_z x + a_z * h + b_z), r = sigmoid(W_r x + a_r * h + b_r)
        h' = (1 - z) * h + z * tanh(W_n x + a_n * (r * h) + b_n)

    Args:
      width: numbers of an input and of an output.
      state: hidden units, followed by a linear map to the outputs; None for as many as the width, which then are the
        outputs.
      horizon: the longest time, in steps, over which it remembers at first; None for about two steps.
      method: "newton", in parallel over time; "sequential"; or "auto", which is sequential on CPU.
      max_iterations: of Newton's method, before the recurrence runs step by step instead.

    Returns:
      a core. With `mutable=["intermediates"]` its `apply` also returns {"newton": ({"converged", "iterations",
      "residual"},)} where Newton's method ran.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = para_gru(3, method="newton")
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> (ys, h), told = net.apply(params, jnp.ones((5, 3)), mutable=["intermediates"])
    >>> ys.shape, bool(told["intermediates"]["newton"][0]["converged"])
    ((5, 3), True)

    Source: Danieli et al. (2025), section 3.1; each weight is uniform between -1 and 1 at first.
    """
    _check(_ParaGru, width, state, horizon, method, max_iterations)
    return _ParaGru(width, state, horizon, method, max_iterations)


def para_lstm(
    width: int,
    *,
    state: int | None = None,
    horizon: int | None = None,
    method: str = "auto",
    max_iterations: int = 50,
) -> Core:
    """An LSTM with diagonal recurrent weights, peepholes, and an input gate that is one less the forget gate.

        f = sigmoid(W_f x + a_f * h + p_f * c + b_f), c' = f * c + (1 - f) * tanh(W_c x + a_c * h + b_c)
        o = sigmoid(W_o x + a_o * h + p_o * c' + b_o), h' = o * tanh(c')

    Args:
      width, state, method, max_iterations: as for `para_gru`.
      horizon: as for `para_gru`; None for b_f = 1, about four steps.

    Returns:
      a core with the state {"c": (state,), "h": (state,)}, which reports as `para_gru` does.

    Raises:
      ValueError: if an argument is not one of those above.

    >>> net = para_lstm(3, state=8)
    >>> params = net.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> net.apply(params, jnp.ones((5, 3)))[0].shape
    (5, 3)

    Source: Danieli et al. (2025), section 3.1.
    """
    _check(_ParaLstm, width, state, horizon, method, max_iterations)
    return _ParaLstm(width, state, horizon, method, max_iterations)


def _check(module: Any, width: Any, state: Any, horizon: Any, method: Any, max_iterations: Any) -> None:
    name = f"sequence.{module.factory}"
    check_cell(module, width, state, horizon)
    check_choice(name, "method", method, SOLVERS)
    core.check_whole(name, max_iterations=max_iterations)
