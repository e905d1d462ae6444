"""Which algorithm runs a scan: one table, and the reasons in words.

`sequential` does one step after another. `chunked` cuts time into about sqrt(time) chunks of as many steps, runs all
chunks side by side, then their totals; its program does not grow with time. `associative` is the logarithmic tree of
Blelloch (1990), "Prefix sums and their applications". `auto` looks here. `parallel` is a tree on an accelerator, and
chunks on a CPU, where a tree over long series compiles for minutes and may be too large to be kept.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from jaxprob import core

METHODS = ("sequential", "chunked", "associative")

# From how many steps on something else than `sequential` is faster, and what. By backend and kind of recurrence; set by
# benchmarks/scan.py, whose numbers are in benchmarks/results/. A backend that is not here is taken for a GPU.
_TABLE: dict[str, dict[str, tuple[int, str]]] = {
    "cpu": {},
    "gpu": {"elementwise": (16, "associative"), "matrix": (16, "associative"), "monoid": (16, "associative")},
}


class Choice(NamedTuple):
    """How a scan runs, and why.

    Attributes:
      method: "sequential", "chunked", "associative" or "newton".
      reason: one sentence.
    """

    method: str
    reason: str

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}"


def choose(function: str, method: str, kind: str, steps: int) -> Choice:
    """The method that runs `steps` steps of a recurrence of this kind on the default device.

    Raises:
      ValueError: if there is no such method.
    """
    if method in METHODS:
        return Choice(method, "it was asked for")
    backend = platform()
    if method == "parallel":
        return Choice("chunked" if backend == "cpu" else "associative", f"the one that runs in parallel on {backend}")
    if method != "auto":
        expected = f"'auto', 'parallel' or one of {', '.join(map(repr, METHODS))}"
        raise core.bad_value(function, "method", method, expected)
    rows = _TABLE.get(backend, _TABLE["gpu"])
    if not rows:
        return Choice("sequential", f"on {backend} a loop is as a rule faster at every length")
    shortest, parallel = rows[kind]
    if steps < shortest:
        return Choice("sequential", f"{steps} steps are fewer than {shortest}, from where {parallel} is faster")
    return Choice(parallel, f"on {backend} it is faster from {shortest} steps on ({kind} recurrence, {steps} steps)")


def platform() -> str:
    """The backend on which a call without further arguments runs."""
    device: Any = jax.config.values.get("jax_default_device")
    if device is None:
        return jax.default_backend()
    return device.split(":")[0] if isinstance(device, str) else device.platform


def chunk_length(function: str, chunk: int | None, steps: int) -> int:
    """The number of steps of a chunk: what was asked for, or about the square root of all.

    Raises:
      ValueError: if it is not a positive whole number.
    """
    if chunk is None:
        return max(1, math.isqrt(steps))
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise core.bad_value(function, "chunk", chunk, "a number of steps, 1 or more")
    return min(chunk, max(steps, 1))
