"""Checkpoints: a pytree on disk by step, written through orbax, read back on any number of devices.

A checkpoint appears under its final name when it is whole. The newest two are kept, so that a run can go on from the
one before if the newest was damaged after it was written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprob import core
from jaxprob.runtime._store import disk_error, write_json

KEPT = 2


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by number: what is on disk does not depend on how a state is nested. Empty leaves have nothing to save."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if np.size(leaf)}


def steps(folder: Path) -> list[int]:
    """The steps that have a whole checkpoint, in order."""
    if not Path(folder).is_dir():
        return []
    return sorted(int(entry.name) for entry in Path(folder).iterdir() if entry.is_dir() and entry.name.isdigit())


def save(folder: Path, step: int, tree: Any, extra: Mapping[str, Any] | None = None, function: str = "sample") -> None:
    """Writes `folder/<step>`, then removes all but the newest two.

    Every process of a distributed run calls it; leaves are arrays on the run's mesh.

    Args:
      folder: the folder of checkpoints, made if need be.
      step: the step of the state.
      tree: pytree of arrays.
      extra: what belongs to the state and is no array, as JSON; it is written first, so that it is there when the
        checkpoint is.
      function: the caller's name, for messages.

    Raises:
      OSError: when the disk is full or cannot be written; older checkpoints are untouched.
    """
    from orbax.checkpoint import v1 as orbax

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if extra is not None and jax.process_index() == 0:
        write_json(_extra_file(folder, step), extra, function)
    try:
        with _quiet():
            orbax.save(folder / str(step), _flat(tree), overwrite=True)
    except Exception as error:
        raise disk_error(error, folder, None, function) from error
    if jax.process_index() == 0:
        for old in steps(folder)[:-KEPT]:
            shutil.rmtree(folder / str(old), ignore_errors=True)
        kept = [_extra_file(folder, step) for step in steps(folder)]
        for file in set(folder.glob("*.json")) - set(kept):
            file.unlink(missing_ok=True)


def extra(folder: Path, step: int) -> dict[str, Any]:
    """What was saved with `folder/<step>` beside its arrays.

    Raises:
      ValueError: if it cannot be read.
    """
    file = _extra_file(Path(folder), step)
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise core.bad_value("load", "checkpoint", f"{file} ({error})", "a whole checkpoint of this run") from error


def _extra_file(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"


def load(folder: Path, step: int, like: Any) -> Any:
    """Reads `folder/<step>` into the structure, dtypes and shardings of `like`.

    Args:
      folder: the folder of checkpoints.
      step: one of `steps(folder)`.
      like: pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      ValueError: if the checkpoint cannot be read, or holds other leaves than `like`.
    """
    from orbax.checkpoint import v1 as orbax

    path = Path(folder).resolve() / str(step)
    try:
        with _quiet():
            found = orbax.load(path, _flat(like))
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise core.bad_value(
            "load",
            "checkpoint",
            f"{path}, which cannot be read ({reason})",
            "a whole checkpoint of this run",
            "Remove that folder to go on from the one before",
        ) from error
    leaves, structure = jax.tree.flatten(like)
    values = [found.get(f"{i:05d}", leaf) for i, leaf in enumerate(leaves)]
    for (name, leaf), value in zip(core.named_leaves(like), values, strict=True):
        if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            raise core.bad_value(
                "load",
                f"checkpoint, leaf {name!r},",
                f"{value.dtype} of shape {value.shape}",
                f"{leaf.dtype} of shape {leaf.shape}",
                "It belongs to another model or to other settings",
            )
    return jax.tree.unflatten(structure, values)


def load_newest(folder: Path, like: Any) -> tuple[int, Any, list[str]]:
    """The newest checkpoint that can be read.

    Returns:
      its step, the pytree, and one line for each newer checkpoint that could not be read.

    Raises:
      ValueError: if none can be read (the message is that of the newest); FileNotFoundError if there is none.
    """
    found = steps(folder)
    if not found:
        raise FileNotFoundError(core.message("load", "folder", f"{folder}", "a folder with checkpoints"))
    problems: list[ValueError] = []
    for step in reversed(found):
        try:
            return step, load(folder, step, like), [str(problem) for problem in problems]
        except ValueError as problem:
            problems.append(problem)
    raise problems[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's own reports of each save and of each file it could not parse: our one line says it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
