"""Spike trains of 8 neurons whose weights switch between 2 or 3 states, with the same signs in all: what ties find.

Models fitted to the same counts, each from six starts, the best kept: weights of each state on their own (plain); those
drawn to zero (ridge); to a mean that the states share (gaussian); one-hot patterns tied by a learnable categorical
prior, with Gumbel noise (one-hot). Widths of priors were chosen on seeds 100 to 109. States are matched to the true
ones by the best permutation. Signs: share of the true connections, over states, whose sign is right. Held out: log
likelihood a step of 2,000 steps more.

    python benchmarks/spike_trains.py [--seeds 10] [--finish 0] [--out FILE]

`--finish` is a number of further steps of EM without noise, for all.
"""

import argparse
import functools
import itertools
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprob import core
from jaxprob.inference import hmm
from jaxprob.models.state_space import FreeWeights, OneHotWeights, spike_trains

HERE = Path(__file__).resolve().parent
NEURONS, DECAY, STAY, STARTS, HELD_OUT = 8, 0.5, 0.98, 6, 2000
OPTIMIZER = optax.adam(0.03)
METHODS = ("plain", "ridge", "gaussian", "one-hot")


def simulate(seed, states, times):
    """Signs, paths, counts and the true model: signs shared, strengths and biases of each state."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 0, 1], p=[0.35, 0.3, 0.35], size=(NEURONS, NEURONS))
    weights = signs * rng.gamma(3, 0.8 / 3, size=(states, NEURONS, NEURONS))
    # A linear network with these weights would die out: its gain is 0.7 at most.
    gains = [np.abs(np.linalg.eigvals(one)).max() / (1 - DECAY) for one in weights]
    weights = np.stack([one * min(1, 0.7 / gain) for one, gain in zip(weights, gains, strict=True)])
    bias = rng.normal(-0.5, 0.5, size=(states, NEURONS))
    model = spike_trains(*chain(states, STAY), jnp.float32(bias), FreeWeights(jnp.float32(weights)), decay=DECAY)
    path, counts = model.sample(jax.random.key(seed), times)
    return signs, np.asarray(path), counts, model


def chain(states, stay):
    transition = np.full((states, states), (1 - stay) / (states - 1))
    np.fill_diagonal(transition, stay)
    return np.full(states, 1 / states), transition


def start(method, key, states, counts):
    keys, square = jax.random.split(key, 4), (NEURONS, NEURONS)
    rate = core.inverse_softplus(jnp.clip(jnp.mean(counts.astype(jnp.float32), 0), 0.02))
    bias = rate - 0.2 + 0.5 * jax.random.normal(keys[0], (states, NEURONS))
    values = 0.1 * jax.random.normal(keys[1], (states, *square))
    if method == "plain":
        connections = FreeWeights(values)
    elif method == "one-hot":
        logits = 0.1 * jax.random.normal(keys[2], (states, *square, 3))
        strength = core.inverse_softplus(0.5) + 0.1 * jax.random.normal(keys[3], (states, *square))
        connections = OneHotWeights(logits, jnp.zeros((*square, 3)), strength, temperature=0.5, scale=0.3)
    else:
        spread, scale = {"ridge": (0.3, 1e-3), "gaussian": (0.2, 0.5)}[method]
        connections = FreeWeights(values, jnp.zeros(square), spread, scale)
    return spike_trains(*chain(states, 0.95), bias, connections, decay=DECAY)


def log_prior(rates):
    return rates.log_prior()


def relax(key, rates):
    return rates.relaxed(key)


@functools.partial(jax.jit, static_argnames=("method", "states", "finish"))
def fit(method, key, counts, states, finish):
    def one(key):
        first, second = jax.random.split(key)
        noise = {"relax": relax, "key": second} if method == "one-hot" else {}
        learn = functools.partial(hmm.fit_by_gradient, ys=counts, optimizer=OPTIMIZER, log_prior=log_prior)
        found = learn(start(method, first, states, counts), steps=60, **noise)
        return learn(found.model, steps=finish) if finish else found

    found = jax.vmap(one)(jax.random.split(key, STARTS))
    last = found.log_likelihoods[:, -1]
    best = jnp.argmax(jnp.where(jnp.isnan(last), -jnp.inf, last))
    return jax.tree.map(lambda leaf: leaf[best], found.model)


def scores(model, signs, path, counts, held_out):
    states = model.state_size
    found = np.asarray(hmm.smooth(model, counts).log_probabilities).argmax(1)
    orders = list(itertools.permutations(range(states)))
    right = [np.mean(np.array(order)[found] == path) for order in orders]
    order = np.argsort(orders[int(np.argmax(right))])
    weights = np.asarray(model.emission.args[0].connections.weights())[order]
    agree = np.sign(weights) == signs
    return max(right), agree[:, signs != 0].mean(), float(hmm.log_likelihood(model, held_out)) / len(held_out)


def compare(states, times, seeds, finish):
    rows = []
    for seed in range(seeds):
        signs, path, counts, true = simulate(seed, states, times + HELD_OUT)
        seen, held_out = counts[:times], counts[times:]
        models = [true, *(fit(method, jax.random.key(seed), seen, states, finish) for method in METHODS)]
        rows.append([scores(model, signs, path[:times], seen, held_out) for model in models])
    rows = np.array(rows)
    report = {"states": states, "times": times, "seeds": seeds, "finish": finish}
    for index, name in enumerate(("true model", *METHODS)):
        mean = rows[:, index].mean(0)
        report[name] = dict(zip(("state_accuracy", "sign_accuracy", "held_out"), mean.round(4).tolist(), strict=True))
    gain = rows[:, -1] - rows[:, 1]
    error = gain.std(0, ddof=1) / np.sqrt(seeds)
    report["one-hot less plain"] = {
        "sign_accuracy": [gain[:, 1].mean().round(4), error[1].round(4)],
        "held_out": [gain[:, 2].mean().round(4), error[2].round(4)],
        "seeds_with_better_signs": int((gain[:, 1] > 0).sum()),
        "seeds_with_better_held_out": int((gain[:, 2] > 0).sum()),
    }
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--finish", type=int, default=0)
    parser.add_argument("--out", default=HERE / "results" / "spike_trains.json", type=Path)
    args = parser.parse_args()
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "neurons": NEURONS,
        "results": [],
    }
    for states, times in ((2, 500), (3, 500), (2, 3000), (3, 3000)):
        report["results"].append(compare(states, times, args.seeds, args.finish))
        print(json.dumps(report["results"][-1], indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
