"""Feynman-Kac models: what every particle filter runs on, whatever it filters.

A sequence of measures `gamma_t(dx_0:t) = M_0(dx_0) G_0(x_0) prod_s M_s(x_{s-1}, dx_s) G_s(x_{s-1}, x_s)`: particles are
drawn from the kernels M and weighted by the potentials G. A bootstrap filter, a guided one, a sampler of sentences and
a path of temperatures differ in M and G alone.

Source: Del Moral (2004), "Feynman-Kac formulae"; Chopin & Papaspiliopoulos (2020), "An introduction to sequential Monte
Carlo", chapters 5 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.smc._each import Batched, InChunks
from jaxprob.inference.smc._each import each as _each
from jaxprob.inference.smc._population import Population, effective_size, total_mass
from jaxprob.inference.smc._resampler import Adaptive, Resampler, adaptive


class FeynmanKac(NamedTuple):
    """Kernels and potentials. Functions are of one particle, a pytree; `Batched` ones of all.

    Times count from 0, and `datum` is what belongs to the time: an observation, a temperature, anything.

    Attributes:
      initial: `(key, datum) -> particle`, draws from M_0.
      log_initial_potential: `(particle, datum) -> scalar`, log G_0.
      transition: `(key, previous, time, datum) -> particle`, draws from M_t; time and datum are those of the new one.
      log_potential: `(previous, particle, time, datum) -> scalar`, log G_t.
      log_look_ahead: `(previous, time, datum) -> scalar`, or None: particles are resampled by their weights times the
        exponential of this, which is taken back afterwards; the auxiliary particle filter.
      log_kernel: `(previous, particle, time, datum) -> scalar`, or None: log of the density of M_t times G_t, which is
        what smoothers go back by.
    """

    initial: Any
    log_initial_potential: Any
    transition: Any
    log_potential: Any
    log_look_ahead: Any = None
    log_kernel: Any = None


def chunked(model: FeynmanKac, size: int | None) -> FeynmanKac:
    """The same model, whose functions are called with at most `size` particles at a time, which bounds memory.

    What a function draws with one key a particle is the same, to rounding; what is drawn all at once is another draw.

    Args:
      model: a `FeynmanKac`. An `initial` that is `Batched` says itself how many it draws, and is left as it is.
      size: of a chunk; None for all particles.

    Raises:
      ValueError: if it is not a positive whole number.
    """
    if size is None:
        return model
    core.check_whole("smc.chunked", size=size)
    names = ("initial", "log_initial_potential", "transition", "log_potential", "log_look_ahead")
    left = ("initial",) if isinstance(model.initial, Batched) else ()
    parts = {name: getattr(model, name) for name in names if name not in left}
    return model._replace(**{name: part if part is None else InChunks(part, size) for name, part in parts.items()})


class ParticleState(NamedTuple):
    """Where a particle filter is.

    Attributes:
      population: weighted particles after the datum of `time`; the mass is the estimate of the likelihood.
      time: (), int32.
      log_mass: (), log of the sum of their weights, so that the next step need not go over them again.
      effective_sample_size: (), of their weights.
    """

    population: Population
    time: jax.Array
    log_mass: jax.Array
    effective_sample_size: jax.Array


class ParticleInfo(NamedTuple):
    """What happened at one time.

    Attributes:
      log_increment: (), log of the estimate of the mass gained, so that increments add up to the log likelihood; -inf
        where no particle is possible, NaN where a potential was.
      effective_sample_size: (), of the new weights.
      ancestors: (particle,), int32, of the particles of the time before; None for a resampler that copies none, and
        at time 0.
    """

    log_increment: jax.Array
    effective_sample_size: jax.Array
    ancestors: jax.Array | None


def begin(
    key: core.Key, model: FeynmanKac, datum: Any, num_particles: int, *, axis_name: str | None = None
) -> tuple[ParticleState, ParticleInfo]:
    """Draws particles at time 0 and weights them.

    Args:
      key: random key.
      model: a `FeynmanKac`.
      datum: of time 0.
      num_particles: how many.
      axis_name: as for `run`.

    Raises:
      ValueError: if the number is not positive, or a potential is not one number.
    """
    core.check_whole("begin", num_particles=num_particles)
    start, number = _place(num_particles, axis_name)
    particles = _each(model.initial, core.as_key(key, "begin"), num_particles, (), (datum,), start)
    potentials = _each(model.log_initial_potential, None, num_particles, (particles,), (datum,))
    dtype = core.accumulator_dtype(core.result_dtype(particles))
    log_weights = _one_number(potentials, num_particles, dtype) - math.log(number)
    mass, size = total_mass(log_weights, axis_name), effective_size(log_weights, axis_name)
    state = ParticleState(Population(particles, log_weights), jnp.zeros((), jnp.int32), mass, size)
    return state, ParticleInfo(mass, size, None)


def step(
    key: core.Key,
    model: FeynmanKac,
    state: ParticleState,
    datum: Any,
    resampler: Resampler | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[ParticleState, ParticleInfo]:
    """One time more: resamples, moves and weights the particles.

    Args:
      key: random key.
      model: a `FeynmanKac`.
      state: from `begin` or `step`.
      datum: of the new time.
      resampler: `smc.adaptive()` by default.
      axis_name: as for `run`.

    Raises:
      ValueError: if a potential is not one number.
    """
    for_resampling, for_moves = core.random.split(core.as_key(key, "step"))
    time = state.time + 1
    before = state.population
    number, dtype = before.num_particles, before.log_weights.dtype
    ahead = jnp.zeros((number,), dtype)
    if model.log_look_ahead is not None:
        ahead = _each(model.log_look_ahead, None, number, (before.particles,), (time, datum))
        ahead = _one_number(ahead, number, dtype)
    # What was looked ahead goes with its particle, to be taken back whatever becomes of it.
    looked = Population((before.particles, ahead), multiplied(before.log_weights, ahead), 0.0)
    resampler = adaptive() if resampler is None else resampler
    if isinstance(resampler, Adaptive) and model.log_look_ahead is None:
        resampled, ancestors = resampler(for_resampling, looked, (state.log_mass, state.effective_sample_size))
    else:
        resampled, ancestors = resampler(for_resampling, looked)
    previous, ahead = resampled.particles
    start, _ = _place(number, axis_name)
    particles = _each(model.transition, for_moves, number, (previous,), (time, datum), start)
    potentials = _each(model.log_potential, None, number, (previous, particles), (time, datum))
    log_weights = multiplied(resampled.log_weights, _one_number(potentials, number, dtype) - ahead)
    # Resamplers take weights of any sum, and what it was belongs to the time before.
    gained = jnp.where(jnp.isfinite(state.log_mass), resampled.log_scale - state.log_mass, 0)
    mass, size = total_mass(log_weights, axis_name), effective_size(log_weights, axis_name)
    population = Population(particles, log_weights, before.log_scale + resampled.log_scale)
    return ParticleState(population, time, mass, size), ParticleInfo(gained + mass, size, ancestors)


class Run(NamedTuple):
    """What a run over all times found; time leads.

    Attributes:
      state: at the last time.
      info: of each time (time, ...); `ancestors` at time 0 are the particles themselves.
      kept: what `keep` returned of each time (time, ...), or None.
    """

    state: ParticleState
    info: ParticleInfo
    kept: Any

    @property
    def log_likelihood(self) -> jax.Array:
        """The sum of the increments, (): its exponential is unbiased."""
        return jnp.sum(self.info.log_increment, axis=-1)

    @property
    def failed_at(self) -> jax.Array:
        """The first time at which no particle was possible or a potential was NaN, (), int32; -1 where all is well."""
        bad = ~jnp.isfinite(self.info.log_increment)
        return jnp.where(jnp.any(bad, axis=-1), jnp.argmax(bad, axis=-1), -1).astype(jnp.int32)


def run(
    key: core.Key,
    model: FeynmanKac,
    data: Any,
    num_particles: int,
    *,
    resampler: Resampler | None = None,
    keep: Callable[[Population], Any] | None = None,
    until: Callable[[ParticleState, ParticleState, ParticleInfo], Any] | None = None,
    axis_name: str | None = None,
) -> Run:
    """All times of a Feynman-Kac model.

    Args:
      key: random key; time t uses `fold_in(key, t)`. Or keys (time,), one for each time.
      model: a `FeynmanKac`.
      data: pytree (time, ...), at least one time.
      num_particles: how many.
      resampler: `smc.adaptive()` by default.
      axis_name: inside `jax.shard_map`, the mesh axis over whose devices particles are spread, `num_particles` on each;
        with a resampler `smc.sharded(axis_name, ...)`. Weights and infos are then those of the whole population.
      keep: `population -> pytree`, what is kept of each time; nothing by default, so that memory does not grow with
        particles times steps. Ancestors (time, particle) are kept only where something else is.
      until: `(before, state, info) -> bool`, of a time after the first and of the state before it: once it is true no
        other time is run, and what there is of later ones is that of the last again. The run has no derivative in
        reverse mode then.

    Returns:
      `Run`.

    Raises:
      ValueError: if there is no time or no particle, or a potential is not one number.

    >>> walk = FeynmanKac(
    ...     initial=lambda key, y: jax.random.normal(key),
    ...     log_initial_potential=lambda x, y: -0.5 * (y - x) ** 2,
    ...     transition=lambda key, x, t, y: x + jax.random.normal(key),
    ...     log_potential=lambda old, x, t, y: -0.5 * (y - x) ** 2,
    ... )
    >>> found = run(jax.random.key(0), walk, jnp.array([0.0, 1.0, 2.0]), 1000)
    >>> found.info.effective_sample_size.shape, int(found.failed_at)
    ((3,), -1)
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise core.bad_value("run", "data", core.describe(data), "a pytree of arrays (time, ...) of at least one time")
    words, kind = None, None
    if core.is_key(key) and key.ndim == 1:
        # As numbers: a key must not be one of an array that a loop goes along.
        words, kind = jax.random.key_data(key), jax.random.key_impl(key)
    else:
        key = core.as_key(key, "run")
    look = (lambda population: None) if keep is None else keep
    first, rest = jax.tree.map(lambda leaf: leaf[0], data), jax.tree.map(lambda leaf: leaf[1:], data)

    def key_of(time: Any, own: Any) -> core.Key:
        return core.fold(key, time) if own is None else jax.random.wrap_key_data(own, impl=kind)

    for_first = key_of(0, None if words is None else words[0])
    state, info = begin(for_first, model, first, num_particles, axis_name=axis_name)

    def one(state: ParticleState, now: Any) -> tuple[ParticleState, Any]:
        datum, own = now
        state, info = step(key_of(state.time + 1, own), model, state, datum, resampler, axis_name=axis_name)
        info = info if keep is not None else info._replace(ancestors=None)
        return state, (info, look(state.population))

    kept = look(state.population)
    later = rest, None if words is None else words[1:]
    if until is None:
        last, (infos, kepts) = scan.scan(one, state, later)
    else:
        last, (infos, kepts) = _until(until, one, state, later, lengths.pop()[0] - 1)
    if infos.ancestors is not None:
        start, _ = _place(num_particles, axis_name)
        themselves = jnp.arange(num_particles, dtype=jnp.int32) + (0 if start is None else start)
        info = info._replace(ancestors=themselves)
    whole = jax.tree.map(lambda a, b: jnp.concatenate([jnp.expand_dims(a, 0), b]), (info, kept), (infos, kepts))
    return Run(last, *whole)


