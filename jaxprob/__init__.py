"""jaxprob: a functional toolkit for probabilistic and sequence modelling on JAX.

The namespaces are loaded when they are first used, so that `import jaxprob` (and the command line's `--help`)
costs nothing, makes no array and starts no backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxprob import analysis as analysis
    from jaxprob import core as core
    from jaxprob import distributions as distributions
    from jaxprob import inference as inference
    from jaxprob import learning as learning
    from jaxprob import models as models
    from jaxprob import runtime as runtime
    from jaxprob import scan as scan
    from jaxprob.runtime import fit as fit
    from jaxprob.runtime import sample as sample

__version__ = "0.1.0"

_NAMESPACES = ("core", "scan", "distributions", "models", "inference", "learning", "analysis", "runtime")
_FRONT_DOORS = ("fit", "sample")

__all__ = [
    "__version__",
    "analysis",
    "core",
    "distributions",
    "fit",
    "inference",
    "learning",
    "models",
    "runtime",
    "sample",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"jaxprob.{name}")
    if name in _FRONT_DOORS:
        return getattr(importlib.import_module("jaxprob.runtime"), name)
    raise AttributeError(f"module 'jaxprob' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
