"""Log masses of counts without the cancellation of log-gamma differences.

`lgamma(n + 1) - lgamma(k + 1)` loses every digit of a float32 when n is a million. Splitting each `lgamma` into its
leading part and a remainder of order `log n`, and gathering the leading parts into deviances, which are sums of
positive terms, keeps them all. Source: Loader (2000), "Fast and accurate computation of binomial probabilities".
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma


def stirling(x: jax.Array) -> jax.Array:
    """The part of `lgamma(x + 1)` that its leading term `x log x - x` leaves: 0 at 0, `log(2 pi x) / 2` for large x.

    Smaller numbers are raised until Stirling's series is exact to rounding. (`lgamma` would do for those, but with its
    derivative takes longer to compile.)

    Args:
      x: any shape, non-negative.
    """
    raised = 3 if jnp.finfo(x.dtype).bits <= 32 else 13
    large = x >= raised
    small = jnp.where(large | (x <= 0), 1.0, x)
    y = jnp.where(large, x, small + raised)
    log_y, inverse = jnp.log(y), 1.0 / y
    square = inverse * inverse
    # Bernoulli numbers B_2j / (2j (2j - 1)) for j = 1 to 6.
    series = jnp.zeros_like(y)
    for coefficient in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + coefficient
    series = series * inverse + 0.5 * (log_y + math.log(2 * math.pi))
    # lgamma(y + 1) less log((small + 1) ... (small + raised)), and the leading term at `small` instead of y.
    product = small + 1.0
    for step in range(2, raised + 1):
        product = product * (small + float(step))
    lowered = small * jnp.log1p(raised / small) + raised * (log_y - 1.0) - jnp.log(product)
    return jnp.where(large, series, jnp.where(x > 0, series + lowered, 0.0))


def digamma_remainder(x: jax.Array) -> jax.Array:
    """`digamma(x) - log(x)` for positive x, without cancellation where x is large."""
    large = x >= 8.0
    safe = jnp.where(large, x, 8.0)
    inverse = 1.0 / (safe * safe)
    series = jnp.zeros_like(safe)
    for coefficient in (-1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):
        series = series * inverse + coefficient
    small = jnp.where(large, 1.0, x)
    return jnp.where(large, series * inverse - 0.5 / safe, digamma(small) - jnp.log(small))


@jax.custom_jvp
def log1p_minus(x: jax.Array) -> jax.Array:
    """`log(1 + x) - x` for x > -1, with full relative accuracy near 0 and an exact derivative."""
    near = jnp.abs(x) < 0.4
    safe = jnp.where(near, x, 0.0)
    # log(1 + x) = 2 atanh(t): subtracting x term by term leaves - t x + 2 t^3 (1/3 + t^2/5 + ...).
    t = safe / (2.0 + safe)
    series = jnp.zeros_like(safe)
    for power in range(15 if jnp.finfo(x.dtype).bits <= 32 else 25, 1, -2):
        series = series * (t * t) + 1.0 / power
    return jnp.where(near, 2.0 * t**3 * series - t * safe, jnp.log1p(x) - x)


@log1p_minus.defjvp
def _log1p_minus_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return log1p_minus(x), -x / (1.0 + x) * dx


def deviance(x: jax.Array, m: jax.Array, log_m: jax.Array, excess: jax.Array) -> jax.Array:
    """`x log(x / m) + m - x`, which is never negative and 0 at m = x, with finite gradients at x = 0 and m = 0.

    All arguments have one shape and dtype.

    Args:
      x: non-negative.
      m: non-negative.
      log_m: the logarithm of m, which may be finite where m has underflowed to 0.
      excess: `m - x`, computed by the caller in whatever way loses least.
    """
    positive = x > 0
    safe = jnp.where(positive, x, 1.0)
    near = positive & (m > 0.5 * x)
    close = -safe * log1p_minus(jnp.where(near, excess / safe, 0.0))
    far = safe * (jnp.log(safe) - jnp.where(positive & ~near, log_m, 0.0)) + m - x
    return jnp.where(positive, jnp.where(near, close, far), m)


def log_gamma_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """`lgamma(a + b) - lgamma(a)` for positive a and non-negative b, without cancellation where a is large."""
    ratio = b / a
    return stirling(a + b) - stirling(a) + a * log1p_minus(ratio) + b * jnp.log(a + b) - jnp.log1p(ratio)


def outside(x: jax.Array) -> jax.Array:
    """The log density outside a support: -inf, and NaN where `x` is NaN, which belongs to nothing."""
    return jnp.where(jnp.isnan(x), jnp.nan, -jnp.inf).astype(x.dtype)
