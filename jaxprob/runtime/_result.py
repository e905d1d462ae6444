"""What a run gives back, from memory or from its directory: draws, stats, a summary, a diagnosis."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprob import analysis, core
from jaxprob.runtime import _directory
from jaxprob.runtime._store import DiskArray, DrawStore, MemoryStore, ZarrStore, array_paths, write_json

# ArviZ's names for the stats that have one there.
_ARVIZ = {"num_steps": "n_steps", "log_density": "lp"}


class Result:
    """The result of `sample`, or of `load`.

    Attributes:
      meta: dict with the settings, versions, devices and times of the run, and its `status`: "finished", "stopped".
      path: the run's directory, or None.
    """

    def __init__(self, store: DrawStore, meta: dict[str, Any], path: Path | None = None, structure: Any = None) -> None:
        self.meta = meta
        self.path = path
        self._store = store
        self._structure = structure

    @functools.cached_property
    def draws(self) -> Any:
        """Pytree of NumPy arrays (chain, draw, ...): constrained values by name for a model, else like the position."""
        named = self._group("posterior")
        empty = (self.meta["chains"], 0)
        for leaf in self.meta["leaves"]:
            # A run that stopped in its warm-up has no rows yet; its arrays are there, and empty.
            named.setdefault(leaf["name"], np.zeros((*empty, *leaf["shape"]), leaf["dtype"]))
        if self._structure is None:
            return named
        return jax.tree.unflatten(self._structure, [named[leaf["name"]] for leaf in self.meta["leaves"]])

    @functools.cached_property
    def stats(self) -> dict[str, np.ndarray]:
        """Arrays (chain, draw) by name: acceptance_rate, num_steps, diverging, energy, log_density, step_size, ..."""
        return self._group("sample_stats")

    @property
    def log_evidence(self) -> np.ndarray:
        """Log evidence by each chain, (chain,), of a sampler that estimates it, such as `smc.tempered`.

        Raises:
          ValueError: for a run of another sampler.
        """
        return self._of_the_last_draw("log_evidence")

    @property
    def log_evidence_variance(self) -> np.ndarray:
        """Variance of the log evidence of each chain, as estimated by that chain alone, (chain,).

        NaN where the sampler knows none, as `smc.tempered` with systematic resampling.

        Raises:
          ValueError: for a run of a sampler that estimates none.
        """
        return self._of_the_last_draw("log_evidence_variance")

    def _of_the_last_draw(self, name: str) -> np.ndarray:
        if name not in self.stats or not self.stats[name].shape[1]:
            todo = "Sample with algorithm=smc.tempered(particles=...)"
            raise core.bad_value("Result", name, "not estimated", "a sampler that does, and its draws", todo)
        return self.stats[name][:, -1]

    @property
    def status(self) -> str:
        """ "finished", or "stopped" for a run that a signal ended and that can be resumed."""
        return self.meta["status"]

    @property
    def algorithm(self) -> str:
        """What drew, and what went on after the warm-up where that found narrow places."""
        later = self.meta.get("went_on")
        return self.meta["algorithm"] + (f", then {later} for narrow places" if later else "")

    @property
    def _named(self) -> dict[str, Any]:
        """Arrays by name, those on disk to be sliced: a long run's draws need not fit into memory."""
        return {path.split("/", 1)[1]: self._store.open(path) for path in self._paths("posterior")}

    @functools.cached_property
    def _summary(self) -> analysis.Summary:
        return analysis.summary(self._named)

    def summary(self) -> analysis.Summary:
        """Mean, sd, interval, bulk and tail effective sample size, R-hat and Monte Carlo error of each quantity."""
        return self._summary

    @functools.cached_property
    def _diagnosis(self) -> analysis.Diagnosis:
        return analysis.diagnose(self._named, self.stats, summary=self.summary(), **self.meta.get("aims", {}))

    def diagnose(self) -> analysis.Diagnosis:
        """In plain words: what was found, what it means, what to try."""
        return self._diagnosis

    def to_datatree(self) -> Any:
        """An `xarray.DataTree` in ArviZ's schema: posterior, sample_stats, and what else the run kept.

        Raises:
          ImportError: without the `arviz` extra.
        """
        try:
            import xarray
        except ImportError:
            raise ImportError(
                core.message(
                    "to_datatree",
                    "xarray",
                    "not installed",
                    "an installed xarray",
                    "Install it with pip install 'jaxprob[arviz]'",
                )
            ) from None
        groups: dict[str, dict[str, Any]] = {}
        for path in self._store.paths():
            group, name = path.split("/", 1)
            value = self._store.read(path)
            name = _ARVIZ.get(name, name) if group == "sample_stats" else name
            leading = [] if group == "observed_data" else ["chain", "draw"]
            dims = [*leading, *(f"{name}_dim_{i}" for i in range(value.ndim - len(leading)))]
            groups.setdefault(group, {})[name] = (dims, value)
        attributes = {"created_by": "jaxprob", "versions": json.dumps(self.meta["versions"])}

        def dataset(variables: dict[str, Any]) -> Any:
            sizes = dict(pair for dims, value in variables.values() for pair in zip(dims, value.shape, strict=True))
            coords = {dim: np.arange(size) for dim, size in sizes.items()}
            return xarray.Dataset(variables, coords=coords, attrs=attributes)

        return xarray.DataTree.from_dict({name: dataset(variables) for name, variables in groups.items()})

    def save_texts(self) -> None:
        """Writes summary.json, summary.txt and diagnosis.txt into the run's directory."""
        assert self.path is not None
        write_json(self.path / "summary.json", _plain(self.summary().to_dict()))
        (self.path / "summary.txt").write_text(f"{self.summary()}\n")
        (self.path / "diagnosis.txt").write_text(f"{self.diagnose()}\n")

    def __repr__(self) -> str:
        where = f", {self.path}" if self.path else ""
        size = f"{self.meta['chains']} chains x {self._store.rows} draws"
        return f"Result({size}, {self.algorithm}, {self.status}{where})"

    def _group(self, group: str) -> dict[str, np.ndarray]:
        return {path.split("/", 1)[1]: self._store.read(path) for path in self._paths(group)}

    def _paths(self, group: str) -> list[str]:
        return [path for path in self._store.paths() if path.startswith(f"{group}/")]


class Reader(MemoryStore):
    """The arrays of a run directory as they were when it was opened; the run may go on meanwhile."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._root = root = folder / _directory.DRAWS
        lengths = [
            json.loads((root / path / "zarr.json").read_text())["shape"][1]
            for path in array_paths(root)
            if path.startswith(("posterior/", "sample_stats/"))
        ]
        # Arrays grow one after the other: only rows that all of them have belong to the result.
        self.rows = min(lengths, default=0)

    def read(self, path: str) -> np.ndarray:
        """One array whole."""
        return self.open(path)[...]

    def open(self, path: str) -> Any:
        """One array to be sliced."""
        draws = path.startswith(("posterior/", "sample_stats/"))
        return DiskArray(self._root / path, self.rows if draws else None)

    def paths(self) -> list[str]:
        """The arrays there are."""
        return array_paths(self._root)


def load(path: str | Path) -> Result:
    """The result in a run directory, also while the run is going on or after it was killed.

    Args:
      path: what was passed to `sample` as `out`.

    Raises:
      ValueError: if `path` is not a run directory.
    """
    path = Path(path).resolve()
    return Result(Reader(path), _directory.read_meta(path), path)


def open_store(path: Path, capacity: int, rows: int) -> ZarrStore:
    """The draw store of a run directory, to write from row `rows` on."""
    return ZarrStore(path / _directory.DRAWS, capacity, rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
