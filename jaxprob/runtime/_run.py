"""Running any algorithm: a host loop over one jitted chunk, for states that you already have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.analysis import online
from jaxprob.runtime import _program
from jaxprob.runtime._job import Job, chain_indices
from jaxprob.runtime._mesh import place, resolve_mesh
from jaxprob.runtime._store import DrawStore, MemoryStore
from jaxprob.runtime._target import AsGiven
from jaxprob.runtime._until import Until


class Run(NamedTuple):
    """What `run` returns.

    Attributes:
      state: the last state, with a chain axis if the first had one.
      draws: pytree of NumPy arrays (chain, draw, ...): what `keep` kept; None when a `store` was given.
      stats: dict of (chain, draw): the scalars of the algorithm's info; None when a `store` was given.
      step: number of steps done, those before `first_step` included.
      ended: "finished", "until: ..." or "signal: ...".
    """

    state: Any
    draws: Any
    stats: Any
    step: int
    ended: str


def run(
    algorithm: Any,
    key: core.Key,
    state: Any,
    num_steps: int,
    *,
    chains: int | None = None,
    keep: Callable[[Any], Any] | None = None,
    thin: int = 1,
    first_step: int = 0,
    devices: Any = None,
    store: DrawStore | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: float = 30.0,
    until: Until | None = None,
    progress: Any = None,
    capacity: int = 256,
    executor: str = "shard_map",
) -> Run:
    """Runs an algorithm for `num_steps` steps, chunk by chunk.

    Args:
      algorithm: anything with `init` and `step(key, state) -> (state, info)`, ours or BlackJAX's.
      key: random key; step `t` of chain `c` has a key folded from `c` and `t`, so a run can be cut anywhere.
      state: a state of the algorithm, or with `chains` a state whose leaves have a leading chain axis (for
        `core.Shared`, those of its `chain` half).
      num_steps: steps to take; a multiple of `thin`.
      chains: length of the chain axis, or None if the state has none.
      keep: `position -> pytree` to keep of each draw; None for the position, `lambda position: {}` for nothing.
      thin: steps for one draw kept.
      first_step: number of the first step, when the state comes from an earlier run with the same key.
      devices: as for `sample`.
      store: where draws go; None for memory, returned as `draws` and `stats`.
      checkpoints: a folder for checkpoints, written every `checkpoint_every` seconds and at the end.
      until: a rule to stop earlier.
      progress: a progress object, or None.
      capacity: the most draws of one chunk.
      executor: "shard_map" or "pmap".

    >>> from jaxprob.inference import mcmc
    >>> kernel = mcmc.hmc(lambda x: -0.5 * x @ x, step_size=0.5, num_integration_steps=4)
    >>> state = kernel.init(jax.numpy.zeros(2), jax.random.key(0))
    >>> run(kernel, jax.random.key(1), state, 10).draws.shape
    (1, 10, 2)
    """
    key = core.as_key(key, "run")
    if num_steps < 0 or num_steps % thin:
        raise core.bad_value("run", "num_steps", num_steps, f"a multiple of thin={thin}, at least 0")
    alone = chains is None
    if chains is None:
        chains = 1
        state = _lift(state)
    mesh = resolve_mesh(devices, chains, "run")
    keeping = core.Bound(_kept, keep)
    program = _program.Program(
        AsGiven(algorithm), keeping, None, mesh, min(capacity, max(num_steps // thin, 1)), thin > 1, executor
    )
    state = _program._strong(state)
    position = core.position_of(state)
    draw = jax.eval_shape(jax.vmap(lambda x: keeping(None, x)), position)
    vectors = jax.vmap(lambda x: _program.draw_vector(keeping(None, x)))(position)
    carry = _program.Carry(state, online.init(vectors))
    specs = _program.carry_specs(carry)
    carry = jax.tree.map(lambda spec, part: place(part, mesh, spec), specs, carry, is_leaf=lambda x: isinstance(x, P))
    memory = MemoryStore(0 if until is not None else num_steps // thin)
    job = Job(
        program,
        None,
        key,
        carry,
        chain_indices(mesh, chains),
        first_step,
        num_steps // thin,
        thin,
        memory if store is None else store,
        step=first_step,
        until=until,
        progress=progress,
        checkpoints=None if checkpoints is None else Path(checkpoints),
        checkpoint_every=checkpoint_every,
    )
    ended = job.go()
    draws, stats = None, None
    if store is None:
        structure = jax.tree.structure(draw)
        names = [name for name, _ in core.named_leaves(draw)]
        empty = {n: np.zeros((chains, 0, *x.shape[1:]), x.dtype) for n, x in core.named_leaves(draw)}
        found = {path.split("/", 1)[1]: path for path in memory.paths() if path.startswith("posterior/")}
        draws = jax.tree.unflatten(structure, [memory.read(found[n]) if n in found else empty[n] for n in names])
        stats = {path.split("/", 1)[1]: memory.read(path) for path in memory.paths() if path.startswith("sample_")}
    state = job.carry.state
    return Run(_drop(state) if alone else state, draws, stats, job.step, ended)


def _lift(state: Any) -> Any:
    if isinstance(state, core.Shared):
        return core.Shared(_lift(state.chain), state.shared)
    return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], state)


def _drop(state: Any) -> Any:
    if isinstance(state, core.Shared):
        return core.Shared(_drop(state.chain), state.shared)
    return jax.tree.map(lambda x: x[0], state)


def _kept(keep: Callable[[Any], Any] | None, target: Any, position: Any) -> Any:
    """What is kept of a position; bound to `keep` it is a value, so that two runs that keep the same compile once."""
    return position if keep is None else keep(position)
