"""Parallel tempering: replicas on a path from a reference to the target, which hand their positions up and down.

Swaps alternate between even and odd neighbours, so that positions travel along the ladder rather than diffuse. The log
density on the path is `base + beta tilt`; a swap looks at the tilts alone.

Source: Okabe, Kawata, Okamoto & Mikami (2001), "Replica-exchange Monte Carlo method for the isobaric-isothermal
ensemble"; Syed, Bouchard-Cote, Deligiannidis & Doucet (2021), "Non-reversible parallel tempering: a scalable highly
parallel MCMC scheme".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._numbers import known_vector

Parts = Callable[[Any], tuple[jax.Array, jax.Array]]  # `position -> (base (), tilt ())`


class TemperingState(NamedTuple):
    """The state of a chain.

    Attributes:
      position: pytree, where the coldest replica is.
      replicas: states of the kernel (replica, ...), coldest first.
      from_hottest: (replica,), bool, whether what is there was at the hottest since it was at the coldest.
      round_trips: (), of all positions together, from the coldest to the hottest and back.
      steps: (), transitions so far; they say which neighbours swap next.
      log_ratios: (replica - 1,), of the normalising constants of neighbours, estimated from all transitions so far.
    """

    position: Any
    replicas: Any
    from_hottest: jax.Array
    round_trips: jax.Array
    steps: jax.Array
    log_ratios: jax.Array


class TemperingInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: of the kernel, mean over replicas.
      swap_rate: probability with which neighbours would have swapped, mean over all neighbours.
      barrier: sum over all neighbours of the probability that they would not; its mean over a run estimates the
        communication barrier Lambda. About twice as many replicas as that are best.
      round_trips: so far.
      log_evidence: log of the normalising constant of the target over that at the hottest temperature, estimated by
        stepping stones from all transitions so far; the log evidence where the reference is a normalised density.
      log_density: of the coldest replica.
    """

    acceptance_rate: jax.Array
    swap_rate: jax.Array
    barrier: jax.Array
    round_trips: jax.Array
    log_evidence: jax.Array
    log_density: jax.Array


class Transition(NamedTuple):
    """One transition, with what a ladder is learnt from.

    Attributes:
      state: the new one.
      info: what happened.
      swaps: (replica - 1,), probability with which each pair of neighbours would have swapped.
      rates: (replica,), acceptance rates of the kernel.
    """

    state: TemperingState
    info: TemperingInfo
    swaps: jax.Array
    rates: jax.Array


def parallel_tempering(
    kernel: Callable[..., core.Algorithm],
    log_density: core.LogDensity | None = None,
    *,
    inverse_temperatures: Any,
    reference: core.LogDensity | None = None,
    log_prior: core.LogDensity | None = None,
    log_likelihood: core.LogDensity | None = None,
    step_sizes: Any = None,
) -> core.Algorithm:
    """Parallel tempering: replicas from the target to a density that is easy to move in, which swap positions.

    The log density of a replica is `(1 - beta) reference + beta log_density`, `beta log_density` without a reference,
    or `log_prior + beta log_likelihood`. Neighbours i and j swap with probability
    `min(1, exp((beta_i - beta_j) (tilt_j - tilt_i)))`, where the tilt is what beta multiplies.

    A transition costs for each replica what the kernel's costs and two evaluations of the log density more: one of the
    tilt, and one, with whatever derivative the kernel needs, by the kernel's `init` where positions were swapped; that
    one is saved where the kernel's state is a `MetropolisState`. What else a kernel remembers starts anew after a swap.

    Args:
      kernel: `log_density -> Algorithm`, such as `partial(mcmc.hmc, step_size=0.3)`. Replicas are mapped by `vmap`.
      log_density: `position -> scalar`, of the target; or give `log_prior` and `log_likelihood`.
      inverse_temperatures: (replica,), beta of each, decreasing from 1; the last may be 0 where there is a reference or
        a prior. An array or a tracer.
      reference: `position -> scalar`, log density of the other end of the path, that has mass wherever the target does.
      log_prior: `position -> scalar`, with `log_likelihood`.
      log_likelihood: `position -> scalar`.
      step_sizes: (replica,), if given the kernel is called as `kernel(log_density, step_size=...)`.

    Returns:
      Algorithm whose state is a `TemperingState` and whose info is a `TemperingInfo`. All replicas start at the
      position given.

    Raises:
      TypeError: if a function is none, or if not exactly one of `log_density` and the pair of prior and likelihood is
        given.
      ValueError: for inverse temperatures that are no ladder.

    >>> from jaxprob.inference import mcmc
    >>> kernel = parallel_tempering(
    ...     partial(mcmc.random_walk_metropolis, step_size=2.0),
    ...     lambda x: jnp.logaddexp(-0.5 * (x - 9) ** 2, -0.5 * (x + 9) ** 2),
    ...     inverse_temperatures=[1.0, 0.3, 0.1, 0.02],
    ... )
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.float32(9.0), jax.random.key(1)))
    >>> state.position.shape, state.replicas.position.shape
    ((), (4,))

    Source: Syed et al. (2021), algorithm 1 (deterministic even-odd swaps); Xie et al. (2011) for stepping stones.
    """
    name = "parallel_tempering"
    metropolis.check_callable(name, kernel=kernel)
    parts, bounded = path(name, log_density, reference, log_prior, log_likelihood)
    betas = as_ladder(name, inverse_temperatures, bounded)
    if step_sizes is not None and jnp.shape(step_sizes) != betas.shape:
        raise core.bad_value(name, "step_sizes", f"of shape {jnp.shape(step_sizes)}", f"one a replica, {betas.shape}")

    def step(key: core.Key, state: TemperingState) -> tuple[TemperingState, TemperingInfo]:
        new = transition(kernel, parts, betas, step_sizes, core.as_key(key, name), state)
        return new.state, new.info

    return core.Algorithm(partial(start, kernel, parts, betas, step_sizes), step)


