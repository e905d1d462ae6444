"""Single paths of a chain of discrete states: the best one, random ones, and what a path weighs.

Source: Viterbi (1967), "Error bounds for convolutional codes"; Scott (2002), "Bayesian methods for hidden Markov
models", for draws backwards in time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.hmm._chain import Chain, prefixes, stay
from jaxprob.inference.hmm._scaled import top
from jaxprob.scan import monoids


def best_path(chain: Chain, method: str) -> jax.Array:
    """The path (time,) of the largest weight."""
    if not chain.scores.shape[0]:
        return jnp.zeros((0,), jnp.int32)

    def pointers(matrix: jax.Array, move: Any, best: jax.Array) -> jax.Array:
        """From which state each one is best reached."""
        step = matrix if move is None else jnp.where(move, matrix, stay(matrix))
        return jnp.argmax(jnp.expand_dims(best, 1) + step, 0).astype(jnp.int32)

    if method == "parallel":
        best = prefixes(chain, _combine_best)
        return _follow(chain.steps(pointers, best[:-1]), jnp.argmax(best[-1]), method)

    def step(best: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        (matrix, move), scores = xs
        matrix = chain.at(matrix)
        back = pointers(matrix, move, best)
        step = matrix if move is None else jnp.where(move, matrix, stay(matrix))
        best = jnp.max(jnp.expand_dims(best, 1) + step, 0) + scores
        return best - top(best), back

    last, back = scan.scan(step, chain.initial + chain.scores[0], (chain.varying, chain.scores[1:]))
    return _follow(back, jnp.argmax(last), method)


def random_path(key: core.Key, chain: Chain, filtered: jax.Array, method: str) -> jax.Array:
    """A path (time,) drawn with probability in proportion to its weight, given `forward(chain).filtered`."""
    if not chain.scores.shape[0]:
        return jnp.zeros((0,), jnp.int32)
    # A map of the state of the next time for each time, by noise that does not depend on it: any grouping of such maps
    # gives the same path. Plain Gumbel noise in float32 never exceeds 16: "high".
    noisy = filtered + core.random.gumbel(key, filtered.shape, filtered.dtype, mode="high")
    last = jnp.argmax(noisy[-1])
    if method == "parallel":

        def sources(matrix: jax.Array, move: Any, weights: jax.Array) -> jax.Array:
            source = jnp.argmax(jnp.expand_dims(weights, 1) + matrix, 0).astype(jnp.int32)
            return source if move is None else jnp.where(move, source, jnp.arange(source.shape[0], dtype=jnp.int32))

        return _follow(chain.steps(sources, noisy[:-1]), last, method)

    def step(state: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        (matrix, move), weights = xs
        source = jnp.argmax(weights + chain.at(matrix)[:, state]).astype(jnp.int32)
        source = source if move is None else jnp.where(move, source, state)
        return source, source

    start = last.astype(jnp.int32)
    states = scan.scan(step, start, (chain.varying, noisy[:-1]), reverse=True)[1]
    return jnp.concatenate([states, jnp.expand_dims(start, 0)])


def path_weight(chain: Chain, path: jax.Array) -> jax.Array:
    """The log weight of a path (time,) of states; 0 for no times. A path stays where the chain does not move."""
    if not chain.scores.shape[0]:
        return jnp.zeros((), chain.scores.dtype)
    moves = chain.steps(
        lambda matrix, move, i, j: matrix[i, j] if move is None else jnp.where(move, matrix[i, j], 0),
        path[:-1],
        path[1:],
    )
    scores = jnp.take_along_axis(chain.scores, jnp.expand_dims(path, 1), 1)
    return chain.initial[path[0]] + jnp.sum(moves) + jnp.sum(scores)


def _follow(pointers: jax.Array, last: jax.Array, method: str) -> jax.Array:
    """The path (time,) back from its last state, along maps (time - 1, K) of each state to the one before."""
    last = last.astype(jnp.int32)
    if method == "parallel" and pointers.shape[0]:
        states = scan.associative(monoids.composition, pointers, reverse=True, method="parallel").states[:, last]
    else:
        states = scan.scan(lambda state, to: (to[state],) * 2, last, pointers, reverse=True)[1]
    return jnp.concatenate([states, jnp.expand_dims(last, 0)])


def _combine_best(before: jax.Array, after: jax.Array) -> jax.Array:
    joined = monoids.max_plus.combine(before, after)
    return joined - top(joined)
