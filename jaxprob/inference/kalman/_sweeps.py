"""Sweeps over a series whose model is made linear at the laws of all its states, side by side, before it is smoothed.

Each is the smoother of a linear model, in sequence or parallel in time; iterated and variational smoothers repeat it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _nonlinear as nonlinear
from jaxprob.inference.kalman._filter import RUN
from jaxprob.inference.kalman._smoother import backward, whole
from jaxprob.inference.kalman._square_root import Moments
from jaxprob.inference.kalman._steps import Step, Steps
from jaxprob.models.state_space import StateSpaceModel

METHODS = ("auto", "sequential", "parallel")


class Path(NamedTuple):
    """Laws of the states of all times.

    Attributes:
      mean: (time, n).
      factor: (time, n, n); None for expansions at the mean, which do not need it.
    """

    mean: jax.Array
    factor: Any


def pick_sweep(function: str, method: str, times: int) -> str:
    """The method of the smoothers of linear models that are made."""
    if method not in METHODS:
        raise core.bad_value(function, "method", core.describe(method), f"one of {METHODS}")
    if method == "auto":
        return "parallel" if jax.default_backend() != "cpu" and times > 1 else "sequential"
    return method


def linearized(function: str, model: StateSpaceModel, ys: jax.Array, seen: jax.Array, rule: Any, path: Path) -> Steps:
    """The steps of a model made linear at the laws of the states, side by side."""
    dtype, n = path.mean.dtype, path.mean.shape[1]
    mean, root = conditional.start(function, model, dtype)

    def one(time: jax.Array, at: Path, y: jax.Array, there: jax.Array) -> Step:
        factor = jnp.zeros((n, n), dtype) if at.factor is None else at.factor
        move = rule.linearize(conditional.transition(function, model, time, dtype), at.mean, factor, True)
        look = rule.linearize(conditional.observation(function, model, time, dtype), at.mean, factor, True)
        noise = conditional.root_of(move.covariance)
        return Step(move.matrix, move.offset, noise, *nonlinear.shifted(look, y, there), there)

    start = Moments(jnp.expand_dims(mean, 1), root)
    return Steps(start, nonlinear.NOTHING, jax.vmap(one)(jnp.arange(ys.shape[0]), path, ys, seen))


def moments_of(steps: Steps, method: str) -> tuple[jax.Array, jax.Array]:
    """Smoothed means (time, n) and roots (time, n, n) of a linear model."""
    _, moments, _ = RUN[method](steps)
    after = whole(moments, backward(moments, steps.everywhere), method)
    return after.mean[..., 0], after.factor


def apart(new: Path, old: Path, tolerance: jax.Array) -> jax.Array:
    """How far two paths are apart, in standard deviations; what rounding leaves of a mean does not count."""
    sd = jnp.sqrt(jnp.sum(new.factor**2, 2))
    size = jnp.max(jnp.abs(new.mean), 0, initial=0, keepdims=True)
    unit = sd + 32 * jnp.finfo(sd.dtype).eps / tolerance * size
    unit = jnp.where(unit > 0, unit, 1)
    moved: list[jax.Array] = [(new.mean - old.mean) / unit]
    if old.factor is not None:
        moved.append((new.factor - old.factor) / jnp.expand_dims(unit, 2))
    return core.norm(moved, jnp.inf)
