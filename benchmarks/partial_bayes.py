"""Partially Bayesian networks trained by sequential Monte Carlo, against mean-field variational inference and a mode.

A curve whose noise grows along it (one input; mean and log standard deviation as outputs) and two moons of noise 0.3:
100 examples to train on, 100 to stop by and 2,000 to judge by. One network of two hidden layers of 20, of which the
first or the last layer is stochastic under a standard normal prior; the others have values, with weight decay.

Every method is trained by `jaxprob.fit` and judged by the negative log predictive density (NLPD) twice: at the end of
training, and at the parameters that were best on the validation data, which is early stopping and does for the mode
some of what a posterior is for. Settings are those with the best mean validation NLPD over the tuning seeds 100 to 103,
for the end and for the best step apart, from one grid of rates, decays and layers for all methods; the test is over
other seeds. A method may evaluate the gradient of the network as often as another at the most, but for the mode, which
has converged. Differences between methods are paired by seed, with standard errors: a share of an NLPD, unlike a
difference, depends on the units of the outputs where these are real numbers.

    python benchmarks/partial_bayes.py [--problems NAME ...] [--methods NAME ...] [--seeds 20] [--out FILE]

Methods measured earlier stay in the file. Source: Zhao, Mair, Schön & Sjölund (2024), "On Feynman-Kac training of
partial Bayesian neural networks".
"""

import argparse
import functools
import itertools
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_moons

from jaxprob import core, fit, learning
from jaxprob.distributions import Bernoulli, Normal
from jaxprob.inference import mcmc

HERE = Path(__file__).resolve().parent
NUMBER, TEST, WIDTH, PARTICLES, BATCH, TUNING = 100, 2000, 20, 100, 20, range(100, 104)
RATES, DECAYS, LAYERS, JUDGED = (5e-3, 2e-2), (0.01, 0.3), ("first", "last"), ("end", "best")


def curve(rng, number):
    x = rng.uniform(-6, 6, number)
    y = x * np.sin(x * np.tanh(x)) + (0.25 + 1 / (1 + np.exp(-x))) * rng.normal(size=number)
    return x[:, None] / 3, y


def moons(rng, number):
    return make_moons(number, noise=0.3, random_state=int(rng.integers(2**31)))


# Data, inputs, outputs, and the density of an example given the outputs.
PROBLEMS = {
    "curve": (curve, 1, 2, lambda outputs: Normal(outputs[0], jnp.exp(outputs[1]))),
    "moons": (moons, 2, 1, lambda outputs: Bernoulli(logits=outputs[0])),
}


def splits(problem, seed):
    rng = np.random.default_rng(seed)
    parts = [PROBLEMS[problem][0](rng, number) for number in (NUMBER, NUMBER, TEST)]
    return [tuple(jnp.asarray(a, jnp.float32) for a in part) for part in parts]


def network(problem, layer):
    _, inputs, outputs, density = PROBLEMS[problem]
    sizes = {"first": (inputs, WIDTH), "inner": (WIDTH, WIDTH), "last": (WIDTH, outputs)}

    def init(key):
        kernel = jax.nn.initializers.glorot_normal()
        keys = zip(jax.random.split(key, len(sizes)), sizes.items(), strict=True)
        return {name: {"kernel": kernel(key, shape), "bias": jnp.zeros(shape[1])} for key, (name, shape) in keys}

    def log_likelihood(params, example):
        x, y = example
        for name in sizes:
            x = x @ params[name]["kernel"] + params[name]["bias"]
            x = x if name == "last" else jnp.tanh(x)
        return density(x).log_prob(y)

    return learning.PartialBayes(init, log_likelihood, f"{layer}.*", Normal(0.0, 1.0))


def mode(model, rate, decay):
    """The mode of the posterior."""

    def nlpd(params, batch, key):
        return -jnp.mean(jax.vmap(functools.partial(model.log_likelihood, params))(batch))

    def loss(params, batch, key):
        _, stochastic = learning.partition(params, model.stochastic)
        return nlpd(params, batch, key) - model.log_prior(stochastic) / NUMBER

    rules = {pattern: optax.adam(rate) for pattern in model.stochastic}
    optimizer = learning.by_path(rules, default=optax.adamw(rate, weight_decay=decay))
    return learning.Task(model.init, loss, optimizer, validation_loss=nlpd)


def mean_field(model, rate, decay, draws=50):
    """A Gaussian of independent parameters, by the evidence lower bound and reparametrised draws."""

    def init(key):
        deterministic, mean = learning.partition(model.init(key), model.stochastic)
        return {"value": deterministic, "mean": mean, "log_scale": jax.tree.map(lambda x: jnp.full_like(x, -2.0), mean)}

    def drawn(params, key, number):
        mean, unravel = core.ravel(params["mean"])
        scale = jnp.exp(core.ravel(params["log_scale"])[0])
        points = jax.vmap(lambda noise: unravel(mean + scale * noise))(jax.random.normal(key, (number, mean.size)))
        return learning.PartialParams(params["value"], points)

    def loss(params, batch, key):
        expected = jnp.mean(model.log_likelihoods(drawn(params, key, draws), batch))
        mean, log_scale = core.ravel(params["mean"])[0], core.ravel(params["log_scale"])[0]
        divergence = jnp.sum((mean**2 + jnp.exp(2 * log_scale) - 1) / 2 - log_scale)
        return -expected + divergence / NUMBER

    def nlpd(params, batch, key):
        return -jnp.mean(learning.log_predictive(model, drawn(params, key, PARTICLES), batch))

    optimizer = learning.by_path({"value.*": optax.adamw(rate, weight_decay=decay)}, default=optax.adam(rate))
    return learning.Task(init, loss, optimizer, validation_loss=nlpd)


