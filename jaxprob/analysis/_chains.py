"""The arithmetic of convergence diagnostics for one quantity, on arrays (chain, draw).

Everything here is written for one scalar quantity and mapped over the others by `over_quantities`. Moments are taken
relative to a draw, so that draws such as 1e6 + N(0, 1) work in float32 and constant chains have variance 0 exactly.

Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), "Rank-normalization, folding, and localization: an
improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16(2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri

from jaxprob import core

MIN_DRAWS = 4
"""Fewer draws than this in a chain cannot be split into halves that have a variance."""


def prepare(function: str, x: Any) -> jax.Array:
    """`x` as a floating array (chain, draw, ...), of at least 32 bits (R-hat and ESS mean nothing in bfloat16)."""
    x = core.as_float(x)
    if x.ndim < 2:
        raise core.bad_value(function, "x", x, "an array (chain, draw, ...)", "Write x[None] for a single chain")
    return x.astype(core.accumulator_dtype(x.dtype))


def over_quantities(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Maps `function`, from (chain, draw) to a scalar, over the trailing axes; NaN where draws are too few."""
    chains, draws, *rest = x.shape
    if x.size == 0 or draws < MIN_DRAWS:
        return jnp.full(rest, jnp.nan, x.dtype)
    return jax.vmap(function, in_axes=2)(x.reshape(chains, draws, -1)).reshape(rest)


