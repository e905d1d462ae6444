"""A whole series as one distribution, its states integrated out: a site of a joint model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference._series import SeriesLaw
from jaxprob.inference.kalman._filter import log_likelihood, pick
from jaxprob.inference.kalman._square_root import square_root
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel


@core.pytree
class Marginal(SeriesLaw):
    """The law of the observations of a model; of `marginal`.

    Attributes:
      model: a `LinearGaussian`.
      length: times.
      method: of the filter.
    """

    model: Any
    length: int = core.static()
    method: str = core.static(default="auto")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(length,) of a model with one observed number, (length, m) else."""
        m = self.model.observation_size
        return (self.length,) if m == 1 else (self.length, m)

    def _log_prob_of_one(self, series: jax.Array) -> jax.Array:
        return log_likelihood(self.model, series, method=self.method)

    def _draw_one(self, key: core.Key) -> jax.Array:
        return simulate(key, self.model, self.length)[1].reshape(self.event_shape)


def marginal(model: LinearGaussian, length: int, *, method: str = "auto") -> Marginal:
    """The distribution of the observations of a model, with the states integrated out. NaN is missing.

    Args:
      model: a `LinearGaussian`, whose entries may depend on the parameters of a joint model.
      length: times.
      method: see `kalman.filter`.

    Returns:
      a `Distribution` of series (length,) where one number is observed at a time, (length, m) else. Draws begin where
      `initial_mean` and `initial_covariance` say; of what is diffuse there, at that mean.

    Raises:
      ValueError: if the model spans another number of times.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> series = marginal(walk, 3)
    >>> series.event_shape, f"{series.log_prob(jnp.array([1.0, jnp.nan, 3.0])):.3f}"
    ((3,), '-3.954')
    """
    if not isinstance(model, LinearGaussian):
        raise core.bad_type("kalman.marginal", "model", model, "a LinearGaussian")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1 or not model.fits(length):
        expected = "a number of times, at least 1" if not model.time_varying else "as many times as the model spans"
        raise core.bad_value("kalman.marginal", "length", length, expected)
    pick("kalman.marginal", model, length, method)
    return Marginal(model, length, method)


def simulate(key: core.Key, model: LinearGaussian | StateSpaceModel, length: int) -> tuple[jax.Array, jax.Array]:
    """States (length, n) and observations (length, m) drawn from a model.

    Args:
      key: random key.
      model: a `LinearGaussian`, of which what is diffuse of the initial state is at its mean; or a `StateSpaceModel`,
        of whose own shapes states and observations are.
      length: times.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> states, ys = simulate(jax.random.key(0), walk, 5)
    >>> states.shape, ys.shape
    ((5, 1), (5, 1))
    """
    if isinstance(model, StateSpaceModel):
        return model.sample(key, length)
    if not model.fits(length):
        raise core.bad_value("kalman.simulate", "length", length, "as many times as the model spans")
    keys = core.random.split(core.as_key(key, "kalman.simulate"), 3)
    dtype, n, m = model.dynamics.dtype, model.state_size, model.observation_size
    linear: LinearGaussian = jax.tree.map(lambda leaf: leaf.astype(core.accumulator_dtype(dtype)), model)
    wide = linear.dynamics.dtype

    def noise(key: core.Key, name: str, times: int, size: int) -> jax.Array:
        white, covariance = core.random.normal(key, (times, size), wide), getattr(linear, name)
        if covariance.ndim - (name in linear.time_varying) == 1:
            return white * jnp.broadcast_to(jnp.sqrt(covariance), white.shape)
        if name not in linear.time_varying:
            return core.matmul(white, square_root(covariance).T)
        return core.matvec(jax.vmap(square_root)(covariance[:times]), white)

    def entry(name: str, times: int) -> jax.Array:
        array = getattr(linear, name)
        return array[:times] if name in linear.time_varying else jnp.broadcast_to(array, (times, *array.shape))

    moves = length - 1
    first = linear.initial_mean + core.matvec(
        square_root(linear.initial_covariance), core.random.normal(keys[0], (n,), wide)
    )
    shifts = entry("dynamics_offset", moves) + noise(keys[1], "dynamics_covariance", moves, n)
    later = scan.affine(entry("dynamics", moves), shifts, first).states
    states = jnp.concatenate([jnp.expand_dims(first, 0), later])
    seen = core.matvec(entry("emission", length), states) + entry("emission_offset", length)
    return states.astype(dtype), (seen + noise(keys[2], "emission_covariance", length, m)).astype(dtype)
