"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere, or nothing.

A progress object is told of the run by the host loop, between chunks; nothing here is called from inside a compiled
program. The columns are those of nutpie's table (chain, progress, draws, divergences, step size, gradients per draw).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

_ROWS = 8  # chains with a row of their own; more are gathered in one row
# Heads of columns, names in a status and formats: of chains, and of populations of particles.
_CHAINS = (
    ("draws", "draws", ",.0f"),
    ("divergences", "divergences", ",.0f"),
    ("step size", "step_size", ".3g"),
    ("gradients/draw", "gradients_per_draw", ".1f"),
)
_POPULATIONS = (
    ("draws", "draws", ",.0f"),
    ("step", "steps", ",.0f"),
    ("inverse temperature", "inverse_temperature", ".3g"),
    ("acceptance", "acceptance_rate", ".2f"),
    ("log evidence", "log_evidence", ",.2f"),
)
_LOSSES = (("loss", "loss"), ("validation/loss", "validation"))  # of a training run: names in a status, and as shown


class Progress(Protocol):
    """What a run tells a watcher. Calls come in this order: `start`, then `phase` and `update` as often as needed,
    `finish` if the run came to an end of its own, and `close` in any case.
    """

    def start(self, plan: Mapping[str, Any]) -> None:
        """Called once, before anything is compiled.

        Args:
          plan: `chains`, `warmup`, `draws` (each chain), or `steps` of training; `devices` and `algorithm` (text),
            `out` (path or None); any of them may be missing.
        """

    def phase(self, name: str) -> None:
        """Called when the run starts to do something else: "compiling", "warm-up", "sampling", "training"."""

    def update(self, status: Mapping[str, Any]) -> None:
        """Called after each chunk.

        Args:
          status: `step` (done of `total`, warm-up included), `total`, `phase`, `chains` (a list of mappings with
            `draws`, `divergences`, `step_size`, `gradients_per_draw`, `acceptance_rate`; of populations of particles
            `draws`, `steps`, `inverse_temperature` where they have one, `acceptance_rate`, `log_evidence`), `seconds`,
            `draws_per_second`, and `r_hat_max` and `ess_min` when they are known. In training there are no chains
            and draws, but `steps_per_second`, `loss` and `validation/loss`.
        """

    def finish(self, message: str) -> None:
        """Called when the run came to an end: all draws done, a rule of `until` met, or a signal to stop."""

    def close(self) -> None:
        """Gives the terminal back. Called in any case, after an error too; more than once does no harm."""


def terminal(stream: TextIO | None = None, *, live: bool | None = None) -> Progress:
    """A live table where `stream` is a terminal, plain lines where it is not.

    Args:
      stream: where to write; standard output by default.
      live: True for the table, False for the lines; by default the stream decides.
    """
    stream = sys.stdout if stream is None else stream
    if live is None:
        from rich.console import Console

        console = Console(file=stream)
        live = console.is_terminal and not console.is_dumb_terminal
    return Table(stream) if live else Lines(stream)


