"""Sequence cores by length: forward, gradient and step, beside `lax.scan`, `lax.associative_scan` and PyTorch.

Everything runs in one process. What is compared runs in turns, round after round; run times are medians, compile times
(tracing included) those of the first call less the median. The parts:

- cores: tokens a second of every core, forward and with the gradient of all parameters; S5, LRU and GRU beside the same
  recurrence written out with `lax.scan`, S5 and LRU also with `lax.associative_scan`, GRU and LSTM beside PyTorch's,
  and the others with a loop beside their steps one after another. All have the same parameters, and outputs are equal;
- step: microseconds of one `step` of a batch, called from Python, and of one inside a loop that is compiled;
- training: a step of Adam of a stack of two S5 blocks, beside the same stack whose states come from
  `lax.associative_scan` over (A, B u) in complex64, as in the published S5, or from `lax.scan`: in a loop of 8 steps
  that is one program, as `jaxprob.fit` trains, and alone, when each call asks the system for its memory again;
- latency: a token's time after 128 and after 4,096 others, for Aaren and for attention with its cache;
- newton: parallel GRU and LSTM by Newton's method beside the same step by step, forward and gradient.

    python benchmarks/sequence.py [--rounds 5] [--parts cores,training,...] [--cores s5,gru,...] [--gpu] [--out FILE]
    python benchmarks/sequence.py --table [--out FILE]

`--gpu` takes lengths for an accelerator. The results go to benchmarks/results/sequence-DEVICE.json by default; parts
and cores that are not run stay as they are there. `--table` prints what is there as Markdown.

Source of the reference: Smith, Warrington and Linderman (2023), "Simplified state space layers for sequence modeling",
appendix A.
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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprob.models import sequence

HERE = Path(__file__).resolve().parent
WIDTH, STATE = 64, 64
STEPS = 8  # of training in one loop
ON_CPU = {"lengths": (128, 1024, 8192), "batch": 16, "newton": (1024,), "training": (1024, 8192)}
ON_GPU = {"lengths": (2048, 8192, 65536), "batch": 16, "newton": (2048, 8192, 65536), "training": (2048, 8192, 65536)}
# States of these are so large that the gradient of a loop, which keeps them all, is for short sequences only.
LARGE = {"mamba2", "gated_linear_attention", "gated_delta_net"}
LONGEST_LOOP = 1024

S5, LRU, GRU = (type(make(2)) for make in (sequence.s5, sequence.lru, sequence.gru))


def diagonal_run(states_of, core, xs, state, reset, deterministic):
    """S5 and LRU from zero with complex matrices, as published; `states_of` of (time, modes) decays and inputs."""
    decay, gain = core.system(jnp.float32)
    factor = jnp.exp(lax.complex(decay.log_modulus, decay.phase))
    into = lax.complex(gain.real, gain.imaginary)[:, None] * lax.complex(core.input_real, core.input_imaginary)
    out = lax.complex(core.output_real, core.output_imaginary)
    states = states_of(jnp.broadcast_to(factor, (len(xs), len(factor))), jax.vmap(lambda u: into @ u)(xs))
    return core.multiple * jax.vmap(lambda x: (out @ x).real)(states) + core.skip * xs, state


def by_associative_scan(decays, inputs):
    def combine(before, after):
        return after[0] * before[0], after[0] * before[1] + after[1]

    return lax.associative_scan(combine, (decays, inputs))[1]


def by_scan(decays, inputs):
    def step(state, x):
        state = decays[0] * state + x
        return state, state

    return lax.scan(step, jnp.zeros_like(inputs[0]), inputs)[1]


class AssociativeS5(S5):
    run = functools.partialmethod(
        lambda self, states_of, *args: diagonal_run(states_of, self, *args), by_associative_scan
    )


class ScannedS5(S5):
    run = functools.partialmethod(lambda self, states_of, *args: diagonal_run(states_of, self, *args), by_scan)


class AssociativeLRU(LRU):
    run = functools.partialmethod(
        lambda self, states_of, *args: diagonal_run(states_of, self, *args), by_associative_scan
    )


class ScannedLRU(LRU):
    run = functools.partialmethod(lambda self, states_of, *args: diagonal_run(states_of, self, *args), by_scan)


class ScannedGRU(GRU):
    """Both products inside the loop, gate by gate."""

    def run(self, xs, state, reset, deterministic):
        into = self.inward.variables["params"]
        (wr, wz, wn), (br, bz, bn) = (jnp.split(into[name], 3, -1) for name in ("kernel", "bias"))
        ur, uz, un = jnp.split(self.recurrent, 3, -1)

        def step(h, x):
            reset = jax.nn.sigmoid(x @ wr + br + h @ ur)
            keep = jax.nn.sigmoid(x @ wz + bz + h @ uz)
            h = (1 - keep) * jnp.tanh(x @ wn + bn + reset * (h @ un + self.candidate_bias)) + keep * h
            return h, h

        final, ys = lax.scan(step, state, xs)
        return ys, final


def cores(length):
    """The cores of the benchmark and their configuration."""
    return {
        "s4d": sequence.s4d(WIDTH, state=STATE),
        "s5": sequence.s5(WIDTH, state=STATE),
        "lru": sequence.lru(WIDTH, state=STATE),
        "mamba2": sequence.mamba2(WIDTH, state=STATE),
        "min_gru": sequence.min_gru(WIDTH),
        "min_lstm": sequence.min_lstm(WIDTH),
        "gated_linear_attention": sequence.gated_linear_attention(WIDTH),
        "gated_delta_net": sequence.gated_delta_net(WIDTH),
        "aaren": sequence.aaren(WIDTH),
        "attention": sequence.attention(WIDTH, context=min(length, 1024)),
        "elman": sequence.elman(WIDTH),
        "gru": sequence.gru(WIDTH),
        "lstm": sequence.lstm(WIDTH),
        "para_gru": sequence.para_gru(WIDTH),
        "para_lstm": sequence.para_lstm(WIDTH),
    }


def forward_of(core):
    return jax.vmap(lambda params, xs: core.apply(params, xs)[0], in_axes=(None, 0))


def step_by_step(core):
    """The steps of a core, one after another in `lax.scan`, all sequences side by side."""

    def run(params, xs):
        def step(state, x):
            y, state = core.apply(params, x, state, method="step")
            return state, y

        return lax.scan(step, core.initial_state(), xs)[1]

    return jax.vmap(run, in_axes=(None, 0))


def references(name, core):
    """Other programs of the same function of the same parameters."""
    like = {"s5": (AssociativeS5, ScannedS5), "lru": (AssociativeLRU, ScannedLRU), "gru": (ScannedGRU,)}
    found = {}
    for kind in like.get(name, ()):
        other = kind(**{f: getattr(core, f) for f in core.__dataclass_fields__ if f not in ("parent", "name")})
        found["lax.associative_scan" if "Associative" in kind.__name__ else "lax.scan"] = forward_of(other)
    if not found and name != "attention":
        found["steps in lax.scan"] = step_by_step(core)
    return found


def gradient_of(forward):
    def loss(params, xs):
        return jnp.mean(forward(params, xs) ** 2)

    return jax.value_and_grad(loss)


class Torch:
    """PyTorch's GRU or LSTM with the weights of a core, and the same loss."""

    def __init__(self, name, params, xs):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.module = torch, getattr(torch.nn, name.upper())(WIDTH, WIDTH, batch_first=True)
        p = params["params"]
        other = np.zeros(p["inward"]["bias"].shape, np.float32)
        if name == "gru":
            other[2 * WIDTH :] = p["candidate_bias"]
        weights = {
            "weight_ih_l0": p["inward"]["kernel"].T,
            "weight_hh_l0": p["recurrent"].T,
            "bias_ih_l0": p["inward"]["bias"],
            "bias_hh_l0": other,
        }
        self.module.load_state_dict({key: torch.tensor(np.array(value)) for key, value in weights.items()})
        self.xs = torch.tensor(np.array(xs))

    def forward(self, *_):
        with self.torch.no_grad():
            return self.module(self.xs)[0].numpy()

    def gradient(self, *_):
        self.module.zero_grad()
        self.module(self.xs)[0].square().mean().backward()
        return self.module.weight_ih_l0.grad.T.numpy()


