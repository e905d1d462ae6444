"""The shared response model with smooth latents beside the one with independent latents, on simulated subjects.

5 subjects of 60 voxels, 200 times, 3 Matern latents of lengthscale 8, noise of 3 times the standard deviation of the
signal. The last 50 times of 20 voxels of each subject are held out. Latents are compared after the best rotation.

    python benchmarks/shared_response.py [--seeds 5] [--out benchmarks/results/shared_response.json]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxprob.inference import shared_response

HERE = Path(__file__).resolve().parent
SUBJECTS, VOXELS, TIMES, LATENTS, LENGTHSCALE, NOISE = 5, 60, 200, 3, 8.0, 3.0


def simulate(seed):
    """Responses (S, T, V), times, latents (T, K) and the signal (S, T, V)."""
    rng, times = np.random.default_rng(seed), np.arange(TIMES)
    r = np.sqrt(5) * np.abs(times[:, None] - times[None]) / LENGTHSCALE
    root = np.linalg.cholesky((1 + r + r * r / 3) * np.exp(-r) + 1e-9 * np.eye(TIMES))
    latents = root @ rng.normal(size=(TIMES, LATENTS))
    loadings = rng.normal(size=(SUBJECTS, VOXELS, LATENTS)) / np.sqrt(LATENTS)
    signal = np.einsum("svk,tk->stv", loadings, latents)
    responses = signal + NOISE * rng.normal(size=signal.shape)
    return responses.astype(np.float32), times.astype(np.float32), latents, signal


def aligned_correlation(truth, found):
    """Mean correlation of latents, after the rotation that brings them closest."""
    truth, found = ((x - x.mean(0)) / x.std(0) for x in (truth, found))
    left, _, right = np.linalg.svd(found.T @ truth)
    rotated = found @ left @ right
    return float(np.mean([np.corrcoef(rotated[:, k], truth[:, k])[0, 1] for k in range(truth.shape[1])]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "shared_response.json")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        responses, times, latents, signal = simulate(seed)
        held = np.zeros(responses.shape, bool)
        held[:, -50:, :20] = True
        given, row = np.where(held, np.nan, responses), {"seed": seed}
        for name, smoothness in (("smooth", 2.5), ("independent", None)):
            began = time.perf_counter()
            model, found = shared_response.fit(given, times, LATENTS, smoothness=smoothness, tied=True, num_steps=150)
            posterior = shared_response.posterior(model, given, times)
            predicted = np.einsum("svk,tk->stv", model.loadings, posterior.mean) + np.asarray(model.mean)[:, None]
            total = np.sum((signal[held] - signal[held].mean()) ** 2)
            row[name] = {
                "correlation": aligned_correlation(latents, np.asarray(posterior.mean)),
                "held_out_r2": float(1 - np.sum((signal[held] - predicted[held]) ** 2) / total),
                "lengthscale": float(model.lengthscales[0]) if smoothness else None,
                "log_likelihood": float(found[-1]),
                "seconds": time.perf_counter() - began,
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    means = {
        name: {key: float(np.mean([row[name][key] for row in rows])) for key in ("correlation", "held_out_r2")}
        for name in ("smooth", "independent")
    }
    print(json.dumps(means))
    report = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "means": means, "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
