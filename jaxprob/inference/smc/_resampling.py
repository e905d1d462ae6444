"""Resampling: which particles survive, drawn in proportion to their weights.

Schemes go by the cumulative weights, kept as integers: the whole and the fractional part of the number of offspring
expected of the first particles. Sums of integers are exact, so that a particle without weight is never drawn and a
million particles in float32 get what is theirs; a cumulative sum of float32 weights has a resolution of 6e-8, some 6 %
of a weight of one in a million, and need not even increase.

Source: Douc, Cappe & Moulines (2005), "Comparison of resampling schemes for particle filtering"; Gerber, Chopin &
Whiteley (2019), "Negative association, ordering and convergence of resampling methods"; Del Moral (2004),
"Feynman-Kac formulae", section 2.5.2, for killing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan

Scheme: TypeAlias = Callable[[core.Key, jax.Array, int], jax.Array]


def systematic(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by systematic resampling: one uniform number for all draws, which then lie a fixed distance apart.

    Particle i, with normalised weight w_i, is drawn `floor(n w_i)` or `ceil(n w_i)` times, n w_i times on average. The
    ancestors come in increasing order.

    Args:
      key: random key.
      log_weights: (particle,), need not be normalised. Where their total is not a finite positive number (all -inf, a
        NaN) there is nothing to go by, and particles are drawn as if all weights were equal.
      num_draws: n, how many to draw.

    Returns:
      (num_draws,) int32, indices of particles.

    >>> systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4).tolist()
    [0, 0, 2, 3]
    """
    key = core.as_key(key, "systematic")
    return in_order(expected_offspring(log_weights, num_draws), core.random.bits(key, (), jnp.uint32), num_draws)


