"""Discrete distributions over a fixed set of outcomes: Bernoulli and Categorical.

They are computed here and not by distrax, whose log masses have NaN or infinite gradients at probabilities of 0 and 1
and fail under strict promotion.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._log_mass import outside
from jaxprob.distributions._odds import odds, one_of, set_odds
from jaxprob.distributions._parameters import PROBABILITY, Rule, align, broadcast_to, is_concrete, set_parameters
from jaxprob.distributions._supports import Boolean, IntegerInterval, Support
from jaxprob.distributions._univariate import Univariate

_LOGIT = Rule("numbers below infinity", lambda x: x < np.inf, "Use -inf for an outcome that cannot occur")


@core.pytree
class Bernoulli(Univariate):
    """0 or 1: `P(X = 1) = probs`.

    Args:
      probs: (*batch), probability of a one. Give this or `logits`.
      logits: (*batch), `log(probs / (1 - probs))`.

    Raises:
      ValueError: unless exactly one of the two is given, or if a concrete `probs` lies outside [0, 1].

    >>> float(Bernoulli(logits=-1e4).log_prob(1))
    -10000.0
    """

    probs: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_odds(self)

    @property
    def parameters(self) -> tuple[jax.Array, ...]:
        return odds(self.probs, self.logits)

    @property
    def support(self) -> Support:
        return Boolean()

    def enumerate_support(self) -> jax.Array:
        """All values: (2, *batch)."""
        return enumerate_integers(2, self.batch_shape)

    def _log_density(self, x: jax.Array, p: Any, q: Any, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.where(x == 1, log_p, jnp.where(x == 0, log_q, outside(x)))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, p: Any, q: Any, *logs: Any) -> jax.Array:
        # The smaller of the two probabilities is compared with, so that a rare outcome keeps all its digits.
        u = core.random.uniform(key, shape, dtype)
        return jnp.where(p <= q, u < p, u >= q).astype(int)

    def _mean(self, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return p

    def _variance(self, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return p * q

    def _entropy(self, p: jax.Array, q: jax.Array, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return -(_product(p, log_p) + _product(q, log_q))

    def _cdf(self, x: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return jnp.where(x < 0, 0.0, jnp.where(x < 1, q, 1.0))

    def _survival(self, x: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return jnp.where(x < 0, 1.0, jnp.where(x < 1, p, 0.0))

    def _quantile(self, u: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return jnp.where((u >= 0) & (u <= 1), jnp.where(u > q, 1.0, 0.0), jnp.nan)


@core.pytree
class Categorical(Distribution):
    """One of the integers 0 to k - 1: `P(X = i) = probs[i]`.

    Args:
      probs: (*batch, k), non-negative, sums to one. Give this or `logits`.
      logits: (*batch, k), log probabilities up to a constant; -inf for an outcome that cannot occur.

    Raises:
      ValueError: unless exactly one of the two is given, or if concrete `probs` are no probabilities.

    >>> Categorical([0.2, 0.8]).sample(jax.random.key(0), 3).shape
    (3,)
    """

    probs: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_weights(self)

    @property
    def num_categories(self) -> int:
        """Number of outcomes k."""
        return weights_shape(self.probs, self.logits)[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return weights_shape(self.probs, self.logits)[:-1]

    @property
    def support(self) -> Support:
        return IntegerInterval(0, self.num_categories - 1)

    def entropy(self) -> jax.Array:
        log_p = log_weights(self.probs, self.logits)
        return -jnp.sum(_product(jnp.exp(log_p), log_p), axis=-1)

    def enumerate_support(self) -> jax.Array:
        """All values: (k, *batch)."""
        return enumerate_integers(self.num_categories, self.batch_shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        # "high": plain Gumbel noise in float32 never exceeds 16, which drops outcomes rarer than 1e-7.
        return core.random.categorical(
            key, log_weights(self.probs, self.logits), shape=shape + self.batch_shape, mode="high"
        ).astype(int)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        log_p = log_weights(self.probs, self.logits)
        (x,) = align(value) if value.dtype == bool else (value,)
        valid = (x >= 0) & (x < self.num_categories) & (x == jnp.floor(x))
        index = jnp.where(valid, x, 0).astype(int)
        rank = max(index.ndim + 1, log_p.ndim)
        index = jnp.expand_dims(index, (*range(rank - 1 - index.ndim), -1))
        log_p = jnp.expand_dims(log_p, tuple(range(rank - log_p.ndim)))
        picked = jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
        valid, otherwise = (jnp.broadcast_to(a, picked.shape) for a in (valid, outside(x.astype(picked.dtype))))
        return jnp.where(valid, picked, otherwise)


def _product(p: jax.Array, log_p: jax.Array) -> jax.Array:
    """p log p, and 0 at p = 0."""
    positive = p > 0
    return jnp.where(positive, p * jnp.where(positive, log_p, 0.0), 0.0)


def enumerate_integers(count: int, batch: tuple[int, ...]) -> jax.Array:
    """The integers 0 to count - 1 along a leading axis, for every entry of a batch: (count, *batch)."""
    values = jnp.arange(count).reshape((count,) + (1,) * len(batch))
    return broadcast_to(values, (count, *batch))


def set_weights(distribution: Any, field: str = "probs") -> None:
    """Converts and checks `logits` or the probabilities `field`, (*batch, k), of a distribution under construction."""
    name = type(distribution).__name__
    one_of(name, **{field: getattr(distribution, field), "logits": distribution.logits})
    given = "logits" if getattr(distribution, field) is None else field
    set_parameters(distribution, **{given: _LOGIT if given == "logits" else PROBABILITY})
    value = getattr(distribution, given)
    if value.ndim == 0 or value.shape[-1] == 0:
        raise core.bad_value(name, given, f"of shape {value.shape}", "a shape (*batch, k) with k >= 1")
    if not is_concrete(value):
        return
    numbers = np.asarray(value, dtype=np.float64)
    if given == "logits":
        if np.isneginf(numbers).all(axis=-1).any():
            raise core.bad_value(name, given, "-inf for every outcome", "at least one finite number per distribution")
        return
    totals = numbers.sum(axis=-1)
    # Data written with three decimals pass; what was never normalised does not.
    if (wrong := np.abs(totals - 1) > 1e-3 + 8 * float(jnp.finfo(value.dtype).eps)).any():
        raise core.bad_value(
            name,
            given,
            f"summing to {totals[wrong].ravel()[0]:.6g}",
            "probabilities that sum to 1",
            "Use logits=jnp.log(weights) for weights that are not normalised",
        )


def weights_shape(probs: Any, logits: Any) -> tuple[int, ...]:
    """The shape (*batch, k) of whichever is there."""
    return jnp.shape(logits if probs is None else probs)


def log_weights(probs: Any, logits: Any) -> jax.Array:
    """Normalised log probabilities (*batch, k), with finite gradients where they are -inf."""
    return jax.nn.log_softmax(logits, axis=-1) if probs is None else core.safe_log(probs)


def probabilities(probs: Any, logits: Any) -> jax.Array:
    """Probabilities (*batch, k)."""
    return jax.nn.softmax(logits, axis=-1) if probs is None else probs
