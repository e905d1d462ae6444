"""One table that says what a run found and how far to trust it.

A row for each scalar quantity, with the columns and the 89 % equal-tailed interval of ArviZ 1: 89 rather than 95, since
the ends of a 95 % interval rest on few draws and invite being read as a test.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.analysis import _chains as chains
from jaxprob.analysis import _mcse as mcse

_MAX_ROWS = 60
_BLOCK = 2**19
"""Draws handled at a time, all quantities together: the working memory is some hundred bytes for each."""

_PANEL_BYTES = 64 * 2**20
"""What is read at a time of an array on disk."""

_COLUMNS = ("mean", "sd", "eti_lo", "eti_hi", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """What `summary` returns: column arrays of one entry a quantity; `str()` and notebooks show a table.

    Attributes:
      names: the quantities: `tau`, `theta[0]`, `theta[1,2]`, `net.bias[3]`.
      mean, sd: posterior mean and standard deviation.
      eti_lo, eti_hi: ends of the equal-tailed interval that holds `probability`.
      ess_bulk, ess_tail, r_hat, mcse_mean, mcse_sd: see the functions of `jaxprob.analysis`.
      probability: that of the interval.
      chains, draws: shape of what was summarised.
    """

    names: list[str]
    mean: np.ndarray
    sd: np.ndarray
    eti_lo: np.ndarray
    eti_hi: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    r_hat: np.ndarray
    mcse_mean: np.ndarray
    mcse_sd: np.ndarray
    probability: float
    chains: int
    draws: int

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Quantity to column to number, for JSON: None stands for what is not finite."""
        columns = {column: getattr(self, column).tolist() for column in _COLUMNS}
        return {
            name: {column: values[i] if math.isfinite(values[i]) else None for column, values in columns.items()}
            for i, name in enumerate(self.names)
        }

    def __str__(self) -> str:
        header, rows, left_out = self._cells()
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in [header, *rows]
        ]
        if left_out:
            lines.insert(1 + _MAX_ROWS // 2, f"... {left_out:,} of {len(self):,} rows left out; to_dict() has all ...")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, rows, left_out = self._cells()

        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = [line(row, "td") for row in rows]
        if left_out:
            text = f"{left_out:,} of {len(self):,} rows left out"
            body.insert(_MAX_ROWS // 2, f'<tr><td colspan="{len(header)}">{text}</td></tr>')
        return f"<table><thead>{line(header, 'th')}</thead><tbody>{''.join(body)}</tbody></table>"

    def _cells(self) -> tuple[list[str], list[list[str]], int]:
        """Header, rows to show, and how many rows in the middle are not shown."""
        low, high = 50 * (1 - self.probability), 50 * (1 + self.probability)
        header = ["", "mean", "sd", f"eti {low:.3g}%", f"eti {high:.3g}%", "ess_bulk", "ess_tail", "r_hat", "mcse_mean"]
        left_out = max(0, len(self) - _MAX_ROWS)
        half = _MAX_ROWS // 2
        shown = range(len(self)) if not left_out else [*range(half), *range(len(self) - half, len(self))]
        return header, [self._row(i) for i in shown], left_out

    def _row(self, i: int) -> list[str]:
        located = [float(column[i]) for column in (self.mean, self.sd, self.eti_lo, self.eti_hi)]
        return [
            self.names[i],
            *_to_the_precision_of(located[1], located),
            f"{self.ess_bulk[i]:.0f}",
            f"{self.ess_tail[i]:.0f}",
            f"{self.r_hat[i]:.3f}",
            _short(float(self.mcse_mean[i]), 2),
        ]


def summary(draws: Any, probability: float = 0.89) -> Summary:
    """Summarises draws: mean, sd, equal-tailed interval, effective sample sizes, R-hat and Monte Carlo errors.

    Args:
      draws: pytree of arrays (chain, draw, ...) with the same number of chains and draws. Integers and booleans are
        summarised as numbers. Arrays on disk (anything with `shape`, `dtype`, `ndim` and slices, as those of zarr and
        h5py) are read in part at a time and never held whole.
      probability: that of the equal-tailed interval.

    Returns:
      a `Summary`. A row is NaN where a draw is not finite; R-hat, ESS and Monte Carlo errors are NaN as well for a
      quantity that does not vary and for fewer than 4 draws a chain.

    Raises:
      ValueError: if a leaf has fewer than two axes or another number of chains or draws, if there are no draws, or if
        `probability` is not inside (0, 1).
      TypeError: if a leaf does not consist of real numbers.

    >>> print(summary({"mu": np.arange(400.0).reshape(4, 100) % 7}, probability=0.5))
        mean    sd  eti 25%  eti 75%  ess_bulk  ess_tail  r_hat  mcse_mean
    mu  2.99  2.01     1.00     5.00       330       400  0.990       0.12

    Source: Vehtari et al. (2021), Bayesian Analysis 16(2); the columns are those of ArviZ 1.
    """
    if not 0 < probability < 1:
        raise core.bad_value("summary", "probability", probability, "a number strictly between 0 and 1")
    leaves = check_draws("summary", draws)
    number, length = leaves[0][1].shape[:2]
    dtype = core.accumulator_dtype(core.result_dtype([np.empty(0, leaf.dtype) for _, leaf in leaves]))
    total = sum(math.prod(leaf.shape[2:]) for _, leaf in leaves)
    width = min(total, max(1, _BLOCK // (number * length)))
    columns = (columns for _, leaf in leaves for columns in panels(leaf))
    results = [
        np.asarray(_statistics(block.astype(dtype), float(probability)))[:, :filled]
        for block, filled in _blocks(columns, width)
    ]
    table = np.concatenate(results, axis=1) if results else np.zeros((len(_COLUMNS), 0), dtype)
    return Summary(
        quantity_names(leaves),
        **dict(zip(_COLUMNS, table, strict=True)),
        probability=float(probability),
        chains=number,
        draws=length,
    )


def check_draws(function: str, draws: Any) -> list[tuple[str, Any]]:
    """Named leaves, once they are known to be real and to agree in chains and draws.

    They are NumPy arrays, or arrays on disk as they were given; `panels` reads both.
    """
    leaves = [(name, leaf if _on_disk(leaf) else np.asarray(leaf)) for name, leaf in core.named_leaves(draws)]
    if not leaves:
        raise core.bad_value(function, "draws", "without arrays", "at least one array (chain, draw, ...)")
    name, first = leaves[0]
    for other, leaf in leaves:
        if not any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
            raise core.bad_type(function, f"draws, leaf {other!r},", leaf, "real numbers")
        if leaf.ndim < 2:
            raise core.bad_value(function, f"draws, leaf {other!r},", leaf, "an array (chain, draw, ...)")
        if leaf.shape[:2] != first.shape[:2]:
            raise core.bad_value(
                function,
                f"draws, leaf {other!r},",
                f"of {leaf.shape[0]} chains and {leaf.shape[1]} draws",
                f"{first.shape[0]} and {first.shape[1]} as in {name!r}",
            )
    if 0 in first.shape[:2]:
        raise core.bad_value(
            function, "draws", f"of shape {first.shape} in {name!r}", "at least one chain and one draw"
        )
    return leaves


def _on_disk(leaf: Any) -> bool:
    known = isinstance(leaf, (np.ndarray, np.generic, jax.Array))
    return not known and all(hasattr(leaf, name) for name in ("shape", "dtype", "ndim", "__getitem__"))


def panels(leaf: Any) -> Iterator[np.ndarray]:
    """The quantities of a leaf (chain, draw, ...) in order, as NumPy arrays (chain, draw, quantity) of bounded size.

    An array in memory comes whole; one on disk by slices of its third axis of about `_PANEL_BYTES`.
    """
    number, length, *shape = leaf.shape
    if isinstance(leaf, np.ndarray) or not shape:
        yield np.asarray(leaf[...]).reshape(number, length, -1)
        return
    width = max(1, _PANEL_BYTES // max(1, number * length * math.prod(shape[1:]) * leaf.dtype.itemsize))
    for start in range(0, shape[0], width):
        yield np.asarray(leaf[:, :, start : start + width]).reshape(number, length, -1)


def quantity_names(leaves: list[tuple[str, Any]]) -> list[str]:
    """The name of each scalar: that of its leaf, with its indices in brackets."""
    names = []
    for name, leaf in leaves:
        indices = itertools.product(*map(range, leaf.shape[2:]))
        names += [f"{name}[{','.join(map(str, index))}]" if index else name for index in indices]
    return names


def _blocks(columns: Iterable[np.ndarray], width: int) -> Iterator[tuple[np.ndarray, int]]:
    """Arrays (chain, draw, width) of consecutive quantities, and how many of the last one are filled."""
    parts: list[np.ndarray] = []
    filled = 0
    for column in columns:
        start = 0
        while start < column.shape[2]:
            part = column[:, :, start : start + width - filled]
            parts, filled, start = [*parts, part], filled + part.shape[2], start + part.shape[2]
            if filled == width:
                yield np.concatenate(parts, axis=2), filled
                parts, filled = [], 0
    if filled:  # padded, so that one compiled program serves every block
        block = np.concatenate(parts, axis=2)
        yield np.concatenate([block, np.repeat(block[:, :, -1:], width - filled, axis=2)], axis=2), filled


@partial(jax.jit, static_argnums=1)
def _statistics(x: jax.Array, probability: float) -> jax.Array:
    """Rows `_COLUMNS` of a table with one column a quantity, from draws (chain, draw, quantity)."""
    return jax.vmap(lambda x: _of_one(x, probability), in_axes=2, out_axes=1)(x)


def _of_one(x: jax.Array, probability: float) -> jax.Array:
    entries = chains.ordered(x)
    finite = jnp.isfinite(entries[0]) & jnp.isfinite(entries[-1])  # NaN is at an end
    varies = entries[-1] > entries[0]
    deviations, scale, mean = chains.deviations_and_scale(x)
    sd = jnp.sqrt(jnp.sum(deviations**2) / (x.size - 1)) * scale
    interval = [chains.quantile(entries, (1 + sign * probability) / 2) for sign in (-1, 1)]
    located = jnp.stack([mean, sd, *interval])
    if x.shape[1] < chains.MIN_DRAWS:
        trusted = jnp.full(len(_COLUMNS) - len(located), jnp.nan, x.dtype)
    else:
        halves = chains.split(x)
        scores = chains.bulk_and_folded_scores(halves)
        tails = jnp.stack([chains.split(chains.below_quantile(x, entries, p)) for p in (0.05, 0.95)])
        series = jnp.stack([scores[0], halves, chains.split(deviations**2)])
        ess = jax.vmap(chains.ess)(jnp.concatenate([series, tails]))
        trusted = jnp.stack(
            [
                ess[0],
                jnp.min(chains.or_all_draws(ess[3:], tails)),
                jnp.max(jax.vmap(chains.r_hat)(scores)),
                mcse.error_of_mean(deviations, ess[1]) * scale,
                mcse.error_of_sd(deviations, ess[2]) * scale,
            ]
        )
    return jnp.where(finite, jnp.concatenate([located, jnp.where(varies, trusted, jnp.nan)]), jnp.nan)


def _to_the_precision_of(sd: float, values: list[float]) -> list[str]:
    """Numbers with as many decimals as show three digits of `sd`."""
    if sd > 0 and math.isfinite(sd):
        decimals = max(0, 2 - math.floor(math.log10(sd)))
        if decimals <= 6 and all(abs(value) < 1e8 for value in values):
            return [f"{value:.{decimals}f}" for value in values]
    return [_short(value, 4) for value in values]


def _short(value: float, digits: int) -> str:
    """A number with so many significant digits, without an exponent where it can be read without one."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 7:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}"
