"""Implicit guides: a network of noise, whose entropy is bounded through its local linearisation.

x = g(z) + sigma e, with z of few dimensions, has no density in closed form. Around each z the network is nearly affine,
and x nearly Gaussian with covariance J J^T + sigma^2 I; the mean entropy of these Gaussians stands for that of x.

Source: Uppal, Stensbo-Smidt, Boomsma & Frellsen (2023), "Implicit variational inference for high-dimensional
posteriors", equations 9 to 15 and appendix on matrix multiplication networks.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions.flows import Perceptron
from jaxprob.inference.vi._guide import Family
from jaxprob.inference.vi._layout import Layout
from jaxprob.inference.vi._objective import Objective, of_draws
from jaxprob.inference.vi._place import Place

MODES = ("exact", "smallest")
START = 0.5  # standard deviation of what a perceptron makes before it is fitted, in each direction that z reaches


@core.pytree
class MatrixNetwork:
    """A generator of large weights with few parameters: z as a matrix Z, then layers activation(A Z B + C).

    Attributes:
      left: matrices (rows out, rows in).
      right: matrices (columns in, columns out).
      bias: matrices (rows out, columns out).

    >>> network = MatrixNetwork.init(jax.random.key(0), 4, 1000)
    >>> network(jnp.ones(4)).shape, core.size(network) < 10_000
    ((1000,), True)
    """

    left: tuple[jax.Array, ...]
    right: tuple[jax.Array, ...]
    bias: tuple[jax.Array, ...]
    size: int = core.static()

    @classmethod
    def init(
        cls, key: core.Key, latent: int, size: int, *, hidden: int = 16, layers: int = 2, dtype: Any = None
    ) -> MatrixNetwork:
        """A network from vectors (latent,) to vectors (size,).

        Args:
          key: random key.
          latent: size of z.
          size: of the output: the numbers of the last matrix that are used.
          hidden: rows and columns of the matrices between.
          layers: that come before the last.
          dtype: of the parameters.
        """
        side = math.isqrt(size - 1) + 1
        rows = [latent] + [hidden] * layers + [side]
        columns = [1] + [hidden] * layers + [side]
        left, right = [], []
        for i in range(layers + 1):
            one, two = core.fold(key, i, 0), core.fold(key, i, 1)
            left.append(core.random.normal(one, (rows[i + 1], rows[i]), dtype or float) / math.sqrt(rows[i]))
            right.append(core.random.normal(two, (columns[i], columns[i + 1]), dtype or float) / math.sqrt(columns[i]))
        bias = tuple(jnp.zeros((a.shape[0], b.shape[1]), a.dtype) for a, b in zip(left, right, strict=True))
        return cls(tuple(left), tuple(right), bias, size)

    def __call__(self, z: jax.Array) -> jax.Array:
        """The vector (size,) that z (latent,) generates."""
        matrix = jnp.expand_dims(z, 1)
        for i, (left, right, bias) in enumerate(zip(self.left, self.right, self.bias, strict=True)):
            matrix = core.matmul(core.matmul(left, matrix), right) + bias
            if i < len(self.left) - 1:
                matrix = jnp.tanh(matrix)
        return matrix.reshape(-1)[: self.size]


@core.pytree
class _Curved:
    """An affine map and what bends it, which is nothing at first.

    The linearised entropy counts twice what a fold lays on one another, so that a fit which comes near a fold goes into
    it: from random weights the bound of a banana in two dimensions came out 1.7 nats above its evidence.
    """

    plain: Perceptron
    bend: Perceptron

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.plain(z) + self.bend(z)


@core.pytree
class ImplicitGuide:
    """A distribution over positions without a density: x = loc + g(z) + sigma e.

    Attributes:
      generator: callable pytree, `(latent,) -> (size,)`.
      loc: (size,).
      log_sigma: (), logarithm of the standard deviation of what is added.
      latent: size of z.
      layout: how a position lies in a vector.
    """

    generator: Any
    loc: jax.Array
    log_sigma: jax.Array
    latent: int = core.static()
    layout: Layout = core.static()

    def sample(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> Any:
        """Positions with leading axes `shape`."""
        shape = core.as_shape("sample", shape)
        z, noise = self.noise(key, math.prod(shape))
        return self.layout.unravel(self.points(z, noise).reshape(*shape, self.layout.size))

    def noise(self, key: core.Key, number: int) -> tuple[jax.Array, jax.Array]:
        """Draws of z (number, latent) and e (number, size)."""
        key, dtype = core.as_key(key, "sample"), self.layout.dtype
        z = core.random.normal(core.fold(key, 0), (number, self.latent), dtype)
        return z, core.random.normal(core.fold(key, 1), (number, self.layout.size), dtype)

    def points(self, z: jax.Array, noise: jax.Array) -> jax.Array:
        """The vectors (number, size) that noise makes."""
        return jax.vmap(self.generator)(z) + jnp.expand_dims(self.loc, 0) + jnp.exp(self.log_sigma) * noise

    def linearized_entropy(self, z: jax.Array, mode: str = "exact") -> jax.Array:
        """The entropy of the Gaussian that the guide is around g(z), in nats.

        Args:
          z: (latent,).
          mode: "exact", by the singular values of the Jacobian (size, latent); or "smallest", a lower bound of it that
            takes each for the smallest.
        """
        size, few = self.layout.size, min(self.layout.size, self.latent)
        jacobian = jax.jacfwd(self.generator)(z)
        variance = jnp.exp(2 * self.log_sigma)
        small = core.matmul(jacobian.T, jacobian) if self.latent <= size else core.matmul(jacobian, jacobian.T)
        if mode == "smallest":
            least = jnp.maximum(jnp.linalg.eigvalsh(small)[0], 0)
            log_volume = few * jnp.log(least + variance)
        else:
            log_volume = core.log_determinant(core.cholesky(small + variance * jnp.eye(few, dtype=small.dtype)))
        log_volume = log_volume + 2 * (size - few) * self.log_sigma
        return 0.5 * (log_volume + size * (1 + math.log(2 * math.pi)))


def implicit(latent: int, hidden: tuple[int, ...] | str = (32, 32), sigma: float = 0.1) -> Family:
    """Implicit guides, for `vi.linearized_elbo`.

    Args:
      latent: numbers of noise that the network takes.
      hidden: widths of a multilayer perceptron, which is added to an affine map and is zero at first; () for the affine
        map alone; or "matrix" for a `vi.MatrixNetwork`, for very many numbers.
      sigma: standard deviation of the noise that is added, to start from.

    Source: Uppal et al. (2023).
    """
    core.check_whole("implicit", latent=latent)
    core.check_positive("implicit", sigma=sigma)
    if not isinstance(hidden, str):
        hidden = tuple(hidden)
        for width in hidden:
            core.check_whole("implicit", hidden=width)
    elif hidden != "matrix":
        raise core.bad_value("implicit", "hidden", repr(hidden), "sizes of layers, or 'matrix'")
    return Family("implicit", core.Bound(_build, latent, hidden, sigma), rate=0.02)


def _build(latent: int, hidden: Any, sigma: float, key: core.Key, position: Any) -> ImplicitGuide:
    if isinstance(position, Place):  # its spread is what the network is for
        position = position.mean
    layout = Layout.of(position)
    if hidden == "matrix":
        generator: Any = MatrixNetwork.init(key, latent, layout.size, dtype=layout.dtype)
    else:
        long, short = max(latent, layout.size), min(latent, layout.size)
        frame = jnp.linalg.qr(core.random.normal(key, (long, short), layout.dtype))[0]
        weight = START * (frame if latent == long else frame.T)
        generator = Perceptron((weight,), (jnp.zeros(layout.size, layout.dtype),))
        if hidden:
            sizes = (latent, *hidden, layout.size)
            bend = Perceptron.init(core.fold(key, 1), sizes, activation=jnp.tanh, dtype=layout.dtype)
            generator = _Curved(generator, bend)
    log_sigma = jnp.full((), math.log(sigma), layout.dtype)
    return ImplicitGuide(generator, layout.ravel(position), log_sigma, latent, layout)


def linearized_elbo(
    target: Any, guide: Family, *, draws: int = 8, entropy: str = "exact", initial: Any = None
) -> Objective:
    r"""The evidence lower bound of an implicit guide with its entropy linearised.

    $$E[\log p(x)] + E_z[1/2 \log \det(J_z J_z^T + \sigma^2 I)] + size/2\, (1 + \log 2 \pi)$$

    It approximates the bound (and equals it where the network is affine); where the network folds, several z lead to
    one x and the entropy comes out too large.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      guide: `vi.implicit(...)`.
      draws: of the guide for each step.
      entropy: "exact" or "smallest" (see `ImplicitGuide.linearized_entropy`).
      initial: a position around which the guide starts, or a function `key -> position`; by default the posterior's.

    Raises:
      TypeError: if `guide` is no family of implicit guides.
      ValueError: for another `entropy` or `draws` below 1.

    Source: Uppal et al. (2023), equations 12 and 15.
    """
    if not isinstance(guide, Family) or guide.name != "implicit":
        raise core.bad_type("linearized_elbo", "guide", guide, "vi.implicit(...)", "Other guides go to vi.elbo")
    if entropy not in MODES:
        raise core.bad_value("linearized_elbo", "entropy", core.describe(entropy), f"one of {MODES}")
    return of_draws("linearized_elbo", target, guide, draws, initial, core.Bound(_loss, draws, entropy))


def _loss(draws: int, mode: str, log_density: Any, guide: ImplicitGuide, batch: Any, key: core.Key) -> Any:
    z, noise = guide.noise(key, draws)
    positions = guide.layout.unravel(guide.points(z, noise))
    log_p = jnp.mean(jax.vmap(lambda x: log_density(x, batch))(positions))
    value = log_p + jnp.mean(jax.vmap(lambda z: guide.linearized_entropy(z, mode))(z))
    return -value, {"elbo": value}
