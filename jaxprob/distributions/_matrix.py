"""Distributions of matrices: Cholesky factors of correlation matrices, and Wishart matrices. Neither is in distrax."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._factors import matrix_factor, same_dtype
from jaxprob.distributions._log_mass import deviance, log_gamma_ratio, stirling
from jaxprob.distributions._parameters import POSITIVE, Rule, align, broadcast_to, check_shapes, set_parameters
from jaxprob.distributions._supports import CorrelationCholesky, PositiveDefinite, Support


@core.pytree
class LKJCholesky(Distribution):
    r"""Cholesky factors L of correlation matrices R = L L^T with density proportional to `det(R)^(concentration - 1)`.

    $$p(L) \propto \prod_{i=2}^{n} L_{ii}^{n - i + 2 \eta - 2}$$

    with respect to the strictly lower triangle of L. Each correlation alone has, as (r + 1) / 2, the distribution
    Beta(c, c) with c = concentration + n / 2 - 1.

    Args:
      dimension: n, a Python integer, at least 1.
      concentration: (*batch), eta, positive: 1 is uniform over correlation matrices; larger ones favour the identity.

    Raises:
      ValueError: if `dimension` is not a positive integer or a concrete concentration is not positive.

    Source: Lewandowski, Kurowicka and Joe (2009), "Generating random correlation matrices based on vines and extended
    onion method"; Stan Functions Reference, "Cholesky LKJ correlation distribution".

    >>> LKJCholesky(3, 2.0).sample(jax.random.key(0)).shape
    (3, 3)
    """

    dimension: int = core.static()
    concentration: Any = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.dimension, (int, np.integer)) or self.dimension < 1:
            raise core.bad_value("LKJCholesky", "dimension", self.dimension, "a positive Python integer")
        object.__setattr__(self, "dimension", int(self.dimension))
        set_parameters(self, concentration=POSITIVE)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.concentration)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension, self.dimension)

    @property
    def support(self) -> Support:
        return CorrelationCholesky()

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        n, batch = self.dimension, shape + self.batch_shape
        key_normal, key_gamma = core.random.split(key)
        eta = broadcast_to(self.concentration, batch)[..., None]
        # Row i of a standard normal vector and the root of a chi-squared variable, made of length one: the squared
        # length of the part left of the diagonal is then Beta(i / 2, eta + (n - 1 - i) / 2), i from 0.
        half_degrees = eta + jnp.broadcast_to(np.arange(n - 1, -1, -1, dtype=eta.dtype) / 2, (*batch, n))
        log_gamma = core.random.loggamma(key_gamma, half_degrees, dtype=eta.dtype)
        diagonal = jnp.exp(0.5 * (log_gamma + math.log(2.0)))
        normal = core.random.normal(key_normal, (*batch, n, n), eta.dtype)
        eye = jnp.broadcast_to(np.eye(n, dtype=bool), normal.shape)
        rows = jnp.where(eye, jnp.broadcast_to(diagonal[..., None], normal.shape), jnp.tril(normal, -1))
        unit = rows / jnp.sqrt(jnp.sum(rows**2, axis=-1, keepdims=True))
        return jnp.where(eye, jnp.maximum(unit, float(jnp.finfo(eta.dtype).tiny)), unit)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        n, inside = self.dimension, CorrelationCholesky().contains(value)
        diagonal = jnp.diagonal(value, axis1=-2, axis2=-1)[..., 1:]
        eta, diagonal = align(jnp.expand_dims(self.concentration, -1), diagonal)
        valid = jnp.broadcast_to(jnp.expand_dims(inside, (*range(diagonal.ndim - 1 - inside.ndim), -1)), diagonal.shape)
        log_diagonal = jnp.log(jnp.where(valid, diagonal, 1.0))
        order = np.arange(n - 2, -1, -1, dtype=log_diagonal.dtype)
        powers = 2 * (eta - 1) + jnp.broadcast_to(order, (*(1,) * (eta.ndim - 1), n - 1))
        log_density = jnp.sum(powers * log_diagonal, axis=-1) - self._log_normalizer(eta[..., 0])
        return jnp.where(jnp.broadcast_to(inside, log_density.shape), log_density, -jnp.inf)

    def _log_normalizer(self, eta: jax.Array) -> jax.Array:
        """Log of the integral: a sum over rows of `k / 2 log(pi) + lgamma(a) - lgamma(a + k / 2)`."""
        total = jnp.zeros_like(eta)
        for k in range(1, self.dimension):
            below = eta + 0.5 * (self.dimension - 1 - k)
            total = total + 0.5 * k * math.log(math.pi) - log_gamma_ratio(below, jnp.full_like(eta, 0.5 * k))
        return total


@core.pytree
class Wishart(Distribution):
    r"""Wishart distribution of positive-definite matrices: the sum of `df` outer products of normal vectors.

    $$p(X) \propto |X|^{(\nu - n - 1) / 2} \exp(-\tfrac{1}{2} \mathrm{tr}(S^{-1} X))$$

    with respect to the lower triangle of X.

    Args:
      df: (*batch), the degrees of freedom nu, above n - 1.
      scale: (*batch, n, n), S, symmetric positive definite; the mean is `df * scale`. Give this or `cholesky`.
      cholesky: (*batch, n, n), the Cholesky factor of S.

    Raises:
      ValueError: unless exactly one of `scale` and `cholesky` is given, or if a concrete value is out of range.

    >>> Wishart(3.0, jnp.eye(2)).mean().tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """

    df: Any
    cholesky: Any

    def __init__(self, df: Any, scale: Any = None, *, cholesky: Any = None) -> None:
        factor = matrix_factor("Wishart", scale=scale, cholesky=cholesky)
        object.__setattr__(self, "df", df)
        object.__setattr__(self, "cholesky", factor)
        n = factor.shape[-1]
        set_parameters(self, df=Rule(f"numbers above n - 1 = {n - 1}", lambda x: (x > n - 1) & np.isfinite(x)))
        check_shapes("Wishart", **{"the batch of the scale": factor.shape[:-2], "df": self.df.shape})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(jnp.shape(self.df), jnp.shape(self.cholesky)[:-2])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.cholesky)[-2:]

    @property
    def support(self) -> Support:
        return PositiveDefinite()

    def _scale(self) -> tuple[jax.Array, jax.Array]:
        """df and the scale matrix, of ranks that agree."""
        lower = jnp.tril(self.cholesky)
        scale = core.matmul(lower, jnp.swapaxes(lower, -1, -2))
        return tuple(align(jnp.expand_dims(self.df, (-2, -1)), scale))  # type: ignore[return-value]

    def mean(self) -> jax.Array:
        df, scale = self._scale()
        return broadcast_to(df * scale, self.shape)

    def variance(self) -> jax.Array:
        df, scale = self._scale()
        diagonal = jnp.diagonal(scale, axis1=-2, axis2=-1)
        return broadcast_to(df * (scale**2 + diagonal[..., None] * diagonal[..., None, :]), self.shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        key_normal, key_gamma = core.random.split(key)
        df, factor = same_dtype(self.df, jnp.tril(self.cholesky))
        shape, n = shape + self.shape, factor.shape[-1]
        # Bartlett's decomposition: normal below the diagonal, on it roots of chi-squared with df - i degrees, i from 0.
        degrees = broadcast_to(df, shape[:-2])[..., None] - jnp.broadcast_to(np.arange(n, dtype=df.dtype), shape[:-1])
        diagonal = jnp.exp(0.5 * (core.random.loggamma(key_gamma, degrees / 2, dtype=df.dtype) + math.log(2.0)))
        normal = core.random.normal(key_normal, shape, df.dtype)
        eye = jnp.broadcast_to(np.eye(n, dtype=bool), shape)
        white = jnp.where(eye, jnp.broadcast_to(diagonal[..., None], shape), jnp.tril(normal, -1))
        root = core.matmul(broadcast_to(factor, shape), white)
        return core.matmul(root, jnp.swapaxes(root, -1, -2))

    def _log_prob(self, value: jax.Array) -> jax.Array:
        inside = PositiveDefinite().contains(value)
        x, df, factor = same_dtype(value, self.df, self.cholesky)
        n = factor.shape[-1]
        eye = jnp.broadcast_to(jnp.eye(n, dtype=x.dtype), x.shape)
        root = core.cholesky(jnp.where(jnp.broadcast_to(inside[..., None, None], x.shape), x, eye))
        # Bartlett's variables: under the density normal below the diagonal, and chi-squared (squared) on it. Gathering
        # those with their log-gammas keeps the digits where df is large.
        white = core.solve_triangular(factor, root)
        half_square = jnp.diagonal(white, axis1=-2, axis2=-1) ** 2 / 2
        below = jnp.sum(jnp.tril(white, -1) ** 2, axis=(-2, -1)) / 2
        half_square, df = jnp.broadcast_arrays(*align(half_square, df[..., None]))
        order = jnp.broadcast_to(np.arange(n, dtype=x.dtype), half_square.shape)
        half = (df - order) / 2
        log_square = jnp.log(half_square)
        chi = jnp.log(half) - stirling(half) - deviance(half, half_square, log_square, half_square - half)
        chi = jnp.sum(chi + 0.5 * (order - (n + 1)) * log_square, axis=-1)
        constant = n * (n + 1) / 2 * math.log(2.0) + n * (n - 1) / 4 * math.log(math.pi)
        chi, below, log_det = align(chi, below, core.log_determinant(factor))
        log_density = chi - below - 0.5 * (n + 1) * log_det - constant
        return jnp.where(jnp.broadcast_to(inside, log_density.shape), log_density, -jnp.inf)
