"""Categories as indicator vectors, for models that take relaxed ones as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._discrete import Categorical, log_weights, probabilities, set_weights, weights_shape
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._parameters import align
from jaxprob.distributions._supports import CountVector, Support


@core.pytree
class OneHotCategorical(Distribution):
    """One of k categories, as a vector with a one in its place and zeros elsewhere.

    Args:
      probs: (*batch, k), non-negative, sums to one. Give this or `logits`.
      logits: (*batch, k), log probabilities up to a constant; -inf for an outcome that cannot occur.

    Raises:
      ValueError: unless exactly one of the two is given, or if concrete `probs` are no probabilities.

    >>> OneHotCategorical([0.25, 0.75]).log_prob(jnp.array([1.0, 0.0])).round(3).item()
    -1.386...
    """

    probs: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_weights(self)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return weights_shape(self.probs, self.logits)[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return weights_shape(self.probs, self.logits)[-1:]

    @property
    def support(self) -> Support:
        return CountVector(jnp.ones(()))

    def mean(self) -> jax.Array:
        return probabilities(self.probs, self.logits)

    def variance(self) -> jax.Array:
        probs = probabilities(self.probs, self.logits)
        return probs * (1 - probs)

    def entropy(self) -> jax.Array:
        return self._index().entropy()

    def _index(self) -> Categorical:
        return Categorical(self.probs) if self.logits is None else Categorical(logits=self.logits)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        dtype = core.result_dtype(self)
        return jax.nn.one_hot(self._index().sample(key, shape), self.event_shape[0], dtype=dtype)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        x, log_p = align(value, log_weights(self.probs, self.logits))
        x, log_p = jnp.broadcast_arrays(x, log_p)
        is_one = x == 1
        corner = jnp.all(is_one | (x == 0), -1) & (jnp.sum(x, -1) == 1)
        # Picked, not multiplied: zero times -inf would be NaN.
        log_prob = jnp.sum(jnp.where(is_one, log_p, 0), -1)
        return jnp.where(corner, log_prob, jnp.where(jnp.any(jnp.isnan(x), -1), jnp.nan, -jnp.inf))
