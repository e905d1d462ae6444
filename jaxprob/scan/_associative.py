"""Prefixes of elements of any monoid: e_0, e_0 e_1, e_0 e_1 e_2, ... sequential, chunked, as a tree, over devices.

Source: Blelloch (1990), "Prefix sums and their applications".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.scan._affine import Trajectory
from jaxprob.scan._functions import made_of
from jaxprob.scan._methods import Choice, choose, chunk_length
from jaxprob.scan._time import is_first_device, last, pad, reset_mask, take, time_length, unpad, where
from jaxprob.scan.monoids import Monoid, Resettable, with_resets

Combine = Callable[[Any, Any], Any]


def associative(
    combine: Combine | Monoid,
    elements: Any,
    init: Any = None,
    *,
    reverse: bool = False,
    reset: Any = None,
    method: str = "auto",
    chunk: int | None = None,
    axis_name: str | None = None,
    mesh: Mesh | None = None,
) -> Trajectory:
    """The prefixes of a sequence under an associative `combine`.

    Args:
      combine: `combine(before, after)` of two single elements, without a time axis (`vmap` makes many), or one of
        `scan.monoids`. `before` comes earlier in the order of processing, so with `reverse` it is later in time.
      elements: pytree of arrays (time, ...).
      init: an element that stands before the first one, or None.
      reverse: suffixes in place of prefixes.
      reset: booleans (time,): where true the product starts again, from `init` or from nothing, just before that step.
      method: "sequential", "chunked", "associative", "parallel" or "auto" (see `explain`).
      chunk: steps of a chunk for "chunked"; about sqrt(time) by default. It need not divide the number of steps.
      axis_name: inside `shard_map`, the mesh axis over which time goes: each device passes its own piece.
      mesh: outside of it, a mesh with the axis `axis_name` over which to run; the number of steps need not be a
        multiple of its size.

    Returns:
      `states`, the prefixes (time, ...), and `final`, the last of them.

    Raises:
      ValueError: if time axes differ, `combine` changes the structure, a shape or a dtype of an element, or there are
        no steps, no `init` and no identity.

    >>> associative(jnp.maximum, jnp.array([1.0, 3.0, 2.0])).states.tolist()
    [1.0, 3.0, 3.0]
    """
    monoid = combine if isinstance(combine, Monoid) else Monoid(combine, None)
    elements = jax.tree.map(jnp.asarray, elements)
    steps = time_length("scan.associative", "elements", elements)
    mask = reset_mask("scan.associative", reset, steps)
    how = choose("scan.associative", method, "monoid", steps).method
    chunk = chunk_length("scan.associative", chunk, steps)
    if init is not None:
        init = jax.tree.map(jnp.asarray, init)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
        core.check_same_structure("scan.associative", "init", init, like)
    if mesh is not None and axis_name not in mesh.shape:
        raise core.bad_value("scan.associative", "axis_name", axis_name, f"an axis of the mesh, {tuple(mesh.shape)}")
    if steps == 0:
        if init is None:
            if monoid.identity is None:
                raise core.bad_value("scan.associative", "elements", "of 0 steps", "one step, or `init`, or a Monoid")
            init = monoid.identity(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), elements))
        return Trajectory(elements, init)
    if mesh is None:
        return Trajectory(*_prefixes(monoid, how, chunk, reverse, axis_name, elements, init, mask))
    run = _over_mesh(monoid.combine, monoid.identity, how, chunk, reverse, axis_name, mesh)
    return Trajectory(*run(elements, init, mask))


def explain_associative(combine: Any, elements: Any, init: Any = None, *, method: str = "auto", **_: Any) -> Choice:
    """Which method `associative` takes for these arguments, and why."""
    return choose("scan.associative", method, "monoid", time_length("scan.associative", "elements", elements))


@made_of
def _over_mesh(
    combine: Combine, identity: Any, method: str, chunk: int, reverse: bool, axis_name: str, mesh: Mesh
) -> Callable[..., tuple[Any, Any]]:
    """`_prefixes` on the devices of a mesh."""
    time = P(axis_name)
    pieces = jax.shard_map(
        functools.partial(_prefixes, Monoid(combine, identity), method, chunk, reverse, axis_name),
        mesh=mesh,
        in_specs=(time, P(), time),
        out_specs=(time, P()),
    )

    @jax.jit
    def run(elements: Any, init: Any, reset: Any) -> tuple[Any, Any]:
        extra = -_steps(elements) % mesh.shape[axis_name]
        # What is processed after the last step is cut off again, so that any element will do. Each starts anew: the
        # product of many could overflow, and zero times infinity would reach the gradient.
        elements = pad(elements, last(elements, reverse), extra, reverse)
        reset = jnp.zeros(_steps(elements) - extra, bool) if reset is None and extra else reset
        reset = None if reset is None else pad(reset, jnp.bool_(True), extra, reverse)
        states, final = pieces(elements, init, reset)
        states = unpad(states, extra, reverse)
        return states, final if extra == 0 else last(states, reverse)

    return run


@made_of
def _checked(combine: Combine) -> Combine:
    """`combine` that must give an element like those it is given."""

    def checked(before: Any, after: Any) -> Any:
        result = combine(before, after)
        core.check_same_structure("scan.associative", "what combine returns", result, after)
        return result

    return checked


@made_of
def _loop_body(combine: Combine, resets: bool, starts: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
    """One step of a loop over (element, whether to start again), with carry (product, init)."""

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        product, init = carry
        element, restart = x
        if resets and starts:
            product = where(restart, init, product)
        elif resets:
            product = where(restart, element, product)  # in the place of what is not used
        new = combine(product, element)
        if resets and not starts:
            new = where(restart, element, new)
        return (new, init), new

    return body


@made_of
def _restarting(combine: Combine, identity: Any) -> Combine:
    return with_resets(Monoid(combine, identity)).combine


@made_of
def _vectorised(combine: Combine) -> Combine:
    return jax.vmap(combine)


def _prefixes(
    monoid: Monoid,
    method: str,
    chunk: int,
    reverse: bool,
    axis_name: str | None,
    elements: Any,
    init: Any,
    reset: jax.Array | None,
) -> tuple[Any, Any]:
    combine = _checked(monoid.combine)
    elements = core.varying(elements, elements, init, reset, axis_name=axis_name)
    if axis_name is None and method == "sequential":
        return _sequential(combine, monoid.identity, reverse, elements, init, reset)
    if init is not None:
        # The start becomes part of the first element, and of each at which the product starts again.
        begins = jnp.arange(_steps(elements)) == (_steps(elements) - 1 if reverse else 0)
        begins = begins if axis_name is None else begins & is_first_device(axis_name, reverse)
        begins = begins if reset is None else begins | reset
        at_start = jax.vmap(combine, (None, 0))(init, elements)
        elements = where(begins, at_start, elements)
    identity = monoid.identity
    if reset is not None:
        combine, identity = _restarting(combine, identity), None
        elements = Resettable(core.varying(reset, elements), elements)
    if method == "sequential":
        states, _ = _sequential(combine, identity, reverse, elements, None, None)
    elif method == "chunked":
        states = _chunked(combine, chunk, reverse, elements)
    else:
        states = lax.associative_scan(_vectorised(combine), elements, reverse=reverse)
    final = last(states, reverse)
    if axis_name is not None:
        states, final = _over_devices(combine, reverse, axis_name, states, final)
    return (states.element, final.element) if reset is not None else (states, final)


def _steps(elements: Any) -> int:
    return jax.tree.leaves(elements)[0].shape[0]


def _sequential(
    combine: Combine, identity: Any, reverse: bool, elements: Any, init: Any, reset: jax.Array | None
) -> tuple[Any, Any]:
    body = _loop_body(combine, reset is not None, init is not None)
    if init is None and identity is None:
        # Without anything to start from the first element is the first product.
        first = last(elements, not reverse)
        rest = slice(None, -1) if reverse else slice(1, None)
        later = None if reset is None else reset[rest]
        (final, _), states = lax.scan(body, (first, None), (take(elements, rest), later), reverse=reverse)
        return _joined(first, states, reverse), final
    start = identity(last(elements, reverse)) if init is None else init
    start = core.varying(start, elements)
    (final, _), states = lax.scan(body, (start, None if init is None else start), (elements, reset), reverse=reverse)
    return states, final


def _joined(first: Any, rest: Any, reverse: bool) -> Any:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        x = jnp.expand_dims(x, 0)
        return jnp.concatenate([y, x] if reverse else [x, y])

    return jax.tree.map(one, first, rest)


def _chunked(combine: Combine, chunk: int, reverse: bool, elements: Any) -> Any:
    steps = _steps(elements)
    count = -(-steps // chunk)
    extra = count * chunk - steps
    # What is processed after the last step is cut off again, so that any element will do. Each starts anew: products of
    # many could overflow, and zero times infinity would reach the gradient.
    cut, filled = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(count, chunk, *x.shape[1:]), 0, 1),
        pad((elements, jnp.zeros(steps, bool)), (last(elements, reverse), jnp.bool_(True)), extra, reverse),
    )
    many = _vectorised(combine)
    local, totals = _sequential(many, None, reverse, cut, None, filled if extra else None)
    if count > 1:
        earlier = slice(1, None) if reverse else slice(None, -1)
        later = slice(None, -1) if reverse else slice(1, None)
        before, _ = _sequential(combine, None, reverse, take(totals, earlier), None, None)
        behind = jax.tree.map(lambda x: x[:, later], local)
        behind = jax.vmap(many, (None, 0))(before, behind)
        edge = jax.tree.map(lambda x: x[:, -1:] if reverse else x[:, :1], local)
        pair = (behind, edge) if reverse else (edge, behind)
        local = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), *pair)
    whole = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), local)
    return unpad(whole, extra, reverse)


def _over_devices(combine: Combine, reverse: bool, axis_name: str, states: Any, total: Any) -> tuple[Any, Any]:
    """Prefixes of the whole from those of each device's piece: the totals are gathered and combined one by one."""
    gathered = lax.all_gather(total, axis_name)
    inclusive, whole = _sequential(combine, None, reverse, gathered, None, None)
    is_first = is_first_device(axis_name, reverse)
    here = lax.axis_index(axis_name)
    there = jnp.where(is_first, here, here + (1 if reverse else -1))
    before = take(inclusive, there)
    moved = jax.vmap(combine, (None, 0))(before, states)
    states = jax.tree.map(lambda x, y: jnp.where(is_first, x, y), states, moved)

    def everywhere(x: jax.Array) -> jax.Array:
        """The same value, typed as the same on every device."""
        number = x.astype(jnp.int32) if x.dtype == jnp.bool_ else x
        return lax.psum(jnp.where(is_first, number, jnp.zeros_like(number)), axis_name).astype(x.dtype)

    return states, jax.tree.map(everywhere, whole)
