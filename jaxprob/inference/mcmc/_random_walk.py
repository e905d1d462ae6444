"""Metropolis-Hastings with the two simplest proposals: a step at random, and a draw that looks at nothing.

Neither asks for a gradient. A random walk gets by with local steps; independent draws need a proposal that is close to
the target, a fitted flow or a Laplace approximation, and then make chains without memory.

Source: Metropolis et al. (1953); Hastings (1970); Tierney (1994), "Markov chains for exploring posterior
distributions".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._metric import Metric, as_metric, check_size
from jaxprob.inference.mcmc._metropolis import MetropolisInfo, MetropolisState


def random_walk_metropolis(
    log_density: core.LogDensity, step_size: Any, inverse_mass_matrix: Any = 1.0
) -> core.Algorithm:
    """Random-walk Metropolis: reversible for `exp(log_density)`, one density a step.

    `x' = x + step_size L z` with z standard normal and L L' the inverse mass matrix.

    Args:
      log_density: `position -> scalar`; a position is any pytree of floating arrays. Nothing is differentiated.
      step_size: (), an array or a tracer. About `2.4 / sqrt(size)` is best on a Gaussian whose covariance is the
        inverse mass matrix: then 0.234 of the proposals are accepted, which `warmup` should be told to aim at.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, or a
        scalar, where size is the number of scalars in a position, in flattening order.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `MetropolisInfo`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a step size or a matrix that cannot be one.

    >>> kernel = random_walk_metropolis(lambda x: -0.5 * (x**2).sum(), step_size=1.0)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.accepted) == bool((state.position != 1).all())
    True

    Source: Metropolis et al. (1953); Gelman, Roberts & Gilks (1996) for the step size.
    """
    name = "random_walk_metropolis"
    metropolis.check_callable(name, log_density=log_density)
    step_size = hamiltonian.as_step_size(step_size, name)
    metric = as_metric(inverse_mass_matrix, name)

    def init(position: Any, key: core.Key) -> MetropolisState:
        check_size(metric, hamiltonian.to_vector(position)[0].size, name)
        return metropolis.initial(name, log_density, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        moved = walk(core.fold(key, 0), state.position, step_size, metric)
        return metropolis.accept(core.fold(key, 1), state, metropolis.state_at(name, log_density, moved))

    return core.Algorithm(init, step)


def walk(key: core.Key, position: Any, step_size: jax.Array, metric: Metric) -> Any:
    """The proposal of a random walk: a pytree like the position, which is one of floating arrays."""
    vector, unravel = hamiltonian.to_vector(position)
    noise = core.random.normal(key, vector.shape, vector.dtype)
    return unravel(vector + step_size.astype(vector.dtype) * metric.astype(vector.dtype).velocity(noise))


def independent_metropolis(log_density: core.LogDensity, proposal: Any) -> core.Algorithm:
    """Independent Metropolis-Hastings: reversible for `exp(log_density)`, one density a step.

    From x draw x' ~ q, whatever x is, and go there with probability `min(1, p(x') q(x) / (p(x) q(x')))`.

    Args:
      log_density: `position -> scalar`. Positions are any pytree, discrete parts included.
      proposal: q, an object with `sample(key) -> position` and `log_prob(position) -> scalar`: a distribution, a joint
        model, or any such object. Its tails must not be lighter than the target's, or the chain can sit for long where
        `p / q` is large. Both are called once a step, and `log_prob` for the current position as well.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `MetropolisInfo`.

    Raises:
      TypeError: if `log_density` is no function or `proposal` no such object.
      ValueError: while tracing, if a proposal has another shape than the position or a log density is not one number.

    >>> from jaxprob.distributions import Normal
    >>> kernel = independent_metropolis(lambda x: -0.5 * x**2, Normal(0.0, 1.5))
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.float32(1.0), jax.random.key(1)))
    >>> bool(info.accepted) == (state.position.item() != 1.0)
    True

    Source: Tierney (1994), section 2.3.3.
    """
    name = "independent_metropolis"
    metropolis.check_callable(name, log_density=log_density)
    if not (hasattr(proposal, "sample") and hasattr(proposal, "log_prob")):
        raise core.bad_type(name, "proposal", proposal, "an object with sample(key) and log_prob(position)")

    def log_prob(position: Any) -> jax.Array:
        return metropolis.number(name, "log_prob of the proposal", proposal.log_prob(position))

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        position = proposal.sample(core.fold(key, 0))
        core.check_same_structure(name, "a sample of the proposal", position, state.position, dtypes=False)
        position = jax.tree.map(_in_its_dtype, position, state.position)
        proposed = metropolis.state_at(name, log_density, position)
        return metropolis.accept(core.fold(key, 1), state, proposed, log_prob(state.position), -log_prob(position))

    return core.Algorithm(lambda position, key: metropolis.initial(name, log_density, position), step)


def _in_its_dtype(new: Any, old: jax.Array) -> Any:
    """A floating draw in the precision of the position."""
    floating = all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in (new, old))
    return jnp.asarray(new).astype(old.dtype) if floating else new
