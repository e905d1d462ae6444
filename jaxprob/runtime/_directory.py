"""The directory of a run: who may write in it, and `meta.json`, which says what the run is.

    OUT/meta.json        format, versions, seed, mesh, settings, leaves, status, times
    OUT/draws.zarr/      sampling, Zarr v3: posterior/, sample_stats/, at the end observed_data/, posterior_predictive/
    OUT/metrics.jsonl    training: a line a logged step
    OUT/checkpoints/     orbax, by step
    OUT/summary.json, summary.txt, diagnosis.txt, report.html

Nothing is made before the run is known to start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprob import core
from jaxprob.runtime._store import write_json

FORMAT = 1
META, DRAWS, CHECKPOINTS = "meta.json", "draws.zarr", "checkpoints"
_PACKAGES = ("jaxprob", "jax", "jaxlib", "numpy", "orbax-checkpoint", "tensorstore", "distrax")

# What must be the same when a run is resumed: with any other value the draws would not be those of one run.
_FIXED = ("seed", "chains", "warmup", "thin", "algorithm", "narrow", "x64", "leaves", "data")


def shown(path: Path) -> str:
    """A path as a person would type it: relative to the working directory where it lies inside that."""
    path, here = Path(path).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path != here and here in path.parents else str(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def fingerprint(target: Any) -> str:
    """A hash of the arrays in a target: the data and arguments of a model."""
    digest = hashlib.sha256()
    for name, leaf in core.named_leaves(target):
        value = np.asarray(jax.random.key_data(leaf) if core.is_key(leaf) else leaf)
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def read_meta(out: Path, kind: str = "sampling") -> dict[str, Any]:
    """`meta.json` of a run directory.

    Args:
      out: the directory.
      kind: "sampling" or "training".

    Raises:
      ValueError: if there is none, it cannot be read, or it is of a run of the other kind.
    """
    path = Path(out) / META
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise core.bad_value(
            "load",
            "path",
            f"{out}, which has no {META}",
            "the directory of a run",
            "Give the directory that was passed as out",
        ) from None
    except (OSError, ValueError) as error:
        raise core.bad_value("load", "path", f"{path} ({error})", "a readable meta.json") from error
    if meta.get("format") != FORMAT:
        raise core.bad_value(
            "load",
            "path",
            f"{out} of format {meta.get('format')}",
            f"a run directory of format {FORMAT}",
            f"It was written by jaxprob {meta.get('versions', {}).get('jaxprob', '?')}; read it with that version",
        )
    if (found := meta.get("kind", "sampling")) != kind:
        verb = {"sampling": "jaxprob.runtime.load", "training": "jaxprob.fit(..., resume=True)"}[found]
        raise core.bad_value("load", "path", f"{out}, a {found} run", f"a {kind} run", f"Open it with {verb}")
    return meta


def check_resumable(
    out: Path, old: dict[str, Any], new: dict[str, Any], fixed: Sequence[str] = _FIXED, function: str = "sample"
) -> None:
    """Raises a `ValueError` that names the first setting of `fixed` in which a run differs from the one in `out`."""
    for name in fixed:
        if old.get(name) != new[name]:
            was, now = (json.dumps(x.get(name)) for x in (old, new))
            if len(was) > 120 or len(now) > 120:
                was, now = was[:120], now[:120]
            raise core.bad_value(
                function,
                name,
                now,
                f"{was}, as in the run in {out}",
                "Resume with the same model, data and settings, or choose another out",
            )


@contextlib.contextmanager
def locked(out: Path, function: str = "sample") -> Iterator[None]:
    """Holds a run directory for writing; the lock goes with the process, however it ends.

    Raises:
      ValueError: if another process holds it.
    """
    path = out / ".lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise core.bad_value(
                function,
                "out",
                f"{out}, in which {holder} is writing",
                "a folder of its own",
                "Wait for that run to end, or choose another out",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_new(out: Path, resume: bool, function: str = "sample") -> bool:
    """Whether `out` holds a run to go on from.

    Raises:
      ValueError: if it holds one and `resume` is false, or holds something else.
    """
    if (out / META).exists():
        if resume:
            return True
        raise core.bad_value(
            function,
            "out",
            f"{out}, which holds a run",
            "a new or empty folder",
            "Choose another, or go on with that run by resume=True",
        )
    if out.exists() and (not out.is_dir() or any(entry.name != ".lock" for entry in out.iterdir())):
        raise core.bad_value(
            function, "out", f"{out}, which exists and is not a run", "a new or empty folder", "Choose another"
        )
    return False


def update_meta(out: Path, meta: dict[str, Any], function: str = "sample", **changes: Any) -> None:
    """Changes `meta` and writes it."""
    meta.update(changes)
    write_json(out / META, meta, function)
