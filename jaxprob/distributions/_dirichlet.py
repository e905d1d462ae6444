"""The Dirichlet distribution of probability vectors.

distrax's is off by 0.3 in float32 at concentrations of 1e6 and fails under strict rank promotion; here log-gammas are
split as in `_log_mass`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._factors import vector_shape
from jaxprob.distributions._log_mass import deviance, digamma_remainder, stirling
from jaxprob.distributions._parameters import POSITIVE, align, broadcast_to, set_parameters
from jaxprob.distributions._supports import Simplex, Support


@core.pytree
class Dirichlet(Distribution):
    r"""Dirichlet distribution.

    $$p(x) = \frac{\Gamma(\sum_i \alpha_i)}{\prod_i \Gamma(\alpha_i)} \prod_i x_i^{\alpha_i - 1}$$

    with respect to the first k - 1 coordinates.

    Args:
      concentration: (*batch, k), alpha, positive: prior counts.

    Raises:
      ValueError: if `concentration` is a scalar or has a concrete value that is not positive.

    >>> Dirichlet([1.0, 3.0]).mean().tolist()
    [0.25, 0.75]
    """

    concentration: Any

    def __post_init__(self) -> None:
        set_parameters(self, concentration=POSITIVE)
        vector_shape("Dirichlet", "concentration", self.concentration)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.concentration)[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.concentration)[-1:]

    @property
    def support(self) -> Support:
        return Simplex()

    def mean(self) -> jax.Array:
        return self.concentration / jnp.sum(self.concentration, axis=-1, keepdims=True)

    def variance(self) -> jax.Array:
        mean, total = self.mean(), jnp.sum(self.concentration, axis=-1, keepdims=True)
        others = (total - self.concentration) / total
        return mean * others / (total + 1)

    def entropy(self) -> jax.Array:
        a, k = self.concentration, self.event_shape[0]
        total = jnp.sum(a, axis=-1)
        parts = jnp.sum(stirling(a) - (a - 1) * digamma_remainder(a), axis=-1)
        return parts - stirling(total) + (total - k) * digamma_remainder(total) - (k - 1) * jnp.log(total)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        a = self.concentration
        # Gamma variables as logarithms: for small concentrations all of them underflow.
        log_gamma = core.random.loggamma(key, broadcast_to(a, shape + self.shape), dtype=a.dtype)
        return jnp.maximum(jax.nn.softmax(log_gamma, axis=-1), float(jnp.finfo(a.dtype).tiny))

    def _log_prob(self, value: jax.Array) -> jax.Array:
        inside = Simplex().contains(value)
        x, a = align(value, self.concentration)
        x, a = jnp.broadcast_arrays(x, a)
        valid = jnp.broadcast_to(jnp.expand_dims(inside, (*range(x.ndim - 1 - inside.ndim), -1)), x.shape)
        positive = valid & (x > 0)
        inner = jnp.where(positive, x, 1.0 / x.shape[-1])
        total = jnp.sum(a, axis=-1, keepdims=True)
        log_total, log_x = jnp.log(total), jnp.log(inner)
        # Deviances of the concentrations from `total * x`; their linear parts cancel in the sum, and make it blind to
        # how far rounding has moved x off the simplex.
        expected = total * inner
        terms = -log_x - deviance(a, expected, log_total + log_x, expected - a)
        # x^(a - 1) on the boundary: 1 for a = 1, otherwise 0 or infinite.
        boundary = jnp.where(a == 1, log_total + 1.0, jnp.where(a > 1, -jnp.inf, jnp.inf))
        terms = jnp.where(positive, terms, boundary)
        constant = stirling(total)[..., 0] - log_total[..., 0] + jnp.sum(jnp.log(a) - stirling(a), axis=-1)
        return jnp.where(valid[..., 0], constant + jnp.sum(terms, axis=-1), -jnp.inf)
