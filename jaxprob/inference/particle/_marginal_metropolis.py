"""Particle marginal Metropolis-Hastings: parameters of a state-space model whose likelihood is estimated by particles.

The estimate of the current parameters stays in the state and is never made anew, which makes the chain exact: it is an
ordinary one on parameters and random numbers together.

Source: Andrieu & Roberts (2009), "The pseudo-marginal approach for efficient Monte Carlo computations"; Andrieu, Doucet
& Holenstein (2010), section 2.4.2; Tran, Kohn, Quiroz & Villani (2016), "The block pseudo-marginal sampler", for random
numbers of which a part is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._metric import as_metric, check_size
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._random_walk import walk
from jaxprob.inference.particle._arguments import as_feynman_kac, num_times
from jaxprob.inference.particle._controlled import Twisted


class MarginalState(NamedTuple):
    """The state of a chain of parameters.

    Attributes:
      position: pytree, the parameters.
      log_density: (), log prior plus the estimate of the log likelihood.
      log_likelihood: (), the estimate; -inf where no particle was possible at some time, NaN where a weight was.
      randomness: (time, ...), uint32, the data of the keys of the filter that made it.
    """

    position: Any
    log_density: jax.Array
    log_likelihood: jax.Array
    randomness: jax.Array


class MarginalInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: the probability with which the proposal was accepted.
      accepted: whether it was.
      log_density: of the new state.
      log_likelihood: of the proposal, estimated. NaN where a weight of its filter was: it is rejected then, as any
        density that is not a number, but the model is to be mended.
      failed_at: of the filter of the proposal, as in `smc.Run`: the first time at which no particle was possible or a
        weight was NaN; -1 where all is well or the prior is zero.
    """

    acceptance_rate: jax.Array
    accepted: jax.Array
    log_density: jax.Array
    log_likelihood: jax.Array
    failed_at: jax.Array


def marginal_metropolis(
    log_prior: core.LogDensity,
    model_of: Callable[[Any], Any],
    ys: Any,
    *,
    particles: int,
    step_size: Any = 1.0,
    inverse_mass_matrix: Any = 1.0,
    refresh: Any = 1.0,
    proposal: Any = None,
    resampler: smc.Resampler | None = None,
) -> core.Algorithm:
    """Particle marginal Metropolis-Hastings: a random walk of parameters, one particle filter a step.

    `theta' = theta + step_size L z`, accepted with probability min(1, p(theta') Z'(y) / (p(theta) Z(y))), where Z is
    the particle estimate of the likelihood and L L' the inverse mass matrix; the chain has the exact posterior.

    Args:
      log_prior: `parameters -> scalar`; parameters are any pytree of floating arrays, unconstrained, or -inf where
        there are none such.
      model_of: `parameters -> model`, a state-space model or a `smc.FeynmanKac`.
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      particles: about so many that the log likelihood has a standard deviation of 1 to 1.7 at likely parameters.
      step_size: (), an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size), or a scalar.
      refresh: share in (0, 1] of the times whose random numbers a proposal draws anew, on average. The others are those
        of the current state, so that the errors of both estimates are correlated and more proposals are accepted.
      proposal: of the particles of a state-space model: None for its laws, `particle.guided(...)`,
        `particle.kalman_guided(...)`, or `particle.twisted(...)` for estimates by controlled sequential Monte Carlo,
        which vary least.
      resampler: of the filter, `smc.adaptive()` by default.

    Returns:
      Algorithm whose state is a `MarginalState` and whose info is a `MarginalInfo`.

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
    >>> kernel = marginal_metropolis(lambda mean: -0.5 * mean**2, model_of, jnp.array([1.0, 2.0]), particles=50)
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(jnp.float32(0.0), jax.random.key(0)))
    >>> bool(info.accepted) == (state.position.item() != 0.0)
    True

    Source: Andrieu, Doucet & Holenstein (2010), section 2.4.2.
    """
    name = "particle.marginal_metropolis"
    metropolis.check_callable(name, log_prior=log_prior, model_of=model_of)
    core.check_whole(name, particles=particles)
    step_size = hamiltonian.as_step_size(step_size, name)
    metric = as_metric(inverse_mass_matrix, name)
    refresh = known_number(name, "refresh", refresh, lambda share: 0 < share <= 1, "a share in (0, 1]")
    steps = num_times(name, ys)

    def state_at(position: Any, randomness: jax.Array, key: core.Key) -> tuple[MarginalState, jax.Array]:
        model, keys = model_of(position), jax.random.wrap_key_data(randomness, impl=jax.random.key_impl(key))
        if isinstance(proposal, Twisted) and not isinstance(model, smc.FeynmanKac):
            found = proposal.run(keys, model, ys, particles, resampler)
        else:
            program, data = as_feynman_kac(name, model, ys, kernel=False, proposal=proposal)
            found = smc.run(keys, program, data, particles, resampler=resampler)
        prior = metropolis.number(name, "the value of log_prior", log_prior(position))
        density, estimate = posterior_density(prior, found.log_likelihood)
        failed_at = jnp.where(prior == -jnp.inf, -1, found.failed_at)
        return MarginalState(position, density, estimate, randomness), failed_at

    def init(position: Any, key: core.Key) -> MarginalState:
        position = jax.tree.map(jnp.asarray, position)
        check_size(metric, hamiltonian.to_vector(position)[0].size, name)
        key = core.as_key(key, name)
        return state_at(position, jax.random.key_data(core.chain_keys(key, jnp.arange(steps))), key)[0]

    def step(key: core.Key, state: MarginalState) -> tuple[MarginalState, MarginalInfo]:
        key = core.as_key(key, name)
        moved = walk(core.fold(key, 0), state.position, step_size, metric)
        new = core.chain_keys(core.fold(key, 1), jnp.arange(steps))
        anew = core.random.uniform(core.fold(key, 2), (steps, 1)) < refresh.astype("float32")
        randomness = jnp.where(anew, jax.random.key_data(new), state.randomness)
        proposed, failed_at = state_at(moved, randomness, key)
        state, info = metropolis.accept(core.fold(key, 3), state, proposed)
        return state, MarginalInfo(*info, proposed.log_likelihood, failed_at)

    return core.Algorithm(init, step)


def posterior_density(prior: jax.Array, estimate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log density of parameters and the estimate of their log likelihood: -inf where the prior is zero.

    There a model may be none, and what its filter found means nothing.
    """
    estimate = jnp.where(prior == -jnp.inf, -jnp.inf, estimate)
    return prior + estimate.astype(prior.dtype), estimate
