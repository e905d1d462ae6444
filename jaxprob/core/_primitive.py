"""Functions whose rule for derivatives no transformation drops, and functions that are not taken apart.

JAX forgets the rule of a `jax.custom_jvp` where it linearises a loop, so that a derivative of a gradient (forward over
reverse mode, as `jax.hessian` takes it) goes through the code of the function, which may have no derivative there. A
primitive is never looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def primitive(function: Callable[[jax.Array], Any], jvp: Callable[..., Any], shapes: Any) -> Any:
    """`function` as a primitive of JAX, compiled as it is when called.

    Args:
      function: of one array, whose leading axes are a batch, to a tuple of arrays of its dtype and number of axes.
      jvp: its derivative, as for `jax.custom_jvp`.
      shapes: of what it returns, from that of the array.
    """
    made = Primitive(function.__name__)
    made.multiple_results = True

    def batch(arrays: Sequence[jax.Array], axes: Sequence[int]) -> tuple[Any, tuple[int, ...]]:
        found = made.bind(jnp.moveaxis(arrays[0], axes[0], 0))
        return found, (0,) * len(found)

    # The abstract value has also the mesh axes over which an array inside `shard_map` varies.
    made.def_abstract_eval(lambda array: [array.update(shape=shape) for shape in shapes(array.shape)])
    made.def_impl(function)
    mlir.register_lowering(made, mlir.lower_fun(function))
    batching.primitive_batchers[made] = batch
    ad.primitive_jvps[made] = jvp
    return made.bind


def is_staged() -> bool:
    """Whether what is called here becomes part of a program, as inside `jax.jit` or a loop, and is not computed now.

    >>> is_staged()
    False
    """
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def whole(function: Callable[..., Any], batch: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that stays whole where what it is part of is linearised and its arguments do not move.

    For the rule of a `jax.custom_jvp` that has a gradient at hand and multiplies tangents by it: JAX divides such a
    rule, equation by equation and loop by loop, into what is known and what is linear, and takes twice as long over
    the gradient, all of which is known, as it took to trace it.

    Args:
      function: of pytrees of arrays, to one; traced where it is called.
      batch: what to do with a batch of arguments if not `jax.vmap(function)`, which knows nothing of their values:
        `batch(function, batched, *args)`, of the function as it was traced and a tuple of pytrees like `args` that say
        which arrays have a leading axis of the batch, to what `function` returns, with such an axis everywhere; or
        None, for `jax.vmap`. It closes over no arrays that are transformed.

    >>> float(whole(lambda x: x**2)(jnp.array(3.0)))
    9.0
    """

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)

        def flat(*leaves: Any) -> Any:
            return function(*jax.tree.unflatten(structure, leaves))

        def of_batch(call: ClosedJaxpr, batched: Sequence[bool], leaves: Sequence[jax.Array]) -> Any:
            def traced(*args: Any) -> Any:
                return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(call)(*jax.tree.leaves(args)))

            assert batch is not None
            return batch(traced, jax.tree.unflatten(structure, batched), *jax.tree.unflatten(structure, leaves))

        made, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        count = 0
        if any(isinstance(x, jax.core.Tracer) for x in made.consts):
            # What the function closes over becomes arguments, so that it is transformed with them.
            closed, leaves, count = made, [*made.consts, *leaves], len(made.consts)

            def opened(*leaves: Any) -> Any:
                return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, leaves[:count]))(*leaves[count:])

            made = jax.make_jaxpr(opened)(*leaves)
        # Only of functions that close over nothing, whose arguments are all there is.
        rule = None if batch is None or count else of_batch
        return jax.tree.unflatten(jax.tree.structure(shapes), _whole.bind(*leaves, call=made, batch=rule))

    return call


def _whole_jvp(primals: Any, tangents: Any, *, call: ClosedJaxpr, batch: Any) -> tuple[Any, Any]:
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_moving(*some: Any) -> Any:
        leaves = list(primals)
        for i, leaf in zip(moving, some, strict=True):
            leaves[i] = leaf
        return jaxpr_as_fun(call)(*leaves)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


def _whole_batch(
    arrays: Sequence[jax.Array], axes: Sequence[int | None], *, call: ClosedJaxpr, batch: Any
) -> tuple[Any, tuple[int, ...]]:
    batched = [axis is not None for axis in axes]
    arrays = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    found = None if batch is None else batch(call, batched, arrays)
    if found is None:
        every = jax.vmap(jaxpr_as_fun(call), in_axes=[0 if x else None for x in batched])
        found = _whole.bind(*arrays, call=jax.make_jaxpr(every)(*arrays), batch=None)
    found = jax.tree.leaves(found)
    return found, (0,) * len(found)


_whole = Primitive("whole")
_whole.multiple_results = True
_whole.def_abstract_eval(lambda *_, call, batch: call.out_avals)
_whole.def_impl(lambda *arrays, call, batch: jax.jit(jaxpr_as_fun(call))(*arrays))
mlir.register_lowering(_whole, mlir.lower_fun(lambda *arrays, call, batch: jaxpr_as_fun(call)(*arrays)))
batching.primitive_batchers[_whole] = _whole_batch
ad.primitive_jvps[_whole] = _whole_jvp
