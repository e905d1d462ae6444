"""Distributions made of one other: several draws taken as one event, and draws sent through a bijector.

They take the place of distrax's `Independent` and `Transformed`, which hold distrax objects and with them tracers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector, sum_last
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._images import image
from jaxprob.distributions._parameters import align
from jaxprob.distributions._supports import IndependentSupport, Support, all_last
from jaxprob.distributions._vector_bijectors import Direction, PlaneAngle


def check_distribution(function: str, argument: str, value: Any) -> None:
    """Raises a `TypeError` unless `value` is a distribution."""
    if not isinstance(value, Distribution):
        raise core.bad_type(function, argument, value, "a distribution of jaxprob.distributions")


def sample_batch(base: Distribution, key: core.Key, shape: tuple[int, ...], batch: tuple[int, ...]) -> jax.Array:
    """Independent draws `shape + batch + event` from a distribution whose batch broadcasts to `batch`."""
    own = base.batch_shape
    if own == batch:
        return base.sample(key, shape)
    lead = batch[: len(batch) - len(own)]
    # Axes of length one that `batch` widens are drawn in front, and moved to where they belong.
    widened = [i for i, size in enumerate(own) if size != batch[len(lead) + i]]
    extra = tuple(batch[len(lead) + i] for i in widened)
    draws = base.sample(key, shape + lead + extra)
    start = len(shape) + len(lead)
    after = tuple(start + len(extra) + i for i in widened)
    draws = jnp.squeeze(draws, axis=after)
    return jnp.moveaxis(draws, tuple(range(start, start + len(extra))), tuple(start + i for i in widened))


@core.pytree
class Independent(Distribution):
    """The last batch axes of a distribution taken as part of its event: log densities are added up over them.

    Args:
      base: the distribution of the parts.
      ndims: number of batch axes that join the event; all of them by default.

    Raises:
      ValueError: if `base` has fewer batch axes.

    >>> Independent(Normal(jnp.zeros(3), 1.0)).event_shape
    (3,)
    """

    base: Distribution
    ndims: int | None = core.static(default=None)

    def __post_init__(self) -> None:
        check_distribution("Independent", "base", self.base)
        batch = self.base.batch_shape
        if self.ndims is None:
            object.__setattr__(self, "ndims", len(batch))
        elif not isinstance(self.ndims, int) or not 0 <= self.ndims <= len(batch):
            raise core.bad_value("Independent", "ndims", self.ndims, f"0 to {len(batch)}, the batch axes of base")

    @property
    def _start(self) -> int:
        return len(self.base.batch_shape) - self.ndims  # type: ignore[operator]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.base.batch_shape[: self._start]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.shape[self._start :]

    @property
    def support(self) -> Support:
        return IndependentSupport(self.base.support, self.ndims) if self.ndims else self.base.support

    def mean(self) -> jax.Array:
        return self.base.mean()

    def variance(self) -> jax.Array:
        return self.base.variance()

    def entropy(self) -> jax.Array:
        return sum_last(self.base.entropy(), self.ndims)  # type: ignore[arg-type]

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        return self.base.sample(key, shape)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        return sum_last(self.base.log_prob(value), self.ndims)  # type: ignore[arg-type]


@core.pytree
class Transformed(Distribution):
    r"""The distribution of `bijector.forward(x)` for x drawn from `base`.

    $$\log p(y) = \log p_{base}(x) + \log |\det dx / dy|, \quad x = bijector^{-1}(y)$$

    Args:
      base: a continuous distribution.
      bijector: one-to-one; a bijector of single numbers acts on each entry of an event of `base`. Its parameters may
        add batch axes.

    Raises:
      TypeError: if `base` is discrete or `bijector` is not one-to-one.
      ValueError: if the bijector needs events with more axes than those of `base`, or their shapes do not fit.

    >>> round(float(Transformed(Normal(0.0, 1.0), Exp()).log_prob(1.0)), 4)
    -0.9189
    """

    base: Distribution
    bijector: Bijector

    def __post_init__(self) -> None:
        check_distribution("Transformed", "base", self.base)
        if not isinstance(self.bijector, Bijector):
            raise core.bad_type("Transformed", "bijector", self.bijector, "a bijector of jaxprob.distributions")
        if isinstance(self.bijector, (Direction, PlaneAngle)):
            todo = "It serves to sample a support, and carries a density of its own along the radius"
            raise core.bad_type("Transformed", "bijector", self.bijector, "a one-to-one bijector", todo)
        if self.base.is_discrete:
            raise core.bad_type("Transformed", "base", "discrete", "a continuous distribution")
        needed = self.bijector.event_ndims_in
        if self._extra < 0:
            raise core.bad_value(
                "Transformed",
                "bijector",
                f"one of events with {needed} axes",
                f"at most {len(self.base.event_shape)}, as events of base have",
                "Join batch axes to the event with Independent(base, ndims)",
            )
        try:
            self.shape  # noqa: B018
        except (TypeError, ValueError) as error:
            raise core.bad_value(
                "Transformed", "base", f"of shape {self.base.shape}", f"a shape that fits the bijector ({error})"
            ) from None

    @property
    def _extra(self) -> int:
        """Axes of the base's event that the bijector maps over."""
        return len(self.base.event_shape) - self.bijector.event_ndims_in

    @property
    def shape(self) -> tuple[int, ...]:
        if self.bijector.keeps_reals:  # a flow, which would be long to trace
            return self.bijector.forward_shape(self.base.shape)
        dtype = core.result_dtype(self)
        return jax.eval_shape(self.bijector.forward, jax.ShapeDtypeStruct(self.base.shape, dtype)).shape

    @property
    def _event_ndims(self) -> int:
        return self._extra + self.bijector.event_ndims_out

    @property
    def batch_shape(self) -> tuple[int, ...]:
        shape = self.shape
        return shape[: len(shape) - self._event_ndims]

    @property
    def event_shape(self) -> tuple[int, ...]:
        shape = self.shape
        return shape[len(shape) - self._event_ndims :]

    @property
    def support(self) -> Support:
        return image(self.base.support, self.bijector)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        self._check_given("sample")
        return self.bijector.forward(sample_batch(self.base, key, shape, self.batch_shape))

    def _sample_and_log_prob(self, key: core.Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        self._check_given("sample_and_log_prob")
        if self.base.batch_shape == self.batch_shape:
            x, log_base = self.base._sample_and_log_prob(key, shape)
        else:
            x = sample_batch(self.base, key, shape, self.batch_shape)
            log_base = self.base.log_prob(x)
        y, log_det = self.bijector.forward_and_log_det(x)
        log_base, log_det = align(log_base, sum_last(log_det, self._extra))
        return y, log_base - log_det

    @property
    def context_size(self) -> int:
        """Numbers of a context that the distribution depends on and that it still has to be `given`."""
        return self.bijector.context_size

    def given(self, context: Any) -> Transformed:
        """The distribution for a context: that of one example, so that many are a `jax.vmap`.

        Args:
          context: (context_size,).

        Raises:
          ValueError: if its size is another, or the bijector depends on no context.
        """
        size = self.bijector.context_size
        if size == 0:
            raise core.bad_value("given", "the distribution", "without a context", "one with context_size above 0")
        context = align(context)[0]
        if context.shape != (size,):
            todo = "Use jax.vmap for many"
            raise core.bad_value("given", "context", f"of shape {context.shape}", f"shape ({size},)", todo)
        return Transformed(self.base, self.bijector.given(context))

    def _check_given(self, method: str) -> None:
        """Raises a `ValueError` if the distribution still waits for a context."""
        if self.context_size:
            todo = "Use flow.given(context), and jax.vmap for many"
            raise core.bad_value(f"Transformed.{method}", "context", "missing", f"{self.context_size} numbers", todo)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        self._check_given("log_prob")
        y, inside = self._held_inside(value)
        x, log_det = self.bijector.inverse_and_log_det(y)
        log_base, log_det = align(self.base.log_prob(x), sum_last(log_det, self._extra))
        log_density = log_base + log_det
        missing = ~all_last(~jnp.isnan(align(value)[0]), self._event_ndims)
        inside, missing = (jnp.broadcast_to(mask, log_density.shape) for mask in (inside, missing))
        return jnp.where(inside, log_density, jnp.where(missing, jnp.nan, -jnp.inf))

    def _held_inside(self, value: Any) -> tuple[jax.Array, jax.Array]:
        """`value`, with a point of the support in place of what is outside, and which values are inside.

        At points of the support no gradient of the inverse is NaN.
        """
        support, ndims = self.support, self._event_ndims
        event = self.event_shape
        unconstrained = jnp.zeros(support.bijector.inverse_shape(event), core.result_dtype(self))
        y, inner = align(value, support.bijector.forward(unconstrained))
        inside = support.contains(y)
        y, inner = jnp.broadcast_arrays(y, inner)
        mask = inside.reshape(inside.shape + (1,) * ndims)
        mask = jnp.broadcast_to(mask, y.shape)
        return jnp.where(mask, y, inner), inside

    def _is_increasing(self) -> jax.Array:
        """Whether a bijector of single numbers is increasing."""
        inner = self.base.support.bijector
        steps = [inner.forward(u) for u in (0.0, 1.0)]
        ends = [self.bijector.forward(step) for step in steps]
        rises, sign = align(ends[1] - ends[0], steps[1] - steps[0])
        return (rises > 0) == (sign > 0)

    def cdf(self, value: Any) -> jax.Array:
        if self.shape != self.batch_shape:
            raise self._undefined("cdf")
        given = self._fitting("cdf", value)
        y, inside = self._held_inside(given)
        below, given, y, up = align(self.base.cdf(self.bijector.inverse(y)), given, y, self._is_increasing())
        inside = jnp.broadcast_to(inside, below.shape)
        below = jnp.where(jnp.broadcast_to(up > 0, below.shape), below, 1 - below)
        # Outside the support `y` is a point within.
        otherwise = jnp.where(given > y, jnp.ones_like(below), jnp.where(given < y, 0.0, jnp.nan))
        return jnp.where(inside, below, otherwise)

    def quantile(self, probability: Any) -> jax.Array:
        if self.shape != self.batch_shape:
            raise self._undefined("quantile")
        p, up = align(self._fitting("quantile", probability), self._is_increasing())
        return self.bijector.forward(self.base.quantile(jnp.where(up > 0, p, 1 - p)))
