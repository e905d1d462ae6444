"""An independence proposal for a block of variables given the rest, corrected by Metropolis-Hastings.

The proposal is never shown the block it is to propose, so that one evaluation of it serves both directions.

Source: Hastings (1970); Wang, Wu, Moore & Russell (2018), "Meta-learning MCMC proposals", for learned ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _gibbs
from jaxprob.inference.mcmc._metropolis import (
    MetropolisInfo,
    MetropolisState,
    accept,
    check_callable,
    initial,
    number,
    state_at,
)


class Block(NamedTuple):
    """Part of a position that is no entry of its own, such as some sites of a grid.

    Attributes:
      read: `position -> values of the block`.
      write: `(position, values) -> position` with other values of the block, all else as it was.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], Any]


def block_metropolis(
    log_density: core.LogDensity,
    proposal: Callable[[Any], Any],
    block: str | tuple[str, ...] | Block | None = None,
) -> core.Algorithm:
    """An independence proposal for a block given the rest, corrected by Metropolis-Hastings.

    With x_B the block and x_R the rest, draw x_B' ~ q(. | x_R) and go there with probability

    `min(1, p(x_B', x_R) q(x_B | x_R) / (p(x_B, x_R) q(x_B' | x_R)))`, else stay. A step evaluates the log density once,
    and the proposal once.

    Args:
      log_density: `position -> scalar`. A proposal where it is -inf or NaN is rejected.
      proposal: `rest -> q`, an object with `sample(key) -> values of the block` and `log_prob(values) -> scalar`. What
        it is given cannot depend on the block: for a block of names the other entries, a dict; for a `Block` the
        position with zeros in the block's place. A value where q has no mass is never left: mix in another kernel.
      block: a name or a tuple of names, a `Block`, or None as a block of `gibbs`, whose conditional density knows the
        rest: `gibbs(log_density, {"z": partial(block_metropolis, proposal=q), ...})`.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `MetropolisInfo`.

    Raises:
      TypeError: if a function cannot be called, or there is no block.
      ValueError: while tracing, if the proposal has another shape, or a log density is not one number.

    >>> from jaxprob.distributions import Normal
    >>> kernel = block_metropolis(
    ...     lambda q: -0.5 * q["x"] ** 2 - 0.5 * (q["y"] - q["x"]) ** 2, lambda rest: Normal(rest["x"], 1.0), block="y"
    ... )
    >>> state = kernel.init({"x": jnp.float32(0.3), "y": jnp.float32(2.0)}, jax.random.key(0))
    >>> float(kernel.step(jax.random.key(1), state)[1].acceptance_rate)
    1.0

    Source: Hastings (1970); with learned proposals Wang et al. (2018).
    """
    name = "block_metropolis"
    check_callable(name, log_density=log_density, proposal=proposal)
    read, write, rest = _parts(log_density, block)

    def init(position: Any, key: core.Key) -> MetropolisState:
        return initial(name, log_density, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        old = read(state.position)
        q = proposal(rest(state.position))
        drawn = q.sample(core.fold(key, 0))
        core.check_same_structure(name, "what the proposal draws", drawn, old, dtypes=False)
        new = jax.tree.map(lambda x, like: jnp.asarray(x).astype(like.dtype), drawn, old)
        terms = (number(name, "log_prob of the proposal", q.log_prob(value)) for value in (old, drawn))
        log_q, log_q_new = terms
        proposed = state_at(name, log_density, write(state.position, new))
        return accept(core.fold(key, 1), state, proposed, log_q, -log_q_new)

    return core.Algorithm(init, step)


def _parts(
    log_density: Any, block: Any
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any], Callable[[Any], Any]]:
    """Functions of a position: the block, the position with another one, and what the proposal may see."""
    if block is None:
        if not hasattr(log_density, "rest"):
            todo = "Without one, log_density must be the conditional that mcmc.gibbs hands to its blocks"
            raise core.bad_type("block_metropolis", "block", None, "names of entries, or a Block", todo)
        return lambda position: position, lambda position, values: values, lambda position: log_density.rest
    if isinstance(block, Block):

        def blank(position: Any) -> Any:
            return block.write(position, jax.tree.map(jnp.zeros_like, block.read(position)))

        return block.read, block.write, blank
    if not isinstance(block, str) and not (isinstance(block, tuple) and all(isinstance(name, str) for name in block)):
        raise core.bad_type("block_metropolis", "block", block, "names of entries, or a Block")
    return (
        partial(_gibbs.read, names=block),
        lambda position, values: _gibbs.write(position, block, values),
        partial(_gibbs.rest, names=block),
    )
