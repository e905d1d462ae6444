"""Sums in log space whose values and gradients are right where terms are infinite.

`jax.nn.logsumexp` has a NaN gradient where every term is -inf, or one is inf. Source: Blanchard, Higham and Higham
(2021), "Accurately computing the log-sum-exp and softmax functions", for taking the largest term apart.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob.core._scalars import floats, sigmoid


@jax.custom_jvp
def _logaddexp(a: jax.Array, b: jax.Array) -> jax.Array:
    gap = jnp.where(a == b, 0.0, jnp.abs(a - b))
    return jnp.maximum(a, b) + jnp.log1p(jnp.exp(-gap))


@_logaddexp.defjvp
def _logaddexp_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    value = _logaddexp(a, b)
    gap = jnp.where(a == b, 0.0, a - b)
    return value, jnp.where(value == -jnp.inf, 0.0, sigmoid(gap) * da + sigmoid(-gap) * db)


def logaddexp(a: Any, b: Any) -> jax.Array:
    """`log(exp(a) + exp(b))`: -inf with a zero gradient where both are -inf, inf where one is.

    Args:
      a: any shape.
      b: a shape that broadcasts with a.

    >>> jax.grad(logaddexp)(-jnp.inf, -jnp.inf).item()
    0.0
    """
    return _logaddexp(*floats(a, b))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _logsumexp(x: jax.Array, weights: jax.Array | None, axis: tuple[int, ...]) -> jax.Array:
    if weights is not None:
        x = jnp.where(weights == 0, -jnp.inf, x)
    top = jnp.max(x, axis, keepdims=True, initial=-jnp.inf)
    # Nothing here asks which term is the largest: XLA may compute `x` once more for each sum, and rounds it otherwise.
    term = jnp.exp(jnp.minimum(x - jnp.where(jnp.isfinite(top), top, 0.0), 0.0))
    # Each term in two parts, t^16 and what is left, so that a sum just above one keeps the digits of its logarithm: the
    # largest is all in the first, and what the first has of a term below 0.35 is beyond the digits of either.
    squared = term * term
    power = squared * squared * squared * squared
    power = power * power
    rest = term - power
    if weights is not None:
        power, rest = weights * power, weights * rest
    large, small = jnp.sum(power, axis, keepdims=True), jnp.sum(rest, axis, keepdims=True)
    near = small < large
    logarithm = jnp.where(near, jnp.log(large) + jnp.log1p(jnp.where(near, small / large, 0)), jnp.log(large + small))
    return top + jnp.where(top == -jnp.inf, 0.0, logarithm)


@_logsumexp.defjvp
def _logsumexp_jvp(
    axis: tuple[int, ...], primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    (x, weights), (dx, dweights) = primals, tangents
    present = jnp.ones_like(x) if weights is None else weights
    # The shares come from the terms themselves: exp(x - value) would carry the rounding of a large value.
    x = jnp.where((present == 0) & ~jnp.isfinite(x), -jnp.inf, x)
    top = lax.stop_gradient(jnp.max(jnp.where(present == 0, -jnp.inf, x), axis, keepdims=True, initial=-jnp.inf))
    # The cap concerns terms of weight zero only, whose share may overflow beside the others.
    cap = 0.9 * math.log(float(jnp.finfo(x.dtype).max))
    terms = jnp.exp(jnp.minimum(x - jnp.where(jnp.isfinite(top), top, 0.0), cap))
    terms = jnp.where(top == jnp.inf, jnp.where(x == jnp.inf, 1.0, 0.0), terms)
    total = jnp.sum(present * terms, axis, keepdims=True)
    ratio = jnp.where(total == 0, 0.0, terms / jnp.where(total == 0, 1.0, total))
    change = jnp.where(present == 0, 0.0, ratio * present) * dx
    if weights is not None:
        change = change + ratio * dweights
    return _logsumexp(x, weights, axis), jnp.sum(change, axis, keepdims=True)


def logsumexp(
    x: Any, axis: int | tuple[int, ...] | None = None, *, weights: Any = None, keepdims: bool = False
) -> jax.Array:
    """`log(sum(weights * exp(x)))` over `axis`, right and with finite gradients where terms are infinite.

    Where every term is -inf (or has weight zero), or there is none, the value is -inf and the gradient zero. Where some
    are inf, so is the value, and the gradient is shared by those.

    Args:
      x: any shape.
      axis: the axis or axes to sum over; all of them by default.
      weights: non-negative, a shape that broadcasts with x. A term of weight zero is left out even where x is NaN or
        inf, so that a mask can be passed.
      keepdims: keep the axes summed over, with length one.

    Returns:
      the shape of x (broadcast with `weights`) without `axis`.

    >>> logsumexp(jnp.array([-jnp.inf, 0.0, 0.0])).item()
    0.6931...
    """
    if weights is None:
        (x,) = floats(x)
    else:
        x, weights = floats(x, weights)
        shape = jnp.broadcast_shapes(x.shape, weights.shape)
        x, weights = jnp.broadcast_to(x, shape), jnp.broadcast_to(weights, shape)
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    value = _logsumexp(x, weights, axes)
    return value if keepdims else jnp.squeeze(value, axes)
