"""Distributions on the positive numbers: half-normal, half-Cauchy, log-normal, exponential, gamma and relatives.

Written out rather than taken from distrax, which has only the gamma: its density is NaN at negative numbers and off by
6e-3 in float32 at a concentration of 1e4, where log-gammas of 8e4 cancel. Here the log-gamma is split as in
`_log_mass`, and what remains is of the size of the result.

Pieces of more than a dozen operations are compiled functions of their own (here and in the files beside this one): a
program that uses one often traces it once, and an eager call runs one program instead of fifty.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf, erfinv, gammaln, ndtr, ndtri

from jaxprob import core
from jaxprob.distributions._incomplete import gamma_cdf
from jaxprob.distributions._location_scale import HALF_LOG_2PI
from jaxprob.distributions._log_mass import deviance, digamma_remainder, stirling
from jaxprob.distributions._parameters import POSITIVE, REAL, set_parameters
from jaxprob.distributions._special import exp_within, log1p_square, ratio, weibull_relative_variance
from jaxprob.distributions._supports import NonNegative, Positive, Support
from jaxprob.distributions._univariate import Univariate


@core.pytree
class HalfNormal(Univariate):
    r"""The absolute value of a normal variable of mean 0: $p(x) = 2\, \mathrm{Normal}(x; 0, \sigma)$ for x >= 0.

    Args:
      scale: (*batch), the standard deviation sigma of the normal variable, positive.

    Raises:
      ValueError: if a concrete scale is not positive.
    """

    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return NonNegative()

    def _log_density(self, x: Array, scale: Array) -> Array:
        z = ratio(x, scale)
        return jnp.where(x < 0, -jnp.inf, -0.5 * z * z - jnp.log(scale) + (math.log(2) - HALF_LOG_2PI))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, scale: Array) -> Array:
        return scale * jnp.abs(core.random.normal(key, shape, dtype))

    def _mean(self, scale: Array) -> Array:
        return math.sqrt(2 / math.pi) * scale

    def _variance(self, scale: Array) -> Array:
        return (1 - 2 / math.pi) * scale**2

    def _entropy(self, scale: Array) -> Array:
        return jnp.log(scale) + 0.5 + HALF_LOG_2PI - math.log(2)

    def _cdf(self, x: Array, scale: Array) -> Array:
        return erf(jnp.maximum(ratio(x, scale), 0) / math.sqrt(2))

    def _quantile(self, p: Array, scale: Array) -> Array:
        return math.sqrt(2) * scale * erfinv(p)


@core.pytree
class HalfCauchy(Univariate):
    r"""The absolute value of a Cauchy variable of median 0: $p(x) = 2 / (\pi \sigma (1 + (x / \sigma)^2))$ for x >= 0.

    Its mean and variance are infinite.

    Args:
      scale: (*batch), the median sigma, positive.

    Raises:
      ValueError: if a concrete scale is not positive.
    """

    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return NonNegative()

    def _log_density(self, x: Array, scale: Array) -> Array:
        log_density = math.log(2 / math.pi) - jnp.log(scale) - log1p_square(ratio(x, scale))
        return jnp.where(x < 0, -jnp.inf, log_density)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, scale: Array) -> Array:
        return scale * jnp.abs(core.random.cauchy(key, shape, dtype))

    def _mean(self, scale: Array) -> Array:
        return jnp.full_like(scale, jnp.inf)

    def _variance(self, scale: Array) -> Array:
        return jnp.full_like(scale, jnp.inf)

    def _entropy(self, scale: Array) -> Array:
        return jnp.log(scale) + math.log(2 * math.pi)

    def _cdf(self, x: Array, scale: Array) -> Array:
        return (2 / math.pi) * jnp.arctan(jnp.maximum(ratio(x, scale), 0))

    def _quantile(self, p: Array, scale: Array) -> Array:
        lower = jnp.tan((math.pi / 2) * jnp.minimum(p, 0.5))
        upper = 1 / jnp.tan((math.pi / 2) * (1 - jnp.maximum(p, 0.5)))
        return scale * jnp.where(p < 0.5, lower, upper)


@core.pytree
class LogNormal(Univariate):
    """The exponential of a normal variable.

    Args:
      loc: (*batch), the mean of log x.
      scale: (*batch), the standard deviation of log x, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete scale is not positive.
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Positive()

    def _log_density(self, x: Array, loc: Array, scale: Array) -> Array:
        outside = x <= 0
        log_x = jnp.log(jnp.where(outside, 1, x))
        z = ratio(log_x - loc, scale)
        return jnp.where(outside, -jnp.inf, -0.5 * z * z - jnp.log(scale) - HALF_LOG_2PI - log_x)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, scale: Array) -> Array:
        return exp_within(loc + scale * core.random.normal(key, shape, dtype))

    def _mean(self, loc: Array, scale: Array) -> Array:
        return jnp.exp(loc + 0.5 * scale**2)

    def _variance(self, loc: Array, scale: Array) -> Array:
        return jnp.expm1(scale**2) * jnp.exp(2 * loc + scale**2)

    def _entropy(self, loc: Array, scale: Array) -> Array:
        return loc + jnp.log(scale) + 0.5 + HALF_LOG_2PI

    def _cdf(self, x: Array, loc: Array, scale: Array) -> Array:
        outside = x <= 0
        return jnp.where(outside, 0, ndtr(ratio(jnp.log(jnp.where(outside, 1, x)) - loc, scale)))

    def _quantile(self, p: Array, loc: Array, scale: Array) -> Array:
        return jnp.exp(loc + scale * ndtri(p))


