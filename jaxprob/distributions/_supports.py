"""Supports: the sets that carry distributions, what lies in them, and their maps from unconstrained space.

Intervals and half-lines are closed, so that a number which rounding has put on the edge still belongs. NaN belongs to
nothing. The map of `Positive` is exp (not softplus), as in Stan: a scale parameter is then unconstrained on a log
scale, where its posterior is closest to Gaussian.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import _bijectors as bijectors
from jaxprob.distributions import _vector_bijectors as vector_bijectors
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import REAL, align, check_order, set_parameters


class Support:
    """Base of all supports: `@core.pytree` classes whose edges, if any, are leaves."""

    @property
    def event_ndims(self) -> int:
        """Number of trailing axes that make one element of the set."""
        return 0

    @property
    def is_discrete(self) -> bool:
        """Whether the set is countable."""
        return False

    def contains(self, x: Any) -> jax.Array:
        """Whether each element lies in the set: boolean, of the shape of `x` less the event."""
        raise NotImplementedError

    @property
    def bijector(self) -> Bijector:
        """The map from unconstrained space onto the set.

        Raises:
          TypeError: for a discrete set, which has none.
        """
        name = type(self).__name__
        raise core.bad_type(f"{name}.bijector", "the support", "discrete", "a continuous one", "Marginalise it instead")


def all_last(mask: jax.Array, ndims: int) -> jax.Array:
    """Whether a mask holds along its last `ndims` axes."""
    return jnp.all(mask, axis=tuple(range(mask.ndim - ndims, mask.ndim))) if ndims else mask


def _tolerance(x: jax.Array) -> float:
    """How far a sum or norm may be from one: what data written with five decimals or of low precision need."""
    return max(1e-5, 8 * float(jnp.finfo(x.dtype).eps))


@core.pytree
class Real(Support):
    """The real line.

    >>> bool(Real().contains(jnp.inf))
    False
    """

    def contains(self, x: Any) -> jax.Array:
        return jnp.isfinite(jnp.asarray(x))

    @property
    def bijector(self) -> Bijector:
        return bijectors.Identity()


@core.pytree
class RealVector(Support):
    """Vectors of real numbers."""

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        return all_last(jnp.isfinite(jnp.asarray(x)), 1)

    @property
    def bijector(self) -> Bijector:
        return bijectors.Identity(1)


@core.pytree
class Positive(Support):
    """x > 0."""

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return (x > 0) & jnp.isfinite(x)

    @property
    def bijector(self) -> Bijector:
        return bijectors.Exp()


@core.pytree
class NonNegative(Support):
    """x >= 0. The map reaches all but zero."""

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return (x >= 0) & jnp.isfinite(x)

    @property
    def bijector(self) -> Bijector:
        return bijectors.Exp()


@core.pytree
class UnitInterval(Support):
    """0 <= x <= 1. The map reaches all but the ends."""

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return (x >= 0) & (x <= 1)

    @property
    def bijector(self) -> Bijector:
        return bijectors.Sigmoid()


@core.pytree
class Interval(Support):
    """low <= x <= high. The map reaches all but the ends.

    Args:
      low: (*batch).
      high: (*batch), above `low`.
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        check_order("Interval", self.low, self.high)
        set_parameters(self, low=REAL, high=REAL)

    def contains(self, x: Any) -> jax.Array:
        x, low, high = align(x, self.low, self.high)
        return (x >= low) & (x <= high)

    @property
    def bijector(self) -> Bijector:
        return bijectors.IntervalSigmoid(self.low, self.high)


@core.pytree
class GreaterThan(Support):
    """x >= low. The map reaches all but the edge.

    Args:
      low: (*batch).
    """

    low: Any

    def __post_init__(self) -> None:
        set_parameters(self, low=REAL)

    def contains(self, x: Any) -> jax.Array:
        x, low = align(x, self.low)
        return (x >= low) & jnp.isfinite(x)

    @property
    def bijector(self) -> Bijector:
        return bijectors.HalfLine(self.low, above=True)


@core.pytree
class LessThan(Support):
    """x <= high. The map reaches all but the edge.

    Args:
      high: (*batch).
    """

    high: Any

    def __post_init__(self) -> None:
        set_parameters(self, high=REAL)

    def contains(self, x: Any) -> jax.Array:
        x, high = align(x, self.high)
        return (x <= high) & jnp.isfinite(x)

    @property
    def bijector(self) -> Bijector:
        return bijectors.HalfLine(self.high, above=False)


@core.pytree
class Simplex(Support):
    """Vectors of non-negative numbers that sum to one."""

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        (x,) = align(x)
        return all_last(x >= 0, 1) & (jnp.abs(jnp.sum(x, axis=-1) - 1) <= _tolerance(x))

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.StickBreaking()


