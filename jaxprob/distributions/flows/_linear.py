"""Linear bijectors of the last axis, whose parameters may be any real numbers, and the squeezing of images.

On images they act on the channels of each pixel: `IndependentBijector(LowerUpper(...), 2)` is Glow's 1x1 convolution,
whose log-determinant counts once for each pixel.

Source: Kingma and Dhariwal (2018), "Glow: generative flow with invertible 1x1 convolutions", section 3.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.distributions._bijectors import Bijector, Shape, floating
from jaxprob.distributions.flows._affine import DiagonalAffine, RealVectorBijector
from jaxprob.distributions.flows._networks import times


def _as_order(function: str, order: Any) -> tuple[int, ...]:
    """The order as a tuple; raises a `ValueError` unless it has each of 0 to n - 1 once."""
    numbers = np.asarray(order)
    if numbers.ndim != 1 or not np.array_equal(np.sort(numbers), np.arange(numbers.size)):
        raise core.bad_value(function, "order", order, "each whole number from 0 to n - 1 once")
    return tuple(int(i) for i in numbers)


def _reordered(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    return x[..., np.asarray(order)]


def _inverse_order(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.argsort(order).tolist())


@core.pytree
class Permutation(RealVectorBijector):
    """x_i = u_order[i].

    Args:
      order: whole numbers from 0 to n - 1, each once; part of the structure, not trained.

    Raises:
      ValueError: if it is no permutation.

    >>> Permutation((2, 0, 1)).forward(jnp.array([5.0, 6.0, 7.0])).tolist()
    [7.0, 5.0, 6.0]
    """

    order: tuple[int, ...] = core.static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", _as_order("Permutation", self.order))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return _reordered(u, self.order), jnp.zeros(u.shape[:-1], u.dtype)

    def inverse(self, x: Any) -> jax.Array:
        return _reordered(floating(x), _inverse_order(self.order))


@core.pytree
class Orthogonal(RealVectorBijector):
    """x = Q u, with the orthogonal Q = H_1 H_2 ... of Householder reflections H = I - 2 v v^T / |v|^2.

    As many reflections as the vector has numbers make any orthogonal matrix with the determinant that their number
    gives; each v that is repeated once takes itself back.

    Args:
      vectors: (count, n), the v of each reflection. One of zeros reflects nothing.

    >>> Orthogonal(jnp.array([[1.0, -1.0]])).forward(jnp.array([3.0, 4.0])).round(4).tolist()
    [4.0, 3.0]

    Source: Tomczak and Welling (2016), "Improving variational auto-encoders using Householder flow".
    """

    vectors: Any

    @property
    def matrix(self) -> jax.Array:
        """Q, (n, n)."""
        vectors = floating(self.vectors)
        start = jnp.eye(vectors.shape[-1], dtype=vectors.dtype)

        def reflect(matrix: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
            v = v / jnp.where(largest > 0, largest, 1)  # whose square neither underflows nor overflows
            square = jnp.sum(v**2)
            part = jnp.outer(core.matvec(matrix, v), v)
            return matrix - 2 * part / jnp.where(square > 0, square, 1), None

        return scan.scan(reflect, start, vectors)[0]

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        x = times(floating(u), self.matrix.T)
        return x, jnp.zeros(x.shape[:-1], x.dtype)

    def inverse(self, x: Any) -> jax.Array:
        return times(floating(x), self.matrix)


@core.pytree
class LowerUpper(RealVectorBijector):
    """x = P L U u, with a permutation P, L lower triangular with a diagonal of 1, and U upper triangular.

    Args:
      order: that of P, as in `Permutation`; part of the structure, not trained.
      triangles: (n, n), L below the diagonal and U above it; the diagonal does not count.
      log_diagonal: (n,), logarithms of the diagonal of U.

    Raises:
      ValueError: if `order` is no permutation.

    >>> LowerUpper((1, 0), jnp.ones((2, 2)), jnp.zeros(2)).forward(jnp.array([1.0, 2.0])).tolist()
    [5.0, 3.0]
    """

    order: tuple[int, ...] = core.static()
    triangles: Any
    log_diagonal: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", _as_order("LowerUpper", self.order))

    @classmethod
    def identity(cls, order: Any, dtype: Any = None) -> LowerUpper:
        """The permutation alone, to start from."""
        n = len(order)
        return cls(order, jnp.zeros((n, n), dtype or float), jnp.zeros((n,), dtype or float))

    @property
    def _factors(self) -> tuple[jax.Array, jax.Array]:
        triangles = floating(self.triangles)
        lower = jnp.tril(triangles, -1) + jnp.eye(triangles.shape[-1], dtype=triangles.dtype)
        return lower, jnp.triu(triangles, 1) + jnp.diag(jnp.exp(self.log_diagonal))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        lower, upper = self._factors
        u = floating(u)
        x = _reordered(times(u, core.matmul(lower, upper).T), self.order)
        return x, jnp.broadcast_to(jnp.sum(self.log_diagonal), x.shape[:-1])

    def inverse(self, x: Any) -> jax.Array:
        lower, upper = self._factors
        x = _reordered(floating(x), _inverse_order(self.order))
        rows = x.reshape(-1, x.shape[-1])  # one solve with many right-hand sides, whatever the leading axes
        u = core.solve_triangular(upper.T, core.solve_triangular(lower, rows.T), transpose=True)
        return u.T.reshape(x.shape)


@core.pytree
class ActNorm(DiagonalAffine):
    """x = loc + exp(log_scale) u along the last axis, started from data so that these become standard noise.

    Args:
      loc: (n,).
      log_scale: (n,).

    >>> norm = ActNorm.from_data(jnp.array([[1.0], [3.0]]))
    >>> norm.inverse(jnp.array([3.0])).tolist()
    [1.0]
    """

    @classmethod
    def from_data(cls, batch: Any) -> ActNorm:
        """The one whose inverse gives the batch (..., n) mean 0 and standard deviation 1 along the last axis.

        What is constant in the batch keeps its scale.

        Raises:
          ValueError: if the batch has no leading axis.
        """
        batch = floating(batch)
        if batch.ndim < 2:
            raise core.bad_value("ActNorm.from_data", "batch", f"of shape {batch.shape}", "a batch (..., n)")
        axes = tuple(range(batch.ndim - 1))
        scale = jnp.std(batch, axis=axes)
        return cls(jnp.mean(batch, axis=axes), jnp.log(jnp.where(scale > 0, scale, 1)))


@core.pytree
class Squeeze(Bijector):
    """Images (height, width, channels) to (height / 2, width / 2, 4 channels): each 2 x 2 pixels become one.

    >>> Squeeze().forward(jnp.arange(4.0).reshape(2, 2, 1)).tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]

    Source: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", section 3.6.
    """

    @property
    def event_ndims_in(self) -> int:
        return 3

    @property
    def event_ndims_out(self) -> int:
        return 3

    @property
    def keeps_reals(self) -> bool:
        return True

    def forward_shape(self, shape: Shape) -> Shape:
        *lead, height, width, channels = _image("forward", "u", shape)
        if height % 2 or width % 2:
            raise core.bad_value("forward", "u", f"of shape {tuple(shape)}", "images of even height and width")
        return (*lead, height // 2, width // 2, 4 * channels)

    def inverse_shape(self, shape: Shape) -> Shape:
        *lead, height, width, channels = _image("inverse", "x", shape)
        if channels % 4:
            raise core.bad_value("inverse", "x", f"of shape {tuple(shape)}", "images of 4 channels or a multiple")
        return (*lead, 2 * height, 2 * width, channels // 4)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        *lead, height, width, channels = self.forward_shape(u.shape)
        pixels = u.reshape(*lead, height, 2, width, 2, channels // 4)
        return jnp.swapaxes(pixels, -4, -3).reshape(*lead, height, width, channels), jnp.zeros(lead, u.dtype)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        *lead, height, width, channels = self.inverse_shape(x.shape)
        pixels = x.reshape(*lead, height // 2, width // 2, 2, 2, channels)
        return jnp.swapaxes(pixels, -4, -3).reshape(*lead, height, width, channels)


def _image(function: str, argument: str, shape: Shape) -> Shape:
    if len(shape) < 3:
        expected = "images (..., height, width, channels)"
        raise core.bad_value(function, argument, f"of shape {tuple(shape)}", expected)
    return tuple(shape)
