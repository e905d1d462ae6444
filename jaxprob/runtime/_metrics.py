"""The scalars of a training run by step: in memory, in `metrics.jsonl`, and for TensorBoard.

A line is a JSON object with the `step` (steps done) and what was measured at it. Lines are safe before the checkpoint
of their step is; a run that goes on from a checkpoint first drops the lines behind it, so that no step appears twice.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxprob import core
from jaxprob.runtime._store import disk_error

FILE, BOARD = "metrics.jsonl", "tensorboard"

Line = dict[str, Any]


class Metrics:
    """What was measured so far. It keeps everything in memory until `open` says where it belongs.

    Args:
      lines: those of an earlier part of the run.
    """

    def __init__(self, lines: list[Line] | None = None) -> None:
        self.lines: list[Line] = list(lines or [])
        self._written = len(self.lines)
        self._path: Path | None = None
        self._board: Any = None

    def open(self, folder: Path, step: int, tensorboard: bool) -> None:
        """Writes to a run directory from here on; what is there behind `step` is dropped.

        Raises:
          OSError: if it cannot be written.
        """
        self._path = folder / FILE
        _truncate(self._path, step)
        if tensorboard:
            self._board = board()(str(folder / BOARD), purge_step=step + 1)

    def add(self, line: Line) -> None:
        """Adds a line; `step` is above that of the line before."""
        self.lines.append(line)

    def write(self, safe: bool = False) -> None:
        """Writes what was added, for readers to see; with `safe` it waits until it would survive the machine.

        Raises:
          OSError: if it cannot be written.
        """
        new = self.lines[self._written :]
        if self._path is None or not (new or safe):
            return
        try:
            with open(self._path, "a") as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in new))
                file.flush()
                if safe:
                    os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self._path.parent, None, "fit") from error
        self._written = len(self.lines)
        if self._board is not None and new:
            for line in new:
                for name, value in line.items():
                    if name != "step":
                        self._board.add_scalar(name, value, line["step"])
            self._board.flush()

    def close(self) -> None:
        """Closes what is open."""
        if self._board is not None:
            self._board.close()

    def columns(self) -> dict[str, np.ndarray]:
        """Arrays (line,) by name; NaN where a line does not have the name."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        return {name: np.asarray([line.get(name, math.nan) for line in self.lines]) for name in ("step", *names)}


def read(folder: Path, step: int) -> list[Line]:
    """The lines of a run directory up to a step; a line that was being written when the run was killed is no line."""
    return [line for line, _ in _good(folder / FILE, step)]


def board() -> Any:
    """The writer of TensorBoard's files.

    Raises:
      ImportError: without the `tensorboard` extra.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        todo = "Install it with pip install 'jaxprob[tensorboard]'"
        line = core.message("fit", "tensorboard", "True without tensorboardX", "an installed tensorboardX", todo)
        raise ImportError(line) from None
    return SummaryWriter


def _good(path: Path, step: int) -> list[tuple[Line, int]]:
    """Whole lines up to a step, and where in the file each ends."""
    found: list[tuple[Line, int]] = []
    end = 0
    for text in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not text.endswith(b"\n") or line["step"] > step:
            break
        end += len(text)
        found.append((line, end))
    return found


def _truncate(path: Path, step: int) -> None:
    good = _good(path, step)
    try:
        with open(path, "a") as file:
            file.truncate(good[-1][1] if good else 0)
    except OSError as error:
        raise disk_error(error, path.parent, None, "fit") from error
