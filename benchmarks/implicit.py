"""Implicit guides (Uppal et al. 2023) beside mean field and NUTS: three small targets and a Bayesian network 1-20-1.

The gap is log Z less the bound, of the implicit guide the linearised one. Of the network: Pearson's correlation between
the covariances of the weights of different layers, of a guide and of NUTS, beside that of two chains of NUTS and the
two others; and the log predictive density of 200 held-out points.

The prior gives each hidden unit a place: unit j steps near a point of its own. Under one that treats units alike the
posterior has a copy for every order and sign of the units, 20! 2^20, and NUTS goes from one to another: its covariances
are then those between copies, which no guide of one copy has.

    python benchmarks/implicit.py [--parts targets network]
"""

import argparse
import json
import math
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
RESULTS = HERE / "results" / "implicit-cpu.json"
HIDDEN, NOISE = 20, 0.1
SEEDS = 4  # of fits of the network's implicit guide
SLOPE, WIDTH = 3.0, 0.5  # of the first layer's prior: mean of its weights, and standard deviation


def targets():
    """Name to (log density, size, log Z)."""
    import jax.numpy as jnp
    import numpy as np

    covariance = 0.8 * np.ones((10, 10)) + 0.2 * np.eye(10)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def gaussian(x):
        return -0.5 * jnp.dot(x, jnp.dot(precision, x, precision="highest"), precision="highest")

    def banana(x):
        return -0.5 * x[0] ** 2 - 0.5 * ((x[1] - 0.5 * x[0] ** 2) / 0.5) ** 2

    def mixture(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 1.5) ** 2), -0.5 * jnp.sum((x + 1.5) ** 2))

    return {
        "gaussian": (gaussian, 10, 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]),
        "banana": (banana, 2, math.log(2 * math.pi * 0.5)),
        "mixture": (mixture, 2, math.log(4 * math.pi)),
    }


