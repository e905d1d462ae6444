"""Learning hidden Markov models by expectation maximisation: each step raises the likelihood, or leaves it.

The E-step counts how often each state is expected to be visited and each step to be made; the M-step divides. What is
never visited keeps its parameters.

Source: Baum, Petrie, Soules & Weiss (1970), "A maximization technique"; Rabiner (1989), section III.C.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Categorical, Distribution, Independent, MultivariateNormal, Normal, Poisson
from jaxprob.inference._expectation_maximization import Fitted, check_steps, iterate
from jaxprob.inference.hmm import _chain as chains
from jaxprob.inference.hmm._scores import as_observations, chain_of, has_parts, result_dtype, whole, working
from jaxprob.models.state_space import HiddenMarkov

Maximize = Callable[[Any, jax.Array, jax.Array], Any]
CLOSED = (Normal, Categorical, Poisson, MultivariateNormal)


def em_step(
    model: HiddenMarkov, ys: Any, *, missing: Any = None, batched: bool = False, maximize: Maximize | None = None
) -> tuple[HiddenMarkov, jax.Array]:
    """The model after one step of EM, one whose likelihood is not lower; and the log likelihood of the one given.

    A parameter of an emission that states share by broadcasting becomes one for each state. A transition that varies in
    time is left as it is.

    Args:
      model: a `HiddenMarkov`. Zeros of its initial and transition probabilities stay zero.
      ys: (time, *observation_shape), or (series, time, *observation_shape) where `batched`; NaN is missing.
      missing: booleans, true where not observed; shorter series are padded, and missing there.
      batched: whether `ys` holds several independent series.
      maximize: `(emission, ys, weights) -> emission`, the M-step of an emission: `ys` (number, *observation_shape) of
        all times of all series, and weights (number, *entries, states), the probabilities of the states that have each
        distribution, 0 where an entry is missing, with an axis for each axis of the batch after the states. In closed
        form for Normal, Categorical, Poisson, MultivariateNormal and Independent ones of these.

    Returns:
      the model, and the log likelihood (), of all series, of the model before.

    Raises:
      TypeError: for an emission without a closed form.
      ValueError: as `hmm.filter`; and for a vector that is missing in part.

    >>> from jaxprob.distributions import Poisson
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], Poisson(jnp.array([1.0, 9.0])))
    >>> after, before = em_step(model, jnp.array([0, 1, 2, 12, 10]))
    >>> after.emission.rate.round(1).tolist()
    [1.0, 10.9...]
    """
    values, seen = _checked("hmm.em_step", model, ys, missing, batched, maximize)
    return _em_step(model, values, seen, maximize)


def fit(
    model: HiddenMarkov,
    ys: Any,
    *,
    steps: int = 100,
    tolerance: float = 1e-4,
    missing: Any = None,
    batched: bool = False,
    maximize: Maximize | None = None,
) -> Fitted:
    """A model fitted by so many steps of EM, from the one given, which must break the symmetry of its states.

    Args:
      model: a `HiddenMarkov`, where to begin.
      ys: (time, *observation_shape), or (series, time, *observation_shape) where `batched`; NaN is missing.
      steps: how many, all of which are taken.
      tolerance: the gain of log likelihood in the last step up to which EM counts as converged.
      missing: booleans, true where not observed.
      batched: whether `ys` holds several independent series.
      maximize: see `em_step`.

    Returns:
      `Fitted`.

    Raises:
      TypeError, ValueError: as `em_step`.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], Normal(jnp.array([0.0, 1.0]), jnp.ones(2)))
    >>> found = fit(model, jnp.array([0.1, -0.1, 5.0, 5.1, 4.9, 0.0, 0.2]), steps=20)
    >>> found.model.emission.loc.round(2).tolist(), bool(found.converged)
    ([0.049..., 5.0], True)
    """
    check_steps("hmm.fit", steps)
    values, seen = _checked("hmm.fit", model, ys, missing, batched, maximize)
    return _fit(model, values, seen, tolerance, maximize, steps)


def _checked(
    function: str, model: HiddenMarkov, ys: Any, missing: Any, batched: bool, maximize: Any
) -> tuple[jax.Array, jax.Array]:
    """Observations with an axis of series."""
    values, seen = as_observations(function, model, ys, missing, batched)
    if maximize is None:
        _check_closed(function, model.emission)
        if not isinstance(seen, jax.core.Tracer) and has_parts(model, seen):
            todo = "Mark it all as missing, or maximise hmm.log_likelihood by its gradient"
            raise core.bad_value(
                function, "ys", "missing in part of a vector", "vectors seen or missing as a whole", todo
            )
    return (values, seen) if batched else (jnp.expand_dims(values, 0), jnp.expand_dims(seen, 0))


def _check_closed(function: str, emission: Any) -> None:
    if isinstance(emission, Independent):
        return _check_closed(function, emission.base)
    if not isinstance(emission, CLOSED):
        got = type(emission).__name__ if isinstance(emission, Distribution) else "a function"
        expected = f"one of {', '.join(kind.__name__ for kind in CLOSED)}, whose M-step has a closed form"
        todo = "Pass maximize=, or maximise hmm.log_likelihood by its gradient"
        raise core.bad_type(function, "emission", got, expected, todo)


@functools.partial(jax.jit, static_argnames="maximize")
def _em_step(
    model: HiddenMarkov, ys: jax.Array, seen: jax.Array, maximize: Maximize | None
) -> tuple[HiddenMarkov, jax.Array]:
    """The model one step on, and the log likelihood of the one given."""
    dtype = result_dtype(model, ys)

    def expect(ys: jax.Array, seen: jax.Array) -> Any:
        chain = chain_of(model, ys, seen, False)
        found = chains.forward(chain, "sequential")
        messages = chains.backward(chain, "sequential")
        states = jnp.exp(chains.normalized(found.filtered + messages))
        moves = jnp.zeros(()) if model.time_varying else chains.expected_moves(chain, found, messages)
        first = states[0] if states.shape[0] else jnp.zeros_like(chain.initial)
        return states, first, moves, jnp.sum(found.totals)

    states, first, moves, totals = jax.vmap(expect)(ys, seen)
    exact, values = working(model, ys)
    initial = _shares(jnp.sum(first, 0), exact.initial)
    transition = exact.transition if model.time_varying else _shares(jnp.sum(moves, 0), exact.transition)
    emission = _emission(exact, values, seen, states, maximize)
    changes = {"initial": initial, "transition": transition, "emission": emission}
    changes = jax.tree.map(lambda leaf: _cast(leaf, dtype), changes)
    return dataclasses.replace(model, **changes), jnp.sum(totals).astype(dtype)


def _cast(leaf: Any, dtype: Any) -> Any:
    return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf


@functools.partial(jax.jit, static_argnames=("maximize", "steps"))
def _fit(
    model: HiddenMarkov, ys: jax.Array, seen: jax.Array, tolerance: Any, maximize: Maximize | None, steps: int
) -> Fitted:
    return iterate(lambda model: _em_step(model, ys, seen, maximize), model, steps, tolerance)


def _shares(counts: jax.Array, before: jax.Array) -> jax.Array:
    """Probabilities in proportion to counts; those before where there is nothing to count."""
    total = jnp.sum(counts, -1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), before)


def _emission(model: HiddenMarkov, ys: jax.Array, seen: jax.Array, states: jax.Array, maximize: Any) -> Any:
    """The M-step of the emission, all times of all series along one axis."""
    ys, seen = (array.reshape(-1, *array.shape[2:]) for array in (ys, whole(model, seen)))
    states = states.reshape(-1, states.shape[-1])
    if model.labels is not None:
        kinds = model.emission.batch_shape[0] if isinstance(model.emission, Distribution) else model.state_size
        chosen = jnp.expand_dims(model.labels, 1) == jnp.expand_dims(jnp.arange(kinds), 0)
        states = core.matmul(states, chosen.astype(states.dtype))
    if not ys.shape[0]:
        return model.emission
    events = model.event_axes
    there = seen[(..., *(0 for _ in range(events)))] if events else seen
    weights = jnp.expand_dims(states, tuple(range(2, 1 + there.ndim)))
    weights = jnp.moveaxis(weights * jnp.expand_dims(there, 1).astype(states.dtype), 1, -1)
    return (maximize or _maximized)(model.emission, ys, weights)


def _maximized(emission: Any, ys: jax.Array, weights: jax.Array) -> Any:
    """The M-step in closed form; ys (number, *entries, *event), weights (number, *entries, states)."""
    if isinstance(emission, Independent):
        count = emission.ndims or 0
        weights = jnp.expand_dims(weights, tuple(range(weights.ndim - 1, weights.ndim - 1 + count)))
        entries = ys.shape[weights.ndim - 1 - count : weights.ndim - 1]
        weights = jnp.broadcast_to(weights, (*weights.shape[: -1 - count], *entries, weights.shape[-1]))
        return dataclasses.replace(emission, base=_maximized(emission.base, ys, weights))
    # States first, as in the batch of the emission.
    weights = jnp.moveaxis(weights, -1, 1)
    total = jnp.sum(weights, 0)
    visited = total > 0
    total = jnp.where(visited, total, 1)

    def average(values: jax.Array) -> jax.Array:
        """Weighted means over all times of `values` (number, 1 or states, *entries, ...)."""
        extra = values.ndim - weights.ndim
        return jnp.sum(_widen(weights, extra) * values, 0) / _widen(total, extra)

    def keep(new: jax.Array, old: jax.Array, extra: int = 0) -> jax.Array:
        return jnp.where(_widen(visited, extra), new, old)

    ys = jnp.expand_dims(ys, 1)
    batch = emission.batch_shape
    if isinstance(emission, Normal):
        mean = keep(average(ys.astype(weights.dtype)), jnp.broadcast_to(emission.loc, batch))
        variance = average((ys - jnp.expand_dims(mean, 0)) ** 2)
        # A state of a single number has no variance to learn: it keeps the one it has.
        scale = jnp.where(visited & (variance > 0), jnp.sqrt(variance), jnp.broadcast_to(emission.scale, batch))
        return Normal(mean, scale)
    if isinstance(emission, Poisson):
        if emission.log_rate is None:
            return Poisson(keep(average(ys.astype(weights.dtype)), jnp.broadcast_to(emission.rate, batch)))
        log_rate = core.safe_log(average(ys.astype(weights.dtype)))
        return Poisson(log_rate=keep(log_rate, jnp.broadcast_to(emission.log_rate, batch)))
    if isinstance(emission, Categorical):
        kinds = jnp.arange(emission.num_categories, dtype=ys.dtype)
        is_one = jnp.expand_dims(ys, -1) == jnp.expand_dims(kinds, tuple(range(ys.ndim)))
        shares = average(is_one.astype(weights.dtype))
        if emission.logits is None:
            return Categorical(keep(shares, jnp.broadcast_to(emission.probs, shares.shape), 1))
        return Categorical(logits=keep(core.safe_log(shares), jnp.broadcast_to(emission.logits, shares.shape), 1))
    mean = keep(average(ys), jnp.broadcast_to(emission.loc, emission.shape), 1)
    gap = ys - jnp.expand_dims(mean, 0)
    covariance = average(jnp.expand_dims(gap, -1) * jnp.expand_dims(gap, -2))
    lower = core.cholesky(covariance)
    old = jnp.broadcast_to(emission.cholesky, lower.shape)
    regular = jnp.all(jnp.isfinite(lower), (-2, -1)) & jnp.all(jnp.diagonal(lower, axis1=-2, axis2=-1) > 0, -1)
    return MultivariateNormal(mean, cholesky=jnp.where(jnp.expand_dims(visited & regular, (-2, -1)), lower, old))


def _widen(array: jax.Array, count: int) -> jax.Array:
    """The array with so many axes of length one after its own."""
    return jnp.expand_dims(array, tuple(range(array.ndim, array.ndim + count)))
