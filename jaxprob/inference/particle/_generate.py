"""Sequential Monte Carlo over generated sequences: many are written at once, those that promise more are copied.

The law of a generator times the potentials of what it writes, `p(x_1:T) prod_t G_t(x_1:t)`, is a Feynman-Kac model: a
particle is a partial sequence with the state of its network. Elements are not copied with a particle; they are looked
up along its line of descent at the end.

Source: Lew, Zhi-Xuan, Grand & Mansinghka (2023), "Sequential Monte Carlo steering of large language models using
probabilistic programs"; Puri, Sudalairaj, Xu, Xu & Srivastava (2025), "A probabilistic inference approach to
inference-time scaling of LLMs using particle-based Monte Carlo methods", algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.particle import _extension as extension
from jaxprob.inference.particle._extension import Branch, Program
from jaxprob.inference.particle._genealogy import trace
from jaxprob.inference.particle._generator import LanguageModel, Potential, Sampler
from jaxprob.inference.smc._devices import as_mesh, over_devices
from jaxprob.inference.smc._resampler import normalized


class Sequence(NamedTuple):
    """A sequence, or several on a leading axis.

    Attributes:
      elements: pytree (time, ...): tokens (time,), or what a sampler draws. Behind the end the last one is repeated, in
        `key_data` too.
      length: (), int32, how many there are, the end included.
      log_potential: (), sum of the log potentials.
      log_probability: (), log probability under a language model; None for a sampler.
      key_data: (time, ...), the data of the keys by which a sampler drew each element; None for a language model.
    """

    elements: Any
    length: jax.Array
    log_potential: jax.Array
    log_probability: jax.Array | None
    key_data: jax.Array | None


@core.pytree
class Generated:
    """What `generate` found. The sequences are weighted.

    Attributes:
      population: `smc.Population` of `Sequence`s; its mass estimates that of the tilted law, without bias.
      effective_sample_size: (time,), of the weights at each element.
      failed_at: (), int32, the first element at which no sequence was possible (the log evidence is -inf then) or a
        weight was NaN; -1 where all is well.
    """

    population: smc.Population
    effective_sample_size: jax.Array
    failed_at: jax.Array

    @property
    def log_evidence(self) -> jax.Array:
        """Log of an unbiased estimate of the mean of all potentials' product under the generator, ()."""
        return self.population.log_evidence


def generate(
    key: core.Key,
    generator: Sampler | LanguageModel,
    length: int,
    potential: Potential | Callable[[Any, Any], Any] | None = None,
    *,
    particles: int = 64,
    resampler: smc.Resampler | None = None,
    proposal: Any = None,
    end: Any = None,
    early_stop: bool = True,
    chunk: int | None = None,
    devices: Any = None,
) -> Generated:
    """Sequences of a generator tilted by a potential, by sequential Monte Carlo.

    Functions are compiled once each; numbers that change from call to call, such as parameters of a network, are
    arguments of a `jax.tree_util.Partial`.

    Args:
      key: random key.
      generator: a `Sampler` or `LanguageModel`, which `particle.generator` makes of an autoregressive model.
      length: how many elements, at most.
      potential: a `Potential`; or a function `(state, element) -> scalar` of the generator's state, that after drawing
        the element, which a language model has not read yet. It is a log potential: -inf for what must not be.
      particles: how many sequences.
      resampler: `smc.adaptive()` by default.
      proposal: None for the law of the generator. For a language model also a function `(state, log_probabilities) ->
        logits` of the tokens to propose, above -inf for all that are possible; or "optimal" for probabilities times
        potentials, which are then computed for the whole vocabulary. Weights account for it.
      end: the token with which a sequence ends, or a function `element -> bool`. What has ended stays as it is, and
        nothing more is drawn or weighed.
      early_stop: whether it is over when all have ended and are not resampled any more, with the same result. False for
        derivatives in reverse mode; and where many short runs are mapped by `jax.vmap`, which wait for the longest.
      chunk: how many sequences are extended at a time, on each device, which bounds memory; all by default. The draws
        are the same.
      devices: over which sequences are spread, as for `particle.filter`.

    Returns:
      `Generated`.

    Raises:
      TypeError: if the generator is none, or what should be a function.
      ValueError: for numbers that are not positive, or a resampler that copies no particles.

    >>> coin = LanguageModel(None, lambda state, token: (jnp.zeros(2), None), 0)
    >>> no_two_ones = Potential(0, lambda last, token: (jnp.where(last & token == 1, -jnp.inf, 0.0), token))
    >>> found = generate(jax.random.key(0), coin, 4, no_two_ones, particles=1000)
    >>> print(f"{found.log_evidence:.1f}")  # 8 of 16 sequences are left
    -0.7
    >>> found.population.particles.elements.shape
    (1000, 4)

    Source: Puri et al. (2025), algorithm 1; Lew et al. (2023), section 3, for proposals.
    """
    name = "particle.generate"
    key = core.as_key(key, name)
    core.check_whole(name, length=length, particles=particles)
    program = extension.as_program(name, generator, potential, end, proposal)
    if chunk is not None:
        core.check_whole(name, chunk=chunk)
    mesh = as_mesh(name, devices, particles)
    stops = bool(early_stop) and end is not None and length > 1
    return _generate(key, program, core.as_partial(resampler), length, particles, stops, chunk, mesh)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _generate(
    key: core.Key, program: Program, resampler: Any, length: int, particles: int, stops: bool, chunk: Any, mesh: Any
) -> Generated:
    model, resampler = over_devices(smc.chunked(extension.feynman_kac(program), chunk), resampler, mesh)
    until = nothing_changes if stops else None
    found = smc.run(key, model, lasts(length), particles, resampler=resampler, keep=what_was_drawn, until=until)
    if found.info.ancestors is None:
        raise core.bad_value("particle.generate", "resampler", "one that copies no particles", "one with ancestors")
    population = found.state.population
    lines = trace(jnp.asarray(found.info.ancestors), jnp.arange(particles))
    # Where none was possible particles went on with equal weights, which must not be taken for weights of something.
    log_scale = population.log_scale
    log_weights = jnp.where(jnp.isfinite(log_scale), population.log_weights, log_scale)
    population = smc.Population(sequences_of(population.particles, found.kept, lines), log_weights, log_scale)
    return Generated(population, found.info.effective_sample_size, found.failed_at)


