"""The ladder of parallel tempering learnt as an algorithm: temperatures, and a step size for each.

In rounds, each twice as long as the one before, the rejections of swaps are averaged; their cumulative sum along the
ladder is the communication barrier up to each temperature, and the ladder is spaced anew so that every pair of
neighbours gets the same share of it. Chains under named axes learn together, as in `warmup`.

Source: Syed, Bouchard-Cote, Deligiannidis & Doucet (2021), "Non-reversible parallel tempering", algorithms 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _dual_averaging as dual_averaging
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc import _parallel_tempering as tempering
from jaxprob.inference.mcmc._dual_averaging import DualAveraging
from jaxprob.inference.mcmc._parallel_tempering import TemperingInfo
from jaxprob.inference.mcmc._warmup import Warmup, WarmupChain, gather

LEAST = 1e-3  # added to every rejection rate, so that neighbours that always swap stay apart
POWER = 3  # of the evenly spaced first ladder: what the data say is mostly said near the prior


class Ladder(NamedTuple):
    """What all chains have in common.

    Attributes:
      transitions: (), made while tuning.
      num_steps: (), to make in all.
      round_end: (), transitions after which the round under way ends and the ladder is spaced anew.
      last_end: (), the latest that a round may end.
      swaps: (replica - 1,), sum over the round of mean probabilities that neighbours swap.
      number: (), transitions in the round.
      inverse_temperatures: (replica,).
      averaging: of the step size of each replica, or None.
      step_sizes: (replica,), or None.
    """

    transitions: jax.Array
    num_steps: jax.Array
    round_end: jax.Array
    last_end: jax.Array
    swaps: jax.Array
    number: jax.Array
    inverse_temperatures: jax.Array
    averaging: DualAveraging | None
    step_sizes: jax.Array | None


def tempering_warmup(
    kernel: Callable[..., core.Algorithm],
    log_density: core.LogDensity | None = None,
    *,
    num_steps: int = 1000,
    num_temperatures: int = 10,
    hottest: float = 0.0,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    target_acceptance: Any = None,
    initial_step_size: Any = 1.0,
    axis_name: str | Sequence[str] | None = None,
) -> Warmup:
    """The warm-up of `parallel_tempering`: spaces the ladder to equal rejection of swaps.

    Several chains map `step` over `chain` alone, with the name of the mapped axis, as for `warmup`.

    Args:
      kernel: `log_density -> Algorithm`; where step sizes are tuned, `(log_density, step_size=...) -> Algorithm` whose
        info has a field `acceptance_rate`.
      log_density: `position -> scalar`, of the target; or give `log_prior` and `log_likelihood`.
      num_steps: transitions that tune; the ladder is spaced for the last time after four fifths of them.
      num_temperatures: replicas. About twice the barrier that the info reports is best; with fewer than the barrier no
        ladder works.
      hottest: inverse temperature of the last replica; above 0 where there is neither reference nor prior.
      reference: `position -> scalar`, log density of the other end of the path.
      log_prior: `position -> scalar`, with `log_likelihood`.
      log_likelihood: `position -> scalar`.
      target_acceptance: (), acceptance rate that the step size of each temperature aims at; None leaves the kernel's.
      initial_step_size: (), where the search for step sizes begins.
      axis_name: named axes over which chains share one ladder; none for a chain on its own.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`, which makes `parallel_tempering` as tuned. The state is a
      `core.Shared` of `WarmupChain`, whose `kernel` is a `TemperingState`, and `Ladder`. Round trips and evidence are
      counted from the last change of the ladder.

    Raises:
      TypeError: if a function is none, or if not exactly one of `log_density` and the pair of prior and likelihood is
        given.
      ValueError: for a number of steps or temperatures, a hottest temperature or a target that cannot be one.

    >>> from functools import partial
    >>> from jaxprob.inference import mcmc
    >>> tuning = tempering_warmup(
    ...     partial(mcmc.hmc, step_size=0.5, num_integration_steps=4),
    ...     lambda x: -50.0 * (x - 1) ** 2,
    ...     reference=lambda x: -0.5 * x**2,
    ...     num_steps=20,
    ...     num_temperatures=4,
    ... )
    >>> state = tuning.init(jnp.float32(0.0), jax.random.key(0))
    >>> state, info = tuning.step(jax.random.key(1), state)
    >>> kernel = tuning.finish(state)

    Source: Syed et al. (2021), algorithm 4, with linear interpolation of the barrier.
    """
    name = "tempering_warmup"
    metropolis.check_callable(name, kernel=kernel)
    parts, bounded = tempering.path(name, log_density, reference, log_prior, log_likelihood)
    if num_steps < 0:
        raise core.bad_value(name, "num_steps", num_steps, "an integer of at least 0")
    if num_temperatures < 2:
        raise core.bad_value(name, "num_temperatures", num_temperatures, "an integer of at least 2")
    if not (0 < hottest < 1 or (hottest == 0 and bounded)):
        least, todo = ("0", "") if bounded else ("a number above 0", "A path to 0 needs a reference")
        raise core.bad_value(name, "hottest", hottest, f"an inverse temperature from {least} to below 1", todo)
    if not (target_acceptance is None or isinstance(target_acceptance, jax.core.Tracer) or 0 < target_acceptance < 1):
        raise core.bad_value(name, "target_acceptance", target_acceptance, "a number between 0 and 1, or None")
    initial_step_size = hamiltonian.as_step_size(initial_step_size, name)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def init(position: Any, key: core.Key) -> core.Shared:
        dtype = jax.eval_shape(parts, position)[1].dtype
        even = jnp.arange(num_temperatures - 1, -1, -1).astype(dtype) / (num_temperatures - 1)
        betas = hottest + (1 - hottest) * even**POWER if bounded else jnp.asarray(hottest, dtype) ** (1 - even)
        betas = betas.at[0].set(1).at[-1].set(hottest)
        averaging = step_sizes = None
        if target_acceptance is not None:
            step_sizes = jnp.broadcast_to(initial_step_size.astype(dtype), betas.shape)
            averaging = dual_averaging.start(step_sizes)
        state = tempering.start(kernel, parts, betas, step_sizes, position, key)
        shared = Ladder(
            transitions=jnp.int32(0),
            num_steps=jnp.int32(num_steps),
            round_end=jnp.int32(max(1, num_steps // 20)),
            last_end=jnp.int32(num_steps * 4 // 5),
            swaps=jnp.zeros((num_temperatures - 1,), dtype),
            number=jnp.zeros((), dtype),
            inverse_temperatures=betas,
            averaging=averaging,
            step_sizes=step_sizes,
        )
        return core.Shared(WarmupChain(state), shared)

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, TemperingInfo]:
        chain, shared = state
        key = core.as_key(key, name)
        new = tempering.transition(
            kernel, parts, shared.inverse_temperatures, shared.step_sizes, core.fold(key, 0), chain.kernel
        )
        tuning = shared.transitions < shared.num_steps
        tuned = core.cond(tuning, tune, lambda shared, swaps, rates: shared, shared, new.swaps, new.rates)
        spaced = tuning & (tuned.transitions == shared.round_end) & (tuned.transitions <= shared.last_end)

        def again(kernel_state: Any, key_data: jax.Array) -> Any:
            key_again = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
            positions = core.position_of(kernel_state.replicas)
            return tempering.restart(kernel, parts, tuned.inverse_temperatures, tuned.step_sizes, positions, key_again)

        data = jax.random.key_data(core.fold(key, 1))
        moved = core.cond(spaced, again, lambda same, data: same, new.state, data)
        return core.Shared(WarmupChain(moved), tuned), new.info

    def tune(shared: Ladder, swaps: jax.Array, rates: jax.Array) -> Ladder:
        transitions = shared.transitions + 1
        swaps, rates = gather((swaps, jnp.where(jnp.isnan(rates), 0, rates)), axes)
        shared = shared._replace(
            transitions=transitions,
            swaps=shared.swaps + core.ordered_sum(swaps) / swaps.shape[0],
            number=shared.number + 1,
        )
        if shared.averaging is not None:
            mean = (core.ordered_sum(rates) / rates.shape[0]).astype(shared.swaps.dtype)
            averaging = dual_averaging.update(shared.averaging, mean, target_acceptance)
            done = transitions == shared.num_steps
            step_sizes = jnp.exp(jnp.where(done, averaging.log_average, averaging.log_step))
            shared = shared._replace(averaging=averaging, step_sizes=step_sizes)
        due = (transitions == shared.round_end) & (transitions <= shared.last_end)
        return core.cond(due, space, lambda shared: shared, shared)

    def finish(state: core.Shared) -> core.Algorithm:
        shared = state.shared
        step_sizes = shared.step_sizes
        if shared.averaging is not None:
            unfinished = (shared.transitions < shared.num_steps) & (shared.averaging.updates > 0)
            step_sizes = jnp.where(unfinished, jnp.exp(shared.averaging.log_average), step_sizes)
        return tempering.parallel_tempering(
            kernel,
            log_density,
            inverse_temperatures=shared.inverse_temperatures,
            reference=reference,
            log_prior=log_prior,
            log_likelihood=log_likelihood,
            step_sizes=step_sizes,
        )

    return Warmup(init, step, finish)


def space(shared: Ladder) -> Ladder:
    """A ladder on which, as far as the round has shown, all neighbours reject equally; a new round begins."""
    old = shared.inverse_temperatures
    barrier = jnp.cumsum(jnp.append(jnp.zeros((1,), old.dtype), 1 - shared.swaps / shared.number + LEAST))
    even = jnp.arange(old.size).astype(old.dtype) / (old.size - 1)
    new = jnp.interp(even * barrier[-1], barrier, old).at[0].set(old[0]).at[-1].set(old[-1])
    shared = shared._replace(
        round_end=2 * shared.round_end,
        swaps=jnp.zeros_like(shared.swaps),
        number=jnp.zeros_like(shared.number),
        inverse_temperatures=new,
    )
    if shared.averaging is None:
        return shared
    step_sizes = jnp.exp(jnp.interp(new, old[::-1], shared.averaging.log_average[::-1]))
    return shared._replace(averaging=dual_averaging.start(step_sizes), step_sizes=step_sizes)
