"""How training lies on a mesh: batches in slices along "data" and "time", parameters whole or cut by rules.

The optimiser's state and the average follow the parameters that they belong to. XLA's partitioner does the rest: the
mean over a batch that is cut becomes a reduction over devices.

Source: Xu et al. (2021), "GSPMD"; Rajbhandari et al. (2020), "ZeRO", for parameters cut over the data axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.runtime._mesh import CHAINS, DATA, MODEL, TIME, mesh

BIG = 4096  # numbers in a leaf from which on "fsdp" cuts it


def training_mesh(devices: Any, batch: Any, function: str = "fit") -> Mesh:
    """The mesh of a training run.

    Args:
      devices: None for as many devices as divide the batch; a number of devices; a list of them; or a mesh with an axis
        "data".
      batch: pytree of arrays or shapes, (example, ...).
      function: name of the caller, for error messages.

    Raises:
      ValueError: if the devices along "data" do not divide the batch, those along "time" no sequence in it, or there
        are fewer devices than asked for.
    """
    sizes = {name: np.shape(leaf)[0] for name, leaf in core.named_leaves(batch) if np.ndim(leaf)}
    if devices is None:
        available = jax.devices()
        number = max(n for n in range(1, len(available) + 1) if all(size % n == 0 for size in sizes.values()))
        if jax.process_count() > 1 and number < len(available):
            expected = f"a multiple of the {len(available)} devices of {jax.process_count()} processes"
            name, size = next((name, size) for name, size in sizes.items() if size % len(available))
            raise core.bad_value(function, f"batch, leaf {name!r},", f"of {size} examples", expected)
        return mesh(data=number, model=1, devices=available)
    if isinstance(devices, int) and not isinstance(devices, bool):
        if devices < 1:
            raise core.bad_value(function, "devices", devices, "a number of devices of at least 1")
        devices = mesh(data=devices, model=1)
    elif isinstance(devices, (list, tuple)) and devices:
        devices = mesh(data=len(devices), model=1, devices=devices)
    elif not isinstance(devices, Mesh):
        expected = "None, a number of devices, a list of devices or runtime.mesh(data=..., model=...)"
        raise core.bad_type(function, "devices", core.describe(devices), expected)
    if DATA not in devices.axis_names or devices.shape.get(CHAINS, 1) > 1:
        got = f"a mesh of {' x '.join(f'{name}={size}' for name, size in devices.shape.items())}"
        todo = "Make it with runtime.mesh(data=..., model=...)"
        raise core.bad_value(function, "devices", got, "one with an axis 'data' and none for chains", todo)
    slices = devices.shape[DATA]
    for name, size in sizes.items():
        if size % slices:
            got = f"of {size} examples"
            raise core.bad_value(
                function, f"batch, leaf {name!r},", got, f"a multiple of the mesh's {slices} devices along 'data'"
            )
    pieces = devices.shape.get(TIME, 1)
    if pieces > 1 and not any(TIME in spec for spec in jax.tree.leaves(batch_specs(batch, devices), is_leaf=_is_spec)):
        got = f"a mesh of {pieces} devices along 'time' for leaves of shapes "
        got += ", ".join(str(np.shape(leaf)) for _, leaf in core.named_leaves(batch))
        raise core.bad_value(function, "devices", got, "one (example, time, ...) whose times they divide")
    return devices


def batch_specs(batch: Any, mesh: Mesh, lead: tuple[None, ...] = ()) -> Any:
    """How a batch lies: cut along its leading axis where the devices divide it; `lead`: axes before that one.

    With an axis "time" in the mesh the next axis is cut as well, where the devices along it divide it. Where it is no
    time, that is as right, since it is only where numbers lie.
    """
    pieces = mesh.shape.get(TIME, 1)

    def spec(leaf: Any) -> P:
        shape = np.shape(leaf)[len(lead) :]
        if not shape or shape[0] % mesh.shape[DATA]:
            return P()
        return P(*lead, DATA, TIME) if pieces > 1 and len(shape) > 1 and shape[1] % pieces == 0 else P(*lead, DATA)

    return jax.tree.map(spec, batch)


def state_specs(state: Any, sharding: Any, mesh: Mesh, function: str = "fit") -> Any:
    """How a `learning.TrainingState` lies.

    Args:
      state: the state, or its shapes.
      sharding: None, rules or "fsdp", as for `fit`.
      mesh: the devices.
      function: name of the caller, for error messages.

    Returns:
      pytree of `PartitionSpec` like `state`.

    Raises:
      ValueError, TypeError: if a rule meets no leaf, or cannot cut a leaf that it meets.
    """
    params = core.named_leaves(state.params)
    if sharding is None:
        found = {name: P() for name, _ in params}
    elif sharding == "fsdp":
        found = {name: _largest_axis(leaf.shape, mesh.shape[DATA]) for name, leaf in params}
    elif isinstance(sharding, Mapping):
        found = _by_rules(params, sharding, mesh, function)
    else:
        expected = "None, 'fsdp' or a dict from patterns of leaf paths to axes"
        raise core.bad_type(function, "sharding", core.describe(sharding), expected)
    shapes = {name: leaf.shape for name, leaf in params}

    def follow(path: str, leaf: Any) -> P:
        # An optimiser keeps trees like the parameters inside its own: their leaves end in the parameter's path.
        names = [n for n, shape in shapes.items() if shape == leaf.shape and _ends(path, n)]
        return found[max(names, key=len)] if names else P()

    return type(state)(
        params=core.map_named(lambda name, _: found[name], state.params),
        optimizer_state=core.map_named(follow, state.optimizer_state),
        average=core.map_named(lambda name, _: found[name], state.average),
        step=P(),
    )


def shardings(specs: Any, mesh: Mesh) -> Any:
    """A pytree of `NamedSharding` from one of `PartitionSpec`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _ends(path: str, name: str) -> bool:
    # A bare array as parameters has no path of its own ("value").
    return name == "value" or path == name or path.endswith(f".{name}")


