"""Programs timed in turn in one process, compile apart."""

import statistics
import time

import jax


def measure(runs, ys, rounds):
    """Medians of run seconds, in turn, and compile seconds; and what each returns."""
    first, seconds, values = {}, {name: [] for name in runs}, {}
    for name, run in runs.items():
        began = time.perf_counter()
        values[name] = jax.block_until_ready(run(ys))
        first[name] = time.perf_counter() - began
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run(ys))
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: {"run_s": medians[name], "compile_s": first[name] - medians[name]} for name in runs}, values
