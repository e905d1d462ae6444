"""A core that reads a sequence from both ends.

Source: Schuster and Paliwal (1997), "Bidirectional recurrent neural networks".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob.core import bad_value
from jaxprob.models.sequence._block import check_core, unbound
from jaxprob.models.sequence._core import Core
from jaxprob.models.sequence._layers import Linear

MERGES = ("project", "sum")


class _Bidirectional(Core):
    """One core forwards, another backwards."""

    forward: Core
    backward: Core
    merge: str = "project"

    factory = "bidirectional"
    runs_in_pieces = True

    @property
    def mixes_channels(self) -> bool:  # type: ignore[override]
        return self.forward.mixes_channels

    def setup(self) -> None:
        if self.merge == "project":
            self.project = Linear(self.width)

    def initial_state(self) -> Any:
        """Nothing: a sequence that is read from its end cannot go on."""
        return ()

    def run(self, xs: jax.Array, state: Any, reset: jax.Array | None, deterministic: bool) -> tuple[jax.Array, Any]:
        forward, _ = self.forward(xs, None, reset, deterministic=deterministic)
        # Seen from the end, a sequence begins at its last element, which is the one before a reset.
        ends = None if reset is None else jnp.append(reset[1:], True)[::-1]
        backward, _ = self.backward(xs[::-1], None, ends, deterministic=deterministic)
        backward = backward[::-1]
        if self.merge == "sum":
            return forward + backward, ()
        return self.project(jnp.concatenate([forward, backward], -1)), ()

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        """There is none."""
        raise bad_value(
            "sequence.bidirectional", "step", "called", "a call with the whole sequence", "It is read from both ends"
        )


def bidirectional(core: Core, *, merge: str = "project") -> Core:
    """Reads a sequence forwards and backwards with two cores of the same kind, each with its own parameters.

        y = [forward(x), reversed(backward(reversed(x)))] W + b, or their sum

    It has no `step` and an empty state: a sequence is read whole. With resets each part is read from both its ends.

    Args:
      core: the core of both directions.
      merge: "project" for a linear map of both back to the width, or "sum".

    Returns:
      a core of the same width.

    Raises:
      TypeError: if `core` is not a core.
      ValueError: if `merge` is not one of those above.

    >>> from jaxprob.models import sequence
    >>> net = sequence.bidirectional(sequence.gru(width=3))
    >>> xs = jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), xs)
    >>> net.apply(params, xs)[0].shape
    (5, 3)
    """
    check_core("sequence.bidirectional", core)
    if merge not in MERGES:
        raise bad_value("sequence.bidirectional", "merge", merge, f"one of {', '.join(map(repr, MERGES))}")
    return _Bidirectional(core.width, unbound(core), unbound(core), merge)
