"""Coupling layers: one half of an array goes through maps whose parameters a network makes of the other half.

Sources: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP"; Durkan, Bekasov, Murray and
Papamakarios (2019), "Neural spline flows", for splines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import nn

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, Inverse, floating, sum_last
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._networks import Perceptron, with_context
from jaxprob.distributions.flows._ordered_layers import check_layers, vector_size
from jaxprob.distributions.flows._repeated import Repeated
from jaxprob.distributions.flows._spline import SplineTransformer
from jaxprob.distributions.flows._transformers import AffineTransformer, Transformer


@core.pytree
class Coupling(Bijector):
    """x = (T(b; parameters), a) for u = (a, b) along the last axis, where the parameters are outputs for a.

    The two halves change places, so that the next layer of the same structure changes what this one has not. Both
    directions take one call of the network.

    Args:
      network: `(..., split + context_width) -> (..., (n - split) * parameters)`: `Perceptron`, or any callable pytree.
      transformer: makes T from its parameters.
      split: size of a, 1 to n - 1.
      ndims: number of axes of the event: 1 for vectors, 3 for images (height, width, channels), of which the network
        then maps all pixels together.
      context: (context_width,), once it is given.
      context_width: numbers of the context.

    >>> network = jax.tree_util.Partial(lambda a: jnp.concatenate([a, jnp.zeros_like(a)], axis=-1))
    >>> Coupling(network, AffineTransformer(), 1).forward(jnp.array([2.0, 3.0])).tolist()
    [5.0, 2.0]
    """

    network: Callable[[jax.Array], jax.Array]
    transformer: Transformer = core.static()
    split: int = core.static()
    ndims: int = core.static(default=1)
    context: Any = None
    context_width: int = core.static(default=0)

    @property
    def event_ndims_in(self) -> int:
        return self.ndims

    @property
    def event_ndims_out(self) -> int:
        return self.ndims

    @property
    def keeps_reals(self) -> bool:
        return True

    @property
    def context_size(self) -> int:
        return self.context_width if self.context is None else 0

    def given(self, context: Any) -> Coupling:
        return Coupling(self.network, self.transformer, self.split, self.ndims, context, self.context_width)

    def _map(self, a: jax.Array, size: int) -> Bijector:
        parameters = self.network(with_context(a, self.context))
        return self.transformer(parameters.reshape(*a.shape[:-1], size, self.transformer.parameters))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return _kept(Coupling._forward)(self, floating(u))

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return _kept(Coupling._back)(self, floating(x))

    def _forward(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = jnp.split(u, [self.split], axis=-1)
        b, log_det = self._map(a, b.shape[-1]).forward_and_log_det(b)
        return jnp.concatenate([b, a], axis=-1), sum_last(log_det, self.ndims)

    def _back(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        b, a = jnp.split(x, [x.shape[-1] - self.split], axis=-1)
        b, log_det = self._map(a, b.shape[-1]).inverse_and_log_det(b)
        return jnp.concatenate([a, b], axis=-1), sum_last(log_det, self.ndims)

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]


def _is_product(primitive: Any, *operands: Any, **params: Any) -> bool:
    """Whether an operation is a product that is dear beside its result: one that sums over 16 numbers or more."""
    if primitive.name == "dot_general":
        summed = params["dimension_numbers"][0][0]
        return math.prod(operands[0].shape[axis] for axis in summed) >= 16
    return primitive.name == "conv_general_dilated"


# A gradient is given the products of the networks and computes all else again: less to write down and to read than
# some fifty arrays a layer, most of which belong to the splines.
_kept = functools.partial(jax.checkpoint, prevent_cse=False, policy=_is_product)


def _build(
    name: str,
    layers: int,
    hidden: tuple[int, ...],
    transformer: Transformer,
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    size = vector_size(name, shape)
    if size < 2:
        todo = "Use a flow without coupling, such as masked_autoregressive, for one number"
        raise core.bad_value(name, "shape", str(shape), "that of a vector of 2 numbers or more", todo)
    split = size // 2
    sizes = (split + context_size, *hidden, (size - split) * transformer.parameters)

    def layer(i: int) -> Bijector:
        network = Perceptron.init(core.fold(key, i), sizes, activation=nn.relu, dtype=dtype)
        return Coupling(network, transformer, split, context_width=context_size)

    # Turned round, so that the formula of the spline, not that of its inverse, is in the density of data.
    return Inverse(Repeated.of([layer(i) for i in range(layers)]))


def affine_coupling(layers: int = 8, hidden: Sequence[int] = (64, 64)) -> Architecture:
    """Flows of vectors (Real NVP): `Coupling` layers with affine maps; draws and densities take one pass.

    Args:
      layers: number of layers, each of which changes one half of the numbers; it costs no compile time.
      hidden: sizes of the hidden layers of each `Perceptron`.

    Raises:
      TypeError: if `hidden` is something else.
      ValueError: if a number is not whole and positive.

    >>> flow = affine_coupling(2, (16,)).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)

    Source: Dinh, Sohl-Dickstein and Bengio (2017), section 3.2.
    """
    name = "affine_coupling"
    hidden = check_layers(name, layers, hidden)
    return Architecture(name, core.Bound(_build, name, layers, hidden, AffineTransformer()))


def spline_coupling(
    layers: int = 6, hidden: Sequence[int] = (64, 64), bins: int = 8, interval: float = 4.0
) -> Architecture:
    """Flows of vectors made of `Coupling` layers with rational-quadratic splines; draws and densities take one pass.

    Numbers beyond the interval stay as they are: let the data have mean 0 and standard deviation 1 or so.

    Args:
      layers: number of layers, each of which changes one half of the numbers; it costs no compile time.
      hidden: sizes of the hidden layers of each `Perceptron`.
      bins: of each spline.
      interval: splines change what lies in [-interval, interval].

    Raises:
      TypeError: if `hidden` is something else.
      ValueError: if a number is not positive, or one but `interval` not whole.

    >>> flow = spline_coupling(2, (16,)).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)

    Source: Durkan, Bekasov, Murray and Papamakarios (2019), section 4.
    """
    name = "spline_coupling"
    hidden = check_layers(name, layers, hidden)
    core.check_whole(name, bins=bins)
    core.check_positive(name, interval=interval)
    return Architecture(name, core.Bound(_build, name, layers, hidden, SplineTransformer(bins, interval)))
