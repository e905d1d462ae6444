"""What the flows of vectors whose numbers come in an order have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, Chain, Inverse, floating
from jaxprob.distributions.flows._affine import RealVectorBijector
from jaxprob.distributions.flows._repeated import Repeated

OnePass = Literal["density", "sampling"]


@core.pytree
class Reversal(RealVectorBijector):
    """The numbers of a vector in the opposite order.

    >>> Reversal().forward(jnp.arange(3.0)).tolist()
    [2.0, 1.0, 0.0]
    """

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return jnp.flip(u, axis=-1), jnp.zeros(u.shape[:-1], u.dtype)

    def inverse(self, x: Any) -> jax.Array:
        return jnp.flip(floating(x), axis=-1)


def stack(layers: list[Bijector], one_pass: OnePass) -> Bijector:
    """Layers one after the other with the order reversed between them, whose quick direction is the one named."""
    turned = [Inverse(layer) if one_pass == "density" else layer for layer in layers]
    return Repeated.of([Chain((layer, Reversal())) for layer in turned])


def vector_size(name: str, shape: tuple[int, ...]) -> int:
    """The size of a vector; raises a `ValueError` for a shape that is not one."""
    if len(shape) != 1 or shape[0] < 1:
        raise core.bad_value(name, "shape", str(shape), "that of a vector", "Flatten the data")
    return shape[0]


def check_layers(name: str, layers: Any, hidden: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the hidden layers, checked as the number of layers is."""
    core.check_whole(name, layers=layers)
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise core.bad_type(name, "hidden", hidden, "sizes of hidden layers, such as (64, 64)")
    for width in hidden:
        core.check_whole(name, hidden=width)
    return tuple(hidden)


def check_one_pass(name: str, one_pass: Any) -> None:
    """Raises a `ValueError` unless it is one of the two directions."""
    if one_pass not in ("density", "sampling"):
        raise core.bad_value(name, "one_pass", one_pass, "'density' or 'sampling'")
