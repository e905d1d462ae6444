"""Planar and radial flows: maps that push space away from a plane or a point, or draw it there.

Source: Rezende and Mohamed (2015), "Variational inference with normalizing flows", section 4.1 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import align
from jaxprob.distributions.flows._affine import RealVectorBijector
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._ordered_layers import vector_size
from jaxprob.distributions.flows._repeated import Repeated
from jaxprob.distributions.flows._roots import increasing_root
from jaxprob.distributions.flows._spline import positive_slope


@core.pytree
class Planar(RealVectorBijector):
    """x = u + d tanh(w . u + b), where d is `direction` with its part along w changed so that w . d > -1.

    A direction of zeros is x = u. `inverse` finds one root for each vector.

    Args:
      direction: (n,).
      weight: (n,), w.
      bias: (), b.

    >>> planar = Planar(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.zeros(()))
    >>> planar.forward(jnp.array([0.0, 20.0])).round(4).tolist()
    [1.0, 20.0]
    """

    direction: Any
    weight: Any
    bias: Any

    def _parts(self) -> tuple[jax.Array, jax.Array]:
        """d, and 1 + w . d, which is positive."""
        direction, weight = align(self.direction, self.weight)
        along = jnp.sum(direction * weight)
        stretch = positive_slope(along)
        square = jnp.sum(weight**2)
        square = jnp.where(square > 0, square, 1)
        return direction + (stretch - 1 - along) * weight / square, stretch

    def _height(self, u: Any) -> tuple[jax.Array, jax.Array]:
        """u, and w . u + b."""
        u, weight, bias = align(u, self.weight, self.bias)
        return u, jnp.sum(u * weight, axis=-1) + bias.reshape(())

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, height = self._height(u)
        direction, stretch = self._parts()
        bend = jnp.tanh(height)
        x = u + jnp.expand_dims(direction, tuple(range(u.ndim - 1))) * bend[..., None]
        # 1 + w . d (1 - bend^2), as a sum of what is positive.
        return x, jnp.log(bend**2 + stretch * (1 - bend**2))

    def inverse(self, x: Any) -> jax.Array:
        x, height = self._height(x)
        direction, stretch = self._parts()
        # The height of x is h + w . d tanh(h), which increases with the height h of u.
        reach = jnp.abs(stretch - 1)
        found = increasing_root(lambda h: h + (stretch - 1) * jnp.tanh(h) - height, height - reach, height + reach)
        return x - jnp.expand_dims(direction, tuple(range(x.ndim - 1))) * jnp.tanh(found)[..., None]


@core.pytree
class Radial(RealVectorBijector):
    r"""$x = c + (u - c) (1 + \beta / (\alpha + |u - c|))$, with $\alpha > 0$ and $\beta > -\alpha$.

    The slope at the center, $1 + \beta / \alpha$, is a softplus of `push`. Both directions are closed forms.

    Args:
      center: (n,), c.
      log_width: (), the logarithm of alpha.
      push: (), above 0 away from the center, below 0 to it; 0 is x = u.

    >>> Radial(jnp.zeros(2), jnp.zeros(()), jnp.zeros(())).forward(jnp.array([3.0, 4.0])).tolist()
    [3.0, 4.0]
    """

    center: Any
    log_width: Any
    push: Any

    def _parts(self) -> tuple[jax.Array, jax.Array]:
        """alpha, and alpha + beta."""
        width = jnp.exp(jnp.asarray(self.log_width))
        return width, width * positive_slope(jnp.asarray(self.push))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, center = align(u, self.center)
        away = u - center
        radius = core.safe_sqrt(jnp.sum(away**2, axis=-1))
        stretch, log_det = self._stretch(radius, u.shape[-1])
        return center + away * stretch[..., None], log_det

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        x, center = align(x, self.center)
        away = x - center
        far = core.safe_sqrt(jnp.sum(away**2, axis=-1))
        width, near = self._parts()
        # The positive root r of r^2 + (near - far) r - far width, without cancellation.
        half = near - far
        both = jnp.where(half > 0, half, -half) + jnp.sqrt(half**2 + 4 * far * width)
        radius = jnp.where(half > 0, 2 * far * width / both, both / 2)
        stretch, log_det = self._stretch(radius, x.shape[-1])
        return center + away / stretch[..., None], -log_det

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]

    def _stretch(self, radius: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """1 + beta / (alpha + r) and the log-determinant, of ratios of what is positive."""
        width, near = self._parts()
        stretch = (near + radius) / (width + radius)
        outward = (radius * (radius + 2 * width) + width * near) / (width + radius) ** 2
        return stretch, (size - 1) * jnp.log(stretch) + jnp.log(outward)


def _planar_layer(key: core.Key, size: int, dtype: Any) -> Bijector:
    weight = core.random.normal(key, (size,), dtype or float) / math.sqrt(size)
    return Planar(jnp.zeros_like(weight), weight, jnp.zeros((), weight.dtype))


def _radial_layer(key: core.Key, size: int, dtype: Any) -> Bijector:
    center = core.random.normal(key, (size,), dtype or float)
    return Radial(center, jnp.zeros((), center.dtype), jnp.zeros((), center.dtype))


def _build(
    name: str,
    layers: int,
    layer: Callable[[core.Key, int, Any], Bijector],
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    size = vector_size(name, shape)
    if context_size:
        raise core.bad_value(name, "context_size", context_size, "0", f"Use conditional({name}(...)) for contexts")
    return Repeated.of([layer(core.fold(key, i), size, dtype) for i in range(layers)])


def planar(layers: int = 16) -> Architecture:
    """Flows of vectors made of `Planar` layers: draws, each with its log density, are quick, for variational guides.

    Args:
      layers: number of layers; it costs no compile time.

    Raises:
      ValueError: if it is not whole and positive.

    >>> planar(4).init(jax.random.key(0), 3).sample(jax.random.key(1), (5,)).shape
    (5, 3)
    """
    core.check_whole("planar", layers=layers)
    return Architecture("planar", core.Bound(_build, "planar", layers, _planar_layer))


def radial(layers: int = 16) -> Architecture:
    """Flows of vectors made of `Radial` layers.

    Args:
      layers: number of layers; it costs no compile time.

    Raises:
      ValueError: if it is not whole and positive.

    >>> radial(4).init(jax.random.key(0), 3).sample(jax.random.key(1), (5,)).shape
    (5, 3)
    """
    core.check_whole("radial", layers=layers)
    return Architecture("radial", core.Bound(_build, "radial", layers, _radial_layer))
