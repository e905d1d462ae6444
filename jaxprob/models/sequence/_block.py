"""A residual block around a core: norm, core, gate, dropout, and for cores like a transformer's an MLP half.

Source: Xiong et al. (2020), "On layer normalization in the transformer architecture", for the norm that comes first;
Smith, Warrington and Linderman (2023), "Simplified state space layers", for the gate of cores that mix no channels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxprob.core import bad_type, bad_value, is_number
from jaxprob.models.sequence._core import Core, check_inputs, check_state
from jaxprob.models.sequence._layers import GatedUnit, Mlp, Norm

NORMS = ("rms", "layer", None)
GATES = ("auto", "glu", None)


class _Block(Core):
    """x + dropout(gate(core(norm(x)))), then the same with an MLP where there is one."""

    core: Core
    norm: str | None = "rms"
    gate: str | None = "auto"
    dropout: float = 0.0
    mlp: float | None = None

    factory = "block"
    mixes_channels = True
    runs_in_pieces = True

    def setup(self) -> None:
        if self.norm is not None:
            self.norm_core = Norm(self.norm)
        if self._gated:
            self.unit = GatedUnit()
        if self.mlp is not None:
            if self.norm is not None:
                self.norm_mlp = Norm(self.norm)
            self.half = Mlp(max(1, round(self.mlp * self.width)))
        self.drop = nn.Dropout(self.dropout)

    @property
    def _gated(self) -> bool:
        return self.gate == "glu" or (self.gate == "auto" and not self.core.mixes_channels)

    def initial_state(self) -> Any:
        return self.core.initial_state()

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        ys, state = self.core(self._before(xs), state, reset, deterministic=deterministic)
        return self._after(xs, ys, deterministic), state

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        check_inputs(self, x, 1)
        y, state = self.core.step(self._before(x), check_state(self, state), deterministic=deterministic)
        return self._after(x, y, deterministic), state

    def _before(self, x: jax.Array) -> jax.Array:
        return x if self.norm is None else self.norm_core(x)

    def _after(self, x: jax.Array, y: jax.Array, deterministic: bool) -> jax.Array:
        """The residual, once the core has run; the same for one time and for all."""
        x = x + self.drop(self.unit(y) if self._gated else y, deterministic=deterministic)
        if self.mlp is None:
            return x
        y = self.half(x if self.norm is None else self.norm_mlp(x))
        return x + self.drop(y, deterministic=deterministic)


def block(
    core: Core,
    *,
    norm: str | None = "rms",
    gate: str | None = "auto",
    dropout: float = 0.0,
    mlp: float | None = None,
) -> Core:
    """A residual block: itself a core, of the same width and with the state of `core`.

        y = x + dropout(gate(core(norm(x))))

    Args:
      core: the core inside.
      norm: "rms", "layer" or None, before the core (and before the MLP).
      gate: "glu" for u * sigmoid(v) with (u, v) = gelu(y) W + b; None for none; "auto" for a gate where the core has
        none of its own.
      dropout: the share of numbers that are dropped, with `deterministic=False` and an rng named "dropout".
      mlp: hidden numbers of a second half x + dropout(mlp(norm(x))) as a multiple of the width; None for no such half.

    Returns:
      a core.

    Raises:
      TypeError: if `core` is not a core.
      ValueError: if an option is not one of those above.

    >>> from jaxprob.models import sequence
    >>> net = sequence.block(sequence.gru(width=3))
    >>> xs = jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.shape
    ((5, 3), (3,))
    """
    check_core("sequence.block", core)
    check_options("sequence.block", norm, gate, dropout, mlp)
    return _Block(core.width, unbound(core), norm, gate, dropout, mlp)


def unbound(module: Any) -> Any:
    """A copy that belongs to no module: two blocks of one core have parameters of their own."""
    return module.clone(parent=None, _deep_clone=True, _reset_names=True)


def check_core(function: str, core: Any) -> None:
    """Checks that it is a sequence core."""
    if not isinstance(core, Core):
        raise bad_type(function, "core", core, "a sequence core", "For example sequence.gru(width=64)")


def check_options(function: str, norm: Any, gate: Any, dropout: Any, mlp: Any) -> None:
    """Checks what `block` and `stack` have in common."""
    for name, value, choices in (("norm", norm, NORMS), ("gate", gate, GATES)):
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise bad_value(function, name, value, f"one of {', '.join(map(repr, choices))}")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise bad_value(function, "dropout", dropout, "a number from 0 to less than 1")
    if mlp is not None and (not is_number(mlp) or not mlp > 0):
        raise bad_value(function, "mlp", mlp, "a positive number, a multiple of the width, or None")
