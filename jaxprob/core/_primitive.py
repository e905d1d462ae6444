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


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that stays whole where what it is part of is linearised and its arguments do not move.

    For the rule of a `jax.custom_jvp` that has a gradient at hand and multiplies tangents by it: JAX divides such a
    rule, equation by equation and loop by loop, into what is known and what is linear, and takes twice as long over
    the gradient, all of which is known, as it took to trace it.

    Args:
      function: of pytrees of arrays, to one; traced where it is called.

    >>> float(whole(lambda x: x**2)(jnp.array(3.0)))
    9.0
    """

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)

        def flat(*leaves: Any) -> Any:
            return function(*jax.tree.unflatten(structure, leaves))

        made, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        if any(isinstance(x, jax.core.Tracer) for x in made.consts):
            # What the function closes over becomes arguments, so that it is transformed with them.
            closed, leaves = made, [*made.consts, *leaves]

            def opened(*leaves: Any) -> Any:
                count = len(closed.consts)
                return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, leaves[:count]))(*leaves[count:])

            made = jax.make_jaxpr(opened)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), _whole.bind(*leaves, call=made))

    return call


def _whole_jvp(primals: Any, tangents: Any, *, call: ClosedJaxpr) -> tuple[Any, Any]:
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_moving(*some: Any) -> Any:
        leaves = list(primals)
        for i, leaf in zip(moving, some, strict=True):
            leaves[i] = leaf
        return jaxpr_as_fun(call)(*leaves)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


def _whole_batch(arrays: Sequence[jax.Array], axes: Sequence[int | None], *, call: ClosedJaxpr) -> tuple[Any, Any]:
    made = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(call), in_axes=tuple(axes)))(*arrays)
    found = _whole.bind(*arrays, call=made)
    return found, (0,) * len(found)


_whole = Primitive("whole")
_whole.multiple_results = True
_whole.def_abstract_eval(lambda *_, call: call.out_avals)
_whole.def_impl(lambda *arrays, call: jax.jit(jaxpr_as_fun(call))(*arrays))
mlir.register_lowering(_whole, mlir.lower_fun(lambda *arrays, call: jaxpr_as_fun(call)(*arrays)))
batching.primitive_batchers[_whole] = _whole_batch
ad.primitive_jvps[_whole] = _whole_jvp
