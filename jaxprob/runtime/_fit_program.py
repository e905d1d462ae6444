"""What is compiled in training: one program that takes a chunk of steps, and one that evaluates.

A chunk takes the number of its steps as an argument, so that a run of any length compiles it once; it ends early,
inside the loop, at the first step whose loss or gradient is not finite. Step `t` has the key `fold_in(key, t)` and the
batch of `t`, so that a run can be cut anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxprob import core, learning, scan
from jaxprob.runtime._mesh import TIME
from jaxprob.runtime._sharding import batch_specs, shardings

START, EVALUATION = 2**31, 2**31 + 1  # what the key is folded with for the first parameters, and for validation
NEVER = 2**31 - 1  # steps of a run that something else ends, and evaluations to wait for where there is no patience


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a training run.

    Attributes:
      task: what is trained.
      mesh: devices.
      specs: how the leaves of the state lie, in their order.
      capacity: the most steps of one chunk.
      patience: evaluations without improvement that end the run, or None.
    """

    task: learning.Task
    mesh: Mesh
    specs: tuple[PartitionSpec, ...]
    capacity: int
    patience: int | None = None


class Chunk(NamedTuple):
    """What comes out of a chunk.

    Attributes:
      state: after its last good step.
      rows: dict of (capacity,): the scalars of each step; those behind the last step taken are zero.
      taken: int32 scalar, steps taken, the bad one included.
      finite: whether the loss and gradient of all of them were finite.
    """

    state: learning.TrainingState
    rows: dict[str, jax.Array]
    taken: jax.Array
    finite: jax.Array


def state_shape(task: learning.Task, key: core.Key) -> learning.TrainingState:
    """The state of a task as shapes; nothing is compiled."""
    return jax.eval_shape(functools.partial(_start, task), key)


def _start(task: learning.Task, key: core.Key) -> learning.TrainingState:
    return learning.training(task).init(task.init(core.fold(key, jnp.uint32(START))))


@functools.partial(jax.jit, static_argnames="program")
def start(program: Program, key: core.Key) -> learning.TrainingState:
    """The first state, made where it lies."""
    return _constrain(program, _start(program.task, key))


def take_step(
    program: Program, key: core.Key, state: learning.TrainingState, step: Any, batch: Any
) -> tuple[learning.TrainingState, dict[str, jax.Array]]:
    """One step: the new state, and its scalars."""
    batch = _spread(program, batch)
    with _in_force(program.mesh):
        state, info = learning.training(program.task).step(core.fold(key, step), state, batch)
    return _constrain(program, state), info


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def chunk(
    program: Program, source: Any, batches: Any, key: core.Key, state: learning.TrainingState, first: Any, count: Any
) -> Chunk:
    """Takes `count` steps from step `first`; the state that comes in is used up.

    Args:
      source: an `Indexed` source, or None with `batches`: pytree (capacity, example, ...).
    """

    def one(carry: Any, index: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        batch = jax.tree.map(lambda x: x[index], batches) if source is None else source.batch(first + index)
        state, info = take_step(program, key, carry[0], first + index, batch)
        finite = info.pop("finite")
        return (state, index + 1, finite), info

    begin = state, jnp.int32(0), jnp.bool_(True)
    # It ends early at the first step that is not finite.
    (state, taken, finite), rows = scan.bounded(one, begin, count, program.capacity, until=lambda carry: ~carry[2])
    return Chunk(state, rows, taken, finite)


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
      params: the parameters that were evaluated then; those of the start before the first evaluation.
      step: int32 scalar, when that was.
      stopping: the state of early stopping.
    """

    params: Any
    step: jax.Array
    stopping: learning.EarlyStoppingState


@functools.partial(jax.jit, static_argnames="program")
def no_best(program: Program, params: Any) -> Best:
    """What there is before the first evaluation."""
    # A copy, since the state that `params` belong to will be donated.
    return Best(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32), _stopping(program).init())


@functools.partial(jax.jit, static_argnames="program", donate_argnames="best")
def evaluate(
    program: Program, source: Any, key: core.Key, params: Any, best: Best, step: Any
) -> tuple[dict[str, jax.Array], Best]:
    """The means over the batches of a source of the loss and its metrics (float32 scalars), and the best so far."""
    scalars = learning.evaluation(program.task)

    @jax.jit
    def one(index: jax.Array) -> dict[str, jax.Array]:
        batch = _spread(program, source.batch(index))
        with _in_force(program.mesh):
            found = scalars(core.fold(key, jnp.uint32(EVALUATION), index), params, batch)
        return {name: x.astype(jnp.float32) for name, x in found.items()}

    zero = {name: jnp.zeros((), x.dtype) for name, x in jax.eval_shape(one, jnp.int32(0)).items()}
    total = scan.repeat(lambda total, index: jax.tree.map(jnp.add, total, one(index)), zero, source.num_batches)
    means = jax.tree.map(lambda x: x / np.float32(source.num_batches), total)
    stopping = _stopping(program).update(best.stopping, means["loss"])
    old = (best.params, best.step)
    params, step = jax.tree.map(lambda new, old: jnp.where(stopping.improved, new, old), (params, step), old)
    return means, Best(params, step, stopping)


def _stopping(program: Program) -> learning.EarlyStopping:
    return learning.early_stopping(NEVER if program.patience is None else program.patience)


def _in_force(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Tells the sequence cores inside that time is cut, where it is."""
    cut = mesh.shape.get(TIME, 1) > 1
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if cut else contextlib.nullcontext()


def _constrain(program: Program, state: learning.TrainingState) -> learning.TrainingState:
    """Asks that a state lie on the mesh as the next chunk expects it."""
    specs = jax.tree.unflatten(jax.tree.structure(state), program.specs)
    return lax.with_sharding_constraint(state, shardings(specs, program.mesh))


def _spread(program: Program, batch: Any) -> Any:
    if program.mesh.size == 1:
        return batch
    return lax.with_sharding_constraint(batch, shardings(batch_specs(batch, program.mesh), program.mesh))