def lasts(length: int) -> jax.Array:
    """Whether each element is the last, (length,)."""
    return jnp.arange(length) == length - 1


def nothing_changes(before: smc.ParticleState, state: smc.ParticleState, info: smc.ParticleInfo) -> jax.Array:
    """Whether all had ended before a time, and stayed what they were there, weights too: then they do for ever."""
    old, new = normalized(before.population).log_weights, normalized(state.population).log_weights
    # Weights of zero are -inf, whose difference is no number.
    same = jnp.all((old == new) | (jnp.abs(old - new) < 100 * jnp.finfo(new.dtype).eps))
    copies: Any = True
    if info.ancestors is not None:
        copies = jnp.all(info.ancestors == jnp.arange(info.ancestors.shape[0], dtype=info.ancestors.dtype))
    return same & copies & jnp.all(state.population.particles.length <= state.time)


def what_was_drawn(population: smc.Population) -> Any:
    """What is kept of every time."""
    return population.particles.element, population.particles.key_data


def sequences_of(last: Branch, drawn: Any, lines: jax.Array) -> Sequence:
    """Sequences (draw, ...) along lines of descent (time, draw).

    Args:
      last: branches of the last time (particle, ...).
      drawn: of all times (time, particle, ...), as `what_was_drawn`.
      lines: indices of particles.
    """
    index = lines[-1]
    elements, key_data = jax.tree.map(lambda leaf: jnp.swapaxes(jax.vmap(lambda x, i: x[i])(leaf, lines), 0, 1), drawn)
    chosen = last.length, last.log_potential, last.log_probability
    length, log_potential, log_probability = jax.tree.map(lambda leaf: leaf[index], chosen)
    return Sequence(elements, length, log_potential, log_probability, key_data)


def sequence_of(generator: LanguageModel, tokens: Any, potential: Any = None, *, end: Any = None) -> Sequence:
    """A given sequence, weighed: for a chain to begin at, or to compare with what was generated.

    Args:
      generator: a `LanguageModel`.
      tokens: (time,) integers. What comes behind the end does not count.
      potential: as for `generate`.
      end: as for `generate`.

    Returns:
      `Sequence`.

    Raises:
      TypeError: if the generator is no language model.
      ValueError: if tokens are not integers (time,).

    >>> coin = LanguageModel(None, lambda state, token: (jnp.zeros(2), None), 0)
    >>> print(f"{sequence_of(coin, jnp.array([0, 1, 1])).log_probability:.3f}")
    -2.079
    """
    name = "particle.sequence_of"
    if not isinstance(generator, LanguageModel):
        todo = "That which a sampler drew an element by cannot be known from it"
        raise core.bad_type(name, "generator", generator, "a particle.LanguageModel", todo)
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 1 or not tokens.size or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise core.bad_value(name, "tokens", tokens, "integers (time,), one or more")
    return _sequence_of(extension.as_program(name, generator, potential, end), tokens)


@jax.jit
def _sequence_of(program: Program, tokens: jax.Array) -> Sequence:
    def one(branch: Branch, now: Any) -> tuple[Branch, jax.Array]:
        branch = extension.extend(program, None, branch, now[0], now[1])
        return branch, branch.element

    last = lasts(tokens.size)
    first = extension.extend(program, None, extension.root(program), last[0], tokens[0])
    branch, later = scan.scan(one, first, (last[1:], tokens[1:]))
    elements = jnp.concatenate([jnp.expand_dims(first.element, 0), later])
    return Sequence(elements, branch.length, branch.log_potential, branch.log_probability, None)
