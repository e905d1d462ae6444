"""Bijectors whose parameters depend on a context, whatever the bijector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, Shape, floating
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._networks import Perceptron
from jaxprob.distributions.flows._ordered_layers import check_layers


@core.pytree
class Conditional(Bijector):
    """A bijector each of whose leaves is the sum of itself and of what a network makes of a context.

    Args:
      bijector: one whose leaves may be any real numbers and that takes no context itself.
      network: `(context_width,) -> (total size of those leaves,)`: `Perceptron`, or any callable pytree.
      context_width: numbers of the context.
      context: (context_width,), once it is given.

    Raises:
      ValueError: if the bijector has no leaves or takes a context.

    >>> from jaxprob.distributions.flows import DiagonalAffine
    >>> affine = DiagonalAffine(jnp.zeros(2), jnp.zeros(2))
    >>> conditional = Conditional(affine, jax.tree_util.Partial(lambda context: jnp.pad(context, (0, 2))), 2)
    >>> conditional.given(jnp.array([3.0, 4.0])).forward(jnp.zeros(2)).tolist()
    [3.0, 4.0]
    """

    bijector: Bijector
    network: Callable[[jax.Array], jax.Array]
    context_width: int = core.static()
    context: Any = None

    def __post_init__(self) -> None:
        if self.bijector.context_size:
            raise core.bad_value("Conditional", "bijector", "one that takes a context", "one that takes none itself")
        if not jax.tree.leaves(self.bijector):
            raise core.bad_value("Conditional", "bijector", "without leaves", "one that has parameters")

    @property
    def event_ndims_in(self) -> int:
        return self.bijector.event_ndims_in

    @property
    def event_ndims_out(self) -> int:
        return self.bijector.event_ndims_out

    @property
    def context_size(self) -> int:
        return self.context_width if self.context is None else 0

    @property
    def keeps_reals(self) -> bool:
        return self.bijector.keeps_reals

    def given(self, context: Any) -> Conditional:
        return Conditional(self.bijector, self.network, self.context_width, context)

    def forward_shape(self, shape: Shape) -> Shape:
        return self.bijector.forward_shape(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        return self.bijector.inverse_shape(shape)

    def _at_context(self) -> Bijector:
        if self.context is None:
            raise core.bad_value("Conditional", "context", None, "a context", "Use flow.given(context)")
        leaves, structure = jax.tree.flatten(self.bijector)
        changes = self.network(floating(self.context))
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        ends = np.cumsum([leaf.size for leaf in leaves])
        if changes.shape != (ends[-1],):
            got, expected = f"one with an output of shape {changes.shape}", f"shape ({ends[-1]},), one for each number"
            raise core.bad_value("Conditional", "network", got, f"{expected} in the leaves")
        parts = zip(leaves, jnp.split(changes, ends[:-1]), strict=True)
        moved = [leaf + part.reshape(leaf.shape).astype(leaf.dtype) for leaf, part in parts]
        return jax.tree.unflatten(structure, moved)

    def forward(self, u: Any) -> jax.Array:
        return self._at_context().forward(u)

    def inverse(self, x: Any) -> jax.Array:
        return self._at_context().inverse(x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return self._at_context().forward_and_log_det(u)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return self._at_context().inverse_and_log_det(x)


def conditional(architecture: Architecture, hidden: Sequence[int] = (64, 64)) -> Architecture:
    """Flows of any architecture with all parameters changed by a context, through a network that is zero at first.

    Args:
      architecture: of the flow; it needs to know nothing of contexts.
      hidden: sizes of the hidden layers of the `Perceptron` from the context to all parameters, of which there may be
        many: architectures that take a context themselves, such as `masked_autoregressive`, need fewer.

    Raises:
      TypeError: if an argument is something else.

    >>> from jaxprob.distributions.flows import block_autoregressive
    >>> flow = conditional(block_autoregressive(1, 4), (16,)).init(jax.random.key(0), 2, context_size=3)
    >>> flow.given(jnp.ones(3)).log_prob(jnp.zeros(2)).shape
    ()
    """
    if not isinstance(architecture, Architecture):
        raise core.bad_type("conditional", "architecture", architecture, "what a factory of flows returns")
    hidden = check_layers("conditional", 1, hidden)
    return Architecture(f"conditional {architecture.name}", core.Bound(_build, architecture, hidden))


def _build(
    architecture: Architecture,
    hidden: tuple[int, ...],
    key: core.Key,
    shape: tuple[int, ...],
    context_size: int,
    dtype: Any,
) -> Bijector:
    if context_size == 0:
        raise core.bad_value("conditional", "context_size", 0, "a whole number, 1 or more")
    bijector = architecture.build(core.fold(key, 0), shape, 0, dtype)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(bijector))
    network = Perceptron.init(core.fold(key, 1), (context_size, *hidden, total), dtype=dtype)
    return Conditional(bijector, network, context_size)
