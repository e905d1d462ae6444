"""Monotone rational-quadratic splines of single numbers.

On CPU they are most of the time of a flow beside its networks, and are written for that: bins lead, so that one bin of
all numbers is contiguous; the bin of a number is found by comparisons and read by masked sums, not by gathers; widths
are normalised and slopes made positive after they were read, for one bin and not for all.

Source: Durkan, Bekasov, Murray and Papamakarios (2019), "Neural spline flows", section 3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import align

# A bin is at least this part of an even bin, in width and in height; no slope at a knot is less than the other.
_LEAST_PART = 0.01
_LEAST_SLOPE = 1e-3


@core.pytree
class RationalQuadraticSpline(Bijector):
    """An increasing map of [-interval, interval] onto itself, and x = u outside; smooth also at the ends.

    Between two knots it is a ratio of two quadratics that has the given slopes at both; both directions are closed
    forms. With parameters of zero it is x = u.

    Args:
      widths: (*batch, bins), any real numbers, as are the others; a softmax makes them the widths of bins.
      heights: (*batch, bins), likewise the heights.
      slopes: (*batch, bins - 1), of the inner knots; the outer ones have slope 1.
      interval: positive number.

    Raises:
      ValueError: if their sizes do not fit or `interval` is not a positive number.

    >>> spline = RationalQuadraticSpline(jnp.array([0.0, 1.0]), jnp.zeros(2), jnp.zeros(1), 3.0)
    >>> [round(float(u), 4) for u in spline.inverse(jnp.array([-3.0, 0.0, 5.0]))]
    [-3.0, -1.3725, 5.0]
    """

    widths: Any
    heights: Any
    slopes: Any
    interval: float = core.static(default=4.0)

    def __post_init__(self) -> None:
        core.check_positive("RationalQuadraticSpline", interval=self.interval)
        bins = jnp.shape(self.widths)[-1:]
        shape = jnp.shape(self.heights)[-1:] + tuple(n + 1 for n in jnp.shape(self.slopes)[-1:])
        if bins + bins != shape or bins == (0,):
            got = f"of shape {jnp.shape(self.widths)}"
            expected = "one entry for each of heights and one more than slopes along the last axis"
            raise core.bad_value("RationalQuadraticSpline", "widths", got, expected)

    @property
    def keeps_reals(self) -> bool:
        return True

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return self._mapped(u, False)

    def inverse(self, x: Any) -> jax.Array:
        return self._mapped(x, True)[0]

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return self._mapped(x, True)

    def _mapped(self, value: Any, inverse: bool) -> tuple[jax.Array, jax.Array]:
        value, *parameters = align(jnp.asarray(value)[..., None], self.widths, self.heights, self.slopes)
        value, widths, heights, slopes = (jnp.moveaxis(array, -1, 0) for array in (value, *parameters))
        value = value[0]
        shape = value.shape
        if widths.shape[1:] == heights.shape[1:] == slopes.shape[1:] == shape:
            # One axis of numbers: on CPU a last axis of length 1 doubles the time of sums and of exponentials.
            flat = () if value.size == 1 else (value.size,)
            value = value.reshape(flat)
            widths, heights, slopes = (array.reshape(array.shape[:1] + flat) for array in (widths, heights, slopes))
        else:
            shape = jnp.broadcast_shapes(shape, widths.shape[1:], heights.shape[1:], slopes.shape[1:])
        inside = jnp.abs(value) <= self.interval
        held = jnp.where(inside, value, 0)
        result, log_slope = _spline(held, widths, heights, slopes, self.interval, inverse)
        return jnp.where(inside, result, value).reshape(shape), jnp.where(inside, log_slope, 0).reshape(shape)


def _spline(
    value: jax.Array, widths: jax.Array, heights: jax.Array, slopes: jax.Array, interval: float, inverse: bool
) -> tuple[jax.Array, jax.Array]:
    """The spline, or its inverse, and the logarithm of its slope, of numbers inside; bins along the first axis."""
    bins = widths.shape[0]
    widths, heights = _exp(widths), _exp(heights)
    known = jax.lax.stop_gradient(heights if inverse else widths)
    ends = jnp.cumsum(known, axis=0)
    # Where each bin but the last ends, with all of the interval as 1.
    share = ends[:-1] / ends[-1:] * (1 - _LEAST_PART) + _LEAST_PART / bins * _counts(ends[:-1])
    past = (value[None] + interval) / (2 * interval) >= share
    true = jnp.ones((1, *past.shape[1:]), bool)
    before = jnp.concatenate([past, ~true])  # of the bins, those before that of the number
    here = jnp.concatenate([true, past]) & ~before

    start = jnp.sum(past, axis=0, dtype=value.dtype) * (_LEAST_PART / bins)

    def bin_of(sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the bin of the number begins, and its size."""
        total = jnp.sum(sizes, axis=0)
        left, size = (_ratio(jnp.sum(jnp.where(mask, sizes, 0), axis=0), total) for mask in (before, here))
        left = start + (1 - _LEAST_PART) * left
        return (2 * left - 1) * interval, (_LEAST_PART / bins + (1 - _LEAST_PART) * size) * (2 * interval)

    (u_left, width), (x_left, height) = bin_of(widths), bin_of(heights)
    first = positive_slope(jnp.sum(jnp.where(here[1:], slopes, 0), axis=0))
    last = positive_slope(jnp.sum(jnp.where(here[:-1], slopes, 0), axis=0))
    mean = height / width
    if inverse:
        part, rest = _part_of_width((value - x_left) / height, mean, first, last)
    else:
        part = (value - u_left) / width
        rest = 1 - part
    both = part * rest
    under = mean + (first + last - 2 * mean) * both  # equation 4
    slope = mean**2 * (last * part**2 + 2 * mean * both + first * rest**2) / under**2  # equation 5
    if inverse:
        return u_left + width * part, -jnp.log(slope)
    return x_left + height * (mean * part**2 + first * both) / under, jnp.log(slope)


