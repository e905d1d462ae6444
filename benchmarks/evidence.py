"""Log evidences by every sampler of populations, beside that of a conjugate regression in ten dimensions.

Thirty data, a standard normal prior, noise of 0.5; the evidence is that of a Gaussian (SciPy), the posterior's standard
deviations those of its inverse precision (NumPy). Runs of each sampler as it comes by default, from keys of their own:
the error of their mean, their standard deviation, the variance that one run says of itself (mean, and median) over
that of all runs, and the standard deviations of weighted particles, about the mean of all runs, over the exact ones.

    python benchmarks/evidence.py [--runs 64] [--samplers NAME ...] [--out FILE]
"""

import argparse
import functools
import json
import os
import platform
from pathlib import Path

import _tempered_smc
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprob.inference import smc

HERE = Path(__file__).resolve().parent

SAMPLERS = {
    "tempered": smc.tempered,
    "tempered, 256 particles": functools.partial(smc.tempered, particles=256),
    "tempered, waste-free": functools.partial(smc.tempered, waste_free=16),
    "data_tempered": smc.data_tempered,
    "data_tempered, 1,024 particles": functools.partial(smc.data_tempered, particles=1024),
    "data_tempered, 4,096 particles": functools.partial(smc.data_tempered, particles=4096),
    "annealed": smc.annealed,
    "annealed, 4 moves": functools.partial(smc.annealed, moves=4),
    "persistent": smc.persistent,
    "nested": smc.nested,
}


def exact_scales():
    x = _tempered_smc.regression_design(np.random.default_rng(0))
    return np.sqrt(np.diag(np.linalg.inv(np.eye(10) + x.T @ x / 0.25)))


def measure(sampler, runs):
    posterior, exact = _tempered_smc.regression_10()
    algorithm = sampler(posterior)

    @jax.jit
    def run(key):
        found = smc.run_sampler(key, algorithm, max_steps=200)
        population = found.state.population
        variance = getattr(found.state, "log_evidence_variance", np.nan)
        return found.state.log_evidence, variance, found.state.done, population.weights, population.particles

    found = [jax.tree.map(np.asarray, run(jax.random.key(1 + i))) for i in range(runs)]
    logs, variances, done = (np.array([float(row[i]) for row in found]) for i in range(3))
    points = [(row[3].astype(float), _tempered_smc.vectors(row[4])) for row in found]
    centre = np.mean([weights @ xs for weights, xs in points], axis=0)
    scales = np.sqrt(np.mean([weights @ (xs - centre) ** 2 for weights, xs in points], axis=0)) / exact_scales()
    return {
        "all_done": bool(done.all()),
        "mean_error": round(float(logs.mean() - exact), 4),
        "standard_error": round(float(logs.std(ddof=1) / np.sqrt(runs)), 4),
        "standard_deviation": round(float(logs.std(ddof=1)), 4),
        "variance_told_over_found": [round(float(f(variances) / logs.var(ddof=1)), 3) for f in (np.mean, np.median)],
        "sd_over_exact": [round(float(f(scales)), 3) for f in (np.min, np.mean, np.max)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "evidence-cpu.json")
    args = parser.parse_args()
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    report |= {"device": jax.devices()[0].device_kind, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    report |= {"jax": jax.__version__}
    columns = "sampler", "error of log Z", "sd", "variance told / found", "sd / exact"
    table = Table(*columns)
    for name in args.samplers:
        row = measure(SAMPLERS[name], args.runs) | {"runs": args.runs}
        report.setdefault("samplers", {})[name] = row
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        error = f"{row['mean_error']:+.3f} ± {row['standard_error']:.3f}"
        low, _, high = row["sd_over_exact"]
        told = "{:.2f}, {:.2f}".format(*row["variance_told_over_found"])
        table.add_row(name, error, f"{row['standard_deviation']:.3f}", told, f"{low:.3f} to {high:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
