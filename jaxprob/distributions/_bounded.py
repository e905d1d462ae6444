"""Distributions on intervals: uniform and beta.

distrax's beta is NaN outside the interval and off by 2e-3 in float32 at concentrations of 1e4; here log-gammas are
split as in `_log_mass`. Its uniform would cost more to import than to write.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxprob import core
from jaxprob.distributions._bijectors import inside_unit
from jaxprob.distributions._incomplete import beta_cdf
from jaxprob.distributions._log_mass import deviance, digamma_remainder, stirling
from jaxprob.distributions._parameters import POSITIVE, REAL, check_order, set_parameters
from jaxprob.distributions._supports import Interval, Support, UnitInterval
from jaxprob.distributions._univariate import Univariate


@core.pytree
class Uniform(Univariate):
    """Uniform distribution on [low, high].

    Args:
      low: (*batch).
      high: (*batch), above `low`.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete `high` is not above `low`.
    """

    low: Any = 0.0
    high: Any = 1.0

    def __post_init__(self) -> None:
        check_order("Uniform", self.low, self.high)
        set_parameters(self, low=REAL, high=REAL)

    @property
    def support(self) -> Support:
        return Interval(self.low, self.high)

    def _log_density(self, x: Array, low: Array, high: Array) -> Array:
        # 0 x passes NaN on.
        return jnp.where((x < low) | (x > high), -jnp.inf, 0 * x - jnp.log(high - low))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, low: Array, high: Array) -> Array:
        return jnp.minimum(low + (high - low) * core.random.uniform(key, shape, dtype), high)

    def _mean(self, low: Array, high: Array) -> Array:
        return low + (high - low) / 2

    def _variance(self, low: Array, high: Array) -> Array:
        return (high - low) ** 2 / 12

    def _entropy(self, low: Array, high: Array) -> Array:
        return jnp.log(high - low)

    def _cdf(self, x: Array, low: Array, high: Array) -> Array:
        return jnp.clip((x - low) / (high - low), 0, 1)

    def _quantile(self, p: Array, low: Array, high: Array) -> Array:
        return low + (high - low) * p


@core.pytree
class Beta(Univariate):
    r"""Beta distribution.

    $$p(x) = \frac{\Gamma(\alpha + \beta)}{\Gamma(\alpha) \Gamma(\beta)} x^{\alpha - 1} (1 - x)^{\beta - 1}$$

    Args:
      concentration1: (*batch), alpha, positive: the pseudo-count of ones.
      concentration0: (*batch), beta, positive: the pseudo-count of zeros.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete parameter is not positive.

    >>> round(float(Beta(1.0, 3.0).mean()), 4)
    0.25
    """

    concentration1: Any
    concentration0: Any

    def __post_init__(self) -> None:
        set_parameters(self, concentration1=POSITIVE, concentration0=POSITIVE)

    @property
    def support(self) -> Support:
        return UnitInterval()

    def _log_density(self, x: Array, concentration1: Array, concentration0: Array) -> Array:
        x, a, b = jnp.broadcast_arrays(x, concentration1, concentration0)
        outside = (x < 0) | (x > 1)
        log_density = self._inside(inside_unit(jnp.where(outside, 0.5, x)), a, b)
        # At an end the density has a limit: 0, infinity, or where the exponent is 0 what it is just inside.
        shape = jnp.where(x == 0, a, jnp.where(x == 1, b, 1))
        log_density = jnp.where(shape < 1, jnp.inf, jnp.where(shape > 1, -jnp.inf, log_density))
        return jnp.where(outside, -jnp.inf, log_density)

    @staticmethod
    @jax.jit
    def _inside(x: Array, a: Array, b: Array) -> Array:
        n, y = a + b, 1 - x
        log_x, log_y, log_n = jnp.log(x), jnp.log1p(-x), jnp.log(n)
        excess = b * x - a * y
        parts = stirling(n) - stirling(a) - stirling(b)
        parts = parts - deviance(a, n * x, log_n + log_x, excess) - deviance(b, n * y, log_n + log_y, -excess)
        return parts + jnp.log(a) + jnp.log(b) - log_n - log_x - log_y

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, *concentrations: Array) -> Array:
        keys = core.random.split(key)
        # Gamma variables as logarithms: for small concentrations both underflow.
        ones, zeros = (
            core.random.loggamma(keys[i], jnp.broadcast_to(c, shape), shape, dtype)
            for i, c in enumerate(concentrations)
        )
        return inside_unit(jax.nn.sigmoid(ones - zeros))

    def _mean(self, concentration1: Array, concentration0: Array) -> Array:
        return concentration1 / (concentration1 + concentration0)

    def _variance(self, concentration1: Array, concentration0: Array) -> Array:
        total = concentration1 + concentration0
        return (concentration1 / total) * (concentration0 / total) / (total + 1)

    def _entropy(self, concentration1: Array, concentration0: Array) -> Array:
        a, b, n = concentration1, concentration0, concentration1 + concentration0
        parts = stirling(a) - (a - 1) * digamma_remainder(a) + stirling(b) - (b - 1) * digamma_remainder(b)
        return parts - stirling(n) + (n - 2) * digamma_remainder(n) - jnp.log(n)

    def _cdf(self, x: Array, concentration1: Array, concentration0: Array) -> Array:
        x, a, b = jnp.broadcast_arrays(x, concentration1, concentration0)
        return beta_cdf(a, b, jnp.clip(x, 0, 1))
