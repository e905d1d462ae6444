"""Independent vectors, one after the other, as one vector."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._combinators import sample_batch
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._parameters import align, check_shapes
from jaxprob.distributions._supports import RealVector, Support


@core.pytree
class Concatenated(Distribution):
    """Independent vectors of real numbers, joined to one.

    Args:
      parts: distributions of vectors, whose batches broadcast.

    Raises:
      TypeError: if one is no distribution of real vectors.
      ValueError: if there is none, or batches do not fit.

    >>> from jaxprob.distributions import MultivariateNormalDiagonal
    >>> part = MultivariateNormalDiagonal(0.0, jnp.ones(2))
    >>> Concatenated((part, part)).event_shape
    (4,)
    """

    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise core.bad_value("Concatenated", "parts", "empty", "one distribution or more")
        for i, part in enumerate(self.parts):
            if not isinstance(part, Distribution) or not isinstance(part.support, RealVector):
                raise core.bad_type("Concatenated", f"parts[{i}]", part, "a distribution of real vectors")
        check_shapes("Concatenated", **{f"the batch of part {i}": p.batch_shape for i, p in enumerate(self.parts)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each part."""
        return tuple(part.event_shape[0] for part in self.parts)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(part.batch_shape for part in self.parts))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    @property
    def support(self) -> Support:
        return RealVector()

    def split(self, value: jax.Array) -> list[jax.Array]:
        """The parts (..., n_i) of a vector (..., n)."""
        return jnp.split(value, list(itertools.accumulate(self.sizes))[:-1], axis=-1)

    def mean(self) -> jax.Array:
        return self._join(lambda part: part.mean())

    def variance(self) -> jax.Array:
        return self._join(lambda part: part.variance())

    def entropy(self) -> jax.Array:
        return _total([part.entropy() for part in self.parts])

    def _join(self, function: Callable[[Any], jax.Array]) -> jax.Array:
        values = align(*(function(part) for part in self.parts), rank=len(self.shape))
        return jnp.concatenate([jnp.broadcast_to(v, (*self.batch_shape, v.shape[-1])) for v in values], -1)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        drawn = [sample_batch(part, core.fold(key, i), shape, self.batch_shape) for i, part in enumerate(self.parts)]
        return jnp.concatenate(align(*drawn), -1)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        return _total([part.log_prob(x) for part, x in zip(self.parts, self.split(value), strict=True)])


def _total(values: list[jax.Array]) -> jax.Array:
    total, *rest = align(*values)
    for value in rest:
        total = total + value
    return total
