"""Many chains side by side that do not wait for each other.

Under `vmap` every transition lasts as long as that of the slowest chain. Here each iteration of one loop makes one move
(one gradient) of every chain, wherever that chain is: at another node of its tree, in another transition. A chain
waits only at the end, for the slowest sum of all its transitions; these differ far less than single ones do.

Source: the state machine of an iterative NUTS (Phan, Pradhan & Jankowiak 2019; Lao & Dillon 2019), run free of
lock-step as Radul et al. (2020), "Automatically batching control-intensive programs", do for programs in general.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core

IDLE = 8  # one chain in so many may wait for its next transition: beginning one draws random numbers for all chains


class _Loop(NamedTuple):
    """The carry of the loop."""

    work: Any  # (chain, ...), transitions under way
    finished: jax.Array  # (chain,), bool
    states: Any  # (chain, ...), after the last transition that ended
    steps: jax.Array  # (chain,), transitions that ended
    rows: Any  # (capacity, chain, ...)


def interleave(
    kernel: core.Interruptible,
    begin_key: Callable[[jax.Array, jax.Array], core.Key],
    states: Any,
    count: Any,
    capacity: int,
    *,
    keep: Callable[[Any, Any], Any] = lambda state, info: (core.position_of(state), info),
    combine: Callable[[Any, Any], Any] = lambda old, new: new,
    thin: Any = 1,
) -> tuple[Any, Any]:
    """Runs `count * thin` transitions of many chains, each at its own pace, with the draws of `vmap(kernel.step)`.

    Args:
      kernel: an algorithm with moves, such as `nuts(...)`.
      begin_key: `(chain, step) -> key`, of step 0, 1, ... of chain 0, 1, ...
      states: pytree (chain, ...).
      count: rows to fill, at most `capacity`; may be traced.
      capacity: rows of the result; part of the program.
      keep: `(state, info) -> row`, what is kept of a transition.
      combine: `(row so far, new row) -> row`, where a row stands for several transitions.
      thin: transitions for one row; may be traced.

    Returns:
      the last states (chain, ...), and the rows (capacity, chain, ...), of which the first `count` are meant.

    Raises:
      TypeError: if the kernel has no moves.

    >>> from jaxprob.inference import mcmc
    >>> kernel = mcmc.nuts(lambda q: -0.5 * (q**2).sum(), step_size=0.5)
    >>> starts = jax.vmap(kernel.init)(jnp.ones((3, 2)), jax.random.split(jax.random.key(0), 3))
    >>> states, (draws, info) = interleave(
    ...     kernel, lambda chain, step: core.fold(jax.random.key(1), chain, step), starts, 5, 5
    ... )
    >>> draws.shape
    (5, 3, 2)
    """
    if not isinstance(kernel, core.Interruptible):
        todo = "mcmc.nuts makes one; map the step of any other algorithm with vmap"
        raise core.bad_type("interleave", "kernel", kernel, "an algorithm made of moves", todo)
    chains = jax.tree.leaves(states)[0].shape[0]
    indices = jnp.arange(chains)
    total = jnp.minimum(jnp.asarray(count, jnp.int32), capacity) * thin

    def begin(steps: jax.Array, states: Any) -> Any:
        return jax.vmap(lambda chain, step, state: kernel.begin(begin_key(chain, step), state))(indices, steps, states)

    def row_of(work: Any) -> tuple[Any, Any]:
        state, info = kernel.end(work)
        return state, keep(state, info)

    def turn(loop: _Loop) -> _Loop:
        """Ends the transitions that have finished and begins the next of those chains."""
        ready = loop.finished & (loop.steps < total)
        new, rows = jax.vmap(row_of)(loop.work)
        states, steps = _select(ready, new, loop.states), loop.steps + ready.astype(jnp.int32)
        place = jnp.where(ready, loop.steps // thin, capacity)  # beyond the end where there is nothing to write
        again = ready & (loop.steps % thin > 0)

        def write(whole: jax.Array, part: jax.Array) -> jax.Array:
            return whole.at[place, indices].set(part, mode="drop", unique_indices=True)

        # The row so far is read only where a row stands for several transitions.
        so_far = jax.tree.map(lambda whole: whole.at[place, indices].get(mode="clip"), loop.rows)
        rows = _select(again, jax.vmap(combine)(so_far, rows), rows)
        work = _select(ready, begin(steps, states), loop.work)
        more = loop.finished & ~ready
        return _Loop(work, more, states, steps, jax.tree.map(write, loop.rows, rows))

    def body(loop: _Loop) -> _Loop:
        work = jax.vmap(kernel.move)(loop.work)
        loop = loop._replace(work=work, finished=loop.finished | jax.vmap(kernel.finished)(work))
        under_way = loop.steps < total
        waiting = jnp.sum(loop.finished & under_way)
        due = waiting * IDLE >= jnp.sum(under_way)
        return core.cond(due, turn, lambda same: same, loop)

    steps = jnp.zeros((chains,), jnp.int32)
    work = begin(steps, states)
    shape = jax.eval_shape(jax.vmap(row_of), work)[1]
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shape)
    loop = _Loop(work, jnp.zeros((chains,), bool), states, steps, rows)
    loop = core.while_loop(lambda loop: jnp.any(loop.steps < total), body, loop)
    return loop.states, loop.rows


def _select(which: jax.Array, new: Any, old: Any) -> Any:
    """Per chain `new` or `old`."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)
