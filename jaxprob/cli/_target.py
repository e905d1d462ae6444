"""From `FILE.py:NAME` to something that can be sampled or trained."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxprob.cli._errors import CommandError, UsageError


class Target(NamedTuple):
    """What to sample.

    Attributes:
      model: a posterior or a log density.
      initial: a position, for a log density; None for a posterior, which makes its own.
    """

    model: Any
    initial: Any


class Training(NamedTuple):
    """What to train.

    Attributes:
      task: a `learning.Task`.
      data: where its batches come from.
      validation: data to evaluate on, or None.
      sharding: rules for the parameters, or None.
    """

    task: Any
    data: Any
    validation: Any
    sharding: Any


def split(text: str, default: str = "posterior") -> tuple[Path, str]:
    """File and name from `FILE.py:NAME`; `default`: the name where there is none."""
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = text, default
    if not file.endswith(".py") or not name.isidentifier():
        raise UsageError(f"{text!r} is not FILE.py:NAME, such as models/survey.py:posterior.")
    path = Path(file)
    if not path.is_file():
        raise CommandError(f"no file {file}.")
    return path, name


def load(path: Path, name: str) -> Target:
    """Runs a model file and gets `name` out of it.

    Raises:
      CommandError: if the file has no such name, or it cannot be sampled. What the file raises comes through as it is.
    """
    from jaxprob import models

    module, found = _find(path, name, "log_density", "sampled")
    if isinstance(found, models.Joint) and _required(found):
        given = ", ".join(_required(found))
        raise CommandError(
            f"{path}: {name} is a model; give it its arguments and data: {name}({given}).condition(...)."
        )
    if not hasattr(found, "log_density") and callable(found) and not _required(found):
        found = found()
    if hasattr(found, "log_density"):
        return Target(found, None)
    if hasattr(found, "condition"):
        raise CommandError(f"{path}: {name} is a model without data; give it some: {name}.condition(y=...).")
    if not callable(found):
        raise CommandError(
            f"{path}: {name} is an object of type {type(found).__name__}; expected a posterior, a function that "
            "returns one, or a log density."
        )
    if len(_required(found)) > 1:
        raise CommandError(
            f"{path}: {name} needs the arguments {', '.join(_required(found))}; expected a posterior, a function "
            "without arguments that returns one, or a log density of one position."
        )
    if not hasattr(module, "initial"):
        raise CommandError(f"{path}: {name} is a log density, which needs a position to start from; define `initial`.")
    return Target(found, module.initial)


def load_training(path: Path, name: str) -> Training:
    """Runs a file and gets the task `name` and its data out of it.

    Raises:
      CommandError: if the file has no such name, or it is no task with data. What the file raises comes through as it
        is.
    """
    from jaxprob import learning

    module, found = _find(path, name, "optimizer", "trained")
    expected = "a learning.Task, or a function without arguments that returns (task, data) or (task, data, validation)"
    if callable(found):
        if _required(found):
            given = ", ".join(_required(found))
            raise CommandError(f"{path}: {name} needs the arguments {given}; expected {expected}.")
        found = found()
    parts = list(found) if isinstance(found, tuple) else [found]
    if not isinstance(parts[0], learning.Task) or len(parts) > 3:
        raise CommandError(f"{path}: {name} is an object of type {type(found).__name__}; expected {expected}.")
    if len(parts) == 1:
        if not hasattr(module, "data"):
            raise CommandError(
                f"{path}: {name} is a task without data; define `data` in the file, a learning.data source."
            )
        parts += [module.data, getattr(module, "validation", None)]
    task, data, validation = [*parts, None][:3]
    return Training(task, data, validation, getattr(module, "sharding", None))


def _find(path: Path, name: str, mark: str, verb: str) -> tuple[ModuleType, Any]:
    """The module of a file and what it calls `name`; `mark`: an attribute of what is looked for."""
    module = _run(path)
    if not hasattr(module, name):
        raise CommandError(f"{path} has no {name!r}; it has {_listed(module, mark, verb)}.")
    return module, getattr(module, name)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None  # a path that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As with `python FILE.py`: the file may import its neighbours, and its classes can be found by their module.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _listed(module: ModuleType, mark: str, verb: str) -> str:
    """The names of a file that could be meant: what has the attribute `mark`, and its own functions."""
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, (type, ModuleType))
        and (hasattr(value, mark) or (callable(value) and getattr(value, "__module__", "") == module.__name__))
    ]
    return ", ".join(map(repr, names)) or f"nothing that could be {verb}"


def _required(function: Any) -> list[str]:
    """Names of the arguments that have to be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["position"]
    wanted = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return [p.name for p in parameters if p.kind in wanted and p.default is p.empty]
