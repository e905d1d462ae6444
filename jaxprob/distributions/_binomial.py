"""Counts out of a known number of trials: Binomial, BetaBinomial, Multinomial.

They are computed here and not by distrax, which has no binomial, and whose multinomial fails under strict promotion and
loses its digits to log-gamma differences. Log masses are sums of deviances (see `_log_mass`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import _count_samplers as samplers
from jaxprob.distributions._counts import integer_quantile, whole
from jaxprob.distributions._discrete import enumerate_integers, log_weights, probabilities, set_weights, weights_shape
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._incomplete import beta_cdf
from jaxprob.distributions._log_mass import deviance, outside, stirling
from jaxprob.distributions._odds import odds, set_odds
from jaxprob.distributions._parameters import (
    NON_NEGATIVE,
    POSITIVE,
    align,
    broadcast_to,
    check_shapes,
    is_concrete,
    set_integers,
    set_parameters,
)
from jaxprob.distributions._supports import CountVector, IntegerInterval, Support
from jaxprob.distributions._univariate import Univariate


def _set_total(distribution: Any) -> None:
    """Converts and checks `total_count`, which stays a NumPy array where it can.

    Inside `jit` a JAX array made from a Python number is no longer concrete, and its values could not be enumerated.
    """
    raw = distribution.total_count
    set_integers(distribution, "total_count", NON_NEGATIVE)
    if not isinstance(raw, jax.Array):
        dtype = distribution.total_count.dtype
        object.__setattr__(distribution, "total_count", np.asarray(raw).astype(dtype))


def _enumerate_counts(distribution: Any) -> jax.Array:
    name, total = type(distribution).__name__, distribution.total_count
    if not is_concrete(total) or np.min(total) != np.max(total):
        raise core.bad_value(
            f"{name}.enumerate_support",
            "total_count",
            total if not is_concrete(total) else "different for different entries of the batch",
            "one concrete number",
            "Give total_count as a Python integer",
        )
    return enumerate_integers(int(np.max(total)) + 1, distribution.batch_shape)


def _within(x: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts from 0 to n in `x`, with 0 in place of what is none, and which are counts."""
    k, valid = whole(x)
    valid = valid & (k <= n)
    return jnp.where(valid, k, 0.0), valid


