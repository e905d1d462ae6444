"""Monte Carlo standard errors: how far estimates from these draws may be from their exact values.

Shapes, dtypes and NaN as in `_convergence`: draws (chain, draw, ...) in, the trailing shape out.

Source: Vehtari et al. (2021), "Rank-normalization, folding, and localization", Bayesian Analysis 16(2).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc

from jaxprob import core
from jaxprob.analysis import _chains as chains

_ONE_SIGMA = 0.15865525393145707
"""The probability of a standard normal variable below -1."""


def mcse_mean(x: Any) -> jax.Array:
    """Standard error of the posterior mean: `sd / sqrt(ESS of the mean)`.

    It means something only where the variance is finite; look at `mcse_quantile(x, 0.5)` for heavy tails.

    Args:
      x: (chain, draw, ...).

    Returns:
      (...), in the unit of `x`.

    Raises:
      ValueError: if `x` has fewer than two axes.

    >>> x = jax.random.normal(jax.random.key(0), (4, 2500))
    >>> bool(abs(mcse_mean(x) - 0.01) < 0.001)
    True

    Source: Vehtari et al. (2021).
    """
    return _mcse_mean(chains.prepare("mcse_mean", x))


def mcse_sd(x: Any) -> jax.Array:
    """Standard error of the posterior standard deviation, by the delta method.

        var(sd) = (mean(c^4) - mean(c^2)^2) / (4 mean(c^2) ESS(c^2)),  c = x - mean(x)

    Args:
      x: (chain, draw, ...).

    Returns:
      (...), in the unit of `x`.

    Raises:
      ValueError: if `x` has fewer than two axes.

    >>> x = jax.random.normal(jax.random.key(0), (4, 2500))
    >>> bool(abs(mcse_sd(x) - 0.00707) < 0.0007)
    True

    Source: Kenney and Keeping (1951), "Mathematics of Statistics", part 2, p. 141; Vehtari et al. (2021).
    """
    return _mcse_sd(chains.prepare("mcse_sd", x))


def mcse_quantile(x: Any, q: float) -> jax.Array:
    """Standard error of a posterior quantile: half the width of a one-sigma interval between order statistics.

    Args:
      x: (chain, draw, ...).
      q: probability of the quantile, strictly between 0 and 1; a Python number.

    Returns:
      (...), in the unit of `x`.

    Raises:
      ValueError: if `x` has fewer than two axes or `q` is not inside (0, 1).

    >>> x = jax.random.normal(jax.random.key(0), (4, 2500))
    >>> bool(abs(mcse_quantile(x, 0.5) - 0.0125) < 0.002)
    True

    Source: Vehtari et al. (2021).
    """
    x = chains.prepare("mcse_quantile", x)
    if not 0 < q < 1:
        raise core.bad_value("mcse_quantile", "q", q, "a probability strictly between 0 and 1")
    return _mcse_quantile(x, float(q))


def _ess_of_mean(x: jax.Array) -> jax.Array:
    return chains.ess(chains.split(x))


@jax.jit
def _mcse_mean(x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        deviations, scale, _ = chains.deviations_and_scale(x)
        return chains.where_defined(x, error_of_mean(deviations, _ess_of_mean(x)) * scale)

    return chains.over_quantities(one, x)


@jax.jit
def _mcse_sd(x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        deviations, scale, _ = chains.deviations_and_scale(x)
        return chains.where_defined(x, error_of_sd(deviations, _ess_of_mean(deviations**2)) * scale)

    return chains.over_quantities(one, x)


@partial(jax.jit, static_argnums=1)
def _mcse_quantile(x: jax.Array, q: float) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        entries = chains.ordered(x)
        size = entries.size
        below = chains.split(chains.below_quantile(x, entries, q))
        ess = chains.or_all_draws(chains.ess(below), below)
        interval = jnp.array([_ONE_SIGMA, 1 - _ONE_SIGMA], x.dtype)
        place = beta_quantile(interval, ess * q + 1, ess * (1 - q) + 1) * size - 1
        low = jnp.clip(jnp.floor(place[0]), 0, size - 1).astype(int)
        high = jnp.clip(jnp.ceil(place[1]), 0, size - 1).astype(int)
        return chains.where_defined(x, (entries[high] - entries[low]) / 2)

    return chains.over_quantities(one, x)


def error_of_mean(deviations: jax.Array, ess: jax.Array) -> jax.Array:
    """Standard error of the mean from deviations about the mean."""
    return jnp.sqrt(jnp.sum(deviations**2) / (deviations.size - 1) / ess)


def error_of_sd(deviations: jax.Array, ess: jax.Array) -> jax.Array:
    """Standard error of the standard deviation from deviations about the mean; `ess` is that of their squares."""
    squares = deviations**2
    variance = jnp.mean(squares)
    # The variance of the squares about their mean, not mean(c^4) - mean(c^2)^2, which cancels for a two-point law.
    return jnp.sqrt(jnp.mean((squares - variance) ** 2) / ess / variance / 4)


def beta_quantile(probability: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Quantiles of Beta(a, b) at a vector of probabilities, by bisection to the last bit of the dtype."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = betainc(jnp.full_like(middle, a), jnp.full_like(middle, b), middle) < probability
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    steps = jnp.finfo(probability.dtype).nmant + 3
    low, high = core.fori_loop(0, steps, halve, (jnp.zeros_like(probability), jnp.ones_like(probability)))
    return (low + high) / 2
