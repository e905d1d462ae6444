"""Forecasts: the states and observations that follow the data, with their uncertainty."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from jaxprob import core, scan
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman._filter import Filtered
from jaxprob.inference.kalman._linearize import Extended, Laplace, SigmaPoints, as_rule
from jaxprob.inference.kalman._square_root import Moments, predict, product, square_root
from jaxprob.inference.kalman._steps import covariance_of
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel
from jaxprob.models.state_space._linear_gaussian import DYNAMICS


@core.pytree
class Forecast:
    """What is expected to be observed; with a leading axis where that was asked for from several origins.

    Attributes:
      mean: (steps, m), of the observations.
      covariance: (steps, m, m), of the observations of one time, noise included.
      state_mean: (steps, n).
      state_factor: (steps, n, n), lower-triangular root of the covariance of the states.
    """

    mean: jax.Array
    covariance: jax.Array
    state_mean: jax.Array
    state_factor: jax.Array

    @property
    def state_covariance(self) -> jax.Array:
        """(steps, n, n)."""
        return covariance_of(self.state_factor)

    def interval(self, probability: float = 0.9) -> tuple[jax.Array, jax.Array]:
        """Lower and upper ends (steps, m) of the central interval of each observation.

        Args:
          probability: that the observation lies in it, between 0 and 1.

        Raises:
          ValueError: if it is not between 0 and 1.
        """
        if not isinstance(probability, jax.core.Tracer) and not 0 < probability < 1:
            raise core.bad_value("interval", "probability", probability, "a number between 0 and 1")
        half = ndtri(jnp.asarray(0.5 + 0.5 * probability, self.mean.dtype))
        spread = half * jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        return self.mean - spread, self.mean + spread


def forecast(
    model: LinearGaussian | StateSpaceModel,
    filtered: Filtered,
    steps: int,
    *,
    origins: Any = None,
    linearize: Any = None,
) -> Forecast:
    """What follows the data that a filter has seen, or what would have been said to follow earlier on.

    Args:
      model: the one that was filtered with; where entries vary in time, one that goes on for `steps` more.
      filtered: what `filter` returned.
      steps: how many times ahead.
      origins: (k,) whole numbers, the last times that each of k forecasts knows of (rolling origin); the results have
        a leading axis (k,), and `ys[origins[i] + 1 + j]` is what step j of forecast i is of. None for the end of the
        data, without that axis.
      linearize: see `kalman.filter`; a rule that takes moments.

    Returns:
      `Forecast`.

    Raises:
      ValueError: if the model does not span the times to come, there is nothing that was filtered, or an origin is no
        time of it.

    >>> from jaxprob.inference import kalman
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> ahead = forecast(walk, kalman.filter(walk, jnp.array([1.0, 2.0])), steps=2)
    >>> print(*(f"{x:.3f}" for x in ahead.mean[:, 0]), *(f"{x:.3f}" for x in ahead.covariance[:, 0, 0]))
    1.400 1.400 2.600 3.600
    >>> found = kalman.filter(walk, jnp.array([1.0, 2.0, 4.0]))
    >>> each = forecast(walk, found, steps=1, origins=[0, 1]).mean[:, 0, 0]  # of the 2 and of the 4
    >>> [round(float(mean), 3) for mean in each]
    [0.5, 1.4]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise core.bad_value("kalman.forecast", "steps", steps, "a number of times, at least 1")
    times = filtered.mean.shape[0]
    if not times:
        raise core.bad_value("kalman.forecast", "filtered", "of no times", "at least one")
    if origins is not None:
        origins = jnp.asarray(origins)
        known = np.asarray([times - 1] if isinstance(origins, jax.core.Tracer) else origins)
        if origins.ndim != 1 or not jnp.issubdtype(origins.dtype, jnp.integer) or not origins.shape[0]:
            raise core.bad_value("kalman.forecast", "origins", origins, "whole numbers (k,), at least one")
        if known.min() < 0 or known.max() >= times:
            raise core.bad_value("kalman.forecast", "origins", known.tolist(), f"times from 0 to {times - 1}")
        end = int(known.max()) + 1 + steps
        spans = model.until(end).fits(end)
    else:
        end = times + steps
        spans = model.fits(end)
    if not spans:
        got = "one whose inputs end before or after that"
        if isinstance(model, LinearGaussian):
            got = ", ".join(f"{getattr(model, name).shape[0]} of {name}" for name in model.time_varying)
        todo = "Filter with model.until(time) of a model that goes on"
        raise core.bad_value("kalman.forecast", "model", got, f"one of {end} times", todo)
    rule = as_rule("kalman.forecast", linearize)

    def after(last: tuple[jax.Array, jax.Array], times: Any) -> Forecast:
        if not isinstance(model, StateSpaceModel):
            return _forecast(model, last, times, steps)
        return _forecast_by(rule, model, last, times, steps)

    if isinstance(model, StateSpaceModel) and isinstance(rule, Laplace):
        raise core.bad_value("kalman.forecast", "linearize", "'laplace'", "a rule that takes moments", "Try 'cubature'")
    if origins is None:
        return after((filtered.mean[-1], filtered.factor[-1]), times)
    return jax.vmap(after)((filtered.mean[origins], filtered.factor[origins]), origins + 1)


