"""Schedules of discrete diffusion: the probability alpha(t) that a token has survived until a time.

It falls from 1 at time 0 to 0 at time 1, both exactly, so that x_0 is the data and x_1 nothing but noise, and a bound
has no terms for its ends. In discrete time the same function is read at the times i / steps. Everything near time 0
depends on the small number 1 - alpha, which has a formula of its own that does not cancel.

Source: Shi, Han, Wang, Doucet & Titsias (2024), "Simplified and generalized masked diffusion for discrete data", table
4.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core

EDGE = 1e-6  # rates of change are infinite at time 0; they are taken at this time there


class Survival:
    """`schedule(t)` is the probability alpha that a token is clean at a time from 0 to 1, of any shape."""

    def __call__(self, t: Any) -> jax.Array:
        """alpha(t)."""
        raise NotImplementedError

    def noise(self, t: Any) -> jax.Array:
        """1 - alpha(t), the share of noise."""
        raise NotImplementedError

    def inverse(self, noise: Any) -> jax.Array:
        """The time that has this share of noise."""
        raise NotImplementedError

    def slope(self, t: Any) -> jax.Array:
        """The derivative of alpha with respect to time, not positive; at time 0 that of a time shortly after."""
        t = jnp.maximum(core.as_float(t), EDGE)
        return -jax.jvp(self.noise, (t,), (jnp.ones_like(t),))[1]

    def rate(self, t: Any) -> jax.Array:
        """`-alpha' / (1 - alpha)`, at which noise turns into data when time goes back; finite at time 0 too."""
        return -self.slope(t) / self.noise(jnp.maximum(core.as_float(t), EDGE))


@core.pytree
class Polynomial(Survival):
    """See `polynomial_survival`."""

    power: float = core.static(default=1.0)

    def __call__(self, t: Any) -> jax.Array:
        return 1 - self.noise(t)

    def noise(self, t: Any) -> jax.Array:
        return core.as_float(t) ** self.power

    def inverse(self, noise: Any) -> jax.Array:
        return core.as_float(noise) ** (1 / self.power)


def linear_survival() -> Polynomial:
    """`alpha = 1 - t`: in discrete time, beta = 1 / (steps - i + 1) in step i.

    It is the log-linear schedule, whose total noise `-log(1 - t)` is what is linear in a logarithm.

    >>> [float(linear_survival()(t)) for t in (0.0, 0.25, 1.0)]
    [1.0, 0.75, 0.0]

    Source: Austin, Johnson, Ho, Tarlow & van den Berg (2021), "Structured denoising diffusion models in discrete
    state-spaces", section 3; Lou, Meng & Ermon (2024), "Discrete diffusion modeling by estimating the ratios of the
    data distribution", appendix C.
    """
    return Polynomial(1.0)


def polynomial_survival(power: float = 2.0) -> Polynomial:
    """`alpha = 1 - t^power`: the larger the power, the longer data are seen nearly whole.

    Args:
      power: of time, positive.

    Raises:
      ValueError: if it is no positive number.

    >>> float(polynomial_survival(2.0)(0.5))
    0.75

    Source: Shi et al. (2024), table 4.
    """
    core.check_positive("diffusion.polynomial_survival", power=power)
    return Polynomial(float(power))


@core.pytree
class CosineSurvival(Survival):
    """See `cosine_survival`."""

    def __call__(self, t: Any) -> jax.Array:
        # Each form where it does not cancel.
        t = core.as_float(t)
        return jnp.where(t < 0.5, 1 - self.noise(t), 2 * jnp.sin(0.25 * math.pi * (1 - t)) ** 2)

    def noise(self, t: Any) -> jax.Array:
        return jnp.sin(0.5 * math.pi * core.as_float(t))

    def inverse(self, noise: Any) -> jax.Array:
        return jnp.arcsin(core.as_float(noise)) / (0.5 * math.pi)


def cosine_survival() -> CosineSurvival:
    """`1 - alpha = cos(pi / 2 (1 - t))`: little changes at times near 1, and sampling begins with few tokens a step.

    >>> round(float(cosine_survival().noise(1 / 3)), 6)
    0.5

    Source: Chang, Zhang, Jiang, Liu & Freeman (2022), "MaskGIT: masked generative image transformer", section 3.3.
    """
    return CosineSurvival()


@core.pytree
class GeometricSurvival(Survival):
    """See `geometric_survival`."""

    least: float = core.static(default=1e-5)
    greatest: float = core.static(default=20.0)

    def _gained(self, t: jax.Array) -> jax.Array:
        """The total noise beyond that of time 0."""
        return self.least * jnp.expm1(math.log(self.greatest / self.least) * t)

    def __call__(self, t: Any) -> jax.Array:
        t, ratio = core.as_float(t), math.log(self.greatest / self.least)
        left = -self.greatest * jnp.expm1(-ratio * (1 - t))
        return jnp.exp(-self._gained(t)) * jnp.expm1(-left) / math.expm1(self.least - self.greatest)

    def noise(self, t: Any) -> jax.Array:
        return jnp.expm1(-self._gained(core.as_float(t))) / math.expm1(self.least - self.greatest)

    def inverse(self, noise: Any) -> jax.Array:
        gained = -jnp.log1p(core.as_float(noise) * math.expm1(self.least - self.greatest))
        return jnp.clip(jnp.log1p(gained / self.least) / math.log(self.greatest / self.least), 0, 1)


def geometric_survival(least: float = 1e-5, greatest: float = 20.0) -> GeometricSurvival:
    """`alpha = exp(-total)` with a total noise that grows as `least^(1 - t) greatest^t`, scaled to go from 1 to 0.

    Args:
      least: total noise at time 0.
      greatest: total noise at time 1.

    Raises:
      ValueError: if they are no positive numbers in this order.

    >>> [round(float(geometric_survival()(t)), 3) for t in (0.0, 0.75, 1.0)]
    [1.0, 0.588, 0.0]

    Source: Lou, Meng & Ermon (2024), appendix C; without the scaling, by which the ends are exact.
    """
    name = "diffusion.geometric_survival"
    core.check_positive(name, least=least, greatest=greatest)
    if least >= greatest:
        raise core.bad_value(name, "least", least, f"a total below greatest={greatest}")
    return GeometricSurvival(float(least), float(greatest))
