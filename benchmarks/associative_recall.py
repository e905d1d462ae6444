"""Associative recall: which cores look up the value that a key was given last?

A sequence shows pairs of a key and its value; every key comes several times, each time with another value, in any
order. Then each key comes once more, and the value that it was given last is to be told. A memory that only adds holds
all values of a key alike; one that corrects itself holds the last. Two residual layers of each core, of equal width and
with the same short convolution, trained on fresh sequences for the same number of steps; accuracy is that on sequences
that were not trained on. Chance is one in the number of values.

    python benchmarks/associative_recall.py [--steps 600] [--seeds 1] [--keys 4] [--writes 3] [--cores NAME ...]

Cores measured earlier on the same task stay in the file.
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

from jaxprob import scan
from jaxprob.models import sequence

HERE = Path(__file__).resolve().parent
KEYS, VALUES = 16, 8


def cores(width, heads):
    share = {"heads": heads, "convolution": 4, "chunk": 32}
    return {
        "gated_delta_net": sequence.gated_delta_net(width, **share),
        "delta_net": sequence.gated_delta_net(width, gate=False, **share),
        "gated_linear_attention": sequence.gated_linear_attention(width, **share),
        "linear_attention": sequence.gated_linear_attention(width, gate=False, **share),
        "mamba2": sequence.mamba2(width, state=width // heads, heads=heads, chunk=32),
        "attention": sequence.attention(width, heads, context=64),
    }


def problem(key, keys, writes):
    """Tokens: key, value, key, value, ..., then the keys; and the values that answer them."""
    for_keys, for_values, for_order = jax.random.split(key, 3)
    chosen = jax.random.choice(for_keys, KEYS, (keys,), replace=False)
    # Each value once for a key, so that none of the old ones is right by chance.
    values = jax.vmap(lambda key: jax.random.permutation(key, VALUES)[:writes])(jax.random.split(for_values, keys))
    order = jax.random.permutation(for_order, keys * writes)
    which, time = order // writes, jnp.arange(keys * writes)
    last = jax.vmap(lambda one: jnp.max(jnp.where(which == one, time, -1)))(jnp.arange(keys))
    shown = values.reshape(-1)[order]
    pairs = jnp.stack([chosen[which], KEYS + shown], 1).reshape(-1)
    return jnp.concatenate([pairs, chosen]), shown[last]


def train(core, keys, writes, steps, batch, rate, seed):
    net = sequence.stack(core, depth=2, output=VALUES, vocabulary=KEYS + VALUES)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    )

    def logits(params, tokens):
        return jax.vmap(lambda xs: net.apply(params, xs)[0][-keys:])(tokens)

    def batches(key, number):
        return jax.vmap(lambda key: problem(key, keys, writes))(jax.random.split(key, number))

    def loss(params, key):
        tokens, answers = batches(key, batch)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens), answers))

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    for_init, for_steps, for_test = jax.random.split(jax.random.key(seed), 3)
    params = jax.jit(net.init)(for_init, problem(for_init, keys, writes)[0])
    run = jax.jit(lambda carry, keys: scan.scan(step, carry, keys))
    started, carry, losses = time.perf_counter(), (params, optimizer.init(params)), []
    for each in jax.random.split(for_steps, steps).reshape(-1, min(100, steps)):
        carry, values = run(carry, each)
        losses.append(round(float(values.mean()), 3))
    tokens, answers = batches(for_test, 1000)
    right = jnp.argmax(jax.jit(logits)(carry[0], tokens), -1) == answers
    return {
        "accuracy": float(right.mean()),
        "loss_of_100_steps": losses,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="a multiple of 100")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--writes", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cores", nargs="+")
    parser.add_argument("--out", default=HERE / "results" / "associative_recall.json", type=Path)
    args = parser.parse_args()
    found = cores(args.width, args.heads)
    rows = {}
    for name in args.cores or found:
        rows[name] = [
            train(found[name], args.keys, args.writes, args.steps, args.batch, args.rate, seed)
            for seed in range(args.seeds)
        ]
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "task": {"known_keys": KEYS, "values": VALUES, "chance": 1 / VALUES}
        | {name: getattr(args, name) for name in ("keys", "writes", "width", "heads", "steps", "batch", "rate")},
        "cores": rows,
    }
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    if before.get("task") == report["task"]:
        report["cores"] = before["cores"] | rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
