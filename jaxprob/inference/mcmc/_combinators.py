"""Kernels made of kernels for one and the same position: one of them at random, or all of them in turn.

Both leave a law as it is that each of the kernels leaves as it is.

Source: Tierney (1994), "Markov chains for exploring posterior distributions".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class PositionState(NamedTuple):
    """The state of a chain whose kernels have states of different kinds: what they have in common.

    Attributes:
      position: pytree, where the chain is.
    """

    position: Any


class MixtureInfo(NamedTuple):
    """What happened in one transition of `mixture`; every leaf is a scalar.

    Attributes:
      kernel: index of the kernel that was picked.
      info: of that kernel, if the infos of all have one structure; else a dict of the fields that all have.
    """

    kernel: jax.Array
    info: Any


def mixture(kernels: Sequence[core.Algorithm], probabilities: Any) -> core.Algorithm:
    """One kernel, picked at random for each step.

    Kernels whose states have one structure pass it on to each other: they must aim at the same density, and a step
    costs what the picked kernel's costs. States of different structure are made anew by `init` at each step, which
    costs an evaluation of the density more, and nothing but the position survives: tune such kernels beforehand. Under
    `vmap` a step costs as much as all kernels together.

    Args:
      kernels: algorithms for one and the same position.
      probabilities: (kernels,), of picking each; they sum to one. An array or a tracer.

    Returns:
      Algorithm whose state is that of the kernels, or a `PositionState`, and whose info is a `MixtureInfo`.

    Raises:
      TypeError: if a kernel is no algorithm.
      ValueError: if there is no kernel, or the probabilities are none or not as many.

    >>> from jaxprob.inference import mcmc
    >>> def log_density(x):
    ...     return -0.5 * x**2
    >>> both = mixture([mcmc.hmc(log_density), mcmc.nuts(log_density)], [0.5, 0.5])
    >>> state, info = both.step(jax.random.key(0), both.init(jnp.float32(1.0), jax.random.key(1)))
    >>> sorted(info.info)
    ['acceptance_rate', 'diverging', 'energy', 'log_density', 'num_steps', 'step_size']

    Source: Tierney (1994).
    """
    _check_kernels("mixture", kernels)
    log_weights = _as_log_weights(probabilities, len(kernels))

    def init(position: Any, key: core.Key) -> Any:
        return _init("mixture", kernels, position, key)

    def step(key: core.Key, state: Any) -> tuple[Any, MixtureInfo]:
        key = core.as_key(key, "mixture")
        picked = core.random.categorical(core.fold(key, 0), log_weights, mode="high")
        infos = [jax.eval_shape(partial(_step, kernel), key, state)[1] for kernel in kernels]
        shared = _shared_fields(infos)

        def branch(kernel: core.Algorithm, data: jax.Array, state: Any) -> tuple[Any, Any]:
            state, info = _step(kernel, jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)), state)
            return state, info if shared is None else {name: getattr(info, name) for name in shared}

        # Under vmap a switch selects among what the branches are given, which counts as using a key.
        data = jax.random.key_data(core.fold(key, 1))
        state, info = core.switch(picked, [partial(branch, kernel) for kernel in kernels], data, state)
        return state, MixtureInfo(picked.astype(jnp.int32), info)

    return core.Algorithm(init, step)


def cycle(kernels: Sequence[core.Algorithm]) -> core.Algorithm:
    """All kernels, one after another, in each step.

    States are passed on, or made anew, as in `mixture`.

    Args:
      kernels: algorithms for one and the same position.

    Returns:
      Algorithm whose state is that of the kernels, or a `PositionState`, and whose info is the tuple of the infos.

    Raises:
      TypeError: if a kernel is no algorithm.
      ValueError: if there is no kernel.

    >>> from jaxprob.inference import mcmc
    >>> small, large = (mcmc.hmc(lambda x: -0.5 * x**2, step_size=size) for size in (0.1, 1.0))
    >>> both = cycle([small, large])
    >>> state, infos = both.step(jax.random.key(0), both.init(jnp.float32(1.0), jax.random.key(1)))
    >>> len(infos)
    2

    Source: Tierney (1994).
    """
    _check_kernels("cycle", kernels)

    def init(position: Any, key: core.Key) -> Any:
        return _init("cycle", kernels, position, key)

    def step(key: core.Key, state: Any) -> tuple[Any, tuple[Any, ...]]:
        key, infos = core.as_key(key, "cycle"), []
        for index, kernel in enumerate(kernels):
            state, info = _step(kernel, core.fold(key, index), state)
            infos.append(info)
        return state, tuple(infos)

    return core.Algorithm(init, step)


def _init(function: str, kernels: Sequence[core.Algorithm], position: Any, key: core.Key) -> Any:
    """The state of the first kernel if those of all have one structure, else the position alone."""
    key = core.as_key(key, function)
    position = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), position)
    shapes = [_shapes(jax.eval_shape(kernel.init, position, key)) for kernel in kernels]
    if all(shape == shapes[0] for shape in shapes):
        return kernels[0].init(position, key)
    return PositionState(position)


def _step(kernel: core.Algorithm, key: core.Key, state: Any) -> tuple[Any, Any]:
    if not isinstance(state, PositionState):
        return kernel.step(key, state)
    new, info = kernel.step(core.fold(key, 1), kernel.init(state.position, core.fold(key, 0)))
    return PositionState(core.position_of(new)), info


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _shared_fields(infos: list[Any]) -> list[str] | None:
    """The fields that all infos have with one type, or None where the infos have one structure."""
    if all(_shapes(info) == _shapes(infos[0]) for info in infos):
        return None
    fields = getattr(infos[0], "_fields", ())
    every = [name for name in fields if all(hasattr(info, name) for info in infos)]
    return [name for name in every if len({str(_shapes(getattr(info, name))) for info in infos}) == 1]


def _check_kernels(function: str, kernels: Any) -> None:
    if not isinstance(kernels, Sequence) or not kernels:
        raise core.bad_value(function, "kernels", kernels, "a list of at least one algorithm")
    for index, kernel in enumerate(kernels):
        if not hasattr(kernel, "init") or not hasattr(kernel, "step"):
            raise core.bad_type(function, f"kernels[{index}]", kernel, "an algorithm, such as mcmc.nuts(log_density)")


def _as_log_weights(probabilities: Any, count: int) -> jax.Array:
    if not isinstance(probabilities, jax.core.Tracer):
        probabilities = np.asarray(probabilities, float)
    if np.shape(probabilities) != (count,):
        raise core.bad_value("mixture", "probabilities", probabilities, f"{count} numbers, one a kernel")
    if isinstance(probabilities, np.ndarray):
        if not np.all(probabilities >= 0) or abs(probabilities.sum() - 1) > 1e-3:
            raise core.bad_value("mixture", "probabilities", str(probabilities), "numbers of at least 0 that sum to 1")
        probabilities = probabilities.astype(np.float32)  # strong, so that x64 does not change the draws
    return core.safe_log(probabilities)
