"""Distributions on the real line with a location and a scale: normal, Student t, Cauchy, Laplace, logistic.

distrax does Laplace and Logistic. The others are written out: it has no Student t and no Cauchy, and Normal (like the
half-normal, half-Cauchy and uniform) is in the inner loop of nearly every model, where the import of distrax (with
TensorFlow Probability: 2 s of processor time) would be added to the first call.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri

from jaxprob import core
from jaxprob.distributions._incomplete import student_t_cdf
from jaxprob.distributions._log_mass import digamma_remainder
from jaxprob.distributions._parameters import POSITIVE, REAL, set_parameters
from jaxprob.distributions._special import exp_within, log1p_square, log_gamma_half_step, ratio
from jaxprob.distributions._supports import Real, Support
from jaxprob.distributions._univariate import Univariate

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def load_distrax() -> ModuleType:
    """distrax, imported when it is first needed: it brings TensorFlow Probability along, which takes 2 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import distrax
    return distrax


@core.pytree
class Normal(Univariate):
    r"""Normal distribution.

    $$p(x) = \frac{1}{\sigma \sqrt{2 \pi}} \exp\Big(-\frac{(x - \mu)^2}{2 \sigma^2}\Big)$$

    Args:
      loc: (*batch), the mean mu.
      scale: (*batch), the standard deviation sigma, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete scale is not positive.

    >>> round(float(Normal(0.0, 1.0).log_prob(0.0)), 4)
    -0.9189
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Real()

    def _log_density(self, x: Array, loc: Array, scale: Array) -> Array:
        z = ratio(x - loc, scale)
        return -0.5 * z * z - jnp.log(scale) - HALF_LOG_2PI

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, scale: Array) -> Array:
        return loc + scale * core.random.normal(key, shape, dtype)

    def _mean(self, loc: Array, scale: Array) -> Array:
        return loc

    def _variance(self, loc: Array, scale: Array) -> Array:
        return scale**2

    def _entropy(self, loc: Array, scale: Array) -> Array:
        return jnp.log(scale) + 0.5 + HALF_LOG_2PI

    def _cdf(self, x: Array, loc: Array, scale: Array) -> Array:
        return ndtr(ratio(x - loc, scale))

    def _quantile(self, p: Array, loc: Array, scale: Array) -> Array:
        return loc + scale * ndtri(p)


@core.pytree
class StudentT(Univariate):
    r"""Student's t distribution.

    $$p(x) \propto \Big(1 + \frac{(x - \mu)^2}{\nu \sigma^2}\Big)^{-(\nu + 1) / 2}$$

    The mean is nan for df <= 1 (it does not exist); the variance is inf for 1 < df <= 2 and nan for df <= 1.

    Args:
      df: (*batch), the degrees of freedom nu, positive.
      loc: (*batch), the location mu.
      scale: (*batch), the scale sigma, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete df or scale is not positive.
    """

    df: Any
    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, df=POSITIVE, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Real()

    def _log_density(self, x: Array, df: Array, loc: Array, scale: Array) -> Array:
        z = ratio(x - loc, scale * jnp.sqrt(df))
        constant = log_gamma_half_step(df / 2) - HALF_LOG_2PI
        return constant - jnp.log(scale) - 0.5 * (df + 1) * log1p_square(z)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, df: Array, loc: Array, scale: Array) -> Array:
        key_normal, key_gamma = core.random.split(key)
        half = jnp.broadcast_to(df / 2, shape)
        # The chi-squared divisor as a logarithm: for small df it underflows.
        log_gamma = core.random.loggamma(key_gamma, half, shape, dtype)
        normal = core.random.normal(key_normal, shape, dtype)
        log_size = jnp.log(jnp.maximum(jnp.abs(normal), jnp.finfo(dtype).tiny)) + 0.5 * (jnp.log(half) - log_gamma)
        return loc + scale * jnp.sign(normal) * exp_within(log_size)

    def _mean(self, df: Array, loc: Array, scale: Array) -> Array:
        return jnp.where(df > 1, loc, jnp.nan)

    def _variance(self, df: Array, loc: Array, scale: Array) -> Array:
        finite = df > 2
        variance = scale**2 * df / jnp.where(finite, df - 2, 1)
        return jnp.where(finite, variance, jnp.where(df > 1, jnp.inf, jnp.nan))

    def _entropy(self, df: Array, loc: Array, scale: Array) -> Array:
        half = df / 2
        # digamma(a + 1/2) - digamma(a), without the cancellation of its logarithms.
        step = digamma_remainder(half + 0.5) - digamma_remainder(half) + jnp.log1p(1 / df)
        return jnp.log(scale) + HALF_LOG_2PI - log_gamma_half_step(half) + 0.5 * (df + 1) * step

    def _cdf(self, x: Array, df: Array, loc: Array, scale: Array) -> Array:
        return student_t_cdf(*jnp.broadcast_arrays(df, ratio(x - loc, scale)))


@core.pytree
class Cauchy(Univariate):
    r"""Cauchy distribution: $p(x) = 1 / (\pi \sigma (1 + ((x - \mu) / \sigma)^2))$. It has no mean and no variance.

    Args:
      loc: (*batch), the median mu.
      scale: (*batch), half the interquartile range sigma, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete scale is not positive.
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Real()

    def _log_density(self, x: Array, loc: Array, scale: Array) -> Array:
        return -math.log(math.pi) - jnp.log(scale) - log1p_square(ratio(x - loc, scale))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, scale: Array) -> Array:
        return loc + scale * core.random.cauchy(key, shape, dtype)

    def _mean(self, loc: Array, scale: Array) -> Array:
        return jnp.full_like(loc, jnp.nan)

    def _variance(self, loc: Array, scale: Array) -> Array:
        return jnp.full_like(scale, jnp.nan)

    def _entropy(self, loc: Array, scale: Array) -> Array:
        return jnp.log(scale) + math.log(4 * math.pi)

    def _cdf(self, x: Array, loc: Array, scale: Array) -> Array:
        # The angle from the far side: 1/2 + arctan(z) / pi would cancel in the lower tail.
        return jnp.arctan2(jnp.ones_like(x), -ratio(x - loc, scale)) / math.pi

    def _quantile(self, p: Array, loc: Array, scale: Array) -> Array:
        nearer = math.pi * jnp.where(p < 0.5, p, 1 - p)
        cotangent = jnp.cos(nearer) / jnp.sin(nearer)
        return loc + scale * jnp.where(p < 0.5, -cotangent, cotangent)


