"""Hidden Markov models beside dynamax: filter, smoother, best path, log likelihood and its gradient.

Everything runs in one process, in turn, several rounds; run times are medians, compile times (tracing included) those
of the first call less the median. Both compute in float32, on one core or as many as there are; densities of the
observations are part of the work. Values are compared: probabilities, log likelihoods, gradients, and what the paths
weigh.

    python benchmarks/hmm.py [--rounds 9] [--out FILE]

The results go to benchmarks/results/hmm-DEVICE.json by default.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jaxprob.distributions import Normal
from jaxprob.inference import hmm
from jaxprob.models.state_space import HiddenMarkov

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
TASKS = ("log likelihood", "filter", "smoother", "best path", "gradient")


def problem(states, times, series=None, seed=0):
    """Parameters of a model whose states last 20 times on average, and data of it, as float32 arrays."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(states), size=states) * 0.05 + 0.95 * np.eye(states)
    parameters = {
        "initial": np.full(states, 1 / states),
        "transition": transition / transition.sum(1, keepdims=True),
        "means": np.linspace(-3.0, 3.0, states),
    }
    cumulative = np.cumsum(parameters["transition"], 1)
    paths = np.zeros((series or 1, times), int)
    paths[:, 0] = rng.integers(states, size=len(paths))
    for t in range(1, times):
        uniform = rng.uniform(size=(len(paths), 1))
        paths[:, t] = np.minimum((uniform > cumulative[paths[:, t - 1]]).sum(1), states - 1)
    ys = parameters["means"][paths] + rng.normal(size=paths.shape)
    ys = ys if series else ys[0]
    return {name: jnp.asarray(x, jnp.float32) for name, x in parameters.items()}, jnp.asarray(ys, jnp.float32)


def ours(parameters, task):
    """What is asked for, of one series."""

    def model(p):
        return HiddenMarkov(p["initial"], p["transition"], Normal(p["means"], 1.0))

    calls = {
        "log likelihood": lambda ys: hmm.log_likelihood(model(parameters), ys),
        "filter": lambda ys: hmm.filter(model(parameters), ys).probabilities,
        "smoother": lambda ys: hmm.smooth(model(parameters), ys).probabilities,
        "best path": lambda ys: hmm.viterbi(model(parameters), ys).states,
        "gradient": lambda ys: jax.grad(lambda p: hmm.log_likelihood(model(p), ys))(parameters),
    }
    return calls[task]


def with_dynamax(parameters, task):
    from dynamax.hidden_markov_model import hmm_filter, hmm_posterior_mode, hmm_smoother

    def of(p, ys):
        return p["initial"], p["transition"], norm.logpdf(ys[:, None], p["means"][None], 1.0)

    calls = {
        "log likelihood": lambda ys: hmm_filter(*of(parameters, ys)).marginal_loglik,
        "filter": lambda ys: hmm_filter(*of(parameters, ys)).filtered_probs,
        "smoother": lambda ys: hmm_smoother(*of(parameters, ys)).smoothed_probs,
        "best path": lambda ys: hmm_posterior_mode(*of(parameters, ys)),
        "gradient": lambda ys: jax.grad(lambda p: hmm_filter(*of(p, ys)).marginal_loglik)(parameters),
    }
    return calls[task]


def weights(parameters, ys, paths):
    """Log probabilities of paths and observations together, in float64 NumPy."""
    p = {name: np.asarray(x, np.float64) for name, x in parameters.items()}
    ys, paths = np.atleast_2d(np.asarray(ys, np.float64)), np.atleast_2d(np.asarray(paths))
    moves = np.log(p["transition"])[paths[:, :-1], paths[:, 1:]].sum(1)
    densities = -0.5 * (ys - p["means"][paths]) ** 2 - 0.5 * np.log(2 * np.pi)
    return np.log(p["initial"])[paths[:, 0]] + moves + densities.sum(1)


def difference(task, parameters, ys, one, other):
    """The largest difference of what two found: absolute of probabilities, else relative to the largest."""
    if task == "best path":
        one, other = weights(parameters, ys, one), weights(parameters, ys, other)
    found = []
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        size = 1.0 if task in ("filter", "smoother") else max(np.abs(y).max(), 1e-30)
        found.append(np.abs(x - y).max() / size)
    return float(max(found))


def main():
    from benchmarks._in_turn import measure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = jax.devices()[0].device_kind.lower().replace(" ", "-")
    out = args.out or HERE / "results" / f"hmm-{device}.json"
    rows = []
    for states, times, series in ((4, 10_000, None), (32, 10_000, None), (4, 1_000, 100), (32, 1_000, 100)):
        parameters, ys = problem(states, times, series)
        print(f"\n{states} states, {times} times, {series or 1} series")
        for task in TASKS:
            calls = {"ours": ours(parameters, task), "dynamax": with_dynamax(parameters, task)}
            runs = {name: jax.jit(jax.vmap(call) if series else call) for name, call in calls.items()}
            found, values = measure(runs, ys, args.rounds)
            apart = difference(task, parameters, ys, values["ours"], values["dynamax"])
            for name, row in found.items():
                row |= {"task": task, "states": states, "times": times, "series": series or 1, "sampler": name}
                row |= {"ratio": row["run_s"] / found["ours"]["run_s"], "difference": apart}
                rows.append(row)
            mine, theirs = found["ours"], found["dynamax"]
            print(
                f"  {task:15s} ours {1e3 * mine['run_s']:8.2f} ms, compile {mine['compile_s']:5.2f} s;"
                f"  dynamax {1e3 * theirs['run_s']:8.2f} ms ({theirs['ratio']:5.2f} of ours),"
                f" compile {theirs['compile_s']:5.2f} s;  apart {apart:.1e}",
                flush=True,
            )
    versions = {name: version(name) for name in ("jax", "jaxlib", "dynamax")}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    out.write_text(
        json.dumps({"device": device, "machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n"
    )
    print(f"\n{out}")


if __name__ == "__main__":
    main()
