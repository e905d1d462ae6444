"""Particle Gibbs: a Markov chain over whole trajectories of a state-space model.

A conditional particle filter draws other paths beside the current one, and one of them is chosen. Without a new
ancestor for the reference, or a pass back, the early part of a path of a long series would never move.

Source: Andrieu, Doucet & Holenstein (2010); Lindsten, Jordan & Schoen (2014), "Particle Gibbs with ancestor sampling";
Whiteley (2010), discussion of the first, for the pass back; Chopin & Singh (2015), "On particle Gibbs sampling".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.particle import _backward as backward
from jaxprob.inference.particle._arguments import as_feynman_kac
from jaxprob.inference.particle._conditional import conditional_run
from jaxprob.inference.particle._genealogy import trace
from jaxprob.inference.particle._smooth import paths

METHODS = ("ancestor_sampling", "backward", "genealogy")


class GibbsState(NamedTuple):
    """Where a chain of trajectories is.

    Attributes:
      position: pytree (time, ...), a trajectory.
    """

    position: Any


class GibbsInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      renewed: share of the times at which the trajectory is not the old one.
      effective_sample_size: the least of all times.
    """

    renewed: jax.Array
    effective_sample_size: jax.Array


def gibbs(
    model: Any,
    ys: Any,
    *,
    particles: int = 50,
    method: str = "backward",
    scheme: smc.Scheme | None = None,
    threshold: Any = 1.0,
) -> core.Algorithm:
    """Particle Gibbs on the states of a model given observations.

    Every step leaves `p(x_0:T-1 | y)` invariant, whatever the number of particles.

    Args:
      model: a state-space model, or a `smc.FeynmanKac`; its parameters may be tracers, so that a step can stand between
        those of other kernels: `gibbs(model_of(parameters), ys).step(key, GibbsState(states))`.
      ys: (time, ...), NaN where missing; for a `FeynmanKac` its data.
      particles: 2 or more, the reference included.
      method: "backward", a pass back that draws predecessors exactly, with any scheme. "ancestor_sampling": a new
        ancestor of the reference at every time, for multinomial resampling at every time alone. "genealogy": neither.
      scheme: of resampling, one that `smc.conditional` knows; `smc.systematic` by default, or `smc.multinomial` with
        ancestor sampling.
      threshold: share of the particles in [0, 1] below which the effective sample size leads to resampling.

    Returns:
      Algorithm whose position is a trajectory (time, ...) or None, for one drawn by a particle filter of as many
      particles; its state is a `GibbsState`, its info a `GibbsInfo`.

    Raises:
      ValueError: for an unknown method, fewer than two particles, a scheme or threshold that does not go with the
        method, or a model without `log_kernel` where it is needed.

    >>> walk = smc.FeynmanKac(
    ...     initial=lambda key, y: jax.random.normal(key),
    ...     log_initial_potential=lambda x, y: -0.5 * (y - x) ** 2,
    ...     transition=lambda key, x, t, y: x + jax.random.normal(key),
    ...     log_potential=lambda old, x, t, y: -0.5 * (y - x) ** 2,
    ...     log_kernel=lambda old, x, t, y: -0.5 * (x - old) ** 2 - 0.5 * (y - x) ** 2,
    ... )
    >>> kernel = gibbs(walk, jnp.array([1.0, 2.0, 3.0]), particles=20)
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(None, jax.random.key(0)))
    >>> state.position.shape
    (3,)

    Source: Whiteley (2010); Lindsten, Jordan & Schoen (2014), algorithm 2.
    """
    name = "particle.gibbs"
    if method not in METHODS:
        raise core.bad_value(name, "method", method, "one of " + ", ".join(map(repr, METHODS)))
    core.check_whole(name, 2, particles=particles)
    sampled = method == "ancestor_sampling"
    if sampled and scheme not in (None, smc.multinomial):
        todo = "The others' ancestors must not depend on that of the reference; method='backward' takes any scheme"
        raise core.bad_value(name, "scheme", core.describe(scheme), "smc.multinomial with ancestor sampling", todo)
    always = core.is_number(threshold) and threshold == 1
    if sampled and not always:
        todo = "Use method='backward', which takes any"
        raise core.bad_value(name, "threshold", threshold, "1 with ancestor sampling", todo)
    model, data = as_feynman_kac(name, model, ys, kernel=method != "genealogy")
    rule = None
    if not sampled:
        conditional = smc.conditional(smc.systematic if scheme is None else scheme)
        rule = smc.always(conditional) if always else smc.adaptive(conditional, threshold)

    def choose(key: core.Key, particles_: Any, log_weights: jax.Array, ancestors: jax.Array) -> tuple[Any, jax.Array]:
        """A trajectory and its indices (time,)."""
        if method == "backward":
            index = paths(key, model, data, (particles_, log_weights), ancestors, 1, backward.exact())[0][:, 0]
        else:
            index = trace(ancestors, backward.one_of(key, log_weights[-1], (1,)))[:, 0]
        return jax.tree.map(lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, index), particles_), index

    def init(position: Any, key: core.Key) -> GibbsState:
        if position is not None:
            return GibbsState(jax.tree.map(jnp.asarray, position))
        for_filter, for_choice = core.random.split(core.as_key(key, name))
        keep = lambda population: (population.particles, population.log_weights)  # noqa: E731
        found = smc.run(for_filter, model, data, particles, keep=keep)
        states, log_weights = found.kept
        return GibbsState(choose(for_choice, states, log_weights, jnp.asarray(found.info.ancestors))[0])

    def step(key: core.Key, state: GibbsState) -> tuple[GibbsState, GibbsInfo]:
        for_filter, for_choice = core.random.split(core.as_key(key, name))
        found = conditional_run(for_filter, model, data, state.position, particles, rule)
        position, index = choose(for_choice, found.particles, found.log_weights, found.ancestors)
        ess = found.effective_sample_size
        return GibbsState(position), GibbsInfo(jnp.mean((index != 0).astype(ess.dtype)), jnp.min(ess))

    return core.Algorithm(init, step)
