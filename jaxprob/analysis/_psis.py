"""Pareto-smoothed importance sampling: importance weights that say themselves whether they can be trusted.

The largest ratios are replaced by the quantiles of a generalised Pareto distribution fitted to them; its shape k says
how many moments the ratios have, and so whether averages with these weights converge at a useful rate.

Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72); Zhang and
Stephens (2009), "A new and efficient estimation method for the generalized Pareto distribution", Technometrics 51(3).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.analysis import _chains as chains

_MIN_TAIL = 5
_NEGLIGIBLE = 10 * 2.220446049250313e-16
"""Grid points with less weight than this are left out of the posterior mean, in any dtype."""


class Psis(NamedTuple):
    """What `psis` returns.

    Attributes:
      log_weights: (sample, ...), smoothed and normalised: their exponentials sum to 1 over samples.
      pareto_k: (...), shape of the tail. Reliable below `psis_threshold(samples)`; above 1 the mean of the ratios does
        not exist. inf where the tail has fewer than 5 distinct ratios to fit; -inf where all ratios are equal.
    """

    log_weights: jax.Array
    pareto_k: jax.Array


def psis(log_ratios: Any, r_eff: Any = 1.0) -> Psis:
    """Pareto-smoothed importance weights and the shape k of their tail.

    Args:
      log_ratios: (sample, ...), log target density less log proposal density, each up to a constant. -inf is a ratio
        of 0.
      r_eff: relative efficiency of the draws, ESS / draws: a number or (...). It sets how many of the largest ratios
        count as the tail: `min(samples / 5, 3 sqrt(samples / r_eff))`.

    Returns:
      `Psis(log_weights, pareto_k)`, NaN where a ratio is NaN or inf or all of them are 0.

    Raises:
      ValueError: if `log_ratios` has no axis of samples, or `r_eff` neither one entry nor one for each trailing one.

    >>> ratios = 0.1 * jax.random.normal(jax.random.key(0), (1000,))
    >>> bool(psis(ratios).pareto_k < psis_threshold(1000))
    True

    Source: Vehtari et al. (2024), algorithm 1, with its weakly informative prior on k.
    """
    log_ratios = core.as_float(log_ratios)
    if log_ratios.ndim < 1 or log_ratios.shape[0] == 0:
        raise core.bad_value("psis", "log_ratios", log_ratios, "an array (sample, ...) with at least one sample")
    dtype = core.accumulator_dtype(log_ratios.dtype)
    efficiency = jnp.asarray(r_eff, dtype)
    rest = log_ratios.shape[1:]
    if efficiency.shape not in ((), rest):
        raise core.bad_value("psis", "r_eff", efficiency, f"a number or an array of shape {rest}")
    size = log_ratios.shape[0]
    return _psis(log_ratios.astype(dtype), jnp.broadcast_to(efficiency, rest), _room(size, r_eff))


def psis_threshold(samples: int) -> float:
    """The largest k with which so many samples give a reliable average: `min(1 - 1 / log10(samples), 0.7)`.

    >>> round(psis_threshold(4000), 3), round(psis_threshold(100), 3)
    (0.7, 0.5)

    Source: Vehtari et al. (2024), the minimal sample size for reliable Pareto-smoothed estimates.
    """
    return min(1 - 1 / math.log10(samples), 0.7) if samples > 1 else -math.inf


def _room(size: int, r_eff: Any) -> int:
    """An upper bound on the length of the tail that is known when the program is compiled."""
    bound = math.ceil(size / 5)
    if not isinstance(r_eff, jax.core.Tracer):
        least = float(jnp.min(jnp.asarray(r_eff)))
        if least > 0:
            # To the next power of two, so that similar efficiencies share one program.
            bound = min(bound, 1 << math.ceil(3 * math.sqrt(size / least)).bit_length())
    return min(bound, size - 1)


@partial(jax.jit, static_argnums=2)
def _psis(log_ratios: jax.Array, r_eff: jax.Array, room: int) -> Psis:
    size, *rest = log_ratios.shape
    columns = log_ratios.reshape(size, -1).T
    # One program for a few series at a time: the fit evaluates (grid, tail) numbers for each.
    at_once = max(1, 2**22 // (max(room, 1) * (30 + math.isqrt(room))))
    weights, k = chains.in_batches(partial(_smooth, room=room), (columns, r_eff.reshape(-1)), at_once)
    return Psis(weights.T.reshape(log_ratios.shape), k.reshape(rest))


def _smooth(log_ratios: jax.Array, r_eff: jax.Array, room: int) -> tuple[jax.Array, jax.Array]:
    """Log weights and k of one vector of log ratios; at most `room` of them belong to the tail."""
    size = log_ratios.size
    dtype = log_ratios.dtype
    x = log_ratios - jnp.max(log_ratios)
    smooth, k = x, jnp.asarray(jnp.inf, dtype)
    if room >= _MIN_TAIL:
        order = jnp.argsort(x)[size - room - 1 :]
        largest = x[order]
        wanted = jnp.ceil(jnp.minimum(size / 5, 3 * jnp.sqrt(size / r_eff))).astype(int)
        cut = jnp.maximum(largest[room - jnp.clip(wanted, 0, room)], math.log(jnp.finfo(dtype).tiny))
        in_tail = largest > cut
        length = jnp.sum(in_tail)
        # exp(x) - exp(cut) in units of exp(cut), without cancellation, and then in units of the largest.
        excess = jnp.where(in_tail, jnp.expm1(largest - cut), 0)
        k, scale = _fit(excess / excess[-1], in_tail, length)
        place = (jnp.arange(room + 1) - (room + 1 - length)).astype(dtype)
        probability = jnp.where(in_tail, (place + 0.5) / length.astype(dtype), 0.5)
        fitted = cut + jnp.log1p(excess[-1] * scale * _standard_quantile(probability, k))
        usable = (length >= _MIN_TAIL) & jnp.isfinite(k)
        smooth = x.at[order].set(jnp.where(in_tail & usable, jnp.minimum(fitted, 0), largest), unique_indices=True)
        k = jnp.where(length >= _MIN_TAIL, k, jnp.inf)
    k = jnp.where(jnp.min(log_ratios) < jnp.max(log_ratios), k, -jnp.inf)
    broken = jnp.isnan(x).any()
    return smooth - jax.nn.logsumexp(smooth), jnp.where(broken, jnp.nan, k)


def _fit(excess: jax.Array, valid: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shape and scale of a generalised Pareto distribution: Zhang and Stephens' posterior mean on a grid.

    Args:
      excess: (room,), ascending, the last `length` entries valid and the last of them 1.
      valid: (room,), which entries count.
      length: (), how many.

    Returns:
      k, drawn towards 0.5 by the weight of ten observations, and the scale.
    """
    dtype = excess.dtype
    room = excess.size
    count = length.astype(dtype)
    grid = (30 + jnp.sqrt(count).astype(int)).astype(dtype)
    i = jnp.arange(1, 31 + math.isqrt(room), dtype=dtype)
    used = i <= grid
    quarter = (count / 4 + 0.5).astype(int) - 1
    lower_quartile = excess[jnp.clip(room - length + quarter, 0, room - 1)]
    b = (1 - jnp.sqrt(grid / (i - 0.5))) / (3 * lower_quartile) + 1

    def shape(b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(valid, jnp.log1p(-b * excess), 0)) / count

    k = jax.vmap(shape)(b)
    log_likelihood = jnp.where(used, count * (jnp.log(-b / k) - k - 1), -jnp.inf)
    weights = jax.nn.softmax(log_likelihood)
    weights = jnp.where(weights >= _NEGLIGIBLE, weights, 0)
    b_mean = jnp.sum(jnp.where(used, b, 0) * weights) / jnp.sum(weights)
    k_mean = shape(b_mean)
    return (count * k_mean + 5) / (count + 10), -k_mean / b_mean


def _standard_quantile(probability: jax.Array, k: jax.Array) -> jax.Array:
    """Quantile of the generalised Pareto distribution with scale 1, by expm1 so that k = 0 is not special."""
    exponent = -jnp.log1p(-probability)
    near_zero = jnp.abs(k) < jnp.finfo(k.dtype).eps
    safe = jnp.where(near_zero, 1, k)
    return jnp.where(near_zero, exponent, jnp.expm1(safe * exponent) / safe)
