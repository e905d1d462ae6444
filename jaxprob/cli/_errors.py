"""Exit codes of the command line, and one line for whatever went wrong."""

from __future__ import annotations

import traceback
from pathlib import Path

OK = 0
ERROR = 1
USAGE = 2
DIAGNOSTICS = 3  # finished, but the diagnostics found something
PREEMPTED = 75  # stopped by a signal after a checkpoint; EX_TEMPFAIL, which batch systems take for "run it again"
INTERRUPTED = 130  # interrupted with nothing to save; what a shell reports for SIGINT

_LONGEST = 400


class CommandError(Exception):
    """Something a person can put right; its text is the whole message."""


class UsageError(CommandError):
    """The command line itself is wrong."""


def one_line(error: BaseException, model: Path | None = None) -> str:
    """What went wrong, in one line.

    Args:
      error: what was raised.
      model: the user's model file. If the error comes from there, the line begins with file and line number.
    """
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rstrip() + " ..."
    if isinstance(error, CommandError):
        return text
    kind = type(error).__name__
    where = _line_in(error, model) if model is not None else None
    if where is not None:
        # Messages of our own say which function they come from; those of Python need the name of the error.
        return f"{model}:{where}: {text if _is_ours(error) else ': '.join(filter(None, [kind, text]))}"
    if _is_ours(error) or isinstance(error, (OSError, ImportError)):
        return text or kind
    return ": ".join(filter(None, [kind, text]))


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by the package, whose messages say by themselves what happened."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(__file__).resolve().parents[1]
    return (
        bool(frames)
        and home in Path(frames[-1].filename).resolve().parents
        and isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError))
    )


def _line_in(error: BaseException, model: Path) -> int | None:
    """The line of `model` where the error was raised or passed through last."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == model.resolve():
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == model.resolve()
    ]
    return lines[-1] if lines else None
