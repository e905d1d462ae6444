"""Fitting by stochastic gradients, with a stopping rule by the running bound and its standard error.

The rate of learning is lowered where the bound of a window of steps does not rise beyond its error, and the parameters
go on from their average over that window; after a few cuts the fit has converged.

Source: Welandawe, Andersen, Vehtari & Huggins (2022), "Robust, automated, and accurate black-box variational
inference", from which come the averages and the falling rates; the rule here is simpler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxprob import core, scan
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.vi._guide import Family, full_rank
from jaxprob.inference.vi._laplace import laplace
from jaxprob.inference.vi._objective import Objective, elbo, read_target
from jaxprob.inference.vi._pathfinder import pathfinder
from jaxprob.inference.vi._place import Place
from jaxprob.inference.vi._quasi_newton_metric import from_diagonal
from jaxprob.models import Posterior

LARGEST_HESSIAN = 1000  # numbers of a position above which no dense Hessian is looked for


class AscentState(NamedTuple):
    """The state of a fit.

    Attributes:
      position: pytree, the parameters.
      optimizer_state: of the optimiser.
      rate: (), what its steps are multiplied by.
      average: pytree like `position`: the mean over this window so far.
      settled: pytree like `position`: the mean over the last whole window; the parameters before there is one.
      in_window: (), int32, steps in this window.
      mean: (), of the bound over this window.
      square: (), sum of squared deviations from `mean`.
      elbo: (), the bound over the last whole window; NaN before there is one.
      elbo_error: (), its standard error.
      comparable: (), bool, whether this window follows one with the same rate.
      cuts: (), int32, how often the rate was lowered.
      done: (), bool, whether the rate was lowered often enough and the bound no longer rises.
    """

    position: Any
    optimizer_state: Any
    rate: jax.Array
    average: Any
    settled: Any
    in_window: jax.Array
    mean: jax.Array
    square: jax.Array
    elbo: jax.Array
    elbo_error: jax.Array
    comparable: jax.Array
    cuts: jax.Array
    done: jax.Array


class AscentInfo(NamedTuple):
    """What a step of a fit tells.

    Attributes:
      elbo: (), the bound by this step's draws: minus the loss.
      gradient_norm: ().
      finite: (), bool, whether both are; where they are not the parameters stay.
      rate: (), what the optimiser's step was multiplied by.
    """

    elbo: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array
    rate: jax.Array


class Fit(NamedTuple):
    """A guide that was fitted.

    Attributes:
      guide: the parameters, averaged over the last whole window, or over what there is of the first; of `vi.elbo` a
        guide, with `sample` and `log_prob`.
      elbo: (), the bound over that window, in nats.
      elbo_error: (), its standard error.
      elbos: (max_steps,), of each step; 0 from `num_steps` on.
      num_steps: (), int32.
      not_finite: (), int32, steps whose loss or gradient was not finite and that moved nothing.
      converged: (), bool, whether it ended by itself.
    """

    guide: Any
    elbo: jax.Array
    elbo_error: jax.Array
    elbos: jax.Array
    num_steps: jax.Array
    not_finite: jax.Array
    converged: jax.Array


def ascent(
    objective: Objective,
    optimizer: optax.GradientTransformation | None = None,
    *,
    window: int = 200,
    cuts: int = 4,
    factor: float = 0.3,
) -> core.Algorithm:
    """Stochastic gradient ascent of a bound, as an `Algorithm`.

    `init(params, key)` takes parameters such as `objective.init(key)`; `step(key, state)` moves them once, and
    `step(key, state, batch)` by a batch of data.

    Args:
      objective: such as `vi.elbo(posterior, vi.full_rank())`.
      optimizer: of optax; Adam with a rate of 0.05 by default.
      window: steps whose bounds are averaged and compared with those of the window before; twice as many after each
        cut of the rate.
      cuts: how often the rate is lowered.
      factor: by what.

    Returns:
      `Algorithm(init, step)`, states `AscentState` and `AscentInfo`.

    Raises:
      TypeError: if `objective` or `optimizer` is none.
      ValueError: for numbers out of their range.

    >>> objective = elbo(lambda x: -0.5 * x**2, full_rank(), initial=jnp.ones(()))
    >>> init, step = ascent(objective)
    >>> state, info = step(jax.random.key(0), init(objective.init(jax.random.key(1)), jax.random.key(2)))
    >>> info.finite.item()
    True
    """
    if not isinstance(objective, Objective):
        raise core.bad_type("ascent", "objective", objective, "an objective", "Such as vi.elbo(posterior, guide)")
    optimizer = _adam(0.05) if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise core.bad_type("ascent", "optimizer", optimizer, "an optax optimiser", "Such as optax.adam(1e-2)")
    core.check_whole("ascent", least=2, window=window)
    core.check_whole("ascent", cuts=cuts)
    if not (core.is_number(factor) and 0 < factor < 1):
        raise core.bad_value("ascent", "factor", factor, "a number between 0 and 1")
    step = core.Bound(_step, optimizer, window, cuts, factor)
    return core.Algorithm(core.Bound(_init, optimizer), Partial(step, objective.loss))


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One object for each rate, since two of optax's are never equal and would each compile a program."""
    return optax.adam(rate)


