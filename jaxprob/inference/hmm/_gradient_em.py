"""EM whose M-step of the emission follows a gradient: for emissions of any form, with a prior on their parameters.

The E-step is that of `hmm.em_step`; initial and transition probabilities are maximised in closed form. The emission
takes a few steps of an optimiser up the expected log density, which goes on from one M-step to the next (generalised
EM: with steps small enough the penalised likelihood does not fall).

Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm", section 2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference._expectation_maximization import Fitted, check_steps
from jaxprob.inference.hmm import _chain as chains
from jaxprob.inference.hmm._em import _cast, _shares
from jaxprob.inference.hmm._scores import as_observations, log_densities, result_dtype, working
from jaxprob.models.state_space import HiddenMarkov

LogPrior = Callable[[Any], jax.Array]
Relax = Callable[[core.Key, Any], Any]


def fit_by_gradient(
    model: HiddenMarkov,
    ys: Any,
    optimizer: Any,
    *,
    steps: int = 50,
    updates: int = 10,
    log_prior: LogPrior | None = None,
    relax: Relax | None = None,
    key: core.Key | None = None,
    tolerance: float = 1e-3,
    missing: Any = None,
    batched: bool = False,
) -> Fitted:
    """A model fitted by so many steps of EM, the emission by gradient steps.

    Args:
      model: a `HiddenMarkov`, where to begin; all floating leaves of its emission are learnt.
      ys: (time, *observation_shape), or (series, time, *observation_shape) where `batched`; NaN is missing.
      optimizer: an optax `GradientTransformation`; make it once, a new one compiles anew.
      steps: of EM.
      updates: of the emission in each.
      log_prior: `parameters -> ()`, of the parameters: of an emission `Partial(function, parameters)` those, else of
        the emission.
      relax: `(key, parameters) -> parameters`, at which the densities of each update are evaluated: a reparametrised
        draw of parameters that are random, such as a relaxed one-hot pattern.
      key: for `relax`.
      tolerance: the gain of the last step up to which EM counts as converged.
      missing: booleans, true where not observed.
      batched: whether `ys` holds several independent series.

    Returns:
      `Fitted`; its `log_likelihoods` include `log_prior`.

    Raises:
      TypeError, ValueError: as `hmm.fit`; and if `relax` has no key.

    >>> import optax
    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import HiddenMarkov
    >>> model = HiddenMarkov([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], Normal(jnp.array([0.0, 1.0]), jnp.ones(2)))
    >>> ys = jnp.array([0.1, -0.1, 5.0, 5.1, 4.9, 0.0, 0.2])
    >>> fit_by_gradient(model, ys, optax.adam(0.1), steps=100).model.emission.loc.round(2)
    Array([0.05, 5.  ], dtype=float32)
    """
    name = "hmm.fit_by_gradient"
    check_steps(name, steps)
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
        raise core.bad_value(name, "updates", updates, "a number of updates, at least 1")
    if (relax is None) != (key is None):
        raise core.bad_value(name, "key", key, "a random key beside relax=, and none without")
    values, seen = as_observations(name, model, ys, missing, batched)
    if not batched:
        values, seen = jnp.expand_dims(values, 0), jnp.expand_dims(seen, 0)
    key = jax.random.key(0) if key is None else core.as_key(key, name)
    return _fit(model, values, seen, key, tolerance, optimizer, log_prior, relax, steps, updates)


def _with(model: HiddenMarkov, parameters: Any) -> HiddenMarkov:
    """The model with other parameters of its emission."""
    emission = model.emission
    if isinstance(emission, jax.tree_util.Partial):
        parameters = jax.tree_util.Partial(emission.func, parameters, *emission.args[1:], **emission.keywords)
    return dataclasses.replace(model, emission=parameters)


@functools.partial(jax.jit, static_argnames=("optimizer", "log_prior", "relax", "steps", "updates"))
def _fit(
    model: HiddenMarkov,
    ys: jax.Array,
    seen: jax.Array,
    key: core.Key,
    tolerance: Any,
    optimizer: Any,
    log_prior: LogPrior | None,
    relax: Relax | None,
    steps: int,
    updates: int,
) -> Fitted:
    dtype = result_dtype(model, ys)
    exact, values = working(model, ys)
    parameters = exact.emission.args[0] if isinstance(exact.emission, jax.tree_util.Partial) else exact.emission
    leaves, structure = jax.tree.flatten(parameters)
    learnt = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def build(floats: Any) -> Any:
        given = iter(floats)
        rebuilt = [next(given) if moves else leaf for leaf, moves in zip(leaves, learnt, strict=True)]
        return jax.tree.unflatten(structure, rebuilt)

    def prior(parameters: Any) -> jax.Array:
        return jnp.zeros((), exact.initial.dtype) if log_prior is None else log_prior(parameters)

    def scores_of(model: HiddenMarkov) -> jax.Array:
        return jax.vmap(lambda ys, seen: log_densities(model, ys, seen, False))(values, seen)

    def expect(model: HiddenMarkov, scores: jax.Array) -> Any:
        initial, transition = core.safe_log(model.initial), core.safe_log(model.transition)
        chain = chains.Chain(initial, transition, scores.astype(model.initial.dtype))
        found, messages = chains.forward(chain, "sequential"), chains.backward(chain, "sequential")
        states = jnp.exp(chains.normalized(found.filtered + messages))
        moves = jnp.zeros(()) if model.time_varying else chains.expected_moves(chain, found, messages)
        return states, states[0], moves, jnp.sum(found.totals)

    def em_step(carry: Any, index: Any) -> tuple[Any, jax.Array]:
        initial, transition, floats, memory = carry
        now = dataclasses.replace(_with(exact, build(floats)), initial=initial, transition=transition)
        states, first, moves, totals = jax.vmap(functools.partial(expect, now))(scores_of(now))
        total = jnp.sum(totals) + prior(build(floats))

        def loss(floats: Any, key: core.Key) -> jax.Array:
            parameters = build(floats)
            at = parameters if relax is None else relax(key, parameters)
            scores = scores_of(_with(exact, at))
            expected = jnp.sum(jnp.where(states == 0, 0, states * jnp.where(states == 0, 0, scores)))
            return -(expected + prior(parameters)) / states[..., 0].size

        def update(carry: Any, number: Any) -> tuple[Any, None]:
            floats, memory = carry
            slopes = jax.grad(loss)(floats, core.fold(key, index, number))
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
                changes, memory = optimizer.update(slopes, memory, floats)
            return (jax.tree.map(jnp.add, floats, changes), memory), None

        (floats, memory), _ = scan.scan(update, (floats, memory), jnp.arange(updates))
        initial = _shares(jnp.sum(first, 0), initial)
        transition = transition if exact.time_varying else _shares(jnp.sum(moves, 0), transition)
        return (initial, transition, floats, memory), total

    floats = [leaf for leaf, moves in zip(leaves, learnt, strict=True) if moves]
    start = (exact.initial, exact.transition, floats, optimizer.init(floats))
    (initial, transition, floats, _), totals = scan.scan(em_step, start, jnp.arange(steps))
    fitted = dataclasses.replace(_with(exact, build(floats)), initial=initial, transition=transition)
    last = jnp.sum(jax.vmap(functools.partial(expect, fitted))(scores_of(fitted))[3]) + prior(build(floats))
    totals = jnp.append(totals, last)
    gain = totals[-1] - totals[-2] if steps else jnp.full_like(last, jnp.inf)
    fitted = dataclasses.replace(_with(model, build(floats)), initial=initial, transition=transition)
    fitted, totals = jax.tree.map(lambda leaf: _cast(leaf, dtype), (fitted, totals))
    return Fitted(fitted, totals, gain <= tolerance)
