"""The front door of training: fit a task to data, on every device, resumable."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprob import core, learning
from jaxprob.runtime import _checkpoint, _directory, _fit_program, _metrics, _progress
from jaxprob.runtime._feed import Feed, encode
from jaxprob.runtime._fit_job import NotFiniteError, TrainingJob
from jaxprob.runtime._mesh import DATA, fetch, place
from jaxprob.runtime._sharding import state_specs, training_mesh
from jaxprob.runtime._until import Until

CAPACITY = 4096  # the most steps of one chunk
EVERY = 1000  # steps between two evaluations where the data have no epochs

# What must be the same when a run is resumed: with any other value the steps would not be those of one run.
_FIXED = ("seed", "x64", "batch", "data")


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
      params: the trained parameters, after the last step.
      average: their moving average, for a task with `ema`; else None.
      best: with validation, the parameters (the average where there is one) of the best evaluation; else None.
      best_step: the step at which that was; else None.
      state: the `learning.TrainingState` after the last step.
      history: dict of arrays (line,): "step", "loss", "gradient_norm", the loss's metrics, "validation/loss", ...; NaN
        where a line has no such value.
      step: steps done, those of an earlier part of the run included.
      ended: "finished", "patience: ...", "until: ..." or "signal: ...", which can be resumed.
      path: the run's directory, or None.
    """

    params: Any
    average: Any
    best: Any
    best_step: int | None
    state: learning.TrainingState
    history: dict[str, np.ndarray]
    step: int
    ended: str
    path: Path | None