def _largest_axis(shape: tuple[int, ...], slices: int) -> P:
    axes = [axis for axis, size in enumerate(shape) if size % slices == 0]
    if int(np.prod(shape)) < BIG or not axes or slices == 1:
        return P()
    largest = max(axes, key=lambda axis: shape[axis])
    return P(*(DATA if axis == largest else None for axis in range(len(shape))))


def _by_rules(params: list[tuple[str, Any]], rules: Mapping[str, Any], mesh: Mesh, function: str) -> dict[str, P]:
    """The first rule whose pattern meets a leaf takes it; the others lie on every device."""
    for pattern, axes in rules.items():
        where = f"sharding[{pattern!r}]"
        if not isinstance(axes, (tuple, list, P)):
            expected = f"a tuple with a mesh axis or None for each axis of the leaf, such as ({MODEL!r}, None)"
            raise core.bad_type(function, where, core.describe(axes), expected)
    places = core.match_patterns(function, "sharding[{}]", list(rules), [name for name, _ in params])
    found = {}
    for (name, leaf), place in zip(params, places, strict=True):
        found[name] = P()
        if place < len(rules):
            pattern, axes = list(rules.items())[place]
            _check_rule(function, f"sharding[{pattern!r}]", name, leaf.shape, axes, mesh)
            found[name] = P(*axes)
    return found


def _check_rule(function: str, where: str, name: str, shape: tuple[int, ...], axes: Any, mesh: Mesh) -> None:
    if len(axes) > len(shape):
        raise core.bad_value(function, where, f"{tuple(axes)} for {name!r} of shape {shape}", f"{len(shape)} axes")
    for size, entry in zip(shape, axes, strict=False):
        for axis in () if entry is None else entry if isinstance(entry, tuple) else (entry,):
            if axis not in mesh.axis_names:
                raise core.bad_value(function, where, f"over {axis!r}", f"axes of the mesh, {mesh.axis_names}")
        cuts = int(np.prod([mesh.shape[axis] for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]))
        if size % cuts:
            got = f"{tuple(axes)} for {name!r} of shape {shape}"
            raise core.bad_value(function, where, got, f"axes that the mesh's {cuts} devices divide")
