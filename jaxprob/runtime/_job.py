"""A sampling run under way: what the host loop does with a chunk of a Markov chain's steps, and keeps of it.

Draws go to the store, counts of each chain to the progress object, states and online statistics to the checkpoints.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.analysis import online
from jaxprob.runtime import _checkpoint, _program
from jaxprob.runtime._loop import Loop
from jaxprob.runtime._mesh import CHAINS, fetch, place
from jaxprob.runtime._store import DrawStore
from jaxprob.runtime._until import Status


@dataclass
class Job(Loop):
    """A sampling run under way; `go` runs it to its end.

    Attributes:
      program, target, key: what is run; the target's leaves lie on the mesh.
      carry: states of all chains and online statistics.
      indices: (chain,) global chain indices, on the mesh.
      warmup: steps whose draws are not kept; draws: rows to keep; thin: steps between rows.
      store: where rows go; None in a process that leaves the writing to another.
      narrow: what goes on after a warm-up that found narrow places; None for the same program.
      ends_itself: whether the warm-up is over once populations are done, `warmup` being the most steps.
    """

    program: _program.Program
    target: Any
    key: core.Key
    carry: _program.Carry
    indices: Any
    warmup: int
    draws: int
    thin: int
    store: DrawStore | None
    times: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "warm-up": 0.0, "sampling": 0.0})
    tally: Tally = field(default_factory=lambda: Tally())
    narrow: _program.Program | None = None
    ends_itself: bool = False

    @property
    def rows(self) -> int:
        """Rows kept so far, each `thin` steps after the one before."""
        return max(self.step - self.warmup, 0) // self.thin

    @property
    def total(self) -> int:
        """Steps in all, warm-up included."""
        return self.warmup + self.draws * self.thin

    def compile(self) -> None:
        """Compiles the chunk by running none of its steps."""
        began = time.perf_counter()
        if self.step >= self.warmup:
            self._leave_warmup()
        if self.step < self.warmup or not self.program.interleave:
            self._chunk(0, record=False)
        if self.program.interleave:
            self._chunk(0, record=True)
        jax.block_until_ready(self.carry)
        self.times["compile"] += time.perf_counter() - began

    def most(self) -> int:
        """Steps of warm-up, or rows, of the next chunk at most."""
        left = self.warmup - self.step if self.step < self.warmup else self.draws - self.rows
        return min(left, self.program.capacity)

    def phase(self) -> str:
        """What the next chunk does."""
        return "warm-up" if self.step < self.warmup else "sampling"

    def advance(self, count: int) -> float:
        """Takes `count` steps of warm-up, or rows, and keeps what came out."""
        phase = self.phase()
        warm = phase == "warm-up"
        start = time.perf_counter()
        rows = self._chunk(count, record=not warm)
        host = _rows(rows, count, warm)
        seconds = time.perf_counter() - start
        self.times[phase] += seconds
        self.step += count if warm else count * self.thin
        done = host.pop("sample_stats/done", None)  # of populations
        if warm and done is not None:
            self.tally.add_populations(done, self.step - count)
            self._populations_stand(done[-1], host["sample_stats/log_evidence"][-1])
        if not warm and self.store is not None:
            self.store.append(host)
        self.tally.add(host, warm)
        if warm and self.step >= self.warmup and self._leave_warmup():
            if self.progress is not None:
                self.progress.phase("compiling")
            self.compile()
        return count / max(seconds, 1e-6)

    def _leave_warmup(self) -> bool:
        """Whether another program goes on from here, as the state says, and says to a resumed run too."""
        if self.narrow is None or not fetch(self.carry.state.shared.narrow):
            return False
        self.program, self.narrow = self.narrow, None
        return True

    def _populations_stand(self, done: np.ndarray, log_evidence: np.ndarray) -> None:
        """Ends the warm-up of populations, (chain,), once all are done.

        Raises:
          ValueError: if one has lost all its mass, or is not done after all steps there may be.
        """
        lost = np.flatnonzero(done & ~np.isfinite(log_evidence))
        if lost.size:
            got = f"of log evidence {log_evidence[lost[0]]} for the particles of chain {lost[0]}"
            todo = "Check the likelihood at draws from the prior, or take more particles"
            raise core.bad_value("sample", "posterior", got, "a likelihood that is finite for some of them", todo)
        if done.all():
            self.step = self.warmup
        elif self.step >= self.warmup:
            got = f"{self.warmup}, after which {np.sum(~done)} of {done.size} populations are not done"
            raise core.bad_value("sample", "warmup", got, "as many steps as it takes", "Leave warmup out")

    def status(self, seconds: float) -> Status:
        """Rows so far, and how well the chains have mixed if anyone looks at it."""
        if self.rows < 4 or not self._watched:
            return Status(seconds, self.rows)
        ess, r_hat = (float(x) for x in fetch(_worst(self.program.mesh)(self.carry.moments)))
        return Status(seconds, self.rows, ess, r_hat)

    def facts(self, status: Status, rate: float) -> dict[str, Any]:
        """Speed, convergence and a row for each chain."""
        known = {"ess_min": status.ess_min, "r_hat_max": status.r_hat_max}
        # How many steps populations take nobody knows beforehand: until they are done there is no total.
        place = (
            {} if not self.ends_itself else {"step": self.rows, "total": self.draws} if self.rows else {"total": None}
        )
        return {
            **place,
            "draws_per_second": rate,
            "phase": "warm-up" if self.step <= self.warmup and not self.rows else "sampling",
            "chains": self.tally.chains(self.rows),
            **{name: value for name, value in known.items() if np.isfinite(value)},
        }

    def flush(self) -> None:
        """Waits until the rows so far are safe."""
        if self.store is not None:
            self.store.flush()

    def write_checkpoint(self, folder: Path) -> None:
        """Writes states and statistics."""
        _checkpoint.save(folder, self.step, self.carry)

    def _chunk(self, count: int, record: bool) -> Any:
        thin = self.thin if record else 1
        self.carry, rows = _program.chunk(
            self.program, self.target, self.key, self.indices, self.carry, self.step, count, thin, record
        )
        return rows


# Scalars of a population that a watcher wants to see, besides how often moves are accepted.
_OF_POPULATIONS = ("inverse_temperature", "log_evidence", "acceptance_rate")


class Tally:
    """Running counts of each chain for the progress table."""

    def __init__(self) -> None:
        self._last: dict[str, np.ndarray] = {}
        self._divergences: Any = 0
        self._done: Any = False

    def add(self, rows: dict[str, np.ndarray], warm: bool) -> None:
        """Takes in the stats of a chunk, (rows, chain) each."""
        stats = {path.split("/", 1)[1]: x for path, x in rows.items() if path.startswith("sample_stats/")}
        if "diverging" in stats and not warm:
            self._divergences = self._divergences + stats["diverging"].sum(0)
        for name in ("num_steps", "acceptance_rate"):
            if name in stats:
                self._last[name] = stats[name].mean(0)
        for name in ("step_size", *(_OF_POPULATIONS if "steps" in self._last else ())):
            if name in stats:
                self._last[name] = stats[name][-1]

    def add_populations(self, done: np.ndarray, before: int) -> None:
        """Takes in whether populations were done after each step of a chunk, (rows, chain), of which `before` none."""
        steps = before + np.sum(~done, 0) + done.any(0)
        self._last["steps"] = np.where(self._done, self._last.get("steps", steps), steps)
        self._done = done[-1]

    def chains(self, draws: int) -> list[dict[str, Any]]:
        """A row a chain."""
        if not self._last:
            return []
        count = len(next(iter(self._last.values())))
        values = {"gradients_per_draw" if name == "num_steps" else name: x for name, x in self._last.items()}
        if "steps" not in values:
            values["divergences"] = np.broadcast_to(self._divergences, (count,))
        return [{"draws": draws} | {name: x[chain].item() for name, x in values.items()} for chain in range(count)]


def _rows(rows: dict[str, Any], count: int, warm: bool) -> dict[str, np.ndarray]:
    """The rows of a chunk on the host; in warm-up only the stats, and nothing position-sized leaves the devices.

    Whole buffers are copied and cut here: cut on the device, each count would be a program of its own.
    """
    wanted = {path: x for path, x in rows.items() if path.startswith("sample_stats/") or not warm}
    return {path: x[:count] for path, x in fetch(wanted).items()}


@functools.lru_cache(maxsize=8)
def _worst(mesh: Any) -> Any:
    """A function of the moments: the smallest effective sample size and the largest R-hat over all quantities."""

    def worst(moments: Any) -> tuple[jax.Array, jax.Array]:
        ess, r_hat = online.effective_sample_size(moments), online.r_hat(moments)
        # A quantity that never moves (a constant) has neither; it must not stop a rule from being met.
        ess = jnp.where(jnp.isnan(ess), jnp.inf, ess)
        r_hat = jnp.where(jnp.isnan(r_hat), -jnp.inf, r_hat)
        return jnp.min(ess, initial=jnp.inf), jnp.max(r_hat, initial=-jnp.inf)

    return jax.jit(worst, out_shardings=jax.sharding.NamedSharding(mesh, P()))


def chain_indices(mesh: Any, chains: int) -> Any:
    """(chain,) global chain indices, on the mesh."""
    return place(np.arange(chains, dtype=np.int32), mesh, P(CHAINS))
