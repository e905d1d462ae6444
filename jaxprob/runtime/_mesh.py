"""Devices as a mesh: chains on one axis, data on the other.

Chains are independent, so they go through `shard_map` (under `jit(vmap)` XLA would put an all-reduce into every while
loop). The data axis is left to XLA's partitioner: a posterior's data leaves are placed in slices, and the sums of the
likelihood become reductions over that axis by themselves.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprob import core

CHAINS = "chains"
DATA = "data"
MODEL = "model"
TIME = "time"  # the axis that sequence cores look for (`models.sequence`)


def mesh(
    chains: int | None = None,
    data: int = 1,
    devices: Any = None,
    *,
    model: int | None = None,
    time: int | None = None,
) -> Mesh:
    """A mesh of devices: `chains x data` for sampling, `data x model` or `data x model x time` for training.

    Args:
      chains: devices along the chain axis; by default all that `data` leaves.
      data: devices along the data axis; the likelihood's data, or a batch, are cut in that many slices.
      devices: the devices to use, in order; by default all devices of all processes.
      model: devices along the axis over which parameters can be cut (`fit`'s `sharding`); given, the mesh is for
        training and has no chains.
      time: devices along the axis over which sequences are cut in pieces, for cores that are linear recurrences; given,
        the mesh is for training.

    Returns:
      `jax.sharding.Mesh` with axes `("chains", "data")`, or `("data", "model")` and "time" where it is given.

    Raises:
      ValueError: if there are fewer devices than asked for.
    """
    found = list(jax.devices() if devices is None else devices)
    for name, number in ((CHAINS, chains), (DATA, data), (MODEL, model), (TIME, time)):
        if number is not None and number < 1:
            raise core.bad_value("mesh", name, number, "a number of devices of at least 1")
    names: tuple[str, ...] = (CHAINS, DATA)
    sizes: tuple[int, ...] = (max(len(found) // data, 1) if chains is None else chains, data)
    for name, number in ((MODEL, model), (TIME, time)):
        if number is not None and chains is not None:
            raise core.bad_value("mesh", name, number, "None beside chains", "Training has no chains: leave one out")
    if model is not None or time is not None:
        names, sizes = (DATA, MODEL), (data, model or 1)
    if time is not None:
        names, sizes = (*names, TIME), (*sizes, time)
    needed = math.prod(sizes)
    if needed > len(found):
        raise core.bad_value(
            "mesh",
            " x ".join(names),
            " x ".join(map(str, sizes)),
            f"at most {len(found)} devices",
            "Ask for fewer, or on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count=N before JAX starts",
        )
    return Mesh(np.asarray(found[:needed]).reshape(sizes), names)


def resolve_mesh(devices: Any, chains: int, function: str = "sample") -> Mesh:
    """The mesh for a run of `chains` chains.

    Args:
      devices: None for as many devices as divide the chains; a number of devices; a list of devices; or a mesh.
      chains: total number of chains.
      function: name of the caller, for error messages.
    """
    if isinstance(devices, Mesh):
        if set(devices.axis_names) != {CHAINS, DATA}:
            raise core.bad_value(
                function,
                "devices",
                f"a mesh with axes {devices.axis_names}",
                f"axes ({CHAINS!r}, {DATA!r})",
                "Make it with runtime.mesh(chains=..., data=...)",
            )
        if chains % devices.shape[CHAINS]:
            raise core.bad_value(
                function, "chains", chains, f"a multiple of the mesh's {devices.shape[CHAINS]} devices along 'chains'"
            )
        return devices
    if devices is None:
        available = jax.devices()
        if jax.process_count() > 1 and chains % len(available):
            raise core.bad_value(
                function,
                "chains",
                chains,
                f"a multiple of the {len(available)} devices of {jax.process_count()} processes",
            )
        number = max(n for n in range(1, len(available) + 1) if chains % n == 0)
        return mesh(chains=number, devices=available)
    if isinstance(devices, int) and not isinstance(devices, bool):
        if devices < 1 or chains % devices:
            raise core.bad_value(function, "devices", devices, f"a number that divides the {chains} chains")
        return mesh(chains=devices)
    if isinstance(devices, (list, tuple)) and devices:
        return resolve_mesh(mesh(chains=len(devices), devices=devices), chains, function)
    raise core.bad_type(
        function, "devices", core.describe(devices), "None, a number of devices, a list of devices or runtime.mesh(...)"
    )


def place(tree: Any, mesh: Mesh, spec: Any) -> Any:
    """Puts host arrays (the same in every process) on a mesh. `spec`: a PartitionSpec, or a pytree of them."""
    specs = jax.tree.map(lambda _: spec, tree) if isinstance(spec, PartitionSpec) else spec

    def put(leaf: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        if core.is_key(leaf):
            data = put(jax.random.key_data(leaf), spec)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, specs)


def data_specs(target: Any, mesh: Mesh, function: str = "sample") -> Any:
    """How the leaves of a target lie on the mesh: data in slices along the data axis, the rest on every device.

    A leaf is cut when its leading axis has the length of the leading axis of an observed array, and that length is a
    multiple of the devices along the data axis.

    Raises:
      ValueError: if the mesh has a data axis and nothing can be cut along it.
    """
    slices = mesh.shape[DATA]
    replicated = jax.tree.map(lambda _: PartitionSpec(), target)
    if slices == 1:
        return replicated
    observed = getattr(target, "observed", None)
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(observed) if np.ndim(leaf)}
    divisible = {length for length in lengths if length and length % slices == 0}
    if not divisible:
        got = f"{slices} devices along 'data' with observed arrays of leading length {sorted(lengths) or 'none'}"
        raise core.bad_value(
            function,
            "devices",
            got,
            "a posterior whose observations divide into that many slices",
            "Choose another number, pad the data, or use runtime.mesh(data=1)",
        )

    def spec(leaf: Any) -> PartitionSpec:
        return PartitionSpec(DATA) if np.ndim(leaf) and np.shape(leaf)[0] in divisible else PartitionSpec()

    return jax.tree.map(spec, target)


@core.pytree
class WholePositions:
    """A target whose positions lie whole on every device of the data axis, as do its gradients.

    Left alone, XLA cuts whatever has the length of the data, a group of parameters say, and with it the whole state of
    a sampler. The exchanges that this takes stand in loops which chains leave at different times, where devices that
    are waited for may never come.
    """

    target: Any

    def log_density(self, position: Any) -> Any:
        """The target's, of a position that every device has."""
        return _whole(self.target.log_density(_whole(position)))

    def __getattr__(self, name: str) -> Any:
        if name == "target":  # of an instance that is being made
            raise AttributeError(name)
        found = getattr(self.target, name)
        # Which only targets of samplers that temper have.
        return (lambda position: _whole(found(_whole(position)))) if name == "split_log_density" else found


def _whole(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def whole_positions(target: Any, mesh: Mesh) -> Any:
    """The target, for the inside of a `shard_map` over the chains of a mesh."""
    return WholePositions(target) if mesh.shape[DATA] > 1 else target


def fetch(tree: Any) -> Any:
    """Copies a pytree of device arrays to NumPy in this process, gathering what lies on other processes."""
    far = [leaf.sharding for leaf in jax.tree.leaves(tree) if _is_far(leaf)]
    if far:
        tree = _replicate(NamedSharding(far[0].mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0) if _is_far(leaf, True) else leaf), tree)


def _is_far(leaf: Any, replicated: bool = False) -> bool:
    """Whether other processes hold a part of an array (or a copy of it, with `replicated`)."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return False
    return replicated or not leaf.sharding.is_fully_replicated


@functools.lru_cache(maxsize=8)
def _replicate(sharding: NamedSharding) -> Any:
    # One program for a whole pytree: gathering leaf by leaf would be a collective, and a compilation, for each.
    return jax.jit(lambda tree: tree, out_shardings=sharding)
