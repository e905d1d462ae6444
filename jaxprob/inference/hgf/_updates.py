"""One step of a hierarchical Gaussian filter: predictions from parents to children, updates from children to parents.

Every child says of each parent how the log density of what it has come to moves with what it takes from that parent
(gradient, and information: minus the expected curvature); a parent adds these up.

Source: Mathys et al. (2014), "Uncertainty in perception and the hierarchical Gaussian filter", equations 9 to 14; Weber
et al. (2023), "The generalized hierarchical Gaussian filter"; the enhanced volatility update as in the HGF toolbox of
TAPAS (Frässle et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.hgf._network import Network, Node

LOG_TAU = math.log(2 * math.pi)
Numbers = dict[str, jax.Array]


class Beliefs(NamedTuple):
    """What is believed at one time, or at all times, on a leading axis.

    Attributes:
      mean: of each state, given the observations up to this time.
      precision: of each state.
      expected_mean: of each node, given the observations before this time: of a binary one the probability of a 1, of a
        categorical one (K,) probabilities.
      expected_precision: of each state, and of the noise of each continuous observation.
      surprise: (), minus the log density of what was observed at this time, given all before it; 0 for nothing. That
        of several observations is the sum of their surprises.
    """

    mean: Numbers
    precision: Numbers
    expected_mean: Numbers
    expected_precision: Numbers
    surprise: jax.Array


class Prediction(NamedTuple):
    """What is expected, by node.

    Attributes:
      mean: expected.
      precision: expected; of states and of continuous observations.
      kept: variance of the belief before, as much as is left of it.
      added: variance that came on top of it, which volatility parents multiply.
    """

    mean: Numbers
    precision: Numbers
    kept: Numbers
    added: Numbers


class Message(NamedTuple):
    """What a child says of what it takes from a parent."""

    gradient: jax.Array
    information: jax.Array


def advance(network: Network, before: Beliefs, y: jax.Array, time_step: jax.Array) -> Beliefs:
    """The beliefs one step on; `y` (observed,), NaN where missing."""
    expected = _predict(network, before, time_step)
    mean, precision, surprise = _update(network, expected, y, time_step)
    return Beliefs(mean, precision, expected.mean, expected.precision, surprise)


def _predict(network: Network, before: Beliefs, time_step: jax.Array) -> Prediction:
    mean: Numbers = {}
    precision: Numbers = {}
    kept: Numbers = {}
    added: Numbers = {}
    for name in network.downwards:
        node = network[name]
        inputs = [
            strength * (mean[parent] if function is None else function(mean[parent]))
            for parent, strength, function in zip(node.value_parents, node.value_strengths, node.functions, strict=True)
        ]
        if node.kind == "categorical":
            mean[name] = jax.nn.softmax(jnp.stack(inputs))
            continue
        total = sum(inputs, node.drift)
        if node.kind == "binary":
            mean[name] = jax.nn.sigmoid(total)
            continue
        volatilities = zip(node.volatility_parents, node.volatility_strengths, strict=True)
        added[name] = jnp.exp(sum((kappa * mean[parent] for parent, kappa in volatilities), node.log_variance))
        mean[name], kept[name] = total, jnp.zeros_like(total)
        if node.kind == "state":
            left = node.autoregression**time_step
            mean[name] = node.center + left * (before.mean[name] - node.center) + time_step * total
            kept[name] = left**2 / before.precision[name]
            added[name] = time_step * added[name]
        precision[name] = 1 / (kept[name] + added[name])
    return Prediction(mean, precision, kept, added)


def _update(
    network: Network, expected: Prediction, y: jax.Array, time_step: jax.Array
) -> tuple[Numbers, Numbers, jax.Array]:
    """Means and precisions of the states, and the surprise."""
    mean: Numbers = {}
    precision: Numbers = {}
    surprise = jnp.zeros((), y.dtype)
    messages: dict[str, list[Message]] = {}
    informed = {name: ~jnp.isnan(one) for name, one in zip(network.observed, y, strict=True)}
    values = {name: jnp.where(informed[name], one, 0) for name, one in zip(network.observed, y, strict=True)}
    for name in network.observed:
        messages[name], one = _observe(network, name, expected, values[name])
        surprise = surprise + jnp.where(informed[name], one, 0)
    for name in network.upwards:
        mean[name], precision[name] = expected.mean[name], expected.precision[name]
        force, information = jnp.zeros((), y.dtype), jnp.zeros((), y.dtype)
        informed[name] = jnp.zeros((), bool)
        for child, index in _children(network, name, lambda node: node.value_parents):
            slope, curvature = _derivatives(network[child], index, expected.mean[name])
            gradient, inner = messages[child][index]
            force += jnp.where(informed[child], slope * gradient, 0)
            information += jnp.where(informed[child], slope**2 * inner - curvature * gradient, 0)
            informed[name] |= informed[child]
        if network.enhanced:  # of a coupling function whose curvature outweighs its slope
            information = jnp.maximum(information, 0)
        wanderers = []
        for child, index in _children(network, name, lambda node: node.volatility_parents):
            wanderers.append((child, network[child].volatility_strengths[index]))
            informed[name] |= informed[child]
        square = {child: _square(network, child, expected, mean, precision, values) for child, _ in wanderers}

        def volatility(shift: Any, wanderers: Any = wanderers, square: Any = square) -> tuple[jax.Array, jax.Array]:
            """Force and precision that come from the volatility children, where this mean has moved so far."""
            force, gained = jnp.zeros((), y.dtype), jnp.zeros((), y.dtype)
            for child, kappa in wanderers:
                added = expected.added[child] * jnp.exp(kappa * shift)
                total = expected.kept[child] + added
                share, error = added / total, square[child] / total - 1
                gain = 0.5 * kappa**2 * share * (share + (2 * share - 1) * error)
                force += jnp.where(informed[child], 0.5 * kappa * share * error, 0)
                gained += jnp.where(informed[child], jnp.maximum(gain, 0) if network.enhanced else gain, 0)
            return force, gained

        pull, gained = volatility(jnp.zeros((), y.dtype))
        known = precision[name] + information
        if network.enhanced:
            moved = (force + pull) / known
            gained = volatility(moved)[1] if wanderers else gained
        else:
            moved = (force + pull) / (known + gained)
        mean[name] = expected.mean[name] + moved
        precision[name] = known + gained
        if not network.enhanced:
            precision[name] = jnp.where(precision[name] > 0, precision[name], jnp.nan)
        gap = mean[name] - expected.mean[name]
        inner = expected.precision[name]
        message = Message(time_step * inner * gap, time_step**2 * inner)
        messages[name] = [message] * len(network[name].value_parents)
    return mean, precision, surprise


def _observe(network: Network, name: str, expected: Prediction, y: jax.Array) -> tuple[list[Message], jax.Array]:
    """What an observation says to each value parent, and its surprise."""
    node, mean = network[name], expected.mean[name]
    if node.kind == "categorical":
        hit = jnp.arange(len(node.value_parents), dtype=y.dtype) == y
        gradients, inner = hit.astype(mean.dtype) - mean, mean * (1 - mean)
        messages = [Message(gradients[k], inner[k]) for k in range(len(node.value_parents))]
        return messages, -jnp.sum(jnp.where(hit, core.safe_log(mean), 0))
    if node.kind == "binary":
        surprise = -core.safe_log(jnp.where(y > 0.5, mean, 1 - mean))
        return [Message(y - mean, mean * (1 - mean))] * len(node.value_parents), surprise
    gap, inner = y - mean, expected.precision[name]
    variance = 1 / inner
    for index, parent in enumerate(node.value_parents):
        slope, _ = _derivatives(node, index, expected.mean[parent])
        variance = variance + slope**2 / expected.precision[parent]
    surprise = 0.5 * (gap**2 / variance + jnp.log(variance) + LOG_TAU)
    return [Message(inner * gap, inner)] * len(node.value_parents), surprise


def _square(
    network: Network, child: str, expected: Prediction, mean: Numbers, precision: Numbers, values: Numbers
) -> jax.Array:
    """The expected square of what a volatility child has moved, or of the noise of an observation."""
    node = network[child]
    if node.kind == "state":
        return 1 / precision[child] + (mean[child] - expected.mean[child]) ** 2
    total, variance = node.drift, jnp.zeros_like(values[child])
    for index, parent in enumerate(node.value_parents):
        function, strength = node.functions[index], node.value_strengths[index]
        total = total + strength * (mean[parent] if function is None else function(mean[parent]))
        variance = variance + _derivatives(node, index, mean[parent])[0] ** 2 / precision[parent]
    return (values[child] - total) ** 2 + variance


def _derivatives(node: Node, index: int, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and second derivatives of what a node takes from one of its value parents."""
    strength, function = node.value_strengths[index], node.functions[index]
    if function is None:
        return strength, jnp.zeros_like(at)
    return strength * jax.grad(function)(at), strength * jax.grad(jax.grad(function))(at)


def _children(network: Network, parent: str, edges: Callable[[Node], tuple[str, ...]]) -> list[tuple[str, int]]:
    """Children of a state, and which of their parents it is."""
    return [(name, edges(network[name]).index(parent)) for name in network.names if parent in edges(network[name])]
