"""Hamiltonian Monte Carlo whose trajectory length many chains learn together: ChEES and SNAPER.

All chains take the same number of leapfrog steps, so that none waits for another. The length is jittered by van der
Corput numbers and climbs the gradient of a criterion: how far a squared distance from the mean moves in a transition.
Metric and step size are learnt on the way, as in `warmup`; afterwards all of it stands still but the jitter.

Source: Hoffman, Radul & Sountsov (2021), "An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo"; Sountsov & Hoffman (2021), "Focusing on difficult directions for learning HMC trajectory lengths".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _dual_averaging as dual_averaging
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation
from jaxprob.inference.mcmc._dual_averaging import DualAveraging
from jaxprob.inference.mcmc._jittered import TrajectoryInfo, jittered_hmc, transition
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._metric_estimation import Window
from jaxprob.inference.mcmc._warmup import Warmup, WarmupChain, gather

RATE = 0.025  # of Adam on the log of the trajectory length; with no momentum and DISCOUNT, as published
DISCOUNT = 0.95  # of the mean square of the gradient
POINTS = 8  # running means over chains and transitions remember about the last eighth of the transitions


class TrajectoryShared(NamedTuple):
    """What all chains have in common.

    Attributes:
      transitions: (), made while tuning.
      num_steps: (), to make in all.
      window_end: (), transitions after which the window under way closes, and a metric is learnt.
      last_end: (), the latest that a window may close.
      windows: (), that have closed; in the first, trajectories are of one step.
      window: what is remembered of the window under way.
      averaging: of the step size.
      step_size: (), for the next transition.
      metric: for the next transition.
      trajectory_length: (), for the next transition, in the units of the metric: the largest, the mean is half.
      log_average: (), averaged log of it.
      shortest: (), log of the step size when the last window closed; no trajectory length is below that.
      square: (), discounted sum of squared gradients.
      mean: (size,), running mean of the positions.
      direction: (size,), running principal component in the units of the metric, of the length of its eigenvalue; None
        where none is needed.
    """

    transitions: jax.Array
    num_steps: jax.Array
    window_end: jax.Array
    last_end: jax.Array
    windows: jax.Array
    window: Window
    averaging: DualAveraging
    step_size: jax.Array
    metric: Metric
    trajectory_length: jax.Array
    log_average: jax.Array
    shortest: jax.Array
    square: jax.Array
    mean: jax.Array
    direction: jax.Array | None


class _Moves(NamedTuple):
    """The proposals of all chains, in the units of the metric and centred."""

    before: jax.Array  # (chain, size)
    after: jax.Array  # (chain, size)
    velocity: jax.Array  # (chain, size)
    jitter: jax.Array  # (chain,)


def chees(
    log_density: core.LogDensity,
    *,
    num_steps: int = 500,
    target_acceptance: Any = 0.651,
    metric: str = "diagonal",
    initial_step_size: Any = 1.0,
    max_num_steps: int = 1000,
    axis_name: str | Sequence[str] | None = None,
) -> Warmup:
    """ChEES-HMC: many chains learn the trajectory length that moves the squared distance from the mean most.

    Ascends `E[(|x' - m|^2 - |x - m|^2)^2] / 4` in the log of the trajectory length by Adam; transitions are of length
    h T, with h the van der Corput sequence. The step size follows the harmonic mean of the chains' acceptance rates by
    dual averaging. The squares are in the units of the metric, and m is the running mean over chains and transitions.

    Several chains map `step` over `chain` alone, with the name of the mapped axis, as for `warmup`. A transition costs
    T / 2 over the step size gradients in the mean.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      num_steps: transitions that tune; at the end of them the tuning stands still. For 32 chains or more, 300 will do.
      target_acceptance: (), harmonic mean of acceptance rates that the step size aims at.
      metric: "diagonal", learnt in windows over the first two fifths, or "identity".
      initial_step_size: (), where the search begins.
      max_num_steps: largest number of leapfrog steps in a transition.
      axis_name: named axes over which chains learn together. A chain on its own learns, slowly, from itself.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`. The state is a `core.Shared` of `WarmupChain` and
      `TrajectoryShared`; the kernel's state is a `TrajectoryState` and its info a `TrajectoryInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for an unknown metric, or a number that cannot be what it is for.

    >>> tuning = chees(lambda q: -0.5 * (q**2).sum(), num_steps=20, axis_name="chain")
    >>> both = core.Shared(0, None)
    >>> init = jax.vmap(tuning.init, out_axes=both, axis_name="chain")
    >>> step = jax.vmap(tuning.step, in_axes=(0, both), out_axes=(both, 0), axis_name="chain")
    >>> state = init(jnp.ones((8, 3)), jax.random.split(jax.random.key(0), 8))
    >>> state, info = step(jax.random.split(jax.random.key(1), 8), state)
    >>> kernel = tuning.finish(state)

    Source: Hoffman, Radul & Sountsov (2021), algorithm 1 and equation 7.
    """
    return _trajectory_warmup(
        "chees", log_density, False, num_steps, target_acceptance, metric, initial_step_size, max_num_steps, axis_name
    )


def snaper(
    log_density: core.LogDensity,
    *,
    num_steps: int = 500,
    target_acceptance: Any = 0.651,
    metric: str = "diagonal",
    initial_step_size: Any = 1.0,
    max_num_steps: int = 1000,
    axis_name: str | Sequence[str] | None = None,
) -> Warmup:
    """SNAPER-HMC: like `chees`, along the principal component alone and for each unit of the trajectory length.

    Ascends `E[((u'(x' - m))^2 - (u'(x - m))^2)^2] / (T + step size)`, with u the principal component of the positions
    in the units of the metric, learnt on the way by Oja's rule. Below is twice the mean length that is gone. Where
    there are many dimensions and few of them are long, their share in the distance that `chees` looks at is small; here
    they are all that counts.

    Args and returns as of `chees`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for an unknown metric, or a number that cannot be what it is for.

    >>> tuning = snaper(lambda q: -0.5 * (q**2).sum(), num_steps=20)
    >>> state, info = tuning.step(jax.random.key(1), tuning.init(jnp.ones(3), jax.random.key(0)))
    >>> state.shared.direction.shape
    (3,)

    Source: Sountsov & Hoffman (2021), equations 5 to 8.
    """
    return _trajectory_warmup(
        "snaper", log_density, True, num_steps, target_acceptance, metric, initial_step_size, max_num_steps, axis_name
    )


def _trajectory_warmup(
    name: str,
    log_density: core.LogDensity,
    principal: bool,
    num_steps: int,
    target_acceptance: Any,
    metric: str,
    initial_step_size: Any,
    max_num_steps: int,
    axis_name: str | Sequence[str] | None,
) -> Warmup:
    target = as_log_density(log_density, name)
    if metric not in ("diagonal", "identity"):
        raise core.bad_value(name, "metric", core.describe(metric), "'diagonal' or 'identity'")
    if num_steps < 0:
        raise core.bad_value(name, "num_steps", num_steps, "an integer of at least 0")
    if max_num_steps < 1:
        raise core.bad_value(name, "max_num_steps", max_num_steps, "an integer of at least 1")
    if not isinstance(target_acceptance, jax.core.Tracer) and not 0 < target_acceptance < 1:
        raise core.bad_value(name, "target_acceptance", target_acceptance, "a number between 0 and 1")
    initial_step_size = hamiltonian.as_step_size(initial_step_size, name)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def kernel(step_size: Any, scale: Metric, length: Any) -> core.Algorithm:
        return jittered_hmc(target, step_size, scale, length, max_num_steps, name)

    def init(position: Any, key: core.Key) -> core.Shared:
        flat = hamiltonian.flatten(target, position)
        step_size, zero = initial_step_size.astype(flat.dtype), jnp.zeros((), flat.dtype)
        scale = Metric(jnp.ones((flat.size,), flat.dtype))
        direction = core.random.normal(jax.random.key(0), (flat.size,), flat.dtype)  # any but an orthogonal one
        shared = TrajectoryShared(
            transitions=jnp.int32(0),
            num_steps=jnp.int32(num_steps),
            window_end=jnp.int32(max(1, num_steps // 20)),
            last_end=jnp.int32(max(1, num_steps * 2 // 5)),
            windows=jnp.int32(0),
            window=metric_estimation.start(flat.size, flat.dtype, False, True),
            averaging=dual_averaging.start(step_size),
            step_size=step_size,
            metric=scale,
            trajectory_length=step_size,
            log_average=zero,
            shortest=jnp.log(step_size),
            square=zero,
            mean=jnp.zeros((flat.size,), flat.dtype),
            direction=direction if principal else None,
        )
        state = kernel(step_size, scale, step_size).init(position, key)
        return core.Shared(WarmupChain(state), shared)

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, TrajectoryInfo]:
        chain, shared = state
        move = transition(
            target,
            shared.step_size,
            shared.metric,
            shared.trajectory_length,
            max_num_steps,
            core.as_key(key, name),
            chain.kernel,
        )
        mine = (
            *(move.first.position, move.last.position, move.last.momentum, move.jitter, move.info.acceptance_rate),
            *(move.chosen.position, move.chosen.gradient),
        )
        tuning = shared.transitions < shared.num_steps
        shared = core.cond(tuning, tune, lambda shared, mine: shared, shared, mine)
        return core.Shared(WarmupChain(move.state), shared), move.info

    def tune(shared: TrajectoryShared, mine: tuple[jax.Array, ...]) -> TrajectoryShared:
        first, last, momentum, jitter, rates, positions, gradients = gather(mine, axes)
        transitions = shared.transitions + 1
        remember = 1 / (shared.transitions // POINTS + 1).astype(rates.dtype)
        mean = towards(shared.mean, core.ordered_sum(first) / first.shape[0], remember)
        fine = jnp.isfinite(last).all(axis=1) & jnp.isfinite(momentum).all(axis=1)
        weights = jnp.where(fine, rates, 0)
        fine = jnp.expand_dims(fine, 1)
        # A product: a division by what is the same for all chains is made one in some programs and not in others.
        scale, centre = jnp.expand_dims(1 / shared.metric.factor, 0), jnp.expand_dims(mean, 0)
        moves = _Moves(
            before=(first - centre) * scale,
            after=jnp.where(fine, (last - centre) * scale, 0),
            velocity=jnp.where(fine, momentum, 0),
            jitter=jitter,
        )
        averaging = dual_averaging.update(shared.averaging, _harmonic_mean(rates), target_acceptance)
        direction = shared.direction
        if direction is None:
            slopes = _chees_slopes(moves, shared.trajectory_length)
        else:
            unit = direction * (1 / _norm(direction))
            slopes = _snaper_slopes(moves, unit, shared.trajectory_length, shared.step_size)
            shares = jnp.expand_dims(_along(moves.before, unit), 1)
            new = core.ordered_dot(shares, moves.before) / shares.shape[0]
            direction = towards(direction, new, remember)
            direction = jnp.where(jnp.isfinite(direction).all() & (_norm(direction) > 0), direction, unit)
        shared = shared._replace(
            transitions=transitions,
            averaging=averaging,
            step_size=jnp.exp(averaging.log_step),
            window=metric_estimation.update(shared.window, positions, gradients, jnp.ones_like(rates)),
            mean=mean,
            direction=direction,
        )
        shared = core.cond(shared.windows > 0, climb, follow, shared, slopes, weights)
        due = (transitions == shared.window_end) & (transitions <= shared.last_end)
        shared = core.cond(due, close, lambda shared: shared, shared)
        return core.cond(transitions == shared.num_steps, settle, lambda shared: shared, shared)

    def follow(shared: TrajectoryShared, slopes: jax.Array, weights: jax.Array) -> TrajectoryShared:
        """Trajectories of one step, until there is a metric."""
        return shared._replace(trajectory_length=shared.step_size)

    def climb(shared: TrajectoryShared, slopes: jax.Array, weights: jax.Array) -> TrajectoryShared:
        """One step of Adam, without momentum, on the log of the trajectory length."""
        total = core.ordered_sum(weights)
        slopes = jnp.where(weights > 0, slopes, 0)  # where a trajectory diverged its slope may be infinite
        slope = core.ordered_dot(weights, slopes) / jnp.where(total > 0, total, 1)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        square = towards(shared.square, core.rounded(slope**2), 1 - DISCOUNT)
        # The sums of discounts make up for the start at zero. The updates are counted by the averaging, which begins
        # anew with each window, as the slopes are in the units of the metric.
        updates = shared.averaging.updates
        root = jnp.sqrt(square / (1 - jnp.asarray(DISCOUNT, square.dtype) ** updates))
        log_length = jnp.log(shared.trajectory_length) + RATE * slope / jnp.where(root > 0, root, 1)
        # Below one step nothing says that longer would be better. The step size of the moment is no measure: dual
        # averaging tries ten times what it should be.
        ratio = jnp.log(jnp.asarray(max_num_steps, square.dtype))
        log_length = jnp.clip(log_length, shared.shortest, shared.averaging.log_step + ratio)
        weight = updates**-dual_averaging.DECAY
        average = towards(shared.log_average, log_length, weight)
        return shared._replace(square=square, trajectory_length=jnp.exp(log_length), log_average=average)

    def close(shared: TrajectoryShared) -> TrajectoryShared:
        step_size = jnp.exp(shared.averaging.log_average)
        learnt = metric_estimation.estimate(shared.window, shared.metric) if metric == "diagonal" else shared.metric
        return shared._replace(
            windows=shared.windows + 1,
            window_end=2 * shared.window_end,
            window=jax.tree.map(jnp.zeros_like, shared.window),
            averaging=dual_averaging.start(step_size),
            step_size=step_size,
            metric=learnt,
            trajectory_length=jnp.where(shared.windows == 0, step_size, shared.trajectory_length),
            shortest=shared.averaging.log_average,
            square=jnp.zeros_like(shared.square),
        )

    def settled(shared: TrajectoryShared) -> tuple[jax.Array, jax.Array]:
        """The averaged step size and trajectory length; where nothing is averaged yet, those of the moment."""
        some, averaged = shared.averaging.updates > 0, (shared.averaging.log_average, shared.log_average)
        step_size, length = (
            jnp.where(some, jnp.exp(log), now)
            for log, now in zip(averaged, (shared.step_size, shared.trajectory_length), strict=True)
        )
        return step_size, jnp.where(shared.windows > 0, length, step_size)

    def settle(shared: TrajectoryShared) -> TrajectoryShared:
        step_size, length = settled(shared)
        return shared._replace(step_size=step_size, trajectory_length=length)

    def finish(state: core.Shared) -> core.Algorithm:
        shared = state.shared
        done = shared.transitions >= shared.num_steps
        now = shared.step_size, shared.trajectory_length
        step_size, length = (
            jnp.where(done, frozen, moving) for frozen, moving in zip(now, settled(shared), strict=True)
        )
        return kernel(step_size, shared.metric, length)

    return Warmup(init, step, finish)


def towards(old: jax.Array, new: jax.Array, share: Any) -> jax.Array:
    """`old + share (new - old)`, a step of a running mean, with the same bits in whatever program it is part of."""
    return old + core.rounded(share * (new - old))


def _along(rows: jax.Array, unit: jax.Array) -> jax.Array:
    """(chain,), the component of each row (chain, size) along a vector."""
    return core.ordered_dot(rows.T, jnp.expand_dims(unit, 1))


def _norm(vector: jax.Array) -> jax.Array:
    return jnp.sqrt(core.ordered_dot(vector, vector))


def _chees_slopes(moves: _Moves, length: jax.Array) -> jax.Array:
    """(chain,), derivative of the criterion of each chain with respect to the log of the trajectory length."""
    before, after = moves.before.T, moves.after.T
    change = core.ordered_dot(after, after) - core.ordered_dot(before, before)
    return length * moves.jitter * change * core.ordered_dot(after, moves.velocity.T)


def _snaper_slopes(moves: _Moves, unit: jax.Array, length: jax.Array, step_size: jax.Array) -> jax.Array:
    """(chain,), the same for the criterion along a direction over twice the mean length that is gone."""
    before, after, velocity = (_along(rows, unit) for rows in moves[:3])
    change = (after - before) * (after + before)
    # Numbers of steps are rounded up, by half a step in the mean. Without it the rate is best where T is zero.
    rate = 1 / (length + step_size)
    gain, loss = core.rounded(4 * moves.jitter * after * velocity), core.rounded(change * rate)
    return length * rate * (change * (gain - loss))


def _harmonic_mean(rates: jax.Array) -> jax.Array:
    """Of (chain,) rates; NaN counts as 0."""
    rates = jnp.where(jnp.isnan(rates), 0, rates)
    return rates.shape[0] / core.ordered_sum(1 / rates)
