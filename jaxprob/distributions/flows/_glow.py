"""Glow: flows of images, of coupling layers at several resolutions.

Source: Kingma and Dhariwal (2018), "Glow: generative flow with invertible 1x1 convolutions"; the split of half of the
channels at each resolution is that of Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP",
section 3.6.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, Chain, IndependentBijector, Inverse, Shape, floating
from jaxprob.distributions._parameters import align
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._coupling import Coupling
from jaxprob.distributions.flows._linear import ActNorm, LowerUpper, Squeeze
from jaxprob.distributions.flows._networks import times
from jaxprob.distributions.flows._repeated import Repeated
from jaxprob.distributions.flows._transformers import AffineTransformer


@core.pytree
class Convolutions:
    """A small convolutional network: 3x3, 1x1 and 3x3 convolutions that keep the size of the image, relu between.

    Args:
      kernels: arrays (height, width, channels in, channels out).
      biases: arrays (channels out,).

    >>> Convolutions.init(jax.random.key(0), 2, 8, 3)(jnp.ones((5, 4, 4, 2))).shape
    (5, 4, 4, 3)
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]

    @classmethod
    def init(cls, key: core.Key, before: int, hidden: int, after: int, dtype: Any = None) -> Convolutions:
        """A network from `before` to `after` channels that is zero at first.

        Args:
          key: random key.
          before: channels of the input.
          hidden: channels within.
          after: channels of the output.
          dtype: of the parameters.
        """
        key = core.as_key(key, "Convolutions.init")
        shapes = [(3, 3, before, hidden), (1, 1, hidden, hidden), (3, 3, hidden, after)]
        kernels = [
            math.sqrt(2 / math.prod(shape[:3])) * core.random.normal(core.fold(key, i), shape, dtype or float)
            for i, shape in enumerate(shapes)
        ]
        kernels[-1] = jnp.zeros_like(kernels[-1])
        return cls(tuple(kernels), tuple(jnp.zeros((shape[-1],), kernels[0].dtype) for shape in shapes))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (..., height, width, channels out) of images (..., height, width, channels in)."""
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x, bias = align(times(_windows(x, kernel.shape[0]), kernel.reshape(-1, kernel.shape[-1])), bias)
            x = x + bias
            if i < len(self.kernels) - 1:
                x = jax.nn.relu(x)
        return x


def _windows(x: jax.Array, size: int) -> jax.Array:
    """The size x size pixels about each pixel, zeros beyond the edges: (..., height, width, size^2 channels).

    A convolution is then a matrix product, which for images as small as these is many times as fast on CPU as XLA's
    convolutions and their gradients.
    """
    height, width = x.shape[-3:-1]
    margin = (size // 2, size // 2)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [margin, margin, (0, 0)])
    parts = [padded[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, axis=-1)


@core.pytree
class LastChannels(Bijector):
    """A bijector of images applied to their last channels; the first ones stay as they are.

    Args:
      bijector: keeps the shape of images.
      kept: number of the first channels.

    >>> from jaxprob.distributions import Affine, IndependentBijector
    >>> LastChannels(IndependentBijector(Affine(1.0), 3), 1).forward(jnp.zeros((1, 1, 2))).tolist()
    [[[0.0, 1.0]]]
    """

    bijector: Bijector
    kept: int = core.static()

    @property
    def event_ndims_in(self) -> int:
        return 3

    @property
    def event_ndims_out(self) -> int:
        return 3

    @property
    def context_size(self) -> int:
        return self.bijector.context_size

    @property
    def keeps_reals(self) -> bool:
        return self.bijector.keeps_reals

    def given(self, context: Any) -> LastChannels:
        return LastChannels(self.bijector.given(context), self.kept)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        kept, rest = jnp.split(floating(u), [self.kept], axis=-1)
        rest, log_det = self.bijector.forward_and_log_det(rest)
        return jnp.concatenate([kept, rest], axis=-1), log_det

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        kept, rest = jnp.split(floating(x), [self.kept], axis=-1)
        rest, log_det = self.bijector.inverse_and_log_det(rest)
        return jnp.concatenate([kept, rest], axis=-1), log_det

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]


def _build(
    levels: int, steps: int, hidden: int, key: core.Key, shape: Shape, context_size: int, dtype: Any
) -> Bijector:
    factor = 2**levels
    if len(shape) != 3 or 0 in shape or shape[0] % factor or shape[1] % factor:
        expected = f"(height, width, channels), with height and width multiples of {factor} for {levels} levels"
        raise core.bad_value("glow", "shape", str(shape), expected)

    inner: list[Bijector] = []
    for level in reversed(range(levels)):  # from the noise that enters last to the image
        channels = 4 * shape[-1] * 2**level
        order = tuple(np.arange(channels).reshape(2, -1).T.reshape(-1).tolist())  # from both halves in turns

        def step(i: int, level: int = level, channels: int = channels, order: tuple[int, ...] = order) -> Bijector:
            split = channels // 2
            network = Convolutions.init(
                core.fold(key, level, i), split + context_size, hidden, 2 * (channels - split), dtype
            )
            zeros = jnp.zeros((channels,), dtype or float)
            norm = IndependentBijector(ActNorm(zeros, zeros), 2)
            mixed = IndependentBijector(LowerUpper.identity(order, dtype), 2)
            return Chain((Coupling(network, AffineTransformer(), split, 3, context_width=context_size), mixed, norm))

        rest = [LastChannels(bijector, channels // 2) for bijector in inner]
        inner = [Chain((Squeeze(), *rest, Repeated.of([step(i) for i in range(steps)]), Inverse(Squeeze())))]
    return inner[0]


def glow(levels: int = 2, steps: int = 4, hidden: int = 32) -> Architecture:
    """Flows of images (height, width, channels): at each level a squeeze and steps; then half of the channels leave.

    A step is a normalisation of each channel (`ActNorm`), a 1x1 convolution (`LowerUpper`) and an affine `Coupling`
    with `Convolutions`. Shapes within stay those of the image: the noise is an image as well.

    Args:
      levels: number of resolutions; height and width are multiples of `2 ** levels`.
      steps: of each level; it costs no compile time.
      hidden: channels within the networks.

    Raises:
      ValueError: if one is not whole and positive.

    >>> flow = glow(1, 2, 8).init(jax.random.key(0), (4, 4, 1))
    >>> flow.log_prob(jnp.zeros((5, 4, 4, 1))).shape
    (5,)
    """
    core.check_whole("glow", levels=levels, steps=steps, hidden=hidden)
    return Architecture("glow", core.Bound(_build, levels, steps, hidden))
