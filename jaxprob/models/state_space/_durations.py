"""Hidden Markov models made of others: states that last as long as a law of durations says, and chains side by side.

Both are ordinary hidden Markov models over a larger set of states, which every method of `inference.hmm` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models.state_space._hidden_markov import HiddenMarkov


def explicit_durations(model: HiddenMarkov, durations: Any, *, longest: int | None = None) -> HiddenMarkov:
    """A hidden semi-Markov model: on entering state k a duration is drawn, and only after it a transition is made.

    State `k * D + r` of the result is state k with r times to come after this one, so that probabilities (time, K * D)
    reshape to (time, K, D), and sum over the last axis to those of the states. A transition from k to k, where the
    model allows it, starts a new duration.

    Args:
      model: its transition is used where a duration ends; it does not vary in time.
      durations: (K, D), row k the probabilities of lasting 1, ..., D times; or a distribution over counts with
        batch_shape (K,), restricted to 1, ..., `longest`.
      longest: D, with a distribution.

    Returns:
      a `HiddenMarkov` of K D states.

    Raises:
      ValueError: if sizes do not fit or the transition varies in time.

    >>> from jaxprob.distributions import Normal
    >>> model = HiddenMarkov([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> explicit_durations(model, jnp.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])).state_size
    6

    Source: Yu (2010), "Hidden semi-Markov models", residual-time form.
    """
    name, states = "explicit_durations", model.state_size
    if model.time_varying:
        raise core.bad_value(name, "model", "one whose transition varies in time", "one whose transition does not")
    if isinstance(durations, Distribution):
        if not isinstance(longest, int) or longest < 1:
            raise core.bad_value(name, "longest", longest, "the largest duration, 1 or more, with a distribution")
        log_mass = jax.vmap(durations.log_prob)(jnp.arange(1, longest + 1)).T
        table = jnp.exp(log_mass - core.logsumexp(log_mass, -1, keepdims=True))
    else:
        table = core.as_float(durations)
    if table.ndim != 2 or table.shape[0] != states or not table.shape[1]:
        raise core.bad_value(name, "durations", f"of shape {table.shape}", f"shape ({states}, longest)")
    dtype, length = core.result_dtype(model.initial, table), table.shape[1]
    table, size = table.astype(dtype), states * length
    enter = jnp.expand_dims(model.transition.astype(dtype), 2) * jnp.expand_dims(table, 0)
    transition = jnp.zeros((states, length, states, length), dtype).at[:, 0].set(enter)
    if length > 1:
        state, left = (grid.ravel() for grid in np.indices((states, length - 1)))
        transition = transition.at[state, left + 1, state, left].set(1)
    labels = jnp.arange(states) if model.labels is None else model.labels
    return HiddenMarkov(
        (jnp.expand_dims(model.initial.astype(dtype), 1) * table).reshape(size),
        transition.reshape(size, size),
        model.emission,
        inputs=model.inputs,
        history=model.history,
        labels=jnp.repeat(labels, length, total_repeat_length=size),
    )


def factorial(chains: Sequence[tuple[Any, Any]], emission: Callable[[jax.Array], Distribution]) -> HiddenMarkov:
    """Several independent chains that together emit one observation, as one model over the product of their states.

    Args:
      chains: pairs `(initial, transition)`, (K_c,) and (K_c, K_c).
      emission: from the table (K, chains) of the states of all chains in each joint state, K the product of the K_c, to
        a distribution whose batch_shape leads with K. The last chain runs fastest, so that probabilities (time, K)
        reshape to (time, K_1, K_2, ...).

    Returns:
      a `HiddenMarkov` of K states.

    Raises:
      ValueError: if there is no chain, or shapes do not fit.

    >>> from jaxprob.distributions import Normal
    >>> chain, means = ([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]]), jnp.array([0.0, 1.0])
    >>> model = factorial([chain, chain], lambda states: Normal(means[states[:, 0]] + 10 * means[states[:, 1]], 1.0))
    >>> model.emission.loc.tolist()
    [0.0, 10.0, 1.0, 11.0]

    Source: Ghahramani & Jordan (1997), "Factorial hidden Markov models".
    """
    if not chains:
        raise core.bad_value("factorial", "chains", "empty", "at least one pair (initial, transition)")
    initial, transition = jnp.ones(1), jnp.ones((1, 1))
    sizes = []
    for index, (one, matrix) in enumerate(chains):
        one, matrix = core.as_float(jnp.asarray(one)), core.as_float(jnp.asarray(matrix))
        if one.ndim != 1 or matrix.shape != one.shape * 2:
            got = f"of shapes {one.shape} and {matrix.shape}"
            raise core.bad_value("factorial", f"chain {index}", got, "shapes (K,) and (K, K)")
        dtype = core.result_dtype(one, matrix) if index == 0 else core.result_dtype(initial, one, matrix)
        sizes.append(one.shape[0])
        initial = jnp.kron(initial.astype(dtype), one.astype(dtype))
        transition = jnp.kron(transition.astype(dtype), matrix.astype(dtype))
    table = np.stack([axis.ravel() for axis in np.indices(sizes)], 1)
    return HiddenMarkov(initial, transition, emission(jnp.asarray(table)))
