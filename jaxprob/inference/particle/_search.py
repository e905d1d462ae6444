"""Search among generated sequences: best of several, beams, and one answer out of many.

Unlike sequential Monte Carlo, search looks for what scores most. Where the score errs it finds the errors, the more so
the longer it looks.

Source: Lowerre (1976), "The HARPY speech recognition system", for beams; Wang et al. (2023), "Self-consistency improves
chain of thought reasoning in language models", for votes; Puri, Sudalairaj, Xu, Xu & Srivastava (2025), "A
probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.particle import _extension as extension
from jaxprob.inference.particle import _generate as generation
from jaxprob.inference.particle._backward import one_of, take
from jaxprob.inference.particle._extension import Branch, Program
from jaxprob.inference.particle._genealogy import trace
from jaxprob.inference.particle._generate import Sequence, generate
from jaxprob.inference.particle._generator import Sampler

METHODS = ("best", "draw", "vote")


class Choice(NamedTuple):
    """One particle out of many.

    Attributes:
      particle: pytree, the particle.
      index: (), int32, which one it is.
      weight: (), its share of all weights; after a vote that of all particles with its answer. 0 where no particle is
        possible, and nothing was to choose.
    """

    particle: Any
    index: jax.Array  # type: ignore[assignment]
    weight: jax.Array


def choose(
    population: smc.Population,
    method: str = "best",
    *,
    key: core.Key | None = None,
    score: Callable[[Any], Any] | None = None,
    answer: Callable[[Any], Any] | None = None,
) -> Choice:
    """One particle of a population: the best, one drawn by weight, or one that has what most have by weight.

    Args:
      population: weighted particles, such as `generate(...).population`.
      method: "best", the greatest score among particles that count; "draw", with probability in proportion to
        the weights; "vote", the first particle whose answer has the most weight.
      key: random key, for "draw".
      score: `particle -> scalar`, for "best"; the sum of the log potentials of a `Sequence` by default. NaN is least.
      answer: `particle -> array`, for "vote": particles vote for the same if all its entries are equal.

    Returns:
      `Choice`.

    Raises:
      TypeError: if a key or a function that the method needs is missing.
      ValueError: for an unknown method.

    >>> population = smc.Population(jnp.array([3, 5, 3]), jnp.log(jnp.array([0.3, 0.4, 0.3])))
    >>> chosen = choose(population, "vote", answer=lambda x: x)
    >>> print(f"{chosen.particle} {chosen.weight:.1f}")
    3 0.6
    """
    name = "particle.choose"
    if method not in METHODS:
        raise core.bad_value(name, "method", method, "one of " + ", ".join(map(repr, METHODS)))
    weights = population.weights
    if method == "draw":
        index = one_of(core.as_key(key, name), population.log_weights)
    elif method == "best":
        if score is None and not isinstance(population.particles, Sequence):
            raise core.bad_type(name, "score", score, "a function, for particles that are no Sequence")
        values = core.as_float(jax.vmap(_log_potential if score is None else score)(population.particles))
        counts = (population.log_weights > -jnp.inf) & ~jnp.isnan(values)
        index = jnp.argmax(jnp.where(counts, values, -jnp.inf))
    else:
        if answer is None:
            raise core.bad_type(name, "answer", answer, "a function, for a vote")
        answers = jax.vmap(answer)(population.particles)
        answers = answers.reshape(answers.shape[0], -1)
        same = jnp.all(jnp.expand_dims(answers, 0) == jnp.expand_dims(answers, 1), axis=-1)
        weights = jnp.sum(jnp.where(same, jnp.expand_dims(weights, 0), 0), axis=1)
        # Sums of the same terms, in one order for all that vote alike.
        index = jnp.argmax(weights)
    return Choice(take(population.particles, index), index.astype(jnp.int32), weights[index])


def _log_potential(sequence: Sequence) -> jax.Array:
    return sequence.log_potential


def best_of_n(
    key: core.Key, generator: Any, length: int, potential: Any, *, number: int = 64, end: Any = None
) -> Sequence:
    """The sequence with the greatest sum of log potentials, NaN being least, among several drawn independently.

    `choose(..., "vote")` and other choices among independent sequences are those of the population of `generate` with
    `resampler=smc.adaptive(threshold=0.0)`.

    Args:
      key: random key.
      generator: as for `generate`.
      length: as for `generate`.
      potential: as for `generate`.
      number: how many are drawn.
      end: as for `generate`.

    Returns:
      `Sequence`; its `log_potential` is -inf where none was possible.

    Raises:
      TypeError: as for `generate`.
      ValueError: as for `generate`.

    >>> from jaxprob.inference.particle import LanguageModel, Potential
    >>> coin = LanguageModel(None, lambda state, token: (jnp.zeros(2), None), 0)
    >>> ones = Potential(None, lambda memory, token: (1.0 * token, None))
    >>> best_of_n(jax.random.key(0), coin, 3, ones, number=100).elements.tolist()
    [1, 1, 1]
    """
    core.check_whole("particle.best_of_n", number=number)
    never = smc.adaptive(threshold=0.0)
    found = generate(key, generator, length, potential, particles=number, resampler=never, end=end)
    # By potentials alone: a single one that is NaN would leave no weights.
    return choose(smc.Population(found.population.particles, jnp.zeros((number,)))).particle


class Beams(NamedTuple):
    """What `beam_search` found, best first.

    Attributes:
      sequences: `Sequence` (beam, ...).
      scores: (beam,); -inf for a beam that stands for nothing, as there were not enough possible sequences. An
        extension whose score is NaN is none.
    """

    sequences: Sequence
    scores: jax.Array


def beam_search(
    generator: Any,
    length: int,
    potential: Any = None,
    *,
    width: int = 16,
    branching: int | None = None,
    probability_weight: Any = 1.0,
    end: Any = None,
    key: core.Key | None = None,
) -> Beams:
    """Beam search: at each element the best extensions of the best partial sequences are kept.

    The score is `probability_weight log p(x) + sum_t log G_t`: with weight 1 the log density of the law that `generate`
    draws from, whose mode is looked for. Scores are sums, not means: a sequence that has ended keeps its score and
    competes with longer ones, which have paid for more tokens. A potential that adds a constant for each token takes
    that back.

    For a language model extensions are tokens and nothing is random. Those of a sampler are drawn, `branching` for each
    partial sequence; their probability is not known and does not count, and draws that are alike are not merged.

    Args:
      generator: as for `generate`.
      length: as for `generate`.
      potential: as for `generate`.
      width: how many partial sequences are kept.
      branching: how many extensions of each are tried: for a language model the most probable tokens, all by default.
      probability_weight: what log probabilities of tokens count, 0 or more; may be a tracer.
      end: as for `generate`.
      key: random key, for a sampler.

    Returns:
      `Beams`.

    Raises:
      TypeError: as for `generate`; for a sampler without a key.
      ValueError: as for `generate`; for a sampler without `branching`.

    >>> from jaxprob.inference.particle import LanguageModel
    >>> chain = LanguageModel(None, lambda state, token: (jnp.where(token == 0, jnp.array([0.0, 1.0]), 0.0), None), 0)
    >>> found = beam_search(chain, 3, width=4)
    >>> found.sequences.elements[0].tolist()
    [1, 0, 1]
    """
    name = "particle.beam_search"
    core.check_whole(name, length=length, width=width)
    program = extension.as_program(name, generator, potential, end)
    weight = known_number(name, "probability_weight", probability_weight, lambda x: x >= 0, "a number, 0 or more")
    if branching is not None or isinstance(generator, Sampler):
        core.check_whole(name, branching=branching)
    if isinstance(generator, Sampler):
        key = core.as_key(key, name)
    return _beam_search(program, key, weight, length, width, branching)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _beam_search(
    program: Program, key: core.Key | None, weight: jax.Array, length: int, width: int, branching: int | None
) -> Beams:
    expand = functools.partial(_tokens, program, weight, branching)
    if isinstance(program.generator, Sampler):
        expand = functools.partial(_draws, program, key, branching)

    def keep(branches: Branch, scores: jax.Array, time: Any, last: jax.Array) -> tuple[Branch, jax.Array, jax.Array]:
        """The best extensions, their scores and the beams that they extend (width,)."""
        gains, extended = expand(branches, time, last)
        # Of what has ended there is one extension, itself.
        first = jnp.expand_dims(jnp.arange(gains.shape[1]) == 0, 0)
        gains = jnp.where(jnp.expand_dims(branches.ended, 1), jnp.where(first, 0, -jnp.inf), gains)
        totals = jnp.expand_dims(scores, 1).astype(gains.dtype) + gains
        totals = jnp.where(jnp.isnan(totals), -jnp.inf, totals).ravel()
        missing = max(0, width - totals.size)
        best, index = lax.top_k(jnp.pad(totals, (0, missing), constant_values=-jnp.inf), width)
        parent, slot = jnp.divmod(jnp.minimum(index, totals.size - 1), gains.shape[1])
        return extended(parent, slot), best, parent.astype(jnp.int32)

    def one(carry: Any, now: Any) -> tuple[Any, Any]:
        branches, scores, parent = keep(*carry, *now)
        return (branches, scores), ((branches.element, branches.key_data), parent)

    last, times = generation.lasts(length), jnp.arange(length)
    # Draws from one beginning differ, tokens do not.
    starts = width if isinstance(program.generator, Sampler) else 1
    roots = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (starts, *jnp.shape(leaf))), extension.root(program))
    branches, scores, parent = keep(roots, jnp.zeros((starts,)), times[0], last[0])
    drawn = branches.element, branches.key_data
    (branches, scores), (later, parents) = scan.scan(one, (branches, scores), (times[1:], last[1:]))
    join = lambda a, b: jnp.concatenate([jnp.expand_dims(a, 0), b])  # noqa: E731
    drawn, parents = jax.tree.map(join, (drawn, parent), (later, parents))
    return Beams(generation.sequences_of(branches, drawn, trace(parents, jnp.arange(width))), scores)


def _tokens(program: Program, weight: jax.Array, branching: int | None, branches: Branch, time: Any, last: Any) -> Any:
    """Gains (beam, token) of the next tokens of a language model, and a function that makes those chosen."""
    log_probabilities, states = jax.vmap(lambda branch: extension.next_tokens(program, branch))(branches)
    number = log_probabilities.shape[1] if branching is None else min(branching, log_probabilities.shape[1])
    if number < log_probabilities.shape[1]:
        log_p, tokens = lax.top_k(log_probabilities, number)
    else:
        log_p, tokens = log_probabilities, jnp.broadcast_to(jnp.arange(number), log_probabilities.shape)
    tokens = tokens.astype(branches.element.dtype)

    def value(branch: Branch, state: Any, token: jax.Array) -> jax.Array:
        return extension.weigh(program, branch, state, token, last)[0]

    values = jax.vmap(jax.vmap(value, (None, None, 0)))(branches, states, tokens)
    dtype = core.result_dtype(values, log_p)
    # Of a token that cannot be it is -inf, or NaN where probabilities do not count: no answer either way.
    gains = weight.astype(dtype) * log_p.astype(dtype) + values.astype(dtype)

    def extended(parent: jax.Array, slot: jax.Array) -> Branch:
        def append(branch: Branch, state: Any, token: jax.Array, log_p: jax.Array) -> Branch:
            return extension.append(program, branch, state, token, log_p, last)

        return jax.vmap(append)(take(branches, parent), take(states, parent), tokens[parent, slot], log_p[parent, slot])

    return gains, extended


def _draws(program: Program, key: Any, branching: Any, branches: Branch, time: Any, last: Any) -> Any:
    """Gains (beam, draw) of draws of a sampler's next element, and a function that takes those chosen."""
    beams = branches.ended.shape[0]

    def draw(branch: Branch, index: jax.Array) -> Branch:
        keys = core.chain_keys(core.fold(key, time, index), jnp.arange(branching))
        return jax.vmap(lambda key: extension.extend(program, key, branch, last))(keys)

    candidates = jax.vmap(draw)(branches, jnp.arange(beams))
    return candidates.increment, lambda parent, slot: take(candidates, (parent, slot))
