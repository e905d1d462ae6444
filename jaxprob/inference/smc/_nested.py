"""Nested sampling: particles of the prior climb the likelihood, and those that are left behind make the posterior.

A population of the prior loses a batch of its particles of least likelihood, and copies of the others take their
places, moved by Markov chain Monte Carlo where the likelihood is above the level of the batch. All that died and all
that live are a weighted population of the posterior. It needs no temperatures.

Source: Skilling (2006), "Nested sampling for general Bayesian computation"; as sequential Monte Carlo on levels:
Brehier et al. (2016), "Unbiasedness of some generalized adaptive multilevel splitting algorithms".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._numbers import known_count, known_number
from jaxprob.inference.mcmc._slice import hit_and_run_slice
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._population import Population, total_mass
from jaxprob.inference.smc._resampling import shares
from jaxprob.inference.smc._target import as_path, first_particles, posterior_may_follow

# In the metric of their covariance the particles fill about a ball, whose chords through them are 2 to 3.5 long.
SLICE = functools.partial(hit_and_run_slice, width=3.0)

# Copies from which it can be told how far they went: of fewer, a correlation of one half may be chance.
ENOUGH = 36


class NestedState(NamedTuple):
    """Particles alive and dead.

    Attributes:
      population: the posterior: weighted particles, first those that live, (particle,), and then all that died,
        (max_steps * batch,), in the order in which they did. Those yet to die have no weight.
      log_likelihoods: (particle + max_steps * batch,), of all of them; 0 of those yet to die.
      ties: (particle,), numbers that put those that live in an order where their likelihoods are equal.
      log_evidence_variance: (), estimate of the variance of the log evidence of this run; NaN without any evidence.
      information: (), estimate of the Kullback-Leibler divergence of the posterior from the prior, in nats.
      remainder: (), share of the evidence that the living have.
      step_size: (), of the move, adapted; 1 where the move has its own.
      steps: (), int32, batches that have died.
      done: (), whether the remainder is small enough, or all places of the dead are taken; further steps change
        nothing.
    """

    population: Population
    log_likelihoods: jax.Array
    ties: jax.Array
    log_evidence_variance: jax.Array
    information: jax.Array
    remainder: jax.Array
    step_size: jax.Array
    steps: jax.Array
    done: jax.Array

    @property
    def position(self) -> Any:
        """The particles, pytree (particle + max_steps * batch, ...); they have the weights of the population."""
        return self.population.particles

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the estimated evidence, ()."""
        return self.population.log_scale


class NestedInfo(NamedTuple):
    """What happened to one batch; every field is a scalar.

    Attributes:
      log_likelihood: the level, the largest of those that died.
      log_volume: log of the prior mass above it.
      remainder: share of the evidence that the living have.
      acceptance_rate: of the moves, mean over particles and transitions.
      num_moves: transitions of each particle.
      correlation: of the particles with those that they were copied from, the largest in size of any scalar of a
        position. Where it is not small the moves were too few or too poor, and the evidence is not to be trusted.
      step_size: of the next move.
      log_evidence: so far.
    """

    log_likelihood: jax.Array
    log_volume: jax.Array
    remainder: jax.Array
    acceptance_rate: jax.Array
    num_moves: jax.Array
    correlation: jax.Array
    step_size: jax.Array
    log_evidence: jax.Array


