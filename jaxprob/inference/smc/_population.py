"""Populations of weighted particles, and the transformations that sequential Monte Carlo is made of.

A population stands for an un-normalised measure, `exp(log_scale) sum_i exp(log_weights_i) delta(particles_i)`. Each
transformation is valid by itself: the expected measure it returns is the one it should be, whatever came before. Any
composition is therefore valid, its evidence unbiased; nothing has to be remembered about when a population was last
resampled.

Source: Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", section 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.inference.smc._resampling import Scheme, shares, systematic


@core.pytree
class Population:
    """Weighted particles that estimate an un-normalised measure.

    `integral of f dmu ~ exp(log_scale) sum_i exp(log_weights_i) f(x_i)`: N equally weighted particles of a probability
    have weights 1/N, and two populations of one scale are added by concatenating them.

    Attributes:
      particles: pytree whose leaves have a leading axis (particle, ...).
      log_weights: (particle,), un-normalised; -inf for a particle that counts for nothing.
      log_scale: (), what all weights have in common, apart from them so that they keep their digits where the evidence
        of a long series is, say, exp(-1e5); 0 by default.

    Raises:
      ValueError: at construction, if there is no particle or shapes do not fit together.

    >>> population = Population(jnp.array([1.0, 3.0]), jnp.log(jnp.array([0.5, 1.5])))
    >>> print(f"{population.expectation():.2f}, {population.effective_sample_size:.2f}")
    2.50, 1.60
    """

    particles: Any
    log_weights: jax.Array
    log_scale: Any = 0.0

    def __post_init__(self) -> None:
        log_weights = core.as_float(self.log_weights)
        if log_weights.ndim != 1 or not log_weights.size:
            raise core.bad_value(
                "Population", "log_weights", log_weights, "one number for each of one or more particles"
            )
        if jnp.shape(self.log_scale):
            raise core.bad_value("Population", "log_scale", self.log_scale, "one number")
        for name, leaf in core.named_leaves(self.particles):
            if jnp.shape(leaf)[:1] != log_weights.shape:
                got, want = f"of shape {jnp.shape(leaf)}", f"a leading axis of {log_weights.size}, one entry a particle"
                raise core.bad_value("Population", f"particles, leaf {name!r},", got, want)
        object.__setattr__(self, "particles", jax.tree.map(jnp.asarray, self.particles))
        object.__setattr__(self, "log_weights", log_weights)
        object.__setattr__(self, "log_scale", jnp.asarray(self.log_scale).astype(log_weights.dtype))

    @property
    def num_particles(self) -> int:
        """How many particles there are."""
        return self.log_weights.shape[-1]

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the total mass, (): -inf if every particle counts for nothing; NaN once a weight has been NaN."""
        return self.log_scale + total_mass(self.log_weights)

    @property
    def weights(self) -> jax.Array:
        """Weights that sum to one, (particle,); all zero where the total mass is."""
        return shares(self.log_weights, 1)

    @property
    def effective_sample_size(self) -> jax.Array:
        """`1 / sum_i w_i^2` for the normalised weights, (): between 1 and the number of particles; 0 without any mass.

        Source: Kong, Liu & Wong (1994).
        """
        return effective_size(self.log_weights)

    def expectation(self, function: Callable[[Any], Any] = lambda particle: particle) -> Any:
        """The mean of a function under the normalised measure, `sum_i w_i f(x_i)`.

        A particle of weight zero does not count, even where the function is infinite or NaN there. Without any mass
        the mean does not exist and is NaN.

        Args:
          function: `particle -> pytree of real arrays`; the particle itself by default.

        Returns:
          pytree like one value of the function.
        """
        weights = self.weights
        counts = weights != 0

        def mean(leaf: jax.Array) -> jax.Array:
            leaf = core.as_float(leaf)
            dtype = core.result_dtype(leaf, weights)
            shape = (-1,) + (1,) * (leaf.ndim - 1)
            terms = weights.reshape(shape).astype(dtype) * jnp.where(counts.reshape(shape), leaf.astype(dtype), 0)
            return jnp.where(jnp.any(counts), jnp.sum(terms, axis=0), jnp.nan)

        return jax.tree.map(mean, jax.vmap(function)(self.particles))


