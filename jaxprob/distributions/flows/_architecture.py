"""A flow before its size is known: what a factory of flows returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._combinators import Transformed
from jaxprob.distributions.flows._standard_normal import StandardNormal


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A way to build a flow for draws of any shape; hashable, without arrays.

    Attributes:
      name: of the factory, for error messages.
      build: `(key, shape, context_size, dtype) -> Bijector`, from standard normal arrays to draws of that shape.
    """

    name: str
    build: Callable[[core.Key, tuple[int, ...], int, Any], Bijector]

    def init(
        self, key: core.Key, shape: int | tuple[int, ...], *, context_size: int = 0, dtype: Any = None
    ) -> Transformed:
        """A flow with parameters to start from: a distribution whose leaves are what is trained.

        Args:
          key: random key.
          shape: of one draw; a number is the size of a vector.
          context_size: numbers that the distribution depends on; above 0, `flow.given(context)` is the distribution.
          dtype: of parameters and draws; JAX's default floating dtype by default.

        Raises:
          ValueError: if a flow of this kind has no such shape or takes no context.
        """
        shape = core.as_shape(self.name, shape)
        core.check_whole(self.name, least=0, context_size=context_size)
        bijector = self.build(core.as_key(key, self.name), shape, context_size, dtype)
        return Transformed(StandardNormal(bijector.inverse_shape(shape), dtype), bijector)
