"""Conditional sequential Monte Carlo: a particle filter one of whose particles follows a reference trajectory.

The reference is particle 0 at all times. What is drawn beside it has the law that it has in a particle filter given
that the reference came out of it, so that choosing one of the new paths by weight leaves the smoothing law invariant.

Source: Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods", section 2.4.3; Lindsten,
Jordan & Schoen (2014), "Particle Gibbs with ancestor sampling".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.particle import _backward as backward
from jaxprob.inference.particle._backward import Link, take
from jaxprob.inference.smc import Batched, FeynmanKac, Population, Resampled
from jaxprob.inference.smc._each import InChunks, each


class ConditionalRun(NamedTuple):
    """All particles of a conditional particle filter; time leads.

    Attributes:
      particles: pytree (time, particle, ...); those of index 0 are the reference.
      log_weights: (time, particle).
      ancestors: (time, particle), int32; at time 0 the particles themselves.
      effective_sample_size: (time,).
    """

    particles: Any
    log_weights: jax.Array
    ancestors: jax.Array
    effective_sample_size: jax.Array


def conditional_run(
    key: core.Key,
    model: FeynmanKac,
    data: Any,
    reference: Any,
    num_particles: int,
    resampler: smc.Resampler | None = None,
) -> ConditionalRun:
    """A particle filter given that particle 0 follows a reference.

    Args:
      key: random key; time t uses `fold_in(key, t)`.
      model: a `FeynmanKac`.
      data: pytree (time, ...).
      reference: pytree (time, ...), a path of one particle.
      num_particles: 2 or more, the reference included.
      resampler: one that keeps particle 0 at index 0: `smc.always` or `smc.adaptive` of a `smc.conditional` scheme.
        Where an adaptive one does not resample, every particle goes on and so does the reference; whether it does is
        for the weights of all of them to say. None for multinomial ancestors with that of the reference drawn anew.
    """
    pinned = _pinned(model, num_particles)
    first, rest = take((data, reference), 0), take((data, reference), slice(1, None))
    state, info = smc.begin(core.fold(key, 0), pinned, first, num_particles)

    def one(state: smc.ParticleState, datum: Any) -> tuple[smc.ParticleState, Any]:
        rule = _with_ancestor_sampling(model, state.time + 1, datum) if resampler is None else resampler
        state, info = smc.step(core.fold(key, state.time + 1), pinned, state, datum, rule)
        population = state.population
        ancestors = jnp.asarray(info.ancestors)
        return state, ConditionalRun(
            population.particles, population.log_weights, ancestors, info.effective_sample_size
        )

    themselves = jnp.arange(num_particles, dtype=jnp.int32)
    start = state.population.particles, state.population.log_weights, themselves, info.effective_sample_size
    _, later = scan.scan(one, state, rest)
    join = lambda a, b: jnp.concatenate([jnp.expand_dims(a, 0), b])  # noqa: E731
    return jax.tree.map(join, ConditionalRun(*start), later)


def _pinned(model: FeynmanKac, number: int) -> FeynmanKac:
    """The model on data (datum, reference), whose particle 0 is the reference."""

    def pin(particles: Any, reference: Any) -> Any:
        return jax.tree.map(lambda leaf, value: leaf.at[0].set(value.astype(leaf.dtype)), particles, reference)

    def initial(key: core.Key, datum: Any) -> Any:
        return pin(each(model.initial, key, number, (), (datum[0],)), datum[1])

    def transition(key: core.Key, previous: Any, time: jax.Array, datum: Any) -> Any:
        return pin(each(model.transition, key, number, (previous,), (time, datum[0])), datum[1])

    def of_datum(function: Any) -> Any:
        if isinstance(function, InChunks):
            return InChunks(of_datum(function.function), function.size)

        def wrapped(*args: Any) -> Any:
            return function(*args[:-1], args[-1][0])

        return Batched(wrapped) if isinstance(function, Batched) else wrapped

    return FeynmanKac(
        Batched(initial),
        of_datum(model.log_initial_potential),
        Batched(transition),
        of_datum(model.log_potential),
        None if model.log_look_ahead is None else of_datum(model.log_look_ahead),
    )


def _with_ancestor_sampling(model: FeynmanKac, time: jax.Array, datum: Any) -> smc.Resampler:
    """Multinomial ancestors for all but the reference, whose ancestor is drawn given where it goes.

    Nothing but independent draws will do: the ancestors of the others must have the same law whatever the old ancestor
    of the reference was, which is not so for a scheme of which one draw says something about the rest.
    """

    def resample(key: core.Key, population: Population) -> Resampled:
        for_others, for_reference = core.random.split(key)
        previous, ahead = population.particles
        log_weights, number = population.log_weights, population.num_particles
        ancestors = smc.multinomial(for_others, log_weights, number)
        # The ancestor of the reference goes by the weights as they are, without what was looked ahead.
        plain = jnp.where(log_weights == -jnp.inf, log_weights, log_weights - ahead)
        logits = backward.log_probabilities(model, Link(previous, plain, time, datum[0]), datum[1])
        ancestors = ancestors.at[0].set(backward.one_of(for_reference, logits))
        equal = jnp.full((number,), -jnp.log(number).astype(log_weights.dtype))
        return Resampled(Population(take((previous, ahead), ancestors), equal, population.log_evidence), ancestors)

    return resample