def alternate(programs, args, rounds):
    """(compile seconds, run seconds) by name: the programs in turn, round after round."""
    first, runs, calls = {}, {name: [] for name in programs}, {}
    for name, program in programs.items():
        first[name] = seconds(program, args, 1)
        # Short programs are called several times a round, so that the clock is no part of what it measures.
        calls[name] = max(1, min(50, int(5e-3 / seconds(program, args, 1))))
    for _ in range(rounds):
        for name, program in programs.items():
            runs[name].append(seconds(program, args, calls[name]))
    found = {name: statistics.median(times) for name, times in runs.items()}
    return {name: (max(0.0, first[name] - found[name]), found[name]) for name in programs}


def seconds(program, args, calls):
    began = time.perf_counter()
    for _ in range(calls):
        result = program(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def assert_equal(programs, args, tolerance, what):
    found = {name: [np.asarray(x) for x in jax.tree.leaves(program(*args))] for name, program in programs.items()}
    reference = found.pop("jaxprob")
    for name, leaves in found.items():
        for x, y in zip(leaves, reference, strict=True):
            error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-6)
            assert error < tolerance, (what, name, error)


def data(length, batch):
    return jax.random.normal(jax.random.key(1), (batch, length, WIDTH))


def cores_part(sizes, rounds, only):
    rows = []
    for length in sizes["lengths"]:
        xs = data(length, sizes["batch"])
        for name, core in cores(length).items():
            if name not in only:
                continue
            params = jax.jit(core.init)(jax.random.key(0), xs[0])
            forward = {"jaxprob": forward_of(core)} | references(name, core)
            # An infinitely long sum of small errors: the parameters' gradients are compared by the tests.
            gradient = {
                other: jax.jit(gradient_of(function))
                for other, function in forward.items()
                if length <= LONGEST_LOOP or other == "jaxprob" or name not in LARGE
            }
            forward = {other: jax.jit(function) for other, function in forward.items()}
            if name in ("gru", "lstm") and jax.default_backend() == "cpu":
                torch = Torch(name, params, xs)
                forward["PyTorch"], gradient["PyTorch"] = torch.forward, torch.gradient
                theirs, ours = torch.gradient(), gradient["jaxprob"](params, xs)[1]["params"]["inward"]["kernel"]
                assert np.abs(theirs - ours).max() < 1e-3 * np.abs(theirs).max(), name
            times = {"forward": alternate(forward, (params, xs), rounds)}
            assert_equal(forward, (params, xs), 1e-4, (name, length))
            times["gradient"] = alternate(gradient, (params, xs), rounds)
            for other in forward:
                row = {"core": name, "length": length, "batch": len(xs), "program": other}
                for kind, found in times.items():
                    if other in found:
                        row[f"{kind}_ms"] = 1e3 * found[other][1]
                        row[f"{kind}_tokens_per_s"] = xs.shape[0] * length / found[other][1]
                        row[f"{kind}_speedup"] = found[other][1] / found["jaxprob"][1]
                        if other != "PyTorch":
                            row[f"{kind}_compile_s"] = found[other][0]
                rows.append(row)
                print(
                    f"{name:22} T={length:<6} {other:21} "
                    + "  ".join(
                        f"{kind} {row[f'{kind}_ms']:9.2f} ms ({row[f'{kind}_tokens_per_s']:.3g} tokens/s, "
                        f"jaxprob {row[f'{kind}_speedup']:.2f} times as fast)"
                        for kind in times
                        if f"{kind}_ms" in row
                    ),
                    flush=True,
                )
    return rows


