"""Statistics of a run while it goes on, in memory that does not grow with the number of draws.

For each chain the draws so far are held as at most 32 consecutive batches of equal length, each by its mean and its sum
of squares. When the last batch is full, neighbours are merged and the length doubles. From the batches follow mean and
variance (exactly), split R-hat and effective sample size (at the resolution of a batch).

`add` takes one draw of every chain. It is the only way in, so that the result does not depend, in a single bit, on how
a run was cut into chunks: scan it.

Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", The American Statistician 37(3);
Flegal and Jones (2010), "Batch means and spectral variance estimators in MCMC", Annals of Statistics 38(2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core

BATCHES = 32
_ENOUGH = 32
"""Batches, over all chains, from which the variance of a batch mean is estimated to about 25 %."""
_LEVELS = BATCHES.bit_length() - 1
_SHORTEST = 4
"""Draws in a batch below which its mean says nothing about autocorrelation."""


class State(NamedTuple):
    """What is kept of the draws so far.

    Attributes:
      draws: (), draws of each chain so far.
      length: (), draws in a full batch, a power of two.
      reference: (chain, size), the first draw of each chain. Everything below is relative to it, which is what lets
        1e6 + N(0, 1) work in float32.
      mean: (chain, 32, size), means of the batches.
      squares: (chain, 32, size), sums of squared deviations inside the batches.
    """

    draws: jax.Array
    length: jax.Array
    reference: jax.Array
    mean: jax.Array
    squares: jax.Array


def init(draw: Any) -> State:
    """The state before any draw.

    Args:
      draw: (chain, size), an array like the draws to come (a position of every chain as a vector); only its shape and
        dtype matter. Shorter floats than float32 are accumulated in float32.

    Raises:
      ValueError: if `draw` does not have two axes.

    >>> state = init(jnp.zeros((4, 2)))
    >>> state = add(add(state, jnp.ones((4, 2))), 3 * jnp.ones((4, 2)))
    >>> mean(state).tolist()
    [2.0, 2.0]
    """
    shape = jnp.shape(draw)
    if len(shape) != 2:
        raise core.bad_value("online.init", "draw", draw, "an array (chain, size)", "Ravel the position of each chain")
    dtype = core.accumulator_dtype(core.result_dtype(draw))
    batches = jnp.zeros((shape[0], BATCHES, shape[1]), dtype)
    return State(jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32), jnp.zeros(shape, dtype), batches, batches)


def add(state: State, draw: jax.Array) -> State:
    """The state after one more draw of every chain.

    Args:
      state: from `init` or `add`.
      draw: (chain, size).

    Raises:
      ValueError: if `draw` has another shape than the state was made for.
    """
    if jnp.shape(draw) != state.reference.shape:
        raise core.bad_value("online.add", "draw", draw, f"an array of shape {state.reference.shape}")
    draw = draw.astype(state.mean.dtype)
    reference = jnp.where(state.draws == 0, draw, state.reference)
    # A loop of no or one turn rather than a condition: XLA updates a loop's buffers in place.
    length, means, squares = core.while_loop(
        lambda batches: state.draws == BATCHES * batches[0], _merge, (state.length, state.mean, state.squares)
    )
    index = state.draws // length
    before = state.draws - index * length
    # A batch that begins takes the place of one that was merged away, whatever is left there.
    fresh = before == 0
    old_mean = jnp.where(fresh, 0, lax.dynamic_index_in_dim(means, index, axis=1, keepdims=False))
    old_squares = jnp.where(fresh, 0, lax.dynamic_index_in_dim(squares, index, axis=1, keepdims=False))
    value = draw - reference
    change = value - old_mean
    new_mean = old_mean + change / (before + 1).astype(draw.dtype)
    new_squares = old_squares + change * (value - new_mean)
    return State(
        state.draws + 1,
        length,
        reference,
        lax.dynamic_update_index_in_dim(means, new_mean, index, axis=1),
        lax.dynamic_update_index_in_dim(squares, new_squares, index, axis=1),
    )


@jax.jit
def mean(state: State) -> jax.Array:
    """Mean over all draws of all chains, (size,); NaN before the first."""
    offset, weights = _relative_means(state), _weights(state)[None, :, None]
    total = state.reference.shape[0] * state.draws.astype(offset.dtype)
    return state.reference[0] + jnp.sum(weights * offset, axis=(0, 1)) / total


@jax.jit
def variance(state: State) -> jax.Array:
    """Variance over all draws of all chains, with divisor n - 1, (size,); NaN before the second draw."""
    offset, weights = _relative_means(state), _weights(state)[None, :, None]
    total = state.reference.shape[0] * state.draws.astype(offset.dtype)
    centre = jnp.sum(weights * offset, axis=(0, 1)) / total
    inside = jnp.sum(jnp.where(weights > 0, state.squares, 0), axis=(0, 1))
    between = jnp.sum(weights * (offset - centre[None, None]) ** 2, axis=(0, 1))
    return (inside + between) / jnp.where(total > 1, total - 1, jnp.nan)


@jax.jit
def r_hat(state: State) -> jax.Array:
    """Split R-hat, (size,): the halves are the first and the last full batches of each chain.

    It is the plain one, not rank-normalised, so that infinite variances pass unnoticed. The odd batch in the middle and
    the last one that is not full belong to neither half.

    Returns:
      (size,); inf before the fourth draw and where a draw is not finite, so that no stopping rule is met by ignorance;
      NaN where nothing varies.
    """
    half = (state.draws // state.length) // 2
    full = 2 * half + (state.draws // state.length) % 2
    offset = _relative_means(state)
    place = jnp.arange(BATCHES)
    size = half * state.length
    number = size.astype(offset.dtype)

    def moments(inside: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = inside[None, :, None]
        centre = jnp.sum(jnp.where(chosen, offset, 0), axis=1) / half.astype(offset.dtype)
        around = state.squares + state.length.astype(offset.dtype) * (offset - centre[:, None]) ** 2
        return centre, jnp.sum(jnp.where(chosen, around, 0), axis=1) / (number - 1)

    halves = [moments(place < half), moments((place >= full - half) & (place < full))]
    centres = jnp.concatenate([centre for centre, _ in halves])
    within = jnp.mean(jnp.concatenate([spread for _, spread in halves]), axis=0)
    between = jnp.var(centres, axis=0, ddof=1)
    value = jnp.sqrt((number - 1) / number + between / within)
    known = jnp.where(variance(state) == 0, jnp.nan, jnp.where(jnp.isnan(value), jnp.inf, value))
    return jnp.where(size >= 2, known, jnp.inf)


@jax.jit
def effective_sample_size(state: State) -> jax.Array:
    """Effective sample size of the mean by batch means, (size,): `n var(x) / (length var(batch means))`.

    Batches of all chains are taken about one common mean. Longer batches see more of the autocorrelation and are fewer:
    each doubling of the length is tried that leaves 32 batches over all chains, and the smallest result counts. The
    longest ones, which are fewer, count as far as chance (three standard errors) does not explain their spread, so that
    chains which disagree have a small ESS. It is meant for stopping rules and progress, correct to some 15 % once
    batches (1/32 to 1/16 of a chain, at first) are longer than the autocorrelation time, and too large before.

    Returns:
      (size,), above n for antithetic chains; 0 while the longest of the batches that are 32 or more have fewer than 4
      draws, and where a draw is not finite, so that no stopping rule is met by ignorance; NaN where nothing varies.
    """
    offset = _relative_means(state)
    chains, _, size = offset.shape
    full = state.draws // state.length
    total = chains * state.draws.astype(offset.dtype)
    worst = jnp.zeros((size,), offset.dtype)
    longest = state.length
    for level in range(_LEVELS + 1):
        number = full >> level
        groups = (chains * number).astype(offset.dtype)
        length = (state.length << level).astype(offset.dtype)
        chosen = (jnp.arange(BATCHES >> level) < number)[None, :, None]
        centre = jnp.sum(jnp.where(chosen, offset, 0), axis=(0, 1)) / groups
        spread = jnp.sum(jnp.where(chosen, (offset - centre[None, None]) ** 2, 0), axis=(0, 1)) / (groups - 1)
        enough = (chains * number >= _ENOUGH) | (level == 0)
        by_chance = jnp.where(enough, 1, 1 + 3 * jnp.sqrt(2 / (groups - 1)))
        worst = jnp.where(chains * number >= 2, jnp.maximum(worst, length * spread / by_chance), worst)
        longest = jnp.where(enough, state.length << level, longest)
        offset = (offset[:, 0::2] + offset[:, 1::2]) / 2 if level < _LEVELS else offset
    spread = variance(state)
    known = jnp.where(spread == 0, jnp.nan, jnp.where(spread > 0, total * spread / worst, 0))
    return jnp.where(longest >= _SHORTEST, known, 0)


def _merge(batches: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs of neighbouring full batches become one; the second half of the places is free."""
    length, means, squares = batches
    first, second = means[:, 0::2], means[:, 1::2]
    change = second - first
    merged = squares[:, 0::2] + squares[:, 1::2] + change**2 * (length.astype(means.dtype) / 2)
    free = jnp.zeros_like(merged)
    return 2 * length, jnp.concatenate([first + change / 2, free], axis=1), jnp.concatenate([merged, free], axis=1)


def _weights(state: State) -> jax.Array:
    """Draws in each batch, (32,)."""
    filled = state.draws - jnp.arange(BATCHES, dtype=jnp.int32) * state.length
    return jnp.clip(filled, 0, state.length).astype(state.mean.dtype)


def _relative_means(state: State) -> jax.Array:
    """Batch means relative to the reference of the first chain, (chain, 32, size); 0 for empty batches."""
    shift = (state.reference - state.reference[:1])[:, None]
    return jnp.where(_weights(state)[None, :, None] > 0, state.mean + shift, 0)
