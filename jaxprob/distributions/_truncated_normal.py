"""The normal distribution restricted to an interval, exact however far out or narrow the interval is.

Everything is computed in standard units on the mirror image in which the interval's end nearer the mode is its upper
end, so that only lower tails occur, and relative to the point r = min(hi, 0) of the interval nearest the mode, so that
nothing underflows: Z exp(r^2 / 2) and (z^2 - r^2) / 2 = (z - r) (z + r) / 2 stay moderate at any distance.
distrax has no such distribution, and a difference of normal cdfs in float32 is 0 from 6 standard deviations on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr, ndtri

from jaxprob import core
from jaxprob.distributions._location_scale import HALF_LOG_2PI
from jaxprob.distributions._parameters import POSITIVE, REAL, check_order, is_concrete, set_parameters
from jaxprob.distributions._special import gauss_legendre, open_uniform, ratio
from jaxprob.distributions._supports import GreaterThan, Interval, LessThan, Real, Support
from jaxprob.distributions._univariate import Univariate

# This many standard deviations beyond r an interval holds nothing that a float64 could tell from zero.
_REACH = 40.0
# Below this point tails are computed by a continued fraction.
_TAIL = -8.0


@core.pytree
class _Interval:
    """The interval in standard units, mirrored so that hi is its end nearer the mode.

    Attributes:
      sign: -1 where mirrored, else 1.
      hi: upper end; _REACH if there is no end.
      below: r - lo, at most _REACH.
      edge: in the original units, the point that r stands for.
      bounded: whether there are two ends.
    """

    sign: Array
    hi: Array
    below: Array
    edge: Array
    bounded: bool = core.static()

    @property
    def r(self) -> Array:
        # Not `minimum`: at hi = 0 its gradient is one half, and `edge` would not agree with it.
        return jnp.where(self.hi < 0, self.hi, 0)


@jax.jit
def _standardise(loc: Array, scale: Array, low: Array | None, high: Array | None) -> _Interval:
    reach = jnp.full_like(scale, _REACH)
    one = jnp.ones_like(scale)
    if low is not None and high is not None:
        loc, scale, low, high = jnp.broadcast_arrays(loc, scale, low, high)
        a, b = ratio(low - loc, scale), ratio(high - loc, scale)
        mirrored = a + b > 0
        hi = jnp.where(mirrored, -a, b)
        # r - lo is the width where hi is below the mode, and the distance of the far end where it is above.
        below = jnp.where(hi < 0, ratio(high - low, scale), jnp.where(mirrored, b, -a))
        edge = jnp.where(hi < 0, jnp.where(mirrored, low, high), loc)
        return _Interval(jnp.where(mirrored, -one, one), hi, jnp.minimum(below, _REACH), edge, bounded=True)
    if low is not None:
        sign, end = -one, low
    elif high is not None:
        sign, end = one, high
    else:
        return _Interval(one, reach, reach, loc, bounded=False)
    hi = sign * ratio(end - loc, scale)
    return _Interval(sign, hi, reach, jnp.where(hi < 0, end, loc), bounded=False)


@jax.custom_jvp
def _log_mills(y: Array) -> Array:
    """`log Phi(y) + min(y, 0)^2 / 2`, without a term of the size of y^2."""
    near = jnp.maximum(y, _TAIL)
    return jnp.where(y < _TAIL, _log_mills_tail(y), log_ndtr(near) + 0.5 * jnp.minimum(near, 0) ** 2)


def _log_mills_tail(y: Array) -> Array:
    """`_log_mills` for y <= _TAIL."""
    x, fraction = _fraction(y)
    return -jnp.log(x) - jnp.log1p(fraction) - HALF_LOG_2PI


@_log_mills.defjvp
def _log_mills_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (y,), (dy,) = primals, tangents
    value = _log_mills(y)
    near = jnp.maximum(y, _TAIL)
    x, fraction = _fraction(y)
    # phi / Phi + min(y, 0), which in the tail is what the fraction adds to x.
    hazard = jnp.exp(-0.5 * jnp.maximum(near, 0) ** 2 - HALF_LOG_2PI - jnp.where(y < _TAIL, 0, value))
    return value, jnp.where(y < _TAIL, x * fraction, hazard + jnp.minimum(near, 0)) * dy


def _fraction(y: Array) -> tuple[Array, Array]:
    """x = -y, held above -_TAIL, and t in `phi(x) / Phi(-x) = x (1 + t)`, by Laplace's continued fraction."""
    x = jnp.maximum(-y, -_TAIL)
    inverse_square = (1 / x) ** 2
    fraction = jnp.zeros_like(x)
    for k in range(8 if jnp.finfo(y.dtype).bits <= 32 else 24, 0, -1):
        fraction = k * inverse_square / (1 + fraction)
    return x, fraction