def steps_program(core, count):
    def run(params, xs, state):
        def step(state, x):
            y, state = jax.vmap(lambda x, s: core.apply(params, x, s, method="step"))(x, state)
            return state, y

        return lax.scan(step, state, xs[:count])

    return run


def step_part(sizes, rounds, only):
    rows, batch, count = [], sizes["batch"], 256
    for name, core in cores(1024).items():
        if name not in only:
            continue
        xs = data(count, batch)
        params = jax.jit(core.init)(jax.random.key(0), xs[0])
        state = jax.tree.map(lambda x: jnp.repeat(x[None], batch, 0), core.initial_state())
        one = jax.jit(jax.vmap(lambda p, x, s, core=core: core.apply(p, x, s, method="step"), in_axes=(None, 0, 0)))
        found = alternate({"called": one}, (params, xs[:, 0], state), rounds)
        inside = jax.jit(steps_program(core, count))
        compiled = alternate({"inside": inside}, (params, jnp.swapaxes(xs, 0, 1), state), rounds)
        row = {
            "core": name,
            "batch": batch,
            "called_us": 1e6 * found["called"][1],
            "called_tokens_per_s": batch / found["called"][1],
            "inside_us": 1e6 * compiled["inside"][1] / count,
            "inside_tokens_per_s": batch * count / compiled["inside"][1],
            "compile_s": found["called"][0],
        }
        rows.append(row)
        print(
            f"{name:22} step {row['called_us']:8.1f} us from Python, {row['inside_us']:8.2f} us in a loop "
            f"({row['inside_tokens_per_s']:.3g} tokens/s)",
            flush=True,
        )
    return rows


