"""Several series at once: vector autoregressions, with moving averages, and factors that many series share.

All begin in their stationary law. What is observed has no noise of its own unless it is given one.

Source: Lütkepohl (2005), "New introduction to multiple time series analysis", sections 2.1, 11.3 and 18.2; Geweke
(1977), "The dynamic factor analysis of economic time series".
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.state_space._linear_gaussian import LinearGaussian
from jaxprob.models.state_space._stationarity import check_stationary, process
from jaxprob.models.state_space._structural import check_number


def vector_autoregression(coefficients: Any, covariance: Any, *, intercept: Any = None) -> LinearGaussian:
    """k series that go on from their last p values: `y_t = intercept + sum_i A_i y_{t-i} + N(0, covariance)`.

    States: y_t and the values before it. Inputs: `.with_inputs(inputs, emission_input=...)` moves what is observed.

    Args:
      coefficients: A, (p, k, k), of stationary series (`distributions.StationaryMatrices` is their support).
      covariance: (k, k), symmetric positive semi-definite.
      intercept: (k,); zero by default.

    Returns:
      `LinearGaussian` with k p states.

    Raises:
      ValueError: if shapes do not fit, or coefficients that are known are not stationary.

    >>> pair = vector_autoregression(jnp.array([[[0.5, 0.0], [0.0, 0.5]]]), jnp.eye(2))
    >>> pair.state_size, round(pair.initial_covariance[0, 0].item(), 4)
    (2, 1.3333)

    Source: Lütkepohl (2005), section 2.1.
    """
    return _vector_arma("vector_autoregression", {"coefficients": coefficients}, covariance, intercept)


def vector_arma(ar: Any, ma: Any, covariance: Any, *, intercept: Any = None) -> LinearGaussian:
    """`y_t = intercept + sum_i A_i y_{t-i} + e_t + sum_j M_j e_{t-j}`, e_t ~ N(0, covariance), of k series.

    Args:
      ar: A, (p, k, k), of stationary series.
      ma: M, (q, k, k).
      covariance: (k, k), symmetric positive semi-definite.
      intercept: (k,); zero by default.

    Returns:
      `LinearGaussian` with k (max(p, 1) + q) states: the last values, the newest first, and shocks, the oldest first.

    Raises:
      ValueError: if shapes do not fit, or coefficients that are known are not stationary.

    >>> vector_arma(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2)), jnp.eye(2)).state_size
    4

    Source: Lütkepohl (2005), section 11.3.
    """
    return _vector_arma("vector_arma", {"ar": ar, "ma": ma}, covariance, intercept)


def _vector_arma(function: str, coefficients: dict[str, Any], covariance: Any, intercept: Any) -> LinearGaussian:
    covariance = core.as_float(covariance)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not covariance.shape[0]:
        raise core.bad_value(function, "covariance", covariance, "a matrix (k, k)")
    k = covariance.shape[0]
    arrays = {name: core.as_float(value) for name, value in coefficients.items()}
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[1:] != (k, k):
            raise core.bad_value(function, name, array, f"shape (lags, {k}, {k}), a matrix for each time before")
    offset = jnp.zeros_like(covariance, shape=(k,)) if intercept is None else core.as_float(intercept)
    if offset.shape != (k,):
        raise core.bad_value(function, "intercept", offset, f"shape {(k,)}")
    dtype = core.result_dtype(covariance, offset, arrays)
    ar, ma = (*(array.astype(dtype) for array in arrays.values()), jnp.zeros((0, k, k), dtype))[:2]
    check_stationary(function, next(iter(arrays)), ar)
    steady = process(ar, ma, covariance.astype(dtype))
    n = steady.dynamics.shape[0]
    settled = jnp.linalg.solve(jnp.eye(k, dtype=dtype) - jnp.sum(ar, 0), offset.astype(dtype))
    return LinearGaussian(
        initial_mean=jnp.zeros((n,), dtype),
        initial_covariance=steady.start,
        dynamics=steady.dynamics,
        dynamics_covariance=steady.noise,
        emission=jnp.eye(k, n, dtype=dtype),
        emission_covariance=jnp.zeros((k,), dtype),
        emission_offset=settled,
    )


def dynamic_factor(
    loadings: Any, factor_coefficients: Any, factor_covariance: Any, noise: Any, *, noise_coefficients: Any = None
) -> LinearGaussian:
    """m series that share k factors: `y_t = loadings f_t + u_t`, f a vector autoregression, u independent noise.

    States: the factors and their past, then those of u where it remembers. Only the products of loadings and factors
    are told by data: a `factor_covariance` of `jnp.eye(k)` fixes the scale of the factors.

    Args:
      loadings: (m, k).
      factor_coefficients: (p, k, k), of stationary factors.
      factor_covariance: (k, k), of what is new in the factors at each time.
      noise: (m,), standard deviations of u; where it remembers, of what is new in it.
      noise_coefficients: (q, m): each series of u is an autoregression of its own. None for white noise.

    Returns:
      `LinearGaussian` with k p states, and m q more where u remembers.

    Raises:
      ValueError: if shapes do not fit, coefficients that are known are not stationary, or a deviation is negative.

    >>> shared = dynamic_factor(jnp.ones((3, 1)), jnp.full((1, 1, 1), 0.8), jnp.eye(1), jnp.ones(3))
    >>> shared.state_size, shared.observation_size
    (1, 3)

    Source: Geweke (1977); Lütkepohl (2005), section 18.2.
    """
    name = "dynamic_factor"
    loadings, noise = core.as_float(loadings), core.as_float(noise)
    factors = vector_autoregression(factor_coefficients, factor_covariance)
    k = factors.observation_size
    if loadings.ndim != 2 or loadings.shape[1] != k:
        raise core.bad_value(name, "loadings", loadings, f"shape (m, {k}), a column for each factor")
    m = loadings.shape[0]
    if noise.shape != (m,):
        raise core.bad_value(name, "noise", noise, f"shape {(m,)}, a standard deviation for each series")
    check_number(name, "noise", noise, lambda x: (x >= 0) & (x < math.inf), "standard deviations, at least 0")
    dtype = core.result_dtype(loadings, noise, factors)
    emission = core.matmul(loadings.astype(dtype), factors.emission.astype(dtype))
    white = jnp.zeros((m,), dtype) if noise_coefficients is not None else noise.astype(dtype) ** 2
    model = dataclasses.replace(
        factors, emission=emission, emission_covariance=white, emission_offset=jnp.zeros((m,), dtype)
    )
    if noise_coefficients is None:
        return model
    own = core.as_float(noise_coefficients)
    if own.ndim != 2 or own.shape[1] != m:
        raise core.bad_value(name, "noise_coefficients", own, f"shape (q, {m}), a column for each series")
    return model + vector_autoregression(jax.vmap(jnp.diag)(own), jnp.diag(noise**2))
