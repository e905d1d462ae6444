"""Multivariate normal and Student t distributions with a dense covariance, carried as its Cholesky factor.

They are written here and not taken from distrax, whose multivariate normals leak tracers from `jit`, have wrong shapes
under `vmap` and fail under strict rank promotion. It has no multivariate Student t.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._factors import matrix_factor, same_dtype, set_location, split_infinite
from jaxprob.distributions._log_mass import digamma_remainder, log_gamma_ratio
from jaxprob.distributions._parameters import POSITIVE, align, broadcast_to, check_shapes, set_parameters
from jaxprob.distributions._special import exp_within
from jaxprob.distributions._supports import RealVector, Support

LOG_2PI = math.log(2 * math.pi)


class _Dense(Distribution):
    """What the distributions with a location and a dense factor share."""

    loc: Any
    cholesky: Any

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(jnp.shape(self.loc)[:-1], jnp.shape(self.cholesky)[:-2])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)[-1:]

    @property
    def support(self) -> Support:
        return RealVector()

    @property
    def _lower(self) -> jax.Array:
        # A learnt factor may have picked up numbers above its diagonal, which a triangular solve would not read.
        return jnp.tril(self.cholesky)

    def _distance(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The squared Mahalanobis distance of `value`, and minus half the log-determinant, of ranks that agree.

        The second is -inf for vectors that are infinite.
        """
        x, loc, factor = same_dtype(value, self.loc, self.cholesky)
        x, penalty = split_infinite(x)
        x, loc = align(x, loc)
        distance, half_log_det, penalty = align(
            core.quadratic_form(factor, x - loc), core.log_determinant(factor) / 2, penalty
        )
        return distance, penalty - half_log_det

    def _noise(self, key: core.Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """The location, and normal noise with the factor applied, of ranks that agree."""
        loc, factor = same_dtype(self.loc, self._lower)
        white = core.random.normal(key, shape + self.shape, factor.dtype)
        noise = jnp.einsum("...j,...ij->...i", white, factor, precision="highest")
        return tuple(align(loc, noise))  # type: ignore[return-value]

    def _scatter(self) -> jax.Array:
        """L L^T, of shape (*batch, n, n)."""
        lower = self._lower
        return broadcast_to(core.matmul(lower, jnp.swapaxes(lower, -1, -2)), self.shape + self.event_shape)

    def _spread(self) -> jax.Array:
        """The diagonal of L L^T, of shape (*batch, n)."""
        return broadcast_to(jnp.sum(self._lower**2, axis=-1), self.shape)


@core.pytree
class MultivariateNormal(_Dense):
    r"""Multivariate normal distribution.

    $$p(x) = |2 \pi \Sigma|^{-1/2} \exp\big(-\tfrac{1}{2} (x - \mu)^T \Sigma^{-1} (x - \mu)\big)$$

    It holds the Cholesky factor of the covariance, whichever of the three it was made from.

    Args:
      loc: (*batch, n), the mean mu; a scalar is spread over the vector.
      covariance: (*batch, n, n), symmetric positive definite. Give this, `cholesky` or `precision`.
      cholesky: (*batch, n, n), lower triangular with a positive diagonal; the covariance is L L^T.
      precision: (*batch, n, n), the inverse of the covariance.

    Raises:
      ValueError: unless exactly one matrix is given, if sizes do not fit, or if a concrete matrix is not what it should
        be.

    >>> float(MultivariateNormal(0.0, covariance=jnp.eye(2)).entropy().round(4))
    2.8379
    """

    loc: Any
    cholesky: Any

    def __init__(self, loc: Any = 0.0, covariance: Any = None, *, cholesky: Any = None, precision: Any = None) -> None:
        factor = matrix_factor("MultivariateNormal", covariance=covariance, cholesky=cholesky, precision=precision)
        object.__setattr__(self, "cholesky", factor)
        set_location(self, loc, factor.shape[-1], factor.shape[:-2])

    def mean(self) -> jax.Array:
        return broadcast_to(self.loc, self.shape)

    def variance(self) -> jax.Array:
        return self._spread()

    def covariance(self) -> jax.Array:
        """The covariance matrix, of shape (*batch, n, n)."""
        return self._scatter()

    def entropy(self) -> jax.Array:
        half_log_det = core.log_determinant(self.cholesky) / 2
        return broadcast_to(0.5 * self.event_shape[0] * (1 + LOG_2PI) + half_log_det, self.batch_shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        loc, noise = self._noise(key, shape)
        return loc + noise

    def _log_prob(self, value: jax.Array) -> jax.Array:
        distance, log_scale = self._distance(value)
        return -0.5 * distance + log_scale - 0.5 * self.event_shape[0] * LOG_2PI


@core.pytree
class MultivariateStudentT(_Dense):
    r"""Multivariate Student t distribution.

    $$p(x) \propto |\Sigma|^{-1/2} \big(1 + (x - \mu)^T \Sigma^{-1} (x - \mu) / \nu\big)^{-(\nu + n) / 2}$$

    The mean is nan for df <= 1 (it does not exist); variances are inf for 1 < df <= 2 and nan for df <= 1.

    Args:
      df: (*batch), the degrees of freedom nu, positive.
      loc: (*batch, n), the location mu; a scalar is spread over the vector.
      scale: (*batch, n, n), the scale matrix Sigma, symmetric positive definite: df / (df - 2) of it is the covariance.
        Give this, `cholesky` or `precision`.
      cholesky: (*batch, n, n), the Cholesky factor of the scale matrix.
      precision: (*batch, n, n), the inverse of the scale matrix.

    Raises:
      ValueError: unless exactly one matrix is given, if sizes do not fit, or if a concrete value is out of range.

    >>> MultivariateStudentT(4.0, jnp.zeros(2), jnp.eye(2)).variance().tolist()
    [2.0, 2.0]
    """

    df: Any
    loc: Any
    cholesky: Any

    def __init__(
        self, df: Any, loc: Any = 0.0, scale: Any = None, *, cholesky: Any = None, precision: Any = None
    ) -> None:
        name = "MultivariateStudentT"
        factor = matrix_factor(name, scale=scale, cholesky=cholesky, precision=precision)
        object.__setattr__(self, "df", df)
        object.__setattr__(self, "cholesky", factor)
        set_parameters(self, df=POSITIVE)
        set_location(self, loc, factor.shape[-1], factor.shape[:-2])
        batch = np.broadcast_shapes(self.loc.shape[:-1], factor.shape[:-2])
        check_shapes(name, **{"the batch of the other parameters": batch, "df": self.df.shape})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(jnp.shape(self.df), super().batch_shape)

    def mean(self) -> jax.Array:
        df, loc = align(jnp.expand_dims(self.df, -1), self.loc)
        return broadcast_to(jnp.where(df > 1, loc, jnp.nan), self.shape)

    def variance(self) -> jax.Array:
        df, spread = align(jnp.expand_dims(self.df, -1), self._spread())
        return self._inflate(df, spread)

    def covariance(self) -> jax.Array:
        """The covariance matrix, of shape (*batch, n, n); inf or nan for df <= 2."""
        df, scatter = align(jnp.expand_dims(self.df, (-2, -1)), self._scatter())
        return self._inflate(df, scatter)

    @staticmethod
    def _inflate(df: jax.Array, scale: jax.Array) -> jax.Array:
        finite = df > 2
        inflated = scale * (df / jnp.where(finite, df - 2, 1))
        return jnp.where(finite, inflated, jnp.where(df > 1, jnp.inf, jnp.nan))

    def entropy(self) -> jax.Array:
        n = self.event_shape[0]
        half, half_log_det = align(self.df / 2, core.log_determinant(self.cholesky) / 2)
        # digamma(a + n / 2) - digamma(a), without the cancellation of its logarithms.
        step = digamma_remainder(half + 0.5 * n) - digamma_remainder(half) + jnp.log1p(0.5 * n / half)
        return broadcast_to(half_log_det - self._constant(half) + (half + 0.5 * n) * step, self.batch_shape)

    def _constant(self, half: jax.Array) -> jax.Array:
        """Log density at the location, less the part of the determinant, from df / 2."""
        b = 0.5 * self.event_shape[0]
        return log_gamma_ratio(half, jnp.full_like(half, b)) - b * (jnp.log(half) + LOG_2PI)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        key_normal, key_gamma = core.random.split(key)
        loc, noise = self._noise(key_normal, shape)
        half = broadcast_to(self.df / 2, shape + self.batch_shape).astype(noise.dtype)
        # The chi-squared divisor as a logarithm: for small df it underflows.
        log_gamma = core.random.loggamma(key_gamma, half, dtype=noise.dtype)
        return loc + noise * exp_within(0.5 * (jnp.log(half) - log_gamma))[..., None]

    def _log_prob(self, value: jax.Array) -> jax.Array:
        half, distance, log_scale = align(self.df / 2, *self._distance(value))
        tail = (half + 0.5 * self.event_shape[0]) * jnp.log1p(distance / (2 * half))
        return self._constant(half) + log_scale - tail
