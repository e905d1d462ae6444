"""Laws of whole series, and what functions that make posteriors of them are given."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Distribution, Identity, Support


@core.pytree
class Series(Support):
    """Series of numbers in which an entry may be missing, NaN."""

    ndims: int = core.static(default=1)
    discrete: bool = core.static(default=False)

    @property
    def event_ndims(self) -> int:
        """Axes of a series."""
        return self.ndims

    @property
    def is_discrete(self) -> bool:
        """Whether the numbers are integers."""
        return self.discrete

    def contains(self, x: Any) -> jax.Array:
        """Whether no entry is infinite."""
        return jnp.all(~jnp.isinf(core.as_float(x)), tuple(range(-self.ndims, 0)))

    @property
    def bijector(self) -> Identity:
        """A series as it is."""
        return Identity(self.ndims)


class SeriesLaw(Distribution):
    """One law of whole series, from the density and the draw of one: subclasses define these and `event_shape`."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """None: one series."""
        return ()

    @property
    def support(self) -> Support:
        """All finite series, and what is missing of them."""
        drawn = jax.eval_shape(lambda law: law._draw_one(jax.random.key(0)), self)
        return Series(len(self.event_shape), not jnp.issubdtype(drawn.dtype, jnp.floating))

    def _log_prob_of_one(self, series: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _draw_one(self, key: core.Key) -> jax.Array:
        raise NotImplementedError

    def _log_prob(self, value: jax.Array) -> jax.Array:
        shape = self.event_shape
        each = jax.vmap(self._log_prob_of_one)(value.reshape(-1, *shape))
        return each.reshape(value.shape[: value.ndim - len(shape)])

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        draws = jax.vmap(self._draw_one)(core.random.split(key, shape).reshape(-1))
        return draws.reshape(*shape, *self.event_shape)


def as_series(function: str, ys: Any) -> jax.Array:
    """The observations, (time, ...).

    Raises:
      ValueError: if there is no axis of time.
    """
    if np.ndim(ys) < 1:
        raise core.bad_value(function, "ys", f"of shape {np.shape(ys)}", "shape (time, ...)")
    return jnp.asarray(ys)


def check_priors(function: str, priors: dict[str, Distribution], taken: dict[str, str]) -> None:
    """Raises where a prior is none, or has a name that is taken: `{name: of what}`."""
    for name, prior in priors.items():
        if not isinstance(prior, Distribution):
            raise core.bad_type(function, f"priors[{name!r}]", prior, "a Distribution")
        if name in taken:
            expected = f"names of parameters, not that of the {taken[name]}"
            raise core.bad_value(function, "priors", f"one of {name!r}", expected)
