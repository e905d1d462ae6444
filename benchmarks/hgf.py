"""Hierarchical Gaussian filters: is a volatility that switches followed, and is a subject's parameter found again?

Volatility: noise of variance 0.1 on a walk whose steps have variance 0.01 and 4, in turn for 100 steps. A network of
two levels, its numbers chosen on other seeds, against the best fixed Kalman filter of 30, chosen afterwards on each
series: minus the log density of each observation given those before it, in nat per step.

Recovery: subjects see outcomes whose probability changes, follow a binary filter of three levels each with its own
omega, and choose with their own decision temperature; NUTS on a joint model gets the choices and the outcomes. How many
intervals of 95% hold the true omega.

    python benchmarks/hgf.py [--subjects 20] [--trials 320] [--series 20] [--out FILE]
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxprob
from jaxprob import models
from jaxprob.distributions import Bernoulli, Normal
from jaxprob.inference import hgf

HERE = Path(__file__).resolve().parent
NOISE = float(np.log(0.1))


def series(seed):
    rng = np.random.default_rng(seed)
    sd = np.tile(np.repeat([0.1, 2.0], 100), 5)
    ys = np.cumsum(sd * rng.normal(size=1000)) + np.sqrt(0.1) * rng.normal(size=1000)
    return ys.astype(np.float32)


def volatility(number):
    seen = hgf.continuous("x1", log_variance=NOISE)
    one = hgf.Network({"u": seen, "x1": hgf.state()})
    level = hgf.state(log_variance=-2.0, volatility_parents="x2")
    two = hgf.Network({"u": seen, "x1": level, "x2": hgf.state(log_variance=-3.0)})
    omegas = jnp.linspace(-5, 2.5, 30)
    fixed = jax.vmap(lambda omega, ys: hgf.log_likelihood(one.replace("x1", log_variance=omega), ys), (0, None))
    rows = []
    for seed in range(number):
        ys = jnp.asarray(series(seed))
        rows.append((-float(jnp.max(fixed(omegas, ys))) / 1000, -float(hgf.log_likelihood(two, ys)) / 1000))
    rows = np.array(rows)
    gains = rows[:, 0] - rows[:, 1]
    return {
        "series": number,
        "nll_best_fixed": rows[:, 0].mean(),
        "nll_two_levels": rows[:, 1].mean(),
        "gain_mean": gains.mean(),
        "gain_sd": gains.std(),
        "gain_smallest": gains.min(),
    }


def logits(omega, temperature, outcomes):
    """Of the choice of each trial, by what was expected before it."""
    level = hgf.state(log_variance=omega, volatility_parents="x3")
    network = hgf.Network({"u": hgf.binary("x2"), "x2": level, "x3": hgf.state(log_variance=-4.0)})
    return temperature * hgf.filter(network, outcomes).expected_mean["x2"]


@models.joint
def behaviour(outcomes):
    zeros = jnp.zeros(len(outcomes))
    omega = yield "omega", Normal(zeros - 3, 1.0)
    log_temperature = yield "log_temperature", Normal(zeros + 0.5, 0.5)
    yield "choices", Bernoulli(logits=jax.vmap(logits)(omega, jnp.exp(log_temperature), outcomes))


def recovery(subjects, trials, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.permuted(np.tile([0.8, 0.2, 0.8, 0.2, 0.5, 0.9, 0.1, 0.7], (subjects, 1)), axis=1)
    outcomes = jnp.asarray(rng.binomial(1, np.repeat(blocks, trials // 8, axis=1)), jnp.float32)
    program = behaviour(outcomes)
    truth = program.sample(jax.random.key(seed))
    posterior = program.condition(choices=truth["choices"])
    start = {name: jnp.full(subjects, value) for name, value in (("omega", -3.0), ("log_temperature", 0.5))}
    result = jaxprob.sample(posterior, jax.random.key(seed + 1), initial=start, chains=4, draws=500)
    chains = np.asarray(result.draws["omega"])
    draws = chains.reshape(-1, subjects)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    true = np.asarray(truth["omega"])
    return {
        "subjects": subjects,
        "trials": trials,
        "covered": int(((low < true) & (true < high)).sum()),
        "width_mean": float((high - low).mean()),
        "width_of_prior": 3.92,
        "correlation": float(np.corrcoef(draws.mean(0), true)[0, 1]),
        "r_hat_max": float(
            max(jaxprob.analysis.r_hat(draws.reshape(4, -1, subjects)[..., k]) for k in range(subjects))
        ),
        "divergences": int(np.sum(result.stats["diverging"])) if "diverging" in result.stats else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--out", default=HERE / "results" / "hgf.json", type=Path)
    args = parser.parse_args()
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "volatility": volatility(args.series),
        "recovery": recovery(args.subjects, args.trials),
    }
    print(json.dumps(report, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