@posterior_may_follow
def nested(
    posterior: Any = None,
    *,
    move: Callable[..., core.Algorithm] = SLICE,
    particles: int = 1024,
    batch: int | None = None,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    sample_prior: Callable[[core.Key], Any] | None = None,
    tolerance: Any = 0.01,
    max_steps: int = 100,
    moves: int | None = None,
    max_moves: int = 100,
    step_size: Any = None,
    acceptance: Any = None,
) -> core.Algorithm:
    """Nested sampling: a population of the prior climbs the likelihood, one batch of particles a step.

    A step takes away the particles of least likelihood, and puts in their places copies of others, moved where the
    likelihood L is above the level of the last to go. A particle that dies after t batches stands for a prior mass of
    `(1 - batch / particles)^t / particles`, and so do those that live after t; the evidence is the sum of L over all,
    each times its mass. It is unbiased where the copies are independent, for every size of the batch and wherever it
    stops. The variance of the log evidence is about `information / particles` where a batch is small, and 1.44 times as
    much where it is half of the particles, for 0.72 of the moves.

    Particles of equal likelihood are put in an order at random, and moved accordingly, so that plateaus are passed as
    slopes are; those of likelihood 0 as well, if it takes a population that has no others to where some have. A prior
    draw whose likelihood is NaN makes the evidence NaN; a move to such a place is refused.

    What it returns is weighted: `state.population` holds all particles, dead and alive. Of the peaks of a likelihood it
    keeps those in which particles were when they could still pass from one to the other: more particles keep more. Of
    nine normal peaks in two dimensions, 20 of their standard deviations apart, none was lost in 32 runs; the share of a
    peak of 0.08 to 0.2 had a relative standard deviation of 0.07 to 0.14 with 500 particles and 0.03 to 0.08 with
    2,000, the log evidence one of 0.07 and 0.04, as told. Of eight in five dimensions, with shares of 0.01 (two) and
    0.09 to 0.23, a run of 500 particles as good as lost 0.8 on average, one of 2,000 an eighth of one: the small ones
    are not to be relied on, and the evidence, whose error was as told, does not show it. Between peaks what a copy was
    is never forgotten, and the moves of a step went on to 76 of 100 at most: give their number, `moves`, where it is
    known.

    Memory: `particles + max_steps batch` positions, 51 times the particles by default, whose weights are all made anew
    in each step.

    Args:
      posterior: a conditioned model (`program.condition(...)`), or the log density `position -> scalar` of the target,
        with a `reference`; None with `log_prior` and `log_likelihood`.
      move: `log_density -> Algorithm`; slice sampling along random lines by default. The density is the prior's, -inf
        below the level: nothing pushes back from there, and a move by gradients must know to refuse. Where it takes a
        `step_size` or an `inverse_mass_matrix` that no `functools.partial` has bound it is given one: a `mcmc.Metric`
        of the covariance of the particles above the level (of variances alone where there are fewer than 10 particles a
        scalar), and a step size adapted to `acceptance`.
      particles: how many live.
      batch: how many die in a step; half of the particles by default.
      reference: `position -> scalar`, normalised, what particles are drawn from.
      log_prior: `position -> scalar`, normalised for the evidence to be one.
      log_likelihood: `position -> scalar`; -inf where the data are impossible.
      sample_prior: `key -> position`, a draw from the prior or the reference; a posterior has its own, and without any
        `init` is given draws.
      tolerance: it is done once the living have a smaller share of the evidence, in (0, 1); an array or a tracer.
      max_steps: steps at most; the dead need as many places. A step takes `-log(1 - batch / particles)` nats of volume,
        of which there are about the information and `5` more to take; by default 69.
      moves: transitions of each copy; None for as many as it takes until no scalar of a position, nor its squared
        deviation, has a correlation above `max(0.1, 3 / sqrt(batch))` with what it was (more for hundreds), and where
        that is above 0.1, on from there as long as it should take to come to 0.1. A batch below 36 is too small to
        tell.
      max_moves: at most, where `moves` is None.
      step_size: (), the first; by default what suits a standard normal law of that dimension.
      acceptance: rate the step size is adapted to, as in `smc.tempered`.

    Returns:
      Algorithm whose state is a `NestedState` and whose info is a `NestedInfo`. `init(None, key)` draws particles;
      `init(positions, key)` takes those given, with a leading axis (particle, ...), draws from the prior. Without any
      density a `functools.partial` with the options, which waits for one.

    Raises:
      TypeError: if a function is none, or if not exactly one of `posterior` and the pair of prior and likelihood is
        given.
      ValueError: for a number that is out of range, or no number of moves where batches are small.

    >>> from jaxprob.inference.smc import run_sampler
    >>> algorithm = nested(
    ...     log_prior=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     log_likelihood=lambda x: -50 * (x - 2) ** 2,
    ...     sample_prior=jax.random.normal,
    ... )
    >>> state = run_sampler(jax.random.key(0), algorithm).state
    >>> exact = -2 / 1.01 - 0.5 * jnp.log(101)
    >>> bool(state.done), bool(abs(state.log_evidence - exact) < 4 * state.log_evidence_variance**0.5)
    (True, True)
    >>> abs(state.population.expectation().item() - 2 / 1.01) < 0.03
    True

    Source: Skilling (2006); Brehier et al. (2016) for the masses, which make the evidence unbiased; Fowlie, Handley &
    Su (2021), "Nested sampling with plateaus", on ties; Yallup, Kroupa & Handley (2026), arXiv:2601.23252, for batches
    moved along lines.
    """
    name = "smc.nested"
    settings = moves_of.as_move(name, move, moves, max_moves, acceptance, step_size)
    core.check_whole(name, least=2, particles=particles)
    batch = None if batch is None else known_count(name, "batch", batch)
    steps = known_count(name, "max_steps", max_steps)
    between = "a share between 0 and 1"
    tolerance = known_number(name, "tolerance", tolerance, lambda x: 0 < x < 1, between)
    path = as_path(name, posterior, reference, log_prior, log_likelihood, sample_prior)
    parts, values_of = path.parts, jax.vmap(lambda position: path.parts(position)[1])

    def batch_of(number: int) -> int:
        size = number // 2 if batch is None else batch
        if size >= number:
            raise core.bad_value(name, "batch", size, f"fewer than the {number} particles")
        if moves is None and size < ENOUGH:
            todo = "How far copies have gone cannot be told from so few"
            raise core.bad_value(name, "moves", "None", f"a number where a batch, here {size}, is below {ENOUGH}", todo)
        return size

    batch_of(particles)

    def init(position: Any, key: core.Key) -> NestedState:
        key = core.as_key(key, name)
        live, number = first_particles(name, path, position, particles, core.fold(key, 0))
        more = steps * batch_of(number)
        found = jax.tree.map(jnp.asarray, (live, values_of(live)))
        everyone, values = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((more, *x.shape[1:]), x.dtype)]), found)
        ties = core.random.exponential(core.fold(key, 1), (number,), found[1].dtype)
        return settle(everyone, values, ties, settings.first_step_size(core.size(live) // number), jnp.int32(0))

    def step(key: core.Key, state: NestedState) -> tuple[NestedState, NestedInfo]:
        key = core.as_key(key, name)
        number = state.ties.size
        size, order = batch_of(number), _order(state.log_likelihoods, state.ties)
        dying, surviving = order[:size], order[size:]
        level, tie = state.log_likelihoods[dying[-1]], state.ties[dying[-1]]

        def density(position: Any) -> jax.Array:
            base, value = parts(position)
            # Of what lies at the level so much is left as has a number for ties, an exponential one, beyond the last.
            return base + jnp.where(value > level, 0, jnp.where(value == level, -tie, -jnp.inf))

        survivors = jax.tree.map(lambda leaf: leaf[surviving], state.position)
        equal = jnp.full((surviving.size,), 1 / surviving.size, level.dtype)
        metric = moves_of.metric_of(survivors, equal) if settings.tunes_metric else None
        # Each of those that survive is copied as often as any other, or once more.
        copied = core.random.permutation(core.fold(key, 0), surviving.size)[jnp.arange(size) % surviving.size]
        copies = jax.tree.map(lambda leaf: leaf[copied], survivors)
        moved = moves_of.go(settings, core.fold(key, 1), density, copies, state.step_size, metric)
        values = values_of(moved.particles)
        longer = core.random.exponential(core.fold(key, 2), (size,), tie.dtype)
        graves = number + size * state.steps + jnp.arange(size, dtype=jnp.int32)

        def bury(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[graves].set(old[dying]).at[dying].set(new)

        new = settle(
            jax.tree.map(bury, state.position, moved.particles),
            bury(state.log_likelihoods, values),
            state.ties.at[dying].set(longer + jnp.where(values > level, 0, tie)),
            moved.step_size,
            state.steps + 1,
        )
        new = jax.tree.map(lambda one, other: jnp.where(state.done, one, other), state, new)
        info = NestedInfo(
            log_likelihood=level,
            log_volume=new.steps.astype(level.dtype) * math.log1p(-size / number),
            remainder=new.remainder,
            acceptance_rate=moved.acceptance_rate,
            num_moves=moved.number,
            correlation=moved.correlation,
            step_size=new.step_size,
            log_evidence=new.log_evidence,
        )
        return new, info

    def settle(
        particles: Any, values: jax.Array, ties: jax.Array, step_size: jax.Array, time: jax.Array
    ) -> NestedState:
        """The state after a number of batches, with all that follows from who died when."""
        number, dtype = ties.size, values.dtype
        size = batch_of(number)
        place = jnp.arange(values.size, dtype=jnp.int32)
        batches = jnp.where(place < number, time, (place - number) // size)
        taken = (place < number) | (batches < time)
        log_masses = batches.astype(dtype) * math.log1p(-size / number) - math.log(number)
        log_weights = jnp.where(taken, values + log_masses, -jnp.inf)
        log_evidence, weights = total_mass(log_weights), shares(log_weights, 1)
        some = jnp.sum(weights) > 0
        remainder = jnp.where(some, jnp.sum(weights[:number]), 1)
        # What is left of a volume at the death of one of n particles is Beta(n, 1), whose logarithm has the variance
        # 1 / n^2. The derivative of the log evidence by it is (Z_above - L V) / Z, with the evidence above the
        # likelihood L of the dead and the volume V there, n - 1 times the mass of the dead.
        death = jnp.concatenate([place[number:], _order(values, ties)])
        alive = jnp.where(place < values.size - number, number - place % size, values.size - place).astype(dtype)
        by_death = weights[death]
        above = jnp.cumsum(by_death[::-1])[::-1] - by_death
        derivatives = jnp.where(taken[death], above - (alive - 1) * by_death, 0)
        return NestedState(
            population=Population(
                particles, jnp.where(log_weights == -jnp.inf, -jnp.inf, log_weights - log_evidence), log_evidence
            ),
            log_likelihoods=values,
            ties=ties,
            log_evidence_variance=jnp.where(some, jnp.sum((derivatives / alive) ** 2), jnp.nan),
            information=jnp.where(some, jnp.sum(weights * jnp.where(weights > 0, values - log_evidence, 0)), jnp.nan),
            remainder=remainder,
            step_size=step_size.astype(dtype),
            steps=time,
            done=(remainder <= tolerance.astype(dtype)) | (time >= steps) | jnp.isnan(log_evidence),
        )

    return core.Algorithm(init, step)


def _order(log_likelihoods: jax.Array, ties: jax.Array) -> jax.Array:
    """The living, which come first of all, from the least likely on."""
    return jnp.lexsort((ties, log_likelihoods[: ties.size])).astype(jnp.int32)
