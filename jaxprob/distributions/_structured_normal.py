"""Multivariate normal distributions whose covariance has structure: diagonal, and diagonal plus low rank.

distrax's leak tracers from `jit` and have wrong shapes under `vmap`; these are written here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._factors import same_dtype, set_location, split_infinite, vector_shape
from jaxprob.distributions._multivariate import LOG_2PI
from jaxprob.distributions._parameters import POSITIVE, REAL, align, broadcast_to, check_shapes, set_parameters
from jaxprob.distributions._supports import RealVector, Support


@core.pytree
class MultivariateNormalDiagonal(Distribution):
    """Multivariate normal distribution with independent components: one event is a vector.

    Args:
      loc: (*batch, n), the mean; a scalar is spread over the vector.
      scale: (*batch, n), the standard deviations, positive.

    Raises:
      ValueError: if sizes do not fit or a concrete scale is not positive.

    >>> MultivariateNormalDiagonal(0.0, jnp.ones(3)).event_shape
    (3,)
    """

    loc: Any
    scale: Any

    def __post_init__(self) -> None:
        name = "MultivariateNormalDiagonal"
        set_parameters(self, scale=POSITIVE)
        shape = vector_shape(name, "scale", self.scale)
        set_location(self, self.loc, shape[-1], shape[:-1])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.scale))[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.scale)[-1:]

    @property
    def support(self) -> Support:
        return RealVector()

    def mean(self) -> jax.Array:
        return broadcast_to(align(self.loc, self.scale)[0], self.shape)

    def variance(self) -> jax.Array:
        return broadcast_to(align(self.loc, self.scale)[1] ** 2, self.shape)

    def covariance(self) -> jax.Array:
        """The covariance matrix, of shape (*batch, n, n)."""
        variance = self.variance()[..., None, :]
        return variance * jnp.broadcast_to(
            jnp.eye(variance.shape[-1], dtype=variance.dtype), self.shape + self.event_shape
        )

    def entropy(self) -> jax.Array:
        log_scale = jnp.sum(jnp.log(self.scale), axis=-1)
        return broadcast_to(0.5 * self.event_shape[0] * (1 + LOG_2PI) + log_scale, self.batch_shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        shape = shape + self.shape
        loc, scale = align(self.loc, self.scale, rank=len(shape))
        return loc + scale * core.random.normal(key, shape, scale.dtype)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        x, loc, scale = align(value, self.loc, self.scale)
        z = (x - loc) / scale
        return jnp.sum(-0.5 * z * z - jnp.log(scale), axis=-1) - 0.5 * self.event_shape[0] * LOG_2PI


@core.pytree
class MultivariateNormalLowRank(Distribution):
    """Multivariate normal distribution with covariance `diag(diagonal) + low_rank low_rank^T`.

    Densities and draws take time linear in n.

    Args:
      loc: (*batch, n), the mean; a scalar is spread over the vector.
      diagonal: (*batch, n), positive: variances, not standard deviations.
      low_rank: (*batch, n, r).

    Raises:
      ValueError: if sizes do not fit or a concrete diagonal is not positive.

    >>> MultivariateNormalLowRank(0.0, jnp.ones(3), jnp.ones((3, 1))).variance().tolist()
    [2.0, 2.0, 2.0]
    """

    loc: Any
    diagonal: Any
    low_rank: Any

    def __post_init__(self) -> None:
        name = "MultivariateNormalLowRank"
        set_parameters(self, diagonal=POSITIVE)
        set_parameters(self, low_rank=REAL)
        shape = vector_shape(name, "diagonal", self.diagonal)
        if self.low_rank.ndim < 2 or self.low_rank.shape[-2] != shape[-1]:
            raise core.bad_value(name, "low_rank", f"of shape {self.low_rank.shape}", f"shape (*batch, {shape[-1]}, r)")
        shapes = {"the batch of diagonal": shape[:-1], "the batch of low_rank": self.low_rank.shape[:-2]}
        batch = check_shapes(name, **shapes)
        set_location(self, self.loc, shape[-1], batch)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        shapes = jnp.shape(self.loc)[:-1], jnp.shape(self.diagonal)[:-1], jnp.shape(self.low_rank)[:-2]
        return np.broadcast_shapes(*shapes)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.diagonal)[-1:]

    @property
    def support(self) -> Support:
        return RealVector()

    def mean(self) -> jax.Array:
        return broadcast_to(self.loc, self.shape)

    def variance(self) -> jax.Array:
        diagonal, low_rank = align(self.diagonal, jnp.sum(self.low_rank**2, axis=-1))
        return broadcast_to(diagonal + low_rank, self.shape)

    def covariance(self) -> jax.Array:
        """The covariance matrix, of shape (*batch, n, n)."""
        eye = jnp.eye(self.event_shape[0], dtype=self.diagonal.dtype)
        diagonal = self.diagonal[..., None, :] * jnp.broadcast_to(eye, self.diagonal.shape + self.event_shape)
        low_rank = core.matmul(self.low_rank, jnp.swapaxes(self.low_rank, -1, -2))
        diagonal, low_rank = align(diagonal, low_rank)
        return broadcast_to(diagonal + low_rank, self.shape + self.event_shape)

    def entropy(self) -> jax.Array:
        half_log_det = core.woodbury_log_determinant(*same_dtype(self.diagonal, self.low_rank)) / 2
        return broadcast_to(0.5 * self.event_shape[0] * (1 + LOG_2PI) + half_log_det, self.batch_shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        key_diagonal, key_low_rank = core.random.split(key)
        loc, diagonal, low_rank = same_dtype(self.loc, self.diagonal, self.low_rank)
        white = core.random.normal(key_diagonal, shape + self.shape, loc.dtype)
        factors = core.random.normal(key_low_rank, (*shape, *self.batch_shape, low_rank.shape[-1]), loc.dtype)
        common = jnp.einsum("...j,...ij->...i", factors, low_rank, precision="highest")
        loc, scale = align(loc, jnp.sqrt(diagonal), rank=white.ndim)
        return loc + scale * white + common

    def _log_prob(self, value: jax.Array) -> jax.Array:
        x, loc, diagonal, low_rank = same_dtype(value, self.loc, self.diagonal, self.low_rank)
        x, penalty = split_infinite(x)
        x, loc = align(x, loc)
        distance = core.woodbury_quadratic_form(diagonal, low_rank, x - loc)
        distance, log_det, penalty = align(distance, core.woodbury_log_determinant(diagonal, low_rank), penalty)
        return penalty - 0.5 * (distance + log_det + self.event_shape[0] * LOG_2PI)
