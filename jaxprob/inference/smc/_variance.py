"""The variance of a log evidence, estimated from the single run that gave it.

Source: Lee & Whiteley (2018), "Variance estimation in the particle filter"; Dau & Chopin (2022), "Waste-free
sequential Monte Carlo".
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxprob.inference.smc._resampling import Scheme, multinomial


def is_known(scheme: Scheme, chain: int | None) -> bool:
    """Whether there is an estimate: for multinomial resampling, or chains of `chain` states."""
    return chain is not None or scheme is multinomial


def evidence_variance(
    scheme: Scheme,
    chain: int | None,
    weights: jax.Array,
    eves: jax.Array,
    resamplings: jax.Array,
    earlier: jax.Array,
) -> jax.Array:
    """Variance of the log evidence of particles that are about to be resampled, (); NaN where none is known.

    Args:
      scheme: by which particles are resampled.
      chain: None, or how many states each chain has.
      weights: (particle,), which sum to one: of all that was gained since particles were last resampled.
      eves: (particle,), of which particle of the prior each descends.
      resamplings: (), how many there were before.
      earlier: (), the variance when particles were last resampled.
    """
    if chain is not None:
        # Chains forget where they started, so that errors of one temperature are independent of those of another.
        return earlier + between_chains(weights, chain)
    if scheme is multinomial:
        return between_families(weights, eves, resamplings)
    return jnp.full((), jnp.nan, weights.dtype)


def between_families(weights: jax.Array, eves: jax.Array, resamplings: jax.Array) -> jax.Array:
    """Relative variance of the evidence from which particles are of one family.

    Source: Lee & Whiteley (2018), equation 12.
    """
    number = weights.shape[0]
    families = jnp.zeros_like(weights).at[eves].add(weights)
    # V = 1 - (N / (N - 1))^(n + 1) (1 - sum of squares of the families' weights), without the cancellation.
    log_ratio = (resamplings + 1).astype(weights.dtype) * math.log1p(1 / (number - 1))
    variance = jnp.exp(log_ratio) * jnp.sum(families**2) - jnp.expm1(log_ratio)
    return jnp.where(jnp.sum(weights) > 0, variance, jnp.nan)


def between_chains(weights: jax.Array, length: int) -> jax.Array:
    """Relative variance of the mean of weights, from how the means of chains of `length` differ."""
    means = jnp.sum(weights.reshape(-1, length), axis=1)
    number = means.shape[0]
    variance = number / (number - 1) * jnp.sum((means - 1 / number) ** 2)
    return jnp.where(jnp.sum(weights) > 0, variance, jnp.nan)
