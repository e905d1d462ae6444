"""The distribution of a weighted set of values: a sample, a set of particles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._discrete import log_weights, probabilities, set_weights, weights_shape
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._parameters import align, broadcast_to
from jaxprob.distributions._supports import Support, all_last


@core.pytree
class FiniteSet(Support):
    """A finite set of elements.

    Args:
      values: (*batch, n, *event).
      ndims: number of axes of an element.
    """

    values: Any
    ndims: int = core.static(default=0)

    @property
    def event_ndims(self) -> int:
        return self.ndims

    @property
    def is_discrete(self) -> bool:
        return True

    def contains(self, x: Any) -> jax.Array:
        return jnp.any(_matches(jnp.asarray(x), self.values, self.ndims), axis=-1)


def _matches(x: jax.Array, values: jax.Array, ndims: int) -> jax.Array:
    """Whether `x` (..., *event) is each of `values` (*batch, n, *event): (..., n)."""
    x = jnp.expand_dims(x, x.ndim - ndims)
    if x.dtype == values.dtype:  # integers are compared as such: a float could not tell large ones apart
        rank = max(x.ndim, values.ndim)
        x, values = (jnp.expand_dims(a, tuple(range(rank - a.ndim))) for a in (x, values))
    else:
        x, values = align(x, values)
    return all_last(x == values, ndims)


@core.pytree
class Empirical(Distribution):
    """A finite set of values with their probabilities; equal values add up.

    Args:
      values: (*batch, n, *event).
      weights: (*batch, n), non-negative, sums to one; equal weights if neither is given.
      logits: (*batch, n), log weights up to a constant.
      event_ndims: number of axes of one value; by default all but the first of `values`, so that there is no batch.

    Raises:
      ValueError: if both weights and logits are given, if concrete weights are no probabilities, or sizes do not fit.

    >>> float(Empirical([1.0, 2.0, 6.0]).mean())
    3.0
    """

    values: Any
    weights: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)
    event_ndims: int | None = core.static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        try:
            values = jnp.asarray(self.values)
        except (TypeError, ValueError):
            raise core.bad_type("Empirical", "values", self.values, "an array of numbers") from None
        ndims = values.ndim - 1 if self.event_ndims is None else self.event_ndims
        if not 0 <= ndims < values.ndim or values.shape[values.ndim - 1 - ndims] == 0:
            raise core.bad_value("Empirical", "values", f"of shape {values.shape}", "(*batch, n, *event) with n >= 1")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "event_ndims", ndims)
        leading = values.shape[: values.ndim - ndims]
        if self.weights is None and self.logits is None:
            dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else None
            object.__setattr__(self, "logits", jnp.zeros(leading, dtype))
        set_weights(self, "weights")
        shape = weights_shape(self.weights, self.logits)
        if shape != leading:
            given = "logits" if self.weights is None else "weights"
            raise core.bad_value("Empirical", given, f"of shape {shape}", f"shape {leading}, one number a value")

    @property
    def _axis(self) -> int:
        """The axis of `values` that counts them."""
        return jnp.ndim(self.values) - 1 - self.event_ndims  # type: ignore[operator]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.values)[: self._axis]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.values)[self._axis + 1 :]

    @property
    def support(self) -> Support:
        return FiniteSet(self.values, self.event_ndims)  # type: ignore[arg-type]

    def mean(self) -> jax.Array:
        weights, values = self._aligned()
        return jnp.sum(weights * values, axis=self._axis)

    def variance(self) -> jax.Array:
        weights, values = self._aligned()
        center = jnp.sum(weights * values, axis=self._axis, keepdims=True)
        return jnp.sum(weights * (values - center) ** 2, axis=self._axis)

    def _aligned(self) -> list[jax.Array]:
        """Weights and values, of one dtype and of ranks that agree."""
        weights = probabilities(self.weights, self.logits)
        return align(weights.reshape(weights.shape + (1,) * self.event_ndims), self.values)  # type: ignore[operator]

    def cdf(self, value: Any) -> jax.Array:
        if self.event_shape:
            raise self._undefined("cdf")
        x, values, weights = align(
            jnp.expand_dims(self._fitting("cdf", value), -1), self.values, probabilities(self.weights, self.logits)
        )
        return jnp.sum(jnp.where(values <= x, weights, 0.0), axis=-1)

    def quantile(self, probability: Any) -> jax.Array:
        """The smallest value whose `cdf` is at least `probability`."""
        if self.event_shape:
            raise self._undefined("quantile")
        order = jnp.argsort(self.values, axis=-1)
        values = jnp.take_along_axis(self.values, order, axis=-1)
        weights = jnp.take_along_axis(probabilities(self.weights, self.logits), order, axis=-1)
        u, below = align(jnp.expand_dims(self._fitting("quantile", probability), -1), jnp.cumsum(weights, axis=-1))
        u = u * below[..., -1:]
        index = jnp.argmax((below >= u) & (below > 0), axis=-1)
        values = jnp.expand_dims(values, tuple(range(index.ndim + 1 - values.ndim)))
        return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        shape, ndims = shape + self.batch_shape, self.event_ndims
        # By inversion: Gumbel noise would need as many random numbers as there are values, for every draw.
        cumulative = jnp.cumsum(probabilities(self.weights, self.logits), axis=-1)
        u = core.random.uniform(key, shape, cumulative.dtype)
        if self._axis == 0:
            return self.values[_search(cumulative, u)]
        lead = len(shape) - self._axis
        flat_u = u.reshape((-1, *self.batch_shape))
        search = _search
        for _ in range(self._axis):
            search = jax.vmap(search, in_axes=(0, 1), out_axes=1)
        index = search(cumulative, flat_u).reshape(shape)
        values = jnp.expand_dims(self.values, tuple(range(lead)))
        index = index.reshape(index.shape + (1,) * (1 + ndims))  # type: ignore[operator]
        return jnp.squeeze(jnp.take_along_axis(values, index, axis=lead + self._axis), axis=lead + self._axis)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        log_w = log_weights(self.weights, self.logits)
        same = _matches(value, self.values, self.event_ndims)  # type: ignore[arg-type]
        return core.logsumexp(jnp.where(same, broadcast_to(log_w, same.shape), -jnp.inf), axis=-1)


def _search(cumulative: jax.Array, u: jax.Array) -> jax.Array:
    """Indices of values with the given cumulative weights (n,), at uniform numbers of any shape."""
    # Scaled to the rounded total, and never past the last value that has any weight.
    last = jnp.argmax(cumulative)
    index = jnp.searchsorted(cumulative, u * cumulative[-1], side="right")
    return jnp.minimum(index, last)
