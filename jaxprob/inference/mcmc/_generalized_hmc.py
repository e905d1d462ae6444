"""Generalised Hamiltonian Monte Carlo: momenta that persist from one transition to the next.

A momentum is refreshed in part, carried through few leapfrog steps, and turned round where they are rejected. With a
persistent acceptance variable rejections come in clusters and the chain moves on for longer between them.

Source: Horowitz (1991), "A generalized guided Monte Carlo algorithm"; Neal (2020), "Non-reversibly updating a uniform
[0,1] value for Metropolis accept/reject decisions".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._hmc import HMCInfo
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric
from jaxprob.inference.mcmc._numbers import known_count, known_number


class GeneralizedHMCState(NamedTuple):
    """The state of a chain.

    Attributes:
      position: pytree, where the chain is.
      log_density: (), its log density.
      log_density_gradient: pytree like `position`, the gradient there.
      momentum: (size,), whitened (see `Metric`).
      slice: (), uniform from -1 to 1: its size decides on the next acceptance.
    """

    position: Any
    log_density: jax.Array
    log_density_gradient: Any
    momentum: jax.Array
    slice: jax.Array


def generalized_hmc(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    inverse_mass_matrix: Any = 1.0,
    *,
    persistence: Any = 0.9,
    num_integration_steps: int = 1,
    drift: Any = None,
) -> core.Algorithm:
    """Generalised HMC: `z = persistence z + sqrt(1 - persistence^2) noise`, leapfrog steps, accepted or turned round.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), of the leapfrog integrator; an array or a tracer.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.
      persistence: (), from 0 (fresh momenta, as `hmc`) to below 1; an array or a tracer.
      num_integration_steps: leapfrog steps in a transition, each one gradient.
      drift: (), how far the acceptance variable moves in each transition; an array or a tracer. None for a fresh one.

    Returns:
      Algorithm whose state is a `GeneralizedHMCState` and whose info is an `HMCInfo`. Position, momentum and acceptance
      variable keep their joint law; the chain is not reversible.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one, a `persistence` outside [0, 1), a `drift` that
        is no number, or `num_integration_steps` below 1.

    >>> kernel = generalized_hmc(lambda q: -0.5 * (q**2).sum(), step_size=0.5, persistence=0.8)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> state.momentum.shape
    (3,)

    Source: Horowitz (1991); Neal (2020), section 3, for `drift`.
    """
    name = "generalized_hmc"
    target = as_log_density(log_density, name)
    step_size = hamiltonian.as_step_size(step_size, name)
    metric = as_metric(inverse_mass_matrix, name)
    persistence = known_number(name, "persistence", persistence, lambda p: 0 <= p < 1, "a number from 0 to below 1")
    if drift is not None:
        drift = known_number(name, "drift", drift, math.isfinite, "a finite number, or None")
    num_integration_steps = known_count(name, "num_integration_steps", num_integration_steps)

    def init(position: Any, key: core.Key) -> GeneralizedHMCState:
        key, state = core.as_key(key, name), hamiltonian.init(target, metric, position, name)
        dtype = state.log_density.dtype
        momentum = core.random.normal(core.fold(key, 0), (core.size(position),), dtype)
        return GeneralizedHMCState(*state, momentum, core.random.uniform(core.fold(key, 1), (), dtype, -1, 1))

    def step(key: core.Key, state: GeneralizedHMCState) -> tuple[GeneralizedHMCState, HMCInfo]:
        key = core.as_key(key, name)
        base = hamiltonian.State(state.position, state.log_density, state.log_density_gradient)
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, base)
        kept = persistence.astype(flat.dtype)
        noise = core.random.normal(core.fold(key, 0), (flat.size,), flat.dtype)
        # As a product, for a persistence near one: rounding kept^2 would give the momentum another variance. Each
        # product is rounded before the sum, so that all programs agree.
        fresh = core.rounded(jnp.sqrt((1 - kept) * (1 + kept)) * noise)
        momentum = core.rounded(kept * state.momentum) + fresh
        first = hamiltonian.start(flat, scale, momentum, base)
        if drift is None:
            level = core.random.uniform(core.fold(key, 1), (), flat.dtype, -1, 1)
        else:
            level = jnp.mod(state.slice + drift.astype(flat.dtype) + 1, 2) - 1
        last = core.fori_loop(
            0, num_integration_steps, lambda _, point: hamiltonian.leapfrog(flat, scale, point, size), first
        )
        weight, rate, diverging = hamiltonian.compare(hamiltonian.energy(first), hamiltonian.energy(last))
        ratio = jnp.exp(weight)
        accepted = jnp.abs(level) < ratio
        # Turned round where it is rejected, or the law of position and momentum would not be kept.
        turned = first._replace(momentum=-first.momentum)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, turned)
        # The height |level| density stays what it was.
        level = jnp.where(accepted, level / jnp.where(accepted, ratio, 1), level)
        info = HMCInfo(
            acceptance_rate=rate,
            num_steps=jnp.int32(num_integration_steps),
            diverging=diverging,
            energy=hamiltonian.energy(chosen),
            log_density=chosen.log_density,
            step_size=size,
        )
        position, gradient = flat.unravel(chosen.position), flat.unravel(chosen.gradient)
        return GeneralizedHMCState(position, chosen.log_density, gradient, chosen.momentum, level), info

    return core.Algorithm(init, step)
