"""Observations of a hidden Markov model, and how well each state explains each of them: the chain that is summed over.

What is missing contributes nothing: its log density is replaced by zero, and the density is evaluated at something that
was seen, so that no gradient meets a number that is not there.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Distribution, MultivariateNormal
from jaxprob.inference import _missing as gaps
from jaxprob.inference.hmm._chain import Chain
from jaxprob.models.state_space import HiddenMarkov

METHODS = ("auto", "sequential", "parallel")
LOG_2PI = math.log(2 * math.pi)


def pick(function: str, method: str, times: int) -> str:
    """The method for a number of times and the machine."""
    if method not in METHODS:
        raise core.bad_value(function, "method", core.describe(method), f"one of {METHODS}")
    if method == "auto":
        return "sequential" if jax.default_backend() == "cpu" or times < 2 else "parallel"
    return method


def check_model(function: str, model: Any) -> None:
    """Raises a `TypeError` for another model."""
    if not isinstance(model, HiddenMarkov):
        raise core.bad_type(function, "model", model, "a HiddenMarkov")


def as_observations(
    function: str, model: HiddenMarkov, ys: Any, missing: Any, batched: bool = False, spans: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The observations (time, *observation_shape), zero where missing, and where they are there.

    Args:
      function: for the message of an error.
      model: the model.
      ys: observations; NaN is missing.
      missing: booleans, true where an entry is missing; or None.
      batched: whether there is an axis of series before that of time.
      spans: whether the observations must be all those of a model that varies in time.

    Raises:
      ValueError: if a shape or the time axis does not fit, or an observation is infinite.
    """
    check_model(function, model)
    values, seen = gaps.as_observations(function, ys, missing, model.observation_shape, batched=batched)
    times = values.shape[batched]
    if spans and not model.fits(times):
        entry = "transition" if model.time_varying and model.transition.shape[0] != max(times - 1, 0) else "inputs"
        got = f"of {times} times, and the model has other {entry}"
        raise core.bad_value(function, "ys", got, "as many times as the model spans")
    return values, seen


def has_parts(model: HiddenMarkov, seen: jax.Array) -> bool:
    """Whether an observation may be missing in part, its emission a dense normal one that can be marginalised."""
    if not isinstance(model.emission, MultivariateNormal):
        return False
    if isinstance(seen, jax.core.Tracer):
        return True
    numbers = np.asarray(seen)
    return bool((numbers.any(-1) != numbers.all(-1)).any())


def result_dtype(model: HiddenMarkov, ys: jax.Array) -> Any:
    """The dtype of results."""
    return core.result_dtype(*jax.tree.leaves((model.initial, model.transition, model.emission)), ys)


def working(model: HiddenMarkov, ys: jax.Array) -> tuple[HiddenMarkov, jax.Array]:
    """The model and observations in the dtype to compute in: at least float32."""
    dtype = core.accumulator_dtype(result_dtype(model, ys))

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, model), cast(ys)


def chain_of(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool) -> Chain:
    """The chain of a model and its observations; `ys` and `seen` as from `as_observations`."""
    model, ys = working(model, ys)
    scores = log_densities(model, ys, seen, parts)
    return Chain(core.safe_log(model.initial), core.safe_log(model.transition), scores.astype(model.initial.dtype))


def log_densities(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool) -> jax.Array:
    """(time, K): log densities of the observations in each state, 0 where they are missing."""
    if not ys.shape[0]:
        return jnp.zeros((0, model.state_size), model.initial.dtype)
    if not parts:
        seen = whole(model, seen)
    ys = _filled(ys, seen)
    if isinstance(model.emission, Distribution):
        return jax.vmap(lambda y, there: log_density(model, None, None, y, there, parts))(ys, seen)
    if model.history is None:
        driven = jax.vmap(lambda inputs, y, there: log_density(model, inputs, None, y, there, parts))
        return driven(model.inputs, ys, seen)
    history, known = past(model)
    lags = history.shape[0]
    windows = jnp.expand_dims(jnp.arange(ys.shape[0]), 1) + jnp.expand_dims(jnp.arange(lags), 0)
    before = jnp.concatenate([history.astype(ys.dtype), ys])[windows]
    known = jnp.all(jnp.concatenate([known, seen])[windows].reshape(ys.shape[0], -1), 1)
    seen = seen & jnp.expand_dims(known, tuple(range(1, seen.ndim)))
    one = jax.vmap(lambda inputs, before, y, there: log_density(model, inputs, before, y, there, parts))
    return one(model.inputs, before, ys, seen)


def whole(model: HiddenMarkov, seen: jax.Array) -> jax.Array:
    """What is seen, where an event is seen or missing as a whole."""
    axes = tuple(range(seen.ndim - model.event_axes, seen.ndim))
    return jnp.broadcast_to(jnp.all(seen, axes, keepdims=True), seen.shape)


def past(model: HiddenMarkov) -> tuple[jax.Array, jax.Array]:
    """The observations before the first, zero where not known, and where they are."""
    history = model.history
    known = ~jnp.isnan(history) if jnp.issubdtype(history.dtype, jnp.floating) else jnp.ones(history.shape, bool)
    return jnp.where(known, history, 0), known


def log_density(model: HiddenMarkov, inputs: Any, before: Any, y: jax.Array, seen: jax.Array, parts: bool) -> jax.Array:
    """(K,): log densities of one observation in each state."""
    emission = model.emission if isinstance(model.emission, Distribution) else model.emission(inputs, before)
    if parts and isinstance(emission, MultivariateNormal):
        values = _normal_in_part(emission, y, seen)
        there = jnp.any(seen, -1)
    else:
        values = emission.log_prob(jnp.expand_dims(y, 0))
        there = jnp.all(seen, tuple(range(seen.ndim - len(emission.event_shape), seen.ndim)))
    values = jnp.where(jnp.expand_dims(there, 0), values, 0)
    values = jnp.sum(values, tuple(range(1, values.ndim)))
    return values if model.labels is None else values[model.labels]


def _normal_in_part(emission: MultivariateNormal, y: jax.Array, seen: jax.Array) -> jax.Array:
    """Log densities of what is seen of a vector: the other rows become those of independent standard normal numbers."""
    seen = jnp.expand_dims(seen, 0)
    both = jnp.expand_dims(seen, -1) & jnp.expand_dims(seen, -2)
    eye = jnp.eye(y.shape[-1], dtype=y.dtype)
    covariance = jnp.where(both, emission.covariance(), jnp.expand_dims(eye, tuple(range(both.ndim - 2))))
    lower = core.cholesky(covariance)
    gap = jnp.where(seen, jnp.expand_dims(y, 0) - emission.mean(), 0)
    count = jnp.sum(seen, -1).astype(y.dtype)
    return -0.5 * (core.quadratic_form(lower, gap) + core.log_determinant(lower) + count * LOG_2PI)


def _filled(ys: jax.Array, seen: jax.Array) -> jax.Array:
    """The observations, and where one is missing the first that is not."""
    first = jnp.expand_dims(jnp.argmax(seen, 0), 0)
    return jnp.where(seen, ys, jnp.take_along_axis(ys, first, 0))
