"""Batches that are made anew at every step, on the device, by a function of a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprob import core
from jaxprob.learning.data._checks import as_seed
from jaxprob.learning.data._sources import Indexed


@core.pytree
class Generated(Indexed):
    """Batches made by a function of a key.

    Attributes:
      function: `key -> batch`.
      seed: an integer.
    """

    function: Callable[[core.Key], Any] = core.static()
    seed: int = core.static()

    @property
    def num_batches(self) -> None:
        """None: it has no epochs."""
        return None

    def batch(self, step: Any) -> Any:
        """The batch of a step: `function(fold_in(key(seed), step))`."""
        return self.function(core.random.fold_in(jax.random.key(self.seed), step))


def generated(function: Callable[[core.Key], Any], *, seed: int = 0) -> Generated:
    """An endless source whose batch of a step is `function(fold_in(jax.random.key(seed), step))`.

    Args:
      function: `key -> batch`, traceable. `jax.vmap` over `jax.random.split(key, size)` makes a batch of a function of
        one example.
      seed: an integer.

    Raises:
      TypeError: if `function` is not callable or `seed` is no integer.

    >>> source = generated(lambda key: jax.random.normal(key, (4, 2)))
    >>> source.batch(3).shape
    (4, 2)
    """
    if not callable(function):
        raise core.bad_type("data.generated", "function", function, "a function of a key that makes a batch")
    return Generated(function, as_seed("data.generated", seed))
