"""What each command does. JAX is imported inside, after the environment says how many devices it should show."""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from pathlib import Path
from typing import Any

from jaxprob.cli import _errors, _target

_ROWS, _ELEMENTS = 24, 3  # of a summary on the terminal: rows at most, and of an array if that is too many
_FLAG = "--xla_force_host_platform_device_count"


def sample(arguments: argparse.Namespace) -> int:
    """`jaxprob sample FILE.py:NAME`."""
    path, name = _target.split(arguments.target)
    arguments.file = path  # an error from inside it is reported with its line
    if arguments.resume and arguments.out is None:
        raise _errors.UsageError("--resume needs --out, the run directory to go on with.")
    if arguments.mesh:
        wanted = arguments.mesh.get("chains", 1) * arguments.mesh.get("data", 1)
    else:
        wanted = arguments.devices or _share(arguments.chains, _cores())
    _start_processes(arguments, wanted)
    import jax

    from jaxprob import runtime
    from jaxprob.inference import mcmc, smc

    if arguments.x64:
        jax.config.update("jax_enable_x64", True)
    target = _target.load(path, name)
    key = jax.random.key(arguments.seed)
    first = jax.process_index() == 0
    asked = {"target_acceptance": arguments.target_acceptance, "metric": arguments.metric}
    tuning = {name: value for name, value in asked.items() if value is not None}
    populations = {} if arguments.particles is None else {"particles": arguments.particles}
    tempered = arguments.algorithm == "tempered"
    if tuning if tempered else populations:
        option = next(iter(tuning if tempered else populations)).replace("_", "-")
        raise _errors.UsageError(f"--{option} does not go with --algorithm {arguments.algorithm or 'nuts'}.")
    kernel = () if tempered or arguments.algorithm is None else (getattr(mcmc, arguments.algorithm),)
    algorithm = smc.tempered(**populations) if tempered else functools.partial(mcmc.warmup, *kernel, **tuning)
    result = runtime.sample(
        target.model,
        key,
        initial=target.initial,
        algorithm=algorithm,
        chains=arguments.chains,
        warmup=arguments.warmup,
        draws=arguments.draws,
        thin=arguments.thin,
        keep=arguments.keep,
        devices=runtime.mesh(**arguments.mesh) if arguments.mesh else arguments.devices,
        out=arguments.out,
        resume=arguments.resume,
        progress=_progress(arguments) if first else None,
        until=_until(arguments.until),
    )
    if not first:  # the draws are with the first process, and so is the word on what they are worth
        return _errors.PREEMPTED if result.status == "stopped" else _errors.OK
    return _conclude(result, "run the same command with --resume to go on")


def train(arguments: argparse.Namespace) -> int:
    """`jaxprob train FILE.py:TASK`."""
    if arguments.resume and arguments.out is None:
        raise _errors.UsageError("--resume needs --out, the run directory to go on with.")
    path, name = _target.split(arguments.target, "task")
    arguments.file = path
    _start_processes(arguments, math.prod(arguments.mesh.values()) if arguments.mesh else arguments.devices or 1)
    import jax

    from jaxprob import runtime

    if arguments.x64:
        jax.config.update("jax_enable_x64", True)
    target = _target.load_training(path, name)
    first = jax.process_index() == 0
    result = runtime.fit(
        target.task,
        target.data,
        key=jax.random.key(arguments.seed),
        steps=arguments.steps,
        epochs=arguments.epochs,
        validation=target.validation,
        evaluate_every=arguments.evaluate_every,
        patience=arguments.patience,
        devices=_training_mesh(arguments.mesh) or arguments.devices,
        sharding=arguments.sharding or target.sharding,
        out=arguments.out,
        resume=arguments.resume,
        log_every=arguments.log_every,
        tensorboard=arguments.tensorboard,
        progress=_progress(arguments) if first else None,
        until=_until(arguments.until),
    )
    stopped = result.ended.startswith("signal")
    if first and stopped:
        _say_stopped(result.path, "run the same command with --resume to go on")
    elif first:
        print(f"{'step':<24} {result.step:,}")
        for column, values in result.history.items():
            known = [x for x in values.tolist() if x == x]  # NaN where a line has no such value
            if known and column != "step":
                print(f"{column:<24} {known[-1]:.6g}")
        print(f"run     {_shortest(result.path)}" if result.path else "Nothing was kept; give --out DIR to keep it.")
    return _errors.PREEMPTED if stopped else _errors.OK