@core.pytree
class Laplace(Univariate):
    r"""Laplace (double exponential) distribution: $p(x) = \exp(-|x - \mu| / \sigma) / (2 \sigma)$.

    Args:
      loc: (*batch), the mean mu.
      scale: (*batch), the mean absolute deviation sigma, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete scale is not positive.
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Real()

    def _log_density(self, x: Array, loc: Array, scale: Array) -> Array:
        return load_distrax().Laplace(loc, scale).log_prob(x)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, scale: Array) -> Array:
        return loc + scale * core.random.laplace(key, shape, dtype)

    def _mean(self, loc: Array, scale: Array) -> Array:
        return loc

    def _variance(self, loc: Array, scale: Array) -> Array:
        return 2 * scale**2

    def _entropy(self, loc: Array, scale: Array) -> Array:
        return load_distrax().Laplace(loc, scale).entropy()

    def _cdf(self, x: Array, loc: Array, scale: Array) -> Array:
        z = ratio(x - loc, scale)
        # distrax's cdf subtracts from 1/2 and loses its digits in the lower tail.
        tail = 0.5 * jnp.exp(-jnp.abs(z))
        return jnp.where(z < 0, tail, 1 - tail)

    def _quantile(self, p: Array, loc: Array, scale: Array) -> Array:
        nearer = jnp.log(2 * jnp.where(p < 0.5, p, 1 - p))
        return loc + scale * jnp.where(p < 0.5, nearer, -nearer)


@core.pytree
class Logistic(Univariate):
    r"""Logistic distribution, whose cdf is $1 / (1 + \exp(-(x - \mu) / \sigma))$.

    Args:
      loc: (*batch), the mean mu.
      scale: (*batch), the scale sigma, positive.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete scale is not positive.
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, scale=POSITIVE)

    @property
    def support(self) -> Support:
        return Real()

    def _log_density(self, x: Array, loc: Array, scale: Array) -> Array:
        return load_distrax().Logistic(loc, scale).log_prob(x)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, scale: Array) -> Array:
        return loc + scale * core.random.logistic(key, shape, dtype)

    def _mean(self, loc: Array, scale: Array) -> Array:
        return loc

    def _variance(self, loc: Array, scale: Array) -> Array:
        return (math.pi**2 / 3) * scale**2

    def _entropy(self, loc: Array, scale: Array) -> Array:
        return jnp.log(scale) + 2

    def _cdf(self, x: Array, loc: Array, scale: Array) -> Array:
        return load_distrax().Logistic(loc, scale).cdf(x)

    def _quantile(self, p: Array, loc: Array, scale: Array) -> Array:
        return loc + scale * (jnp.log(p) - jnp.log1p(-p))
