"""Scalar functions that densities share, exact to rounding in value and gradient over the whole float range."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import gammaln

from jaxprob import core


@jax.custom_jvp
def ratio(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`x / scale`, whose gradient does not overflow before its true value does.

    JAX differentiates a quotient through `scale**-2`, which is inf in float32 from a scale of 1e-19 down, and makes NaN
    out of it where `x` is 0.
    """
    return x / scale


@functools.partial(ratio.defjvp, symbolic_zeros=True)
def _ratio_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, scale), (dx, dscale) = primals, tangents
    z = ratio(x, scale)
    if isinstance(dscale, SymbolicZero):
        change = jnp.zeros_like(z) if isinstance(dx, SymbolicZero) else dx / scale
    else:
        change = -z * dscale / scale if isinstance(dx, SymbolicZero) else (dx - z * dscale) / scale
    return z, jnp.broadcast_to(change, z.shape)


@jax.custom_jvp
def log1p_square(z: jax.Array) -> jax.Array:
    """`log(1 + z^2)`, which does not overflow, so that heavy tails stay heavy."""
    return jnp.where(jnp.abs(z) > 1e9, 2 * jnp.log(jnp.abs(z)), jnp.log1p(z * z))


@log1p_square.defjvp
def _log1p_square_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (z,), (dz,) = primals, tangents
    large = jnp.abs(z) > 1e9
    near = jnp.where(large, 0, z)
    return log1p_square(z), jnp.where(large, 2 / jnp.where(large, z, 1), 2 * near / (1 + near * near)) * dz


@jax.jit
def log_gamma_half_step(a: jax.Array) -> jax.Array:
    """`lgamma(a + 1/2) - lgamma(a) - log(a) / 2` for a > 0: small for large a, where the difference would cancel."""
    threshold = 4.0 if jnp.finfo(a.dtype).bits <= 32 else 16.0
    large = a >= threshold
    inverse = 1 / jnp.where(large, a, threshold)
    series = jnp.zeros_like(a)
    for coefficient in (-31 / 18432, 17 / 14336, -1 / 640, 1 / 192, -1 / 8):
        series = (series * inverse) * inverse + coefficient
    small = jnp.where(large, 1, a)
    direct = gammaln(small + 0.5) - gammaln(small) - 0.5 * jnp.log(small)
    return jnp.where(large, series * inverse, direct)


def exp_within(log_x: jax.Array) -> jax.Array:
    """`exp`, held between the smallest and the largest normal number, with a zero gradient where it is held."""
    limits = jnp.finfo(log_x.dtype)
    # Clipped before the exponential: afterwards its gradient would be 0 * inf.
    low, high = math.log(float(limits.tiny)), math.log(float(limits.max))
    margin = 4 * float(limits.eps) * high
    return jnp.exp(jnp.clip(log_x, low + margin, high - margin))


@functools.cache
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1], in float64."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


@functools.cache
def _zeta(j: int) -> float:
    """Riemann's zeta function at an integer j >= 2, by the Euler-Maclaurin formula."""
    tail = 30 ** (1 - j) / (j - 1) + 30**-j / 2 + j * 30 ** (-j - 1) / 12
    return math.fsum(n**-j for n in range(1, 30)) + tail - j * (j + 1) * (j + 2) * 30 ** (-j - 3) / 720


@jax.jit
def weibull_relative_variance(k: jax.Array) -> jax.Array:
    """`Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 - 1`, which is near pi^2 / (6 k^2) for large k, where the quotient cancels."""
    h = 1 / k
    small = h < 0.1
    near = jnp.where(small, h, 0.1)
    # lgamma(1 + 2h) - 2 lgamma(1 + h) = sum_j zeta(j) (-1)^j (2^j - 2) h^j / j, from j = 2.
    series = jnp.zeros_like(h)
    for j in range(26, 1, -1):
        series = series * near + _zeta(j) * (-1) ** j * (2**j - 2) / j
    far = jnp.where(small, 0.1, h)
    return jnp.expm1(jnp.where(small, series * near * near, gammaln(1 + 2 * far) - 2 * gammaln(1 + far)))


def open_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform numbers in (0, 1), both ends excluded: the middles of the cells that `jax.random.uniform` draws from."""
    return core.random.uniform(key, shape, dtype) + np.asarray(jnp.finfo(dtype).epsneg, dtype)