def training_part(sizes, rounds):
    core = sequence.s5(WIDTH, state=STATE)
    fields = {f: getattr(core, f) for f in core.__dataclass_fields__ if f not in ("parent", "name")}
    kinds = {"jaxprob": core, "lax.associative_scan": AssociativeS5(**fields), "lax.scan": ScannedS5(**fields)}
    optimizer, rows = optax.adam(1e-3), []

    def program(core):
        net = sequence.stack(core, depth=2)
        forward = forward_of(net)

        def step(params, state, xs, targets):
            def loss(params):
                return jnp.mean((forward(params, xs) - targets) ** 2)

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        def steps(params, state, xs, targets):
            def body(carry, batch):
                *carry, value = step(*carry, *batch)
                return tuple(carry), value

            (params, state), values = lax.scan(body, (params, state), (xs, targets))
            return params, state, values

        return net, jax.jit(forward), jax.jit(step), jax.jit(steps)

    made = {name: program(core) for name, core in kinds.items()}
    for length in sizes["training"]:
        xs = data(length, STEPS * sizes["batch"])
        batches = xs.reshape(STEPS, sizes["batch"], *xs.shape[1:])
        xs = batches[0]
        params = jax.jit(made["jaxprob"][0].init)(jax.random.key(0), xs[0])
        state = optimizer.init(params)
        args = {
            "loop": (params, state, batches, jnp.roll(batches, 1, 2)),
            "alone": (params, state, xs, jnp.roll(xs, 1, 1)),
        }
        assert_equal({name: x[1] for name, x in made.items()}, (params, xs), 1e-4, ("training", length))
        found = {name: {"length": length, "batch": len(xs), "program": name} for name in made}
        for kind, which, steps in (("loop", 3, STEPS), ("alone", 2, 1)):
            times = alternate({name: x[which] for name, x in made.items()}, args[kind], rounds)
            losses = {name: lambda *args, f=x[which]: f(*args)[2] for name, x in made.items()}
            assert_equal(losses, args[kind], 1e-5 if steps == 1 else 1e-4, ("loss", length, kind))
            for name, (compiling, running) in times.items():
                found[name] |= {
                    f"{kind}_ms": 1e3 * running / steps,
                    f"{kind}_tokens_per_s": steps * len(xs) * length / running,
                    f"{kind}_speedup": running / times["jaxprob"][1],
                    f"{kind}_compile_s": compiling,
                }
        for name, row in found.items():
            rows.append(row)
            print(
                f"training S5 T={length:<6} {name:21} {row['loop_ms']:9.1f} ms a step, {row['loop_tokens_per_s']:.3g} "
                f"tokens/s, jaxprob {row['loop_speedup']:.2f} times as fast; alone {row['alone_ms']:.1f} ms, "
                f"{row['alone_speedup']:.2f}; compile {row['loop_compile_s']:.1f} and {row['alone_compile_s']:.1f} s",
                flush=True,
            )
    return rows


def latency_part(rounds):
    rows, count, lengths = [], 256, (128, 4096)
    xs = data(lengths[-1] + count, 1)[0]
    for name in ("aaren", "attention"):
        programs, args = {}, {}
        for length in lengths:
            core = sequence.aaren(WIDTH) if name == "aaren" else sequence.attention(WIDTH, context=length)
            params = jax.jit(core.init)(jax.random.key(0), xs[:1])
            _, state = jax.jit(core.apply)(params, xs[:length])

            def run(params, xs, state, core=core):
                def step(state, x):
                    y, state = core.apply(params, x, state, method="step")
                    return state, y

                return lax.scan(step, state, xs)

            args[length] = (params, xs[length : length + count], state)
            programs[length] = functools.partial(jax.jit(run), *args[length])
        times = alternate(programs, (), 3 * rounds)
        for length in lengths:
            row = {"core": name, "after": length, "us": 1e6 * times[length][1] / count}
            row["ratio"] = times[length][1] / times[lengths[0]][1]
            rows.append(row)
            print(f"{name:10} token after {length:<5} {row['us']:8.2f} us, {row['ratio']:.2f} of the first", flush=True)
    return rows


