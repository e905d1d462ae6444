"""A distribution of one number restricted to an interval."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._combinators import check_distribution
from jaxprob.distributions._counts import first_integer
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._images import overlap
from jaxprob.distributions._location_scale import Cauchy, Laplace, Logistic, Normal, StudentT
from jaxprob.distributions._parameters import (
    REAL,
    align,
    broadcast_to,
    check_order,
    check_shapes,
    is_concrete,
    set_parameters,
)
from jaxprob.distributions._supports import Support

_SYMMETRIC = (Cauchy, Laplace, Logistic, Normal, StudentT)


def _is_open(end: Any, infinity: float) -> bool:
    """Whether an end is None, or concrete and infinite throughout."""
    return end is None or (is_concrete(end) and bool(np.all(np.asarray(end) == infinity)))


@core.pytree
class Truncated(Distribution):
    r"""A distribution of one number restricted to [low, high], both included.

    $$p(x) = p_{base}(x) / P_{base}(low \le X \le high), \quad low \le x \le high$$

    The probability of the interval is a difference of tail probabilities, taken in the tail where it lies. For
    symmetric bases (normal, Student t, Cauchy, Laplace, logistic) and counts (Bernoulli, binomial, Poisson, negative
    binomial) both tails keep their digits, down to the smallest normal number (1e-38 in float32: 13 standard deviations
    of a normal base; `TruncatedNormal` has no such limit); where the probability underflows, log densities are nan.
    Other bases have in the upper tail the digits that `1 - cdf` leaves: in float32 about three at 1e-4, none at 1e-7.
    An interval that holds a small part of the mass on its side of the median loses digits in proportion.

    Args:
      base: a distribution of one number with a `cdf`; to sample a continuous one it also needs a `quantile`.
      low: (*batch), or None (or a concrete -inf) for no lower end.
      high: (*batch), above `low` (or equal, for a discrete base), or None (or a concrete inf) for no upper end.

    Raises:
      TypeError: if `base` is not a distribution of one number.
      ValueError: if concrete ends are out of order or shapes do not broadcast.

    >>> float(Truncated(Poisson(1.0), low=1).log_prob(0))
    -inf
    """

    base: Distribution
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        check_distribution("Truncated", "base", self.base)
        if self.base.event_shape:
            raise core.bad_type("Truncated", "base", self.base, "a distribution of one number")
        for name, infinity in (("low", -np.inf), ("high", np.inf)):
            if _is_open(getattr(self, name), infinity):
                object.__setattr__(self, name, None)
        given = [name for name in ("low", "high") if getattr(self, name) is not None]
        if len(given) == 2:
            self._check_order()
        set_parameters(self, **dict.fromkeys(given, REAL))
        shapes = {name: getattr(self, name).shape for name in given}
        check_shapes("Truncated", **{"the batch of base": self.base.batch_shape}, **shapes)

    def _check_order(self) -> None:
        if not self.base.is_discrete:
            check_order("Truncated", self.low, self.high)
        elif is_concrete(self.low) and is_concrete(self.high):
            low, high = np.broadcast_arrays(np.ceil(self.low), np.floor(self.high))
            if (low > high).any():
                expected = f"numbers not below low, here {low[low > high][0]:g}"
                raise core.bad_value("Truncated", "high", f"{high[low > high][0]:g}", expected)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        ends = (jnp.shape(end) for end in (self.low, self.high) if end is not None)
        return np.broadcast_shapes(self.base.batch_shape, *ends)

    @property
    def support(self) -> Support:
        support = overlap(self.base.support, self.low, self.high)
        return self.base.support if support is None else support

    def cdf(self, value: Any) -> jax.Array:
        (x,) = align(self._fitting("cdf", value))
        part = self._mass(self._before(), self._capped(x))
        part, whole = align(part, self._mass(self._before(), self.high))
        return jnp.clip(part / whole, 0.0, 1.0)

    def _capped(self, x: jax.Array) -> jax.Array:
        """`x` held within the ends, or just below them, so that a mass up to it is none or all."""
        before = self._before()
        x = x if self.high is None else jnp.minimum(*align(x, self.high))
        return x if before is None else jnp.maximum(*align(x, before))

    def _before(self) -> jax.Array | None:
        """The point up to which (included) nothing is left."""
        if self.low is None or not self.base.is_discrete:
            return self.low
        return jnp.ceil(self.low) - 1

    def _constant(self, end: float) -> jax.Array:
        return jnp.full((), end, core.result_dtype(self))

    def _below(self, x: jax.Array | None, end: float) -> jax.Array:
        """P(X <= x), or `end` where there is no x."""
        return self._constant(end) if x is None else self.base.cdf(x)

    def _above(self, x: jax.Array | None, end: float) -> jax.Array:
        """P(X > x), without cancellation where the base allows it."""
        if x is None:
            return self._constant(end)
        if isinstance(self.base, _SYMMETRIC):
            loc, x = align(self.base.loc, x)
            return self.base.cdf(2 * loc - x)
        if hasattr(self.base, "_survival"):
            return self.base._evaluate("survival", x)  # type: ignore[attr-defined]
        return 1 - self.base.cdf(x)

    def _tails(self, low: Any, high: Any) -> tuple[jax.Array, ...]:
        """Whether the interval is in the upper tail, and the masses below and above its two ends."""
        below = align(self._below(low, 0.0), self._below(high, 1.0))
        above = align(self._above(low, 1.0), self._above(high, 0.0))
        values = align(*below, *above)
        return values[0] > 0.5, *values

    def _mass(self, low: Any, high: Any) -> jax.Array:
        """P(low < X <= high)."""
        upper, below_low, below_high, above_low, above_high = jnp.broadcast_arrays(*self._tails(low, high))
        return jnp.where(upper, above_low - above_high, below_high - below_low)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        mass = self._mass(self._before(), self.high)
        positive = mass > 0
        log_mass = jnp.where(positive, jnp.log(jnp.where(positive, mass, 1.0)), jnp.nan)
        log_base, log_mass, x = align(self.base.log_prob(value), log_mass, value)
        inside = jnp.ones(x.shape, bool)
        if self.low is not None:
            x_, low = align(x, self.low)
            inside = inside & ~(x_ < low)
        if self.high is not None:
            x_, high = align(x, self.high)
            inside = inside & ~(x_ > high)
        log_density = log_base - log_mass
        inside = jnp.broadcast_to(inside, log_density.shape)
        # Outside, the base alone decides nothing; a NaN is neither below nor above the ends and stays one.
        return jnp.where(inside, log_density, -jnp.inf)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        shape = shape + self.batch_shape
        tails = [broadcast_to(value, shape) for value in self._tails(self._before(), self.high)]
        upper, below_low, below_high, above_low, above_high = tails
        u = jax.random.uniform(key, shape, below_low.dtype, minval=float(jnp.finfo(below_low.dtype).tiny))
        # The mass below the draw, or above it.
        below = below_low + u * (below_high - below_low)
        above = above_high + u * (above_low - above_high)
        if self.base.is_discrete:
            return self._find(upper, below, above).astype(int)
        if isinstance(self.base, _SYMMETRIC):
            draw = self.base.quantile(jnp.where(upper, above, below))
            loc, draw = align(self.base.loc, draw)
            draw = jnp.where(upper, 2 * loc - draw, draw)
        else:
            draw = self.base.quantile(jnp.where(upper, 1 - above, below))
        return self._clip(draw, shape)

    def _clip(self, draw: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        # The inverse of a rounded probability may land just outside.
        if self.low is not None:
            draw = jnp.maximum(*align(draw, self.low))
        if self.high is not None:
            draw = jnp.minimum(*align(draw, self.high))
        return broadcast_to(draw, shape)

    def _find(self, upper: jax.Array, below: jax.Array, above: jax.Array) -> jax.Array:
        """The smallest whole number that has the given mass below it, or leaves the given mass above it."""

        def reached(k: jax.Array) -> jax.Array:
            return jnp.where(upper, self._above(k, 0.0) <= above, self.base.cdf(k) >= below)

        low = jnp.zeros((), below.dtype) if self.low is None else jnp.ceil(self.low)
        high = None if self.high is None else jnp.floor(self.high)
        return first_integer(reached, below.shape, below.dtype, low, high)
