"""Annealed importance sampling: particles go from a prior to a posterior by themselves, and keep their weights.

Nothing is learnt from the particles and none is resampled: they are independent, the evidence is unbiased, and its
variance is that of a mean of independent numbers. What moves need to know of a temperature is learnt from other
particles, a pilot, that go ahead and are then forgotten.

Source: Neal (2001), "Annealed importance sampling"; Friel & Pettitt (2008), "Marginal likelihood estimation via power
posteriors", for the temperatures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference.mcmc import _parallel_tempering as paths
from jaxprob.inference.mcmc._numbers import known_count, known_number, known_vector
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._feynman_kac import multiplied
from jaxprob.inference.smc._population import Population, effective_size
from jaxprob.inference.smc._resampler import normalized
from jaxprob.inference.smc._resampling import shares, systematic
from jaxprob.inference.smc._target import as_ladder, as_path, equally_weighted, first_particles, posterior_may_follow
from jaxprob.inference.smc._variance import between_chains

PILOT = 4  # particles for each one of the pilot
LADDER = np.linspace(0, 1, 101)[1:] ** 4  # dense near the prior, where little data say much


class AnnealedState(NamedTuple):
    """Particles at one temperature.

    Attributes:
      population: weighted particles of the tempered posterior; weights are never equal.
      inverse_temperature: (), from 0, the prior, to 1, the posterior.
      log_evidence_variance: (), estimate of the variance of the log evidence.
      steps: (), int32, temperatures so far.
      pilot: pytree (pilot, ...), equally weighted particles that moves are tuned on; None where nothing is tuned.
      step_size: (), of the pilot's moves, adapted; 1 where nothing is tuned.
    """

    population: Population
    inverse_temperature: jax.Array
    log_evidence_variance: jax.Array
    steps: jax.Array
    pilot: Any
    step_size: jax.Array

    @property
    def position(self) -> Any:
        """The particles, pytree (particle, ...); they have the weights of the population."""
        return self.population.particles

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the estimated evidence at the present temperature, ()."""
        return self.population.log_scale

    @property
    def done(self) -> jax.Array:
        """Whether the particles are those of the posterior, (); further steps change nothing."""
        return self.inverse_temperature >= 1


class AnnealedInfo(NamedTuple):
    """What happened at one temperature; every field is a scalar.

    Attributes:
      inverse_temperature: the new one.
      effective_sample_size: of the weights so far, as a share of the particles. Where it is small at the end there were
        too few temperatures or too few moves, and the evidence is not to be trusted.
      acceptance_rate: of the moves, mean over particles and transitions.
      log_evidence: so far.
    """

    inverse_temperature: jax.Array
    effective_sample_size: jax.Array
    acceptance_rate: jax.Array
    log_evidence: jax.Array


