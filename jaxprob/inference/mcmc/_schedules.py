"""Step sizes that change with the number of transitions, and the cyclical scheme made of them.

A schedule is a function of the number of transitions made so far, (), int32, that returns a scalar. Kernels with
stochastic gradients take one in place of a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import as_step_size
from jaxprob.inference.mcmc._numbers import known_number

Schedule: TypeAlias = Callable[[jax.Array], jax.Array]


def cosine_schedule(step_size: Any, cycle_length: Any) -> Schedule:
    """Step sizes that fall along half a cosine and start again.

    step_size / 2 * (cos(pi * (t mod L) / L) + 1)

    Args:
      step_size: (), at the beginning of each cycle; never zero before its end.
      cycle_length: (), L, transitions in a cycle; an integer, which may be traced.

    Raises:
      ValueError: for a step size not above zero, or a cycle of less than one transition.

    >>> schedule = cosine_schedule(0.1, 4)
    >>> [round(float(schedule(t)), 3) for t in (0, 2, 4)]
    [0.1, 0.05, 0.1]

    Source: Zhang et al. (2020), equation 1.
    """
    largest = as_step_size(step_size, "cosine_schedule")
    length = _cycle_length(cycle_length, "cosine_schedule")

    def schedule(transitions: Any) -> jax.Array:
        return 0.5 * largest * (jnp.cos(jnp.pi * _phase(transitions, length, largest.dtype)) + 1)

    return schedule


def polynomial_schedule(step_size: Any, delay: Any = 1.0, exponent: Any = 1 / 3) -> Schedule:
    """Step sizes that fall like a power of time.

    step_size * (1 + t / delay)^-exponent

    Args:
      step_size: (), of the first transition.
      delay: (), above zero; transitions after which the step size has fallen by the factor 2^exponent.
      exponent: (), above zero. With one of at most 1 the steps sum to infinity, so that a chain gets anywhere; averages
        weighted with the step size converge fastest, for SGLD, with 1/3.

    Raises:
      ValueError: for any of the three that is not a finite number above zero.

    >>> schedule = polynomial_schedule(0.1, delay=10.0, exponent=0.5)
    >>> round(float(schedule(30)), 3)
    0.05

    Source: Welling & Teh (2011), section 3; Teh, Thiery & Vollmer (2016), "Consistency and fluctuations for stochastic
    gradient Langevin dynamics", for the exponent.
    """
    first = as_step_size(step_size, "polynomial_schedule")
    late, power = (
        known_number("polynomial_schedule", name, value, lambda x: 0 < x < jnp.inf, "a finite number above zero")
        for name, value in (("delay", delay), ("exponent", exponent))
    )

    def schedule(transitions: Any) -> jax.Array:
        time = jnp.asarray(transitions).astype(first.dtype)
        return first * (1 + time / late.astype(first.dtype)) ** -power.astype(first.dtype)

    return schedule


def cyclical(
    kernel: Callable[..., core.Algorithm],
    gradient: Callable[[core.Key, Any], Any],
    step_size: Any,
    cycle_length: Any,
    *,
    exploration_fraction: Any = 0.5,
    **options: Any,
) -> core.Algorithm:
    """A stochastic-gradient kernel in cycles, each of which looks for a mode and then samples around it.

    The step size follows `cosine_schedule`. In the first part of a cycle, with large steps, no noise is added: the
    temperature is zero and the kernel climbs. In the rest it samples.

    Args:
      kernel: `sgld`, `psgld`, `sghmc`, or any factory with arguments `step_size` and `temperature`.
      gradient: `(key, position) -> gradient`.
      step_size: (), at the beginning of each cycle.
      cycle_length: (), transitions in a cycle; an integer, which may be traced. As many cycles are made as the run has
        room for.
      exploration_fraction: (), from 0 to below 1, of each cycle without noise; rounded to whole transitions.
      **options: for the kernel.

    Returns:
      the kernel with these schedules. Draws are those with `info.temperature > 0`.

    Raises:
      ValueError: for a step size, a length or a fraction that cannot be one.

    >>> from jaxprob.inference import mcmc
    >>> chain = cyclical(mcmc.sgld, mcmc.full_gradient(lambda q: -0.5 * (q**2).sum()), 0.5, 10)
    >>> state, info = chain.step(jax.random.key(0), chain.init(jnp.ones(3), jax.random.key(1)))
    >>> float(info.temperature)
    0.0

    Source: Zhang, Li, Zhang, Chen & Wilson (2020), "Cyclical stochastic gradient MCMC for Bayesian deep learning",
    algorithm 1.
    """
    length = _cycle_length(cycle_length, "cyclical")
    wanted = "a number from 0 to below 1"
    fraction = known_number("cyclical", "exploration_fraction", exploration_fraction, lambda f: 0 <= f < 1, wanted)

    def temperature(transitions: Any) -> jax.Array:
        climbing = jnp.round(fraction * length.astype(fraction.dtype)).astype(jnp.int32)
        return (jnp.asarray(transitions, jnp.int32) % length >= climbing).astype(fraction.dtype)

    steps = cosine_schedule(as_step_size(step_size, "cyclical"), length)
    return kernel(gradient, step_size=steps, temperature=temperature, **options)


def _phase(transitions: Any, length: jax.Array, dtype: Any) -> jax.Array:
    """How much of the cycle is over, from 0 to below 1."""
    return (jnp.asarray(transitions, jnp.int32) % length).astype(dtype) / length.astype(dtype)


def _cycle_length(length: Any, function: str) -> jax.Array:
    wanted = "an integer of at least 1"
    if not jnp.issubdtype(jnp.result_type(length), jnp.integer):
        raise core.bad_value(function, "cycle_length", length, wanted)
    known_number(function, "cycle_length", length, lambda number: number >= 1, wanted)
    return jnp.asarray(length, jnp.int32)