@core.pytree
class Exponential(Univariate):
    r"""Exponential distribution: $p(x) = \lambda \exp(-\lambda x)$ for x >= 0.

    Args:
      rate: (*batch), lambda, one over the mean, positive.

    Raises:
      ValueError: if a concrete rate is not positive.
    """

    rate: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, rate=POSITIVE)

    @property
    def support(self) -> Support:
        return NonNegative()

    def _log_density(self, x: Array, rate: Array) -> Array:
        return jnp.where(x < 0, -jnp.inf, jnp.log(rate) - rate * x)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, rate: Array) -> Array:
        return ratio(core.random.exponential(key, shape, dtype), rate)

    def _mean(self, rate: Array) -> Array:
        return 1 / rate

    def _variance(self, rate: Array) -> Array:
        return (1 / rate) ** 2

    def _entropy(self, rate: Array) -> Array:
        return 1 - jnp.log(rate)

    def _cdf(self, x: Array, rate: Array) -> Array:
        return -jnp.expm1(-rate * jnp.maximum(x, 0))

    def _quantile(self, p: Array, rate: Array) -> Array:
        return -jnp.log1p(-p) / rate


@jax.jit
def _log_gamma_density(a: Array, m: Array, log_m: Array, log_x: Array) -> Array:
    """`a log m - m - lgamma(a) - log x`: the density of x where m is proportional to x, or to 1 / x."""
    return jnp.log(a) - log_x - stirling(a) - deviance(a, m, log_m, m - a)


@core.pytree
class Gamma(Univariate):
    r"""Gamma distribution.

    $$p(x) = \frac{\beta^\alpha}{\Gamma(\alpha)} x^{\alpha - 1} \exp(-\beta x)$$

    Args:
      concentration: (*batch), the shape alpha, positive.
      rate: (*batch), beta, positive; the mean is alpha / beta.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete parameter is not positive.

    >>> float(Gamma(3.0, 2.0).mean())
    1.5
    """

    concentration: Any
    rate: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, concentration=POSITIVE, rate=POSITIVE)

    @property
    def support(self) -> Support:
        return Positive()

    def _log_density(self, x: Array, concentration: Array, rate: Array) -> Array:
        outside = x <= 0
        x, a, b = jnp.broadcast_arrays(jnp.where(outside, 1, x), concentration, rate)
        log_x = jnp.log(x)
        return jnp.where(outside, -jnp.inf, _log_gamma_density(a, b * x, jnp.log(b) + log_x, log_x))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, concentration: Array, rate: Array) -> Array:
        concentration = jnp.broadcast_to(concentration, shape)
        return exp_within(core.random.loggamma(key, concentration, shape, dtype) - jnp.log(rate))

    def _mean(self, concentration: Array, rate: Array) -> Array:
        return concentration / rate

    def _variance(self, concentration: Array, rate: Array) -> Array:
        return concentration / rate / rate

    def _entropy(self, concentration: Array, rate: Array) -> Array:
        return stirling(concentration) + (1 - concentration) * digamma_remainder(concentration) - jnp.log(rate)

    def _cdf(self, x: Array, concentration: Array, rate: Array) -> Array:
        x, a, b = jnp.broadcast_arrays(jnp.maximum(x, 0), concentration, rate)
        return gamma_cdf(a, b * x)


