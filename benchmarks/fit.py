"""What `jaxprob.fit` costs over a training loop written by hand: the same model, steps and batches.

By hand: `jit` of a `lax.scan` over chunks of steps with `value_and_grad`, optax and a donated state, losses fetched
after each chunk, and nothing else; "with norm" computes and fetches the norm of the gradient as well. `fit` computes
that too, checks that all is finite, has a key for each step, looks at signals and writes `metrics.jsonl`. All are
compiled before the clock starts, and it stops before the checkpoint at the end.

All in one process, in turn; microseconds a step of each (medians), and the median of the ratios within a turn: of the
time on the wall, and of the processor's, which others on the machine disturb less.

    python benchmarks/fit.py [--seconds 2] [--repeats 9] [--out FILE]
"""

import argparse
import functools
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprob
from jaxprob import learning

HERE = Path(__file__).resolve().parent
CHUNK = 100
CASES = ((128, 64), (256, 128), (1024, 128))  # width, batch
QUANTILES = ("lower_quartile", "median", "upper_quartile")
HAND = {"by_hand": False, "by_hand_with_norm": True}


def init(width, key):
    keys = jax.random.split(key, 3)
    sizes = [(64, width), (width, width), (width, 10)]
    kernels = [jax.random.normal(k, s) / np.sqrt(s[0]) for k, s in zip(keys, sizes, strict=True)]
    return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]


def loss(params, batch, key=None):
    x, labels = batch
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def by_hand(optimizer, batch_of, norm):
    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(carry, source, first):
        def step(carry, index):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, batch_of(source, first + index))
            updates, state = optimizer.update(gradient, state, params)
            row = (value, optax.global_norm(gradient)) if norm else value
            return (optax.apply_updates(params, updates), state), row

        return jax.lax.scan(step, carry, jnp.arange(CHUNK))

    def run(params, source, steps):
        carry = jax.tree.map(jnp.copy, (params, optimizer.init(params)))
        rows = []
        for first in range(0, steps, CHUNK):
            carry, new = chunk(carry, source, first)
            rows.append(jax.tree.map(np.asarray, new))
        return carry, rows

    return run


def now():
    """Seconds on the wall, and of the processor in all threads."""
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    """The time from the first step to the last: `fit` tells its progress object of both."""

    def start(self, plan):
        self.began = None

    def phase(self, name):
        if name == "training" and self.began is None:
            self.began = now()

    def update(self, status):
        self.seconds = now() - self.began

    finish = close = lambda self, *_: None


def measure(width, batch_size, seconds, repeats):
    rng = np.random.default_rng(0)
    examples = (rng.normal(size=(4096, 64)).astype(np.float32), rng.integers(0, 10, 4096).astype(np.int32))
    source = learning.data.arrays(examples, batch_size)
    optimizer = optax.adam(1e-3)
    task = learning.Task(functools.partial(init, width), loss, optimizer)
    params = jax.jit(functools.partial(init, width))(jax.random.key(0))
    loops = {name: by_hand(optimizer, lambda s, step: s.batch(step), norm) for name, norm in HAND.items()}
    for _ in range(2):  # the second time it is compiled
        began = time.perf_counter()
        for loop in loops.values():
            loop(params, source, CHUNK)
        each = (time.perf_counter() - began) / len(loops) / CHUNK
    steps = CHUNK * max(round(seconds / each / CHUNK), 1)
    times = {name: [] for name in [*loops, "fit"]}
    for _ in range(repeats):
        for name, loop in loops.items():
            began = now()
            loop(params, source, steps)
            times[name].append((now() - began) / steps)
        folder, clock = tempfile.mkdtemp(), Clock()
        jaxprob.fit(task, source, steps=steps, devices=1, out=folder, progress=clock)
        times["fit"].append(clock.seconds / steps)
        shutil.rmtree(folder)
    times = {name: np.array(x) for name, x in times.items()}
    report = {"parameters": sum(x.size for x in jax.tree.leaves(params)), "batch": batch_size, "steps": steps}
    for column, kind in enumerate(("wall", "processor")):
        report[f"{kind}_us"] = {name: 1e6 * float(np.median(x[:, column])) for name, x in times.items()}
        for name in loops:
            ratio = times["fit"][:, column] / times[name][:, column]
            report[f"{kind}_fit_over_{name}"] = dict(zip(QUANTILES, np.quantile(ratio, [0.25, 0.5, 0.75]), strict=True))
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default=HERE / "results" / "fit.json", type=Path)
    args = parser.parse_args()
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "cases": [measure(*case, args.seconds, args.repeats) for case in CASES],
    }
    print(json.dumps(report, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