def total_mass(log_weights: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Log of the sum of weights, (), of all devices along an axis if one is given."""
    # One sum of all terms. To tell which of them are largest is not safe here: weights that are nearly equal, computed
    # anew for each of several sums, may be rounded to be so in one and not in another.
    top, relative = _relative(log_weights, axis_name)
    total = _sum(relative, axis_name)
    none = total == 0
    return jnp.where(none, -jnp.inf, top[..., 0] + jnp.log(jnp.where(none, 1, total)))


def effective_size(log_weights: jax.Array, axis_name: str | None = None) -> jax.Array:
    """`1 / sum_i w_i^2` of normalised weights, (), of all devices along an axis if one is given; 0 without any mass."""
    _, relative = _relative(log_weights, axis_name)
    total, squares = _sum(relative, axis_name), _sum(relative**2, axis_name)
    return jnp.where(squares == 0, 0, total**2 / jnp.where(squares == 0, 1, squares))


def _relative(log_weights: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """The largest log weight (..., 1), 0 where it is infinite, and weights relative to it."""
    top = lax.stop_gradient(jnp.max(log_weights, axis=-1, keepdims=True))
    top = top if axis_name is None else lax.pmax(top, axis_name)
    top = jnp.where(jnp.isfinite(top), top, 0)
    return top, jnp.exp(log_weights - top)


def _sum(terms: jax.Array, axis_name: str | None) -> jax.Array:
    total = jnp.sum(terms, axis=-1)
    return total if axis_name is None else lax.psum(total, axis_name)


def weighted_moments(particles: Any, weights: jax.Array) -> tuple[Any, Any]:
    """Mean and variance of each number of weighted particles.

    Args:
      particles: pytree (particle, ...). One of weight zero does not count, infinite or not.
      weights: (particle,), which sum to one.

    Returns:
      two pytrees like one particle; NaN where no weight is positive.
    """
    alive = weights > 0
    some = jnp.any(alive)

    def of(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        leaf = core.as_float(leaf)
        dtype = core.accumulator_dtype(core.result_dtype(leaf))
        shape = (-1,) + (1,) * (leaf.ndim - 1)
        share, there = weights.reshape(shape).astype(dtype), alive.reshape(shape)
        values = jnp.where(there, leaf.astype(dtype), 0)
        mean = jnp.sum(share * values, 0)
        variance = jnp.sum(share * (values - jnp.expand_dims(mean, 0)) ** 2, 0)
        return tuple(jnp.where(some, x, jnp.nan).astype(leaf.dtype) for x in (mean, variance))  # type: ignore

    leaves, shape = jax.tree.flatten(particles)
    pairs = [of(leaf) for leaf in leaves]
    return tuple(jax.tree.unflatten(shape, [pair[i] for pair in pairs]) for i in (0, 1))


def spawn(key: core.Key, program: Callable[[core.Key], Any], num_particles: int) -> Population:
    """A population of independent draws, each of weight `1 / num_particles`.

    Args:
      key: random key; particle i uses `fold_in(key, i)`.
      program: `key -> particle`, for instance the `sample` of a distribution or of a joint model.
      num_particles: how many to draw.

    Returns:
      a population that stands for the distribution of `program`.

    Raises:
      ValueError: if `num_particles` is not a positive integer.

    >>> population = spawn(jax.random.key(0), jax.random.normal, 1000)
    >>> population.num_particles, abs(population.expectation().item()) < 0.1
    (1000, True)
    """
    _check_number("spawn", num_particles)
    particles = jax.vmap(program)(_particle_keys(key, num_particles, "spawn"))
    return _equally_weighted(particles, num_particles, core.accumulator_dtype(core.result_dtype(particles)), 0.0)


def reweight(population: Population, log_factor: Callable[[Any], Any]) -> Population:
    """Multiplies the measure by a density: `mu(dx)` becomes `exp(log_factor(x)) mu(dx)`.

    Args:
      population: the measure before.
      log_factor: `particle -> scalar`, the log of a non-negative function (-inf where that is zero): a log likelihood,
        or the log ratio of a target to the proposal that the particle came from. A particle that counts for nothing
        already keeps doing so, even where the factor is NaN.

    Returns:
      the same particles with other weights.

    Raises:
      ValueError: if `log_factor` returns more than one number a particle.
    """
    factors = jax.vmap(lambda particle: core.as_float(log_factor(particle)))(population.particles)
    if factors.shape != population.log_weights.shape:
        todo = "Sum over everything the factor is a product of"
        raise core.bad_value("reweight", "the value of log_factor", f"of shape {factors.shape[1:]}", "one number", todo)
    log_weights = population.log_weights
    dead = log_weights == -jnp.inf
    log_weights = jnp.where(dead, log_weights, log_weights + factors.astype(log_weights.dtype))
    return dataclasses.replace(population, log_weights=log_weights)


def resample(
    key: core.Key, population: Population, scheme: Scheme = systematic, num_particles: int | None = None
) -> Population:
    """Draws equally weighted particles in proportion to the weights; the expected measure stays the same.

    The total mass goes to `log_scale`. A population without any mass keeps having none (`log_evidence` is -inf; NaN if
    a weight was NaN); its particles are then drawn as if they were equally weighted.

    Args:
      key: random key.
      population: the measure before.
      scheme: `systematic`, `multinomial`, or any `(key, log_weights, num_draws) -> ancestors (num_draws,)` that draws
        particle i `num_draws * w_i` times on average.
      num_particles: how many to draw; as many as there are by default.

    Returns:
      a population of equal weights `1 / num_particles`.

    Raises:
      ValueError: if `num_particles` is not a positive integer.
    """
    number = population.num_particles if num_particles is None else num_particles
    _check_number("resample", number)
    ancestors = scheme(core.as_key(key, "resample"), population.log_weights, number)
    particles = jax.tree.map(lambda leaf: leaf[ancestors], population.particles)
    return _equally_weighted(particles, number, population.log_weights.dtype, population.log_evidence)


def advance(key: core.Key, population: Population, kernel: Callable[[core.Key, Any], Any]) -> Population:
    """Moves each particle by a Markov kernel; weights stay: `mu(dx)` becomes `integral of mu(dx) kernel(x, dx')`.

    With the transition of a state-space model it goes one step in time; with a step of MCMC that leaves the normalised
    measure invariant the measure stays the same. A weight that depends on where a particle came from (that of a guided
    proposal) is made by a kernel that returns both places, and `reweight`.

    Args:
      key: random key; particle i uses `fold_in(key, i)`.
      population: the measure before.
      kernel: `(key, particle) -> particle`.

    Returns:
      the new particles with the same weights.
    """
    keys = _particle_keys(key, population.num_particles, "advance")
    return dataclasses.replace(population, particles=jax.vmap(kernel)(keys, population.particles))


def _particle_keys(key: core.Key, number: int, function: str) -> core.Key:
    return core.chain_keys(core.as_key(key, function), jnp.arange(number))


def _check_number(function: str, number: int) -> None:
    if not isinstance(number, (int, np.integer)) or number < 1:
        raise core.bad_value(function, "num_particles", number, "a positive integer")


def _equally_weighted(particles: Any, number: int, dtype: Any, log_scale: Any) -> Population:
    return Population(particles, jnp.full((number,), -math.log(number), dtype), log_scale)
