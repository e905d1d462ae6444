"""Networks of a hierarchical Gaussian filter: nodes by name, and what each takes from its parents.

The numbers are leaves of a pytree; the graph is its structure, and the order of the updates follows from that.
Source: Weber, Waade, Legrand, Møller, Stephan & Mathys (2023), "The generalized hierarchical Gaussian filter".
"""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxprob import core

Parents = str | Iterable[str] | Mapping[str, Any] | None


@core.pytree
class Node:
    """One node; made by `state`, `continuous`, `binary` or `categorical`.

    Attributes:
      mean: (), of the belief before the first step; None, as the next, of what is observed.
      precision: (), its precision.
      log_variance: (), omega: of a state the log variance that a unit of time adds, of a continuous observation that
        of its noise, where the volatility parents are zero; None for others.
      drift: (), rho: what a unit of time adds to the mean of a state; what is added to what an observation takes.
      autoregression: (), lambda: the share of the distance from the centre that is left after a unit of time.
      center: (), where a state with an autoregression below 1 returns to.
      value_strengths: psi of each value parent.
      volatility_strengths: kappa of each volatility parent.
      kind: "state", "continuous", "binary" or "categorical".
      value_parents: names.
      functions: of each value parent, its coupling function, or None for the identity.
      volatility_parents: names.
    """

    mean: Any
    precision: Any
    log_variance: Any
    drift: Any
    autoregression: Any
    center: Any
    value_strengths: tuple[Any, ...]
    volatility_strengths: tuple[Any, ...]
    kind: str = core.static()
    value_parents: tuple[str, ...] = core.static()
    functions: tuple[Callable[[Any], Any] | None, ...] = core.static()
    volatility_parents: tuple[str, ...] = core.static()


def state(
    *,
    mean: Any = 0.0,
    precision: Any = 1.0,
    log_variance: Any = -4.0,
    drift: Any = 0.0,
    autoregression: Any = 1.0,
    center: Any = 0.0,
    value_parents: Parents = None,
    volatility_parents: Parents = None,
) -> Node:
    """A continuous state, which is not observed.

    x' = m + lambda^dt (x - m) + dt (rho + sum_b psi_b g_b(x_b)) + N(0, dt exp(omega + sum_c kappa_c x_c))

    Args:
      mean: of the belief before the first step.
      precision: of that belief, positive.
      log_variance: omega.
      drift: rho.
      autoregression: lambda, from 0 to 1: 1 is a random walk.
      center: m.
      value_parents: the name of a state, several names, or a mapping of names to strengths psi or to pairs (psi, g) of
        a strength and a coupling function of one number, twice differentiable. Define functions once: each new one
        compiles anew.
      volatility_parents: names, or a mapping of names to strengths kappa.

    Raises:
      ValueError: if a known precision is not positive, or an autoregression outside [0, 1].
    """
    for name, value, fits, expected in (
        ("precision", precision, lambda x: x > 0, "a positive number"),
        ("autoregression", autoregression, lambda x: (x >= 0) & (x <= 1), "a number from 0 to 1"),
    ):
        if not isinstance(value, jax.core.Tracer) and not np.all(fits(np.asarray(value))):
            raise core.bad_value("hgf.state", name, value, expected)
    numbers = mean, precision, log_variance, drift, autoregression, center
    return _node("state", numbers, value_parents, volatility_parents)


def continuous(
    value_parents: Parents, *, log_variance: Any = 0.0, offset: Any = 0.0, volatility_parents: Parents = None
) -> Node:
    """An observed number: y = rho + sum_b psi_b g_b(x_b) + N(0, exp(omega + sum_c kappa_c x_c)).

    Args:
      value_parents: see `state`.
      log_variance: omega.
      offset: rho.
      volatility_parents: states that the log variance of the noise depends on, see `state`.
    """
    return _node("continuous", (None, None, log_variance, offset, None, None), value_parents, volatility_parents)


def binary(value_parents: Parents, *, offset: Any = 0.0) -> Node:
    """An observed 0 or 1: the log odds of a 1 are rho + sum_b psi_b g_b(x_b).

    Args:
      value_parents: see `state`.
      offset: rho.
    """
    return _node("binary", (None, None, None, offset, None, None), value_parents, None)


def categorical(value_parents: Parents) -> Node:
    """An observed category, 0 to K - 1: the log probability of k is psi_k g_k(x_k) less the normaliser (softmax).

    Args:
      value_parents: one state for each category, in their order, see `state`.
    """
    return _node("categorical", (None,) * 6, value_parents, None)