def stratified(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by stratified resampling: one uniform number in each of `num_draws` equal strata.

    Args, Returns: as for `systematic`; particle i is drawn n w_i times on average, at most twice fewer or more.

    >>> stratified(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4).tolist()
    [0, 0, 2, 3]
    """
    key = core.as_key(key, "stratified")
    fractions = core.random.bits(key, (num_draws,), jnp.uint32)
    return in_order(expected_offspring(log_weights, num_draws), fractions, num_draws)


def multinomial(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by multinomial resampling: independent draws, each of particle i with probability w_i.

    Args:
      key: random key.
      log_weights: (particle,), as for `systematic`.
      num_draws: how many to draw.

    Returns:
      (num_draws,) int32, indices of particles, in no order.
    """
    key = core.as_key(key, "multinomial")
    return independent(key, expected_offspring(log_weights, num_draws), num_draws)


def residual(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by residual resampling: `floor(n w_i)` copies of particle i, and the rest by independent draws.

    Args, Returns: as for `systematic`; the certain copies come first, in increasing order.

    >>> residual(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4).tolist()
    [0, 0, 2, 3]
    """
    key = core.as_key(key, "residual")
    certain, rest, number = residual_parts(expected_offspring(log_weights, num_draws), num_draws)
    return jnp.where(jnp.arange(num_draws, dtype=number.dtype) < number, certain, independent(key, rest, num_draws))


def ssp(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by the Srinivasan sampling process: `floor(n w_i)` or one more of each, decided in a row of duels.

    Two particles that may get one more play for it until one of them has it or has lost it. The numbers of offspring
    are negatively associated, so that estimates converge whatever the order of the particles, which is not known of
    systematic resampling. There is no conditional version.

    Args, Returns: as for `systematic`.

    Source: Gerber, Chopin & Whiteley (2019), section 4.

    >>> ssp(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4).tolist()
    [0, 0, 2, 3]
    """
    key = core.as_key(key, "ssp")
    return _ssp(key, expected_offspring(log_weights, num_draws), num_draws)


def killing(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors by killing: particle i stays with probability `w_i / max_j w_j`, or gives its place to a draw.

    Nothing happens where all weights are equal, and little where they nearly are: for potentials near one, as those of
    finely discretised times, no other test whether to resample is needed.

    Args, Returns: as for `systematic`, in no order; as many draws as there are particles.

    Raises:
      ValueError: for another number of draws.

    >>> killing(jax.random.key(0), jnp.zeros(4), 4).tolist()
    [0, 1, 2, 3]
    """
    if num_draws != log_weights.shape[0]:
        todo = "Use smc.systematic for another number"
        raise core.bad_value("killing", "num_draws", num_draws, f"{log_weights.shape[0]}, one a particle", todo)
    for_life, for_place = core.random.split(core.as_key(key, "killing"))
    expected = expected_offspring(log_weights, num_draws)
    stays = core.random.uniform(for_life, expected.shape, expected.dtype) < expected / jnp.max(expected)
    return jnp.where(stays, jnp.arange(num_draws, dtype=jnp.int32), independent(for_place, expected, num_draws))


@partial(jax.jit, static_argnames="total")
def shares(log_weights: jax.Array, total: int) -> jax.Array:
    """Weights (..., particle) scaled so that they sum to `total`; all zero where there is no mass."""
    # Relative to the largest and not to their sum: subtracting a sum near -1e4 would leave three digits in float32.
    top = lax.stop_gradient(jnp.max(log_weights, axis=-1, keepdims=True))
    relative = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    mass = jnp.sum(relative, axis=-1, keepdims=True)
    return relative * (total / jnp.where(mass == 0, 1, mass))


def expected_offspring(log_weights: jax.Array, num_draws: int) -> jax.Array:
    """How many times each particle is to be drawn on average, (particle,); equal where there is nothing to go by."""
    log_weights = lax.stop_gradient(log_weights).astype(core.accumulator_dtype(log_weights.dtype))
    share = shares(log_weights, num_draws)
    return jnp.where(jnp.sum(share) > 0, share, num_draws / log_weights.shape[0])


def split(share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The whole part of each share, int32, and the fractional part in units of 2^-32, uint32."""
    floor = jnp.floor(share)
    return floor.astype(jnp.int32), ((share - floor) * 2.0**32).astype(jnp.uint32)


def add(sum_: tuple[jax.Array, jax.Array], term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sum of two numbers in whole and fractional parts."""
    low = sum_[1] + term[1]
    # Unsigned sums wrap round; one that is less than its last term has just done so, and is carried.
    return sum_[0] + term[0] + (low < term[1]).astype(jnp.int32), low


def cumulative(share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of the first one, two, ... shares (particle,), in whole and fractional parts."""
    whole, fraction = split(share)
    low = scan.cumulative_sum(fraction)
    # As in `add`: a sum that has wrapped round is less than its last term.
    return scan.cumulative_sum(whole + (low < fraction).astype(jnp.int32)), low


@partial(jax.jit, static_argnames="num_draws")
def in_order(share: jax.Array, fractions: jax.Array, num_draws: int) -> jax.Array:
    """The particle on whose share of [0, num_draws) each point `j + fractions / 2^32`, j = 0, 1, ..., lies.

    Args:
      share: (particle,).
      fractions: (), or (num_draws,) one a point.
      num_draws: how many points there are.
    """
    high, low = cumulative(share)
    here = fractions if fractions.ndim == 0 else fractions[jnp.minimum(high, num_draws - 1)]
    return of_ends(high + (low > here).astype(jnp.int32), share, num_draws)


def of_ends(ends: jax.Array, share: jax.Array, num_draws: int) -> jax.Array:
    """Ancestors (num_draws,) of particles of which the first i + 1 have `ends[i]` draws."""
    # Draw j goes to the first particle that ends beyond it: as many particles end at j or before.
    passed = jnp.zeros((num_draws,), jnp.int32).at[ends].add(1, mode="drop")
    ancestors = scan.cumulative_sum(passed)
    # The shares add up to num_draws but for rounding: what lies beyond them belongs to the last particle with weight.
    last = jnp.max(jnp.where(share > 0, jnp.arange(share.shape[0], dtype=jnp.int32), 0))
    return jnp.minimum(ancestors, last)


@partial(jax.jit, static_argnames="num_draws")
def independent(key: core.Key, share: jax.Array, num_draws: int) -> jax.Array:
    """Independent draws (num_draws,) in proportion to the shares (particle,), in no order."""
    high, low = cumulative(jnp.where(jnp.sum(share) > 0, share * (num_draws / jnp.sum(share)), 1.0))
    cells = core.random.randint(core.fold(key, 0), (num_draws,), 0, num_draws, jnp.int32)
    fractions = core.random.bits(core.fold(key, 1), (num_draws,), jnp.uint32)

    def halve(bounds: tuple[jax.Array, jax.Array], _: Any) -> tuple[jax.Array, jax.Array]:
        first, last = bounds
        middle = (first + last) // 2
        beyond = (high[middle] > cells) | ((high[middle] == cells) & (low[middle] > fractions))
        return jnp.where(beyond, first, jnp.minimum(middle + 1, last)), jnp.where(beyond, middle, last)

    last = jnp.max(jnp.where(share > 0, jnp.arange(share.shape[0], dtype=jnp.int32), 0))
    bounds = jnp.zeros_like(cells), jnp.broadcast_to(last, cells.shape)
    return scan.repeat(halve, bounds, share.shape[0].bit_length())[0]


def residual_parts(share: jax.Array, num_draws: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Certain ancestors (num_draws,), the shares left over, and how many of the ancestors are certain."""
    floor = jnp.floor(share)
    ends = scan.cumulative_sum(floor.astype(jnp.int32))
    return of_ends(ends, floor, num_draws), share - floor, jnp.minimum(ends[-1], num_draws)


@partial(jax.jit, static_argnames="num_draws")
def _ssp(key: core.Key, share: jax.Array, num_draws: int) -> jax.Array:
    floor = jnp.floor(share)
    chance = share - floor
    index = jnp.arange(share.shape[0], dtype=jnp.int32)
    uniforms = core.random.uniform(key, share.shape, share.dtype)

    def duel(champion: tuple[jax.Array, jax.Array], new: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
        holder, a = champion
        challenger, b, uniform = new
        total = a + b
        # Below one, one of them takes what both have and the other loses; above, one gets its child and the other
        # keeps what is left. Either way each is what it was on average.
        over = total >= 1
        first = uniform * jnp.where(over, 2 - total, total) < jnp.where(over, 1 - b, a)
        winner, loser = jnp.where(first, holder, challenger), jnp.where(first, challenger, holder)
        goes_on = jnp.where(over, loser, winner)
        decided = jnp.where(over, winner, loser)
        return (goes_on, jnp.where(over, total - 1, total)), (decided, over.astype(jnp.int32))

    start = index[0], chance[0]
    (holder, _), (decided, child) = scan.scan(duel, start, (index[1:], chance[1:], uniforms[1:]))
    offspring = floor.astype(jnp.int32).at[decided].add(child)
    # What the last one has is zero or one but for rounding, that is, what is missing.
    missing = num_draws - jnp.sum(offspring, dtype=jnp.int32)
    offspring = offspring.at[holder].add(jnp.clip(missing, 0, 1))
    return of_ends(scan.cumulative_sum(offspring), jnp.where(offspring > 0, share, 0), num_draws)
