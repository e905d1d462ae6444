"""Filters of hidden Markov models: states given what has been observed so far, likelihoods, forecasts and streams."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.hmm._chain import forward, log_normalizer
from jaxprob.inference.hmm._scores import as_observations, chain_of, has_parts, pick, result_dtype
from jaxprob.models.state_space import HiddenMarkov


@core.pytree
class Filtered:
    """What a filter found. Rows are -inf throughout from where the observations are impossible.

    Attributes:
      log_probabilities: (time, K), of the state given the observations up to its time.
      predicted: (time, K), log probabilities of the state given the observations before its time.
      log_likelihoods: (time,), of the observations up to each time.
    """

    log_probabilities: jax.Array
    predicted: jax.Array
    log_likelihoods: jax.Array

    @property
    def probabilities(self) -> jax.Array:
        """(time, K), of the state given the observations up to its time."""
        return jnp.exp(self.log_probabilities)

    @property
    def log_likelihood(self) -> jax.Array:
        """(), of all observations; 0 for none."""
        if not self.log_likelihoods.shape[-1]:
            return jnp.zeros((), self.log_likelihoods.dtype)
        return self.log_likelihoods[..., -1]


def filter(model: HiddenMarkov, ys: Any, *, missing: Any = None, method: str = "auto") -> Filtered:
    """The states of a model given what has been observed so far, and the likelihood of the observations.

    Args:
      model: a `HiddenMarkov` of K states.
      ys: (time, *observation_shape), or (time,) where that is (1,). NaN is missing. Entries of a batch of emissions are
        missing one by one, as are those of a `MultivariateNormal`; another vector of which an entry is missing
        contributes nothing.
      missing: booleans of the shape of `ys`, or (time,), true where not observed; shorter series of a batch are padded,
        and missing there.
      method: "sequential", a loop of O(time K^2); "parallel", products of matrices in logarithmic depth and
        O(time K^3) work; or "auto": sequential on a CPU. Both agree to rounding.

    Returns:
      `Filtered`.

    Raises:
      ValueError: if shapes or time axes do not fit, or an observation is infinite.
      TypeError: if the model is none.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], Normal(jnp.array([0.0, 3.0]), 1.0))
    >>> found = filter(model, jnp.array([0.0, jnp.nan, 3.0]))
    >>> found.probabilities[:, 0].round(3).tolist(), round(found.log_likelihood.item(), 3)
    ([0.989..., 0.892..., 0.05...], -4.21)

    Source: Rabiner (1989), "A tutorial on hidden Markov models", section III.
    """
    values, seen = as_observations("hmm.filter", model, ys, missing)
    return _filter(model, values, seen, has_parts(model, seen), pick("hmm.filter", method, values.shape[0]))


def log_likelihood(model: HiddenMarkov, ys: Any, *, missing: Any = None, method: str = "auto") -> jax.Array:
    """The log density of the observations, (): that of `filter`; -inf where they are impossible.

    Its gradient is that of Fisher's identity, a smoother: finite in every parameter, impossible transitions included,
    whose derivative is zero.

    Args:
      model: a `HiddenMarkov`.
      ys: (time, *observation_shape); NaN is missing.
      missing: booleans, true where not observed.
      method: see `filter`.

    Raises:
      ValueError, TypeError: as `filter` does.

    >>> from jaxprob.distributions import Bernoulli
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([1.0, 0.0], [[0.5, 0.5], [0.0, 1.0]], Bernoulli(jnp.array([0.0, 1.0])))
    >>> round(float(jnp.exp(log_likelihood(model, jnp.array([0, 1, 1])))), 4)
    0.5
    """
    values, seen = as_observations("hmm.log_likelihood", model, ys, missing)
    how = pick("hmm.log_likelihood", method, values.shape[0])
    return _log_likelihood(model, values, seen, has_parts(model, seen), how)


@functools.partial(jax.jit, static_argnames=("parts", "method"))
def _filter(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool, method: str) -> Filtered:
    found = forward(chain_of(model, ys, seen, parts), method)
    result = Filtered(found.filtered, found.predicted, jnp.cumsum(found.totals))
    return jax.tree.map(lambda leaf: leaf.astype(result_dtype(model, ys)), result)


@functools.partial(jax.jit, static_argnames=("parts", "method"))
def _log_likelihood(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, parts: bool, method: str) -> jax.Array:
    return log_normalizer(chain_of(model, ys, seen, parts), method).astype(result_dtype(model, ys))
