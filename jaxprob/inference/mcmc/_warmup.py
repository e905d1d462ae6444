"""Warm-up of Hamiltonian kernels as an algorithm: step size by dual averaging, metric in windows, pooled over chains.

The state keeps what chains have in common (`WarmupShared`) apart from what is theirs (`WarmupChain`). Chains that run
side by side under named axes gather their numbers into one array, in the order of the chains, and reduce that: the
result does not depend on how chains are spread over devices. After its last step the same `step` is that of the tuned
kernel, so that one compiled program serves warm-up and sampling.

Source: Stan reference manual, "MCMC sampling", automatic parameter tuning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _block_metric as block_metric
from jaxprob.inference.mcmc import _dual_averaging as dual_averaging
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _low_rank_metric as low_rank_metric
from jaxprob.inference.mcmc import _metric_estimation as metric_estimation
from jaxprob.inference.mcmc._dual_averaging import DualAveraging
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._numbers import known_number

METRICS = ("auto", "diagonal", "dense", "low-rank", "block")
LARGEST = 256  # scalars in a position up to which the products with a dense metric cost little beside the rest
FAR = 10  # a log density so much below the best, and 5 more for each dimension, is no draw's of the posterior
TARGET, CAREFUL = 0.85, 0.95  # acceptance aimed at, and where there are narrow places
# Narrow places are where more than the second share of trajectories is accepted below the first. Of eight schools, the
# non-centred have 0.015 of them; the centred and a funnel 0.02 to 0.03, and 0.05 to 0.08 once 64 chains find the necks.
POOR, MANY = 0.1, 0.02
FIRST_DEPTH = 6  # doublings allowed before a metric is known; one more for each window learnt


class Warmup(NamedTuple):
    """A `core.Algorithm` that tunes a kernel, and the way to the tuned kernel.

    Attributes:
      init: `(position, key) -> state`, a `core.Shared` of `WarmupChain` and `WarmupShared`.
      step: `(key, state) -> (state, info)`, one transition of the kernel, and of the tuning while it lasts; info is the
        kernel's.
      finish: `state -> Algorithm`, the kernel as tuned so far; its state is `state.chain.kernel`.
    """

    init: Callable[[Any, core.Key], core.Shared]
    step: Callable[[core.Key, core.Shared], tuple[core.Shared, Any]]
    finish: Callable[[core.Shared], core.Algorithm]


class WarmupChain(NamedTuple):
    """What belongs to one chain.

    Attributes:
      kernel: state of the kernel.
    """

    kernel: Any

    @property
    def position(self) -> Any:
        """Where the chain is."""
        return self.kernel.position


class WarmupShared(NamedTuple):
    """What all chains have in common.

    Attributes:
      transitions: (), made while tuning.
      schedule: how long to tune, and when to learn a metric; arrays, so that another length compiles nothing.
      windows: (), windows that have closed.
      window_end: (), transitions after which the window under way closes.
      window: what is remembered of the window under way.
      best: (), the largest log density of any chain in the window under way.
      poor: (), share of the trajectories of the window under way, once its step size had settled, that were hardly
        accepted.
      narrow: (), bool: whether there are narrow places: some trajectories were hardly accepted though most were.
      averaging: of the step size.
      step_size: (), for the next transition.
      metric: for the next transition.
    """

    transitions: jax.Array
    schedule: Schedule
    windows: jax.Array
    window_end: jax.Array
    window: Any
    best: jax.Array
    poor: jax.Array
    narrow: jax.Array
    averaging: DualAveraging
    step_size: jax.Array
    metric: Metric


class Schedule(NamedTuple):
    """When to do what; every field is a scalar count of transitions.

    Attributes:
      num_steps: in all.
      start: before the first window: the chains find their way, at the metric they began with.
      stop: before the end of the last window; the rest tunes the step size alone.
      window: in the first window; each further one is twice as long as the one before, the last takes what is left.
    """

    num_steps: Any
    start: Any
    stop: Any
    window: Any


def schedule(num_steps: int, fisher: bool = False) -> Schedule:
    """Stan's schedule: 75 transitions, windows from 25 on, 50 transitions; in proportion where 150 are not reached.

    With gradients a metric is learnt from few draws, and windows begin at once, from 10 on.

    >>> schedule(1000)
    Schedule(num_steps=1000, start=75, stop=950, window=25)
    """
    if num_steps < 20:  # too few to learn a metric from
        return Schedule(num_steps, num_steps, num_steps, num_steps)
    if fisher:
        return Schedule(num_steps, 0, num_steps - min(100, num_steps // 4), 10)
    if num_steps < 150:
        start, stop = int(0.15 * num_steps), num_steps - int(0.1 * num_steps)
        return Schedule(num_steps, start, stop, stop - start)
    return Schedule(num_steps, 75, num_steps - 50, 25)


def window_end_of(plan: Schedule, begin: Any, windows: Any) -> jax.Array:
    # A window takes all that is left if the next, twice as long, would not fit behind it; the first never does.
    length = plan.window * 2**windows
    return jnp.where((windows > 0) & (begin + 3 * length > plan.stop), plan.stop, begin + length)


def pick_metric(size: int, chains: int, num_steps: int, estimate: str = "fisher") -> str:
    """The metric that suits a target: "dense" where draws suffice to learn it and it costs little, else "diagonal".

    >>> pick_metric(10, 4, 400), pick_metric(1000, 4, 400)
    ('dense', 'diagonal')
    """
    # The last window holds about half of the transitions, and a matrix wants twice as many draws as it has rows;
    # without gradients its error falls as the root of the number of independent draws only.
    enough = 5 if estimate == "fisher" else 50
    return "dense" if size <= LARGEST and chains * num_steps >= enough * size else "diagonal"


def pick_num_steps(chains: int) -> int:
    """How many transitions to tune for: 1,000 for one chain, fewer where several learn together.

    >>> [pick_num_steps(chains) for chains in (1, 2, 4, 64)]
    [1000, 600, 400, 300]
    """
    return {1: 1000, 2: 600, 3: 500}.get(chains, 400 if chains < 32 else 300)


def warmup(
    kernel: Callable[..., core.Algorithm],
    log_density: core.LogDensity,
    *,
    num_steps: int = 1000,
    target_acceptance: Any = None,
    narrow_acceptance: Any = None,
    metric: str = "auto",
    rank: int | None = None,
    blocks: Sequence[str | Sequence[str]] | None = None,
    estimate: str = "fisher",
    initial_step_size: Any = 1.0,
    axis_name: str | Sequence[str] | None = None,
    **options: Any,
) -> Warmup:
    """Warm-up of a Hamiltonian kernel, for one chain or for several that share what they learn.

    Several chains map `step` over `chain` alone, with the name of the mapped axis (of all of them, outermost first,
    where they are spread over a mesh as well):

    `vmap(step, in_axes=(0, Shared(0, None)), out_axes=(Shared(0, None), 0), axis_name="chain")`

    Args:
      kernel: `nuts`, `hmc`, or any factory with arguments `step_size` and `inverse_mass_matrix` whose info has a field
        `acceptance_rate`.
      log_density: `position -> scalar`.
      num_steps: transitions that tune; at the end of them the tuning stands still.
      target_acceptance: (), acceptance rate that the step size aims at. By default 0.85, more than Stan's 0.8, which
        costs hardly anything.
      narrow_acceptance: (), what it aims at after a window in which some trajectories were hardly accepted though most
        were: by default 0.95, since smaller steps miss less of narrow places such as the neck of a funnel, or the
        target acceptance if that is given. 0.7 is right where `walnuts`, which shortens its steps itself, goes on from
        there.
      metric: "diagonal", "dense", "low-rank" (a diagonal and a few directions, for many dimensions of which few hang
        together), "block" (dense within `blocks`, diagonal elsewhere), or "auto" for what `pick_metric` picks.
      rank: directions of a low-rank metric at most, 16 by default. The window remembers ten draws for each.
      blocks: of a block metric: each a name of a leaf of the position, or a tuple of such names.
      estimate: "fisher" learns it from draws and their gradients, which takes few draws; "covariance" from the draws
        alone, as Stan does, and so does a kernel whose state has no gradient.
      initial_step_size: (), where the search begins; too large costs less than too small.
      axis_name: named axes over which chains share one step size and one metric; none for a chain on its own.
      **options: for the kernel.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for an unknown metric, one without what it needs, a negative number of steps, a target outside (0, 1),
        or a step size that is not above zero.

    >>> from jaxprob.inference import mcmc
    >>> tuning = warmup(mcmc.nuts, lambda q: -0.5 * (q**2).sum(), num_steps=20)
    >>> state = tuning.init(jnp.ones(3), jax.random.key(0))
    >>> state, info = tuning.step(jax.random.key(1), state)
    >>> kernel = tuning.finish(state)

    Source: Hoffman & Gelman (2014), algorithm 6, for the step size; Stan reference manual for the windows.
    """
    target = as_log_density(log_density, "warmup")
    if estimate not in ("fisher", "covariance"):
        raise core.bad_value("warmup", "estimate", core.describe(estimate), "'fisher' or 'covariance'")
    _check_metric(metric, rank, blocks, estimate)
    if num_steps < 0:
        raise core.bad_value("warmup", "num_steps", num_steps, "an integer of at least 0")
    aim = _acceptance("target_acceptance", target_acceptance, TARGET)
    usual = CAREFUL if target_acceptance is None else aim
    careful = _acceptance("narrow_acceptance", narrow_acceptance, usual)
    initial_step_size = hamiltonian.as_step_size(initial_step_size, "warmup")
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    _check_kernel(kernel)
    takes = {name for name in ("tree_depth_limit", "descend") if name in inspect.signature(kernel).parameters} - {
        *options
    }

    def build(step_size: Any, scale: Metric, **more: Any) -> core.Algorithm:
        return kernel(target, step_size=step_size, inverse_mass_matrix=scale, **options, **more)

    def init(position: Any, key: core.Key) -> core.Shared:
        flat = hamiltonian.flatten(target, position)
        picked = metric
        if metric == "auto":
            picked = pick_metric(flat.size, gather(jnp.zeros(()), axes).shape[0], num_steps, estimate)
        step_size = initial_step_size.astype(flat.dtype)
        kernel_state = build(step_size, Metric(jnp.ones((), flat.dtype))).init(position, key)
        fisher = estimate == "fisher" and _gradient(kernel_state, flat.dtype) is not None
        window: Any
        scale: Any
        if picked == "low-rank":
            if not fisher:
                got = "'low-rank' for a kernel whose state has no log_density_gradient"
                raise core.bad_value("warmup", "metric", got, "'diagonal' or 'dense'")
            window, scale = low_rank_metric.start(flat.size, flat.dtype, low_rank_metric.RANK if rank is None else rank)
        elif picked == "block":
            window, scale = block_metric.start(position, flat.dtype, blocks, fisher)
        else:
            dense, unit = picked == "dense", jnp.ones((flat.size,), flat.dtype)
            window, scale = metric_estimation.start(flat.size, flat.dtype, dense, fisher), Metric(unit)
            scale = Metric(jnp.diag(unit)) if dense else scale
        plan = jax.tree.map(jnp.int32, schedule(num_steps, fisher))
        shared = WarmupShared(
            transitions=jnp.int32(0),
            schedule=plan,
            windows=jnp.int32(0),
            window_end=window_end_of(plan, plan.start, 0),
            window=window,
            best=jnp.asarray(-jnp.inf, flat.dtype),
            poor=jnp.zeros((), flat.dtype),
            narrow=jnp.bool_(False),
            averaging=dual_averaging.start(step_size),
            step_size=step_size,
            metric=scale,
        )
        return core.Shared(WarmupChain(kernel_state), shared)

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, Any]:
        chain, shared = state
        tuning = shared.transitions < shared.schedule.num_steps
        more = {}
        if "tree_depth_limit" in takes:
            more["tree_depth_limit"] = jnp.where(tuning, FIRST_DEPTH + shared.windows, 20)
        if "descend" in takes:
            # A chain on its way falls; as a sample of the tails it would come down as slowly as it loses energy.
            away = chain.kernel.log_density < shared.best - spread_of(core.size(chain.position))
            more["descend"] = tuning & (2 * shared.transitions <= shared.schedule.stop) & away
        new, info = build(shared.step_size, shared.metric, **more).step(key, chain.kernel)
        new, shared = core.cond(
            tuning, tune, lambda kernel, shared, _: (kernel, shared), new, shared, info.acceptance_rate
        )
        return core.Shared(WarmupChain(new), shared), info

    def tune(kernel: Any, shared: WarmupShared, rate: jax.Array) -> tuple[Any, WarmupShared]:
        plan, transitions = shared.schedule, shared.transitions + 1
        rates = gather(jnp.where(jnp.isnan(rate), 0, rate), axes)
        wanted = jnp.where(shared.narrow, careful, aim).astype(shared.step_size.dtype)
        averaging = dual_averaging.update(shared.averaging, core.ordered_sum(rates) / rates.shape[0], wanted)
        log_step = jnp.where(transitions == plan.num_steps, averaging.log_average, averaging.log_step)
        # The first step sizes after each restart are too large on purpose.
        settled = jnp.maximum(averaging.updates - dual_averaging.DELAY, 0)
        poor = jnp.mean(rates < POOR, dtype=shared.poor.dtype)
        poor = shared.poor + jnp.where(settled > 0, (poor - shared.poor) / jnp.maximum(settled, 1), 0)
        shared = shared._replace(transitions=transitions, poor=poor, averaging=averaging, step_size=jnp.exp(log_step))
        inside = (transitions > plan.start) & (transitions <= plan.stop)
        kernel, shared = core.cond(inside, remember, lambda *same: same, kernel, shared)
        return kernel, core.cond(inside & (transitions == shared.window_end), learn, lambda shared: shared, shared)

    def remember(kernel: Any, shared: WarmupShared) -> tuple[Any, WarmupShared]:
        dtype = shared.step_size.dtype
        position, gradient = core.ravel(kernel.position)[0].astype(dtype), _gradient(kernel, dtype)
        density = getattr(kernel, "log_density", jnp.zeros(())).astype(dtype)
        positions, gradients, densities = gather((position, gradient, density), axes)
        # A draw counts if its density is that of draws of the posterior, as far as any chain has seen it: what chains
        # do on their way there says nothing about its scales, and can outweigh all that does.
        densities = jnp.where(jnp.isnan(densities), -jnp.inf, densities)
        spread, best = spread_of(position.size), jnp.max(densities)
        risen = best > shared.best + spread
        window = jax.tree.map(lambda x: jnp.where(risen, jnp.zeros_like(x), x), shared.window)
        best = jnp.where(risen, best, shared.best)
        weights = (densities >= best - spread).astype(dtype)
        if isinstance(kernel, hamiltonian.State):
            # A chain that is still away when an early window ends goes on from where the best one is: it would take
            # longer than the warm-up, in a region whose mass is as good as none.
            early = (shared.transitions == shared.window_end) & (2 * shared.transitions <= shared.schedule.stop)
            lost = early & ~(density >= best - spread)
            donor = jnp.argmax(densities)
            unravel = hamiltonian.to_vector(kernel.position)[1]
            there = hamiltonian.State(unravel(positions[donor]), densities[donor], unravel(gradients[donor]))
            kernel = jax.tree.map(lambda new, old: jnp.where(lost, new.astype(old.dtype), old), there, kernel)
        window = metric_estimation.update(window, positions, gradients, weights)
        return kernel, shared._replace(window=window, best=best)

    def learn(shared: WarmupShared) -> WarmupShared:
        # A window in which the chains were still on their way goes on a little.
        longer = shared.transitions + shared.schedule.window
        few = (shared.window.number < metric_estimation.FEWEST) & (longer <= shared.schedule.stop)
        return core.cond(few, lambda shared: shared._replace(window_end=longer), close, shared)

    def close(shared: WarmupShared) -> WarmupShared:
        step_size = jnp.exp(shared.averaging.log_average)
        late = 2 * shared.transitions > shared.schedule.stop
        return shared._replace(
            windows=shared.windows + 1,
            window_end=window_end_of(shared.schedule, shared.transitions, shared.windows + 1),
            window=jax.tree.map(jnp.zeros_like, shared.window),
            best=jnp.full_like(shared.best, -jnp.inf),
            poor=jnp.zeros_like(shared.poor),
            narrow=shared.narrow | (late & (shared.poor > MANY)),
            averaging=dual_averaging.start(step_size),
            step_size=step_size,
            metric=metric_estimation.estimate(shared.window, shared.metric),
        )

    def finish(state: core.Shared) -> core.Algorithm:
        shared = state.shared
        unfinished = (shared.transitions < shared.schedule.num_steps) & (shared.averaging.updates > 0)
        return build(jnp.where(unfinished, jnp.exp(shared.averaging.log_average), shared.step_size), shared.metric)

    return Warmup(init, step, finish)


def _acceptance(name: str, value: Any, usual: Any) -> Any:
    what = "a number between 0 and 1, or None"
    return usual if value is None else known_number("warmup", name, value, lambda rate: 0 < rate < 1, what)


def _check_kernel(kernel: Any) -> None:
    """Raises a `ValueError` for a factory that has nothing to tune."""
    accepts = inspect.signature(kernel).parameters
    missing = [name for name in ("step_size", "inverse_mass_matrix") if name not in accepts]
    if missing and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepts.values()):
        name = getattr(getattr(kernel, "func", kernel), "__name__", core.describe(kernel))
        got, want = f"{name}, which takes no {' and no '.join(missing)}", "a factory with a step size and a metric"
        raise core.bad_value("warmup", "kernel", got, want, "step_size_warmup tunes kernels without a metric")


def _check_metric(metric: Any, rank: Any, blocks: Any, estimate: str) -> None:
    """Raises a `ValueError` for a metric that is unknown, or with options that are another's."""
    if metric not in METRICS:
        raise core.bad_value(
            "warmup", "metric", core.describe(metric), "'auto', 'diagonal', 'dense', 'low-rank' or 'block'"
        )
    if metric == "low-rank" and estimate != "fisher":
        raise core.bad_value("warmup", "estimate", core.describe(estimate), "'fisher' for a low-rank metric")
    if rank is not None and (metric != "low-rank" or isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        want = "an integer of at least 0, with metric='low-rank'"
        raise core.bad_value("warmup", "rank", f"{core.describe(rank)} with metric={metric!r}", want)
    if (blocks is None) != (metric != "block") or isinstance(blocks, str):
        want = "a tuple of names of leaves, or of tuples of them, with metric='block'"
        raise core.bad_value("warmup", "blocks", f"{core.describe(blocks)} with metric={metric!r}", want)


def spread_of(size: int) -> int:
    """How far below the best a log density of `size` dimensions is that of a chain on its way."""
    return FAR + 5 * size


def _gradient(state: Any, dtype: Any) -> jax.Array | None:
    """The gradient (size,) in a kernel's state, or None for a kernel that has none."""
    gradient = getattr(state, "log_density_gradient", None)
    return None if gradient is None else core.ravel(gradient)[0].astype(dtype)


def gather(tree: Any, axes: Sequence[str]) -> Any:
    """The arrays of all chains on a new leading axis, in their global order; of one chain where there are no axes.

    Sums over chains are never left to `psum`, whose order depends on the devices.
    """

    def gathered(leaf: jax.Array) -> jax.Array:
        leaf = jnp.expand_dims(leaf, 0)
        for axis in reversed(axes):
            leaf = lax.all_gather(leaf, axis)
            leaf = leaf.reshape(-1, *leaf.shape[2:])
        return leaf

    return lax.optimization_barrier(jax.tree.map(gathered, tree))
