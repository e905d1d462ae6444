"""Models in continuous time, discretised exactly at any times: Matern processes and integrated Wiener processes.

A Matern process of smoothness p + 1/2 and its derivatives follow `(d/dt + 1)^(p+1) f = w` in units of time of
lengthscale / sqrt(2 p + 1). Noise gathered over a step is an integral of `s^k exp(-2 s)`, an incomplete gamma function:
no difference of two large numbers, however short or long the step. Regression on a Gaussian process is a filter, in
time proportional to the number of observations.

Source: Hartikainen & Särkkä (2010), "Kalman filtering and smoothing solutions to temporal Gaussian process regression
models"; Särkkä & Solin (2019), "Applied stochastic differential equations", sections 6.3 and 12.3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc

from jaxprob import core
from jaxprob.models.state_space._linear_gaussian import LinearGaussian

NAMES = ("dynamics", "dynamics_covariance")


def matern(times: Any, lengthscale: Any, scale: Any, smoothness: float = 1.5) -> LinearGaussian:
    """A Gaussian process with a Matern covariance, observed at given times without noise.

    `cov(f(s), f(t)) = scale^2 r^nu K_nu(r) 2^(1-nu) / Gamma(nu)` with `r = sqrt(2 nu) |t - s| / lengthscale`. Add
    `observed_with(noise)`, and other processes at the same times. States: the process and its derivatives, in units of
    `lengthscale / sqrt(2 nu)`; it begins in its stationary law.

    Args:
      times: (time,), not falling; equal ones are observations of the same value.
      lengthscale: (), in the units of time.
      scale: (), standard deviation of the process.
      smoothness: nu: 0.5 (Ornstein-Uhlenbeck), 1.5, 2.5 and so on.

    Returns:
      `LinearGaussian` with `smoothness + 1/2` states.

    Raises:
      ValueError: if times fall, or a number is out of its range.

    >>> matern(jnp.array([0.0, 0.5, 3.0]), lengthscale=2.0, scale=1.0).state_size
    2
    """
    order = smoothness - 0.5
    if isinstance(smoothness, bool) or order != int(order) or order < 0:
        raise core.bad_value("matern", "smoothness", smoothness, "0.5, 1.5, 2.5 or so on")
    for name, value in (("lengthscale", lengthscale), ("scale", scale)):
        if not isinstance(value, jax.core.Tracer) and not (np.ndim(value) == 0 and 0 < value < math.inf):
            raise core.bad_value("matern", name, value, "a number above zero")
    steps, dtype = steps_between("matern", times, lengthscale, scale)
    p = int(order)
    rate = math.sqrt(2 * smoothness) / jnp.asarray(lengthscale, dtype)
    variance = jnp.asarray(scale, dtype) ** 2
    responses = _responses(p)
    # Of the whole past, which is the stationary law, in units in which the process has variance one.
    whole = _gathered(responses, np.ones(2 * p + 1))
    unit = whole[0, 0]
    u = steps * rate

    def one(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        powers = jnp.stack([u**k for k in range(p + 1)])
        dynamics = jnp.exp(-u) * jnp.tensordot(jnp.asarray(_flows(p), dtype), powers, 1, precision="highest")
        # At u = 0 the derivative of the incomplete gamma function is not defined by what computes it.
        there = u > 0
        shares = [jnp.where(there, gammainc(float(k + 1), 2 * jnp.where(there, u, 1)), 0) for k in range(2 * p + 1)]
        return dynamics, _gathered(responses, shares)

    dynamics, noise = jax.vmap(one)(u)
    n = p + 1
    return LinearGaussian(
        initial_mean=jnp.zeros((n,), dtype),
        initial_covariance=variance * jnp.asarray(whole / unit, dtype),
        dynamics=dynamics,
        dynamics_covariance=core.symmetrize(variance / unit * noise.astype(dtype)),
        emission=jnp.eye(1, n, dtype=dtype),
        emission_covariance=jnp.zeros((1,), dtype),
        time_varying=NAMES,
    )


def integrated_wiener(times: Any, scale: Any, order: int = 1) -> LinearGaussian:
    """White noise integrated `order + 1` times, of whose start nothing is known: order 1 moves with a random velocity.

    States: the process and its first `order` derivatives. The mean of its smoother is a spline of degree `2 order + 1`.

    Args:
      times: (time,), not falling.
      scale: (), the highest derivative gains a standard deviation of `scale sqrt(t)` in a time t.
      order: 0 for the Wiener process itself, 1 for Wiener velocity, 2 for Wiener acceleration.

    Raises:
      ValueError: if times fall, or a number is out of its range.

    >>> integrated_wiener(jnp.array([0.0, 0.5, 3.0]), scale=1.0).dynamics[0].tolist()
    [[1.0, 0.5], [0.0, 1.0]]
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise core.bad_value("integrated_wiener", "order", order, "an integer of at least 0")
    if not isinstance(scale, jax.core.Tracer) and not (np.ndim(scale) == 0 and 0 <= scale < math.inf):
        raise core.bad_value("integrated_wiener", "scale", scale, "a standard deviation, at least 0")
    steps, dtype = steps_between("integrated_wiener", times, scale)
    n = order + 1
    power = np.array([[max(j - i, 0) for j in range(n)] for i in range(n)])
    weight = np.array([[1 / math.factorial(j - i) if j >= i else 0.0 for j in range(n)] for i in range(n)])
    rise = np.array([[2 * order + 1 - i - j for j in range(n)] for i in range(n)])
    share = np.array(
        [[1 / (rise[i, j] * math.factorial(order - i) * math.factorial(order - j)) for j in range(n)] for i in range(n)]
    )

    def one(dt: jax.Array) -> tuple[jax.Array, jax.Array]:
        def raised(exponents: np.ndarray) -> jax.Array:
            return jnp.stack([jnp.stack([dt ** int(k) for k in row]) for row in exponents])

        return jnp.asarray(weight, dtype) * raised(power), jnp.asarray(share, dtype) * raised(rise)

    dynamics, noise = jax.vmap(one)(steps)
    return LinearGaussian(
        initial_mean=jnp.zeros((n,), dtype),
        initial_covariance=jnp.zeros((n, n), dtype),
        dynamics=dynamics,
        dynamics_covariance=jnp.asarray(scale, dtype) ** 2 * noise,
        emission=jnp.eye(1, n, dtype=dtype),
        emission_covariance=jnp.zeros((1,), dtype),
        initial_diffuse=jnp.eye(n, dtype=dtype),
        time_varying=NAMES,
    )


