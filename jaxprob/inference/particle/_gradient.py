"""The score of a state-space model by Fisher's identity: a smoothed sum of gradients of densities that are known.

    grad log p(y) = E[ grad log p(x_0, y_0) + sum_t grad log p(x_t, y_t | x_{t-1}) | y ]

Nothing is differentiated through a particle filter, whose resampling has no derivative.
Source: Poyiadjis, Doucet & Singh (2011), "Particle approximations of the score and observed information matrix in state
space models with application to parameter estimation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.particle._arguments import as_feynman_kac
from jaxprob.inference.particle._backward import take
from jaxprob.inference.particle._model import laws_of, log_prob
from jaxprob.inference.particle._paris import additive
from jaxprob.inference.particle._smooth import METHODS, smooth
from jaxprob.inference.smc._each import InChunks


class Score(NamedTuple):
    """What a score was found to be.

    Attributes:
      gradient: pytree like the parameters, of the log likelihood; NaN where the filter failed.
      log_likelihood: (), of the filter.
      failed_at: (), int32, as in `smc.Run`.
    """

    gradient: Any
    log_likelihood: jax.Array
    failed_at: jax.Array


def score(
    key: core.Key,
    model_of: Callable[[Any], Any],
    parameters: Any,
    ys: Any,
    *,
    particles: int = 1000,
    method: str = "paris",
    links: int | None = 2,
    log_initial: Callable[..., Any] | None = None,
    resampler: smc.Resampler | None = None,
    **options: Any,
) -> Score:
    """The gradient of the log likelihood with respect to parameters, by Fisher's identity.

    Args:
      key: random key.
      model_of: `parameters -> model`, a state-space model, or a `smc.FeynmanKac` with `log_kernel`.
      parameters: pytree of floating arrays.
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      particles: of the filter.
      method: "paris", in one pass and memory that does not grow with time; or one of `particle.smooth`, whose
        trajectories the gradients are taken at.
      links: for "paris", predecessors of a particle, or None for all of them.
      log_initial: `(parameters, particle, datum) -> scalar`, log of the density of the first state times that of the
        first observation; of a state-space model it is known.
      resampler: of the filter, `smc.adaptive()` by default.
      **options: others of `particle.smooth`.

    Returns:
      `Score`.

    Raises:
      ValueError: for an unknown method, or a `FeynmanKac` without `log_initial`.

    Source: Poyiadjis, Doucet & Singh (2011), equation 8 and algorithm 2.
    """
    name = "particle.score"
    core.as_key(key, name)
    if method not in METHODS or method == "fixed_lag":
        choices = ", ".join(map(repr, METHODS[:-1]))
        raise core.bad_value(name, "method", method, f"one of {choices}")
    made = model_of(parameters)
    if isinstance(made, smc.FeynmanKac) and log_initial is None:
        raise core.bad_value(name, "log_initial", None, "the log density of the first state and observation")
    data = as_feynman_kac(name, made, ys, kernel=True)[1]

    def first(parameters: Any, particle: Any, datum: Any) -> jax.Array:
        if log_initial is not None:
            return log_initial(parameters, particle, datum)
        laws = laws_of(name, model_of(parameters))
        seen = laws.log_observation(particle, 0, datum)
        return log_prob(laws.initial, particle).astype(seen.dtype) + seen

    def later(parameters: Any, previous: Any, particle: Any, time: jax.Array, datum: Any) -> jax.Array:
        kernel = as_feynman_kac(name, model_of(parameters), data, kernel=True)[0].log_kernel
        return _one(kernel)(previous, particle, time, datum)

    if method == "paris":
        found = additive(
            key,
            made,
            data,
            lambda *args: jax.grad(later)(parameters, *args),
            lambda *args: jax.grad(first)(parameters, *args),
            particles=particles,
            links=links,
            resampler=resampler,
            **options,
        )
        return Score(found.mean, found.log_likelihood, found.failed_at)

    smoothed = smooth(key, made, data, particles=particles, method=method, resampler=resampler, **options)
    states = lax.stop_gradient(smoothed.trajectories)

    def of_path(parameters: Any, states: Any) -> jax.Array:
        times = jnp.arange(1, jax.tree.leaves(data)[0].shape[0], dtype=jnp.int32)
        rest = take(states, slice(None, -1)), take(states, slice(1, None)), times, take(data, slice(1, None))
        terms = jax.vmap(lambda *args: later(parameters, *args))(*rest)
        return first(parameters, take(states, 0), take(data, 0)) + jnp.sum(terms)

    def mean(parameters: Any) -> jax.Array:
        return jnp.mean(jax.vmap(of_path, (None, 0))(parameters, states))

    gradient = jax.tree.map(lambda leaf: jnp.where(smoothed.failed_at < 0, leaf, jnp.nan), jax.grad(mean)(parameters))
    return Score(gradient, smoothed.log_likelihood, smoothed.failed_at)


def _one(function: Any) -> Callable[..., jax.Array]:
    """A function of one pair of particles, of one that takes all at once."""
    if isinstance(function, InChunks):
        return _one(function.function)
    if not isinstance(function, smc.Batched):
        return function

    def one(previous: Any, particle: Any, time: jax.Array, datum: Any) -> jax.Array:
        pair = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), (previous, particle))
        return function(*pair, time, datum)[0]

    return one
