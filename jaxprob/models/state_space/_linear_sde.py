"""Linear stochastic differential equations, observed at any times.

Over a time h the state moves by `exp(F h)` and gathers noise of covariance `int_0^h exp(F s) L Q L^T exp(F s)^T ds`.
Van Loan reads both off the exponential of a matrix in which -F stands beside F, which overflows where a process forgets
fast or a gap is long. Here both are Taylor series over a fraction of h, doubled until it is whole: the noise is a sum
of covariances, and keeps the digits of each entry.

Source: Van Loan (1978), "Computing integrals involving the matrix exponential"; Särkkä & Solin (2019), "Applied
stochastic differential equations", sections 6.2 and 6.3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.models.state_space._continuous import NAMES, steps_between
from jaxprob.models.state_space._linear_gaussian import LinearGaussian
from jaxprob.models.state_space._structural import check_number

DOUBLINGS = 32  # for gaps up to 2^31 times the shortest time in which the state moves


def linear_sde(
    times: Any,
    drift: Any,
    dispersion: Any,
    emission: Any,
    *,
    spectral_density: Any = None,
    emission_covariance: Any = None,
    initial_mean: Any = None,
    initial_covariance: Any = None,
    initial_diffuse: Any = None,
) -> LinearGaussian:
    """`dx = F x dt + L dW`, dW of spectral density Q, seen as `y = H x + N(0, R)` at given times.

    It begins in its stationary law, unless an initial law is given.

    Args:
      times: (time,), not falling; equal ones are observations of the same state.
      drift: F, (n, n).
      dispersion: L, (n, s).
      emission: H, (m, n).
      spectral_density: Q, (s, s), symmetric positive semi-definite; the identity by default.
      emission_covariance: R, (m, m), or (m,) variances; zero by default.
      initial_mean: (n,), at the first time; zero by default.
      initial_covariance: (n, n), at the first time.
      initial_diffuse: (n, d), directions of the first state of which nothing is known (see `LinearGaussian`).

    Returns:
      `LinearGaussian` with n states.

    Raises:
      ValueError: if times fall, shapes do not fit, or no initial law is given and a known drift has no stationary one.

    >>> model = linear_sde(jnp.array([0.0, 0.5, 3.0]), jnp.array([[-0.5]]), jnp.ones((1, 1)), jnp.ones((1, 1)))
    >>> model.initial_covariance.round(4).tolist(), round(model.dynamics[0, 0, 0].item(), 4)
    ([[1.0]], 0.7788)

    Source: Särkkä & Solin (2019), sections 6.2 and 6.3.
    """
    name = "linear_sde"
    given = {"drift": drift, "dispersion": dispersion, "emission": emission, "spectral_density": spectral_density}
    arrays = {argument: core.as_float(value) for argument, value in given.items() if value is not None}
    steps, dtype = steps_between(name, times, *arrays.values())
    arrays = {argument: array.astype(dtype) for argument, array in arrays.items()}
    f, spread = arrays["drift"], arrays["dispersion"]
    if f.ndim != 2 or f.shape[0] != f.shape[1] or not f.shape[0]:
        raise core.bad_value(name, "drift", f, "a matrix (n, n)")
    n = f.shape[0]
    if spread.ndim != 2 or spread.shape[0] != n:
        raise core.bad_value(name, "dispersion", spread, f"shape ({n}, s), a column for each source of noise")
    s = spread.shape[1]
    density = arrays.get("spectral_density", jnp.eye(s, dtype=dtype))
    if density.shape != (s, s):
        raise core.bad_value(name, "spectral_density", density, f"shape {(s, s)}")
    seen = arrays["emission"]
    if seen.ndim != 2 or seen.shape[1] != n:
        raise core.bad_value(name, "emission", seen, f"shape (m, {n})")
    noise = core.symmetrize(core.matmul(core.matmul(spread, density), spread.T))
    dynamics, gathered = discretize(f, noise, steps)
    if initial_covariance is None:
        start = _stationary(name, f, noise) if initial_diffuse is None else jnp.zeros((n, n), dtype)
    else:
        start = initial_covariance
    return LinearGaussian(
        initial_mean=jnp.zeros((n,), dtype) if initial_mean is None else initial_mean,
        initial_covariance=start,
        dynamics=dynamics,
        dynamics_covariance=gathered,
        emission=seen,
        emission_covariance=jnp.zeros((seen.shape[0],), dtype) if emission_covariance is None else emission_covariance,
        initial_diffuse=initial_diffuse,
        time_varying=NAMES,
    )


def ornstein_uhlenbeck(
    times: Any, rate: Any, dispersion: Any, mean: Any = 0.0, *, stationary: bool = True
) -> LinearGaussian:
    """`dx = -rate (x - mean) dt + dispersion dW`, observed at given times without noise.

    Add `observed_with(noise)`, and other processes at the same times. Of a stationary one the standard deviation is
    `dispersion / sqrt(2 rate)`, and correlations fall as `exp(-rate |t - s|)`.

    Args:
      times: (time,), not falling.
      rate: (), above 0; any where the process is not stationary: of rate 0 it is the Wiener process.
      dispersion: (), the standard deviation gained in a short time t is `dispersion sqrt(t)`.
      mean: ().
      stationary: whether it begins in its stationary law; if not, nothing is known of its first value.

    Returns:
      `LinearGaussian` with one state, the distance from the mean.

    Raises:
      ValueError: if times fall, or a number is out of its range.

    >>> ornstein_uhlenbeck(jnp.array([0.0, 1.0]), rate=0.0, dispersion=2.0, stationary=False).dynamics_covariance.item()
    4.0

    Source: Uhlenbeck & Ornstein (1930), "On the theory of the Brownian motion".
    """
    name = "ornstein_uhlenbeck"
    expected = "above 0, and finite" if stationary else "a finite number"
    check_number(name, "rate", rate, lambda x: (x.ndim == 0) & np.isfinite(x) & ((x > 0) | (not stationary)), expected)
    check_number(name, "dispersion", dispersion, lambda x: (x.ndim == 0) & (x >= 0) & (x < math.inf), "at least 0")
    check_number(name, "mean", mean, lambda x: (x.ndim == 0) & np.isfinite(x), "a finite number")
    steps, dtype = steps_between(name, times, rate, dispersion, mean)
    rate, variance = jnp.asarray(rate, dtype), jnp.asarray(dispersion, dtype) ** 2
    matrices = (-1, 1, 1)
    one = jnp.ones((1, 1), dtype)
    return LinearGaussian(
        initial_mean=jnp.zeros((1,), dtype),
        initial_covariance=variance / (2 * rate) * one if stationary else 0 * one,
        dynamics=jnp.reshape(jnp.exp(-rate * steps), matrices),
        dynamics_covariance=jnp.reshape(variance * steps * core.expm1_over_x(-2 * rate * steps), matrices),
        emission=one,
        emission_covariance=jnp.zeros((1,), dtype),
        emission_offset=jnp.reshape(jnp.asarray(mean, dtype), (1,)),
        initial_diffuse=None if stationary else one,
        time_varying=NAMES,
    )


@jax.jit
def discretize(drift: jax.Array, noise: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`exp(F h)` and `int_0^h exp(F s) W exp(F s)^T ds`, each (time, n, n), for each step h (time,)."""
    n, dtype = drift.shape[0], drift.dtype
    # Any number of its size will do for a unit of time: no derivative goes through it.
    norm = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(drift), 1)))
    norm = jnp.where(norm > 0, norm, 1)
    length = jax.lax.stop_gradient(steps) * norm
    count = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(2 * length, 1))), 0, DOUBLINGS).astype(jnp.int32)
    part = steps * jnp.exp2(-count.astype(dtype))
    # Of an entry of the noise whose first terms are zero, as many as of others are left.
    terms = (20 if jnp.finfo(dtype).bits > 32 else 12) + 2 * n
    unit = drift / norm
    power, change = jnp.eye(n, dtype=dtype), noise
    moves, gains = [power], [change]
    for j in range(1, terms):
        power = core.matmul(power, unit) / j
        half = core.matmul(unit, change)
        change = (half + half.T) / (j + 1)
        moves.append(power)
        gains.append(change)
    powers = jnp.stack([(part * norm) ** j for j in range(terms)], 1)

    def series(coefficients: list[jax.Array]) -> jax.Array:
        return jnp.einsum("tj,jab->tab", powers, jnp.stack(coefficients), precision="highest")

    start = (series(moves), jnp.reshape(part, (-1, 1, 1)) * series(gains))

    def double(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        move, gain = carry
        more = jnp.reshape(k < count, (-1, 1, 1))
        twice = gain + core.symmetrize(core.matmul(core.matmul(move, gain), jnp.swapaxes(move, 1, 2)))
        return (jnp.where(more, core.matmul(move, move), move), jnp.where(more, twice, gain)), None

    return scan.scan(double, start, jnp.arange(DOUBLINGS, dtype=jnp.int32))[0]


def _stationary(function: str, drift: jax.Array, noise: jax.Array) -> jax.Array:
    """P with `F P + P F^T + W = 0`, as one system of n^2 equations."""
    n, dtype = drift.shape[0], drift.dtype
    if not isinstance(drift, jax.core.Tracer):
        values = np.asarray(drift, np.float64)
        largest = np.linalg.eigvals(values).real.max() if np.isfinite(values).all() else np.nan
        if not largest < 0:
            got = f"that of a process without a stationary law (an eigenvalue has the real part {largest:.3g})"
            todo = "Pass initial_covariance, or initial_diffuse=jnp.eye(n) where nothing is known"
            raise core.bad_value(function, "drift", got, "one with eigenvalues below 0", todo)
    identity = jnp.eye(n, dtype=dtype)
    system = jnp.kron(drift, identity) + jnp.kron(identity, drift)
    return core.symmetrize(-jnp.reshape(jnp.linalg.solve(system, jnp.reshape(noise, (n * n,))), (n, n)))
