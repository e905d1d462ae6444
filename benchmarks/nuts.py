"""NUTS beside BlackJAX and NumPyro: compile seconds, gradient evaluations, effective samples per second, peak memory.

Each sampler runs each target in a process of its own, in turn (ours, BlackJAX, NumPyro, ours, ...), several times: 4
chains, 1,000 steps of warm-up and 1,000 draws with the documented defaults of each, in float32 on this device.
Compile seconds are what the first call takes beyond the second in the same process (tracing included, imports and the
making of starts not); run seconds are those of the second call, warm-up and sampling together. Effective samples are
the smallest bulk ESS over the parameters, by one and the same function for all.

    python benchmarks/nuts.py [--repeats 3] [--targets eight_schools,...] [--out benchmarks/results/nuts.json]
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLERS = ("jaxprob", "blackjax", "numpyro")
CHAINS, WARMUP, DRAWS = 4, 1000, 1000


def targets():
    """Log densities of flat vectors, written once for all samplers: name to (log density, size)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def eight_schools(x):
        mu, log_tau, offset = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        prior = -0.5 * (mu / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + log_tau - 0.5 * jnp.sum(offset**2)
        return prior - 0.5 * jnp.sum(((y - mu - tau * offset) / sigma) ** 2)

    scales = jnp.asarray(np.geomspace(0.1, 10, 100), jnp.float32)

    def gaussian(x):
        return -0.5 * jnp.sum((x / scales) ** 2)

    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns = (data.data - data.data.mean(0)) / data.data.std(0)
    design = jnp.asarray(np.c_[np.ones(len(columns)), columns], jnp.float32)
    outcome = jnp.asarray(data.target, jnp.float32)

    def logistic(x):
        logits = design @ x
        return jnp.sum(outcome * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(x**2)

    import statsmodels.api as sm

    counties = sm.datasets.cancer.load_pandas().data
    cases = jnp.asarray(counties.cancer.to_numpy(), jnp.float32)
    log_population = jnp.asarray(np.log(counties.population.to_numpy()), jnp.float32)

    def cancer(x):
        mu, log_tau, offset = x[0], x[1], x[2:]
        log_mean = log_population + mu + jnp.exp(log_tau) * offset
        prior = -0.5 * ((mu + 6) / 2) ** 2 - 0.5 * (jnp.exp(log_tau) / 0.5) ** 2 + log_tau - 0.5 * jnp.sum(offset**2)
        return prior + jnp.sum(cases * log_mean - jnp.exp(log_mean))

    return {
        "eight_schools": (eight_schools, 10),
        "gaussian_100": (gaussian, 100),
        "logistic_31": (logistic, 31),
        "cancer_303": (cancer, 303),
    }


def with_jaxprob(log_density, starts, key):
    """Draws (chain, draw, size), gradient evaluations in all, divergences."""
    import jaxprob

    position = iter(starts)
    result = jaxprob.sample(
        log_density, key, initial=lambda key: next(position), chains=CHAINS, warmup=WARMUP, draws=DRAWS, devices=1
    )
    return result.draws, int(result.stats["num_steps"].sum()), int(result.stats["diverging"].sum())


def with_blackjax(log_density, starts, key):
    import jax

    def one(key, position):
        warm_key, key = jax.random.split(key)
        warm = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), _ = warm.run(warm_key, position, num_steps=WARMUP)
        kernel = blackjax.nuts(log_density, **parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(step, state, jax.random.split(key, DRAWS))[1]

    import blackjax

    # One function object a density: a second call finds the compiled program of the first.
    program = _PROGRAMS.setdefault(log_density, jax.jit(jax.vmap(one)))
    draws, steps, diverging = program(jax.random.split(key, CHAINS), starts)
    return draws, int(steps.sum()), int(diverging.sum())


_PROGRAMS = {}


def with_numpyro(log_density, starts, key):
    from numpyro.infer import MCMC, NUTS

    if log_density not in _PROGRAMS:
        kernel = NUTS(potential_fn=lambda x: -log_density(x))
        _PROGRAMS[log_density] = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )
    mcmc = _PROGRAMS[log_density]
    mcmc.run(key, init_params=starts, extra_fields=("num_steps", "diverging"))
    extra = mcmc.get_extra_fields(group_by_chain=True)
    return mcmc.get_samples(group_by_chain=True), int(extra["num_steps"].sum()), int(extra["diverging"].sum())


def child(sampler, target, seed):
    """One sampler on one target in this process; prints a JSON line."""
    import jax
    import numpy as np

    from jaxprob import analysis

    log_density, size = targets()[target]
    run = {"jaxprob": with_jaxprob, "blackjax": with_blackjax, "numpyro": with_numpyro}[sampler]
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    # What takes long to import is not part of compiling.
    for module in {
        "jaxprob": ["jaxprob.runtime", "jaxprob.inference.mcmc"],
        "blackjax": ["blackjax"],
        "numpyro": ["numpyro.infer"],
    }[sampler]:
        importlib.import_module(module)
    # Starts and key are there before the clock runs, as they would be for a user.
    starts = np.random.default_rng(seed).uniform(-1, 1, (CHAINS, size)).astype(np.float32)
    key = jax.block_until_ready(jax.random.key(seed))
    seconds = []
    for _ in range(2):  # the same draws twice: the second time without compiling
        began = time.perf_counter()
        draws, gradients, divergences = run(log_density, starts, key)
        draws = np.asarray(draws)
        seconds.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ess = float(np.min(analysis.effective_sample_size(draws)))
    print(
        json.dumps(
            {
                "compile_s": seconds[0] - seconds[1],
                "run_s": seconds[1],
                "gradients_sampling": gradients,
                "divergences": divergences,
                "ess_min": ess,
                "peak_mib": memory,
                "device": jax.devices()[0].device_kind,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--targets", default="eight_schools,gaussian_100,logistic_31,cancer_303")
    parser.add_argument("--out", default=HERE / "results" / "nuts.json", type=Path)
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        sampler, target, seed = args.child
        return child(sampler, target, int(seed))
    rows = []
    for target in args.targets.split(","):
        found = {sampler: [] for sampler in SAMPLERS}
        for repeat in range(args.repeats):
            for sampler in SAMPLERS:
                done = subprocess.run(
                    [sys.executable, __file__, "--child", sampler, target, str(repeat)],
                    capture_output=True,
                    text=True,
                    env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
                )
                if done.returncode:
                    print(f"{sampler} on {target} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                found[sampler].append(json.loads(done.stdout.strip().splitlines()[-1]))
        for sampler, runs in found.items():
            if runs:
                rows.append({"target": target, "sampler": sampler, **summarise(runs)})
    report = {
        "device": rows[0]["device"],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", *SAMPLERS)},
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": DRAWS,
        "repeats": args.repeats,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    show(rows)
    print(f"\nwritten to {args.out}")


def summarise(runs):
    row = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "device"}
    row["ess_per_s"] = row["ess_min"] / row["run_s"]
    row["ess_per_1000_gradients"] = 1000 * row["ess_min"] / row["gradients_sampling"]
    return {**row, "device": runs[0]["device"]}


def show(rows):
    head = ("target", "sampler", "compile s", "run s", "min ESS", "ESS/s", "ESS/1k grad", "gradients", "diverg.", "MiB")
    print("{:14} {:9} {:>9} {:>7} {:>8} {:>8} {:>11} {:>10} {:>7} {:>6}".format(*head))
    for row in rows:
        print(
            f"{row['target']:14} {row['sampler']:9} {row['compile_s']:9.2f} {row['run_s']:7.2f} {row['ess_min']:8.0f} "
            f"{row['ess_per_s']:8.0f} {row['ess_per_1000_gradients']:11.1f} {row['gradients_sampling']:10.0f} "
            f"{row['divergences']:7.0f} {row['peak_mib']:6.0f}"
        )
    for target in dict.fromkeys(row["target"] for row in rows):
        by = {row["sampler"]: row for row in rows if row["target"] == target}
        if len(by) == len(SAMPLERS):
            ours = by["jaxprob"]
            print(
                f"{target}: compile {ours['compile_s'] / by['blackjax']['compile_s']:.2f} of BlackJAX's, "
                f"{ours['compile_s'] / by['numpyro']['compile_s']:.2f} of NumPyro's; ESS/s "
                f"{ours['ess_per_s'] / by['blackjax']['ess_per_s']:.2f} and "
                f"{ours['ess_per_s'] / by['numpyro']['ess_per_s']:.2f} times theirs"
            )


if __name__ == "__main__":
    main()