def fit(
    task: learning.Task,
    data: Any,
    *,
    key: core.Key | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    validation: Any = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    devices: Any = None,
    sharding: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    log_every: int = 10,
    tensorboard: bool = False,
    progress: Any = "auto",
    until: Until | None = None,
    checkpoint_every: float = 30.0,
) -> FitResult:
    """Trains: chunks of steps under one `jit`, on every device, with validation, checkpoints and metrics.

    Args:
      task: what is trained (`learning.Task`).
      data: a source of batches (`learning.data.arrays`, `.generated`, `.stream`), or an iterator of them. In several
        processes each passes the same data and the same whole batches.
      key: random key, `jax.random.key(0)` by default. Step `t` uses `fold_in(key, t)` and nothing else, so that a run
        can be cut anywhere; the first parameters use one beyond any step.
      steps: how many steps; None for the end of a stream, or with an `until`.
      epochs: in place of `steps`, for data that have epochs.
      validation: a source with epochs; its loss and metrics are averaged over one epoch, with the average of the
        parameters where the task has one.
      evaluate_every: steps between two evaluations; by default an epoch of the data, or 1,000.
      patience: evaluations without a better validation loss after which the run ends.
      devices: None for all that divide the batch, a number, a list, or `runtime.mesh(data=..., model=..., time=...)`.
        Batches are cut along the mesh axis "data", and their second axis along "time" where there is one: sequence
        cores that are linear recurrences then run in pieces, others say that they cannot.
      sharding: None for parameters that lie whole on every device; "fsdp" for leaves of 4,096 numbers or more cut over
        "data" along their longest axis that can be; or rules `{"*.kernel": (None, "model")}` from patterns of leaf
        paths (as `core.named_leaves` spells them) to a mesh axis, or None, for each axis of the leaf. The first rule
        whose pattern meets a leaf takes it. The optimiser's state and the average follow the parameters.
      out: a folder for checkpoints and metrics; None keeps nothing.
      resume: go on with the run in `out` if there is one; bit-identical to a run that was never interrupted. More
        `steps` than at first extend it.
      log_every: steps between two lines of `out/metrics.jsonl` and of `history`.
      tensorboard: write the metrics to `out/tensorboard` too (extra `tensorboard`).
      progress: "auto" for a table on a terminal and silence elsewhere; True or `runtime.progress.terminal()`, or any
        object like it; None or False for silence.
      until: a rule to stop earlier, `runtime.wall_clock("2h")`.
      checkpoint_every: seconds between checkpoints, if there is an `out`.

    Returns:
      `FitResult`. After SIGTERM or SIGINT it is that of the steps done, and `ended` says so.

    Raises:
      ValueError, TypeError: for bad input, before anything is written.
      runtime.NotFiniteError: at the first loss or gradient that is not finite: it names the step and the last good
        checkpoint, and its `result` is that of the steps before.
      OSError: if `out` cannot be written; what was written before stays readable.

    >>> import optax
    >>> data = learning.data.arrays(jax.numpy.array([1.0, 2.0, 3.0, 2.0]), 4)
    >>> task = learning.Task(lambda key: 0.0, lambda w, batch, key: ((batch - w) ** 2).mean(), optax.sgd(0.1))
    >>> result = fit(task, data, steps=50)
    >>> f"{result.params:.3f} {result.history['loss'][-1]:.3f} {result.ended}"
    '2.000 0.500 finished'
    """
    plan = _Plan(task, data, key, steps, epochs, validation, evaluate_every, patience, devices, sharding, until, out)
    _natural("log_every", log_every)
    if resume and plan.folder is None:
        raise core.bad_value("fit", "out", None, "the folder of the run to resume", "Pass out=... with resume=True")
    if tensorboard:
        if plan.folder is None:
            raise core.bad_value("fit", "tensorboard", "True without out", "a folder to write to", "Pass out=...")
        _metrics.board()
    folder = plan.folder
    going_on = folder is not None and _directory.check_new(folder, resume, "fit")
    _wait_for_all("every process has looked at the folder before the first one writes in it")
    first = jax.process_index() == 0
    progress = (_automatic() if progress == "auto" else progress) if first and progress is not False else None
    progress = _progress.terminal() if progress is True else progress
    meta = {} if folder is None else plan.meta()
    with contextlib.ExitStack() as stack:
        if isinstance(plan.source, learning.data.Stream):
            stack.callback(plan.source.close)
        if progress is not None:
            stack.callback(progress.close)
            progress.start(plan.described())
            progress.phase("compiling")
        if going_on:
            assert folder is not None
            if first:
                stack.enter_context(_directory.locked(folder, "fit"))
            old = _directory.read_meta(folder, "training")
            _check_same(folder, old, meta)
            meta |= {name: old[name] for name in ("started", "times")}
        job = plan.job(log_every)
        if going_on:
            assert folder is not None
            job.times = dict(meta["times"])
            _restore(job, folder)
        job.checkpoint_every, job.until, job.progress = checkpoint_every, until, progress
        job.compile()
        # From here on the run is known to start: only now is anything written.
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            job.checkpoints = folder / _directory.CHECKPOINTS
            if first:
                if not going_on:
                    stack.enter_context(_directory.locked(folder, "fit"))
                job.metrics.open(folder, job.step, tensorboard)
                stack.callback(job.metrics.close)
            _write_meta(folder, meta, status="running")
        return _run(job, meta, folder)


