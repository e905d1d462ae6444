"""Particle filters: the states of any model given what has been observed so far, and an unbiased likelihood.

Source: Gordon, Salmond & Smith (1993), "Novel approach to nonlinear/non-Gaussian Bayesian state estimation"; Pitt &
Shephard (1999), "Filtering via simulation: auxiliary particle filters".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.particle._model import Model, as_data, feynman_kac
from jaxprob.inference.smc._devices import as_mesh, over_devices
from jaxprob.inference.smc._population import weighted_moments


@core.pytree
class Filtered:
    """What a particle filter found; time leads.

    Attributes:
      mean: (time, ...), of the state given the observations up to its time; a pytree like a particle.
      variance: (time, ...), of each number of the state.
      log_likelihoods: (time,), of the observations up to each time; exponentials are unbiased.
      effective_sample_size: (time,), of the weights.
      failed_at: (), int32, the first time at which no particle was possible (the log likelihood is -inf from there on)
        or a weight was NaN (NaN from there on); -1 where all is well.
      population: `smc.Population` of the last time.
      particles: (time, particle, ...) with `keep="all"`, else None. They are weighted.
      log_weights: (time, particle) with `keep="all"`, un-normalised, else None.
      ancestors: (time, particle), int32, with `keep="all"`: of which particle of the time before each came; of itself
        at time 0. Else None.
      kept: (time, ...), what a function given as `keep` returned, else None.
    """

    mean: Any
    variance: Any
    log_likelihoods: jax.Array
    effective_sample_size: jax.Array
    failed_at: jax.Array
    population: smc.Population
    particles: Any = None
    log_weights: Any = None
    ancestors: Any = None
    kept: Any = None

    @property
    def log_likelihood(self) -> jax.Array:
        """(), of all observations."""
        return self.log_likelihoods[..., -1]


def filter(
    key: core.Key,
    model: Model,
    ys: Any,
    *,
    particles: int = 1000,
    proposal: Any = None,
    look_ahead: Any = None,
    resampler: smc.Resampler | None = None,
    missing: Any = None,
    keep: Any = None,
    chunk: int | None = None,
    devices: Any = None,
) -> Filtered:
    """The states of a model given what has been observed so far, by weighted particles.

    Args:
      key: random key.
      model: a `StateSpaceModel`, or a `LinearGaussian` or `HiddenMarkov`.
      ys: (time, *observation_shape). NaN is missing; entries that are independent given the state, and those of a
        `MultivariateNormal`, are missing one by one.
      particles: how many.
      proposal: None for the laws of the model (the bootstrap filter), `particle.guided(...)` or
        `particle.kalman_guided(...)`.
      look_ahead: None; "mean" or a function for an auxiliary filter, as for `particle.feynman_kac`.
      resampler: `smc.adaptive()` by default.
      missing: booleans of the shape of `ys`, or (time,), true where not observed.
      keep: nothing by default but the moments, so that memory does not grow with particles times steps; "all" for
        particles, weights and ancestors of all times; or `population -> pytree`.
      chunk: how many particles are worked on at a time, on each device, which bounds memory; all by default.
      devices: over which particles are spread: a number, a list or a mesh, which divides the particles. The result is
        that of one device, to rounding (with a `chunk`, where that divides the particles of a device). None to run
        where the data are.

    Returns:
      `Filtered`.

    Raises:
      ValueError: if shapes or times do not fit, there is no particle, or an observation is infinite.
      TypeError: if the model is none.

    >>> from jaxprob.distributions import Normal, Poisson
    >>> from jaxprob.models.state_space import StateSpaceModel
    >>> model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, 0.3), lambda x, t: Poisson(jnp.exp(x)))
    >>> found = filter(jax.random.key(0), model, jnp.array([1.0, jnp.nan, 4.0]), particles=100)
    >>> found.mean.shape, found.particles, int(found.failed_at)
    ((3,), None, -1)
    """
    name = "particle.filter"
    key = core.as_key(key, name)
    core.check_whole(name, particles=particles)
    data = as_data(name, model, ys, missing)
    if not (keep is None or callable(keep) or (isinstance(keep, str) and keep == "all")):
        raise core.bad_value(name, "keep", keep, "None, 'all' or a function of a Population")
    mesh = as_mesh(name, devices, particles)
    program = feynman_kac(model, proposal, look_ahead=look_ahead)
    return run(key, program, data, particles, resampler, keep, chunk, mesh=mesh)


def log_likelihood(
    key: core.Key,
    model: Model,
    ys: Any,
    *,
    particles: int = 1000,
    proposal: Any = None,
    look_ahead: Any = None,
    resampler: smc.Resampler | None = None,
    missing: Any = None,
    chunk: int | None = None,
    devices: Any = None,
) -> jax.Array:
    """The log of an unbiased estimate of the density of the observations, (): that of `filter`.

    Args, Raises: as for `filter`.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import StateSpaceModel
    >>> walk = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 1.0))
    >>> value = log_likelihood(jax.random.key(0), walk, jnp.array([1.0, jnp.nan, 3.0]), particles=10_000)
    >>> abs(value.item() + 3.954) < 0.1
    True
    """
    name = "particle.log_likelihood"
    key = core.as_key(key, name)
    core.check_whole(name, particles=particles)
    data = as_data(name, model, ys, missing)
    program = feynman_kac(model, proposal, look_ahead=look_ahead)
    mesh = as_mesh(name, devices, particles)
    return _total(key, program, data, core.as_partial(resampler), particles, chunk, mesh)


def run(
    key: core.Key,
    program: smc.FeynmanKac,
    data: Any,
    particles: int,
    resampler: smc.Resampler | None,
    keep: Any,
    chunk: int | None = None,
    particle_of: Callable[[Any], Any] | None = None,
    mesh: Any = None,
) -> Filtered:
    """Filters by a Feynman-Kac model whose functions are pytrees.

    Args:
      key: random key.
      program: the model.
      data: (time, ...).
      particles: how many.
      resampler: or None.
      keep: as for `filter`.
      chunk: as for `filter`.
      particle_of: `population -> (mean, variance)` of a time; those of the particles by default.
      mesh: from `as_mesh`.
    """
    return _run(key, program, data, core.as_partial(resampler), particles, keep, chunk, particle_of or moments, mesh)


def moments(population: smc.Population) -> tuple[Any, Any]:
    """Mean and variance of each number of a particle, as pytrees like one; NaN without any mass."""
    return weighted_moments(population.particles, population.weights)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _run(
    key: core.Key,
    program: Any,
    data: Any,
    resampler: Any,
    particles: int,
    keep: Any,
    chunk: Any,
    particle_of: Any,
    mesh: Any,
) -> Filtered:
    everything = isinstance(keep, str)

    def look(population: smc.Population) -> Any:
        if everything:
            return particle_of(population), (population.particles, population.log_weights), None
        return particle_of(population), (None, None), None if keep is None else keep(population)

    spread, resampler = over_devices(smc.chunked(program, chunk), resampler, mesh)
    found = smc.run(key, spread, data, particles, resampler=resampler, keep=look)
    (mean, variance), (values, weights), kept = found.kept
    return Filtered(
        mean,
        variance,
        jnp.cumsum(found.info.log_increment),
        found.info.effective_sample_size,
        found.failed_at,
        found.state.population,
        values,
        weights,
        found.info.ancestors if everything else None,
        kept,
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _total(key: core.Key, program: Any, data: Any, resampler: Any, particles: int, chunk: Any, mesh: Any) -> jax.Array:
    spread, resampler = over_devices(smc.chunked(program, chunk), resampler, mesh)
    return smc.run(key, spread, data, particles, resampler=resampler).log_likelihood
