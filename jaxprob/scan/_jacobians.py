"""A pytree state as one array, and the Jacobian of a step in the structure that a Newton iteration uses.

Columns come from forward derivatives along chosen directions: one per coordinate for a dense Jacobian; one, or one per
leaf, for a diagonal or block-diagonal one, whatever the size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core

JACOBIANS = ("dense", "diagonal", "block")


class Flat(NamedTuple):
    """How a state is laid out.

    Attributes:
      pack: state to array: (size,), or (units, leaves) for "block"; float32 at least.
      unpack: such an array to a state with the dtypes it had.
      kind: "elementwise" or "matrix", the structure of the affine recurrence.
    """

    pack: Callable[[Any], jax.Array]
    unpack: Callable[[jax.Array], Any]
    kind: str


def flat(function: str, state: Any, jacobian: str) -> Flat:
    """The layout for a state and a structure of Jacobian.

    Raises:
      ValueError: if there is no such structure, or the leaves of a "block" state differ in shape.
      TypeError: if a leaf is not floating point.
    """
    if jacobian not in JACOBIANS:
        raise core.bad_value(function, "jacobian", jacobian, f"one of {', '.join(map(repr, JACOBIANS))}")
    for name, leaf in core.named_leaves(state):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise core.bad_type(
                function,
                f"init, leaf {name!r},",
                f"of dtype {jnp.result_type(leaf)}",
                "a floating-point array",
                "Use scan.scan for a state with other leaves",
            )
    leaves, structure = jax.tree.flatten(state)
    if not leaves:
        raise core.bad_value(function, "init", "without arrays", "at least one")
    if jacobian != "block":
        vector, unravel = core.ravel(state)
        wide = core.accumulator_dtype(vector.dtype)
        return Flat(
            lambda state: core.ravel(state)[0].astype(wide),
            lambda packed: unravel(packed.astype(vector.dtype)),
            "matrix" if jacobian == "dense" else "elementwise",
        )
    shapes = {name: jnp.shape(leaf) for name, leaf in core.named_leaves(state)}
    if len(set(shapes.values())) > 1:
        raise core.bad_value(
            function, "init", f"of shapes {shapes}", "leaves of one shape with jacobian='block'", "Each unit is a block"
        )
    shape, dtypes = jnp.shape(leaves[0]), [jnp.result_type(leaf) for leaf in leaves]
    dtype = core.accumulator_dtype(core.result_dtype(state))

    def pack(state: Any) -> jax.Array:
        return jnp.stack([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(state)], -1)

    def unpack(packed: jax.Array) -> Any:
        parts = [packed[:, i].reshape(shape).astype(kept) for i, kept in enumerate(dtypes)]
        return jax.tree.unflatten(structure, parts)

    return Flat(pack, unpack, "matrix")


def linearized(
    step: Callable[[jax.Array, Any], jax.Array], jacobian: str, probes: int
) -> Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]:
    """`(packed state, x) -> (value, Jacobian)`, the Jacobian (size, size), (size,) or (units, leaves, leaves).

    Where the step is not of the structure asked for, the Jacobian is an estimate: for random signs r the mean of
    r * (J r) is the diagonal of J. As many probes as there are units make it exact.
    Source: Bekas, Kokiopoulou and Saad (2007), "An estimator for the diagonal of a matrix".
    """

    def signs(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """(probes, units): signs, or every direction by itself if there are as many probes."""
        units = shape[0]
        if probes >= units:
            return jnp.eye(units, dtype=dtype)
        return jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (probes, units)), dtype)

    def both(packed: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        value, push = jax.linearize(lambda packed: step(packed, x), packed)
        if jacobian == "dense":
            return value, jax.vmap(push, out_axes=1)(jnp.eye(packed.shape[0], dtype=packed.dtype))
        directions = signs(packed.shape, packed.dtype)
        weight = 1 if probes >= packed.shape[0] else 1 / probes
        if jacobian == "diagonal":
            found = jax.vmap(lambda r: r * push(r))(directions)
            return value, jnp.sum(found, 0) * weight
        leaves = jnp.eye(packed.shape[1], dtype=packed.dtype)

        def column(leaf: jax.Array) -> jax.Array:
            def one(r: jax.Array) -> jax.Array:
                return r[:, None] * push(r[:, None] * leaf[None])

            return jnp.sum(jax.vmap(one)(directions), 0) * weight

        return value, jax.vmap(column, out_axes=2)(leaves)

    return both