def _part_of_width(r: jax.Array, mean: jax.Array, first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The part of the width of a bin, and 1 less it, at the part r of its height.

    The root of the quadratic of equations 6 to 8 in the paper, with its discriminant as a sum of squares, so that
    nothing cancels: with e = first (1 - r) - last r it is e^2 + 4 mean^2 r (1 - r).
    """
    e = first * (1 - r) - last * r
    square = 4 * mean**2 * r * (1 - r)
    inside = e**2 + square
    root = jnp.sqrt(jnp.where(inside > 0, inside, e**2))  # r may be past an end by a rounding
    # The derivative of -e, not that of |e|, where e is 0: in the middle of a bin of the identity.
    other = jnp.where(e > 0, e + root, square / (root + jnp.where(e > 0, e, -e)))
    total = 2 * mean * r + other
    return 2 * mean * r / total, other / total


def _counts(ends: jax.Array) -> jax.Array:
    """1, 2, 3, ... along the first axis."""
    return jax.lax.broadcasted_iota(ends.dtype, ends.shape, 0) + 1


def _exp(logits: jax.Array) -> jax.Array:
    """Exponentials along the first axis whose largest is 1."""
    return jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=0, keepdims=True)))


# XLA on CPU repeats what led to a number for each bin that the number meets, unless it ends with a division. So the
# gradients that go from one bin to all of them end with one: a gradient takes half of the time.


@jax.custom_jvp
def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return a / b


@_ratio.defjvp
def _ratio_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    ratio = primals[0] / primals[1]
    return ratio, (tangents[0] - ratio * tangents[1]) / primals[1]


_SHIFT = math.log(math.expm1(1 - _LEAST_SLOPE))


@jax.custom_jvp
def positive_slope(raw: jax.Array) -> jax.Array:
    """A slope from any real number: 1 from 0, at least 0.001, and nearly linear above."""
    return jax.nn.softplus(raw + _SHIFT) + _LEAST_SLOPE


@positive_slope.defjvp
def _positive_slope_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Held where its square is finite in float32, for second derivatives.
    down = jnp.exp(-jnp.maximum(primals[0] + _SHIFT, -40))
    return positive_slope(primals[0]), tangents[0] / (1 + down)


@dataclasses.dataclass(frozen=True)
class SplineTransformer:
    """Makes a `RationalQuadraticSpline` out of 3 bins - 1 parameters, which are 0 for x = u.

    Args:
      bins: number of bins.
      interval: what lies beyond it on either side stays as it is.

    Raises:
      ValueError: if one is not positive, or `bins` is not whole.

    >>> SplineTransformer(8, 4.0).parameters
    23
    """

    bins: int = 8
    interval: float = 5.0

    def __post_init__(self) -> None:
        core.check_whole("SplineTransformer", bins=self.bins)
        core.check_positive("SplineTransformer", interval=self.interval)

    @property
    def parameters(self) -> int:
        return 3 * self.bins - 1

    def __call__(self, parameters: jax.Array) -> Bijector:
        widths, heights, slopes = jnp.split(parameters, [self.bins, 2 * self.bins], axis=-1)
        return RationalQuadraticSpline(widths, heights, slopes, self.interval)
