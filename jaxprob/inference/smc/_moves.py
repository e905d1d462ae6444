"""Moves of a population by Markov chain Monte Carlo, with a metric and a step size learnt from the particles.

Source: Chopin (2002), "A sequential particle filter method for static models", for the covariance of the particles;
Buchholz, Chopin & Jacob (2021), "Adaptive tuning of Hamiltonian Monte Carlo within sequential Monte Carlo"; Dau &
Chopin (2022), "Waste-free sequential Monte Carlo".
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._hmc import hmc
from jaxprob.inference.mcmc._langevin import barker, mala
from jaxprob.inference.mcmc._metric import Metric, from_covariance
from jaxprob.inference.mcmc._numbers import known_count, known_number
from jaxprob.inference.mcmc._random_walk import random_walk_metropolis
from jaxprob.inference.smc._resampling import Scheme, shares

PER_SCALAR = 10  # particles for each scalar of a position from which all of the covariance is learnt

# Correlation with where they were from which particles count as free.
FREE = 0.1

# Moves that cannot free the last scalars have done enough where correlations have this mean square: it adds less than a
# fifth to the variance of a mean of particles, resampled where one half of them were effective.
FORGOTTEN = 0.09

# Trajectories of mixed lengths: with the metric of the particles every scalar has one period, and one length resonates.
HAMILTONIAN = functools.partial(hmc, num_integration_steps=4, jitter=0.5)

# The best acceptance rate of each kernel as dimensions grow, and its step there on a standard normal law: the factor
# and the power of the dimension.
_SCALING = {
    random_walk_metropolis: (0.234, 2.38, -1 / 2),
    mala: (0.574, 1.65, -1 / 6),
    barker: (0.574, 1.65, -1 / 6),
}
_HAMILTONIAN = (0.8, 1.0, -1 / 4)


class Move(NamedTuple):
    """How particles are moved at one temperature.

    Attributes:
      factory: `log_density -> Algorithm`.
      number: transitions of each particle, at most.
      fixed: whether they are never fewer.
      tunes_step_size: whether the factory is given a step size.
      tunes_metric: whether it is given an inverse mass matrix.
      acceptance: rate that the step size is adapted to.
      step_size: the first one, or None for one that goes by the dimension.
      chain: None, or the number of states of a chain, all of which are particles.
    """

    factory: Callable[..., core.Algorithm]
    number: int
    fixed: bool
    tunes_step_size: bool
    tunes_metric: bool
    acceptance: jax.Array
    step_size: jax.Array | None
    chain: int | None = None

    def first_step_size(self, size: int) -> jax.Array:
        """The step size to begin with for positions of `size` scalars; 1 where none is tuned."""
        if self.step_size is not None:
            return self.step_size
        _, factor, power = _scaling(self.factory)
        return jnp.asarray(factor * max(size, 1) ** power if self.tunes_step_size else 1.0)

    def check_number(self, function: str, number: int) -> None:
        """Raises a `ValueError` unless so many particles make two or more chains."""
        if self.chain is not None and (number % self.chain or number == self.chain):
            expected = f"a number that divides {number} particles into two or more chains"
            raise core.bad_value(function, "waste_free", self.chain, expected)


class Moved(NamedTuple):
    """Particles that were moved.

    Attributes:
      particles: pytree (particle, ...).
      step_size: (), adapted.
      acceptance_rate: (), mean over particles and transitions.
      number: (), int32, transitions of each particle.
      correlation: (), with where they were, the largest in size of any scalar of a position or its squared deviation;
        where moves went on until it was small, the least it was; of chains that of states half a chain apart.
    """

    particles: Any
    step_size: jax.Array
    acceptance_rate: jax.Array
    number: jax.Array
    correlation: jax.Array


def as_move(
    function: str,
    factory: Any,
    number: Any,
    most: Any,
    acceptance: Any,
    step_size: Any,
    chain: Any = None,
) -> Move:
    """Checks the arguments of a move; `chain` is the argument `waste_free` of a sampler."""
    metropolis.check_callable(function, move=factory)
    fixed = number is not None
    if chain is not None:
        core.check_whole(function, least=2, waste_free=chain)
        if fixed:
            todo = "A chain of waste_free states makes waste_free - 1 moves"
            raise core.bad_value(function, "moves", number, "None with waste_free", todo)
    number = known_count(function, "moves", number) if fixed else known_count(function, "max_moves", most)
    free = _free(factory)
    if step_size is not None:
        check_takes_step_size(function, factory, step_size)
        step_size = known_number(function, "step_size", step_size, lambda x: 0 < x < math.inf, "a positive number")
    acceptance = _scaling(factory)[0] if acceptance is None else acceptance
    rate = known_number(function, "acceptance", acceptance, lambda x: 0 < x < 1, "a rate between 0 and 1")
    return Move(factory, number, fixed, "step_size" in free, "inverse_mass_matrix" in free, rate, step_size, chain)


def check_takes_step_size(function: str, factory: Any, step_size: Any) -> None:
    """Raises a `ValueError` where a step size is given for a move that takes none."""
    if "step_size" not in _free(factory):
        todo = "Leave it out of the partial, or give it there alone"
        raise core.bad_value(function, "step_size", step_size, "None where the move takes none or has one", todo)


def _free(factory: Callable[..., Any]) -> set[str]:
    """The arguments of a factory that no `partial` has bound."""
    bound = set(factory.keywords) if isinstance(factory, functools.partial) else set()
    try:
        return set(inspect.signature(factory).parameters) - bound
    except (TypeError, ValueError):  # of builtins, which have no signature
        return set()


def _scaling(factory: Any) -> tuple[float, float, float]:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return _SCALING.get(factory, _HAMILTONIAN)


def metric_of(particles: Any, weights: jax.Array, number: int | None = None) -> Metric:
    """The metric of the covariance of weighted particles: all of it where they are many enough, or its diagonal.

    Args:
      particles: pytree (particle, ...).
      weights: (particle,), which sum to one.
      number: as how many the particles count; all of them by default.
    """
    vectors = jax.vmap(lambda particle: core.ravel(particle)[0])(particles)
    size = vectors.shape[1]
    dtype = core.accumulator_dtype(vectors.dtype)
    vectors, weights = vectors.astype(dtype), jnp.expand_dims(weights.astype(dtype), 1)
    # A particle that counts for nothing may lie anywhere.
    vectors = jnp.where(weights > 0, vectors, 0)
    centred = vectors - jnp.sum(weights * vectors, axis=0, keepdims=True)
    diagonal = from_covariance(jnp.sum(weights * centred**2, axis=0), Metric(jnp.ones((size,), dtype)))
    if (vectors.shape[0] if number is None else number) < PER_SCALAR * size:
        return diagonal
    covariance = core.matmul((weights * centred).T, centred)
    return from_covariance(covariance, Metric(jnp.diag(diagonal.factor)))


def resample_and_move(
    move: Move,
    scheme: Scheme,
    key: core.Key,
    log_density: core.LogDensity,
    particles: Any,
    log_weights: jax.Array,
    step_size: jax.Array,
    number: int | None = None,
) -> tuple[Moved, jax.Array]:
    """Equally weighted particles of a density, from those whose weights make them stand for it.

    Args:
      move: how they are moved.
      scheme: of resampling.
      key: used up.
      log_density: `position -> scalar`, what the moves leave as it is.
      particles: pytree (particle, ...).
      log_weights: (particle,).
      step_size: (), the first.
      number: how many to make; as many as there are by default.

    Returns:
      the particles moved, chain after chain where there are chains, and the ancestor of each, (number,) int32.
    """
    number = log_weights.shape[0] if number is None else number
    length = 1 if move.chain is None else move.chain
    metric = metric_of(particles, shares(log_weights, 1), number) if move.tunes_metric else None
    ancestors = scheme(core.fold(key, 0), log_weights, number // length)
    chosen = jax.tree.map(lambda leaf: leaf[ancestors], particles)
    moved = go(move, core.fold(key, 1), log_density, chosen, step_size, metric)
    return moved, jnp.repeat(ancestors, length, total_repeat_length=number)


def go(
    move: Move, key: core.Key, log_density: core.LogDensity, particles: Any, step_size: jax.Array, metric: Any
) -> Moved:
    """Moves every particle by transitions that leave `exp(log_density)` as it is.

    After each the log of the step size gains what the acceptance rate of all particles has above its target. With
    chains what is returned are all their states, `move.chain` of each particle, which is the first of its chain.

    Where the number is not fixed moves go on until no correlation with the start is above a limit; and where so few
    particles have larger ones by chance, on from there until one that falls by the same share a move is at `FREE`.
    (Where they did not, the evidence of a regression on ten numbers by nested sampling, with 128 copies a batch, was
    0.055 nats too large, with a standard error of 0.02.) In the neck of a funnel, or between modes, a scalar may never
    get there, and all moves would be spent on it, hundreds of them for nothing: so they end as well where the largest
    correlation is above `limit^(time / move.number)`, by which it would come too late, and those of all scalars
    together are small. While those are not, the moves are slow, not in vain.
    """
    number = jax.tree.leaves(particles)[0].shape[0]
    index = jnp.arange(number)

    def build(step_size: jax.Array) -> core.Algorithm:
        tuning = {"step_size": step_size} if move.tunes_step_size else {}
        return move.factory(log_density, **tuning, **({"inverse_mass_matrix": metric} if move.tunes_metric else {}))

    def transition(time: jax.Array, states: Any, step_size: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        states, info = jax.vmap(build(step_size).step)(core.chain_keys(core.fold(key, 1, time), index), states)
        rate = jnp.mean(getattr(info, "acceptance_rate", jnp.ones((number,)))).astype(step_size.dtype)
        gain = jnp.where(jnp.isnan(rate), 0, rate - move.acceptance.astype(rate.dtype))
        return states, step_size * jnp.exp(gain) if move.tunes_step_size else step_size, rate

    def going(carry: Any) -> jax.Array:
        time, _, _, _, correlation, square, reached = carry
        course = limit ** (time.astype(correlation.dtype) / move.number)
        in_vain = (correlation > course) & (square <= FORGOTTEN)
        free = (correlation <= FREE) | (time.astype(correlation.dtype) >= longer * reached.astype(correlation.dtype))
        enough = (time >= least) & (free | in_vain)
        return (time < move.number) & (move.fixed | ~enough)

    def once(carry: Any) -> Any:
        time, states, step_size, total, before, _, reached = carry
        states, adapted, rate = transition(time, states, step_size)
        found = _correlations(first, _scalars(core.position_of(states))).astype(step_size.dtype)
        largest = jnp.max(found, initial=0)
        if not move.fixed:  # that of so few comes and goes by chance
            largest = jnp.minimum(before, largest)
        reached = jnp.where(largest <= limit, jnp.minimum(reached, time + 1), reached)
        return time + 1, states, adapted, total + rate, largest, jnp.mean(found**2), reached

    def link(carry: tuple[Any, jax.Array], time: jax.Array) -> tuple[tuple[Any, jax.Array], tuple[Any, jax.Array]]:
        states, adapted, rate = transition(time, *carry)
        return (states, adapted), (core.position_of(states), rate)

    first = _scalars(particles)
    # What the largest of so many correlations comes to by chance.
    chance = max(3.0, 0.5 + math.sqrt(2 * math.log(max(2 * first.shape[1], 1))))
    limit = max(FREE, chance / math.sqrt(number))
    longer = math.log(FREE) / math.log(min(limit, 0.5))  # of fewer than 36 no correlation can be told
    # With a whole covariance learnt from the particles the evidence of a normal law in 100 dimensions is off by a nat
    # or more after 7 moves, and by 0.03 after 20, and no single scalar shows it: so some moves are always made, more of
    # them for more scalars. Found by trial.
    whole = move.tunes_metric and metric.factor.ndim == 2
    least = math.isqrt(first.shape[1]) if whole else 1
    states = jax.vmap(build(step_size).init)(particles, core.chain_keys(core.fold(key, 0), index))
    if move.chain is not None:
        times = jnp.arange(move.chain - 1, dtype=jnp.int32)
        (_, step_size), (others, rates) = scan.scan(link, (states, step_size), times)
        chains = jax.tree.map(_chain_after_chain, core.position_of(states), others)
        correlation = jnp.max(_correlations_within(chains, move.chain), initial=0).astype(step_size.dtype)
        return Moved(chains, step_size, jnp.mean(rates), jnp.int32(move.chain - 1), correlation)
    one = jnp.ones_like(step_size)
    never = jnp.int32(move.number)
    start = jnp.int32(0), states, step_size, jnp.zeros_like(step_size), one, one, never
    time, states, step_size, total, correlation, *_ = core.while_loop(going, once, start)
    return Moved(core.position_of(states), step_size, total / time.astype(total.dtype), time, correlation)


def _chain_after_chain(first: jax.Array, others: jax.Array) -> jax.Array:
    """The first states (chain, ...) and those that follow (time, chain, ...) as particles (chain * (1 + time), ...)."""
    states = jnp.concatenate([jnp.expand_dims(first, 1), jnp.moveaxis(others, 0, 1)], axis=1)
    return states.reshape(-1, *first.shape[1:])


def _scalars(particles: Any) -> jax.Array:
    """All numbers of each particle, whole ones too, (particle, size)."""
    leaves = [core.as_float(leaf) for leaf in jax.tree.leaves(particles)]
    dtype = core.accumulator_dtype(core.result_dtype(leaves))
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], axis=1)


def _correlations(one: jax.Array, other: jax.Array) -> jax.Array:
    """The size of the correlation of each column and its square; 1 where there is none: what agrees must yet part."""
    one, other = _deviations(one), _deviations(other)
    # Of squares as well: trajectories of mixed lengths forget signs long before they forget distances.
    one, other = (jnp.concatenate([x, _deviations(x**2)], axis=1) for x in (one, other))
    scales = jnp.sqrt(jnp.sum(one**2, axis=0)) * jnp.sqrt(jnp.sum(other**2, axis=0))
    found = jnp.abs(jnp.sum(one * other, axis=0)) / jnp.where(scales > 0, scales, 1)
    return jnp.where((scales > 0) & ~jnp.isnan(found), found, 1)


def _correlations_within(chains: Any, length: int) -> jax.Array:
    """Correlations of states with those half a chain later, of which there are more than chains."""
    columns, lag = _scalars(chains), length // 2
    columns = columns.reshape(-1, length, columns.shape[1])
    one, other = columns[:, :-lag], columns[:, lag:]
    return _correlations(one.reshape(-1, one.shape[2]), other.reshape(-1, other.shape[2]))


def _deviations(columns: jax.Array) -> jax.Array:
    return columns - jnp.mean(columns, axis=0, keepdims=True)
