"""Warm-up of a kernel that has a step size and no metric: dual averaging, pooled over chains.

Source: Hoffman & Gelman (2014), algorithm 5; Zhang, Liu & Liu (2022), "A Langevin-like sampler for discrete
distributions", for the acceptance rate of the discrete Langevin proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _dual_averaging as dual_averaging
from jaxprob.inference.mcmc._dual_averaging import DualAveraging
from jaxprob.inference.mcmc._hamiltonian import as_step_size
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._warmup import Warmup, WarmupChain, gather


class StepSizeShared(NamedTuple):
    """What all chains have in common; every field but the averaging is a scalar.

    Attributes:
      transitions: made while tuning.
      num_steps: how long to tune; an array, so that another length compiles nothing.
      averaging: of the step size.
      step_size: for the next transition.
    """

    transitions: jax.Array
    num_steps: jax.Array
    averaging: DualAveraging
    step_size: jax.Array


def step_size_warmup(
    kernel: Callable[..., core.Algorithm],
    log_density: core.LogDensity,
    *,
    num_steps: int = 300,
    target_acceptance: Any = 0.55,
    initial_step_size: Any = 0.2,
    axis_name: str | Sequence[str] | None = None,
    **options: Any,
) -> Warmup:
    """Warm-up of a step size alone, for positions of any kind, integers too; for a metric as well see `warmup`.

    Several chains share a step size as they do in `warmup`: they map `step` over `chain` alone.

    Args:
      kernel: any factory with an argument `step_size` whose info has a field `acceptance_rate`.
      log_density: `position -> scalar`.
      num_steps: transitions that tune; at the end of them the tuning stands still.
      target_acceptance: (), acceptance rate that the step size aims at: 0.5 to 0.6 for `discrete_langevin`. Where even
        endless steps are accepted more often, the step size ends very large.
      initial_step_size: (), where the search begins.
      axis_name: named axes over which chains share one step size; none for a chain on its own.
      **options: for the kernel.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a negative number of steps, a target outside (0, 1), or a step size that is not above zero.

    >>> from jaxprob.inference import mcmc
    >>> density = lambda x: 0.3 * (x[1:] * x[:-1]).sum()
    >>> tuning = step_size_warmup(mcmc.discrete_langevin, density, num_steps=20, num_categories=4)
    >>> state = tuning.init(jnp.array([0, 3, 1, 2]), jax.random.key(0))
    >>> state, info = tuning.step(jax.random.key(1), state)
    >>> kernel = tuning.finish(state)

    Source: Hoffman & Gelman (2014), algorithm 5.
    """
    name = "step_size_warmup"
    target = as_log_density(log_density, name)
    if num_steps < 0:
        raise core.bad_value(name, "num_steps", num_steps, "an integer of at least 0")
    rate = known_number(name, "target_acceptance", target_acceptance, lambda a: 0 < a < 1, "a number between 0 and 1")
    first = as_step_size(initial_step_size, name, "initial_step_size").astype(jnp.result_type(float))
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def build(step_size: jax.Array) -> core.Algorithm:
        return kernel(target, step_size=step_size, **options)

    def init(position: Any, key: core.Key) -> core.Shared:
        averaging, none = dual_averaging.start(first), jnp.int32(0)
        shared = StepSizeShared(none, jnp.int32(num_steps), averaging, first)
        return core.Shared(WarmupChain(build(first).init(position, key)), shared)

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, Any]:
        chain, shared = state
        new, info = build(shared.step_size).step(key, chain.kernel)
        rates = gather(jnp.where(jnp.isnan(info.acceptance_rate), 0, info.acceptance_rate), axes).astype(first.dtype)
        averaging = dual_averaging.update(
            shared.averaging, core.ordered_sum(rates) / rates.shape[0], rate.astype(first.dtype)
        )
        transitions = shared.transitions + 1
        last = transitions == shared.num_steps
        tuned = StepSizeShared(
            transitions, shared.num_steps, averaging, _exp(jnp.where(last, averaging.log_average, averaging.log_step))
        )
        tuning = shared.transitions < shared.num_steps
        shared = jax.tree.map(lambda now, before: jnp.where(tuning, now, before), tuned, shared)
        return core.Shared(WarmupChain(new), shared), info

    def finish(state: core.Shared) -> core.Algorithm:
        shared = state.shared
        unfinished = (shared.transitions < shared.num_steps) & (shared.averaging.updates > 0)
        return build(jnp.where(unfinished, _exp(shared.averaging.log_average), shared.step_size))

    return Warmup(init, step, finish)


def _exp(log_step: jax.Array) -> jax.Array:
    """A step size that is a finite number above zero, however far the search went."""
    limits = jnp.finfo(log_step.dtype)
    return jnp.clip(jnp.exp(log_step), limits.tiny, limits.max)
