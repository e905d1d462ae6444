"""Sums, maxima and draws over all paths of a chain of discrete states, from log weights: what HMMs and CRFs share.

The weight of a path z is initial[z_0] + sum_t transition_t[z_{t-1}, z_t] + sum_t scores[t, z_t]. Messages are
normalised at each time, and kept as logarithms where probabilities would underflow, so that neither a long series nor
a steep score loses digits. In parallel only what is normalised is scanned; the total is added up afterwards from
one-step sums, which are small.

Source: Rabiner (1989), "A tutorial on hidden Markov models"; Hassan, Särkkä & García-Fernández (2021), "Temporal
parallelization of inference in hidden Markov models".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.hmm import _scaled as scaled
from jaxprob.inference.hmm._scaled import top
from jaxprob.scan import monoids

# From how many states on a product of matrices is faster than a sum of exponentials (benchmark on a CPU).
MANY_STATES = 12


class Factor(NamedTuple):
    """A matrix of log weights, ready for products.

    Attributes:
      logs: (K, K).
      scale: (), the largest of them; None, as what follows, for few states.
      weights: (K, K), exp(logs - scale).
      ways: (K, K), 1 where a step is possible.
    """

    logs: jax.Array
    scale: Any = None
    weights: Any = None
    ways: Any = None


class Chain(NamedTuple):
    """Log weights, -inf where impossible.

    Attributes:
      initial: (K,).
      transition: (K, K), or (time - 1, K, K): entry t leads from time t to t + 1.
      scores: (time, K).
      moves: (time - 1,) booleans, false where the state stays as it is and the transition counts nothing; or None.
    """

    initial: jax.Array
    transition: jax.Array
    scores: jax.Array
    moves: Any = None

    @property
    def varying(self) -> tuple[Any, Any]:
        """The transition, where it varies, and the moves: (time - 1, ...) or None."""
        return (self.transition if self.transition.ndim == 3 else None), self.moves

    def at(self, matrix: Any) -> jax.Array:
        """The transition of one step, from what varies there."""
        return self.transition if matrix is None else matrix

    def factors(self, back: bool = False) -> Callable[[Any], Factor]:
        """As `at`, made ready for `log_product`, outside of a loop where it does not vary; transposed for `back`."""
        if self.transition.ndim == 3:
            return lambda matrix: factor(matrix.T if back else matrix)
        constant = factor(self.transition.T if back else self.transition)
        return lambda _: constant

    def steps(self, function: Any, *along: jax.Array) -> Any:
        """`function(transition, move, *along)` at all steps side by side."""
        axes = (0 if self.transition.ndim == 3 else None, None if self.moves is None else 0)
        return jax.vmap(function, in_axes=(*axes, *(0 for _ in along)))(self.transition, self.moves, *along)


class Forward(NamedTuple):
    """Messages from the past.

    Attributes:
      filtered: (time, K), log probabilities of the state given scores up to its time.
      predicted: (time, K), those given scores before its time (of the first, the initial weights).
      totals: (time,), the logarithm of the factor by which each time changes the total.
    """

    filtered: jax.Array
    predicted: jax.Array
    totals: jax.Array


def normalized(weights: jax.Array, axis: Any = -1) -> jax.Array:
    """Log probabilities from log weights; -inf everywhere where nothing is possible."""
    total = core.logsumexp(weights, axis, keepdims=True)
    return weights - jnp.where(total == -jnp.inf, 0, total)


def factor(logs: jax.Array) -> Factor:
    """What `log_product` needs of a matrix of log weights."""
    if logs.shape[0] < MANY_STATES:
        return Factor(logs)
    scale = top(logs)
    return Factor(logs, scale, jnp.exp(logs - scale), (logs > -jnp.inf).astype(logs.dtype))


def log_product(message: jax.Array, by: Factor) -> jax.Array:
    """`log sum_i exp(message[i] + logs[i, j])`: (K,)."""

    def exact() -> jax.Array:
        return core.logsumexp(jnp.expand_dims(message, 1) + by.logs, 0)

    if by.scale is None:
        return exact()
    shift = top(message)
    sums = jnp.matmul(jnp.exp(message - shift), by.weights, precision=lax.Precision.HIGHEST)
    ways = jnp.matmul((message > -jnp.inf).astype(message.dtype), by.ways)
    # What underflows in a product of matrices is found again in the sum of logarithms.
    small = sums < float(jnp.finfo(message.dtype).tiny) ** 0.75

    def fast() -> jax.Array:
        return core.safe_log(jnp.where(small, 0, sums)) + (shift + by.scale)

    return lax.cond(jnp.any(small & (ways > 0)), exact, fast)


def advance(message: jax.Array, by: Factor, move: Any) -> jax.Array:
    """The message (K,) one step on."""
    moved = log_product(message, by)
    return moved if move is None else jnp.where(move, moved, message)


def forward(chain: Chain, method: str) -> Forward:
    """All messages from the past."""
    if not chain.scores.shape[0]:
        return Forward(chain.scores, chain.scores, chain.scores[:, 0])
    if method == "parallel":
        filtered = normalized(prefixes(chain))
        moved = chain.steps(lambda matrix, move, message: advance(message, factor(matrix), move), filtered[:-1])
        predicted = jnp.concatenate([jnp.expand_dims(chain.initial, 0), moved])
        return Forward(filtered, predicted, core.logsumexp(predicted + chain.scores, -1))

    fast, right = scaled.forward(chain)
    choice = core.all_of_batch(right)
    return lax.cond(choice, lambda _, fast: Forward(*fast), lambda chain, _: _by_logarithms(chain), chain, fast)


def _by_logarithms(chain: Chain) -> Forward:
    """Messages from the past, whatever the weights."""
    at = chain.factors()

    def step(weights: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        (matrix, move), scores = xs
        moved = advance(weights - top(weights), at(matrix), move)
        return moved + scores, moved

    # The loop takes out the largest weight alone, which is cheap; sums of one follow for all times side by side.
    start = chain.initial + chain.scores[0]
    moved = scan.scan(step, start, (chain.varying, chain.scores[1:]))[1]
    weights = jnp.concatenate([jnp.expand_dims(start, 0), moved + chain.scores[1:]])
    left = jax.vmap(lambda one: core.logsumexp(one - top(one), keepdims=True))(weights[:-1])
    predicted = moved - jnp.where(left == -jnp.inf, 0, left)
    predicted = jnp.concatenate([jnp.expand_dims(chain.initial, 0), predicted])
    return Forward(normalized(weights), predicted, core.logsumexp(predicted + chain.scores, -1))


def backward(chain: Chain, method: str) -> jax.Array:
    """Messages from the future, (time, K): log weights of what comes after a time, up to a constant in each."""
    times, size = chain.scores.shape
    last = jnp.zeros_like(chain.scores, shape=(min(times, 1), size))
    if times <= 1:
        return last
    if method == "parallel":
        matrices = chain.steps(_as_matrix, chain.scores[1:])
        products = scan.associative(_combine_back, matrices, reverse=True, method="parallel").states
        messages = core.logsumexp(products, -1)
        return jnp.concatenate([messages, last])
    fast, right = scaled.backward(chain)
    choice = core.all_of_batch(right)
    messages = lax.cond(choice, lambda _, fast: fast, lambda chain, _: _back_by_logarithms(chain), chain, fast)
    return jnp.concatenate([messages, last])


def _back_by_logarithms(chain: Chain) -> jax.Array:
    """Messages from the future of all times but the last, whatever the weights."""
    at = chain.factors(back=True)

    def step(message: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        (matrix, move), scores = xs
        before = backward_step(message + scores, at(matrix), move)
        return before, before

    last = jnp.zeros_like(chain.scores[0])
    return scan.scan(step, last, (chain.varying, chain.scores[1:]), reverse=True)[1]


def backward_step(message: jax.Array, by: Factor, move: Any) -> jax.Array:
    """The message (K,) one step back, shifted so that its largest entry is zero."""
    before = advance(message, by, move)
    return before - top(before)


def fixed_lag(chain: Chain, lag: int) -> jax.Array:
    """As `backward`, of the next `lag` times only; all times side by side."""
    times = chain.scores.shape[0]
    start = jnp.zeros_like(chain.scores)

    def earlier(messages: jax.Array, index: Any) -> jax.Array:
        # The message at t is that of time t + distance, and becomes that of one time before; the end is cut off.
        at = jnp.arange(times) + lag - index - 1
        inside, at = at <= times - 2, jnp.clip(at, 0, times - 2)
        one = chain._replace(
            transition=chain.transition[at] if chain.transition.ndim == 3 else chain.transition,
            moves=None if chain.moves is None else chain.moves[at],
        )
        moved = one.steps(
            lambda matrix, move, message: backward_step(message, factor(matrix.T), move),
            messages + chain.scores[at + 1],
        )
        return jnp.where(jnp.expand_dims(inside, 1), moved, messages)

    return scan.repeat(earlier, start, lag) if lag and times > 1 else start


def pairs(chain: Chain, filtered: jax.Array, messages: jax.Array) -> jax.Array:
    """Log probabilities (time - 1, K, K) of the states of a time (rows) and the next, from messages of both sides."""
    return chain.steps(_pair, filtered[:-1], (messages + chain.scores)[1:])


def _pair(matrix: jax.Array, move: Any, before: jax.Array, after: jax.Array) -> jax.Array:
    step = matrix if move is None else jnp.where(move, matrix, stay(matrix))
    return normalized(jnp.expand_dims(before, 1) + step + jnp.expand_dims(after, 0), (0, 1))


def expected_moves(chain: Chain, found: Forward, messages: jax.Array) -> jax.Array:
    """How often each transition is expected to be made: the shape of the transition."""
    after = messages + chain.scores
    total = core.logsumexp(found.predicted + after, -1, keepdims=True)
    after = (after - jnp.where(total == -jnp.inf, 0, total))[1:]
    if chain.moves is not None:
        after = jnp.where(jnp.expand_dims(chain.moves, 1), after, -jnp.inf)
    before = found.filtered[:-1]
    if chain.transition.ndim == 3:
        return jnp.exp(jnp.expand_dims(before, 2) + chain.transition + jnp.expand_dims(after, 1))

    def one_by_one() -> jax.Array:
        def add(total: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            before, after = xs
            return total + jnp.exp(jnp.expand_dims(before, 1) + chain.transition + jnp.expand_dims(after, 0)), None

        return scan.scan(add, jnp.zeros_like(chain.transition), (before, after))[0]

    def at_once() -> jax.Array:
        counts = jnp.matmul(jnp.exp(before).T, jnp.exp(jnp.minimum(after, most)), precision=lax.Precision.HIGHEST)
        return jnp.exp(chain.transition) * counts

    # A factor so large may stand beside one that underflows; below it what is lost is nothing beside a count of one.
    most = -0.7 * math.log(float(jnp.finfo(after.dtype).tiny))
    fits = jnp.max(after, initial=0) + top(chain.transition) <= most
    return lax.cond(core.all_of_batch(fits), at_once, one_by_one)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_normalizer(chain: Chain, method: str) -> jax.Array:
    """The logarithm of the weights of all paths added up, (); 0 for no times.

    Its derivatives are the expected counts of each weight (Fisher's identity): nothing is kept of the loop but the
    messages, and what is impossible has a zero derivative.
    """
    return jnp.sum(forward(chain, method).totals)


@log_normalizer.defjvp
def _log_normalizer_jvp(method: str, primals: tuple[Chain], tangents: tuple[Chain]) -> tuple[jax.Array, jax.Array]:
    (chain,), (change,) = primals, tangents

    @core.whole
    def counts(chain: Chain) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        found = forward(chain, method)
        messages = backward(chain, method)
        states = jnp.exp(normalized(found.filtered + messages))
        return jnp.sum(found.totals), states, expected_moves(chain, found, messages) if states.shape[0] else None

    def effect(count: jax.Array, change: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(count == 0, 0, count * change))

    value, states, moves = counts(chain)
    total = effect(states, change.scores)
    if moves is not None:
        total = total + effect(states[0], change.initial) + effect(moves, change.transition)
    return value, total


def stay(matrix: jax.Array) -> jax.Array:
    return monoids.log_matmul.identity(matrix) if monoids.log_matmul.identity else matrix


def _as_matrix(matrix: jax.Array, move: Any, scores: jax.Array) -> jax.Array:
    step = matrix if move is None else jnp.where(move, matrix, stay(matrix))
    return step + jnp.expand_dims(scores, 0)


def combined(before: jax.Array, after: jax.Array) -> jax.Array:
    joined = monoids.log_matmul.combine(before, after)
    return joined - top(joined)


def _combine_back(later: jax.Array, earlier: jax.Array) -> jax.Array:
    return combined(earlier, later)


def prefixes(chain: Chain, combine: Any = combined) -> jax.Array:
    """Messages (time, K) from the past, by products of matrices, up to a constant in each."""
    start = jnp.broadcast_to(chain.initial + chain.scores[0], (1, *chain.initial.shape * 2))
    elements = jnp.concatenate([start, chain.steps(_as_matrix, chain.scores[1:])])
    return scan.associative(combine, elements, method="parallel").states[:, 0]
