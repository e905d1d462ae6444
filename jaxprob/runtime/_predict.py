"""What a finished run keeps beside its draws: the data, predictions to hold against them, pointwise likelihoods."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxprob import core
from jaxprob.runtime._store import ZarrStore

PREDICTED_DRAWS = 100  # draws of each chain for which data are predicted: enough for a check by eye
LIKELIHOOD_BYTES = 64 * 2**20


def write_groups(store: Any, target: Any, key: core.Key) -> None:
    """Writes observed_data, posterior_predictive and log_likelihood of a posterior that has them.

    Predictions are made for about `PREDICTED_DRAWS` draws of each chain, evenly spread; the pointwise log likelihood of
    all draws is kept where it takes no more than `LIKELIHOOD_BYTES`.
    """
    observed = getattr(target, "observed", None)
    if not isinstance(store, ZarrStore) or not isinstance(observed, dict) or not hasattr(target, "predict"):
        return
    for name, value in observed.items():
        value = np.asarray(value)
        store.write_whole(f"observed_data/{name}", value, [f"{name}_dim_{i}" for i in range(value.ndim)])
    arrays = {
        path.removeprefix("posterior/"): store.open(path) for path in store.paths() if path.startswith("posterior/")
    }
    if not set(getattr(target, "names", ())) <= set(arrays):
        return  # some names were not kept: there is nothing to predict from
    chains, rows = next(iter(arrays.values())).shape[:2]
    few = {name: array[:, :: max(rows // PREDICTED_DRAWS, 1)] for name, array in arrays.items()}
    _write(store, "posterior_predictive", target.predict(core.fold(key, 2**31 - 1), few))
    points = sum(np.size(value) for value in observed.values())
    if chains * rows * points * 4 <= LIKELIHOOD_BYTES:
        bytes_per_row = chains * 4 * sum(int(np.prod(array.shape[2:])) for array in arrays.values())
        block = max(1, LIKELIHOOD_BYTES // max(1, bytes_per_row))
        parts = [
            jax.tree.map(
                np.asarray,
                target.log_likelihood({name: array[:, start : start + block] for name, array in arrays.items()}),
            )
            for start in range(0, rows, block)
        ]
        _write(store, "log_likelihood", jax.tree.map(lambda *blocks: np.concatenate(blocks, axis=1), *parts))


def _write(store: ZarrStore, group: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        dimensions = ["chain", "draw", *(f"{name}_dim_{i}" for i in range(np.ndim(value) - 2))]
        store.write_whole(f"{group}/{name}", np.asarray(value), dimensions)
