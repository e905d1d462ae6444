"""What a `StateSpaceModel` says of a time, as functions of a state vector: means with covariances, and log densities.

Gaussian methods see a state as a vector (n,) and an observation as (m,) numbers, whatever the dtype and shape in which
the functions of the model take and return them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution, Independent
from jaxprob.inference import _missing as gaps
from jaxprob.inference.kalman._square_root import square_root
from jaxprob.inference.kalman._steps import check_observations
from jaxprob.models.state_space import StateSpaceModel

# From a state (n,) to a mean (k,), and variances (k,) of independent entries or a covariance (k, k).
Given = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def as_observations(function: str, model: StateSpaceModel, ys: Any, missing: Any) -> tuple[jax.Array, jax.Array]:
    """The observations (time, m), zero where missing, and where they are there.

    Raises:
      ValueError: if the state or what is observed has more than one axis, or as for a `LinearGaussian`.
    """
    for what, shape in (("state", model.state_shape), ("observation", model.observation_shape)):
        if len(shape) > 1:
            raise core.bad_value(function, "model", f"one whose {what} has shape {shape}", "shape () or (k,)")
    m = model.observation_shape[0] if model.observation_shape else 1
    return check_observations(function, model, m, ys, missing)


def state_of(model: StateSpaceModel) -> jax.ShapeDtypeStruct:
    """The shape and dtype in which the functions of a model take a state."""
    return jax.eval_shape(lambda law: law.sample(jax.random.key(0)), model.initial)


def working_dtype(model: StateSpaceModel, ys: jax.Array) -> Any:
    """The dtype to compute in: at least float32."""
    return core.accumulator_dtype(core.result_dtype(state_of(model), ys))


def moments(function: str, argument: str, law: Distribution, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The mean (k,) of a law, with the variances (k,) of independent entries or a covariance (k, k).

    Raises:
      ValueError: if it has none in closed form.
    """
    try:
        mean, spread = law.mean(), _covariance(law)
    except NotImplementedError:
        spread = None
    if spread is None:
        todo = "Use linearize='laplace' for what is observed, or a particle filter"
        got = f"a {type(law).__name__}"
        raise core.bad_value(function, argument, got, "a law with a mean and a covariance in closed form", todo)
    mean = jnp.reshape(mean, -1).astype(dtype)
    return mean, (spread if spread.ndim == 2 else jnp.reshape(spread, -1)).astype(dtype)


def _covariance(law: Distribution) -> jax.Array | None:
    """Variances of independent entries, or a matrix; None where the entries of an event depend in an unknown way."""
    if not law.event_shape:
        return law.variance()
    if isinstance(law, Independent):
        return law.variance() if not law.base.event_shape else None
    if law.batch_shape or not hasattr(law, "covariance"):
        return None
    return law.covariance()


def start(function: str, model: StateSpaceModel, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The mean (n,) of the first state, and a root (n, n) of its covariance."""
    mean, covariance = moments(function, "initial", model.initial, dtype)
    return mean, root_of(covariance)


def root_of(covariance: jax.Array) -> jax.Array:
    """A lower-triangular root (k, k) of variances (k,) or a covariance (k, k)."""
    return jnp.diag(core.safe_sqrt(covariance)) if covariance.ndim == 1 else square_root(covariance)


def transition(function: str, model: StateSpaceModel, time: Any, dtype: Any) -> Given:
    """Moments of the state after that of a time."""
    state = state_of(model)

    def given(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = model.next_state(jnp.reshape(x, state.shape).astype(state.dtype), time)
        return moments(function, "transition", law, dtype)

    return given


def observation(function: str, model: StateSpaceModel, time: Any, dtype: Any) -> Given:
    """Moments of what is observed at a time."""
    state = state_of(model)

    def given(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = model.observed(jnp.reshape(x, state.shape).astype(state.dtype), time)
        return moments(function, "observation", law, dtype)

    return given


def log_density(model: StateSpaceModel, time: Any, y: jax.Array, seen: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The log density () of what is seen at a time, as a function of the state.

    Args:
      model: a `StateSpaceModel`.
      time: index of it.
      y: (m,), with numbers that may be (see `filled`) where nothing is seen.
      seen: (m,), bool. An event is seen as a whole or not at all, but for a multivariate normal one.
    """
    state = state_of(model)

    def of(x: jax.Array) -> jax.Array:
        law = model.observed(jnp.reshape(x, state.shape).astype(state.dtype), time)
        value, there = jnp.reshape(y, law.shape).astype(state.dtype), jnp.reshape(seen, law.shape)
        return gaps.log_density(law, value, there).astype(x.dtype)

    return of


def filled(model: StateSpaceModel, ys: jax.Array, seen: jax.Array) -> jax.Array:
    """Observations (time, m) with a number that may be observed wherever one is missing, so that densities are finite.

    It is the first that is seen of the entry, or of the whole event; 1 where none ever is.
    """
    return gaps.filled(ys, seen, int(model.event_axes > 0))
