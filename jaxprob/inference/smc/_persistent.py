"""Persistent sampling: tempered sequential Monte Carlo that keeps the particles of all temperatures.

Each new temperature weighs all particles there are, as draws from the mixture of the distributions they were made for,
and a new generation is resampled from them and moved. All of them are particles of the posterior in the end.

Source: Karamanis & Seljak (2025), "Persistent sampling: enhancing the efficiency of sequential Monte Carlo".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc import _parallel_tempering as paths
from jaxprob.inference.mcmc._numbers import known_count, known_number
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._population import Population, effective_size, total_mass
from jaxprob.inference.smc._resampling import Scheme, systematic
from jaxprob.inference.smc._target import as_path, first_particles, furthest, posterior_may_follow


class PersistentState(NamedTuple):
    """The particles of all temperatures so far, generation after generation.

    Attributes:
      population: all particles (generation * particle), weighted for the last temperature. Those of generations yet to
        come have no weight.
      tilts: (generation, particle), what beta multiplies: the log likelihood of each.
      log_mixtures: (generation, particle), log of the sum of the densities of all generations so far at each particle,
        over that of the prior.
      inverse_temperatures: (generation,), from 0, the prior, to 1, the posterior; 0 for those yet to come.
      log_evidences: (generation,), log of the estimated evidence at each temperature.
      log_evidence_variance: (), estimate of the variance of the log evidence at the last temperature; NaN before the
        posterior is reached, and without any evidence.
      step_size: (), of the move, adapted; 1 where the move has its own.
      steps: (), int32, temperatures so far: the last generation.
    """

    population: Population
    tilts: jax.Array
    log_mixtures: jax.Array
    inverse_temperatures: jax.Array
    log_evidences: jax.Array
    log_evidence_variance: jax.Array
    step_size: jax.Array
    steps: jax.Array

    @property
    def position(self) -> Any:
        """The particles, pytree (generation * particle, ...); they have the weights of the population."""
        return self.population.particles

    @property
    def inverse_temperature(self) -> jax.Array:
        """The last one, ()."""
        return jnp.max(self.inverse_temperatures, axis=-1)

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the estimated evidence at the last temperature, ()."""
        return self.population.log_scale

    @property
    def done(self) -> jax.Array:
        """Whether the weights are those of the posterior, (); further steps change nothing."""
        return self.inverse_temperature >= 1


class PersistentInfo(NamedTuple):
    """What happened at one temperature; every field is a scalar.

    Attributes:
      inverse_temperature: the new one, which may be the last one once more.
      effective_sample_size: of the weights from which the generation was resampled, in particles of one generation.
      acceptance_rate: of the moves, mean over particles and transitions.
      num_moves: transitions of each particle.
      correlation: of the particles with where they were before the moves, as of `smc.TemperedInfo`.
      step_size: of the next move.
      log_evidence: so far.
    """

    inverse_temperature: jax.Array
    effective_sample_size: jax.Array
    acceptance_rate: jax.Array
    num_moves: jax.Array
    correlation: jax.Array
    step_size: jax.Array
    log_evidence: jax.Array


