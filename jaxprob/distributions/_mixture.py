"""Mixtures of distributions, of one family or of several.

distrax's mixtures hold distrax objects, and with them tracers; its `MixtureSameFamily` has NaN gradients where a
component has no density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._combinators import check_distribution, sample_batch
from jaxprob.distributions._discrete import log_weights, probabilities, set_weights, weights_shape
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._images import hull, hull_along
from jaxprob.distributions._parameters import align, check_shapes
from jaxprob.distributions._supports import Support


@core.pytree
class Mixture(Distribution):
    r"""A mixture: component k with probability `weights[k]`, then a draw from it.

    $$p(x) = \sum_k w_k p_k(x)$$

    Args:
      weights: (*batch, k), non-negative, sums to one. Give this or `logits`.
      components: one distribution whose last batch axis counts the components, or a tuple of k distributions with
        events of one shape.
      logits: (*batch, k), log weights up to a constant; -inf for a component that does not occur.

    Raises:
      ValueError: unless exactly one of `weights` and `logits` is given, or if sizes do not fit.
      TypeError: if `components` is neither, or some are discrete and some continuous.

    >>> float(Mixture([0.5, 0.5], Normal(jnp.array([-1.0, 1.0]), 1.0)).variance())
    2.0
    """

    weights: Any = None
    components: Distribution | tuple[Distribution, ...] = ()
    logits: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_weights(self, "weights")
        count = weights_shape(self.weights, self.logits)[-1]
        if isinstance(self.components, Distribution):
            batch = self.components.batch_shape
            if not batch or batch[-1] != count:
                todo = "The last batch axis of components counts them"
                raise core.bad_value("Mixture", "components", f"of batch shape {batch}", f"(*batch, {count})", todo)
        else:
            self._check_several(count)
        shapes = [member.batch_shape for member in self._members]
        named = {f"the batch of component {i}": shape for i, shape in enumerate(shapes)}
        if self._is_one_family:
            named = {"the batch of components": shapes[0][:-1]}
        check_shapes("Mixture", **{"the batch of weights": weights_shape(self.weights, self.logits)[:-1]}, **named)

    def _check_several(self, count: int) -> None:
        if not isinstance(self.components, (tuple, list)):
            raise core.bad_type("Mixture", "components", self.components, "a distribution or a tuple of distributions")
        object.__setattr__(self, "components", tuple(self.components))
        for i, member in enumerate(self.components):
            check_distribution("Mixture", f"components[{i}]", member)
        if len(self.components) != count:
            raise core.bad_value(
                "Mixture", "components", f"{len(self.components)} distributions", f"{count}, as weights"
            )
        for i, member in enumerate(self.components):
            if member.event_shape != self.components[0].event_shape:
                expected = f"{self.components[0].event_shape}, as that of the first"
                raise core.bad_value("Mixture", f"components[{i}]", f"of event shape {member.event_shape}", expected)
        if len({member.is_discrete for member in self.components}) > 1:
            todo = "A probability and a density cannot be added"
            raise core.bad_type("Mixture", "components", "discrete and continuous ones", "components of one kind", todo)

    @property
    def _is_one_family(self) -> bool:
        return isinstance(self.components, Distribution)

    @property
    def _members(self) -> tuple[Distribution, ...]:
        return (self.components,) if isinstance(self.components, Distribution) else self.components

    @property
    def batch_shape(self) -> tuple[int, ...]:
        shapes = [m.batch_shape[:-1] if self._is_one_family else m.batch_shape for m in self._members]
        return np.broadcast_shapes(weights_shape(self.weights, self.logits)[:-1], *shapes)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._members[0].event_shape

    @property
    def support(self) -> Support:
        if isinstance(self.components, Distribution):
            return hull_along(self.components.support, -1)
        return hull([member.support for member in self._members])

    def mean(self) -> jax.Array:
        weights, means = self._moments(lambda member: member.mean())
        return jnp.sum(_weighted(weights, means), axis=-1)

    def variance(self) -> jax.Array:
        weights, means = self._moments(lambda member: member.mean())
        _, variances = self._moments(lambda member: member.variance())
        # The law of total variance; a squared distance from the mean cannot cancel.
        center = jnp.sum(_weighted(weights, means), axis=-1, keepdims=True)
        return jnp.sum(_weighted(weights, variances + (means - center) ** 2), axis=-1)

    def cdf(self, value: Any) -> jax.Array:
        if self.event_shape:
            raise self._undefined("cdf")
        value = self._fitting("cdf", value)
        weights, below = align(probabilities(self.weights, self.logits), self._each(value, lambda m, x: m.cdf(x)))
        return jnp.sum(_weighted(weights, below), axis=-1)

    def _moments(self, moment: Callable[[Distribution], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Weights and a moment of each component, both (*batch, *event, k)."""
        rank = len(self.event_shape)
        shape = self.shape + weights_shape(self.weights, self.logits)[-1:]
        if self._is_one_family:
            moments = jnp.moveaxis(moment(self._members[0]), -1 - rank, -1)
        else:
            moments = jnp.stack([jnp.broadcast_to(m, self.shape) for m in align(*map(moment, self._members))], axis=-1)
        weights = jnp.expand_dims(probabilities(self.weights, self.logits), tuple(range(-1 - rank, -1)))
        weights, moments = align(weights, moments)
        return jnp.broadcast_to(weights, shape), jnp.broadcast_to(moments, shape)

    def _each(self, value: jax.Array, function: Callable[[Distribution, jax.Array], jax.Array]) -> jax.Array:
        """`function` of every component at `value`, along a last axis."""
        if self._is_one_family:
            return function(self._members[0], jnp.expand_dims(value, value.ndim - len(self.event_shape)))
        return jnp.stack(jnp.broadcast_arrays(*align(*(function(m, value) for m in self._members))), axis=-1)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        log_w, each = align(log_weights(self.weights, self.logits), self._each(value, lambda m, x: m.log_prob(x)))
        # A component that does not occur is left out even where its density is infinite.
        present = log_w > -jnp.inf
        return core.logsumexp(jnp.where(present, log_w + each, -jnp.inf), axis=-1)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        key_index, key_draw = core.random.split(key)
        log_w, rank, batch = log_weights(self.weights, self.logits), len(self.event_shape), self.batch_shape
        index = core.random.categorical(key_index, log_w, shape=shape + batch, mode="high")
        if self._is_one_family:
            draws = sample_batch(self._members[0], key_draw, shape, batch + log_w.shape[-1:])
        else:
            keys = core.random.split(key_draw, len(self._members))
            each = [sample_batch(m, k, shape, batch) for m, k in zip(self._members, keys, strict=True)]
            dtype = each[0].dtype if self.is_discrete else core.result_dtype(each)
            draws = jnp.stack([draw.astype(dtype) for draw in each], axis=-1 - rank)
        # Picked, not multiplied by zero: what the other components give, NaN or not, does not matter.
        index = index.reshape(index.shape + (1,) * (1 + rank))
        return jnp.squeeze(jnp.take_along_axis(draws, index, axis=draws.ndim - 1 - rank), axis=draws.ndim - 1 - rank)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Products, 0 where the weight is, whatever the value."""
    return jnp.where(weights > 0, weights * values, 0.0)
