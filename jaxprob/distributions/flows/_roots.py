"""Roots of increasing functions, elementwise, by Newton steps that a bracket holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core


def increasing_root(function: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """Where an increasing elementwise function is zero; derivatives are those of the implicit function theorem.

    Newton's steps, with bisection in place of a step that leaves the bracket or is not half as long as the one before,
    so that the number of steps is bounded whatever the function.

    Args:
      function: `u -> value`, of one shape, whose value at each entry depends on that entry of u alone.
      low: lower ends of brackets; NaN gives NaN.
      high: upper ends, of the shape of `low`.

    Returns:
      the roots, to a few units of rounding of 1 + |u| or to where the rounding of the function hides them.

    Source: Press, Teukolsky, Vetterling and Flannery (2007), "Numerical Recipes", section 9.4, rtsafe.
    """
    low, high = lax.stop_gradient(low), lax.stop_gradient(high)
    limits = jnp.finfo(low.dtype)
    # Ends that were computed are off by their rounding.
    margin = 8 * limits.eps * (jnp.abs(low) + jnp.abs(high))
    low, high = low - margin, high + margin

    def solve(value_of: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
        ones = jnp.ones_like(start)

        def step(state: Any) -> Any:
            count, low, high, u, last, done = state
            value, slope = jax.jvp(value_of, (u,), (ones,))
            low, high = jnp.where(value < 0, u, low), jnp.where(value > 0, u, high)
            newton = u - value / slope
            held = (newton >= low) & (newton <= high) & (jnp.abs(newton - u) <= 0.5 * last) & (slope < jnp.inf)
            after = jnp.where(held, newton, low + 0.5 * (high - low))
            moved = jnp.abs(after - u)
            # What is NaN is done: there is nothing to find.
            found = (value == 0) | ~(moved > 4 * limits.eps * (1 + jnp.abs(u)))
            u = jnp.where(done | (value == 0), u, after)
            return count + 1, low, high, u, moved, done | found

        def going(state: Any) -> jax.Array:
            return (state[0] < 4 * limits.nmant) & ~jnp.all(state[-1])

        return core.while_loop(going, step, (jnp.int32(0), low, high, start, high - low, jnp.isnan(start)))[3]

    start = low + 0.5 * (high - low)
    return lax.custom_root(function, start, solve, lambda slope, y: y / slope(jnp.ones_like(y)))
