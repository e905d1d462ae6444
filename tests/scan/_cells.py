"""Recurrent cells as pure functions `(params, state, x) -> state`, and what they do in float64 NumPy.

Elman (1990); GRU: Cho et al. (2014); LSTM: Hochreiter and Schmidhuber (1997) with forget gates. The diagonal forms are
those of Danieli et al. (2025), "ParaRNN": recurrent weights are vectors, so that a unit sees no state but its own. Each
cell takes NumPy arrays as well, and is then the oracle.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

INPUTS = 3


class Cell(NamedTuple):
    """A cell, its parameters and what its Jacobian looks like."""

    step: Callable[[Any, Any, Any], Any]
    gates: tuple[str, ...]
    dense: bool
    pair: bool  # the state is (c, h)
    jacobian: str

    def init_params(self, rng, size, gain=1.0, dtype=np.float32):
        """Normal weights of scale gain / sqrt(fan in); those of the state are named w*, or p* for peepholes."""
        params = {}
        for gate in self.gates:
            shape, scale = ((size, size), gain / np.sqrt(size)) if self.dense else ((size,), gain)
            params["w" + gate] = scale * rng.normal(size=shape)
            params["u" + gate] = rng.normal(size=(size, INPUTS)) / np.sqrt(INPUTS)
            params["b" + gate] = 0.1 * rng.normal(size=size) + (gate == "f")
            if self.pair and not self.dense and gate != "g":
                params["p" + gate] = 0.5 * gain * rng.normal(size=size)
        return {name: value.astype(dtype) for name, value in params.items()}

    def init_state(self, size, dtype=np.float32):
        """Zeros."""
        zeros = np.zeros(size, dtype)
        return (zeros, zeros) if self.pair else zeros

    def bind(self, params):
        """`(state, x) -> state`; a new function each time."""
        params = jax.tree.map(jnp.asarray, params)
        return lambda state, x: self.step(params, state, x)


def _numpy(x):
    return isinstance(x, (np.ndarray, np.generic))


def _dot(a, x):
    return a @ x if _numpy(x) else jnp.matmul(a, x, precision="highest")


def _tanh(x):
    return np.tanh(x) if _numpy(x) else jnp.tanh(x)


def _sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2 if _numpy(x) else jax.nn.sigmoid(x)


def _drive(p, gate, x):
    return _dot(p["u" + gate], x) + p["b" + gate]


def elman(p, h, x):
    return _tanh(_dot(p["wh"], h) + _drive(p, "h", x))


def _gru(mix):
    def gru(p, h, x):
        z = _sigmoid(mix(p["wz"], h) + _drive(p, "z", x))
        r = _sigmoid(mix(p["wr"], h) + _drive(p, "r", x))
        n = _tanh(r * mix(p["wn"], h) + _drive(p, "n", x))
        return (1 - z) * n + z * h

    return gru


def lstm(p, state, x):
    c, h = state
    i, f, o = (_sigmoid(_dot(p["w" + gate], h) + _drive(p, gate, x)) for gate in "ifo")
    c = f * c + i * _tanh(_dot(p["wg"], h) + _drive(p, "g", x))
    return c, o * _tanh(c)


def diagonal_lstm(p, state, x):
    c, h = state
    i, f = (_sigmoid(p["w" + gate] * h + p["p" + gate] * c + _drive(p, gate, x)) for gate in "if")
    c = f * c + i * _tanh(p["wg"] * h + _drive(p, "g", x))
    return c, _sigmoid(p["wo"] * h + p["po"] * c + _drive(p, "o", x)) * _tanh(c)


CELLS = {
    "elman": Cell(elman, ("h",), True, False, "dense"),
    "gru": Cell(_gru(_dot), ("z", "r", "n"), True, False, "dense"),
    "lstm": Cell(lstm, ("i", "f", "g", "o"), True, True, "dense"),
    "diagonal_gru": Cell(_gru(lambda w, h: w * h), ("z", "r", "n"), False, False, "diagonal"),
    "diagonal_lstm": Cell(diagonal_lstm, ("i", "f", "g", "o"), False, True, "block"),
}


def exactly(tree):
    """The same numbers in float64 NumPy."""
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), tree)


def order(steps, reverse):
    return range(steps)[::-1] if reverse else range(steps)


def run_exactly(step, init, xs, *, steps=None, reverse=False, reset=None):
    """The states (time, ...) of `step(state, x)`, one after another in float64 NumPy."""
    init, xs = exactly(init), exactly(xs)
    steps = len(jax.tree.leaves(xs)[0]) if steps is None else steps
    state, states = init, [None] * steps
    for t in order(steps, reverse):
        if reset is not None and reset[t]:
            state = init
        states[t] = state = step(state, jax.tree.map(lambda x, t=t: x[t], xs))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def residual_exactly(step, states, init, xs, *, reverse=False, reset=None):
    """max |x_t - step(x_{t-1}, u_t)| of the states given, in float64 NumPy."""
    init, states, xs = exactly(init), exactly(states), exactly(xs)
    steps = len(jax.tree.leaves(states)[0])
    largest, before = 0.0, init
    for t in order(steps, reverse):
        if reset is not None and reset[t]:
            before = init
        here = jax.tree.map(lambda x, t=t: x[t], states)
        after = step(before, jax.tree.map(lambda x, t=t: x[t], xs))
        for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(after), strict=True):
            error = np.max(np.abs(a - b))
            if not error <= largest:  # NaN stays
                largest = error
        before = here
    return largest
