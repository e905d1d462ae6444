"""What Hamiltonian kernels share: the state of a chain, points of phase space and the leapfrog integrator.

Inside a step everything is one flat vector in one working dtype (float32 for positions of lower precision); the user's
pytree appears only where the density is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._log_density import LogDensity
from jaxprob.inference.mcmc._metric import Metric, check_size
from jaxprob.inference.mcmc._numbers import known_number

DIVERGENCE = 1000.0  # an energy error above this is a divergence, as in Stan
ROUNDING = 4.0  # relative error of an energy, in units of the machine epsilon


class State(NamedTuple):
    """The state of a chain.

    Attributes:
      position: pytree, where the chain is.
      log_density: (), its log density.
      log_density_gradient: pytree like `position`, the gradient there.
    """

    position: Any
    log_density: jax.Array
    log_density_gradient: Any


class Point(NamedTuple):
    """A point of phase space, flat.

    Attributes:
      position: (size,).
      momentum: (size,), whitened: standard normal in equilibrium (see `Metric`).
      force: (size,), the force on it.
      gradient: (size,), of the log density.
      log_density: ().
    """

    position: jax.Array
    momentum: jax.Array
    force: jax.Array
    gradient: jax.Array
    log_density: jax.Array


class Flat(NamedTuple):
    """A log density on flat vectors.

    Attributes:
      dtype: the working dtype.
      evaluate: `(size,) -> (log density (), gradient (size,))`, all of the working dtype.
      unravel: `(size,) -> position` with the shapes and dtypes of the user's pytree.
      size: number of scalars in a position.
    """

    dtype: Any
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    unravel: Callable[[jax.Array], Any]
    size: int


def to_vector(position: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """A position as a vector of the working dtype, and the way back to its shapes and dtypes."""
    vector, unravel = core.ravel(position)
    dtype = vector.dtype
    return vector.astype(core.accumulator_dtype(dtype)), lambda flat: unravel(flat.astype(dtype))


def spread_like(name: str, argument: str, value: Any, position: Any) -> jax.Array:
    """One number for each scalar in a position, as a vector of the working dtype.

    Args:
      name: of the kernel, for the message.
      argument: name of the argument that `value` is, for the message.
      value: scalar, (size,), or a pytree like the position.
      position: pytree of floating arrays.

    Raises:
      ValueError: if `value` is nothing of that.
    """
    vector, _ = to_vector(position)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
        array = core.as_float(value)
        if array.ndim == 0 or array.shape == vector.shape:
            return jnp.broadcast_to(array.astype(vector.dtype), vector.shape)
    core.check_same_structure(name, argument, value, position, dtypes=False)
    return core.ravel(jax.tree.map(core.as_float, value))[0].astype(vector.dtype)


def flatten(log_density: LogDensity, position: Any) -> Flat:
    """The log density of positions shaped like `position`, as a function of flat vectors."""
    vector, unravel = to_vector(position)
    dtype = vector.dtype

    def evaluate(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = log_density.value_and_gradient(unravel(flat))
        return value.astype(dtype), core.ravel(gradient)[0].astype(dtype)

    return Flat(dtype, evaluate, unravel, vector.size)


def as_step_size(step_size: Any, function: str, argument: str = "step_size") -> jax.Array:
    """A step size as a scalar array; raises a `ValueError` unless it is one number above zero, where it is known."""
    expected = "one finite number above zero"
    return known_number(function, argument, step_size, lambda size: 0 < size < math.inf, expected)


def prepare(
    log_density: LogDensity, metric: Metric, step_size: jax.Array, state: State
) -> tuple[Flat, Metric, jax.Array]:
    """The log density on flat vectors, the metric and the step size, all in the working dtype of a state."""
    flat = flatten(log_density, state.position)
    return flat, metric.astype(flat.dtype), step_size.astype(flat.dtype)


def init(log_density: LogDensity, metric: Metric, position: Any, function: str) -> State:
    """The state of a chain at a position; raises a `ValueError` if the metric is one for positions of another size."""
    check_size(metric, core.size(position), function)
    flat = flatten(log_density, position)
    vector = core.ravel(position)[0].astype(flat.dtype)
    value, gradient = flat.evaluate(vector)
    return State(flat.unravel(vector), value, flat.unravel(gradient))


def start(flat: Flat, metric: Metric, momentum: jax.Array, state: State) -> Point:
    """The chain's state with a momentum (size,)."""
    position, gradient = (
        core.ravel(tree)[0].astype(flat.dtype) for tree in (state.position, state.log_density_gradient)
    )
    return Point(position, momentum, metric.force(gradient), gradient, state.log_density.astype(flat.dtype))


def leapfrog(flat: Flat, metric: Metric, point: Point, step: jax.Array) -> Point:
    """One step of the leapfrog integrator: half a kick, a drift, half a kick.

    Args:
      flat: the log density.
      metric: the metric.
      point: where to start.
      step: (), step size, negative to go back in time.
    """
    halfway = point.momentum + 0.5 * step * point.force
    position = point.position + step * metric.velocity(halfway)
    log_density, gradient = flat.evaluate(position)
    force = metric.force(gradient)
    return Point(position, halfway + 0.5 * step * force, force, gradient, log_density)


def energy(point: Point) -> jax.Array:
    """Potential and kinetic energy: -log density + z'z / 2."""
    return 0.5 * core.ordered_dot(point.momentum, point.momentum) - point.log_density


def compare(initial_energy: jax.Array, new_energy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the energy at a point of a trajectory says about it.

    Returns:
      log weight (), the energy lost, exact; -inf where the energy is not a finite number, and never NaN or +inf;
      acceptance rate (), min(1, exp(log weight)), and diverging (), bool, where an energy error that rounding explains
      counts as none: far from the bulk, energies of 1e10 have errors of 1e3 in float32 whatever the step size, and a
      search for a step size that took them seriously would end at zero.
    """
    limits = jnp.finfo(new_energy.dtype)
    gain = jnp.minimum(initial_energy - new_energy, limits.max)
    gain = jnp.where(jnp.isfinite(new_energy) & ~jnp.isnan(gain), gain, -jnp.inf)
    error = gain + jnp.minimum(ROUNDING * limits.eps * jnp.abs(initial_energy), limits.max)
    return gain, jnp.minimum(jnp.exp(error), 1), ~(error > -DIVERGENCE)