def _node(kind: str, numbers: tuple[Any, ...], value_parents: Parents, volatility_parents: Parents) -> Node:
    values, volatilities = (_edges(kind, parents) for parents in (value_parents, volatility_parents))
    if kind != "state" and not values:
        raise core.bad_value(f"hgf.{kind}", "value_parents", "empty", "the name of a state, or several")
    mean, precision, log_variance, drift, autoregression, center = (
        None if number is None else core.as_float(number) for number in numbers
    )
    return Node(
        mean=mean,
        precision=precision,
        log_variance=log_variance,
        drift=drift,
        autoregression=autoregression,
        center=center,
        value_strengths=tuple(core.as_float(strength) for _, strength, _ in values),
        volatility_strengths=tuple(core.as_float(strength) for _, strength, _ in volatilities),
        kind=kind,
        value_parents=tuple(name for name, _, _ in values),
        functions=tuple(function for _, _, function in values),
        volatility_parents=tuple(name for name, _, _ in volatilities),
    )


def _edges(kind: str, parents: Parents) -> list[tuple[str, Any, Any]]:
    """(name, strength, function) of each parent."""
    if parents is None:
        return []
    if isinstance(parents, str):
        parents = (parents,)
    if not isinstance(parents, Mapping):
        parents = dict.fromkeys(parents, 1.0)
    edges = []
    for name, edge in parents.items():
        strength, function = edge if isinstance(edge, tuple) else (edge, None)
        if not isinstance(name, str) or not (function is None or callable(function)):
            expected = "names of states, with strengths or pairs (strength, function)"
            raise core.bad_type(f"hgf.{kind}", "parents", {name: edge}, expected)
        edges.append((name, strength, function))
    return edges


@core.pytree
class Network:
    """Nodes by name. A pytree whose structure is the graph.

    Attributes:
      nodes: name to `Node`; those that are observed, in their order, are the columns of the observations.
      enhanced: whether a volatility parent moves first and then takes its precision from where it has come to, which
        is never negative (eHGF); else both are taken at the prediction, and where a precision comes out negative,
        everything is NaN from there on. A leap so far beyond what was expected that it overflows is NaN in both.

    Raises:
      ValueError: if a parent is unknown or observed, a cycle of parents leads nowhere, or nothing is observed.

    >>> network = Network({
    ...     "u": continuous("level", log_variance=-1.0),
    ...     "level": state(log_variance=-2.0, volatility_parents="volatility"),
    ...     "volatility": state(),
    ... })
    >>> network.observed, network.replace("level", log_variance=-3.0)["level"].log_variance.item()
    (('u',), -3.0)
    """

    nodes: Any
    enhanced: bool = core.static(default=True)
    names: tuple[str, ...] = core.static(default=())

    def __post_init__(self) -> None:
        nodes = dict(self.nodes)
        if set(self.names) != set(nodes):
            object.__setattr__(self, "names", tuple(nodes))
        object.__setattr__(self, "nodes", nodes)
        for name, node in nodes.items():
            if not isinstance(node, Node):
                raise core.bad_type(
                    "hgf.Network", name, node, "a Node, from hgf.state, continuous, binary or categorical"
                )
            for parent in node.value_parents + node.volatility_parents:
                if parent not in nodes or nodes[parent].kind != "state":
                    states = tuple(name for name, node in nodes.items() if node.kind == "state")
                    raise core.bad_value(
                        "hgf.Network", f"a parent of {name!r}", repr(parent), f"one of the states {states}"
                    )
        if not self.observed:
            raise core.bad_value("hgf.Network", "nodes", "all states", "at least one that is observed")
        try:
            _ = self.downwards, self.upwards
        except graphlib.CycleError as error:
            expected = "parents that do not depend on each other"
            raise core.bad_value("hgf.Network", "nodes", f"with the cycle {error.args[1]}", expected) from None

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def replace(self, name: str, **changes: Any) -> Network:
        """The network with other numbers in one node: `network.replace("level", log_variance=omega)`."""
        fields = {key: jax.tree.map(core.as_float, value) for key, value in changes.items()}
        node = dataclasses.replace(self.nodes[name], **fields)
        return dataclasses.replace(self, nodes={**self.nodes, name: node})

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of what is observed, in their order."""
        return tuple(name for name in self.names if self.nodes[name].kind != "state")

    @property
    def downwards(self) -> tuple[str, ...]:
        """All names, parents before children: the order of predictions."""
        parents = {name: self.nodes[name].value_parents + self.nodes[name].volatility_parents for name in self.names}
        return tuple(graphlib.TopologicalSorter(parents).static_order())

    @property
    def upwards(self) -> tuple[str, ...]:
        """Names of the states, children before parents: the order of updates.

        What the noise of an observation depends on comes after what its mean depends on, whose posterior it needs.
        """
        after: dict[str, set[str]] = {name: set() for name in self.names if self.nodes[name].kind == "state"}
        for name in self.names:
            node = self.nodes[name]
            before = {name} if node.kind == "state" else set()
            for parent in node.value_parents + node.volatility_parents:
                after[parent] |= before
            for parent in node.volatility_parents if node.kind != "state" else ():
                after[parent] |= set(node.value_parents)
        return tuple(graphlib.TopologicalSorter(after).static_order())
