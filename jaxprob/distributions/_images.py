"""Supports worked out from others: their ends, their hull, and their image under a bijector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import _bijectors as bijectors
from jaxprob.distributions import _supports as supports
from jaxprob.distributions import _vector_bijectors as vector_bijectors
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import REAL, align, set_parameters
from jaxprob.distributions._supports import IndependentSupport, Interval, Support, all_last

Ends = tuple[Any, Any]

# Scalar supports by their ends; None is no end.
_ENDS: dict[type[Support], Callable[[Any], Ends]] = {
    supports.Real: lambda s: (None, None),
    supports.Positive: lambda s: (0.0, None),
    supports.NonNegative: lambda s: (0.0, None),
    supports.UnitInterval: lambda s: (0.0, 1.0),
    supports.Interval: lambda s: (s.low, s.high),
    supports.GreaterThan: lambda s: (s.low, None),
    supports.LessThan: lambda s: (None, s.high),
    supports.Boolean: lambda s: (0, 1),
    supports.NonNegativeInteger: lambda s: (0, None),
    supports.IntegerInterval: lambda s: (s.low, s.high),
}


@core.pytree
class IntegersFrom(Support):
    """The whole numbers from `low` on.

    Args:
      low: (*batch), whole numbers.
    """

    low: Any

    def __post_init__(self) -> None:
        set_parameters(self, low=REAL)

    @property
    def is_discrete(self) -> bool:
        return True

    def contains(self, x: Any) -> jax.Array:
        x, low = align(x, self.low)
        return (x >= low) & (x == jnp.round(x)) & jnp.isfinite(x)


_ENDS[IntegersFrom] = lambda s: (s.low, None)


def ends(support: Support) -> Ends | None:
    """The two ends of an interval of the line or of the integers, None where there is none; None for another set."""
    find = _ENDS.get(type(support))
    return None if find is None else find(support)


def between(low: Any, high: Any, is_discrete: bool) -> Support:
    """The interval with these ends, of numbers or of integers; None is no end."""
    if is_discrete:
        return IntegersFrom(low) if high is None else supports.IntegerInterval(low, high)
    if low is None:
        return supports.Real() if high is None else supports.LessThan(high)
    return supports.GreaterThan(low) if high is None else Interval(low, high)


def _outer(pick: Callable[..., jax.Array], values: list[Any]) -> Any:
    """The largest or smallest of the ends, or None if one is open."""
    if any(value is None for value in values):
        return None
    result = values[0]
    for value in values[1:]:
        result = pick(*align(result, value))
    return result


def hull(members: list[Support]) -> Support:
    """A support that holds all of several.

    Raises:
      TypeError: if there is none that is known.
    """
    first = members[0]
    if all(type(m) is type(first) and not jax.tree.leaves(m) and m.event_ndims == first.event_ndims for m in members):
        return first
    if all(isinstance(m, IndependentSupport) and m.ndims == getattr(first, "ndims", -1) for m in members):
        return IndependentSupport(hull([m.support for m in members]), first.ndims)  # type: ignore[attr-defined]
    bounds = [ends(m) for m in members]
    if any(bound is None for bound in bounds) or len({m.is_discrete for m in members}) > 1:
        names = ", ".join(type(m).__name__ for m in members)
        raise core.bad_type("Mixture.support", "components", f"on {names}", "components on supports of one kind")
    low = _outer(jnp.minimum, [bound[0] for bound in bounds if bound])
    high = _outer(jnp.maximum, [bound[1] for bound in bounds if bound])
    return between(low, high, first.is_discrete)


def hull_along(support: Support, axis: int) -> Support:
    """The support that holds those of a whole batch axis, counted from the end of the batch."""
    if isinstance(support, IndependentSupport):
        return IndependentSupport(hull_along(support.support, axis - support.ndims), support.ndims)
    if not jax.tree.leaves(support):
        return support
    bound = ends(support)
    if bound is None:
        raise core.bad_type("Mixture.support", "components", f"on {type(support).__name__}", "on intervals")

    def along(reduce: Callable[..., jax.Array], end: Any) -> Any:
        return end if end is None or jnp.ndim(end) < -axis else reduce(end, axis=axis)

    return between(along(jnp.min, bound[0]), along(jnp.max, bound[1]), support.is_discrete)


def overlap(support: Support, low: Any, high: Any) -> Support | None:
    """The part of a scalar support between two ends (None for no end); None if the support is not an interval."""
    bound = ends(support)
    if bound is None:
        return None
    lower = [end for end in (bound[0], low) if end is not None]
    upper = [end for end in (bound[1], high) if end is not None]
    if support.is_discrete:
        lower = [jnp.ceil(align(end)[0]) for end in lower]
        upper = [jnp.floor(align(end)[0]) for end in upper]
    return between(
        _outer(jnp.maximum, lower) if lower else None,
        _outer(jnp.minimum, upper) if upper else None,
        support.is_discrete,
    )


# What bijectors make of the whole line.
_OF_REAL: dict[type[Bijector], Callable[[Any], Support]] = {
    bijectors.Affine: lambda b: supports.Real(),
    bijectors.Exp: lambda b: supports.Positive(),
    bijectors.Softplus: lambda b: supports.Positive(),
    bijectors.Sigmoid: lambda b: supports.UnitInterval(),
    bijectors.Tanh: lambda b: Interval(-1.0, 1.0),
    bijectors.IntervalSigmoid: lambda b: Interval(b.low, b.high),
    bijectors.HalfLine: lambda b: supports.GreaterThan(b.edge) if b.above else supports.LessThan(b.edge),
}

# And of all vectors.
_OF_VECTORS: dict[type[Bijector], Callable[[], Support]] = {
    vector_bijectors.StickBreaking: supports.Simplex,
    vector_bijectors.Ordering: supports.Ordered,
    vector_bijectors.FillTriangular: supports.CholeskyFactor,
    vector_bijectors.OuterProduct: supports.PositiveDefinite,
    vector_bijectors.SignedStickBreaking: supports.CorrelationCholesky,
}


def image(support: Support, bijector: Bijector) -> Support:
    """The set that a bijector makes of a support."""
    if isinstance(bijector, bijectors.Identity):
        return support
    whole = support.support if isinstance(support, IndependentSupport) else support
    if bijector.keeps_reals and isinstance(whole, (supports.Real, supports.RealVector)):
        return support
    if isinstance(bijector, bijectors.Chain):
        for part in bijector.bijectors:
            support = image(support, part)
        return support
    if isinstance(bijector, bijectors.IndependentBijector):
        return image(support, bijector.bijector)
    if isinstance(support, IndependentSupport) and bijector.event_ndims_in <= support.support.event_ndims:
        return IndependentSupport(image(support.support, bijector), support.ndims)
    if isinstance(bijector, bijectors.Inverse):
        # Back to where the map of a support starts from; numbers are then not lost where it overflows or underflows.
        whole = supports.RealVector() if bijector.event_ndims_out else supports.Real()
        if type(image(whole, bijector.bijector)) is type(support) and not jax.tree.leaves(support):
            return whole
    if isinstance(support, supports.RealVector):
        if bijector.event_ndims_in == 0:
            inner = image(supports.Real(), bijector)
            return support if isinstance(inner, supports.Real) else IndependentSupport(inner, 1)
        if type(bijector) in _OF_VECTORS:
            return _OF_VECTORS[type(bijector)]()
    if isinstance(support, supports.Real) and type(bijector) in _OF_REAL:
        return _OF_REAL[type(bijector)](bijector)
    return TransformedSupport(support, bijector)


@core.pytree
class TransformedSupport(Support):
    """The set that a bijector makes of a support.

    Args:
      support: what is mapped.
      mapping: the bijector.
    """

    support: Support
    mapping: Bijector

    @property
    def event_ndims(self) -> int:
        return self.support.event_ndims + self.mapping.event_ndims_out - self.mapping.event_ndims_in

    def contains(self, x: Any) -> jax.Array:
        inside = self.support.contains(self.mapping.inverse(x))
        codomain = _OF_VECTORS.get(type(self.mapping))
        if codomain is None:
            return inside
        return inside & all_last(codomain().contains(x), self.event_ndims - self.mapping.event_ndims_out)

    @property
    def bijector(self) -> Bijector:
        return bijectors.Chain((self.support.bijector, self.mapping))
