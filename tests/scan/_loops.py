"""Recurrences one step at a time in float64 NumPy, and how often JAX compiled."""

import contextlib
import logging

import jax
import numpy as np


def quick(function):
    """Compiled without LLVM's optimisations, which take most of the time and change no rounding."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def order(steps, reverse):
    return reversed(range(steps)) if reverse else range(steps)


def loop(step, init, steps, *, reverse=False, reset=None):
    """`state, output = step(state, t)` at each time; the final state and the outputs at their times."""
    state, outputs = init, [None] * steps
    for t in order(steps, reverse):
        state, outputs[t] = step(init if reset is not None and reset[t] else state, t)
    return state, outputs


def affine(decay, increment, init, *, reverse=False, reset=None):
    """The states (time, *state) and the final one; matrices are what has one axis more than `increment`."""
    steps = len(increment)
    decay = np.broadcast_to(decay, (steps, *decay.shape[1:]))
    if decay.ndim == 1:
        decay = decay.reshape(-1, *[1] * (increment.ndim - 1))

    def step(state, t):
        moved = (decay[t] @ state[..., None])[..., 0] if decay.ndim > increment.ndim else decay[t] * state
        state = moved + increment[t]
        return state, state

    final, states = loop(step, init, steps, reverse=reverse, reset=reset)
    return np.array(states).reshape(increment.shape), final


def masks(rng, steps):
    """Resets by name: nowhere, at random places, at the first step of time, everywhere."""
    return {
        "none": None,
        "random": rng.random(steps) < 0.3,
        "first": np.arange(steps) == 0,
        "all": np.ones(steps, bool),
    }


def error(got, want):
    """The largest error relative to the largest number that was wanted; infinite where `got` is not finite."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if got.size == 0:
        return 0.0
    if not np.isfinite(got).all():
        return np.inf
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)


@contextlib.contextmanager
def compilations():
    """The names of what is compiled inside, as they come."""

    class Names(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling "):
                names.append(record.getMessage().split()[1])

    names, handler, logger = [], Names(logging.WARNING), logging.getLogger("jax")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
