"""Factors of exponential families, for coordinate ascent.

A block says what its sufficient statistics T are; its factor is q(x) proportional to exp(<natural, T(x)>), and all
follows from the log of its normalising constant A: expected statistics are its gradient, the entropy is A(natural) -
<natural, E[T]>. Natural parameters and expected statistics are NamedTuples of one kind.

Source: Wainwright & Jordan (2008), "Graphical models, exponential families, and variational inference", chapter 3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, multigammaln

from jaxprob import core
from jaxprob.distributions import Beta, Categorical, Dirichlet, Distribution, Gamma, MultivariateNormal, Normal, Wishart


class Block:
    """Base of the families: `@core.pytree` classes with one static field, the shape of the array.

    A subclass defines `start`, `log_normalizer` and `distribution`.
    """

    shape: tuple[int, ...]
    _event: int = 0  # trailing axes of an element

    def __post_init__(self) -> None:
        name, shape = type(self).__name__, core.as_shape(type(self).__name__, self.shape)
        object.__setattr__(self, "shape", shape)
        if len(shape) < self._event or (self._event == 2 and shape[-1] != shape[-2]):
            last = "axis is that of the vectors" if self._event == 1 else "two axes are equal"
            expected = f"one whose last {last}"
            raise core.bad_value(name, "shape", shape, expected)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.shape == other.shape

    def __hash__(self) -> int:
        return hash((type(self), self.shape))

    def start(self, key: core.Key) -> Any:
        """Natural parameters to start from."""
        raise NotImplementedError

    def log_normalizer(self, natural: Any) -> jax.Array:
        """A, summed over the array: the log of the integral of exp(<natural, T(x)>)."""
        raise NotImplementedError

    def distribution(self, natural: Any) -> Distribution:
        """The factor."""
        raise NotImplementedError

    def symmetric(self, natural: Any) -> Any:
        """The natural parameters that a gradient is; matrices made symmetric."""
        return natural

    def expected(self, natural: Any) -> Any:
        """E[T], the gradient of A."""
        return jax.grad(lambda n: self.log_normalizer(n))(natural)

    def entropy(self, natural: Any, expected: Any) -> jax.Array:
        """Of the whole array, in nats."""
        return self.log_normalizer(natural) - sum(jnp.sum(n * e) for n, e in zip(natural, expected, strict=True))


class NormalStatistics(NamedTuple):
    """Of a `NormalBlock`: `mean` is E[x] and `square` E[x^2]."""

    mean: jax.Array
    square: jax.Array


@core.pytree
class NormalBlock(Block):
    """Independent normal numbers.

    Args:
      shape: of the array.
    """

    shape: Any = core.static(default=())

    def start(self, key: core.Key) -> NormalStatistics:
        """Variance 1 around a standard normal draw, so that equal blocks differ."""
        return NormalStatistics(core.random.normal(key, self.shape), jnp.full(self.shape, -0.5))

    def log_normalizer(self, natural: NormalStatistics) -> jax.Array:
        """Summed over the array."""
        mean, square = natural
        return jnp.sum(-0.25 * mean**2 / square - 0.5 * jnp.log(-square / math.pi))

    def distribution(self, natural: NormalStatistics) -> Distribution:
        """Normal of the shape of the array."""
        variance = -0.5 / natural.square
        return Normal(natural.mean * variance, jnp.sqrt(variance))


class MultivariateNormalStatistics(NamedTuple):
    """Of a `MultivariateNormalBlock`: `mean` is E[x] and `outer` E[x x^T]."""

    mean: jax.Array
    outer: jax.Array


@core.pytree
class MultivariateNormalBlock(Block):
    """Independent normal vectors.

    Args:
      shape: of the array, its last axis that of the vectors.
    """

    shape: Any = core.static()
    _event = 1

    def start(self, key: core.Key) -> MultivariateNormalStatistics:
        """The identity as covariance around a standard normal draw."""
        outer = jnp.broadcast_to(-0.5 * jnp.eye(self.shape[-1]), (*self.shape, self.shape[-1]))
        return MultivariateNormalStatistics(core.random.normal(key, self.shape), outer)

    def symmetric(self, natural: MultivariateNormalStatistics) -> MultivariateNormalStatistics:
        """With a symmetric matrix."""
        return natural._replace(outer=core.symmetrize(natural.outer))

    def _mean(self, natural: MultivariateNormalStatistics) -> tuple[jax.Array, jax.Array]:
        factor = core.cholesky(-2 * natural.outer)
        return core.cholesky_solve(factor, natural.mean, vector=True), factor

    def log_normalizer(self, natural: MultivariateNormalStatistics) -> jax.Array:
        """Summed over the array."""
        mean, factor = self._mean(natural)
        quadratic = 0.5 * jnp.sum(mean * natural.mean)
        count = math.prod(self.shape)
        return quadratic - 0.5 * jnp.sum(core.log_determinant(factor)) + 0.5 * count * math.log(2 * math.pi)

    def distribution(self, natural: MultivariateNormalStatistics) -> Distribution:
        """Normal with the last axis as its event."""
        mean, factor = self._mean(natural)
        eye = jnp.broadcast_to(jnp.eye(self.shape[-1], dtype=factor.dtype), factor.shape)
        return MultivariateNormal(mean, core.symmetrize(core.cholesky_solve(factor, eye)))


class GammaStatistics(NamedTuple):
    """Of a `GammaBlock`: `mean` is E[x] and `log` E[log x]."""

    mean: jax.Array
    log: jax.Array


@core.pytree
class GammaBlock(Block):
    """Independent gamma numbers, such as precisions.

    Args:
      shape: of the array.
    """

    shape: Any = core.static(default=())

    def start(self, key: core.Key) -> GammaStatistics:
        """Shape and rate 1."""
        return GammaStatistics(-jnp.ones(self.shape), jnp.zeros(self.shape))

    def log_normalizer(self, natural: GammaStatistics) -> jax.Array:
        """Summed over the array."""
        return jnp.sum(gammaln(natural.log + 1) - (natural.log + 1) * jnp.log(-natural.mean))

    def distribution(self, natural: GammaStatistics) -> Distribution:
        """Gamma of the shape of the array."""
        return Gamma(natural.log + 1, -natural.mean)


class BetaStatistics(NamedTuple):
    """Of a `BetaBlock`: `log` is E[log x] and `log_other` E[log(1 - x)]."""

    log: jax.Array
    log_other: jax.Array


@core.pytree
class BetaBlock(Block):
    """Independent probabilities.

    Args:
      shape: of the array.
    """

    shape: Any = core.static(default=())

    def start(self, key: core.Key) -> BetaStatistics:
        """Uniform."""
        return BetaStatistics(jnp.zeros(self.shape), jnp.zeros(self.shape))

    def log_normalizer(self, natural: BetaStatistics) -> jax.Array:
        """Summed over the array."""
        a, b = natural.log + 1, natural.log_other + 1
        return jnp.sum(gammaln(a) + gammaln(b) - gammaln(a + b))

    def distribution(self, natural: BetaStatistics) -> Distribution:
        """Beta of the shape of the array."""
        return Beta(natural.log + 1, natural.log_other + 1)


class DirichletStatistics(NamedTuple):
    """Of a `DirichletBlock`: `log` is E[log x]."""

    log: jax.Array


@core.pytree
class DirichletBlock(Block):
    """Independent vectors of probabilities.

    Args:
      shape: of the array, its last axis that of the vectors.
    """

    shape: Any = core.static()
    _event = 1

    def start(self, key: core.Key) -> DirichletStatistics:
        """Uniform."""
        return DirichletStatistics(jnp.zeros(self.shape))

    def log_normalizer(self, natural: DirichletStatistics) -> jax.Array:
        """Summed over the array."""
        concentration = natural.log + 1
        return jnp.sum(gammaln(concentration)) - jnp.sum(gammaln(jnp.sum(concentration, axis=-1)))

    def distribution(self, natural: DirichletStatistics) -> Distribution:
        """Dirichlet with the last axis as its event."""
        return Dirichlet(natural.log + 1)


class CategoricalStatistics(NamedTuple):
    """Of a `CategoricalBlock`: `probabilities`, those of each category; as natural parameters, logits."""

    probabilities: jax.Array


@core.pytree
class CategoricalBlock(Block):
    """Independent categories, such as the components that data belong to.

    Args:
      shape: of the array and, as its last axis, the number of categories.
    """

    shape: Any = core.static()
    _event = 1

    def start(self, key: core.Key) -> CategoricalStatistics:
        """Standard normal logits, so that categories differ."""
        return CategoricalStatistics(core.random.normal(key, self.shape))

    def log_normalizer(self, natural: CategoricalStatistics) -> jax.Array:
        """Summed over the array."""
        return jnp.sum(core.logsumexp(natural.probabilities, axis=-1))

    def distribution(self, natural: CategoricalStatistics) -> Distribution:
        """Categorical over the last axis."""
        return Categorical(logits=natural.probabilities)


class WishartStatistics(NamedTuple):
    """Of a `WishartBlock`: `mean` is E[X] and `log_determinant` E[log |X|]."""

    mean: jax.Array
    log_determinant: jax.Array


@core.pytree
class WishartBlock(Block):
    """Independent precision matrices.

    Args:
      shape: of the array, its last two axes those of the matrices.
    """

    shape: Any = core.static()
    _event = 2

    def start(self, key: core.Key) -> WishartStatistics:
        """The identity as mean, with n + 2 degrees of freedom."""
        size = self.shape[-1]
        mean = jnp.broadcast_to(-0.5 * (size + 2) * jnp.eye(size), self.shape)
        return WishartStatistics(mean, jnp.full(self.shape[:-2], 0.5))

    def symmetric(self, natural: WishartStatistics) -> WishartStatistics:
        """With a symmetric matrix."""
        return natural._replace(mean=core.symmetrize(natural.mean))

    def log_normalizer(self, natural: WishartStatistics) -> jax.Array:
        """Summed over the array."""
        size, half = self.shape[-1], natural.log_determinant + (self.shape[-1] + 1) / 2
        log_inverse_scale = core.log_determinant(core.cholesky(-natural.mean))
        return jnp.sum(multigammaln(half, size) - half * log_inverse_scale)

    def distribution(self, natural: WishartStatistics) -> Distribution:
        """Wishart with the last two axes as its event."""
        size = self.shape[-1]
        factor = core.cholesky(-2 * natural.mean)
        eye = jnp.broadcast_to(jnp.eye(size, dtype=factor.dtype), factor.shape)
        scale = core.symmetrize(core.cholesky_solve(factor, eye))
        return Wishart(2 * natural.log_determinant + size + 1, scale)
