"""Hamiltonian Monte Carlo with a number of leapfrog steps that is given, or drawn for each transition.

Source: Duane et al. (1987), "Hybrid Monte Carlo"; Neal (2011), "MCMC using Hamiltonian dynamics"; Betancourt (2017), "A
conceptual introduction to Hamiltonian Monte Carlo", for the choice from the whole trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._hamiltonian import Point, State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric
from jaxprob.inference.mcmc._numbers import known_number, known_range


class HMCInfo(NamedTuple):
    """What happened in one transition of `hmc`; every field is a scalar.

    Attributes:
      acceptance_rate: min(1, exp(initial energy - energy)) of the proposal, or its mean over the trajectory.
      num_steps: leapfrog steps, each one gradient.
      diverging: whether the energy error passed 1,000 or was not a number.
      energy: of the new state, with the momentum that took it there.
      log_density: of the new state.
      step_size: of the integrator.
    """

    acceptance_rate: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    energy: jax.Array
    log_density: jax.Array
    step_size: jax.Array


def hmc(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    inverse_mass_matrix: Any = 1.0,
    *,
    num_integration_steps: int | tuple[int, int] = 16,
    jitter: Any = 0.0,
    multinomial: bool = False,
) -> core.Algorithm:
    """Hamiltonian Monte Carlo.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), of the leapfrog integrator; an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      num_integration_steps: leapfrog steps in a transition, each one gradient; or (least, most), between which their
        number is drawn for each transition, so that no length resonates with the target. Chains under one `vmap` all
        take as long as the longest of them.
      jitter: (), from 0 to below 1: the step size of each transition is drawn between 1 - jitter and 1 + jitter of it;
        an array or a tracer.
      multinomial: whether the new state is drawn from all points of the trajectory, by their weights exp(-energy), some
        steps going back and the others on; otherwise its end is accepted or rejected.

    Returns:
      Algorithm whose state is a `State` and whose info is an `HMCInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one, `num_integration_steps` below 1, or a `jitter` outside
        [0, 1).

    >>> kernel = hmc(lambda q: -0.5 * (q**2).sum(), step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.num_steps)
    16

    Source: Neal (2011), figure 2.
    """
    target = as_log_density(log_density, "hmc")
    step_size = hamiltonian.as_step_size(step_size, "hmc")
    metric = as_metric(inverse_mass_matrix, "hmc")
    least, most = known_range("hmc", "num_integration_steps", num_integration_steps)
    # An array counts as jitter even where it is 0, so that it draws the same numbers as the tracer it may become.
    varied = least < most or not isinstance(jitter, (int, float)) or jitter != 0
    jitter = known_number("hmc", "jitter", jitter, lambda share: 0 <= share < 1, "a number from 0 to below 1")

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "hmc")

    def step(key: core.Key, state: State) -> tuple[State, HMCInfo]:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, state)
        key = core.as_key(key, "hmc")
        number: int | jax.Array = most
        if varied:
            key, length_key, size_key = core.random.split(key, 3)
            if least < most:
                number = core.random.randint(length_key, (), least, most + 1, "int32")
            size = size * (1 + jitter.astype(flat.dtype) * core.random.uniform(size_key, (), flat.dtype, -1, 1))
        momentum_key, uniform_key = core.random.split(key)
        momentum = core.random.normal(momentum_key, (flat.size,), flat.dtype)
        first = hamiltonian.start(flat, scale, momentum, state)
        go = _choose_from_all if multinomial else _go_to_the_end
        chosen, energy, rate, diverging = go(
            uniform_key,
            first,
            number,
            lambda p, sign: hamiltonian.leapfrog(flat, scale, p, sign * size),
        )
        info = HMCInfo(
            acceptance_rate=rate,
            num_steps=jnp.asarray(number, "int32"),
            diverging=diverging,
            energy=energy,
            log_density=chosen.log_density,
            step_size=size,
        )
        return State(flat.unravel(chosen.position), chosen.log_density, flat.unravel(chosen.gradient)), info

    return core.Algorithm(init, step)


Outcome = tuple[Point, jax.Array, jax.Array, jax.Array]  # the new point, its energy, acceptance rate, diverging


def _go_to_the_end(key: core.Key, first: Point, number: Any, leapfrog: Callable[[Point, Any], Point]) -> Outcome:
    """The end of the trajectory, accepted or rejected."""
    last = core.fori_loop(0, number, lambda _, point: leapfrog(point, 1), first)
    weight, rate, diverging = hamiltonian.compare(hamiltonian.energy(first), hamiltonian.energy(last))
    accepted = core.random.uniform(key, (), weight.dtype) < jnp.exp(weight)
    chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, first)
    return chosen, hamiltonian.energy(chosen), rate, diverging


def _choose_from_all(key: core.Key, first: Point, number: Any, leapfrog: Callable[[Point, Any], Point]) -> Outcome:
    """A point of a trajectory that begins a uniformly drawn number of steps before the first, by its weight."""
    initial = hamiltonian.energy(first)
    back = core.random.randint(core.fold(key, 0), (), 0, number + 1, "int32")
    leaf_key = core.fold(key, 1)

    def leaf(index: jax.Array, carry: Any) -> Any:
        point, chosen, total, rates, diverged = carry
        point = jax.tree.map(lambda new, old: jnp.where(index == back, new, old), first, point)
        point = leapfrog(point, jnp.where(index < back, -1, 1).astype(initial.dtype))
        weight, rate, diverging = hamiltonian.compare(initial, hamiltonian.energy(point))
        total = jnp.logaddexp(total, weight)
        taken = core.random.uniform(core.fold(leaf_key, index), (), initial.dtype) < jnp.exp(weight - total)
        chosen = jax.tree.map(lambda new, old: jnp.where(taken, new, old), point, chosen)
        return point, chosen, total, rates + rate, diverged | diverging

    zero = jnp.zeros_like(initial)
    carry = (first, first, zero, zero, jnp.zeros((), bool))
    _, chosen, _, rates, diverged = core.fori_loop(0, number, leaf, carry)
    return chosen, hamiltonian.energy(chosen), rates / jnp.asarray(number, initial.dtype), diverged
