"""Messages of a chain as probabilities, scaled at each time: a tenth of the work of logarithms, where nothing is lost.

What underflows counts as impossible. That does no harm where every state can be come to from what is left, nor where
nothing that is possible underflows; each call says whether one of these was so at all times.

Source: Rabiner (1989), "A tutorial on hidden Markov models", section V.A.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan


def top(weights: jax.Array, axis: Any = None) -> jax.Array:
    """The largest of all, 0 if that is -inf: a shift that is taken out, whatever its value."""
    largest = lax.stop_gradient(jnp.max(weights, axis, keepdims=axis is not None))
    return jnp.where(largest == -jnp.inf, 0, largest)


def forward(chain: Any) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The entries of `Forward` of a `Chain` of at least one time, and whether they are right."""
    shift, matrix = _matrix(chain.transition)
    gaps = chain.scores - top(chain.scores, -1)
    likely = jnp.exp(gaps)
    start = chain.initial + chain.scores[0]
    first = core.logsumexp(start)
    begin = start - jnp.where(first == -jnp.inf, 0, first)

    def step(before: jax.Array, xs: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        (own, move), likely = xs
        moved = _product(before, matrix if own is None else own)
        moved = moved if move is None else jnp.where(move, moved, before)
        weights = moved * likely
        total = jnp.sum(weights)
        return weights / jnp.where(total > 0, total, 1), (moved, total)

    _, (moved, totals) = scan.scan(step, jnp.exp(begin), (_varying(chain, matrix), likely[1:]))
    sums = jnp.expand_dims(totals, 1)
    logs = core.safe_log(moved)
    filtered = logs + gaps[1:] - jnp.log(jnp.where(sums > 0, sums, 1))
    shifts = jnp.broadcast_to(shift, totals.shape) if chain.moves is None else jnp.where(chain.moves, shift, 0)
    predicted = logs + jnp.expand_dims(shifts, 1)
    change = core.safe_log(totals) + top(chain.scores[1:], -1)[:, 0] + shifts

    def kept() -> tuple[jax.Array, jax.Array]:
        weights = moved[:-1] * likely[1:-1] / jnp.where(sums > 0, sums, 1)[:-1]
        possible = (moved[:-1] > 0) & (gaps[1:-1] > -jnp.inf)
        first = jnp.expand_dims(begin, 0)
        return jnp.concatenate([jnp.exp(first), weights]), jnp.concatenate([first > -jnp.inf, possible])

    right = _is_right(chain.transition, moved, kept)
    firsts, rest = (begin, chain.initial, first), (filtered, predicted, change)
    found = jax.tree.map(lambda one, all: jnp.concatenate([jnp.expand_dims(one, 0), all]), firsts, rest)
    return found, right


def backward(chain: Any) -> tuple[jax.Array, jax.Array]:
    """Messages from the future of all times but the last, (time - 1, K), and whether they are right."""
    _, matrix = _matrix(chain.transition)
    gaps = chain.scores[1:] - top(chain.scores[1:], -1)
    matrix = jnp.swapaxes(matrix, -1, -2)

    def step(after: jax.Array, xs: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        (own, move), likely = xs
        weights = after * likely
        moved = _product(weights, matrix if own is None else own)
        moved = moved if move is None else jnp.where(move, moved, weights)
        largest = lax.stop_gradient(jnp.max(moved))
        return moved / jnp.where(largest > 0, largest, 1), (moved, after)

    last = jnp.ones_like(chain.scores[0])
    likely = jnp.exp(gaps)
    _, (moved, after) = scan.scan(step, last, (_varying(chain, matrix), likely), reverse=True)
    right = _is_right(chain.transition, moved, lambda: (after * likely, (after > 0) & (gaps > -jnp.inf)))
    logs = core.safe_log(moved)
    return logs - top(logs, -1), right


def _matrix(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    shift = top(logs)
    return shift, jnp.exp(logs - shift)


def _varying(chain: Any, matrix: jax.Array) -> tuple[Any, Any]:
    """As `chain.varying`, of weights."""
    return (matrix if matrix.ndim == 3 else None), chain.moves


def _product(message: jax.Array, matrix: jax.Array) -> jax.Array:
    return jnp.matmul(message, matrix, precision=lax.Precision.HIGHEST)


def _is_right(logs: jax.Array, moved: jax.Array, kept: Any) -> jax.Array:
    """Whether what underflowed is nothing beside what did not, or nothing did.

    Args:
      logs: of the weights of steps.
      moved: (time, K), messages after a step.
      kept: returns (time, K), messages before a step, and booleans (time, K), whether they are to be above zero.
    """
    tiny = float(jnp.finfo(moved.dtype).tiny)

    def nothing_lost() -> jax.Array:
        messages, possible = kept()
        weights = (logs == -jnp.inf) | (logs - top(logs) >= 0.5 * math.log(tiny))
        return jnp.all(jnp.where(possible, messages >= tiny**0.5, messages == 0)) & jnp.all(weights)

    reached = core.all_of_batch(jnp.all(moved >= tiny**0.75))
    return lax.cond(reached, lambda: reached, nothing_lost)
