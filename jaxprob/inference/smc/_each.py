"""Functions of every particle: one by one with a key for each, all at once with one key, or some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprob import core, scan


class Batched(NamedTuple):
    """A function that takes all particles at once, each argument of one particle with a leading axis, and one key.

    For what is quicker together: a million normal numbers from one key cost a quarter of one from each of a million.
    """

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        return self.function(*args)


@core.pytree
class InChunks:
    """A function, `Batched` or not, that is called with some of the particles at a time; of `smc.chunked`."""

    function: Any
    size: int = core.static()

    def __call__(self, *args: Any) -> Any:
        """Calls the function, with as many particles as there are."""
        return self.function(*args)


@core.pytree
class OverDevices:
    """A function, whatever of these, of particles that lie in equal parts over the devices of a mesh."""

    function: Any
    mesh: Mesh = core.static()

    def __call__(self, *args: Any) -> Any:
        """Calls the function, with as many particles as there are."""
        return self.function(*args)


def each(
    function: Any,
    key: core.Key | None,
    number: int,
    mapped: tuple[Any, ...],
    shared: tuple[Any, ...],
    start: Any = None,
) -> Any:
    """A function of every particle.

    Args:
      function: of one particle; `Batched`, of all; `InChunks`; or `OverDevices`.
      key: what it draws by; None for a function that does not.
      number: of particles.
      mapped: arguments with a leading axis (number, ...).
      shared: arguments that are the same for all.
      start: index of the first of these particles among all, by which each has its key; None where these are all.
    """
    if isinstance(function, OverDevices):
        return _over_devices(function, key, number, mapped, shared)
    if isinstance(function, InChunks) and function.size < number:
        return _in_chunks(function.function, function.size, key, number, mapped, shared, start)
    while isinstance(function, InChunks):
        function = function.function
    if isinstance(function, Batched):
        own = key if key is None or start is None else core.fold(key, start)
        return function(*(() if own is None else (own,)), *mapped, *shared)
    if key is None:
        return jax.vmap(lambda *args: function(*args, *shared))(*mapped)
    keys = core.chain_keys(key, jnp.arange(number) + (0 if start is None else start))
    return jax.vmap(lambda key, *args: function(key, *args, *shared))(keys, *mapped)


def _in_chunks(
    function: Any,
    size: int,
    key: core.Key | None,
    number: int,
    mapped: tuple[Any, ...],
    shared: tuple[Any, ...],
    start: Any,
) -> Any:
    count, rest = divmod(number, size)

    def some(index: Any, count: int, mapped: tuple[Any, ...]) -> Any:
        return each(function, key, count, mapped, shared, index * size + (0 if start is None else start))

    whole = jax.tree.map(lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), mapped)
    _, found = scan.scan(lambda _, now: (None, some(now[0], size, now[1])), None, (jnp.arange(count), whole))
    found = jax.tree.map(lambda leaf: leaf.reshape(count * size, *leaf.shape[2:]), found)
    if not rest:
        return found
    last = some(count, rest, jax.tree.map(lambda leaf: leaf[count * size :], mapped))
    return jax.tree.map(lambda one, other: jnp.concatenate([one, other]), found, last)


def _over_devices(
    function: OverDevices, key: core.Key | None, number: int, mapped: tuple[Any, ...], shared: tuple[Any, ...]
) -> Any:
    mesh, inner = function.mesh, function.function
    here, parts = number // mesh.size, PartitionSpec(mesh.axis_names)

    def own(key: core.Key | None, mapped: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
        return each(inner, key, here, mapped, shared, lax.axis_index(mesh.axis_names) * here)

    # Chunks of all particles would be of one device each, and the others would wait.
    if isinstance(inner, InChunks) and inner.size < here:
        everywhere = PartitionSpec()
        specs = everywhere, parts, everywhere
        run = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=parts, check_vma=False)
        return run(key, mapped, shared)
    found = each(inner, key, number, mapped, shared)
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, NamedSharding(mesh, parts)), found)
