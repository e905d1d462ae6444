"""Kernels of one gradient a step: Langevin's, which drifts along the gradient, and Barker's, which chooses sides by it.

Langevin's drift grows with the gradient, so that a step size which is too large, or a start far out, stops the chain.
Barker's step is as long as the noise alone makes it, and the gradient decides on its signs only.

Source: Roberts & Tweedie (1996), "Exponential convergence of Langevin distributions and their discrete approximations";
Livingstone & Zanella (2022), "The Barker proposal: combining robustness and efficiency in gradient-based MCMC".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._hamiltonian import State
from jaxprob.inference.mcmc._hmc import HMCInfo, hmc
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import Metric, as_metric
from jaxprob.inference.mcmc._metropolis import MetropolisInfo


def mala(log_density: core.LogDensity, step_size: Any, inverse_mass_matrix: Any = 1.0) -> core.Algorithm:
    """The Metropolis-adjusted Langevin algorithm: reversible for `exp(log_density)`, one gradient a step.

    `x' = x + step_size^2 / 2 M^-1 g(x) + step_size L z` with g the gradient, z standard normal and L L' = M^-1.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      step_size: (), an array or a tracer. Best where 0.574 of the proposals are accepted, which is what `warmup` should
        be told to aim at.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.

    Returns:
      Algorithm whose state is a `State` and whose info is an `HMCInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one.

    >>> kernel = mala(lambda q: -0.5 * (q**2).sum(), step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(info.num_steps)
    1

    Source: Roberts & Tweedie (1996), section 1.4.2; as one leapfrog step Neal (2011), section 5.2.
    """
    target = as_log_density(log_density, "mala")
    step_size = hamiltonian.as_step_size(step_size, "mala")
    metric = as_metric(inverse_mass_matrix, "mala")
    # A leapfrog step is this proposal, and the energy it loses is the log of this proposal's acceptance ratio.
    kernel = hmc(target, step_size, metric, num_integration_steps=1)

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "mala")

    def step(key: core.Key, state: State) -> tuple[State, HMCInfo]:
        return kernel.step(core.as_key(key, "mala"), state)

    return core.Algorithm(init, step)


def barker(log_density: core.LogDensity, step_size: Any, inverse_mass_matrix: Any = 1.0) -> core.Algorithm:
    """Metropolis-Hastings with Barker's proposal: reversible for `exp(log_density)`, one gradient a step.

    `x' = x + L w`, `w_i = b_i step_size z_i` with z standard normal, L L' the inverse mass matrix, and b_i = 1 with
    probability `1 / (1 + exp(-step_size z_i c_i))`, else -1, where `c = L'g` is the whitened gradient.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays. A component of the
        whitened gradient that is NaN counts as zero, there and back.
      step_size: (), an array or a tracer. Best where about 0.4 of the proposals are accepted, which is what `warmup`
        should be told to aim at; it forgives step sizes that are too large, where `mala` stops.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.

    Returns:
      Algorithm whose state is a `State` and whose info is a `MetropolisInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one.

    >>> kernel = barker(lambda q: -0.5 * (q**2).sum(), step_size=1.0)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.accepted) == bool((state.position != 1).all())
    True

    Source: Livingstone & Zanella (2022), algorithm 1 in whitened coordinates; Vogrinc, Livingstone & Zanella (2023),
    "Optimal design of the Barker proposal and other locally balanced Metropolis-Hastings algorithms", for 0.4.
    """
    target = as_log_density(log_density, "barker")
    step_size = hamiltonian.as_step_size(step_size, "barker")
    metric = as_metric(inverse_mass_matrix, "barker")

    def init(position: Any, key: core.Key) -> State:
        return hamiltonian.init(target, metric, position, "barker")

    def step(key: core.Key, state: State) -> tuple[State, MetropolisInfo]:
        flat, scale, size = hamiltonian.prepare(target, metric, step_size, state)
        key = core.as_key(key, "barker")
        position, gradient = (hamiltonian.to_vector(tree)[0] for tree in (state.position, state.log_density_gradient))
        slope = _slope(scale, gradient)
        noise = size * core.random.normal(core.fold(key, 0), position.shape, position.dtype)
        along = core.random.uniform(core.fold(key, 1), position.shape, position.dtype) < core.sigmoid(noise * slope)
        move = jnp.where(along, noise, -noise)
        position = position + scale.velocity(move)
        value, gradient = flat.evaluate(position)
        # The ratio of 1 + exp(-w c(x)) to 1 + exp(w c(x')), either of which may be beyond any floating number.
        terms = core.softplus(-move * slope) - core.softplus(move * _slope(scale, gradient))
        proposed = State(flat.unravel(position), value, flat.unravel(gradient))
        return metropolis.accept(core.fold(key, 2), state, proposed, core.ordered_sum(terms))

    return core.Algorithm(init, step)


def _slope(metric: Metric, gradient: jax.Array) -> jax.Array:
    """The whitened gradient, without direction where it is not a number."""
    force = metric.force(gradient)
    return jnp.where(jnp.isnan(force), 0, force)
