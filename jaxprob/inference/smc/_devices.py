"""Particles over devices, from outside `jax.shard_map`: they are laid in equal parts, and XLA sends what must be sent.

Every function of one particle is computed where the particle lies. Weights are few numbers, and all devices have all of
them while particles are resampled, whatever the resampler: the run is that of one device, to rounding.

Source: Xu et al. (2021), "GSPMD: general and scalable parallelization for ML computation graphs".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprob import core
from jaxprob.inference.smc._each import OverDevices
from jaxprob.inference.smc._feynman_kac import FeynmanKac
from jaxprob.inference.smc._population import Population
from jaxprob.inference.smc._resampler import Resampled, Resampler, adaptive


def as_mesh(function: str, devices: Any, particles: int) -> Mesh | None:
    """The mesh that an argument `devices` stands for.

    Args:
      function: that was called, for errors.
      devices: None for no spreading; a number of devices; a list of them; or a mesh, all of whose devices are used.
      particles: how many there are, which the devices must divide.

    Raises:
      ValueError: if there are fewer devices, or they do not divide the particles.
      TypeError: for anything else.
    """
    if devices is None:
        return None
    if isinstance(devices, Mesh):
        mesh = devices
    elif isinstance(devices, int) and not isinstance(devices, bool):
        found = jax.devices()
        if not 1 <= devices <= len(found):
            todo = "On a CPU set XLA_FLAGS=--xla_force_host_platform_device_count=N before JAX starts"
            raise core.bad_value(
                function, "devices", devices, f"a number from 1 to {len(found)}, that of devices", todo
            )
        mesh = Mesh(np.asarray(found[:devices]), ("particles",))
    elif isinstance(devices, (list, tuple)) and devices and all(isinstance(one, jax.Device) for one in devices):
        mesh = Mesh(np.asarray(devices), ("particles",))
    else:
        expected = "None, a number of devices, a list of devices or a mesh"
        raise core.bad_type(function, "devices", core.describe(devices), expected)
    if particles % mesh.size:
        raise core.bad_value(function, "particles", particles, f"a multiple of the {mesh.size} devices")
    return mesh


def over_devices(
    model: FeynmanKac, resampler: Resampler | None, mesh: Mesh | None
) -> tuple[FeynmanKac, Resampler | None]:
    """A Feynman-Kac model whose particles lie over the devices of a mesh, and the resampler that goes with it.

    Args:
      model: a `FeynmanKac`; where functions are called with some particles at a time, those are of one device.
      resampler: any but `smc.sharded`; None for `smc.adaptive()`.
      mesh: from `as_mesh`; None to change nothing.
    """
    if mesh is None:
        return model, resampler
    names = ("initial", "log_initial_potential", "transition", "log_potential", "log_look_ahead")
    parts = {name: getattr(model, name) for name in names}
    spread = {name: part if part is None else OverDevices(part, mesh) for name, part in parts.items()}
    return model._replace(**spread), _Gathered(adaptive() if resampler is None else resampler, mesh)


@core.pytree
class _Gathered:
    """A resampler to which every device gives all weights; of `over_devices`."""

    resampler: Any
    mesh: Mesh = core.static()

    def __call__(self, key: core.Key, population: Population) -> Resampled:
        # Ancestors are found by recurrences over particles, which would wait for another device at every one.
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        known = dataclasses.replace(
            population, log_weights=lax.with_sharding_constraint(population.log_weights, everywhere)
        )
        new, ancestors = self.resampler(key, known)
        return Resampled(new, None if ancestors is None else lax.with_sharding_constraint(ancestors, everywhere))
