"""What a training step costs in memory and arithmetic on a mesh, without running it.

The step is compiled for the devices given, which may be virtual ones of a CPU in place of a mesh that is not here.
Sizes of arguments and outputs follow from the sharding and hold on any hardware; temporaries are those of the compiler
that compiled, and differ between backends.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex
from jax.sharding import PartitionSpec as P

from jaxprob import core, learning
from jaxprob.runtime import _fit_program
from jaxprob.runtime._sharding import batch_specs, shardings, state_specs, training_mesh


class TrainingCost(NamedTuple):
    """What one training step costs.

    Attributes:
      devices: of the mesh.
      platform: of the compiler, "cpu" for virtual devices.
      parameters: numbers in the parameters.
      arguments: bytes on each device: the training state and its part of the batch.
      outputs: bytes on each device, without those that take the place of an argument.
      temporaries: bytes on each device.
      data: bytes on each device of arrays that batches are taken from; 0 for other sources.
      flops: floating-point operations of a step in matrix products and convolutions, on all devices together; loops
        are counted with their length, those of an unknown length as one turn.
    """

    devices: int
    platform: str
    parameters: int
    arguments: int
    outputs: int
    temporaries: int
    data: int
    flops: int


def training_cost(
    task: learning.Task, data: Any, *, devices: Any = None, sharding: Any = None, key: core.Key | None = None
) -> TrainingCost:
    """Compiles a training step and says what it costs; nothing is run, and no parameters are made.

    Args:
      task, data, devices, sharding, key: as for `fit`. Of a stream the first batch is taken.

    Returns:
      `TrainingCost`.

    Raises:
      ValueError, TypeError: for bad input, as `fit`.

    >>> import jax.numpy as jnp, optax
    >>> data = learning.data.arrays(jnp.zeros((64, 32)), 16)
    >>> init = lambda key: jnp.zeros((32, 8))
    >>> task = learning.Task(init, lambda w, batch, key: jnp.mean((batch @ w) ** 2), optax.sgd(0.1))
    >>> cost = training_cost(task, data, devices=1)
    >>> cost.parameters, cost.data, cost.flops  # a product of 16 x 32 x 8 forward, one for the gradient, and its norm
    (256, 8192, 16896)
    """
    key = jax.random.key(0) if key is None else core.as_key(key, "training_cost")
    source = learning.data.as_source(data, "training_cost")
    if isinstance(source, learning.data.Stream):
        batch = jax.tree.map(np.asarray, next(source))
    else:
        batch = jax.eval_shape(source.batch, np.int32(0))
    mesh = training_mesh(devices, batch, "training_cost")
    state = _fit_program.state_shape(task, key)
    specs = state_specs(state, sharding, mesh, "training_cost")
    leaves = tuple(jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)))
    step = functools.partial(_fit_program.take_step, _fit_program.Program(task, mesh, leaves, 1))
    arguments = (
        _lying(jax.eval_shape(lambda: key), P(), mesh),
        _lying(state, specs, mesh),
        _lying(jax.ShapeDtypeStruct((), np.int32), P(), mesh),
        _lying(batch, batch_specs(batch, mesh), mesh),
    )
    memory = jax.jit(step, donate_argnums=1).lower(*arguments).compile().memory_analysis()
    assert memory is not None  # XLA for CPU, GPU and TPU all have one
    return TrainingCost(
        devices=mesh.size,
        platform=mesh.devices.flat[0].platform,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        arguments=int(memory.argument_size_in_bytes),
        outputs=int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporaries=int(memory.temp_size_in_bytes),
        data=sum(leaf.nbytes for leaf in jax.tree.leaves(source) if isinstance(leaf, (np.ndarray, jax.Array))),
        flops=_flops(jax.make_jaxpr(step)(*arguments).jaxpr),
    )


def _lying(tree: Any, specs: Any, mesh: Any) -> Any:
    lying = shardings(specs, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, lying)


def _flops(jaxpr: Any) -> int:
    """Two for each multiplication of a matrix product or convolution, inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += 2 * out * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        inner = [_flops(program) for value in params.values() for program in _programs(value)]
        if name == "cond":
            total += max(inner)
        else:
            # Inside `shard_map` a program is that of one device along the axes that it names.
            named = [params["mesh"].shape[axis] for axis in params["manual_axes"]] if name == "shard_map" else []
            total += sum(inner) * params.get("length", math.prod(named))
    return total


def _programs(value: Any) -> list[Any]:
    if isinstance(value, jex.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, jex.Jaxpr):
        return [value]
    return [program for item in value for program in _programs(item)] if isinstance(value, (tuple, list)) else []
