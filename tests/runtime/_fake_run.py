"""Writes a run directory as the runtime lays it out, through tensorstore alone, with known contents.

Tests load this file with `runpy.run_path`, since test folders are not packages.
"""

import json
from pathlib import Path

import numpy as np
import tensorstore

OBSERVATIONS = 12


def autoregression(rng, chains, draws, shape=(), correlation=0.0, shift=0.0):
    """Stationary AR(1) chains of unit variance; chain 0 is moved by `shift`, so that it disagrees with the rest."""
    x = np.empty((chains, draws, *shape))
    x[:, 0] = rng.normal(size=(chains, *shape))
    for t in range(1, draws):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1 - correlation**2) * rng.normal(size=(chains, *shape))
    x[0] += shift
    return x


def write_array(folder, array, dimensions):
    """One Zarr v3 array with named dimensions."""
    array = np.asarray(array)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "dimension_names": list(dimensions),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [max(1, min(n, 250)) for n in array.shape]},
            },
        },
    }
    tensorstore.open(spec, create=True, delete_existing=True).result().write(array).result()


def write_group(folder, arrays, sampled=True):
    """A Zarr v3 group of arrays; `sampled` ones lead with (chain, draw)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    lead = ("chain", "draw") if sampled else ()
    for name, array in arrays.items():
        rest = [f"{name}_dim_{i}" for i in range(np.ndim(array) - len(lead))]
        write_array(folder / name, array, [*lead, *rest])


def write(path, *, chains=4, draws=500, seed=0, bad=False, status="finished", predictive=True):
    """A run of two scalars and a vector.

    Args:
      path: the run directory.
      chains: number of chains.
      draws: draws a chain.
      seed: of the numbers.
      bad: with a chain that disagrees, divergences and a low energy fraction.
      status: as in meta.json.
      predictive: with observed data and posterior predictive draws.
    """
    rng = np.random.default_rng(seed)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    store = path / "draws.zarr"
    write_group(store, {}, sampled=False)
    log_tau = autoregression(rng, chains, draws, correlation=0.9 if bad else 0.2)
    mu = autoregression(rng, chains, draws, correlation=0.2, shift=3.0 if bad else 0.0)
    tau = np.exp(log_tau)
    theta = mu[..., None] + tau[..., None] * rng.normal(size=(chains, draws, OBSERVATIONS))
    float32 = {name: x.astype(np.float32) for name, x in {"mu": mu, "tau": tau, "theta": theta}.items()}
    write_group(store / "posterior", float32)
    energy = autoregression(rng, chains, draws, correlation=0.95 if bad else 0.1) * 3 + 50
    diverging = (log_tau < np.quantile(log_tau, 0.03)) if bad else np.zeros((chains, draws), bool)
    steps = 2 ** rng.integers(2, 5, size=(chains, draws)) - 1
    stats = {
        "acceptance_rate": rng.beta(8, 2, size=(chains, draws)).astype(np.float32),
        "num_steps": steps.astype(np.int32),
        "tree_depth": np.log2(steps + 1).astype(np.int32),
        "diverging": diverging,
        "energy": energy.astype(np.float32),
        "log_density": (-energy + 1).astype(np.float32),
        "step_size": np.full((chains, draws), 0.3125, np.float32),
    }
    write_group(store / "sample_stats", stats)
    if predictive:
        predicted = theta + rng.normal(size=theta.shape)
        write_group(store / "observed_data", {"y": rng.normal(size=OBSERVATIONS).astype(np.float32)}, sampled=False)
        write_group(store / "posterior_predictive", {"y": predicted.astype(np.float32)})
    meta = {
        "format": 1,
        "versions": {"jaxprob": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
        "seed": [0, 7],
        "mesh": {"chains": 2, "data": 1, "device": "cpu", "processes": 1},
        "chains": chains,
        "warmup": 1000,
        "draws": draws,
        "thin": 1,
        "leaves": [{"name": name, "shape": list(x.shape[2:]), "dtype": x.dtype.name} for name, x in float32.items()],
        "x64": False,
        "started": "2026-01-02T03:04:05+00:00",
        "status": status,
        "times": {"compile": 3.25, "warm-up": 2.5, "sampling": 1.75},
        "algorithm": "nuts",
    }
    (path / "meta.json").write_text(json.dumps(meta, indent=2))
    return path