def start(kernel: Any, parts: Parts, betas: jax.Array, step_sizes: Any, position: Any, key: core.Key) -> TemperingState:
    """The state of a chain whose replicas are all at one position."""
    many = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (betas.size, *jnp.shape(x))), position)
    return restart(kernel, parts, betas, step_sizes, many, core.as_key(key, "parallel_tempering"))


def restart(
    kernel: Any, parts: Parts, betas: jax.Array, step_sizes: Any, positions: Any, key: core.Key
) -> TemperingState:
    """The state of a chain with its replicas at positions (replica, ...), and nothing counted yet."""
    replicas = jax.vmap(
        lambda place, position: _build(kernel, parts, place).init(position, core.fold(key, place.level))
    )(_places(betas, step_sizes), positions)
    dtype = jax.eval_shape(parts, _coldest(positions))[1].dtype
    return TemperingState(
        position=_coldest(core.position_of(replicas)),
        replicas=replicas,
        from_hottest=jnp.arange(betas.size) == betas.size - 1,
        round_trips=jnp.int32(0),
        steps=jnp.int32(0),
        log_ratios=jnp.zeros((betas.size - 1,), dtype),
    )


def transition(
    kernel: Any, parts: Parts, betas: jax.Array, step_sizes: Any, key: core.Key, state: TemperingState
) -> Transition:
    """Every replica moves, and neighbours swap."""
    places = _places(betas, step_sizes)

    def explore(place: _Place, replica: Any) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        new, info = _build(kernel, parts, place).step(core.fold(key, 0, place.level), replica)
        base, tilt = parts(core.position_of(new))
        return new, getattr(info, "acceptance_rate", jnp.ones((), tilt.dtype)), base, tilt

    moved, rates, bases, tilts = jax.vmap(explore)(places, state.replicas)
    betas = betas.astype(tilts.dtype)
    steps = betas[:-1] - betas[1:]
    log_ratio = steps * (tilts[1:] - tilts[:-1])
    swaps = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
    turn = places.level[:-1] % 2 == state.steps % 2
    swapped = turn & (core.random.uniform(core.fold(key, 1), swaps.shape, swaps.dtype) < swaps)
    by_one = swapped.astype(jnp.int32)
    source = places.level + jnp.pad(by_one, (0, 1)) - jnp.pad(by_one, (1, 0))

    def arrive(place: _Place, replica: Any, position: Any, base: jax.Array, tilt: jax.Array, same: jax.Array) -> Any:
        if set(getattr(replica, "_fields", ())) == {"position", "log_density"}:
            value = tempered(base, place.beta, tilt).astype(replica.log_density.dtype)
            new = replica._replace(position=position, log_density=value)
        else:
            new = _build(kernel, parts, place).init(position, core.fold(key, 2, place.level))
        return jax.tree.map(lambda old, new: _where(same, old, new), replica, new)

    positions, bases, came, stay = jax.tree.map(
        lambda x: x[source], (core.position_of(moved), bases, state.from_hottest, places.level)
    )
    replicas = jax.vmap(arrive)(places, moved, positions, bases, tilts[source], stay == places.level)
    # What a draw at one temperature says of the next colder one, before it is swapped away.
    stones = steps * tilts[1:]
    stones = jnp.where(jnp.isnan(stones), -jnp.inf, stones)
    number = state.steps.astype(stones.dtype)
    log_ratios = core.logaddexp(state.log_ratios + jnp.log(number), stones) - jnp.log(number + 1)
    arrived = came[0].astype(jnp.int32)
    new_state = TemperingState(
        position=_coldest(core.position_of(replicas)),
        replicas=replicas,
        from_hottest=came.at[0].set(False).at[-1].set(True),
        round_trips=state.round_trips + arrived,
        steps=state.steps + 1,
        log_ratios=log_ratios,
    )
    info = TemperingInfo(
        acceptance_rate=jnp.mean(rates),
        swap_rate=jnp.mean(swaps),
        barrier=jnp.sum(1 - swaps),
        round_trips=new_state.round_trips,
        log_evidence=jnp.sum(log_ratios),
        log_density=tempered(bases[0], betas[0], tilts[source][0]),
    )
    return Transition(new_state, info, swaps, rates)


