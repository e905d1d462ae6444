"""The host loop under sampling and training: one compiled chunk after another, and the decisions between two of them.

Between chunks it looks at stop signals and stopping rules, lets a checkpoint be written when one is due, and tells the
progress object; several processes decide together. Chunks are cut by time, not by number: where they are cut changes no
bit of the result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprob.runtime import _checkpoint
from jaxprob.runtime._signals import StopSignals
from jaxprob.runtime._until import Status, Until

SECONDS_PER_CHUNK = 1.0
FIRST_CHUNK = 8


@dataclass(kw_only=True)
class Loop:
    """A run under way, to be driven by `go`. A subclass says what a chunk is and what is kept of it.

    Attributes:
      step: steps done so far.
      checkpoints: folder for checkpoints, or None; checkpoint_every: seconds between two of them.
      until: a rule that ends the run before all steps are done.
      progress: whom to tell; None for nobody.
    """

    step: int = 0
    checkpoints: Path | None = None
    checkpoint_every: float = 30.0
    until: Until | None = None
    progress: Any = None

    _last_count: int = FIRST_CHUNK
    _watched: bool = False

    @property
    def total(self) -> int:
        """The step at which the run is complete."""
        raise NotImplementedError

    def most(self) -> int:
        """How long the next chunk may be at most."""
        raise NotImplementedError

    def phase(self) -> str:
        """What the next chunk does, for the progress object."""
        raise NotImplementedError

    def advance(self, count: int) -> float:
        """Takes a chunk of `count`, moves `step` and keeps what came out; returns how much a second of that is."""
        raise NotImplementedError

    def status(self, seconds: float) -> Status:
        """What a rule may look at, `seconds` after the beginning."""
        raise NotImplementedError

    def facts(self, status: Status, rate: float) -> dict[str, Any]:
        """What the progress object is told beside step, total and seconds; `rate`: what `advance` returned."""
        raise NotImplementedError

    def flush(self) -> None:
        """Makes safe what was kept so far."""
        raise NotImplementedError

    def write_checkpoint(self, folder: Path) -> None:
        """Writes the state at `step`."""
        raise NotImplementedError

    def go(self) -> str:
        """Runs until all steps are done, a rule is met or a signal comes.

        Returns:
          "finished", or why it stopped earlier: "until: ..." (a finished run as well) or "signal: SIGTERM".
        """
        began = saved = time.monotonic()
        rate, ended = 0.0, "finished"
        # What is computed only for someone who looks at it is computed by all processes together, though only the first
        # may have someone to tell: they agree beforehand, or some would wait for the others for ever.
        self._watched = bool(from_first(int(self.until is not None or self.progress is not None)))
        with StopSignals() as signals:
            while self.step < self.total:
                count = self._next_count(rate)
                if self.progress is not None:
                    self.progress.phase(self.phase())
                rate = self.advance(count)
                status = self.status(time.monotonic() - began)
                self._tell(status, rate)
                stop, due = agree(
                    signals.requested is not None, self._due(saved), self.until is not None and self.until.met(status)
                )
                if due or stop:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop == 1:
                    ended = f"signal: {signals.requested or 'another process was told to stop'}"
                    break
                if stop == 2:
                    ended = f"until: {self.until}"
                    break
        if ended == "finished":
            self.checkpoint()
        return ended

    def checkpoint(self) -> None:
        """Makes everything up to this step safe: what was kept first, then the state that goes on from it."""
        self.flush()
        if self.checkpoints is not None and self.step not in _checkpoint.steps(self.checkpoints):
            self.write_checkpoint(self.checkpoints)

    def _next_count(self, rate: float) -> int:
        # Grow at most fourfold: the first steps of a warm-up are no guide to the later ones.
        wanted = FIRST_CHUNK if rate == 0 else int(min(rate * SECONDS_PER_CHUNK, 4 * self._last_count))
        self._last_count = from_first(max(1, min(wanted, self.most())))
        return self._last_count

    def _due(self, saved: float) -> bool:
        return self.checkpoints is not None and time.monotonic() - saved >= self.checkpoint_every

    def _tell(self, status: Status, rate: float) -> None:
        if self.progress is not None:
            known = {"step": self.step, "total": self.total, "seconds": status.seconds}
            self.progress.update(known | self.facts(status, rate))


def agree(signal: bool, due: bool, met: bool) -> tuple[int, bool]:
    """What all processes do next. A signal to any process stops them all; the clock is that of the first.

    Returns:
      0 to go on, 1 to stop for a signal, 2 to stop because the rule is met; and whether a checkpoint is due.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        votes = np.asarray(multihost_utils.process_allgather(np.asarray([signal, due, met], np.int32)))
        signal, due, met = bool(votes[:, 0].any()), bool(votes[0, 1]), bool(votes[0, 2])
    return (1 if signal else 2 if met else 0), due


def from_first(value: int) -> int:
    """The number that the first process has, in all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