def _init(optimizer: optax.GradientTransformation, params: Any, key: core.Key) -> AscentState:
    params = jax.tree.map(jnp.asarray, params)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(params)
    dtype = core.accumulator_dtype(core.result_dtype(params))
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    no, unknown = jnp.asarray(False), jnp.full((), jnp.nan, dtype)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AscentState(
        params, optimizer_state, zero + 1, zeros, params, none, zero, zero, unknown, unknown, no, none, no
    )


def _step(
    optimizer: optax.GradientTransformation,
    window: int,
    cuts: int,
    factor: float,
    loss: Callable[..., Any],
    key: core.Key,
    state: AscentState,
    batch: Any = None,
) -> tuple[AscentState, AscentInfo]:
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(state.position, batch, key)
    norm = core.norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.position)
        updates = jax.tree.map(lambda u: u * state.rate.astype(u.dtype), updates)
        params = optax.apply_updates(state.position, updates)

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    position = kept(params, state.position)
    bound = -value.astype(state.mean.dtype)
    counted = state.in_window + finite.astype(jnp.int32)
    weight = jnp.where(finite, 1 / jnp.maximum(counted, 1).astype(bound.dtype), 0)
    away = jnp.where(finite, bound - state.mean, 0)
    state = state._replace(
        position=position,
        optimizer_state=kept(optimizer_state, state.optimizer_state),
        average=jax.tree.map(lambda m, p: m + weight.astype(m.dtype) * (p - m), state.average, position),
        in_window=counted,
        mean=state.mean + weight * away,
        square=state.square + (1 - weight) * away**2,
    )
    info = AscentInfo(bound, norm, finite, state.rate)
    full = finite & (counted >= jnp.left_shift(window, state.cuts))
    return core.cond(full, lambda s: _turn(cuts, factor, s), lambda s: s, state), info


def _turn(cuts: int, factor: float, state: AscentState) -> AscentState:
    """The end of a window: whether the bound rose, and what follows."""
    count = state.in_window.astype(state.mean.dtype)
    error = jnp.sqrt(state.square / (count * (count - 1)))
    rose = state.mean - state.elbo > jnp.sqrt(error**2 + state.elbo_error**2)
    stalled = state.comparable & ~rose
    number = state.cuts + stalled.astype(jnp.int32)
    zero = jnp.zeros_like(state.mean)
    return state._replace(
        position=jax.tree.map(lambda a, p: jnp.where(stalled, a, p), state.average, state.position),
        rate=jnp.where(stalled, state.rate * factor, state.rate),
        average=jax.tree.map(jnp.zeros_like, state.average),
        settled=state.average,
        in_window=jnp.zeros_like(state.in_window),
        mean=zero,
        square=zero,
        elbo=state.mean,
        elbo_error=error,
        comparable=~stalled,
        cuts=number,
        done=number >= cuts,
    )


def fit(
    target: Any,
    key: core.Key,
    guide: Family | None = None,
    *,
    draws: int = 8,
    gradient: str = "stick_the_landing",
    initial: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    max_steps: int = 20_000,
    window: int = 200,
) -> Fit:
    """Fits a guide to a posterior or a log density, until the bound no longer rises beyond its standard error.

    Args:
      target: a posterior, a `position -> scalar` log density, or an `Objective`, which knows its own guide.
      key: random key.
      guide: a family of guides; `vi.full_rank()` by default.
      draws: of the guide for each step (see `vi.elbo`).
      gradient: as of `vi.elbo`.
      initial: a position around which the guide starts, a function `key -> position`, or the result of `vi.laplace`
        or `vi.pathfinder`, in whose coordinates the guide is then fitted; for a posterior by default the first of
        these two that succeeds.
      optimizer: of optax; by default Adam with a rate of 0.05, of flows 0.005.
      max_steps: at most.
      window: steps whose bounds are averaged and compared, at first (see `vi.ascent`).

    Returns:
      a `Fit`; a fit that did not end by itself says so in `converged`. May be called inside `jit`, where nothing is
      said of a start without a bound but `not_finite`.

    Raises:
      ValueError: if the bound is not finite at the start (with the name of the site, of a posterior), and as `vi.elbo`.

    >>> found = fit(lambda x: -0.5 * ((x - 1) / 2) ** 2, jax.random.key(0), initial=jnp.zeros(()))
    >>> bool(found.converged), round(float(found.elbo), 3)  # the log of 2 sqrt(2 pi)
    (True, 1.612)
    """
    core.check_whole("vi.fit", max_steps=max_steps)
    key = core.as_key(key, "vi.fit")
    if isinstance(target, Objective):
        if guide is not None:
            raise core.bad_value("vi.fit", "guide", guide, "None with an objective, which has its own")
        objective = target
    else:
        if initial is None and isinstance(target, Posterior):
            initial = _find_place(target, core.fold(key, 3))
        read = read_target("vi.fit", target, initial)
        guide = full_rank() if guide is None else guide
        objective = elbo(read, guide, draws=draws, gradient=gradient)
        optimizer = _adam(guide.rate) if optimizer is None else optimizer
    algorithm = ascent(objective, optimizer, window=window)
    params = objective.init(core.fold(key, 0))
    check_bound(objective, target, params, core.fold(key, 1))
    return _run(algorithm.init, max_steps, algorithm.step, params, core.fold(key, 2))


