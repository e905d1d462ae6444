"""The sequential filter with an adjoint of its own: what a likelihood's gradient costs is about two filters.

The cotangent of a covariance P = L L^T, a symmetric G with dl = tr(G dP), is carried as 2 G L, which goes back through
an update or a prediction by the very rotations that the root went forward by. No derivative of a root is ever taken, so
that singular covariances, of which roots have none, have the derivatives that they should; and no difference of large
numbers is, so that float32 keeps its digits.

Source: Koopman & Shephard (1992), "Exact score for time series models in state space form", whose r and N make
G = (r r^T - N) / 2; the form with roots is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import scan
from jaxprob.inference.kalman._square_root import (
    UNROLLED,
    Moments,
    Seen,
    decorrelate,
    later,
    observe,
    observe_one,
    predict,
    product,
    turn,
)
from jaxprob.inference.kalman._steps import Step, Steps

WRITTEN_OUT = 6  # rows up to which a triangular system is solved by code that fuses with what is around it


@jax.custom_vjp
def seen(start: Moments, constant: Step, varying: Step) -> Seen:
    """What was seen at all times, time leading.

    Args:
      start: of the first time, predicted.
      constant: what does not vary, as in `Steps`.
      varying: what does, time leading.
    """
    steps = Steps(start, constant, varying)

    def body(moments: Moments, varying: Step) -> tuple[Moments, Seen]:
        return _advance(moments, steps.at(varying))

    found: Seen = scan.scan(body, start, varying)[1]
    return found


def _advance(moments: Moments, step: Step) -> tuple[Moments, Seen]:
    filtered, found = observe(moments, step.emission, step.emission_covariance, step.values, step.seen)
    return predict(filtered, step.dynamics, step.dynamics_offset, step.dynamics_root), found


def zeros_like(constant: Step) -> Step:
    """Cotangents of what is constant."""
    return jax.tree.map(jnp.zeros_like, where_there(constant, constant))


def _forward(start: Moments, constant: Step, varying: Step) -> tuple[Seen, Any]:
    steps = Steps(start, constant, varying)

    def body(moments: Moments, varying: Step) -> tuple[Moments, Any]:
        after, found = _advance(moments, steps.at(varying))
        return after, (found, moments)

    final, (found, predicted) = scan.scan(body, start, varying)
    return found, (steps, predicted, final.factor)


def _backward(kept: Any, of_seen: Seen) -> Any:
    steps, predicted, last = kept

    def body(carry: Any, at: Any) -> Any:
        after, next_factor, totals = carry
        varying, moments, of_seen = at
        before, of_step = one_back(moments, steps.at(varying), next_factor, after, of_seen)
        # What is constant has one cotangent for all times, and what varies one at each.
        totals = jax.tree.map(jnp.add, totals, where_there(steps.constant, of_step))
        return (before, moments.factor, totals), where_there(steps.varying, of_step)

    none = jax.tree.map(jnp.zeros_like, steps.start)
    (of_start, _, totals), each = scan.scan(
        body, (none, last, zeros_like(steps.constant)), (steps.varying, predicted, of_seen), reverse=True
    )
    return of_start, totals, each


seen.defvjp(_forward, _backward)


def where_there(which: Step, step: Step) -> Step:
    """The entries of a step that are there in another, but for `seen`, which has no derivative."""
    return Step(*(x if w is not None else None for w, x in zip(which, step, strict=True)))._replace(seen=None)


def one_back(
    moments: Moments, step: Step, next_factor: jax.Array, after: Moments, of_seen: Seen
) -> tuple[Moments, Step]:
    """Cotangents before a time, and of its step, from those of the next prediction and of what was seen.

    Args:
      moments: predicted at this time.
      next_factor: (n, n), root of the next prediction.
      after: R (n, 1 + d), cotangent of the means, and 2 G L (n, n).
    """
    filtered, unobserve = observed(moments, step)
    # Back through x+ = F x + b + G w: the rows [F L, G] are the next root times Q, whose rows are orthonormal.
    n = filtered.factor.shape[0]
    rows = jnp.concatenate([product(step.dynamics, filtered.factor), step.dynamics_root], 1)
    of_rows = product(after.factor, _directions(next_factor, rows))
    of_dynamics = product(after.mean, filtered.mean.T) + product(of_rows[:, :n], filtered.factor.T)
    cotangent = Moments(product(step.dynamics.T, after.mean), product(step.dynamics.T, of_rows[:, :n]))
    before, of_observed = unobserve(cotangent, of_seen)
    return before, of_observed._replace(
        dynamics=of_dynamics, dynamics_offset=after.mean[:, 0], dynamics_root=of_rows[:, n:]
    )


def observed(moments: Moments, step: Step) -> tuple[Moments, Callable[[Moments, Seen], tuple[Moments, Step]]]:
    """The moments after `observe`; and cotangents before it, and of its step, from those after it and of what was seen.

    The cotangent of a root L is 2 G L.
    """
    m = step.emission.shape[0]
    full = step.emission_covariance.ndim == 2
    numbers: Any = (step.emission, step.emission_covariance, step.values)
    back: Any = None
    if full and m > 1:
        numbers, back = jax.vjp(lambda rows, noise, values: decorrelate(rows, noise, values, step.seen), *numbers)
    elif full:
        numbers = step.emission, step.emission_covariance[0], step.values
    each = (*numbers, step.seen)
    before_each, filtered = _each(lambda moments, one: (observe_one(moments, *one)[0], moments), moments, each)

    def back_of_one(cotangent: Moments, at: Any) -> tuple[Moments, Any]:
        return _unobserve_one(cotangent, *at)

    def unobserve(cotangent: Moments, of_seen: Seen) -> tuple[Moments, Step]:
        of_each, before = _each(back_of_one, cotangent, (before_each, *each, of_seen), reverse=True)
        if back is not None:
            of_each = back(of_each)
        elif full:
            of_each = of_each[0], jnp.expand_dims(of_each[1], 0), of_each[2]
        of_emission, of_noise, of_values = of_each
        return before, Step(None, None, None, of_emission, of_noise, of_values, None)

    return filtered, unobserve


def _each(body: Any, carry: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`carry, y = body(carry, x)` for each number observed: the outputs and the last carry."""
    m = jax.tree.leaves(xs)[0].shape[0]
    if m > UNROLLED:
        final, ys = scan.scan(body, carry, xs, reverse=reverse)
        return ys, final
    found = [None] * m
    for i in reversed(range(m)) if reverse else range(m):
        carry, found[i] = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found), carry


