"""The no-U-turn sampler with steps that shorten themselves where the energy would not be kept.

Each leaf of the tree is one step of the size `h`, made of 2^l leapfrog steps of the size h / 2^l: the smallest l that
keeps the energy within a tolerance all along. From the other end the same l must come out, or there is no way back and
the doubling is rejected, as is one that turns. Inside a trajectory the steps are then a reversible map that keeps
volumes, whatever their lengths, and all else is NUTS.

A move is one leapfrog step, of whichever attempt is under way: many chains need not wait for the one in the narrowest
place.

Source: Bou-Rabee, Carpenter, Kleppe & Liu (2025), "The within-orbit adaptive leapfrog no-U-turn sampler".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _nuts as nuts
from jaxprob.inference.mcmc._hamiltonian import Point, State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric
from jaxprob.inference.mcmc._numbers import known_number


class WALNUTSInfo(NamedTuple):
    """What happened in one transition of `walnuts`; every field is a scalar.

    Attributes:
      acceptance_rate: mean over the leaves of what one step of the size `step_size` would have been accepted with,
        min(1, exp(initial energy - energy)); a warm-up tunes the step size by it.
      num_steps: leapfrog steps, each one gradient, those of attempts that failed included.
      num_leaves: of the trajectory, each one step of the size `step_size`.
      num_halvings: the most that a step was halved.
      tree_depth: doublings of the trajectory that were completed.
      irreversible: whether the trajectory ended at a step that leads back by another way.
      diverging: whether it ended at a step that failed however often it was halved.
      energy: of the new state, with the momentum that took it there.
      log_density: of the new state.
      step_size: before it is halved.
    """

    acceptance_rate: jax.Array
    num_steps: jax.Array
    num_leaves: jax.Array
    num_halvings: jax.Array
    tree_depth: jax.Array
    irreversible: jax.Array
    diverging: jax.Array
    energy: jax.Array
    log_density: jax.Array
    step_size: jax.Array


class _Attempt(NamedTuple):
    """A step under way: what the next leapfrog step needs."""

    here: jax.Array  # (3, size): position, momentum, force after the leapfrog steps so far
    lowest: jax.Array  # (), energy so far
    highest: jax.Array  # ()
    level: jax.Array  # (): how often the step is halved
    left: jax.Array  # (), leapfrog steps to go
    back: jax.Array  # (), bool: whether this asks for the way back from `target`
    target: jax.Array  # (4, size): where an attempt arrived that kept the energy, and the gradient there
    target_density: jax.Array  # (), log density there


class _Counts(NamedTuple):
    """What is told of a transition."""

    gradients: jax.Array
    acceptance: jax.Array
    halvings: jax.Array
    irreversible: jax.Array
    stuck: jax.Array


class Work(NamedTuple):
    """A transition under way.

    Attributes:
      state: where it began.
      draws: its random numbers.
      trajectory: so far.
      energies: (2,), of the earliest leaf and of the latest.
      attempt: the step under way.
      counts: what is told of it.
    """

    state: State
    draws: Any
    trajectory: Any
    energies: jax.Array
    attempt: _Attempt
    counts: _Counts


def walnuts(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    inverse_mass_matrix: Any = 1.0,
    *,
    energy_tolerance: Any = 1.0,
    max_halvings: int = 10,
    max_tree_depth: int = 10,
    tree_depth_limit: Any = None,
    descend: Any = False,
) -> core.Interruptible:
    """The no-U-turn sampler with steps that adapt along the trajectory.

    For densities whose scale changes from place to place, such as funnels: `nuts` with one step size misses their
    necks, and says so by divergences or not at all. Where no step needs halving this is `nuts`, draw for draw; each
    halving costs the gradients of the attempts, and of asking whether the way back is the same.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), of a leaf, before it is halved; an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      energy_tolerance: (), the largest minus the smallest energy that are allowed within a step, in nats.
      max_halvings: how often a step may be halved; where that is not enough the transition is a divergence. Of many
        chains a few in the deepest places take most of the time: with 6 the centred eight schools take a quarter of it.
      max_tree_depth: how often a trajectory may be doubled; sizes the memory of a transition.
      tree_depth_limit: (), integer that may be traced and bounds the doublings further; none by default.
      descend: as for `nuts`, for warm-up.

    Returns:
      Algorithm whose state is that of `nuts` and whose info is a `WALNUTSInfo`. Its transitions are made of moves of
      one gradient each: see `interleave`, which is worth more here, as trajectories differ more in length.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size, a matrix, a tolerance or a number of halvings that cannot be one, or a
        `max_tree_depth` outside 1 to 20.

    >>> kernel = walnuts(lambda q: -0.5 * (q**2 * jnp.array([1.0, 400.0])).sum(), step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.zeros(2), jax.random.key(1)))
    >>> bool(info.diverging), int(info.num_halvings)
    (False, 3)

    Source: Bou-Rabee, Carpenter, Kleppe & Liu (2025), with the deterministic rule for the number of halvings.
    """
    target = as_log_density(log_density, "walnuts")
    step_size = hamiltonian.as_step_size(step_size, "walnuts")
    metric = as_metric(inverse_mass_matrix, "walnuts")
    nuts.check_depth(max_tree_depth, "walnuts")
    core.check_whole("walnuts", least=0, max_halvings=max_halvings)
    if max_halvings > 20:
        raise core.bad_value("walnuts", "max_halvings", max_halvings, "an integer from 0 to 20")
    tolerance = known_number("walnuts", "energy_tolerance", energy_tolerance, lambda x: x > 0, "a number above zero")
    limit = max_tree_depth if tree_depth_limit is None else jnp.clip(tree_depth_limit, 1, max_tree_depth)

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "walnuts")

    def begin(key: core.Key, state: State) -> Work:
        flat, scale, _ = hamiltonian.prepare(target, metric, step_size, state)
        draws = nuts.draw(core.as_key(key, "walnuts"), flat, max_tree_depth)
        start = hamiltonian.start(flat, scale, draws.momentum, state)
        energy = hamiltonian.energy(start)
        trajectory = nuts.start_trajectory(nuts.Leaf(start, energy, start.momentum), max_tree_depth)
        zero, no, none = trajectory.acceptance, trajectory.diverging, trajectory.num_steps
        counts = _Counts(none, zero, none, no, no)
        here = trajectory.ends[0]
        target_there = jnp.concatenate([here, here[:1]])
        attempt = _Attempt(here, energy, energy, none, none + 1, no, target_there, energy)
        return Work(state, draws, trajectory, jnp.stack([energy, energy]), attempt, counts)

    def move(work: Work) -> Work:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, work.state)
        _, draws, trajectory, energies, attempt, counts = work
        active, level, back = trajectory.active, attempt.level, attempt.back
        forward = nuts.growing_end(draws, trajectory)[1]
        small = jnp.ldexp(size, -level)
        position, momentum, force = attempt.here
        origin = Point(position, momentum, force, force, trajectory.initial)
        point = hamiltonian.leapfrog(flat, scale, origin, lax.select(forward ^ back, small, -small))
        energy = hamiltonian.energy(point)
        energy = jnp.where(jnp.isnan(energy), jnp.inf, energy)
        lowest, highest = jnp.minimum(attempt.lowest, energy), jnp.maximum(attempt.highest, energy)
        rounding = hamiltonian.ROUNDING * jnp.finfo(flat.dtype).eps * jnp.abs(trajectory.initial)
        fails = ~(highest - lowest <= tolerance.astype(flat.dtype) + rounding)
        arrives, last = ~fails & (attempt.left == 1), fails | (attempt.left == 1)
        stuck = ~back & fails & (level >= max_halvings)
        broken = stuck | (back & arrives)
        reached = ~back & (arrives | stuck)
        # With no coarser steps to try from the other end, a step is done; and so when the last of them has been tried.
        ready = active & last & (broken | ((level == 0) & (arrives | back)))

        here = jnp.stack([point.position, point.momentum, point.force])
        there = jnp.concatenate([here, jnp.expand_dims(point.gradient, 0)])
        there = jnp.where(reached, there, attempt.target)
        density = jnp.where(reached, point.log_density, attempt.target_density)
        position, momentum, force, gradient = there
        arrived = Point(position, momentum, force, gradient, density)
        leaf_energy = hamiltonian.energy(arrived)
        leaf = nuts.Leaf(arrived, jnp.where(stuck, jnp.inf, leaf_energy), arrived.momentum)
        grown = nuts.add_leaf(core.ordered_dot, draws, trajectory, leaf, 1 << limit, descend, ready, broken)
        energies = jnp.where(ready & ~broken & (jnp.array([False, True]) == forward), leaf_energy, energies)

        # What comes next: the next leaf, the way back with coarser steps, the same again with finer ones, or the next
        # leapfrog step of this attempt.
        finer = ~back & fails
        coarser = (reached | (back & fails)) & ~ready
        next_forward = jnp.where(ready, nuts.growing_end(draws, grown)[1], forward).astype(jnp.int32)
        again = ready | coarser | finer
        which = jnp.where(coarser, 2, jnp.where(ready | finer, next_forward, 3))
        here = nuts.row(jnp.concatenate([grown.ends, there[None, :3], here[None]]), which)
        begun = nuts.row(jnp.append(energies, leaf_energy), jnp.minimum(which, 2))
        level = jnp.where(ready, 0, level + finer.astype(jnp.int32) - coarser.astype(jnp.int32))
        attempt = _Attempt(
            here=here,
            lowest=jnp.where(again, begun, lowest),
            highest=jnp.where(again, begun, highest),
            level=level,
            left=jnp.where(again, jnp.int32(1) << level, attempt.left - 1),
            back=(back | coarser) & ~ready,
            target=there,
            target_density=density,
        )
        rate = hamiltonian.compare(trajectory.initial, energy)[1]
        first = active & ~work.attempt.back & (work.attempt.level == 0)
        counts = _Counts(
            gradients=counts.gradients + active.astype(jnp.int32),
            acceptance=counts.acceptance + jnp.where(first, rate, 0),
            halvings=jnp.maximum(counts.halvings, jnp.where(active & ~back, work.attempt.level, 0)),
            irreversible=counts.irreversible | (ready & broken & ~stuck),
            stuck=counts.stuck | (ready & stuck),
        )
        return Work(work.state, draws, grown, energies, attempt, counts)

    def finished(work: Work) -> jax.Array:
        return ~work.trajectory.active

    def end(work: Work) -> tuple[State, WALNUTSInfo]:
        flat, _, size = hamiltonian.prepare(target, metric, step_size, work.state)
        last, counts = work.trajectory, work.counts
        info = WALNUTSInfo(
            acceptance_rate=counts.acceptance / last.num_steps.astype(flat.dtype),
            num_steps=counts.gradients,
            num_leaves=last.num_steps,
            num_halvings=counts.halvings,
            tree_depth=last.depth,
            irreversible=counts.irreversible,
            diverging=counts.stuck,
            energy=last.tree.energy,
            log_density=last.tree.log_density,
            step_size=size,
        )
        return State(flat.unravel(last.tree.position), last.tree.log_density, flat.unravel(last.tree.gradient)), info

    def step(key: core.Key, state: State) -> tuple[State, WALNUTSInfo]:
        return end(core.while_loop(lambda work: nuts.any_active(work.trajectory.active), move, begin(key, state)))

    return core.Interruptible(init, step, begin, move, finished, end)