@posterior_may_follow
def persistent(
    posterior: Any = None,
    *,
    move: Callable[..., core.Algorithm] = moves_of.HAMILTONIAN,
    particles: int = 256,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    sample_prior: Callable[[core.Key], Any] | None = None,
    effective_sample_size: Any = 2.0,
    max_steps: int = 64,
    moves: int | None = None,
    max_moves: int = 100,
    step_size: Any = None,
    acceptance: Any = None,
    scheme: Scheme = systematic,
) -> core.Algorithm:
    """Persistent sampling from a prior to a posterior, one temperature and one generation of particles a step.

    With k generations of N particles, at inverse temperatures beta_s and of evidences Z_s, the weight of any particle
    at beta is `L^beta / sum_s (L^beta_s / Z_s)`, L its likelihood, and the evidence is the sum of all weights over N. A
    step goes to the beta at which they have a given effective sample size, resamples N particles, and moves them. No
    likelihood is computed anew for those there were.

    A few hundred particles a generation do, as all are used. The evidence varies less than that of `smc.tempered` for
    the same number of likelihoods; its bias is of the order of 1 / particles. Its variance is estimated from the
    single run, by the delta method: the sum over particles of the squared influence that each has on the last evidence,
    through all evidences before. Particles count as independent of those they were resampled from, so that it is too
    small where moves are too few.

    Memory is that of `(max_steps + 1) particles` positions, whatever number of them is used.

    Args:
      posterior: a conditioned model (`program.condition(...)`), or the log density `position -> scalar` of the target,
        with a `reference`; None with `log_prior` and `log_likelihood`.
      move: `log_density -> Algorithm`, given a metric and a step size as by `smc.tempered`; the metric is of all
        particles.
      particles: N, how many are drawn from the prior, and how many a generation has.
      reference: `position -> scalar`, normalised, what particles are drawn from.
      log_prior: `position -> scalar`, normalised for the evidence to be one.
      log_likelihood: `position -> scalar`; -inf where the data are impossible.
      sample_prior: `key -> position`, a draw from the prior or the reference; a posterior has its own, and without any
        `init` is given draws.
      effective_sample_size: at each temperature, in particles of one generation: positive, and may be above 1, as there
        are several. Where there are not enough of them a temperature comes once more. An array or a tracer.
      max_steps: generations beside that of the prior, at most. The last one is that of the posterior however few the
        effective particles, which the info tells.
      moves: transitions of each particle at each temperature; None for as many as it takes, as in `smc.tempered`.
      max_moves: at most, where `moves` is None.
      step_size: (), the first; by default what suits a standard normal law of that dimension.
      acceptance: rate the step size is adapted to, as in `smc.tempered`.
      scheme: of resampling.

    Returns:
      Algorithm whose state is a `PersistentState`, with a population of weighted particles, and whose info is a
      `PersistentInfo`. `init(None, key)` draws particles; `init(positions, key)` takes those given, with a leading axis
      (particle, ...). Without any density a `functools.partial` with the options, which waits for one.

    Raises:
      TypeError: if a function is none, or if not exactly one of `posterior` and the pair of prior and likelihood is
        given.
      ValueError: for a number that is out of range.

    >>> from jaxprob.inference import mcmc
    >>> from jaxprob.inference.smc import run_sampler
    >>> algorithm = persistent(
    ...     move=mcmc.random_walk_metropolis,
    ...     log_prior=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     log_likelihood=lambda x: -50 * (x - 2) ** 2,
    ...     sample_prior=jax.random.normal,
    ... )
    >>> found = run_sampler(jax.random.key(0), algorithm)
    >>> bool(found.state.done), abs(found.state.population.expectation().item() - 2 / 1.01) < 0.03
    (True, True)

    Source: Karamanis & Seljak (2025), algorithm 1; the last generation is weighted with the others. The variance is
    ours.
    """
    name = "smc.persistent"
    settings = moves_of.as_move(name, move, moves, max_moves, acceptance, step_size)
    metropolis.check_callable(name, scheme=scheme)
    core.check_whole(name, least=2, particles=particles)
    generations = known_count(name, "max_steps", max_steps) + 1
    size = known_number(
        name, "effective_sample_size", effective_sample_size, lambda x: 0 < x < math.inf, "a positive number"
    )
    path = as_path(name, posterior, reference, log_prior, log_likelihood, sample_prior)

    def init(position: Any, key: core.Key) -> PersistentState:
        position, number = first_particles(name, path, position, particles, core.as_key(key, name))
        tilts = path.tilts(position)
        empty = jnp.zeros((generations, number), tilts.dtype)
        # Copies of the first particles fill the room of those to come: positions like any others.
        room = jax.tree.map(lambda leaf: jnp.tile(leaf, (generations,) + (1,) * (jnp.ndim(leaf) - 1)), position)
        log_weights = jnp.where(jnp.arange(generations * number) < number, -math.log(number), -jnp.inf)
        none = jnp.zeros((generations,), tilts.dtype)
        return PersistentState(
            population=Population(room, log_weights.astype(tilts.dtype), jnp.zeros((), tilts.dtype)),
            tilts=empty.at[0].set(tilts),
            log_mixtures=empty,
            inverse_temperatures=none,
            log_evidences=none,
            log_evidence_variance=jnp.full((), jnp.nan, tilts.dtype),
            step_size=settings.first_step_size(core.size(position) // number).astype(tilts.dtype),
            steps=jnp.int32(0),
        )

    def step(key: core.Key, state: PersistentState) -> tuple[PersistentState, PersistentInfo]:
        key = core.as_key(key, name)
        generation = jnp.minimum(state.steps + 1, generations - 1)
        number, index = state.tilts.shape[1], jnp.arange(generations, dtype=jnp.int32)
        there = jnp.expand_dims(index < generation, 1)

        def weigh(beta: jax.Array) -> jax.Array:
            return _weights(there, beta, state.tilts, state.log_mixtures)

        beta = _next(weigh, state.inverse_temperature, size.astype(state.tilts.dtype) * number)
        beta = jnp.where(generation == generations - 1, 1, beta)
        log_weights = weigh(beta)
        log_evidence = total_mass(log_weights) - math.log(number)

        moved, _ = moves_of.resample_and_move(
            settings, scheme, key, path.at(beta), state.position, log_weights, state.step_size, number
        )
        particles = jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(
                whole, part.astype(whole.dtype), generation * number, 0
            ),
            state.position,
            moved.particles,
        )
        tilts = state.tilts.at[generation].set(path.tilts(moved.particles))
        betas = state.inverse_temperatures.at[generation].set(beta)
        log_evidences = state.log_evidences.at[generation].set(log_evidence)
        filled = jnp.expand_dims(index <= generation, 1)
        log_mixtures = core.logaddexp(state.log_mixtures, _relative(beta, log_evidence, tilts))
        terms = jax.vmap(_relative, in_axes=(0, 0, None))(betas, log_evidences, tilts[generation])
        log_mixtures = log_mixtures.at[generation].set(core.logsumexp(jnp.where(filled, terms, -jnp.inf), axis=0))
        final = _weights(filled, beta, tilts, log_mixtures)
        # Once, in a loop of one round or none: with several chains a condition would compute it at every step.
        unknown = jnp.full((), jnp.nan, tilts.dtype)
        variance = scan.repeat(
            lambda *_: _variance(tilts, betas, generation).astype(tilts.dtype),
            unknown,
            ((beta >= 1) & ~state.done).astype(jnp.int32),
        )
        new = PersistentState(
            population=Population(particles, _normalized(final, log_evidence, filled, tilts), log_evidence),
            tilts=tilts,
            log_mixtures=log_mixtures,
            inverse_temperatures=betas,
            log_evidences=log_evidences,
            log_evidence_variance=jnp.where(jnp.isfinite(log_evidence), variance, unknown),
            step_size=moved.step_size,
            steps=state.steps + 1,
        )
        new = jax.tree.map(lambda one, other: jnp.where(state.done, one, other.astype(one.dtype)), state, new)
        info = PersistentInfo(
            inverse_temperature=new.inverse_temperature,
            effective_sample_size=effective_size(log_weights) / number,
            acceptance_rate=moved.acceptance_rate,
            num_moves=moved.number,
            correlation=moved.correlation,
            step_size=new.step_size,
            log_evidence=new.log_evidence,
        )
        return new, info

    return core.Algorithm(init, step)


