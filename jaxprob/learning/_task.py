"""A training job as data: how parameters begin, what they are judged by, and how they move.

A task is frozen and hashable, so that it is static under `jit`; it holds no arrays.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxprob import core

Params = Any
Batch = Any
Loss = Callable[[Params, Batch, core.Key], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, and how.

    Args:
      init: `key -> params`, a pytree of real floating arrays.
      loss: `(params, batch, key) -> scalar`, or `(scalar, metrics)` with a dict of scalars. The mean over the batch, as
        a rule.
      optimizer: an optax optimiser. `learning.by_path` makes one of several; a schedule goes in as its learning rate.
      micro_batches: pieces that a batch is cut into, whose gradients are averaged one after the other in float32: the
        memory of a piece, and for a loss that is a mean over the batch the gradient of the whole. Piece `i` of `m` has
        the examples i, i + m, i + 2 m, ..., so that a batch that is spread over devices stays where it is. Metrics are
        averaged over the pieces too.
      ema: decay of an average of the parameters, such as 0.999, for evaluation; None for none. It is corrected for its
        start: the average after t steps weighs the parameters after step k by decay^(t - k) / sum_j decay^(t - j).
      compute_dtype: dtype that parameters are cast to for the loss, such as `jnp.bfloat16`. The master copy, the
        gradients and the optimiser stay in float32. The batch is given to the loss as it is.
      max_gradient_norm: gradients of a larger norm (of all leaves together) are scaled down to it.
      validation_loss: as `loss`, for what is held out: without dropout and whatever else is for training alone. The
        `loss` itself by default.

    Raises:
      TypeError: if `init`, a loss or `optimizer` is not one, or takes other arguments.
      ValueError: if a number is out of its range.

    >>> import jax
    >>> init = lambda key: {"w": jnp.zeros(2)}
    >>> loss = lambda params, batch, key: jnp.mean((batch - params["w"]) ** 2)
    >>> task = Task(init, loss, optax.adam(1e-3), ema=0.99)
    >>> task.micro_batches
    1
    """

    init: Callable[[core.Key], Params]
    loss: Loss
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    micro_batches: int = 1
    ema: float | None = None
    compute_dtype: Any = None
    max_gradient_norm: float | None = None
    validation_loss: Loss | None = None

    def __post_init__(self) -> None:
        _check_arguments("init", self.init, ("key",))
        _check_arguments("loss", self.loss, ("params", "batch", "key"))
        if self.validation_loss is not None:
            _check_arguments("validation_loss", self.validation_loss, ("params", "batch", "key"))
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise core.bad_type("Task", "optimizer", self.optimizer, "an optax optimiser", "Such as optax.adam(1e-3)")
        pieces = self.micro_batches
        if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1:
            raise core.bad_value("Task", "micro_batches", pieces, "a number of pieces, 1 or more")
        if self.ema is not None and not (core.is_number(self.ema) and 0 < self.ema < 1):
            raise core.bad_value("Task", "ema", self.ema, "a decay between 0 and 1, or None", "Such as 0.999")
        norm = self.max_gradient_norm
        if norm is not None and not (core.is_number(norm) and 0 < norm < math.inf):
            raise core.bad_value("Task", "max_gradient_norm", norm, "a positive number, or None")
        if self.compute_dtype is not None:
            object.__setattr__(self, "compute_dtype", _floating_dtype(self.compute_dtype))


def _floating_dtype(dtype: Any) -> Any:
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise core.bad_value("Task", "compute_dtype", str(dtype), "a floating dtype, or None", "Such as jnp.bfloat16")
    return dtype


def _check_arguments(argument: str, function: Any, names: tuple[str, ...]) -> None:
    """Checks that a function can be called with these positional arguments."""
    expected = f"a function of ({', '.join(names)})"
    if not callable(function):
        raise core.bad_type("Task", argument, function, expected)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C have none
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise core.bad_type("Task", argument, f"a function of {signature}", expected) from None
