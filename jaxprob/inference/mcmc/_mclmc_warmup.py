"""Warm-up of microcanonical Langevin Monte Carlo: step size from the energy error, scales and length from the draws.

Of one step the mean squared energy change grows as the sixth power of the step size, so that each transition says which
step size would have had the wanted one. Scales are learnt in windows, each twice as long as the one before. An adjusted
kernel has an acceptance rate to aim at instead, and `warmup` tunes it.

Source: Robnik, De Luca, Silverstein & Seljak (2023), "Microcanonical Hamiltonian Monte Carlo", appendix; Robnik &
Seljak (2023).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation
from jaxprob.inference.mcmc import _welford as welford
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._mclmc import MCLMCInfo, mclmc
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._metric_estimation import Window
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._warmup import Schedule, Warmup, WarmupChain, gather, spread_of, warmup, window_end_of
from jaxprob.inference.mcmc._welford import Moments

REMEMBERED = 150.0  # transitions that the step size rests on, effectively
TRUST = 1.5  # spread of the log of a step size that one transition asks for
FARTHEST = 1e4  # no transition says that the error is off by more than this factor, either way
ENERGY_VARIANCE = 5e-4  # of a transition of the unadjusted kernel, for each dimension
ACCEPTANCE = 0.9  # the best rate of adjusted microcanonical kernels
TURNED_BACK = 2.0**6  # what a step into a hole counts as: as one that should have been half as long


class MCLMCShared(NamedTuple):
    """What all chains have in common.

    Attributes:
      transitions: (), made while tuning.
      schedule: how long to tune, and when to learn scales.
      windows: (), windows that have closed.
      window_end: (), transitions after which the window under way closes.
      window: moments of the positions and gradients in the window under way.
      bulk: moments of those positions alone that are no longer on their way to the posterior.
      best: (), the largest log density of any chain in the window under way.
      weight: (), of the transitions that the step size rests on.
      step_size: (), for the next transition.
      trajectory_length: (), for the next transition.
      metric: for the next transition.
    """

    transitions: jax.Array
    schedule: Schedule
    windows: jax.Array
    window_end: jax.Array
    window: Window
    bulk: Moments
    best: jax.Array
    weight: jax.Array
    step_size: jax.Array
    trajectory_length: jax.Array
    metric: Metric


def mclmc_warmup(
    log_density: core.LogDensity,
    *,
    kernel: Callable[..., core.Algorithm] = mclmc,
    num_steps: int = 2000,
    desired_energy_variance: Any = None,
    metric: str | None = "diagonal",
    axis_name: str | Sequence[str] | None = None,
    **options: Any,
) -> Warmup:
    """Tunes step size, trajectory length and a diagonal metric of `mclmc`; step size and metric of `adjusted_mclmc`.

    The adjusted kernel is tuned by `warmup`, to an acceptance rate of 0.9. What follows is about the other.

    With `xi = energy change^2 / (size * desired_energy_variance)` of each transition, its weight
    `w = exp(-(log(xi) / 9)^2 / 2)` and W the faded sum of the weights before it, the step size is multiplied by
    `((W + w xi) / (W + w))^(-1/6)`. At the end of a window the inverse mass becomes the root of the ratio of the
    variances of draws and gradients, and the trajectory length the root of the sum of the variances of the draws in
    whitened coordinates, of those that are no longer on their way to the posterior.

    Several chains map `step` over `chain` alone, with the name of the mapped axis, as for `warmup`. They share all of
    it, and their numbers are pooled at each transition. Chains that begin hundreds of
    standard deviations away may still be on their way after 1,000 transitions, and are not tuned then.

    Args:
      log_density: `position -> scalar` on unconstrained positions, a pytree of floating arrays, two scalars or more.
      kernel: `mclmc` or `adjusted_mclmc`, or a `functools.partial` of one; any factory that takes no
        `trajectory_length` counts as adjusted.
      num_steps: transitions that tune: the first tenth is for finding the way, the last for the step size alone.
      desired_energy_variance: (), mean squared energy change of a transition for each scalar in a position, 5e-4 by
        default. The bias falls as its cube root. None for an adjusted kernel, which has no bias.
      metric: "diagonal", or None to leave coordinates as they are; for an adjusted kernel any that `warmup` knows.
      axis_name: named axes over which chains share what is tuned; none for a chain on its own.
      **options: for the kernel; of an adjusted one for `warmup` too, such as `target_acceptance`.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`. The state is a `core.Shared` of `WarmupChain` and
      `MCLMCShared`; the kernel's state is an `MCLMCState` and its info an `MCLMCInfo`. Of an adjusted kernel it is what
      `warmup` returns.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for an unknown metric, a negative number of steps, a variance that is not above zero, or a kernel
        without a step size.

    >>> tuning = mclmc_warmup(lambda q: -0.5 * (q**2).sum(), num_steps=20)
    >>> state = tuning.init(jnp.ones(3), jax.random.key(0))
    >>> state, info = tuning.step(jax.random.key(1), state)
    >>> kernel = tuning.finish(state)

    Source: Robnik, De Luca, Silverstein & Seljak (2023); the diagonal is that of `warmup`.
    """
    target = as_log_density(log_density, "mclmc_warmup")
    if "trajectory_length" not in inspect.signature(kernel).parameters:
        if desired_energy_variance is not None:
            got, todo = f"{desired_energy_variance} for an adjusted kernel", "It has a target_acceptance instead"
            raise core.bad_value("mclmc_warmup", "desired_energy_variance", got, "None", todo)
        if metric is None:
            raise core.bad_value("mclmc_warmup", "metric", "None for an adjusted kernel", "one that warmup knows")
        rate = {"target_acceptance": ACCEPTANCE}
        return warmup(kernel, target, num_steps=num_steps, metric=metric, axis_name=axis_name, **(rate | options))
    if metric not in ("diagonal", None):
        raise core.bad_value("mclmc_warmup", "metric", core.describe(metric), "'diagonal' or None")
    if num_steps < 0:
        raise core.bad_value("mclmc_warmup", "num_steps", num_steps, "an integer of at least 0")
    desired = known_number(
        "mclmc_warmup",
        "desired_energy_variance",
        ENERGY_VARIANCE if desired_energy_variance is None else desired_energy_variance,
        lambda variance: 0 < variance < jnp.inf,
        "a finite number above 0",
    )
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def build(shared: MCLMCShared) -> core.Algorithm:
        return kernel(
            target,
            step_size=shared.step_size,
            trajectory_length=shared.trajectory_length,
            inverse_mass_matrix=shared.metric,
            **options,
        )

    def init(position: Any, key: core.Key) -> core.Shared:
        vector = hamiltonian.to_vector(position)[0]
        dtype = vector.dtype
        plan = jax.tree.map(jnp.int32, _schedule(num_steps))
        shared = MCLMCShared(
            transitions=jnp.int32(0),
            schedule=plan,
            windows=jnp.int32(0),
            window_end=window_end_of(plan, plan.start, 0),
            window=metric_estimation.start(vector.size, dtype, dense=False, fisher=True),
            bulk=welford.start(vector.size, dtype, dense=False),
            best=jnp.asarray(-jnp.inf, dtype),
            weight=jnp.zeros((), dtype),
            step_size=jnp.asarray(vector.size**0.5 / 4, dtype),
            trajectory_length=jnp.asarray(vector.size**0.5, dtype),
            metric=Metric(jnp.ones((vector.size,), dtype)),
        )
        return core.Shared(WarmupChain(build(shared).init(position, key)), shared)

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, MCLMCInfo]:
        chain, shared = state
        new, info = build(shared).step(key, chain.kernel)
        tuning = shared.transitions < shared.schedule.num_steps
        shared = core.cond(tuning, tune, lambda shared, kernel, change: shared, shared, new, info.energy_change)
        return core.Shared(WarmupChain(new), shared), info

    def tune(shared: MCLMCShared, kernel: Any, change: jax.Array) -> MCLMCShared:
        plan, transitions = shared.schedule, shared.transitions + 1
        scale = core.size(kernel.position) * desired.astype(shared.weight.dtype)
        # Far from the bulk rounding alone makes an energy change, whatever the step size.
        rounding = hamiltonian.ROUNDING * jnp.finfo(change.dtype).eps * jnp.abs(kernel.log_density)
        errors = jnp.maximum(jnp.abs(change) - rounding, 0) ** 2 / scale
        step_size, weight = _resize(shared.step_size, shared.weight, gather(errors, axes))
        shared = shared._replace(transitions=transitions, step_size=step_size, weight=weight)
        inside = (transitions > plan.start) & (transitions <= plan.stop)
        shared = core.cond(inside, remember, lambda shared, kernel: shared, shared, kernel)
        return core.cond(inside & (transitions == shared.window_end), close, lambda shared: shared, shared)

    def remember(shared: MCLMCShared, kernel: Any) -> MCLMCShared:
        mine = [hamiltonian.to_vector(tree)[0] for tree in (kernel.position, kernel.log_density_gradient)]
        positions, gradients, densities = gather((*mine, kernel.log_density), axes)
        finite = jnp.all(jnp.isfinite(gradients), axis=1) & jnp.isfinite(densities)
        positions, gradients = (jnp.where(jnp.expand_dims(finite, 1), rows, 0) for rows in (positions, gradients))
        weights = finite.astype(positions.dtype)
        # A chain on its way teaches the ratio of draws to gradients, and needs it to get on. The length of its way is
        # not that of a trajectory.
        densities = jnp.where(finite, densities, -jnp.inf)
        spread, highest = spread_of(positions.shape[1]), jnp.max(densities)
        risen = highest > shared.best + spread
        bulk = jax.tree.map(lambda x: jnp.where(risen, jnp.zeros_like(x), x), shared.bulk)
        best = jnp.where(risen, highest, shared.best)
        return shared._replace(
            window=metric_estimation.update(shared.window, positions, gradients, weights),
            bulk=welford.add(bulk, positions, jnp.where(densities >= best - spread, weights, 0)),
            best=best,
        )

    def close(shared: MCLMCShared) -> MCLMCShared:
        scales = shared.metric
        if metric == "diagonal":
            scales = metric_estimation.estimate(shared.window, scales)
        moments = shared.bulk
        variances = moments.squares / jnp.maximum(moments.number - 1, 1)
        length = jnp.sqrt(core.ordered_sum(variances / scales.factor**2))
        usable = (length > 0) & (length < jnp.inf) & (moments.number >= metric_estimation.FEWEST)
        return shared._replace(
            windows=shared.windows + 1,
            window_end=window_end_of(shared.schedule, shared.transitions, shared.windows + 1),
            window=jax.tree.map(jnp.zeros_like, shared.window),
            bulk=jax.tree.map(jnp.zeros_like, shared.bulk),
            best=jnp.full_like(shared.best, -jnp.inf),
            weight=jnp.zeros_like(shared.weight),
            trajectory_length=jnp.where(usable, length, shared.trajectory_length),
            metric=scales,
        )

    def finish(state: core.Shared) -> core.Algorithm:
        return build(state.shared)

    return Warmup(init, step, finish)


def _schedule(num_steps: int) -> Schedule:
    """A tenth to find the way, windows of one tenth, two and five or so, and a tenth for the step size."""
    tenth = num_steps // 10
    if tenth < metric_estimation.FEWEST:
        return Schedule(num_steps, num_steps, num_steps, num_steps)
    return Schedule(num_steps, tenth, num_steps - tenth, tenth)


def _resize(step_size: jax.Array, weight: jax.Array, errors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next step size, and the weight of what it rests on.

    Args:
      step_size: () so far: that at which the faded mean of the errors, each brought there by the sixth power, is 1.
      weight: () of what it rests on.
      errors: (chain,), squared energy changes over the wanted one.
    """
    errors = jnp.where(jnp.isfinite(errors), jnp.clip(errors, 1 / FARTHEST, FARTHEST), TURNED_BACK)
    weights = jnp.exp(-0.5 * (jnp.log(errors) / (6 * TRUST)) ** 2)
    chains = errors.shape[0]
    faded = weight * (REMEMBERED - 1) / (REMEMBERED + 1)
    weight = faded + core.ordered_sum(weights) / chains
    mean = (faded + core.ordered_dot(weights, errors) / chains) / weight
    return step_size * mean ** (-1 / 6), weight