class _Plan:
    """What a call of `fit` asks for, checked."""

    def __init__(
        self,
        task: Any,
        data: Any,
        key: Any,
        steps: int | None,
        epochs: int | None,
        validation: Any,
        evaluate_every: int | None,
        patience: int | None,
        devices: Any,
        sharding: Any,
        until: Until | None,
        out: str | Path | None,
    ) -> None:
        if not isinstance(task, learning.Task):
            raise core.bad_type("fit", "task", core.describe(task), "a learning.Task(init, loss, optimizer)")
        for name, value in (("steps", steps), ("epochs", epochs), ("evaluate_every", evaluate_every)):
            _natural(name, value)
        _natural("patience", patience)
        self.task, self.key = task, jax.random.key(0) if key is None else core.as_key(key, "fit")
        self.folder = None if out is None else Path(out).resolve()
        self.source = learning.data.as_source(data, "fit")
        self.validation = _as_validation(validation, evaluate_every, patience)
        self.evaluate_every = evaluate_every or self.source.num_batches or EVERY
        self.steps = _steps(steps, epochs, self.source, until)
        self.feed = None
        if isinstance(self.source, learning.data.Stream):
            self._check_stream(self.source)
            self.feed = Feed(self.source)
            self.batch = self.feed.batch
        else:
            self.batch = jax.eval_shape(self.source.batch, np.int32(0))
        mesh = training_mesh(devices, self.batch)
        self.shape = _fit_program.state_shape(task, self.key)
        specs = tuple(jax.tree.leaves(state_specs(self.shape, sharding, mesh), is_leaf=lambda x: isinstance(x, P)))
        capacity = CAPACITY if self.feed is None else self.feed.capacity
        self.program = _fit_program.Program(task, mesh, specs, capacity, patience)

    def _check_stream(self, stream: learning.data.Stream) -> None:
        if self.folder is None:
            return
        if not stream.can_resume:
            warnings.warn(
                "fit: data is a stream without a position (get_state and set_state); this run cannot be resumed.",
                stacklevel=4,
            )
            return
        try:
            json.dumps(encode(stream.get_state()))
        except TypeError as error:
            expected = "bytes, or what JSON can hold"
            raise core.bad_type("fit", "the position of data", f"no JSON ({error})", expected) from error

    def meta(self) -> dict[str, Any]:
        """The first `meta.json`."""
        mesh = self.program.mesh
        return {
            "format": _directory.FORMAT,
            "kind": "training",
            "status": "running",
            "versions": _directory.versions(),
            "seed": np.asarray(jax.random.key_data(self.key)).tolist(),
            "x64": bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64),
            "steps": self.steps,
            "batch": _described(self.batch),
            "data": _data(self.source),
            "leaves": _described(self.shape),
            "validation": self.validation is not None,
            "mesh": {
                **mesh.shape,
                "device": mesh.devices.flat[0].device_kind,
                "processes": jax.process_count(),
            },
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "times": {"compile": 0.0, "training": 0.0},
        }

    def described(self) -> dict[str, Any]:
        """What the progress object is told at the start."""
        mesh = self.program.mesh
        axes = " x ".join(f"{size} for {name}" for name, size in mesh.shape.items() if size > 1)
        devices = f"{mesh.size} {mesh.devices.flat[0].platform} device{'s' * (mesh.size > 1)}"
        return {
            "algorithm": f"training of {_numbers(self.shape.params):,} parameters",
            "devices": devices if mesh.size == mesh.shape[DATA] else f"{devices} ({axes})",
            "steps": None if self.steps == _fit_program.NEVER else self.steps,
            "out": None if self.folder is None else _directory.shown(self.folder),
        }

    def job(self, log_every: int) -> TrainingJob:
        """The job at its beginning."""
        program, mesh = self.program, self.program.mesh
        key = place(self.key, mesh, P())
        state = _fit_program.start(program, key)
        best = None if self.validation is None else _fit_program.no_best(program, state.evaluation_params)
        source = None if self.feed is not None else _everywhere(self.source, mesh)
        validation = None if self.validation is None else _everywhere(self.validation, mesh)
        return TrainingJob(
            program, key, state, best, self.steps, source, self.feed, validation, self.evaluate_every, log_every
        )


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays whole on every device; in one process without a copy of those that are there already."""
    if jax.process_count() > 1:
        return place(tree, mesh, P())
    return jax.device_put(tree, NamedSharding(mesh, P()))


def _natural(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
        raise core.bad_value("fit", name, value, "an integer of at least 1")


def _as_validation(validation: Any, evaluate_every: int | None, patience: int | None) -> Any:
    for name, value in (("evaluate_every", evaluate_every), ("patience", patience)):
        if value is not None and validation is None:
            raise core.bad_value("fit", name, f"{value} without validation", "None", "Pass validation=...")
    if validation is None:
        return None
    if getattr(validation, "num_batches", None) is None:
        got = core.describe(validation)
        raise core.bad_type("fit", "validation", got, "a source with epochs", "Such as learning.data.arrays")
    return validation


def _steps(steps: int | None, epochs: int | None, source: Any, until: Until | None) -> int:
    if steps is not None and epochs is not None:
        raise core.bad_value("fit", "epochs", f"{epochs} beside steps={steps}", "one of the two")
    if until is not None and not _is_clock(until):
        raise core.bad_value("fit", "until", str(until), "runtime.wall_clock(...)", "Training has no draws to judge")
    if epochs is not None:
        if source.num_batches is None:
            raise core.bad_value("fit", "epochs", f"{epochs} for data without epochs", "None", "Pass steps=...")
        steps = epochs * source.num_batches
    if steps is None and until is None and not isinstance(source, learning.data.Stream):
        raise core.bad_value("fit", "steps", None, "a number of steps", "Pass steps=... or epochs=...")
    if steps is not None and steps >= _fit_program.NEVER:
        raise core.bad_value("fit", "steps", steps, f"a number below {_fit_program.NEVER:,}")
    return _fit_program.NEVER if steps is None else int(steps)


def _is_clock(until: Until) -> bool:
    return all(map(_is_clock, until.parts)) if until.parts else until.name == "wall_clock"


def _described(tree: Any) -> list[dict[str, Any]]:
    """Names, shapes and dtypes of leaves as JSON."""
    named = core.named_leaves(tree)
    return [{"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in named]


def _numbers(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _data(source: Any) -> str:
    """What tells data apart: kind, settings and a hash of the arrays of an `Indexed` source."""
    kind = type(source).__name__
    if isinstance(source, learning.data.Stream):
        return kind
    settings = {name: x for name, x in vars(source).items() if isinstance(x, (bool, int, str, tuple))}
    return " ".join([kind, *(f"{name}={x}" for name, x in settings.items()), _directory.fingerprint(source)])


def _check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises a `ValueError` that names the first leaf or setting in which a run differs from the one in `folder`."""
    was, now = ({leaf["name"]: leaf for leaf in meta["leaves"]} for meta in (old, new))
    for name in [*now, *was]:
        if was.get(name) != now.get(name):
            got, expected = (
                f"{leaf['dtype']} of shape {tuple(leaf['shape'])}" if leaf else missing
                for leaf, missing in ((now.get(name), "missing"), (was.get(name), "no such leaf"))
            )
            expected = f"{expected}, as in the run in {folder}"
            todo = "Resume with the same model and optimiser, or choose another out"
            raise core.bad_value("fit", f"task, leaf {name!r} of its state,", got, expected, todo)
    _directory.check_resumable(folder, old, new, (*_FIXED, "validation"), "fit")


