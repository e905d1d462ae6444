"""Tempered sequential Monte Carlo: particles go from a prior to a posterior through a ladder of temperatures.

At each temperature particles are weighted by the likelihood that is new, resampled, and moved by Markov chain Monte
Carlo. The next temperature is where the weights have a given effective sample size.

Source: Del Moral, Doucet & Jasra (2006), "Sequential Monte Carlo samplers"; Jasra et al. (2011), "Inference for
Levy-driven stochastic volatility models via adaptive sequential Monte Carlo", for the choice of temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc import _parallel_tempering as paths
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._population import Population, total_mass
from jaxprob.inference.smc._resampling import Scheme, multinomial, shares
from jaxprob.inference.smc._target import (
    as_ladder,
    as_path,
    effective_share,
    equally_weighted,
    first_particles,
    next_temperature,
    posterior_may_follow,
)
from jaxprob.inference.smc._variance import evidence_variance, is_known


class TemperedState(NamedTuple):
    """Particles at one temperature.

    Attributes:
      population: equally weighted particles of the tempered posterior.
      inverse_temperature: (), from 0, the prior, to 1, the posterior.
      log_evidence_variance: (), estimate of the variance of the log evidence; NaN unless resampling is multinomial or
        chains are kept.
      step_size: (), of the move, adapted; 1 where the move has its own.
      eves: (particle,), int32, of which particle of the prior each descends.
      steps: (), int32, temperatures so far.
    """

    population: Population
    inverse_temperature: jax.Array
    log_evidence_variance: jax.Array
    step_size: jax.Array
    eves: jax.Array
    steps: jax.Array

    @property
    def position(self) -> Any:
        """The particles, pytree (particle, ...)."""
        return self.population.particles

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the estimated evidence at the present temperature, ()."""
        return self.population.log_scale

    @property
    def done(self) -> jax.Array:
        """Whether the particles are those of the posterior, (); further steps change nothing."""
        return self.inverse_temperature >= 1


