"""Distributions of counts without an upper limit: Poisson and negative binomial.

Neither is in distrax. Log masses are sums of deviances (see `_log_mass`), accurate in float32 for counts of millions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import _count_samplers as samplers
from jaxprob.distributions._incomplete import beta_cdf, gamma_cdf
from jaxprob.distributions._log_mass import deviance, outside, stirling
from jaxprob.distributions._odds import one_of
from jaxprob.distributions._parameters import (
    NON_NEGATIVE,
    POSITIVE,
    Rule,
    broadcast_to,
    check_shapes,
    check_values,
    convert,
    set_parameters,
)
from jaxprob.distributions._supports import NonNegativeInteger, Support
from jaxprob.distributions._univariate import Univariate

_LOG = Rule("numbers below infinity", lambda x: x < np.inf)


@core.pytree
class Poisson(Univariate):
    """Counts with `P(X = k) = exp(-rate) rate^k / k!`.

    Args:
      rate: (*batch), non-negative. Give this or `log_rate`.
      log_rate: (*batch), the logarithm of the rate, as in a log-linear regression.

    Raises:
      ValueError: unless exactly one of the two is given, or if a concrete `rate` is negative.

    >>> float(Poisson(0.0).log_prob(0))
    0.0
    """

    rate: Any = None
    log_rate: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        one_of("Poisson", rate=self.rate, log_rate=self.log_rate)
        set_parameters(self, **({"log_rate": _LOG} if self.rate is None else {"rate": NON_NEGATIVE}))

    @property
    def parameters(self) -> tuple[jax.Array, ...]:
        return (self.rate, core.safe_log(self.rate)) if self.log_rate is None else _exponential(self.log_rate)

    @property
    def support(self) -> Support:
        return NonNegativeInteger()

    def _log_density(self, x: jax.Array, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        k, valid = whole(x)
        log_mass = -stirling(k) - deviance(k, rate, log_rate, rate - k)
        return jnp.where(valid, log_mass, outside(x))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, rate: Any, log_rate: Any) -> jax.Array:
        return samplers.poisson(key, rate, shape)

    def _mean(self, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        return rate

    def _variance(self, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        return rate

    def _cdf(self, x: jax.Array, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        x, rate = jnp.broadcast_arrays(jnp.floor(x), rate)
        return jnp.where(x >= 0, gamma_cdf(jnp.maximum(x, 0) + 1, rate, upper=True), 0.0)

    def _survival(self, x: jax.Array, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        x, rate = jnp.broadcast_arrays(jnp.floor(x), rate)
        return jnp.where(x >= 0, gamma_cdf(jnp.maximum(x, 0) + 1, rate), 1.0)

    def _quantile(self, u: jax.Array, rate: jax.Array, log_rate: jax.Array) -> jax.Array:
        return integer_quantile(lambda k: self._cdf(k, rate, log_rate), u, rate.shape)


@core.pytree
class NegativeBinomial(Univariate):
    """Counts with mean `mean` and variance `mean + mean^2 / concentration`, as used in regression.

    `P(X = k) = C(k + r - 1, k) p^r (1 - p)^k` with `r = concentration` and `p = r / (r + mean)`: a Poisson count whose
    rate is gamma distributed with shape `r`. It tends to Poisson(mean) as r grows. From the number of successes r and
    their probability p, as SciPy has it: `NegativeBinomial(r * (1 - p) / p, r)`.

    Args:
      mean: (*batch), non-negative. Give this or `log_mean`.
      concentration: (*batch), positive.
      log_mean: (*batch), the logarithm of the mean, as in a log-linear regression.

    Raises:
      ValueError: unless exactly one of `mean` and `log_mean` is given, or if a concrete value is out of range.

    >>> float(NegativeBinomial(3.0, concentration=2.0).variance())
    7.5
    """

    # `mean` is a method of every distribution; the parameter is kept under another name.
    expectation: Any
    concentration: Any
    log_mean: Any

    def __init__(self, mean: Any = None, concentration: Any = None, *, log_mean: Any = None) -> None:
        name = "NegativeBinomial"
        one_of(name, mean=mean, log_mean=log_mean)
        given, value, rule = ("mean", mean, NON_NEGATIVE) if log_mean is None else ("log_mean", log_mean, _LOG)
        center = convert(name, given, value)
        check_values(name, given, value, rule)
        object.__setattr__(self, "expectation", center if log_mean is None else None)
        object.__setattr__(self, "log_mean", center if mean is None else None)
        object.__setattr__(self, "concentration", concentration)
        set_parameters(self, concentration=POSITIVE)
        check_shapes(name, **{given: center.shape, "concentration": jnp.shape(self.concentration)})

    @property
    def parameters(self) -> tuple[jax.Array, ...]:
        if self.log_mean is None:
            return self.expectation, core.safe_log(self.expectation), self.concentration
        return *_exponential(self.log_mean), self.concentration

    @property
    def support(self) -> Support:
        return NonNegativeInteger()

    def _log_density(self, x: jax.Array, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        k, valid = whole(x)
        n, total = k + r, r + mean
        p, q = r / total, mean / total
        log_n, log_odds = jnp.log(n), log_mean - jnp.log(r)
        # How far the mean count n q lies above k, and n p below r.
        excess = r * q - k * p
        log_mass = (
            (jnp.log(r) - log_n)
            + (stirling(n) - stirling(r) - stirling(k))
            - deviance(r, n * p, log_n + jax.nn.log_sigmoid(-log_odds), -excess)
            - deviance(k, n * q, log_n + jax.nn.log_sigmoid(log_odds), excess)
        )
        return jnp.where(valid, log_mass, outside(x))

    def _draw(
        self, key: core.Key, shape: tuple[int, ...], dtype: Any, mean: jax.Array, log_mean: jax.Array, r: jax.Array
    ) -> jax.Array:
        key_rate, key_count = core.random.split(key)
        # In logarithms: a gamma variable of small shape underflows.
        log_rate = core.random.loggamma(key_rate, broadcast_to(r, shape), dtype=dtype)
        return samplers.poisson(key_count, jnp.exp(log_rate + (log_mean - jnp.log(r))), shape)

    def _mean(self, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        return mean

    def _variance(self, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        return mean + mean * mean / r

    def _cdf(self, x: jax.Array, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        x, r, p = jnp.broadcast_arrays(jnp.floor(x), r, r / (r + mean))
        return jnp.where(x >= 0, beta_cdf(r, jnp.maximum(x, 0) + 1, p), 0.0)

    def _survival(self, x: jax.Array, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        x, r, q = jnp.broadcast_arrays(jnp.floor(x), r, mean / (r + mean))
        return jnp.where(x >= 0, beta_cdf(jnp.maximum(x, 0) + 1, r, q), 1.0)

    def _quantile(self, u: jax.Array, mean: jax.Array, log_mean: jax.Array, r: jax.Array) -> jax.Array:
        shape = np.broadcast_shapes(mean.shape, r.shape)
        return integer_quantile(lambda k: self._cdf(k, mean, log_mean, r), u, shape)


def _exponential(log_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and log x from log x. Held below overflow: a log mass there is beyond -1e37 anyway, and NaN otherwise."""
    limit = float(np.log(float(jnp.finfo(log_x.dtype).max)) - 2.0)
    return jnp.exp(jnp.minimum(log_x, limit)), log_x


