"""Particles spread over devices: resampling among those of a device, or among all.

Inside `jax.shard_map` each device has some of the particles of one population, whose weights are relative to all. Run
with `smc.run(..., axis_name=...)`, a filter of which one key a particle draws is that of one device, to rounding: keys
go by the index of a particle among all, and ancestors are drawn among all.

Source: Lee, Yau, Giles, Doucet & Holmes (2010), "On the utility of graphics cards to perform massively parallel
simulation of advanced Monte Carlo methods"; Verge, Dubarry, Del Moral & Moulines (2015), "On parallel implementation
of sequential Monte Carlo methods: the island particle model", for resampling within devices.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.smc._population import Population, effective_size, total_mass
from jaxprob.inference.smc._resampler import Resampled, Resampler
from jaxprob.inference.smc._resampling import Scheme, systematic


def sharded(axis_name: str, scheme: Scheme = systematic, *, threshold: Any = 0.5, across: bool = True) -> Resampler:
    """A resampler for particles that are spread over the devices of a mesh axis, for use inside `jax.shard_map`.

    Outside of it `particle.filter(devices=...)` spreads particles with any other resampler.

    Args:
      axis_name: of the mesh, that which `smc.run` has.
      scheme: `(key, log_weights, num_draws) -> ancestors`, such as `smc.systematic`.
      threshold: share of the particles below which the effective sample size must be; 1 for always.
      across: whether ancestors are drawn among all particles, which sends all particles to all devices; else each
        device draws among its own where theirs are uneven, keeps the mass that it has, and sends two numbers.

    Returns:
      a resampler; ancestors are indices among all particles.

    Raises:
      ValueError: if the threshold is not in [0, 1].
    """
    if core.is_number(threshold) and not 0 <= threshold <= 1:
        raise core.bad_value("sharded", "threshold", threshold, "a share of the particles in [0, 1]")
    return _Across(threshold, scheme, axis_name) if across else _Within(threshold, scheme, axis_name)


@core.pytree
class _Across:
    """Draws among all particles."""

    threshold: Any
    scheme: Scheme = core.static()
    axis_name: str = core.static()

    def __call__(self, key: core.Key, population: Population) -> Resampled:
        here, devices = population.num_particles, lax.axis_size(self.axis_name)
        number, first = here * devices, lax.axis_index(self.axis_name) * here
        total = total_mass(population.log_weights, self.axis_name)
        own = first + jnp.arange(here, dtype=jnp.int32)
        least = jnp.asarray(self.threshold).astype(population.log_weights.dtype) * number
        low = effective_size(population.log_weights, self.axis_name) < least
        # Everything is sent whether it is needed or not: a branch must not wait for devices that take another.
        logs, everyone = lax.all_gather((population.log_weights, population.particles), self.axis_name, tiled=True)
        drawn = lax.dynamic_slice_in_dim(self.scheme(key, logs, number), first, here)
        ancestors = jnp.where(low, drawn, own)
        kept = jnp.where(jnp.isfinite(total), population.log_weights - total, -math.log(number))
        particles = jax.tree.map(lambda leaf: leaf[ancestors], everyone)
        return Resampled(
            Population(particles, jnp.where(low, -math.log(number), kept), population.log_scale + total), ancestors
        )


@core.pytree
class _Within:
    """Draws among the particles of a device."""

    threshold: Any
    scheme: Scheme = core.static()
    axis_name: str = core.static()

    def __call__(self, key: core.Key, population: Population) -> Resampled:
        here, index = population.num_particles, lax.axis_index(self.axis_name)
        logs = population.log_weights
        total, mine = total_mass(logs, self.axis_name), total_mass(logs)
        known = jnp.isfinite(total)
        least = jnp.asarray(self.threshold).astype(logs.dtype) * here
        low = effective_size(logs) < least
        own = jnp.arange(here, dtype=jnp.int32)
        drawn = jnp.where(low, self.scheme(core.fold(key, index), logs, here), own)
        equal = jnp.where(low, mine - math.log(here), logs)
        weights = jnp.where(known, equal - jnp.where(known, total, 0), -math.log(here * lax.axis_size(self.axis_name)))
        particles = jax.tree.map(lambda leaf: leaf[drawn], population.particles)
        changed = dataclasses.replace(
            population, particles=particles, log_weights=weights, log_scale=population.log_scale + total
        )
        return Resampled(changed, drawn + index * here)
