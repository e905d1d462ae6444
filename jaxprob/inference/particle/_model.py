"""State-space models as Feynman-Kac models: what every particle method of this folder runs on.

A model of any class gives the law of its first state, of each next one, and the log density of what is seen. Particles
come from these laws or from a proposal, whose density is then taken out of the weights.

Source: Chopin & Papaspiliopoulos (2020), "An introduction to sequential Monte Carlo", sections 5.1 and 10.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.distributions import Categorical, Distribution, Independent, MultivariateNormal, Normal
from jaxprob.inference import _missing as gaps
from jaxprob.inference.hmm import _scores as scores
from jaxprob.inference.kalman._square_root import square_root
from jaxprob.inference.smc import Batched, FeynmanKac
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel

Model: TypeAlias = StateSpaceModel | LinearGaussian | HiddenMarkov

# More particles than any axis of a model is long, so that axes cannot be mistaken for each other.
_MANY = 1_000_003


class Datum(NamedTuple):
    """What was observed at a time; or at all times, on a leading axis.

    Attributes:
      values: (*observation_shape), with a number that may be observed where one is missing.
      seen: (*observation_shape), bool, false where missing.
    """

    values: jax.Array
    seen: jax.Array


class Laws(NamedTuple):
    """What a model says of its states and observations; a pytree, whose leaves are those of the model.

    Attributes:
      initial: `Distribution` of the state at time 0.
      next_state: `(state, time) -> Distribution` of the state at `time + 1`.
      observed: `(state, time) -> Distribution` of the observation at `time`; None for a `HiddenMarkov`.
      log_observation: `(state, time, datum) -> ()`, log density of what is seen at `time`.
      example: `(time) -> values`, some observation that is possible.
    """

    initial: Distribution
    next_state: Callable[[Any, Any], Distribution]
    observed: Callable[[Any, Any], Distribution] | None
    log_observation: Callable[[Any, Any, Datum], jax.Array]
    example: Callable[[Any], jax.Array]

    @property
    def state(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a state."""
        return jax.eval_shape(lambda law: law.sample(jax.random.key(0)), self.initial)


def laws_of(function: str, model: Model) -> Laws:
    """The laws of a model.

    Args:
      function: that was called, for errors.
      model: a `StateSpaceModel`, a `LinearGaussian` whose initial state is not diffuse, or a `HiddenMarkov` that is not
        autoregressive, of which particles are states (), integers.

    Raises:
      TypeError: for another model.
      ValueError: for one that particles do not serve.
    """
    if isinstance(model, StateSpaceModel):
        next_state, observed = Partial(_next_state, model), Partial(_observed, model)
        return Laws(model.initial, next_state, observed, Partial(_log_seen, observed), Partial(_example, model))
    if isinstance(model, LinearGaussian):
        if model.diffuse_size:
            todo = "Give the initial state a covariance"
            raise core.bad_value(function, "model", "one of which the initial state is diffuse", "a proper one", todo)
        dtype = core.accumulator_dtype(core.result_dtype(model))
        exact: Any = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
        start = normal(exact.initial_mean, square_root(exact.initial_covariance))
        observed = Partial(_linear_observed, exact)
        next_state, zeros = Partial(_linear_next, exact), jnp.zeros((exact.observation_size,), dtype)
        return Laws(start, next_state, observed, Partial(_log_seen, observed), Partial(_constant, zeros))
    if isinstance(model, HiddenMarkov):
        if model.history is not None:
            raise core.bad_value(function, "model", "autoregressive", "one that is not", "Use hmm.filter")
        initial = Categorical(logits=core.safe_log(model.initial))
        example = Partial(_hidden_example, model)
        return Laws(initial, Partial(_hidden_next, model), None, Partial(_hidden_log_seen, model), example)
    raise core.bad_type(function, "model", model, "a StateSpaceModel, a LinearGaussian or a HiddenMarkov")