def _coldest(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


class _Place(NamedTuple):
    """A place on the ladder."""

    level: jax.Array  # ()
    beta: jax.Array  # ()
    step_size: Any  # (), or None


def _places(betas: jax.Array, step_sizes: Any) -> _Place:
    return _Place(
        jnp.arange(betas.size, dtype=jnp.int32), betas, None if step_sizes is None else jnp.asarray(step_sizes)
    )


def _build(kernel: Callable[..., core.Algorithm], parts: Parts, place: _Place) -> core.Algorithm:
    def log_density(position: Any) -> jax.Array:
        base, tilt = parts(position)
        return tempered(base, place.beta, tilt)

    return kernel(log_density) if place.step_size is None else kernel(log_density, step_size=place.step_size)


def tempered(base: jax.Array, beta: jax.Array, tilt: jax.Array) -> jax.Array:
    """The log density at an inverse temperature; at zero the tilt does not count, even where it is infinite."""
    return base + jnp.where(beta == 0, 0, beta.astype(tilt.dtype) * tilt)


def _where(same: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(same, old, new.astype(old.dtype))


def path(name: str, log_density: Any, reference: Any, log_prior: Any, log_likelihood: Any) -> tuple[Parts, bool]:
    """The two parts of the log density on the path, and whether it is a density at inverse temperature 0 as well."""
    split = log_prior is not None or log_likelihood is not None
    if split == (log_density is not None) or (split and reference is not None):
        got = "given with a prior and a likelihood" if split else "missing"
        todo = "With log_density may go a reference"
        raise core.bad_type(name, "log_density", got, "either log_density, or log_prior and log_likelihood", todo)

    def value(argument: str, function: Any, position: Any) -> jax.Array:
        number = metropolis.number(name, f"the value of {argument}", function(position))
        return number.astype(core.accumulator_dtype(number.dtype))

    if split:
        metropolis.check_callable(name, log_prior=log_prior, log_likelihood=log_likelihood)
        return lambda q: (value("log_prior", log_prior, q), value("log_likelihood", log_likelihood, q)), True
    metropolis.check_callable(name, log_density=log_density)
    if reference is None:

        def power(position: Any) -> tuple[jax.Array, jax.Array]:
            tilt = value("log_density", log_density, position)
            return jnp.zeros_like(tilt), tilt

        return power, False
    metropolis.check_callable(name, reference=reference)

    def between(position: Any) -> tuple[jax.Array, jax.Array]:
        base = value("reference", reference, position)
        return base, value("log_density", log_density, position) - base

    return between, True


def as_ladder(name: str, inverse_temperatures: Any, bounded: bool) -> jax.Array:
    """Inverse temperatures as an array; raises a `ValueError` unless they are a ladder, where they are known."""
    least = "at least 0" if bounded else "above 0"
    expected = f"numbers that decrease from 1 and are {least}, two or more"
    todo = "" if bounded else "A path to 0 needs a reference, or a prior and a likelihood"

    def fits(values: np.ndarray) -> bool:
        down = values.size > 1 and values[0] == 1 and bool((np.diff(values) < 0).all())
        return down and values[-1] >= 0 and (bounded or values[-1] > 0)

    return known_vector(name, "inverse_temperatures", inverse_temperatures, fits, expected, todo)
