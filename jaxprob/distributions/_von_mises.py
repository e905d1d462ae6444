"""The von Mises distribution of angles.

Written out: distrax's density is -inf in float32 from a concentration of about 100 on (its Bessel function overflows),
and its sampler fails a Kolmogorov-Smirnov test at 1e6 and cannot be differentiated under strict promotion.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import i0e, i1e

from jaxprob import core
from jaxprob.distributions._parameters import NON_NEGATIVE, REAL, set_parameters
from jaxprob.distributions._special import gauss_legendre
from jaxprob.distributions._supports import Angle, Support
from jaxprob.distributions._univariate import Univariate

_LOG_2PI = math.log(2 * math.pi)


def _asymptotic(kappa: Array, order: int) -> Array:
    """Hankel's series of `sqrt(2 pi kappa) exp(-kappa) I_order(kappa)` less its leading 1, for large kappa."""
    terms = 12
    coefficients = [1.0]
    for k in range(1, terms):
        coefficients.append(-coefficients[-1] * (4 * order**2 - (2 * k - 1) ** 2) / (8 * k))
    series = jnp.zeros_like(kappa)
    for coefficient in reversed(coefficients[1:]):
        series = (series + coefficient) / kappa
    return series


def _is_large(kappa: Array) -> Array:
    return kappa > (20.0 if jnp.finfo(kappa.dtype).bits <= 32 else 60.0)


@jax.custom_jvp
def _log_i0e(kappa: Array) -> Array:
    large = _is_large(kappa)
    safe = jnp.where(large, kappa, 60.0)
    return jnp.where(large, jnp.log1p(_asymptotic(safe, 0)) - 0.5 * (_LOG_2PI + jnp.log(safe)), jnp.log(i0e(kappa)))


@_log_i0e.defjvp
def _log_i0e_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    return _log_i0e(primals[0]), -circular_variance(primals[0]) * tangents[0]


@jax.jit
def log_i0e(kappa: Array) -> Array:
    """`log(exp(-kappa) I_0(kappa))` for kappa >= 0."""
    return _log_i0e(kappa)


@jax.jit
def circular_variance(kappa: Array) -> Array:
    """`1 - I_1(kappa) / I_0(kappa)`, without cancellation where it is near 1 / (2 kappa)."""
    large = _is_large(kappa)
    safe, small = jnp.where(large, kappa, 60.0), jnp.where(large, 1.0, kappa)
    zero, one = _asymptotic(safe, 0), _asymptotic(safe, 1)
    return jnp.where(large, (zero - one) / (1 + zero), 1 - i1e(small) / i0e(small))


@jax.jit
def _draw_centred(key: core.Key, kappa: Array) -> Array:
    """Draws of the shape of `kappa` at location 0, by rejection from a normal variable restricted to [0, pi].

    The density exp(-2 kappa sin(t/2)^2) lies below exp(-2 kappa (t / pi)^2), as sin(t/2) >= t / pi there: at least
    2 / pi of all proposals are accepted, whatever kappa is.
    """
    shape, dtype = kappa.shape, kappa.dtype
    flat = kappa < 1e-5  # The proposal is uniform there: its standard deviation overflows at 0.
    root = jnp.sqrt(jnp.where(flat, 1, kappa))
    reach = lax.erf(math.sqrt(2) * root)

    def again(carry: tuple[Array, core.Key, Array]) -> tuple[Array, core.Key, Array]:
        angle, key, done = carry
        key, key_proposal, key_accept = core.random.split(key, 3)
        uniform = core.random.uniform(key_proposal, shape, dtype)
        fraction = jnp.where(flat, uniform, lax.erf_inv(uniform * reach) / (math.sqrt(2) * root))
        sine = jnp.sin((math.pi / 2) * fraction)
        envelope = jnp.where(flat, 0, fraction)
        log_accept = -2 * kappa * (sine - envelope) * (sine + envelope)
        accept = -core.random.exponential(key_accept, shape, dtype) <= log_accept
        return jnp.where(done, angle, math.pi * fraction), key, done | accept

    key_sign, key = core.random.split(key)
    sign = jnp.where(core.random.bernoulli(key_sign, 0.5, shape), 1, -1).astype(dtype)
    # Made from parameters and key, so that under `shard_map` the carry varies wherever one of them does.
    start = 0 * kappa * sign
    angle, _, _ = core.while_loop(lambda carry: ~jnp.all(carry[2]), again, (start, key, start != 0))
    return sign * angle


