"""Autoregressive flows: each number goes through a map whose parameters depend on the numbers before it.

Sources: Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow"; Papamakarios, Pavlakou
and Murray (2017), "Masked autoregressive flow for density estimation"; Durkan, Bekasov, Murray and Papamakarios (2019),
"Neural spline flows", for splines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.distributions._bijectors import Bijector, floating
from jaxprob.distributions.flows._affine import RealVectorBijector
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._masked_network import MaskedPerceptron
from jaxprob.distributions.flows._networks import with_context
from jaxprob.distributions.flows._ordered_layers import OnePass, check_layers, stack, vector_size
from jaxprob.distributions.flows._spline import SplineTransformer
from jaxprob.distributions.flows._transformers import AffineTransformer, Transformer


@core.pytree
class Autoregressive(RealVectorBijector):
    """x_i = T(u_i; parameters_i), where the parameters are outputs of a network that sees u_0 to u_(i-1).

    `forward` is one call of the network for all i. `inverse` finds the numbers one after the other, by a scan with one
    call of the network each. The layer of a masked autoregressive flow is `Inverse(Autoregressive(...))`: one call for
    its density, a scan for its draws.

    Args:
      network: `(..., n + context_width) -> (..., n, parameters)`, whose outputs for i see the numbers before i and the
        context: `MaskedPerceptron`, or any callable pytree.
      transformer: makes T from its parameters.
      context: (context_width,), once it is given.
      context_width: numbers of the context.

    >>> network = MaskedPerceptron.init(jax.random.key(0), 3, (8,), 2, last_scale=1.0)
    >>> flow = Autoregressive(network, AffineTransformer())
    >>> bool(jnp.allclose(flow.inverse(flow.forward(jnp.ones(3))), 1.0, atol=1e-5))
    True
    """

    network: Callable[[jax.Array], jax.Array]
    transformer: Transformer = core.static()
    context: Any = None
    context_width: int = core.static(default=0)

    @property
    def context_size(self) -> int:
        return self.context_width if self.context is None else 0

    def given(self, context: Any) -> Autoregressive:
        return Autoregressive(self.network, self.transformer, context, self.context_width)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        x, log_det = self.transformer(self.network(with_context(u, self.context))).forward_and_log_det(u)
        return x, jnp.sum(log_det, axis=-1)

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        x = floating(x)
        x = x.astype(core.result_dtype(x, self))

        def step(u: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            parameters = self.network(with_context(u, self.context))
            parameters = lax.dynamic_index_in_dim(parameters, i, axis=-2, keepdims=False)
            x_i = lax.dynamic_index_in_dim(x, i, axis=-1, keepdims=False)
            u_i, log_det = self.transformer(parameters).inverse_and_log_det(x_i)
            return lax.dynamic_update_index_in_dim(u, u_i, i, axis=-1), log_det

        u, log_dets = scan.scan(step, jnp.zeros_like(x), jnp.arange(x.shape[-1]))
        return u, jnp.sum(log_dets, axis=0)


def build_autoregressive(
    name: str,
    layers: int,
    hidden: tuple[int, ...],
    transformer: Transformer,
    one_pass: OnePass,
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    """What `Architecture.build` does for the flows made of `Autoregressive` layers."""
    size = vector_size(name, shape)

    def layer(i: int) -> Bijector:
        network = MaskedPerceptron.init(
            core.fold(key, i), size, hidden, transformer.parameters, context_width=context_size, dtype=dtype
        )
        return Autoregressive(network, transformer, context_width=context_size)

    return stack([layer(i) for i in range(layers)], one_pass)


def masked_autoregressive(
    layers: int = 5, hidden: Sequence[int] = (64, 64), *, transformer: Transformer | str = "affine"
) -> Architecture:
    """Flows of vectors whose densities take one pass: each layer is `Inverse(Autoregressive(...))`.

    Draws take n calls of each network, one after the other. The order of the numbers is reversed between layers.

    Args:
      layers: number of layers; it costs no compile time.
      hidden: sizes of the hidden layers of each `MaskedPerceptron`.
      transformer: "affine", "spline" (8 bins on [-4, 4]), or an object such as `SplineTransformer(16, 3.0)`.

    Raises:
      TypeError: if `hidden` or `transformer` is something else.
      ValueError: if a number is not whole and positive.

    >>> flow = masked_autoregressive(2, (16,)).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)

    Source: Papamakarios, Pavlakou and Murray (2017), section 3.1.
    """
    return _architecture("masked_autoregressive", layers, hidden, transformer, "density")


def inverse_autoregressive(
    layers: int = 5, hidden: Sequence[int] = (64, 64), *, transformer: Transformer | str = "affine"
) -> Architecture:
    """Flows of vectors that are drawn, each draw with its log density, in one pass; for variational guides.

    Densities of other vectors take n calls of each network, one after the other. The order of the numbers is reversed
    between layers.

    Args:
      layers: number of layers; it costs no compile time.
      hidden: sizes of the hidden layers of each `MaskedPerceptron`.
      transformer: "affine", "spline" (8 bins on [-4, 4]), or an object such as `SplineTransformer(16, 3.0)`.

    Raises:
      TypeError: if `hidden` or `transformer` is something else.
      ValueError: if a number is not whole and positive.

    >>> flow = inverse_autoregressive(2, (16,)).init(jax.random.key(0), 3)
    >>> flow.sample(jax.random.key(1), (5,)).shape
    (5, 3)

    Source: Kingma et al. (2016), section 3.
    """
    return _architecture("inverse_autoregressive", layers, hidden, transformer, "sampling")


def _architecture(
    name: str, layers: int, hidden: Sequence[int], transformer: Transformer | str, one_pass: OnePass
) -> Architecture:
    hidden = check_layers(name, layers, hidden)
    transformer = _transformer(name, transformer)
    return Architecture(name, core.Bound(build_autoregressive, name, layers, hidden, transformer, one_pass))


def _transformer(name: str, value: Transformer | str) -> Transformer:
    if value == "affine":
        return AffineTransformer()
    if value == "spline":
        return SplineTransformer(8, 4.0)
    if isinstance(value, str) or not (callable(value) and hasattr(value, "parameters")):
        expected = "'affine', 'spline' or a transformer such as AffineTransformer()"
        raise core.bad_type(name, "transformer", value, expected)
    return value