def _restore(job: TrainingJob, folder: Path) -> None:
    """Puts a job where its newest readable checkpoint is; at its beginning if there is none yet."""
    checkpoints = folder / _directory.CHECKPOINTS
    if not _checkpoint.steps(checkpoints):
        return
    for problem in job.restore(checkpoints):
        warnings.warn(f"{problem} Going on from step {job.step}.", stacklevel=3)
    job.metrics = _metrics.Metrics(_metrics.read(folder, job.step))


def _automatic() -> Any:
    from rich.console import Console

    return _progress.terminal() if Console().is_terminal else None


def _run(job: TrainingJob, meta: dict[str, Any], folder: Path | None) -> FitResult:
    try:
        ended = job.go()
    except BaseException as error:
        if isinstance(error, NotFiniteError):
            error.result = _result(job, str(error), folder)
        if folder is not None:
            # The run can be resumed; a disk that is full must not hide why it ended.
            with contextlib.suppress(OSError):
                _write_meta(folder, meta, status="failed", error=" ".join(str(error).split())[:500], times=job.times)
        raise
    if job.over and ended == "finished":
        assert job.best is not None
        ended = f"patience: no better validation loss since step {int(job.best.step)}"
    if folder is not None:
        status = "stopped" if ended.startswith("signal") else "finished"
        _write_meta(folder, meta, status=status, ended=ended, steps=job.step, times=job.times)
    _wait_for_all("what the first process wrote can be read")
    if job.progress is not None:
        where = f" in {_directory.shown(folder)}" if folder else ""
        job.progress.finish(f"{ended}: {job.step:,} steps{where}")
    return _result(job, ended, folder)


def _wait_for_all(why: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(why)


def _result(job: TrainingJob, ended: str, folder: Path | None) -> FitResult:
    state = job.state
    best, when = (None, None) if job.best is None else (job.best.params, int(fetch(job.best.step)))
    history = job.metrics.columns()
    return FitResult(state.params, state.average, best, when, state, history, job.step, ended, folder)


def _write_meta(folder: Path, meta: dict[str, Any], **changes: Any) -> None:
    if jax.process_index() == 0:
        _directory.update_meta(folder, meta, "fit", **changes)