@jax.custom_jvp
def _reparameterised(angle: Array, kappa: Array) -> Array:
    """`angle`, a draw at `kappa`, with the derivative -(dF / dkappa) / p that keeps its place in the distribution."""
    return angle


@_reparameterised.defjvp
def _reparameterised_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (angle, kappa), (_, dkappa) = primals, tangents
    size = jnp.abs(angle)
    nodes, weights = (v.astype(kappa.dtype).reshape((-1,) + (1,) * kappa.ndim) for v in gauss_legendre(32))
    # dF / dkappa integrates p(t) (cos t - E cos) from 0 to the angle, or equally from the angle to pi with the other
    # sign: the side on which the integrand has one sign, relative to p at the angle.
    deviation = circular_variance(kappa)
    inner = 2 * jnp.sin(size / 2) ** 2 < deviation
    # Beyond this length the outer integrand has fallen by more than exp(-30).
    length = jnp.where(inner, size, jnp.minimum(math.pi - size, 10 / jnp.sqrt(jnp.maximum(kappa, 1))))
    expand = lambda v: jnp.expand_dims(v, 0)  # noqa: E731
    t = jnp.where(expand(inner), expand(length) * nodes, expand(size) + expand(length) * nodes)
    half = expand(size) / 2
    rise = 2 * jnp.sin(half - t / 2) * jnp.sin(half + t / 2)  # cos t - cos angle
    integrand = jnp.exp(expand(kappa) * rise) * (expand(deviation) - 2 * jnp.sin(t / 2) ** 2)
    integral = length * jnp.sum(weights * integrand, axis=0)
    slope = jnp.where(inner, -integral, integral)
    return angle, jnp.sign(angle) * slope * dkappa


@core.pytree
class VonMises(Univariate):
    r"""Von Mises distribution of an angle.

    $$p(x) = \frac{\exp(\kappa \cos(x - \mu))}{2 \pi I_0(\kappa)}$$

    The density is that of the angle which x names: it has period 2 pi, and its integral over any one turn is 1. Draws
    lie in [-pi, pi]. `mean` is the mean direction and `variance` the expected square of the deviation from it, taken
    the shorter way round.

    Args:
      loc: (*batch), the mean direction mu.
      concentration: (*batch), kappa, non-negative; 0 is the uniform distribution.

    Raises:
      ValueError: if the shapes do not broadcast, or a concrete concentration is negative.
    """

    loc: Any = 0.0
    concentration: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=REAL, concentration=NON_NEGATIVE)

    @property
    def support(self) -> Support:
        return Angle()

    def _log_density(self, x: Array, loc: Array, concentration: Array) -> Array:
        # cos(d) - 1 = -2 sin(d / 2)^2 keeps its digits where the density is concentrated.
        half = jnp.sin(0.5 * (x - loc))
        return -2 * concentration * half * half - _LOG_2PI - log_i0e(concentration)

    def _draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any, loc: Array, concentration: Array) -> Array:
        kappa = jnp.broadcast_to(concentration, shape).astype(dtype)
        angle = lax.stop_gradient(_draw_centred(key, lax.stop_gradient(kappa)))
        turned = loc + _reparameterised(angle, kappa)
        turns = lax.stop_gradient(jnp.round(turned / (2 * math.pi)))
        edge = np.asarray(math.pi, dtype)
        return jnp.clip(turned - turns * (2 * math.pi), -edge, edge)

    def _mean(self, loc: Array, concentration: Array) -> Array:
        return loc

    def _variance(self, loc: Array, concentration: Array) -> Array:
        kappa = jnp.expand_dims(concentration, 0)
        length = jnp.minimum(math.pi, 10 / jnp.sqrt(jnp.maximum(kappa, 1)))
        nodes, weights = (v.astype(kappa.dtype).reshape((-1,) + (1,) * concentration.ndim) for v in gauss_legendre(64))
        t = length * nodes
        mass = weights * jnp.exp(-2 * kappa * jnp.sin(t / 2) ** 2)
        return jnp.sum(mass * t**2, axis=0) / jnp.sum(mass, axis=0)

    def _entropy(self, loc: Array, concentration: Array) -> Array:
        return concentration * circular_variance(concentration) + _LOG_2PI + log_i0e(concentration)
