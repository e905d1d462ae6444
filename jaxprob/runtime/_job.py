"""The host loop of a run: one compiled chunk after another, and between them everything that is not arithmetic.

Between two chunks the loop moves draws to the store, tells the progress object, writes a checkpoint when one is due,
and looks at stop signals and stopping rules. Chunks are cut by time, not by number: where they are cut changes no bit
of the result.
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
from jaxprob.runtime._mesh import CHAINS, fetch, place
from jaxprob.runtime._signals import StopSignals
from jaxprob.runtime._store import DrawStore
from jaxprob.runtime._until import Status, Until

SECONDS_PER_CHUNK = 1.0
FIRST_CHUNK = 8


@dataclass
class Job:
    """A run under way. Its fields are what the loop needs; `go` runs it to its end.

    Attributes:
      program, target, key: what is run; the target's leaves lie on the mesh.
      carry: states of all chains and online statistics.
      indices: (chain,) global chain indices, on the mesh.
      warmup: steps whose draws are not kept; draws: rows to keep; thin: steps between rows.
      step: steps done so far.
      store: where rows go; None in a process that leaves the writing to another.
      checkpoints: folder for checkpoints, or None; checkpoint_every: seconds between two of them.
      until: a rule that ends the run before `draws` rows are there.
      progress: whom to tell; None for nobody.
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
    step: int = 0
    checkpoints: Path | None = None
    checkpoint_every: float = 30.0
    until: Until | None = None
    progress: Any = None
    times: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "warm-up": 0.0, "sampling": 0.0})
    tally: Tally = field(default_factory=lambda: Tally())

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
        if self.step < self.warmup or not self.program.interleave:
            self._chunk(0, record=False)
        if self.program.interleave:
            self._chunk(0, record=True)
        jax.block_until_ready(self.carry)
        self.times["compile"] += time.perf_counter() - began

    def go(self) -> str:
        """Runs until all draws are there, a rule is met or a signal comes.

        Returns:
          "finished", or why it stopped earlier: "until: ..." (a finished run as well) or "signal: SIGTERM".
        """
        began = saved = time.monotonic()
        rate, ended = 0.0, "finished"
        # Statistics over all chains are computed by all processes together, though only the first may have someone to
        # tell: they agree beforehand, or some would wait for the others for ever.
        self._watched = bool(_from_first(int(self.until is not None or self.progress is not None)))
        with StopSignals() as signals:
            while self.step < self.total:
                count = self._next_count(rate)
                warm = self.step < self.warmup
                self._tell_phase("warm-up" if warm else "sampling")
                start = time.perf_counter()
                rows = self._chunk(count, record=not warm)
                host = _rows(rows, count, warm)
                seconds = time.perf_counter() - start
                self.times["warm-up" if warm else "sampling"] += seconds
                rate = count / max(seconds, 1e-6)
                self.step += count if warm else count * self.thin
                if not warm and self.store is not None:
                    self.store.append(host)
                self.tally.add(host, warm)
                status = self._status(time.monotonic() - began)
                self._tell(status, rate)
                stop, due = self._agree(
                    signals.requested is not None, self._due(saved), self.until is not None and self.until.met(status)
                )
                if due or stop:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop == 1:
                    ended = f"signal: {signals.requested or 'another process was told to stop'}"
                    break
                if stop == 2:
                    ended = f"until: {self.until}"
                    break
        if ended == "finished":
            self.checkpoint()
        return ended

    def checkpoint(self) -> None:
        """Makes everything up to this step safe: rows first, then the state that goes on from them."""
        if self.store is not None:
            self.store.flush()
        if self.checkpoints is not None and self.step not in _checkpoint.steps(self.checkpoints):
            _checkpoint.save(self.checkpoints, self.step, self.carry)

    def _chunk(self, count: int, record: bool) -> Any:
        thin = self.thin if record else 1
        self.carry, rows = _program.chunk(
            self.program, self.target, self.key, self.indices, self.carry, self.step, count, thin, record
        )
        return rows

    def _next_count(self, rate: float) -> int:
        left = self.warmup - self.step if self.step < self.warmup else self.draws - self.rows
        # Grow at most fourfold: the first steps of a warm-up are no guide to the later ones.
        wanted = FIRST_CHUNK if rate == 0 else int(min(rate * SECONDS_PER_CHUNK, 4 * self._last_count))
        self._last_count = int(_from_first(max(1, min(wanted, left, self.program.capacity))))
        return self._last_count

    _last_count: int = FIRST_CHUNK
    _watched: bool = False

    def _due(self, saved: float) -> bool:
        return self.checkpoints is not None and time.monotonic() - saved >= self.checkpoint_every

    def _agree(self, signal: bool, due: bool, met: bool) -> tuple[int, bool]:
        """What all processes do next. A signal to any process stops them all; the clock is that of the first."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            votes = np.asarray(multihost_utils.process_allgather(np.asarray([signal, due, met], np.int32)))
            signal, due, met = bool(votes[:, 0].any()), bool(votes[0, 1]), bool(votes[0, 2])
        return (1 if signal else 2 if met else 0), due

    def _status(self, seconds: float) -> Status:
        if self.rows < 4 or not self._watched:
            return Status(seconds, self.rows)
        ess, r_hat = (float(x) for x in fetch(_worst(self.program.mesh)(self.carry.moments)))
        return Status(seconds, self.rows, ess, r_hat)

    def _tell_phase(self, name: str) -> None:
        if self.progress is not None:
            self.progress.phase(name)

    def _tell(self, status: Status, rate: float) -> None:
        if self.progress is None:
            return
        known = {"ess_min": status.ess_min, "r_hat_max": status.r_hat_max}
        self.progress.update(
            {
                "step": self.step,
                "total": self.total,
                "seconds": status.seconds,
                "draws_per_second": rate,
                "phase": "warm-up" if self.step <= self.warmup and not self.rows else "sampling",
                "chains": self.tally.chains(self.rows),
                **{name: value for name, value in known.items() if np.isfinite(value)},
            }
        )


class Tally:
    """Running counts of each chain for the progress table."""

    def __init__(self) -> None:
        self._last: dict[str, np.ndarray] = {}
        self._divergences: Any = 0

    def add(self, rows: dict[str, np.ndarray], warm: bool) -> None:
        """Takes in the stats of a chunk, (rows, chain) each."""
        stats = {path.split("/", 1)[1]: x for path, x in rows.items() if path.startswith("sample_stats/")}
        if "diverging" in stats and not warm:
            self._divergences = self._divergences + stats["diverging"].sum(0)
        for name in ("num_steps", "acceptance_rate"):
            if name in stats:
                self._last[name] = stats[name].mean(0)
        if "step_size" in stats:
            self._last["step_size"] = stats["step_size"][-1]

    def chains(self, draws: int) -> list[dict[str, Any]]:
        """A row a chain."""
        if not self._last:
            return []
        names = {"num_steps": "gradients_per_draw", "step_size": "step_size", "acceptance_rate": "acceptance_rate"}
        count = len(next(iter(self._last.values())))
        divergences = np.broadcast_to(self._divergences, (count,))
        return [
            {"draws": draws, "divergences": int(divergences[chain])}
            | {names[name]: float(value[chain]) for name, value in self._last.items()}
            for chain in range(count)
        ]


def _rows(rows: dict[str, Any], count: int, warm: bool) -> dict[str, np.ndarray]:
    """The rows of a chunk on the host; in warm-up only the stats, and nothing position-sized leaves the devices.

    Whole buffers are copied and cut here: cut on the device, each count would be a program of its own.
    """
    wanted = {path: x for path, x in rows.items() if path.startswith("sample_stats/") or not warm}
    return {path: x[:count] for path, x in fetch(wanted).items()}


def _from_first(value: int) -> int:
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


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
