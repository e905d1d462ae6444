"""What runs, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxprob import core
from jaxprob.scan._affine import affine, explain_affine
from jaxprob.scan._associative import associative, explain_associative
from jaxprob.scan._methods import Choice
from jaxprob.scan._newton import explain_newton, newton
from jaxprob.scan._scan import scan


def explain(function: Callable[..., Any], *args: Any, **options: Any) -> Choice:
    """Which method a scan takes for these arguments on the default device, and why; nothing is run.

    Args:
      function: `scan.scan`, `scan.affine`, `scan.associative` or `scan.newton`.
      *args: as for the function.
      **options: as for the function.

    Returns:
      a `Choice` with `method` and `reason`, which prints as one line.

    Raises:
      ValueError: if it is none of these functions, or the arguments do not fit it.
      TypeError: if the function has no such argument.

    >>> explain(affine, jnp.ones((8, 2)), jnp.ones((8, 2)), method="chunked").method
    'chunked'
    """
    explainers: dict[Any, Callable[..., Choice]] = {
        scan: lambda *_, **__: Choice("sequential", "a step is taken after the one before it; see scan.newton"),
        affine: explain_affine,
        associative: explain_associative,
        newton: explain_newton,
    }
    if function not in explainers:
        raise core.bad_value(
            "scan.explain", "function", function, "scan.scan, scan.affine, scan.associative or scan.newton"
        )
    given = inspect.signature(function).bind(*args, **options)
    return explainers[function](*given.args, **given.kwargs)
