"""Scans by time, width and method, forward and gradient, beside plain `lax.scan` and `lax.associative_scan`.

Everything runs in one process, in turn, several rounds; run times are medians, compile times (tracing included) those
of the first call less the median. The parts:

- affine: elementwise and dense recurrences, by every method;
- auto: what `auto` chooses on this device beside plain `lax.scan`, these two alone and in turns, so that neither runs
  behind a program that leaves the caches cold;
- monoid: products of matrices in the log-semiring (8 states) and running softmax means (16 values);
- compile: the gradient of a chunked affine scan beside that of `lax.associative_scan`, and the size of both programs;
- newton: GRUs of one unit, of 64 separate units and of 16 connected ones, beside `lax.scan`;
- memory: temporary bytes of the gradient of a scan that stores all states and of one that recomputes them by chunks.

    python benchmarks/scan.py [--rounds 9] [--parts auto,affine,...] [--out FILE]

The results go to benchmarks/results/scan-DEVICE.json by default; parts that are not run stay as they are there.
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
from jax import lax

from jaxprob import scan

HERE = Path(__file__).resolve().parent


def lax_scan(decay, increment, init):
    apply = jnp.multiply if decay.ndim == 2 else functools.partial(jnp.matmul, precision="highest")

    def step(state, x):
        state = apply(x[0], state) + x[1]
        return state, state

    return lax.scan(step, init, (decay, increment))[1]


def lax_associative(decay, increment, init):
    apply = jnp.multiply if decay.ndim == 2 else lambda a, x: jnp.matmul(a, x[..., None], precision="highest")[..., 0]
    compose = jnp.multiply if decay.ndim == 2 else functools.partial(jnp.matmul, precision="highest")

    def combine(before, after):
        return compose(after[0], before[0]), apply(after[0], before[1]) + after[1]

    increment = increment.at[0].add(apply(decay[0], init))
    return lax.associative_scan(combine, (decay, increment))[1]


def ours(method):
    return lambda decay, increment, init: scan.affine(decay, increment, init, method=method).states


AFFINE = {
    "lax.scan": lax_scan,
    "lax.associative_scan": lax_associative,
    "sequential": ours("sequential"),
    "chunked": ours("chunked"),
    "associative": ours("associative"),
}
if jax.default_backend() == "cpu":  # elsewhere it is one of the above, and compiling takes longer than running
    AFFINE["auto"] = ours("auto")


def gradient(function):
    def loss(*args):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(*args)))

    return jax.grad(loss, (0, 1, 2))


def alternate(functions, args, rounds):
    """(compile seconds, run seconds) by name: the functions in turn, round after round."""
    programs, first, runs = {}, {}, {name: [] for name in functions}
    for name, function in functions.items():
        programs[name] = jax.jit(function)
        began = time.perf_counter()
        jax.block_until_ready(programs[name](*args))
        first[name] = time.perf_counter() - began
    # Short programs are called several times a round, so that the clock is no part of what it measures.
    calls = {name: max(1, min(50, int(2e-3 / _once(program, args)))) for name, program in programs.items()}
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                result = program(*args)
            jax.block_until_ready(result)
            runs[name].append((time.perf_counter() - began) / calls[name])
    found = {name: statistics.median(times) for name, times in runs.items()}
    return {name: (max(0.0, first[name] - found[name]), found[name]) for name in functions}


def _once(program, args):
    began = time.perf_counter()
    jax.block_until_ready(program(*args))
    return time.perf_counter() - began


def affine_arguments(kind, steps, width):
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (steps, width) if kind == "elementwise" else (steps, width, width)
    decay = jax.random.uniform(keys[0], shape, minval=0.5, maxval=1.0)
    decay = decay if kind == "elementwise" else decay / width
    return decay, jax.random.normal(keys[1], (steps, width)), jax.random.normal(keys[2], (width,))


def affine_part(rounds, cases):
    rows = []
    for kind, steps, width in cases:
        args = affine_arguments(kind, steps, width)
        reference = np.asarray(AFFINE["lax.scan"](*args))
        for name, function in AFFINE.items():
            error = np.abs(np.asarray(jax.jit(function)(*args)) - reference).max() / np.abs(reference).max()
            assert error < 1e-5, (name, kind, steps, width, error)
        forward = alternate(AFFINE, args, rounds)
        backward = alternate({name: gradient(function) for name, function in AFFINE.items()}, args, rounds)
        for name in AFFINE:
            rows.append(
                {
                    "kind": kind,
                    "steps": steps,
                    "width": width,
                    "method": name,
                    "forward_compile_s": forward[name][0],
                    "forward_ms": 1e3 * forward[name][1],
                    "forward_ratio": forward[name][1] / forward["lax.scan"][1],
                    "gradient_compile_s": backward[name][0],
                    "gradient_ms": 1e3 * backward[name][1],
                    "gradient_ratio": backward[name][1] / backward["lax.scan"][1],
                }
            )
            show_affine(rows[-1])
    return rows


def show_affine(row):
    print(
        f"{row['kind']:11} T={row['steps']:<6} n={row['width']:<5} {row['method']:20} "
        f"forward {row['forward_ms']:9.3f} ms ({row['forward_ratio']:6.2f} of lax.scan) "
        f"gradient {row['gradient_ms']:9.3f} ms ({row['gradient_ratio']:6.2f})  "
        f"compile {row['forward_compile_s']:.2f} + {row['gradient_compile_s']:.2f} s",
        flush=True,
    )


def auto_part(rounds, cases):
    rows = []
    for kind, steps, width in cases:
        args = affine_arguments(kind, steps, width)
        for what in ("forward", "gradient"):
            pair = {"lax.scan": lax_scan, "auto": ours("auto")}
            pair = pair if what == "forward" else {name: gradient(function) for name, function in pair.items()}
            found = alternate(pair, args, rounds)
            ratio = found["auto"][1] / found["lax.scan"][1]
            rows.append({"kind": kind, "steps": steps, "width": width, "what": what, "ratio": ratio})
            rows[-1] |= {f"{name}_ms": 1e3 * times[1] for name, times in found.items()}
            print(
                f"{kind:11} T={steps:<6} n={width:<5} {what:8} auto {1e3 * found['auto'][1]:9.3f} ms, "
                f"{ratio:.3f} of lax.scan",
                flush=True,
            )
    return rows


def monoid_part(rounds):
    rows = []
    for kind, monoid in (("log_matmul", scan.monoids.log_matmul), ("softmax", scan.monoids.softmax)):

        def theirs(first, second, third, kind=kind, monoid=monoid):
            return lax.associative_scan(jax.vmap(monoid.combine), _elements(kind, first, second))

        def product(first, second, third, kind=kind, monoid=monoid, method="auto"):
            return scan.associative(monoid, _elements(kind, first, second), method=method).states

        methods = {"lax.associative_scan": theirs}
        for method in ("sequential", "chunked", "associative"):
            methods[method] = functools.partial(product, method=method)
        for steps in (16, 256, 4096):
            keys = jax.random.split(jax.random.key(0), 2)
            shape = (steps, 8, 8) if kind == "log_matmul" else (steps,)
            args = (jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (steps, 16)), jnp.zeros(()))
            forward = alternate(methods, args, rounds)
            backward = alternate({name: gradient(function) for name, function in methods.items()}, args, rounds)
            for name in methods:
                rows.append(
                    {
                        "kind": kind,
                        "steps": steps,
                        "method": name,
                        "forward_ms": 1e3 * forward[name][1],
                        "gradient_ms": 1e3 * backward[name][1],
                        "forward_compile_s": forward[name][0],
                        "gradient_compile_s": backward[name][0],
                    }
                )
                print(
                    f"{kind:11} T={steps:<6} {name:21} forward {1e3 * forward[name][1]:9.3f} ms  gradient "
                    f"{1e3 * backward[name][1]:9.3f} ms  compile {forward[name][0]:.2f} + {backward[name][0]:.2f} s",
                    flush=True,
                )
    return rows


def _elements(kind, first, second):
    if kind == "log_matmul":
        return first
    return scan.monoids.RunningSoftmax(first, jnp.ones_like(first), second)


def compile_part():
    rows = []
    for steps in (1024, 65536):
        args = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((steps, 64), (steps, 64), (64,)))
        for name in ("lax.scan", "lax.associative_scan", "chunked", "associative"):
            lowered = jax.jit(gradient(AFFINE[name])).lower(*args)
            began = time.perf_counter()
            compiled = lowered.compile()
            seconds = time.perf_counter() - began
            instructions = sum(" = " in line for line in compiled.as_text().splitlines())
            rows.append({"steps": steps, "method": name, "compile_s": seconds, "hlo_instructions": instructions})
            print(
                f"compile gradient T={steps:<6} {name:21} {seconds:6.2f} s  {instructions} HLO instructions", flush=True
            )
    return rows


def gru(width, connected):
    """A step and its parameters: units that see only their own past, or all of them."""
    rng = np.random.default_rng(0)
    shape = (3, width, width) if connected else (3, width)
    scale = 1 / np.sqrt(width) if connected else 0.5
    weights = jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    apply = functools.partial(jnp.matmul, precision="highest") if connected else jnp.multiply

    def step(weights, state, x):
        update = jax.nn.sigmoid(apply(weights[0], state) + x[0])
        reset = jax.nn.sigmoid(apply(weights[1], state) + x[1])
        candidate = jnp.tanh(apply(weights[2], reset * state) + x[2])
        return (1 - update) * state + update * candidate

    return step, weights


def newton_part(rounds, lengths):
    rows = []
    for width, connected in ((1, False), (64, False), (16, True)):
        step, weights = gru(width, connected)
        jacobian = "dense" if connected else "diagonal"

        def plain(weights, xs, init, step=step):
            def body(state, x):
                state = step(weights, state, x)
                return state, state

            return lax.scan(body, init, xs)[1]

        def newton(weights, xs, init, step=step, jacobian=jacobian, **options):
            return scan.newton(lambda state, x: step(weights, state, x), init, xs, jacobian=jacobian, **options)

        def states(weights, xs, init, newton=newton, **options):
            return newton(weights, xs, init, **options).states

        for steps in lengths:
            if steps * width * (width if connected else 1) > 2**25:
                continue
            xs = jax.random.normal(jax.random.key(1), (steps, 3, width))
            args = (weights, xs, jnp.zeros(width))
            result = jax.jit(newton)(*args)
            error = float(jnp.max(jnp.abs(result.states - jax.jit(plain)(*args))))
            assert bool(result.converged), (width, steps)
            assert error < 1e-4, (width, steps, error)
            methods = {"lax.scan": plain, "newton": states}
            for method in ("chunked", "associative"):
                methods[f"newton {method}"] = functools.partial(states, method=method)
            forward = alternate(methods, args, rounds)
            backward = alternate({name: gradient(function) for name, function in methods.items()}, args, rounds)
            for name in methods:
                rows.append(
                    {
                        "units": width,
                        "jacobian": jacobian,
                        "steps": steps,
                        "method": name,
                        "iterations": int(result.iterations),
                        "largest_error": error,
                        "forward_ms": 1e3 * forward[name][1],
                        "forward_speedup": forward["lax.scan"][1] / forward[name][1],
                        "gradient_ms": 1e3 * backward[name][1],
                        "gradient_speedup": backward["lax.scan"][1] / backward[name][1],
                        "forward_compile_s": forward[name][0],
                        "gradient_compile_s": backward[name][0],
                    }
                )
                row = rows[-1]
                print(
                    f"GRU n={width:<3} {jacobian:9} T={steps:<7} {name:19} forward {row['forward_ms']:10.3f} ms "
                    f"({row['forward_speedup']:8.2f} times as fast as lax.scan) gradient {row['gradient_ms']:10.3f} ms "
                    f"({row['gradient_speedup']:8.2f})  {row['iterations']} iterations, error {error:.1e}",
                    flush=True,
                )
    return rows


def memory_part(rounds):
    rows, width = [], 64
    weights = jax.random.normal(jax.random.key(0), (width, width)) / width**0.5

    def loss(weights, xs, **options):
        def step(state, x):
            state = jnp.tanh(jnp.matmul(weights, state, precision="highest") + x)
            return state, None

        return jnp.sum(scan.scan(step, jnp.zeros(width), xs, **options)[0] ** 2)

    for steps in (4096, 10000):
        xs = jax.random.normal(jax.random.key(1), (steps, width))
        ways = {"stored": {}, "recomputed": {"remat": True}}
        programs = {name: jax.grad(functools.partial(loss, **options)) for name, options in ways.items()}
        times = alternate(programs, (weights, xs), rounds)
        for name, program in programs.items():
            temporary = jax.jit(program).lower(weights, xs).compile().memory_analysis().temp_size_in_bytes
            rows.append({"steps": steps, "method": name, "temporary_bytes": temporary, "ms": 1e3 * times[name][1]})
            print(
                f"gradient of scan T={steps} {name:11} {temporary:>10} temporary bytes, {1e3 * times[name][1]:.2f} ms"
            )
    return rows


def main():
    on_cpu = jax.default_backend() == "cpu"
    device = "cpu" if on_cpu else jax.devices()[0].device_kind.lower().replace(" ", "-")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", default="affine,auto,monoid,compile,newton,memory")
    parser.add_argument("--out", default=HERE / "results" / f"scan-{device}.json", type=Path)
    options = parser.parse_args()
    widths = (1, 64, 1024)
    elementwise = [("elementwise", steps, width) for steps in (16, 64, 1024, 65536) for width in widths]
    dense = [("dense", steps, width) for steps, width in ((16, 4), (1024, 4), (1024, 32), (65536, 4))]
    lengths = (1000, 10000) if on_cpu else (1000, 10000, 100000)
    parts = {
        "affine": lambda: affine_part(options.rounds, elementwise + dense),
        "auto": lambda: auto_part(3 * options.rounds, elementwise + dense),
        "monoid": lambda: monoid_part(options.rounds),
        "compile": compile_part,
        "newton": lambda: newton_part(options.rounds, lengths),
        "memory": lambda: memory_part(options.rounds),
    }
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "rounds": {},
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        if all(earlier[name] == report[name] for name in ("device", "versions")):
            report = {**earlier, "machine": report["machine"]}
    for name in options.parts.split(","):
        report[name] = parts[name]()
        report["rounds"][name] = options.rounds
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