def compile(arguments: argparse.Namespace) -> int:
    """`jaxprob compile FILE.py:TASK`."""
    path, name = _target.split(arguments.target, "task")
    arguments.file = path
    mesh = arguments.mesh
    number = math.prod(mesh.values())
    os.environ["JAX_PLATFORMS"] = "cpu"  # the devices of the mesh are not here
    show_devices(number)
    from jaxprob import runtime

    target = _target.load_training(path, name)
    sharding = arguments.sharding or target.sharding
    cost = runtime.training_cost(target.task, target.data, devices=_training_mesh(mesh), sharding=sharding)
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
    print(f"{arguments.target}: a training step on {_count(number, 'device')} ({axes}), {cost.parameters:,} parameters")
    print("on each device:")
    for size, said in (
        (cost.arguments, "arguments: the training state and a part of the batch"),
        (cost.data, "arrays that batches are taken from, whole"),
        (cost.outputs, "outputs beside the new state, which takes the old one's place"),
        (cost.temporaries, "temporaries, as XLA for CPU plans them"),
    ):
        print(f"  {_bytes(size):>10}  {said}")
    print(f"on all together: {cost.flops:,} FLOPs in matrix products and convolutions, loops counted")
    print(
        f"Compiled for {number} virtual CPU devices in place of the mesh: sizes of arguments and outputs hold there "
        "too; temporaries differ."
    )
    return _errors.OK


def demo(arguments: argparse.Namespace) -> int:
    """`jaxprob demo`."""
    show_devices(_share(4, _cores()))
    out, resume, note = _demo_directory(arguments.out)
    print("Breast cancer in 301 counties: cases ~ Poisson(women x rate), log rate ~ Normal(mu, tau)" + note, flush=True)
    import jax

    from jaxprob import runtime
    from jaxprob.cli import _demo

    posterior = _demo.posterior()
    progress = None if arguments.quiet else runtime.progress.terminal()
    result = runtime.sample(
        posterior, jax.random.key(0), chains=4, draws=1500, out=out, resume=resume, progress=progress
    )
    return _conclude(result, "run it again to go on", _demo.figures)


def diagnose(arguments: argparse.Namespace) -> int:
    """`jaxprob diagnose DIR`."""
    from jaxprob import runtime

    result = runtime.load(arguments.directory)
    _check_draws(result, arguments.directory)
    if result.status != "finished":
        print(f"The run is not finished (it is {result.status}); this is about the draws there are.")
    diagnosis = result.diagnose()
    print(diagnosis)
    return _errors.OK if diagnosis.ok else _errors.DIAGNOSTICS


def report(arguments: argparse.Namespace) -> int:
    """`jaxprob report DIR`."""
    from jaxprob import runtime

    print(_shortest(runtime.report(arguments.directory)))
    return _errors.OK


def devices(arguments: argparse.Namespace) -> int:
    """`jaxprob devices`."""
    show_devices(_share(4, _cores()))
    import jax
    import jax.numpy as jnp

    found = jax.devices()
    processes = _count(jax.process_count(), "process", "es")
    print(f"jax {jax.__version__}, {_count(_cores(), 'core')}, {_count(len(found), 'device')}, {processes}")
    for device in found:
        kind = "" if device.device_kind == device.platform else f"  {device.device_kind}"
        virtual = "  (virtual: a share of this machine's cores)" if device.platform == "cpu" and len(found) > 1 else ""
        print(f"  {device.platform}:{device.id}{kind}{_memory(device)}{virtual}")
    used = _share(4, len(found))
    print(f"a default run: 4 chains on {_count(used, 'device')}, {4 // used} on each, in {jnp.result_type(float)}")
    return _errors.OK


