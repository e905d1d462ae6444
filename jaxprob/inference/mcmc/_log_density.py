"""The user's log density as the kernels call it: its value and gradient, traced as rarely as possible.

One `jax.jit(jax.value_and_grad(...))` stands for each density, however many kernels are built on it, so that JAX's own
trace cache makes one trace serve initialisation, warm-up and sampling.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
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
        self.value_and_gradient = _opaque(log_density) if parts is None else partial(_of_owner, *parts)

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
    if jax.tree_util.treedef_is_leaf(structure):
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


def _scalar(log_density: Callable[[Any], Any], position: Any) -> jax.Array:
    value = jnp.asarray(log_density(position))
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        got, todo = f"{value.dtype} of shape {value.shape}", "Sum over everything the density is a product of"
        raise core.bad_value("log_density", "its value", got, "one floating-point number", todo)
    return value


@partial(jax.jit, static_argnums=0)
def _of_owner(call: _Rebuild, arrays: list[Any], position: Any) -> tuple[jax.Array, Any]:
    return jax.value_and_grad(lambda q: _scalar(partial(call, arrays), q))(position)


# The gradient of a function lives as long as the function and refers to it weakly, or neither would ever be freed.
_GRADIENTS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _opaque(log_density: Any) -> Callable[[Any], tuple[jax.Array, Any]]:
    if type(log_density).__eq__ is not object.__eq__:  # equal to others, which may outlive it
        return jax.jit(lambda position: jax.value_and_grad(partial(_scalar, log_density))(position))
    if log_density not in _GRADIENTS:
        alive: Callable[[], Any] = weakref.ref(log_density)
        _GRADIENTS[log_density] = jax.jit(lambda position: jax.value_and_grad(partial(_scalar, alive()))(position))
    return _GRADIENTS[log_density]
