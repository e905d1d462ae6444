"""Density estimation: a flow, a guide or any distribution of unconstrained parameters, fitted to draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.inference.vi._objective import Objective, _at, _call

NAME = "maximum_likelihood"


def maximum_likelihood(start: Any | Callable[[core.Key], Any]) -> Objective:
    """Maximum likelihood: makes KL(data || q) small, which is the mean of -log q over the data but for a constant.

    `learning.Task(*vi.maximum_likelihood(flow), optimizer)` trains a flow on batches.

    Args:
      start: a flow, or a guide, whose leaves are the parameters to start from; or a function `key -> flow`. A flow of
        conditional densities (`context_size` above 0) has batches of pairs (draws, contexts).

    Returns:
      an `Objective`: `loss(params, batch, key)` is the mean over a batch of draws (example, ...) of their -log q, in
      nats. The metric "elbo" is minus that. Outside of `jit` a loss checks that the draws lie where the flow does.

    Raises:
      TypeError: if `start` is neither; at a loss, if a function's result has no `log_prob`.
      ValueError: at a loss, for a batch without examples, or a known draw outside of the support.

    >>> from jaxprob.inference.vi import mean_field
    >>> objective = maximum_likelihood(mean_field(1.0).init(jax.random.key(0), jnp.zeros(2)))
    >>> loss, _ = objective.loss(objective.init(jax.random.key(1)), jnp.zeros((10, 2)), jax.random.key(2))
    >>> round(loss.item(), 4)  # log 2 pi
    1.8379
    """
    if hasattr(start, "log_prob"):
        init = Partial(_at, jax.tree.map(jnp.asarray, start))
    elif callable(start):
        init = Partial(_call, core.as_partial(start))
    else:
        raise core.bad_type(NAME, "start", start, "a flow, a guide or a function of a key that makes one")
    return Objective(init, Partial(_loss))


def _loss(params: Any, batch: Any, key: core.Key) -> Any:
    if not hasattr(params, "log_prob"):
        raise core.bad_type(NAME, "params", params, "a flow or a guide, with log_prob")
    if getattr(params, "context_size", 0):
        if not (isinstance(batch, tuple) and len(batch) == 2):
            raise core.bad_value(NAME, "batch", core.describe(batch), "a pair (draws, contexts)", "It is conditional")
        draws, contexts = batch
        _check(params, draws)
        log_prob = jax.vmap(lambda x, context: params.given(context).log_prob(x))(draws, contexts)
    else:
        _check(params, batch)
        log_prob = params.log_prob(batch)
    value = jnp.mean(log_prob)
    return -value, {"elbo": value}


def _check(params: Any, draws: Any) -> None:
    """Raises a `ValueError` for a known draw that is not finite, or not in the support."""
    leaves = jax.tree.leaves(draws)
    if not leaves or any(jnp.shape(leaf)[:1] in ((), (0,)) for leaf in leaves):
        raise core.bad_value(NAME, "batch", core.describe(draws), "draws (example, ...), one at least")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    support = getattr(params, "support", None)
    if support is not None:
        inside, expected = support.contains(draws), "in its support"
    else:
        rows = [jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1) for leaf in map(jnp.asarray, leaves)]
        inside, expected = jnp.all(jnp.stack(rows), axis=0), "finite"
    if isinstance(inside, jax.core.Tracer):  # the edges of the support are parameters
        return
    outside = np.flatnonzero(~np.asarray(inside).reshape(len(leaves[0]), -1).all(axis=1))
    if outside.size:
        first = int(outside[0])
        got = f"with {outside.size} draws that the density is not for, the first batch[{first}]"
        raise core.bad_value(NAME, "batch", got, f"draws that are {expected}", "Transform the data, or the flow")
