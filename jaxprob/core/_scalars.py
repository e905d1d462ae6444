"""Scalar functions that keep their digits, in value and in derivative, over the whole floating range.

Each is elementwise, keeps the dtype, and works in float32 and float64 alike; Python scalars and integers take the dtype
of what they meet. Numbers below the smallest normal one count as zero: XLA flushes them.
Source: Maechler (2012), "Accurately computing log(1 - exp(-|a|))", for the branches of `log1mexp`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from jaxprob.core._dtypes import as_float, result_dtype

# Where log(1 - exp(-x)) changes its form. Either form is good between 0.5 and 2; XLA's double-precision log1p loses two
# digits between -0.45 and -0.35, that is for x between 0.8 and 1.05 (measured on CPU), so it takes over after that.
_CROSSING = 1.1


def floats(*values: Any) -> tuple[jax.Array, ...]:
    """Arrays of floating dtype; integer arrays take the dtype of the floating values they meet."""
    dtype = result_dtype(*values)
    is_whole = [not isinstance(v, (bool, int)) and not jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in values]
    return tuple(
        jnp.asarray(v).astype(dtype) if whole else as_float(v) for v, whole in zip(values, is_whole, strict=True)
    )


def _is_zero(x: jax.Array) -> jax.Array:
    return jnp.abs(x) < jnp.finfo(x.dtype).tiny


@jax.custom_jvp
def log1mexp(x: jax.Array) -> jax.Array:
    """`log(1 - exp(-x))` for x > 0: the log of a complement, where -x is a log probability.

    Args:
      x: any shape, positive: minus the logarithm, in the convention of Maechler. -inf at 0, NaN below.

    Returns:
      the shape of x. The derivative is `1 / (exp(x) - 1)`, which is infinite at 0.

    >>> log1mexp(1e-20).item()  # log(1 - (1 - 1e-20)) = log(1e-20)
    -46.05170...
    """
    x = as_float(x)
    return jnp.where(x < _CROSSING, jnp.log(-jnp.expm1(-x)), jnp.log1p(-jnp.exp(-x)))


@log1mexp.defjvp
def _log1mexp_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return log1mexp(x), jnp.exp(-x) / -jnp.expm1(-x) * dx


@jax.custom_jvp
def expm1_over_x(x: jax.Array) -> jax.Array:
    """`(exp(x) - 1) / x`, with its limit 1 at 0 and accurate derivatives there; the zero-order hold of a linear system.

    Args:
      x: any shape, real or complex.

    >>> expm1_over_x(0.0).item()
    1.0
    """
    if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
        zero = x == 0
        return jnp.where(zero, 1.0, jnp.expm1(x) / jnp.where(zero, 1.0, x))
    x = as_float(x)
    zero = _is_zero(x)
    quotient = jnp.expm1(x) / jnp.where(zero, 1.0, x)
    # The quotient is still finite a little beyond the point where exp(x) overflows.
    root = jnp.exp(0.5 * x)
    quotient = jnp.where(x > 80.0, root * jnp.where(root == jnp.inf, root, root / jnp.where(zero, 1.0, x)), quotient)
    return jnp.where(zero, 1.0, quotient)


@expm1_over_x.defjvp
def _expm1_over_x_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    value = expm1_over_x(x)
    near = jnp.abs(x) < 1.0
    inner, outer = jnp.where(near, x, 0.0), jnp.where(near, 1.0, x)
    # Near 0 the closed form cancels: sum x^k (k + 1) / (k + 2)! instead, exact to rounding for |x| < 1.
    series = jnp.zeros_like(inner)
    for k in range(19, -1, -1):
        series = series * inner + (k + 1) / math.factorial(k + 2)
    if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
        closed = (jnp.exp(outer) - jnp.where(near, 1.0, value)) / outer
    else:
        closed = value * (-1.0 / jnp.expm1(-outer) - 1.0 / outer)
    return value, jnp.where(near, series, closed) * dx


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def sqrt_one_minus_exp(x: jax.Array, max_derivative: float = 1000.0) -> jax.Array:
    """`sqrt(1 - exp(-x))` for x >= 0, by `expm1`: the scale that keeps `exp(-x / 2)` and noise at unit variance.

    The true derivative `exp(-x) / (2 sqrt(1 - exp(-x)))` is unbounded at 0. The one returned is never larger than
    `max_derivative`, and exact wherever the true one stays below that (for 1000, x > 2.5e-7).

    Args:
      x: any shape, non-negative; NaN below 0.
      max_derivative: the bound; a Python float.

    Source: De et al. (2024), "Griffin", appendix A, for the bound.

    >>> sqrt_one_minus_exp(1e-8).item()
    9.99...e-05
    """
    # Finite at 0 also where a loop that is differentiated twice has forgotten the rule below.
    return safe_sqrt(-jnp.expm1(-as_float(x)))


@sqrt_one_minus_exp.defjvp
def _sqrt_one_minus_exp_jvp(
    max_derivative: float, primals: tuple[Any], tangents: tuple[Any]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    value = sqrt_one_minus_exp(x, max_derivative)
    return value, 0.5 * jnp.exp(-x) / jnp.maximum(value, 0.5 / max_derivative) * dx


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """`1 / (1 + exp(-x))`, with the derivative `sigmoid(x) sigmoid(-x)`, which keeps its digits for large x.

    Args:
      x: any shape.

    >>> sigmoid(0.0).item()
    0.5
    """
    return lax.logistic(as_float(x))


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    value = sigmoid(x)
    return value, value * sigmoid(-x) * dx


@jax.custom_jvp
def logit(p: jax.Array) -> jax.Array:
    """`log(p / (1 - p))`, the inverse of `sigmoid`: -inf at 0, inf at 1, NaN outside.

    Args:
      p: any shape, in [0, 1].

    >>> logit(0.5).item()
    0.0
    """
    p = as_float(p)
    # About one half the two logarithms cancel, and 2 p - 1 is exact.
    central = jnp.abs(p - 0.5) < 0.25
    inner = jnp.where(central, p, 0.5)
    size = jnp.log1p(jnp.abs(2.0 * inner - 1.0) / jnp.minimum(inner, 1.0 - inner))
    return jnp.where(central, jnp.where(inner < 0.5, -size, size), jnp.log(p) - jnp.log1p(-p))


@logit.defjvp
def _logit_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (p,), (dp,) = primals, tangents
    return logit(p), dp / (p * (1.0 - p))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """`log(1 + exp(x))`, a smooth positive part.

    Args:
      x: any shape.

    >>> softplus(-1e3).item(), softplus(1e3).item()
    (0.0, 1000.0)
    """
    x = as_float(x)
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


@jax.custom_jvp
def inverse_softplus(y: jax.Array) -> jax.Array:
    """`log(exp(y) - 1)` for y > 0, the inverse of `softplus`: -inf at 0, NaN below.

    Args:
      y: any shape, positive.

    >>> inverse_softplus(100.0).item()
    100.0
    """
    y = as_float(y)
    return jnp.where(y < _CROSSING, jnp.log(jnp.expm1(y)), y + jnp.log1p(-jnp.exp(-y)))


@inverse_softplus.defjvp
def _inverse_softplus_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (y,), (dy,) = primals, tangents
    return inverse_softplus(y), (1.0 + jnp.exp(-y) / -jnp.expm1(-y)) * dy


def log_sigmoid(x: Any) -> jax.Array:
    """`log(1 / (1 + exp(-x)))`, the log probability of a success with log odds x.

    Args:
      x: any shape.

    >>> log_sigmoid(-1e3).item()
    -1000.0
    """
    return -softplus(-as_float(x))


def safe_log(x: Any) -> jax.Array:
    """`log(x)`, with -inf and a zero gradient at 0, so that an impossible branch poisons no gradient. NaN below 0.

    Args:
      x: any shape, non-negative.

    >>> jax.grad(safe_log)(0.0).item()
    0.0
    """
    x = as_float(x)
    zero = _is_zero(x)
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, x)))


def safe_sqrt(x: Any) -> jax.Array:
    """`sqrt(x)`, with a zero gradient at 0. NaN below 0.

    Args:
      x: any shape, non-negative.

    >>> jax.grad(safe_sqrt)(0.0).item()
    0.0
    """
    x = as_float(x)
    zero = _is_zero(x)
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def xlogy(x: Any, y: Any) -> jax.Array:
    """`x log(y)`, and 0 where x is 0 whatever y is; gradients are finite at (0, 0).

    Args:
      x: any shape.
      y: a shape that broadcasts with x, non-negative.

    >>> xlogy(0.0, 0.0).item()
    0.0
    """
    x, y = floats(x, y)
    return x * jnp.log(jnp.where((x == 0) & ((y <= 0) | (y == jnp.inf)), 1.0, y))


def xlog1py(x: Any, y: Any) -> jax.Array:
    """`x log(1 + y)`, and 0 where x is 0 whatever y is; gradients are finite at (0, -1).

    Args:
      x: any shape.
      y: a shape that broadcasts with x, at least -1.

    >>> xlog1py(0.0, -1.0).item()
    0.0
    """
    x, y = floats(x, y)
    return x * jnp.log1p(jnp.where((x == 0) & ((y <= -1) | (y == jnp.inf)), 0.0, y))


def _stirling_remainder(z: jax.Array) -> jax.Array:
    """`lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2)` for large z, by its series in Bernoulli numbers."""
    inverse = 1.0 / z
    square, series = inverse * inverse, jnp.zeros_like(z)
    for coefficient in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + coefficient
    return series * inverse


def log_binomial_coefficient(n: Any, k: Any) -> jax.Array:
    """`log(n! / (k! (n - k)!))` for real 0 <= k <= n, without the cancellation of log-gammas where n is large.

    With `a = min(k, n - k)` and `b = n - a`, Stirling's leading terms are combined before they are evaluated:
    `(b + 1/2) log(1 + a / (b + 1)) - a log((a + 1) / (n + 1)) - log(a + 1) / 2 + ...`, sums of terms of one sign.

    Args:
      n: any shape, finite, non-negative.
      k: a shape that broadcasts with n. Outside [0, n] the coefficient is 0 and its logarithm -inf.

    >>> log_binomial_coefficient(1e6, 1.0).item()  # log(1e6)
    13.8155...
    """
    n, k = floats(n, k)
    inside, unknown = (k >= 0) & (k <= n), jnp.isnan(n) | jnp.isnan(k)
    n, k = jnp.where(inside, n, 0.0), jnp.where(inside, k, 0.0)
    a = jnp.minimum(k, n - k)
    b = n - a
    # From here on the series is exact to rounding.
    large = 4.0 if jnp.finfo(result_dtype(n, k)).bits <= 32 else 10.0
    one_large, both_large = b + 1 >= large, a + 1 >= large

    n1, a1, b1 = (jnp.where(one_large, 1.0, z + 1) for z in (n, a, b))
    small = gammaln(n1) - gammaln(b1) - gammaln(a1)

    n1, a1, b1 = (jnp.where(one_large, z + 1, large) for z in (n, a, b))
    a0 = jnp.where(one_large, a, 0.0)
    ratio = (b1 - 0.5) * jnp.log1p(a0 / b1) + _stirling_remainder(n1) - _stirling_remainder(b1)
    low = jnp.where(both_large, 1.0, a1)
    lopsided = ratio + a0 * (jnp.log(n1) - 1.0) - gammaln(low)
    high = jnp.where(both_large, a1, large)
    tail = 1.0 - 0.5 * math.log(2 * math.pi) - 0.5 * jnp.log(high) - _stirling_remainder(high)
    even = ratio - a0 * jnp.log(high / n1) + tail

    value = jnp.where(one_large, jnp.where(both_large, even, lopsided), small)
    return jnp.where(unknown, jnp.nan, jnp.where(inside, value, -jnp.inf))
