"""Increasing maps of single numbers whose parameters are the outputs of a network."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import align

# Networks grow with their input: with scales of at most exp(3) a dozen layers stay within float32 at |x| = 10,000.
_LARGEST_LOG_SCALE = 3.0


class Transformer(Protocol):
    """What makes bijectors of single numbers out of real parameters; hashable, without arrays."""

    @property
    def parameters(self) -> int:
        """Number of parameters of one number."""
        ...

    def __call__(self, parameters: jax.Array) -> Bijector:
        """The bijector of numbers (...) for parameters (..., parameters)."""
        ...


def bounded(log_scale: jax.Array) -> jax.Array:
    """Log scales between -3 and 3 from any real numbers, nearly the same where these are small."""
    return _LARGEST_LOG_SCALE * jnp.tanh(log_scale / _LARGEST_LOG_SCALE)


@dataclasses.dataclass(frozen=True)
class AffineTransformer:
    """x = loc + exp(log_scale) u, with log scales held between -3 and 3: two parameters, which are 0 for x = u.

    >>> float(AffineTransformer()(jnp.array([1.0, 0.0])).forward(2.0))
    3.0
    """

    @property
    def parameters(self) -> int:
        return 2

    def __call__(self, parameters: jax.Array) -> Bijector:
        return _Affine(parameters[..., 0], bounded(parameters[..., 1]))


@core.pytree
class _Affine(Bijector):
    loc: Any
    log_scale: Any

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, loc, log_scale = align(u, self.loc, self.log_scale)
        x = loc + jnp.exp(log_scale) * u
        return x, jnp.broadcast_to(log_scale, x.shape)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        x, loc, log_scale = align(x, self.loc, self.log_scale)
        u = (x - loc) * jnp.exp(-log_scale)
        return u, jnp.broadcast_to(-log_scale, u.shape)

    def inverse(self, x: Any) -> jax.Array:
        return self.inverse_and_log_det(x)[0]
