"""Going back along a particle filter: which particle of a time each particle of the next one came from.

Given x_{t+1}, particle j of time t is its predecessor with probability proportional to `W_t^j m_{t+1}(x_{t+1} | x_t^j)
g_{t+1}(x_t^j, x_{t+1})`. Drawn exactly that costs N densities; by rejection or by a few steps of a Markov chain that
begins at the ancestor it costs a number that does not depend on N.

Source: Godsill, Doucet & West (2004), "Monte Carlo smoothing for nonlinear time series"; Douc, Garivier, Moulines &
Olsson (2011), for rejection; Bunch & Godsill (2013), "Improved particle approximations to the joint smoothing
distribution using Markov chain Monte Carlo"; Dau & Chopin (2023), "On backward smoothing algorithms".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.smc import FeynmanKac
from jaxprob.inference.smc._each import each
from jaxprob.inference.smc._feynman_kac import multiplied


class Link(NamedTuple):
    """Two neighbouring times of a particle filter.

    Attributes:
      particles: of the earlier time, leaves (particle, ...).
      log_weights: (particle,), of the earlier time.
      time: (), of the later one.
      datum: of the later one.
    """

    particles: Any
    log_weights: jax.Array
    time: jax.Array
    datum: Any


class BackwardInfo(NamedTuple):
    """What happened between two times, over all draws.

    Attributes:
      acceptance_rate: (), of the proposals of a rejection sampler or a Markov chain; 1 for exact draws.
      num_exact: (), int32, draws for which rejection gave up and all densities were computed.
      bound_exceeded: (), whether a density was above the bound, which makes the draws wrong.
    """

    acceptance_rate: jax.Array
    num_exact: jax.Array
    bound_exceeded: jax.Array


Back = Callable[[core.Key, FeynmanKac, Link, Any, Any], tuple[jax.Array, BackwardInfo]]


def take(tree: Any, index: Any) -> Any:
    """Entries of the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def log_kernels(model: FeynmanKac, link: Link, index: jax.Array, targets: Any) -> jax.Array:
    """Log kernel from particles `index` (draw,) to targets (draw, ...), one for each: (draw,)."""
    pairs = take(link.particles, index), targets
    values = each(model.log_kernel, None, index.shape[0], pairs, (link.time, link.datum))
    return values.astype(link.log_weights.dtype)


def log_probabilities(model: FeynmanKac, link: Link, target: Any) -> jax.Array:
    """Un-normalised log probabilities (particle,) of the predecessors of one target."""
    number = link.log_weights.shape[0]
    targets = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number, *jnp.shape(leaf))), target)
    kernels = each(model.log_kernel, None, number, (link.particles, targets), (link.time, link.datum))
    return multiplied(link.log_weights, kernels.astype(link.log_weights.dtype))


