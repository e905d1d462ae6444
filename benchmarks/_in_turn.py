"""Programs timed in turn in one process, compile apart."""

import contextlib
import statistics
import time

import jax

_compiling = []


def _listen(event, seconds, **_):
    if "backend_compile" in event:
        _compiling.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def nothing_compiled(share=0.02):
    """Seconds of a run are those of running: raises where XLA took more than a share of them.

    A library may compile in every call, unless what is called is itself part of a jitted function.
    """
    _compiling.clear()
    began = time.perf_counter()
    yield
    seconds, compiling = time.perf_counter() - began, sum(_compiling)
    if compiling > share * seconds:
        raise RuntimeError(f"{compiling:.3f} of {seconds:.3f} s went into compiling what had been compiled before")


def measure(runs, ys, rounds):
    """Medians of run seconds, in turn, and compile seconds; and what each returns."""
    first, seconds, values = {}, {name: [] for name in runs}, {}
    for name, run in runs.items():
        began = time.perf_counter()
        values[name] = jax.block_until_ready(run(ys))
        first[name] = time.perf_counter() - began
    for _ in range(rounds):
        for name, run in runs.items():
            with nothing_compiled():
                began = time.perf_counter()
                jax.block_until_ready(run(ys))
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: {"run_s": medians[name], "compile_s": first[name] - medians[name]} for name in runs}, values
