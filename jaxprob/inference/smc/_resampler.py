"""Resamplers: when a population is resampled, and what becomes of it.

A resampler turns a population into one whose weights sum to one, the mass in its `log_scale`: `always` and `adaptive`
draw ancestors by a scheme, `soft` draws them from flattened weights and corrects for it, which leaves a derivative
with respect to the weights.

Source: Liu & Chen (1995), "Blind deconvolution via sequential imputations", for resampling where the effective sample
size is low; Karkus, Hsu & Lee (2018), "Particle filter networks", for soft resampling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.smc._population import Population, total_mass
from jaxprob.inference.smc._resampling import Scheme, systematic


class Resampled(NamedTuple):
    """What a resampler returns.

    Attributes:
      population: one whose weights sum to one; the mass is in `log_scale`.
      ancestors: (particle,), int32, of which particle each is a copy; None where particles are moved, not copied.
    """

    population: Population
    ancestors: jax.Array | None


Resampler: TypeAlias = Callable[[core.Key, Population], Resampled]


def always(scheme: Scheme = systematic) -> Resampler:
    """A resampler that draws ancestors at every step.

    Args:
      scheme: `(key, log_weights, num_draws) -> ancestors`, such as `smc.systematic`.

    >>> population = Population(jnp.arange(3.0), jnp.log(jnp.array([0.0, 0.0, 2.0])))
    >>> new, ancestors = always()(jax.random.key(0), population)
    >>> ancestors.tolist(), new.particles.tolist(), f"{new.log_evidence:.3f}"
    ([2, 2, 2], [2.0, 2.0, 2.0], '0.693')
    """

    return _Always(scheme)


def adaptive(scheme: Scheme = systematic, threshold: float = 0.5) -> Resampler:
    """A resampler that draws ancestors only where the effective sample size is below a share of the particles.

    Args:
      scheme: as for `always`.
      threshold: share in [0, 1]; 0 for never. An array or a tracer.

    Raises:
      ValueError: if the threshold is not in [0, 1].
    """
    if core.is_number(threshold) and not 0 <= threshold <= 1:
        raise core.bad_value("adaptive", "threshold", threshold, "a share of the particles in [0, 1]")

    return Adaptive(threshold, scheme)


def soft(mixture: float = 0.5, scheme: Scheme = systematic) -> Resampler:
    """A resampler that draws ancestors from a mixture of the weights and equal ones, and corrects for it.

    New weights are `w_a / (mixture w_a + (1 - mixture) / N)`, a differentiable function of the old: gradients pass
    resampling, at the cost of weights that stay unequal. They are not unbiased: which ancestors are drawn has no
    derivative, and more particles do not help (see the table of `smc.optimal_transport`); `particle.score` has a
    gradient that converges.

    Args:
      mixture: share of the weights in [0, 1]; at 1 nothing of a gradient is left, at 0 nothing is resampled.
      scheme: as for `always`.

    Raises:
      ValueError: if the mixture is not in [0, 1].

    Source: Karkus, Hsu & Lee (2018), equations 4 and 5.
    """
    if core.is_number(mixture) and not 0 <= mixture <= 1:
        raise core.bad_value("soft", "mixture", mixture, "a share in [0, 1]")

    return _Soft(mixture, scheme)


@core.pytree
class _Always:
    """Of `always`. Resamplers are pytrees, so that a program takes them as arguments and is compiled once."""

    scheme: Scheme = core.static()

    def __call__(self, key: core.Key, population: Population) -> Resampled:
        ancestors = self.scheme(key, population.log_weights, population.num_particles)
        return Resampled(_equal(population, ancestors), ancestors)


@core.pytree
class Adaptive:
    """Of `adaptive`."""

    threshold: Any
    scheme: Scheme = core.static()

    def __call__(
        self, key: core.Key, population: Population, known: tuple[jax.Array, jax.Array] | None = None
    ) -> Resampled:
        """As every resampler; `known` are the log mass and the effective sample size of the weights, where they are."""
        number = population.num_particles
        if known is None:
            known = total_mass(population.log_weights), population.effective_sample_size
        total, effective = known
        # A branch on a batch of flags is a selection, which a key may not be an operand of.
        data, kind = jax.random.key_data(key), jax.random.key_impl(key)

        def keep() -> tuple[Population, jax.Array]:
            return normalized(population, total=total), jnp.arange(number, dtype=jnp.int32)

        def draw() -> tuple[Population, jax.Array]:
            ancestors = self.scheme(jax.random.wrap_key_data(data, impl=kind), population.log_weights, number)
            return _equal(population, ancestors), ancestors

        least = jnp.asarray(self.threshold).astype(population.log_weights.dtype) * number
        return Resampled(*core.cond(effective < least, draw, keep))


@core.pytree
class _Soft:
    """Of `soft`."""

    mixture: Any
    scheme: Scheme = core.static()

    def __call__(self, key: core.Key, population: Population) -> Resampled:
        number = population.num_particles
        old = normalized(population).log_weights
        share = jnp.asarray(self.mixture).astype(old.dtype)
        flat = core.logaddexp(jnp.log(share) + old, jnp.log1p(-share) - math.log(number))
        ancestors = self.scheme(key, flat, number)
        weights = (old - flat)[ancestors] - math.log(number)
        particles = jax.tree.map(lambda leaf: leaf[ancestors], population.particles)
        return Resampled(Population(particles, weights, population.log_evidence), ancestors)


def normalized(population: Population, total: jax.Array | None = None) -> Population:
    """The same measure with weights that sum to one; equal weights of no mass where it has none.

    Args:
      population: weighted particles.
      total: log of the sum of their weights, (), where it is known.
    """
    total = total_mass(population.log_weights) if total is None else total
    number = population.num_particles
    known = jnp.isfinite(total)
    log_weights = jnp.where(known, population.log_weights - jnp.where(known, total, 0), -math.log(number))
    return dataclasses.replace(population, log_weights=log_weights, log_scale=population.log_scale + total)


def _equal(population: Population, ancestors: jax.Array) -> Population:
    """The particles drawn, of equal weights."""
    number = ancestors.shape[0]
    log_weights = jnp.full((number,), -math.log(number), population.log_weights.dtype)
    particles = jax.tree.map(lambda leaf: leaf[ancestors], population.particles)
    return Population(particles, log_weights, population.log_evidence)
