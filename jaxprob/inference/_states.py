"""The posterior of the states of a state-space model, and of its parameters beside them, as a joint model.

log p(states, parameters | ys) = log p(parameters) + log p(x_0) + sum_t log p(x_{t+1} | x_t) + sum_t log p(y_t | x_t)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, models
from jaxprob.distributions import Distribution, IndependentSupport, Support
from jaxprob.inference._series import SeriesLaw, as_series, check_priors
from jaxprob.inference.kalman._marginal import simulate
from jaxprob.inference.particle._model import as_data, laws_of, log_prob
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel

NAME = "state_posterior"


def state_posterior(
    model: StateSpaceModel | LinearGaussian | Callable[[dict[str, jax.Array]], Any],
    ys: Any,
    priors: dict[str, Distribution] | None = None,
    *,
    missing: Any = None,
) -> models.Posterior:
    """The posterior of the states of a state-space model given a series, and of its parameters where it has some.

    For variational inference, MCMC and every other method that takes a posterior; its sites are the parameters and
    "states", (time, *state). With `vi.markov` as the guide of the states it is exact for a `LinearGaussian`.

    Args:
      model: a `StateSpaceModel`, or a `LinearGaussian` whose covariances have full rank; or, with `priors`, a function
        `build(parameters)` that returns one. Define it once: each new lambda compiles anew.
      ys: (time, ...), observations of the model; NaN is missing.
      priors: the law of each parameter, which are independent.
      missing: booleans of the shape of ys, true where not observed.

    Returns:
      a `models.Posterior`.

    Raises:
      TypeError: for another model, such as one of discrete states, or a prior that is no distribution.
      models.ModelError: if `build` raises, or returns no such model.
      ValueError: if a shape does not fit.

    >>> from jaxprob.distributions import Normal
    >>> walk = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 1.0))
    >>> posterior = state_posterior(walk, jnp.array([1.0, jnp.nan, 3.0]))
    >>> f"{posterior.log_density({'states': jnp.array([0.0, 1.0, 2.0])}):.3f}"  # 5 normal densities, 4 of them at 1
    '-6.595'
    """
    priors = {} if priors is None else dict(priors)
    check_priors(NAME, priors, {"ys": "series", "states": "states"})
    if priors:
        if not callable(model):
            todo = "Such as build(parameters), which returns a StateSpaceModel"
            raise core.bad_type(NAME, "model", model, "a function of parameters, where there are priors", todo)
        build: Any = core.as_partial(model)
    else:
        _check(model, "a StateSpaceModel or a LinearGaussian")
        build = jax.tree_util.Partial(_given, model)
    ys = as_series(NAME, ys)
    return _model(build, priors, ys.shape, missing).condition(ys=ys)


def _given(model: Any, parameters: dict[str, jax.Array]) -> Any:
    return model


def _check(model: Any, expected: str) -> None:
    if isinstance(model, HiddenMarkov):
        todo = "Its discrete states are summed out: use hmm.smooth, or inference.parameter_posterior"
        raise core.bad_type(NAME, "model", model, expected, todo)
    if not isinstance(model, StateSpaceModel | LinearGaussian):
        todo = "With a function of parameters goes priors=, the law of each"
        raise core.bad_type(NAME, "model", model, expected, todo)


@models.joint
def _model(build: Any, priors: Any, shape: tuple[int, ...], missing: Any) -> Any:
    parameters = {}
    for name, prior in priors.items():
        parameters[name] = yield name, prior
    model = build(parameters)
    _check(model, "a function that returns a StateSpaceModel or a LinearGaussian")
    states = yield "states", _States(model, shape[0])
    yield "ys", _Observations(model, states, missing, shape)


@core.pytree
class _States(SeriesLaw):
    """The law of the states of a model, before anything is observed."""

    model: Any
    length: int = core.static()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.length, *laws_of(NAME, self.model).initial.shape)

    @property
    def support(self) -> Support:
        own = laws_of(NAME, self.model).initial.support
        return IndependentSupport(own, len(self.event_shape) - own.event_ndims)

    def _log_prob_of_one(self, series: jax.Array) -> jax.Array:
        laws = laws_of(NAME, self.model)
        moves = jax.vmap(lambda before, after, t: log_prob(laws.next_state(before, t), after))
        first = log_prob(laws.initial, series[0])
        return first + jnp.sum(moves(series[:-1], series[1:], jnp.arange(self.length - 1)))

    def _draw_one(self, key: core.Key) -> jax.Array:
        return simulate(key, self.model, self.length)[0].reshape(self.event_shape)


@core.pytree
class _Observations(SeriesLaw):
    """The law of a whole series, given the states; NaN is missing."""

    model: Any
    states: Any  # (time, *state)
    missing: Any
    series_shape: tuple[int, ...] = core.static()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.series_shape

    def _log_prob_of_one(self, series: jax.Array) -> jax.Array:
        data = as_data(NAME, self.model, series, self.missing)
        log_observation = laws_of(NAME, self.model).log_observation
        return jnp.sum(jax.vmap(log_observation)(self.states, jnp.arange(len(self.states)), data))

    def _draw_one(self, key: core.Key) -> jax.Array:
        observed: Any = laws_of(NAME, self.model).observed
        times = jnp.arange(self.series_shape[0])
        draw = jax.vmap(lambda key, state, t: observed(state, t).sample(key))
        return draw(core.random.split(key, times.size), self.states, times).reshape(self.series_shape)
