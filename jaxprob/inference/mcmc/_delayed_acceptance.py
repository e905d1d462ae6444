"""Two stages: a cheap density decides which proposals the expensive one is asked about.

A kernel that is reversible for the cheap density makes a proposal; the ratio of the two densities, here and there,
corrects for what the cheap one has got wrong. Where that kernel stays where it is there is nothing to ask.

Source: Christen & Fox (2005), "Markov chain Monte Carlo using an approximation"; Liu (2001), "Monte Carlo strategies in
scientific computing", section 9.4.3, "surrogate transition".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._metropolis import metropolis_hastings


class SurrogateState(NamedTuple):
    """The state of a chain.

    Attributes:
      log_density: (), of the position, by the density that counts.
      surrogate: state of the kernel for the surrogate density, with a position and a log density of its own.
    """

    log_density: jax.Array
    surrogate: Any

    @property
    def position(self) -> Any:
        """Where the chain is."""
        return core.position_of(self.surrogate)


class SurrogateInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: the probability with which the second stage accepted; 0 where nothing came to it. Its mean is the
        rate of both stages.
      accepted: whether the chain is elsewhere.
      evaluations: of the density that counts, 0 or 1.
      log_density: of the new state.
    """

    acceptance_rate: jax.Array
    accepted: jax.Array
    evaluations: jax.Array
    log_density: jax.Array


def delayed_acceptance(
    log_density: core.LogDensity,
    surrogate: core.LogDensity,
    propose: Callable[[core.Key, Any], Any],
    log_proposal_ratio: Callable[[Any, Any], Any] | None = None,
) -> core.Algorithm:
    """Metropolis-Hastings in two stages: reversible for `exp(log_density)`, asked only where a surrogate accepts.

    From x draw x'. With probability `min(1, s(x') q(x | x') / (s(x) q(x' | x)))` it comes to the second stage, which
    accepts with probability `min(1, p(x') s(x) / (p(x) s(x')))`. Else stay.

    Args:
      log_density: log p, `position -> scalar`. A proposal where it is -inf or NaN is rejected.
      surrogate: log s, `position -> scalar`, cheap. Where it is -inf or NaN the chain never goes, so that it must be
        positive wherever the density is; for the sake of speed its tails should not be lighter.
      propose: `(key, position) -> position'`.
      log_proposal_ratio: `(position, position') -> log q(position | position') - log q(position' | position)`; leave it
        out where the proposal is symmetric.

    Returns:
      Algorithm whose state is a `SurrogateState` and whose info is a `SurrogateInfo`. Positions may be any pytree.
      Under `vmap` the density is evaluated for all chains, whatever `evaluations` says: the saving is for chains that
      run one by one, or one a device.

    Raises:
      TypeError: if an argument cannot be called.
      ValueError: while tracing, if the proposal has another shape or dtype, or a log density is not one number.

    >>> kernel = delayed_acceptance(
    ...     lambda x: -0.5 * x**2, lambda x: -0.4 * x**2, lambda key, x: x + jax.random.normal(key)
    ... )
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.float32(0.0), jax.random.key(1)))
    >>> bool(info.accepted) == (state.position.item() != 0.0)
    True

    Source: Christen & Fox (2005), section 2, with a surrogate that does not depend on where the chain is.
    """
    name = "delayed_acceptance"
    metropolis.check_callable(name, log_density=log_density, surrogate=surrogate, propose=propose)
    return _corrected(name, log_density, metropolis_hastings(surrogate, propose, log_proposal_ratio), 1)


def surrogate_transition(log_density: core.LogDensity, kernel: core.Algorithm, num_steps: int = 1) -> core.Algorithm:
    """Steps of a kernel for a surrogate density as the proposal: reversible for `exp(log_density)`.

    From x the kernel's steps lead to x', which is accepted with probability `min(1, p(x') s(x) / (p(x) s(x')))`, s the
    surrogate.

    Args:
      log_density: log p, `position -> scalar`. A proposal where it is -inf or NaN is rejected.
      kernel: an algorithm that is reversible for the surrogate density and whose state has its `log_density`, such as
        `metropolis_hastings(surrogate, ...)`, `nuts(surrogate, ...)` or `hmc(surrogate, ...)`. The surrogate must be
        positive wherever the density is.
      num_steps: of that kernel for one step of this one.

    Returns:
      Algorithm whose state is a `SurrogateState` and whose info is a `SurrogateInfo`. Under `vmap` the density is
      evaluated for all chains, whatever `evaluations` says.

    Raises:
      TypeError: if `log_density` is no function, or the state of `kernel` has no log density.
      ValueError: if `num_steps` is below 1; while tracing, if a log density is not one number.

    >>> from jaxprob.inference import mcmc
    >>> kernel = surrogate_transition(lambda x: -0.5 * x**2, mcmc.nuts(lambda x: -0.4 * x**2, step_size=0.5))
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.float32(0.0), jax.random.key(1)))
    >>> int(info.evaluations)
    1

    Source: Liu (2001), section 9.4.3; Christen & Fox (2005).
    """
    name = "surrogate_transition"
    metropolis.check_callable(name, log_density=log_density)
    if num_steps < 1:
        raise core.bad_value(name, "num_steps", num_steps, "an integer of at least 1")
    return _corrected(name, log_density, kernel, num_steps)


def _corrected(name: str, log_density: core.LogDensity, kernel: core.Algorithm, num_steps: int) -> core.Algorithm:
    """The kernel of which both are made."""

    def evaluate(position: Any) -> jax.Array:
        return metropolis.state_at(name, log_density, position).log_density

    def init(position: Any, key: core.Key) -> SurrogateState:
        state = kernel.init(position, key)
        if not hasattr(state, "log_density"):
            todo = "Its state must hold the log of the surrogate density"
            raise core.bad_type(name, "kernel", kernel, "an algorithm whose state has a log_density", todo)
        return SurrogateState(evaluate(core.position_of(state)), state)

    def step(key: core.Key, state: SurrogateState) -> tuple[SurrogateState, SurrogateInfo]:
        key = core.as_key(key, name)
        inner_key, old = core.fold(key, 0), state.surrogate
        new = scan.repeat(lambda inner, i: kernel.step(core.fold(inner_key, i), inner)[0], old, num_steps)
        position = core.position_of(new)
        moved = _differ(position, core.position_of(old))
        dtype = state.log_density.dtype
        value = core.cond(moved, lambda x: evaluate(x).astype(dtype), lambda x: state.log_density, position)
        ratio = old.log_density - new.log_density
        chosen, info = metropolis.accept(core.fold(key, 1), state, SurrogateState(value, new), ratio)
        rate = jnp.where(moved, info.acceptance_rate, 0)
        return chosen, SurrogateInfo(rate, info.accepted & moved, moved.astype(jnp.int32), info.log_density)

    return core.Algorithm(init, step)


def _differ(one: Any, two: Any) -> jax.Array:
    """Whether two positions differ anywhere."""
    parts = jax.tree.map(lambda a, b: jnp.any(a != b), one, two)
    return reduce(jnp.logical_or, jax.tree.leaves(parts))
