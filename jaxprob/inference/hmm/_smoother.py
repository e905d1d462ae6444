"""States of hidden Markov models given the whole series: marginals, pairs of neighbours, the best path, and draws."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.hmm import _chain as chains
from jaxprob.inference.hmm import _paths as paths
from jaxprob.inference.hmm._scores import as_observations, chain_of, has_parts, pick, result_dtype
from jaxprob.models.state_space import HiddenMarkov


@core.pytree
class Smoothed:
    """States given the whole series. Rows are -inf throughout where the observations are impossible.

    Attributes:
      log_probabilities: (time, K).
      log_likelihood: (), of the observations.
    """

    log_probabilities: jax.Array
    log_likelihood: jax.Array

    @property
    def probabilities(self) -> jax.Array:
        """(time, K)."""
        return jnp.exp(self.log_probabilities)


@core.pytree
class Path:
    """One path of states.

    Attributes:
      states: (time,), integers.
      log_probability: (), of these states and the observations together; -inf where all paths are impossible.
    """

    states: jax.Array
    log_probability: jax.Array


def smooth(
    model: HiddenMarkov, ys: Any, *, missing: Any = None, lag: int | None = None, method: str = "auto"
) -> Smoothed:
    """The states of a model given all that has been observed.

    Args:
      model: a `HiddenMarkov`.
      ys: (time, *observation_shape); NaN is missing.
      missing: booleans, true where not observed.
      lag: None for the whole series; else each state is given the observations of its own time and of so many after
        it, as they would be known in a stream (fixed lag).
      method: see `hmm.filter`.

    Returns:
      `Smoothed`.

    Raises:
      ValueError, TypeError: as `hmm.filter` does, and if `lag` is no number of times.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> smooth(model, jnp.array([0.0, jnp.nan, 3.0])).probabilities[:, 0].round(3).tolist()
    [0.96..., 0.532..., 0.05...]
    """
    values, seen = as_observations("hmm.smooth", model, ys, missing)
    times = values.shape[0]
    how = pick("hmm.smooth", method, times)
    if lag is not None and (isinstance(lag, bool) or not isinstance(lag, int) or lag < 0):
        raise core.bad_value("hmm.smooth", "lag", lag, "a number of times, at least 0, or None for all")
    return _smooth(model, values, seen, has_parts(model, seen), how, None if lag is None or lag >= times - 1 else lag)


def pairwise(model: HiddenMarkov, ys: Any, *, missing: Any = None, method: str = "auto") -> jax.Array:
    """Log probabilities (time - 1, K, K) of the states of a time (rows) and the next, given all observations.

    Args:
      model: a `HiddenMarkov`.
      ys: (time, *observation_shape); NaN is missing.
      missing: booleans, true where not observed.
      method: see `hmm.filter`.

    Raises:
      ValueError, TypeError: as `hmm.filter` does.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> jnp.exp(pairwise(model, jnp.array([0.0, 3.0]))).round(3).tolist()
    [[[0.084..., 0.841...], [0.0, 0.075...]]]
    """
    values, seen = as_observations("hmm.pairwise", model, ys, missing)
    how = pick("hmm.pairwise", method, values.shape[0])
    return _pairwise(model, values, seen, has_parts(model, seen), how)


def viterbi(model: HiddenMarkov, ys: Any, *, missing: Any = None, method: str = "auto") -> Path:
    """The most likely path of states given all observations, and its log probability together with them.

    Args:
      model: a `HiddenMarkov`.
      ys: (time, *observation_shape); NaN is missing.
      missing: booleans, true where not observed.
      method: see `hmm.filter`; of paths that are alike to rounding the two may find different ones.

    Returns:
      `Path`. The log probability can be differentiated, along the path.

    Raises:
      ValueError, TypeError: as `hmm.filter` does.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> viterbi(model, jnp.array([0.0, 0.4, 3.0, 2.8])).states.tolist()
    [0, 0, 1, 1]

    Source: Viterbi (1967), "Error bounds for convolutional codes".
    """
    values, seen = as_observations("hmm.viterbi", model, ys, missing)
    return _viterbi(model, values, seen, has_parts(model, seen), pick("hmm.viterbi", method, values.shape[0]))


def sample(
    key: core.Key, model: HiddenMarkov, ys: Any, *, missing: Any = None, shape: Any = (), method: str = "auto"
) -> jax.Array:
    """Draws of the whole path of states given all that has been observed.

    Args:
      key: random key.
      model: a `HiddenMarkov`.
      ys: (time, *observation_shape); NaN is missing.
      missing: booleans, true where not observed.
      shape: of independent draws.
      method: see `hmm.filter`.

    Returns:
      shape + (time,), integers.

    Raises:
      ValueError, TypeError: as `hmm.filter` does.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> sample(jax.random.key(0), model, jnp.array([0.0, 0.4, 3.0]), shape=(5,)).shape
    (5, 3)

    Source: Scott (2002), "Bayesian methods for hidden Markov models", forward filtering and backward sampling.
    """
    values, seen = as_observations("hmm.sample", model, ys, missing)
    how = pick("hmm.sample", method, values.shape[0])
    shape = core.as_shape("hmm.sample", shape)
    return _sample(core.as_key(key, "hmm.sample"), model, values, seen, shape, has_parts(model, seen), how)


@functools.partial(jax.jit, static_argnames=("parts", "method", "lag"))
def _smooth(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool, method: str, lag: int | None) -> Smoothed:
    chain = chain_of(model, ys, seen, parts)
    found = chains.forward(chain, method)
    messages = chains.backward(chain, method) if lag is None else chains.fixed_lag(chain, lag)
    result = Smoothed(chains.normalized(found.filtered + messages), jnp.sum(found.totals))
    return jax.tree.map(lambda leaf: leaf.astype(result_dtype(model, ys)), result)


@functools.partial(jax.jit, static_argnames=("parts", "method"))
def _pairwise(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool, method: str) -> jax.Array:
    chain = chain_of(model, ys, seen, parts)
    filtered, messages = chains.forward(chain, method).filtered, chains.backward(chain, method)
    return chains.pairs(chain, filtered, messages).astype(result_dtype(model, ys))


@functools.partial(jax.jit, static_argnames=("parts", "method"))
def _viterbi(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool, method: str) -> Path:
    chain = chain_of(model, ys, seen, parts)
    states = paths.best_path(chain, method)
    return Path(states, paths.path_weight(chain, states).astype(result_dtype(model, ys)))


@functools.partial(jax.jit, static_argnames=("shape", "parts", "method"))
def _sample(
    key: core.Key,
    model: HiddenMarkov,
    ys: jax.Array,
    seen: jax.Array,
    shape: tuple[int, ...],
    parts: bool,
    method: str,
) -> jax.Array:
    chain = chain_of(model, ys, seen, parts)
    filtered = chains.forward(chain, method).filtered
    keys = core.random.split(key, math.prod(shape))
    draws = jax.vmap(lambda key: paths.random_path(key, chain, filtered, method))(keys)
    return draws.reshape(*shape, ys.shape[0])
