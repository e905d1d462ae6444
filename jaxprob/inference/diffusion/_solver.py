"""What every sampler of a diffusion is: an `Algorithm` that goes from time 1 to time 0 on a grid of times.

A solver is a frozen description, `steps` and a step; with a process and a denoiser it becomes an `Algorithm` whose
position is one example, so that the runtime runs, keeps and resumes it as any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion import Denoiser, NoisingProcess
from jaxprob.models.diffusion._gaussian import Gaussian

GRIDS = ("time", "log_ratio", "karras")


def check_each(function: str, argument: str, value: Any, count: int, what: str) -> None:
    """Raises a `ValueError` unless every leaf has a leading axis with one entry for each of so many."""
    for leaf in jax.tree.leaves(value):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != count:
            got = f"of shape {jnp.shape(leaf)}"
            raise core.bad_value(function, argument, got, f"one for each of {count} {what}, leading")


class DiffusionState(NamedTuple):
    """An example on its way from noise to data.

    Attributes:
      position: x at the present time.
      taken: (), int32, steps so far.
      memory: pytree of what a solver keeps from step to step, such as earlier outputs.
    """

    position: Any
    taken: jax.Array
    memory: Any


class DiffusionInfo(NamedTuple):
    """What happened in one step; every field is a scalar.

    Attributes:
      time: after the step.
      evaluations: of the denoiser, in this step.
    """

    time: jax.Array
    evaluations: jax.Array


class Step(NamedTuple):
    """What a solver's step is given.

    Attributes:
      key: of this step.
      x: the example at time `t`.
      t: (), the present time.
      s: (), the time to go to, earlier.
      memory: pytree, as the last step left it.
      taken: (), int32, steps so far.
      denoise: `(x, t) -> output`, the denoiser with its condition, checked.
    """

    key: core.Key
    x: Any
    t: jax.Array
    s: jax.Array
    memory: Any
    taken: jax.Array
    denoise: Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Solver:
    """How samples are drawn: hashable, without arrays.

    Attributes:
      name: as it is called, for messages.
      steps: number of steps.
      advance: `(process, step: Step) -> (x, memory)`, one step; hashable.
      remember: `(process, x, shape) -> memory` before the first step; None for none.
      evaluations: of the denoiser in one step; or `memory -> ()`, what the step's memory says of it.
      grid: how times are spread: "time" (evenly), "log_ratio" (evenly in the log signal-to-noise ratio) or "karras"
        (evenly in the noise scale to the power 1/7); the last two for Gaussian processes.
      kind: the class of processes that it is for.
    """

    name: str
    steps: int
    advance: Callable[[Any, Step], tuple[Any, Any]]
    remember: Callable[[Any, Any, tuple[int, ...]], Any] | None = None
    evaluations: int | Callable[[Any], jax.Array] = 1
    grid: str = "time"
    kind: type[NoisingProcess] | tuple[type[NoisingProcess], ...] = NoisingProcess

    def __post_init__(self) -> None:
        core.check_whole(self.name, steps=self.steps)
        if self.grid not in GRIDS:
            raise core.bad_value(self.name, "grid", core.describe(self.grid), f"one of {GRIDS}")

    def times(self, process: NoisingProcess) -> jax.Array:
        """The times of the steps, (steps + 1,), from 1 to 0."""
        even = jnp.linspace(0.0, 1.0, self.steps + 1)
        if self.grid == "time":
            return 1 - even
        if not isinstance(process, Gaussian):
            got = f"{self.grid!r} for {type(process).__name__}"
            raise core.bad_value(self.name, "grid", got, "'time'", "The others are for Gaussian processes")
        last, first = process.log_ratio(1.0), process.log_ratio(0.0)
        if self.grid == "log_ratio":
            levels = last * (1 - even) + first * even
        else:
            # The noise scale of the exploding form of the same process.
            root = jnp.exp(-last / 14) * (1 - even) + jnp.exp(-first / 14) * even
            levels = -14 * jnp.log(root)
        return process.schedule.inverse(levels).at[0].set(1.0).at[-1].set(0.0)

    def check(self, function: str, process: NoisingProcess) -> None:
        """Raises a `TypeError` if the solver is not for this process."""
        if not isinstance(process, self.kind):
            kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
            expected = f"one for {type(process).__name__}"
            todo = f"{self.name} is for {' and '.join(kind.__name__ for kind in kinds)}"
            raise core.bad_type(function, "solver", self.name, expected, todo)

    def algorithm(
        self, process: NoisingProcess, denoiser: Denoiser, shape: Any, condition: Any = None
    ) -> core.Algorithm:
        """The `Algorithm` that draws one example.

        Args:
          process: a noising process.
          denoiser: `(x, t, condition) -> output`, of one example.
          shape: of an example.
          condition: what the denoiser is given.

        Returns:
          Algorithm with a `DiffusionState`: `init(position, key)` takes x at time 1, or None to draw it; after `steps`
          steps, further steps change nothing.

        Raises:
          TypeError: if the solver is not for this process.
        """
        self.check("Solver.algorithm", process)
        shape = core.as_shape("Solver.algorithm", shape)

        def denoise(x: Any, t: jax.Array) -> jax.Array:
            return process.output(denoiser, x, t, condition, shape)

        def init(position: Any, key: core.Key) -> DiffusionState:
            x = process.sample_prior(key, shape) if position is None else position
            memory = () if self.remember is None else self.remember(process, x, shape)
            return DiffusionState(x, jnp.int32(0), memory)

        def step(key: core.Key, state: DiffusionState) -> tuple[DiffusionState, DiffusionInfo]:
            times = self.times(process)
            done = state.taken >= self.steps
            index = jnp.minimum(state.taken, self.steps - 1)
            t, s = times[index], times[index + 1]
            moved = self.advance(process, Step(key, state.position, t, s, state.memory, index, denoise))
            x, memory = jax.tree.map(lambda new, old: jnp.where(done, old, new), moved, (state.position, state.memory))
            used = self.evaluations(memory) if callable(self.evaluations) else self.evaluations
            info = DiffusionInfo(s, jnp.where(done, 0, used).astype(jnp.int32))
            return DiffusionState(x, jnp.minimum(state.taken + 1, self.steps), memory), info

        return core.Algorithm(init, step)
