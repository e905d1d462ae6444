"""The two extremes: a density that is 1 everywhere on a support, and all mass at one point."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._parameters import align, broadcast_to
from jaxprob.distributions._supports import Point, Real, Support, all_last


@core.pytree
class Flat(Distribution):
    """The improper distribution whose log density is 0 on a support and -inf outside.

    A posterior with a flat prior is proper only if its likelihood makes it so. There is nothing to draw from.

    Args:
      on: the support.
      size: shape of the quantity, event included.

    Raises:
      ValueError: if `size` has fewer axes than one element of the support.

    >>> float(Flat(Real(), (3,)).log_prob(jnp.ones(3))[0])
    0.0
    """

    on: Support = Real()
    size: int | tuple[int, ...] = core.static(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.on, Support):
            raise core.bad_type("Flat", "on", self.on, "a support", "Pass one, for example Positive()")
        size = (self.size,) if isinstance(self.size, int) else tuple(self.size)
        object.__setattr__(self, "size", size)
        if len(size) < self.on.event_ndims:
            expected = f"at least {self.on.event_ndims} axes"
            raise core.bad_value("Flat", "size", size, expected, f"It is the shape of an element of {self.on}")

    @property
    def _event_start(self) -> int:
        return len(self.size) - self.on.event_ndims  # type: ignore[arg-type]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        edges = [jnp.shape(leaf) for leaf in jax.tree.leaves(self.on)]
        return np.broadcast_shapes(self.size[: self._event_start], *edges)  # type: ignore[index]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.size[self._event_start :]  # type: ignore[index]

    @property
    def support(self) -> Support:
        return self.on

    def _log_prob(self, value: jax.Array) -> jax.Array:
        (value,) = align(value)
        inside = self.on.contains(value)
        # x * 0 would be NaN at infinity; the zero carries dtype and gradient.
        zero = jnp.zeros(inside.shape, value.dtype)
        log_density = jnp.where(inside, zero, jnp.where(self._is_nan(value), jnp.nan, -jnp.inf))
        batch = np.broadcast_shapes(value.shape[: value.ndim - self.on.event_ndims], self.batch_shape)
        return broadcast_to(log_density, batch)

    def _is_nan(self, value: jax.Array) -> jax.Array:
        return ~all_last(~jnp.isnan(value), self.on.event_ndims)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        raise core.bad_type(
            "Flat.sample",
            "the distribution",
            "improper",
            "one with a finite integral",
            "Give the quantity a proper prior, or condition on a value of it",
        )


@core.pytree
class Delta(Distribution):
    """All mass at one point; `log_prob` is 0 there and -inf elsewhere, with respect to counting.

    Args:
      value: (*batch, *event), of any dtype.
      event_ndims: number of trailing axes of `value` that make one event.

    Raises:
      ValueError: if `value` has fewer axes than `event_ndims`.

    >>> float(Delta(2.0).log_prob(2.0))
    0.0
    """

    value: Any
    event_ndims: int = core.static(default=0)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "value", jnp.asarray(self.value))
        except (TypeError, ValueError):
            raise core.bad_type("Delta", "value", self.value, "a number or an array of them") from None
        if not 0 <= self.event_ndims <= self.value.ndim:
            raise core.bad_value("Delta", "event_ndims", self.event_ndims, f"a number from 0 to {self.value.ndim}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.value)[: jnp.ndim(self.value) - self.event_ndims]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.value)[jnp.ndim(self.value) - self.event_ndims :]

    @property
    def support(self) -> Support:
        return Point(self.value, self.event_ndims)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        dtype = core.result_dtype(value, self.value)
        return jnp.where(self.support.contains(value), jnp.zeros((), dtype), -jnp.inf)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(self.value, shape + self.shape)

    def mean(self) -> jax.Array:
        return core.as_float(self.value)

    def variance(self) -> jax.Array:
        return jnp.zeros_like(core.as_float(self.value))

    def entropy(self) -> jax.Array:
        return jnp.zeros(self.batch_shape, core.result_dtype(self.value))

    def cdf(self, value: Any) -> jax.Array:
        if self.event_ndims:
            raise self._undefined("cdf")
        value, point = align(self._fitting("cdf", value), self.value)
        return jnp.where(value >= point, jnp.ones_like(point), 0)

    def quantile(self, probability: Any) -> jax.Array:
        if self.event_ndims:
            raise self._undefined("quantile")
        probability, point = align(self._fitting("quantile", probability), core.as_float(self.value))
        return jnp.where((probability >= 0) & (probability <= 1), point, jnp.nan)
