"""What the protocol of diffusion costs over loops written by hand, and beside torchcfm, on CPU.

- train: a training step of flow matching on batches of two-dimensional points (a perceptron of three hidden layers) and
  of a denoising model on 8 x 8 images (a small U-Net). By hand: the loss as its paper has it, on whole batches, in one
  jitted `lax.scan` of optax steps; ours: `diffusion.loss` in the same scan. torchcfm: its
  `ConditionalFlowMatcher`, the same perceptron in PyTorch, its Adam, eager as its examples are.
- sample: Euler's method with 50 steps. By hand: a jitted `lax.fori_loop` over whole batches; ours: `diffusion.sample`;
  PyTorch: the loop that its users write. Samples per second and evaluation of the network.

All in one process, in turn; medians over rounds, compile time apart; ratios are medians of those within a round.

    python benchmarks/diffusion.py [--rounds 15] [--parts train,sample] [--out FILE]

Results go to benchmarks/results/diffusion-DEVICE.json. Rows of torchcfm need it (`pip install torchcfm`, which brings
PyTorch Lightning) and are left out where it is not there.
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
from rich.console import Console
from rich.table import Table

from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

HERE = Path(__file__).resolve().parent
CHUNK, WIDTH, EULER_STEPS = 50, 128, 50
SIZES = (3, WIDTH, WIDTH, WIDTH, 2)


def perceptron(params, inputs):
    for layer in params[:-1]:
        inputs = jax.nn.silu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ params[-1]["kernel"] + params[-1]["bias"]


def init_perceptron(key):
    pairs = list(itertools.pairwise(SIZES))
    keys = jax.random.split(key, len(pairs))
    kernels = [jax.random.normal(k, pair) / np.sqrt(pair[0]) for k, pair in zip(keys, pairs, strict=True)]
    return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]


def one_point(params, x, t, condition):
    """As `diffusion` calls a denoiser: of one example."""
    return perceptron(params, jnp.concatenate([x, jnp.reshape(t, (1,)).astype(x.dtype)]))


def many_points(params, x, t):
    """The same of a batch, by hand."""
    return perceptron(params, jnp.concatenate([x, t[:, None]], 1))


def flow_by_hand(params, x, key):
    """Lipman et al. (2023): regress on the velocity of the line between noise and data, at even times."""
    for_noise, for_times = jax.random.split(key)
    noise = jax.random.normal(for_noise, x.shape)
    t = jax.random.uniform(for_times, (len(x),))
    moved = (1 - t[:, None]) * x + t[:, None] * noise
    return jnp.mean((many_points(params, moved, t) - (noise - x)) ** 2)


def denoising_by_hand(net, params, x, key):
    """Ho et al. (2020), with the cosine schedule: regress on the noise, at even times."""
    for_noise, for_times = jax.random.split(key)
    noise = jax.random.normal(for_noise, x.shape)
    t = jax.random.uniform(for_times, (len(x),))
    angle = (0.5 * jnp.pi * t).reshape(-1, *[1] * (x.ndim - 1))
    moved = jnp.cos(angle) * x + jnp.sin(angle) * noise
    return jnp.mean((jax.vmap(net.apply, (None, 0, 0))(params, moved, t) - noise) ** 2)


def chunk_of_steps(loss, optimizer):
    """CHUNK steps of a loss on one batch after the other, in one program."""

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(carry, batches, key):
        def step(carry, inputs):
            params, state = carry
            batch, index = inputs
            value, gradient = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(key, index))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, carry, (batches, jnp.arange(CHUNK)))

    return chunk


def torch_training(batches):
    """A function that runs CHUNK steps of torchcfm, or None without it."""
    try:
        import torch
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = torch_network(torch)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    rows = torch.tensor(np.array(batches))

    def run():
        for x1 in rows:
            optimizer.zero_grad()
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            torch.mean((net(torch.cat([xt, t[:, None]], 1)) - ut) ** 2).backward()
            optimizer.step()

    return run


def torch_network(torch):
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(SIZES)):
        layers += [torch.nn.Linear(n, m)] + ([torch.nn.SiLU()] if i < len(SIZES) - 2 else [])
    return torch.nn.Sequential(*layers)


def in_turn(calls, rounds, per):
    """Seconds of each call over `per`, (round,), after a first call whose excess is the compile time."""
    first, times = {}, {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            elapsed = time.perf_counter() - began
            if round_ == 0:
                first[name] = elapsed
            else:
                times[name].append(elapsed / per)
    times = {name: np.array(values) for name, values in times.items()}
    return times, {name: first[name] - per * float(np.median(values)) for name, values in times.items()}


def rows_of(part, case, times, compiled, unit, scale=1.0):
    reference = times["by hand"]
    return [
        {
            "part": part,
            "case": case,
            "who": name,
            unit: float(scale / np.median(values)),
            "time_over_by_hand": float(np.median(values / reference)),
            "compile_s": compiled[name],
        }
        for name, values in times.items()
    ]


def training(rounds):
    rows, optimizer = [], optax.adam(1e-3)
    rng = np.random.default_rng(0)
    for batch in (128, 1024):
        batches = jnp.asarray(rng.normal(size=(CHUNK, batch, 2)).astype(np.float32))
        losses = {"by hand": flow_by_hand, "jaxprob": diffusion.loss(diffusion.flow_matching(), one_point)}
        calls = {}
        for name, loss in losses.items():
            calls[name] = training_call(loss, optimizer, init_perceptron(jax.random.key(0)), batches)
        torch_run = torch_training(batches)
        if torch_run is not None:
            calls["torchcfm"] = torch_run
        times, compiled = in_turn(calls, rounds, CHUNK)
        rows += rows_of("train", f"perceptron, batch {batch}", times, compiled, "steps_per_s")
    net = diffusion.networks.unet(16)
    x = jnp.asarray(rng.normal(size=(CHUNK, 32, 8, 8)).astype(np.float32))
    params = net.init(jax.random.key(0), x[0, 0], jnp.float32(0.5))
    losses = {
        "by hand": functools.partial(denoising_by_hand, net),
        "jaxprob": diffusion.loss(diffusion.variance_preserving(), net.apply),
    }
    calls = {name: training_call(loss, optimizer, params, x) for name, loss in losses.items()}
    times, compiled = in_turn(calls, max(rounds // 3, 3), CHUNK)
    return rows + rows_of("train", "U-Net on 8 x 8 images, batch 32", times, compiled, "steps_per_s")


def training_call(loss, optimizer, params, batches):
    chunk = chunk_of_steps(loss, optimizer)
    carry = [jax.tree.map(jnp.copy, (params, optimizer.init(params)))]

    def call():
        carry[0], values = chunk(carry[0], batches, jax.random.key(1))
        return values

    return call


def drawing(rounds):
    rows, params = [], init_perceptron(jax.random.key(0))
    for count in (1000, 10_000):

        @jax.jit
        def by_hand(key, params, count=count):
            times = jnp.linspace(1.0, 0.0, EULER_STEPS + 1)

            def step(i, x):
                t = jnp.full((count,), times[i])
                return x + (times[i + 1] - times[i]) * many_points(params, x, t)

            return jax.lax.fori_loop(0, EULER_STEPS, step, jax.random.normal(key, (count, 2)))

        process, solver = diffusion.flow_matching(), sampling.euler(EULER_STEPS)

        def ours(process=process, solver=solver, count=count):
            denoiser = functools.partial(one_point, params)
            return sampling.sample(jax.random.key(0), process, denoiser, (count, 2), solver=solver)

        calls = {"by hand": lambda f=by_hand: f(jax.random.key(0), params), "jaxprob": ours}
        torch_run = torch_sampling(count)
        if torch_run is not None:
            calls["PyTorch loop"] = torch_run
        times, compiled = in_turn(calls, rounds, EULER_STEPS)
        rows += rows_of("sample", f"{count} points", times, compiled, "samples_per_s_and_evaluation", count)
    return rows


def torch_sampling(count):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, times = torch_network(torch), np.linspace(1.0, 0.0, EULER_STEPS + 1)

    def run():
        with torch.no_grad():
            x = torch.randn(count, 2)
            for t, s in itertools.pairwise(times):
                x = x + (s - t) * net(torch.cat([x, torch.full((count, 1), float(t))], 1))

    return run


PARTS = {"train": training, "sample": drawing}


def show(rows):
    table = Table("part", "case", "", "per second", "time / by hand", "compile s")
    for row in rows:
        rate = row.get("steps_per_s", row.get("samples_per_s_and_evaluation"))
        ratio, compiled = f"{row['time_over_by_hand']:.3f}", f"{row['compile_s']:.2f}"
        table.add_row(row["part"], row["case"], row["who"], f"{rate:,.0f}", ratio, compiled)
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or HERE / "results" / f"diffusion-{jax.devices()[0].device_kind.lower().replace(' ', '-')}.json"
    parts = args.parts.split(",")
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for part in parts:
        new = PARTS[part](args.rounds)
        show(new)
        rows = [row for row in rows if row["part"] != part] + new
    cores = len(os.sched_getaffinity(0))
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{cores} of {os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "optax", "flax")},
        "rounds": args.rounds,
        "rows": rows,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