class TemperedInfo(NamedTuple):
    """What happened at one temperature; every field is a scalar.

    Attributes:
      inverse_temperature: the new one.
      effective_sample_size: of the weights before resampling, as a share of the particles with a finite likelihood.
      acceptance_rate: of the moves, mean over particles and transitions.
      num_moves: transitions of each particle.
      correlation: of the particles with where they were before the moves, the largest in size of any scalar of a
        position; with `waste_free` of states half a chain apart. Where it is not small the moves were too few or too
        poor, and the evidence is not to be trusted.
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
def tempered(
    posterior: Any = None,
    *,
    move: Callable[..., core.Algorithm] = moves_of.HAMILTONIAN,
    particles: int = 1024,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    sample_prior: Callable[[core.Key], Any] | None = None,
    effective_sample_size: Any = 0.5,
    inverse_temperatures: Any = None,
    moves: int | None = None,
    max_moves: int = 100,
    waste_free: int | None = None,
    step_size: Any = None,
    acceptance: Any = None,
    scheme: Scheme = multinomial,
) -> core.Algorithm:
    """Sequential Monte Carlo from a prior to a posterior, one temperature a step.

    The log density at beta is `log_prior + beta log_likelihood`, or `(1 - beta) reference + beta log_density`. A step
    goes to the beta' at which the weights `exp((beta' - beta) log_likelihood)` have a given effective sample size,
    multiplies the evidence by their mean, resamples, and moves every particle at beta'. What it returns is equally
    weighted.

    Hamiltonian moves of a fixed length resonate with the particles' own metric, in which every scalar has one period:
    give `mcmc.hmc` a `jitter`, say 0.5.

    With temperatures and tuning that are fixed the evidence is unbiased; those that are learnt from the particles
    leave a bias of the order of 1 / particles.

    Args:
      posterior: a conditioned model (`program.condition(...)`), or the log density `position -> scalar` of the target,
        with a `reference`; None with `log_prior` and `log_likelihood`.
      move: `log_density -> Algorithm`; Hamiltonian Monte Carlo by default. Where it takes a `step_size` or an
        `inverse_mass_matrix` that no `functools.partial` has bound it is given one: a `mcmc.Metric` of the covariance
        of the particles (of variances alone where there are fewer than 10 particles a scalar), and a step size adapted
        to `acceptance`.
      particles: how many are drawn from the prior.
      reference: `position -> scalar`, normalised, what particles are drawn from.
      log_prior: `position -> scalar`, normalised for the evidence to be one.
      log_likelihood: `position -> scalar`; -inf where the data are impossible.
      sample_prior: `key -> position`, a draw from the prior or the reference; a posterior has its own, and without any
        `init` is given draws.
      effective_sample_size: at each temperature, a share of the particles in (0, 1); an array or a tracer.
      inverse_temperatures: (step,), increasing to 1 from above 0: a fixed ladder instead.
      moves: transitions of each particle at each temperature; None for as many as it takes until no scalar of a
        position, nor its squared deviation, has a correlation above `max(0.1, 3 / sqrt(particles))` with what it was
        (more where there are hundreds of scalars), and where that is above 0.1, on from there as long as it should take
        to come to 0.1. They end before where the largest falls too slowly to get there in `max_moves`, once the root of
        the mean square of all is below 0.3: a few scalars in the neck of a funnel are not worth it.
      max_moves: at most, where `moves` is None.
      waste_free: P, by which the number of particles can be divided; None for moves of all particles. Instead only
        particles / P are resampled, from each goes a chain of P states, and all of them are particles. Good where it is
        not known how many moves it takes: more go further and give more particles as well. At least some ten chains.
      step_size: (), the first; by default what suits a standard normal law of that dimension.
      acceptance: rate the step size is adapted to; 0.234 for a random walk, 0.574 for `mcmc.mala` and `mcmc.barker`,
        0.8 for others by default.
      scheme: of resampling. `log_evidence_variance` is known for `smc.multinomial` alone; `smc.systematic` has a
        smaller one. With `waste_free` it is known for any, from how chains differ; it is too small where they are so
        short that they remember where they started.

    Returns:
      Algorithm whose state is a `TemperedState` and whose info is a `TemperedInfo`. `init(None, key)` draws particles;
      `init(positions, key)` takes those given, with a leading axis (particle, ...). Without any density a
      `functools.partial` with the options, which waits for one: `jaxprob.sample(..., algorithm=smc.tempered())`.

    Raises:
      TypeError: if a function is none, or if not exactly one of `posterior` and the pair of prior and likelihood is
        given.
      ValueError: for a number that is out of range or inverse temperatures that are no ladder.

    >>> from jaxprob.inference import mcmc
    >>> from jaxprob.inference.smc import run_sampler
    >>> algorithm = tempered(
    ...     move=mcmc.random_walk_metropolis,
    ...     log_prior=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     log_likelihood=lambda x: -50 * (x - 2) ** 2,
    ...     sample_prior=jax.random.normal,
    ... )
    >>> found = run_sampler(jax.random.key(0), algorithm)
    >>> bool(found.state.done), abs(found.state.position.mean().item() - 2 / 1.01) < 0.03
    (True, True)

    Source: Del Moral, Doucet & Jasra (2006), section 3.1; Zhou, Johansen & Aston (2016) for the effective sample size
    of the increment; Lee & Whiteley (2018), equation 12, for the variance; Dau & Chopin (2022), algorithm 2, for
    `waste_free`.
    """
    name = "smc.tempered"
    settings = moves_of.as_move(name, move, moves, max_moves, acceptance, step_size, waste_free)
    metropolis.check_callable(name, scheme=scheme)
    core.check_whole(name, least=2, particles=particles)
    between = "a share between 0 and 1"
    share = known_number(name, "effective_sample_size", effective_sample_size, lambda x: 0 < x < 1, between)
    ladder = None if inverse_temperatures is None else as_ladder(name, inverse_temperatures)
    path = as_path(name, posterior, reference, log_prior, log_likelihood, sample_prior)

    def init(position: Any, key: core.Key) -> TemperedState:
        position, number = first_particles(name, path, position, particles, core.as_key(key, name))
        settings.check_number(name, number)
        dtype = jax.eval_shape(path.tilts, position).dtype
        return TemperedState(
            population=equally_weighted(position, number, jnp.zeros((), dtype)),
            inverse_temperature=jnp.zeros((), dtype),
            log_evidence_variance=jnp.asarray(0 if is_known(scheme, waste_free) else jnp.nan, dtype),
            step_size=settings.first_step_size(core.size(position) // number).astype(dtype),
            eves=jnp.arange(number, dtype=jnp.int32),
            steps=jnp.int32(0),
        )

    def step(key: core.Key, state: TemperedState) -> tuple[TemperedState, TemperedInfo]:
        key = core.as_key(key, name)
        old, number = state.inverse_temperature, state.population.num_particles
        tilts = path.tilts(state.position)
        if ladder is None:
            beta = next_temperature(tilts, old, share.astype(tilts.dtype))
        else:
            beta = ladder.astype(tilts.dtype)[jnp.minimum(state.steps, ladder.size - 1)]
        # The difference as it is rounded, so that what is gained at all temperatures is what the last one has.
        gains = paths.tempered(jnp.zeros_like(tilts), beta - old, tilts)
        log_evidence = state.log_evidence + total_mass(gains - math.log(number))

        moved, ancestors = moves_of.resample_and_move(
            settings, scheme, key, path.at(beta), state.position, gains, state.step_size
        )
        variance = evidence_variance(
            scheme, waste_free, shares(gains, 1), state.eves, state.steps, state.log_evidence_variance
        )
        new = TemperedState(
            population=equally_weighted(moved.particles, number, log_evidence),
            inverse_temperature=beta,
            log_evidence_variance=variance,
            step_size=moved.step_size,
            eves=state.eves[ancestors],
            steps=state.steps + 1,
        )
        new = jax.tree.map(lambda one, other: jnp.where(state.done, one, other.astype(one.dtype)), state, new)
        info = TemperedInfo(
            inverse_temperature=new.inverse_temperature,
            effective_sample_size=effective_share(tilts, beta - old),
            acceptance_rate=moved.acceptance_rate,
            num_moves=moved.number,
            correlation=moved.correlation,
            step_size=new.step_size,
            log_evidence=new.log_evidence,
        )
        return new, info

    return core.Algorithm(init, step)
