"""Schedules of Gaussian diffusion: the logarithm of the signal-to-noise ratio as a function of time.

A schedule is a callable pytree, decreasing from time 0 to time 1 between finite ends, with an `inverse`; time is
only a name for a noise level, and everything else is a function of the level. Ends are finite so that nothing is
divided by zero: at a log ratio of 15 noise has 0.05 % of the scale of the data.

Source: Kingma, Salimans, Poole & Ho (2021), "Variational diffusion models", section 3.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core


class Schedule:
    """`schedule(t)` is the log signal-to-noise ratio at a time from 0 to 1, of any shape."""

    def __call__(self, t: Any) -> jax.Array:
        """The log ratio at time t."""
        raise NotImplementedError

    def inverse(self, log_ratio: Any) -> jax.Array:
        """The time at which the log ratio is this, by bisection unless there is a formula.

        Levels beyond the ends have the times of the ends.
        """
        log_ratio = jnp.asarray(log_ratio)

        def halve(ends: tuple[jax.Array, jax.Array], _: Any) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            later = self(middle) > log_ratio
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        ends = jnp.zeros_like(log_ratio), jnp.ones_like(log_ratio)
        for _ in range(jnp.finfo(log_ratio.dtype).nmant + 2):
            ends = halve(ends, None)
        return 0.5 * (ends[0] + ends[1])

    def slope(self, t: Any) -> jax.Array:
        """The derivative of the log ratio with respect to time, negative, ()."""
        t = core.as_float(t)
        return jax.jvp(self, (t,), (jnp.ones_like(t),))[1]


def _check_ends(function: str, highest: Any, lowest: Any) -> None:
    for name, value in (("highest", highest), ("lowest", lowest)):
        if not core.is_number(value) or not abs(value) < 80:
            raise core.bad_value(function, name, value, "a log ratio between -80 and 80")
    if lowest >= highest:
        raise core.bad_value(function, "lowest", lowest, f"a log ratio below highest={highest}")


@core.pytree
class Cosine(Schedule):
    """See `cosine`."""

    highest: float = core.static(default=15.0)
    lowest: float = core.static(default=-15.0)

    def __call__(self, t: Any) -> jax.Array:
        # 2 log cos - 2 log sin, each of an angle that is small where its logarithm is delicate.
        angle, other = self._angles(core.as_float(t))
        return 2 * (jnp.log(jnp.sin(other)) - jnp.log(jnp.sin(angle)))

    def _angles(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, last = math.atan(math.exp(-self.highest / 2)), math.atan(math.exp(self.lowest / 2))
        span = math.pi / 2 - first - last
        return first + span * t, last + span * (1 - t)

    def inverse(self, log_ratio: Any) -> jax.Array:
        first, last = math.atan(math.exp(-self.highest / 2)), math.atan(math.exp(self.lowest / 2))
        angle = jnp.arctan(jnp.exp(-0.5 * core.as_float(log_ratio)))
        return jnp.clip((angle - first) / (math.pi / 2 - first - last), 0, 1)


def cosine(highest: float = 15.0, lowest: float = -15.0) -> Cosine:
    """alpha = cos and sigma = sin of an angle that grows evenly from nearly 0 to nearly pi / 2.

    Args:
      highest: log ratio at time 0.
      lowest: log ratio at time 1.

    Raises:
      ValueError: if they are no numbers in this order.

    >>> schedule = cosine()
    >>> [round(float(schedule(t)), 3) for t in (0.0, 0.5, 1.0)]
    [15.0, 0.0, -15.0]

    Source: Nichol & Dhariwal (2021), "Improved denoising diffusion probabilistic models", equation 17; Hoogeboom, Heek
    & Salimans (2023), "Simple diffusion", for the ends.
    """
    _check_ends("diffusion.cosine", highest, lowest)
    return Cosine(float(highest), float(lowest))


@core.pytree
class LogLinear(Schedule):
    """See `log_linear`."""

    highest: float = core.static(default=10.0)
    lowest: float = core.static(default=-10.0)

    def __call__(self, t: Any) -> jax.Array:
        t = core.as_float(t)
        return self.highest * (1 - t) + self.lowest * t

    def inverse(self, log_ratio: Any) -> jax.Array:
        return jnp.clip((self.highest - core.as_float(log_ratio)) / (self.highest - self.lowest), 0, 1)


def log_linear(highest: float = 10.0, lowest: float = -10.0) -> LogLinear:
    """A log ratio that falls evenly: the geometric schedule of variance-exploding diffusion.

    Args:
      highest: log ratio at time 0; for `variance_exploding`, `-2 log` of the smallest noise scale.
      lowest: log ratio at time 1; `-2 log` of the largest.

    Raises:
      ValueError: if they are no numbers in this order.

    >>> float(log_linear(10.0, -2.0)(0.5))
    4.0

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), "Score-based generative modeling through
    stochastic differential equations", appendix C.
    """
    _check_ends("diffusion.log_linear", highest, lowest)
    return LogLinear(float(highest), float(lowest))


@core.pytree
class LinearBeta(Schedule):
    """See `linear_beta`."""

    first: float = core.static(default=0.1)
    last: float = core.static(default=20.0)
    start: float = core.static(default=1e-4)

    def __call__(self, t: Any) -> jax.Array:
        t = self.start + (1 - self.start) * core.as_float(t)
        total = t * (self.first + 0.5 * t * (self.last - self.first))
        return -jnp.log(jnp.expm1(total))

    def inverse(self, log_ratio: Any) -> jax.Array:
        total = jax.nn.softplus(-core.as_float(log_ratio))
        # The root of a quadratic, in the form that does not cancel for small totals.
        root = jnp.sqrt(self.first**2 + 2 * (self.last - self.first) * total)
        return jnp.clip((2 * total / (self.first + root) - self.start) / (1 - self.start), 0, 1)


def linear_beta(first: float = 0.1, last: float = 20.0, start: float = 1e-4) -> LinearBeta:
    """Noise is added at a rate beta that grows evenly, as in DDPM: `alpha^2 = exp(-integral of beta)`.

    Args:
      first: rate at time 0.
      last: rate at time 1.
      start: the time of the stochastic differential equation that stands for time 0, where its noise would vanish.

    Raises:
      ValueError: if a number is not positive, `last` is below `first`, or `start` not below 1.

    >>> round(float(linear_beta()(1.0)), 2)
    -10.05

    Source: Ho, Jain & Abbeel (2020), "Denoising diffusion probabilistic models"; Song et al. (2021), equation 32.
    """
    name = "diffusion.linear_beta"
    core.check_positive(name, first=first, last=last, start=start)
    if last < first:
        raise core.bad_value(name, "last", last, f"a rate of at least first={first}")
    if start >= 1:
        raise core.bad_value(name, "start", start, "a time below 1")
    return LinearBeta(float(first), float(last), float(start))


@core.pytree
class Straight(Schedule):
    """See `straight`."""

    margin: float = core.static(default=1e-4)

    def __call__(self, t: Any) -> jax.Array:
        t = core.as_float(t)
        noise = self.margin + (1 - 2 * self.margin) * t
        signal = self.margin + (1 - 2 * self.margin) * (1 - t)
        return 2 * (jnp.log(signal) - jnp.log(noise))

    def inverse(self, log_ratio: Any) -> jax.Array:
        noise = core.sigmoid(-0.5 * core.as_float(log_ratio))
        return jnp.clip((noise - self.margin) / (1 - 2 * self.margin), 0, 1)


def straight(margin: float = 1e-4) -> Straight:
    """The levels of a straight line from data to noise, `x_t = (1 - t) x_0 + t noise`, as of flow matching.

    Args:
      margin: share of noise at time 0, and of data at time 1.

    Raises:
      ValueError: if it is not between 0 and 1/2.

    >>> round(float(straight()(0.25)), 3)
    2.197

    Source: Lipman, Chen, Ben-Hamu, Nickel & Le (2023), "Flow matching for generative modeling"; Liu, Gong & Liu (2023),
    "Flow straight and fast".
    """
    core.check_positive("diffusion.straight", margin=margin)
    if margin >= 0.5:
        raise core.bad_value("diffusion.straight", "margin", margin, "a share below 1/2")
    return Straight(float(margin))


_TAIL = 3.0  # standard deviations beyond which the log-normal density of times goes on as it is there


@core.pytree
class LogNormal(Schedule):
    """See `log_normal`."""

    mean: float = core.static(default=-1.2)
    sd: float = core.static(default=1.2)
    smallest: float = core.static(default=0.001)
    largest: float = core.static(default=2000.0)

    def _parts(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Where the tails, and the normal law between them, begin and end in its units; the mass of each part."""
        law = NormalDist()
        ends = [(math.log(scale) - self.mean) / self.sd for scale in (self.smallest, self.largest)]
        first, last = (min(max(joint, ends[0]), ends[1]) for joint in (-_TAIL, _TAIL))
        even = law.pdf(_TAIL)
        return (ends[0], first, last, ends[1]), (
            even * (first - ends[0]),
            law.cdf(last) - law.cdf(first),
            even * (ends[1] - last),
        )

    def __call__(self, t: Any) -> jax.Array:
        t = core.as_float(t)
        (lowest, first, last, highest), masses = self._parts()
        total, even = sum(masses), NormalDist().pdf(_TAIL)
        low, high = total * t, total * (1 - t)  # what is below, and what is above
        # From the nearer end, where a share near 1 would have lost its digits.
        below = jnp.clip(low - masses[0], 0, masses[1]) + NormalDist().cdf(first)
        above = jnp.clip(high - masses[2], 0, masses[1]) + NormalDist().cdf(-last)
        normal = jnp.where(low < high, jax.scipy.special.ndtri(below), -jax.scipy.special.ndtri(above))
        early, late = low < masses[0], high < masses[2]
        units = jnp.where(early, lowest + low / even, jnp.where(late, highest - high / even, normal))
        return -2 * (self.mean + self.sd * jnp.clip(units, lowest, highest))

    def inverse(self, log_ratio: Any) -> jax.Array:
        (lowest, first, last, highest), masses = self._parts()
        even = NormalDist().pdf(_TAIL)
        units = jnp.clip((-0.5 * core.as_float(log_ratio) - self.mean) / self.sd, lowest, highest)
        inner = jax.scipy.special.ndtr(jnp.clip(units, first, last)) - NormalDist().cdf(first)
        tails = jnp.minimum(units - first, 0) + jnp.maximum(units - last, 0)
        return jnp.clip((masses[0] + inner + even * tails) / sum(masses), 0, 1)


