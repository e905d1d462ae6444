"""Implicit guides (Uppal et al. 2023) beside mean field and NUTS: three small targets and a Bayesian network 1-20-1.

The gap is log Z less the bound, of the implicit guide the linearised one. Of the network: Pearson's correlation between
the covariances of the weights of different layers, of the guide and of NUTS (whose chains start at draws of the guide:
hidden units may change places, and only modes like the guide's are comparable), and the log predictive density of 200
held-out points.

    python benchmarks/implicit.py
"""

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
    """The log density of a network's parameters, its outputs, training and test data."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def truth(x):
        return np.sin(3 * x) * np.exp(-0.3 * x**2)

    x = np.concatenate([rng.uniform(-2, -0.5, 25), rng.uniform(0.5, 2, 25)]).astype(np.float32)
    y = (truth(x) + NOISE * rng.normal(size=50)).astype(np.float32)
    new = rng.uniform(-2, 2, 200).astype(np.float32)
    new_y = (truth(new) + NOISE * rng.normal(size=200)).astype(np.float32)

    def outputs(w, x):
        hidden = jnp.tanh(x[:, None] * w["first"][None] + w["first_bias"][None])
        return jnp.dot(hidden, w["last"], precision="highest") / math.sqrt(HIDDEN) + w["last_bias"]

    def log_density(w):
        prior = sum(jnp.sum(-0.5 * leaf**2) for leaf in w.values())
        return prior - 0.5 * jnp.sum(((y - outputs(w, x)) / NOISE) ** 2)

    zero = {"first": (HIDDEN,), "first_bias": (HIDDEN,), "last": (HIDDEN,), "last_bias": ()}
    like = {name: jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32) for name, shape in zero.items()}
    return log_density, outputs, like, (new, new_y)


def across_layers(draws):
    """Covariances between the weights of the first layer and those of the last, flat."""
    import numpy as np

    first = np.concatenate([np.asarray(draws["first"], float), np.asarray(draws["first_bias"], float)], axis=1)
    last = np.asarray(draws["last"], float)
    return ((first - first.mean(0)).T @ (last - last.mean(0)) / len(first)).ravel()


def main():
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from rich.console import Console
    from rich.table import Table

    import jaxprob
    from jaxprob.inference import vi

    key = jax.random.key(0)
    results = {"versions": {"jax": version("jax")}, "targets": {}}
    table = Table("target", "gap, implicit", "gap, mean field", "ratio")
    for name, (log_density, size, log_z) in targets().items():
        start = jnp.zeros(size)
        guide = vi.implicit(size, () if name == "gaussian" else (32, 32))
        objective = vi.linearized_elbo(log_density, guide, draws=32, initial=start)
        found = vi.fit(objective, key, optimizer=optax.adam(0.01))
        plain = vi.fit(log_density, key, vi.mean_field(), initial=start, draws=32)
        gaps = log_z - float(found.elbo), log_z - float(plain.elbo)
        results["targets"][name] = {"implicit": gaps[0], "mean_field": gaps[1], "error": float(found.elbo_error)}
        table.add_row(name, f"{gaps[0]:+.3f}", f"{gaps[1]:+.3f}", f"{gaps[1] / abs(gaps[0]):.1f}")

    log_density, outputs, like, (x, y) = network()
    began = time.perf_counter()
    objective = vi.linearized_elbo(log_density, vi.implicit(15, (64, 64), sigma=0.02), draws=8, initial=like)
    implicit = vi.fit(objective, key, optimizer=optax.adam(0.003), max_steps=30_000).guide
    mean_field = vi.fit(log_density, key, vi.mean_field(), initial=like, optimizer=optax.adam(0.01)).guide
    seconds = time.perf_counter() - began
    starts = [implicit.sample(jax.random.fold_in(key, i)) for i in range(4)]
    each = iter(starts)
    run = jaxprob.sample(log_density, key, initial=lambda key: next(each), chains=4, draws=4000, devices=1)
    draws = {
        "NUTS": jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), run.draws),
        "implicit": implicit.sample(jax.random.key(1), 16_000),
        "mean field": mean_field.sample(jax.random.key(2), 16_000),
    }
    reference = across_layers(draws["NUTS"])
    rows = Table("network 1-20-1", "correlation of cross-layer covariances with NUTS", "held-out log density")
    results["network"] = {"seconds": seconds}
    for name, own in draws.items():
        few = jax.tree.map(lambda leaf: leaf[::16], own)
        logs = jax.vmap(lambda w: -0.5 * ((y - outputs(w, x)) / NOISE) ** 2)(few)
        density = float(np.mean(jax.nn.logsumexp(logs, axis=0) - math.log(logs.shape[0])))
        density -= math.log(NOISE * math.sqrt(2 * math.pi))
        pearson = float(np.corrcoef(reference, across_layers(own))[0, 1])
        results["network"][name] = {"pearson": pearson, "log_density": density}
        rows.add_row(name, f"{pearson:.2f}", f"{density:.3f}")
    console = Console(width=110)
    console.print(table)
    console.print(rows)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
