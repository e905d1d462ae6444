"""A distribution of one number restricted to an interval."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._binomial import BetaBinomial, Binomial
from jaxprob.distributions._combinators import check_distribution
from jaxprob.distributions._counts import first_integer
from jaxprob.distributions._discrete import Categorical
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._images import ends, overlap
from jaxprob.distributions._location_scale import Cauchy, Laplace, Logistic, Normal, StudentT
from jaxprob.distributions._parameters import (
    REAL,
    align,
    broadcast_to,
    check_order,
    check_shapes,
    is_concrete,
    set_parameters,
    static_number,
)
from jaxprob.distributions._supports import Support

_SYMMETRIC = (Cauchy, Laplace, Logistic, Normal, StudentT)
# Up to this many outcomes are added up one by one.
_FEW = 128


def _is_open(end: Any, infinity: float) -> bool:
    """Whether an end is None, or concrete and infinite throughout."""
    return end is None or (is_concrete(end) and bool(np.all(np.asarray(end) == infinity)))


@core.pytree
class Truncated(Distribution):
    r"""A distribution of one number restricted to [low, high], both included.

    $$p(x) = p_{base}(x) / P_{base}(low \le X \le high), \quad low \le x \le high$$

    Counts between two ends that are concrete numbers at most 128 apart, and counts from 1 on, need the log masses of
    the base alone, and keep all their digits and gradients; with two such ends there are moments as well.

    Otherwise the probability of the interval is a difference of tail probabilities, taken in the tail where it lies.
    For symmetric bases (normal, Student t, Cauchy, Laplace, logistic) and counts both tails keep their digits, down to
    the smallest normal number (1e-38 in float32: 13 standard deviations of a normal base; `TruncatedNormal` has no such
    limit); where the probability underflows, log densities are nan. Other bases have in the upper tail the digits that
    `1 - cdf` leaves: in float32 about three at 1e-4, none at 1e-7. An interval that holds a small part of the mass on
    its side of the median loses digits in proportion. Where JAX has no derivative of the `cdf` (in the shape parameters
    of Student t, beta and negative binomial), neither has this.

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
        given = {"low": self.low, "high": self.high}
        given = {name: end for name, end in given.items() if not _is_open(end, -np.inf if name == "low" else np.inf)}
        for name in ("low", "high"):
            object.__setattr__(self, name, given.get(name))
        if len(given) == 2:
            self._check_order()
        set_parameters(self, **dict.fromkeys(given, REAL))
        shapes = {name: getattr(self, name).shape for name in given}
        check_shapes("Truncated", **{"the batch of base": self.base.batch_shape}, **shapes)
        for name, end in given.items():
            # A Python number stays one: inside `jit` an array made of it would no longer be concrete.
            if isinstance(end, (int, float)):
                object.__setattr__(self, name, end)

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
        shapes = (jnp.shape(end) for end in (self.low, self.high) if end is not None)
        return np.broadcast_shapes(self.base.batch_shape, *shapes)

    @property
    def support(self) -> Support:
        support = overlap(self.base.support, self.low, self.high)
        return self.base.support if support is None else support

    def enumerate_support(self) -> jax.Array:
        """All values (k, *batch), of counts between two concrete ends at most 128 apart."""
        counts = self._few()
        if counts is None:
            expected = f"counts between concrete ends at most {_FEW} apart"
            raise core.bad_value("Truncated.enumerate_support", "the support", self.support, expected)
        batch = self.batch_shape
        return jnp.broadcast_to(jnp.asarray(counts).reshape((-1,) + (1,) * len(batch)), (len(counts), *batch))

    def mean(self) -> jax.Array:
        values, log_mass = self._masses("mean")
        return jnp.sum(values * jnp.exp(log_mass), axis=-1)

    def variance(self) -> jax.Array:
        values, log_mass = self._masses("variance")
        mass = jnp.exp(log_mass)
        center = jnp.sum(values * mass, axis=-1, keepdims=True)
        return jnp.sum((values - center) ** 2 * mass, axis=-1)

    def _masses(self, what: str) -> tuple[jax.Array, jax.Array]:
        """The values (..., k) and their log masses (*batch, k), where they are few."""
        counts = self._few()
        if counts is None:
            raise self._undefined(what)
        log_mass = self._base_masses(counts)
        log_mass = log_mass - core.logsumexp(log_mass, -1, keepdims=True)
        return tuple(align(counts.astype(log_mass.dtype), log_mass))  # type: ignore[return-value]

    def _base_masses(self, counts: np.ndarray) -> jax.Array:
        """Log masses (*batch, k) of the base."""
        batch = self.base.batch_shape
        return jnp.moveaxis(self.base.log_prob(counts.reshape((-1,) + (1,) * len(batch))), 0, -1)

    def _ends(self) -> tuple[float | None, float | None]:
        """The whole numbers at the two ends of a discrete distribution, None where there is none that is concrete."""
        bound = self._base_ends
        low, high = ([x for x in pair if x is not None] for pair in ((self.low, bound[0]), (self.high, bound[1])))
        # A base's end that is not known does no harm beside one of ours: its mass is 0 beyond.
        low, high = ([static_number(x) for x in pair] for pair in (low, high))
        first = None if not low or low[0] is None else float(np.ceil(max(x for x in low if x is not None)))
        last = None if not high or high[0] is None else float(np.floor(min(x for x in high if x is not None)))
        return first, last

    def _few(self) -> np.ndarray | None:
        """The counts of the support, if they are known and few."""
        if not self.base.is_discrete:
            return None
        low, high = self._ends()
        return None if low is None or high is None or high - low > _FEW else np.arange(int(low), int(high) + 1)

    def cdf(self, value: Any) -> jax.Array:
        (x,) = align(self._fitting("cdf", value))
        if self._few() is not None:
            x, values, log_mass = align(x[..., None], *self._masses("cdf"))
            return jnp.sum(jnp.where(values <= x, jnp.exp(log_mass), 0.0), axis=-1)
        capped = x if self.high is None else jnp.minimum(*align(x, self.high))
        before = self._before()
        capped = capped if before is None else jnp.maximum(*align(capped, before))
        below, whole = align(self._mass(before, capped), self._mass(before, self.high))
        below = jnp.clip(below / whole, 0.0, 1.0)
        if self.high is None:
            return below
        # All of it is a ratio of two masses that may round differently.
        below, x, last = align(below, x, jnp.floor(self.high) if self.base.is_discrete else self.high)
        return jnp.where(x >= last, 1.0, below)

    def _before(self) -> jax.Array | None:
        """The point up to which (included) nothing is left."""
        if self.low is None or not self.base.is_discrete:
            return self.low
        return jnp.ceil(self.low) - 1

    def _both_tails(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """P(X <= x) and P(X > x), without cancellation where the base allows it."""
        below = self.base.cdf(x)
        if isinstance(self.base, _SYMMETRIC):
            loc, x = align(self.base.loc, x)
            return below, self.base.cdf(2 * loc - x)
        if hasattr(self.base, "_survival"):
            return below, self.base._evaluate("survival", x)  # type: ignore[attr-defined]
        return below, 1 - below

    def _tails(self, low: Any, high: Any) -> tuple[jax.Array, ...]:
        """Whether the interval is in the upper tail, and the masses below and above its two ends."""
        none, all_ = (jnp.full((), end, core.result_dtype(self)) for end in (0.0, 1.0))
        if low is not None and high is not None:
            points = jnp.stack(jnp.broadcast_arrays(*align(low, high)))
            missing = max(len(self.base.batch_shape) + 1 - points.ndim, 0)
            below, above = self._both_tails(jnp.expand_dims(points, tuple(range(1, 1 + missing))))
            values = [below[0], below[1], above[0], above[1]]
        elif low is not None:
            below, above = self._both_tails(low)
            values = [below, all_, above, none]
        elif high is not None:
            below, above = self._both_tails(high)
            values = [none, below, all_, above]
        else:
            values = [none, all_, all_, none]
        values = align(*values)
        return values[0] > 0.5, *values

    def _mass(self, low: Any, high: Any) -> jax.Array:
        """P(low < X <= high)."""
        upper, below_low, below_high, above_low, above_high = jnp.broadcast_arrays(*self._tails(low, high))
        return jnp.where(upper, above_low - above_high, below_high - below_low)

    def _log_mass(self) -> jax.Array:
        """log P(low <= X <= high)."""
        if (counts := self._few()) is not None:
            return core.logsumexp(self._base_masses(counts), -1)
        start = self._base_ends[0]
        from_zero = self.base.is_discrete and start is not None and static_number(start) == 0
        if from_zero and self.high is None and self._ends()[0] == 1:
            return core.log1mexp(-self.base.log_prob(0))
        mass = self._mass(self._before(), self.high)
        positive = mass > 0
        return jnp.where(positive, jnp.log(jnp.where(positive, mass, 1.0)), jnp.nan)

    @property
    def _base_ends(self) -> tuple[Any, Any]:
        """The ends of the base's support, as numbers where they are, also inside `jit`, where a support's are not."""
        if isinstance(self.base, (Binomial, BetaBinomial)):
            return 0, self.base.total_count
        if isinstance(self.base, Categorical):
            return 0, self.base.num_categories - 1
        return ends(self.base.support) or (None, None)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        log_base, log_mass, x = align(self.base.log_prob(value), self._log_mass(), value)
        log_density = log_base - log_mass
        inside = jnp.ones(x.shape, bool)
        # A NaN is neither below nor above the ends, and stays one.
        for is_low, end in ((True, self.low), (False, self.high)):
            if end is not None:
                x, end = align(x, end)
                inside, _ = jnp.broadcast_arrays(inside.reshape((1,) * (x.ndim - inside.ndim) + inside.shape), x)
                inside = inside & ~((x < end) if is_low else (x > end))
        return jnp.where(jnp.broadcast_to(inside, log_density.shape), log_density, -jnp.inf)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        shape = shape + self.batch_shape
        if (counts := self._few()) is not None:
            log_mass = broadcast_to(self._base_masses(counts), (*self.batch_shape, len(counts)))
            return core.random.categorical(key, log_mass, shape=shape, mode="high").astype(int) + int(counts[0])
        tails = [broadcast_to(value, shape) for value in self._tails(self._before(), self.high)]
        upper, below_low, below_high, above_low, above_high = tails
        u = core.random.uniform(key, shape, below_low.dtype, minval=float(jnp.finfo(below_low.dtype).tiny))
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
        # The inverse of a rounded probability may land just outside.
        draw = draw if self.low is None else jnp.maximum(*align(draw, self.low))
        draw = draw if self.high is None else jnp.minimum(*align(draw, self.high))
        return broadcast_to(draw, shape)

    def _find(self, upper: jax.Array, below: jax.Array, above: jax.Array) -> jax.Array:
        """The smallest whole number that has the given mass below it, or leaves the given mass above it."""

        def reached(k: jax.Array) -> jax.Array:
            found_below, found_above = self._both_tails(k)
            return jnp.where(upper, found_above <= above, found_below >= below)

        low = jnp.zeros((), below.dtype) if self.low is None else jnp.ceil(align(self.low, below)[0])
        high = None if self.high is None else jnp.floor(align(self.high, below)[0])
        return first_integer(reached, below.shape, below.dtype, low, high)