def _find_place(posterior: Posterior, key: core.Key) -> Place:
    """The Laplace approximation; Pathfinder's where it did not converge or would be large.

    Where neither is found, or inside `jit` no Laplace approximation, around a drawn position.
    """
    drawn = posterior.initial(core.fold(key, 0))
    size = core.size(drawn)
    if size <= LARGEST_HESSIAN:
        mean, metric, usable = _by_laplace(posterior, drawn)
        if isinstance(usable, jax.core.Tracer) or bool(usable):
            plain = Metric(jnp.eye(size, dtype=metric.factor.dtype))
            return Place(*jax.tree.map(lambda a, b: jnp.where(usable, a, b), (mean, metric), (drawn, plain)))
    mean, metric, usable = _by_pathfinder(posterior, core.fold(key, 1))
    plain = from_diagonal(jnp.ones_like(metric.factor), metric.left.shape[0])
    return Place(*jax.tree.map(lambda a, b: jnp.where(usable, a, b), (mean, metric), (drawn, plain)))


@jax.jit
def _by_laplace(posterior: Posterior, position: Any) -> tuple[Any, Metric, jax.Array]:
    found = laplace(posterior, position)
    return found.mean, found.inverse_mass_matrix, found.converged


@jax.jit
def _by_pathfinder(posterior: Posterior, key: core.Key) -> tuple[Any, Any, jax.Array]:
    found = pathfinder(posterior, key=key, num_draws=1)
    return found.mean, found.inverse_mass_matrix, jnp.isfinite(found.elbo)


@jax.jit
def _loss(objective: Objective, params: Any, key: core.Key) -> jax.Array:
    return objective.loss(params, None, key)[0]


def check_bound(objective: Objective, target: Any, params: Any, key: core.Key) -> None:
    """Raises a `ValueError` if it is known, outside of `jit`, that an objective is not finite where it starts."""
    value = _loss(objective, params, key)
    if isinstance(value, jax.core.Tracer) or bool(jnp.isfinite(value)):
        return
    got = f"a guide whose bound is {-value} at the start{_blame(target, params, key)}"
    raise core.bad_value("vi.fit", "initial", got, "a finite bound", "Pass another initial, or check the model there")


def _blame(target: Any, guide: Any, key: core.Key) -> str:
    """Which site of a posterior is not finite at a draw of a guide, in words."""
    if not hasattr(target, "log_prob_by_site") or not hasattr(guide, "sample"):
        return ""
    # Compiled, so that a distribution may be made of numbers that it would refuse outside of a program.
    by_site = jax.jit(lambda target, guide, key: target.log_prob_by_site(guide.sample(key)))
    for i in range(100):
        found = by_site(target, guide, core.fold(key, i))
        for name, log_prob in found.items():
            if not bool(jnp.isfinite(log_prob)):
                return f", where site {name!r} has log density {log_prob}"
    return ""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(init: Callable[..., Any], max_steps: int, step: Any, params: Any, key: core.Key) -> Fit:
    def once(carry: tuple[Any, jax.Array], index: jax.Array) -> Any:
        state, info = step(core.fold(key, 1, index), carry[0])
        return (state, index + 1), (info.elbo, info.finite)

    start = init(params, core.fold(key, 0)), jnp.int32(0)
    (state, number), (elbos, finite) = scan.bounded(
        once, start, max_steps, max_steps, until=lambda carry: carry[0].done
    )
    wrong = number - jnp.sum(finite, dtype=jnp.int32)
    # Cut short within the first window: what there is of it.
    early, count = jnp.isnan(state.elbo), state.in_window.astype(state.mean.dtype)
    guide = jax.tree.map(lambda a, b: jnp.where(early & (count > 0), a, b), state.average, state.settled)
    bound = jnp.where(early & (count > 0), state.mean, state.elbo)
    error = jnp.where(early & (count > 1), jnp.sqrt(state.square / (count * (count - 1))), state.elbo_error)
    return Fit(guide, bound, error, elbos, number, wrong, state.done)
