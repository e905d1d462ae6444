"""Associative recall: which cores look up the value that a key was given last?

A sequence shows pairs of a key and its value; every key comes several times, each time with another value, in any
order. Then each key comes once more, and the value that it was given last is to be told. A memory that only adds holds
all values of a key alike; one that corrects itself holds the last. Two residual layers of each core, of equal width and
with the same short convolution, trained on fresh sequences for the same number of steps; accuracy is that on sequences
that were not trained on. Chance is one in the number of values.

With `--length` the questions come at random places of what is left of a sequence of that length, with an idle token in
between. That is for the forms of linear attention without a norm: what is read from the sums of keys and values is
divided by the sum of the weights (`divided_by_weights`, the usual form, with positive features), or by a number
that the input alone gives (`divided_by_input`), where they need not be (`divided_by_input_signed`). States are equal.

    python benchmarks/associative_recall.py [--steps 600] [--seeds 1] [--keys 4] [--writes 3] [--cores NAME ...]
    python benchmarks/associative_recall.py --keys 8 --writes 1 --length 64 --steps 2000 --seeds 3 --rate 3e-3 \
      --heads 16 --cores divided_by_weights divided_by_input divided_by_input_signed \
      --out benchmarks/results/multi_query_recall.json

With two heads of 16 positive features both divisions solve the task; with 16 heads of two, memory is what is short. At
the rate of 1e-2 the forms that are divided by the input may never begin to learn.

Cores measured earlier on the same task stay in the file.

Source of the forms: Sieber et al. (2024), "Understanding the differences in foundation models".
"""

import argparse
import functools
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxprob import scan
from jaxprob.models import sequence

HERE = Path(__file__).resolve().parent
TASK = ("values", "keys", "writes", "width", "heads", "steps", "batch", "rate")


class Task(NamedTuple):
    """Keys and values that there are; keys of a sequence, how often each is written, and the length if it is given."""

    known: int
    values: int
    keys: int
    writes: int
    length: int | None

    @property
    def vocabulary(self):
        return self.known + self.values + (self.length is not None)  # with a token for idle times, the last


LinearAttention = type(sequence.gated_linear_attention(4))


class Divided(LinearAttention):
    """Linear attention, divided, and with no norm that would divide it once more; features are positive unless told.

    The sum of the weights is not in the state: for whole sequences from zero only.
    """

    by_input: bool = False
    positive: bool = True

    def setup(self):
        super().setup()
        self.norm = lambda ys: ys
        if self.by_input:
            self.divisor = nn.Dense(self.heads)

    def recur(self, xs, queries, keys, values, memory, reset, method):
        if self.positive:
            queries, keys = jax.nn.elu(queries) + 1, jax.nn.elu(keys) + 1
        attend = functools.partial(sequence.linear_attention, reset=reset, chunk=self.chunk, method=method)
        ys, memory = attend(queries, keys, values, None, memory)
        if self.by_input:
            return ys * jnp.exp(-self.divisor(xs))[..., None], memory
        weights, _ = attend(queries, keys, jnp.ones((*keys.shape[:2], 1)))
        return ys / weights, memory


def cores(width, heads):
    share = {"heads": heads, "convolution": 4, "chunk": 32}
    size = {"key_width": width // heads, "value_width": width // heads}
    return {
        "divided_by_weights": Divided(width, gate=False, **size, **share),
        "divided_by_input": Divided(width, gate=False, by_input=True, **size, **share),
        "divided_by_input_signed": Divided(width, gate=False, by_input=True, positive=False, **size, **share),
        "gated_delta_net": sequence.gated_delta_net(width, **share),
        "delta_net": sequence.gated_delta_net(width, gate=False, **share),
        "gated_linear_attention": sequence.gated_linear_attention(width, **share),
        "linear_attention": sequence.gated_linear_attention(width, gate=False, **share),
        "mamba2": sequence.mamba2(width, state=width // heads, heads=heads, chunk=32),
        "attention": sequence.attention(width, heads, context=64),
    }


def problem(key, task):
    """Tokens: key, value, key, value, ..., then the keys; the places of these; and the values that answer them."""
    known, number, keys, writes, length = task
    for_keys, for_values, for_order = jax.random.split(key, 3)
    chosen = jax.random.choice(for_keys, known, (keys,), replace=False)
    # Each value once for a key, so that none of the old ones is right by chance.
    values = jax.vmap(lambda key: jax.random.permutation(key, number)[:writes])(jax.random.split(for_values, keys))
    order = jax.random.permutation(for_order, keys * writes)
    which, time = order // writes, jnp.arange(keys * writes)
    last = jax.vmap(lambda one: jnp.max(jnp.where(which == one, time, -1)))(jnp.arange(keys))
    shown = values.reshape(-1)[order]
    pairs = jnp.stack([chosen[which], known + shown], 1).reshape(-1)
    if length is None:
        return jnp.concatenate([pairs, chosen]), len(pairs) + jnp.arange(keys), shown[last]
    rest = length - len(pairs)
    free = jax.random.choice(jax.random.fold_in(for_order, 1), rest, (keys,), replace=False)
    asked = jnp.full(rest, known + number).at[free].set(chosen)
    return jnp.concatenate([pairs, asked]), len(pairs) + free, shown[last]


def train(core, task, steps, batch, rate, seed):
    net = sequence.stack(core, depth=2, output=task.values, vocabulary=task.vocabulary)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    )

    def logits(params, tokens, places):
        return jax.vmap(lambda xs, places: net.apply(params, xs)[0][places])(tokens, places)

    def batches(key, number):
        return jax.vmap(lambda key: problem(key, task))(jax.random.split(key, number))

    def loss(params, key):
        tokens, places, answers = batches(key, batch)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens, places), answers))

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    for_init, for_steps, for_test = jax.random.split(jax.random.key(seed), 3)
    params = jax.jit(net.init)(for_init, problem(for_init, task)[0])
    run = jax.jit(lambda carry, keys: scan.scan(step, carry, keys))
    started, carry, losses = time.perf_counter(), (params, optimizer.init(params)), []
    for each in jax.random.split(for_steps, steps).reshape(-1, min(100, steps)):
        carry, values = run(carry, each)
        losses.append(round(float(values.mean()), 3))
    tokens, places, answers = batches(for_test, 1000)
    right = jnp.argmax(jax.jit(logits)(carry[0], tokens, places), -1) == answers
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
    parser.add_argument("--known", type=int, default=16, help="keys that there are")
    parser.add_argument("--values", type=int, default=8, help="values that there are")
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--writes", type=int, default=3)
    parser.add_argument("--length", type=int, help="of a sequence; by default the questions follow at once")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cores", nargs="+")
    parser.add_argument("--out", default=HERE / "results" / "associative_recall.json", type=Path)
    args = parser.parse_args()
    found, task = cores(args.width, args.heads), Task(args.known, args.values, args.keys, args.writes, args.length)
    rows = {}
    usual = [name for name in found if not name.startswith("divided")]
    for name in args.cores or usual:
        rows[name] = [train(found[name], task, args.steps, args.batch, args.rate, seed) for seed in range(args.seeds)]
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "task": {"known_keys": args.known, "chance": 1 / args.values}
        | {name: getattr(args, name) for name in TASK}
        | ({} if args.length is None else {"length": args.length}),
        "cores": rows,
    }
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    if before.get("task") == report["task"]:
        report["cores"] = before["cores"] | rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
