"""Networks whose outputs for each number see only the numbers before it, by masks on their weights.

Source: Germain, Gregor, Murray and Larochelle (2015), "MADE: masked autoencoder for distribution estimation",
section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions.flows._networks import layered


@core.pytree
class MaskedPerceptron:
    """A multilayer perceptron with several outputs for each of `size` numbers, which see the numbers before it.

    What follows those numbers in the input is a context, which every output sees.

    Args:
      weights: arrays (size in, size out): the first takes `size + context_width` numbers, the last gives `size` times
        the outputs of each.
      biases: arrays (size out,).
      size: numbers that are in order.
      context_width: numbers of the context.
      activation: what stands between two affine maps.

    >>> network = MaskedPerceptron.init(jax.random.key(0), 3, (16, 16), 2)
    >>> network(jnp.ones((5, 3))).shape
    (5, 3, 2)
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    size: int = core.static()
    context_width: int = core.static(default=0)
    activation: Callable[[jax.Array], jax.Array] = core.static(default=jax.nn.gelu)

    @classmethod
    def init(
        cls,
        key: core.Key,
        size: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        context_width: int = 0,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        last_scale: float = 0.0,
        dtype: Any = None,
    ) -> MaskedPerceptron:
        """A network with weights of variance 1 / (number of inputs that the mask lets through).

        Args:
          key: random key.
          size: numbers that are in order.
          hidden: size of each hidden layer. With fewer than `size - 1` units some outputs see less than they may.
          outputs: of each number.
          context_width: numbers of the context.
          activation: between layers.
          last_scale: factor of the last weights. With 0 the network is zero at first, and a flow made of it simple.
          dtype: of the parameters.
        """
        key = core.as_key(key, "MaskedPerceptron.init")
        weights = []
        masks = _masks(size, context_width, (*hidden, size * outputs))
        for i, mask in enumerate(masks):
            fans = np.maximum(mask.sum(axis=0), 1).astype(float)
            scale = jnp.asarray((last_scale if i == len(masks) - 1 else 1.0) / np.sqrt(fans), dtype or float)
            weights.append(core.random.normal(core.fold(key, i), mask.shape, scale.dtype) * scale[None, :])
        biases = tuple(jnp.zeros((weight.shape[1],), weight.dtype) for weight in weights)
        return cls(tuple(weights), biases, size, context_width, activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs (..., size, outputs) for inputs (..., size + context_width)."""
        masks = _masks(self.size, self.context_width, tuple(bias.shape[0] for bias in self.biases))
        # A product would let infinite and missing weights through.
        weights = [jnp.where(mask, w, jnp.zeros_like(w)) for w, mask in zip(self.weights, masks, strict=True)]
        x = layered(x, weights, self.biases, self.activation)
        return x.reshape(*x.shape[:-1], self.size, -1)


def _masks(size: int, context_width: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    """Which inputs of each affine map its outputs see, (size in, size out).

    A unit of degree d sees the numbers 0 to d and the context; the outputs of number i see units of degree below i.
    """
    lowest = -1 if context_width or size == 1 else 0
    before = np.concatenate([np.arange(size), np.full(context_width, -1)])
    masks = []
    for width in widths[:-1]:
        degrees = lowest + np.arange(width) * (size - 1 - lowest) // width
        masks.append(before[:, None] <= degrees[None, :])
        before = degrees
    outputs = np.repeat(np.arange(size), math.ceil(widths[-1] / size))
    return [*masks, before[:, None] < outputs[None, :]]
