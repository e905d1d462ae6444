"""The front door: sample a posterior or a log density, on every device, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.runtime import _checkpoint, _directory, _predict, _program
from jaxprob.runtime._approximate_start import approximate_starts, draws_positions
from jaxprob.runtime._job import Job, chain_indices
from jaxprob.runtime._mesh import CHAINS, DATA, data_specs, fetch, place, resolve_mesh
from jaxprob.runtime._population import is_population, with_population
from jaxprob.runtime._progress import terminal
from jaxprob.runtime._result import Reader, Result, load, open_store
from jaxprob.runtime._store import DrawStore, MemoryStore
from jaxprob.runtime._target import AsGiven, Keep, WithWarmup, as_target, describe_algorithm, keeping, with_warmup
from jaxprob.runtime._until import Until

DRAWS = 1000  # of each chain, by default
STARTS = 100  # how often a start is drawn again before giving up
# Of the buffer of a chunk on each device. On a CPU it shares memory with the draws; elsewhere longer chunks hide the
# way to the host.
CHUNK_BYTES = {"cpu": 8 * 2**20}
CHUNK_BYTES_ELSEWHERE = 32 * 2**20


def sample(
    posterior: Any,
    key: core.Key,
    *,
    initial: Any = None,
    algorithm: Any = None,
    chains: int = 4,
    warmup: int | None = None,
    draws: int | None = None,
    thin: int = 1,
    keep: Sequence[str] | None = None,
    devices: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Any = None,
    until: Until | None = None,
    checkpoint_every: float = 30.0,
    interleave: bool = False,
    executor: str = "shard_map",
) -> Result:
    """Draws from a posterior with Markov chains: warm-up, sampling, diagnostics, on every device.

    Args:
      posterior: a posterior (`program.condition(...)`), or a function `log_density(position) -> scalar` of an
        unconstrained pytree, which needs `initial`.
      key: random key. Chain `c` uses `fold_in(key, c)` and nothing else, so any number of devices gives the same draws.
      initial: where to start: a position that all chains share, or a function `key -> position`, called for each
        chain. A posterior finds its own starts, and takes both as dicts of constrained values, or "pathfinder" or
        "laplace": each chain starts at a draw of that approximation (`inference.vi`), in the bulk from the first step
        on, but no wider apart than the approximation is, so that R-hat sees less of what the chains do not find. For a
        log density `initial=vi.pathfinder(log_density, start, key).initial` does the same. Methods that draw positions
        of a posterior (`posterior.sample_prior`, `sample` of a guide) are taken at their word.
      algorithm: None for NUTS, which hands over to `mcmc.walnuts` after a warm-up that found narrow places, such as the
        neck of a funnel, and `partial(mcmc.warmup, metric="diagonal")` for the same with options of the warm-up; a
        factory such as `mcmc.nuts`, `mcmc.hmc` or `partial(mcmc.nuts, max_tree_depth=8)`, which is tuned in the
        warm-up, with the metric that `mcmc.pick_metric` picks, or `partial(mcmc.warmup, mcmc.nuts,
        target_acceptance=0.95)`; another warm-up, such as `mcmc.chees`, `mcmc.meads` or
        `partial(mcmc.tempering_warmup, kernel, hottest=0.01)`; a sampler of populations,
        `smc.tempered(particles=4096)`, of which each chain is an independent run that starts from the prior; or a
        ready algorithm (anything with `init` and `step`, ours or BlackJAX's).
      chains: number of chains, over all devices.
      warmup: steps of tuning that are not kept; None for what suits the number of chains that learn together
        (`mcmc.pick_num_steps`: 1,000 for one, 400 for four), the default of another warm-up, and 0 for a ready
        algorithm. For populations the most steps there may be; they end by themselves.
      draws: draws kept of each chain (the most, if there is an `until`); None for 1,000, and for populations as many
        as there are particles.
      thin: steps for one draw kept.
      keep: names to keep; None for all. Statistics are made online of what is kept.
      devices: None for all local devices that divide the chains, a number, a list, or `runtime.mesh(chains=, data=)`.
      out: a folder for draws, checkpoints, summary; None keeps the draws in memory.
      resume: go on with the run in `out` if there is one; bit-identical to a run that was never interrupted. More
        `draws` than at first extend it.
      progress: True or `runtime.progress.terminal()`, any object like it, or None (or False) for silence.
      until: a rule to stop earlier, such as `runtime.effective_sample_size(1000) | runtime.wall_clock("2h")`.
      checkpoint_every: seconds between checkpoints, if there is an `out`.
      interleave: whether chains of a device go on without waiting for the longest trajectory among them, once tuned:
        worth it for dozens of chains whose trajectories differ in length; the same draws, and one more program to
        compile. For NUTS (`mcmc.interleave`).
      executor: "shard_map", or "pmap" with the same results.

    Returns:
      `Result` with `draws`, `stats`, `summary()`, `diagnose()`, `to_datatree()`. A run that SIGTERM or SIGINT ended has
      `status` "stopped" and can be resumed.

    Raises:
      ValueError, TypeError: for bad input, before anything is compiled or written.
      OSError: if `out` cannot be written; what was written before stays readable.
    """
    run = _Plan(
        as_target(posterior),
        core.as_key(key, "sample"),
        initial,
        algorithm,
        chains,
        warmup,
        draws,
        thin,
        devices,
        interleave,
        executor,
    )
    keep_draw = keeping(run.target, keep, run.position_shape)
    folder = None if out is None else Path(out).resolve()
    going_on = folder is not None and _directory.check_new(folder, resume)
    if resume and folder is None:
        raise core.bad_value("sample", "out", None, "the folder of the run to resume", "Pass out=... with resume=True")
    meta = run.meta(keep_draw)
    if progress is False or (progress is not None and jax.process_index() != 0):
        progress = None
    if progress is True:
        progress = terminal()
    with contextlib.ExitStack() as stack:
        if progress is not None:
            stack.callback(progress.close)
            progress.start(run.plan(folder))
            progress.phase("compiling")
        if going_on:
            assert folder is not None
            if jax.process_index() == 0:
                stack.enter_context(_directory.locked(folder))
            old = _directory.read_meta(folder)
            _directory.check_resumable(folder, old, meta)
            if run.populations:  # more draws would be other particles from the first one on
                _directory.check_resumable(folder, old, meta, ("populations",))
            if old["status"] == "finished" and run.draws <= old["draws"] and jax.process_count() == 1:
                return _close(load(folder), progress)
            meta |= {name: old[name] for name in ("capacity", "started", "times")}
        job = run.job(keep_draw, meta["capacity"])
        job.checkpoint_every, job.until, job.progress = checkpoint_every, until, progress
        if going_on:
            job.times = {**meta["times"], "compile": 0.0}
            assert folder is not None
            _restore(job, run, folder)
        else:
            run.start(job)
        job.compile()
        # From here on the run is known to start: only now is anything written.
        # How many draws there will be is known, unless a rule may end the run earlier.
        store: DrawStore | None = MemoryStore(0 if until is not None else job.draws)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if not going_on and jax.process_index() == 0:
                stack.enter_context(_directory.locked(folder))
            store = open_store(folder, meta["capacity"], job.rows) if jax.process_index() == 0 else None
            job.checkpoints = folder / _directory.CHECKPOINTS
            _write_meta(folder, meta, status="running")
        job.store = store
        return _run(job, run, meta, folder)


class _Plan:
    """What a call of `sample` asks for, checked."""

    def __init__(
        self,
        target: Any,
        key: core.Key,
        initial: Any,
        algorithm: Any,
        chains: int,
        warmup: int | None,
        draws: int | None,
        thin: int,
        devices: Any,
        interleave: bool,
        executor: str,
    ) -> None:
        self.populations = is_population(algorithm)
        wanted = 0 if draws is None else draws
        for name, value, least in (("chains", chains, 1), ("draws", wanted, 0), ("thin", thin, 1)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise core.bad_value("sample", name, value, f"an integer of at least {least}")
        if warmup is not None and (isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0):
            raise core.bad_value("sample", "warmup", warmup, "an integer of at least 0")
        if executor not in _program.EXECUTORS:
            raise core.bad_value("sample", "executor", core.describe(executor), f"one of {_program.EXECUTORS}")
        self.target, self.key, self.chains, self.thin = target, key, chains, thin
        self.draws = DRAWS if draws is None else draws
        self.executor = executor
        self.mesh = resolve_mesh(devices, chains)
        if executor == "pmap" and (self.mesh.shape[DATA] > 1 or jax.process_count() > 1):
            raise core.bad_value("sample", "executor", executor, "'shard_map' with a data axis or several processes")
        ready = hasattr(algorithm, "init") and hasattr(algorithm, "step")
        if algorithm is not None and not ready and not callable(algorithm):
            raise core.bad_type(
                "sample", "algorithm", core.describe(algorithm), "a factory such as mcmc.nuts, or an algorithm"
            )
        self.positions: Any = None
        if self.populations:
            what = describe_algorithm(algorithm)
            if initial is not None:
                raise core.bad_value("sample", "initial", core.describe(initial), f"None for {what}")
            if thin != 1:
                raise core.bad_value("sample", "thin", thin, f"1 for {what}")
            if warmup == 0:
                raise core.bad_value("sample", "warmup", 0, f"None for {what}", "Its steps are what leads to draws")
            self.build: Any
            self.build, self.position_shape = with_population(algorithm, target, key, warmup, draws)
            self.warmup, self.draws = self.build.warmup, self.build.draws
        else:
            self._chains_of_positions(initial, algorithm, ready, warmup)
        self.narrow = self.build.for_narrow_places() if isinstance(self.build, WithWarmup) else None
        self.algorithm_name = describe_algorithm(algorithm if self.populations else self.build)
        self.interleave = interleave
        if interleave and not (executor == "shard_map" and self.build.interruptible(target)):
            got, todo = f"True with {self.algorithm_name} and {executor}", "Leave interleave out, or use mcmc.nuts"
            raise core.bad_value("sample", "interleave", got, "False for kernels without moves, and with pmap", todo)
        specs = data_specs(target, self.mesh)
        self.placed = place(target, self.mesh, specs)
        self.placed_key = place(key, self.mesh, P())

    def _chains_of_positions(self, initial: Any, algorithm: Any, ready: bool, warmup: int | None) -> None:
        self.positions = _positions(self.target, initial, self.key, self.chains, whole=ready)
        if self.positions is None:
            self.position_shape = jax.eval_shape(self.target.initial, self.key)
        else:
            self.position_shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.positions)
        if ready:
            self.build, self.warmup = AsGiven(algorithm), warmup or 0
        else:
            size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.position_shape))
            self.build = with_warmup(algorithm, warmup, size, self.chains)
            self.warmup = self.build.warmup

    def meta(self, keep: Keep) -> dict[str, Any]:
        """The first `meta.json`."""
        draw = jax.eval_shape(keep, self.target, self.position_shape)
        self.structure = jax.tree.structure(draw)
        leaves = [
            {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
            for name, leaf in core.named_leaves(draw)
        ]
        # A row holds what is kept and a dozen stats.
        room = CHUNK_BYTES.get(self.mesh.devices.flat[0].platform, CHUNK_BYTES_ELSEWHERE)
        row = self.chains // self.mesh.shape[CHAINS] * 4 * (12 + sum(int(np.prod(x["shape"])) for x in leaves))
        capacity = int(np.clip(room // row, 1, max(min(self.draws, 1000), 1)))
        return {
            "format": _directory.FORMAT,
            "status": "running",
            "versions": _directory.versions(),
            "seed": np.asarray(jax.random.key_data(self.key)).tolist(),
            "algorithm": self.algorithm_name,
            "narrow": None if self.narrow is None else self.build.narrow_name,
            "populations": self.draws if self.populations else 0,
            "aims": getattr(self.build, "aims", {}),
            "chains": self.chains,
            "warmup": self.warmup,
            "draws": self.draws,
            "thin": self.thin,
            "capacity": capacity,
            "mesh": {
                "chains": self.mesh.shape[CHAINS],
                "data": self.mesh.shape[DATA],
                "device": self.mesh.devices.flat[0].device_kind,
                "processes": jax.process_count(),
            },
            "x64": bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64),
            "data": _directory.fingerprint(self.target),
            "leaves": leaves,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "times": {"compile": 0.0, "warm-up": 0.0, "sampling": 0.0},
        }

    def plan(self, folder: Path | None) -> dict[str, Any]:
        """What the progress object is told at the start."""
        shape = self.mesh.shape
        devices = f"{self.mesh.size} {self.mesh.devices.flat[0].platform} device{'s' * (self.mesh.size > 1)}"
        if shape[DATA] > 1:
            devices += f" ({shape[CHAINS]} for chains x {shape[DATA]} for data)"
        return {
            "chains": self.chains,
            "warmup": None if self.populations else self.warmup,
            "draws": self.draws,
            "devices": devices,
            "algorithm": self.algorithm_name,
            "out": None if folder is None else _directory.shown(folder),
        }

    def job(self, keep: Keep, capacity: int) -> Job:
        """The job, not started yet."""
        program = _program.Program(
            self.build,
            keep,
            _nowhere if self.populations else _initial if self.positions is None else None,
            self.mesh,
            capacity,
            self.thin > 1,
            self.executor,
            self.interleave,
        )
        indices = chain_indices(self.mesh, self.chains)
        # Trajectories of steps that shorten themselves differ so much in length that no chain should wait for another.
        apart = self.interleave or self.executor == "shard_map"
        narrow = None if self.narrow is None else dataclasses.replace(program, build=self.narrow, interleave=apart)
        return Job(
            program,
            self.placed,
            self.placed_key,
            _program.Carry(None, None),
            indices,
            self.warmup,
            self.draws,
            self.thin,
            MemoryStore(),
            narrow=narrow,
            ends_itself=self.populations,
        )

    def start(self, job: Job) -> None:
        """Finds a start with a finite density for every chain.

        Raises:
          ValueError: if there is none, naming what is not finite.
        """
        began = time.perf_counter()
        attempts = np.zeros(self.chains, np.int32)
        positions = None if self.positions is None else place(self.positions, self.mesh, P(CHAINS))
        for _ in range(STARTS if self.positions is None else 1):
            placed = place(attempts, self.mesh, P(CHAINS))
            carry, finite, log_density = _program.init(
                job.program, self.placed, self.placed_key, job.indices, placed, positions
            )
            finite, log_density = fetch((finite, log_density))
            if finite.all():
                job.carry = carry
                job.times["compile"] += time.perf_counter() - began
                return
            attempts = attempts + ~finite
        chain = int(np.flatnonzero(~finite)[0])
        raise self._no_start(carry, chain, log_density[chain])

    def _no_start(self, carry: _program.Carry, chain: int, log_density: Any) -> ValueError:
        state = fetch(_program._chain(carry.state))
        for name, leaf in core.named_leaves(core.position_of(state)):
            if not np.isfinite(leaf[chain]).all():
                return core.bad_value("sample", f"initial, {name!r},", _first_bad(leaf[chain]), "finite numbers")
        finite = np.isfinite(log_density)  # several where a state is of walkers or of replicas
        if finite.all():
            for name, leaf in core.named_leaves(getattr(state, "log_density_gradient", ())):
                if not np.isfinite(leaf[chain]).all():
                    return core.bad_value(
                        "sample",
                        "initial",
                        f"a position where the gradient with respect to {name!r} has {_first_bad(leaf[chain])}",
                        "a finite gradient",
                        "Look for a sqrt, log or where whose derivative is infinite there",
                    )
        else:
            log_density = _first_bad(log_density)
        tried = "" if self.positions is not None else f" (chain {chain}, {STARTS} starts drawn)"
        return core.bad_value(
            "sample",
            "initial",
            f"a position with log density {log_density}{tried}",
            "a finite log density",
            "Pass another initial, or check the model at that point",
        )


def _first_bad(value: np.ndarray) -> str:
    flat = np.ravel(value)
    return str(flat[~np.isfinite(flat)][0])


def _initial(target: Any, key: core.Key) -> Any:
    return target.initial(key)


def _nowhere(target: Any, key: core.Key) -> Any:
    """No position, for populations, which find their own."""
    return ()


def _positions(target: Any, initial: Any, key: core.Key, chains: int, whole: bool) -> Any:
    """Positions (chain, ...) on the host, or None if the target draws its own; `whole` lets integers be."""
    if initial is None:
        if hasattr(target, "initial"):
            return None
        raise core.bad_value(
            "sample",
            "initial",
            None,
            "a position to start from",
            "A bare log density has no shape of its own: pass initial=position, or initial=lambda key: position",
        )
    if isinstance(initial, str):
        each = approximate_starts(target, initial, key, chains)
    elif core.is_function(initial):
        each = [initial(_program.start_key(core.fold(key, chain), 0)) for chain in range(chains)]
    else:
        each = [initial] * chains
    if hasattr(target, "unconstrain") and not (isinstance(initial, str) or draws_positions(initial)):
        each = [target.unconstrain(values) for values in each]
    if not jax.tree.leaves(each[0]):
        raise core.bad_value("sample", "initial", initial, "a pytree with at least one array")
    if not whole:
        core.check_floating("sample", each[0])
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *map(_arrays, each))


def _arrays(position: Any) -> Any:
    return jax.tree.map(lambda x: core.as_float(x) if _program._is_float(x) else x, position)


def _restore(job: Job, plan: _Plan, folder: Path) -> None:
    """Puts a job where its newest readable checkpoint is; at its beginning if there is none yet."""
    checkpoints = folder / _directory.CHECKPOINTS
    if not _checkpoint.steps(checkpoints):
        plan.start(job)
        return
    mesh = job.program.mesh
    positions = plan.positions
    shape = _program.carry_shape(job.program, plan.placed, plan.placed_key, job.indices, positions)
    specs = _program.carry_specs(shape)
    like = jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), part
        ),
        specs,
        shape,
        is_leaf=lambda x: isinstance(x, P),
    )
    job.step, job.carry, problems = _checkpoint.load_newest(checkpoints, like)
    for problem in problems:
        warnings.warn(f"{problem} Going on from step {job.step}.", stacklevel=3)


def _run(job: Job, plan: _Plan, meta: dict[str, Any], folder: Path | None) -> Result:
    if job.progress is not None:
        job.progress.phase("warm-up" if job.step < job.warmup else "sampling")
    try:
        ended = job.go()
    except BaseException as error:
        if folder is not None:
            # The run can be resumed; a disk that is full must not hide why it ended.
            with contextlib.suppress(OSError):
                _write_meta(folder, meta, status="failed", error=" ".join(str(error).split())[:500], times=job.times)
        raise
    if job.progress is not None:
        job.progress.phase("summary")
    status = "stopped" if ended.startswith("signal") else "finished"
    result_meta = meta | {"status": status, "ended": ended, "times": job.times}
    if plan.narrow is not None and job.narrow is None:
        result_meta["went_on"] = meta["narrow"]
    if folder is not None:
        if status == "finished" and job.store is not None and job.rows:
            _predict.write_groups(job.store, plan.target, plan.key)
        if ended.startswith("until"):
            result_meta["draws"] = job.rows
        _write_meta(folder, meta, **result_meta)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("what the first process wrote can be read")
    if folder is None:
        assert job.store is not None
        return _close(Result(job.store, result_meta, None, plan.structure), job.progress)
    result = Result(Reader(folder), result_meta, folder, plan.structure)
    if job.store is not None and status == "finished" and job.rows >= 4 and meta["leaves"]:
        result.save_texts()
    return _close(result, job.progress)


def _close(result: Result, progress: Any) -> Result:
    if progress is not None:
        where = f" in {_directory.shown(result.path)}" if result.path else ""
        by = f" by {result.algorithm}" if result.meta.get("went_on") else ""
        progress.finish(f"{result.meta.get('ended', result.status)}: {result.meta['chains']} chains{by}{where}")
    return result


def _write_meta(folder: Path, meta: dict[str, Any], **changes: Any) -> None:
    if jax.process_index() == 0:
        _directory.update_meta(folder, meta, **changes)
