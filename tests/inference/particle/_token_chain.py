"""A Markov chain of three tokens with a potential that remembers how often one of them came, and its exact law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.tree_util import Partial

from jaxprob.inference import particle

COUNT = 2**15  # draws of which a law is tested
TOKENS, LENGTH, END = 3, 5, 2
# Of the token after 0, 1 and 2, and of the first; not normalised.
LOGITS = np.array([[0.3, 1.2, -0.4], [1.0, 0.1, 0.6], [0.2, 0.9, 0.5], [0.8, 0.3, -0.2]]) + 0.7
REWARDS = np.array([[0.1, -0.6, 0.9], [-0.3, 0.5, 0.2], [0.7, -0.9, 0.4], [0.0, 0.6, -0.5], [-0.4, 0.8, 0.3]])
FINAL = np.array([0.5, -0.7, 0.2, 0.4, -0.3, 0.6])


def log_potentials(tokens):
    """Of each token: a table, and something for a 1 that follows so many 0s."""
    zeros = np.cumsum(np.asarray(tokens) == 0)
    return [REWARDS[t, x] + 0.4 * zeros[t] * (x == 1) for t, x in enumerate(tokens)]


def law(length=LENGTH, end=None, final=False, power=1.0, potentials=log_potentials):
    """All sequences, their log probabilities, log potentials, and un-normalised weights."""
    table = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    every = []
    for tokens in itertools.product(range(TOKENS), repeat=length):
        size = tokens.index(end) + 1 if end in tokens else length
        if any(token != end for token in tokens[size:]):
            continue
        before = (TOKENS, *tokens)
        log_p = sum(table[before[t], tokens[t]] for t in range(size))
        log_g = sum(potentials(tokens[:size])) + (FINAL[tokens[:size].count(0)] if final else 0)
        every.append((tokens, log_p, log_g))
    tokens, log_p, log_g = (np.array(column) for column in zip(*every, strict=True))
    return tokens, log_p, log_g, np.exp(log_p + power * log_g)


def codes_of(elements):
    elements = np.asarray(elements)
    return elements @ TOKENS ** np.arange(elements.shape[-1])[::-1]


def chain_step(table, state, token):
    return table[token], state


def draw_step(table, key, token):
    token = jax.random.categorical(key, table[token]).astype(jnp.int32)
    return token, token


def potential_step(rewards, memory, token):
    zeros, time = memory
    zeros = zeros + (token == 0).astype(jnp.int32)
    value = rewards[time, token] + jnp.where(token == 1, 0.4, 0.0) * zeros.astype(rewards.dtype)
    return value, (zeros, time + 1)


def final_value(table, memory):
    return table[memory[0]]


def made(dtype=jnp.float32):
    """The generator as a language model and as a sampler, and the potential, without and with a last factor."""
    table, rewards, last = (jnp.asarray(x, dtype) for x in (LOGITS, REWARDS, FINAL))
    model = particle.LanguageModel(None, Partial(chain_step, table), TOKENS)
    sampler = particle.Sampler(jnp.int32(TOKENS), Partial(draw_step, table))
    potential = particle.Potential((jnp.int32(0), jnp.int32(0)), Partial(potential_step, rewards))
    return model, sampler, potential, potential._replace(final=Partial(final_value, last))


def tilted(state, log_probabilities):
    return 0.5 * log_probabilities + jnp.array([0.0, 0.4, -0.3])


MODEL, SAMPLER, POTENTIAL, WITH_FINAL = made()


def check_law(elements, tokens, weights):
    place = {code: i for i, code in enumerate(codes_of(tokens))}
    counts = np.bincount(np.vectorize(place.__getitem__)(codes_of(elements)), minlength=len(weights))
    expected = weights / weights.sum() * counts.sum()
    few = expected < 10
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    statistic, p = scipy.stats.chisquare(counts[expected > 0], expected[expected > 0])
    assert p > 1e-4, (statistic, p)


def third_step(value, time, token):
    return jnp.where(time == 2, value, 0.0), time + 1


def at_third(value):
    return particle.Potential(jnp.int32(0), Partial(third_step, jnp.float32(value)))
