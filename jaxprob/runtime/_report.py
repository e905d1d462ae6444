"""The report of a run: one HTML file, made from its directory alone.

Verdict first, then the numbers, then the figures of the quantities that mixed worst. Arrays are read through
tensorstore, a few quantities at a time, so that the report of a big run needs little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprob import analysis, core
from jaxprob.runtime import _directory, _figures, _html
from jaxprob.runtime._result import Result, load
from jaxprob.runtime._store import DiskArray, array_paths

_DRAWS = 2000  # draws of a chain in a trace
_VALUES = 4_000_000  # draws of all chains of one quantity that are read
_TRACES, _PAIRS = 6, 4
_PREDICTED = 200  # simulated data sets
_OBSERVATIONS = 100_000
_ROWS = 500  # rows of the full table
_ELEMENTS = 8  # elements of an array with a row of their own in the short table


def _last(values: np.ndarray, axis: int) -> Any:
    return np.take(values, -1, axis)


# Name, title, how draws and then chains are put together, format.
_STATS: tuple[tuple[str, str, Callable[..., Any], Callable[..., Any], str], ...] = (
    ("acceptance_rate", "acceptance rate", np.mean, np.mean, ".3f"),
    ("diverging", "divergences", np.sum, np.sum, ",.0f"),
    ("step_size", "step size", _last, np.mean, ".4g"),
    ("num_steps", "gradients/draw", np.mean, np.mean, ".1f"),
    ("tree_depth", "deepest tree", np.max, np.max, ".0f"),
)


class _Quantity(NamedTuple):
    """One scalar of the posterior with the numbers of its summary."""

    name: str
    variable: str
    element: tuple[int, ...]
    values: Mapping[str, float]

    @property
    def badness(self) -> float:
        """How badly it mixed, in units of the usual limits (R-hat 1.01, 400 effective draws); -inf for a constant."""
        r_hat = self.values.get("r_hat", np.nan)
        ess = min(self.values.get("ess_bulk", np.nan), self.values.get("ess_tail", np.nan))
        if np.isnan(r_hat) and np.isnan(ess):
            return -np.inf
        return float(np.nan_to_num((r_hat - 1) / 0.01) + np.nan_to_num(400 / max(ess, 1e-9)))


def report(run: Result | str | Path, *, figures: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` into a run directory: one file with all its figures, which needs no network.

    Args:
      run: the run directory (what was passed to `sample` as `out`), or the result of a run that has one. The run may
        still be going on.
      figures: matplotlib figures by title, shown after the verdict. They are kept in the run directory, as
        `figures/*.png`, and are part of later reports too.

    Returns:
      the path of the file.

    Raises:
      ValueError: if `run` has no directory, is not a run directory, or has fewer than 4 draws of each chain.
      ImportError: without matplotlib (the `plots` extra).
    """
    _figures.require_matplotlib("report")
    result = run if isinstance(run, Result) else load(run)
    if result.path is None:
        raise core.bad_value("report", "run", "a result in memory", "one with a directory", "Sample with out=...")
    folder = result.path
    arrays = array_paths(folder / _directory.DRAWS)
    # While a run goes on, the arrays grow one after the other: what all of them have is looked at.
    groups = ("posterior", "sample_stats")
    rows = min((_shape(folder, name)[1] for name in arrays if name.split("/")[0] in groups), default=0)
    if rows < 4:
        raise core.bad_value("report", "run", f"{folder} with {rows} draws", "at least 4 draws of each chain")
    _keep_figures(folder, figures or {})
    quantities = _quantities(result)
    with _figures.style():
        sections = [
            _html.Section("Figures of this model", *_kept_figures(folder)),
            _summary(quantities, result.summary()),
            _mixing(folder, arrays, quantities, rows),
            _sampler(folder, arrays),
            _predictive(folder, arrays),
            _configuration(result, folder, rows),
        ]
    meta = result.meta
    warmup = "" if meta.get("populations") else f" after {meta['warmup']:,} warm-up steps"
    lead = f"{meta['chains']:,} chains of {rows:,} draws{warmup}, by {result.algorithm}"
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"Made by jaxprob {meta['versions'].get('jaxprob', '')} on {made} from {folder}"
    text = _html.page(folder.name, lead, _verdict(result, rows), sections, foot)
    # In one step, so that whoever reads it sees the old report or the new one, whole.
    partial = folder / ".report.html.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / "report.html")
    return folder / "report.html"


