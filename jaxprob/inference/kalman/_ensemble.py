"""The ensemble Kalman filter: a normal law held as members that move by the model itself, for states of many numbers.

Numbers observed at one time have their noise decorrelated and are then taken one after the other. What a member would
have observed is carried beside its state, so that no function is linearised and no matrix inverted.

Source: Evensen (2003), "The ensemble Kalman filter"; Whitaker & Hamill (2002), "Ensemble data assimilation without
perturbed observations", for the one without noise of its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman._square_root import HALF_LOG_TAU, decorrelate, loop, square_root
from jaxprob.inference.kalman._steps import as_observations, working_dtype
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel

NAME = "kalman.ensemble_filter"
UPDATES = ("stochastic", "square_root")


@core.pytree
class EnsembleFiltered:
    """What an ensemble filter found.

    Attributes:
      mean: (time, n), of the members given the observations up to their time.
      variance: (time, n).
      predicted_mean: (time, n), given the observations before.
      predicted_variance: (time, n).
      innovation: (time, m), standardised; 0 where missing.
      log_likelihoods: (time,), of the observations up to each time.
      members: (members, n), after the last observation.
    """

    mean: jax.Array
    variance: jax.Array
    predicted_mean: jax.Array
    predicted_variance: jax.Array
    innovation: jax.Array
    log_likelihoods: jax.Array
    members: jax.Array

    @property
    def log_likelihood(self) -> jax.Array:
        """(), of all observations; 0 for none."""
        return self.log_likelihoods[..., -1] if self.log_likelihoods.shape[-1] else jnp.zeros((), self.mean.dtype)


def ensemble_filter(
    key: core.Key,
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    members: int = 100,
    update: str = "stochastic",
    inflation: Any = 1.0,
) -> EnsembleFiltered:
    """States given what has been observed so far, by members that are drawn and moved as the model says.

    Errors fall with the square root of the number of members, on a linear model to those of rounding; elsewhere they do
    not vanish, for observations enter by their mean and covariance.

    Args:
      key: random key.
      model: a `StateSpaceModel`, whose observations have means and covariances; or a `LinearGaussian` in which nothing
        is diffuse.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      members: how many, at least 2.
      update: "stochastic": each member sees observations with noise of its own; or "square_root", without such noise.
      inflation: factor of what is apart from the mean before each observation, against members that agree too much.

    Returns:
      `EnsembleFiltered`.

    Raises:
      ValueError, TypeError: as `kalman.filter` does; or if something is diffuse.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> found = ensemble_filter(jax.random.key(0), walk, jnp.array([1.0, jnp.nan, 3.0]), members=10_000)
    >>> bool(jnp.allclose(found.mean[:, 0], jnp.array([0.5, 0.5, 2.286]), atol=0.05))
    True
    """
    if isinstance(members, bool) or not isinstance(members, int) or members < 2:
        raise core.bad_value(NAME, "members", members, "a number of members, at least 2")
    if update not in UPDATES:
        raise core.bad_value(NAME, "update", core.describe(update), f"one of {UPDATES}")
    if isinstance(model, LinearGaussian):
        values, seen = as_observations(NAME, model, ys, missing)
        if model.diffuse_size:
            raise core.bad_value(NAME, "model", "one with a diffuse start", "one whose start can be drawn")
    elif isinstance(model, StateSpaceModel):
        values, seen = conditional.as_observations(NAME, model, ys, missing)
    else:
        raise core.bad_type(NAME, "model", model, "a LinearGaussian or a StateSpaceModel")
    key = core.as_key(key, NAME)
    return _ensemble_filter(key, model, values, seen, inflation, members, update)


class Functions(NamedTuple):
    """A model as an ensemble sees it.

    Attributes:
      first: `key -> (n,)`.
      move: `(key, state, time) -> (n,)`.
      look: `(state, time) -> mean (m,), and variances (m,) or covariance (m, m)`.
      dtype: to compute in.
    """

    first: Any
    move: Any
    look: Any
    dtype: Any


def _functions(model: LinearGaussian | StateSpaceModel, ys: jax.Array) -> Functions:
    if isinstance(model, StateSpaceModel):
        dtype, state = conditional.working_dtype(model, ys), conditional.state_of(model)

        def move(key: core.Key, x: jax.Array, time: jax.Array) -> jax.Array:
            law = model.next_state(jnp.reshape(x, state.shape).astype(state.dtype), time)
            return jnp.reshape(law.sample(key), -1).astype(dtype)

        def look(x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            return conditional.observation(NAME, model, time, dtype)(x)

        return Functions(lambda key: jnp.reshape(model.initial.sample(key), -1).astype(dtype), move, look, dtype)
    dtype = working_dtype(model, ys)
    linear = jax.tree.map(lambda leaf: leaf.astype(dtype), model)

    def entry(name: str, time: jax.Array) -> jax.Array:
        # After the last observation a model need not say how to go on.
        array = getattr(linear, name)
        return array[jnp.minimum(time, array.shape[0] - 1)] if name in model.time_varying else array

    def noise(key: core.Key, covariance: jax.Array) -> jax.Array:
        root = square_root(covariance)
        return core.matvec(root, core.random.normal(key, root.shape[:1], dtype))

    def first(key: core.Key) -> jax.Array:
        return linear.initial_mean + noise(key, linear.initial_covariance)

    def move_linear(key: core.Key, x: jax.Array, time: jax.Array) -> jax.Array:
        moved = core.matvec(entry("dynamics", time), x) + entry("dynamics_offset", time)
        return moved + noise(key, entry("dynamics_covariance", time))

    def look_linear(x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = core.matvec(entry("emission", time), x) + entry("emission_offset", time)
        return mean, entry("emission_covariance", time)

    return Functions(first, move_linear, look_linear, dtype)


@functools.partial(jax.jit, static_argnames=("members", "update"))
def _ensemble_filter(
    key: core.Key, model: Any, ys: jax.Array, seen: jax.Array, inflation: Any, members: int, update: str
) -> EnsembleFiltered:
    first, move, look, dtype = _functions(model, ys)
    m, inflation = ys.shape[1], jnp.asarray(inflation, dtype)
    start_key, key = core.random.split(key)
    states = jax.vmap(first)(core.random.split(start_key, members))
    n = states.shape[1]

    def body(carry: tuple[jax.Array, jax.Array], now: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
        (states, _), (time, y, there) = carry, now
        noise_key, move_key = core.random.split(core.fold(key, time))
        middle = jnp.mean(states, 0, keepdims=True)
        states = middle + inflation * (states - middle)
        images, noises = jax.vmap(look, in_axes=(0, None))(states, time)
        rows, noise, values = images.T, jnp.mean(noises, 0), jnp.expand_dims(jnp.where(there, y, 0), 1)
        if noise.ndim == 2:
            rows, noise, values = decorrelate(rows, noise, values, there)
        white = core.random.normal(noise_key, (m, members), dtype) if update == "stochastic" else None
        joined = jnp.concatenate([states, rows.T], 1)
        joined, innovation, log_scale = _observe(joined, n, noise, values[:, 0], there, white)
        after = joined[:, :n]
        moved = jax.vmap(move, in_axes=(0, 0, None))(core.random.split(move_key, members), after, time)
        increment = -jnp.sum(log_scale) - 0.5 * jnp.sum(innovation**2)
        return (moved, after), ((*_summary(after), *_summary(states), innovation), increment)

    inputs = (jnp.arange(ys.shape[0]), ys.astype(dtype), seen)
    (_, last), (found, increments) = scan.scan(body, (states, states), inputs)
    mean, variance, predicted_mean, predicted_variance, innovation = found
    totals = jnp.cumsum(increments)
    result = EnsembleFiltered(mean, variance, predicted_mean, predicted_variance, innovation, totals, last)
    return jax.tree.map(lambda leaf: leaf.astype(ys.dtype), result)


def _summary(states: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.mean(states, 0), jnp.var(states, 0, ddof=1)


def _observe(
    joined: jax.Array, n: int, noise: jax.Array, values: jax.Array, seen: jax.Array, white: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Members (members, n + m) after the observations of a time; innovations and logs of their scales (m,)."""
    members = joined.shape[0]

    def one(j: Any, carry: Any) -> Any:
        joined, innovations, scales = carry
        middle = jnp.mean(joined, 0)
        apart = joined - jnp.expand_dims(middle, 0)
        image, image_apart = middle[n + j], apart[:, n + j]
        total = noise[j] + jnp.sum(image_apart**2) / (members - 1)
        there = seen[j] & (total > 0)
        safe = jnp.where(there, total, 1)
        gain = jnp.sum(apart * jnp.expand_dims(image_apart, 1), 0) / (members - 1) / safe
        if white is None:
            # Half of what is apart is taken out, or more, so that the variance falls as it does in theory.
            apart_share = 1 / (1 + jnp.sqrt(noise[j] / safe))
            away = (values[j] - image) - apart_share * image_apart
        else:
            away = values[j] + core.safe_sqrt(noise[j]) * white[j] - joined[:, n + j]
        moved = joined + jnp.expand_dims(away, 1) * jnp.expand_dims(gain, 0)
        innovation = jnp.where(there, (values[j] - image) / jnp.sqrt(safe), 0)
        scale = jnp.where(there, HALF_LOG_TAU + 0.5 * jnp.log(safe), 0)
        return jnp.where(there, moved, joined), innovations.at[j].set(innovation), scales.at[j].set(scale)

    return loop(values.shape[0], one, (joined, jnp.zeros_like(values), jnp.zeros_like(values)))