def open_horizon(model, rate, decay, **options):
    optimizer = optax.adamw(rate, weight_decay=decay)
    return learning.open_horizon_smc(model, optimizer, size=NUMBER, particles=PARTICLES, **options)


# Task, examples in a batch, steps, and gradients of the network on all data that a step costs.
METHODS = {
    "mode": (mode, NUMBER, 3000, 1),
    "mean_field": (mean_field, NUMBER, 3600, 50),
    "open_horizon": (functools.partial(open_horizon, move=mcmc.mala, moves=3), NUMBER, 300, 6 * PARTICLES),
    "open_horizon_batches": (open_horizon, BATCH, 4500, 2 * PARTICLES * BATCH / NUMBER),
}


def train(problem, method, seed, rate, decay, layer):
    make, batch, steps, _ = METHODS[method]
    training, validation, test = splits(problem, seed)
    # Rates fall to zero: particles, which stand for the law given the values, have caught up with them by the end.
    task = make(network(problem, layer), optax.cosine_decay_schedule(rate, steps), decay)
    began = time.perf_counter()
    result = fit(
        task,
        learning.data.arrays(training, batch, seed=seed),
        key=jax.random.key(seed),
        steps=steps,
        validation=learning.data.arrays(validation, NUMBER),
        evaluate_every=steps // 200,
        log_every=steps // 10,
        progress=None,
        devices=1,
    )
    nlpd = jax.jit(task.validation_loss)
    key = jax.random.key(1000 + seed)
    test_nlpd = {"end": float(nlpd(result.params, test, key)), "best": float(nlpd(result.best, test, key))}
    told = result.history["validation/loss"]
    told = told[~np.isnan(told)]
    # Each run has programs of its own, and a process may map only so many pieces of code.
    jax.clear_caches()
    return {
        "test": test_nlpd,
        "validation": {"end": float(told[-1]), "best": float(np.min(told))},
        "best_step": result.best_step,
        "seconds": time.perf_counter() - began,
    }


def measure(problem, method, seeds):
    grid = [dict(zip(("rate", "decay", "layer"), x, strict=True)) for x in itertools.product(RATES, DECAYS, LAYERS)]
    tried = [[train(problem, method, seed, **settings) for seed in TUNING] for settings in grid]
    found, runs = {"gradients_of_the_network": METHODS[method][2] * METHODS[method][3]}, {}
    for judged in JUDGED:
        mean = [float(np.mean([row["validation"][judged] for row in rows])) for rows in tried]
        best = int(np.argmin(mean))
        if best not in runs:
            runs[best] = [train(problem, method, seed, **grid[best]) for seed in range(seeds)]
        test = [row["test"][judged] for row in runs[best]]
        found[judged] = {
            "settings": grid[best],
            "test_nlpd": round(float(np.mean(test)), 4),
            "test_nlpd_of_five": round(float(np.mean(test[:5])), 4),
            "seeds": [round(value, 4) for value in test],
            "best_steps": [row["best_step"] for row in runs[best]],
            "seconds": round(float(np.median([row["seconds"] for row in runs[best]])), 1),
            "tuning": [{**settings, "validation": round(v, 4)} for settings, v in zip(grid, mean, strict=True)],
        }
    return found


def compared(methods):
    """Of each method of particles beside each other one: the share, the difference and its standard error, in nats."""
    rows = {}
    for judged, (ours, other) in itertools.product(JUDGED, itertools.product(methods, ("mean_field", "mode"))):
        if ours.startswith("open") and other in methods:
            first, second = (np.array(methods[name][judged]["seeds"]) for name in (ours, other))
            gain = first - second
            rows[f"{judged}: {ours} less {other}"] = {
                "share": round(float(first.mean() / second.mean() - 1), 4),
                "difference": round(float(gain.mean()), 4),
                "standard_error": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 4),
            }
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", default=HERE / "results" / "partial_bayes.json", type=Path)
    args = parser.parse_args()
    task = {"training": NUMBER, "test": TEST, "width": WIDTH, "particles": PARTICLES, "seeds": args.seeds}
    for problem, method in itertools.product(args.problems, args.methods):
        found = measure(problem, method, args.seeds)
        print(problem, method, json.dumps(found), flush=True)
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        problems = before["problems"] if before.get("task") == task else {}
        problems.setdefault(problem, {})[method] = found
        report = {
            "device": jax.devices()[0].device_kind,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": {name: version(name) for name in ("jax", "jaxlib", "optax", "scikit-learn")},
            "task": task,
            "problems": problems,
            "compared": {name: compared(methods) for name, methods in problems.items()},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