@functools.partial(jax.jit, static_argnames="steps")
def _forecast(model: LinearGaussian, last: tuple[jax.Array, jax.Array], times: Any, steps: int) -> Forecast:
    low = last[0].dtype
    dtype = core.accumulator_dtype(core.result_dtype(*jax.tree.leaves(model), low))

    def entry(name: str, step: Any) -> jax.Array:
        array = getattr(model, name).astype(dtype)
        # An entry of the dynamics leads to the time after its own.
        return array[times + step - int(name in DYNAMICS)] if name in model.time_varying else array

    def ahead(moments: Moments, step: Any) -> tuple[Moments, Any]:
        root = square_root(entry("dynamics_covariance", step))
        moments = predict(moments, entry("dynamics", step), entry("dynamics_offset", step), root)
        emission, noise = entry("emission", step), entry("emission_covariance", step)
        noise = noise if noise.ndim == 2 else jnp.diag(noise)
        mean = product(emission, moments.mean)[:, 0] + entry("emission_offset", step)
        seen = product(emission, moments.factor)
        return moments, (mean, core.symmetrize(product(seen, seen.T) + noise), moments)

    start = Moments(jnp.expand_dims(last[0], 1).astype(dtype), last[1].astype(dtype))
    _, (mean, covariance, moments) = scan.scan(ahead, start, jnp.arange(steps))
    result = Forecast(mean, covariance, moments.mean[:, :, 0], moments.factor)
    return jax.tree.map(lambda leaf: leaf.astype(low), result)


@functools.partial(jax.jit, static_argnames=("rule", "steps"))
def _forecast_by(
    rule: Extended | SigmaPoints, model: StateSpaceModel, last: tuple[jax.Array, jax.Array], times: Any, steps: int
) -> Forecast:
    low = last[0].dtype
    dtype, function = conditional.working_dtype(model, last[0]), "kalman.forecast"

    def linear(given: conditional.Given, moments: Moments) -> Any:
        return rule.linearize(given, moments.mean[:, 0], moments.factor)

    def ahead(moments: Moments, step: Any) -> tuple[Moments, Any]:
        time = times + step
        move = linear(conditional.transition(function, model, time - 1, dtype), moments)
        moments = predict(moments, move.matrix, move.offset, conditional.root_of(move.covariance))
        seen = linear(conditional.observation(function, model, time, dtype), moments)
        spread = product(seen.matrix, moments.factor)
        noise = seen.covariance if seen.covariance.ndim == 2 else jnp.diag(seen.covariance)
        mean = product(seen.matrix, moments.mean)[:, 0] + seen.offset
        return moments, (mean, core.symmetrize(product(spread, spread.T) + noise), moments)

    start = Moments(jnp.expand_dims(last[0], 1).astype(dtype), last[1].astype(dtype))
    _, (mean, covariance, moments) = scan.scan(ahead, start, jnp.arange(steps))
    result = Forecast(mean, covariance, moments.mean[:, :, 0], moments.factor)
    return jax.tree.map(lambda leaf: leaf.astype(low), result)