def as_data(function: str, model: Model, ys: Any, missing: Any = None) -> Datum:
    """The observations (time, *observation_shape) of a model, and where they are there.

    Args:
      function: that was called, for errors.
      model: as for `laws_of`.
      ys: (time, *observation_shape), or (time,) where that is (1,). NaN is missing.
      missing: booleans of that shape, or (time,), true where not observed.

    Raises:
      ValueError: if shapes or times do not fit, there is no time, or an observation is infinite.
    """
    values, seen = gaps.as_observations(function, ys, missing, observation_shape(function, model))
    if not values.shape[0]:
        raise core.bad_value(function, "ys", "of no time", "at least one observation")
    if not model.fits(values.shape[0]):
        got = f"of {values.shape[0]} times, and the model spans others"
        raise core.bad_value(function, "ys", got, "as many times as the model spans")
    return Datum(gaps.filled(values, seen, _event_axes(model)), seen)


def as_datum(function: str, model: Model, y: Any, time: Any, missing: Any = None) -> Datum:
    """As `as_data`, of the observation of one time that comes alone.

    Raises:
      ValueError: if the shape does not fit, or it is infinite.
    """
    one = core.as_float(y) if isinstance(y, (int, float)) else jnp.asarray(y)
    gap = None if missing is None else jnp.expand_dims(jnp.asarray(missing), 0)
    shape = observation_shape(function, model)
    values, seen = gaps.as_observations(function, jnp.expand_dims(one, 0), gap, shape)
    example = lax.stop_gradient(laws_of(function, model).example(time)).astype(values.dtype)
    return Datum(jnp.where(seen[0], values[0], example), seen[0])


def observation_shape(function: str, model: Model) -> tuple[int, ...]:
    """Of the observation of one time.

    Raises:
      TypeError: for what is no model.
    """
    if isinstance(model, LinearGaussian):
        return (model.observation_size,)
    if isinstance(model, StateSpaceModel | HiddenMarkov):
        return model.observation_shape
    raise core.bad_type(function, "model", model, "a StateSpaceModel, a LinearGaussian or a HiddenMarkov")


def feynman_kac(model: Model, proposal: Any = None, *, look_ahead: Any = None) -> FeynmanKac:
    """The Feynman-Kac model of a state-space model; its data are a `Datum` a time, from `as_data`.

    `log_kernel` is `log p(x_t | x_{t-1}) + log p(y_t | x_t)`, whatever the proposal: what smoothers go back by.

    Args:
      model: a `StateSpaceModel`, `LinearGaussian` or `HiddenMarkov`.
      proposal: None, for the laws of the model; `particle.guided(...)` or `particle.kalman_guided(...)`.
      look_ahead: None; a function `(previous, time, y) -> ()`, log of what particles are resampled by beside their
        weights, before they move to `time`, where all of y is seen; or "mean", the density of y at the mean of the next
        state.

    Returns:
      `smc.FeynmanKac`, a pytree whose leaves are those of the model and the proposal.

    Raises:
      TypeError, ValueError: for what is no model, or has no mean to look ahead at.

    >>> walk = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 0.5))
    >>> datum = Datum(jnp.array(1.0), jnp.array(True))
    >>> print(f"{feynman_kac(walk).log_kernel(jnp.array(0.0), jnp.array(1.0), 1, datum):.3f}")
    -1.645
    """
    laws = laws_of("particle.feynman_kac", model)
    for name in ("initial", "transition"):
        if proposal is not None and not callable(getattr(proposal, name, None)):
            raise core.bad_type("particle.feynman_kac", "proposal", proposal, "one such as particle.guided(...)")
    return FeynmanKac(
        Partial(_draw_first, laws, proposal),
        Partial(_weigh_first, laws, proposal),
        Batched(Partial(_draw_next, laws, proposal)),
        Partial(_weigh_next, laws, proposal),
        _as_look_ahead(laws, look_ahead),
        Partial(_log_kernel, laws),
    )


