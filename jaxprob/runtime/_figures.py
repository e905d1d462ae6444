"""The figures of a report, each from NumPy arrays to a matplotlib `Figure`, without pyplot and without a display.

Rank plots: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and localization".
Energy plot: Betancourt (2016), "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAINS = 8  # chains drawn one by one
BLUE, INK, RED, GREY = "#2b6a99", "#20303c", "#c8323c", "#c9d3da"
# Told apart with every common colour vision, and in print (after Okabe and Ito).
COLOURS = ("#2b6a99", "#e08a1e", "#1d9a78", "#b5549a", "#6fb7dd", "#8a5a2b", "#5f6b73", "#c9a800")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b98a1",
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "xtick.color": "#55636d",
    "ytick.color": "#55636d",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


def require_matplotlib(function: str) -> None:
    """Raises a one-line `ImportError` that names the extra where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{function}: figures need matplotlib. Install it with: pip install 'jaxprob[plots]'."
        ) from error


def style() -> Any:
    """Context in which the figures are made and saved: matplotlib's settings for the look of a report."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def mixing(draws: Mapping[str, np.ndarray], diverging: np.ndarray | None = None, stride: int = 1) -> Figure:
    """Density, trace and ranks of each quantity: a row each.

    Args:
      draws: name to (chain, draw). Of more than eight chains, those whose ranks are furthest from uniform are drawn.
      diverging: (chain, draw) booleans; marked under the traces.
      stride: distance between the draws given, for the axis of the traces.
    """
    figure, axes = _figure(len(draws), 3, (10.0, 1.55 * len(draws) + 0.35), width_ratios=(1, 2.2, 1.2))
    ranked = {name: _ranks(values) for name, values in draws.items()}
    shown = _furthest(np.stack(list(ranked.values())))
    for row, (name, values) in enumerate(draws.items()):
        ranks = ranked[name]
        density, trace, rank = axes[row]
        for place, chain in enumerate(shown):
            colour = COLOURS[place % len(COLOURS)]
            density.plot(*_density(values[chain]), color=colour, lw=1)
            time = np.arange(values.shape[1]) * stride
            trace.plot(time, values[chain], color=colour, lw=0.4, alpha=0.75)
            counts, edges = np.histogram(ranks[chain], bins=_rank_edges(values))
            rank.stairs(counts / counts.mean(), edges / edges[-1], color=colour, lw=1, baseline=None)
            if diverging is not None and diverging[chain].any():
                where = time[diverging[chain]]
                trace.plot(
                    where, np.full(len(where), 0.01), "|", color=RED, ms=5, transform=trace.get_xaxis_transform()
                )
        low, high = _rank_band(values)
        rank.axhspan(low, high, color=GREY, alpha=0.5, lw=0)
        rank.set(xlim=(0, 1), ylim=(0, max(2.0, rank.get_ylim()[1])))
        density.set(yticks=[], ylabel=_short(name))
        density.yaxis.label.set(rotation=0, ha="right", va="center", fontsize=8.5, weight="bold")
        density.spines["left"].set_visible(False)
        trace.set(xlim=(0, max(1, values.shape[1] * stride - 1)))
        trace.margins(y=0.08)
    figure.legend(axes[0][0].lines, [f"chain {chain}" for chain in shown], loc="outside lower center", ncols=CHAINS)
    for axis, title in zip(axes[0], ("density", "trace", "ranks"), strict=True):
        axis.set_title(title)
    axes[-1][1].set_xlabel("draw")
    axes[-1][2].set_xlabel("rank among all draws")
    return figure


def energy(values: np.ndarray, e_bfmi: np.ndarray) -> Figure:
    """The energy's distribution beside that of its change in one step; where the second is much narrower, momentum
    refreshment cannot carry the chain along the energy levels.

    Args:
      values: (chain, draw) Hamiltonian at each draw.
      e_bfmi: (chain,) energy Bayesian fraction of missing information.
    """
    figure, axes = _figure(1, 2, (10.0, 2.5), width_ratios=(1.6, 1))
    left, right = axes[0]
    centred = values - values.mean(axis=1, keepdims=True)
    for data, colour, label in (
        (centred, BLUE, "energy, less its mean"),
        (np.diff(values, axis=1), COLOURS[1], "change of energy in one step"),
    ):
        x, y = _density(data.ravel())
        left.fill_between(x, y, color=colour, alpha=0.25, lw=0)
        left.plot(x, y, color=colour, lw=1.2, label=label)
    left.set(yticks=[], ylim=(0, None), title="energy")
    left.spines["left"].set_visible(False)
    left.legend(loc="upper right")
    order = np.argsort(e_bfmi)[: 4 * CHAINS] if len(e_bfmi) > CHAINS else np.arange(len(e_bfmi))
    colours = [RED if value < 0.3 else BLUE for value in e_bfmi[order]]
    right.bar(np.arange(len(order)), e_bfmi[order], color=colours, width=0.6)
    right.axhline(0.3, color=RED, lw=0.8, ls="--")
    right.set(title="E-BFMI (below 0.3: trouble)", ylim=(0, max(1.0, 1.1 * float(np.max(e_bfmi)))))
    right.set_xlabel("chain" if len(order) == len(e_bfmi) else f"the {len(order)} lowest of {len(e_bfmi)} chains")
    right.set_xticks(
        np.arange(len(order)), [str(chain) for chain in order] if len(order) <= CHAINS else [""] * len(order)
    )
    return figure


def pairs(draws: Mapping[str, np.ndarray], diverging: np.ndarray | None = None) -> Figure:
    """Scatter of each pair of quantities, with divergent transitions on top.

    Args:
      draws: name to (chain, draw); at least two.
      diverging: (chain, draw) booleans.
    """
    names = list(draws)
    size = len(names)
    flat = {name: np.asarray(draws[name]).ravel() for name in names}
    bad = np.zeros(len(flat[names[0]]), bool) if diverging is None else np.asarray(diverging).ravel()
    good = np.flatnonzero(~bad)
    good = good[:: max(1, len(good) // 3000)]
    limits = {name: _limits(values) for name, values in flat.items()}
    figure, axes = _figure(size, size, (1.75 * size + 0.6, 1.5 * size + 0.3))
    for row, y in enumerate(names):
        for column, x in enumerate(names):
            axis = axes[row][column]
            if column > row:
                axis.set_visible(False)
                continue
            if column == row:
                grid, height = _density(flat[x])
                axis.fill_between(grid, height, color=BLUE, alpha=0.25, lw=0)
                axis.plot(grid, height, color=BLUE, lw=1)
                axis.set(yticks=[], ylim=(0, None), xlim=limits[x])
            else:
                axis.plot(flat[x][good], flat[y][good], ".", color=BLUE, ms=2, alpha=0.25, mew=0)
                axis.plot(flat[x][bad], flat[y][bad], ".", color=RED, ms=4, alpha=0.9, mew=0)
                axis.set(xlim=limits[x], ylim=limits[y])
            if row == size - 1:
                axis.set_xlabel(_short(x))
            else:
                axis.set_xticklabels([])
            if column == 0:
                axis.set_ylabel(_short(y))
            elif column != row:
                axis.set_yticklabels([])
    if bad.any():
        handle = axes[1][0].lines[-1]
        figure.legend([handle], [f"divergent ({int(bad.sum()):,})"], loc="upper right", markerscale=2)
    return figure


def predictive(observed: np.ndarray, predicted: np.ndarray) -> Figure:
    """Data beside data simulated from the posterior.

    Few observations are shown one by one with their predictive intervals; many, as a histogram.

    Args:
      observed: (observation,).
      predicted: (draw, observation) replications.
    """
    figure, axes = _figure(1, 2, (10.0, 2.6), width_ratios=(1.9, 1))
    left, right = axes[0]
    if len(observed) <= 60:
        _intervals(left, observed, predicted)
    else:
        _histogram(left, observed, predicted)
    spread, means = predicted.std(axis=1), predicted.mean(axis=1)
    right.plot(means, spread, ".", color=BLUE, ms=4, alpha=0.5, mew=0, label="simulated")
    right.plot(observed.mean(), observed.std(), "X", color=RED, ms=8, mec="white", mew=0.6, label="observed")
    right.set(xlabel="mean", ylabel="standard deviation", title="mean and spread of each data set")
    right.legend(loc="best")
    return figure


def _intervals(axis: Any, observed: np.ndarray, predicted: np.ndarray) -> None:
    low, lower, middle, upper, high = np.quantile(predicted, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    x = np.arange(len(observed))
    axis.vlines(x, low, high, color=BLUE, lw=1, alpha=0.6, label="90 % of the simulated values")
    axis.vlines(x, lower, upper, color=BLUE, lw=3, alpha=0.6, label="50 %")
    axis.plot(x, middle, "_", color=BLUE, ms=5)
    axis.plot(x, observed, "o", color=RED, ms=4, mec="white", mew=0.5, label="observed", zorder=3)
    axis.set(title="each observation and what the model expects", xlabel="observation")
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top + 0.15 * (top - bottom))
    axis.legend(loc="upper right", ncols=3)


def _histogram(axis: Any, observed: np.ndarray, predicted: np.ndarray) -> None:
    both = np.concatenate([observed, np.quantile(predicted, [0.001, 0.999], axis=1).mean(axis=1)])
    low, high = float(both.min()), float(both.max())
    whole = np.issubdtype(observed.dtype, np.integer) or bool(np.all(observed == np.round(observed)))
    if whole and high - low < 40:
        edges = np.arange(low, high + 2) - 0.5
    else:
        width = max((high - low) / 40, 1e-12)
        width = float(np.ceil(width)) if whole else width
        edges = np.arange(low - (0.5 if whole else 0.0), high + width, width)
    counts = np.stack([np.histogram(row, bins=edges)[0] for row in predicted])
    lower, middle, upper = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
    axis.stairs(
        upper, edges, baseline=lower, fill=True, color=BLUE, alpha=0.25, lw=0, label="90 % of simulated data sets"
    )
    axis.stairs(middle, edges, color=BLUE, lw=1, label="their median")
    axis.stairs(np.histogram(observed, bins=edges)[0], edges, color=RED, lw=1.4, label="observed")
    axis.set(title="how often each value occurs", xlabel="value", ylabel="observations", ylim=(0, None))
    axis.legend(loc="best")


def _figure(rows: int, columns: int, size: tuple[float, float], **ratios: Any) -> tuple[Figure, list[list[Any]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)
    return figure, [list(row) for row in axes]


def _density(values: np.ndarray, points: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel estimate on a grid: a fine histogram, smoothed."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.zeros(2), np.zeros(2)
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34) or values.std()
    if spread == 0:
        spread = max(abs(values[0]), 1.0) * 1e-3
    bandwidth = 0.9 * spread * len(values) ** -0.2  # Silverman's rule
    # Far outliers would leave no grid for the bulk.
    low, high = np.quantile(values, [0.001, 0.999]) + np.array([-3, 3]) * bandwidth
    counts, edges = np.histogram(values, bins=points, range=(low, high))
    step = edges[1] - edges[0]
    reach = min(points, int(np.ceil(4 * bandwidth / step)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / bandwidth) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum())[reach : reach + points]
    return (edges[1:] + edges[:-1]) / 2, smooth / (len(values) * step)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Axis limits that a few far draws do not stretch."""
    low, high = (float(x) for x in np.nanquantile(values, [0.001, 0.999]))
    pad = 0.05 * (high - low) or max(abs(low), 1.0) * 1e-3
    return low - pad, high + pad


