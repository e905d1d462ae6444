"""Dual averaging of a log step size towards a target acceptance rate.

Source: Hoffman & Gelman (2014), section 3.2.1, with Stan's constants; Nesterov (2009).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHRINKAGE = 0.05  # gamma: how fast errors move the step size
DELAY = 10.0  # t0: damps the first updates
DECAY = 0.75  # kappa: how fast the average forgets


class DualAveraging(NamedTuple):
    """The state of dual averaging; every field is a scalar.

    Attributes:
      log_step: log of the step size to try next.
      log_average: log of the averaged step size, the one to keep.
      error: running mean of target minus acceptance.
      updates: so far.
      centre: what log steps shrink towards.
    """

    log_step: jax.Array
    log_average: jax.Array
    error: jax.Array
    updates: jax.Array
    centre: jax.Array


def start(step_size: jax.Array) -> DualAveraging:
    """Begins at a step size, shrinking towards ten times it: steps too large cost less to find out than too small."""
    log_step = jnp.log(step_size)
    zero = jnp.zeros_like(log_step)
    return DualAveraging(log_step, zero, zero, zero, log_step + jnp.log(jnp.asarray(10, log_step.dtype)))


def update(state: DualAveraging, acceptance: jax.Array, target: Any) -> DualAveraging:
    """One update with an acceptance rate; a rate that is NaN counts as 0.

    Args:
      state: the state so far.
      acceptance: (), mean over chains where several share a step size: one update, whatever their number.
      target: (), acceptance rate wanted.
    """
    acceptance = jnp.where(jnp.isnan(acceptance), 0, acceptance)
    updates = state.updates + 1
    weight = 1 / (updates + DELAY)
    # Averages as one product and one sum: of a sum of two products either may be fused into a multiply-add, and the
    # programs for one device and for several need not choose alike.
    error = state.error + weight * ((target - acceptance) - state.error)
    log_step = state.centre - jnp.sqrt(updates) / SHRINKAGE * error
    weight = updates**-DECAY
    average = state.log_average + weight * (log_step - state.log_average)
    return DualAveraging(log_step, average, error, updates, state.centre)
