"""A stream of digits whose labels are permuted anew every 300 steps, or never: one filter that learns to forget.

scikit-learn's digits in 100 random ReLU features, 3,000 steps, predicted before each label is seen. The classifier with
its defaults (chosen on seeds 100 to 102) against the same with each of ten fixed gammas, of which the best is picked
afterwards, and against a filter that is reset at each change, which is told when.

    python benchmarks/online_classifier.py [--seeds 10] [--out FILE]
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
from sklearn.datasets import load_digits

from jaxprob.inference import kalman

HERE = Path(__file__).resolve().parent
GAMMAS = (1.0, 0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95)
STEPS, PERIOD, WIDTH = 3000, 300, 100


def stream(seed, switching):
    digits = load_digits()
    images = digits.data / 16
    rng = np.random.default_rng(seed)
    weights, offset = rng.normal(size=(64, WIDTH)), 0.1 * rng.normal(size=WIDTH)
    index = rng.integers(0, len(images), STEPS)
    features = np.maximum(0.5 * (images[index] - images.mean(0)) @ weights + offset, 0)
    features /= np.sqrt((features**2).sum(1).mean())
    labels = digits.target[index]
    if switching:
        labels = np.concatenate([rng.permutation(10)[labels[t : t + PERIOD]] for t in range(0, STEPS, PERIOD)])
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels)


def scores(found, labels):
    right = jnp.argmax(found.log_probabilities, -1) == labels
    return np.array([float(jnp.mean(right.astype(jnp.float32))), float(jnp.mean(found.log_probability))])


def run(classifier, features, labels):
    return scores(classifier.filter(features, labels)[1], labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", default=HERE / "results" / "online_classifier.json", type=Path)
    args = parser.parse_args()
    adaptive = kalman.OnlineClassifier(WIDTH, 10)
    fixed = {gamma: kalman.OnlineClassifier(WIDTH, 10, forgetting=gamma, forgetting_step=0.0) for gamma in GAMMAS}
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "scikit-learn")},
        "seeds": args.seeds,
    }
    for name in ("stationary", "switching"):
        rows = []
        for seed in range(args.seeds):
            features, labels = stream(seed, name == "switching")
            parts = [run(fixed[1.0], features[t : t + PERIOD], labels[t : t + PERIOD]) for t in range(0, STEPS, PERIOD)]
            told = np.mean(parts, 0) if name == "switching" else run(fixed[1.0], features, labels)
            tried = [run(adaptive, features, labels), *(run(one, features, labels) for one in fixed.values()), told]
            rows.append(tried)
        rows = np.array(rows)
        means = rows.mean(0)
        best = int(np.argmax(means[1:-1, 0]))
        report[name] = {
            "adaptive": {"accuracy": means[0, 0], "log_probability": means[0, 1]},
            "adaptive_accuracies": rows[:, 0, 0].round(4).tolist(),
            "fixed": {f"{gamma:g}": means[1 + k].round(4).tolist() for k, gamma in enumerate(GAMMAS)},
            "best_fixed": {"gamma": GAMMAS[best], "accuracy": means[1 + best, 0]},
            "told_of_changes": {"accuracy": means[-1, 0], "log_probability": means[-1, 1]},
            "least_gain_over_best_fixed": float((rows[:, 0, 0] - rows[:, 1 + best, 0]).min()),
            "least_ratio_to_never_forgetting": float((rows[:, 0, 0] / rows[:, 1, 0]).min()),
        }
    print(json.dumps(report, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
