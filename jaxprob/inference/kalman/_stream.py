"""The filter one observation at a time, for data that arrive."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman import _nonlinear as nonlinear
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._filter import as_iterations
from jaxprob.inference.kalman._linearize import as_rule
from jaxprob.inference.kalman._square_root import Moments, Seen, triangularize
from jaxprob.inference.kalman._steps import as_observations, prepare
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel


class StreamState(NamedTuple):
    """Where a stream is.

    Attributes:
      predicted: moments of the state at the next observation, given the diffuse numbers.
      root: (d + 1, d + 1), of what is known of those.
      log_scales: (), sum of the logs of the standard deviations of the innovations so far.
      mean: (n,), of the state given all observations so far; that of the model before the first.
      factor: (n, n), root of its covariance.
      log_likelihood: (), of all observations so far.
      time: (), int32, how many there were.
    """

    predicted: Moments
    root: jax.Array
    log_scales: jax.Array
    mean: jax.Array
    factor: jax.Array
    log_likelihood: jax.Array
    time: jax.Array


def init(model: LinearGaussian | StateSpaceModel) -> StreamState:
    """Before the first observation.

    Args:
      model: a `LinearGaussian` in which nothing varies in time, or a `StateSpaceModel`.

    Raises:
      ValueError: if something varies in a `LinearGaussian`, or the law of the first state has no moments.
      TypeError: if the model is neither.
    """
    _check("kalman.init", model)
    if isinstance(model, StateSpaceModel):
        # Refuses states and observations that are no vectors.
        conditional.as_observations("kalman.init", model.until(0), jnp.zeros((0, *model.observation_shape)), None)
        dtype = core.accumulator_dtype(core.result_dtype(conditional.state_of(model)))
        start = nonlinear.first("kalman.init", model, dtype)
        d = 0
    else:
        nothing = jnp.full((1, model.observation_size), jnp.nan, model.dynamics.dtype)
        start, d = prepare(model, *as_observations("kalman.init", model, nothing, None)).start, model.diffuse_size
    dtype = start.mean.dtype
    root = jnp.zeros((d + 1, d + 1), dtype)
    mean, factor = diffuse.integrate(start, root if d else None)
    return StreamState(start, root, jnp.zeros((), dtype), mean, factor, jnp.zeros((), dtype), jnp.int32(0))


def step(
    model: LinearGaussian | StateSpaceModel, state: StreamState, y: Any, *, linearize: Any = None, iterations: int = 1
) -> StreamState:
    """After one more observation: after t of them, mean, factor and likelihood are those of `filter` at time t.

    Args:
      model: a `LinearGaussian` in which nothing varies in time, or a `StateSpaceModel`, whose functions are given the
        time `state.time`, and the inputs of that.
      state: from `init` or `step`.
      y: (m,), NaN where missing; or () where m = 1.
      linearize: how a `StateSpaceModel` is made linear, see `kalman.filter`.
      iterations: how often each observation is linearised, see `kalman.filter`.

    Raises:
      ValueError: if something varies in a `LinearGaussian`, or y has another shape.
      TypeError: if the model is neither.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> state = step(walk, init(walk), 1.0)
    >>> state.mean.round(3), step(walk, state, jnp.nan).mean.round(3)
    (Array([0.5], dtype=float32), Array([0.5], dtype=float32))
    """
    _check("kalman.step", model)
    rule, iterations = as_rule("kalman.step", linearize), as_iterations("kalman.step", iterations)
    y = jnp.expand_dims(core.as_float(y), 0)
    dtype, predicted = state.mean.dtype, state.predicted
    if isinstance(model, StateSpaceModel):
        # Inputs of the other times are no matter here.
        values, seen = conditional.as_observations("kalman.step", model.until(1), y, None)
        values = nonlinear.values_of(model, values.astype(dtype), seen, rule)
        arguments = "kalman.step", model, rule, iterations, predicted, state.time, values[0], seen[0]
        predicted, _, filtered, found = nonlinear.advance(*arguments)
        return _after(state, predicted, filtered, found, 0)
    values, seen = as_observations("kalman.step", model, y, None)
    steps = prepare(model, values.astype(dtype), seen)
    one = steps.at(jax.tree.map(lambda leaf: leaf[0], steps.varying))
    return _after(state, *sequential.advance(predicted, one), model.diffuse_size)


def _after(state: StreamState, predicted: Moments, filtered: Moments, found: Seen, diffuse_size: int) -> StreamState:
    root = triangularize(jnp.concatenate([state.root, jnp.roll(found.innovation, -1, axis=1).T], 1))
    mean, factor = diffuse.integrate(filtered, root if diffuse_size else None)
    scales = state.log_scales + jnp.sum(found.log_scale)
    likelihood = diffuse.log_likelihood(scales, root)
    return StreamState(predicted, root, scales, mean, factor, likelihood, state.time + 1)


def _check(function: str, model: Any) -> None:
    if isinstance(model, StateSpaceModel):
        return
    if not isinstance(model, LinearGaussian):
        raise core.bad_type(function, "model", model, "a LinearGaussian or a StateSpaceModel")
    if model.time_varying:
        got = f"one in which {model.time_varying[0]} varies in time"
        raise core.bad_value(function, "model", got, "one in which nothing does", "Use kalman.filter")