def steps_between(function: str, times: Any, *others: Any) -> tuple[jax.Array, Any]:
    """Time between observations (time - 1,), and the dtype to work in."""
    arrays = [core.as_float(x) for x in (times, *others) if isinstance(x, (jax.Array, np.ndarray))]
    dtype = core.result_dtype(*arrays)
    if np.ndim(times) != 1 or not np.shape(times)[0]:
        raise core.bad_value(function, "times", times, "an array (time,) of at least one time")
    if isinstance(times, jax.core.Tracer):
        return jnp.diff(times).astype(dtype), dtype
    # Known times are subtracted in double precision: dates are large beside the steps between them.
    steps = np.diff(np.asarray(times, np.float64))
    if not np.isfinite(np.asarray(times, np.float64)).all() or (steps < 0).any():
        where = int(np.argmin(np.where(np.isfinite(steps), steps, -np.inf))) if steps.size else 0
        got, todo = f"falling or not finite after entry {where}", "Sort the observations by time"
        raise core.bad_value(function, "times", got, "finite times that do not fall", todo)
    return jnp.asarray(steps, dtype), dtype


def _responses(p: int) -> np.ndarray:
    """Polynomials c (p + 1, p + 1) with `sum_k c[i, k] s^k exp(-s)` the i-th derivative of `s^p exp(-s) / p!`."""
    rows = np.zeros((p + 1, p + 1))
    rows[0, p] = 1 / math.factorial(p)
    for i in range(1, p + 1):
        rows[i] = -rows[i - 1]
        rows[i, :-1] += rows[i - 1, 1:] * np.arange(1, p + 1)
    return rows


def _flows(p: int) -> np.ndarray:
    """Matrices N^k / k! (p + 1, p + 1, p + 1), k last, of the nilpotent N: `exp(A u) = exp(-u) sum_k u^k N^k / k!`."""
    n = p + 1
    drift = np.eye(n, k=1)
    drift[-1] = [-math.comb(n, i) for i in range(n)]
    nilpotent, power, result = drift + np.eye(n), np.eye(n), []
    for k in range(n):
        result.append(power / math.factorial(k))
        power = power @ nilpotent
    return np.stack(result, -1)


def _gathered(responses: np.ndarray, shares: Any) -> Any:
    """Covariance (p + 1, p + 1) of the noise gathered, from the share of `int s^k exp(-2 s)` so far for each k."""
    n = responses.shape[0]
    result = 0.0
    for k in range(2 * n - 1):
        products = sum(
            np.outer(responses[:, i], responses[:, k - i]) for i in range(max(0, k - n + 1), min(k, n - 1) + 1)
        )
        result = result + (products * math.factorial(k) / 2 ** (k + 1)) * shares[k]
    return result