def sample_each(key: core.Key, law_of: Callable[[Any], Distribution], states: Any, like: Any) -> jax.Array:
    """One draw (particle, ...) from the law of each state (particle, ...), all from one key where laws allow it.

    Args:
      key: random key.
      law_of: `state -> Distribution`.
      states: pytree (particle, ...).
      like: shape and dtype of one draw.
    """
    number = jax.tree.leaves(states)[0].shape[0]

    def all_at_once(key: core.Key, states: Any) -> jax.Array:
        return jax.vmap(lambda state: _spread(law_of(state)))(states).sample(key)

    def many(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((_MANY, *leaf.shape[1:]), leaf.dtype)

    try:
        shape = jax.eval_shape(all_at_once, jax.random.key(0), jax.tree.map(many, states)).shape
    except (TypeError, ValueError, NotImplementedError):
        shape = None
    if shape == (_MANY, *like.shape):
        return all_at_once(key, states).astype(like.dtype)
    # A law whose parameters do not take a leading axis.
    keys = core.chain_keys(key, jnp.arange(number))
    return jax.vmap(lambda key, state: law_of(state).sample(key))(keys, states).astype(like.dtype)


def _spread(law: Distribution) -> Distribution:
    """The same law, its parameters of the shape of its draws where they are of those: so that they can be stacked."""
    if law.event_shape and not isinstance(law, Independent):
        return law
    try:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, law.shape), law)
    except ValueError:
        return law


def log_prob(law: Distribution, state: jax.Array) -> jax.Array:
    """The log density () of a state under a law whose batch axes are entries of it."""
    return jnp.sum(law.log_prob(state))


def _draw_first(laws: Laws, proposal: Any, key: core.Key, datum: Datum) -> jax.Array:
    if proposal is None:
        return laws.initial.sample(key)
    # A branch on a batch of flags is a selection, which a key may not be an operand of.
    data, kind, like = jax.random.key_data(key), jax.random.key_impl(key), laws.state

    def draw(law: Distribution) -> jax.Array:
        return law.sample(jax.random.wrap_key_data(data, impl=kind)).reshape(like.shape).astype(like.dtype)

    return by(proposal, datum, lambda: draw(proposal.initial(laws, datum)), lambda: draw(laws.initial))


def _weigh_first(laws: Laws, proposal: Any, state: jax.Array, datum: Datum) -> jax.Array:
    seen = laws.log_observation(state, 0, datum)
    if proposal is None:
        return seen

    def ratio() -> jax.Array:
        return _ratio(laws.initial, proposal.initial(laws, datum), state, seen)

    return seen + by(proposal, datum, ratio, lambda: jnp.zeros_like(seen))


def _draw_next(laws: Laws, proposal: Any, key: core.Key, previous: jax.Array, time: Any, datum: Datum) -> jax.Array:
    like = jax.ShapeDtypeStruct(previous.shape[1:], previous.dtype)

    def own(state: jax.Array) -> Distribution:
        return laws.next_state(state, time - 1)

    if proposal is None:
        return sample_each(key, own, previous, like)
    data, kind = jax.random.key_data(key), jax.random.key_impl(key)

    def draw(law_of: Callable[[jax.Array], Distribution]) -> jax.Array:
        return sample_each(jax.random.wrap_key_data(data, impl=kind), law_of, previous, like)

    proposed = Partial(proposal.transition, laws, time=time, datum=datum)
    return by(proposal, datum, lambda: draw(proposed), lambda: draw(own))


def _weigh_next(laws: Laws, proposal: Any, previous: Any, state: jax.Array, time: Any, datum: Datum) -> jax.Array:
    seen = laws.log_observation(state, time, datum)
    if proposal is None:
        return seen

    def ratio() -> jax.Array:
        proposed = proposal.transition(laws, previous, time=time, datum=datum)
        return _ratio(laws.next_state(previous, time - 1), proposed, state, seen)

    return seen + by(proposal, datum, ratio, lambda: jnp.zeros_like(seen))


def _ratio(target: Distribution, proposed: Distribution, state: jax.Array, like: jax.Array) -> jax.Array:
    return (log_prob(target, state) - log_prob(proposed, state)).astype(like.dtype)


def by(proposal: Any, datum: Datum, proposed: Callable[[], Any], own: Callable[[], Any]) -> Any:
    """By the proposal where it can be made from what is seen, else by the laws of the model."""
    return proposed() if proposal.takes_missing else core.cond(jnp.all(datum.seen), proposed, own)


def _log_kernel(laws: Laws, previous: Any, state: jax.Array, time: Any, datum: Datum) -> jax.Array:
    seen = laws.log_observation(state, time, datum)
    return log_prob(laws.next_state(previous, time - 1), state).astype(seen.dtype) + seen


