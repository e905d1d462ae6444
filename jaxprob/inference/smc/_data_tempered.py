"""Data-tempered sequential Monte Carlo: particles of a prior take in one datum after another.

Particles are weighted by the likelihood of each new datum. Where few of them are effective they are resampled, and
moved by Markov chain Monte Carlo that leaves the posterior of all data so far as it is. A datum that says much is taken
in by powers of its likelihood, so that there is no place where hardly any are effective.

Source: Chopin (2002), "A sequential particle filter method for static models": iterated batch importance sampling; Del
Moral, Doucet & Jasra (2006), "Sequential Monte Carlo samplers", for the powers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc import _parallel_tempering as paths
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._feynman_kac import multiplied
from jaxprob.inference.smc._population import Population, effective_size
from jaxprob.inference.smc._resampler import normalized
from jaxprob.inference.smc._resampling import Scheme, multinomial, shares
from jaxprob.inference.smc._target import (
    Path,
    equally_weighted,
    first_particles,
    next_temperature,
    posterior_may_follow,
)
from jaxprob.inference.smc._variance import evidence_variance, is_known


class DataTemperedState(NamedTuple):
    """Particles of the posterior of the data so far.

    Attributes:
      population: weighted particles; once it is done their weights are equal.
      log_evidence_variance: (), estimate of the variance of the log evidence; NaN unless resampling is multinomial or
        chains are kept.
      variance_when_moved: (), what it was when particles were last resampled.
      step_size: (), of the move, adapted; 1 where the move has its own.
      eves: (particle,), int32, of which particle of the prior each descends.
      resamplings: (), int32, how many times particles were resampled and moved.
      steps: (), int32, batches of data so far.
      done: (), bool, whether all data are in; further steps change nothing.
    """

    population: Population
    log_evidence_variance: jax.Array
    variance_when_moved: jax.Array
    step_size: jax.Array
    eves: jax.Array
    resamplings: jax.Array
    steps: jax.Array
    done: jax.Array

    @property
    def position(self) -> Any:
        """The particles, pytree (particle, ...); before it is done they have the weights of the population."""
        return self.population.particles

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the estimated evidence of the data so far, ()."""
        return self.population.log_scale


class DataTemperedInfo(NamedTuple):
    """What happened with one batch of data; every field is a scalar.

    Attributes:
      num_data: data so far, these included.
      log_predictive: log density of the new data given those before: the increase of the log evidence.
      effective_sample_size: of the weights if the batch is taken in at once, as a share of the particles: where it is
        small these data say much that is new.
      resampled: whether particles were resampled and moved, once or several times.
      acceptance_rate: of the last moves, mean over particles and transitions; NaN where there were none.
      num_moves: transitions of each particle, of all moves.
      correlation: of the particles with where they were before the last moves, as of `smc.TemperedInfo`; NaN without.
      step_size: of the next move.
      log_evidence: so far.
    """

    num_data: jax.Array
    log_predictive: jax.Array
    effective_sample_size: jax.Array
    resampled: jax.Array
    acceptance_rate: jax.Array
    num_moves: jax.Array
    correlation: jax.Array
    step_size: jax.Array
    log_evidence: jax.Array