def log_normal(mean: float = -1.2, sd: float = 1.2, smallest: float = 0.001, largest: float = 2000.0) -> LogNormal:
    """Noise scales that are log-normal over times: evenly drawn times train where it matters most.

    Beyond three standard deviations the density of the log scale falls no further: with the defaults 2.6 % of all
    times are there, for ends so far out that what they lose is below 1e-3 nats. The paper draws training times without
    ends, and samples between 0.002 and 80, where a mean of data that is not zero costs 0.01 nats.

    Args:
      mean: of the logarithm of the noise scale.
      sd: of that logarithm.
      smallest: noise scale at time 0.
      largest: noise scale at time 1.

    Raises:
      ValueError: if a number is out of range.

    >>> schedule = log_normal()
    >>> [round(float(schedule(t)), 2) for t in (0.0, 0.5, 1.0)]
    [13.82, 2.37, -15.2]

    Source: Karras, Aittala, Aila & Laine (2022), "Elucidating the design space of diffusion-based generative models",
    table 1.
    """
    name = "diffusion.log_normal"
    if not core.is_number(mean) or not math.isfinite(mean):
        raise core.bad_value(name, "mean", mean, "a number")
    core.check_positive(name, sd=sd, smallest=smallest, largest=largest)
    if smallest >= largest:
        raise core.bad_value(name, "smallest", smallest, f"a scale below largest={largest}")
    return LogNormal(float(mean), float(sd), float(smallest), float(largest))


