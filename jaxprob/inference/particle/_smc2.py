"""SMC^2: particles of parameters, each with a particle filter of its own, one datum after the other.

A parameter is weighted by the estimates that its filter makes of the likelihood of each datum; where weights have
become unequal, parameters are resampled with their filters and moved by particle marginal Metropolis-Hastings.

Source: Chopin, Jacob & Papaspiliopoulos (2013), "SMC^2: an efficient algorithm for sequential analysis of state space
models".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._random_walk import walk
from jaxprob.inference.particle._arguments import as_feynman_kac, num_times
from jaxprob.inference.particle._backward import take
from jaxprob.inference.particle._marginal_metropolis import posterior_density
from jaxprob.inference.smc._moves import metric_of


class SMC2State(NamedTuple):
    """Where SMC^2 is.

    Attributes:
      position: pytree (parameter, ...), particles of parameters, weighted by `log_weights`.
      log_weights: (parameter,), un-normalised.
      log_evidence: (), of the data up to `time`.
      log_prior: (parameter,).
      log_likelihood: (parameter,), the estimates of each filter for the data up to `time`.
      filters: a `smc.ParticleState` whose leaves lead with parameters.
      time: (), int32, of the last datum taken.
      failed_at: (), int32, the first time at which a weight was NaN in the filter of some parameters, proposals
        included; -1 where there was none. Such parameters count for nothing, and the model is to be mended.
    """

    position: Any
    log_weights: jax.Array
    log_evidence: jax.Array
    log_prior: jax.Array
    log_likelihood: jax.Array
    filters: smc.ParticleState
    time: jax.Array
    failed_at: jax.Array

    @property
    def population(self) -> smc.Population:
        """The parameters with their weights."""
        return smc.Population(self.position, self.log_weights)


class SMC2Info(NamedTuple):
    """What happened at one datum; every field is a scalar.

    Attributes:
      log_increment: of the evidence.
      effective_sample_size: of the parameters, before they were resampled.
      moved: whether they were resampled and moved.
      acceptance_rate: of the moves; 0 where there was none.
      failed: share of the parameters that lost all weight at this datum because a weight of their filter was NaN.
    """

    log_increment: jax.Array
    effective_sample_size: jax.Array
    moved: jax.Array
    acceptance_rate: jax.Array
    failed: jax.Array


class Parameters(NamedTuple):
    """One particle of parameters, as `metropolis.accept` takes it.

    Attributes:
      position: pytree.
      log_density: (), log prior plus estimate.
      log_prior: ().
      log_likelihood: (), the estimate.
      filter: `smc.ParticleState`.
    """

    position: Any
    log_density: jax.Array
    log_prior: jax.Array
    log_likelihood: jax.Array
    filter: smc.ParticleState


def smc2(
    log_prior: core.LogDensity,
    model_of: Callable[[Any], Any],
    ys: Any,
    *,
    particles: int,
    threshold: Any = 0.5,
    moves: int = 3,
    proposal: Any = None,
    resampler: smc.Resampler | None = None,
) -> core.Algorithm:
    """SMC^2: the posterior of parameters and the evidence after every datum. A step takes one datum.

    Args:
      log_prior: `parameters -> scalar`, normalised if the evidence is to mean something; unconstrained parameters.
      model_of: `parameters -> model`, a state-space model or a `smc.FeynmanKac`.
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      particles: of each filter.
      threshold: share in [0, 1] of the parameters below which their effective sample size leads to a move.
      moves: steps of particle marginal Metropolis-Hastings then, by a random walk with the covariance of the weighted
        parameters times `2.38^2 / size` (of fewer than 10 a scalar their variances alone); each runs a filter over all
        data so far.
      proposal: None, `particle.guided(...)` or `particle.kalman_guided(...)`, of the particles of a state-space model.
      resampler: of the filters, `smc.adaptive()` by default.

    Returns:
      Algorithm whose position is a pytree (parameter, ...) of draws from the prior; `init` takes the datum of time 0,
      and time - 1 steps the others; a step beyond the last changes nothing. Its state is an `SMC2State`, whose weights
      go with the position, its info an `SMC2Info`.

    Raises:
      TypeError: if `log_prior` or `model_of` is no function.
      ValueError: for a number that cannot be one.

    >>> def model_of(mean):
    ...     return smc.FeynmanKac(
    ...         initial=lambda key, y: mean + jax.random.normal(key),
    ...         log_initial_potential=lambda x, y: -0.5 * (y - x) ** 2,
    ...         transition=lambda key, x, t, y: x + jax.random.normal(key),
    ...         log_potential=lambda old, x, t, y: -0.5 * (y - x) ** 2,
    ...     )
    >>> algorithm = smc2(lambda mean: -0.5 * mean**2, model_of, jnp.array([1.0, 2.0]), particles=20)
    >>> state = algorithm.init(jax.random.normal(jax.random.key(0), (30,)), jax.random.key(1))
    >>> state, info = algorithm.step(jax.random.key(2), state)
    >>> int(state.time), state.population.num_particles
    (1, 30)

    Source: Chopin, Jacob & Papaspiliopoulos (2013), section 3.1.
    """
    name = "particle.smc2"
    metropolis.check_callable(name, log_prior=log_prior, model_of=model_of)
    core.check_whole(name, particles=particles, moves=moves)
    threshold = known_number(name, "threshold", threshold, lambda share: 0 <= share <= 1, "a share in [0, 1]")
    steps = num_times(name, ys)

    def prior(position: Any) -> jax.Array:
        return metropolis.number(name, "the value of log_prior", log_prior(position))

    begin, extend, rerun = _filters(name, model_of, ys, particles, proposal, resampler)

    def init(position: Any, key: core.Key) -> SMC2State:
        position = jax.tree.map(jnp.asarray, position)
        number = jax.tree.leaves(position)[0].shape[0]
        filters, increments = jax.vmap(begin)(core.chain_keys(core.as_key(key, name), jnp.arange(number)), position)
        log_weights, zero = _known(increments), jnp.int32(0)
        evidence = core.logsumexp(log_weights, axis=-1) - math.log(number)
        log_prior, failed_at = jax.vmap(prior)(position), _when(jnp.isnan(increments), zero)
        return SMC2State(position, log_weights, evidence, log_prior, increments, filters, zero, failed_at)

    def move(key: core.Key, state: SMC2State) -> tuple[SMC2State, jax.Array]:
        number, dtype = state.log_weights.shape[0], state.log_weights.dtype
        metric = metric_of(state.position, state.population.weights)
        step_size = jnp.asarray(2.38 / math.sqrt(max(core.size(state.position) // number, 1)), dtype)
        ancestors = smc.systematic(core.fold(key, 0), state.log_weights, number)
        density, _ = posterior_density(state.log_prior, state.log_likelihood)
        held = Parameters(state.position, density, state.log_prior, state.log_likelihood, state.filters)
        indices = jnp.arange(number)

        def one(key: core.Key, held: Parameters) -> tuple[Parameters, jax.Array, jax.Array]:
            position = walk(core.fold(key, 0), held.position, step_size, metric)
            filter_, likelihood, failed_at = rerun(core.fold(key, 1), position, state.time)
            log_prior = prior(position)
            density, likelihood = posterior_density(log_prior, likelihood)
            proposed = Parameters(position, density, log_prior, likelihood, filter_)
            held, info = metropolis.accept(core.fold(key, 2), held, proposed)
            return held, info.accepted, jnp.where(log_prior == -jnp.inf, -1, failed_at)

        def again(carry: Any, index: jax.Array) -> Any:
            held, rate, failed_at = carry
            held, goes, fails = jax.vmap(one)(core.chain_keys(core.fold(key, index + 1), indices), held)
            return held, rate + jnp.mean(goes.astype(dtype)) / moves, _first(failed_at, fails)

        start = take(held, ancestors), jnp.zeros((), dtype), state.failed_at
        held, rate, failed_at = scan.repeat(again, start, moves)
        moved = state._replace(
            position=held.position,
            log_weights=jnp.zeros_like(state.log_weights),
            log_prior=held.log_prior,
            log_likelihood=held.log_likelihood,
            filters=held.filter,
            failed_at=failed_at,
        )
        return moved, rate

    def one_datum(key: core.Key, state: SMC2State) -> tuple[SMC2State, SMC2Info]:
        number = state.log_weights.shape[0]
        keys = core.chain_keys(core.fold(key, 0), jnp.arange(number))
        filters, increments = jax.vmap(extend)(keys, state.position, state.filters)
        total = core.logsumexp(state.log_weights, axis=-1)
        before = state.log_weights - jnp.where(total == -jnp.inf, 0, total)
        failed = jnp.isnan(increments) & (before > -jnp.inf)
        log_weights = before + _known(increments)
        increment = core.logsumexp(log_weights, axis=-1)
        time = state.time + 1
        state = state._replace(
            log_weights=log_weights,
            log_evidence=state.log_evidence + increment,
            log_likelihood=state.log_likelihood + increments,
            filters=filters,
            time=time,
            failed_at=_first(state.failed_at, _when(failed, time)),
        )
        ess = state.population.effective_sample_size
        # Without any mass there is nothing to resample by.
        low = (ess < threshold.astype(ess.dtype) * number) & jnp.isfinite(increment)
        # As numbers: where steps are mapped, a choice between branches copies what they get, and a key must not be.
        numbers, impl = jax.random.key_data(core.fold(key, 1)), jax.random.key_impl(key)
        state, rate = core.cond(
            low,
            lambda numbers, state: move(jax.random.wrap_key_data(numbers, impl=impl), state),
            lambda numbers, state: (state, jnp.zeros((), ess.dtype)),
            numbers,
            state,
        )
        return state, SMC2Info(increment, ess, low, rate, jnp.mean(failed.astype(ess.dtype)))

    def step(key: core.Key, state: SMC2State) -> tuple[SMC2State, SMC2Info]:
        after, info = one_datum(core.as_key(key, name), state)
        ess = state.population.effective_sample_size
        zero = jnp.zeros((), ess.dtype)
        nothing = SMC2Info(zero.astype(info.log_increment.dtype), ess, jnp.zeros((), bool), zero, zero)
        there = state.time + 1 < steps
        return jax.tree.map(lambda new, old: jnp.where(there, new, old), (after, info), (state, nothing))

    return core.Algorithm(init, step)


def exchange(
    key: core.Key,
    state: SMC2State,
    model_of: Callable[[Any], Any],
    ys: Any,
    *,
    particles: int,
    proposal: Any = None,
    resampler: smc.Resampler | None = None,
) -> SMC2State:
    """The state with filters of another number of particles, run anew over the data so far: for `smc2` of that number.

    Weights are multiplied by the ratios of the new estimates of the likelihood to the old ones. More particles, twice
    as many say, are called for where few moves are accepted though parameters are close to each other.

    Args:
      key: random key.
      state: of `smc2`.
      model_of, ys: as for `smc2`.
      particles: of each new filter.
      proposal, resampler: of the new filters.

    Returns:
      `SMC2State`; its evidence is corrected by the mean ratio.

    Raises:
      TypeError: if `model_of` is no function.
      ValueError: for a number that is not positive.

    Source: Chopin, Jacob & Papaspiliopoulos (2013), section 3.6.1.
    """
    name = "particle.exchange"
    metropolis.check_callable(name, model_of=model_of)
    core.check_whole(name, particles=particles)
    _, _, rerun = _filters(name, model_of, ys, particles, proposal, resampler)
    keys = core.chain_keys(core.as_key(key, name), jnp.arange(state.log_weights.shape[0]))
    filters, log_likelihood, failed_at = jax.vmap(rerun, (0, 0, None))(keys, state.position, state.time)
    dead = state.log_weights == -jnp.inf
    ratio = jnp.where(dead, 0, _known(log_likelihood) - jnp.where(dead, 0, state.log_likelihood))
    log_weights = state.log_weights + ratio
    change = core.logsumexp(log_weights, axis=-1) - core.logsumexp(state.log_weights, axis=-1)
    return state._replace(
        log_weights=log_weights,
        log_evidence=state.log_evidence + change,
        log_likelihood=log_likelihood,
        filters=filters,
        failed_at=_first(state.failed_at, jnp.where(dead, -1, failed_at)),
    )


def _filters(
    name: str,
    model_of: Callable[[Any], Any],
    ys: Any,
    particles: int,
    proposal: Any,
    resampler: smc.Resampler | None,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The filter of one parameter: its first datum, one more, and all up to a time."""

    def begin(key: core.Key, position: Any) -> tuple[smc.ParticleState, jax.Array]:
        model, data = as_feynman_kac(name, model_of(position), ys, kernel=False, proposal=proposal)
        state, info = smc.begin(key, model, take(data, 0), particles)
        return state, info.log_increment

    def extend(key: core.Key, position: Any, state: smc.ParticleState) -> tuple[smc.ParticleState, jax.Array]:
        model, data = as_feynman_kac(name, model_of(position), ys, kernel=False, proposal=proposal)
        state, info = smc.step(key, model, state, take(data, state.time + 1), resampler)
        return state, info.log_increment

    def rerun(key: core.Key, position: Any, time: jax.Array) -> tuple[smc.ParticleState, jax.Array, jax.Array]:
        def one(carry: Any, step: jax.Array) -> Any:
            state, total, failed_at = carry
            state, increment = extend(core.fold(key, step + 1), position, state)
            return state, total + increment, _first(failed_at, _when(jnp.isnan(increment), state.time))

        state, increment = begin(core.fold(key, 0), position)
        return scan.repeat(one, (state, increment, _when(jnp.isnan(increment), jnp.int32(0))), time)

    return begin, extend, rerun


def _known(increment: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(increment), -jnp.inf, increment)


def _when(failed: jax.Array, time: jax.Array) -> jax.Array:
    """The time if anything failed, else -1."""
    return jnp.where(jnp.any(failed), time, -1).astype(jnp.int32)


def _first(one: jax.Array, others: jax.Array) -> jax.Array:
    """The earliest of times of which -1 is never."""
    # As an unsigned number -1 is the latest of all.
    return jnp.minimum(one.astype(jnp.uint32), jnp.min(others.astype(jnp.uint32))).astype(jnp.int32)
