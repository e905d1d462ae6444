"""Samplers of populations under the runtime: their steps are the warm-up of a run, their particles its draws.

Each chain of the run is a population of its own, independent of the others, so that what differs between chains says
how good they are. The steps until a population is done are a warm-up that ends when all are; each draw is then one
particle, chosen in proportion to the weights.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.runtime._target import Function

STEPS = 10**6  # of a sampler at most, by default: it ends by itself


class Drawn(NamedTuple):
    """The state of one chain.

    Attributes:
      position: the particle that is this draw.
      sampler: the state of the sampler of populations.
      info: what happened in its last step, with `done`.
      order: (draw,), int32, which particle each draw is; of no meaning until the sampler is done.
      drawn: (), int32, draws so far.
    """

    position: Any
    sampler: Any
    info: dict[str, Any]
    order: jax.Array
    drawn: jax.Array


class Populations(NamedTuple):
    """An algorithm whose chains are populations.

    Attributes:
      init: `(position, key) -> Drawn`; the position is not looked at.
      step: `(key, Drawn) -> (Drawn, info)`, one step of the sampler.
      emit: `Drawn -> (Drawn, info)`, the next draw.
    """

    init: Callable[[Any, core.Key], Drawn]
    step: Callable[[core.Key, Drawn], tuple[Drawn, dict[str, Any]]]
    emit: Callable[[Drawn], tuple[Drawn, dict[str, Any]]]


def is_population(factory: Any) -> bool:
    """Whether a factory makes a sampler of populations: it takes a `posterior` first, and a number of `particles`."""
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return False
    return names[:1] == ["posterior"] and "particles" in names


@dataclass(frozen=True)
class WithPopulation:
    """Builds an algorithm that draws from a population. Hashable.

    Attributes:
      factory: `(target, **options) -> Algorithm`, such as `smc.tempered`.
      draws: how many draws the particles are to give.
      warmup: steps of the sampler at most.
      options: of the factory, by name.
      shared: what its state is known not to be, a `core.Shared`.
    """

    shared: ClassVar[bool] = False
    factory: Callable[..., core.Algorithm]
    draws: int
    warmup: int
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, target: Any, axis_name: Any) -> Populations:
        """The algorithm for a target."""
        sampler = self.sampler(target)

        def info_of(state: Any, info: Any) -> dict[str, Any]:
            told = ("log_evidence", "log_evidence_variance")  # the variance by those that estimate it
            of_state = {name: getattr(state, name) for name in told if hasattr(state, name)}
            return {**of_state, **info._asdict(), "done": state.done}

        def init(position: Any, key: core.Key) -> Drawn:
            state = sampler.init(None, key)
            shapes = jax.eval_shape(lambda state, key: info_of(*sampler.step(key, state)), state, key)
            info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            first = jax.tree.map(lambda x: x[0], state.population.particles)
            return Drawn(first, state, info, jnp.zeros((self.draws,), jnp.int32), jnp.int32(0))

        def step(key: core.Key, state: Drawn) -> tuple[Drawn, dict[str, Any]]:
            from jaxprob.inference import smc

            new, info = sampler.step(core.fold(key, 0), state.sampler)
            # Others may still be on their way when this one has long been done.
            done = state.sampler.done
            kept = jax.tree.map(lambda one, other: jnp.where(done, one, other), state.info, info_of(new, info))
            log_weights = new.population.log_weights
            # Evenly over the particles: siblings stay neighbours, as an effective sample size of a series wants them.
            # Where weights differ particles may stand in the order of their likelihoods, and copies side by side.
            order = smc.systematic(core.fold(key, 1), log_weights, self.draws)
            equal = jnp.max(log_weights) == jnp.min(log_weights)
            order = jnp.where(equal, order, core.random.permutation(core.fold(key, 2), order))
            order = jnp.where(done, state.order, order)
            first = jax.tree.map(lambda x: x[order[0]], new.population.particles)
            return Drawn(first, new, kept, order, state.drawn), kept

        def emit(state: Drawn) -> tuple[Drawn, dict[str, Any]]:
            place = state.order[state.drawn]
            position = jax.tree.map(lambda x: x[place], state.sampler.population.particles)
            return state._replace(position=position, drawn=state.drawn + 1), state.info

        return Populations(init, step, emit)

    def sampler(self, target: Any) -> core.Algorithm:
        """The sampler of populations for a target."""
        return self.factory(target.function if isinstance(target, Function) else target, **dict(self.options))

    def interruptible(self, target: Any) -> bool:
        """Whether the kernel is made of moves."""
        return False


def with_population(factory: Any, target: Any, key: core.Key, warmup: int | None, draws: int | None) -> Any:
    """The builder for a sampler of populations, with the shape of one particle.

    Raises:
      TypeError, ValueError: for options that the sampler does not take, or more draws than particles.
    """
    options: dict[str, Any] = {}
    if isinstance(factory, functools.partial):
        factory, options = factory.func, dict(factory.keywords)
    built = WithPopulation(factory, 1, STEPS if warmup is None else warmup, tuple(sorted(options.items())))
    try:
        hash(built)
    except TypeError:
        todo = "For arrays, write a function of the posterior and particles that calls the factory"
        raise core.bad_value(
            "sample", "algorithm", f"{factory.__name__} with arrays", "options that are numbers or functions", todo
        ) from None
    population = jax.eval_shape(built.sampler(target).init, None, key).population
    number = population.log_weights.shape[0]
    # A population may keep many more particles than go on, most of them of hardly any weight.
    usual = options.get("particles", inspect.signature(factory).parameters["particles"].default)
    draws = min(usual, number) if draws is None else draws
    if draws > number:
        todo = f"Ask for more particles, or leave draws out for {usual} of each chain"
        raise core.bad_value("sample", "draws", draws, f"at most the number of particles, {number}", todo)
    particle = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), population.particles)
    return WithPopulation(built.factory, draws, built.warmup, built.options), particle
