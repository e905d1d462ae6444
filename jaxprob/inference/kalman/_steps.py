"""A model and its observations, step by step: what the filters loop over.

Means have 1 + d columns: the first is the mean itself, the others say how it moves with each of the d numbers of which
nothing is known beforehand. Covariances do not depend on those, so that one pass serves any number of them, and what
the data say of them is a least-squares problem in the innovations.

Source: de Jong (1991), "The diffuse Kalman filter".
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import _missing as gaps
from jaxprob.inference.kalman._square_root import Moments, product, square_root, triangularize
from jaxprob.models.state_space import LinearGaussian


class Step(NamedTuple):
    """What one time needs; or all times, on a leading axis; or, where None, what another `Step` has.

    Attributes:
      dynamics: F, (n, n), from this time to the next.
      dynamics_offset: b, (n,).
      dynamics_root: (n, n), root of Q.
      emission: H, (m, n).
      emission_covariance: R, (m, m) or (m,).
      values: (m, 1 + d), what was observed less the offset, zero where missing; and zeros.
      seen: (m,), bool.
    """

    dynamics: Any
    dynamics_offset: Any
    dynamics_root: Any
    emission: Any
    emission_covariance: Any
    values: Any
    seen: Any


class Steps(NamedTuple):
    """All times.

    Attributes:
      start: law of the state at the first observation, given the diffuse numbers.
      constant: what does not vary; None elsewhere.
      varying: what does, time leading; None elsewhere.
    """

    start: Moments
    constant: Step
    varying: Step

    def at(self, varying: Step) -> Step:
        """The whole step of a time from what varies there."""
        return Step(*(v if c is None else c for c, v in zip(self.constant, varying, strict=True)))

    @property
    def everywhere(self) -> Step:
        """All steps with a leading axis of time, constants repeated."""
        times = self.varying.seen.shape[0]
        repeat = (
            v if c is None else jnp.broadcast_to(c, (times, *c.shape))
            for c, v in zip(self.constant, self.varying, strict=True)
        )
        return Step(*repeat)


def as_observations(function: str, model: LinearGaussian, ys: Any, missing: Any) -> tuple[jax.Array, jax.Array]:
    """The observations (time, m), zero where missing, and where they are there: NaN is missing, and so says `missing`.

    Raises:
      ValueError: if a shape or the time axis does not fit, or an observation is infinite.
    """
    if not isinstance(model, LinearGaussian):
        raise core.bad_type(function, "model", model, "a LinearGaussian")
    return check_observations(function, model, model.observation_size, ys, missing)


def check_observations(function: str, model: Any, m: int, ys: Any, missing: Any) -> tuple[jax.Array, jax.Array]:
    """As `as_observations`, for any model of m numbers at a time that says whether it `fits` a number of times."""
    ys, seen = gaps.as_observations(function, core.as_float(ys), missing, (m,))
    if not model.fits(ys.shape[0]):
        got = f"of {ys.shape[0]} times, and the inputs of the model of others"
        if isinstance(model, LinearGaussian):
            entries = ", ".join(f"{getattr(model, name).shape[0]} of {name}" for name in model.time_varying)
            got = f"of {ys.shape[0]} times, and the model has {entries}"
        todo = "Cut a longer model with model.until(time)"
        raise core.bad_value(function, "ys", got, "as many times as the model spans", todo)
    return ys, seen


def working_dtype(model: LinearGaussian, ys: jax.Array) -> Any:
    """The dtype to compute in: at least float32."""
    return core.accumulator_dtype(core.result_dtype(*jax.tree.leaves(model), ys))


def prepare(model: LinearGaussian, ys: jax.Array, seen: jax.Array) -> Steps:
    """The steps of a model; `ys` and `seen` as from `as_observations`."""
    dtype, times = working_dtype(model, ys), ys.shape[0]
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    varying = model.time_varying

    def entry(name: str, function: Any = lambda array: array) -> tuple[Any, Any]:
        array = getattr(model, name)
        if name not in varying:
            return function(array), None
        if array.shape[0] < times:  # of the dynamics, one less than times; the last prediction is nobody's
            array = jnp.concatenate([array, jnp.zeros_like(array, shape=(1, *array.shape[1:]))])
        return None, jax.vmap(function)(array)

    values = ys.astype(dtype) - jnp.where(seen, model.emission_offset, 0)
    none = jnp.zeros((*values.shape, model.diffuse_size), dtype)
    pairs = (
        entry("dynamics"),
        entry("dynamics_offset"),
        entry("dynamics_covariance", functools.partial(square_root, once=True)),
        entry("emission"),
        entry("emission_covariance"),
        (None, jnp.concatenate([jnp.expand_dims(values, 2), none], 2)),
        (None, seen),
    )
    steps = Steps(_start(model, values), Step(*(c for c, _ in pairs)), Step(*(v for _, v in pairs)))
    # Inside `shard_map` series vary over devices and a model may not: cotangents have the type of what they belong to.
    return core.varying(steps, steps)


def _start(model: LinearGaussian, values: jax.Array) -> Moments:
    mean = jnp.expand_dims(model.initial_mean, 1)
    factor = square_root(model.initial_covariance, once=True)
    if not model.diffuse_size:
        return Moments(mean, factor)
    # A number of which nothing is known may as well have a normal one added to it: the results are the same for any
    # variance of that, and with one of the size of the data no innovation is without variance.
    scale = jnp.sqrt(jnp.mean(jax.lax.stop_gradient(values) ** 2))
    scale = jnp.where(scale > 0, scale, 1)
    factor = triangularize(jnp.concatenate([factor, scale * model.initial_diffuse], 1))
    return Moments(jnp.concatenate([mean, model.initial_diffuse], 1), factor)


def covariance_of(factor: jax.Array) -> jax.Array:
    """L L^T of roots (..., n, n), exactly symmetric."""
    if factor.ndim == 2:
        return core.symmetrize(product(factor, factor.T))
    return core.symmetrize(core.matmul(factor, jnp.swapaxes(factor, -1, -2)))
