"""The contract of every iterative inference method: a pair of pure functions.

`init` makes a state from a position; `step` makes one transition. A method is a lower-case factory that returns the
pair. Methods whose tuning is shared by several chains (warm-up) keep it apart from the chain in `Shared`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from jaxprob.core._keys import Key

Position: TypeAlias = Any
State: TypeAlias = Any
Info: TypeAlias = Any
LogDensity: TypeAlias = Callable[[Any], Any]


class Algorithm(NamedTuple):
    """An iterative inference method for one chain.

    Attributes:
      init: `(position, key) -> state`; position is any pytree.
      step: `(key, state) -> (state, info)`; one transition. `state` holds what the next step needs and has a field
        `position`, or is a `Shared` whose `chain` has one; `info` holds scalars a person would look at.
    """

    init: Callable[[Position, Key], State]
    step: Callable[[Key, State], tuple[State, Info]]


class Interruptible(NamedTuple):
    """An algorithm whose transitions are made of small moves of equal cost.

    Chains that are mapped side by side need not wait for each other: one may begin its next transition while another
    is still on its way. `step` is `begin`, then `move` until `finished`, then `end`, and gives the same draws.

    Attributes:
      init: `(position, key) -> state`, as in `Algorithm`.
      step: `(key, state) -> (state, info)`, as in `Algorithm`.
      begin: `(key, state) -> work`, a transition that is about to move.
      move: `work -> work`; of a transition that has finished it changes nothing that counts.
      finished: `work -> bool`.
      end: `work -> (state, info)`, of a transition that has finished.
    """

    init: Callable[[Position, Key], State]
    step: Callable[[Key, State], tuple[State, Info]]
    begin: Callable[[Key, State], Any]
    move: Callable[[Any], Any]
    finished: Callable[[Any], jax.Array]
    end: Callable[[Any], tuple[State, Info]]


class Shared(NamedTuple):
    """A state in two parts: what belongs to one chain, and what all chains have in common.

    A runner that has several chains maps over `chain` alone, with `axis_name` set, and keeps one `shared`:
    `vmap(step, in_axes=(0, Shared(0, None)), out_axes=(Shared(0, None), 0), axis_name=...)`. The algorithm sees to it
    that `shared` comes out the same for every chain.

    Attributes:
      chain: pytree that differs between chains.
      shared: pytree that is the same for every chain.
    """

    chain: Any
    shared: Any


def position_of(state: State) -> Position:
    """The position in a state of any algorithm (`state.position`, or `state.chain.position` for `Shared`)."""
    return position_of(state.chain) if isinstance(state, Shared) else state.position
