"""Particle filters beside `particles` and cuthbert, and tempered samplers beside BlackJAX.

Filters: bootstrap filters of stochastic volatility, seconds a step by number of particles. The same series of 100
returns for all, systematic resampling where the effective sample size is below one half. Rounds go in turn; run times
are medians, compile times those of the first call less the median. `particles` runs in a process and an environment of
its own, since it needs NumPy below 2: made by `uv run`, or that of `--particles PYTHON`.

Tempered: see `_tempered_smc.py`; seconds, and errors of the evidence and of the means, from runs of each in turn. A row
replaces the one of its number or model in the file of results, and leaves the others.

    python benchmarks/smc.py [--parts filters tempered] [--rounds 5] [--numbers 1000 ...] [--models regression_10 ...]
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import _tempered_smc
import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.distributions import Normal
from jaxprob.inference import particle
from jaxprob.models.state_space import StateSpaceModel

HERE = Path(__file__).resolve().parent
MU, RHO, SIGMA, STEPS = -1.0, 0.9, 0.3, 100
SPREAD = SIGMA / np.sqrt(1 - RHO**2)


def series():
    rng = np.random.default_rng(0)
    state, ys = MU, []
    for _ in range(STEPS):
        state = MU + RHO * (state - MU) + SIGMA * rng.normal()
        ys.append(np.exp(state / 2) * rng.normal())
    return np.array(ys, np.float32)


def transition(x, t):
    return Normal(MU + RHO * (x - MU), SIGMA)


def observation(x, t):
    return Normal(0.0, jnp.exp(x / 2))


def ours(number, ys):
    model = StateSpaceModel(Normal(MU, SPREAD), transition, observation)
    ys = jnp.asarray(ys)
    return jax.jit(lambda key: particle.log_likelihood(key, model, ys, particles=number))


def cuthberts(number, ys):
    from cuthbert import filter as run
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import systematic
    from cuthbertlib.resampling.adaptive import ess_decorator

    filtering = particle_filter.build_filter(
        init_sample=lambda key: MU + SPREAD * jax.random.normal(key),
        # The first observation is weighted at the first draw: the first move stays where it is.
        propagate_sample=lambda key, x, now: jnp.where(now[1], x, MU + RHO * (x - MU) + SIGMA * jax.random.normal(key)),
        log_potential=lambda old, x, now: -0.5 * (now[0] ** 2 * jnp.exp(-x) + x + np.log(2 * np.pi)),
        n_filter_particles=number,
        resampling_fn=ess_decorator(systematic.resampling, 0.5),
    )
    inputs = (jnp.asarray(ys), jnp.arange(STEPS) == 0)

    @jax.jit
    def likelihood(key):
        first, rest = jax.random.split(key)
        states = run(filtering, inputs, filtering.init_prepare(key=first), key=rest)
        return states.log_normalizing_constant[-1]

    return likelihood


def timed(function, seed):
    began = time.perf_counter()
    value = float(jax.block_until_ready(function(jax.random.key(seed))))
    return time.perf_counter() - began, value


def of_particles(python, number, ys, repeats, seed):
    asked = {
        "ys": ys.tolist(),
        "numbers": [number],
        "repeats": repeats,
        "seed": seed,
        "mu": MU,
        "rho": RHO,
        "sigma": SIGMA,
    }
    found = subprocess.run(
        [*python, str(HERE / "_particles_filter.py")],
        input=json.dumps(asked),
        text=True,
        capture_output=True,
        check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])["rows"][str(number)]


def filters(args):
    """Rows by number of particles."""
    uv = shutil.which("uv") or str(HERE.parent / ".uv" / "bin" / "uv")
    python = [args.particles] if args.particles else [
        uv, "run", "--no-project", "--with", "particles", "--with", "numpy<2", "--with", "setuptools<81", "python"
    ]  # fmt: skip
    ys = series()
    for number in args.numbers:
        functions = {"jaxprob": ours(number, ys), "cuthbert": cuthberts(number, ys)}
        first = {name: timed(function, 0)[0] for name, function in functions.items()}
        names = (*functions, "particles")
        times, values = {name: [] for name in names}, {name: [] for name in names}
        for round_ in range(args.rounds):
            for name, function in functions.items():
                seconds, value = timed(function, round_ + 1)
                times[name].append(seconds)
                values[name].append(value)
            for seconds, value in of_particles(python, number, ys, 1, round_):
                times["particles"].append(seconds)
                values["particles"].append(value)
        median = {name: statistics.median(each) for name, each in times.items()}
        yield (
            str(number),
            {
                "ms_a_step": {name: round(1e3 * each / STEPS, 4) for name, each in median.items()},
                "times_as_fast": {name: round(each / median["jaxprob"], 2) for name, each in median.items()},
                "compile_seconds": {name: round(first[name] - median[name], 2) for name in functions},
                "log_likelihood": {name: [round(x, 2) for x in each] for name, each in values.items()},
            },
        )


def tempered(args):
    """Rows by model."""
    for name in args.models:
        yield name, _tempered_smc.measure(name, args.population, args.rounds, args.reference)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=("filters", "tempered"), default=["filters", "tempered"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--models", nargs="+", choices=_tempered_smc.MODELS, default=list(_tempered_smc.MODELS))
    parser.add_argument("--population", type=int, default=512, help="particles of the tempered samplers")
    parser.add_argument("--reference", type=int, default=4, help="times as many particles in the runs of reference")
    parser.add_argument("--particles", help="a Python that has `particles`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    versions = {}
    for name in ("jax", "jaxlib", "cuthbert", "blackjax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"device": device, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    out = args.out or HERE / "results" / f"smc-{device.lower().replace(' ', '-')}.json"
    report = json.loads(out.read_text()) if out.exists() else {}
    report |= machine | {"versions": versions}
    out.parent.mkdir(parents=True, exist_ok=True)
    for part, rows in (("filters", filters), ("tempered", tempered)):
        for name, row in rows(args) if part in args.parts else ():
            row |= {"rounds": args.rounds, "cores": cores}
            report.setdefault(part, {})[name] = row
            out.write_text(json.dumps(report, indent=1) + "\n")
            print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