def network():
    """The log density of a network's parameters, its outputs, the prior's mean, and test data."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def truth(x):
        return np.sin(3 * x) * np.exp(-0.3 * x**2)

    x = np.concatenate([rng.uniform(-2, -0.5, 25), rng.uniform(0.5, 2, 25)]).astype(np.float32)
    y = (truth(x) + NOISE * rng.normal(size=50)).astype(np.float32)
    new = rng.uniform(-2, 2, 200).astype(np.float32)
    new_y = (truth(new) + NOISE * rng.normal(size=200)).astype(np.float32)
    steps = jnp.linspace(-2, 2, HIDDEN)
    first = jnp.full(HIDDEN, SLOPE)
    widths = {"first": WIDTH, "first_bias": WIDTH, "last": 1.0, "last_bias": 1.0}
    centre = {"first": first, "first_bias": -SLOPE * steps, "last": jnp.zeros(HIDDEN), "last_bias": jnp.zeros(())}

    def outputs(w, x):
        hidden = jnp.tanh(x[:, None] * w["first"][None] + w["first_bias"][None])
        return jnp.dot(hidden, w["last"], precision="highest") / math.sqrt(HIDDEN) + w["last_bias"]

    def log_density(w):
        prior = sum(jnp.sum(-0.5 * ((leaf - centre[name]) / widths[name]) ** 2) for name, leaf in w.items())
        return prior - 0.5 * jnp.sum(((y - outputs(w, x)) / NOISE) ** 2)

    return log_density, outputs, centre, (new, new_y)


def across_layers(draws):
    """Covariances between the weights of the first layer and those of the last, flat."""
    import numpy as np

    first = np.concatenate([np.asarray(draws["first"], float), np.asarray(draws["first_bias"], float)], axis=1)
    last = np.asarray(draws["last"], float)
    return ((first - first.mean(0)).T @ (last - last.mean(0)) / len(first)).ravel()


def part_targets():
    """Results and what is printed."""
    import jax
    import jax.numpy as jnp
    import optax
    from rich.table import Table

    from jaxprob.inference import vi

    key = jax.random.key(0)
    results = {}
    table = Table("target", "gap, implicit", "gap, mean field", "ratio")
    for name, (log_density, size, log_z) in targets().items():
        start = jnp.zeros(size)
        guide = vi.implicit(size, () if name == "gaussian" else (32, 32))
        objective = vi.linearized_elbo(log_density, guide, draws=32, initial=start)
        found = vi.fit(objective, key, optimizer=optax.adam(0.01))
        plain = vi.fit(log_density, key, vi.mean_field(), initial=start, draws=32)
        gaps = log_z - float(found.elbo), log_z - float(plain.elbo)
        results[name] = {"implicit": gaps[0], "mean_field": gaps[1], "error": float(found.elbo_error)}
        table.add_row(name, f"{gaps[0]:+.3f}", f"{gaps[1]:+.3f}", f"{gaps[1] / abs(gaps[0]):.1f}")
    return results, (table,)


def part_network():
    """Results and what is printed."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich.table import Table

    import jaxprob
    from jaxprob import analysis
    from jaxprob.inference import vi

    key = jax.random.key(0)
    log_density, outputs, centre, (x, y) = network()
    began = time.perf_counter()
    objective = vi.linearized_elbo(log_density, vi.implicit(61, (64,), sigma=0.02), draws=16, initial=centre)
    steps = 12_000
    falling = optax.adam(optax.cosine_decay_schedule(0.002, steps))
    fits = [
        vi.fit(objective, key, optimizer=falling, max_steps=steps, window=steps // 2)
        for key in jax.random.split(key, SEEDS)
    ]
    jax.block_until_ready(fits)
    seconds = time.perf_counter() - began
    options = {"initial": centre, "max_steps": 20_000}
    mean_field = vi.fit(log_density, key, vi.mean_field(), optimizer=optax.adam(0.01), **options)
    full_rank = vi.fit(log_density, key, vi.full_rank(), optimizer=optax.adam(0.003), draws=16, **options)

    def start(key):
        return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape), centre)

    run = jaxprob.sample(log_density, key, initial=start, chains=4, draws=2000, devices=1)
    chains = jax.tree.map(np.asarray, run.draws)

    def covariances(part):
        return across_layers(jax.tree.map(lambda leaf: leaf[part].reshape(-1, *leaf.shape[2:]), chains))

    halves = covariances(slice(2)), covariances(slice(2, None))
    draws = {
        "NUTS": jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chains),
        **{f"implicit, {i}": fit.guide.sample(jax.random.key(1), 8000) for i, fit in enumerate(fits)},
        "mean field": mean_field.guide.sample(jax.random.key(2), 8000),
        "full rank": full_rank.guide.sample(jax.random.key(3), 8000),
    }
    reference = across_layers(draws["NUTS"])
    rows = Table("network 1-20-1", "correlation of cross-layer covariances with NUTS", "held-out log density")
    results = {
        "seconds": seconds,
        "elbo": {
            "implicit": [float(fit.elbo) for fit in fits],
            "mean field": float(mean_field.elbo),
            "full rank": float(full_rank.elbo),
        },
        "r_hat": max(float(jnp.max(analysis.r_hat(leaf))) for leaf in chains.values()),
        "halves_of_nuts": float(np.corrcoef(halves)[0, 1]),
    }
    for name, own in draws.items():
        few = jax.tree.map(lambda leaf: leaf[::8], own)
        logs = jax.vmap(lambda w: -0.5 * ((y - outputs(w, x)) / NOISE) ** 2)(few)
        density = float(np.mean(jax.nn.logsumexp(logs, axis=0) - math.log(logs.shape[0])))
        density -= math.log(NOISE * math.sqrt(2 * math.pi))
        pearson = float(np.corrcoef(reference, across_layers(own))[0, 1])
        results[name] = {"pearson": pearson, "log_density": density}
        rows.add_row(name, f"{pearson:.2f}", f"{density:.3f}")
    mean = sum(results[f"implicit, {i}"]["pearson"] for i in range(SEEDS)) / SEEDS
    results["implicit_pearson"] = mean
    told = f"NUTS: halves agree by {results['halves_of_nuts']:.2f}, R-hat {results['r_hat']:.3f}"
    told = f"implicit: {mean:.3f} on average; {told}"
    return results, (rows, told)


PARTS = {"targets": part_targets, "network": part_network}


def main():
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["versions"] = {"jax": version("jax")}
    for part in args.parts:
        report[part], printed = PARTS[part]()
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        for one in printed:
            Console(width=110).print(one)


if __name__ == "__main__":
    main()
