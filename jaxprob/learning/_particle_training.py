"""Training of partially Bayesian networks by sequential Monte Carlo.

The law of the stochastic parameters phi is held by particles, while the deterministic ones psi follow Fisher's
identity: the gradient of the log evidence is the mean over p(phi | y; psi) of that of log p(y | phi; psi). Each way is
a `learning.Task` whose step moves particles and deterministic parameters at once, so that `jaxprob.fit` runs it,
evaluates it, and goes on with it after it was interrupted.

Source: Zhao, Mair, Schön & Sjölund (2024), "On Feynman-Kac training of partial Bayesian neural networks".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.smc import _moves as moves_of
from jaxprob.inference.smc._target import furthest
from jaxprob.learning._partial_bayes import PartialBayes, PartialParams, mixture
from jaxprob.learning._task import Task

LEAST = 2.0**-30  # inverse temperature, at which any likelihood says next to nothing
# What the way of the particles is scaled by on its way through the optimiser, so that the norm of the gradient that
# training reports is that of the deterministic parameters; a power of two, which rounds nothing.
FINE = 2.0**-20

# `(key, params, batch) -> (particles, what is carried given log likelihoods (particle, example), metrics)`
Advance = Callable[[core.Key, PartialParams, Any], tuple[Any, Callable[[jax.Array], Any], dict[str, jax.Array]]]


class Carried(NamedTuple):
    """What open-horizon training carries beside the particles.

    Attributes:
      inverse_temperature: (), the power of the likelihood that the particles have come to, from 0 to 1.
      log_tilt: (particle,), log of the last target over the prior at each particle; None without a move.
      step_size: (), of the move, adapted; None without a move.
    """

    inverse_temperature: jax.Array
    log_tilt: Any = None
    step_size: Any = None


def open_horizon_smc(
    network: PartialBayes,
    optimizer: optax.GradientTransformation,
    *,
    size: int,
    particles: int = 100,
    move: Callable[..., core.Algorithm] | None = None,
    moves: int = 5,
    effective_sample_size: Any = 0.5,
) -> Task:
    """Training in which one population of particles goes along with the deterministic parameters, for ever.

    Without `move`, batches are data that come in while old ones are forgotten. With r = (batch size) / `size`, a step
    spreads the particles by a Gaussian of r / (1 - r) times their covariance, weights them by
    `p(batch | phi; psi) p(phi)^r`, and resamples. What they know is at rest when it is as much as `size` examples and
    the prior tell: for a Gaussian posterior the spread is that of the exact one, and the centre is that of the last
    `size` examples or so. The covariance is that of all parameters where there are 10 particles for each of them or
    more, and else of variances alone.

    With `move` the target of a step is `p(phi) p(batch | phi; psi)^(size / batch size)`: particles are weighted by its
    ratio to the target of the step before, resampled and moved. This is for batches of all data, for which it is the
    posterior, of any shape; with smaller ones the particles follow the last batch alone.

    Either way the likelihood counts by a power that grows from 0 to 1 as fast as `effective_sample_size` allows.
    Then psi takes a step of the optimiser along the mean over the particles of the gradient of
    `-log p(batch | phi; psi) / batch size`.

    The metrics of a step are "effective_sample_size" (of the weights), "inverse_temperature" (the power), and with
    `move` "acceptance_rate" and "correlation" (of particles with where they were, as in `smc.tempered`). The loss is
    the mean over the batch of minus the log predictive density, after the particles have moved; so is that of a
    validation.

    Args:
      network: a `PartialBayes`.
      optimizer: of the deterministic parameters; `learning.by_path` goes by the paths of the network's own leaves.
      size: examples of the data in all.
      particles: how many, 2 or more.
      move: `log_density -> Algorithm`, as for `smc.tempered`: its step size is adapted, and its metric is that of the
        particles. None for the mini-batches above.
      moves: transitions of each particle in a step.
      effective_sample_size: of the weights at least, a share of the particles in (0, 1).

    Returns:
      a `learning.Task` whose parameters are `PartialParams`. It has no average and no micro-batches, which mean nothing
      for particles. A step that no particle survives is not taken, as its loss is infinite.

    Raises:
      TypeError: if `network`, `optimizer` or `move` is not one.
      ValueError: if a number is out of its range; by a step, if batches are too large for `size`.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.learning import PartialBayes, training
    >>> def log_likelihood(params, y):
    ...     return Normal(params["shift"] + params["level"], 1.0).log_prob(y)
    >>> zeros = lambda key: {"shift": jnp.zeros(()), "level": jnp.zeros(())}
    >>> network = PartialBayes(zeros, log_likelihood, stochastic="shift", prior=Normal(0.0, 1.0))
    >>> task = open_horizon_smc(network, optax.sgd(0.5), size=100)
    >>> init, step = training(task)
    >>> state = init(task.init(jax.random.key(0)))
    >>> for index in range(20):
    ...     state, info = step(jax.random.key(index), state, jnp.linspace(2.0, 4.0, 20))
    >>> abs(state.params.each(lambda p: p["shift"] + p["level"]).mean().item() - 3) < 0.1
    True

    Source: Zhao et al. (2024), open-horizon SMC, whose random walk has a fixed variance; West (1993), "Approximating
    posterior distributions by mixtures", for kernels of the particles' own covariance.
    """
    name = "open_horizon_smc"
    _check(name, network)
    core.check_whole(name, size=size)
    core.check_whole(name, least=2, particles=particles)
    between = "a share between 0 and 1"
    least = known_number(name, "effective_sample_size", effective_sample_size, lambda x: 0 < x < 1, between)
    if move is None:
        advance = _jittering(name, network, size, least)
        return _task(name, network, optimizer, particles, lambda dtype: Carried(jnp.zeros((), dtype)), advance)
    settings = moves_of.as_move(name, move, moves, 1, None, None)
    shapes = jax.eval_shape(network.sample_prior, jax.eval_shape(jax.random.key, 0))
    scalars = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    def first(dtype: Any) -> Carried:
        step_size = settings.first_step_size(scalars).astype(dtype)
        return Carried(jnp.zeros((), dtype), jnp.zeros((particles,), dtype), step_size)

    return _task(name, network, optimizer, particles, first, _moving(name, network, size, least, settings))


def stochastic_gradient_smc(
    network: PartialBayes,
    optimizer: optax.GradientTransformation,
    *,
    size: int,
    particles: int = 100,
    max_steps: int = 50,
    **options: Any,
) -> Task:
    """Training in which each step draws particles anew, by an SMC sampler from the prior to the posterior of a batch.

    The posterior of a batch is `p(phi) p(batch | phi; psi)^(size / batch size)`, reached by `smc.tempered`. Then psi
    takes a step of the optimiser along the mean over the particles of the gradient of
    `-log p(batch | phi; psi) / batch size`. It costs a whole sampler a step, and owes nothing to the steps before. The
    particles that are left are those of the last batch: `learning.partial_posterior` makes those of all data.

    The metrics of a step are "log_evidence", "temperatures" (how many there were), "inverse_temperature" (1, unless
    `max_steps` were too few), "acceptance_rate" and "correlation" (of the last temperature). The loss is as
    for `open_horizon_smc`.

    Args:
      network: a `PartialBayes`.
      optimizer: of the deterministic parameters; `learning.by_path` goes by the paths of the network's own leaves.
      size: examples of the data in all.
      particles: how many, 2 or more.
      max_steps: temperatures of a step at most.
      **options: of `smc.tempered`, such as `move` and `moves`.

    Returns:
      a `learning.Task` whose parameters are `PartialParams`.

    Raises:
      TypeError: if `network` or `optimizer` is not one, or an option is of another type or unknown.
      ValueError: if a number is out of its range; by a step, if a batch is larger than `size`.

    Source: Zhao et al. (2024), stochastic-gradient SMC.
    """
    name = "stochastic_gradient_smc"
    _check(name, network)
    core.check_whole(name, size=size, max_steps=max_steps)
    options = {"particles": particles, **options}
    _sampler(network, network.log_prior, options)  # so that what is wrong is told now

    def advance(key: core.Key, params: PartialParams, batch: Any) -> Any:
        power = size / _examples(name, "batch", batch, size)
        found = _sample(key, network, params.deterministic, batch, power, max_steps, options)
        last = jax.tree.map(lambda row: row[found.num_steps - 1], found.info)
        metrics = {
            "log_evidence": last.log_evidence,
            "temperatures": found.num_steps,
            "inverse_temperature": last.inverse_temperature,
            "acceptance_rate": last.acceptance_rate,
            "correlation": last.correlation,
        }
        return found.state.position, lambda terms: None, metrics

    return _task(name, network, optimizer, particles, lambda dtype: None, advance)


def partial_posterior(
    key: core.Key,
    network: PartialBayes,
    params: PartialParams,
    data: Any,
    *,
    max_steps: int = 100,
    **options: Any,
) -> tuple[PartialParams, smc.SamplerRun]:
    """The posterior of the stochastic parameters given the deterministic ones, by an SMC sampler from the prior.

    Args:
      key: random key.
      network: a `PartialBayes`.
      params: of it; only the deterministic ones count.
      data: pytree of arrays (example, ...), all of them.
      max_steps: temperatures at most.
      **options: of `smc.tempered`, such as `move` and `particles`.

    Returns:
      the parameters with particles of the posterior, and the run: `run.state.log_evidence` is the log of
      `p(data; psi)`, and `run.state.done` says whether it got to the posterior. May be called inside `jit` and `vmap`.

    Raises:
      TypeError: if `network` is not one, or an option is of another type or unknown.
      ValueError: if a number is out of its range.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.learning import PartialBayes
    >>> log_likelihood = lambda params, y: Normal(params["shift"], 1.0).log_prob(y)
    >>> network = PartialBayes(lambda key: {"shift": jnp.zeros(())}, log_likelihood, "shift", Normal(0.0, 1.0))
    >>> params = network.start(jax.random.key(0), 1)
    >>> params, run = partial_posterior(jax.random.key(1), network, params, jnp.ones(9))
    >>> bool(run.state.done), abs(params.particles["shift"].mean().item() - 0.9) < 0.05
    (True, True)
    """
    name = "partial_posterior"
    _check(name, network)
    core.check_whole(name, max_steps=max_steps)
    _examples(name, "data", data)
    run = _sample(core.as_key(key, name), network, params.deterministic, data, 1.0, max_steps, options)
    return PartialParams(params.deterministic, run.state.position), run


def _check(name: str, network: Any) -> None:
    if not isinstance(network, PartialBayes):
        raise core.bad_type(name, "network", network, "a learning.PartialBayes")


def _examples(name: str, argument: str, batch: Any, most: float = math.inf, todo: str = "") -> int:
    """How many examples a batch has."""
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(shapes) != 1 or shapes & {(), (0,)}:
        expected = "arrays of 1 or more examples along the first axis"
        raise core.bad_value(name, argument, f"of first axes {sorted(shapes)}", expected)
    ((number,),) = shapes
    if number > most:
        raise core.bad_value(name, argument, f"of {number} examples", f"{most} at the most", todo)
    return number


def _task(
    name: str,
    network: PartialBayes,
    optimizer: optax.GradientTransformation,
    number: int,
    first: Callable[[Any], Any],
    advance: Advance,
) -> Task:
    """The task of a step that moves particles: the gradient of its loss with respect to them is their way back."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise core.bad_type(name, "optimizer", optimizer, "an optax optimiser", "Such as optax.adam(1e-3)")

    def init(key: core.Key) -> PartialParams:
        params = network.start(key, number)
        return params._replace(carried=first(core.accumulator_dtype(core.result_dtype(params.particles))))

    def loss(params: PartialParams, batch: Any, key: core.Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        old = lax.stop_gradient(params)
        particles, carry, metrics = advance(key, old, batch)

        def energy(deterministic: Any) -> tuple[jax.Array, jax.Array]:
            terms = network.log_likelihoods(PartialParams(deterministic, particles), batch)
            return -jnp.mean(terms), terms

        # Fisher's identity: particles are held where they are.
        gradient, terms = jax.grad(energy, has_aux=True)(old.deterministic)
        moved = jax.tree.map(lambda a, b: FINE * (a - b.astype(a.dtype)), old[1:], (particles, carry(terms)))
        downhill = core.dot(params, lax.stop_gradient(PartialParams(gradient, *moved)))
        return -jnp.mean(mixture(terms)) + (downhill - lax.stop_gradient(downhill)), metrics

    def validation_loss(params: PartialParams, batch: Any, key: core.Key) -> jax.Array:
        return -jnp.mean(mixture(network.log_likelihoods(params, batch)))

    return Task(init, loss, _all_the_way(optimizer), validation_loss=validation_loss)


def _all_the_way(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of the deterministic parameters alone; the others go all of their way."""
    inner = optax.with_extra_args_support(optimizer)

    def update(gradient: Any, state: Any, params: Any = None, **extra: Any) -> tuple[PartialParams, Any]:
        updates, state = inner.update(gradient.deterministic, state, params.deterministic, **extra)
        return PartialParams(updates, *jax.tree.map(lambda leaf: -leaf / FINE, gradient[1:])), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(params.deterministic), update)


def _jittering(name: str, network: PartialBayes, size: int, share: jax.Array) -> Advance:
    """A step of open-horizon training by batches that come in."""

    def advance(key: core.Key, params: PartialParams, batch: Any) -> Any:
        todo = "Give a move for batches of all data"
        fresh = _examples(name, "batch", batch, size - 1, todo) / size
        number = params.num_particles
        rate = fresh * params.carried.inverse_temperature
        metric = moves_of.metric_of(params.particles, jnp.full((number,), 1 / number))
        scale = jnp.sqrt(rate / (1 - rate))

        def jitter(key: core.Key, particle: Any) -> Any:
            vector, unravel = core.ravel(particle)
            noise = metric.velocity(core.random.normal(key, vector.shape, metric.factor.dtype))
            return unravel(vector.astype(noise.dtype) + scale.astype(noise.dtype) * noise)

        particles = jax.vmap(jitter)(core.chain_keys(core.fold(key, 0), jnp.arange(number)), params.particles)
        spread = params._replace(particles=particles)
        tilts = jnp.sum(network.log_likelihoods(spread, batch), axis=1)
        tilts = tilts + fresh * jax.vmap(network.log_prior)(particles).astype(tilts.dtype)
        beta = _furthest(tilts, jnp.zeros_like(tilts), jnp.zeros((), tilts.dtype), share)
        population = smc.Population(particles, beta * tilts)
        chosen = smc.resample(core.fold(key, 1), population).particles
        metrics = {"effective_sample_size": population.effective_sample_size, "inverse_temperature": beta}
        return chosen, lambda terms: Carried(beta), metrics

    return advance


def _moving(name: str, network: PartialBayes, size: int, share: jax.Array, settings: moves_of.Move) -> Advance:
    """A step of open-horizon training towards the posterior of a batch."""

    def advance(key: core.Key, params: PartialParams, batch: Any) -> Any:
        power = size / _examples(name, "batch", batch, size)

        tilts = power * jnp.sum(network.log_likelihoods(params, batch), axis=1)
        carried = jax.tree.map(lambda leaf: leaf.astype(tilts.dtype), params.carried)
        beta = _furthest(tilts, carried.log_tilt, carried.inverse_temperature, share)
        log_weights = beta * tilts - carried.log_tilt

        def density(particle: Any) -> jax.Array:
            tilt = power * _log_likelihood(network, params.deterministic, particle, batch)
            return network.log_prior(particle).astype(tilt.dtype) + beta * tilt

        moved, _ = moves_of.resample_and_move(
            settings, smc.systematic, key, density, params.particles, log_weights, carried.step_size
        )

        def carry(terms: jax.Array) -> Carried:
            return Carried(beta, beta * power * jnp.sum(terms, axis=1), moved.step_size)

        metrics = {
            "effective_sample_size": smc.Population((), log_weights).effective_sample_size,
            "inverse_temperature": beta,
            "acceptance_rate": moved.acceptance_rate,
            "correlation": moved.correlation,
        }
        return moved.particles, carry, metrics

    return advance


def _furthest(tilts: jax.Array, old: jax.Array, least: jax.Array, share: jax.Array) -> jax.Array:
    """The largest inverse temperature from `least` to 1 at which weights `exp(beta tilts - old)` are even enough.

    Even enough is an effective sample size of `share` of the particles that are possible. Where none is even enough it
    is `least`.
    """
    possible = jnp.maximum(jnp.sum(tilts > -jnp.inf), 1).astype(tilts.dtype)

    def even(beta: jax.Array) -> jax.Array:
        population = smc.Population((), beta * tilts - old)
        return population.effective_sample_size >= share.astype(tilts.dtype) * possible

    beta = furthest(even, least.astype(tilts.dtype), jnp.ones((), tilts.dtype))
    return jnp.maximum(beta, LEAST)


def _log_likelihood(network: PartialBayes, deterministic: Any, particle: Any, data: Any) -> jax.Array:
    """Of all examples together, for one particle."""
    alone = PartialParams(deterministic, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), particle))
    return jnp.sum(network.log_likelihoods(alone, data))


def _sampler(network: PartialBayes, log_likelihood: core.LogDensity, options: dict[str, Any]) -> core.Algorithm:
    parts = {"log_prior": network.log_prior, "sample_prior": network.sample_prior}
    return smc.tempered(log_likelihood=log_likelihood, **parts, **options)


def _sample(
    key: core.Key,
    network: PartialBayes,
    deterministic: Any,
    data: Any,
    power: float,
    max_steps: int,
    options: dict[str, Any],
) -> smc.SamplerRun:
    """Particles from the prior to `p(phi) p(data | phi; psi)^power`."""

    def log_likelihood(particle: Any) -> jax.Array:
        return power * _log_likelihood(network, deterministic, particle, data)

    return smc.run_sampler(key, _sampler(network, log_likelihood, options), max_steps=max_steps)