@core.pytree
class Binomial(Univariate):
    """Successes in independent trials: `P(X = k) = C(n, k) p^k (1 - p)^(n - k)`.

    Args:
      total_count: (*batch), number of trials n, whole and non-negative.
      probs: (*batch), probability p of success. Give this or `logits`.
      logits: (*batch), `log(p / (1 - p))`.

    Raises:
      ValueError: unless exactly one of `probs` and `logits` is given, if a concrete value is out of range, or if shapes
        do not broadcast.

    >>> float(Binomial(4, 0.5).mean())
    2.0
    """

    total_count: Any
    probs: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _set_total(self)
        set_odds(self)
        given = "logits" if self.probs is None else "probs"
        check_shapes("Binomial", total_count=self.total_count.shape, **{given: getattr(self, given).shape})

    @property
    def parameters(self) -> tuple[jax.Array, ...]:
        return self.total_count, *odds(self.probs, self.logits)

    @property
    def support(self) -> Support:
        return IntegerInterval(0, self.total_count)

    def enumerate_support(self) -> jax.Array:
        """All values: (n + 1, *batch); `total_count` must be one concrete number."""
        return _enumerate_counts(self)

    def _log_density(self, x: Any, n: Any, p: Any, q: Any, log_p: Any, log_q: Any) -> jax.Array:
        k, valid = _within(x, n)
        rest, log_n = n - k, core.safe_log(n)
        # n p - k, from the smaller of the two probabilities, whose digits are all there.
        excess = jnp.where(p <= q, n * p - k, rest - n * q)
        log_mass = (
            (stirling(n) - stirling(k) - stirling(rest))
            - deviance(k, n * p, log_n + log_p, excess)
            - deviance(rest, n * q, log_n + log_q, -excess)
        )
        return jnp.where(valid, log_mass, outside(x))

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        chances = odds(self.probs, self.logits)
        return samplers.binomial(key, self.total_count, chances.p, chances.q, shape + self.batch_shape)

    def _mean(self, n: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return n * p

    def _variance(self, n: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        return n * p * q

    def _cdf(self, x: jax.Array, n: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        x, n, q = jnp.broadcast_arrays(jnp.floor(x), n, q)
        inner = (x >= 0) & (x < n)
        k, rest = jnp.where(inner, x, 0), jnp.where(inner, n - x, 1)
        return jnp.where(inner, beta_cdf(rest, k + 1, q), jnp.where(x < 0, 0.0, 1.0))

    def _survival(self, x: jax.Array, n: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        x, n, p = jnp.broadcast_arrays(jnp.floor(x), n, p)
        inner = (x >= 0) & (x < n)
        k, rest = jnp.where(inner, x, 0), jnp.where(inner, n - x, 1)
        return jnp.where(inner, beta_cdf(k + 1, rest, p), jnp.where(x < 0, 1.0, 0.0))

    def _quantile(self, u: jax.Array, n: jax.Array, p: jax.Array, q: jax.Array, *logs: jax.Array) -> jax.Array:
        shape = np.broadcast_shapes(n.shape, p.shape)
        return integer_quantile(lambda k: self._cdf(k, n, p, q), u, shape, n)


@core.pytree
class BetaBinomial(Univariate):
    """A binomial count whose probability of success has a beta distribution.

    `P(X = k) = C(n, k) B(k + a, n - k + b) / B(a, b)`.

    Args:
      total_count: (*batch), number of trials n, whole and non-negative.
      concentration1: (*batch), a, positive: the prior count of successes, as in `Beta`.
      concentration0: (*batch), b, positive: the prior count of failures.

    Raises:
      ValueError: if a concrete value is out of range or shapes do not broadcast.

    >>> float(BetaBinomial(4, 1.0, 1.0).mean())
    2.0
    """

    total_count: Any
    concentration1: Any
    concentration0: Any

    def __post_init__(self) -> None:
        _set_total(self)
        set_parameters(self, concentration1=POSITIVE, concentration0=POSITIVE)
        shapes = {field: getattr(self, field).shape for field in ("total_count", "concentration1", "concentration0")}
        check_shapes("BetaBinomial", **shapes)

    @property
    def support(self) -> Support:
        return IntegerInterval(0, self.total_count)

    def enumerate_support(self) -> jax.Array:
        """All values: (n + 1, *batch); `total_count` must be one concrete number."""
        return _enumerate_counts(self)

    def _log_density(self, x: jax.Array, n: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        k, valid = _within(x, n)
        rest, c = n - k, a + b
        ones, zeros, total = k + a, rest + b, n + c
        log_total = jnp.log(total)
        log_one, log_zero = jnp.log(ones) - log_total, jnp.log(zeros) - log_total
        one, zero = ones / total, zeros / total
        log_n, log_c = core.safe_log(n), jnp.log(c)
        # How far the pooled counts n (k + a) / (n + c) lie above k, and c (k + a) / (n + c) below a.
        excess = a * (rest / total) - b * (k / total)
        # Trials and prior counts against what they have in common: four deviances, all positive.
        apart = (
            deviance(k, n * one, log_n + log_one, excess)
            + deviance(rest, n * zero, log_n + log_zero, -excess)
            + deviance(a, c * one, log_c + log_one, -excess)
            + deviance(b, c * zero, log_c + log_zero, excess)
        )
        choices = stirling(n) - stirling(k) - stirling(rest)
        pooled = stirling(ones) + stirling(zeros) - stirling(total)
        prior = stirling(a) + stirling(b) - stirling(c)
        scale = jnp.log(a) - jnp.log(c) - log_one + jnp.log(b) - jnp.log(zeros)
        return jnp.where(valid, choices + pooled - prior + scale - apart, outside(x))

    def _draw(
        self, key: core.Key, shape: tuple[int, ...], dtype: Any, n: jax.Array, a: jax.Array, b: jax.Array
    ) -> jax.Array:
        key_a, key_b, key_count = core.random.split(key, 3)
        # The logit of a beta variable, from two gammas in logarithms: both of its ends keep their digits.
        log_a = core.random.loggamma(key_a, broadcast_to(a, shape), dtype=dtype)
        log_b = core.random.loggamma(key_b, broadcast_to(b, shape), dtype=dtype)
        chances = odds(None, log_a - log_b)
        return samplers.binomial(key_count, self.total_count, chances.p, chances.q, shape)

    def _mean(self, n: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return n * (a / (a + b))

    def _variance(self, n: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        c = a + b
        return n * (a / c) * (b / c) * ((c + n) / (c + 1))


@core.pytree
class Multinomial(Distribution):
    """Counts of k outcomes in independent trials.

    `P(X = x) = n! / prod_i x_i! prod_i p_i^x_i` for counts x that sum to n.

    Args:
      total_count: (*batch), number of trials n, whole and non-negative.
      probs: (*batch, k), non-negative, sums to one. Give this or `logits`.
      logits: (*batch, k), log probabilities up to a constant.

    Raises:
      ValueError: unless exactly one of `probs` and `logits` is given, if a concrete value is out of range, or if shapes
        do not broadcast.

    >>> Multinomial(4, [0.5, 0.25, 0.25]).mean().tolist()
    [2.0, 1.0, 1.0]
    """

    total_count: Any
    probs: Any = None
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _set_total(self)
        set_weights(self)
        batch = weights_shape(self.probs, self.logits)[:-1]
        check_shapes("Multinomial", **{"the batch of probabilities": batch, "total_count": self.total_count.shape})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(jnp.shape(self.total_count), weights_shape(self.probs, self.logits)[:-1])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return weights_shape(self.probs, self.logits)[-1:]

    @property
    def support(self) -> Support:
        return CountVector(self.total_count)

    def mean(self) -> jax.Array:
        n, p = self._aligned(probabilities(self.probs, self.logits))
        return n * p

    def variance(self) -> jax.Array:
        n, p = self._aligned(probabilities(self.probs, self.logits))
        return n * p * (1 - p)

    def _aligned(self, *values: jax.Array) -> list[jax.Array]:
        return align(jnp.expand_dims(self.total_count, -1), *values)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        probs = probabilities(self.probs, self.logits)
        return samplers.multinomial(key, self.total_count, probs, shape + self.batch_shape)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        given = self.probs, self.logits
        n, x, p, log_p = self._aligned(value, probabilities(*given), log_weights(*given))
        k, valid = whole(x)
        # The deviances add up to that of normalised probabilities, whatever rounding has done to their sum.
        parts = stirling(k) + deviance(k, n * p, core.safe_log(n) + log_p, n * p - k)
        log_mass = stirling(n)[..., 0] - jnp.sum(parts, axis=-1)
        valid = jnp.all(valid, axis=-1) & (jnp.sum(k, axis=-1) == n[..., 0])
        return jnp.where(valid, log_mass, outside(jnp.sum(x, axis=-1)))
