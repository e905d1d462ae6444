"""Densities of observations of which some are missing: what filters of every kind share.

What is missing contributes nothing: its log density is replaced by zero, and the density is evaluated at a number that
may be observed, so that no gradient meets one that is not there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Distribution, MultivariateNormal


def as_observations(
    function: str, ys: Any, missing: Any, shape: tuple[int, ...], *, batched: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Observations (time, *shape), zero where missing, and where they are there: NaN is missing, and so says `missing`.

    Args:
      function: that was called, for errors.
      ys: (time, *shape), or (time,) where the shape is (1,). Booleans become integers.
      missing: booleans of that shape, or (time,), true where not observed; or None.
      shape: of the observation of one time.
      batched: whether there is an axis of series before that of time.

    Raises:
      ValueError: if a shape does not fit, or an observation is infinite.
    """
    lead = 1 + batched
    ys = _along_time(function, "ys", jnp.asarray(ys), shape, lead)
    seen = jnp.ones(ys.shape, bool)
    if jnp.issubdtype(ys.dtype, jnp.floating):
        if not isinstance(ys, jax.core.Tracer) and np.isinf(np.asarray(ys, np.float64)).any():
            raise core.bad_value(function, "ys", "infinite somewhere", "finite numbers, or NaN where one is missing")
        seen = ~jnp.isnan(ys)
    elif ys.dtype == bool:
        ys = ys.astype(jnp.int32)
    if missing is not None:
        missing = jnp.asarray(missing)
        if missing.dtype != bool or missing.shape not in (ys.shape, ys.shape[:lead]):
            raise core.bad_value(function, "missing", missing, f"booleans of shape {ys.shape}, true where not observed")
        seen = seen & ~jnp.expand_dims(missing, tuple(range(missing.ndim, ys.ndim)))
    return jnp.where(seen, ys, 0), seen


def _along_time(function: str, argument: str, array: jax.Array, shape: tuple[int, ...], lead: int) -> jax.Array:
    if shape == (1,) and array.ndim == lead:
        array = jnp.expand_dims(array, -1)
    if array.ndim < lead or array.shape[lead:] != shape:
        axes = ", ".join(["series"] * (lead - 1) + ["time", *map(str, shape)])
        expected = f"shape ({axes}{',' if axes == 'time' else ''})"
        raise core.bad_value(function, argument, f"of shape {array.shape}", expected, "Time leads; vmap makes many")
    return array


def log_density(law: Distribution, y: jax.Array, seen: jax.Array) -> jax.Array:
    """The log density () of what is seen.

    Args:
      law: of an observation. Batch axes are entries that are seen or missing one by one; an event is seen as a whole
        or not at all, but for a multivariate normal one.
      y: of the law's shape, with numbers that may be (see `filled`) where nothing is seen.
      seen: of the same shape, bool.
    """
    if isinstance(law, MultivariateNormal) and not law.batch_shape:
        return _normal_log_density(law, y, seen)
    there = jnp.all(seen, tuple(range(len(law.batch_shape), len(law.shape))))
    return jnp.sum(jnp.where(there, law.log_prob(y), 0))


def _normal_log_density(law: MultivariateNormal, y: jax.Array, seen: jax.Array) -> jax.Array:
    """Of the entries that are seen: the others are taken for standard normal numbers at zero, and taken out again."""
    covariance = law.covariance()
    both = jnp.expand_dims(seen, 0) & jnp.expand_dims(seen, 1)
    factor = core.cholesky(jnp.where(both, covariance, jnp.eye(y.shape[0], dtype=covariance.dtype)))
    residual = jnp.where(seen, y.astype(covariance.dtype) - law.mean(), 0)
    half_log_tau = 0.5 * jnp.log(jnp.asarray(2 * jnp.pi, covariance.dtype))
    number = jnp.sum(seen).astype(covariance.dtype)
    return -0.5 * (core.quadratic_form(factor, residual) + core.log_determinant(factor)) - number * half_log_tau


def filled(ys: jax.Array, seen: jax.Array, event_axes: int) -> jax.Array:
    """Observations with a number that may be observed wherever one is missing, so that densities are finite.

    It is the first that is seen of the entry, or of the whole event; 1 where none ever is.

    Args:
      ys: (time, ...).
      seen: of the same shape, bool.
      event_axes: how many of the last axes are one event.
    """
    if not ys.shape[0]:
        return ys
    axes = tuple(range(ys.ndim - event_axes, ys.ndim))
    whole = jnp.broadcast_to(jnp.all(seen, axes, keepdims=True), seen.shape)
    first = jnp.take_along_axis(ys, jnp.expand_dims(jnp.argmax(whole, 0), 0), 0)
    return jnp.where(seen, ys, jnp.where(jnp.any(whole, 0, keepdims=True), first, 1))
