"""The no-U-turn sampler: multinomial, biased progressive, with the generalised U-turn criterion.

The tree is built by one flat loop, a leaf an iteration, so that the gradient stands in the program once. Completed
subtrees wait for their siblings in a stack indexed by level, as carries do in a binary counter: adding leaf n merges
one pair of subtrees for each trailing one bit of n. The tree so far is itself the subtree at level `depth`, so the
merge that completes a doubling is the same code.

Source: Hoffman & Gelman (2014), "The No-U-Turn Sampler"; Betancourt (2017), "A conceptual introduction to Hamiltonian
Monte Carlo", appendix A; the checks across subtrees are Stan's (since 2.21).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._hamiltonian import Flat, Point, State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric

STEEP = 1e3  # how much of a log density makes a log weight where the highest is wanted
EARLY = 32  # leaves whose random numbers are drawn at once: one at a time they cost a third of the time of a small tree


class NUTSInfo(NamedTuple):
    """What happened in one transition of `nuts`; every field is a scalar.

    Attributes:
      acceptance_rate: mean over the leaves visited of min(1, exp(initial energy - energy)).
      num_steps: leapfrog steps, each one gradient.
      tree_depth: doublings of the trajectory that were completed.
      diverging: whether the energy error passed 1,000 or was not a number.
      energy: of the new state, with the momentum that took it there.
      log_density: of the new state.
      step_size: of the integrator.
    """

    acceptance_rate: jax.Array
    num_steps: jax.Array
    tree_depth: jax.Array
    diverging: jax.Array
    energy: jax.Array
    log_density: jax.Array
    step_size: jax.Array


class _Choice(NamedTuple):
    """A point chosen among leaves, with probability proportional to weight, and the log of their total weight."""

    position: jax.Array  # (size,)
    gradient: jax.Array  # (size,)
    log_density: jax.Array  # ()
    energy: jax.Array  # ()
    log_weight: jax.Array  # ()


class _Draws(NamedTuple):
    """The random numbers of one transition."""

    momentum: jax.Array  # (size,), standard normal
    forwards: jax.Array  # (levels,), bool: the direction of each doubling
    acceptances: jax.Array  # (levels,), uniform: whether the point of each doubling is accepted
    leaves: jax.Array  # (EARLY,), uniform: whether each leaf is chosen, as long as there are few
    leaf_words: jax.Array  # (2,), uint32: of the key that makes the uniform of any further leaf


class Leaf(NamedTuple):
    """A point of a trajectory.

    Attributes:
      point: where it is.
      energy: ().
      motion: (motion,), what checks for U-turns see of it: its whitened momentum, or whatever `Geometry.inner` takes.
    """

    point: Point
    energy: jax.Array
    motion: jax.Array


class Geometry(NamedTuple):
    """What a tree is built on.

    Attributes:
      flat: the log density.
      step_size: (), of the integrator.
      start: `standard normal (size,) -> Leaf`, the chain's state with the momentum made of that.
      integrate: `(point, forward) -> Leaf`, one step; a point without log density or gradient is enough.
      inner: `(sums of motions (motion, n), motions (motion, n)) -> (n,)`: positive while the ends move apart.
    """

    flat: Flat
    step_size: jax.Array
    start: Callable[[jax.Array], Leaf]
    integrate: Callable[[Point, jax.Array], Leaf]
    inner: Callable[[jax.Array, jax.Array], jax.Array]


class _Span(NamedTuple):
    """A tree of neighbouring leaves, as far as U-turns go."""

    first: jax.Array  # (motion,), of the leaf where it began
    last: jax.Array  # (motion,), of the latest leaf
    total: jax.Array  # (motion,), sum over all leaves


class _Trajectory(NamedTuple):
    """The carry of the loop over leaves."""

    leaves: jax.Array  # (), so far, the initial point included; in `step` the same for all chains under vmap
    initial: jax.Array  # (), the energy of the initial point
    ends: jax.Array  # (2, 3, size): the earliest leaf and the latest; position, momentum, force
    stack: jax.Array  # (levels, 3, motion): the tree that waits at each level, a `_Span`
    tree: _Choice  # among the leaves of completed doublings
    subtree: _Choice  # among the leaves of the doubling under way
    acceptance: jax.Array  # (), summed over leaves
    num_steps: jax.Array  # ()
    depth: jax.Array  # ()
    diverging: jax.Array  # (), bool
    active: jax.Array  # (), bool


class Work(NamedTuple):
    """A transition under way.

    Attributes:
      state: where it began.
      draws: its random numbers.
      trajectory: so far.
    """

    state: State
    draws: _Draws
    trajectory: _Trajectory


def nuts(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    inverse_mass_matrix: Any = 1.0,
    *,
    max_tree_depth: int = 10,
    tree_depth_limit: Any = None,
    descend: Any = False,
) -> core.Interruptible:
    """The no-U-turn sampler.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), of the leapfrog integrator; an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      max_tree_depth: how often a trajectory may be doubled; sizes the memory of a transition.
      tree_depth_limit: (), integer that may be traced and bounds the doublings further; none by default.
      descend: (), bool that may be traced: go to the point of highest density of the trajectory, which is no draw of
        anything. For warm-up, where a chain that begins far from the bulk loses its energy so and not by diffusion.

    Returns:
      Algorithm whose state is a `State` and whose info is a `NUTSInfo`. Its transitions are made of moves of one
      gradient each, so that many chains need not wait for the deepest tree: see `interleave`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one, or a `max_tree_depth` outside 1 to 20.

    >>> kernel = nuts(lambda q: -0.5 * (q**2).sum(), step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.diverging)
    False

    Source: Betancourt (2017), appendix A.
    """
    target = as_log_density(log_density, "nuts")
    step_size = hamiltonian.as_step_size(step_size, "nuts")
    metric = as_metric(inverse_mass_matrix, "nuts")
    check_depth(max_tree_depth, "nuts")

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "nuts")

    def geometry(state: State) -> Geometry:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, state)

        def leaf(point: Point) -> Leaf:
            return Leaf(point, hamiltonian.energy(point), point.momentum)

        def start(normal: jax.Array) -> Leaf:
            return leaf(hamiltonian.start(flat, scale, normal, state))

        def integrate(point: Point, forward: jax.Array) -> Leaf:
            return leaf(hamiltonian.leapfrog(flat, scale, point, lax.select(forward, size, -size)))

        return Geometry(flat, size, start, integrate, core.ordered_dot)

    return transitions("nuts", init, geometry, max_tree_depth, tree_depth_limit, descend)


def check_depth(max_tree_depth: int, function: str) -> None:
    """Raises a `ValueError` for a `max_tree_depth` outside 1 to 20."""
    if not 1 <= max_tree_depth <= 20:
        raise core.bad_value(function, "max_tree_depth", max_tree_depth, "an integer from 1 to 20")


def transitions(
    function: str,
    init: Callable[[Any, core.Key], State],
    geometry: Callable[[State], Geometry],
    max_tree_depth: int,
    tree_depth_limit: Any = None,
    descend: Any = False,
) -> core.Interruptible:
    """The sampler on a geometry.

    Args:
      function: name of the kernel, for messages.
      init: of the algorithm.
      geometry: `state -> Geometry`, for positions shaped like that state's.
      max_tree_depth: as in `nuts`.
      tree_depth_limit: as in `nuts`.
      descend: as in `nuts`.
    """
    limit = max_tree_depth if tree_depth_limit is None else jnp.clip(tree_depth_limit, 1, max_tree_depth)

    def begin(key: core.Key, state: State) -> Work:
        ground = geometry(state)
        draws = draw(core.as_key(key, function), ground.flat, max_tree_depth)
        return Work(state, draws, start_trajectory(ground.start(draws.momentum), max_tree_depth))

    def move(work: Work) -> Work:
        ground = geometry(work.state)
        return work._replace(trajectory=_leaf(ground, work.draws, work.trajectory, 1 << limit, descend))

    def finished(work: Work) -> jax.Array:
        return ~work.trajectory.active

    def end(work: Work) -> tuple[State, NUTSInfo]:
        flat, size, *_ = geometry(work.state)
        last = work.trajectory
        info = NUTSInfo(
            acceptance_rate=last.acceptance / last.num_steps.astype(flat.dtype),
            num_steps=last.num_steps,
            tree_depth=last.depth,
            diverging=last.diverging,
            energy=last.tree.energy,
            log_density=last.tree.log_density,
            step_size=size,
        )
        return State(flat.unravel(last.tree.position), last.tree.log_density, flat.unravel(last.tree.gradient)), info

    def step(key: core.Key, state: State) -> tuple[State, NUTSInfo]:
        return end(core.while_loop(lambda work: any_active(work.trajectory.active), move, begin(key, state)))

    return core.Interruptible(init, step, begin, move, finished, end)


def draw(key: core.Key, flat: Flat, levels: int) -> _Draws:
    """The random numbers of a transition of at most `levels` doublings."""
    # One call of the generator for all: each costs compile time. A key made of random bits is as good as a split one.
    parts = (flat.size, levels, levels, EARLY)
    width = jnp.finfo(flat.dtype).bits
    bits = core.random.bits(key, (2 + sum(parts),), f"uint{width}")
    # Halfway between neighbours: never 0 or 1, and symmetrical.
    fraction = jnp.finfo(flat.dtype).nmant
    uniforms = ((bits[2:] >> (width - fraction)).astype(flat.dtype) + 0.5) * 2.0**-fraction
    normal, forwards, acceptances, leaves = jnp.split(uniforms, np.cumsum(parts[:-1]))
    momentum = jnp.asarray(math.sqrt(2), flat.dtype) * lax.erf_inv(2 * normal - 1)
    return _Draws(momentum, forwards > 0.5, acceptances, leaves, bits[:2].astype("uint32"))


def _leaf_uniform(draws: _Draws, leaf: jax.Array) -> jax.Array:
    """The uniform that decides on a leaf: the first ones are drawn already, later ones are drawn one at a time."""

    def late(leaf: jax.Array) -> jax.Array:
        # One hash rather than two: with threefry, the bits of a folded key are a word of that key's random stream.
        key = jax.random.wrap_key_data(draws.leaf_words, impl="threefry2x32")
        words = jax.random.key_data(core.fold(key, leaf))
        return ((words[0] ^ words[-1]) >> 8).astype(draws.leaves.dtype) * 2.0**-24

    return core.cond(leaf < EARLY, lambda leaf: row(draws.leaves, leaf), late, leaf)


def start_trajectory(leaf: Leaf, levels: int) -> _Trajectory:
    """A trajectory of one point."""
    start, initial, motion = leaf
    # Made from what differs between chains: `vmap` finds out which parts of a carry differ by going through the loop
    # again and again, and goes through this one once.
    no = (initial == initial) & False
    none, zero = no.astype(jnp.int32), no.astype(initial.dtype)
    ends = jnp.stack([start.position, start.momentum, start.force])
    choice = _Choice(start.position, start.gradient, start.log_density, initial, zero)
    return _Trajectory(
        leaves=jnp.int32(1),
        initial=initial,
        ends=jnp.broadcast_to(ends, (2, 3, start.position.size)),
        stack=jnp.broadcast_to(motion, (levels, 3, motion.size)),
        tree=choice,
        subtree=choice._replace(log_weight=zero - jnp.inf),
        acceptance=zero,
        num_steps=none,
        depth=none,
        diverging=no,
        active=~no,
    )


def _leaf(geometry: Geometry, draws: _Draws, carry: _Trajectory, most: Any, descend: Any) -> _Trajectory:
    """Adds one leaf to a trajectory, of `most` at the most: one step, and the merges that it completes."""
    leaf = geometry.integrate(*growing_end(draws, carry))
    return add_leaf(geometry.inner, draws, carry, leaf, most, descend)


def growing_end(draws: _Draws, carry: _Trajectory) -> tuple[Point, jax.Array]:
    """The end where a trajectory grows next, without its log density and gradient, and whether that is forward."""
    depth = 31 - lax.clz(carry.leaves)
    forward = row(draws.forwards, depth)
    position, momentum, force = lax.select(forward, carry.ends[1], carry.ends[0])
    return Point(position, momentum, force, force, carry.initial), forward


def add_leaf(
    inner: Callable[[jax.Array, jax.Array], jax.Array],
    draws: _Draws,
    carry: _Trajectory,
    leaf: Leaf,
    most: Any,
    descend: Any,
    ready: Any = True,
    broken: Any = False,
) -> _Trajectory:
    """A trajectory with one leaf more at the end that grows, and the merges that it completes.

    Args:
      inner: of the `Geometry`.
      draws: of the transition.
      carry: the trajectory so far.
      leaf: the new one.
      most: leaves of a trajectory.
      descend: as in `nuts`.
      ready: (), bool: whether there is a leaf; without one the trajectory stays.
      broken: (), bool: whether there is no way back from the leaf: the doubling is rejected, as by a divergence.
    """
    levels, initial = draws.forwards.size, carry.initial
    flips = draws.forwards != jnp.roll(draws.forwards, -1)
    latest = jnp.arange(2).reshape(2, 1, 1) == 1
    depth = 31 - lax.clz(carry.leaves)
    forward = row(draws.forwards, depth)
    point, energy, motion = leaf
    weight, rate, diverging = hamiltonian.compare(initial, energy)
    # Weights so far apart that the largest is chosen always; only the density's differences count.
    weight = jnp.where(descend & jnp.isfinite(weight), STEEP * (point.log_density + initial), weight)

    # Within a doubling a leaf is chosen in proportion to its weight.
    total = jnp.logaddexp(carry.subtree.log_weight, weight)
    here = _Choice(point.position, point.gradient, point.log_density, energy, total)
    chosen = _leaf_uniform(draws, carry.leaves) < jnp.exp(weight - total)
    subtree = _choose(chosen, here, carry.subtree)._replace(log_weight=total)

    def waits(loop: tuple[Any, Any, Any]) -> Any:
        return ((carry.leaves >> loop[0]) & 1 == 1) & ready

    def merge(loop: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        level, node, turned = loop
        node, turns = _merge(inner, _Span(*row(carry.stack, level)), node)
        return level + 1, node, jnp.minimum(turned, jnp.where(turns, level, levels))

    node = _Span(motion, motion, motion)
    # The first level that turned, or -1 for a divergence, or `levels` for neither.
    never = jnp.where(diverging | broken, jnp.int32(-1), jnp.int32(levels))
    level, node, turned = core.while_loop(waits, merge, (jnp.int32(0), node, never))

    # The last merge of a doubling joins subtree and tree, unless the subtree turned or diverged: then it is
    # rejected whole. Between trees the choice is biased to the newer one.
    full = level > depth
    joins = full & (turned >= depth) & carry.active
    accepted = joins & (row(draws.acceptances, depth) < jnp.exp(total - carry.tree.log_weight))
    both = jnp.logaddexp(carry.tree.log_weight, total)
    tree = _choose(accepted, subtree, carry.tree)
    tree = tree._replace(log_weight=jnp.where(joins, both, carry.tree.log_weight))

    # The tree waits at its level as seen from the end that grows next. A chain that is done keeps its ends, so that
    # its density is evaluated at points where it has been evaluated already.
    flip = full & row(flips, depth)
    node = _Span(lax.select(flip, node.last, node.first), lax.select(flip, node.first, node.last), node.total)
    moves = (latest == forward) & carry.active
    new = jnp.stack([point.position, point.momentum, point.force])
    waiting = jnp.stack(node)
    if ready is not True:
        waiting = jnp.where(ready, waiting, row(carry.stack, level))
    grown = _Trajectory(
        leaves=carry.leaves + 1,
        initial=initial,
        ends=jnp.where(moves, jnp.expand_dims(new, 0), carry.ends),
        stack=lax.dynamic_update_index_in_dim(carry.stack, waiting, level, 0),
        tree=tree,
        subtree=subtree._replace(log_weight=jnp.where(full, -jnp.inf, total)),
        acceptance=carry.acceptance + jnp.where(carry.active, rate, 0),
        num_steps=carry.num_steps + carry.active.astype(jnp.int32),
        depth=carry.depth + joins.astype(jnp.int32),
        diverging=carry.diverging | (carry.active & diverging),
        active=carry.active & (turned == levels) & (carry.leaves + 1 < most),
    )
    if ready is True:
        return grown
    # The stack is as it was already: a selection would copy it.
    kept: _Trajectory = jax.tree.map(lambda a, b: jnp.where(ready, a, b), grown, carry)
    return kept._replace(stack=grown.stack)


def _merge(inner: Callable[[jax.Array, jax.Array], jax.Array], one: _Span, two: _Span) -> tuple[_Span, jax.Array]:
    """Joins two neighbouring trees.

    Returns:
      the joint tree, and whether it turned: whether the sum of momenta points against the momentum at either end, of
      the whole or of one tree with the nearest leaf of the other.
    """
    total = one.total + two.total
    ahead, behind = one.total + two.first, two.total + one.last
    sums = jnp.stack([total, total, ahead, ahead, behind, behind], axis=1)
    ends = jnp.stack([one.first, two.last, one.first, two.first, one.last, two.last], axis=1)
    onwards = jnp.all(inner(sums, ends) > 0)
    return _Span(one.first, two.last, total), ~onwards


def row(array: jax.Array, index: jax.Array) -> jax.Array:
    """`array[index]`, of the leading axis."""
    return lax.dynamic_index_in_dim(array, index, keepdims=False)


def _choose(which: jax.Array, new: _Choice, old: _Choice) -> _Choice:
    return jax.tree.map(lambda a, b: lax.select(which, a, b), new, old)


@custom_vmap
def any_active(active: jax.Array) -> jax.Array:
    """Whether any chain is active: under `vmap` one answer for all.

    A mapped loop with a condition a chain would select between the old and the new value of all it carries, the stack
    included, in each iteration. Here chains that are done change nothing that counts instead.
    """
    return active


@any_active.def_vmap
def _any_of_batch(axis_size: int, in_batched: list[bool], active: jax.Array) -> tuple[jax.Array, bool]:
    return any_active(jnp.any(active)), False