def _ranks(values: np.ndarray) -> np.ndarray:
    """(chain, draw) ranks among all draws, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse].reshape(values.shape)


def _rank_edges(values: np.ndarray) -> np.ndarray:
    bins = int(np.clip(values.shape[1] // 20, 4, 20))
    return np.linspace(0.5, values.size + 0.5, bins + 1)


def _rank_band(values: np.ndarray) -> tuple[float, float]:
    """Where 99 % of the bars lie, relative to their mean, if the draws are independent and the chains agree."""
    bins, draws = len(_rank_edges(values)) - 1, values.shape[1]
    reach = 2.576 * np.sqrt((bins - 1) / draws)  # normal approximation of a binomial count, over its mean
    return float(max(0.0, 1 - reach)), float(1 + reach)


def _furthest(ranks: np.ndarray) -> np.ndarray:
    """All of a few chains; of many, those whose (quantity, chain, draw) ranks are furthest from uniform."""
    chains = ranks.shape[1]
    if chains <= CHAINS:
        return np.arange(chains)
    total = ranks[0].size
    away = np.abs(ranks.mean(axis=2) / total - 0.5) + np.abs(ranks.std(axis=2) / total - 12**-0.5)
    return np.sort(np.argsort(away.max(axis=0))[-CHAINS:])


def _short(name: str, width: int = 22) -> str:
    """A label that cannot break the layout; a dollar sign would start mathematics."""
    name = name if len(name) <= width else f"{name[: width - 9]}…{name[-8:]}"
    return name.replace("$", r"\$")
