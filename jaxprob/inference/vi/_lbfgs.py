"""L-BFGS towards a mode, with an inverse Hessian of low rank that is positive definite whatever happens.

The estimate begins anew from a diagonal in each iteration, itself updated, and takes in the last few changes of the
gradient. The line search asks for the two weak Wolfe conditions and takes points without a finite density for bad ones,
so that a walk never ends up at one. It is written out here because Pathfinder needs what goes on inside.

Source: Nocedal & Wright (2006), "Numerical optimization", section 7.2; Gilbert & Lemaréchal (1989), "Some numerical
experiments with variable-storage quasi-Newton algorithms", for the diagonal; Lewis & Overton (2013), "Nonsmooth
optimization via quasi-Newton methods", for the line search.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import Flat
from jaxprob.inference.vi._quasi_newton_metric import QuasiNewtonMetric, from_diagonal, from_moves

DECREASE, CURVATURE = 1e-4, 0.9  # of the line search, as usual for quasi-Newton methods
SMALLEST = 1e-12  # variance along a move, relative to a unit, below which the move tells nothing (as Pathfinder has it)
TRIALS = 40  # points of a line search at the most
ROUNDING = 4.0  # relative error of a log density, in units of the machine epsilon
PATIENCE = 10  # iterations in sequence without a rise beyond rounding, after which a walk is over


class Walk(NamedTuple):
    """A walk towards a mode.

    Attributes:
      position: (size,).
      log_density: (), there.
      gradient: (size,), of the log density.
      metric: the inverse Hessian of minus the log density, estimated.
      variances: (size,), the diagonal that the estimate begins with.
      steps: (memory, size), the last moves, the latest last; zeros where there were none.
      changes: (memory, size), by how much the gradient fell in each.
      updates: (), moves that told about the curvature.
      iterations: (), so far.
      stalled: (), the latest of them without a rise of the log density beyond rounding.
      gain: (), by how much the log density would rise up to the mode if it were as quadratic as estimated.
      active: (), bool, whether there is a next iteration.
    """

    position: jax.Array
    log_density: jax.Array
    gradient: jax.Array
    metric: QuasiNewtonMetric
    variances: jax.Array
    steps: jax.Array
    changes: jax.Array
    updates: jax.Array
    iterations: jax.Array
    stalled: jax.Array
    gain: jax.Array
    active: jax.Array


class _Trial(NamedTuple):
    """The carry of a line search."""

    low: jax.Array  # (), the longest step known to raise the density enough
    high: jax.Array  # (), the shortest known not to; inf at first
    step: jax.Array  # (), to try next
    best: tuple[jax.Array, jax.Array, jax.Array]  # position, log density and gradient after the step `low`
    trials: jax.Array  # ()
    done: jax.Array  # (), bool


def start(flat: Flat, position: jax.Array, memory: int) -> Walk:
    """A walk that begins at a position (size,); not active where the density or its gradient is not finite."""
    log_density, gradient = flat.evaluate(position)
    norm = core.norm(gradient)
    finite = jnp.isfinite(log_density) & jnp.isfinite(norm)
    # Nothing is known of scales yet: the first move tries a length of one.
    variances = jnp.where(finite & (norm > 0), 1 / jnp.where(norm > 0, norm, 1), 1) * jnp.ones_like(position)
    none = jnp.zeros((memory, flat.size), flat.dtype)
    return Walk(
        position=position,
        log_density=log_density,
        gradient=gradient,
        metric=from_diagonal(variances, memory),
        variances=variances,
        steps=none,
        changes=none,
        updates=jnp.int32(0),
        iterations=jnp.int32(0),
        stalled=jnp.int32(0),
        gain=jnp.where(finite, 0.5 * norm, jnp.inf),
        active=finite & (norm > 0),
    )


def advance(flat: Flat, walk: Walk, max_steps: Any, tolerance: Any) -> Walk:
    """One iteration: a line search, and what it tells about the curvature. A walk that is not active stays.

    Args:
      flat: the log density.
      walk: so far.
      max_steps: (), iterations at the most.
      tolerance: (), the gain below which the walk is over.
    """
    whitened = walk.metric.force(walk.gradient)
    direction = walk.metric.velocity(whitened)
    position, log_density, gradient = _line_search(flat, walk, direction, core.ordered_dot(whitened, whitened))
    step, change = position - walk.position, walk.gradient - gradient
    curvature, square = core.ordered_dot(step, change), core.ordered_dot(change, change)
    tells = walk.active & (curvature > SMALLEST * square) & (curvature > 0) & jnp.isfinite(curvature + square)

    def append(history: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.where(tells, jnp.concatenate([history[1:], jnp.expand_dims(row, 0)]), history)

    variances = jnp.where(tells, _variances(walk.variances, step, change), walk.variances)
    steps, changes = append(walk.steps, step), append(walk.changes, change)
    metric = from_moves(variances, steps, changes)
    remaining = metric.force(gradient)
    updates, iterations = walk.updates + tells.astype(jnp.int32), walk.iterations + 1
    gain = 0.5 * core.ordered_dot(remaining, remaining)
    # Gradients go on where rounding hides what they gain, but not for ever.
    rose = log_density > walk.log_density + ROUNDING * jnp.finfo(flat.dtype).eps * jnp.abs(log_density)
    stalled = jnp.where(rose, 0, walk.stalled + 1)
    over = ((updates > 0) & (gain <= tolerance)) | (stalled >= PATIENCE) | (iterations >= max_steps)
    new = Walk(
        position=position,
        log_density=log_density,
        gradient=gradient,
        metric=metric,
        variances=variances,
        steps=steps,
        changes=changes,
        updates=updates,
        iterations=iterations,
        stalled=stalled,
        gain=gain,
        active=walk.active & jnp.any(step != 0) & ~over,
    )
    return jax.tree.map(lambda a, b: jnp.where(walk.active, a, b), new, walk)


def maximise(flat: Flat, position: jax.Array, memory: int, max_steps: Any, tolerance: Any) -> Walk:
    """Walks until the gain is within the tolerance, nothing moves, or `max_steps` are done."""
    return core.while_loop(
        lambda walk: walk.active,
        lambda walk: advance(flat, walk, max_steps, tolerance),
        start(flat, position, memory),
    )


def _variances(variances: jax.Array, step: jax.Array, change: jax.Array) -> jax.Array:
    """The diagonal that agrees best with a new move (Gilbert & Lemaréchal 1989, equation 4.9)."""
    along = core.ordered_dot(step, change)
    ahead = core.ordered_dot(change, variances * change)
    back = core.ordered_dot(step, step / variances)
    share = step**2 / variances / back  # at most one
    new = 1 / (ahead / along * jnp.maximum(1 - share, 0) / variances + change**2 / along)
    return jnp.where(jnp.isfinite(new) & (new > 0), new, variances)


def _line_search(
    flat: Flat, walk: Walk, direction: jax.Array, slope: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The point that a line search finds: position, log density, gradient; where it began if it finds none."""
    slack = ROUNDING * jnp.finfo(flat.dtype).eps * jnp.abs(walk.log_density)

    def attempt(trial: _Trial) -> _Trial:
        position = walk.position + trial.step * direction
        log_density, gradient = flat.evaluate(position)
        rises = log_density >= walk.log_density + DECREASE * trial.step * slope - slack
        rises = rises & jnp.isfinite(log_density) & jnp.all(jnp.isfinite(gradient))
        steep = core.ordered_dot(gradient, direction) > CURVATURE * slope
        best = jax.tree.map(lambda a, b: jnp.where(rises, a, b), (position, log_density, gradient), trial.best)
        low, high = jnp.where(rises, trial.step, trial.low), jnp.where(rises, trial.high, trial.step)
        step = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2 * low)
        done = (rises & ~steep) | (trial.trials + 1 >= TRIALS)
        return _Trial(low, high, step, best, trial.trials + 1, done)

    zero = jnp.zeros_like(slope)
    here = (walk.position, walk.log_density, walk.gradient)
    first = _Trial(zero, zero + jnp.inf, zero + 1, here, jnp.int32(0), ~walk.active)
    return core.while_loop(lambda trial: ~trial.done, attempt, first).best
