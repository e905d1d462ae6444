"""Hierarchical Gaussian filters over whole series, one observation at a time, and as a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.distributions import Distribution
from jaxprob.inference.hgf._network import Network
from jaxprob.inference.hgf._updates import Beliefs, advance


def init(network: Network) -> Beliefs:
    """The beliefs before the first step. Nothing is expected yet: what is, is NaN.

    Args:
      network: a `Network`.

    Raises:
      TypeError: if it is none.
    """
    _check("hgf.init", network)
    dtype = core.accumulator_dtype(core.result_dtype(network))
    states = [name for name in network.names if network[name].kind == "state"]
    mean = {name: jnp.asarray(network[name].mean, dtype) for name in states}
    precision = {name: jnp.asarray(network[name].precision, dtype) for name in states}
    like = jax.eval_shape(advance, network, Beliefs(mean, precision, {}, {}, jnp.zeros(())), *_nothing(network, dtype))
    unknown = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, dtype), like)
    return unknown._replace(mean=mean, precision=precision, surprise=jnp.zeros((), dtype))


def step(network: Network, beliefs: Beliefs, y: Any, time_step: Any = 1.0) -> Beliefs:
    """The beliefs after one more observation: the numbers of `hgf.filter`.

    Args:
      network: a `Network`.
      beliefs: from `init` or `step`.
      y: (observed,), in the order of `network.observed`, NaN where missing; or () where one node is observed.
      time_step: time since the last one, not negative.

    Raises:
      ValueError: if `y` has another shape.

    >>> from jaxprob.inference import hgf
    >>> network = hgf.Network({"u": hgf.binary("odds"), "odds": hgf.state(log_variance=0.0)})
    >>> beliefs = hgf.step(network, hgf.init(network), 1.0)
    >>> f"{beliefs.mean['odds']:.4f} {beliefs.precision['odds']:.4f} {beliefs.surprise:.4f}"
    '0.6667 0.7500 0.6931'
    """
    _check("hgf.step", network)
    values = _values("hgf.step", network, jnp.expand_dims(core.as_float(y), 0))
    return _step(network, beliefs, values[0], core.as_float(time_step))


def filter(network: Network, ys: Any, *, time_steps: Any = None) -> Beliefs:
    """The beliefs at all times of a series, what was expected, and how surprising it was.

    Args:
      network: a `Network`.
      ys: (time, observed), in the order of `network.observed`, NaN where missing; or (time,) where one node is
        observed. Of a binary node 0 or 1, of a categorical one 0 to K - 1.
      time_steps: (time,), time before each observation, since the last or the start; ones by default.

    Returns:
      `Beliefs`, with time leading. Where nothing is observed that depends on a state, its belief is the prediction.

    Raises:
      ValueError: if shapes do not fit, an observation is infinite or none of its node, or time runs backwards.
      TypeError: if `network` is none.

    >>> from jaxprob.inference import hgf
    >>> network = hgf.Network({"u": hgf.continuous("level"), "level": hgf.state(log_variance=0.0)})
    >>> found = hgf.filter(network, jnp.array([1.0, jnp.nan, 3.0]))
    >>> print(*(f"{x:.3f}" for x in found.mean["level"]))
    0.667 0.667 2.364
    """
    _check("hgf.filter", network)
    values = _values("hgf.filter", network, ys)
    steps = _time_steps("hgf.filter", time_steps, values)
    return _filter(network, values, steps)


def log_likelihood(
    network: Network,
    ys: Any,
    responses: Any = None,
    response: Callable[[Beliefs], Distribution] | None = None,
    *,
    time_steps: Any = None,
) -> jax.Array:
    """The log density, (), of what was observed; or, of a subject who observed it, of the responses.

    Args:
      network: a `Network`.
      ys: observations, see `filter`.
      responses: (time, ...), of a subject; NaN is missing.
      response: `beliefs -> Distribution` of the responses, time leading: what a subject with these beliefs does. Those
        of a time are to depend on what was expected alone where the subject acts before observing.
      time_steps: see `filter`.

    Raises:
      ValueError, TypeError: as `filter` does, and if only one of `responses` and `response` is given.

    >>> from jaxprob.distributions import Bernoulli
    >>> from jaxprob.inference import hgf
    >>> network = hgf.Network({"u": hgf.binary("odds"), "odds": hgf.state(log_variance=0.0)})
    >>> choice = lambda beliefs: Bernoulli(logits=2 * beliefs.expected_mean["odds"])  # twice as sure
    >>> round(hgf.log_likelihood(network, jnp.array([1, 1, 0]), jnp.array([0, 1, 1]), choice).item(), 4)
    -1.0162
    """
    if (responses is None) != (response is None):
        expected = "given beside the other, or neither"
        raise core.bad_value("hgf.log_likelihood", "responses or response", "missing", expected)
    beliefs = filter(network, ys, time_steps=time_steps)
    if response is None:
        return -jnp.sum(beliefs.surprise)
    given = core.as_float(responses)
    law = response(beliefs)
    if not isinstance(law, Distribution):
        raise core.bad_type("hgf.log_likelihood", "response", f"a function that returns {core.describe(law)}", "one")
    seen = ~jnp.isnan(given)
    seen = jnp.all(seen, tuple(range(given.ndim - len(law.event_shape), given.ndim)))
    safe = jnp.where(jnp.isnan(given), 0, given).astype(core.result_dtype(law, given))
    return jnp.sum(jnp.where(seen, law.log_prob(safe), 0))


def _check(function: str, network: Any) -> None:
    if not isinstance(network, Network):
        raise core.bad_type(function, "network", network, "a hgf.Network")


def _values(function: str, network: Network, ys: Any) -> jax.Array:
    """Observations (time, observed)."""
    ys, size = core.as_float(ys), len(network.observed)
    if ys.ndim == 1 and size == 1:
        ys = jnp.expand_dims(ys, 1)
    if ys.ndim != 2 or ys.shape[1] != size:
        expected = f"shape (time, {size})" + (" or (time,)" if size == 1 else "")
        raise core.bad_value(function, "ys", f"of shape {ys.shape}", expected, "Time leads; vmap makes many")
    if not isinstance(ys, jax.core.Tracer):
        for name, column in zip(network.observed, np.asarray(ys, np.float64).T, strict=True):
            kind = network[name].kind
            kinds = {"binary": 2, "categorical": len(network[name].value_parents)}.get(kind)
            wrong = np.isinf(column) if kinds is None else ~np.isin(column, range(kinds)) & ~np.isnan(column)
            if wrong.any():
                expected = "finite numbers" if kinds is None else f"0 to {kinds - 1}"
                got = f"{column[wrong][0]:.6g} of {name!r}"
                raise core.bad_value(function, "ys", got, f"{expected}, or NaN where one is missing")
    return ys


def _time_steps(function: str, steps: Any, ys: jax.Array) -> jax.Array:
    if steps is None:
        return jnp.ones(ys.shape[:1], ys.dtype)
    steps = core.as_float(steps)
    if steps.shape != ys.shape[:1]:
        raise core.bad_value(function, "time_steps", f"of shape {steps.shape}", f"shape {ys.shape[:1]}")
    if not isinstance(steps, jax.core.Tracer) and not (np.asarray(steps) >= 0).all():
        raise core.bad_value(function, "time_steps", "negative or NaN somewhere", "times that have passed")
    return steps


def _nothing(network: Network, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.full(len(network.observed), jnp.nan, dtype), jnp.ones((), dtype)


def _cast(dtype: Any, *values: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), values)


@jax.jit
def _step(network: Network, beliefs: Beliefs, y: jax.Array, time_step: jax.Array) -> Beliefs:
    dtype = beliefs.surprise.dtype
    return advance(*_cast(dtype, network, beliefs, y, time_step))


@jax.jit
def _filter(network: Network, ys: jax.Array, steps: jax.Array) -> Beliefs:
    dtype = core.result_dtype(network, ys)
    network, start, ys, steps = _cast(core.accumulator_dtype(dtype), network, init(network), ys, steps)

    def one(beliefs: Beliefs, xs: Any) -> tuple[Beliefs, Beliefs]:
        after = advance(network, beliefs, *xs)
        return after, after

    return _cast(dtype, scan.scan(one, start, (ys, steps))[1])[0]