def in_batches(function: Callable[..., Any], arguments: tuple[jax.Array, ...], at_once: int) -> Any:
    """Maps `function` over the leading axis of all arguments, at most `at_once` entries in memory at a time."""
    number = arguments[0].shape[0]
    batches = max(1, -(-number // at_once))
    if batches == 1:
        return jax.vmap(function)(*arguments)
    size = -(-number // batches)
    # The last entries are done again to fill the last batch, so that there is one loop and no remainder to compile.
    index = jnp.minimum(jnp.arange(batches * size), number - 1)
    cut = tuple(argument[index].reshape(batches, size, *argument.shape[1:]) for argument in arguments)
    results = lax.map(lambda batch: jax.vmap(function)(*batch), cut)
    return jax.tree.map(lambda leaf: leaf.reshape(batches * size, *leaf.shape[2:])[:number], results)


def defined(x: jax.Array) -> jax.Array:
    """Whether diagnostics of `x` mean anything: every draw finite, and not all of them equal."""
    return jnp.all(jnp.isfinite(x)) & (jnp.max(x) > jnp.min(x))


def where_defined(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, or NaN where `defined(x)` is false."""
    return jnp.where(defined(x), value, jnp.nan)


def split(x: jax.Array) -> jax.Array:
    """The first and the last halves of the chains as chains of their own: (2 chain, draw // 2).

    The middle draw of an odd number belongs to neither.
    """
    half = x.shape[1] // 2
    return jnp.concatenate([x[:, :half], x[:, -half:]], axis=0)


def centre(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deviations from the chain means (chain, draw), chain means less a reference (chain,), and the reference ().

    Everything is first taken relative to the chain's first draw: differences of neighbouring floats are exact, however
    large the offset. Should that draw be far out, the standard deviation is at least its distance / sqrt(draws), so
    that rounding stays small against it. (Subtracting a rounded mean and correcting it afterwards does not work: under
    jit XLA may sum the same numbers in two orders, and the correction then belongs to another mean.)
    """
    reference = x[:, :1]
    shifted = x - reference
    middle = jnp.mean(shifted, axis=1, keepdims=True)
    offsets = (reference - reference[:1]) + middle
    return shifted - middle, offsets[:, 0], reference[0, 0]


def deviations_and_scale(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deviations from the mean of all draws divided by the largest of them, that scale, and the mean.

    The scale keeps squares and fourth powers inside the range of float32.
    """
    within, offsets, reference = centre(x)
    middle = jnp.mean(offsets)
    deviations = within + (offsets - middle)[:, None]
    scale = jnp.max(jnp.abs(deviations))
    return deviations / jnp.where(scale > 0, scale, 1), scale, reference + middle


def _reorder(key: jax.Array) -> jax.Array:
    """Between the bits of a float, as an integer, and an integer with the order of the floats; its own inverse."""
    return key ^ ((key >> (jnp.iinfo(key.dtype).bits - 1)) & jnp.iinfo(key.dtype).max)


def _integers(x: jax.Array) -> jax.Array:
    """Integers in the same order as `x`, as a vector; XLA sorts them five times faster than floats on CPU."""
    integer = {32: jnp.int32, 64: jnp.int64}[jnp.finfo(x.dtype).bits]
    flat = jnp.where(x == 0, 0, x).reshape(-1)  # -0 and 0 have different bits
    return _reorder(lax.bitcast_convert_type(flat, integer))


def ordered(x: jax.Array) -> jax.Array:
    """The entries of `x` in ascending order, as a vector; NaN goes to an end."""
    return lax.bitcast_convert_type(_reorder(jnp.sort(_integers(x))), x.dtype)


def ranks(x: jax.Array) -> jax.Array:
    """Ranks 1..size of the entries of `x` among all of them; ties share their average."""
    keys = _integers(x)
    below, not_above = jnp.searchsorted(jnp.sort(keys), jnp.stack([keys, keys + 1]))
    return ((below + not_above + 1).astype(x.dtype) / 2).reshape(x.shape)


def normal_scores(rank: jax.Array) -> jax.Array:
    """Normal quantiles of (rank - 3/8) / (size + 1/4), by the smaller tail so that both keep their precision."""
    size = rank.size
    upper = rank > (size + 1) / 2
    lower_rank = jnp.where(upper, size + 1 - rank, rank)
    score = ndtri((lower_rank - 3 / 8) / (size + 1 / 4))
    return jnp.where(upper, -score, score)


def order_statistic_below(size: int, probability: float) -> tuple[int, float]:
    """The index k and fraction f such that the type-7 quantile is `(1 - f) x[k] + f x[k + 1]` of the sorted `x`."""
    place = (size - 1) * probability
    # A probability such as 0.05 is not a binary fraction: a place that is meant to be whole may come out just below.
    nearest = round(place)
    if abs(place - nearest) < 1e-9 * size:
        return nearest, 0.0
    return math.floor(place), place - math.floor(place)


def quantile(entries: jax.Array, probability: float) -> jax.Array:
    """Type-7 quantile (the default of R and NumPy) of a sorted vector."""
    index, fraction = order_statistic_below(entries.size, probability)
    low = entries[index]
    return low if fraction == 0 else low + fraction * (entries[index + 1] - low)


def below_quantile(x: jax.Array, entries: jax.Array, probability: float) -> jax.Array:
    """Which entries of `x` are at most its quantile, as 0 and 1.

    No entry lies strictly between neighbouring order statistics, so the comparison is with the lower one, and the
    rounding of an interpolated quantile cannot matter.
    """
    return (x <= entries[order_statistic_below(entries.size, probability)[0]]).astype(x.dtype)


def r_hat(x: jax.Array) -> jax.Array:
    """R-hat of the chains as they are: inf if each is constant and they differ, NaN if all draws are equal."""
    draws = x.shape[1]
    deviations, offsets, _ = centre(x)
    variances = jnp.sum(deviations**2, axis=1) / (draws - 1)
    between = jnp.var(offsets, ddof=1) if x.shape[0] > 1 else jnp.zeros_like(variances[0])
    return jnp.sqrt((draws - 1) / draws + between / jnp.mean(variances))


def bulk_and_folded_scores(halves: jax.Array) -> jax.Array:
    """Normal scores of split chains, and of their distance from the median: (2, 2 chain, draw // 2)."""
    entries = ordered(halves)
    # The distance is doubled, so that the two middle entries are equally far from the median: its rounding would hide
    # that tie.
    low, high = entries[(entries.size - 1) // 2], entries[entries.size // 2]
    folded = jnp.abs((halves - low) + (halves - high))
    return jax.vmap(lambda x: normal_scores(ranks(x)))(jnp.stack([halves, folded]))


def _mean_autocovariance(deviations: jax.Array) -> jax.Array:
    """Autocovariance at lags 0 to draw - 1, divided by draw, averaged over chains."""
    draws = deviations.shape[1]
    length = 1 << (2 * draws - 1).bit_length()  # zero padding, so that the circular correlation does not wrap around
    transform = jnp.fft.rfft(deviations, n=length, axis=1)
    power = jnp.mean(jnp.real(transform) ** 2 + jnp.imag(transform) ** 2, axis=0)
    return jnp.fft.irfft(power, n=length)[:draws] / draws


def ess(x: jax.Array) -> jax.Array:
    """Effective sample size of the mean of the chains as they are, by Geyer's initial monotone positive sequence.

    The sum of autocorrelations runs over pairs of lags (2j, 2j + 1) while the pairs stay positive, each pair at most
    the one before it; the even lag after the last pair is added if it is positive. The result is at most
    `size * log10(size)`, which antithetic chains reach.
    """
    chains, draws = x.shape
    deviations, offsets, _ = centre(x)
    scale = jnp.maximum(jnp.max(jnp.abs(deviations)), jnp.max(jnp.abs(offsets)))
    scale = jnp.where(scale > 0, scale, 1)
    covariance = _mean_autocovariance(deviations / scale)
    within = covariance[0] * (draws / (draws - 1))
    total = covariance[0] + (jnp.var(offsets / scale, ddof=1) if chains > 1 else 0)

    last = max(0, (draws - 3) // 2)  # the last pair of lags that may be looked at
    correlation = 1 - (within - covariance[: 2 * last + 2]) / total
    even, odd = correlation[0::2].at[0].set(1), correlation[1::2]

    pairs = even + odd
    index = jnp.arange(last + 1)
    end = jnp.argmax((pairs <= 0) | (index == last))  # the first pair that is not counted whole
    remainder = jnp.where((even > 0) | (pairs >= 0), even, 0)[end]
    tau = 2 * jnp.sum(jnp.where(index < end, lax.cummin(pairs), 0)) + remainder - 1
    size = chains * draws
    result = size / jnp.maximum(tau, 1 / math.log10(size))
    return jnp.where(total > 0, result, jnp.nan)


def or_all_draws(ess: jax.Array, indicators: jax.Array) -> jax.Array:
    """`ess` of indicators (..., chain, draw) of 0 and 1, or the number of draws where an indicator does not vary."""
    axes = (-2, -1)
    varies = jnp.max(indicators, axis=axes) > jnp.min(indicators, axis=axes)
    return jnp.where(varies, ess, indicators.shape[-1] * indicators.shape[-2])
