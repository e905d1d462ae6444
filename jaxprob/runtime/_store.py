"""Draw stores: where a run puts its rows, chunk by chunk. In memory, or a directory of Zarr arrays.

The directory is a Zarr v3 hierarchy that xarray and zarr read while the run goes on. Rows reach the disk before the
array's metadata says that they exist, so a reader (or a run that is resumed after a kill) never sees a row that is not
there. Arrays have dimensions (chain, draw, ...).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxprob import core

Rows = dict[str, np.ndarray]
"""Arrays by path (`posterior/theta`), each (rows, chain, ...) as they leave the device."""


class DrawStore(Protocol):
    """Where rows go. `append` may return before the rows are safe; `flush` returns when they are."""

    rows: int

    def append(self, rows: Rows) -> None:
        """Adds rows at the end."""
        ...

    def flush(self) -> None:
        """Waits until everything appended can be read back."""
        ...

    def read(self, path: str) -> np.ndarray:
        """One array whole, (chain, draw, ...)."""
        ...

    def open(self, path: str) -> Any:
        """One array to be sliced, which reads only what is asked for."""
        ...

    def paths(self) -> list[str]:
        """The arrays there are."""
        ...


class MemoryStore:
    """Rows in host memory, copied from where they come: a chunk's buffer is larger than its rows.

    Args:
      room: rows to make room for at first, which take memory only once they are written; further ones as they come.
    """

    def __init__(self, room: int = 0) -> None:
        self.rows = 0
        self._room = room
        self._arrays: dict[str, np.ndarray] = {}

    def append(self, rows: Rows) -> None:
        """Adds rows at the end."""
        stop = self.rows + _length(rows)
        for path, part in rows.items():
            part = np.moveaxis(np.asarray(part), 0, 1)
            self._make_room(path, part, stop)
            self._arrays[path][:, self.rows : stop] = part
        self.rows = stop

    def flush(self) -> None:
        """Does nothing: memory is always up to date."""

    def read(self, path: str) -> np.ndarray:
        """One array whole, (chain, draw, ...)."""
        return self._arrays[path][:, : self.rows]

    def open(self, path: str) -> np.ndarray:
        """The array itself."""
        return self.read(path)

    def paths(self) -> list[str]:
        """The arrays there are."""
        return list(self._arrays)

    def _make_room(self, path: str, part: np.ndarray, stop: int) -> None:
        old = self._arrays.get(path)
        if old is not None and old.shape[1] >= stop:
            return
        room = max(stop, self._room if old is None else 2 * old.shape[1])
        self._arrays[path] = np.empty((len(part), room, *part.shape[2:]), part.dtype)
        if old is not None:
            self._arrays[path][:, : self.rows] = old[:, : self.rows]


class ZarrStore:
    """Rows in a directory of Zarr v3 arrays, written through tensorstore.

    Args:
      root: the directory; made when the first rows come.
      chunk: draws a Zarr chunk; fixed when an array is made.
      rows: rows already there that count (those of the checkpoint a run goes on from); later ones are overwritten.
    """

    def __init__(self, root: Path, chunk: int, rows: int = 0) -> None:
        self.root = Path(root).resolve()
        self.rows = rows
        self._chunk = chunk
        self._arrays: dict[str, Any] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        self._pending: list[Any] = []
        self._published = rows

    def append(self, rows: Rows) -> None:
        """Adds rows at the end; they are safe, and seen by readers, after the next `append` or `flush`."""
        self.flush()
        length = _length(rows)
        for path, part in rows.items():
            part = _storable(part)
            array = self._open(path, part)
            block = np.moveaxis(part, 0, 1)
            self._pending.append(array[:, self.rows : self.rows + length].write(block))
        self.rows += length

    def flush(self) -> None:
        """Waits for the rows on their way, then lets readers see them."""
        pending, self._pending = self._pending, []
        try:
            for future in pending:
                future.result()
        except Exception as error:
            raise disk_error(error, self.root, self._published) from error
        if self._published != self.rows:
            for path, metadata in self._metadata.items():
                metadata["shape"][1] = self.rows
                write_json(self.root / path / "zarr.json", metadata)
            self._published = self.rows

    def write_whole(self, path: str, value: np.ndarray, dimensions: list[str]) -> None:
        """Writes one array that is not appended to, such as the observed data."""
        value = _storable(value)
        array, metadata = self._create(path, value, list(value.shape), dimensions)
        try:
            array[...].write(value).result()
        except Exception as error:
            raise disk_error(error, self.root, self._published) from error
        write_json(self.root / path / "zarr.json", metadata)

    def read(self, path: str) -> np.ndarray:
        """One array whole, (chain, draw, ...)."""
        return self.open(path)[...]

    def open(self, path: str) -> DiskArray:
        """One array to be sliced, with the rows there are now."""
        self.flush()
        return DiskArray(self.root / path)

    def paths(self) -> list[str]:
        """The arrays there are."""
        return array_paths(self.root)

    def _open(self, path: str, part: np.ndarray) -> Any:
        if path not in self._arrays:
            chain_and_rest = part.shape[1:]
            dimensions = ["chain", "draw", *(f"{Path(path).name}_dim_{i}" for i in range(part.ndim - 2))]
            shape = [chain_and_rest[0], np.iinfo(np.int32).max, *chain_and_rest[1:]]
            chunks = [chain_and_rest[0], self._chunk, *chain_and_rest[1:]]
            self._arrays[path], self._metadata[path] = self._create(path, part, shape, dimensions, chunks)
        return self._arrays[path]

    def _create(
        self, path: str, like: np.ndarray, shape: list[int], dimensions: list[str], chunks: list[int] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        import tensorstore as ts

        metadata: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": like.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in chunks or shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if like.dtype == bool else "NaN" if like.dtype.kind == "f" else 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {},
            "dimension_names": dimensions,
        }
        if like.dtype.itemsize == 1:
            metadata["codecs"] = [{"name": "bytes"}]
        self._groups(path)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(self.root / path) + "/"},
            "metadata": {**metadata, "shape": list(shape)},
        }
        # The metadata on disk is ours to publish, after the rows: tensorstore takes what it is told.
        array = ts.open(spec, open=True, assume_metadata=True).result()
        return array, metadata

    def _groups(self, path: str) -> None:
        for folder in [self.root, *(self.root / parent for parent in reversed(Path(path).parents[:-1]))]:
            if not (folder / "zarr.json").exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})


class DiskArray:
    """A Zarr array (chain, draw, ...) of which slices are read, a Zarr chunk at a time.

    Args:
      folder: where it is.
      rows: how many draws of it count; None for all there are.
    """

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        import tensorstore as ts

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(Path(folder).resolve()) + "/"}}
        array = ts.open(spec, open=True, read=True, write=False).result()
        self._array = array if rows is None or array.ndim < 2 else array[:, :rows]
        self._rows_in_chunk = int(array.chunk_layout.read_chunk.shape[1]) if array.ndim > 1 else 1  # type: ignore[arg-type, index]
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        parts = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
        # As in NumPy a slice may reach beyond the end.
        parts = tuple(
            slice(*part.indices(size)) if isinstance(part, slice) else part
            for part, size in zip(parts, self.shape, strict=False)
        )
        wanted = self._array[parts].translate_to[0] if parts else self._array
        if wanted.ndim < 2 or wanted.ndim != self.ndim:
            return np.asarray(wanted.read().result())
        # Asked for everything at once, tensorstore would hold all chunks until the last one is there.
        stride = parts[1].step if len(parts) > 1 and isinstance(parts[1], slice) else 1
        rows = max(1, self._rows_in_chunk // stride)
        value = np.empty(wanted.shape, self.dtype)
        for start in range(0, value.shape[1], rows):
            stop = min(start + rows, value.shape[1])
            value[:, start:stop] = wanted[:, start:stop].read().result()
        return value


def array_paths(root: Path) -> list[str]:
    """Paths of the arrays under a Zarr hierarchy, such as `posterior/theta`, in order."""
    found = []
    for file in sorted(Path(root).glob("**/zarr.json")):
        if json.loads(file.read_text())["node_type"] == "array":
            found.append(file.parent.relative_to(root).as_posix())
    return found


def write_json(path: Path, value: Mapping[str, Any], function: str = "sample") -> None:
    """Replaces a JSON file in one step, so that a reader sees the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path.parent, None, function) from error


def _storable(value: Any) -> np.ndarray:
    """The array itself, or in float32 where Zarr has no such type (bfloat16)."""
    value = np.asarray(value)
    return value if value.dtype.kind in "biufc" else value.astype(np.float32)


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def disk_error(error: Exception, folder: Path, rows: int | None, function: str = "sample") -> OSError:
    """The one line for a folder that cannot be written; `rows`: how many draws are known to be safe."""
    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    if any(word in str(error) for word in ("No space", "ENOSPC", "RESOURCE_EXHAUSTED")):
        code = errno.ENOSPC
    reason = os.strerror(code) if code != errno.EIO else " ".join(str(error).split())[:200]
    kept = "What was written before is safe" if rows is None else f"The first {rows} draws are safe"
    line = core.message(
        function, "out", f"{folder} ({reason})", "a folder that can be written", f"{kept}; make room and resume"
    )
    return OSError(code, line)