def _as_look_ahead(laws: Laws, look_ahead: Any) -> Any:
    if look_ahead is None:
        return None
    if isinstance(look_ahead, str) and look_ahead == "mean":
        try:
            jax.eval_shape(lambda state: laws.next_state(state, 0).mean(), laws.state)
        except NotImplementedError:
            got, todo = "'mean', of a law without one", "Give a function (previous, time, y)"
            raise core.bad_value("particle.feynman_kac", "look_ahead", got, "a function", todo) from None
        return Partial(_at_mean, laws)
    if not callable(look_ahead):
        raise core.bad_type(
            "particle.feynman_kac", "look_ahead", look_ahead, "'mean' or a function (previous, time, y)"
        )
    return Partial(_ahead, look_ahead if isinstance(look_ahead, Partial) else Partial(look_ahead))


def _at_mean(laws: Laws, previous: Any, time: Any, datum: Datum) -> jax.Array:
    mean = laws.next_state(previous, time - 1).mean()
    return laws.log_observation(mean.astype(laws.state.dtype), time, datum)


def _ahead(function: Any, previous: Any, time: Any, datum: Datum) -> jax.Array:
    found = core.as_float(function(previous, time, datum.values))
    return jnp.where(jnp.all(datum.seen), found, 0)


def _next_state(model: StateSpaceModel, state: Any, time: Any) -> Distribution:
    return model.next_state(state, time)


def _observed(model: StateSpaceModel, state: Any, time: Any) -> Distribution:
    return model.observed(state, time)


def _log_seen(observed: Any, state: Any, time: Any, datum: Datum) -> jax.Array:
    law = observed(state, time)
    values, dtype = datum.values, core.accumulator_dtype(core.result_dtype(state))
    # A density is taken of a value of its own dtype: float64 data of a float32 model are float32.
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(core.result_dtype(law))
    return gaps.log_density(law, values, datum.seen).astype(dtype)


def _example(model: StateSpaceModel, time: Any) -> jax.Array:
    for_state, for_value = core.random.split(jax.random.key(0))
    return model.observed(model.initial.sample(for_state), time).sample(for_value)


def _constant(value: jax.Array, time: Any) -> jax.Array:
    return value


def normal(mean: jax.Array, root: jax.Array) -> MultivariateNormal:
    """A normal law of any rank, which the constructor would not take; without a density where the rank is not full."""
    shape = jax.tree.structure(MultivariateNormal(np.zeros(1, np.float32), cholesky=np.eye(1, dtype=np.float32)))
    return jax.tree.unflatten(shape, (mean, root))


def _entry(model: LinearGaussian, name: str, time: Any) -> jax.Array:
    array = getattr(model, name)
    return array[time] if name in model.time_varying else array


def _linear_next(model: LinearGaussian, state: jax.Array, time: Any) -> Distribution:
    mean = core.matvec(_entry(model, "dynamics", time), state) + _entry(model, "dynamics_offset", time)
    return normal(mean, square_root(_entry(model, "dynamics_covariance", time)))


def _linear_observed(model: LinearGaussian, state: jax.Array, time: Any) -> Distribution:
    mean = core.matvec(_entry(model, "emission", time), state) + _entry(model, "emission_offset", time)
    noise = _entry(model, "emission_covariance", time)
    return Normal(mean, jnp.sqrt(noise)) if noise.ndim == 1 else normal(mean, square_root(noise))


def _hidden_next(model: HiddenMarkov, state: jax.Array, time: Any) -> Distribution:
    matrix = model.transition[time] if model.time_varying else model.transition
    return Categorical(logits=core.safe_log(matrix)[state])


def _hidden_inputs(model: HiddenMarkov, time: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[time], model.inputs)


def _hidden_log_seen(model: HiddenMarkov, state: jax.Array, time: Any, datum: Datum) -> jax.Array:
    exact, values = scores.working(model, datum.values)
    found = scores.log_density(exact, _hidden_inputs(exact, time), None, values, datum.seen, _event_axes(model) == 1)
    return found[state].astype(exact.initial.dtype)


def _hidden_example(model: HiddenMarkov, time: Any) -> jax.Array:
    law = (
        model.emission
        if isinstance(model.emission, Distribution)
        else model.emission(_hidden_inputs(model, time), None)
    )
    return law.sample(jax.random.key(0))[0]


def _event_axes(model: Model) -> int:
    return 0 if isinstance(model, LinearGaussian) else model.event_axes