class Lines:
    """Plain lines: one at the start, one at each tenth of the run or after a while, one at the end.

    "A while" is ten seconds at first and a twentieth of the time run so far later on, so that the log of a run of days
    stays short.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._began = self._last = self._since = clock()
        self._pace = _Pace()
        self._tenth = 0
        self._phase = ""

    def start(self, plan: Mapping[str, Any]) -> None:
        """Says what is going to run."""
        self._began = self._last = self._clock()
        self._pace = _Pace()
        self._write(", ".join(describe_plan(plan)))

    def phase(self, name: str) -> None:
        """Says at once that a program is being compiled, and then how long it took; `update` names other phases."""
        if name != self._phase and name == "compiling":
            self._write("compiling ...")
            self._since = self._clock()
        if name != self._phase and self._phase == "compiling":
            self._write(f"compiled in {self._clock() - self._since:.1f} s")
        self._phase = name

    def update(self, status: Mapping[str, Any]) -> None:
        """Writes a line at each tenth of the run, or when the last line is old."""
        now = self._clock()
        left = self._pace.left(status, now)
        tenth = int(10 * _fraction(status))
        old = now - self._last >= max(10.0, (now - self._began) / 20)
        if tenth > self._tenth or old:
            self._tenth, self._last = tenth, now
            cells = []
            if "chains" in status:
                row = summarise(status["chains"])
                cells = [f"{head} {text}" for head, text in _cells(row, _columns(status["chains"]))]
            phase = str(status.get("phase", self._phase))
            self._write("  ".join([f"{phase:8} {_percent(status):>4}".rstrip(), *cells, *_facts(status, left)]))

    def finish(self, message: str) -> None:
        """Writes the last line."""
        self._write(message)

    def close(self) -> None:
        """Nothing is held."""

    def _write(self, text: str) -> None:
        print(f"jaxprob: {text}", file=self._stream, flush=True)


class Table:
    """A table that is redrawn in place, a row a chain, with what the run is doing below it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=sys.stdout if stream is None else stream)
        self._spinner: Any = None
        self._status: Mapping[str, Any] = {}
        self._pace = _Pace()
        self._left: float | None = None
        self._phase = ""
        self._since = time.monotonic()
        self._message = ""
        self._open = False
        # `get_renderable` is asked again at each refresh, so that the clock runs on while a program compiles.
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=False)

    def start(self, plan: Mapping[str, Any]) -> None:
        """Says what is going to run, and opens the table."""
        self._console.print(", ".join(describe_plan(plan)), style="bold", markup=False, highlight=False)
        self._phase, self._since = "starting", time.monotonic()
        self._live.start()
        self._open = True

    def phase(self, name: str) -> None:
        """Shows the phase at once."""
        if name != self._phase:
            self._phase, self._since = name, time.monotonic()
        self._refresh()

    def update(self, status: Mapping[str, Any]) -> None:
        """Redraws the table."""
        self._status = dict(status)
        self._left = self._pace.left(status, time.monotonic())
        if status.get("phase", self._phase) != self._phase:
            self._phase, self._since = str(status["phase"]), time.monotonic()
        self._refresh()

    def finish(self, message: str) -> None:
        """Replaces the line below the table by the last word."""
        self._message = message
        self._refresh()

    def close(self) -> None:
        """Leaves the table as it stands and gives the terminal back."""
        if self._open:
            self._open = False
            self._live.stop()

    def _refresh(self) -> None:
        if self._open:
            self._live.refresh()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        parts: list[Any] = []
        chains = list(self._status.get("chains", ()))
        if chains:
            table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            table.add_column("chain", justify="right", no_wrap=True)
            table.add_column("progress", no_wrap=True)
            columns = _columns(chains)
            for head, _, _ in columns:
                table.add_column(head, justify="right", no_wrap=True)
            rows: list[tuple[str, Mapping[str, Any]]] = [(str(i), chain) for i, chain in enumerate(chains[:_ROWS])]
            if len(chains) > _ROWS:
                rows.append((f"all {len(chains):,}", summarise(chains)))
            for name, chain in rows:
                cells = [
                    f"[red]{text}[/red]" if head == "divergences" and chain.get(head) else text
                    for head, text in _cells(chain, columns)
                ]
                table.add_row(name, self._bar(), *cells)
            parts.append(table)
        elif "loss" in self._status:
            parts.append(self._bar())
        parts.append(Text(self._message) if self._message else self._line())
        return Group(*parts)

    def _bar(self) -> Any:
        from rich.progress_bar import ProgressBar

        colour = "yellow" if self._phase == "warm-up" else "green"
        return ProgressBar(1.0, _fraction(self._status), width=24, complete_style=colour, finished_style="green")

    def _line(self) -> Any:
        from rich.spinner import Spinner

        text = self._phase
        if self._phase == "compiling":
            text += f" ... {_clock(time.monotonic() - self._since)}"
        elif self._status:
            text = "  ".join([f"{text} {_percent(self._status)}".rstrip(), *_facts(self._status, self._left)])
        if self._spinner is None:  # one object, so that it turns rather than starts again at each refresh
            self._spinner = Spinner("dots")
        self._spinner.update(text=text)
        return self._spinner


