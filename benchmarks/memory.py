"""Peak memory of a long run that streams to disk: 1,000 dimensions, 4 chains, 10,000 to 100,000 draws of each.

Each run has a process of its own; its peak resident memory, summary and diagnosis included, must not grow with the
number of draws. The draws are read back at the end and their means compared with those of the target.

    python benchmarks/memory.py [--draws 10000,100000] [--out benchmarks/results/memory.json]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE, CHAINS = 1000, 4


def child(draws):
    """One run in this process; prints a JSON line."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    import jaxprob
    from jaxprob.inference import mcmc

    def log_density(x):
        return -0.5 * jnp.sum(x**2)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = jaxprob.sample(
            log_density,
            jax.random.key(0),
            initial=jnp.zeros(SIZE),
            algorithm=partial(mcmc.hmc, num_integration_steps=4),
            chains=CHAINS,
            warmup=500,
            draws=draws,
            out=f"{folder}/run",
        )
        found = result.summary()
        result.diagnose()
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    print(
        json.dumps(
            {
                "draws": draws,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "disk_mib": disk / 2**20,
                "seconds": time.perf_counter() - began,
                "largest_mean_in_mcse": float(abs(found.mean / found.mcse_mean).max()),
                "device": jax.devices()[0].device_kind,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", default="10000,30000,100000")
    parser.add_argument("--out", default=HERE / "results" / "memory.json", type=Path)
    parser.add_argument("--child", type=int)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    rows = []
    for draws in args.draws.split(","):
        command = [sys.executable, __file__, "--child", draws]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['draws']:>8,} draws of {CHAINS} chains: peak {row['peak_mib']:,.0f} MiB, {row['disk_mib']:,.0f} MiB "
            f"on disk, {row['seconds']:.0f} s, largest |mean| {row['largest_mean_in_mcse']:.1f} standard errors",
            flush=True,
        )
    report = {
        "size": SIZE,
        "chains": CHAINS,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "jaxprob")},
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
