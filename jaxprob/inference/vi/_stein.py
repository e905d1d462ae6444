"""Stein variational gradient descent: particles that climb a density together and keep apart.

Source: Liu & Wang (2016), "Stein variational gradient descent: a general purpose Bayesian inference algorithm",
algorithm 1. In many dimensions the spread of the particles is too small: Ba et al. (2022), "Understanding the variance
collapse of SVGD in high dimensions".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._layout import Layout
from jaxprob.inference.vi._objective import read_target


class SteinState(NamedTuple):
    """The state of the particles.

    Attributes:
      position: pytree (particle, ...).
      optimizer_state: of the optimiser.
    """

    position: Any
    optimizer_state: Any


class SteinInfo(NamedTuple):
    """What a step tells.

    Attributes:
      discrepancy: (), kernelised Stein discrepancy of the particles before the step, squared: 0 where they rest.
      bandwidth: (), of the kernel.
      log_density: (), mean over the particles.
      finite: (), bool, whether all gradients are; where they are not the particles stay.
    """

    discrepancy: jax.Array
    bandwidth: jax.Array
    log_density: jax.Array
    finite: jax.Array


def stein(
    target: Any,
    *,
    particles: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    bandwidth: Any = None,
    initial: Any = None,
) -> core.Algorithm:
    r"""Stein variational gradient descent, as an `Algorithm`.

    Each step moves all particles along

    $$\phi(x_i) = 1/n \sum_j k(x_j, x_i) \nabla \log p(x_j) + \nabla_{x_j} k(x_j, x_i), \quad
    k(x, y) = \exp(-|x - y|^2 / (2 h^2))$$

    and costs a gradient for each particle and n^2 numbers. It draws nothing.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      particles: how many `init` draws where it is given no position.
      optimizer: of optax; Adam with a rate of 0.05 by default (AdaGrad, as in the paper, takes many times the steps).
      bandwidth: h; None for the median heuristic h^2 = median |x - y|^2 / (2 log(n + 1)), anew in each step.
      initial: a function `key -> position` that draws the first particles; by default the posterior's.

    Returns:
      `Algorithm(init, step)`: `init(position, key)` with particles (particle, ...) or None; `SteinState`, `SteinInfo`.

    Raises:
      ValueError: for fewer than two particles, a bandwidth that is not positive, or no `initial` where one is needed.

    >>> algorithm = stein(lambda x: -0.5 * x**2, initial=lambda key: jax.random.normal(key))
    >>> state = algorithm.init(None, jax.random.key(0))
    >>> state, info = algorithm.step(jax.random.key(1), state)
    >>> state.position.shape
    (100,)
    """
    core.check_whole("stein", least=2, particles=particles)
    if bandwidth is not None:
        bandwidth = known_number("stein", "bandwidth", bandwidth, lambda h: h > 0, "a positive number")
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise core.bad_type("stein", "optimizer", optimizer, "an optax optimiser", "Such as optax.adam(1e-2)")
    # Particles may be given to init: a place to start is then not needed.
    read = read_target("stein", target, _no_start if initial is None and not hasattr(target, "initial") else initial)
    optimizer = _adam() if optimizer is None else optimizer
    return core.Algorithm(
        Partial(core.Bound(_init, particles, optimizer), read.initial),
        Partial(core.Bound(_step, optimizer), read.log_density, bandwidth),
    )


@functools.cache
def _adam() -> optax.GradientTransformation:
    """The default: one object, since two of optax's are never equal and would each compile a program."""
    return optax.adam(0.05)


def _no_start(key: core.Key) -> Any:
    todo = "Pass initial=, a function of a key, or particles to init"
    raise core.bad_value("stein", "initial", None, "a function of a key that draws a position", todo)


def _init(number: int, optimizer: Any, initial: Callable[..., Any], position: Any, key: core.Key) -> SteinState:
    if position is None:
        position = jax.vmap(initial)(core.chain_keys(core.as_key(key, "stein"), jnp.arange(number)))
    position = jax.tree.map(jnp.asarray, position)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(position)}
    if len(sizes) != 1 or () in sizes or sizes & {(0,), (1,)}:
        raise core.bad_value("stein", "position", core.describe(position), "particles (particle, ...), two or more")
    with jax.numpy_dtype_promotion("standard"):
        return SteinState(position, optimizer.init(position))


def _step(
    optimizer: Any, log_density: Any, bandwidth: Any, key: core.Key, state: SteinState
) -> tuple[SteinState, SteinInfo]:
    layout = Layout.of(jax.tree.map(lambda leaf: leaf[0], state.position))
    x = layout.ravel(state.position)
    log_p, score = jax.vmap(jax.value_and_grad(lambda v: log_density(layout.unravel(v), None)))(x)
    number = x.shape[0]
    # By differences: |x|^2 + |y|^2 - 2 x y loses all digits of particles that are close together.
    away = jnp.expand_dims(x, 1) - jnp.expand_dims(x, 0)
    distances = jnp.sum(away**2, axis=-1)
    width = _median_width(distances) if bandwidth is None else jnp.asarray(bandwidth, x.dtype)
    kernel = jnp.exp(-0.5 * distances / width**2)
    # The sum over j of k_ji (x_i - x_j) / h^2, for each i.
    apart = (x * jnp.sum(kernel, axis=1, keepdims=True) - core.matmul(kernel, x)) / width**2
    direction = (core.matmul(kernel, score) + apart) / number
    finite = jnp.all(jnp.isfinite(direction))
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer.update(layout.unravel(-direction), state.optimizer_state, state.position)
        position = optax.apply_updates(state.position, updates)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), SteinState(position, optimizer_state), state)
    # V-statistic of the discrepancy: s_i k s_j + 2 s_i grad_j k + tr grad_i grad_j k.
    size = x.shape[1]
    trace = kernel * (size / width**2 - distances / width**4)
    discrepancy = (jnp.sum(direction * score) + jnp.sum(apart * score) / number) / number + jnp.sum(trace) / number**2
    return new, SteinInfo(discrepancy, width, jnp.mean(log_p), finite)


def _median_width(distances: jax.Array) -> jax.Array:
    number = distances.shape[0]
    median = jnp.median(distances)
    return jnp.sqrt(jnp.where(median > 0, median, 1) / (2 * jnp.log(number + 1.0).astype(distances.dtype)))