def one_of(key: core.Key, log_weights: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Independent draws of an index in proportion to weights, int32; never one of weight zero unless all are."""
    dtype = core.accumulator_dtype(log_weights.dtype)
    log_weights = log_weights.astype(dtype)
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    weights = jnp.where(jnp.isnan(weights), 0, weights)
    ends = jnp.cumsum(weights)
    index = jnp.searchsorted(ends, core.random.uniform(key, shape, dtype) * ends[-1], side="right").astype(jnp.int32)
    # A uniform number close to one may round to the total.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0], dtype=jnp.int32), 0))
    return jnp.minimum(index, last)


def exact() -> Back:
    """Every draw from the probabilities of all particles."""

    def back(key: core.Key, model: FeynmanKac, link: Link, targets: Any, ancestors: Any) -> Any:
        number = jax.tree.leaves(targets)[0].shape[0]
        keys = core.chain_keys(key, jnp.arange(number))
        index = jax.vmap(lambda key, target: one_of(key, log_probabilities(model, link, target)))(keys, targets)
        return index, BackwardInfo(jnp.ones((), link.log_weights.dtype), jnp.int32(number), jnp.zeros((), bool))

    return back


def rejection(log_bound: Callable[..., Any], tries: int) -> Back:
    """Draws by the weights alone, kept with probability `exp(log_kernel - log_bound)`; exact after so many tries.

    Args:
      log_bound: `(particle, time, datum) -> scalar`, at least the log kernel from anywhere to that particle.
      tries: of all draws together, those that are left are then drawn exactly, one by one.
    """

    def back(key: core.Key, model: FeynmanKac, link: Link, targets: Any, ancestors: Any) -> Any:
        number, dtype = jax.tree.leaves(targets)[0].shape[0], link.log_weights.dtype
        bounds = jax.vmap(lambda target: jnp.asarray(log_bound(target, link.time, link.datum), dtype))(targets)
        for_tries, for_rest = core.fold(key, 0), core.fold(key, 1)

        def attempt(carry: Any) -> Any:
            count, index, done, proposed, exceeded = carry
            for_index, for_uniform = core.random.split(core.fold(for_tries, count))
            new = one_of(for_index, link.log_weights, (number,))
            ratio = log_kernels(model, link, new, targets) - bounds
            keeps = ~done & (jnp.log(core.random.uniform(for_uniform, (number,), dtype)) < ratio)
            # A few roundings above a bound that is attained are no mistake.
            exceeded = exceeded | jnp.any(ratio > 64 * jnp.finfo(dtype).eps * (1 + jnp.abs(bounds)))
            return (
                count + 1,
                jnp.where(keeps, new, index),
                done | keeps,
                proposed + jnp.sum(~done, dtype=jnp.int32),
                exceeded,
            )

        none = jnp.zeros((number,), jnp.int32), jnp.zeros((number,), bool)
        start = jnp.int32(0), *none, jnp.int32(0), jnp.zeros((), bool)
        open_ = lambda carry: (carry[0] < tries) & ~jnp.all(carry[2])  # noqa: E731
        _, index, done, proposed, exceeded = core.while_loop(open_, attempt, start)
        accepted = jnp.sum(done, dtype=jnp.int32)

        def finish(carry: Any) -> Any:
            index, done = carry
            draw = jnp.argmin(done)
            logits = log_probabilities(model, link, take(targets, draw))
            return index.at[draw].set(one_of(core.fold(for_rest, draw), logits)), done.at[draw].set(True)

        index, _ = core.while_loop(lambda carry: ~jnp.all(carry[1]), finish, (index, done))
        rate = accepted.astype(dtype) / jnp.maximum(proposed, 1).astype(dtype)
        return index, BackwardInfo(rate, number - accepted, exceeded)

    return back


def markov(steps: int) -> Back:
    """Independent Metropolis-Hastings with the weights as proposal, begun at the ancestor of each target."""

    def back(key: core.Key, model: FeynmanKac, link: Link, targets: Any, ancestors: Any) -> Any:
        number, dtype = ancestors.shape[0], link.log_weights.dtype

        def move(carry: Any, step: jax.Array) -> Any:
            index, value, accepted = carry
            for_index, for_uniform = core.random.split(core.fold(key, step))
            new = one_of(for_index, link.log_weights, (number,))
            new_value = log_kernels(model, link, new, targets)
            goes = jnp.log(core.random.uniform(for_uniform, (number,), dtype)) < new_value - value
            index, value = jnp.where(goes, new, index), jnp.where(goes, new_value, value)
            return index, value, accepted + jnp.sum(goes, dtype=jnp.int32)

        start = ancestors, log_kernels(model, link, ancestors, targets), jnp.int32(0)
        index, _, accepted = core.fori_loop(0, steps, lambda step, carry: move(carry, step), start)
        rate = accepted.astype(dtype) / (steps * number)
        return index, BackwardInfo(rate, jnp.int32(0), jnp.zeros((), bool))

    return back
