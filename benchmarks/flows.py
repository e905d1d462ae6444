"""Flows: a training step beside flowjax's on CPU, and what they reach on two moons and on images of digits.

All in one process, in turn; run times are medians over rounds, compile times (tracing included) those of the first
call less the median. The parts:

- step: one step of Adam on the negative log likelihood of a coupling flow with rational-quadratic splines, 6 layers
  with networks of two layers of 64 relu units, 8 bins on [-4, 4]. Both are measured as the same plain `jax.jit` of an
  optax step, and as their users run them: flowjax by its own `step`, under `eqx.filter_jit`, ours by chunks of steps
  in one program that draws its batches, as `jaxprob.fit` does. The numbers of parameters differ by the slopes at the
  ends, which flowjax's conditioner gives as well;
- depth: compile time and size of the program of our step with 2 and with 32 layers;
- moons: `make_moons(4000, noise=0.1, random_state=0)`, the first 3,200 points to train and the other 800 to test; both
  flows, the same batches, the same optimiser; a Gaussian with full covariance and a mixture of 10 Gaussians beside;
- digits: the 8 x 8 digits of scikit-learn with uniform noise that makes them continuous, bits a dimension of 360 test
  images of 1,797; a Gaussian with full covariance beside, of pixels and of their logits.

    python benchmarks/flows.py [--rounds 100] [--parts step,depth,moons,digits] [--out FILE]

The results go to benchmarks/results/flows-DEVICE.json by default; parts that are not run stay as they are there. Needs
flowjax (dependency group peers) and scikit-learn (extra examples).
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.train.losses import MaximumLikelihoodLoss
from flowjax.train.train_utils import step as flowjax_step
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits, make_moons
from sklearn.mixture import GaussianMixture

from jaxprob import scan
from jaxprob.distributions import flows

HERE = Path(__file__).resolve().parent
LAYERS, WIDTH, BINS, INTERVAL = 6, 64, 8, 4.0
BATCH, STEPS, RATE, CHUNK = 256, 1500, 2e-3, 100


def ours(key, layers=LAYERS):
    return flows.spline_coupling(layers, (WIDTH, WIDTH), BINS, INTERVAL).init(key, 2)


def theirs(key):
    flow = coupling_flow(
        key,
        base_dist=Normal(jnp.zeros(2)),
        transformer=RationalQuadraticSpline(knots=BINS - 1, interval=INTERVAL),  # inner knots
        flow_layers=LAYERS,
        nn_width=WIDTH,
        nn_depth=2,
    )
    is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_fixed)


def plain_step(optimizer, loss):
    @jax.jit
    def step(parameters, state, *batch):
        value, gradient = jax.value_and_grad(loss)(parameters, *batch)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return step


def our_loss(flow, x):
    return -jnp.mean(flow.log_prob(x))


def contestants(optimizer):
    """By name: a step `(parameters, state, x)`, the first parameters, and the log density of each point."""
    flow = ours(jax.random.key(0))
    parameters, static = theirs(jax.random.key(0))
    loss = MaximumLikelihoodLoss()

    def users_step(parameters, state, x):
        return flowjax_step(parameters, static, x, optimizer=optimizer, opt_state=state, loss_fn=loss)

    def log_prob(parameters, x):
        return paramax.unwrap(eqx.combine(parameters, static)).log_prob(x)

    def their_loss(parameters, x):
        return -jnp.mean(log_prob(parameters, x))

    return {
        "jaxprob": (plain_step(optimizer, our_loss), flow, lambda flow, x: flow.log_prob(x)),
        "flowjax, its own step": (users_step, parameters, log_prob),
        "flowjax, plain jit": (plain_step(optimizer, their_loss), parameters, log_prob),
    }


def chunk_of_steps(optimizer, data, batch):
    """CHUNK steps in one program, on rows of the data drawn at random: `(parameters, state, key) -> ...`."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def chunk(parameters, state, key):
        def step(index, carry):
            rows = jax.random.randint(jax.random.fold_in(key, index), (batch,), 0, len(data))
            gradient = jax.grad(our_loss)(carry[0], data[rows])
            updates, state = optimizer.update(gradient, carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        return scan.repeat(lambda carry, index: step(index, carry), (parameters, state), CHUNK)

    return chunk


def step_part(rounds, console):
    optimizer, rows = optax.adam(RATE), []
    for batch in (100, 256, 1024):
        x = jax.random.normal(jax.random.key(1), (batch, 2))
        states, calls = {}, {}
        for name, (step, parameters, _) in contestants(optimizer).items():
            states[name] = (parameters, optimizer.init(parameters))
            calls[name] = lambda parameters, state, step=step, x=x: step(parameters, state, x)[:2]
        flow = ours(jax.random.key(0))
        states["jaxprob, in chunks"] = (flow, optimizer.init(flow))
        chunk = chunk_of_steps(optimizer, jax.random.normal(jax.random.key(2), (4000, 2)), batch)
        calls["jaxprob, in chunks"] = lambda parameters, state, chunk=chunk: chunk(parameters, state, jax.random.key(0))
        first, runs = {}, {name: [] for name in calls}
        for round_ in range(rounds + 1):
            for name, call in calls.items():
                chunked = name == "jaxprob, in chunks"
                if chunked and round_ % 10:
                    continue
                # The second of two: the first has the caches of another program.
                for again in range(1 if chunked else 2):
                    began = time.perf_counter()
                    states[name] = jax.block_until_ready(call(*states[name]))
                    seconds = (time.perf_counter() - began) / (CHUNK if chunked else 1)
                    if round_ == again == 0:
                        first[name] = seconds * (CHUNK if chunked else 1)
                if round_:
                    runs[name].append(seconds)
        medians = {name: statistics.median(times) for name, times in runs.items()}
        for name, median in medians.items():
            rows.append(
                {
                    "batch": batch,
                    "flow": name,
                    "parameters": sum(leaf.size for leaf in jax.tree.leaves(states[name][0])),
                    "step_ms": 1e3 * median,
                    "of_our_step": median / medians["jaxprob"],
                    "of_our_chunks": median / medians["jaxprob, in chunks"],
                    "compile_s": first[name] - median * (CHUNK if "chunks" in name else 1),
                }
            )
    show(console, "A training step", rows)
    return rows


def depth_part(rounds, console):
    rows = []
    for layers in (2, 32):
        optimizer = optax.adam(RATE)
        flow = ours(jax.random.key(0), layers)
        step = plain_step(optimizer, our_loss)
        began = time.perf_counter()
        compiled = step.lower(flow, optimizer.init(flow), jnp.zeros((BATCH, 2))).compile()
        rows.append(
            {
                "layers": layers,
                "compile_s": time.perf_counter() - began,
                "hlo_instructions": sum(" = " in line for line in compiled.as_text().splitlines()),
            }
        )
    show(console, "Compiling a step", rows)
    return rows


def moons_part(rounds, console):
    points = make_moons(4000, noise=0.1, random_state=0)[0].astype(np.float32)
    train, test = points[:3200], points[3200:]
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    rows = []
    for name, (step, parameters, log_prob) in contestants(optimizer).items():
        state, rng = optimizer.init(parameters), np.random.default_rng(0)
        began = time.perf_counter()
        for _ in range(STEPS):
            parameters, state, value = step(parameters, state, train[rng.integers(len(train), size=BATCH)])
        jax.block_until_ready(value)
        seconds = time.perf_counter() - began
        found = [-float(jnp.mean(jax.jit(log_prob)(parameters, part))) for part in (train, test)]
        rows.append({"model": name, "train_nll": found[0], "test_nll": found[1], "seconds": seconds})
    gaussian = GaussianMixture(1, random_state=0).fit(train)
    mixture = GaussianMixture(10, n_init=5, random_state=0).fit(train)
    for name, model in (("Gaussian", gaussian), ("mixture of 10 Gaussians", mixture)):
        rows.append({"model": name, "train_nll": -model.score(train), "test_nll": -model.score(test)})
    show(console, "Two moons", rows)
    return rows


def digits_part(rounds, console):
    images = load_digits().images.astype(np.float32)[np.random.default_rng(0).permutation(1797)]
    train, test = images[:1437, ..., None], images[1437:, ..., None]

    def logits(grey, noise):
        """Logits of grey levels in (0, 1) and the log-determinant, levels of 0 to 17 taken as lengths of 1."""
        inner = 0.01 + 0.98 * (grey + noise) / 17
        z = jnp.log(inner) - jnp.log1p(-inner)
        return z, jnp.sum(np.log(0.98 / 17) - jnp.log(inner) - jnp.log1p(-inner), axis=(1, 2, 3))

    z = np.concatenate([logits(train, jax.random.uniform(jax.random.key(i), train.shape))[0] for i in range(10)])
    center, scale = z.mean(axis=0), z.std(axis=0)

    def density(shape, flow, grey, noise):
        z, log_det = logits(grey, noise)
        return flow.log_prob(((z - center) / scale).reshape(-1, *shape)) + log_det - np.log(scale).sum()

    noises = jax.random.uniform(jax.random.key(99), (10, *test.shape))

    def bits(log_probs):
        return float(-np.mean(log_probs) / (64 * np.log(2)))

    rows = []
    models = {
        "glow(2, 4, 32)": (flows.glow(2, 4, 32), (8, 8, 1)),
        "affine_coupling(8, (128, 128))": (flows.affine_coupling(8, (128, 128)), (64,)),
    }
    for name, (architecture, shape) in models.items():
        flow, log_prob = architecture.init(jax.random.key(0), shape), functools.partial(density, shape)

        def loss(flow, grey, key, log_prob=log_prob):
            return -jnp.mean(log_prob(flow, grey, jax.random.uniform(key, grey.shape)))

        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
        step, state = plain_step(optimizer, loss), optimizer.init(flow)
        rng, began = np.random.default_rng(0), time.perf_counter()
        for i in range(STEPS):
            flow, state, _ = step(flow, state, train[rng.integers(len(train), size=128)], jax.random.key(i))
        jax.block_until_ready(flow)
        seconds, log_prob = time.perf_counter() - began, jax.jit(log_prob)
        found = {
            "train_bits": bits(log_prob(flow, train, jax.random.uniform(jax.random.key(98), train.shape))),
            "test_bits": bits([log_prob(flow, test, noise) for noise in noises]),
        }
        rows.append({"model": name, **found, "seconds": seconds})
    pixels = np.concatenate([train] * 10).reshape(-1, 64) + np.random.default_rng(1).uniform(size=(14370, 64))
    gaussian = GaussianMixture(1).fit(pixels)
    found = [gaussian.score_samples((test + np.asarray(noise)).reshape(-1, 64)) for noise in noises]
    rows.append({"model": "Gaussian of pixels", "test_bits": bits(found)})
    gaussian = GaussianMixture(1).fit(((z - center) / scale).reshape(-1, 64))
    found = []
    for noise in noises:
        z, log_det = logits(test, noise)
        rows_of_z = ((np.asarray(z) - center) / scale).reshape(-1, 64)
        found.append(gaussian.score_samples(rows_of_z) + np.asarray(log_det) - np.log(scale).sum())
    rows.append({"model": "Gaussian of logits", "test_bits": bits(found)})
    show(console, "Digits", rows)
    return rows


def show(console, title, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title=title)
    for row in rows:
        values = [row.get(name, "") for name in columns]
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    console.print(table)


PARTS = {"step": step_part, "depth": depth_part, "moons": moons_part, "digits": digits_part}


def main():
    device = "cpu" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind.lower().replace(" ", "-")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", default=HERE / "results" / f"flows-{device}.json", type=Path)
    options = parser.parse_args()
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flowjax", "optax", "scikit-learn")},
        "rounds": {},
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        if all(earlier[name] == report[name] for name in ("device", "versions")):
            report = {**earlier, "machine": report["machine"]}
    console = Console(width=120)
    for name in options.parts.split(","):
        report[name] = PARTS[name](options.rounds, console)
        report["rounds"][name] = options.rounds
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
