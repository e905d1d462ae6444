"""Chaotic systems, integrated: what comes next is to be said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.sequence.tasks._example import Example


def mackey_glass(
    key: core.Key,
    *,
    length: int = 500,
    delay: float = 17.0,
    beta: float = 0.2,
    gamma: float = 0.1,
    exponent: float = 10.0,
    step: float = 1.0,
    substeps: int = 10,
    washout: int = 250,
) -> Example:
    """The Mackey-Glass series, whose next value is wanted.

        dx/dt = beta x(t - delay) / (1 + x(t - delay)^exponent) - gamma x(t)

    Integrated by the classical Runge-Kutta method; values between the stored ones by cubic interpolation. Before time
    zero x is constant, a random number between 0.5 and 1.3.

    Args:
      key: random key.
      length: times of the example.
      delay, beta, gamma, exponent: of the equation; chaotic by default, periodic for a delay below about 13.
      step: time from one value to the next.
      substeps: steps of integration in it. They must divide the delay, into 2 at least.
      washout: values at the start that are left out.

    Returns:
      `Example` with inputs (length, 1), targets (length, 1), the next values, and a mask that is true everywhere.

    Raises:
      ValueError: if a number is out of its range, or a step of integration does not divide the delay.

    >>> inputs, targets, mask = mackey_glass(jax.random.key(0), length=3)
    >>> bool((inputs[1:] == targets[:-1]).all())
    True

    Source: Mackey and Glass (1977), "Oscillation and chaos in physiological control systems".
    """
    name = "tasks.mackey_glass"
    core.check_whole(name, length=length, substeps=substeps)
    core.check_whole(name, 0, washout=washout)
    core.check_positive(name, delay=delay, beta=beta, gamma=gamma, exponent=exponent, step=step)
    h = step / substeps
    back = round(delay / h)
    if back < 2 or abs(back * h - delay) > 1e-6 * delay:
        expected = f"a multiple of a step of integration, {h:g}, and 2 of them at least"
        raise core.bad_value(name, "delay", delay, expected, "Change step or substeps")
    # Weakly typed: the series has the default float.
    start = 0.5 + 0.8 * core.random.uniform(key, ())

    def slope(x: jax.Array, late: jax.Array) -> jax.Array:
        return beta * late / (1 + late**exponent) - gamma * x

    def advance(past: jax.Array) -> jax.Array:
        """`past` holds x(t - delay - h), x(t - delay), ..., x(t)."""
        x, late, later = past[-1], past[1], past[2]
        between = (9 * (late + later) - past[0] - past[3]) / 16
        k1 = slope(x, late)
        k2 = slope(x + h / 2 * k1, between)
        k3 = slope(x + h / 2 * k2, between)
        k4 = slope(x + h * k3, later)
        return jnp.append(past[1:], x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))

    history = jnp.broadcast_to(start, (back + 2,))
    return _forecast(advance, history, lambda past: past[-1:], length, substeps, washout)


def lorenz(
    key: core.Key,
    *,
    length: int = 500,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
    step: float = 0.02,
    substeps: int = 4,
    washout: int = 500,
) -> Example:
    """The Lorenz system, whose next state is wanted.

        dx/dt = sigma (y - x),   dy/dt = x (rho - z) - y,   dz/dt = x y - beta z

    Integrated by the classical Runge-Kutta method from a random place around (0, 0, 25).

    Args:
      key: random key.
      length: times of the example.
      sigma, rho, beta: of the equation; chaotic by default.
      step: time from one state to the next.
      substeps: steps of integration in it.
      washout: states at the start that are left out.

    Returns:
      `Example` with inputs (length, 3), targets (length, 3), the next states, and a mask that is true everywhere.

    Raises:
      ValueError: if a number is out of its range.

    >>> inputs, targets, mask = lorenz(jax.random.key(0), length=3)
    >>> bool((inputs[1:] == targets[:-1]).all())
    True

    Source: Lorenz (1963), "Deterministic nonperiodic flow".
    """
    core.check_whole("tasks.lorenz", length=length, substeps=substeps)
    core.check_whole("tasks.lorenz", 0, washout=washout)
    core.check_positive("tasks.lorenz", sigma=sigma, rho=rho, beta=beta, step=step)
    h = step / substeps

    def slope(state: jax.Array) -> jax.Array:
        x, y, z = state
        return jnp.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])

    def advance(state: jax.Array) -> jax.Array:
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    start = jnp.array([0.0, 0.0, 25.0]) + 5 * core.random.normal(key, (3,))
    return _forecast(advance, start, lambda state: state, length, substeps, washout)


def _forecast(
    advance: Callable[[Any], Any],
    start: Any,
    read: Callable[[Any], jax.Array],
    length: int,
    substeps: int,
    washout: int,
) -> Example:
    """An example of what is read from a state every `substeps` steps, and what comes next."""

    def sample(state: Any, _: None) -> tuple[Any, jax.Array]:
        after = scan.repeat(lambda state, index: advance(state), state, substeps)
        return after, read(state)

    state = scan.repeat(lambda state, index: advance(state), start, washout * substeps)
    _, series = scan.scan(sample, state, length=length + 1)
    return Example(series[:-1], series[1:], jnp.ones(length, bool))
