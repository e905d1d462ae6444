"""Running a sampler of populations to its end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.mcmc._numbers import known_count


class SamplerRun(NamedTuple):
    """A run of a sampler of populations.

    Attributes:
      state: the last; `state.done` says whether it got to the posterior.
      info: the sampler's info of each step (max_steps,), zero from `num_steps` on.
      num_steps: (), int32, steps taken.
    """

    state: Any
    info: Any
    num_steps: jax.Array


def run_sampler(key: core.Key, algorithm: core.Algorithm, position: Any = None, *, max_steps: int = 100) -> SamplerRun:
    """Runs a sampler of populations, such as `smc.tempered`, until it is done.

    Args:
      key: random key.
      algorithm: an `Algorithm` whose state has a field `done`.
      position: what `init` is given; None to draw particles from the prior.
      max_steps: steps at most.

    Returns:
      SamplerRun, with the last state and what happened on the way. May be called inside `jit` and `vmap`.

    Raises:
      ValueError: if `max_steps` is not a positive integer.

    >>> from jaxprob.inference import mcmc, smc
    >>> parts = {"log_prior": lambda x: -0.5 * x**2, "log_likelihood": lambda x: -0.5 * (x - 4) ** 2}
    >>> algorithm = smc.tempered(move=mcmc.random_walk_metropolis, **parts)
    >>> found = run_sampler(jax.random.key(0), algorithm, jax.random.normal(jax.random.key(1), (256,)))
    >>> found.state.done.item(), found.info.inverse_temperature[found.num_steps - 1].item()
    (True, 1.0)
    """
    name = "smc.run_sampler"
    key, capacity = core.as_key(key, name), known_count(name, "max_steps", max_steps)
    start = algorithm.init(position, core.fold(key, 0))

    def once(carry: tuple[Any, jax.Array], index: jax.Array) -> tuple[tuple[Any, jax.Array], Any]:
        state, info = algorithm.step(core.fold(key, 1, index), carry[0])
        return (state, index + 1), info

    first = start, jnp.int32(0)
    (state, number), rows = scan.bounded(once, first, capacity, capacity, until=lambda carry: carry[0].done)
    return SamplerRun(state, rows, number)