@posterior_may_follow
def annealed(
    posterior: Any = None,
    *,
    move: Callable[..., core.Algorithm] = moves_of.HAMILTONIAN,
    particles: int = 1024,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    sample_prior: Callable[[core.Key], Any] | None = None,
    inverse_temperatures: Any = LADDER,
    moves: int = 2,
    step_size: Any = None,
) -> core.Algorithm:
    """Annealed importance sampling from a prior to a posterior, one temperature a step.

    The log density at beta is as of `smc.tempered`. A step multiplies the weight of each particle by
    `exp((beta' - beta) log_likelihood)` and moves it at beta'. The evidence is the mean of the weights, and unbiased.

    `smc.tempered` needs far fewer temperatures. This is for an evidence with an error that is known, and for particles
    that must not know of each other.

    Args:
      posterior: a conditioned model (`program.condition(...)`), or the log density `position -> scalar` of the target,
        with a `reference`; None with `log_prior` and `log_likelihood`.
      move: `log_density -> Algorithm`; Hamiltonian Monte Carlo by default. Where it takes a `step_size` or an
        `inverse_mass_matrix` that no `functools.partial` has bound it is given one, learnt at each temperature from a
        pilot: a quarter as many particles of their own, which are resampled and moved as by `smc.tempered`.
      particles: how many are drawn from the prior.
      reference: `position -> scalar`, normalised, what particles are drawn from.
      log_prior: `position -> scalar`, normalised for the evidence to be one.
      log_likelihood: `position -> scalar`; -inf where the data are impossible.
      sample_prior: `key -> position`, a draw from the prior or the reference; a posterior has its own, and without any
        `init` is given draws.
      inverse_temperatures: (step,), increasing to 1 from above 0; by default a hundred, `(i / 100)^4`.
      moves: transitions of each particle at each temperature.
      step_size: (), or (step,) one for each temperature, as a posterior is narrower than a prior: instead of a pilot,
        with the metric that the move has by itself.

    Returns:
      Algorithm whose state is an `AnnealedState` and whose info is an `AnnealedInfo`. `init(None, key)` draws
      particles; `init(positions, key)` takes those given, with a leading axis (particle, ...), and the pilot is a copy
      of some of them. Without any density a `functools.partial` with the options, which waits for one.

    Raises:
      TypeError: if a function is none, or if not exactly one of `posterior` and the pair of prior and likelihood is
        given.
      ValueError: for a number that is out of range or inverse temperatures that are no ladder.

    >>> from jaxprob.inference import mcmc
    >>> from jaxprob.inference.smc import run_sampler
    >>> algorithm = annealed(
    ...     move=mcmc.random_walk_metropolis,
    ...     log_prior=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     log_likelihood=lambda x: -2 * (x - 2) ** 2,
    ...     sample_prior=jax.random.normal,
    ... )
    >>> found = run_sampler(jax.random.key(0), algorithm)
    >>> bool(found.state.done), abs(found.state.population.expectation().item() - 8 / 5) < 0.1
    (True, True)

    Source: Neal (2001), section 2.
    """
    name = "smc.annealed"
    settings = moves_of.as_move(name, move, known_count(name, "moves", moves), 1, None, None)
    core.check_whole(name, least=2, particles=particles)
    ladder = as_ladder(name, inverse_temperatures)
    step_sizes = None if step_size is None else _as_step_sizes(name, move, step_size, ladder.size)
    path = as_path(name, posterior, reference, log_prior, log_likelihood, sample_prior)
    tunes = step_sizes is None and (settings.tunes_step_size or settings.tunes_metric)

    def fixed(**tuning: Any) -> moves_of.Move:
        """The move of particles that nothing is learnt from."""
        factory = functools.partial(move, **tuning) if tuning else move
        return settings._replace(factory=factory, tunes_step_size=False, tunes_metric=False)

    def tuned(key: core.Key, state: AnnealedState, beta: jax.Array) -> tuple[moves_of.Move, Any, jax.Array]:
        """The move at a temperature, the pilot there, and its next step size."""
        if not tunes:
            if step_sizes is None:
                return fixed(), None, state.step_size
            size = step_sizes if step_sizes.ndim == 0 else step_sizes[jnp.minimum(state.steps, ladder.size - 1)]
            return fixed(step_size=size), None, state.step_size
        tilts = path.tilts(state.pilot)
        gains = paths.tempered(jnp.zeros_like(tilts), beta - state.inverse_temperature, tilts)
        moved, _ = moves_of.resample_and_move(
            settings, systematic, key, path.at(beta), state.pilot, gains, state.step_size
        )
        tuning: dict[str, Any] = {"step_size": moved.step_size} if settings.tunes_step_size else {}
        if settings.tunes_metric:
            weights = jnp.full_like(tilts, 1 / tilts.size)
            tuning["inverse_mass_matrix"] = moves_of.metric_of(moved.particles, weights)
        return fixed(**tuning), moved.particles, moved.step_size

    def init(position: Any, key: core.Key) -> AnnealedState:
        key = core.as_key(key, name)
        given = position
        position, number = first_particles(name, path, given, particles, core.fold(key, 0))
        zero = jnp.zeros((), jax.eval_shape(path.tilts, position).dtype)
        pilot, step_size = None, jnp.ones_like(zero)
        if tunes:
            ahead = max(number // PILOT, 2)
            given = None if given is None else jax.tree.map(lambda leaf: leaf[:ahead], position)
            pilot, _ = first_particles(name, path, given, ahead, core.fold(key, 1))
            step_size = settings.first_step_size(core.size(position) // number).astype(zero.dtype)
        return AnnealedState(equally_weighted(position, number, zero), zero, zero, jnp.int32(0), pilot, step_size)

    def step(key: core.Key, state: AnnealedState) -> tuple[AnnealedState, AnnealedInfo]:
        key = core.as_key(key, name)
        old, number = state.population, state.population.num_particles
        tilts = path.tilts(old.particles)
        beta = ladder.astype(tilts.dtype)[jnp.minimum(state.steps, ladder.size - 1)]
        gains = paths.tempered(jnp.zeros_like(tilts), beta - state.inverse_temperature, tilts)
        weighted = Population(old.particles, multiplied(old.log_weights, gains), old.log_scale)

        best, pilot, step_size = tuned(core.fold(key, 0), state, beta)
        one = jnp.ones((), tilts.dtype)
        moved = moves_of.go(best, core.fold(key, 1), path.at(beta), old.particles, one, None)
        total = normalized(weighted)
        variance = between_chains(shares(weighted.log_weights, 1), 1)
        new = AnnealedState(
            population=Population(moved.particles, total.log_weights, total.log_scale),
            inverse_temperature=beta,
            log_evidence_variance=jnp.where(jnp.isfinite(total.log_scale), variance, jnp.nan),
            steps=state.steps + 1,
            pilot=pilot,
            step_size=step_size,
        )
        new = jax.tree.map(lambda one, other: jnp.where(state.done, one, other.astype(one.dtype)), state, new)
        info = AnnealedInfo(
            inverse_temperature=new.inverse_temperature,
            effective_sample_size=effective_size(weighted.log_weights) / number,
            acceptance_rate=moved.acceptance_rate,
            log_evidence=new.log_evidence,
        )
        return new, info

    return core.Algorithm(init, step)


def _as_step_sizes(name: str, move: Any, step_size: Any, number: int) -> jax.Array:
    """One step size, or one for each temperature."""
    moves_of.check_takes_step_size(name, move, step_size)
    if not np.ndim(step_size):
        return known_number(name, "step_size", step_size, lambda x: 0 < x < math.inf, "a positive number")

    def fits(values: np.ndarray) -> bool:
        return values.size == number and bool((values > 0).all() and np.isfinite(values).all())

    return known_vector(name, "step_size", step_size, fits, f"one positive number, or {number}, one a temperature")
