"""The filter one observation at a time, for data that arrive."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._square_root import Moments, triangularize
from jaxprob.inference.kalman._steps import as_observations, prepare
from jaxprob.models.state_space import LinearGaussian


class StreamState(NamedTuple):
    """Where a stream is.

    Attributes:
      predicted: moments of the state at the next observation, given the diffuse numbers.
      root: (d + 1, d + 1), of what is known of those.
      log_scales: (), sum of the logs of the standard deviations of the innovations so far.
      mean: (n,), of the state given all observations so far; that of the model before the first.
      factor: (n, n), root of its covariance.
      log_likelihood: (), of all observations so far.
    """

    predicted: Moments
    root: jax.Array
    log_scales: jax.Array
    mean: jax.Array
    factor: jax.Array
    log_likelihood: jax.Array


def init(model: LinearGaussian) -> StreamState:
    """Before the first observation.

    Args:
      model: a `LinearGaussian` in which nothing varies in time.

    Raises:
      ValueError: if something does.
    """
    _check("kalman.init", model)
    nothing = jnp.full((1, model.observation_size), jnp.nan, model.dynamics.dtype)
    start = prepare(model, *as_observations("kalman.init", model, nothing, None)).start
    d, dtype = model.diffuse_size, start.mean.dtype
    root = jnp.zeros((d + 1, d + 1), dtype)
    mean, factor = diffuse.integrate(start, root if d else None)
    return StreamState(start, root, jnp.zeros((), dtype), mean, factor, jnp.zeros((), dtype))


def step(model: LinearGaussian, state: StreamState, y: Any) -> StreamState:
    """After one more observation: after t of them, mean, factor and likelihood are those of `filter` at time t.

    Args:
      model: a `LinearGaussian` in which nothing varies in time.
      state: from `init` or `step`.
      y: (m,), NaN where missing; or () where m = 1.

    Raises:
      ValueError: if something varies, or y has another shape.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> state = step(walk, init(walk), 1.0)
    >>> state.mean.round(3), step(walk, state, jnp.nan).mean.round(3)
    (Array([0.5], dtype=float32), Array([0.5], dtype=float32))
    """
    _check("kalman.step", model)
    y = core.as_float(y)
    values, seen = as_observations("kalman.step", model, jnp.expand_dims(y, 0), None)
    steps = prepare(model, values.astype(state.mean.dtype), seen)
    one = steps.at(jax.tree.map(lambda leaf: leaf[0], steps.varying))
    predicted, filtered, found = sequential.advance(state.predicted, one)
    root = triangularize(jnp.concatenate([state.root, jnp.roll(found.innovation, -1, axis=1).T], 1))
    mean, factor = diffuse.integrate(filtered, root if model.diffuse_size else None)
    scales = state.log_scales + jnp.sum(found.log_scale)
    return StreamState(predicted, root, scales, mean, factor, diffuse.log_likelihood(scales, root))


def _check(function: str, model: Any) -> None:
    if not isinstance(model, LinearGaussian):
        raise core.bad_type(function, "model", model, "a LinearGaussian")
    if model.time_varying:
        got = f"one in which {model.time_varying[0]} varies in time"
        raise core.bad_value(function, "model", got, "one in which nothing does", "Use kalman.filter")
