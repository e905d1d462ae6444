"""Twisted particles: guidance whose error sequential Monte Carlo takes back.

Guided steps are proposals, and the estimates of the likelihood given x_t are twisting functions: their ratios from step
to step weight the particles, and the last one is the likelihood itself. As particles grow in number they have the law
of the model's own chain given the data, whatever the estimates were.

Source: Wu, Trippe, Naesseth, Blei & Cunningham (2023), "Practical and asymptotically exact conditional sampling in
diffusion models", algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import smc
from jaxprob.inference.diffusion._ancestral import ancestral
from jaxprob.inference.diffusion._guidance import LogProbability, _check_callable, check_gaussian
from jaxprob.models.diffusion import Denoiser, Gaussian


class TwistedSamples(NamedTuple):
    """What `twisted` found. The examples are weighted.

    Attributes:
      population: `smc.Population` of examples; its mass estimates the likelihood under the model, without bias.
      effective_sample_size: (step + 1,), of the weights at each time.
      failed_at: (), int32, the first step at which no particle was possible or a weight NaN; -1 where all is well.
    """

    population: smc.Population
    effective_sample_size: jax.Array
    failed_at: jax.Array

    @property
    def log_evidence(self) -> jax.Array:
        """Log of an unbiased estimate of the mean likelihood: for an event, of its probability, ()."""
        return self.population.log_evidence


class _Particle(NamedTuple):
    x: jax.Array
    output: jax.Array
    log_twist: jax.Array
    gradient: jax.Array  # of the log twist, in whitened coordinates
    log_ratio: jax.Array  # of the density of the step that led here, over that of its proposal


def twisted(
    key: core.Key,
    process: Gaussian,
    denoiser: Denoiser,
    log_likelihood: Callable[[jax.Array], jax.Array],
    log_probability: LogProbability,
    shape: Any,
    *,
    particles: int = 256,
    steps: int = 100,
    grid: str = "time",
    caution: Any = 1.0,
    condition: Any = None,
    resampler: smc.Resampler | None = None,
) -> TwistedSamples:
    """Samples of the model given data, by particles that are guided.

    Args:
      key: random key.
      process: a Gaussian process.
      denoiser: `(x, t, condition) -> output`.
      log_likelihood: `x_0 -> scalar`, what the samples are conditioned on; -inf where an event did not happen.
      log_probability: `(x, t, condition) -> scalar`, an estimate of the logarithm of the expected likelihood given x_t,
        such as `above` or `observed` make; finite and differentiable.
      shape: of one example.
      particles: how many.
      steps: of the model's ancestral chain.
      grid: of times; see `Solver`.
      caution: the estimate counts to the power of the signal's share `alpha^2 / (alpha^2 + sigma^2)`, to this power: 0
        takes it at its word. At high noise an estimate by moments rules out what it does not see: for `|x|^2 > 9` under
        a mixture, with 2,000 particles, the probability comes out at 0.023 with 0 and at 0.053 with 1; it is 0.058.
      condition: of the denoiser, one for all particles.
      resampler: `smc.adaptive()` by default.

    Returns:
      `TwistedSamples`.

    Raises:
      TypeError: if the process is not Gaussian, or a function is none.
      ValueError: for numbers that are not positive.
    """
    name = "diffusion.twisted"
    check_gaussian(name, process)
    for argument, function in (("denoiser", denoiser), ("log_probability", log_probability)):
        _check_callable(name, argument, function)
    if not callable(log_likelihood):
        raise core.bad_type(name, "log_likelihood", core.describe(log_likelihood), "a function of an example")
    core.check_whole(name, particles=particles)
    functions = tuple(core.as_partial(each) for each in (denoiser, log_likelihood, log_probability))
    resampler = smc.adaptive() if resampler is None else resampler
    key, shape = core.as_key(key, name), core.as_shape(name, shape)
    inputs = process, functions, condition, caution, resampler
    return _twisted(key, *inputs, ancestral(steps, grid), shape, particles)


@functools.partial(jax.jit, static_argnames=("solver", "shape", "particles"))
def _twisted(
    key: core.Key,
    process: Gaussian,
    functions: Any,
    condition: Any,
    caution: Any,
    resampler: smc.Resampler,
    solver: Any,
    shape: tuple[int, ...],
    particles: int,
) -> TwistedSamples:
    denoiser, log_likelihood, log_probability = functions
    times = solver.times(process)

    def seen(x: jax.Array, t: jax.Array, is_last: Any, log_ratio: jax.Array) -> _Particle:
        """A particle with what the denoiser and the twist say of it."""
        output = process.output(denoiser, x, t, condition, shape)
        trust = jnp.exp(jnp.asarray(caution, x.dtype) * core.log_sigmoid(process.log_ratio(t)).astype(x.dtype))
        log_twist, gradient = jax.value_and_grad(lambda x: trust * log_probability(x, t, condition))(x)
        log_twist = jnp.where(is_last, log_likelihood(x).astype(x.dtype), log_twist)
        pulled = jax.vjp(process.noise.shaped, gradient)[1](gradient)[0]
        return _Particle(x, output, log_twist, pulled, log_ratio)

    def transition(key: core.Key, before: _Particle, time: jax.Array, datum: Any) -> _Particle:
        t, s, is_last = datum
        x = before.x
        mean, scale = process.reverse_moments(x, before.output, t, s)
        # The model's own step has the noise that `reverse_step` draws from the key; the proposal's is moved.
        z = core.random.normal(key, x.shape, x.dtype)
        moved = z + scale * before.gradient
        log_ratio = 0.5 * jnp.sum(z**2 - moved**2)
        return seen(mean + scale * process.noise.shaped(moved), s, is_last, log_ratio)

    def initial(key: core.Key, datum: Any) -> _Particle:
        x = process.sample_prior(key, shape, times.dtype)
        return seen(x, times[0], False, jnp.zeros((), x.dtype))

    model = smc.FeynmanKac(
        initial=initial,
        log_initial_potential=lambda particle, datum: particle.log_twist,
        transition=transition,
        log_potential=lambda before, now, time, datum: now.log_ratio + now.log_twist - before.log_twist,
    )
    ends = jnp.concatenate([times[:1], times[:-1]]), times, jnp.arange(len(times)) == len(times) - 1
    found = smc.run(key, model, ends, particles, resampler=resampler)
    last = found.state.population
    population = smc.Population(last.particles.x, last.log_weights, last.log_scale)
    return TwistedSamples(population, found.info.effective_sample_size, found.failed_at)
