"""Sampling by a process's own reverse transitions."""

from __future__ import annotations

from typing import Any

from jaxprob import core
from jaxprob.inference.diffusion._solver import Solver, Step


def ancestral(steps: int = 100, grid: str = "time") -> Solver:
    """Reverse transitions, one after the other: for every process.

    Args:
      steps: how many.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown grid.

    >>> ancestral(10).steps
    10

    Source: Sohl-Dickstein et al. (2015), equation 4; Ho, Jain & Abbeel (2020), algorithm 2.
    """
    return Solver("diffusion.ancestral", steps, core.Bound(_advance), grid=grid)


def _advance(process: Any, step: Step) -> tuple[Any, Any]:
    output = step.denoise(step.x, step.t)
    return process.reverse_step(step.key, step.x, output, step.t, step.s), step.memory
