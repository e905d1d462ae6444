"""Functions whose rule for derivatives no transformation drops.

JAX forgets the rule of a `jax.custom_jvp` where it linearises a loop, so that a derivative of a gradient (forward over
reverse mode, as `jax.hessian` takes it) goes through the code of the function, which may have no derivative there. A
primitive is never looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
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