@core.pytree
class Ordered(Support):
    """Vectors of real numbers that do not decrease."""

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return all_last(x[..., 1:] >= x[..., :-1], 1) & all_last(jnp.isfinite(x), 1)

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.Ordering()


@core.pytree
class CholeskyFactor(Support):
    """Lower-triangular matrices with a positive diagonal."""

    @property
    def event_ndims(self) -> int:
        return 2

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        lower = all_last(jnp.triu(x, 1) == 0, 2) & all_last(jnp.isfinite(x), 2)
        return lower & all_last(jnp.diagonal(x, axis1=-2, axis2=-1) > 0, 1)

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.FillTriangular()


@core.pytree
class CorrelationCholesky(Support):
    """Cholesky factors of correlation matrices: lower-triangular, positive diagonal, rows of length one."""

    @property
    def event_ndims(self) -> int:
        return 2

    def contains(self, x: Any) -> jax.Array:
        (x,) = align(x)
        unit = all_last(jnp.abs(jnp.sum(x**2, axis=-1) - 1) <= _tolerance(x), 1)
        return unit & CholeskyFactor().contains(x)

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.SignedStickBreaking()


@core.pytree
class PositiveDefinite(Support):
    """Symmetric positive-definite matrices."""

    @property
    def event_ndims(self) -> int:
        return 2

    def contains(self, x: Any) -> jax.Array:
        (x,) = align(x)
        size = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
        symmetric = all_last(jnp.abs(x - jnp.swapaxes(x, -1, -2)) <= _tolerance(x) * size, 2)
        return symmetric & all_last(jnp.isfinite(core.cholesky(x)), 2)

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.OuterProduct()


@core.pytree
class Sphere(Support):
    """Vectors of length one. Their unconstrained vectors have as many entries (see `Direction`)."""

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        (x,) = align(x)
        return jnp.abs(jnp.sum(x**2, axis=-1) - 1) <= _tolerance(x)

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.Direction()


@core.pytree
class Angle(Support):
    """Angles: any real number names one, and those a full turn apart are the same. The map gives [-pi, pi].

    The unconstrained form of an angle is a vector of two numbers (see `PlaneAngle`), so that nothing is cut at pi.
    """

    def contains(self, x: Any) -> jax.Array:
        return jnp.isfinite(jnp.asarray(x))

    @property
    def bijector(self) -> Bijector:
        return vector_bijectors.PlaneAngle()


class _Discrete(Support):
    @property
    def is_discrete(self) -> bool:
        return True


def _whole(x: jax.Array) -> jax.Array:
    return x == jnp.round(x)


@core.pytree
class Boolean(_Discrete):
    """0 or 1."""

    def contains(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.ones_like(x) if x.dtype == bool else (x == 0) | (x == 1)


@core.pytree
class NonNegativeInteger(_Discrete):
    """0, 1, 2, ..."""

    def contains(self, x: Any) -> jax.Array:
        (x,) = align(x)
        return (x >= 0) & _whole(x) & jnp.isfinite(x)


@core.pytree
class IntegerInterval(_Discrete):
    """The whole numbers from `low` to `high`, both included.

    Args:
      low: (*batch), whole numbers.
      high: (*batch), whole numbers, not below `low`.
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        set_parameters(self, low=REAL, high=REAL)

    def contains(self, x: Any) -> jax.Array:
        x, low, high = align(x, self.low, self.high)
        return (x >= low) & (x <= high) & _whole(x)


@core.pytree
class CountVector(_Discrete):
    """Vectors of counts that sum to `total`.

    Args:
      total: (*batch), whole numbers.
    """

    total: Any

    def __post_init__(self) -> None:
        set_parameters(self, total=REAL)

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        x, total = align(x, jnp.expand_dims(self.total, -1))
        counts = all_last((x >= 0) & _whole(x), 1)
        return counts & (jnp.sum(x, axis=-1) == total[..., 0])


@core.pytree
class Point(_Discrete):
    """One point.

    Args:
      value: (*batch, *event).
      ndims: number of trailing axes of `value` that make the event.
    """

    value: Any
    ndims: int = core.static(default=0)

    @property
    def event_ndims(self) -> int:
        return self.ndims

    def contains(self, x: Any) -> jax.Array:
        x, value = align(x, self.value)
        return all_last(x == value, self.ndims)


@core.pytree
class IndependentSupport(Support):
    """Arrays of elements of one support, taken together as one element.

    Args:
      support: where each element lies.
      ndims: number of axes to the left of its event that join the event.
    """

    support: Support
    ndims: int = core.static()

    @property
    def event_ndims(self) -> int:
        return self.support.event_ndims + self.ndims

    @property
    def is_discrete(self) -> bool:
        return self.support.is_discrete

    def contains(self, x: Any) -> jax.Array:
        return all_last(self.support.contains(x), self.ndims)

    @property
    def bijector(self) -> Bijector:
        return bijectors.IndependentBijector(self.support.bijector, self.ndims)