def _next(weigh: Callable[[jax.Array], jax.Array], beta: jax.Array, target: jax.Array) -> jax.Array:
    """The next inverse temperature: where the effective sample size is the target, the last one again, or 1."""

    def enough(beta: jax.Array) -> jax.Array:
        log_weights = weigh(beta)
        return effective_size(jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)) >= target

    one = jnp.ones_like(beta)
    possible = jnp.any(jnp.isfinite(weigh(one)))
    return jnp.where(possible, furthest(enough, beta, one), one)


def _weights(there: jax.Array, beta: jax.Array, tilts: jax.Array, log_mixtures: jax.Array) -> jax.Array:
    """Log weights (generation * particle,) at a temperature, of the generations (generation, 1) that are there."""
    return jnp.where(there, paths.tempered(-log_mixtures, beta, tilts), -jnp.inf).reshape(-1)


def _variance(tilts: jax.Array, betas: jax.Array, last: jax.Array) -> jax.Array:
    """Variance of the log evidence of generation `last`, (): of a function of means of independent particles.

    How much a particle would change the last log evidence, were it there a little more often, is the derivative with
    respect to the log of how often it is there, through the evidences of all generations in between.
    """
    generations, number = tilts.shape
    index = jnp.expand_dims(jnp.arange(generations, dtype=jnp.int32), 1)

    def log_evidence(log_counts: jax.Array) -> jax.Array:
        def one(carry: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]) -> Any:
            log_mixtures, before = carry
            beta, generation = row
            log_weights = _weights(index < generation, beta, tilts, log_mixtures) + log_counts.reshape(-1)
            now = core.logsumexp(log_weights) - math.log(number)
            now = jnp.where(generation <= last, now, before)
            return (core.logaddexp(log_mixtures, _relative(beta, now, tilts)), now), None

        # The densities of the prior over itself are one.
        start = jnp.zeros_like(tilts), jnp.zeros((), tilts.dtype)
        rows = betas[1:], jnp.arange(1, generations, dtype=jnp.int32)
        return scan.scan(one, start, rows)[0][1]

    influence = jax.grad(log_evidence)(jnp.zeros_like(tilts))
    influence = influence - jnp.mean(influence, axis=1, keepdims=True)
    return jnp.sum(influence**2) * number / (number - 1)


def _relative(beta: jax.Array, log_evidence: jax.Array, tilts: jax.Array) -> jax.Array:
    """Log of the density at a temperature over that of the prior."""
    return paths.tempered(jnp.zeros_like(tilts), beta, tilts) - log_evidence


def _normalized(log_weights: jax.Array, log_evidence: jax.Array, there: jax.Array, tilts: jax.Array) -> jax.Array:
    """Weights that sum to one; equal ones of all particles that are there where there is no evidence."""
    there = jnp.broadcast_to(there, tilts.shape).reshape(-1)
    total = total_mass(log_weights)
    known = jnp.isfinite(log_evidence) & jnp.isfinite(total)
    equal = jnp.where(there, -jnp.log(jnp.sum(there)).astype(log_weights.dtype), -jnp.inf)
    return jnp.where(known, log_weights - jnp.where(known, total, 0), equal)