def show_devices(number: int) -> None:
    """Lets JAX show a machine's cores as this many CPU devices, unless the environment already says how many.

    It has to be said before JAX starts, and does nothing to GPUs and TPUs.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags and "JAX_NUM_CPU_DEVICES" not in os.environ:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}={number}".strip()


def _start_processes(arguments: argparse.Namespace, wanted: int) -> None:
    """Says how many devices there are: joins the other processes, or divides the cores of this machine by `wanted`."""
    by_hand = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if any(value is not None for value in by_hand) and (not arguments.distributed or None in by_hand):
        raise _errors.UsageError("--coordinator, --num-processes and --process-id go together, with --distributed.")
    # `srun` says how many tasks run this command; they are one run, or they would all write in the same folder.
    launched = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if not arguments.distributed and not launched:
        show_devices(wanted)
        return
    from jaxprob import runtime

    runtime.connect(*by_hand)


def _until(rules: dict[str, str] | None) -> Any:
    """The targets must all be reached; a time limit ends the run in any case."""
    if not rules:
        return None
    from jaxprob import runtime

    try:
        targets = []
        if "ess" in rules:
            targets.append(runtime.effective_sample_size(float(rules["ess"])))
        if "r_hat" in rules:
            targets.append(runtime.r_hat(float(rules["r_hat"])))
        rule = None
        for target in targets:
            rule = target if rule is None else rule & target
        if "time" in rules:
            limit = runtime.wall_clock(rules["time"])
            rule = limit if rule is None else rule | limit
    except ValueError as error:
        raise _errors.UsageError(f"--until: {error}") from error
    return rule


def _progress(arguments: argparse.Namespace) -> Any:
    from jaxprob import runtime

    if arguments.quiet:
        return None
    return runtime.progress.terminal(live={"table": True, "lines": False}.get(arguments.progress))


def _conclude(result: Any, again: str, figures: Any = None) -> int:
    """Prints what the run is worth and where it is, and writes the report. `again`: how a stopped run goes on."""
    from jaxprob import runtime

    if result.status == "stopped":
        _say_stopped(result.path, again)
        return _errors.PREEMPTED
    _check_draws(result, str(result.path or "the run"))
    diagnosis = result.diagnose()
    print(f"\n{_head(result.summary())}\n\n{diagnosis}\n")
    code = _errors.OK if diagnosis.ok else _errors.DIAGNOSTICS
    if result.path is None:
        print("The draws were not kept; give --out DIR to keep them, with a report.")
        return code
    shown = _shortest(result.path)
    print(f"run     {shown}")
    try:
        written = runtime.report(result, figures=figures(result) if figures else None)
        print(f"report  {_shortest(written)}")
    except (ImportError, ValueError) as error:  # without matplotlib, or of a run that was stopped after a few draws
        print(f"no report: {error}")
    return code


def _say_stopped(path: Path | None, again: str) -> None:
    safe = f"what was done is safe in {_shortest(path)}" if path else "nothing is kept without --out"
    again = f"; {again}" if path else ""
    print(f"jaxprob: stopped by a signal; {safe}{again}.", file=sys.stderr)


def _training_mesh(axes: dict[str, int] | None) -> Any:
    from jaxprob import runtime

    return runtime.mesh(**{"data": 1, "model": 1, **axes}) if axes else None


def _check_draws(result: Any, directory: str) -> None:
    from jaxprob import core

    if not any(x.size for _, x in core.named_leaves(result.draws)):
        raise _errors.CommandError(f"{directory} has no draws yet (status: {result.status}).")


def _demo_directory(out: str | None) -> tuple[Path, bool, str]:
    """The demo's run directory, whether a run there goes on, and what to say about it.

    A run that did not finish goes on; a finished one is left alone and the demo takes the next free name.
    """
    import json

    if out is not None:
        return Path(out), True, ""
    for number in range(1, 10_000):
        folder = Path("runs") / ("demo" if number == 1 else f"demo-{number}")
        try:
            status = json.loads((folder / "meta.json").read_text()).get("status")
        except FileNotFoundError:
            if folder.exists() and any(folder.iterdir()):
                continue
            note = f"\nruns/demo holds a finished run, which stays; this one goes to {folder}" if number > 1 else ""
            return folder, False, note
        except (OSError, ValueError):
            continue
        if status != "finished":
            return folder, True, f"\n{folder} holds a run that did not finish; going on with it"
    raise _errors.CommandError("runs/ is full of demos; remove some, or give --out DIR.")


def _head(summary: Any) -> str:
    """The beginning of a summary: scalars first, then a few elements of each array; all of a short one."""
    import dataclasses

    groups: dict[str, list[int]] = {}
    for row, name in enumerate(summary.names):
        groups.setdefault(name.partition("[")[0], []).append(row)
    ordered = sorted(groups.items(), key=lambda group: len(group[1]))
    most = _ROWS if len(summary) <= _ROWS else _ELEMENTS
    rows = [row for _, members in ordered for row in members[:most]][:_ROWS]
    columns = {
        field.name: getattr(summary, field.name)[rows]
        for field in dataclasses.fields(summary)
        if field.name != "names" and hasattr(getattr(summary, field.name), "shape")
    }
    table = str(dataclasses.replace(summary, names=[summary.names[row] for row in rows], **columns))
    left_out = len(summary) - len(rows)
    return f"{table}\n... {left_out:,} more rows" if left_out else table


def _shortest(path: Path) -> str:
    from jaxprob.runtime import _directory

    return _directory.shown(path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(chains: int, available: int) -> int:
    """The largest number of devices, of those available, that divides the chains."""
    return max(n for n in range(1, min(available, chains) + 1) if chains % n == 0)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _bytes(number: int) -> str:
    """A size in the largest unit of which there is one at least."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**power:
            return f"{number / 2**power:,.1f} {unit}"
    return f"{number} B"


def _memory(device: Any) -> str:
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # a backend without memory statistics says so in its own way
        limit = None
    return f"  {limit / 2**30:.0f} GiB" if limit else ""
