"""What is compiled in a run: one program that takes a chunk of steps for all chains, on all devices.

Each device runs its own chains (`vmap`) and never waits for another's while loops: the chain axis goes through
`shard_map`, or `pmap`. The program takes the number of steps as an argument, so that a run of any length, its warm-up
included, compiles it once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprob import core, scan
from jaxprob.analysis import online
from jaxprob.runtime._mesh import CHAINS, whole_positions
from jaxprob.runtime._population import Populations

LOCAL = "local_chains"
EXECUTORS = ("shard_map", "pmap")

# The names under which stats are kept, for algorithms that call them something else (BlackJAX).
_NAMES = {
    "is_divergent": "diverging",
    "num_integration_steps": "num_steps",
    "num_trajectory_expansions": "tree_depth",
    "logdensity": "log_density",
}


class Carry(NamedTuple):
    """What a run carries from chunk to chunk, and all that a checkpoint holds.

    Attributes:
      state: the algorithm's state; leaves (chain, ...), but for the `shared` half of a `core.Shared`.
      moments: online statistics of the draws kept; leaves (chain, ...).
    """

    state: Any
    moments: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a run. Two runs with equal programs and shapes share one compiled program.

    Attributes:
      build: `(target, axis_name) -> Algorithm`; called while tracing, with the target's leaves traced.
      keep: `(target, position) -> dict of arrays` to be kept for one draw.
      initial: `(target, key) -> position`, or None if positions are given.
      mesh: devices.
      capacity: the most rows of one chunk.
      thinning: whether rows may be several steps apart.
      executor: "shard_map" or "pmap".
      interleave: whether chains of a device go on at their own pace while draws are recorded (`mcmc.interleave`).
    """

    build: Callable[[Any, Any], core.Algorithm]
    keep: Callable[[Any, Any], dict[str, Any]]
    initial: Callable[[Any, core.Key], Any] | None
    mesh: Mesh
    capacity: int
    thinning: bool = False
    executor: str = "shard_map"
    interleave: bool = False


STARTS = 2**31  # what a chain's key is folded with for its start, beyond any step


def start_key(chain_key: core.Key, attempt: Any) -> core.Key:
    """The key from which a chain's start is drawn."""
    return core.fold(chain_key, jnp.uint32(STARTS), attempt)


def step_key(chain_key: core.Key, step: Any) -> core.Key:
    """The key of one step of one chain: it depends on the global chain index and the step, and on nothing else."""
    return core.fold(chain_key, step)


def _state_axes(state: Any) -> Any:
    return core.Shared(0, None) if isinstance(state, core.Shared) else 0


def carry_specs(carry: Carry) -> Carry:
    """Partition specs of a carry, a prefix of its structure.

    Counters of the online statistics are the same everywhere; their arrays have the chains first.
    """
    moments = jax.tree.map(lambda x: P(CHAINS) if x.ndim else P(), carry.moments)
    return Carry(core.Shared(P(CHAINS), P()) if isinstance(carry.state, core.Shared) else P(CHAINS), moments)


def _scalars(info: Any) -> dict[str, jax.Array]:
    """The scalar leaves of an info, by the last part of their name, or by all of it where that part is not enough.

    Nothing position-sized is kept.
    """
    found = [(name, jnp.asarray(leaf)) for name, leaf in core.named_leaves(info) if jnp.ndim(leaf) == 0]
    last = [name.rsplit(".", 1)[-1] for name, _ in found]
    named = {}
    for (name, leaf), short in zip(found, last, strict=True):
        short = short if last.count(short) == 1 else name
        named[_NAMES.get(short, short)] = leaf
    return named