@partial(jax.jit, static_argnums=(1, 2))
def _integrals(s: _Interval, count: int, powers: int) -> list[Array]:
    """Integrals of (z - r)^k phi(z) exp(r^2 / 2) over the interval for k < powers, by Gauss's rule."""
    nodes, weights = (v.astype(s.hi.dtype).reshape((-1,) + (1,) * s.hi.ndim) for v in gauss_legendre(count))
    # Ten standard deviations from the mode, or forty e-folds in a tail: the rest is below rounding.
    upper = jnp.minimum(s.hi - s.r, _REACH / 4)
    length = upper + jnp.minimum(s.below, _REACH / jnp.maximum(-s.r, 4))
    upper, length, r = (jnp.expand_dims(jnp.broadcast_to(v, s.hi.shape), 0) for v in (upper, length, s.r))
    offset = upper - length * nodes
    mass = weights * length * jnp.exp(-0.5 * offset * (offset + 2 * r) - HALF_LOG_2PI)
    return [jnp.sum(mass * offset**k, axis=0) for k in range(powers)]


@jax.jit
def _log_mass(s: _Interval) -> Array:
    """`log(Z exp(r^2 / 2))`, where Z is the mass of the standard normal distribution on the interval."""
    if not s.bounded:
        return _log_mills(s.hi)
    # Phi(lo) / Phi(hi) as a logarithm. On a narrow interval the two cancel, and its mass is an easy integral.
    narrow = (s.hi - s.r + s.below) * (1 - s.r) < 1
    log_upper, log_lower = _log_mills(jnp.stack([s.hi, s.r - s.below]))
    log_ratio = log_lower - log_upper - 0.5 * s.below * (s.below - 2 * s.r)
    wide = log_upper + core.log1mexp(jnp.where(narrow, 1, -log_ratio))
    return jnp.where(narrow, jnp.log(_integrals(s, 16, 1)[0]), wide)


def _infinite(value: Any, end: float) -> bool:
    """Whether a concrete end says that there is none."""
    try:
        return value is None or (is_concrete(value) and bool(np.all(np.asarray(value) == end)))
    except (TypeError, ValueError):
        return False


