"""Ordinary differential equations: fixed steps, or steps that an estimate of the error chooses.

Source: Dormand & Prince (1980), "A family of embedded Runge-Kutta formulae", RK5(4)7M; Hairer, Norsett & Wanner (1993),
"Solving ordinary differential equations I", sections II.4 and IV.2 of volume II for the control of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import scan

Slope = Callable[[jax.Array, Any], Any]  # (time, y) -> dy/dtime

STAGES = 6
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
# Of the fifth order minus the fourth; the last is of the slope at the end of the step.
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


def _along(y: Any, length: jax.Array, weights: tuple[float, ...], slopes: list[Any]) -> Any:
    """y + length * (the weighted sum of slopes)."""

    def one(y: jax.Array, *slopes: jax.Array) -> jax.Array:
        terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
        return y + length.astype(y.dtype) * sum(terms[1:], terms[0])

    return jax.tree.map(one, y, *slopes)


def _step(slope: Slope, time: jax.Array, y: Any, length: jax.Array, first: Any) -> tuple[Any, list[Any]]:
    """y after a step, and the slopes in it; `first` is the one at its start."""
    slopes = [first]
    for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
        slopes.append(slope(time + node * length, _along(y, length, weights, slopes)))
    return _along(y, length, _WEIGHTS, slopes), slopes


def fixed_steps(slope: Slope, y: Any, start: jax.Array, end: jax.Array, steps: int) -> Solution:
    """Integrates from `start` to `end` in equal steps of fifth order; reverse-mode derivatives work."""
    length = (end - start) / steps

    def one(y: Any, index: jax.Array) -> tuple[Any, None]:
        time = start + index.astype(length.dtype) * length
        return _step(slope, time, y, length, slope(time, y))[0], None

    y, _ = scan.scan(one, y, jnp.arange(steps))
    return Solution(y, jnp.bool_(True), jnp.int32(STAGES * steps))


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
        new, slopes = _step(slope, time, y, tried, first)
        slopes.append(slope(time + tried, new))
        zero = jax.tree.map(jnp.zeros_like, y)
        gap = _along(zero, tried, _ERRORS, slopes)
        sizes = jax.tree.map(
            lambda gap, old, new: jnp.mean((gap / (1 + jnp.maximum(jnp.abs(old), jnp.abs(new)))) ** 2), gap, y, new
        )
        error = jnp.sqrt(jnp.max(jnp.stack(jax.tree.leaves(sizes)))).astype(time.dtype) / tolerance
        fine = error <= 1  # false for NaN
        error = jnp.where(jnp.isfinite(error), jnp.maximum(error, 1e-4), 1e4)
        # Proportional and integral control, which changes steps less often than the error alone would.
        factor = jnp.where(fine, 0.9 * error**-0.14 * before**0.08, 0.9 * error**-0.2)
        length = tried * jnp.clip(factor, 0.2, 10.0)
        y, first = jax.tree.map(lambda new, old: jnp.where(fine, new, old), (new, slopes[-1]), (y, first))
        time, before = jnp.where(fine, time + tried, time), jnp.where(fine, error, before)
        return time, y, first, length, before, attempts + 1, fine & last

    start, end = jnp.asarray(start), jnp.asarray(end)
    tolerance = jnp.asarray(tolerance).astype(start.dtype)
    state = (start, y, slope(start, y), 0.01 * (end - start), jnp.ones_like(start), jnp.int32(0), jnp.bool_(False))
    _, y, _, _, _, attempts, reached = lax.while_loop(going, attempt, state)
    return Solution(y, reached, 1 + STAGES * attempts)
