"""Have the chains converged, and how much are their draws worth? R-hat, effective sample size, E-BFMI.

Every function takes draws of shape (chain, draw, ...), works on each trailing entry by itself and returns an array of
the trailing shape, in the dtype of the draws (float32 for anything shorter). What cannot be computed is NaN, never an
exception: fewer than 4 draws in a chain, a draw that is not finite, draws that are all equal.

Source: Vehtari et al. (2021), "Rank-normalization, folding, and localization", Bayesian Analysis 16(2); Margossian et
al. (2024), "Nested R-hat", Bayesian Analysis; Betancourt (2016), arXiv:1604.00695.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.analysis import _chains as chains


def r_hat(x: Any) -> jax.Array:
    """Rank-normalised split R-hat: the larger of the one for location (bulk) and the one for scale (folded).

    Close to 1 when the chains, each cut into halves, look alike; above 1.01 they have not mixed. A single chain is
    compared with itself, half against half, which can show a drift and nothing else.

    Args:
      x: (chain, draw, ...).

    Returns:
      (...); inf where every half chain is constant but they differ; NaN as in the module's description.

    Raises:
      ValueError: if `x` has fewer than two axes.

    >>> x = jax.random.normal(jax.random.key(0), (4, 1000))
    >>> bool(r_hat(x) < 1.01), bool(r_hat(x + 3 * jnp.arange(4.0)[:, None]) > 1.5)
    (True, True)

    Source: Vehtari et al. (2021), rank normalisation and folding.
    """
    return _r_hat(chains.prepare("r_hat", x))


def nested_r_hat(x: Any, superchains: int | Sequence[int] | np.ndarray) -> jax.Array:
    """Nested R-hat, for many short chains: compares groups of chains that started from the same point.

        nR = sqrt(1 + B / W),  B = var of superchain means,  W = mean over superchains of
        (variance of chain means inside + mean variance inside the chains)

    With chains of one draw the second part of W is 0; with superchains of one chain the first part is 0, and what is
    left is plain R-hat, neither split nor rank-normalised.

    Args:
      x: (chain, draw, ...).
      superchains: number of superchains (consecutive chains form one), or the superchain of each chain, (chain,).
        All must have the same number of chains.

    Returns:
      (...); NaN for a draw that is not finite or draws that are all equal.

    Raises:
      ValueError: if the chains do not fall into at least two superchains of equal size, or if superchains consist of
        one chain with one draw.

    >>> x = jax.random.normal(jax.random.key(0), (64, 5))
    >>> bool(nested_r_hat(x, 4) < 1.1)
    True

    Source: Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024).
    """
    x = chains.prepare("nested_r_hat", x)
    number = x.shape[0]
    if isinstance(superchains, int):
        if superchains < 2 or number % superchains:
            raise core.bad_value(
                "nested_r_hat", "superchains", superchains, f"2 or more, and a divisor of the {number} chains"
            )
        order, count = np.arange(number), superchains
    else:
        labels = np.asarray(superchains)
        _, sizes = np.unique(labels, return_counts=True)
        count = len(sizes)
        if labels.shape != (number,) or count < 2 or len(set(sizes)) != 1:
            raise core.bad_value(
                "nested_r_hat",
                "superchains",
                f"labels of shape {labels.shape} in groups of {sizes.tolist()}",
                f"{number} labels that make at least two groups of equal size",
            )
        order = np.argsort(labels, kind="stable")
    if number == count and x.shape[1] == 1:
        raise core.bad_value(
            "nested_r_hat",
            "x",
            x,
            "more than one draw in a superchain",
            "Use several chains to a superchain or several draws to a chain",
        )
    return _nested_r_hat(x[order], count)


def effective_sample_size(x: Any) -> jax.Array:
    """Bulk effective sample size: how many independent draws locate the centre of the distribution as well.

    The effective sample size of the mean of rank-normalised split chains; it exists for heavy tails too. It exceeds
    the number of draws when they are antithetic, up to `n log10(n)`, and draws the chains' disagreement down to about
    the number of chains.

    Args:
      x: (chain, draw, ...).

    Returns:
      (...); NaN as in the module's description.

    Raises:
      ValueError: if `x` has fewer than two axes.

    >>> x = jax.random.normal(jax.random.key(0), (4, 1000))
    >>> bool(effective_sample_size(x) > 3000)
    True

    Source: Vehtari et al. (2021); Geyer (1992), "Practical Markov chain Monte Carlo", Statistical Science 7(4).
    """
    return _effective_sample_size(chains.prepare("effective_sample_size", x))


def tail_effective_sample_size(x: Any) -> jax.Array:
    """Tail effective sample size: the smaller of those of the 5 % and 95 % quantiles.

    For a discrete quantity whose quantile takes in every draw, that quantile counts as known: it is worth all draws.

    Args:
      x: (chain, draw, ...).

    Returns:
      (...); NaN as in the module's description.

    Raises:
      ValueError: if `x` has fewer than two axes.

    >>> x = jax.random.normal(jax.random.key(0), (4, 1000))
    >>> bool(tail_effective_sample_size(x) > 3000)
    True

    Source: Vehtari et al. (2021), efficiency of quantiles.
    """
    return _tail_effective_sample_size(chains.prepare("tail_effective_sample_size", x))


def e_bfmi(energy: Any) -> jax.Array:
    """Estimated Bayesian fraction of missing information of each chain of a Hamiltonian sampler.

        E-BFMI = mean((E_t - E_{t-1})^2) / var(E)

    Below about 0.3 the momentum's resampling moves the energy too little to explore its distribution in the time
    given, and heavy tails are cut off.

    Args:
      energy: (chain, draw, ...), the Hamiltonian at each draw.

    Returns:
      (chain, ...); NaN for fewer than 4 draws, an energy that is not finite, or a chain whose energy is constant.

    Raises:
      ValueError: if `energy` has fewer than two axes.

    >>> float(e_bfmi(jnp.array([[0.0, 1.0, 0.0, 2.0, 2.0]]))[0])  # 6 / 4 over 1
    1.5

    Source: Betancourt (2016), "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo".
    """
    energy = chains.prepare("e_bfmi", energy)
    return _e_bfmi(jnp.moveaxis(energy, 0, -1)[None])


@jax.jit
def _r_hat(x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        scores = chains.bulk_and_folded_scores(chains.split(x))
        return chains.where_defined(x, jnp.max(jax.vmap(chains.r_hat)(scores)))

    return chains.over_quantities(one, x)


@jax.jit
def _effective_sample_size(x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        scores = chains.normal_scores(chains.ranks(chains.split(x)))
        return chains.where_defined(x, chains.ess(scores))

    return chains.over_quantities(one, x)


@jax.jit
def _tail_effective_sample_size(x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        entries = chains.ordered(x)
        tails = jnp.stack([chains.split(chains.below_quantile(x, entries, p)) for p in (0.05, 0.95)])
        return chains.where_defined(x, jnp.min(chains.or_all_draws(jax.vmap(chains.ess)(tails), tails)))

    return chains.over_quantities(one, x)


@jax.jit
def _e_bfmi(energy: jax.Array) -> jax.Array:
    """Energies (1, draw, ..., chain); gives (chain, ...)."""

    def one(energy: jax.Array) -> jax.Array:
        deviations, scale, _ = chains.deviations_and_scale(energy)
        steps = jnp.diff(energy[0]) / jnp.where(scale > 0, scale, 1)
        draws = energy.shape[1]
        ratio = jnp.mean(steps**2) * (draws - 1) / jnp.sum(deviations**2)
        return chains.where_defined(energy, ratio)

    result = chains.over_quantities(one, energy)
    return jnp.moveaxis(result, -1, 0)


@partial(jax.jit, static_argnums=1)
def _nested_r_hat(x: jax.Array, count: int) -> jax.Array:
    number, draws, *rest = x.shape

    def one(x: jax.Array) -> jax.Array:
        within, offsets, _ = chains.centre(x)
        size = number // count
        variance = jnp.sum(within**2) / (number * max(draws - 1, 1))
        groups = offsets.reshape(count, size)
        inside = jnp.mean(jnp.var(groups, axis=1, ddof=1)) if size > 1 else 0
        between = jnp.var(jnp.mean(groups, axis=1), ddof=1)
        return chains.where_defined(x, jnp.sqrt(1 + between / (inside + variance)))

    if x.size == 0:
        return jnp.full(rest, jnp.nan, x.dtype)
    return jax.vmap(one, in_axes=2)(x.reshape(number, draws, -1)).reshape(rest)
