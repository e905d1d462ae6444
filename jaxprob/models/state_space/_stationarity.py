"""What autoregressive models with moving averages have in common: one state, its law, and where it has none.

The state holds the last p values, the newest first, and the last q shocks, the oldest first. What is observed without
noise is then a number of the state, which is known afterwards to the last bit; and neither the noise nor the emission
depends on coefficients, so that derivatives are right where those are zero, too.

Source: Hamilton (1994), "Time series analysis", sections 3.4 and 13.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class Process(NamedTuple):
    """The state of `y_t = sum_i A_i y_{t-i} + e_t + sum_j M_j e_{t-j}`, n = (max(p, 1) + q) k numbers.

    Attributes:
      dynamics: (n, n).
      noise: (n, n), covariance of what is new.
      start: (n, n), covariance of the stationary law; NaN where there is none.
    """

    dynamics: jax.Array
    noise: jax.Array
    start: jax.Array


def process(ar: jax.Array, ma: jax.Array, covariance: jax.Array) -> Process:
    """The state of a process and its stationary law.

    Args:
      ar: A, (p, k, k).
      ma: M, (q, k, k).
      covariance: (k, k), of e.
    """
    dynamics, new = moves(ar, ma), entries(ar.shape[0], ma.shape[0])
    noise = jnp.kron(jnp.asarray(np.outer(new, new), dynamics.dtype), covariance)
    return Process(dynamics, noise, core.discrete_lyapunov(dynamics, noise))


def entries(p: int, q: int) -> np.ndarray:
    """Where a shock enters the state (max(p, 1) + q,): the newest value and the newest shock."""
    new = np.zeros(max(p, 1) + q)
    new[0] = 1
    new[len(new) - 1 if q else 0] = 1
    return new


def moves(ar: jax.Array, ma: jax.Array) -> jax.Array:
    """The dynamics of `Process`, whether it has a stationary law or not."""
    k = ar.shape[1]
    p, q = max(ar.shape[0], 1), ma.shape[0]
    n = (p + q) * k
    ar = jnp.concatenate([ar, jnp.zeros_like(ar, shape=(p - ar.shape[0], k, k))])
    weights = jnp.concatenate([ar, jnp.flip(ma, 0)])
    newest = jnp.reshape(jnp.swapaxes(weights, 0, 1), (k, n))
    dynamics = jnp.zeros_like(newest, shape=(n, n)).at[:k].set(newest)
    dynamics = dynamics.at[k : p * k].set(jnp.eye((p - 1) * k, n, dtype=newest.dtype))
    older = jnp.eye(max(q - 1, 0) * k, n, (p + 1) * k, dtype=newest.dtype)
    return dynamics.at[p * k : p * k + older.shape[0]].set(older)


def check_stationary(function: str, argument: str, coefficients: Any) -> None:
    """Raises where coefficients (p, k, k) that are known are those of a process that does not settle."""
    if isinstance(coefficients, jax.core.Tracer) or not coefficients.size:
        return
    coefficients = np.asarray(coefficients, np.float64)
    p, k = coefficients.shape[:2]
    dynamics = np.eye(p * k, k=-k)
    dynamics[:k] = np.concatenate(list(coefficients), 1)
    if not np.isfinite(dynamics).all():
        raise core.bad_value(function, argument, "not finite somewhere", "finite numbers")
    size = np.abs(np.linalg.eigvals(dynamics)).max()
    if size >= 1:
        got = f"that of a process with an eigenvalue of size {size:.6g}"
        todo = "Take differences of the series, or make coefficients by distributions.Stationary().bijector"
        raise core.bad_value(function, argument, got, "that of a stationary one, all below 1", todo)