@core.pytree
class TruncatedNormal(Univariate):
    r"""Normal distribution restricted to [low, high].

    $$p(x) = \frac{\mathrm{Normal}(x; \mu, \sigma)}{\Phi((high - \mu) / \sigma) - \Phi((low - \mu) / \sigma)}$$

    Args:
      loc: (*batch), the mean mu of the unrestricted variable.
      scale: (*batch), its standard deviation sigma, positive.
      low: (*batch), or None (or a concrete -inf) for no lower end.
      high: (*batch), above `low`, or None (or a concrete inf) for no upper end.

    Raises:
      ValueError: if the shapes do not broadcast, a concrete scale is not positive, or a concrete `high` is not above
        `low`.

    >>> round(float(TruncatedNormal(0.0, 1.0, low=0.0).mean()), 4)
    0.7979
    """

    loc: Any = 0.0
    scale: Any = 1.0
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        for name, end in (("low", -np.inf), ("high", np.inf)):
            if _infinite(getattr(self, name), end):
                object.__setattr__(self, name, None)
        ends = {name: REAL for name in ("low", "high") if getattr(self, name) is not None}
        if len(ends) == 2:
            check_order("TruncatedNormal", self.low, self.high)
        set_parameters(self, loc=REAL, scale=POSITIVE, **ends)

    @property
    def parameters(self) -> tuple[Array, ...]:
        return tuple(p for p in (self.loc, self.scale, self.low, self.high) if p is not None)

    @property
    def support(self) -> Support:
        if self.low is not None and self.high is not None:
            return Interval(self.low, self.high)
        if self.low is None and self.high is None:
            return Real()
        return LessThan(self.high) if self.low is None else GreaterThan(self.low)

    def _ends(self, ends: tuple[Array, ...]) -> tuple[Array | None, Array | None]:
        return None if self.low is None else ends[0], None if self.high is None else ends[-1]

    def _interval(self, loc: Array, scale: Array, *ends: Array) -> _Interval:
        return _standardise(loc, scale, *self._ends(ends))

    def _clip(self, x: Array, ends: tuple[Array, ...]) -> Array:
        low, high = self._ends(ends)
        # Not `clip`: the gradient at an end would be shared between it and x.
        x = x if low is None else jnp.where(x < low, low, x)
        return x if high is None else jnp.where(x > high, high, x)

    def _log_density(self, x: Array, loc: Array, scale: Array, *ends: Array) -> Array:
        s = self._interval(loc, scale, *ends)
        inner = self._clip(x, ends)
        offset = s.sign * ratio(inner - s.edge, scale)
        log_density = -0.5 * offset * (offset + 2 * s.r) - jnp.log(scale) - HALF_LOG_2PI - _log_mass(s)
        return jnp.where(inner == x, log_density, jnp.where(jnp.isnan(x), jnp.nan, -jnp.inf))

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, *parameters: Array) -> Array:
        return self._quantile(open_uniform(key, shape, dtype), *parameters)

    def _mean(self, loc: Array, scale: Array, *ends: Array) -> Array:
        s = self._interval(loc, scale, *ends)
        total, first = _integrals(s, 64, 2)
        return s.edge + s.sign * scale * first / total

    def _variance(self, loc: Array, scale: Array, *ends: Array) -> Array:
        total, first, second = _integrals(self._interval(loc, scale, *ends), 64, 3)
        return scale**2 * (second / total - (first / total) ** 2)

    def _entropy(self, loc: Array, scale: Array, *ends: Array) -> Array:
        s = self._interval(loc, scale, *ends)
        total, first, second = _integrals(s, 64, 3)
        return jnp.log(scale) + HALF_LOG_2PI + _log_mass(s) + 0.5 * (second + 2 * s.r * first) / total

    def _cdf(self, x: Array, loc: Array, scale: Array, *ends: Array) -> Array:
        low, high = self._ends(ends)
        below = jnp.zeros_like(x, bool) if low is None else x <= low
        above = jnp.zeros_like(x, bool) if high is None else x >= high
        inner = x if low is None else jnp.where(below, low + scale, x)
        whole, part = _standardise(loc, scale, low, high), _standardise(loc, scale, low, inner)
        # Each mass is relative to its own r.
        log_cdf = _log_mass(part) - _log_mass(whole) - 0.5 * (part.r - whole.r) * (part.r + whole.r)
        return jnp.where(below, 0, jnp.where(above, 1, jnp.exp(log_cdf)))

    def _quantile(self, p: Array, loc: Array, scale: Array, *ends: Array) -> Array:
        s = self._interval(loc, scale, *ends)
        return self._clip(s.edge + s.sign * scale * _offset(s, jnp.where(s.sign < 0, p, 1 - p)), ends)


@jax.jit
def _offset(s: _Interval, above: Array) -> Array:
    """z - r at the quantile with a given part of the mass between it and hi."""
    log_upper = _log_mills(s.hi)
    # log Phi(z) - log Phi(hi) at the quantile z.
    filled = jnp.exp(_log_mass(s) - log_upper)
    from_above = jnp.log1p(-above * filled)
    from_below = core.safe_log((1 - filled if s.bounded else 0.0) + (1 - above) * filled)
    target = jnp.where(above * filled < 0.5, from_above, from_below)
    return jnp.where(s.hi < _TAIL, _tail_offset(s.hi, target), _near_offset(s, log_upper, target))


def _near_offset(s: _Interval, log_upper: Array, target: Array) -> Array:
    """z - r with log Phi(z) = log Phi(hi) + target, for hi not far in the tail."""
    hi = jnp.maximum(s.hi, _TAIL)
    log_cdf = jnp.where(s.hi < _TAIL, -1, log_upper - 0.5 * jnp.minimum(hi, 0) ** 2 + target)
    return ndtri(jnp.exp(log_cdf)) - s.r


def _tail_offset(hi: Array, target: Array) -> Array:
    """z - hi with log Phi(z) = log Phi(hi) + target, for hi far in the tail: Newton's method from -z^2 / 2."""
    hi = jnp.minimum(hi, _TAIL)
    log_upper = _log_mills_tail(hi)
    offset = 2 * target / (jnp.sqrt(hi * hi - 2 * target) - hi)
    # The start is off by a part in hi^2, which every step squares.
    for _ in range(2 if jnp.finfo(hi.dtype).bits <= 32 else 3):
        log_mills = _log_mills_tail(hi + offset)
        error = log_mills - log_upper - 0.5 * offset * (offset + 2 * hi) - target
        offset = jnp.minimum(offset - error * jnp.exp(log_mills + HALF_LOG_2PI), 0)
    return offset
