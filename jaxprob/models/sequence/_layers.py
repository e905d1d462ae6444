"""The layers around a core: a linear map and norms, whose results have the dtype of what goes in.

Parameters are float32 and sums are kept in float32 for lower precisions.
Source: Ba, Kiros and Hinton (2016), "Layer normalization"; Zhang and Sennrich (2019), "Root mean square layer
normalization"; Shazeer (2020), "GLU variants improve transformer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.scan._methods import platform


def own(weights: jax.Array, x: jax.Array) -> jax.Array:
    """The weights of a product x W, unchanged, but for `vmap` a matrix of its own for each sequence of a batch.

    The gradient of W is then a product of each sequence, and their sum. Without that it is one product over all times
    of all sequences, before which XLA transposes the cotangents, and on CPU that takes several times as long as all the
    products: a gradient of `Linear` took three times as long. XLA removes the selection and copies the matrix for each
    sequence, which is little beside a long one.
    """
    # Not for short sequences, where the copies would be larger than what they multiply.
    if platform() != "cpu" or x.ndim != 2 or x.shape[0] < 2 * min(weights.shape):
        return weights
    other = jnp.broadcast_to(x[:1, :1].astype(weights.dtype), weights.shape)
    return lax.select(jnp.zeros(weights.shape, bool), other, weights)


def again(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of few operations a number, computed again under grad: keeping what comes between takes longer."""
    return jax.checkpoint(function, prevent_cse=False)


class Linear(nn.Module):
    """y = x W + b over the last axis.

    Attributes:
      features: numbers of an output.
      bias: whether there is b.
      wide: whether numbers are neither rounded before the product nor after it, float32 at least: for gates and decays.
      init: of W, (key, shape, dtype) -> array.
      bias_init: of b.
    """

    features: int
    bias: bool = True
    wide: bool = False
    init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features)."""
        weights = self.param("kernel", self.init, (x.shape[-1], self.features), jnp.float32)
        sums = core.accumulator_dtype(x.dtype)
        factor = sums if self.wide else x.dtype
        y = jnp.matmul(x.astype(factor), own(weights.astype(factor), x), preferred_element_type=sums)
        if self.bias:
            b = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + jnp.broadcast_to(b.astype(sums), y.shape)
        return y if self.wide else y.astype(x.dtype)


class Norm(nn.Module):
    """Brings the last axis to mean square one ("rms"), or to mean zero and variance one ("layer"), and scales it.

    Attributes:
      kind: "rms" or "layer".
      epsilon: added to the mean square.
    """

    kind: str = "rms"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., width) to the same shape."""
        names = ("scale", "bias") if self.kind == "layer" else ("scale",)
        inits = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        vectors = [self.param(name, inits[name], (x.shape[-1],), jnp.float32) for name in names]

        def normed(x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
            y = x.astype(core.accumulator_dtype(x.dtype))
            if self.kind == "layer":
                y = y - jnp.mean(y, -1, keepdims=True)
            y = y * lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
            y = y * jnp.broadcast_to(scale.astype(y.dtype), y.shape)
            if bias is not None:
                y = y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
            return y.astype(x.dtype)

        return again(normed)(x, *vectors)


class GatedUnit(nn.Module):
    """u * sigmoid(v) with (u, v) = gelu(x) W + b: channels that a core kept apart are mixed."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., width) to the same shape."""
        both = Linear(2 * x.shape[-1], name="dense")(again(nn.gelu)(x))
        return again(_gated)(both)


def _gated(both: jax.Array) -> jax.Array:
    value, gate = jnp.split(both, 2, -1)
    return value * nn.sigmoid(gate)


class Mlp(nn.Module):
    """gelu(x U + a) V + b.

    Attributes:
      hidden: numbers in between.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., width) to the same shape."""
        return Linear(x.shape[-1], name="down")(again(nn.gelu)(Linear(self.hidden, name="up")(x)))
