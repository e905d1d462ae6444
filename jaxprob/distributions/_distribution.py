"""The contract of a distribution: a frozen pytree of its parameters with a density, a sampler and a support.

The mathematics is distrax's wherever distrax has the distribution; the distrax object is rebuilt inside each method
and never crosses a transformation. This folder is the only one that imports distrax, and only inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core

if TYPE_CHECKING:
    from jaxprob.distributions._supports import Support


class Distribution:
    """Base of all distributions. Subclasses are `@core.pytree` classes whose fields are their parameters.

    Shapes follow one rule: `sample(key, shape)` has shape `shape + batch_shape + event_shape`, and `log_prob(x)` has
    the shape of `x`, less the event, broadcast with `batch_shape`. Batch shapes come from the parameters' own shapes,
    so a distribution built under `vmap` or sliced leaf by leaf is an ordinary one with other shapes.

    A subclass defines `batch_shape`, `support`, `_sample(key, shape)` and `_log_prob(value)`, and `event_shape` if its
    event is not a scalar; `mean`, `variance`, `cdf`, `quantile` and `entropy` where they exist in closed form.
    """

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of independent distributions held in the parameters."""
        raise NotImplementedError

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one draw of one distribution: `()` for scalars."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one draw: `batch_shape + event_shape`."""
        return self.batch_shape + self.event_shape

    @property
    def support(self) -> Support:
        """The set that carries the distribution, with its map to unconstrained space."""
        raise NotImplementedError

    @property
    def is_discrete(self) -> bool:
        """Whether draws are integers (or otherwise countable), so that gradients with respect to them do not exist."""
        return self.support.is_discrete

    def sample(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape `shape + batch_shape + event_shape`.

        Args:
          key: random key, used once.
          shape: leading shape of independent draws.

        Raises:
          TypeError: if `key` is not one random key.
          ValueError: if `shape` is not a shape.
        """
        name = f"{type(self).__name__}.sample"
        key = core.as_key(key, name)
        return self._sample(key, core.as_shape(name, shape))

    def log_prob(self, value: Any) -> jax.Array:
        """Log density (or log mass) at `value`; -inf outside the support.

        Args:
          value: `(..., *batch_shape, *event_shape)`, or anything that broadcasts with it.

        Returns:
          the shape of `value` less the event, broadcast with `batch_shape`.

        Raises:
          ValueError: if the shape of `value` does not fit.
        """
        return self._log_prob(self._fitting("log_prob", value))

    def sample_and_log_prob(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> tuple[jax.Array, jax.Array]:
        """Draws as by `sample`, and the log density of each, of shape `shape + batch_shape`.

        The same numbers as those of `log_prob`, without the way back where draws are made by a bijector.
        """
        name = f"{type(self).__name__}.sample_and_log_prob"
        key = core.as_key(key, name)
        return self._sample_and_log_prob(key, core.as_shape(name, shape))

    def mean(self) -> jax.Array:
        """Expectation, of shape `batch_shape + event_shape`."""
        raise self._undefined("mean")

    def variance(self) -> jax.Array:
        """Variance of each component, of shape `batch_shape + event_shape`."""
        raise self._undefined("variance")

    def cdf(self, value: Any) -> jax.Array:
        """P(X <= value) for a scalar distribution."""
        raise self._undefined("cdf")

    def quantile(self, probability: Any) -> jax.Array:
        """The inverse of `cdf`, for a scalar distribution."""
        raise self._undefined("quantile")

    def entropy(self) -> jax.Array:
        """Differential or discrete entropy in nats, of shape `batch_shape`."""
        raise self._undefined("entropy")

    def _fitting(self, method: str, value: Any) -> jax.Array:
        """`value` as an array, if it is one whose shape ends in the event and broadcasts with the distribution's."""
        event = self.event_shape
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError):
            name = f"{type(self).__name__}.{method}"
            raise core.bad_type(name, "value", value, "a number or an array of them") from None
        try:
            np.broadcast_shapes(value.shape, self.shape)
            fits = not event or value.shape[-len(event) :] == event
        except ValueError:
            fits = False
        if not fits:
            raise core.bad_value(
                f"{type(self).__name__}.{method}",
                "value",
                f"of shape {value.shape}",
                f"a shape that broadcasts with {self.shape}" + (f" and ends in {event}" if event else ""),
            )
        return value

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        raise NotImplementedError

    def _sample_and_log_prob(self, key: core.Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        draws = self._sample(key, shape)
        return draws, self._log_prob(draws)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _undefined(self, what: str) -> Exception:
        name = type(self).__name__
        return NotImplementedError(
            core.message(
                f"{name}.{what}",
                "the distribution",
                f"a {name}",
                f"one whose {what} has a closed form",
                "Estimate it from draws of sample(key, shape)",
            )
        )
