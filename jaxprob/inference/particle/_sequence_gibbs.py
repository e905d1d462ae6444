"""Particle Gibbs over generated sequences, and replicas of it at several temperatures.

The current sequence is written once more as one of many, the others beside it are drawn given that it came out, and one
of all is chosen by weight: the tilted law of the generator stays invariant for any number of particles.

Source: Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods", section 4.5; Puri,
Sudalairaj, Xu, Xu & Srivastava (2025), "A probabilistic inference approach to inference-time scaling of LLMs using
particle-based Monte Carlo methods", algorithms 2 and 3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import mcmc, smc
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._parallel_tempering import as_ladder
from jaxprob.inference.particle import _extension as extension
from jaxprob.inference.particle import _generate as generation
from jaxprob.inference.particle._backward import one_of
from jaxprob.inference.particle._extension import Branch, Program
from jaxprob.inference.particle._genealogy import trace
from jaxprob.inference.particle._generate import Sequence
from jaxprob.inference.particle._generator import Sampler
from jaxprob.inference.particle._gibbs import GibbsInfo, GibbsState
from jaxprob.inference.smc import Batched, FeynmanKac


def sequence_gibbs(
    generator: Any,
    length: int,
    potential: Any = None,
    *,
    particles: int = 64,
    scheme: smc.Scheme | None = None,
    threshold: Any = 0.5,
    proposal: Any = None,
    end: Any = None,
    inverse_temperature: Any = 1.0,
) -> core.Algorithm:
    """Particle Gibbs on sequences of a generator tilted by a potential.

    Every step leaves `p(x) prod_t G_t(x_1:t)^beta` invariant. The beginning of a sequence changes where particles that
    were resampled have kept several beginnings: with few particles and many elements it seldom does.

    Args:
      generator: as for `generate`.
      length: as for `generate`.
      potential: as for `generate`.
      particles: 2 or more, the current sequence included.
      scheme: of resampling, one that `smc.conditional` knows; `smc.systematic` by default.
      threshold: share of the particles in [0, 1] below which the effective sample size leads to resampling; 1 for
        always. As that size is 1 at least, a half of two particles leads to none.
      proposal: as for `generate`.
      end: as for `generate`.
      inverse_temperature: beta, 0 or more; may be a tracer.

    Returns:
      Algorithm whose position is a `Sequence` such as `sequence_of` or `generate` makes, or None, for one drawn by
      sequential Monte Carlo; its state is a `GibbsState`, its info a `GibbsInfo`.

    Raises:
      TypeError: as for `generate`.
      ValueError: as for `generate`; for fewer than two particles, or a threshold that is no share.

    >>> from jaxprob.inference.particle import LanguageModel, Potential
    >>> coin = LanguageModel(None, lambda state, token: (jnp.zeros(2), None), 0)
    >>> ones = Potential(None, lambda memory, token: (2.0 * token.astype(jnp.float32), None))
    >>> kernel = sequence_gibbs(coin, 5, ones, particles=8)
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(None, jax.random.key(0)))
    >>> state.position.elements.shape
    (5,)
    """
    name = "particle.sequence_gibbs"
    core.check_whole(name, length=length)
    core.check_whole(name, 2, particles=particles)
    possible = lambda beta: 0 <= beta < math.inf  # noqa: E731
    beta = known_number(name, "inverse_temperature", inverse_temperature, possible, "a number, 0 or more")
    program = extension.as_program(name, generator, potential, end, proposal, beta)
    rule = smc.adaptive(smc.conditional(smc.systematic if scheme is None else scheme), threshold)
    last = generation.lasts(length)

    def draw(key: core.Key, model: FeynmanKac, data: Any, rule: Any = None) -> tuple[Sequence, jax.Array, jax.Array]:
        """A sequence chosen by weight, the particles along it (time,), and effective sample sizes (time,)."""
        for_run, for_choice = core.random.split(core.as_key(key, name))
        found = smc.run(for_run, model, data, particles, resampler=rule, keep=generation.what_was_drawn)
        population, info = found.state.population, found.info
        line = trace(jnp.asarray(info.ancestors), one_of(for_choice, population.log_weights, (1,)))
        sequences = generation.sequences_of(population.particles, found.kept, line)
        return jax.tree.map(lambda leaf: leaf[0], sequences), line[:, 0], info.effective_sample_size

    def init(position: Any, key: core.Key) -> GibbsState:
        if position is None:
            return GibbsState(draw(key, extension.feynman_kac(program), last)[0])
        return GibbsState(_checked(name, position, length, program))

    def step(key: core.Key, state: GibbsState) -> tuple[GibbsState, GibbsInfo]:
        pins = state.position.elements if state.position.key_data is None else state.position.key_data
        position, index, ess = draw(key, _pinned(program, particles), (last, pins), rule)
        return GibbsState(position), GibbsInfo(jnp.mean((index != 0).astype(ess.dtype)), jnp.min(ess))

    return core.Algorithm(init, step)


def _pinned(program: Program, particles: int) -> FeynmanKac:
    """The model on data (last, pin), particle 0 of which goes where the pins say."""
    pinned = jnp.arange(particles) == 0

    def initial(key: core.Key, datum: Any) -> Branch:
        (last, pin), keys = datum, core.chain_keys(key, jnp.arange(particles))
        first = extension.root(program)
        return jax.vmap(lambda key, pinned: extension.extend(program, key, first, last, pin, pinned))(keys, pinned)

    def transition(key: core.Key, branches: Branch, time: jax.Array, datum: Any) -> Branch:
        (last, pin), keys = datum, core.chain_keys(key, jnp.arange(particles))
        one = lambda key, branch, pinned: extension.extend(program, key, branch, last, pin, pinned)  # noqa: E731
        return jax.vmap(one)(keys, branches, pinned)

    model = extension.feynman_kac(program)
    return model._replace(initial=Batched(initial), transition=Batched(transition))


def _checked(name: str, position: Any, length: int, program: Program) -> Sequence:
    """A position that a chain may begin at."""
    if not isinstance(position, Sequence):
        todo = "particle.sequence_of(generator, tokens, potential) makes one of tokens"
        raise core.bad_type(name, "position", position, "a particle.Sequence or None", todo)
    if isinstance(program.generator, Sampler) and position.key_data is None:
        raise core.bad_value(name, "position", "without key_data", "a sequence that the sampler drew")
    for leaf in jax.tree.leaves(position.elements):
        if jnp.shape(leaf)[:1] != (length,):
            raise core.bad_value(name, "position", f"of elements {jnp.shape(leaf)}", f"one sequence of {length}")
    return jax.tree.map(jnp.asarray, position)


def sequence_tempering(
    generator: Any,
    length: int,
    potential: Any,
    *,
    inverse_temperatures: Any,
    particles: int = 64,
    scheme: smc.Scheme | None = None,
    threshold: Any = 0.5,
    proposal: Any = None,
    end: Any = None,
) -> core.Algorithm:
    """Parallel tempering of particle Gibbs: replicas whose potentials count less and less hand sequences on.

    Where one mode of a rough reward holds a chain, a hotter one goes on looking.

    Args:
      generator: as for `generate`.
      length: as for `generate`.
      potential: as for `generate`.
      inverse_temperatures: (replica,), decreasing from 1; the last may be 0, where it draws from the generator.
      particles: of each replica.
      scheme: as for `sequence_gibbs`.
      threshold: as for `sequence_gibbs`.
      proposal: as for `generate`.
      end: as for `generate`.

    Returns:
      Algorithm whose position is a `Sequence` or None, as for `sequence_gibbs`; state and info are those of
      `mcmc.parallel_tempering`.

    Raises:
      ValueError: as for `sequence_gibbs`; for inverse temperatures that are no ladder.

    >>> from jaxprob.inference.particle import LanguageModel, Potential
    >>> coin = LanguageModel(None, lambda state, token: (jnp.zeros(2), None), 0)
    >>> ones = Potential(None, lambda memory, token: (2.0 * token.astype(jnp.float32), None))
    >>> kernel = sequence_tempering(coin, 5, ones, inverse_temperatures=[1.0, 0.5, 0.0], particles=4)
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(None, jax.random.key(0)))
    >>> state.position.elements.shape, state.replicas.position.elements.shape
    ((5,), (3, 5))

    Source: Puri et al. (2025), algorithm 3.
    """
    name = "particle.sequence_tempering"
    betas = as_ladder(name, inverse_temperatures, True)

    def kernel(beta: Any) -> core.Algorithm:
        return sequence_gibbs(
            generator,
            length,
            potential,
            particles=particles,
            scheme=scheme,
            threshold=threshold,
            proposal=proposal,
            end=end,
            inverse_temperature=beta,
        )

    coldest = kernel(1.0)
    # A replica is told its temperature by what the others would call a step size.
    replicas = mcmc.parallel_tempering(
        lambda log_density, step_size: kernel(step_size),
        log_prior=lambda sequence: 0.0 if sequence.log_probability is None else sequence.log_probability,
        log_likelihood=lambda sequence: sequence.log_potential,
        inverse_temperatures=betas,
        step_sizes=betas,
    )

    def init(position: Any, key: core.Key) -> Any:
        key = core.as_key(key, name)
        first = coldest.init(position, core.fold(key, 0)).position
        return replicas.init(first, core.fold(key, 1))

    return core.Algorithm(init, replicas.step)
