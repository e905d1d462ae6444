"""Resampling given that one particle, the reference, is drawn: what keeps particle Gibbs exact.

A scheme of which particle k gets n w_k draws on average becomes conditional by choosing one of its draws at random,
which happens the more often the more draws k has: the law of the others, given that a draw chosen at random is k, is
that of the scheme weighted by the number of draws of k. For schemes whose draws are independent of each other it is
enough to choose which draw is k, and to leave the others as they are.

Source: Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods"; Chopin & Singh (2015), "On
particle Gibbs sampling", section 5; Karppinen, Singh & Vihola (2024), "Conditional particle filters with bridge
backward sampling", for killing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.smc import _resampling as resampling
from jaxprob.inference.smc._resampling import Scheme


def conditional(scheme: Scheme) -> Scheme:
    """The conditional version of a scheme: particle 0 is drawn for certain, and is the first of the ancestors.

    Args:
      scheme: `smc.multinomial`, `stratified`, `systematic`, `residual` or `killing`.

    Returns:
      `(key, log_weights, num_draws) -> ancestors (num_draws,)` with `ancestors[0] == 0`; the weight of particle 0 must
      not be zero for its law to mean something.

    Raises:
      ValueError: for a scheme of which no conditional version is known.

    >>> conditional(resampling.systematic)(jax.random.key(0), jnp.log(jnp.array([0.1, 0.9])), 4).tolist()
    [0, 1, 1, 1]
    """
    if scheme not in _CONDITIONAL:
        known = ", ".join(f"smc.{known.__name__}" for known in _CONDITIONAL)
        raise core.bad_value("conditional", "scheme", core.describe(scheme), f"one of {known}")
    return _CONDITIONAL[scheme]


def _multinomial(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    return resampling.multinomial(key, log_weights, num_draws).at[0].set(0)


def _systematic(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    share = resampling.expected_offspring(log_weights, num_draws)
    # A point on the share of particle 0, which begins at zero, says what all points have in common.
    cell, fraction = _point(core.random.uniform(core.as_key(key, "systematic"), (), share.dtype), share[0], num_draws)
    return _first(resampling.in_order(share, fraction, num_draws), cell)


def _stratified(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    for_turn, for_point, for_others = core.random.split(core.as_key(key, "stratified"), 3)
    share = resampling.expected_offspring(log_weights, num_draws)
    number = share.shape[0]
    # Strata begin at the first particle: which one that is says something about the draws, unlike for systematic
    # resampling, so that the reference must not always be it. All are turned round by a number drawn at random.
    turn = core.random.randint(for_turn, (), 0, number, jnp.int32)
    turned = jnp.roll(share, turn)
    earlier = resampling.split(jnp.where(jnp.arange(number, dtype=turn.dtype) < turn, turned, 0))
    zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32)
    start, _ = scan.scan(lambda sum_, term: (resampling.add(sum_, term), None), zero, earlier)
    uniform = core.random.uniform(for_point, (), share.dtype)
    cell, fraction = resampling.add(start, resampling.split(uniform * share[0]))
    cell = jnp.minimum(cell, num_draws - 1)
    fractions = core.random.bits(for_others, (num_draws,), jnp.uint32).at[cell].set(fraction)
    return _first((resampling.in_order(turned, fractions, num_draws) - turn) % number, cell)


def _residual(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    for_kind, for_others = core.random.split(core.as_key(key, "residual"))
    share = resampling.expected_offspring(log_weights, num_draws)
    certain, rest, number = resampling.residual_parts(share, num_draws)
    drawn = resampling.independent(for_others, rest, num_draws)
    ancestors = jnp.where(jnp.arange(num_draws, dtype=number.dtype) < number, certain, drawn)
    # Either one of its certain copies, of which the first stands first of all, or the first of the independent draws.
    sure = core.random.uniform(for_kind, (), share.dtype) * share[0] < jnp.floor(share[0])
    return _first(ancestors, jnp.where(sure | (number == num_draws), 0, jnp.minimum(number, num_draws - 1)))


def _killing(key: core.Key, log_weights: jax.Array, num_draws: int) -> jax.Array:
    for_place, for_others = core.random.split(core.as_key(key, "killing"))
    ancestors = resampling.killing(for_others, log_weights, num_draws)
    share = resampling.expected_offspring(log_weights, num_draws)
    stays = share / jnp.max(share)
    weight = share[0] / num_draws
    chance = jnp.where(jnp.arange(num_draws) == 0, stays + (1 - stays) * weight, (1 - stays) * weight)
    return _first(ancestors, core.random.categorical(for_place, core.safe_log(chance)))


def _point(uniform: jax.Array, share: jax.Array, num_draws: int) -> tuple[jax.Array, jax.Array]:
    """A point on [0, share): its cell, int32, and where it lies there in units of 2^-32, uint32."""
    cell, fraction = resampling.split(uniform * share)
    return jnp.minimum(cell, num_draws - 1), fraction


def _first(ancestors: jax.Array, place: jax.Array) -> jax.Array:
    """The ancestors turned round so that what was drawn at a place comes first, and that is particle 0."""
    return jnp.roll(ancestors, -place).at[0].set(0)


_CONDITIONAL = {
    resampling.multinomial: _multinomial,
    resampling.stratified: _stratified,
    resampling.systematic: _systematic,
    resampling.residual: _residual,
    resampling.killing: _killing,
}
