"""Pairwise Markov random fields: a graph, and functions of one node or one edge."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import numpy as np

from jaxprob import core

OPTIONAL = ("transition", "sample_conditional", "log_conditional", "log_initial", "log_transition")


@core.pytree
class MarkovField:
    """A pairwise Markov random field, `prod_s M_s(dx_s) phi_s(x_s, y) prod_(a,b) psi_ab(x_a, x_b)`.

    All nodes have states of one structure and the same shapes. `node` and `edge` are int32 scalars by which a function
    finds what belongs to it, as in `offsets[edge]`. A function with parameters is a `jax.tree_util.Partial`, or closes
    over them; one that is made anew for each call is compiled anew.

    Attributes:
      nodes: how many nodes there are.
      edges: pairs of nodes (first, second), each pair once; () for nodes on their own.
      initial: `(key, node) -> state`, draws from M, the law of a node before anything is observed.
      log_unary: `(state, node, y) -> scalar`, log phi; -inf where a state is impossible.
      log_pairwise: `(state of first, state of second, edge) -> scalar`, log psi. Need not be normalised.
      transition: `(key, state, node) -> state`, how a node moves from one time to the next; for `belief_step`.
      sample_conditional: `(key, given, edge, forward) -> state`, draws the state of one end of an edge given that of
        the other: of the second given the first where `forward`, a boolean scalar. With it particles are drawn from
        the beliefs of neighbours too, and not from the initial law or the transition alone.
      log_conditional: `(given, drawn, edge, forward) -> scalar`, log density of `sample_conditional`; `log_pairwise` by
        default, which must then be normalised in either direction.
      log_initial: `(state, node) -> scalar`, log density of `initial`; needed with `sample_conditional`.
      log_transition: `(old, new, node) -> scalar`, log density of `transition`; needed with both.

    Raises:
      ValueError: for a graph that is none, or densities missing.
      TypeError: for what is no function.

    >>> field = MarkovField(
    ...     nodes=2,
    ...     edges=((0, 1),),
    ...     initial=lambda key, node: jax.random.normal(key),
    ...     log_unary=lambda x, node, y: -0.5 * (x - y[node]) ** 2,
    ...     log_pairwise=lambda a, b, edge: -0.5 * (a - b) ** 2,
    ... )
    >>> field.edges
    ((0, 1),)
    """

    nodes: int = core.static()
    edges: tuple[tuple[int, int], ...] = core.static()
    initial: Any
    log_unary: Any
    log_pairwise: Any
    transition: Any = None
    sample_conditional: Any = None
    log_conditional: Any = None
    log_initial: Any = None
    log_transition: Any = None

    def __post_init__(self) -> None:
        name = "particle.MarkovField"
        core.check_whole(name, nodes=self.nodes)
        object.__setattr__(self, "edges", _as_edges(name, self.nodes, self.edges))
        for argument in ("initial", "log_unary", "log_pairwise", *OPTIONAL):
            function = getattr(self, argument)
            if not callable(function) and not (argument in OPTIONAL and function is None):
                raise core.bad_type(name, argument, function, "a function")
            object.__setattr__(self, argument, core.as_partial(function))
        if self.sample_conditional is not None:
            needed = ["log_initial"] if self.transition is None else ["log_initial", "log_transition"]
            for argument in needed:
                if getattr(self, argument) is None:
                    todo = "What it draws is weighted by it"
                    raise core.bad_value(name, argument, None, "a log density, with sample_conditional", todo)


class Wiring(NamedTuple):
    """The graph as arrays of NumPy. Directed edges are numbered: all forward ones, then all backward ones.

    Attributes:
      sender: (directed,), nodes.
      receiver: (directed,), nodes.
      into: (node, most), directed edges that arrive at a node; 0 beyond as many as there are.
      arrives: (node, most), whether there is one.
      others: (directed, most), of those that arrive at the sender, whether one is there and is not the way back.
    """

    sender: np.ndarray
    receiver: np.ndarray
    into: np.ndarray
    arrives: np.ndarray
    others: np.ndarray


def _as_edges(name: str, nodes: int, edges: Any) -> tuple[tuple[int, int], ...]:
    expected = f"pairs of two different nodes below {nodes}"
    try:
        pairs = tuple((operator.index(a), operator.index(b)) for a, b in edges)
    except (TypeError, ValueError):
        raise core.bad_value(name, "edges", edges, expected) from None
    for pair in pairs:
        if pair[0] == pair[1] or not all(0 <= node < nodes for node in pair):
            raise core.bad_value(name, "an edge", pair, expected)
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise core.bad_value(name, "edges", pairs, "each pair of nodes once", "Add the potentials of a pair up")
    return pairs


@functools.lru_cache(maxsize=128)
def longest_path(nodes: int, edges: tuple[tuple[int, int], ...]) -> int:
    """The longest of the shortest paths between two nodes that are connected."""
    near: list[list[int]] = [[] for _ in range(nodes)]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    longest = 0
    for start in range(nodes):
        reached, last, steps = {start}, {start}, -1
        while last:
            last, steps = {node for old in last for node in near[old]} - reached, steps + 1
            reached = reached | last
        longest = max(longest, steps)
    return longest


def wiring_of(nodes: int, edges: tuple[tuple[int, int], ...]) -> Wiring:
    """The graph of these edges."""
    pairs = np.array(edges, np.int32).reshape(-1, 2)
    number = len(pairs)
    sender, receiver = np.concatenate([pairs, pairs[:, ::-1]]).T
    arriving = [np.flatnonzero(receiver == node) for node in range(nodes)]
    most = max(len(row) for row in arriving)
    into = np.array([np.pad(row, (0, most - len(row))) for row in arriving], np.int32)
    arrives = np.array([np.arange(most) < len(row) for row in arriving])
    back = (np.arange(2 * number) + number) % max(2 * number, 1)
    return Wiring(sender, receiver, into, arrives, arrives[sender] & (into[sender] != back[:, None]))