def describe_plan(plan: Mapping[str, Any]) -> list[str]:
    """What a run is going to do, in a few parts of a sentence.

    >>> describe_plan({"algorithm": "NUTS", "chains": 4, "devices": "2 CPU devices", "warmup": 1000, "draws": 500})
    ['NUTS', '4 chains on 2 CPU devices', '1,000 warm-up steps and 500 draws each']
    """
    parts = [str(plan.get("algorithm") or "run")]
    chains = plan.get("chains")
    where = f" on {plan['devices']}" if plan.get("devices") else ""
    if chains is not None:
        parts.append(f"{chains:,} chain{'' if chains == 1 else 's'}{where}")
    lengths = [
        f"{plan[name]:,} {text}" for name, text in (("warmup", "warm-up steps"), ("draws", "draws")) if plan.get(name)
    ]
    if lengths:
        parts.append(" and ".join(lengths) + (" each" if chains != 1 else ""))
    if plan.get("steps"):
        parts.append(f"{plan['steps']:,} steps{where if chains is None else ''}")
    if plan.get("out"):
        parts.append(f"to {plan['out']}")
    return parts


def summarise(chains: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for all chains: the sum of draws and divergences, the slowest population, the mean of the rest."""
    of_all: dict[str, Callable[[list[float]], float]] = {
        "draws": sum,
        "divergences": sum,
        "steps": max,
        "inverse_temperature": min,
    }
    row: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, name, _ in _CHAINS + _POPULATIONS):
        known = [chain[name] for chain in chains if chain.get(name) is not None]
        mean = lambda values: sum(map(float, values)) / len(values)  # noqa: E731
        row[name] = of_all.get(name, mean)(known) if known else None
    return row


def _columns(chains: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str, str], ...]:
    """The columns of chains, or of populations, of which not all have temperatures."""
    if not any("steps" in chain for chain in chains):
        return _CHAINS
    known = {name for chain in chains for name in chain}
    return tuple(column for column in _POPULATIONS if column[1] in known)


def _cells(chain: Mapping[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Heads and what stands below them."""
    return [(head, "-" if chain.get(name) is None else format(chain[name], form)) for head, name, form in columns]


def _fraction(status: Mapping[str, Any]) -> float:
    total = status.get("total") or 0
    return min(1.0, status.get("step", 0) / total) if total else 0.0


def _percent(status: Mapping[str, Any]) -> str:
    """How much is done; nothing of populations, of which nobody knows how many steps they take."""
    known = status.get("total") or "total" not in status or "chains" not in status
    return f"{_fraction(status):.0%}" if known else ""


class _Pace:
    """Time left, from the steps done since the first chunk: neither compiling nor a resumed past count as work."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, status: Mapping[str, Any], now: float) -> float | None:
        """Seconds left of the run, or None while nothing is known."""
        step, total = float(status.get("step", 0)), float(status.get("total") or 0)
        if self._first is None:
            self._first = (step, now)
        done, spent = step - self._first[0], now - self._first[1]
        return spent / done * (total - step) if done > 0 and total > step else None


def _facts(status: Mapping[str, Any], left: float | None) -> list[str]:
    """Speed, time left and convergence, as far as they are known."""
    facts = []
    if status.get("draws_per_second"):
        what = "steps" if status.get("phase") == "warm-up" else "draws"
        facts.append(f"{status['draws_per_second']:,.0f} {what}/s")
    facts.extend(f"{shown} {status[name]:.4g}" for name, shown in _LOSSES if status.get(name) is not None)
    if status.get("steps_per_second"):
        facts.append(f"{status['steps_per_second']:,.1f} steps/s")
    if left is not None:
        facts.append(f"{_clock(left)} left")
    if status.get("r_hat_max") is not None:
        facts.append(f"R-hat {status['r_hat_max']:.3f}")
    if status.get("ess_min") is not None:
        facts.append(f"ESS {status['ess_min']:,.0f}")
    return facts


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(3661.2)
    '1:01:01'
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
