"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

Source: Duane et al. (1987), "Hybrid Monte Carlo"; Neal (2011), "MCMC using Hamiltonian dynamics".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._hamiltonian import State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric


class HMCInfo(NamedTuple):
    """What happened in one transition of `hmc`; every field is a scalar.

    Attributes:
      acceptance_rate: min(1, exp(initial energy - energy)) of the proposal.
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
    num_integration_steps: int = 16,
) -> core.Algorithm:
    """Hamiltonian Monte Carlo.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), of the leapfrog integrator; an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      num_integration_steps: leapfrog steps in a transition.

    Returns:
      Algorithm whose state is a `State` and whose info is an `HMCInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one, or `num_integration_steps` below 1.

    >>> kernel = hmc(lambda q: -0.5 * (q**2).sum(), step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.num_steps)
    16

    Source: Neal (2011), figure 2.
    """
    target = as_log_density(log_density, "hmc")
    step_size = hamiltonian.as_step_size(step_size, "hmc")
    metric = as_metric(inverse_mass_matrix, "hmc")
    if num_integration_steps < 1:
        raise core.bad_value("hmc", "num_integration_steps", num_integration_steps, "an integer of at least 1")

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "hmc")

    def step(key: core.Key, state: State) -> tuple[State, HMCInfo]:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, state)
        momentum_key, uniform_key = jax.random.split(core.as_key(key, "hmc"))
        momentum = jax.random.normal(momentum_key, (flat.size,), flat.dtype)
        first = hamiltonian.start(flat, scale, momentum, state)
        last = lax.fori_loop(
            0, num_integration_steps, lambda _, point: hamiltonian.leapfrog(flat, scale, point, size), first
        )
        weight, rate, diverging = hamiltonian.compare(hamiltonian.energy(first), hamiltonian.energy(last))
        accepted = jax.random.uniform(uniform_key, (), flat.dtype) < jnp.exp(weight)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, first)
        info = HMCInfo(
            acceptance_rate=rate,
            num_steps=jnp.int32(num_integration_steps),
            diverging=diverging,
            energy=hamiltonian.energy(chosen),
            log_density=chosen.log_density,
            step_size=size,
        )
        return State(flat.unravel(chosen.position), chosen.log_density, flat.unravel(chosen.gradient)), info

    return core.Algorithm(init, step)
