"""The parser, and the way from a command to an exit code. Standard library only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxprob.cli import _errors

_EPILOGUE = """\
exit codes: 0 fine, 1 error, 2 usage, 3 finished but the diagnostics found something,
75 stopped by a signal after a checkpoint (run it again with --resume)"""

_SAMPLE = """\
Samples a model on every device and says what the draws are worth.

NAME in FILE.py is a posterior (program.condition(...)), a function without arguments that
returns one, or a log density of a pytree, with a position `initial` in the same file.
Without NAME it is `posterior`."""

_TRAIN = """\
Trains a network on every device: checkpoints, metrics and validation in one folder.

TASK in FILE.py is a learning.Task, with its `data` (a learning.data source) in the same file,
or a function without arguments that returns (task, data) or (task, data, validation). The file
may also define `validation`, a source to evaluate on, and `sharding`, rules for the parameters.
Without TASK it is `task`."""

_COMPILE = """\
Says what memory and arithmetic a training step takes on a mesh that need not be here.

The step is compiled for virtual CPU devices in place of the mesh: sizes of arguments and
outputs follow from the sharding and hold on any hardware; temporaries are those of XLA for
CPU. TASK is as for `jaxprob train`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line rather than the whole usage."""
        self.exit(_errors.USAGE, f"jaxprob: {message}. See '{self.prog} --help'.\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="jaxprob",
        description="Probabilistic and sequence modelling on JAX.",
        epilog=_EPILOGUE,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error (or JAXPROB_DEBUG=1)")

    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="fit a hierarchical model of cancer rates, with a report, in a minute",
        description="Fits a hierarchical Poisson model of breast-cancer cases in 301 counties: draws, checkpoints, "
        "summary and report in one folder.",
    )
    demo.add_argument("--out", metavar="DIR", help="run directory (default: runs/demo, or the next free runs/demo-N)")
    demo.add_argument("--quiet", action="store_true", help="no progress")

    sample = commands.add_parser(
        "sample",
        parents=[common],
        help="sample a model from a file",
        description=_SAMPLE,
        epilog=_EPILOGUE,
        formatter_class=raw,
    )
    _add_sample_options(sample)

    train = commands.add_parser(
        "train",
        parents=[common],
        help="train a network from a file",
        description=_TRAIN,
        epilog=_EPILOGUE,
        formatter_class=raw,
    )
    _add_train_options(train)

    compiled = commands.add_parser(
        "compile",
        parents=[common],
        help="say what a training step takes on a mesh that is not here",
        description=_COMPILE,
        formatter_class=raw,
    )
    compiled.add_argument("target", metavar="FILE.py:TASK", help="what would be trained")
    compiled.add_argument(
        "--mesh",
        type=_training_mesh,
        required=True,
        metavar="data=8,model=2",
        help="devices to cut batch and parameters over",
    )
    compiled.add_argument("--sharding", choices=("fsdp",), help="cut large parameters over the data axis")

    diagnose = commands.add_parser(
        "diagnose",
        parents=[common],
        help="say in plain words whether a run's draws can be trusted",
        description="Says what the diagnostics of a run find, what it means and what to try. Exit code 3 if they find "
        "something.",
    )
    diagnose.add_argument("directory", metavar="DIR", help="run directory")

    report = commands.add_parser(
        "report",
        parents=[common],
        help="write a run's report: one HTML file",
        description="Writes DIR/report.html: verdict, summary, figures, configuration; one file that needs no network.",
    )
    report.add_argument("directory", metavar="DIR", help="run directory")

    commands.add_parser(
        "devices",
        parents=[common],
        help="show what JAX sees, and what a run would use",
        description="Shows the devices JAX sees and what a default run would use.",
    )
    return parser


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FILE.py:NAME", help="what to sample")
    run = parser.add_argument_group("the run")
    run.add_argument("--chains", type=_positive, default=4, metavar="N", help="number of chains (default: 4)")
    run.add_argument(
        "--warmup", type=_natural, metavar="N", help="warm-up steps of each chain (default: 400 for four chains)"
    )
    run.add_argument(
        "--draws", type=_positive, metavar="N", help="draws of each chain (default: 1000, or all particles)"
    )
    run.add_argument("--thin", type=_positive, default=1, metavar="N", help="keep every N-th draw (default: 1)")
    run.add_argument("--keep", type=_names, metavar="A,B", help="names to keep (default: all)")
    run.add_argument(
        "--algorithm",
        choices=("nuts", "walnuts", "hmc", "tempered"),
        help="sampler (default: nuts, and walnuts after a warm-up that found narrow places); tempered: sequential "
        "Monte Carlo, with the evidence",
    )
    run.add_argument("--particles", type=_positive, metavar="N", help="of each chain, for tempered (default: 1024)")
    run.add_argument(
        "--target-acceptance",
        type=_fraction,
        metavar="P",
        help="acceptance that the step size is tuned for (default: 0.85; for nuts 0.95 once places were too narrow)",
    )
    run.add_argument(
        "--metric", choices=("diagonal", "dense"), help="what the warm-up learns (default: what suits the size)"
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random key (default: 0)")
    run.add_argument(
        "--until",
        type=_until,
        metavar="RULE",
        help="stop early: 'ess=1000,r_hat=1.01' when all of these are reached, 'time=2h' at the latest then",
    )
    run.add_argument("--x64", action="store_true", help="compute in float64")
    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", help="run directory: draws, checkpoints, summary and report")
    files.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR, if there is one")
    where = parser.add_argument_group("devices")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--devices", type=_positive, metavar="N", help="spread the chains over N devices")
    place.add_argument("--mesh", type=_mesh, metavar="chains=8,data=4", help="spread chains and data over devices")
    _add_process_options(parser, where)


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FILE.py:TASK", help="what to train")
    run = parser.add_argument_group("the run")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, metavar="N", help="steps in all (default: to the end of a stream)")
    length.add_argument("--epochs", type=_positive, metavar="N", help="times through the data, in place of --steps")
    run.add_argument(
        "--evaluate-every", type=_positive, metavar="N", help="steps between evaluations (default: an epoch, or 1000)"
    )
    run.add_argument("--patience", type=_positive, metavar="N", help="stop after N evaluations without improvement")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random key (default: 0)")
    run.add_argument("--until", type=_clock, metavar="time=2h", help="stop early, after this time")
    run.add_argument("--x64", action="store_true", help="compute in float64")
    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", help="run directory: checkpoints and metrics.jsonl")
    files.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR, if there is one")
    files.add_argument(
        "--log-every", type=_positive, default=10, metavar="N", help="steps between two lines of metrics (default: 10)"
    )
    files.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard too")
    where = parser.add_argument_group("devices")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--devices", type=_positive, metavar="N", help="cut the batch over N devices")
    place.add_argument(
        "--mesh", type=_training_mesh, metavar="data=4,model=2", help="cut batch, parameters, sequences (time=2)"
    )
    where.add_argument("--sharding", choices=("fsdp",), help="cut large parameters over the data axis")
    _add_process_options(parser, where)


def _add_process_options(parser: argparse.ArgumentParser, where: argparse._ArgumentGroup) -> None:
    """Several processes, and what is shown."""
    where.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes of a Slurm job, an MPI job or a TPU pod (under srun it goes without saying)",
    )
    where.add_argument("--coordinator", metavar="HOST:PORT", help="with --distributed elsewhere: the first process")
    where.add_argument("--num-processes", type=_positive, metavar="N", help="with --coordinator: how many processes")
    where.add_argument("--process-id", type=_natural, metavar="I", help="with --coordinator: which one this is")
    show = parser.add_argument_group("output").add_mutually_exclusive_group()
    show.add_argument("--quiet", action="store_true", help="no progress")
    show.add_argument(
        "--progress", choices=("table", "lines"), help="a live table, or plain lines (default: by terminal)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments without the program's name; those of the process by default.

    Returns:
      the exit code.
    """
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _errors.USAGE
    if arguments.version:
        from jaxprob import __version__

        print(f"jaxprob {__version__}")
        return _errors.OK
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return _errors.USAGE
    debug = arguments.debug or os.environ.get("JAXPROB_DEBUG", "") not in ("", "0")
    try:
        return _run(arguments)
    except BrokenPipeError:
        # Whoever read the output has left (`jaxprob diagnose DIR | head`); say nothing at the exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _errors.ERROR
    except KeyboardInterrupt:
        if debug:
            raise
        print("jaxprob: interrupted", file=sys.stderr)
        return _errors.INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"jaxprob: {_errors.one_line(error, getattr(arguments, 'file', None))}", file=sys.stderr)
        return _errors.USAGE if isinstance(error, _errors.UsageError) else _errors.ERROR


def _run(arguments: argparse.Namespace) -> int:
    from jaxprob.cli import _commands

    return int(getattr(_commands, arguments.command)(arguments))


def _positive(text: str) -> int:
    value = _natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def _natural(text: str) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _settings(text: str, known: Sequence[str]) -> dict[str, str]:
    """`a=1,b=2` as a dict, with only `known` names."""
    found = {}
    for part in _names(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known or not equals or not value:
            raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(f'{name}=...' for name in known)}")
        found[name] = value
    if not found:
        raise argparse.ArgumentTypeError(f"it is empty; expected {', '.join(f'{name}=...' for name in known)}")
    return found


def _mesh(text: str) -> dict[str, int]:
    return {name: _positive(value) for name, value in _settings(text, ("chains", "data")).items()}


def _training_mesh(text: str) -> dict[str, int]:
    return {name: _positive(value) for name, value in _settings(text, ("data", "model", "time")).items()}


def _clock(text: str) -> dict[str, str]:
    return _settings(text, ("time",))


def _until(text: str) -> dict[str, str]:
    return _settings(text, ("ess", "r_hat", "time"))
