"""Kalman filters of linear-Gaussian models: one call, and the method that suits the model and the machine."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman import _parallel as parallel
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman import _steady as steady
from jaxprob.inference.kalman._square_root import Moments
from jaxprob.inference.kalman._steps import as_observations, covariance_of, prepare
from jaxprob.models.state_space import LinearGaussian

METHODS = ("auto", "sequential", "steady", "parallel")


@core.pytree
class Filtered:
    """What a filter found.

    Attributes:
      mean: (time, n), of the state given the observations up to its time. NaN where a diffuse initial state is not
        determined yet.
      factor: (time, n, n), lower-triangular root of its covariance, of any rank; rows of inf where undetermined.
      predicted_mean: (time, n), of the state given the observations before its time.
      predicted_factor: (time, n, n).
      innovation: (time, m), standardised: independent and standard normal if the model is right; 0 where missing. Each
        number against its prediction from all before it, those of the same time included. NaN where there was none
        because the initial state was diffuse.
      log_likelihoods: (time,), of the observations up to each time.
      given: moments given the diffuse numbers, for the smoother.
      roots: (time, d + 1, d + 1), of what is known of those; None where nothing is diffuse.
    """

    mean: jax.Array
    factor: jax.Array
    predicted_mean: jax.Array
    predicted_factor: jax.Array
    innovation: jax.Array
    log_likelihoods: jax.Array
    given: Any
    roots: Any

    @property
    def covariance(self) -> jax.Array:
        """(time, n, n), of the state given the observations up to its time."""
        return covariance_of(self.factor)

    @property
    def predicted_covariance(self) -> jax.Array:
        """(time, n, n), of the state given the observations before its time."""
        return covariance_of(self.predicted_factor)

    @property
    def log_likelihood(self) -> jax.Array:
        """(), of all observations; 0 for none."""
        return self.log_likelihoods[-1] if self.log_likelihoods.shape[0] else jnp.zeros((), self.mean.dtype)


def filter(model: LinearGaussian, ys: Any, *, missing: Any = None, method: str = "auto") -> Filtered:
    """The states of a model given what has been observed so far, and the likelihood of the observations.

    Args:
      model: a `LinearGaussian`.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing; shorter series of a batch are padded, and
        missing there.
      method: "sequential"; "steady", sequential until the covariances stand still and a linear recurrence from there
        on, for models in which nothing varies (a series with missing entries, or one that does not settle, is filtered
        as by "sequential"); "parallel" in time; or "auto": parallel on an accelerator, else steady where the model
        allows it. All carry square roots and agree to rounding.

    Returns:
      `Filtered`.

    Raises:
      ValueError: if shapes or time axes do not fit, or an observation is infinite.
      TypeError: if the model is none.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> found = filter(walk, jnp.array([1.0, jnp.nan, 3.0]))
    >>> print(*(f"{x:.3f}" for x in found.mean[:, 0]), f"{found.log_likelihood:.3f}")
    0.500 0.500 2.286 -4.168

    Source: Durbin & Koopman (2012), "Time series analysis by state space methods", chapters 4 to 6.
    """
    values, seen = as_observations("kalman.filter", model, ys, missing)
    return _filter(model, values, seen, pick("kalman.filter", model, values.shape[0], method))


def log_likelihood(model: LinearGaussian, ys: Any, *, missing: Any = None, method: str = "auto") -> jax.Array:
    """The log density of the observations, (): that of `filter`, which keeps nothing else.

    Args:
      model: a `LinearGaussian`.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      method: see `filter`.

    Raises:
      ValueError, TypeError: as `filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> still = LinearGaussian(jnp.zeros(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.ones(1))
    >>> round(log_likelihood(still, jnp.zeros(2)).item(), 4)  # two standard normal numbers at zero
    -1.8379
    """
    values, seen = as_observations("kalman.log_likelihood", model, ys, missing)
    return _log_likelihood(model, values, seen, pick("kalman.log_likelihood", model, values.shape[0], method))


def pick(function: str, model: LinearGaussian, times: int, method: str) -> str:
    """The method for a model, a number of times and the machine."""
    if method not in METHODS:
        raise core.bad_value(function, "method", core.describe(method), f"one of {METHODS}")
    if method == "steady" and model.time_varying:
        got = f"'steady', and {model.time_varying[0]} varies in time"
        raise core.bad_value(function, "method", got, "'sequential', 'parallel' or 'auto'")
    if method == "auto":
        if jax.default_backend() != "cpu" and times > 1:
            return "parallel"
        method = "sequential" if model.time_varying else "steady"
    return "sequential" if method == "steady" and times < 4 * steady.SETTLING else method


RUN = {"sequential": sequential.run, "steady": steady.run, "parallel": parallel.run}


@functools.partial(jax.jit, static_argnames="method")
def _filter(model: LinearGaussian, ys: jax.Array, seen: jax.Array, method: str) -> Filtered:
    steps = prepare(model, ys, seen)
    predicted, moments, found = RUN[method](steps)
    roots = before = None
    innovation = found.innovation[..., 0]
    if model.diffuse_size:
        roots = diffuse.information(found.innovation, method)
        before = jnp.concatenate([jnp.zeros_like(roots[:1]), roots[:-1]])
        innovation = jax.vmap(diffuse.innovations)(found.innovation, before)
        mean, factor = jax.vmap(diffuse.integrate)(moments, roots)
        predicted_mean, predicted_factor = jax.vmap(diffuse.integrate)(predicted, before)
    else:
        (mean, factor), (predicted_mean, predicted_factor) = _first(moments), _first(predicted)
    totals = diffuse.log_likelihoods(found, roots)
    result = Filtered(mean, factor, predicted_mean, predicted_factor, innovation, totals, moments, roots)
    return jax.tree.map(lambda leaf: leaf.astype(ys.dtype), result)


@functools.partial(jax.jit, static_argnames="method")
def _log_likelihood(model: LinearGaussian, ys: jax.Array, seen: jax.Array, method: str) -> jax.Array:
    if not ys.shape[0]:
        return jnp.zeros((), ys.dtype)
    found = RUN[method](prepare(model, ys, seen), keep=False)[2]
    roots = diffuse.information(found.innovation, method) if model.diffuse_size else None
    return diffuse.log_likelihoods(found, roots)[-1].astype(ys.dtype)


def _first(moments: Moments) -> tuple[jax.Array, jax.Array]:
    return moments.mean[..., 0], moments.factor
