"""A training run under way: what the host loop does with a chunk of training steps, and keeps of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprob import core, learning
from jaxprob.runtime import _checkpoint, _directory, _fit_program
from jaxprob.runtime._feed import Block, Feed, decode, encode
from jaxprob.runtime._loop import Loop
from jaxprob.runtime._mesh import fetch
from jaxprob.runtime._metrics import Metrics
from jaxprob.runtime._sharding import shardings
from jaxprob.runtime._until import Status


class NotFiniteError(FloatingPointError):
    """A loss or a gradient that is not finite.

    Attributes:
      step: number of the step at fault, counted from 1.
      result: the `FitResult` of the steps before it.
    """

    step: int = 0
    result: Any = None


@dataclass
class TrainingJob(Loop):
    """A training run under way; `go` runs it to its end.

    Attributes:
      program, key: what is run.
      state: after `step` steps; best: the best evaluation so far, None without validation.
      steps: how many there will be.
      source: an `Indexed` source on the mesh, or None with `feed`, a stream.
      validation: an `Indexed` source on the mesh, or None; evaluate_every: steps between two evaluations.
      log_every: steps between two lines of metrics.
      position: of the stream behind the last batch that was used.
      over: whether patience is.
    """

    program: _fit_program.Program
    key: core.Key
    state: learning.TrainingState
    best: _fit_program.Best | None
    steps: int
    source: Any
    feed: Feed | None
    validation: Any
    evaluate_every: int
    log_every: int
    metrics: Metrics = field(default_factory=Metrics)
    position: Any = None
    over: bool = False
    times: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "training": 0.0})

    _block: Block | None = None
    _last: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The last step: where the patience or the stream is at its end, this one."""
        ended = self.feed is not None and self.feed.ended and self._block is None
        return self.step if self.over or ended else self.steps

    def compile(self) -> None:
        """Compiles the chunk by running none of its steps, and checks that the validation fits."""
        began = time.perf_counter()
        if self.step < self.total:
            batches = None if self.feed is None else self.feed.read(0, self.program.mesh).batches
            self.state = self._chunk(batches, 0).state
            if self.validation is not None:
                arguments = (self.validation, self.key, self.state.evaluation_params, self.best, np.int32(0))
                jax.eval_shape(lambda *given: _fit_program.evaluate(self.program, *given), *arguments)
            jax.block_until_ready(self.state)
        self.times["compile"] += time.perf_counter() - began

    def most(self, ahead: int = 0) -> int:
        """Steps of the chunk that begins `ahead` steps from here at most: to the next evaluation."""
        step = self.step + ahead
        left = min(self.steps - step, self.program.capacity)
        return left if self.validation is None else min(left, self.evaluate_every - step % self.evaluate_every)

    def phase(self) -> str:
        """Always the same."""
        return "training"

    def advance(self, count: int) -> float:
        """Takes `count` steps, writes down their metrics and evaluates where it is time.

        Raises:
          NotFiniteError: at the first loss or gradient that is not finite.
        """
        began = time.perf_counter()
        block, mesh = self._block, self.program.mesh
        if self.feed is not None:
            block = block or self.feed.read(count, mesh)
            count = block.size
        out = self._chunk(block and block.batches, count)
        self.state, self._block = out.state, None
        if self.feed is not None and (ahead := self.most(count)) > 0 and not self.feed.ended:
            self._block = self.feed.read(min(count, ahead), mesh)  # while the device works
        rows, taken, finite = fetch((out.rows, out.taken, out.finite))
        good = int(taken) - (not finite)
        seconds = time.perf_counter() - began
        self.times["training"] += seconds
        first, self.step = self.step, self.step + good
        if block is not None:
            self.position = block.position
        evaluated = self._evaluate() if good and finite else {}
        rows = {name: rows[name] for name in dict.fromkeys(("loss", "gradient_norm", *rows))}
        for index in range(good):
            step = first + index + 1
            extra = evaluated if step == self.step else {}
            if step % self.log_every == 0 or extra:
                self.metrics.add({"step": step, **{name: _number(x[index]) for name, x in rows.items()}, **extra})
        self.metrics.write()
        if not finite:
            raise self._not_finite({name: x[good] for name, x in rows.items()})
        self._last = {"loss": float(rows["loss"][good - 1]), **(evaluated or _only_validation(self._last))}
        return good / max(seconds, 1e-6)

    def status(self, seconds: float) -> Status:
        """Steps and seconds."""
        return Status(seconds, self.step)

    def facts(self, status: Status, rate: float) -> dict[str, Any]:
        """Speed and losses."""
        endless = {"total": None} if self.steps == _fit_program.NEVER else {}
        return {"phase": "training", "steps_per_second": rate, **self._last, **endless}

    def flush(self) -> None:
        """Waits until the metrics so far are safe."""
        self.metrics.write(safe=True)

    def write_checkpoint(self, folder: Path) -> None:
        """Writes the state, the best parameters and the position of the data."""
        extra = {"position": encode(self.position)}
        _checkpoint.save(folder, self.step, self._saved(), extra, "fit")

    def restore(self, folder: Path) -> list[str]:
        """Goes to the newest checkpoint that can be read; returns a line for each newer one that cannot."""
        state = jax.tree.unflatten(jax.tree.structure(self.state), self.program.specs)
        best = None
        if self.best is not None:
            stopping = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), self.best[1:])
            best = _fit_program.Best(state.params, *stopping)
        lying = shardings({"state": state, "best": best}, self.program.mesh)
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self._saved(), lying)
        self.state = self.best = None  # type: ignore[assignment]  # or there would be two of each in memory
        self.step, saved, problems = _checkpoint.load_newest(folder, like)
        self.state, self.best = saved["state"], saved["best"]
        self.over = self.best is not None and bool(fetch(self.best.stopping.stop))
        if self.feed is not None:
            self.position = decode(_checkpoint.extra(folder, self.step)["position"])
            self.feed.go_to(self.position)
        return problems

    def _saved(self) -> dict[str, Any]:
        return {"state": self.state, "best": self.best}

    def _chunk(self, batches: Any, count: int) -> _fit_program.Chunk:
        first = np.int32(self.step)
        return _fit_program.chunk(self.program, self.source, batches, self.key, self.state, first, np.int32(count))

    def _evaluate(self) -> dict[str, Any]:
        if self.validation is None or self.step % self.evaluate_every:
            return {}
        assert self.best is not None
        params, step = self.state.evaluation_params, np.int32(self.step)
        means, self.best = _fit_program.evaluate(self.program, self.validation, self.key, params, self.best, step)
        means, over = fetch((means, self.best.stopping.stop))
        self.over = bool(over)
        return {f"validation/{name}": _number(x) for name, x in means.items()}

    def _not_finite(self, row: dict[str, np.ndarray]) -> NotFiniteError:
        name = "loss" if not np.isfinite(row["loss"]) else "gradient_norm"
        saved = [] if self.checkpoints is None else _checkpoint.steps(self.checkpoints)
        # In the first chunk. Of a stream the place is known between two chunks only.
        if not saved and self.checkpoints is not None and self.feed is None:
            self.write_checkpoint(self.checkpoints)
            saved = [self.step]
        if saved:
            folder = _directory.shown(self.checkpoints / str(saved[-1])) if self.checkpoints else ""
            todo = f"The last good checkpoint, of step {saved[-1]}, is {folder}"
        else:
            todo = "There is no checkpoint yet; the state before that step is in the error's `result`"
        got = f"{row[name]} at step {self.step + 1}"
        error = NotFiniteError(core.message("fit", name, got, "a finite number", todo))
        error.step = self.step + 1
        return error


def _only_validation(last: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in last.items() if name.startswith("validation/")}


def _number(value: Any) -> Any:
    """A scalar as JSON, with the digits that its dtype has."""
    return float(str(value)) if np.issubdtype(np.asarray(value).dtype, np.floating) else value.item()
