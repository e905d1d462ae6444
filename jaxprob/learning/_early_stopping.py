"""Early stopping as a pure state: how long ago a validation loss was last better than ever before.

Source: Prechelt (1998), "Early stopping - but when?", the criterion UP in the form with patience.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core


class EarlyStoppingState(NamedTuple):
    """What early stopping remembers.

    Attributes:
      best: float32 scalar, the best value so far; infinity before the first.
      waited: int32 scalar, number of values since the best one.
      improved: boolean scalar, whether the last value was the best.
      stop: boolean scalar, whether the patience is over.
    """

    best: jax.Array
    waited: jax.Array
    improved: jax.Array
    stop: jax.Array


class EarlyStopping(NamedTuple):
    """The two pure functions of early stopping.

    Attributes:
      init: `() -> EarlyStoppingState`.
      update: `(state, value) -> EarlyStoppingState`.
    """

    init: Callable[[], EarlyStoppingState]
    update: Callable[[EarlyStoppingState, Any], EarlyStoppingState]


def early_stopping(patience: int, min_improvement: float = 0.0) -> EarlyStopping:
    """Stops when `patience` values in a row were no better than the best before them.

    A value is better when it is below the best by more than `min_improvement`; NaN is never better.

    Args:
      patience: number of evaluations without improvement after which `stop` is true, 1 or more.
      min_improvement: what counts as better, in the unit of the loss, 0 or more.

    Returns:
      `EarlyStopping(init, update)`.

    Raises:
      ValueError: if an argument is out of its range.

    >>> init, update = early_stopping(patience=2)
    >>> state = init()
    >>> for loss in [3.0, 2.0, 2.5, 2.0]:
    ...     state = update(state, loss)
    >>> bool(state.stop), float(state.best)
    (True, 2.0)
    """
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise core.bad_value("early_stopping", "patience", patience, "a number of evaluations, 1 or more")
    if isinstance(min_improvement, bool) or not isinstance(min_improvement, (int, float)) or not min_improvement >= 0:
        raise core.bad_value("early_stopping", "min_improvement", min_improvement, "a number, 0 or more")

    def init() -> EarlyStoppingState:
        never = jnp.zeros((), bool)
        return EarlyStoppingState(jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32), never, never)

    def update(state: EarlyStoppingState, value: Any) -> EarlyStoppingState:
        value = jnp.asarray(value, jnp.float32)
        better = value < state.best - min_improvement
        waited = jnp.where(better, 0, state.waited + 1)
        return EarlyStoppingState(jnp.where(better, value, state.best), waited, better, waited >= patience)

    return EarlyStopping(init, update)
