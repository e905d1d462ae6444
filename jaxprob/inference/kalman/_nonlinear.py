"""Gaussian filters of models that are not linear: at each time a rule makes them linear at the law known so far.

From there on all is as in a linear model: square roots, missing entries, singular noise, known states. The steps that
were linearised are kept, so that smoothers and draws of a linear model go back along them.

Source: Särkkä & Svensson (2023), "Bayesian filtering and smoothing", 2nd edition, chapters 7 to 10.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import scan
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _laplace as laplace
from jaxprob.inference.kalman._linearize import Extended, Laplace, Linear, Rule
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, predict
from jaxprob.inference.kalman._steps import Step, Steps
from jaxprob.models.state_space import StateSpaceModel

NOTHING = Step(None, None, None, None, None, None, None)


def run(
    function: str, model: StateSpaceModel, ys: jax.Array, seen: jax.Array, rule: Rule, iterations: int
) -> tuple[Steps, Moments, Moments, Seen]:
    """The linearised steps, predicted and filtered moments and what was seen, time leading.

    Args:
      function: for errors.
      model: a `StateSpaceModel`.
      ys: (time, m), as from `as_observations`.
      seen: (time, m).
      rule: for transitions and observations.
      iterations: how often an observation is linearised: at the predicted law, and then at what it made of that.
    """
    dtype, times = conditional.working_dtype(model, ys), ys.shape[0]
    start = first(function, model, dtype)

    def body(moments: Moments, now: Any) -> tuple[Moments, Any]:
        after, step, filtered, found = advance(function, model, rule, iterations, moments, *now)
        return after, (step, moments, filtered, found)

    # For a gradient only the moments between steps are kept: to compute a step again costs less than to store it.
    body = jax.checkpoint(body, prevent_cse=False)
    inputs = (jnp.arange(times), values_of(model, ys.astype(dtype), seen, rule), seen)
    _, (steps, predicted, filtered, found) = scan.scan(body, start, inputs)
    return Steps(start, NOTHING, steps), predicted, filtered, found


def first(function: str, model: StateSpaceModel, dtype: Any) -> Moments:
    """The law of the state at the first observation."""
    mean, factor = conditional.start(function, model, dtype)
    return Moments(jnp.expand_dims(mean, 1), factor)


def values_of(model: StateSpaceModel, ys: jax.Array, seen: jax.Array, rule: Rule) -> jax.Array:
    """Observations as `advance` takes them: for densities, with numbers that may be where one is missing."""
    return conditional.filled(model, ys, seen) if isinstance(rule, Laplace) else ys


def advance(
    function: str,
    model: StateSpaceModel,
    rule: Rule,
    iterations: int,
    moments: Moments,
    time: Any,
    y: jax.Array,
    seen: jax.Array,
) -> tuple[Moments, Step, Moments, Seen]:
    """From the prediction of a time to that of the next; the linear step; the filtered moments; and what was seen."""
    dtype = moments.mean.dtype
    if isinstance(rule, Laplace):
        density = conditional.log_density(model, time, y, seen)
        filtered, found = _by_mode(moments, density, y)
        emission = _blind(moments, y)
    else:
        given = conditional.observation(function, model, time, dtype)
        filtered, found, emission = _by_moments(moments, given, y, seen, rule, iterations)
    given = conditional.transition(function, model, time, dtype)
    move = (Extended() if isinstance(rule, Laplace) else rule).linearize(given, filtered.mean[:, 0], filtered.factor)
    noise = conditional.root_of(move.covariance)
    after = predict(filtered, move.matrix, move.offset, noise)
    return after, Step(move.matrix, move.offset, noise, *emission, seen), filtered, found


def shifted(linear: Linear, y: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a linear step takes of a linearised observation: emission, covariance, and values (m, 1)."""
    return linear.matrix, linear.covariance, jnp.expand_dims(jnp.where(seen, y - linear.offset, 0), 1)


def _by_moments(
    moments: Moments, given: conditional.Given, y: jax.Array, seen: jax.Array, rule: Any, iterations: int
) -> tuple[Moments, Seen, tuple[jax.Array, jax.Array, jax.Array]]:
    def emission(at: Moments) -> tuple[jax.Array, jax.Array, jax.Array]:
        return shifted(rule.linearize(given, at.mean[:, 0], at.factor, iterations > 1), y, seen)

    # The law before the observation stays what it is: an iteration only moves the place of the linearisation.
    at = scan.repeat(lambda at, _: observe(moments, *emission(at), seen)[0], moments, iterations - 1)
    last = emission(at)
    filtered, found = observe(moments, *last, seen)
    return filtered, found, last


def _by_mode(moments: Moments, density: Any, y: jax.Array) -> tuple[Moments, Seen]:
    filtered, log_evidence = laplace.condition(moments, density)
    # All that is known of the observation is its density, which the first number carries.
    scale = jnp.zeros(y.shape, y.dtype).at[0].set(-log_evidence)
    return filtered, Seen(jnp.zeros((*y.shape, 1), y.dtype), scale)


def _blind(moments: Moments, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An emission that says nothing: what a mode made of an observation is no linear step."""
    m, n = y.shape[0], moments.factor.shape[0]
    return jnp.zeros((m, n), y.dtype), jnp.zeros((m,), y.dtype), jnp.zeros((m, 1), y.dtype)
