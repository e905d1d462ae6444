"""Densities of observations of which some are missing: what filters of every kind share.

What is missing contributes nothing: its log density is replaced by zero, and the density is evaluated at a number that
may be observed, so that no gradient meets one that is not there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution, MultivariateNormal


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
