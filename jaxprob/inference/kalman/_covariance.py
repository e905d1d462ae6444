"""The filter with covariances themselves: few large matrix products, and only half the digits of what carries roots.

A covariance is reduced by a difference. A small variance that is left of a large one keeps few digits in float32, and
one that rounding made negative is NaN from there on. What is observed at a time is conditioned on as a whole, so that
its covariance must be positive definite.

Source: Kalman (1960), "A new approach to linear filtering and prediction problems".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman._square_root import HALF_LOG_TAU, Moments, Seen, square_root
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`."""
    constant, varying = (
        part if part.dynamics_root is None else part._replace(dynamics_root=covariance_of(part.dynamics_root))
        for part in (steps.constant, steps.varying)
    )
    steps = steps._replace(constant=constant)

    def body(carry: tuple[jax.Array, jax.Array], one: Step) -> tuple[tuple[jax.Array, jax.Array], Any]:
        mean, covariance = carry
        step = steps.at(one)
        there = step.seen
        rows = jnp.where(jnp.expand_dims(there, 1), step.emission, 0)
        noise = jnp.diag(step.emission_covariance) if step.emission_covariance.ndim == 1 else step.emission_covariance
        # What is missing has a variance of its own, and tells nothing.
        both = jnp.expand_dims(there, 0) & jnp.expand_dims(there, 1)
        noise = jnp.where(both, noise, jnp.diag((~there).astype(noise.dtype)))
        crossed = core.matmul(rows, covariance)
        factor = core.cholesky(core.matmul(crossed, rows.T) + noise)
        residual = step.values - core.matmul(rows, mean)
        white = core.solve_triangular(factor, jnp.concatenate([residual, crossed], 1))
        innovation, gain = white[:, : mean.shape[1]], white[:, mean.shape[1] :].T
        after = mean + core.matmul(gain, innovation)
        left = core.symmetrize(covariance - core.matmul(gain, gain.T))
        scale = jnp.where(there, HALF_LOG_TAU + jnp.log(jnp.diagonal(factor)), 0)
        next_mean = core.matmul(step.dynamics, after).at[:, 0].add(step.dynamics_offset)
        spread = core.matmul(core.matmul(step.dynamics, left), step.dynamics.T)
        ahead = next_mean, core.symmetrize(spread + step.dynamics_root)
        return ahead, (carry, (after, left), Seen(innovation, scale)) if keep else (None, None, Seen(innovation, scale))

    start = steps.start.mean, covariance_of(steps.start.factor)
    predicted, filtered, seen = scan.scan(jax.checkpoint(body, prevent_cse=False), start, varying)[1]
    if not keep:
        return None, None, seen
    roots = jax.vmap(square_root)
    return Moments(predicted[0], roots(predicted[1])), Moments(filtered[0], roots(filtered[1])), seen
