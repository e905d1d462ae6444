"""Slice sampling along lines: each coordinate in turn, or a direction at random.

On a line through the chain's position: draw a height below the density, step out until an interval reaches over the
slice at that height, then draw points from the interval and shrink it to those that miss. No proposal is rejected in
the end, and a width that is wrong costs evaluations, never exactness. All lines of a transition are one loop of one
density evaluation a turn, so that chains under `vmap` wait for each other once a transition and not at every line.

Source: Neal (2003), "Slice sampling", figures 3 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._metric import as_metric, check_size
from jaxprob.inference.mcmc._metropolis import MetropolisState

# Misses on one line after which the chain stays where it is. Reversible like any number of misses, and out of reach: an
# interval would have shrunk by exp(-100), unless there is no density where it began.
MISSES = 200


class SliceInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      evaluations: of the density.
      log_density: of the new state.
    """

    evaluations: jax.Array
    log_density: jax.Array


class _Lines(NamedTuple):
    """The carry of the loop over evaluations; points on a line are signed distances from where the chain was."""

    line: jax.Array  # (), which one is under way
    position: jax.Array  # (size,), where that line began
    log_density: jax.Array  # (), there
    height: jax.Array  # (), log of it
    left: jax.Array  # (), the interval
    right: jax.Array  # ()
    steps_left: jax.Array  # (), that may still be made to the left
    steps_right: jax.Array  # ()
    misses: jax.Array  # ()
    evaluations: jax.Array  # ()


def coordinate_slice(
    log_density: core.LogDensity, widths: Any = 1.0, *, max_steps: int = 100, random_order: bool = False
) -> core.Algorithm:
    """Slice sampling of each coordinate in turn: leaves `exp(log_density)` invariant. One sweep is one step.

    Args:
      log_density: `position -> scalar`; a position is any pytree of floating arrays. Nothing is differentiated.
      widths: of the first interval, about as wide as a coordinate's conditional density: a scalar, (size,) in
        flattening order, or a pytree like the position; arrays or tracers. Evaluations grow with the log of a width
        that is too large, and in proportion to how often one that is too small must step out.
      max_steps: an interval steps out to at most so many widths; 1 for no stepping out.
      random_order: whether the coordinates come in an order drawn anew for each sweep, which makes the step reversible.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `SliceInfo`. A sweep costs about five to eight
      evaluations for each scalar in a position; under `vmap` each chain costs as many as the slowest.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for widths that are not positive or of another shape, or a `max_steps` below 1.

    >>> kernel = coordinate_slice(lambda x: -0.5 * (x**2).sum(), widths=2.0)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.evaluations) >= 9, bool((state.position != 1).all())
    (True, True)

    Source: Neal (2003), section 4.
    """
    name = "coordinate_slice"
    metropolis.check_callable(name, log_density=log_density)
    widths = _check(name, "widths", widths, max_steps)

    def init(position: Any, key: core.Key) -> MetropolisState:
        hamiltonian.spread_like(name, "widths", widths, position)
        return metropolis.initial(name, log_density, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, SliceInfo]:
        key = core.as_key(key, name)
        each = hamiltonian.spread_like(name, "widths", widths, state.position)
        coordinates = jnp.arange(each.size)
        if random_order:
            coordinates = core.random.permutation(core.fold(key, 1), coordinates)

        def direction(line: jax.Array) -> jax.Array:
            here = jnp.arange(each.size) == coordinates[line]
            return jnp.where(here, each, 0)

        return _sweep(core.fold(key, 0), name, log_density, state, direction, each.size, max_steps)

    return core.Algorithm(init, step)


def hit_and_run_slice(
    log_density: core.LogDensity, width: Any = 1.0, inverse_mass_matrix: Any = 1.0, *, max_steps: int = 100
) -> core.Algorithm:
    """Slice sampling along a random direction: reversible for `exp(log_density)`.

    The line is `x + t L u` with u uniform on the unit sphere and L L' the inverse mass matrix.

    Args:
      log_density: `position -> scalar`; a position is any pytree of floating arrays. Nothing is differentiated.
      width: (), of the first interval of t; an array or a tracer. About `2` to `3` where the inverse mass matrix is the
        covariance.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      max_steps: an interval steps out to at most so many widths; 1 for no stepping out.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `SliceInfo`. A step costs about five to eight
      evaluations; under `vmap` each chain costs as many as the slowest.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a width or a matrix that cannot be one, or a `max_steps` below 1.

    >>> kernel = hit_and_run_slice(lambda x: -0.5 * (x**2).sum(), width=2.0)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.evaluations) >= 3, bool((state.position != 1).all())
    (True, True)

    Source: Neal (2003), section 4 and figures 3 and 5, on the lines of Chen & Schmeiser (1993), "Performance of the
    Gibbs, hit-and-run, and Metropolis samplers".
    """
    name = "hit_and_run_slice"
    metropolis.check_callable(name, log_density=log_density)
    width = _check(name, "width", width, max_steps)
    if width.ndim:
        raise core.bad_value(name, "width", width, "one finite number above zero")
    metric = as_metric(inverse_mass_matrix, name)

    def init(position: Any, key: core.Key) -> MetropolisState:
        check_size(metric, hamiltonian.to_vector(position)[0].size, name)
        return metropolis.initial(name, log_density, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, SliceInfo]:
        key = core.as_key(key, name)
        vector, _ = hamiltonian.to_vector(state.position)
        normal = core.random.normal(core.fold(key, 1), vector.shape, vector.dtype)
        on_sphere = normal / core.norm(normal)
        ray = width.astype(vector.dtype) * metric.astype(vector.dtype).velocity(on_sphere)
        return _sweep(core.fold(key, 0), name, log_density, state, lambda line: ray, 1, max_steps)

    return core.Algorithm(init, step)


