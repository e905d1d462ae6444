"""Autoregressive and moving-average series, of their differences and with seasons: from AR(p) to SARIMAX.

What is stationary begins in its stationary law, and as many values of a series as are lost by taking differences are
exactly diffuse. States: the last values of the series, the newest first, and the last shocks, the oldest first.

Source: Hamilton (1994), "Time series analysis", chapters 3 and 13; Box, Jenkins, Reinsel & Ljung (2015), "Time series
analysis", chapters 3, 4 and 9; Durbin & Koopman (2012), "Time series analysis by state space methods", section 3.4.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.state_space._linear_gaussian import LinearGaussian
from jaxprob.models.state_space._stationarity import check_stationary, entries, moves, process
from jaxprob.models.state_space._structural import check_number, dtype_of


def autoregressive(coefficients: Any, noise: Any) -> LinearGaussian:
    """A series that goes on from its last p values: `y_t = sum_i coefficients_i y_{t-i} + N(0, noise^2)`.

    A component like others: add a level, a season, `observed_with(noise)`. States: y_t and the values before it.

    Args:
      coefficients: (p,), of a stationary series (`distributions.Stationary` is their support).
      noise: (), standard deviation of what is new at each time.

    Raises:
      ValueError: if coefficients that are known are not stationary, or the noise is negative.

    >>> moves = autoregressive(jnp.array([0.8]), 0.6)
    >>> moves.initial_covariance.round(4).tolist()
    [[1.0]]

    Source: Yule (1927), "On a method of investigating periodicities in disturbed series".
    """
    given = _vectors("autoregressive", {"coefficients": coefficients}, noise)
    return _series("autoregressive", given, given["coefficients"][:0], noise)


def arma(ar: Any, ma: Any, noise: Any) -> LinearGaussian:
    """`y_t = sum_i ar_i y_{t-i} + e_t + sum_j ma_j e_{t-j}`, e_t ~ N(0, noise^2), in its stationary law.

    Args:
      ar: (p,), of a stationary series (`distributions.Stationary`).
      ma: (q,), any; among those of the same law one is invertible (`distributions.Invertible` is the support of such).
      noise: (), standard deviation of e.

    Returns:
      `LinearGaussian` with max(p, 1) + q states.

    Raises:
      ValueError: if coefficients that are known are not stationary, or the noise is negative.

    >>> arma([0.5], [0.25], 1.0).dynamics.tolist()
    [[0.5, 0.25], [0.0, 0.0]]
    """
    given = _vectors("arma", {"ar": ar, "ma": ma}, noise)
    return _series("arma", {"ar": given["ar"]}, given["ma"], noise)


def arima(ar: Any, ma: Any, noise: Any, *, differences: int = 1, intercept: Any = 0.0) -> LinearGaussian:
    """A series whose differences, taken so many times, follow an ARMA law.

    `w_t = intercept + sum_i ar_i w_{t-i} + e_t + sum_j ma_j e_{t-j}` with `w = (1 - L)^differences y`. In float32
    take a constant off a series that is far from zero: nothing else changes, and digits are kept.

    Args:
      ar: (p,), of a stationary series.
      ma: (q,).
      noise: (), standard deviation of e.
      differences: how many times.
      intercept: (); w has the mean `intercept / (1 - sum(ar))`, which is a slope of y where it is differenced once.

    Raises:
      ValueError: if coefficients that are known are not stationary, the noise is negative, or `differences` is.

    >>> model = arima([0.5], [], 1.0, differences=1)
    >>> model.state_size, model.diffuse_size
    (2, 1)

    Source: Box, Jenkins, Reinsel & Ljung (2015), section 4.1.
    """
    return _sarimax("arima", ar, ma, noise, differences=differences, intercept=intercept)


def sarimax(
    ar: Any = (),
    ma: Any = (),
    *,
    noise: Any,
    differences: int = 0,
    period: int = 1,
    seasonal_ar: Any = (),
    seasonal_ma: Any = (),
    seasonal_differences: int = 0,
    intercept: Any = 0.0,
    inputs: Any = None,
    coefficients: Any = None,
) -> LinearGaussian:
    """A seasonal ARIMA series around a linear function of known inputs.

    `phi(L) Phi(L^s) w_t = intercept + theta(L) Theta(L^s) e_t`, `w = (1 - L)^d (1 - L^s)^D (y - inputs coefficients)`,
    with `phi(L) = 1 - sum_i ar_i L^i`, `theta(L) = 1 + sum_j ma_j L^j`, and the same of the seasonal ones. Add
    `observed_with(noise)` for noise of measurement, `regression(xs)` for coefficients of which nothing is known.

    Args:
      ar: (p,), phi, of a stationary series.
      ma: (q,), theta.
      noise: (), standard deviation of e.
      differences: d.
      period: s, times in a season.
      seasonal_ar: (P,), Phi, of a stationary series.
      seasonal_ma: (Q,), Theta.
      seasonal_differences: D.
      intercept: ().
      inputs: (time, k); for forecasts as many times more as those are to span.
      coefficients: (k,), of the inputs.

    Returns:
      `LinearGaussian` with p + P s + d + D s + q + Q s states, at least one for values.

    Raises:
      ValueError: if coefficients that are known are not stationary, a number is out of its range, there is something
        seasonal and no period above 1, or inputs and their coefficients do not fit.

    >>> airline = sarimax(ma=[-0.4], seasonal_ma=[-0.6], noise=0.1, differences=1, period=12, seasonal_differences=1)
    >>> airline.state_size, airline.diffuse_size
    (26, 13)

    Source: Box, Jenkins, Reinsel & Ljung (2015), section 9.2; Hyndman & Athanasopoulos (2021), "Forecasting:
    principles and practice", section 10.2, for regression with ARIMA errors.
    """
    seasons = (period, seasonal_ar, seasonal_ma, seasonal_differences)
    model = _sarimax("sarimax", ar, ma, noise, *seasons, differences=differences, intercept=intercept)
    if (inputs is None) != (coefficients is None):
        missing, other = ("inputs", "coefficients") if inputs is None else ("coefficients", "inputs")
        raise core.bad_value("sarimax", missing, None, f"an array, as there are {other}")
    if inputs is None:
        return model
    slopes = _vectors("sarimax", {"coefficients": coefficients}, model.dynamics)["coefficients"]
    return model.with_inputs(inputs, emission_input=jnp.expand_dims(slopes, 0))


def _sarimax(
    function: str,
    ar: Any,
    ma: Any,
    noise: Any,
    period: int = 1,
    seasonal_ar: Any = (),
    seasonal_ma: Any = (),
    seasonal_differences: int = 0,
    *,
    differences: int,
    intercept: Any,
) -> LinearGaussian:
    for name, count in (("differences", differences), ("seasonal_differences", seasonal_differences)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise core.bad_value(function, name, count, "a number of times, at least 0")
    named = {"ar": ar, "seasonal_ar": seasonal_ar, "ma": ma, "seasonal_ma": seasonal_ma}
    given = _vectors(function, named, noise, intercept)
    is_seasonal = bool(given["seasonal_ar"].size or given["seasonal_ma"].size or seasonal_differences)
    if isinstance(period, bool) or not isinstance(period, int) or period < 1 + is_seasonal:
        raise core.bad_value(function, "period", period, f"a number of times, at least {1 + is_seasonal}")
    ars = {name: given[name] for name in ("ar", "seasonal_ar")}
    average = _multiplied(given["ma"], given["seasonal_ma"], period)
    return _series(function, ars, average, noise, period, (differences, seasonal_differences), intercept)


def _series(
    function: str,
    ars: dict[str, jax.Array],
    ma: jax.Array,
    noise: Any,
    period: int = 1,
    differences: tuple[int, int] = (0, 0),
    intercept: Any = 0.0,
) -> LinearGaussian:
    """Of one autoregression, or of two, the second of values whole periods before; differences are as those."""
    check_number(function, "noise", noise, lambda x: (x.ndim == 0) & (x >= 0) & (x < math.inf), "a number, at least 0")
    check_number(function, "intercept", intercept, lambda x: (x.ndim == 0) & np.isfinite(x), "a finite number")
    for name, values in ars.items():
        check_stationary(function, name, _matrices(values))
    first, second = (*ars.values(), ma[:0])[:2]
    ar = -_multiplied(-first, -second, period)
    dtype, variance = ma.dtype, jnp.asarray(noise, ma.dtype) ** 2
    polynomial = np.ones(1)
    for step in (1,) * differences[0] + (period,) * differences[1]:
        polynomial = np.polymul(polynomial, np.concatenate([[1], np.zeros(step - 1), [-1]]))
    of_w, diffuse = _summed(polynomial, ar.shape[0], ma.shape[0])
    start = process(_matrices(ar), _matrices(ma), jnp.ones((1, 1), dtype)).start
    mean = jnp.asarray(intercept, dtype) / math.prod(1 - jnp.sum(weights) for weights in ars.values())
    means = jnp.asarray(np.arange(start.shape[0]) < max(ar.shape[0], 1), dtype) * mean
    made = jnp.asarray(of_w, dtype)
    dynamics = moves(_matrices(-_multiplied(-ar, jnp.asarray(polynomial[1:], dtype), 1)), _matrices(ma))
    n = dynamics.shape[0]
    new = jnp.asarray(entries(n - ma.shape[0], ma.shape[0]), dtype)
    return LinearGaussian(
        initial_mean=core.matvec(made, means),
        initial_covariance=variance * core.symmetrize(core.matmul(core.matmul(made, start), made.T)),
        dynamics=dynamics,
        dynamics_covariance=variance * jnp.outer(new, new),
        emission=jnp.eye(1, n, dtype=dtype),
        emission_covariance=jnp.zeros((1,), dtype),
        dynamics_offset=jnp.asarray(intercept, dtype) * jnp.eye(1, n, dtype=dtype)[0],
        initial_diffuse=jnp.asarray(diffuse, dtype),
    )


def _summed(polynomial: np.ndarray, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """The first state, from that of its differences w, and from the oldest values, of which nothing is known.

    Args:
      polynomial: `(1 - L)^d (1 - L^s)^D`, from its 1 on.
      p: values of w that the state of w needs; it has at least one.
      q: shocks.

    Returns:
      matrices of whole numbers (n, max(p, 1) + q) and (n, d + D s).
    """
    lost = len(polynomial) - 1
    p = p if lost else max(p, 1)
    made = np.eye(p + lost)
    for age in reversed(range(p)):
        made[age] -= polynomial[1:] @ made[age + 1 : age + 1 + lost]
    of_w = np.zeros((p + lost + q, max(p, 1) + q))
    of_w[: p + lost, :p] = made[:, :p]
    of_w[p + lost :, max(p, 1) :] = np.eye(q)
    return of_w, np.concatenate([made[:, p:], np.zeros((q, lost))])


def _matrices(coefficients: jax.Array) -> jax.Array:
    return jnp.reshape(coefficients, (-1, 1, 1))


def _multiplied(one: jax.Array, other: jax.Array, period: int) -> jax.Array:
    """Coefficients a of `1 + a(L) = (1 + one(L)) (1 + other(L^period))`, from those of L on."""
    spread = jnp.zeros_like(other, shape=(period * other.shape[0],)).at[period - 1 :: period].set(other)
    first = jnp.ones_like(one, shape=(1,))
    both = jnp.concatenate([first, one]), jnp.concatenate([first, spread])
    return jnp.convolve(both[0], both[1], precision="highest")[1:]


def _vectors(function: str, named: dict[str, Any], *numbers: Any) -> dict[str, jax.Array]:
    """Vectors of coefficients of one dtype, that of the arrays among them and the numbers beside them."""
    arrays = {}
    for name, value in named.items():
        is_plain = isinstance(value, (tuple, list)) and all(isinstance(x, (int, float)) for x in value)
        arrays[name] = np.asarray(value, np.float64) if is_plain else core.as_float(value)
        if arrays[name].ndim != 1:
            raise core.bad_value(function, name, value, "a vector of coefficients, empty for none")
    dtype = dtype_of(*arrays.values(), *numbers)
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
