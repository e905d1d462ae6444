"""Sums over times of functions of neighbouring states, smoothed while the filter runs: memory does not grow with time.

    S_t = s_0(x_0) + sum_{r <= t} s_r(x_{r-1}, x_r),   tau_t^i = E[S_t | x_t = x_t^i] under the law of predecessors

`tau_t^i` is the mean of `tau_{t-1}^j + s_t(x_{t-1}^j, x_t^i)` over predecessors j: over a few that are drawn, at a cost
of N^2 densities all the same unless a bound is known, or over all of them.
Source: Olsson & Westerborn (2017), "Efficient particle-based online smoothing in general hidden Markov models: the
PaRIS algorithm"; Del Moral, Doucet & Singh (2010), "Forward smoothing using sequential Monte Carlo", for the mean over
all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.particle import _backward as backward
from jaxprob.inference.particle._arguments import as_feynman_kac
from jaxprob.inference.particle._backward import Link, take
from jaxprob.inference.smc._resampling import shares


class AdditiveState(NamedTuple):
    """A particle filter with a sum for each particle.

    Attributes:
      filter: `smc.ParticleState`.
      sums: pytree (particle, ...), means of the sum so far, given the particle.
      log_likelihood: (), of the data so far.
      failed_at: (), int32, as in `smc.Run`.
    """

    filter: smc.ParticleState
    sums: Any
    log_likelihood: jax.Array
    failed_at: jax.Array

    @property
    def mean(self) -> Any:
        """Pytree, the mean of the sum given the data so far; NaN where the filter failed."""
        weights = jnp.where(self.failed_at < 0, self.filter.population.weights, jnp.nan)
        return jax.tree.map(lambda leaf: _mean(weights, leaf), self.sums)


def additive_init(
    key: core.Key, model: smc.FeynmanKac, datum: Any, initial_function: Callable[..., Any], particles: int
) -> AdditiveState:
    """Time 0: particles, their weights and `initial_function(particle, datum)` of each."""
    state, info = smc.begin(core.as_key(key, "particle.additive_init"), model, datum, particles)
    sums = jax.vmap(lambda particle: initial_function(particle, datum))(state.population.particles)
    failed = jnp.where(jnp.isfinite(info.log_increment), -1, 0).astype(jnp.int32)
    return AdditiveState(state, jax.tree.map(core.as_float, sums), info.log_increment, failed)


def additive_step(
    key: core.Key,
    model: smc.FeynmanKac,
    state: AdditiveState,
    datum: Any,
    function: Callable[..., Any],
    *,
    links: int | None = 2,
    log_bound: Any = None,
    tries: int = 100,
    resampler: smc.Resampler | None = None,
) -> AdditiveState:
    """One time more; arguments are those of `additive`, and memory is that of one time."""
    for_filter, for_links = core.random.split(core.as_key(key, "particle.additive_step"))
    before = state.filter.population
    after, info = smc.step(for_filter, model, state.filter, datum, resampler)
    targets, number = after.population.particles, before.num_particles
    link = Link(before.particles, before.log_weights, after.time, datum)
    term = lambda index, target: jax.tree.map(  # noqa: E731
        lambda sum_, new: sum_[index] + core.as_float(new).astype(sum_.dtype),
        state.sums,
        function(take(before.particles, index), target, after.time, datum),
    )
    if links is None:

        def of_all(target: Any) -> Any:
            weights = shares(backward.log_probabilities(model, link, target), 1)
            terms = jax.vmap(term, (0, None))(jnp.arange(number), target)
            return jax.tree.map(lambda leaf: _mean(weights, leaf), terms)

        sums = jax.vmap(of_all)(targets)
    else:
        if log_bound is None:
            keys = core.chain_keys(for_links, jnp.arange(number))
            index = jax.vmap(
                lambda key, target: backward.one_of(key, backward.log_probabilities(model, link, target), (links,))
            )(keys, targets)
        else:
            bound = log_bound if callable(log_bound) else lambda particle, time, datum: log_bound
            repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, links, axis=0), targets)
            index, _ = backward.rejection(bound, tries)(for_links, model, link, repeated, None)
            index = index.reshape(number, links)
        terms = jax.vmap(jax.vmap(term, (0, None)))(index, targets)
        sums = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=1), terms)
    failed = (state.failed_at < 0) & ~jnp.isfinite(info.log_increment)
    failed_at = jnp.where(failed, after.time, state.failed_at)
    return AdditiveState(after, sums, state.log_likelihood + info.log_increment, failed_at)


def additive(
    key: core.Key,
    model: Any,
    ys: Any,
    function: Callable[..., Any],
    initial_function: Callable[..., Any],
    *,
    particles: int = 1000,
    links: int | None = 2,
    log_bound: Any = None,
    tries: int = 100,
    resampler: smc.Resampler | None = None,
) -> AdditiveState:
    """The smoothed mean of a sum over times, in one pass and in memory that does not grow with time.

    Args:
      key: random key; time t uses `fold_in(key, t)`.
      model: a state-space model, or a `smc.FeynmanKac` with `log_kernel`.
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      function: `(previous, particle, time, datum) -> pytree`, the terms of times 1, 2, ...
      initial_function: `(particle, datum) -> pytree`, the term of time 0, of the same structure and shapes.
      particles: of the filter, N.
      links: predecessors drawn for every particle, 2 or more for a variance that grows no faster than time; None for
        the mean over all N, without further noise.
      log_bound: as for `particle.smooth`: predecessors are then drawn by rejection, at about N densities a time.
      tries: after how many what is left is drawn exactly.
      resampler: of the filter, `smc.adaptive()` by default.

    Returns:
      `AdditiveState` after the last time, whose `mean` is the answer.

    Raises:
      ValueError: for a number that is not positive, or a model without `log_kernel`.

    >>> walk = smc.FeynmanKac(
    ...     initial=lambda key, y: jax.random.normal(key),
    ...     log_initial_potential=lambda x, y: -0.5 * (y - x) ** 2,
    ...     transition=lambda key, x, t, y: x + jax.random.normal(key),
    ...     log_potential=lambda old, x, t, y: -0.5 * (y - x) ** 2,
    ...     log_kernel=lambda old, x, t, y: -0.5 * (x - old) ** 2 - 0.5 * (y - x) ** 2,
    ... )
    >>> squares = lambda old, x, t, y: (x - old) ** 2
    >>> found = additive(jax.random.key(0), walk, jnp.array([1.0, 2.0]), squares, lambda x, y: 0.0, particles=100)
    >>> found.mean.shape
    ()

    Source: Olsson & Westerborn (2017), algorithm 2.
    """
    name = "particle.additive"
    core.check_whole(name, particles=particles, links=1 if links is None else links, tries=tries)
    model, data = as_feynman_kac(name, model, ys, kernel=True)
    key = core.as_key(key, name)
    first, rest = take(data, 0), take(data, slice(1, None))
    start = additive_init(core.fold(key, 0), model, first, initial_function, particles)

    def one(state: AdditiveState, datum: Any) -> tuple[AdditiveState, None]:
        at = core.fold(key, state.filter.time + 1)
        how = {"links": links, "log_bound": log_bound, "tries": tries, "resampler": resampler}
        return additive_step(at, model, state, datum, function, **how), None

    return scan.scan(one, start, rest)[0]


def _mean(weights: jax.Array, leaf: jax.Array) -> jax.Array:
    share = weights.reshape((-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
    return jnp.sum(jnp.where(share == 0, 0, share * leaf), axis=0)
