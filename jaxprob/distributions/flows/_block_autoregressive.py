"""Block neural autoregressive flows: one network whose blocks of weights make every output increase with its input.

Source: De Cao, Titov and Aziz (2019), "Block neural autoregressive flow".
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core, scan
from jaxprob.distributions._bijectors import Bijector, floating, log_sech_squared
from jaxprob.distributions._parameters import align
from jaxprob.distributions.flows._affine import RealVectorBijector
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._networks import times
from jaxprob.distributions.flows._ordered_layers import OnePass, check_layers, check_one_pass, stack, vector_size
from jaxprob.distributions.flows._roots import increasing_root


@core.pytree
class BlockLinear:
    """An affine map between n blocks of numbers, in which each block sees itself by positive weights, and those before.

    The weights of an output have norm exp(log_scale), as in the paper.

    Args:
      log_diagonal: (n, block in, block out), logarithms of the weights within a block, up to a factor of each output.
      lower: (n * block in, n * block out), weights from the blocks before, up to that factor; the rest is not read.
      log_scale: (n * block out,).
      bias: (n * block out,).
    """

    log_diagonal: jax.Array
    lower: jax.Array
    log_scale: jax.Array
    bias: jax.Array

    @classmethod
    def init(cls, key: core.Key, size: int, before: int, after: int, log_scale: float, dtype: Any) -> BlockLinear:
        """Random weights and biases of `size` blocks of `before` numbers in and `after` numbers out."""
        draw = functools.partial(core.random.normal, dtype=dtype or float)
        log_diagonal = draw(core.fold(key, 0), (size, before, after))
        lower = draw(core.fold(key, 1), (size * before, size * after))
        bias = draw(core.fold(key, 2), (size * after,))
        return cls(log_diagonal, lower, jnp.full_like(bias, log_scale), bias)

    def weights(self) -> tuple[jax.Array, jax.Array]:
        """The matrix (n * block in, n * block out), and the logarithms (n, block in, block out) of its blocks."""
        size, before, after = self.log_diagonal.shape
        block_in, block_out = np.repeat(np.arange(size), before), np.repeat(np.arange(size), after)
        lower = jnp.where(block_in[:, None] < block_out[None, :], self.lower, 0.0)
        within = core.logsumexp(2 * self.log_diagonal, axis=1).reshape(-1)
        log_factor = self.log_scale - 0.5 * core.logaddexp(within, core.safe_log(jnp.sum(lower**2, axis=0)))
        log_diagonal = self.log_diagonal + log_factor.reshape(size, 1, after)
        same = jnp.asarray(np.eye(size, dtype=bool)[:, None, :, None])
        diagonal = jnp.where(same, jnp.exp(log_diagonal)[:, :, None, :], 0.0).reshape(lower.shape)
        return diagonal + lower * jnp.exp(log_factor)[None, :], log_diagonal


@core.pytree
class BlockAutoregressive(RealVectorBijector):
    """x_i = exp(log_slope_i) u_i + f_i(u_0, ..., u_i), with f_i increasing in u_i: a network of blocks with tanh.

    `forward` is one pass. `inverse` finds the numbers one after the other, each as the root of an increasing function
    between two ends that are known since tanh is bounded; its derivatives are those of the implicit function theorem.
    The term beside the network is the residual connection of the paper; without it not all of the real numbers would
    be values of x.

    Args:
      log_slope: (n,).
      layers: affine maps between blocks, of one number each at both ends.
      from_context: (context_width, n * block), weights of a context in the first of them.
      context: (context_width,), once it is given.
      context_width: numbers of the context.
    """

    log_slope: jax.Array
    layers: tuple[BlockLinear, ...]
    from_context: jax.Array | None = None
    context: Any = None
    context_width: int = core.static(default=0)

    @property
    def context_size(self) -> int:
        return self.context_width if self.context is None else 0

    def given(self, context: Any) -> BlockAutoregressive:
        return BlockAutoregressive(self.log_slope, self.layers, self.from_context, context, self.context_width)

    def _weights(self) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        """The matrix, the logarithms of its blocks and the biases of each affine map, the context among the biases."""
        weights = [(*layer.weights(), layer.bias) for layer in self.layers]
        if self.from_context is not None:
            matrix, log_diagonal, bias = weights[0]
            context = floating(self.context).astype(bias.dtype)
            weights[0] = matrix, log_diagonal, bias + times(context, self.from_context)
        return weights

    def _apply(self, weights: Any, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and the logarithms (..., n) of dx_i / du_i: products of positive matrices, summed as logarithms."""
        hidden, log_slope = u, jnp.zeros((*u.shape, 1), u.dtype)
        for i, (matrix, log_diagonal, bias) in enumerate(weights):
            hidden, bias = align(times(hidden, matrix), bias)
            hidden = hidden + bias
            terms, log_diagonal = align(log_slope[..., None], log_diagonal)
            log_slope = core.logsumexp(terms + log_diagonal, axis=-2)
            if i < len(weights) - 1:
                log_slope = log_slope + log_sech_squared(hidden).reshape(log_slope.shape)
                hidden = jnp.tanh(hidden)
        u, beside = align(u, self.log_slope)
        return jnp.exp(beside) * u + hidden, core.logaddexp(beside, log_slope[..., 0])

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        x, log_slopes = self._apply(self._weights(), floating(u))
        return x, jnp.sum(log_slopes, axis=-1)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        x = x.astype(core.result_dtype(x, self))
        weights = self._weights()
        matrix, _, bias = weights[-1]
        centre, reach, slope = align(x, bias, jnp.sum(jnp.abs(matrix), axis=0), jnp.exp(self.log_slope))[1:]
        low, high = (x - centre - reach) / slope, (x - centre + reach) / slope

        def step(u: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            def part(array: jax.Array) -> jax.Array:
                return lax.dynamic_index_in_dim(array, i, axis=-1, keepdims=False)

            def off(u_i: jax.Array) -> jax.Array:
                return part(self._apply(weights, lax.dynamic_update_index_in_dim(u, u_i, i, axis=-1))[0]) - part(x)

            return lax.dynamic_update_index_in_dim(u, increasing_root(off, part(low), part(high)), i, axis=-1), None

        return scan.scan(step, jnp.zeros_like(x), jnp.arange(x.shape[-1]))[0]


def block_autoregressive(
    layers: int = 2, block: int = 16, *, hidden_layers: int = 2, one_pass: OnePass = "density"
) -> Architecture:
    """Flows of vectors made of `BlockAutoregressive` layers, between which the order of the numbers is reversed.

    It wants larger steps than other flows: on two moons this size reaches 1.08 nats a test point in 1,500 steps of Adam
    with a rate of 0.01 that falls to 0, and 1.26 with one of 0.002.

    Args:
      layers: number of layers; it costs no compile time.
      block: hidden units of each number.
      hidden_layers: of each network.
      one_pass: the direction that takes one pass: "density", for data, or "sampling", draws with their log density,
        for variational guides. The other finds n roots one after the other.

    Raises:
      ValueError: if a number is not whole and positive, or `one_pass` is something else.

    >>> flow = block_autoregressive(2, 4).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)

    Source: De Cao, Titov and Aziz (2019), section 3.
    """
    check_layers("block_autoregressive", layers, ())
    core.check_whole("block_autoregressive", block=block, hidden_layers=hidden_layers)
    check_one_pass("block_autoregressive", one_pass)
    return Architecture("block_autoregressive", core.Bound(_build, layers, block, hidden_layers, one_pass))


# The network adds about this much to u at first.
_FIRST_SCALE = math.log(0.1)


def _build(
    layers: int,
    block: int,
    hidden_layers: int,
    one_pass: OnePass,
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    size = vector_size("block_autoregressive", shape)
    widths = (1, *(block,) * hidden_layers, 1)

    def layer(i: int) -> Bijector:
        maps = []
        for j, (before, after) in enumerate(itertools.pairwise(widths)):
            scale = _FIRST_SCALE if j == hidden_layers else 0.0
            maps.append(BlockLinear.init(core.fold(key, i, j), size, before, after, scale, dtype))
        scale = 1 / math.sqrt(max(context_size, 1))
        from_context = scale * core.random.normal(
            core.fold(key, i, len(maps)), (context_size, size * block), dtype or float
        )
        log_slope = jnp.zeros((size,), from_context.dtype)
        return BlockAutoregressive(
            log_slope, tuple(maps), from_context if context_size else None, context_width=context_size
        )

    return stack([layer(i) for i in range(layers)], one_pass)