@posterior_may_follow
def data_tempered(
    posterior: Any = None,
    *,
    log_prior: core.LogDensity | None = None,
    log_likelihood: Callable[[Any, Any], Any] | None = None,
    data: Any = None,
    sample_prior: Callable[[core.Key], Any] | None = None,
    batch: int = 1,
    move: Callable[..., core.Algorithm] = moves_of.HAMILTONIAN,
    particles: int = 2048,
    effective_sample_size: Any = 0.5,
    moves: int | None = None,
    max_moves: int = 100,
    waste_free: int | None = None,
    step_size: Any = None,
    acceptance: Any = None,
    scheme: Scheme = multinomial,
) -> core.Algorithm:
    """Sequential Monte Carlo from a prior to a posterior, one batch of data a step.

    A step multiplies the weights by the likelihood of the new data and the evidence by their mean, which is the
    predictive density of these data. Where the effective sample size would fall below a share it goes to the power of
    that likelihood at which it has that share, resamples and moves every particle there, and goes on; and it does so
    after the last data: what it returns is equally weighted.

    A move computes the likelihood of all data, those to come too, and leaves those out, so that one program does for
    all times: a run with many resamplings costs up to twice what it need.

    Args:
      posterior: a conditioned model (`program.condition(...)`) whose observations all have one leading axis of the same
        length, whose entries are the data; None with a prior, a likelihood and data.
      log_prior: `position -> scalar`, normalised for the evidence to be one.
      log_likelihood: `(position, datum) -> scalar`, of one datum (given those before, where they depend on each other:
        put what it needs of them into the datum).
      data: pytree (time, ...), the data in order; one entry of each leaf is a datum.
      sample_prior: `key -> position`, a draw from the prior; a posterior has its own, and without any `init` is given
        draws.
      batch: data a step; the last may be fewer.
      move: `log_density -> Algorithm`, given a metric and a step size as by `smc.tempered`.
      particles: how many are drawn from the prior.
      effective_sample_size: a share of the particles in (0, 1) below which they are resampled and moved; an array or a
        tracer.
      moves: transitions of each particle each time; None for as many as it takes, as in `smc.tempered`.
      max_moves: at most, where `moves` is None.
      waste_free: P, the number of states of a chain, all of which are particles, as in `smc.tempered`.
      step_size: (), the first; by default what suits a standard normal law of that dimension.
      acceptance: rate the step size is adapted to, as in `smc.tempered`.
      scheme: of resampling, as in `smc.tempered`.

    Returns:
      Algorithm whose state is a `DataTemperedState` and whose info is a `DataTemperedInfo`. `init(None, key)` draws
      particles; `init(positions, key)` takes those given, with a leading axis (particle, ...). It is done after
      `time / batch` steps: give `smc.run_sampler` as many. Without a density a `functools.partial` with the options,
      which waits for one.

    Raises:
      TypeError: if a function is none, or if not exactly one of `posterior` and the prior, likelihood and data is
        given.
      ValueError: for a number that is out of range, or data without one leading axis.

    >>> from jaxprob.inference import mcmc
    >>> from jaxprob.inference.smc import run_sampler
    >>> algorithm = data_tempered(
    ...     log_prior=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     log_likelihood=lambda x, y: -0.5 * (y - x) ** 2 - 0.5 * jnp.log(2 * jnp.pi),
    ...     data=jnp.array([2.0, 1.0, 3.0]),
    ...     sample_prior=jax.random.normal,
    ...     move=mcmc.random_walk_metropolis,
    ... )
    >>> found = run_sampler(jax.random.key(0), algorithm, max_steps=3)
    >>> bool(found.state.done), abs(found.state.position.mean().item() - 6 / 4) < 0.1
    (True, True)

    Source: Chopin (2002), section 3; Lee & Whiteley (2018) for the variance; Dau & Chopin (2022) for `waste_free`.
    """
    name = "smc.data_tempered"
    settings = moves_of.as_move(name, move, moves, max_moves, acceptance, step_size, waste_free)
    metropolis.check_callable(name, scheme=scheme)
    core.check_whole(name, least=2, particles=particles)
    core.check_whole(name, batch=batch)
    between = "a share between 0 and 1"
    share = known_number(name, "effective_sample_size", effective_sample_size, lambda x: 0 < x < 1, between)
    stream = _as_stream(name, posterior, log_prior, log_likelihood, data, sample_prior)
    number_of_data = stream.number

    def init(position: Any, key: core.Key) -> DataTemperedState:
        path = Path(stream.none, stream.sample_prior)
        position, number = first_particles(name, path, position, particles, core.as_key(key, name))
        settings.check_number(name, number)
        dtype = jax.eval_shape(jax.vmap(lambda q: stream.terms(q, jnp.arange(1))), position).dtype
        variance = jnp.asarray(0 if is_known(scheme, waste_free) else jnp.nan, dtype)
        return DataTemperedState(
            population=equally_weighted(position, number, jnp.zeros((), dtype)),
            log_evidence_variance=variance,
            variance_when_moved=variance,
            step_size=settings.first_step_size(core.size(position) // number).astype(dtype),
            eves=jnp.arange(number, dtype=jnp.int32),
            resamplings=jnp.int32(0),
            steps=jnp.int32(0),
            done=jnp.zeros((), bool),
        )

    def step(key: core.Key, state: DataTemperedState) -> tuple[DataTemperedState, DataTemperedInfo]:
        key = core.as_key(key, name)
        number = state.population.num_particles
        first = state.steps * batch
        seen = jnp.minimum(first + batch, number_of_data)
        last = seen == number_of_data
        share_of = share.astype(state.step_size.dtype)

        def gains_of(particles: Any) -> jax.Array:
            return jax.vmap(lambda q: stream.sum(q, first, seen, batch))(particles)

        def go(stage: _Stage) -> _Stage:
            """On to where few particles are effective, and a move there; or to the end of the batch."""
            beta = next_temperature(stage.gains, stage.beta, share_of, stage.population.log_weights)
            step = paths.tempered(jnp.zeros_like(stage.gains), beta - stage.beta, stage.gains)
            old = stage.population
            weighted = Population(old.particles, multiplied(old.log_weights, step), old.log_scale)
            population, weights = normalized(weighted), shares(weighted.log_weights, 1)
            variance = evidence_variance(
                scheme, waste_free, weights, stage.eves, stage.resamplings, stage.variance_when_moved
            )
            variance = jnp.where(jnp.isfinite(population.log_scale), variance, jnp.nan)
            # Where a weight is no number there is no effective size, and particles had better be others.
            due = (beta < 1) | last | ~(effective_size(weighted.log_weights) >= share_of * number)
            # A branch on a batch of flags is a selection, which a key may not be an operand of.
            words, kind = jax.random.key_data(core.fold(key, stage.times)), jax.random.key_impl(key)

            def density(position: Any) -> jax.Array:
                likelihood = stream.sum(position, jnp.int32(0), seen, number_of_data, first, beta)
                return stream.log_prior(position) + likelihood

            def rejuvenate() -> _Stage:
                moved, ancestors = moves_of.resample_and_move(
                    settings,
                    scheme,
                    jax.random.wrap_key_data(words, impl=kind),
                    density,
                    population.particles,
                    population.log_weights,
                    stage.step_size,
                )
                return _Stage(
                    population=equally_weighted(moved.particles, number, population.log_scale),
                    beta=beta,
                    gains=gains_of(moved.particles),
                    step_size=moved.step_size,
                    eves=stage.eves[ancestors],
                    variance=variance,
                    variance_when_moved=variance,
                    resamplings=stage.resamplings + 1,
                    times=stage.times + 1,
                    acceptance_rate=moved.acceptance_rate,
                    num_moves=stage.num_moves + moved.number,
                    correlation=moved.correlation,
                )

            def keep() -> _Stage:
                return stage._replace(population=population, beta=beta, variance=variance)

            return core.cond(due, rejuvenate, keep)

        gains = gains_of(state.position)
        effective = effective_size(multiplied(state.population.log_weights, gains)) / number
        unknown = jnp.full_like(state.step_size, jnp.nan)
        start = _Stage(
            population=state.population,
            beta=jnp.where(state.done, 1, 0).astype(gains.dtype),
            gains=gains,
            step_size=state.step_size,
            eves=state.eves,
            variance=state.log_evidence_variance,
            variance_when_moved=state.variance_when_moved,
            resamplings=state.resamplings,
            times=jnp.int32(0),
            acceptance_rate=unknown,
            num_moves=jnp.int32(0),
            correlation=unknown,
        )
        end = core.while_loop(lambda stage: stage.beta < 1, go, start)
        new = DataTemperedState(
            population=end.population,
            log_evidence_variance=end.variance,
            variance_when_moved=end.variance_when_moved,
            step_size=end.step_size,
            eves=end.eves,
            resamplings=end.resamplings,
            steps=state.steps + 1,
            done=last,
        )
        new = jax.tree.map(lambda one, other: jnp.where(state.done, one, other.astype(one.dtype)), state, new)
        info = DataTemperedInfo(
            num_data=seen,
            log_predictive=new.log_evidence - state.log_evidence,
            effective_sample_size=effective,
            resampled=end.times > 0,
            acceptance_rate=end.acceptance_rate,
            num_moves=end.num_moves,
            correlation=end.correlation,
            step_size=new.step_size,
            log_evidence=new.log_evidence,
        )
        return new, info

    return core.Algorithm(init, step)


class _Stage(NamedTuple):
    """Particles on the way through a batch of data."""

    population: Population
    beta: jax.Array  # the power of the likelihood of the batch
    gains: jax.Array  # its log, of each particle
    step_size: jax.Array
    eves: jax.Array
    variance: jax.Array
    variance_when_moved: jax.Array
    resamplings: jax.Array
    times: jax.Array  # moves within the batch
    acceptance_rate: jax.Array
    num_moves: jax.Array
    correlation: jax.Array


class _Stream(NamedTuple):
    """A prior and data that come in order."""

    log_prior: Callable[[Any], jax.Array]
    terms: Callable[[Any, jax.Array], jax.Array]  # (position, indices (n,)) -> log likelihoods (n,)
    number: int
    sample_prior: Callable[[core.Key], Any] | None

    def none(self, position: Any) -> tuple[jax.Array, jax.Array]:
        """The log density before any data, in its two parts."""
        prior = self.log_prior(position)
        return prior, jnp.zeros_like(prior)

    def sum(
        self, position: Any, first: jax.Array, end: jax.Array, most: int, later: Any = None, power: Any = 1.0
    ) -> jax.Array:
        """Log likelihood of the data from `first` up to before `end`, of which there are at most `most`.

        Those from `later` on count by a power above 0.
        """
        index = first + jnp.arange(most, dtype=jnp.int32)
        # In the place of those that are left out there is one of the others: an infinite derivative times zero is NaN.
        terms = self.terms(position, jnp.clip(index, first, end - 1))
        if later is not None:
            terms = jnp.where(index < later, terms, jnp.asarray(power).astype(terms.dtype) * terms)
        return jnp.sum(jnp.where(index < end, terms, 0))


def _as_stream(
    function: str, posterior: Any, log_prior: Any, log_likelihood: Any, data: Any, sample_prior: Any
) -> _Stream:
    """The prior and the data that the arguments describe."""
    if posterior is None:
        metropolis.check_callable(function, log_prior=log_prior, log_likelihood=log_likelihood)
        if sample_prior is not None:
            metropolis.check_callable(function, sample_prior=sample_prior)
        data = jax.tree.map(jnp.asarray, data)
        number = _length(function, "data", data)

        def one(position: Any, index: jax.Array) -> jax.Array:
            datum = jax.tree.map(lambda leaf: leaf[index], data)
            return _number(function, "log_likelihood", log_likelihood(position, datum))

        def prior(position: Any) -> jax.Array:
            return _number(function, "log_prior", log_prior(position))

        return _Stream(prior, jax.vmap(one, in_axes=(None, 0)), number, sample_prior)
    for argument, value in {"log_prior": log_prior, "log_likelihood": log_likelihood, "data": data}.items():
        if value is not None:
            raise core.bad_type(function, argument, "given with a posterior", "None, as the posterior has its own")
    if not hasattr(posterior, "split_log_density"):
        todo = "Or give log_prior, log_likelihood and data"
        raise core.bad_type(function, "posterior", posterior, "a conditioned model", todo)
    sample_prior = posterior.sample_prior if sample_prior is None else sample_prior
    metropolis.check_callable(function, sample_prior=sample_prior)

    def each(position: Any) -> dict[str, jax.Array]:
        return posterior.log_likelihood(posterior.constrain(position))

    position = jax.eval_shape(posterior.sample_prior, jax.random.key(0))
    number = _length(function, "posterior", jax.eval_shape(each, position))

    def terms(position: Any, indices: jax.Array) -> jax.Array:
        sums = [jnp.sum(core.as_float(leaf).reshape(number, -1), axis=1) for leaf in each(position).values()]
        dtype = core.accumulator_dtype(core.result_dtype(sums))
        return sum((x.astype(dtype) for x in sums[1:]), start=sums[0].astype(dtype))[indices]

    return _Stream(
        lambda position: _number(function, "posterior", posterior.split_log_density(position)[0]),
        terms,
        number,
        sample_prior,
    )


def _number(function: str, argument: str, value: Any) -> jax.Array:
    number = metropolis.number(function, f"the value of {argument}", value)
    return number.astype(core.accumulator_dtype(number.dtype))


def _length(function: str, argument: str, tree: Any) -> int:
    """The length of the leading axis that all leaves have."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        got = "without data that have one leading axis in common"
        todo = "Where they have none, give log_prior, log_likelihood and data" if argument == "posterior" else ""
        raise core.bad_value(function, argument, got, "a leading axis (time, ...) of one or more data", todo)
    return lengths.pop()[0]
