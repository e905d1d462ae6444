"""Networks inside of bijectors: callable pytrees whose leaves are parameters.

Any callable pytree will do where a flow wants a network, such as `jax.tree_util.Partial(module.apply, variables)`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._parameters import align


@core.pytree
class Perceptron:
    """A multilayer perceptron: affine maps with an activation between them.

    Args:
      weights: arrays (size in, size out).
      biases: arrays (size out,).
      activation: what stands between two of them.

    >>> network = Perceptron.init(jax.random.key(0), (2, 16, 3))
    >>> network(jnp.ones((5, 2))).shape
    (5, 3)
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    activation: Callable[[jax.Array], jax.Array] = core.static(default=jax.nn.gelu)

    @classmethod
    def init(
        cls,
        key: core.Key,
        sizes: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        last_scale: float = 0.0,
        dtype: Any = None,
    ) -> Perceptron:
        """A network with weights of variance 1 / size in.

        Args:
          key: random key.
          sizes: of the input, of each hidden layer, and of the output.
          activation: between layers.
          last_scale: factor of the last weights. With 0 the network is zero at first, and a flow made of it simple.
          dtype: of the parameters.
        """
        key = core.as_key(key, "Perceptron.init")
        weights = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            scale = (last_scale if i == len(sizes) - 2 else 1.0) / math.sqrt(max(before, 1))
            weights.append(scale * core.random.normal(core.fold(key, i), (before, after), dtype or float))
        biases = tuple(jnp.zeros((weight.shape[1],), weight.dtype) for weight in weights)
        return cls(tuple(weights), biases, activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output (..., size out) for inputs (..., size in)."""
        return layered(x, self.weights, self.biases, self.activation)


def layered(
    x: jax.Array,
    weights: Sequence[jax.Array],
    biases: Sequence[jax.Array],
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Affine maps of vectors (..., size in) with an activation between them.

    Inside, units lead and examples are contiguous: on CPU the gradients of weights take half of the time then, and
    splines of the outputs want one parameter of all examples side by side.
    """
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = jnp.tensordot(weight, x, axes=(0, 0 if i else x.ndim - 1), precision=jax.lax.Precision.HIGHEST)
        x, bias = align(x, jnp.expand_dims(bias, tuple(range(1, x.ndim))))
        x = x + bias
        if i < len(weights) - 1:
            x = activation(x)
    return jnp.moveaxis(x, 0, -1)


def times(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Vectors (..., n) times one matrix (n, k), at the highest precision: one product, whatever the leading axes."""
    return jnp.tensordot(x, matrix, axes=1, precision=jax.lax.Precision.HIGHEST)


def with_context(x: jax.Array, context: Any) -> jax.Array:
    """The input of a network: `x` (..., n), followed by the context (k,) if there is one."""
    if context is None:
        return x
    x, context = align(x, context)
    return jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1]))], axis=-1)
