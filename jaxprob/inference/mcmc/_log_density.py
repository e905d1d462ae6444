"""The user's log density as the kernels call it: its value and gradient, traced as rarely as possible.

JAX's own trace cache sees the axes and meshes around a call, and would run the user's Python again for each mapping
that a kernel stands in. Here the value and gradient become a jaxpr once for each shape of a position, and that is what
initialisation, warm-up and sampling call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class LogDensity:
    """A log density together with its gradient.

    Of a bound method of a pytree (`posterior.log_density`), or a callable that is itself a pytree, the arrays are
    arguments of the compiled gradient: they may be tracers of somebody's `jit`, and no data is baked into a program.

    Attributes:
      value_and_gradient: `position -> (scalar, pytree like position)`.
    """

    value_and_gradient: Callable[[Any], tuple[jax.Array, Any]]

    def __init__(self, log_density: Callable[[Any], Any]) -> None:
        self._log_density = log_density
        method, owner = getattr(log_density, "__func__", _call), getattr(log_density, "__self__", log_density)
        parts = _separate(method, owner)
        if parts is None:
            self.value_and_gradient = partial(_evaluate, _of_opaque(log_density), lambda _, q: log_density(q), [])
        else:
            self.value_and_gradient = partial(_evaluate, _of_owner(parts[0]), *parts)

    def __call__(self, position: Any) -> Any:
        return self._log_density(position)


def as_log_density(log_density: Any, function: str) -> LogDensity:
    """Wraps a log density; one that is wrapped already is returned as it is.

    Args:
      log_density: `position -> scalar`.
      function: name of the caller, for the error message.

    Raises:
      TypeError: if `log_density` cannot be called.
    """
    if isinstance(log_density, LogDensity):
        return log_density
    if not callable(log_density):
        todo = "For a conditioned model pass posterior.log_density"
        raise core.bad_type(
            function, "log_density", log_density, "a function of a position that returns a scalar", todo
        )
    return LogDensity(log_density)


class _Rebuild:
    """`(arrays, position) -> method(owner, position)` on an owner rebuilt from its arrays; compared by value."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __call__(self, arrays: list[Any], position: Any) -> Any:
        method, structure, leaves = self.parts
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _ARRAY else leaf for leaf in leaves]
        return method(jax.tree.unflatten(structure, leaves), position)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rebuild) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


_ARRAY = object()  # holds the place of an array among the leaves of an owner


def _separate(method: Callable[..., Any], owner: Any) -> tuple[_Rebuild, list[Any]] | None:
    """The arrays of a pytree apart from the rest of it, or None if `owner` is no pytree (or cannot be compared)."""
    leaves, structure = jax.tree.flatten(owner)
    if len(leaves) == 1 and leaves[0] is owner:
        return None
    held = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    arrays = [leaf for leaf, is_array in zip(leaves, held, strict=True) if is_array]
    rest = tuple(_ARRAY if is_array else leaf for leaf, is_array in zip(leaves, held, strict=True))
    call = _Rebuild(method, structure, rest)
    try:
        hash(call)
    except TypeError:
        return None
    return call, arrays


def _call(log_density: Callable[[Any], Any], position: Any) -> Any:
    return log_density(position)


Compiled = dict[Any, Callable[..., Any]]  # by shapes: leaves of (arrays, position) -> [value, *leaves of gradient]


def _evaluate(compiled: Compiled, call: Callable[[list[Any], Any], Any], arrays: list[Any], position: Any) -> Any:
    """The value and gradient of `position -> call(arrays, position)`, traced if shapes like these were not seen yet."""
    leaves, structure = jax.tree.flatten((arrays, position))
    shapes = tuple(map(core.shape_of, leaves))
    # A mesh may be read by the user's sharding constraints, and the precision by any matrix product.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    around = jax.sharding.get_abstract_mesh(), precision, jax.dtypes.canonicalize_dtype(np.float64)
    seen = structure, shapes, around
    if seen not in compiled:

        def flat(*leaves: Any) -> Any:
            arrays, position = jax.tree.unflatten(structure, leaves)
            return jax.tree.leaves(jax.value_and_grad(lambda q: _scalar(call, arrays, q))(position))

        compiled[seen] = jax.jit(jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(flat)(*shapes)))
    value, *gradient = compiled[seen](*leaves)
    return value, jax.tree.unflatten(jax.tree.structure(position), gradient)


def _scalar(call: Callable[[list[Any], Any], Any], arrays: list[Any], position: Any) -> jax.Array:
    value = jnp.asarray(call(arrays, position))
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        got, todo = f"{value.dtype} of shape {value.shape}", "Sum over everything the density is a product of"
        raise core.bad_value("log_density", "its value", got, "one floating-point number", todo)
    return value


# What is compiled of equal owners is shared; the oldest go, as in JAX's own caches.
@lru_cache(maxsize=256)
def _of_owner(call: _Rebuild) -> Compiled:
    return {}


# What is compiled of a function lives as long as the function and must not refer to it, or neither would ever be freed.
_OF_FUNCTION: weakref.WeakKeyDictionary[Any, Compiled] = weakref.WeakKeyDictionary()


def _of_opaque(log_density: Any) -> Compiled:
    if type(log_density).__eq__ is not object.__eq__:  # equal to others, which may outlive it
        return {}
    return _OF_FUNCTION.setdefault(log_density, {})