def whole(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts in `x`, with 0 in place of what is none (negative, fractional, infinite, NaN), and which are counts."""
    valid = (x >= 0) & (x == jnp.floor(x)) & (x < jnp.inf)
    return jnp.where(valid, x, 0.0), valid


def integer_quantile(
    cdf: Callable[[jax.Array], jax.Array], u: jax.Array, batch: tuple[int, ...], high: jax.Array | None = None
) -> jax.Array:
    """The smallest whole number k >= 0 with `cdf(k) >= u`, by bisection.

    Args:
      cdf: non-decreasing function of whole numbers.
      u: probability, any shape that broadcasts with `batch`.
      batch: shape of the batch of distributions.
      high: floating (*batch), the largest possible number, or None.

    Returns:
      floating whole numbers; the largest number, or infinity without one, at u = 1.
    """
    u = broadcast_to(u, np.broadcast_shapes(u.shape, batch))
    found = first_integer(lambda k: cdf(k) >= u, u.shape, u.dtype, jnp.zeros((), u.dtype), high)
    if high is None:
        found = jnp.where((u >= 1) | (found >= _largest(u.dtype)), jnp.inf, found)
    return jnp.where((u >= 0) & (u <= 1), found, jnp.nan)


def _largest(dtype: Any) -> float:
    return 2.0**30 if jnp.finfo(dtype).bits <= 32 else 2.0**50


def first_integer(
    reached: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    dtype: Any,
    low: jax.Array,
    high: jax.Array | None,
) -> jax.Array:
    """The first whole number from `low` to `high` (2^30, or 2^50 in float64, if None) that has been reached.

    Args:
      reached: maps whole numbers of shape `shape` to booleans that turn from False to True once as they grow.
      shape: shape of the result.
      dtype: floating dtype of the numbers.
      low: floating, broadcasts to `shape`.
      high: floating, broadcasts to `shape`; the answer where no smaller number has been reached.
    """
    top = broadcast_to(jnp.asarray(_largest(dtype), dtype) if high is None else high, shape)
    # Zero, made from what `reached` is made of, so that under `shard_map` the carry varies wherever that does.
    zero = (reached(top) & False).astype(dtype)
    bottom, top = broadcast_to(low, shape) - 1 + zero, top + zero

    def halve(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bottom, top = carry
        middle = jnp.floor((bottom + top) / 2)
        done = reached(middle)
        return jnp.where(done, bottom, middle), jnp.where(done, middle, top)

    found = core.fori_loop(0, 31 if jnp.finfo(dtype).bits <= 32 else 51, halve, (bottom, top))[1]
    return jnp.maximum(found, broadcast_to(low, shape))