@core.pytree
class Learned(Schedule):
    """See `learned`.

    Args:
      ends: (2,), log ratio at time 0, and the logarithm of how far it falls.
      slopes: (bump,), logits of what each of several sigmoids has of the fall.
      centres: (bump,), where the sigmoids stand in time.
      log_widths: (bump,), logarithms of their widths.
    """

    ends: jax.Array
    slopes: jax.Array
    centres: jax.Array
    log_widths: jax.Array

    def __call__(self, t: Any) -> jax.Array:
        t = core.as_float(t).astype(self.ends.dtype)
        shares = jax.nn.softmax(jnp.concatenate([jnp.zeros_like(self.ends[:1]), self.slopes]))
        widths = jnp.exp(self.log_widths)

        def bumps(t: jax.Array) -> jax.Array:
            return core.sigmoid((t - self.centres) / widths)

        first, last = bumps(jnp.zeros((), t.dtype)), bumps(jnp.ones((), t.dtype))
        risen = jnp.vectorize(lambda t: jnp.sum(shares[1:] * (bumps(t) - first) / (last - first)))(t)
        return self.ends[0] - jnp.exp(self.ends[1]) * (shares[0] * t + risen)


def learned(highest: float = 10.0, lowest: float = -10.0, bumps: int = 8, dtype: Any = None) -> Learned:
    """A monotone schedule with parameters: an even fall and a mixture of sigmoids, with ends that are learnt too.

    In continuous time the bound depends on the ends alone, and the rest on the variance of its estimate. Train it as
    part of the parameters: `diffusion.loss(lambda params: variance_preserving(params["schedule"]), ...)`.

    Args:
      highest: log ratio at time 0, at first.
      lowest: log ratio at time 1, at first.
      bumps: number of sigmoids.
      dtype: of the parameters.

    Raises:
      ValueError: if the ends are no numbers in this order, or `bumps` no whole number.

    >>> schedule = learned()
    >>> [round(float(schedule(t)), 3) for t in (0.0, 1.0)]
    [10.0, -10.0]

    Source: Kingma et al. (2021), appendix H, whose monotone network this takes the place of.
    """
    _check_ends("diffusion.learned", highest, lowest)
    core.check_whole("diffusion.learned", bumps=bumps)
    dtype = jnp.result_type(float) if dtype is None else dtype
    centres = (jnp.arange(bumps, dtype=dtype) + 0.5) / bumps
    return Learned(
        jnp.asarray([highest, math.log(highest - lowest)], dtype),
        jnp.full((bumps,), -3.0, dtype),
        centres,
        jnp.full((bumps,), math.log(1 / bumps), dtype),
    )
