"""Microcanonical Langevin and Hamiltonian Monte Carlo: unit speed, and a direction that the gradient turns.

Between refreshments of the direction the dynamics is that of `_isokinetic`; in equilibrium the direction is uniform on
the sphere, whatever the position.

Source: Robnik, De Luca, Silverstein & Seljak (2023), "Microcanonical Hamiltonian Monte Carlo"; Robnik & Seljak (2023),
"Fluctuation without dissipation: Microcanonical Langevin Monte Carlo"; Robnik, Cohn-Gordon & Seljak (2025),
"Metropolis Adjusted Microcanonical Hamiltonian Monte Carlo".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _isokinetic as isokinetic
from jaxprob.inference.mcmc._hamiltonian import Point, State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric
from jaxprob.inference.mcmc._numbers import known_number, known_range


class MCLMCState(NamedTuple):
    """The state of a chain of `mclmc`.

    Attributes:
      position: pytree, where the chain is.
      log_density: (), its log density.
      log_density_gradient: pytree like `position`, the gradient there.
      direction: (size,), unit vector, whitened (see `Metric`): where the chain is going.
    """

    position: Any
    log_density: jax.Array
    log_density_gradient: Any
    direction: jax.Array


class MCLMCInfo(NamedTuple):
    """What happened in one transition of `mclmc`; every field is a scalar.

    Attributes:
      energy_change: of the integrator's step, zero for an exact one; inf where the chain was turned back.
      num_steps: gradients.
      diverging: whether the energy change passed 1,000 or was not a number.
      log_density: of the new state.
      step_size: of the integrator.
    """

    energy_change: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    log_density: jax.Array
    step_size: jax.Array


class AdjustedMCLMCInfo(NamedTuple):
    """What happened in one transition of `adjusted_mclmc`; every field is a scalar.

    Attributes:
      acceptance_rate: min(1, exp(-energy_change)) of the proposal.
      energy_change: along the trajectory; inf where it ends at no density.
      num_steps: gradients.
      diverging: whether the energy change passed 1,000 or was not a number.
      log_density: of the new state.
      step_size: of the integrator.
    """

    acceptance_rate: jax.Array
    energy_change: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    log_density: jax.Array
    step_size: jax.Array


def mclmc(
    log_density: core.LogDensity,
    step_size: Any,
    trajectory_length: Any,
    inverse_mass_matrix: Any = 1.0,
    *,
    integrator: str = "mclachlan",
) -> core.Algorithm:
    """Microcanonical Langevin Monte Carlo, unadjusted: one step of the integrator, nothing is rejected.

    The direction becomes `u <- normalised(exp(-h / T) u + sqrt((1 - exp(-2 h / T)) / size) z)` with z standard normal,
    h the step size and T the trajectory length; then comes a step of the dynamics. Expectations have a bias that falls
    as h^2: choose h by the variance of `energy_change` for each dimension (`mclmc_warmup` does), or use
    `adjusted_mclmc`. A step that ends where there is no density is not made, and the chain turns back. Two gradients a
    transition, or one with "leapfrog".

    Args:
      log_density: `position -> scalar` on unconstrained positions, a pytree of floating arrays, two scalars or more.
      step_size: (), distance a step covers in whitened coordinates; an array or a tracer. Good values grow as
        sqrt(size).
      trajectory_length: (), distance after which the direction is forgotten; an array or a tracer. For a whitened
        target sqrt(size) is a good value.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      integrator: "mclachlan", of minimal norm, or "leapfrog".

    Returns:
      Algorithm whose state is an `MCLMCState` and whose info is an `MCLMCInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size, a length, a matrix or an integrator that cannot be one; by `init`, for positions of
        one scalar, where there are two directions and no turning from one to the other.

    >>> kernel = mclmc(lambda q: -0.5 * (q**2).sum(), step_size=0.5, trajectory_length=2.0)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.num_steps)
    2

    Source: Robnik & Seljak (2023); Robnik, De Luca, Silverstein & Seljak (2023).
    """
    target = as_log_density(log_density, "mclmc")
    step_size = hamiltonian.as_step_size(step_size, "mclmc")
    trajectory_length = known_number(
        "mclmc", "trajectory_length", trajectory_length, lambda length: 0 < length < jnp.inf, "a finite number above 0"
    )
    metric = as_metric(inverse_mass_matrix, "mclmc")
    kicks = isokinetic.as_kicks(integrator, "mclmc")

    def init(position: Any, key: core.Key) -> MCLMCState:
        _check_size(position, "mclmc")
        state = hamiltonian.init(target, metric, position, "mclmc")
        size, dtype = core.size(position), hamiltonian.to_vector(position)[0].dtype
        return MCLMCState(*state, isokinetic.any_direction(core.as_key(key, "mclmc"), size, dtype))

    def step(key: core.Key, state: MCLMCState) -> tuple[MCLMCState, MCLMCInfo]:
        start = State(*state[:3])
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, start)
        turn = size / trajectory_length.astype(flat.dtype)
        direction = isokinetic.refresh(core.as_key(key, "mclmc"), state.direction, turn)
        first = hamiltonian.start(flat, scale, direction, start)
        last, kinetic = isokinetic.integrate(flat, scale, first, size, kicks)
        gain, _, diverging = hamiltonian.compare(-first.log_density, kinetic - last.log_density)
        back = first._replace(momentum=-direction)
        new = jax.tree.map(lambda moved, turned: jnp.where(gain > -jnp.inf, moved, turned), last, back)
        info = MCLMCInfo(
            energy_change=-gain,
            num_steps=jnp.int32(len(kicks) - 1),
            diverging=diverging,
            log_density=new.log_density,
            step_size=size,
        )
        return MCLMCState(flat.unravel(new.position), new.log_density, flat.unravel(new.gradient), new.momentum), info

    return core.Algorithm(init, step)


def adjusted_mclmc(
    log_density: core.LogDensity,
    step_size: Any,
    num_integration_steps: int | tuple[int, int],
    inverse_mass_matrix: Any = 1.0,
    *,
    integrator: str = "mclachlan",
) -> core.Algorithm:
    """Metropolis-adjusted microcanonical Monte Carlo: exact.

    From a direction uniform on the sphere the dynamics is followed for some steps, and its end is accepted with
    probability `min(1, exp(-energy change))`, where the energy change is that of `-log density` plus what the
    integrator did to volumes of directions. With "mclachlan" a step costs two gradients, with "leapfrog" one.

    Args:
      log_density: `position -> scalar` on unconstrained positions, a pytree of floating arrays, two scalars or more.
      step_size: (), distance a step covers in whitened coordinates; an array or a tracer. Good values grow as
        size^(1/4), and are larger than those of `hmc` by sqrt(size).
      num_integration_steps: steps in a transition, or (low, high) for a number drawn evenly from low, ..., high, which
        keeps trajectories from returning to where they began. Under `vmap` all chains wait for the longest.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      integrator: "mclachlan", of minimal norm, or "leapfrog".

    Returns:
      Algorithm whose state is a `State` and whose info is an `AdjustedMCLMCInfo`. `warmup` tunes it; the best
      acceptance rate is about 0.9.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size, numbers of steps, a matrix or an integrator that cannot be one; by `init`, for
        positions of one scalar, where there are two directions and no turning from one to the other.

    >>> kernel = adjusted_mclmc(lambda q: -0.5 * (q**2).sum(), step_size=1.0, num_integration_steps=(2, 4))
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(4 <= info.num_steps <= 8)
    True

    Source: Robnik, Cohn-Gordon & Seljak (2025).
    """
    name = "adjusted_mclmc"
    target = as_log_density(log_density, name)
    step_size = hamiltonian.as_step_size(step_size, name)
    metric = as_metric(inverse_mass_matrix, name)
    kicks = isokinetic.as_kicks(integrator, name)
    low, high = known_range(name, "num_integration_steps", num_integration_steps)

    def init(position: Any, key: core.Key) -> State:
        _check_size(position, name)
        return hamiltonian.init(target, metric, position, name)

    def step(key: core.Key, state: State) -> tuple[State, AdjustedMCLMCInfo]:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, state)
        direction_key, uniform_key, number_key = core.random.split(core.as_key(key, name), 3)
        first = hamiltonian.start(flat, scale, isokinetic.any_direction(direction_key, flat.size, flat.dtype), state)
        number = jnp.int32(low) if low == high else core.random.randint(number_key, (), low, high + 1, jnp.int32)

        def further(_: Any, trajectory: tuple[Point, jax.Array]) -> tuple[Point, jax.Array]:
            point, kinetic = trajectory
            point, more = isokinetic.integrate(flat, scale, point, size, kicks)
            return point, kinetic + more

        start = first, jnp.zeros((), flat.dtype)
        last, kinetic = core.fori_loop(0, low if low == high else number, further, start)
        gain, rate, diverging = hamiltonian.compare(-first.log_density, kinetic - last.log_density)
        accepted = core.random.uniform(uniform_key, (), flat.dtype) < jnp.exp(gain)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, first)
        info = AdjustedMCLMCInfo(
            acceptance_rate=rate,
            energy_change=-gain,
            num_steps=number * (len(kicks) - 1),
            diverging=diverging,
            log_density=chosen.log_density,
            step_size=size,
        )
        return State(flat.unravel(chosen.position), chosen.log_density, flat.unravel(chosen.gradient)), info

    return core.Algorithm(init, step)


def _check_size(position: Any, function: str) -> None:
    if core.size(position) < 2:
        todo = "On a line a direction cannot turn; use nuts or hmc"
        raise core.bad_value(function, "position", f"of {core.size(position)} scalars", "two or more", todo)