def _directions(factor: jax.Array, rows: jax.Array) -> jax.Array:
    """Q with L Q = A, for the root L of A A^T; rows of zeros where the column of L is one."""
    n = factor.shape[0]
    eye = np.eye(n, dtype=bool)
    pivots = jnp.sum(jnp.where(eye, factor, 0), 1)
    there = pivots > 0
    safe = jnp.where(there, pivots, 1)
    if n > WRITTEN_OUT:
        lower = jnp.where(eye, jnp.expand_dims(safe, 1), factor)
        found = lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)
        return jnp.where(jnp.expand_dims(there, 1), found, 0)
    inverse = jnp.where(there, 1 / safe, 0)
    solved: list[jax.Array] = []
    for i in range(n):
        rest = rows[i]
        for j in range(i):
            rest = rest - factor[i, j] * solved[j]
        solved.append(rest * inverse[i])
    return jnp.stack(solved)


def _unobserve_one(
    after: Moments,
    moments: Moments,
    row: jax.Array,
    variance: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    of_seen: Seen,
) -> tuple[Moments, tuple[jax.Array, jax.Array, jax.Array]]:
    """Cotangents before `observe_one`, and those of its row, variance and value, from the ones after it.

    With f = L^T h, s = r + f^T f, g = L f and the residual v, the update is M+ = M + g v / s and L+ = L C, where
    C C^T = I - f f^T / s.
    """
    mean, factor = moments
    f, total, inverse, gain, kept, moved = turn(factor, row, variance)
    there = seen & (total > 0)
    precision = inverse * inverse
    eye = np.eye(row.shape[0], dtype=bool)
    change = jnp.where(eye, kept, -later(f) * jnp.expand_dims(f, 1) * jnp.expand_dims(moved, 0))

    residual = value - jnp.sum(mean * jnp.expand_dims(row, 1), 0)
    along_mean = jnp.sum(after.mean * jnp.expand_dims(gain, 1), 0) * precision
    along_factor = jnp.sum(after.factor * jnp.expand_dims(gain, 1), 0) * precision
    of_residual = along_mean + of_seen.innovation * inverse
    # Of s, but for what comes through the covariance after the update.
    of_total = (
        0.5 * of_seen.log_scale - jnp.sum((along_mean + 0.5 * of_seen.innovation * inverse) * residual)
    ) * precision
    pulled = jnp.sum(after.mean * jnp.expand_dims(residual, 0), 1) * precision
    projected = jnp.sum(factor * jnp.expand_dims(pulled, 1), 0)

    outer = after.factor - jnp.expand_dims(row, 1) * jnp.expand_dims(along_factor, 0)
    of_factor = (
        product(outer, change.T)
        + jnp.expand_dims(pulled, 1) * jnp.expand_dims(f, 0)
        + jnp.expand_dims(row, 1) * jnp.expand_dims(projected + 2 * of_total * f, 0)
    )
    of_mean = after.mean - jnp.expand_dims(row, 1) * jnp.expand_dims(of_residual, 0)
    turned = projected - jnp.sum(change * jnp.expand_dims(along_factor, 0), 1)
    of_row = (
        jnp.sum(factor * jnp.expand_dims(turned, 0), 1)
        + 2 * of_total * gain
        - jnp.sum(mean * jnp.expand_dims(of_residual, 0), 1)
    )
    of_variance = 0.5 * jnp.sum(along_factor * moved) + of_total

    of_numbers = (of_row, of_variance, of_residual)
    before, of_numbers = jax.tree.map(
        lambda new, old: jnp.where(there, new, old),
        (Moments(of_mean, of_factor), of_numbers),
        (after, jax.tree.map(jnp.zeros_like, of_numbers)),
    )
    return before, of_numbers


def gradient(function: Callable[[Any], jax.Array], steps: Any) -> tuple[jax.Array, Any]:
    """The value () of a function of steps, and its derivatives with respect to them; None for what has none."""
    value, back = pullback(function, steps)
    return value, back(jnp.ones_like(value))


def pullback(function: Callable[[Any], Any], steps: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What a function of steps returns, and what takes its cotangent to theirs; None for what has none."""
    inexact = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, steps)
    rest = jax.tree.map(lambda leaf: None if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, steps)

    def of_inexact(inexact: Any) -> Any:
        leaves = jax.tree.map(lambda x, other: other if x is None else x, inexact, rest, is_leaf=lambda x: x is None)
        return function(leaves)

    value, back = jax.vjp(of_inexact, inexact)
    return value, lambda cotangent: back(cotangent)[0]