@core.pytree
class InverseGamma(Univariate):
    r"""Inverse gamma distribution: one over a gamma variable.

    $$p(x) = \frac{\beta^\alpha}{\Gamma(\alpha)} x^{-\alpha - 1} \exp(-\beta / x)$$

    The mean is inf for alpha <= 1 and the variance for alpha <= 2.

    Args:
      concentration: (*batch), the shape alpha, positive.
      scale: (*batch), beta, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete parameter is not positive.
    """

    concentration: Any
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, concentration=POSITIVE, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Positive()

    def _log_density(self, x: Array, concentration: Array, scale: Array) -> Array:
        outside = x <= 0
        x, a, b = jnp.broadcast_arrays(jnp.where(outside, 1, x), concentration, scale)
        log_x = jnp.log(x)
        return jnp.where(outside, -jnp.inf, _log_gamma_density(a, ratio(b, x), jnp.log(b) - log_x, log_x))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, concentration: Array, scale: Array) -> Array:
        concentration = jnp.broadcast_to(concentration, shape)
        return exp_within(jnp.log(scale) - core.random.loggamma(key, concentration, shape, dtype))

    def _mean(self, concentration: Array, scale: Array) -> Array:
        finite = concentration > 1
        return jnp.where(finite, scale / jnp.where(finite, concentration - 1, 1), jnp.inf)

    def _variance(self, concentration: Array, scale: Array) -> Array:
        finite = concentration > 2
        a = jnp.where(finite, concentration, 3)
        return jnp.where(finite, (scale / (a - 1)) ** 2 / (a - 2), jnp.inf)

    def _entropy(self, concentration: Array, scale: Array) -> Array:
        a = concentration
        return jnp.log(scale) - 2 * jnp.log(a) + stirling(a) - (1 + a) * digamma_remainder(a)

    def _cdf(self, x: Array, concentration: Array, scale: Array) -> Array:
        outside = x <= 0
        x, a, b = jnp.broadcast_arrays(jnp.where(outside, 1, x), concentration, scale)
        return jnp.where(outside, 0, gamma_cdf(a, ratio(b, x), True))


_EULER = 0.5772156649015329


@core.pytree
class Weibull(Univariate):
    r"""Weibull distribution: $P(X > x) = \exp(-(x / \lambda)^k)$ for x > 0.

    Args:
      concentration: (*batch), the shape k, positive.
      scale: (*batch), lambda, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete parameter is not positive.
    """

    concentration: Any
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, concentration=POSITIVE, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Positive()

    def _log_density(self, x: Array, concentration: Array, scale: Array) -> Array:
        outside = x <= 0
        log_z = jnp.log(jnp.where(outside, 1, x)) - jnp.log(scale)
        power = concentration * log_z
        log_density = jnp.log(concentration) - jnp.log(scale) + power - log_z - jnp.exp(power)
        return jnp.where(outside, -jnp.inf, log_density)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, concentration: Array, scale: Array) -> Array:
        exponential = jnp.maximum(core.random.exponential(key, shape, dtype), jnp.finfo(dtype).tiny)
        return exp_within(jnp.log(scale) + jnp.log(exponential) / concentration)

    def _mean(self, concentration: Array, scale: Array) -> Array:
        return scale * jnp.exp(gammaln(1 + 1 / concentration))

    def _variance(self, concentration: Array, scale: Array) -> Array:
        return self._mean(concentration, scale) ** 2 * weibull_relative_variance(concentration)

    def _entropy(self, concentration: Array, scale: Array) -> Array:
        return _EULER * (1 - 1 / concentration) + jnp.log(scale / concentration) + 1

    def _cdf(self, x: Array, concentration: Array, scale: Array) -> Array:
        return -jnp.expm1(-((jnp.maximum(x, 0) / scale) ** concentration))

    def _quantile(self, p: Array, concentration: Array, scale: Array) -> Array:
        return scale * (-jnp.log1p(-p)) ** (1 / concentration)
