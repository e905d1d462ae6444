"""Hidden Markov models as time goes on: a filter that takes one observation at a time, and forecasts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions import Distribution
from jaxprob.inference.hmm._chain import advance, factor, normalized
from jaxprob.inference.hmm._filter import Filtered
from jaxprob.inference.hmm._scores import as_observations, check_model, has_parts, log_density, past, whole, working
from jaxprob.models.state_space import HiddenMarkov


@core.pytree
class State:
    """Where a stream is.

    Attributes:
      log_probabilities: (K,), of the state given all observations so far; of the first state before any.
      log_likelihood: (), of the observations so far.
      count: (), int32, how many there were.
      history: (lags, *observation), the last ones, for an autoregressive model; None for others.
      known: booleans of that shape, false where one was missing; or None.
    """

    log_probabilities: jax.Array
    log_likelihood: jax.Array
    count: jax.Array
    history: Any
    known: Any

    @property
    def probabilities(self) -> jax.Array:
        """(K,), of the state given all observations so far."""
        return jnp.exp(self.log_probabilities)


@core.pytree
class Forecast:
    """What is expected after the last observation.

    Attributes:
      log_probabilities: (steps, K), of the states.
      mean: (steps, *observation_shape), of the observations; None where emissions have no mean in closed form, or are
        autoregressive.
      variance: (steps, *observation_shape), of each number observed, or None.
    """

    log_probabilities: jax.Array
    mean: Any
    variance: Any

    @property
    def probabilities(self) -> jax.Array:
        """(steps, K), of the states."""
        return jnp.exp(self.log_probabilities)


def init(model: HiddenMarkov) -> State:
    """The state of a stream before its first observation.

    Args:
      model: a `HiddenMarkov`.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> state = step(model, step(model, init(model), 0.0), jnp.nan)
    >>> state.probabilities.round(3).tolist(), int(state.count)
    ([0.892..., 0.108...], 2)
    """
    check_model("hmm.init", model)
    history, known = (None, None) if model.history is None else past(model)
    log_initial = core.safe_log(model.initial)
    return State(log_initial, jnp.zeros((), log_initial.dtype), jnp.int32(0), history, known)


def step(model: HiddenMarkov, state: State, y: Any, *, missing: Any = None, inputs: Any = None) -> State:
    """The state of a stream after one more observation: the numbers of `hmm.filter`.

    Args:
      model: the `HiddenMarkov` that the stream began with. Where its transition varies, the stream counts along it;
        its own `inputs` are not read.
      state: from `init` or an earlier `step`.
      y: (*observation_shape); NaN is missing.
      missing: booleans of that shape, or one, true where not observed.
      inputs: of this time, for emissions that are a function of inputs.

    Raises:
      ValueError, TypeError: as `hmm.filter` does.
    """
    check_model("hmm.step", model)
    if not isinstance(state, State):
        raise core.bad_type("hmm.step", "state", state, "a state from hmm.init or hmm.step")
    one = core.as_float(y) if isinstance(y, (int, float)) else jnp.asarray(y)
    gap = None if missing is None else jnp.expand_dims(jnp.asarray(missing), 0)
    values, seen = as_observations("hmm.step", model, jnp.expand_dims(one, 0), gap, spans=False)
    return _step(model, state, values[0], seen[0], inputs, has_parts(model, seen))


def forecast(
    model: HiddenMarkov, filtered: Filtered | State, steps: int, *, transition: Any = None, inputs: Any = None
) -> Forecast:
    """States and observations after the last one that was filtered.

    Args:
      model: a `HiddenMarkov`.
      filtered: what `hmm.filter` found, or the state of a stream; of no observations, the forecast begins at the first.
      steps: how many times ahead.
      transition: (steps, K, K), where that of the model varies: entry t leads to time t of the forecast.
      inputs: (steps, ...), for emissions that are a function of inputs.

    Returns:
      `Forecast`.

    Raises:
      ValueError: if `steps` is no number of times, or what varies is not given for them.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.inference import hmm
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([1.0, 0.0], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> forecast(model, hmm.filter(model, jnp.zeros(1)), 2).mean.round(3).tolist()
    [0.3..., 0.51...]
    """
    name = "hmm.forecast"
    check_model(name, model)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise core.bad_value(name, "steps", steps, "a number of times, at least 0")
    if model.time_varying and transition is None:
        raise core.bad_value(name, "transition", None, f"shape ({steps}, K, K), as that of the model varies in time")
    if model.inputs is not None and inputs is None:
        raise core.bad_value(name, "inputs", None, f"those of the {steps} times, as emissions are driven by inputs")
    if transition is not None:
        transition = core.as_float(transition)
        if transition.shape != (steps, *(model.state_size,) * 2):
            expected = f"shape {(steps, *(model.state_size,) * 2)}"
            raise core.bad_value(name, "transition", f"of shape {transition.shape}", expected)
    if any(jnp.shape(leaf)[:1] != (steps,) for leaf in jax.tree.leaves(inputs)):
        raise core.bad_value(name, "inputs", "of another length", f"arrays ({steps}, ...)")
    if isinstance(filtered, State):
        start, begun = filtered.log_probabilities, filtered.count > 0
    elif isinstance(filtered, Filtered):
        rows = filtered.log_probabilities
        begun = jnp.asarray(rows.shape[0] > 0)
        start = rows[-1] if rows.shape[0] else core.safe_log(model.initial)
    else:
        raise core.bad_type(name, "filtered", filtered, "what hmm.filter found, or the state of a stream")
    return _forecast(model, start, begun, transition, inputs, steps)


@functools.partial(jax.jit, static_argnames="parts")
def _step(model: HiddenMarkov, state: State, y: jax.Array, seen: jax.Array, inputs: Any, parts: bool) -> State:
    exact, value = working(model, y)
    history = state.history
    if not parts:
        seen = whole(exact, seen)
    there = seen if history is None else seen & jnp.all(state.known)
    before = None if history is None else history.astype(value.dtype)
    scores = log_density(exact, inputs, before, value, there, parts)
    last = state.log_probabilities.astype(scores.dtype)
    matrix = exact.transition
    if exact.time_varying:
        matrix = matrix[jnp.clip(state.count - 1, 0, max(matrix.shape[0] - 1, 0))]
    predicted = jnp.where(state.count > 0, advance(last, factor(core.safe_log(matrix)), None), last)
    weights = predicted + scores
    known = state.known
    if history is not None:
        history = jnp.concatenate([history[1:], jnp.expand_dims(y, 0).astype(history.dtype)])
        known = jnp.concatenate([known[1:], jnp.expand_dims(seen, 0)])
    dtype = state.log_probabilities.dtype
    total = state.log_likelihood + core.logsumexp(weights).astype(dtype)
    return State(normalized(weights).astype(dtype), total, state.count + 1, history, known)


@functools.partial(jax.jit, static_argnames="steps")
def _forecast(
    model: HiddenMarkov, start: jax.Array, begun: jax.Array, transition: Any, inputs: Any, steps: int
) -> Forecast:
    exact, message = working(model, start)
    message = message.astype(exact.initial.dtype)

    def ahead(message: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        index, matrix = xs
        by = factor(core.safe_log(exact.transition if matrix is None else matrix.astype(message.dtype)))
        message = advance(message, by, begun | (index > 0))
        return message, message

    states = scan.scan(ahead, message, (jnp.arange(steps), transition))[1]
    mean, variance = _moments(exact, jnp.exp(states), inputs)
    result = Forecast(states, mean, variance)
    return jax.tree.map(lambda leaf: leaf.astype(start.dtype), result)


def _moments(model: HiddenMarkov, weights: jax.Array, inputs: Any) -> tuple[Any, Any]:
    """Mean and variance of the observations, with the states drawn by `weights` (steps, K)."""
    if model.history is not None or not weights.shape[0]:
        return None, None

    def one(weights: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        law = model.emission if isinstance(model.emission, Distribution) else model.emission(inputs, None)
        mean, variance = law.mean(), law.variance()
        if model.labels is not None:
            mean, variance = mean[model.labels], variance[model.labels]
        weights = jnp.expand_dims(weights, tuple(range(1, mean.ndim)))
        total = jnp.sum(weights * mean, 0)
        return total, jnp.sum(weights * (variance + (mean - jnp.expand_dims(total, 0)) ** 2), 0)

    try:
        return jax.vmap(one)(weights, inputs)
    except NotImplementedError:
        return None, None
