"""Hamiltonian Monte Carlo with a trajectory length that is jittered alike for all chains.

The number of leapfrog steps follows the van der Corput sequence, which fills an interval more evenly than random
numbers do. Under `vmap` it is one number for all chains that have made as many transitions, and the loop is as long as
that.

Source: Hoffman, Radul & Sountsov (2021), section 3.2; van der Corput (1935).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._hamiltonian import Point
from jaxprob.inference.mcmc._log_density import LogDensity
from jaxprob.inference.mcmc._metric import Metric


class TrajectoryState(NamedTuple):
    """The state of a chain with a jittered trajectory length.

    Attributes:
      position: pytree, where the chain is.
      log_density: (), its log density.
      log_density_gradient: pytree like `position`, the gradient there.
      transitions: (), so far; they say how long the next one is.
    """

    position: Any
    log_density: jax.Array
    log_density_gradient: Any
    transitions: jax.Array


class TrajectoryInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: min(1, exp(initial energy - energy)) of the proposal.
      num_steps: leapfrog steps, each one gradient.
      diverging: whether the energy error passed 1,000 or was not a number.
      energy: of the new state, with the momentum that took it there.
      log_density: of the new state.
      step_size: of the integrator.
      trajectory_length: the largest; the mean is half of it.
    """

    acceptance_rate: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    energy: jax.Array
    log_density: jax.Array
    step_size: jax.Array
    trajectory_length: jax.Array


class Move(NamedTuple):
    """One transition with its proposal.

    Attributes:
      state: the new one.
      info: what happened.
      first: where the trajectory began.
      last: where it ended.
      chosen: one of the two.
      jitter: (), the share of the trajectory length that was gone.
    """

    state: TrajectoryState
    info: TrajectoryInfo
    first: Point
    last: Point
    chosen: Point
    jitter: jax.Array


def jittered_hmc(
    target: LogDensity, step_size: Any, metric: Metric, trajectory_length: Any, max_num_steps: int, name: str
) -> core.Algorithm:
    """The kernel: `ceil(h T / step size)` leapfrog steps, at least 1 and at most `max_num_steps`, h in (0, 1)."""

    def init(position: Any, key: core.Key) -> TrajectoryState:
        return TrajectoryState(*hamiltonian.init(target, metric, position, name), jnp.int32(0))

    def step(key: core.Key, state: TrajectoryState) -> tuple[TrajectoryState, TrajectoryInfo]:
        move = transition(target, step_size, metric, trajectory_length, max_num_steps, core.as_key(key, name), state)
        return move.state, move.info

    return core.Algorithm(init, step)


def transition(
    target: LogDensity,
    step_size: jax.Array,
    metric: Metric,
    trajectory_length: jax.Array,
    max_num_steps: int,
    key: core.Key,
    state: TrajectoryState,
) -> Move:
    """One transition."""
    start = hamiltonian.State(*state[:3])
    flat, scale, size = hamiltonian.prepare(target, metric, step_size, start)
    length, jitter = trajectory_length.astype(flat.dtype), van_der_corput(state.transitions + 1).astype(flat.dtype)
    number = jnp.clip(jnp.ceil(jitter * length / size), 1, max_num_steps).astype(jnp.int32)
    momentum_key, uniform_key = core.random.split(key)
    first = hamiltonian.start(flat, scale, core.random.normal(momentum_key, (flat.size,), flat.dtype), start)
    most = _largest(number)

    def further(loop: tuple[jax.Array, Point]) -> tuple[jax.Array, Point]:
        done, point = loop
        moved = hamiltonian.leapfrog(flat, scale, point, size)
        return done + 1, jax.tree.map(lambda new, old: jnp.where(done < number, new, old), moved, point)

    _, last = core.while_loop(lambda loop: loop[0] < most, further, (jnp.int32(0), first))
    weight, rate, diverging = hamiltonian.compare(hamiltonian.energy(first), hamiltonian.energy(last))
    accepted = core.random.uniform(uniform_key, (), flat.dtype) < jnp.exp(weight)
    chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, first)
    info = TrajectoryInfo(
        acceptance_rate=rate,
        num_steps=number,
        diverging=diverging,
        energy=hamiltonian.energy(chosen),
        log_density=chosen.log_density,
        step_size=size,
        trajectory_length=length,
    )
    new = TrajectoryState(
        flat.unravel(chosen.position), chosen.log_density, flat.unravel(chosen.gradient), state.transitions + 1
    )
    return Move(new, info, first, last, chosen, jitter)


def van_der_corput(index: jax.Array) -> jax.Array:
    """The binary digits of an index below 2^32, mirrored at the point: 1/2, 1/4, 3/4, 1/8, ... for 1, 2, 3, 4, ...

    >>> [van_der_corput(jnp.int32(index)).item() for index in (1, 2, 3, 4, 5)]
    [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    bits = index.astype(jnp.uint32)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        one = jnp.uint32(mask)
        bits = ((bits >> shift) & one) | ((bits & one) << shift)
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


@custom_vmap
def _largest(number: jax.Array) -> jax.Array:
    """Under `vmap` one number for all chains, so that the condition of their loop is not one a chain."""
    return number


@_largest.def_vmap
def _largest_of_batch(axis_size: int, in_batched: list[bool], number: jax.Array) -> tuple[jax.Array, bool]:
    return _largest(jnp.max(number)), False
