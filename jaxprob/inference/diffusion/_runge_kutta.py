"""Ordinary differential equations: fixed steps, or steps that an estimate of the error chooses.

Source: Dormand & Prince (1980), "A family of embedded Runge-Kutta formulae", RK5(4)7M; Hairer, Norsett & Wanner (1993),
"Solving ordinary differential equations I", sections II.4 and IV.2 of volume II for the control of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan

Slope = Callable[[jax.Array, Any], Any]  # (time, y) -> dy/dtime

STAGES = 6  # evaluations of the slope in a step, the first of which is the last of the step before
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
# The last row are the weights of the step itself, of order five.
_WEIGHTS = (
    (1 / 5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (3 / 40, 9 / 40, 0.0, 0.0, 0.0, 0.0, 0.0),
    (44 / 45, -56 / 15, 32 / 9, 0.0, 0.0, 0.0, 0.0),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0.0, 0.0, 0.0),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0.0, 0.0),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
)
# Of the fifth order minus the fourth.
_ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Solution(NamedTuple):
    """The end of an integration.

    Attributes:
      y: pytree, at the last time that was reached.
      reached: (), whether that is the end.
      evaluations: (), int32, of the slope.
    """

    y: Any
    reached: jax.Array
    evaluations: jax.Array


def _combined(length: jax.Array, weights: jax.Array, slopes: Any) -> Any:
    """length * (the weighted sum of slopes (stage, ...))."""

    def one(slopes: jax.Array) -> jax.Array:
        # No product of matrices, whose precision is low on some devices.
        columns = weights.astype(slopes.dtype).reshape(-1, *[1] * (slopes.ndim - 1))
        return length.astype(slopes.dtype) * jnp.sum(columns * slopes, 0)

    return jax.tree.map(one, slopes)


def _step(slope: Slope, time: jax.Array, y: Any, length: jax.Array, first: Any) -> tuple[Any, Any, Any]:
    """y after a step, the slope there, and the estimate of the error; `first` is the slope at the start."""
    stages = STAGES + 1
    slopes = jax.tree.map(lambda k: jnp.zeros((stages, *k.shape), k.dtype).at[0].set(k), first)

    def stage(carry: Any, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, None]:
        (slopes, _), (index, node, weights) = carry, inputs
        new = jax.tree.map(jnp.add, y, _combined(length, weights, slopes))
        latest = slope(time + node * length, new)
        return (jax.tree.map(lambda all_, k: all_.at[index].set(k), slopes, latest), new), None

    nodes, weights = jnp.asarray(_NODES, time.dtype), jnp.asarray(_WEIGHTS, time.dtype)
    # A loop, so that the slope is compiled once and not for each stage.
    (slopes, new), _ = scan.scan(stage, (slopes, y), (jnp.arange(1, stages), nodes, weights))
    gap = _combined(length, jnp.asarray(_ERRORS, time.dtype), slopes)
    return new, jax.tree.map(lambda k: k[-1], slopes), gap


def fixed_steps(slope: Slope, y: Any, start: jax.Array, end: jax.Array, steps: int) -> Solution:
    """Integrates from `start` to `end` in equal steps of fifth order; reverse-mode derivatives work."""
    length = (end - start) / steps

    def one(state: Any, index: jax.Array) -> tuple[Any, None]:
        y, first = state
        return _step(slope, start + index.astype(length.dtype) * length, y, length, first)[:2], None

    (y, _), _ = scan.scan(one, (y, slope(start, y)), jnp.arange(steps))
    return Solution(y, jnp.bool_(True), jnp.int32(1 + STAGES * steps))


def controlled_steps(
    slope: Slope, y: Any, start: jax.Array, end: jax.Array, tolerance: Any, max_steps: int
) -> Solution:
    """Integrates from `start` to `end` with steps whose error is at most `tolerance * (1 + |y|)`, by their estimate.

    The root mean square counts, of the leaf where it is largest. A step that is NaN is tried again, shorter.

    Args:
      slope: `(time, y) -> dy/dtime`.
      y: pytree at `start`.
      start: ().
      end: ().
      tolerance: ().
      max_steps: the most steps, those that fail included.
    """

    def going(state: Any) -> jax.Array:
        _, _, _, _, _, attempts, reached = state
        return ~reached & (attempts < max_steps)

    def attempt(state: Any) -> Any:
        time, y, first, length, before, attempts, _ = state
        last = jnp.abs(length) >= jnp.abs(end - time)
        tried = jnp.where(last, end - time, length)
        new, latest, gap = _step(slope, time, y, tried, first)

        def size(gap: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            shares = gap / (1 + jnp.maximum(jnp.abs(old), jnp.abs(new)))
            return jnp.sqrt(jnp.mean(shares**2)).astype(time.dtype)

        error = jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(size, gap, y, new)))) / tolerance
        fine = error <= 1  # false for NaN
        error = jnp.where(jnp.isfinite(error), jnp.maximum(error, 1e-4), 1e4)
        # Proportional and integral control, which changes steps less often than the error alone would.
        factor = jnp.where(fine, 0.9 * error**-0.14 * before**0.08, 0.9 * error**-0.2)
        length = tried * jnp.clip(factor, 0.2, 10.0)
        y, first = jax.tree.map(lambda new, old: jnp.where(fine, new, old), (new, latest), (y, first))
        time, before = jnp.where(fine, time + tried, time), jnp.where(fine, error, before)
        return time, y, first, length, before, attempts + 1, fine & last

    start, end = jnp.asarray(start), jnp.asarray(end)
    tolerance = jnp.asarray(tolerance).astype(start.dtype)
    state = (start, y, slope(start, y), 0.01 * (end - start), jnp.ones_like(start), jnp.int32(0), jnp.bool_(False))
    _, y, _, _, _, attempts, reached = core.while_loop(going, attempt, state)
    return Solution(y, reached, 1 + STAGES * attempts)
