"""Depth by a scan: layers of one structure, one after the other, whose number costs no compile time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions._bijectors import Bijector, Shape, floating


@core.pytree
class Repeated(Bijector):
    """Layers of one structure applied one after the other, the first in the stack first.

    Args:
      layers: a bijector whose leaves have a leading axis (layer, ...); `Repeated.of` stacks a list. Each layer keeps
        the shape of its argument.
      context: (context_size,), once it is given.

    >>> from jaxprob.distributions.flows import DiagonalAffine
    >>> layers = [DiagonalAffine(jnp.ones(1), jnp.zeros(1)) for _ in range(3)]
    >>> Repeated.of(layers).forward(jnp.zeros(1)).tolist()
    [3.0]
    """

    layers: Bijector
    context: Any = None

    @classmethod
    def of(cls, layers: list[Bijector]) -> Repeated:
        """A stack of layers of one structure."""
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))

    @property
    def event_ndims_in(self) -> int:
        return self.layers.event_ndims_in

    @property
    def event_ndims_out(self) -> int:
        return self.layers.event_ndims_out

    @property
    def context_size(self) -> int:
        return self.layers.context_size if self.context is None else 0

    @property
    def keeps_reals(self) -> bool:
        return self.layers.keeps_reals

    def given(self, context: Any) -> Repeated:
        return Repeated(self.layers, context)

    def forward_shape(self, shape: Shape) -> Shape:
        return tuple(shape)

    def _layer(self, layer: Bijector) -> Bijector:
        return layer if self.context is None else layer.given(self.context)

    def forward(self, u: Any) -> jax.Array:
        return scan.scan(lambda x, layer: (self._layer(layer).forward(x), None), floating(u), self.layers)[0]

    def inverse(self, x: Any) -> jax.Array:
        def back(x: jax.Array, layer: Bijector) -> tuple[jax.Array, None]:
            return self._layer(layer).inverse(x), None

        return scan.scan(back, floating(x), self.layers, reverse=True)[0]

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, layer: Bijector) -> Any:
            x, log_det = self._layer(layer).forward_and_log_det(carry[0])
            return (x, carry[1] + log_det), None

        return scan.scan(step, self._start(u), self.layers)[0]

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        def back(carry: Any, layer: Bijector) -> Any:
            u, log_det = self._layer(layer).inverse_and_log_det(carry[0])
            return (u, carry[1] + log_det), None

        return scan.scan(back, self._start(x), self.layers, reverse=True)[0]

    def _start(self, value: Any) -> tuple[jax.Array, jax.Array]:
        value = floating(value)
        return value, jnp.zeros(value.shape[: value.ndim - self.event_ndims_in], value.dtype)