def _verdict(result: Result, rows: int) -> str:
    """Green: nothing found; amber: notes only, or not finished; red: a problem."""
    diagnosis, meta = result.diagnose(), result.meta
    finished = meta["status"] == "finished"
    if not diagnosis.ok:
        tone, headline = "red", "Do not rely on these draws yet."
    elif not finished:
        tone, headline = "amber", "No problem found so far."
    elif diagnosis.findings:
        tone, headline = "amber", "No problem found; there is something to know."
    else:
        tone, headline = "green", "No problem found: these draws can be used."
    lead = (
        []
        if finished
        else [
            f"The run is not finished ({meta['status']}): {rows:,} of {meta['draws']:,} draws of each chain are there."
        ]
    )
    if diagnosis.ok:
        lead.append(diagnosis.worst_numbers)
    findings = [(found.name, found.what, f"{found.meaning} Try: {found.try_}") for found in diagnosis.findings]
    return _html.verdict(tone, headline, lead, findings)


def _quantities(result: Result) -> list[_Quantity]:
    found = []
    for name, values in result.summary().to_dict().items():
        parts = re.fullmatch(r"(.+)\[([\d,]+)\]", name)
        variable, inside = parts.groups() if parts else (name, "")
        element = tuple(map(int, inside.split(","))) if inside else ()
        numbers = {column: np.nan if value is None else value for column, value in values.items()}
        found.append(_Quantity(name, variable, element, numbers))
    return found


def _summary(quantities: Sequence[_Quantity], table: analysis.Summary) -> _html.Section:
    """The short table: every variable, of a long one the elements that mixed worst; and all of it, folded away."""
    probability, wanted = table.probability, 100 * min(table.chains, 16)
    low, high = (f"eti {50 * (1 + sign * probability):.3g}%" for sign in (-1, 1))
    columns = ["", "mean", "sd", low, high, "ess_bulk", "ess_tail", "r_hat", "mcse_mean"]
    groups: dict[str, list[_Quantity]] = {}
    for quantity in quantities:
        groups.setdefault(quantity.variable, []).append(quantity)
    short: list[Sequence[Any]] = []
    for variable, members in sorted(groups.items(), key=lambda item: len(item[1])):  # scalars first
        worst = sorted(members, key=lambda q: -q.badness)[: len(members) if len(members) <= _ELEMENTS else 3]
        short += [_row(quantity, wanted) for quantity in members if quantity in worst]
        if rest := [quantity for quantity in members if quantity not in worst]:
            ess = min(min(q.values["ess_bulk"], q.values["ess_tail"]) for q in rest)
            r_hat = max(q.values["r_hat"] for q in rest)
            note = f"{len(rest):,} more of {variable}: ess from {ess:,.0f}, r_hat up to {r_hat:.3f}"
            short.append([note])
    parts = [
        _html.paragraph(
            f"Mean, standard deviation and {100 * probability:.3g} % interval (eti) of each quantity; how many "
            "independent draws its bulk and its tails are worth (ess; 100 a chain wanted), how well the chains agree "
            "(r_hat; at most 1.01 wanted), and the Monte Carlo error of the mean (mcse)."
        ),
        _html.table(columns, short),
    ]
    if len(short) < len(quantities):
        every = quantities
        note = f"All {len(quantities):,} quantities"
        if len(every) > _ROWS:
            every = sorted(quantities, key=lambda q: -q.badness)[:_ROWS]
            note = f"The {_ROWS} of {len(quantities):,} quantities that mixed worst; summary.json has all"
        parts.append(_html.details(note, _html.table(columns, [_row(q, wanted) for q in every])))
    return _html.Section("Summary", *parts)


