"""Where a guide starts, and in which coordinates it is fitted: those in which an approximation found first is standard.

Gradients of a guide's parameters are then of one size, whatever the units of a model's parameters are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.vi._layout import Layout


@core.pytree
class Place:
    """A Gaussian approximation, as x = mean + R z with z standard normal.

    Attributes:
      mean: pytree, a position.
      metric: of covariance R R^T; a `mcmc.Metric` or one of its kind.
    """

    mean: Any
    metric: Metric

    @property
    def layout(self) -> Layout:
        """How a position lies in a vector."""
        return Layout.of(self.mean)

    def diagonal(self) -> Place:
        """With the standard deviations alone."""
        if self.metric.factor.ndim < 2 and type(self.metric) is Metric:
            return self
        vector = self.layout.ravel(self.mean)
        columns = jax.vmap(self.metric.velocity)(jnp.eye(vector.size, dtype=vector.dtype))
        return Place(self.mean, Metric(jnp.sqrt(jnp.sum(columns**2, axis=0))))

    def part(self, names: tuple[str, ...]) -> Place:
        """Of some entries of a position that is a dict, with their standard deviations."""
        layout, own = self.layout, self.diagonal()
        scales = layout.unravel(own.metric.factor)
        mean = {name: self.mean[name] for name in names}
        return Place(mean, Metric(Layout.of(mean).ravel({name: scales[name] for name in names})))

    def out(self, z: jax.Array) -> jax.Array:
        """Vectors x (*lead, size) of vectors z."""
        mean = self.layout.ravel(self.mean)
        rows = jax.vmap(self.metric.velocity)(z.reshape(-1, mean.size))
        return (rows + jnp.expand_dims(mean, 0)).reshape(z.shape)

    def back(self, x: jax.Array) -> jax.Array:
        """Vectors z (*lead, size) of vectors x."""
        mean = self.layout.ravel(self.mean)
        return jax.vmap(self.metric.whiten)(x.reshape(-1, mean.size) - jnp.expand_dims(mean, 0)).reshape(x.shape)

    @property
    def log_volume(self) -> jax.Array:
        """log |det R|."""
        if type(self.metric) is not Metric:
            return self.metric.log_determinant  # type: ignore[attr-defined]
        factor = self.metric.factor
        return jnp.sum(jnp.log(jnp.diagonal(factor) if factor.ndim == 2 else factor))
