"""The copy task: ten symbols of eight, a pause of 20 steps, and the ten again. LRU, S5, Mamba-2 and minGRU.

Fresh sequences in every step of training, through `jaxprob.fit`; Adam, and a smaller rate for the parameters of the
states' dynamics. A sequence is right where all ten symbols are; reported is the share of 2,000 held-out sequences that
are right at the end of training. Steps and rate were changed after single misses: of Mamba-2 and minGRU at 3,000 and
8,000 steps, among the sequences of `validation_right`; of minGRU at 16,000 steps and twice the rate, among 2,000 that
are used no more.

LRU and S5 start as delay lines, with decays near the unit circle and phases all around it. Mamba-2 and minGRU have
decays without a phase: they learn to tell places apart, by a short convolution or by a layer that counts.

    python benchmarks/copying.py [--cores NAME ...] [--seeds 1] [--steps N] [--out FILE]

Cores measured earlier on the same task stay in the file. Source of the task: Arjovsky, Shah and Bengio (2016), "Unitary
evolution recurrent neural networks", section 4.1.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxprob import core, fit, learning
from jaxprob.models import sequence
from jaxprob.models.sequence import tasks

HERE = Path(__file__).resolve().parent
SYMBOLS, MEMORY, DELAY, BATCH, WIDTH = 8, 10, 20, 32, 64
# Phases all around the circle: pi n / 64 for the modes n = 0 ... 63 of S5.
STEP = 1 / 64
# Core, depth, peak of the learning rate, steps of training.
CORES = {
    "lru": (lambda: sequence.lru(WIDTH, state=128, radius_min=0.97, radius_max=0.999), 1, 4e-3, 3000),
    "s5": (lambda: sequence.s5(WIDTH, state=128, initialization="lin", step_min=STEP, step_max=STEP), 1, 4e-3, 3000),
    "mamba2": (lambda: sequence.mamba2(WIDTH, state=32, heads=4, chunk=20), 2, 4e-3, 6000),
    "min_gru": (lambda: sequence.min_gru(WIDTH, state=2 * WIDTH, horizon=40), 3, 2e-3, 16000),
}


def examples(key, number):
    """Of the copy task: inputs (number, time), and the ten symbols that are to be said."""
    draw = jax.vmap(lambda key: tasks.copy(key, symbols=SYMBOLS, memory=MEMORY, delay=DELAY))
    inputs, targets, _ = draw(jax.random.split(key, number))
    return inputs, targets[:, -MEMORY:]


def task_of(net, rate, steps):
    def init(key):
        return net.init(key, jnp.zeros(1, jnp.int32))

    def loss(params, batch, key):
        inputs, said = batch
        logits = jax.vmap(lambda xs: net.apply(params, xs)[0][-MEMORY:])(inputs)
        right = jnp.all(jnp.argmax(logits, -1) == said, 1)
        lost = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, said))
        return lost, {"right": jnp.mean(right.astype(jnp.float32))}

    def adam(peak):
        return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps))

    leaves = core.named_leaves(jax.eval_shape(init, jax.random.key(0)))
    slow = {"*decay_*": adam(rate / 4)} if any("decay_" in name for name, _ in leaves) else {}
    return learning.Task(init, loss, learning.by_path(slow, default=adam(rate)), max_gradient_norm=1.0)


def train(name, seed, steps=None):
    make, depth, rate, usual = CORES[name]
    steps = usual if steps is None else steps
    net = sequence.stack(make(), depth, SYMBOLS + 1, vocabulary=SYMBOLS + 2)
    task, began = task_of(net, rate, steps), time.perf_counter()
    data = learning.data.generated(lambda key: examples(key, BATCH), seed=seed)
    result = fit(task, data, key=jax.random.key(seed), steps=steps, log_every=max(1, steps // 20), progress=None)
    seconds = time.perf_counter() - began
    judge = jax.jit(lambda key: task.loss(result.params, examples(key, 2000), None)[1]["right"])
    return {
        "seed": seed,
        "held_out_right": float(judge(jax.random.key(9000 + seed))),
        "validation_right": float(judge(jax.random.key(1000 + seed))),
        "seconds": round(seconds, 1),
        "depth": depth,
        "rate": rate,
        "steps": result.step,
        "parameters": sum(x.size for x in jax.tree.leaves(result.params)),
        "right_in_training": [round(float(x), 3) for x in result.history["right"]],
        "loss": [round(float(x), 4) for x in result.history["loss"]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", nargs="+", default=list(CORES), choices=list(CORES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of training; by default as many as the core wants")
    parser.add_argument("--out", default=HERE / "results" / "copying.json", type=Path)
    args = parser.parse_args()
    rows = {}
    for name in args.cores:
        rows[name] = [train(name, seed, args.steps) for seed in range(args.seeds)]
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "task": {"symbols": SYMBOLS, "memory": MEMORY, "delay": DELAY, "batch": BATCH, "width": WIDTH},
    }
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    report["cores"] = (before["cores"] if before.get("task") == report["task"] else {}) | rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
