"""Structural time series: components of one observed series, each a model of its own, that add up.

`local_linear_trend(level, slope) + seasonal(12, season) + observed_with(noise)` is one `LinearGaussian`. States that
have no stationary law begin exactly diffuse; the others begin in it. All standard deviations may be zero, and may be
traced.

Source: Harvey (1989), "Forecasting, structural time series models and the Kalman filter", chapter 2; Durbin & Koopman
(2012), "Time series analysis by state space methods", section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.state_space._linear_gaussian import LinearGaussian


class Component(NamedTuple):
    """A component's part of a series.

    Attributes:
      mean: (time,).
      variance: (time,).
    """

    mean: jax.Array
    variance: jax.Array


def observed_with(noise: Any) -> LinearGaussian:
    """Noise of what is observed, and no state.

    Args:
      noise: (), its standard deviation.
    """
    return _component("observed_with", {"noise": noise}, np.zeros((0, 0)), [], np.zeros((1, 0)), noise=noise)


def local_level(level: Any) -> LinearGaussian:
    """A random walk.

    Args:
      level: (), standard deviation of a step.

    >>> (local_level(0.5) + observed_with(1.0)).state_size
    1
    """
    return _component("local_level", {"level": level}, np.ones((1, 1)), [level], np.ones((1, 1)))


def local_linear_trend(level: Any, slope: Any) -> LinearGaussian:
    """A level that moves by a slope, both random walks. States: level, slope.

    Args:
      level: (), standard deviation of what is added to the level at each time; 0 for a smooth trend.
      slope: (), standard deviation of a step of the slope.
    """
    moves = np.array([[1.0, 1.0], [0.0, 1.0]])
    named = {"level": level, "slope": slope}
    return _component("local_linear_trend", named, moves, [level, slope], np.array([[1.0, 0.0]]))


def seasonal(period: int, season: Any) -> LinearGaussian:
    """A pattern that repeats itself, whose sum over a period is noise. States: effects of this time and those before.

    Args:
      period: times in a period, at least 2.
      season: (), standard deviation of that noise; 0 for a pattern that never changes.
    """
    _check_period(period)
    moves = np.zeros((period - 1, period - 1))
    moves[0], moves[1:, :-1] = -1.0, np.eye(period - 2)
    emission = np.eye(1, period - 1)
    return _component("seasonal", {"season": season}, moves, [season] + [0.0] * (period - 2), emission)


def trigonometric_seasonal(period: int, season: Any, harmonics: int | None = None) -> LinearGaussian:
    """A pattern of waves, each with an amplitude and a phase that move. States: two for a wave, one for half a period.

    Args:
      period: times in a period, at least 2.
      season: (), standard deviation of a step of each state.
      harmonics: number of waves, of periods `period`, `period / 2` and so on; all that there are by default, which make
        any pattern.
    """
    _check_period(period)
    most = period // 2
    harmonics = most if harmonics is None else harmonics
    if isinstance(harmonics, bool) or not isinstance(harmonics, int) or not 1 <= harmonics <= most:
        raise core.bad_value("trigonometric_seasonal", "harmonics", harmonics, f"an integer from 1 to {most}")
    sizes = [1 if 2 * wave == period else 2 for wave in range(1, harmonics + 1)]
    moves, emission, at = np.zeros((sum(sizes), sum(sizes))), np.zeros((1, sum(sizes))), 0
    for wave, size in enumerate(sizes, 1):
        angle = 2 * math.pi * wave / period
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        moves[at : at + size, at : at + size], emission[0, at] = turn[:size, :size], 1.0
        at += size
    return _component("trigonometric_seasonal", {"season": season}, moves, [season] * sum(sizes), emission)


def cycle(period: Any, damping: Any, disturbance: Any) -> LinearGaussian:
    """A wave that dies out and is stirred again: stationary, with the variance `disturbance^2 / (1 - damping^2)`.

    Args:
      period: (), in times, at least 2; need not be a whole number. A negative one, or one below 2, is that of no other
        series than one of at least 2. Where it is traced, as in a sampler, such a one makes all NaN, and no density.
      damping: (), between 0 and 1: what is left of the amplitude after each time.
      disturbance: (), standard deviation of what is added to each of the two states.

    Raises:
      ValueError: for a damping that is not between 0 and 1, or a period below 2.
    """
    check_number("cycle", "damping", damping, lambda x: 0 <= x < 1, "from 0 to below 1")
    check_number("cycle", "period", period, lambda x: x >= 2, "at least 2")
    dtype = dtype_of(period, damping, disturbance)
    rho, period = jnp.asarray(damping, dtype), jnp.asarray(period, dtype)
    angle = 2 * math.pi / jnp.where(period >= 2, period, jnp.nan)
    sine, cosine = rho * jnp.sin(angle), rho * jnp.cos(angle)
    moves = jnp.stack([jnp.stack([cosine, sine]), jnp.stack([-sine, cosine])])
    start = jnp.asarray(disturbance, dtype) ** 2 / ((1 - rho) * (1 + rho)) * jnp.eye(2, dtype=dtype)
    named = {"disturbance": disturbance}
    return _component("cycle", named, moves, [disturbance] * 2, np.eye(1, 2), start=start)


def regression(xs: Any, walk: Any = 0.0) -> LinearGaussian:
    """Known series times coefficients of which nothing is known beforehand. States: the coefficients.

    Args:
      xs: (time, k); for forecasts as many times more as those are to span.
      walk: () or (k,), standard deviation of a step of each coefficient; 0 for coefficients that stay.
    """
    xs = core.as_float(xs)
    if xs.ndim != 2:
        raise core.bad_value("regression", "xs", xs, "an array (time, k)")
    k = xs.shape[1]
    steps = jnp.broadcast_to(jnp.asarray(walk, xs.dtype), (k,))
    return _component(
        "regression", {"walk": walk}, np.eye(k), list(steps), jnp.expand_dims(xs, 1), varying=("emission",)
    )


def decompose(parts: Mapping[str, LinearGaussian], smoothed: Any) -> dict[str, Component]:
    """What each component of a sum contributes to the series.

    Args:
      parts: the components by name, in the order in which they were added.
      smoothed: what `kalman.smooth` (or `kalman.filter`) found for their sum.

    Returns:
      for each name a `Component`; that of a part without states is its offset.

    Raises:
      ValueError: if the states of the parts are not those of what was smoothed.

    >>> from jaxprob.inference import kalman
    >>> parts = {"trend": local_linear_trend(0.1, 0.01), "season": seasonal(4, 0.1), "noise": observed_with(1.0)}
    >>> found = kalman.smooth(parts["trend"] + parts["season"] + parts["noise"], jnp.arange(8.0))
    >>> series = decompose(parts, found)
    >>> bool(jnp.allclose(series["trend"].mean + series["season"].mean, jnp.arange(8.0), atol=1e-3))
    True
    """
    mean, covariance = smoothed.mean, smoothed.covariance
    total = sum(part.state_size for part in parts.values())
    if total != mean.shape[1]:
        got = f"of {total} states, and what was smoothed has {mean.shape[1]}"
        raise core.bad_value("decompose", "parts", got, "all components of the sum, in order")
    result, at, times = {}, 0, mean.shape[0]
    for name, part in parts.items():
        n = part.state_size
        rows = part.emission[:times] if "emission" in part.time_varying else part.emission
        offset = part.emission_offset[:times] if "emission_offset" in part.time_varying else part.emission_offset
        rows = jnp.broadcast_to(rows, (times, *part.emission.shape[-2:])).astype(mean.dtype)[:, 0]
        seen = jnp.sum(rows * mean[:, at : at + n], 1) + jnp.broadcast_to(offset, (times, 1))[:, 0].astype(mean.dtype)
        spread = core.matvec(covariance[:, at : at + n, at : at + n], rows)
        result[name] = Component(seen, jnp.sum(rows * spread, 1))
        at += n
    return result


def _component(
    name: str,
    deviations: dict[str, Any],
    dynamics: Any,
    steps: list[Any],
    emission: Any,
    noise: Any = 0.0,
    start: Any = None,
    varying: tuple[str, ...] = (),
) -> LinearGaussian:
    """A model of one observed series, diffuse where it has no `start`."""
    for argument, value in deviations.items():
        check_number(name, argument, value, lambda x: (x >= 0) & (x < math.inf), "a standard deviation, at least 0")
    dtype = dtype_of(dynamics, emission, noise, start, *steps)
    n = np.shape(dynamics)[-1]
    variances = jnp.stack([jnp.asarray(x, dtype) ** 2 for x in steps]) if n else jnp.zeros((0,), dtype)
    return LinearGaussian(
        initial_mean=jnp.zeros((n,), dtype),
        initial_covariance=jnp.zeros((n, n), dtype) if start is None else start.astype(dtype),
        dynamics=jnp.asarray(dynamics, dtype),
        dynamics_covariance=jnp.diag(variances),
        emission=jnp.asarray(emission, dtype),
        emission_covariance=jnp.expand_dims(jnp.asarray(noise, dtype) ** 2, 0),
        initial_diffuse=jnp.eye(n, dtype=dtype) if start is None else None,
        time_varying=varying,
    )


def dtype_of(*values: Any) -> Any:
    """Of the arrays among them; numbers of Python, and matrices that are written out here, have none of their own."""
    arrays = [core.as_float(x) for x in values if isinstance(x, jax.Array)]
    return core.result_dtype(*arrays) if arrays else core.as_float(0.0).dtype


def check_number(function: str, argument: str, value: Any, fits: Any, expected: str) -> None:
    if not isinstance(value, jax.core.Tracer) and not np.all(fits(np.asarray(value))):
        raise core.bad_value(function, argument, value, expected)


def _check_period(period: Any) -> None:
    if isinstance(period, bool) or not isinstance(period, int) or period < 2:
        raise core.bad_value("seasonal", "period", period, "a number of times, at least 2")
