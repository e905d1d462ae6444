"""Sequences whose time axis lies over devices: each has a piece, and the state goes from one piece to the next.

Where a mesh with an axis "time" is in force (`jax.set_mesh`, or `jaxprob.fit` on such a mesh), a core whose state is a
linear recurrence runs its pieces side by side. What a piece does to a state, and not its states, goes over the network.
Source: Blelloch (1990), "Prefix sums and their applications"; Sun et al. (2024), "Linear attention sequence
parallelism", for the state that is passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxprob import core, scan

TIME = "time"


def devices_along_time() -> int:
    """Into how many pieces the mesh in force cuts time; 1 without one, and for what already is a piece."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or TIME in mesh.manual_axes else mesh.shape.get(TIME, 1)


def cuts(time: int) -> bool:
    """Whether a sequence is run in pieces; one that does not divide is not, which `check_time` allows in `init`."""
    count = devices_along_time()
    return count > 1 and time % count == 0


def check_time(module: Any, function: str, time: int) -> None:
    """Checks that a core can run in pieces where the mesh in force asks for it."""
    count = devices_along_time()
    if count == 1 or module.is_initializing():
        return
    if not module.runs_in_pieces:
        got = f"cut in {count} pieces by the mesh's axis {TIME!r}"
        raise core.bad_value(function, "xs", got, "a whole sequence", "Only linear recurrences run over devices")
    if time % count:
        raise core.bad_value(
            function, "xs", f"of {time} times", f"a multiple of the mesh's {count} devices along {TIME!r}"
        )


def in_pieces(run: Callable[[Any, Any], tuple[Any, Any]], whole: Any, xs: Any) -> tuple[Any, Any]:
    """Runs `ys, final = run(whole, xs)` on each device.

    Args:
      run: of one piece, inside `shard_map` over the axis "time"; `final` is the same on all devices.
      whole: pytree of arrays that every device gets.
      xs: pytree of (time, ...), of which each device gets its piece.
    """
    # The other axes of the mesh are left to XLA's partitioner, so that a batch stays cut as it is.
    pieces = jax.shard_map(run, in_specs=(P(), P(TIME)), out_specs=(P(TIME), P()), axis_names={TIME})
    return pieces(whole, xs)


def is_first() -> jax.Array:
    """Whether this is the first piece."""
    return lax.axis_index(TIME) == 0


def on_device(tree: Any) -> Any:
    """Arrays that are the same on every device, typed as those of one."""
    return jax.tree.map(lambda x: lax.pcast(x, TIME, to="varying"), tree)


def of_last(tree: Any) -> Any:
    """What the last device has, for all."""
    here = lax.axis_index(TIME) == lax.axis_size(TIME) - 1
    return jax.tree.map(lambda x: lax.psum(jnp.where(here, x, jnp.zeros_like(x)), TIME), tree)


def before_piece(rows: Any, first: Any) -> Any:
    """The last `rows` of the piece before this one; `first` for the first piece."""
    pairs = [(i, i + 1) for i in range(lax.axis_size(TIME) - 1)]
    moved = jax.tree.map(lambda x: lax.ppermute(x, TIME, pairs), rows)
    return jax.tree.map(lambda start, x: jnp.where(is_first(), start, x), first, moved)


def state_before(apply: Callable[[Any, Any], Any], kept: Any, added: Any, state: Any) -> Any:
    """The state before this piece, where a piece makes `apply(kept, state) + added` of a state.

    Args:
      apply: what a state becomes without inputs.
      kept: arrays of this device that say it.
      added: what the inputs of this piece add to a state.
      state: before the first piece.
    """
    pieces = jax.tree.map(lambda x: lax.all_gather(x, TIME), (kept, added))

    def step(state: Any, piece: Any) -> tuple[Any, Any]:
        return jax.tree.map(jnp.add, apply(piece[0], state), piece[1]), state

    _, starts = scan.scan(step, on_device(state), pieces)
    return jax.tree.map(lambda x: x[lax.axis_index(TIME)], starts)
