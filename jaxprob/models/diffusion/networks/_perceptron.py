"""A perceptron for x of any shape, laid flat.

Source: He, Zhang, Ren & Sun (2016), "Identity mappings in deep residual networks", for the blocks; Perez, Strub, De
Vries, Dumoulin & Courville (2018), "FiLM", for how a time enters each.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion.networks._layers import Modulation, modulated, normalized, over_depth
from jaxprob.models.diffusion.networks._network import Network, check_options
from jaxprob.models.sequence._layers import Linear


class _Block(nn.Module):
    """x + W silu(V norm(x) + b), the norm modulated by a context."""

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = modulated(normalized(x), *Modulation(2, width, name="modulation")(context))
        y = nn.silu(Linear(width, name="up")(y))
        return x + Linear(width, name="down")(y)


class _Perceptron(Network):
    """All numbers of x in one vector."""

    depth: int = 3

    factory = "perceptron"

    def embedded(self, x: jax.Array) -> jax.Array:
        # Each site has vectors of its own in the first layer, which a table for all of them would only narrow.
        assert self.vocabulary is not None
        known = (x >= 0) & (x <= self.vocabulary)
        kernel = self.first_kernel()
        hot = jax.nn.one_hot(x, self.vocabulary + 1, dtype=jnp.float32 if kernel is None else kernel.dtype)
        return jnp.where(jnp.expand_dims(known, -1), hot, jnp.nan)

    def run(self, x: jax.Array, context: jax.Array, numbers: int, condition: Any) -> jax.Array:
        self.check_inputs(x)
        x = Linear(self.width, name="encoder")(x) + context
        x = over_depth(_Block(name="blocks"), self.depth, x, context)
        return Linear(numbers, init=nn.initializers.zeros, name="head")(nn.silu(x))


def perceptron(
    width: int = 128,
    depth: int = 3,
    *,
    output: int | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    features: int | None = None,
) -> Network:
    """A residual perceptron for examples of any shape, laid flat.

    Args:
      width: numbers of a hidden layer.
      depth: number of blocks of two layers.
      output: numbers for each number of x, on a last axis of their own; None for one number and no such axis.
      vocabulary: number of tokens where x are integers; the integer after the last is what is masked, and the output
        has as many logits as tokens on a last axis.
      classes: number of labels, where conditions are integers; the integer after the last, or None, stands for none.
      features: length of a condition, where conditions are vectors; None, or a vector of NaN, stands for none.

    Returns:
      a module: `net.init(key, x, t, condition)`, `net.apply(params, x, t, condition)`.

    Raises:
      ValueError: if a number is not whole, or two are given that exclude each other.

    >>> net = perceptron(width=16, depth=2)
    >>> x = jnp.ones((3, 2))
    >>> params = net.init(jax.random.key(0), x, 0.5)
    >>> net.apply(params, x, 0.5).shape
    (3, 2)

    Source: He et al. (2016), figure 1b.
    """
    name = "networks.perceptron"
    check_options(name, width, output, vocabulary, classes, features)
    core.check_whole(name, depth=depth)
    return _Perceptron(width, output, vocabulary, classes, features, depth)
