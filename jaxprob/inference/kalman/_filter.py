"""Kalman filters: one call, and the method that suits the model and the machine."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxprob import core
from jaxprob.inference.kalman import _adjoint as adjoint
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _covariance as covariance
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman import _nonlinear as nonlinear
from jaxprob.inference.kalman import _parallel as parallel
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman import _steady as steady
from jaxprob.inference.kalman._linearize import Laplace, Rule, as_rule
from jaxprob.inference.kalman._sharing import sharing
from jaxprob.inference.kalman._square_root import Moments, Seen
from jaxprob.inference.kalman._steps import Steps, as_observations, covariance_of, prepare
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel

METHODS = ("auto", "sequential", "steady", "parallel", "covariance")


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
        return self.log_likelihoods[..., -1] if self.log_likelihoods.shape[-1] else jnp.zeros((), self.mean.dtype)


class How(NamedTuple):
    """What a program is made for.

    Attributes:
      function: that was called, for errors.
      method: for a linear model.
      rule: for one that is not; None else.
      iterations: of each linearisation.
    """

    function: str
    method: str
    rule: Rule | None = None
    iterations: int = 1


def filter(
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    method: str = "auto",
    linearize: Any = None,
    iterations: int = 1,
) -> Filtered:
    """The states of a model given what has been observed so far, and the likelihood of the observations.

    Args:
      model: a `LinearGaussian`, or a `StateSpaceModel`, of which means and covariances of its laws are used.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing; shorter series of a batch are padded, and
        missing there.
      method: "sequential"; "steady", a linear recurrence wherever the covariances stand still, for models in which
        nothing varies (a block of 128 times in which something is missing, or before which they moved, is filtered as
        by "sequential"); "parallel" in time (on a CPU in chunks: for one long series and few states in half the time
        of "sequential", and twice its compile time); or "auto": parallel on an accelerator, else steady where the model
        allows it. All of these carry square roots and agree to rounding. "covariance" carries covariances, which is
        cheaper with many numbers at a time (not with few) and least safe: for models in which all that is observed has
        noise, and in float32 for variances of similar sizes; what is lost is NaN. A `StateSpaceModel` is filtered
        sequentially.
      linearize: how a `StateSpaceModel` is made linear at each time: "extended" (the default), "unscented", "cubature",
        "gauss_hermite", or one of `kalman.extended()`, `kalman.unscented(...)` and so on. An observation whose mean
        does not depend on the state tells these nothing; "laplace" takes its density instead of its moments. On a
        `LinearGaussian` all are the Kalman filter.
      iterations: how often each observation is linearised, first at the predicted law and then at what it made of
        that: iterated extended and iterated posterior linearisation filters.

    Returns:
      `Filtered`.

    Raises:
      ValueError: if shapes or time axes do not fit, an observation is infinite, or a law has no moments.
      TypeError: if the model is none.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> found = filter(walk, jnp.array([1.0, jnp.nan, 3.0]))
    >>> print(*(f"{x:.3f}" for x in found.mean[:, 0]), f"{found.log_likelihood:.3f}")
    0.500 0.500 2.286 -3.954

    Source: Durbin & Koopman (2012), "Time series analysis by state space methods", chapters 4 to 6; Särkkä & Svensson
    (2023), "Bayesian filtering and smoothing", chapters 7 to 10, for models that are not linear.
    """
    return _filter(model, *as_request("kalman.filter", model, ys, missing, method, linearize, iterations))


def log_likelihood(
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    method: str = "auto",
    linearize: Any = None,
    iterations: int = 1,
) -> jax.Array:
    """The log density of the observations, (): that of `filter`, which keeps nothing else.

    Args:
      model: a `LinearGaussian` or `StateSpaceModel`.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      method: see `filter`.
      linearize: see `filter`.
      iterations: see `filter`.

    Raises:
      ValueError, TypeError: as `filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> still = LinearGaussian(jnp.zeros(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.ones(1))
    >>> round(log_likelihood(still, jnp.zeros(2)).item(), 4)  # two standard normal numbers at zero
    -1.8379
    """
    request = as_request("kalman.log_likelihood", model, ys, missing, method, linearize, iterations)
    # Of a program within another JAX would trace the likelihood before it found that only its gradient is wanted.
    return (_log_likelihood if core.is_staged() else _compiled_log_likelihood)(model, *request)


def as_iterations(function: str, iterations: Any) -> int:
    """A number of linearisations.

    Raises:
      ValueError: if it is none.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise core.bad_value(function, "iterations", iterations, "a number of linearisations, at least 1")
    return iterations


def as_request(
    function: str, model: Any, ys: Any, missing: Any, method: str, linearize: Any = None, iterations: int = 1
) -> tuple[jax.Array, jax.Array, How]:
    """Checks what a verb was asked for: observations, where they are there, and how to go about it."""
    if not isinstance(model, LinearGaussian | StateSpaceModel):
        raise core.bad_type(function, "model", model, "a LinearGaussian or a StateSpaceModel")
    rule = as_rule(function, linearize)
    as_iterations(function, iterations)
    if not isinstance(model, StateSpaceModel):
        values, seen = as_observations(function, model, ys, missing)
        return values, seen, How(function, pick(function, model, values.shape[0], method))
    values, seen = conditional.as_observations(function, model, ys, missing)
    if method not in ("auto", "sequential"):
        got, todo = f"{core.describe(method)}, and the model is not linear", "kalman.iterated_smooth has a parallel one"
        expected = "'sequential' or 'auto'" if method in METHODS else f"one of {METHODS}"
        raise core.bad_value(function, "method", got, expected, todo)
    if isinstance(rule, Laplace) and iterations > 1:
        raise core.bad_value(function, "iterations", iterations, "1 with 'laplace', which iterates by itself")
    return values, seen, How(function, "sequential", rule, iterations)


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
    return "sequential" if method == "steady" and times < 8 * steady.BLOCK else method


RUN = {
    "sequential": sequential.run,
    "steady": steady.run,
    "parallel": parallel.run,
    "covariance": covariance.run,
    "two_filter": sequential.run,
}

# What was seen, of a series by itself.
SEEN = {name: functools.partial(lambda run, steps: run(steps, keep=False)[2], run) for name, run in RUN.items()} | {
    "sequential": functools.partial(sequential.all_times, keep=False),
    "steady": functools.partial(steady.all_times, keep=False),
}


def run(
    model: LinearGaussian | StateSpaceModel, ys: jax.Array, seen: jax.Array, how: How
) -> tuple[Steps, Moments, Moments, Seen]:
    """The steps of a model, its predicted and filtered moments and what was seen, time leading."""
    if isinstance(model, StateSpaceModel):
        assert how.rule is not None
        return nonlinear.run(how.function, model, ys, seen, how.rule, how.iterations)
    steps = prepare(model, ys, seen)
    return steps, *RUN[how.method](steps)


@functools.partial(jax.jit, static_argnames="how")
def _filter(model: Any, ys: jax.Array, seen: jax.Array, how: How) -> Filtered:
    _, predicted, moments, found = run(model, ys, seen, how)
    roots = before = None
    innovation = found.innovation[..., 0]
    if moments.mean.shape[2] > 1:
        roots = diffuse.information(found.innovation, how.method)
        before = jnp.concatenate([jnp.zeros_like(roots[:1]), roots[:-1]])
        innovation = jax.vmap(diffuse.innovations)(found.innovation, before)
        mean, factor = jax.vmap(diffuse.integrate)(moments, roots)
        predicted_mean, predicted_factor = jax.vmap(diffuse.integrate)(predicted, before)
    else:
        (mean, factor), (predicted_mean, predicted_factor) = _first(moments), _first(predicted)
    totals = diffuse.log_likelihoods(found, roots)
    result = Filtered(mean, factor, predicted_mean, predicted_factor, innovation, totals, moments, roots)
    return jax.tree.map(lambda leaf: leaf.astype(ys.dtype), result)


def _log_likelihood(model: Any, ys: jax.Array, seen: jax.Array, how: How) -> jax.Array:
    if not ys.shape[0]:
        return jnp.zeros((), ys.dtype)
    if isinstance(model, StateSpaceModel):
        total = _total(run(model, ys, seen, how)[3], how.method)
    else:
        total = _of_steps(how.method, prepare(model, ys, seen))
    return total.astype(ys.dtype)


_compiled_log_likelihood = jax.jit(_log_likelihood, static_argnames="how")


def _total(found: Seen, method: str) -> jax.Array:
    roots = diffuse.information(found.innovation, method) if found.innovation.shape[2] > 1 else None
    return diffuse.total(found, roots)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_steps(method: str, steps: Steps) -> jax.Array:
    return _total(RUN[method](steps, keep=False)[2], method)


@functools.partial(_of_steps.defjvp, symbolic_zeros=True)
def _(method: str, primals: tuple[Steps], tangents: tuple[Steps]) -> tuple[jax.Array, jax.Array]:
    """Derivatives in both modes from one gradient, which costs about what two filters do."""
    (steps,), (moved,) = primals, tangents

    def gradient(method: str, steps: Steps) -> tuple[jax.Array, Steps]:
        return adjoint.gradient(lambda steps: _total(SEEN[method](steps), method), steps)

    otherwise = "sequential" if method == "steady" else method
    value, slopes = sharing(functools.partial(gradient, method), functools.partial(gradient, otherwise))(steps)
    change = jnp.zeros_like(value)
    for slope, tangent in zip(*map(_leaves, (slopes, moved)), strict=True):
        # Entries that do not move, and those that have no derivative.
        if slope is not None and not isinstance(tangent, SymbolicZero):
            change = change + jnp.sum(slope * tangent)
    return value, change


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None or isinstance(x, SymbolicZero))


def _first(moments: Moments) -> tuple[jax.Array, jax.Array]:
    return moments.mean[..., 0], moments.factor
