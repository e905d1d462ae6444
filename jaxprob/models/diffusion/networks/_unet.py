"""A U-Net for images: convolutions at several resolutions, attention at the lowest.

Sources: Ronneberger, Fischer & Brox (2015), "U-Net"; Ho, Jain & Abbeel (2020), "Denoising diffusion probabilistic
models", appendix B; Dhariwal & Nichol (2021), "Diffusion models beat GANs on image synthesis", for the modulated norm.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion.networks._layers import Attention, GroupNorm, Modulation, modulated, over_depth
from jaxprob.models.diffusion.networks._network import Network, check_options
from jaxprob.models.sequence._memory import check_heads
from jaxprob.scan._methods import platform


def _convolution(features: int, name: str, dtype: Any, size: int = 3, strides: int = 1, zero: bool = False) -> nn.Conv:
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (size, size), (strides, strides), dtype=dtype, kernel_init=init, name=name)


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm modulated; then attention where it is asked for."""

    groups: int
    heads: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = nn.silu(GroupNorm(self.groups, name="norm_in")(x))
        y = _convolution(channels, "conv_in", x.dtype)(y)
        y = GroupNorm(self.groups, name="norm_out")(y)
        y = nn.silu(modulated(y, *Modulation(2, channels, name="modulation")(context)))
        x = x + _convolution(channels, "conv_out", x.dtype, zero=True)(y)
        if self.heads is None:
            return x
        y = GroupNorm(self.groups, name="norm_attention")(x).reshape(-1, channels)
        return x + Attention(self.heads, nn.initializers.zeros, name="attention")(y).reshape(x.shape)


class _UNet(Network):
    """Down, at the bottom, up."""

    multiples: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    heads: int = 4
    groups: int = 8

    factory = "unet"

    @property
    def axes(self) -> int:
        return 2

    @property
    def context_width(self) -> int:
        # The first level is too narrow for all that blocks of the others are to know of the time.
        return 4 * self.width

    def run(self, x: jax.Array, context: jax.Array, numbers: int, condition: Any) -> jax.Array:
        sizes, step = x.shape[:2], 2 ** (len(self.multiples) - 1)
        if any(size % step for size in sizes):
            expected = f"a height and a width that {step} divides, for {len(self.multiples)} levels"
            raise core.bad_value(self.name_of, "x", f"of {sizes[0]} x {sizes[1]} places", expected, "Pad it")
        channels = [self.width * multiple for multiple in self.multiples]
        last = len(channels) - 1
        self.check_inputs(x)
        x, kept = _convolution(channels[0], "encoder", x.dtype)(x), []
        for level, features in enumerate(channels):
            if level:
                x = _convolution(features, f"down_{level}", x.dtype, strides=2)(x)
            kept.append(x := self._level(f"down_{level}", x, context, self.heads if level == last else None))
        for level in range(last - 1, -1, -1):
            x = _convolution(channels[level], f"up_{level}", x.dtype)(_doubled(x))
            x = jnp.concatenate([x, kept[level]], -1)
            x = _convolution(channels[level], f"join_{level}", x.dtype, size=1)(x)
            x = self._level(f"up_{level}", x, context)
        x = nn.silu(GroupNorm(self.groups, name="norm")(x))
        return _convolution(numbers, "head", x.dtype, zero=True)(x)

    def _level(self, name: str, x: jax.Array, context: jax.Array, heads: int | None = None) -> jax.Array:
        # In a loop XLA takes twenty times as long for gradients of convolutions on CPU.
        unroll = platform() == "cpu"
        return over_depth(_Block(self.groups, heads, name=f"blocks_{name}"), self.blocks, x, context, unroll=unroll)


def _doubled(x: jax.Array) -> jax.Array:
    """Each place of (height, width, channel) as two by two."""
    height, width, channels = x.shape
    x = jnp.broadcast_to(x.reshape(height, 1, width, 1, channels), (height, 2, width, 2, channels))
    return x.reshape(2 * height, 2 * width, channels)


def unet(
    width: int = 32,
    multiples: tuple[int, ...] = (1, 2, 2),
    blocks: int = 2,
    *,
    heads: int = 4,
    groups: int = 8,
    output: int | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    features: int | None = None,
) -> Network:
    """A U-Net for images x (height, width) or (height, width, channel), whose sides 2^(levels - 1) divides.

    Each level halves the image, and has residual blocks on the way down and on the way up, which are joined; the lowest
    has attention after each block.

    Args:
      width: channels of the first level.
      multiples: channels of each level over the width.
      blocks: residual blocks of a level, each way.
      heads: of attention; divide the channels of the lowest level.
      groups: of channels with a norm of their own; divide the width.
      output: numbers for each number of x, on a last axis of their own; None for one number and no such axis.
      vocabulary: number of tokens where x are integers; the integer after the last is what is masked, and the output
        has as many logits as tokens on a last axis.
      classes: number of labels, where conditions are integers; the integer after the last, or None, stands for none.
      features: length of a condition, where conditions are vectors; None, or a vector of NaN, stands for none.

    Returns:
      a module: `net.init(key, x, t, condition)`, `net.apply(params, x, t, condition)`.

    Raises:
      ValueError: if a number is not whole, heads or groups do not divide what they should, or two options are given
        that exclude each other.

    >>> net = unet(width=8, multiples=(1, 2), blocks=1, heads=2, groups=4)
    >>> x = jnp.ones((4, 6, 1))
    >>> params = net.init(jax.random.key(0), x, 0.5)
    >>> net.apply(params, x, 0.5).shape
    (4, 6, 1)

    Source: Ho, Jain & Abbeel (2020), appendix B, with fewer connections across.
    """
    name = "networks.unet"
    check_options(name, width, output, vocabulary, classes, features)
    core.check_whole(name, blocks=blocks, heads=heads, groups=groups)
    if not isinstance(multiples, tuple) or not multiples:
        raise core.bad_value(name, "multiples", multiples, "a tuple of whole numbers, one a level")
    for one in multiples:
        core.check_whole(name, multiples=one)
    check_heads(name, width * multiples[-1], heads)
    if width % groups:
        raise core.bad_value(name, "groups", groups, f"a number that divides the width {width}")
    return _UNet(width, output, vocabulary, classes, features, multiples, blocks, heads, groups)
