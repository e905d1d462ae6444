"""What a program is made of, found without running it: names, shapes, dtypes, and whether data fit their sites.

The program runs once, abstractly: unobserved values are tracers, while whatever does not depend on them (supports
with fixed edges, most of all) is computed for real, so that data can be held against it. Nothing is compiled for the
abstract part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Boolean, Distribution, IntegerInterval
from jaxprob.models import _sites


class Site(NamedTuple):
    """What is known of a named quantity before anything is computed.

    Attributes:
      role: "latent", "observed", "fixed" (by `substitute`), "done" (by `do`) or "deterministic".
      family: name of the distribution's family; "" where there is none.
      shape: shape of the value.
      dtype: dtype of the value.
      is_discrete: whether the value is countable.
      unconstrained_shape: shape in unconstrained space, for a continuous latent site; else None.
      values: the numbers that a discrete latent site can take, where they are known and finite; else None.
    """

    role: str
    family: str
    shape: tuple[int, ...]
    dtype: Any
    is_discrete: bool = False
    unconstrained_shape: tuple[int, ...] | None = None
    values: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of scalars in the value."""
        return math.prod(self.shape)

    @property
    def unconstrained_size(self) -> int:
        """Number of scalars in unconstrained space; 0 where the site is not part of it."""
        return 0 if self.unconstrained_shape is None else math.prod(self.unconstrained_shape)


def survey(program: Any, data: dict[str, Any], function: str = "") -> dict[str, Site]:
    """The sites of a program in their order.

    Args:
      program: a program.
      data: observed values by name; converted arrays.
      function: if given, values of `data` are checked against the supports, and messages name this function.

    Raises:
      ValueError: if an observed value has a wrong shape or lies outside its support.
    """
    default = _sites.working_dtype(program, data)
    sites: dict[str, Site] = {}

    def visit(key: core.Key, zero: jax.Array, name: str, distribution: Distribution, given: Any) -> Any:
        family, discrete = _sites.kind(distribution), distribution.is_discrete
        if given is not None or name in data:
            role = "observed" if given is None else "fixed"
            value = fit(function or program.name, name, data[name] if given is None else given, distribution, default)
            if function and role == "observed":
                _check_support(function, name, value, distribution)
            sites[name] = Site(role, family, distribution.shape, value.dtype, discrete)
        elif discrete:
            value = _sites.draw(key, name, distribution, default)
            values = _finite_values(distribution)
            sites[name] = Site("latent", family, distribution.shape, value.dtype, True, None, values)
        else:
            bijector = distribution.support.bijector
            shape = tuple(bijector.inverse_shape(distribution.shape))
            dtype = _sites.site_dtype(distribution, default)
            value = bijector.forward(jnp.broadcast_to(zero.astype(dtype), shape))
            sites[name] = Site("latent", family, distribution.shape, dtype, False, shape)
        return value

    def body(key: core.Key, zero: jax.Array) -> None:
        # What does not depend on the two arguments is computed at once.
        with jax.ensure_compile_time_eval():
            outcome = _sites.run(program, lambda *site: visit(key, zero, *site))
        for name, value in outcome.values.items():
            if name not in sites:
                role = "deterministic" if name in outcome.deterministic else "done"
                sites[name] = Site(role, "", jnp.shape(value), jnp.result_type(value))
        ordered = {name: sites[name] for name in outcome.values}
        sites.clear()
        sites.update(ordered)

    jax.eval_shape(body, jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), default))
    return sites


def as_array(function: str, name: str, value: Any) -> jax.Array:
    """An array from data, or a `TypeError` in the one format."""
    try:
        array = jnp.asarray(value if isinstance(value, (jax.Array, float, int)) else np.asarray(value))
    except (TypeError, ValueError):
        array = None
    if array is None or core.is_key(array):
        raise core.bad_type(function, name, core.describe(value), "an array of numbers")
    return array


def fit(function: str, name: str, value: Any, distribution: Distribution, default: Any) -> jax.Array:
    """A value of the shape and kind of number of its site; floating data keep their dtype.

    Raises:
      ValueError: if the shape is wrong, or a countable site is given numbers that are not whole.
    """
    array = as_array(function, name, value)
    _sites.check_shape(function, name, array, distribution)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if not distribution.is_discrete:
        keep = floating and not array.weak_type
        return array if keep else array.astype(_sites.site_dtype(distribution, default))
    if not floating:
        return array
    if not isinstance(array, jax.core.Tracer) and function:
        _check_mask(function, name, array, np.asarray(array == jnp.round(array)), distribution)
    return array.astype(int)


def _check_support(function: str, name: str, value: jax.Array, distribution: Distribution) -> None:
    inside = distribution.support.contains(value)
    # A support with edges that depend on unobserved values cannot be held against the data: its density is -inf there.
    if not isinstance(inside, jax.core.Tracer):
        _check_mask(function, name, value, np.asarray(inside), distribution)


def _check_mask(function: str, name: str, value: jax.Array, inside: np.ndarray, distribution: Distribution) -> None:
    if inside.all():
        return
    index = tuple(int(i) for i in np.argwhere(~inside)[0])
    first = np.asarray(value)[index]
    got = np.array2string(first, threshold=8, edgeitems=2) + (f" at index {index}" if index else "")
    if np.isnan(first.astype(float)).any():
        todo = "Leave missing entries out of the data, or give them a site of their own without data"
        raise core.bad_value(
            function, name, got, f"no missing values, since {_sites.kind(distribution)} has none", todo
        )
    support = type(distribution.support).__name__
    raise core.bad_value(
        function,
        name,
        got,
        f"values in the support of its site, {_sites.kind(distribution)} ({support})",
        "Correct the data, or choose a distribution that allows them",
    )


def _finite_values(distribution: Distribution) -> tuple[int, ...] | None:
    """The numbers that a discrete scalar can take, or None if there is no end to them or they are not known yet."""
    support = distribution.support
    if isinstance(support, Boolean):
        return (0, 1)
    if isinstance(support, IntegerInterval):
        edges = (support.low, support.high)
        if not any(isinstance(edge, jax.core.Tracer) for edge in edges):
            low, high = int(np.min(np.asarray(edges[0]))), int(np.max(np.asarray(edges[1])))
            return tuple(range(low, high + 1))
    return None
