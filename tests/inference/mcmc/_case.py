"""One row of the battery: a kernel, the targets it is for, and how long to run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxprob import core
from tests.inference.mcmc._targets import Target


class Case(NamedTuple):
    """A kernel in the battery (`test_battery.py`).

    Attributes:
      name: of the kernel and its options.
      build: `target -> Algorithm`. Uses `target.log_density`, or `target.prior` and `target.log_likelihood`, nothing
        else: in the Geweke test they hold tracers, and the rest is missing.
      targets: names in `TARGETS`; the first serves the tests of transformations too.
      kind: "continuous", "latent" (a Gaussian prior on a flat position), "discrete" or "mixed": which Geweke model.
      transitions: from exact draws, in the test of invariance.
      steps: of 64 chains from `target.far`; the first third is left out.
      moved: least fraction of chains that must be elsewhere after `transitions`.
      walkers: for ensembles, how many positions an algorithm's position holds on a leading axis.
      stationary: whether a chain that `init` puts at an exact draw is in equilibrium. Not so where a state holds more
        than a position and its own random numbers, such as replicas at other temperatures that begin at the same place.
      exact: whether the target is what the kernel leaves as it is. One that has a bias owes the rest, and a test of it.
      slow: whether its rows are left to `make test-all`.
    """

    name: str
    build: Callable[[Target], core.Algorithm]
    targets: tuple[str, ...]
    kind: str = "continuous"
    transitions: int = 3
    steps: int = 1500
    moved: float = 0.3
    walkers: int | None = None
    stationary: bool = True
    exact: bool = True
    slow: bool = False
