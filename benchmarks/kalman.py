"""Kalman filters beside dynamax, cuthbert and statsmodels: compile and run times, one series and a hundred, gradients.

Everything runs in one process, in turn, several rounds; run times are medians, compile times (tracing included) those
of the first call less the median. All compute in float32 but statsmodels, which is compiled in float64. The model is
time-invariant, stable, with independent noise; `ours` (method "auto") makes use of that, and so does `statsmodels`,
which stops to move the covariance once it stands still. `ours, sequential`, `ours, parallel` and `statsmodels, every
step` (tolerance 0) do not.

    python benchmarks/kalman.py [--rounds 9] [--out FILE]

The results go to benchmarks/results/kalman-DEVICE.json by default.
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

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def problem(states, observed, times, series=None, seed=0):
    """A stable model, and data of it, as float32 arrays."""
    rng = np.random.default_rng(seed)
    dynamics = rng.normal(size=(states, states))
    dynamics *= 0.95 / np.abs(np.linalg.eigvals(dynamics)).max()
    entries = {
        "initial_mean": np.zeros(states),
        "initial_covariance": np.eye(states),
        "dynamics": dynamics,
        "dynamics_covariance": 0.1 * np.eye(states),
        "emission": rng.normal(size=(observed, states)),
        "emission_covariance": np.full(observed, 0.5),
    }
    ys = rng.normal(size=(times, observed) if series is None else (series, times, observed))
    return {name: x.astype(np.float32) for name, x in entries.items()}, ys.astype(np.float32)


def ours(entries, method, what):
    model = LinearGaussian(**{name: jnp.asarray(x) for name, x in entries.items()})
    if what == "gradient":
        return jax.jit(lambda ys: jax.grad(lambda m: kalman.log_likelihood(m, ys, method=method))(model))
    if what == "filter":
        return jax.jit(lambda ys: kalman.filter(model, ys, method=method))
    return jax.jit(lambda ys: kalman.log_likelihood(model, ys, method=method))


def with_dynamax(entries, what):
    from dynamax.linear_gaussian_ssm import lgssm_filter
    from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

    names = ("initial_mean", "initial_covariance", "dynamics", "dynamics_covariance", "emission", "emission_covariance")
    arrays = [jnp.asarray(entries[name]) for name in names]
    parameters = make_lgssm_params(*arrays)
    if what == "gradient":
        return jax.jit(lambda ys: jax.grad(lambda p: lgssm_filter(p, ys).marginal_loglik)(parameters))
    if what == "filter":
        return jax.jit(lambda ys: lgssm_filter(parameters, ys))
    return jax.jit(lambda ys: lgssm_filter(parameters, ys).marginal_loglik)


def with_cuthbert(entries, what, parallel=False):
    from cuthbert import filter as run
    from cuthbert.gaussian import kalman as theirs

    e = {name: jnp.asarray(x) for name, x in entries.items()}
    root_q, root_r = jnp.linalg.cholesky(e["dynamics_covariance"]), jnp.diag(jnp.sqrt(e["emission_covariance"]))
    zero_x, zero_y = jnp.zeros_like(e["initial_mean"]), jnp.zeros_like(e["emission_covariance"])

    def log_likelihood(ys, e):
        # Their initial state is that before the first observation: a first step that does not move.
        moves = jnp.concatenate([jnp.zeros((1,), bool), jnp.ones((len(ys) - 1,), bool)])
        inputs = (ys, moves)

        def dynamics(inputs):
            moves = inputs[1]
            matrix = jnp.where(moves, e["dynamics"], jnp.eye(len(zero_x)))
            return matrix, zero_x, jnp.where(moves, root_q, 0)

        build = theirs.build_filter(
            e["initial_mean"],
            jnp.linalg.cholesky(e["initial_covariance"]),
            dynamics,
            lambda inputs: (e["emission"], zero_y, root_r, inputs[0]),
        )
        states = run(build, inputs, build.init_prepare(), parallel=parallel)
        return states if what == "filter" else states.log_normalizing_constant[-1]

    if what == "gradient":
        return jax.jit(lambda ys: jax.grad(lambda e: log_likelihood(ys, e))(e))
    return jax.jit(lambda ys: log_likelihood(ys, e))


def with_statsmodels(entries, what, every_step=False):
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    observed, states = entries["emission"].shape
    bound = []

    def run(ys):
        result = []
        for i, series in enumerate(ys if ys.ndim == 3 else ys[None]):
            if len(bound) <= i:
                found = KalmanFilter(k_endog=observed, k_states=states)
                found.bind(np.asarray(series, np.float64))
                found["design"], found["transition"] = entries["emission"], entries["dynamics"]
                found["selection"], found["state_cov"] = np.eye(states), entries["dynamics_covariance"]
                found["obs_cov"] = np.diag(entries["emission_covariance"])
                found.initialize_known(
                    entries["initial_mean"].astype(float), entries["initial_covariance"].astype(float)
                )
                if every_step:
                    found.tolerance = 0.0
                bound.append(found)
            result.append(bound[i].filter().llf if what == "filter" else bound[i].loglike())
        return np.array(result) if ys.ndim == 3 else result[0]

    return run


def main():
    from benchmarks._in_turn import measure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = jax.devices()[0].device_kind.lower().replace(" ", "-")
    out = args.out or HERE / "results" / f"kalman-{device}.json"
    rows = []

    def table(title, states, observed, times, runs, series=None):
        entries, ys = problem(states, observed, times, series)
        found, values = measure({name: make(entries) for name, make in runs.items()}, jnp.asarray(ys), args.rounds)
        print(f"\n{title}: {states} states, {observed} observed, {times} times" + (f", {series} series" * bool(series)))
        best = found["ours"]["run_s"]
        for name, row in found.items():
            value = values[name]
            scalar = np.asarray(value) if title == "log likelihood" else None
            row |= {"task": title, "states": states, "observed": observed, "times": times, "series": series or 1}
            row |= {"sampler": name, "ratio": row["run_s"] / best, "value": None if scalar is None else float(scalar)}
            print(
                f"  {name:23s} run {1e3 * row['run_s']:9.2f} ms ({row['ratio']:6.2f} of ours)"
                f"  compile {row['compile_s']:6.2f} s" + ("" if scalar is None else f"  {float(scalar):.3f}")
            )
            rows.append(row)

    def both(what, parallel=False):
        runs = {
            "ours": lambda e: ours(e, "auto", what),
            "ours, sequential": lambda e: ours(e, "sequential", what),
            "dynamax": lambda e: with_dynamax(e, what),
            "cuthbert": lambda e: with_cuthbert(e, what),
        }
        if what != "gradient":
            runs["ours, parallel"] = lambda e: ours(e, "parallel", what)
            runs["statsmodels"] = lambda e: with_statsmodels(e, what)
            runs["statsmodels, every step"] = lambda e: with_statsmodels(e, what, every_step=True)
        if parallel:
            runs["cuthbert, parallel"] = lambda e: with_cuthbert(e, what, parallel=True)
        return runs

    for states, observed in ((4, 2), (20, 2)):
        table("log likelihood", states, observed, 10_000, both("log likelihood"))
        table("filter", states, observed, 10_000, both("filter"))
    table("gradient", 4, 2, 10_000, both("gradient"))
    table("parallel", 4, 2, 1_000, both("filter", parallel=True))
    batch = {
        "ours": lambda e: jax.jit(jax.vmap(ours(e, "auto", "log likelihood"))),
        "ours, sequential": lambda e: jax.jit(jax.vmap(ours(e, "sequential", "log likelihood"))),
        "dynamax": lambda e: jax.jit(jax.vmap(with_dynamax(e, "log likelihood"))),
        "statsmodels": lambda e: with_statsmodels(e, "log likelihood"),
    }
    table("batch", 4, 2, 10_000, batch, series=100)
    versions = {name: version(name) for name in ("jax", "jaxlib", "dynamax", "cuthbert", "statsmodels")}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    out.write_text(
        json.dumps({"device": device, "machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n"
    )
    print(f"\n{out}")


if __name__ == "__main__":
    main()
