"""What flows start from: a normal distribution without parameters, so that all leaves of a flow are trained."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._multivariate import LOG_2PI
from jaxprob.distributions._supports import IndependentSupport, Real, RealVector, Support


@core.pytree
class StandardNormal(Distribution):
    """Arrays of independent standard normal numbers; it has no leaves.

    Args:
      event: shape of one draw; a number is the size of a vector.
      dtype: of draws; JAX's default floating dtype by default.

    Raises:
      TypeError: if `event` is no shape.

    >>> StandardNormal(3).event_shape, jax.tree.leaves(StandardNormal(3))
    ((3,), [])
    """

    event: Any = core.static()
    dtype: Any = core.static(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", core.as_shape("StandardNormal", self.event))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.event

    @property
    def support(self) -> Support:
        rank = len(self.event)
        return RealVector() if rank == 1 else IndependentSupport(Real(), rank)

    def mean(self) -> jax.Array:
        return jnp.zeros(self.event, self._dtype)

    def variance(self) -> jax.Array:
        return jnp.ones(self.event, self._dtype)

    def entropy(self) -> jax.Array:
        return jnp.asarray(0.5 * math.prod(self.event) * (1 + LOG_2PI), self._dtype)

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(float) if self.dtype is None else self.dtype

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        return core.random.normal(key, shape + self.event, self._dtype)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        axes = tuple(range(value.ndim - len(self.event), value.ndim))
        return -0.5 * (jnp.sum(value**2, axis=axes) + math.prod(self.event) * LOG_2PI)