def _combine(old: dict[str, jax.Array], new: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Stats of a row of several steps: did any diverge, how much work in all, and otherwise the last step's."""

    def one(name: str) -> jax.Array:
        if new[name].dtype == jnp.bool_:
            return old[name] | new[name]
        return old[name] + new[name] if name == "num_steps" else new[name]

    return {name: one(name) for name in new}


def _strong(tree: Any) -> Any:
    """The same arrays without weak types, so that a state made by `init` and one made by `step` look the same."""
    return jax.tree.map(lambda x: x if core.is_key(x) else jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def draw_vector(draw: Any) -> jax.Array:
    """The floating quantities of one draw as one vector, in the order of their names."""
    floats = {
        name: leaf for name, leaf in core.named_leaves(draw) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    return core.ravel(floats)[0]


def _init_local(
    program: Program, target: Any, key: core.Key, indices: jax.Array, attempts: jax.Array, positions: Any
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    target = whole_positions(target, program.mesh)
    algorithm = program.build(target, (CHAINS, LOCAL))

    def one(index: jax.Array, attempt: jax.Array, position: Any) -> Any:
        key_start = start_key(core.fold(key, index), attempt)
        if position is None:
            assert program.initial is not None
            position = program.initial(target, core.fold(key_start, 0))
        state = _strong(algorithm.init(position, core.fold(key_start, 1)))
        draw = program.keep(target, core.position_of(state))
        if isinstance(algorithm, Populations):  # some particles may well be impossible
            return state, draw_vector(draw), jnp.bool_(True), jnp.zeros(())
        finite = functools.reduce(
            jnp.logical_and,
            [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(_chain(state)) if _is_float(x)],
            jnp.bool_(True),
        )
        return state, draw_vector(draw), finite, getattr(_chain(state), "log_density", jnp.zeros(()))

    # Jitted, so that finding the shape of a state and mapping over chains trace `one` once between them.
    one = jax.jit(one)
    shape = jax.eval_shape(one, indices[0], attempts[0], jax.tree.map(lambda x: x[0], positions))[0]
    return jax.vmap(one, in_axes=(0, 0, 0), out_axes=(_state_axes(shape), 0, 0, 0), axis_name=LOCAL)(
        indices, attempts, positions
    )


def _chain(state: Any) -> Any:
    """The kernel's own state inside a state: the innermost one with a log density, where there is one."""
    if isinstance(state, core.Shared):
        return _chain(state.chain)
    for field in getattr(state, "_fields", ()):
        inner = getattr(state, field)
        if field != "position" and hasattr(inner, "_fields") and hasattr(inner, "position"):
            return _chain(inner)
    return state


def _is_float(x: Any) -> bool:
    return not core.is_key(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _chunk_local(
    program: Program,
    target: Any,
    key: core.Key,
    indices: jax.Array,
    carry: Carry,
    first: Any,
    count: Any,
    thin: Any,
    record: Any,
) -> tuple[Carry, dict[str, Any]]:
    target = whole_positions(target, program.mesh)
    algorithm = program.build(target, (CHAINS, LOCAL))
    chain_keys = jax.vmap(lambda index: core.fold(key, index))(indices)
    if program.interleave:
        return _interleaved(program, algorithm, target, chain_keys, carry, first, count, thin)

    def one(chain_key: core.Key, state: Any, step: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, info = algorithm.step(step_key(chain_key, step), state)
        return _strong(state), _scalars(info)

    axes = _state_axes(carry.state)
    every = jax.jit(jax.vmap(one, in_axes=(0, axes, None), out_axes=(axes, 0), axis_name=LOCAL))
    if isinstance(algorithm, Populations):
        every = functools.partial(_populations, algorithm, every, record)

    def row(carry: Carry, index: jax.Array) -> tuple[Carry, dict[str, Any]]:
        step = first + index * thin
        if program.thinning:
            empty = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(every, chain_keys, carry.state, step)[1]
            )

            def again(pair: Any, offset: jax.Array) -> Any:
                state, stats = every(chain_keys, pair[0], step + offset)
                return state, _combine(pair[1], stats)

            state, stats = scan.repeat(again, (carry.state, empty), thin)
        else:
            state, stats = every(chain_keys, carry.state, step)

        def kept(position: Any) -> tuple[dict[str, Any], jax.Array]:
            draw = program.keep(target, position)
            return draw, draw_vector(draw)

        draws, vectors = jax.vmap(kept, axis_size=indices.shape[0])(core.position_of(state))
        moments = jax.lax.cond(
            record, lambda moments: online.add(moments, vectors), lambda moments: moments, carry.moments
        )
        return Carry(state, moments), _row(draws, stats)

    return scan.bounded(row, carry, count, program.capacity)


def _populations(
    algorithm: Populations, every: Callable[..., Any], record: Any, chain_keys: jax.Array, state: Any, step: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """A draw from each population; before draws are recorded a step of each, or nothing once all are done."""

    def idle() -> Any:
        return state, jax.vmap(_scalars)(state.info)

    def emit() -> Any:
        new, info = jax.vmap(algorithm.emit)(state)
        return new, jax.vmap(_scalars)(info)

    moving = functools.partial(every, chain_keys, state, step)
    return jax.lax.cond(record, emit, lambda: jax.lax.cond(jnp.all(state.sampler.done), idle, moving))


def _row(draws: Any, stats: dict[str, Any]) -> dict[str, Any]:
    row = {f"posterior/{name}": leaf for name, leaf in core.named_leaves(draws)}
    return row | {f"sample_stats/{name}": leaf for name, leaf in stats.items()}


def _interleaved(
    program: Program,
    algorithm: Any,
    target: Any,
    chain_keys: jax.Array,
    carry: Carry,
    first: Any,
    count: Any,
    thin: Any,
) -> tuple[Carry, dict[str, Any]]:
    """A chunk of recorded rows in which no chain waits for another; the statistics are those of rows in order."""
    from jaxprob.inference import mcmc

    shared = isinstance(carry.state, core.Shared)
    kernel = algorithm.finish(carry.state) if shared else algorithm
    states = carry.state.chain.kernel if shared else carry.state

    def keep(state: Any, info: Any) -> Any:
        draw = program.keep(target, core.position_of(state))
        return draw, draw_vector(draw), _scalars(info)

    def combine(old: Any, new: Any) -> Any:
        return *new[:2], _combine(old[2], new[2])

    states, (draws, vectors, stats) = mcmc.interleave(
        kernel,
        lambda chain, step: step_key(chain_keys[chain], first + step),
        _strong(states),
        count,
        program.capacity,
        keep=keep,
        combine=combine,
        thin=thin,
    )
    moments = scan.repeat(lambda moments, row: online.add(moments, vectors[row]), carry.moments, count)
    state = carry.state._replace(chain=carry.state.chain._replace(kernel=states)) if shared else states
    return Carry(state, moments), _row(draws, stats)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
    """Options for programs of many small loops, of which a sampler's step consists.

    On CPU, XLA's newer emitters of fused loops take half as long again to compile such programs, and the code is no
    faster (`benchmarks/mcmc.py`). A version of XLA that does not know the option does without.
    """
    if platform != "cpu":
        return {}
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
    except Exception:  # whatever a later XLA raises for an option it does not have
        return {}
    return options


@functools.cache
def compiled(function: Callable[..., Any], platform: str) -> Any:
    """One of the programs below, for a platform; a carry that goes in is used up."""
    donated = ("carry",) if "carry" in inspect.signature(function).parameters else ()
    return jax.jit(
        function, static_argnames="program", donate_argnames=donated, compiler_options=compiler_options(platform)
    )


def _init_sharded(program: Program, target: Any, key: Any, indices: Any, attempts: Any, positions: Any) -> Any:
    # Whether a state is a `Shared` shows when it is built, and the specs of what comes out depend on it.
    shared = getattr(program.build, "shared", None)
    if shared is None:
        shared = isinstance(_state_shape(program, target, key, positions), core.Shared)
    state_spec: Any = core.Shared(P(CHAINS), P()) if shared else P(CHAINS)
    state, vectors, finite, log_density = jax.shard_map(
        functools.partial(_init_local, program),
        mesh=program.mesh,
        in_specs=(P(), P(), P(CHAINS), P(CHAINS), P(CHAINS)),
        out_specs=(state_spec, P(CHAINS), P(CHAINS), P(CHAINS)),
        axis_names={CHAINS},
        check_vma=False,
    )(target, key, indices, attempts, positions)
    carry = Carry(state, online.init(vectors))
    return constrain(carry, program.mesh), finite, log_density


def constrain(carry: Carry, mesh: Mesh) -> Carry:
    """Asks, inside a jit, that a carry lie on the mesh as the chunk expects it."""
    return jax.tree.map(
        lambda spec, part: jax.lax.with_sharding_constraint(part, NamedSharding(mesh, spec)),
        carry_specs(carry),
        carry,
        is_leaf=lambda x: isinstance(x, P),
    )


def _state_shape(program: Program, target: Any, key: Any, positions: Any) -> Any:
    def one(target: Any, key: Any, positions: Any) -> Any:
        position = jax.tree.map(lambda x: x[0], positions)
        if positions is None:
            assert program.initial is not None
            position = program.initial(target, core.fold(key, 0))
        return program.build(target, None).init(position, core.fold(key, 1))

    return jax.eval_shape(one, target, key, positions)


def _chunk_sharded(
    program: Program, target: Any, key: Any, indices: Any, carry: Carry, first: Any, count: Any, thin: Any, record: Any
) -> Any:
    specs = carry_specs(carry)
    return jax.shard_map(
        functools.partial(_chunk_local, program),
        mesh=program.mesh,
        in_specs=(P(), P(), P(CHAINS), specs, P(), P(), P(), P()),
        out_specs=(specs, P(None, CHAINS)),
        axis_names={CHAINS},
        check_vma=False,
    )(target, key, indices, carry, first, count, thin, record)


@functools.lru_cache(maxsize=8)
def _chunk_pmapped(program: Program, structure: Any, axes: tuple[int | None, ...]) -> Any:
    carry_axes = jax.tree.unflatten(structure, axes)
    return jax.pmap(
        functools.partial(_chunk_local, program),
        axis_name=CHAINS,
        in_axes=(None, None, 0, carry_axes, None, None, None, None),
        out_axes=(carry_axes, 0),
        devices=list(program.mesh.devices.flat),
    )


def init(
    program: Program, target: Any, key: core.Key, indices: Any, attempts: Any, positions: Any
) -> tuple[Carry, jax.Array, jax.Array]:
    """Starts all chains.

    Args:
      indices: (chain,) global indices; attempts: (chain,) how often each start has been drawn before.
      positions: pytree (chain, ...), or None to draw them with `program.initial`.

    Returns:
      the carry, (chain,) whether each chain's state is finite, and (chain,) its log density.
    """
    run = compiled(_init_sharded, program.mesh.devices.flat[0].platform)
    return run(program, target, key, indices, attempts, positions)


def carry_shape(program: Program, target: Any, key: core.Key, indices: Any, positions: Any) -> Carry:
    """What `init` makes, as shapes; nothing is compiled."""
    return jax.eval_shape(functools.partial(_init_sharded, program), target, key, indices, indices, positions)[0]


def chunk(
    program: Program,
    target: Any,
    key: core.Key,
    indices: Any,
    carry: Carry,
    first: int,
    count: int,
    thin: int,
    record: bool,
) -> tuple[Carry, dict[str, Any]]:
    """Takes `count` rows of `thin` steps from step `first`; the carry that comes in is used up.

    Returns:
      the carry, and rows: dict of (capacity, chain, ...) of which the first `count` are meant.
    """
    numbers = (np.int32(first), np.int32(count), np.int32(thin), np.bool_(record))
    # Chains that tune together wait for each other.
    program = dataclasses.replace(program, interleave=program.interleave and record)
    if program.executor == "shard_map":
        run = compiled(_chunk_sharded, program.mesh.devices.flat[0].platform)
        return run(program, target, key, indices, carry, *numbers)
    devices = program.mesh.devices.size
    shared = isinstance(carry.state, core.Shared)
    chain_leaf = jax.tree.map(lambda x: bool(x.ndim), carry)
    if shared:
        nobody = jax.tree.map(lambda _: False, carry.state.shared)
        chain_leaf = chain_leaf._replace(state=core.Shared(chain_leaf.state.chain, nobody))

    def split(x: Any) -> Any:
        return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

    def join(x: Any) -> Any:
        return x.reshape(-1, *x.shape[2:])

    def over_chains(function: Callable[[Any], Any], carry: Carry) -> Carry:
        return jax.tree.map(lambda has, x: function(x) if has else x, chain_leaf, carry)

    leaves, structure = jax.tree.flatten(chain_leaf)
    mapped = _chunk_pmapped(program, structure, tuple(0 if has else None for has in leaves))
    new, rows = mapped(target, key, split(indices), over_chains(split, carry), *numbers)
    rows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), rows)
    return over_chains(join, new), rows
