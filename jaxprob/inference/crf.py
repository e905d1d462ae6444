"""Linear-chain conditional random fields: normaliser, marginals, the best tags, and draws, masked positions skipped.

The log normaliser is differentiated by its marginals, so that a network that gives the scores trains on `log_prob`.

Source: Lafferty, McCallum & Pereira (2001), "Conditional random fields"; Lample et al. (2016), "Neural architectures
for named entity recognition", section 2.2.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.inference.hmm import Path
from jaxprob.inference.hmm import _chain as chains
from jaxprob.inference.hmm import _paths as paths
from jaxprob.inference.hmm._scores import pick
from jaxprob.models.state_space import LinearChain


def log_normalizer(field: LinearChain, *, method: str = "auto") -> jax.Array:
    """log Z, (): the logarithm of the exponentials of the scores of all sequences of tags; 0 for no positions.

    Args:
      field: a `LinearChain`.
      method: "sequential", "parallel" or "auto", as for `hmm.filter`.

    Raises:
      TypeError: if `field` is none.

    >>> from jaxprob.models.state_space import LinearChain
    >>> round(log_normalizer(LinearChain(jnp.zeros((5, 2)), jnp.zeros((2, 2)))).item(), 4)  # 5 log 2
    3.4657
    """
    return _log_normalizer(field, _checked("crf.log_normalizer", field, method))


def log_prob(field: LinearChain, tags: Any, *, method: str = "auto") -> jax.Array:
    """The log probability of a sequence of tags, ().

    Args:
      field: a `LinearChain`.
      tags: (time,) integers; those of masked positions are not read.
      method: see `log_normalizer`.

    Raises:
      ValueError: if `tags` are none of the field.

    >>> from jaxprob.models.state_space import LinearChain
    >>> round(log_prob(LinearChain(jnp.zeros((5, 2)), jnp.zeros((2, 2))), jnp.array([0, 1, 1, 0, 1])).item(), 4)
    -3.4657
    """
    how = _checked("crf.log_prob", field, method)
    tags = jnp.asarray(tags)
    times = field.emissions.shape[0]
    if tags.shape != (times,) or not jnp.issubdtype(tags.dtype, jnp.integer):
        raise core.bad_value("crf.log_prob", "tags", tags, f"integers of shape ({times},)")
    if not isinstance(tags, jax.core.Tracer) and not isinstance(field.mask, jax.core.Tracer):
        read = np.asarray(tags)[slice(None) if field.mask is None else np.asarray(field.mask)]
        if ((read < 0) | (read >= field.tag_size)).any():
            got = f"from {read.min()} to {read.max()}"
            raise core.bad_value("crf.log_prob", "tags", got, f"0 to {field.tag_size - 1}")
    return _log_prob(field, tags, how)


def marginals(field: LinearChain, *, method: str = "auto") -> jax.Array:
    """Probabilities (time, K) of the tags at each position; zero where masked.

    Args:
      field: a `LinearChain`.
      method: see `log_normalizer`.

    Raises:
      TypeError: if `field` is none.

    >>> from jaxprob.models.state_space import LinearChain
    >>> marginals(LinearChain(jnp.zeros((2, 2)), jnp.array([[0.0, -jnp.inf], [0.0, 0.0]]))).round(3).tolist()
    [[0.333..., 0.667...], [0.667..., 0.333...]]
    """
    return _marginals(field, _checked("crf.marginals", field, method))


def viterbi(field: LinearChain, *, method: str = "auto") -> Path:
    """The most likely sequence of tags, -1 where masked, and its log probability.

    Args:
      field: a `LinearChain`.
      method: see `log_normalizer`.

    Raises:
      TypeError: if `field` is none.

    >>> from jaxprob.models.state_space import LinearChain
    >>> viterbi(LinearChain(jnp.array([[1.0, 0.0], [0.0, 0.5]]), jnp.array([[0.0, -1.0], [0.0, 0.0]]))).states.tolist()
    [0, 0]
    """
    return _viterbi(field, _checked("crf.viterbi", field, method))


def sample(key: core.Key, field: LinearChain, *, shape: Any = (), method: str = "auto") -> jax.Array:
    """Draws of sequences of tags, shape + (time,); -1 where masked.

    Args:
      key: random key.
      field: a `LinearChain`.
      shape: of independent draws.
      method: see `log_normalizer`.

    Raises:
      TypeError: if `field` is none.

    >>> from jaxprob.models.state_space import LinearChain
    >>> sample(jax.random.key(0), LinearChain(jnp.zeros((5, 3)), jnp.zeros((3, 3))), shape=(2,)).shape
    (2, 5)
    """
    how = _checked("crf.sample", field, method)
    shape = core.as_shape("crf.sample", shape)
    return _sample(core.as_key(key, "crf.sample"), field, shape, how)


def _checked(function: str, field: Any, method: str) -> str:
    if not isinstance(field, LinearChain):
        raise core.bad_type(function, "field", field, "a LinearChain")
    return pick(function, method, field.emissions.shape[0])


def _chain(field: LinearChain) -> chains.Chain:
    """Masked positions have no score, and the tag of the one before; those at the beginning, that of the first."""
    dtype = core.accumulator_dtype(field.emissions.dtype)
    emissions, transitions, initial, final = (
        array.astype(dtype) for array in (field.emissions, field.transitions, field.initial, field.final)
    )
    moves = None
    if field.mask is not None:
        emissions = jnp.where(jnp.expand_dims(field.mask, 1), emissions, 0)
        moves = field.mask[1:] & (jnp.cumsum(field.mask[:-1]) > 0)
    if emissions.shape[0]:
        emissions = emissions.at[-1].add(final)
    return chains.Chain(initial, transitions, emissions, moves)


def _unmasked(field: LinearChain, values: jax.Array, other: Any) -> jax.Array:
    """The values (time, ...), something else where masked."""
    if field.mask is None:
        return values
    return jnp.where(jnp.expand_dims(field.mask, tuple(range(1, values.ndim))), values, other)


def _zero_if_empty(field: LinearChain, value: jax.Array) -> jax.Array:
    return value if field.mask is None else jnp.where(jnp.any(field.mask), value, 0)


@functools.partial(jax.jit, static_argnames="method")
def _log_normalizer(field: LinearChain, method: str) -> jax.Array:
    total = chains.log_normalizer(_chain(field), method)
    return _zero_if_empty(field, total).astype(field.emissions.dtype)


@functools.partial(jax.jit, static_argnames="method")
def _log_prob(field: LinearChain, tags: jax.Array, method: str) -> jax.Array:
    if field.mask is not None and tags.shape[0]:
        index = jnp.arange(tags.shape[0])
        here = lax.cummax(jnp.where(field.mask, index, -1))
        tags = tags[jnp.where(here < 0, jnp.argmax(field.mask), here)]
    chain = _chain(field)
    value = paths.path_weight(chain, tags) - chains.log_normalizer(chain, method)
    return _zero_if_empty(field, value).astype(field.emissions.dtype)


@functools.partial(jax.jit, static_argnames="method")
def _marginals(field: LinearChain, method: str) -> jax.Array:
    chain = _chain(field)
    messages = chains.forward(chain, method).filtered + chains.backward(chain, method)
    return _unmasked(field, jnp.exp(chains.normalized(messages)), 0).astype(field.emissions.dtype)


@functools.partial(jax.jit, static_argnames="method")
def _viterbi(field: LinearChain, method: str) -> Path:
    chain = _chain(field)
    tags = paths.best_path(chain, method)
    value = paths.path_weight(chain, tags) - chains.log_normalizer(chain, method)
    return Path(_unmasked(field, tags, -1), _zero_if_empty(field, value).astype(field.emissions.dtype))


@functools.partial(jax.jit, static_argnames=("shape", "method"))
def _sample(key: core.Key, field: LinearChain, shape: tuple[int, ...], method: str) -> jax.Array:
    chain = _chain(field)
    filtered = chains.forward(chain, method).filtered
    keys = core.random.split(key, math.prod(shape))
    draws = jax.vmap(lambda key: _unmasked(field, paths.random_path(key, chain, filtered, method), -1))(keys)
    return draws.reshape(*shape, field.emissions.shape[0])
