"""Normal vectors whose precision is a diagonal plus one outer product: correlations in time linear in their size.

Source: Rezende, Mohamed & Wierstra (2014), "Stochastic backpropagation and approximate inference in deep generative
models", section 4.3.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._factors import set_location, split_infinite, vector_shape
from jaxprob.distributions._multivariate import LOG_2PI
from jaxprob.distributions._parameters import POSITIVE, REAL, align, broadcast_to, check_shapes, set_parameters
from jaxprob.distributions._supports import RealVector, Support


@core.pytree
class MultivariateNormalRankOnePrecision(Distribution):
    """Multivariate normal distribution with precision `diag(diagonal) + direction direction^T`.

    Args:
      loc: (*batch, n), the mean; a scalar is spread over the vector.
      diagonal: (*batch, n), positive: precisions, not variances.
      direction: (*batch, n).

    Raises:
      ValueError: if sizes do not fit or a concrete diagonal is not positive.

    >>> MultivariateNormalRankOnePrecision(0.0, jnp.ones(2), jnp.ones(2)).covariance().round(3).tolist()
    [[0.66..., -0.33...], [-0.33..., 0.66...]]
    """

    loc: Any
    diagonal: Any
    direction: Any

    def __post_init__(self) -> None:
        name = "MultivariateNormalRankOnePrecision"
        set_parameters(self, diagonal=POSITIVE)
        set_parameters(self, direction=REAL)
        shape = vector_shape(name, "diagonal", self.diagonal)
        if vector_shape(name, "direction", self.direction)[-1] != shape[-1]:
            expected = f"shape (*batch, {shape[-1]})"
            raise core.bad_value(name, "direction", f"of shape {self.direction.shape}", expected)
        batch = check_shapes(name, diagonal=shape, direction=self.direction.shape)[:-1]
        set_location(self, self.loc, shape[-1], batch)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(jnp.shape(leaf) for leaf in (self.loc, self.diagonal, self.direction)))[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.diagonal)[-1:]

    @property
    def support(self) -> Support:
        return RealVector()

    def mean(self) -> jax.Array:
        return broadcast_to(self.loc, self.shape)

    def variance(self) -> jax.Array:
        diagonal, direction = align(self.diagonal, self.direction)
        own = direction**2 / diagonal
        # By Sherman and Morrison 1 / d (1 - own / (1 + all)), with the others added up, since a difference cancels.
        others = _shifted_sum(own) + jnp.flip(_shifted_sum(jnp.flip(own, -1)), -1)
        return broadcast_to((1 + others) / (1 + others + own) / diagonal, self.shape)

    def covariance(self) -> jax.Array:
        """The covariance matrix, of shape (*batch, n, n)."""
        diagonal, direction = align(self.diagonal, self.direction)
        along = direction / diagonal
        outer = jnp.expand_dims(along * self._share(), -1) * jnp.expand_dims(along, -2)
        variance = jnp.expand_dims(self.variance(), -1)
        eye = jnp.expand_dims(jnp.eye(self.event_shape[0], dtype=bool), tuple(range(len(self.batch_shape))))
        return jnp.where(eye, variance, broadcast_to(-outer, self.shape + self.event_shape))

    def entropy(self) -> jax.Array:
        half_log_det = -0.5 * self._log_det_precision()
        return broadcast_to(0.5 * self.event_shape[0] * (1 + LOG_2PI) + half_log_det, self.batch_shape)

    def _share(self) -> jax.Array:
        """(*batch, 1), 1 / (1 + direction^T diag^-1 direction)."""
        diagonal, direction = align(self.diagonal, self.direction)
        return 1 / (1 + jnp.sum(direction**2 / diagonal, -1, keepdims=True))

    def _log_det_precision(self) -> jax.Array:
        diagonal, direction = align(self.diagonal, self.direction)
        return jnp.sum(jnp.log(diagonal), -1) + jnp.log1p(jnp.sum(direction**2 / diagonal, -1))

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        rank = len(shape) + len(self.shape)
        loc, diagonal, direction, share = align(self.loc, self.diagonal, self.direction, self._share(), rank=rank)
        noise = core.random.normal(key, shape + self.shape, loc.dtype) / jnp.sqrt(diagonal)
        # (1 - sqrt(share)) / (direction^T diag^-1 direction), which has a value where the direction is zero.
        factor = share / (1 + jnp.sqrt(share))
        return loc + noise - factor * jnp.sum(direction * noise, -1, keepdims=True) * direction / diagonal

    def _log_prob(self, value: jax.Array) -> jax.Array:
        x, penalty = split_infinite(value)
        x, loc, diagonal, direction = align(x, self.loc, self.diagonal, self.direction)
        away = x - loc
        distance = jnp.sum(diagonal * away**2, -1) + jnp.sum(direction * away, -1) ** 2
        distance, log_det, penalty = align(distance, self._log_det_precision(), penalty)
        return penalty - 0.5 * (distance - log_det + self.event_shape[0] * LOG_2PI)


def _shifted_sum(x: jax.Array) -> jax.Array:
    """Sums of the entries before each."""
    return jnp.cumsum(jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], -1), -1)