def _until(until: Callable[..., Any], one: Callable[..., Any], state: ParticleState, xs: Any, steps: int) -> Any:
    """As the scan of `one` over `xs`, to the time after which nothing changes."""

    def go(carry: Any, index: jax.Array) -> Any:
        state, row = one(carry[0], jax.tree.map(lambda leaf: leaf[index], xs))
        return (state, row, until(carry[0], state, row[0]), index + 1), row

    shape = jax.eval_shape(go, (state, None), jnp.int32(0))[1]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    start = state, nothing, jnp.zeros((), bool), jnp.int32(0)
    (state, row, _, count), rows = scan.bounded(go, start, steps, steps, until=lambda carry: carry[2])

    def filled(leaf: jax.Array, last: jax.Array) -> jax.Array:
        there = (jnp.arange(steps, dtype=count.dtype) < count).reshape(-1, *(1,) * last.ndim)
        return jnp.where(there, leaf, jnp.expand_dims(last, 0))

    return state, jax.tree.map(filled, rows, row)


def _place(number: int, axis_name: str | None) -> tuple[Any, int]:
    """The index of the first particle of a device among all, None where there is one device; and how many all are."""
    if axis_name is None:
        return None, number
    return lax.axis_index(axis_name) * number, lax.axis_size(axis_name) * number


def _one_number(potentials: Any, number: int, dtype: Any) -> jax.Array:
    potentials = core.as_float(potentials)
    if potentials.shape != (number,):
        got = f"of shape {potentials.shape[1:]} for a particle"
        todo = "Sum over everything the potential is a product of"
        raise core.bad_value("run", "the value of a log potential", got, "one number", todo)
    return potentials.astype(dtype)


def multiplied(log_weights: jax.Array, terms: jax.Array) -> jax.Array:
    """Weights times factors; what counts for nothing keeps doing so, even where a factor is infinite or NaN."""
    dead = log_weights == -jnp.inf
    return jnp.where(dead, log_weights, log_weights + jnp.where(dead, 0, terms))
