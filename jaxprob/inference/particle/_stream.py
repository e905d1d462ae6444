"""The particle filter one observation at a time, for data that arrive."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.particle._filter import moments
from jaxprob.inference.particle._model import Model, as_datum, feynman_kac


class StreamState(NamedTuple):
    """Where a stream is.

    Attributes:
      particles: `smc.ParticleState`: weighted particles, and the time of the last observation.
      log_likelihood: (), of all observations so far.
      effective_sample_size: (), of the weights.
      failed_at: (), int32, the first time at which no particle was possible or a weight was NaN; -1 where all is well.
    """

    particles: smc.ParticleState
    log_likelihood: jax.Array
    effective_sample_size: jax.Array
    failed_at: jax.Array

    @property
    def population(self) -> smc.Population:
        """Weighted particles."""
        return self.particles.population

    @property
    def mean(self) -> Any:
        """Of the state given all observations so far."""
        return moments(self.population)[0]

    @property
    def variance(self) -> Any:
        """Of each number of the state."""
        return moments(self.population)[1]


def init(
    key: core.Key, model: Model, y: Any, *, particles: int = 1000, proposal: Any = None, missing: Any = None
) -> StreamState:
    """The state of a stream after its first observation.

    Args:
      key: random key.
      model: as for `particle.filter`.
      y: (*observation_shape), NaN where missing.
      particles: how many.
      proposal: as for `particle.filter`.
      missing: booleans of the shape of y, or one.

    Raises:
      ValueError, TypeError: as `particle.filter` does.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import StateSpaceModel
    >>> walk = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 1.0))
    >>> state = init(jax.random.key(0), walk, 1.0, particles=10_000)
    >>> state = step(jax.random.key(1), walk, state, jnp.nan)
    >>> print(f"{state.mean:.1f} {state.variance:.1f}")
    0.5 1.5
    """
    core.check_whole("particle.init", particles=particles)
    datum = as_datum("particle.init", model, y, 0, missing)
    return _begin(core.as_key(key, "particle.init"), feynman_kac(model, proposal), datum, particles)


def step(
    key: core.Key,
    model: Model,
    state: StreamState,
    y: Any,
    *,
    proposal: Any = None,
    look_ahead: Any = None,
    resampler: smc.Resampler | None = None,
    missing: Any = None,
) -> StreamState:
    """The state of a stream after one more observation.

    Args:
      key: random key, another one at each time.
      model: as for `particle.filter`. Where it varies in time, the stream counts along it.
      state: from `init` or `step`.
      y: (*observation_shape), NaN where missing.
      proposal: as for `particle.filter`.
      look_ahead: as for `particle.filter`.
      resampler: `smc.adaptive()` by default.
      missing: booleans of the shape of y, or one.

    Raises:
      ValueError, TypeError: as `particle.filter` does.
    """
    if not isinstance(state, StreamState):
        raise core.bad_type("particle.step", "state", state, "a state from particle.init or particle.step")
    datum = as_datum("particle.step", model, y, state.particles.time + 1, missing)
    program = feynman_kac(model, proposal, look_ahead=look_ahead)
    return _step(core.as_key(key, "particle.step"), program, state, datum, core.as_partial(resampler))


@functools.partial(jax.jit, static_argnums=3)
def _begin(key: core.Key, program: Any, datum: Any, particles: int) -> StreamState:
    state, info = smc.begin(key, program, datum, particles)
    failed = jnp.where(jnp.isfinite(info.log_increment), -1, 0).astype(jnp.int32)
    return StreamState(state, info.log_increment, info.effective_sample_size, failed)


@jax.jit
def _step(key: core.Key, program: Any, state: StreamState, datum: Any, resampler: Any) -> StreamState:
    particles, info = smc.step(key, program, state.particles, datum, resampler)
    fails = (state.failed_at < 0) & ~jnp.isfinite(info.log_increment)
    failed = jnp.where(fails, particles.time, state.failed_at)
    total = state.log_likelihood + info.log_increment
    return StreamState(particles, total, info.effective_sample_size, failed)