def newton_part(sizes, rounds):
    rows = []
    for name, make in (("para_gru", sequence.para_gru), ("para_lstm", sequence.para_lstm)):
        for length in sizes["newton"]:
            xs = data(length, sizes["batch"])
            ways = {"jaxprob": "newton", "lax.scan": "sequential"}
            forward = {other: forward_of(make(WIDTH, method=method)) for other, method in ways.items()}
            params = jax.jit(make(WIDTH).init)(jax.random.key(0), xs[0])
            gradient = {other: jax.jit(gradient_of(function)) for other, function in forward.items()}
            forward = {other: jax.jit(function) for other, function in forward.items()}
            assert_equal(forward, (params, xs), 1e-4, (name, length))
            found = {
                kind: alternate(programs, (params, xs), rounds)
                for kind, programs in (("forward", forward), ("gradient", gradient))
            }
            row = {"core": name, "length": length, "batch": len(xs)}
            for kind, times in found.items():
                row[f"{kind}_newton_ms"], row[f"{kind}_scan_ms"] = (1e3 * times[x][1] for x in ways)
                row[f"{kind}_newton_tokens_per_s"] = len(xs) * length / times["jaxprob"][1]
                row[f"{kind}_speedup"] = times["lax.scan"][1] / times["jaxprob"][1]
                row[f"{kind}_newton_compile_s"], row[f"{kind}_scan_compile_s"] = (times[x][0] for x in ways)
            rows.append(row)
            print(
                f"{name:10} T={length:<6} newton forward {row['forward_newton_ms']:9.2f} ms "
                f"({row['forward_speedup']:.2f} times as fast as lax.scan), "
                f"gradient {row['gradient_newton_ms']:9.2f} ms ({row['gradient_speedup']:.2f})",
                flush=True,
            )
    return rows


def table(report):
    """The report as Markdown."""
    print("| core | program | T | forward, tokens/s | gradient, tokens/s | jaxprob: forward, gradient | compile, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(report.get("cores", []), key=lambda row: list(cores(1)).index(row["core"])):
        rates = [f"{row.get(f'{kind}_tokens_per_s', 0):,.0f}" for kind in ("forward", "gradient")]
        ratio = ", ".join(f"{row[f'{k}_speedup']:.2f}x" for k in ("forward", "gradient") if f"{k}_speedup" in row)
        compiling = " + ".join(
            f"{row[f'{k}_compile_s']:.1f}" for k in ("forward", "gradient") if f"{k}_compile_s" in row
        )
        rates = [rate if rate != "0" else "" for rate in rates]
        ratio = "" if row["program"] == "jaxprob" else ratio
        print(f"| {row['core']} | {row['program']} | {row['length']} | {' | '.join(rates)} | {ratio} | {compiling} |")
    print("\n| training step of S5 | T | ms in a loop | tokens/s | jaxprob | ms alone | jaxprob | compile, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in report.get("training", []):
        print(
            f"| {row['program']} | {row['length']} | {row['loop_ms']:.1f} | {row['loop_tokens_per_s']:,.0f} | "
            f"{row['loop_speedup']:.2f}x | {row['alone_ms']:.1f} | {row['alone_speedup']:.2f}x | "
            f"{row['loop_compile_s']:.1f} |"
        )
    print("\n| step of a batch | from Python, us | in a loop, us | tokens/s |\n| --- | --- | --- | --- |")
    for row in report.get("step", []):
        rate = f"{row['inside_tokens_per_s']:,.0f}"
        print(f"| {row['core']} | {row['called_us']:.0f} | {row['inside_us']:.1f} | {rate} |")
    print("\n| token | after | us | ratio |\n| --- | --- | --- | --- |")
    for row in report.get("latency", []):
        print(f"| {row['core']} | {row['after']} | {row['us']:.2f} | {row['ratio']:.2f} |")


def merged(old, new, only):
    """Rows of cores that were not run stay."""
    kept = [row for row in old if row["core"] not in only]
    order = list(cores(1))
    return sorted(kept + new, key=lambda row: (row.get("length", 0), order.index(row["core"])))


def main():
    device = jax.devices()[0].device_kind.lower().replace(" ", "-")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="training,cores,step,latency,newton")
    parser.add_argument("--cores", default=",".join(cores(1)))
    parser.add_argument("--gpu", action="store_true", help="lengths for an accelerator")
    parser.add_argument("--table", action="store_true", help="print the results of an earlier run")
    parser.add_argument("--out", default=HERE / "results" / f"sequence-{device}.json", type=Path)
    options = parser.parse_args()
    if options.table:
        table(json.loads(options.out.read_text()))
        return
    sizes, only, rounds = ON_GPU if options.gpu else ON_CPU, options.cores.split(","), options.rounds
    parts = {
        "training": lambda: training_part(sizes, rounds),
        "cores": lambda: cores_part(sizes, rounds, only),
        "step": lambda: step_part(sizes, rounds, only),
        "latency": lambda: latency_part(rounds),
        "newton": lambda: newton_part(sizes, rounds),
    }
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch")},
        "rounds": {},
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        if all(earlier[name] == report[name] for name in ("device", "machine", "versions")):
            report = earlier
    for name in options.parts.split(","):
        found = parts[name]()
        report[name] = merged(report.get(name, []), found, only) if name in ("cores", "step") else found
        report["rounds"][name] = rounds
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
