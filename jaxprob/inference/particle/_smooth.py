"""Particle smoothers: states given the whole series, as weighted particles of each time and as paths.

    p(x_0:T-1 | y) ~ p(x_{T-1} | y) prod_t B_t(x_{t+1}, dx_t),   B_t the law of the predecessor

Lines of descent are paths already, but few are left at early times; going back by the kernel renews them.
Source: Kitagawa (1996), for lines of descent and the fixed lag; Godsill, Doucet & West (2004); Olsson & Westerborn
(2017), "Efficient particle-based online smoothing in general hidden Markov models: the PaRIS algorithm".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.particle import _backward as backward
from jaxprob.inference.particle._arguments import as_feynman_kac
from jaxprob.inference.particle._backward import BackwardInfo, Link, take
from jaxprob.inference.smc import Population
from jaxprob.inference.smc._devices import as_mesh, over_devices
from jaxprob.inference.smc._population import weighted_moments
from jaxprob.inference.smc._resampling import shares

METHODS = ("backward", "rejection", "mcmc", "paris", "genealogy", "fixed_lag")


@core.pytree
class Smoothed:
    """States given the whole series.

    Where `failed_at` is not -1 the series is impossible: means are NaN, and trajectories mean nothing.

    Attributes:
      trajectories: pytree (draw, time, ...), equally weighted; with a fixed lag each time is drawn by itself, so that
        only the laws of single times can be read from them.
      mean: pytree (time, ...), from all the particles that the method weights.
      variance: pytree (time, ...), entry by entry.
      log_likelihood: (), of the filter.
      failed_at: (), int32, as in `smc.Run`.
      info: `BackwardInfo` (time - 1,), or None for a method that goes along ancestors.
    """

    trajectories: Any
    mean: Any
    variance: Any
    log_likelihood: jax.Array
    failed_at: jax.Array
    info: Any


def smooth(
    key: core.Key,
    model: Any,
    ys: Any,
    *,
    particles: int = 1000,
    method: str = "backward",
    draws: int | None = None,
    lag: int | None = None,
    log_bound: Any = None,
    tries: int = 100,
    steps: int = 2,
    links: int = 2,
    resampler: smc.Resampler | None = None,
    devices: Any = None,
) -> Smoothed:
    """The states of a model given all that has been observed, by particles.

    Args:
      key: random key.
      model: a state-space model, or a `smc.FeynmanKac` (with `log_kernel`, but for "genealogy" and "fixed_lag").
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      particles: of the filter, N; memory is time times particles. `particle.additive` smooths sums without that.
      method: how predecessors are found. "backward": for every draw from all N, exact. "rejection": the same law, by a
        rejection sampler. "mcmc": some steps of a Markov chain from the ancestor. "paris": `links` predecessors for
        every particle, which all count. "genealogy": the ancestors, of which few are left at early times. "fixed_lag":
        the ancestors of what is seen up to `lag` times later, which is biased and has a small variance.
      draws: how many trajectories; `particles` by default.
      lag: for "fixed_lag", times after its own whose observations a state is given.
      log_bound: for "rejection", `(particle, time, datum) -> scalar` or a number, at least the log kernel from any
        state to that particle.
      tries: for "rejection", after how many what is left is drawn exactly.
      steps: for "mcmc", of the chain.
      links: for "paris", predecessors of a particle, 2 or more for a variance that grows no faster than time.
      resampler: of the filter, `smc.adaptive()` by default.
      devices: over which the particles of the filter are spread, as for `particle.filter`.

    Returns:
      `Smoothed`.

    Raises:
      ValueError: for an unknown method, a number that is not positive, an argument missing that the method needs, or a
        resampler without ancestors where the method needs them.
      TypeError: for no model.

    >>> walk = smc.FeynmanKac(
    ...     initial=lambda key, y: jax.random.normal(key),
    ...     log_initial_potential=lambda x, y: -0.5 * (y - x) ** 2,
    ...     transition=lambda key, x, t, y: x + jax.random.normal(key),
    ...     log_potential=lambda old, x, t, y: -0.5 * (y - x) ** 2,
    ...     log_kernel=lambda old, x, t, y: -0.5 * (x - old) ** 2 - 0.5 * (y - x) ** 2,
    ... )
    >>> found = smooth(jax.random.key(0), walk, jnp.array([1.0, 2.0, 3.0]), particles=200, draws=50)
    >>> found.trajectories.shape, found.mean.shape
    ((50, 3), (3,))

    Source: Godsill, Doucet & West (2004), algorithm 1.
    """
    name = "particle.smooth"
    if method not in METHODS:
        raise core.bad_value(name, "method", method, "one of " + ", ".join(map(repr, METHODS)))
    core.check_whole(name, particles=particles, draws=particles if draws is None else draws)
    core.check_whole(name, tries=tries, steps=steps, links=links)
    if method == "fixed_lag":
        core.check_whole(name, 0, lag=lag)
    if method == "rejection" and log_bound is None:
        raise core.bad_value(name, "log_bound", None, "a bound of the log kernel, which rejection goes by")
    model, data = as_feynman_kac(name, model, ys, kernel=method not in ("genealogy", "fixed_lag"))
    model, resampler = over_devices(model, resampler, as_mesh(name, devices, particles))
    for_filter, for_paths = core.random.split(core.as_key(key, name))
    found = smc.run(for_filter, model, data, particles, resampler=resampler, keep=_parts)
    ancestors = found.info.ancestors
    if ancestors is None and method in ("mcmc", "genealogy", "fixed_lag"):
        raise core.bad_value(name, "resampler", "one that copies no particles", f"ancestors, for {method!r}")
    states, log_weights = found.kept
    count = particles if draws is None else draws
    if method == "fixed_lag":
        index, weights = _fixed_lag(for_paths, log_weights, jnp.asarray(ancestors), lag or 0, count)
        info = None
    elif method in ("genealogy", "paris"):
        index, weights, info = _linked(for_paths, model, data, found, count, links if method == "paris" else None)
    else:
        bound = log_bound if callable(log_bound) else lambda particle, time, datum: log_bound
        how = {"rejection": backward.rejection(bound, tries), "mcmc": backward.markov(steps)}.get(method)
        index, info = paths(for_paths, model, data, found.kept, ancestors, count, how or backward.exact())
        counts = jax.vmap(lambda row: jnp.zeros((particles,), log_weights.dtype).at[row].add(1))(index)
        weights = counts / count
    trajectories = jax.tree.map(lambda leaf: jnp.swapaxes(jax.vmap(lambda x, i: x[i])(leaf, index), 0, 1), states)
    weights = jnp.where(found.failed_at < 0, weights, jnp.nan)
    mean, variance = jax.vmap(weighted_moments)(states, weights)
    return Smoothed(trajectories, mean, variance, found.log_likelihood, found.failed_at, info)


def _parts(population: Population) -> tuple[Any, jax.Array]:
    return population.particles, population.log_weights


def links_of(data: Any, kept: Any) -> Link:
    """The pairs of neighbouring times of a run that kept particles and their log weights, time - 1 of them leading."""
    states, log_weights = kept
    times = jnp.arange(1, log_weights.shape[0], dtype=jnp.int32)
    return Link(take(states, slice(None, -1)), log_weights[:-1], times, take(data, slice(1, None)))


def paths(
    key: core.Key, model: smc.FeynmanKac, data: Any, kept: Any, ancestors: Any, draws: int, how: backward.Back
) -> tuple[jax.Array, BackwardInfo]:
    """Indices (time, draw) of independent paths back, and what happened between times."""
    states, log_weights = kept
    for_last, for_steps = core.random.split(key)
    last = backward.one_of(for_last, log_weights[-1], (draws,))
    later = take(states, slice(1, None))

    def back(index: jax.Array, x: Any) -> tuple[jax.Array, Any]:
        link, targets, parents = x
        known = None if parents is None else parents[index]
        index, info = how(core.fold(for_steps, link.time), model, link, take(targets, index), known)
        return index, (index, info)

    xs = links_of(data, kept), later, None if ancestors is None else ancestors[1:]
    _, (before, info) = scan.scan(back, last, xs, reverse=True)
    return jnp.concatenate([before, jnp.expand_dims(last, 0)]), info


def _linked(
    key: core.Key, model: smc.FeynmanKac, data: Any, found: smc.Run, draws: int, links: int | None
) -> tuple[jax.Array, jax.Array, Any]:
    """Paths (time, draw) and weights (time, particle) along a few predecessors of every particle, or its ancestor."""
    states, log_weights = found.kept
    number = log_weights.shape[1]
    for_last, for_steps = core.random.split(key)
    last = backward.one_of(for_last, log_weights[-1], (draws,)), shares(log_weights[-1], 1)

    def back(carry: Any, x: Any) -> Any:
        (index, weights), (link, targets, parents) = carry, x
        for_links, for_choice = core.random.split(core.fold(for_steps, link.time))
        if links is None:
            before, chosen = jnp.expand_dims(parents, 1), jnp.zeros((draws,), jnp.int32)
        else:
            # All predecessors of a particle come from the same probabilities, which are computed once.
            before = jax.vmap(lambda key, target: predecessors(key, model, link, target, links))(
                core.chain_keys(for_links, jnp.arange(number)), targets
            )
            chosen = core.random.randint(for_choice, (draws,), 0, links, jnp.int32)
        index = before[index, chosen]
        given = jnp.broadcast_to(jnp.expand_dims(weights / before.shape[1], 1), before.shape)
        weights = jnp.zeros_like(weights).at[before].add(given)
        return (index, weights), (index, weights)

    xs = (
        links_of(data, found.kept),
        take(states, slice(1, None)),
        None if links else jnp.asarray(found.info.ancestors)[1:],
    )
    _, early = scan.scan(back, last, xs, reverse=True)
    index, weights = (jnp.concatenate([e, jnp.expand_dims(o, 0)]) for e, o in zip(early, last, strict=True))
    return index, weights, None


def predecessors(key: core.Key, model: smc.FeynmanKac, link: Link, target: Any, number: int) -> jax.Array:
    """Independent exact draws (number,) of the predecessor of a target."""
    return backward.one_of(key, backward.log_probabilities(model, link, target), (number,))


def _fixed_lag(
    key: core.Key, log_weights: jax.Array, ancestors: jax.Array, lag: int, draws: int
) -> tuple[jax.Array, jax.Array]:
    """Draws (time, draw) and weights (time, particle) of each time, given the observations up to a lag after it."""
    steps = log_weights.shape[0]
    lag = min(lag, steps - 1)

    def of_time(time: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = jnp.minimum(time + lag, steps - 1)

        def back(weights: jax.Array, step: jax.Array) -> jax.Array:
            moved = jnp.zeros_like(weights).at[ancestors[end - step]].add(weights)
            return jnp.where(end - step > time, moved, weights)

        weights = scan.repeat(back, shares(log_weights[end], 1), lag)
        return backward.one_of(core.fold(key, time), jnp.log(weights), (draws,)), weights

    return jax.vmap(of_time)(jnp.arange(steps))