def _mixing(folder: Path, arrays: Sequence[str], quantities: Sequence[_Quantity], rows: int) -> _html.Section:
    section = _html.Section("Mixing of the chains")
    chosen = _worst(quantities, _TRACES, 3)
    if not chosen:
        return section
    paired = _worst(quantities, _PAIRS, 1)
    chains = _shape(folder, f"posterior/{chosen[0].variable}")[0]
    stride = max(1, -(-chains * rows // _VALUES))
    draws = _read(folder, list({q.name: q for q in (*chosen, *paired)}.values()), rows, stride)
    length = next(iter(draws.values())).shape[1]
    diverging = _stat(folder, arrays, "diverging")
    marks = None if diverging is None else _any_in_blocks(np.asarray(diverging, bool), stride)[:, :length]
    step = max(1, -(-length // _DRAWS))
    thin = None if marks is None else _any_in_blocks(marks, step)
    traces = {q.name: draws[q.name][:, ::step] for q in chosen}
    some = "" if len(chosen) == len(quantities) else f"The {len(chosen)} quantities that mixed worst. "
    few = (
        ""
        if chains <= _figures.CHAINS
        else f"Of {chains:,} chains, the {_figures.CHAINS} that differ most from the rest. "
    )
    caption = (
        f"{some}{few}Good chains lie on top of each other on the left, look like the same noise in the middle, and "
        "have flat ranks on the right (99 % of the bars of independent draws lie in the grey band; draws that depend "
        "on each other vary somewhat more)."
    )
    if thin is not None and thin.any():
        caption += " Red marks under a trace are divergent transitions."
    section.parts.append(_html.image(_figures.mixing(traces, thin, stride * step), caption, "density, trace and ranks"))
    if len(paired) > 1:
        found = 0 if diverging is None else int(np.sum(diverging))
        caption = (
            f"Pairs of quantities, with the {found:,} divergent transitions in red. Where red points gather, the "
            "sampler met curvature that its step size cannot follow, and the draws there are not to be trusted."
            if found
            else "Pairs of quantities. There were no divergent transitions."
        )
        section.parts += [
            _html.heading("Pairs"),
            _html.image(_figures.pairs({q.name: draws[q.name] for q in paired}, marks), caption, "pairs"),
        ]
    return section


def _sampler(folder: Path, arrays: Sequence[str]) -> _html.Section:
    """Energy plot, and a row of statistics a chain."""
    section = _html.Section("The sampler")
    energy = _stat(folder, arrays, "energy")
    if energy is not None and energy.shape[1] >= 4 and np.isfinite(energy).all():
        fraction = np.asarray(analysis.e_bfmi(energy))
        caption = (
            "If the change of energy in one step is much narrower than the energy itself (E-BFMI below 0.3), the "
            "chains move through the tails too slowly, which heavy tails or funnels cause."
        )
        section.parts.append(_html.image(_figures.energy(energy, fraction), caption, "energy"))
    columns, cells = ["chain"], []
    for name, title, over_draws, over_chains, form in _STATS:
        values = _stat(folder, arrays, name)
        if values is None or not values.size:
            continue
        columns.append(title)
        each = np.asarray(over_draws(values, axis=1), float)
        cells.append(
            [(format(x, form), "bad" if name == "diverging" and x else "") for x in (*each, over_chains(each))]
        )
    if cells:
        chains = len(cells[0]) - 1
        kept = [*range(min(chains, _figures.CHAINS)), chains]
        rows = [[f"all {chains:,}" if i == chains else str(i), *(column[i] for column in cells)] for i in kept]
        section.parts.append(_html.table(columns, rows))
    return section


def _predictive(folder: Path, arrays: Sequence[str]) -> _html.Section:
    section = _html.Section("Posterior predictive check")
    for name in arrays:
        group, _, variable = name.partition("/")
        if group != "observed_data" or f"posterior_predictive/{variable}" not in arrays:
            continue
        root = folder / _directory.DRAWS
        observed = np.ravel(DiskArray(root / name)[...]).astype(float)
        predicted = DiskArray(root / "posterior_predictive" / variable)[...]
        predicted = predicted.reshape(-1, *predicted.shape[2:])
        predicted = (
            predicted[:: max(1, -(-len(predicted) // _PREDICTED))].reshape(-1, max(observed.size, 1)).astype(float)
        )
        every = max(1, -(-observed.size // _OBSERVATIONS))
        observed, predicted = observed[::every], predicted[:, ::every]
        known = np.isfinite(observed) & np.isfinite(predicted).all(axis=0)  # NaN is a missing observation
        observed, predicted = observed[known], predicted[:, known]
        if not observed.size:
            continue
        low, high = np.quantile(predicted, [0.05, 0.95], axis=0)
        inside = float(np.mean((low <= observed) & (observed <= high)))
        caption = (
            f"Data simulated from the posterior beside the data. {100 * inside:.0f} % of the {observed.size:,} "
            "observations lie in the 90 % interval simulated for them. A model that fits gives data that look like "
            "those observed."
        )
        section.parts.append(_html.heading(variable))
        section.parts.append(
            _html.image(_figures.predictive(observed, predicted), caption, "posterior predictive check")
        )
    return section


def _configuration(result: Result, folder: Path, rows: int) -> _html.Section:
    meta = result.meta
    mesh = meta.get("mesh", {})
    where = ", ".join(f"{name} {value}" for name, value in mesh.items()) if isinstance(mesh, Mapping) else str(mesh)
    run = {
        "run directory": folder,
        "status": meta.get("ended", meta["status"]),
        "algorithm": result.algorithm,
        "chains": f"{meta['chains']:,}",
        "warm-up steps": "until the populations were done" if meta.get("populations") else f"{meta['warmup']:,}",
        "draws": f"{rows:,} of each chain" + (f", every {meta['thin']} steps" if meta.get("thin", 1) > 1 else ""),
        "seed": ", ".join(map(str, np.ravel(meta["seed"]))),
        "mesh": where,
        "precision": "float64" if meta.get("x64") else "float32",
        "started": meta.get("started", ""),
    }
    times = {name: f"{seconds:,.1f} s" for name, seconds in meta.get("times", {}).items()}
    parts = [
        _html.facts("Run", {name: value for name, value in run.items() if value not in ("", None)}),
        _html.facts("Times", times),
        _html.facts("Versions", meta.get("versions", {})),
    ]
    return _html.Section("Configuration", _html.side_by_side(parts))


def _worst(quantities: Sequence[_Quantity], count: int, each: int) -> list[_Quantity]:
    """The `count` that mixed worst, at most `each` of one variable as long as there are other variables."""
    ordered = sorted((q for q in quantities if q.badness > -np.inf), key=lambda q: -q.badness)
    chosen: list[_Quantity] = []
    for quantity in ordered:
        if sum(q.variable == quantity.variable for q in chosen) < each:
            chosen.append(quantity)
    chosen += [quantity for quantity in ordered if quantity not in chosen]
    return sorted(chosen[:count], key=lambda q: -q.badness)


def _read(folder: Path, quantities: Sequence[_Quantity], rows: int, stride: int) -> dict[str, np.ndarray]:
    """(chain, draw) of each quantity, every `stride`-th of the first `rows` draws; one pass over each variable."""
    found: dict[str, np.ndarray] = {}
    for variable in {q.variable for q in quantities}:
        members = [q for q in quantities if q.variable == variable]
        array, every = DiskArray(folder / _directory.DRAWS / "posterior" / variable), slice(0, rows, stride)
        if members[0].element:
            # One index array for each trailing axis; they broadcast together into a last axis of quantities.
            elements = [list(axis) for axis in zip(*(q.element for q in members), strict=True)]
            values = array[(slice(None), every, *elements)]
        else:
            values = array[:, every][..., None]
        found |= {q.name: np.asarray(values[..., i], float) for i, q in enumerate(members)}
    return {q.name: found[q.name] for q in quantities}


def _shape(folder: Path, name: str) -> tuple[int, ...]:
    return tuple(json.loads((folder / _directory.DRAWS / name / "zarr.json").read_text())["shape"])


def _stat(folder: Path, arrays: Sequence[str], name: str) -> np.ndarray | None:
    if f"sample_stats/{name}" not in arrays:
        return None
    return DiskArray(folder / _directory.DRAWS / "sample_stats" / name)[...]


def _any_in_blocks(values: np.ndarray, size: int) -> np.ndarray:
    """(chain, draw) booleans thinned so that none is lost: whether any in each block of `size` draws is true."""
    return np.logical_or.reduceat(values, np.arange(0, values.shape[1], size), axis=1) if size > 1 else values


def _keep_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    for title, figure in figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        name = re.sub(r"[^\w .,()-]", "_", title)
        figure.savefig(folder / "figures" / f"{name}.png", dpi=160)


def _kept_figures(folder: Path) -> list[str]:
    files = sorted((folder / "figures").glob("*.png"))
    return [
        part for file in files for part in (_html.heading(file.stem), _html.picture(file.read_bytes(), alt=file.stem))
    ]


def _row(quantity: _Quantity, wanted: int) -> list[Any]:
    """Numbers with as many decimals as show three digits of the sd; what is out of bounds in colour."""
    values = quantity.values
    sd = values["sd"]
    decimals = max(0, 2 - int(np.floor(np.log10(sd)))) if 0 < sd < np.inf else 3
    cells: list[Any] = [quantity.name]
    for name in ("mean", "sd", "eti_lo", "eti_hi"):
        plain = decimals <= 6 and abs(values[name]) < 1e8
        cells.append(f"{values[name]:.{decimals}f}" if plain else f"{values[name]:.4g}")
    for name in ("ess_bulk", "ess_tail"):
        value = values[name]
        cells.append((f"{value:,.0f}", "bad" if value < wanted / 4 else "warn" if value < wanted else ""))
    r_hat = values["r_hat"]
    cells.append((f"{r_hat:.3f}", "bad" if r_hat > 1.05 else "warn" if r_hat > 1.01 else ""))
    return [*cells, f"{values['mcse_mean']:.2g}"]