def _sweep(
    key: core.Key,
    name: str,
    log_density: core.LogDensity,
    state: MetropolisState,
    direction: Callable[[jax.Array], jax.Array],
    lines: int,
    max_steps: int,
) -> tuple[MetropolisState, SliceInfo]:
    """Univariate slice sampling along `lines` lines, one after the other.

    Args:
      key: random key.
      name: of the kernel.
      log_density: `position -> scalar`.
      state: where to begin.
      direction: `line -> (size,)`, of line 0, 1, ...; its length is the width of the first interval.
      lines: how many.
      max_steps: most widths that an interval steps out to.
    """
    vector, unravel = hamiltonian.to_vector(state.position)
    dtype, precise = vector.dtype, state.log_density.dtype
    # Of each line: how far the height is below the density, where the interval lies, and how it may step out.
    drops = core.random.exponential(core.fold(key, 0), (lines,), precise)
    offsets, shares = core.random.uniform(core.fold(key, 1), (2, lines), dtype)
    point_key = core.fold(key, 2)

    def begin(line: jax.Array, position: jax.Array, value: jax.Array, evaluations: jax.Array) -> _Lines:
        row = jnp.minimum(line, lines - 1)
        here = jnp.where(jnp.isnan(value), -jnp.inf, value)  # from where there is no density any is high enough
        # Of steps limited in number a random share goes to the left: or the interval would tell where it began.
        steps = jnp.minimum((max_steps * shares[row]).astype(jnp.int32), max_steps - 1)
        return _Lines(
            line=line,
            position=position,
            log_density=value,
            height=here - drops[row],
            left=-offsets[row],
            right=1 - offsets[row],
            steps_left=steps,
            steps_right=max_steps - 1 - steps,
            misses=jnp.zeros_like(line),
            evaluations=evaluations,
        )

    def turn(lap: _Lines) -> _Lines:
        to_left = lap.steps_left > 0
        to_right = ~to_left & (lap.steps_right > 0)
        draws = ~to_left & ~to_right
        uniform = core.random.uniform(core.fold(point_key, lap.evaluations), (), dtype)
        drawn = lap.left + uniform * (lap.right - lap.left)
        point = jnp.where(to_left, lap.left, jnp.where(to_right, lap.right, drawn))
        position = lap.position + point * direction(lap.line)
        value = metropolis.state_at(name, log_density, unravel(position)).log_density.astype(precise)
        # At least as high, so that an interval which shrinks to where it began finds a point.
        inside = (value >= lap.height) & (value > -jnp.inf)
        evaluations, misses = lap.evaluations + 1, lap.misses + (draws & ~inside).astype(jnp.int32)
        hit, given_up = draws & inside, misses >= MISSES
        lap = lap._replace(
            left=jnp.where(to_left & inside, lap.left - 1, jnp.where(draws & (drawn < 0), drawn, lap.left)),
            right=jnp.where(to_right & inside, lap.right + 1, jnp.where(draws & ~(drawn < 0), drawn, lap.right)),
            steps_left=jnp.where(to_left, jnp.where(inside, lap.steps_left - 1, 0), lap.steps_left),
            steps_right=jnp.where(to_right, jnp.where(inside, lap.steps_right - 1, 0), lap.steps_right),
            misses=misses,
            evaluations=evaluations,
        )
        following = begin(
            lap.line + 1,
            jnp.where(hit, position, lap.position),
            jnp.where(hit, value, lap.log_density),
            evaluations,
        )
        return jax.tree.map(lambda new, old: jnp.where(hit | given_up, new, old), following, lap)

    zero = jnp.int32(0)
    last = core.while_loop(lambda lap: lap.line < lines, turn, begin(zero, vector, state.log_density, zero))
    return MetropolisState(unravel(last.position), last.log_density), SliceInfo(last.evaluations, last.log_density)


def _check(name: str, argument: str, widths: Any, max_steps: int) -> Any:
    """The widths as arrays; raises a `ValueError` where they are known and not positive, or for no steps at all."""
    if max_steps < 1:
        raise core.bad_value(name, "max_steps", max_steps, "an integer of at least 1")
    for leaf in jax.tree.leaves(widths):
        if not isinstance(leaf, jax.core.Tracer):
            with jax.ensure_compile_time_eval():
                array = core.as_float(leaf)
                possible = bool(jnp.all((array > 0) & (array < math.inf)))
            if not possible:
                raise core.bad_value(name, argument, leaf, "finite numbers above zero")
    return jax.tree.map(core.as_float, widths)
