"""Expectation maximisation as a loop: steps that never lower a likelihood, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan

EMStep = Callable[[Any], tuple[Any, jax.Array]]


@core.pytree
class Fitted:
    """What EM found.

    Attributes:
      model: the model after the last step.
      log_likelihoods: (steps + 1,), of the models before each step, and of the last one.
      converged: (), whether the last step raised the log likelihood by no more than the tolerance.
    """

    model: Any
    log_likelihoods: jax.Array
    converged: jax.Array


def check_steps(function: str, steps: Any) -> None:
    """Raises unless `steps` is a number of steps."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise core.bad_value(function, "steps", steps, "a number of steps, at least 0")


def iterate(em_step: EMStep, model: Any, steps: int, tolerance: Any) -> Fitted:
    """The model after so many steps, the log likelihoods on the way, and whether the last gain was small.

    Args:
      em_step: `model -> (model after a step, log likelihood of the model before)`.
      model: where to begin.
      steps: how many, all of which are taken.
      tolerance: the gain of the last step up to which it has converged.
    """
    # A step may give a parameter that was shared an axis of its own.
    like = jax.eval_shape(lambda model: em_step(model)[0], model)
    model = jax.tree.map(lambda old, new: jnp.broadcast_to(old, new.shape).astype(new.dtype), model, like)

    def step(models: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], jax.Array]:
        after, total = em_step(models[1])
        return (models[1], after), total

    # One step more than asked for, for the likelihood of the last model; the model after it is dropped.
    (model, _), totals = scan.scan(step, (model, model), length=steps + 1)
    gain = totals[-1] - totals[-2] if steps else jnp.full_like(totals[-1], jnp.inf)
    return Fitted(model, totals, gain <= tolerance)
