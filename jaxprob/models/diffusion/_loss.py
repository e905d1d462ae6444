"""The training loss of a denoiser, for any noising process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._process import NoisingProcess, check_process


def loss(
    process: Any,
    apply: Callable[..., Any],
    *,
    conditional: bool = False,
    drop_condition: float = 0.0,
    no_condition: Any = None,
    steps: int | None = None,
    coupling: Callable[..., Any] | None = None,
) -> Callable[[Any, Any, core.Key], jax.Array]:
    """A loss for `learning.Task`: the mean over a batch of the process's loss at random times.

    Times are evenly spread over the batch (one in each of as many equal parts), which lowers the variance; that of each
    example is uniform.

    Args:
      process: a noising process; or a function of the parameters that makes one, where its schedule is learnt or it
        depends on the condition: `process(params, condition)`, of one example.
      apply: `(params, x, t, condition) -> output`, a denoiser of one example.
      conditional: whether batches are pairs (examples, conditions).
      drop_condition: probability with which a condition gives way to `no_condition`, for classifier-free guidance.
      no_condition: pytree like the condition of one example, that stands for none; such as the number of classes.
      steps: train on the times 1 / steps, 2 / steps, ..., 1 of a process in discrete time; None for all times.
      coupling: `(key, examples, noise, conditions) -> noise`, an order of a batch of noise that suits the examples,
        such as `optimal_transport()`; for Gaussian processes whose noise has one law for all examples.

    Returns:
      `(params, batch, key) -> scalar`; equal arguments make equal functions.

    Raises:
      TypeError: if `process` or `apply` is none.
      ValueError: if `drop_condition` is no probability, or is used without `conditional`; if `steps` is not whole.

    >>> from jaxprob.models.diffusion import variance_preserving
    >>> objective = loss(variance_preserving(), lambda params, x, t, condition: params * x)
    >>> objective(jnp.float32(0.5), jnp.ones((8, 3)), jax.random.key(0)).shape
    ()
    """
    name = "diffusion.loss"
    if not isinstance(process, NoisingProcess) and not callable(process):
        check_process(name, process)
    if not callable(apply):
        raise core.bad_type(name, "apply", core.describe(apply), "a function (params, x, t, condition)")
    if not core.is_number(drop_condition) or not 0 <= drop_condition < 1:
        raise core.bad_value(name, "drop_condition", drop_condition, "a probability below 1")
    if drop_condition and not conditional:
        raise core.bad_value(name, "drop_condition", drop_condition, "0 without conditional=True")
    if steps is not None:
        core.check_whole(name, steps=steps)
    if isinstance(process, NoisingProcess):
        leaves, structure = jax.tree.flatten(process)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            todo = "Pass a function (params, condition) that makes the process"
            raise core.bad_value(name, "process", "made of traced arrays", "one of known numbers", todo)
        # By value where it has no arrays, so that equal losses are equal functions.
        made = core.Bound(_the_same, structure) if not leaves else core.Bound(_constant, process)
    else:
        made = process
    leaves, structure = jax.tree.flatten(no_condition)
    none = structure, tuple(leaves)
    return core.Bound(_loss, made, apply, conditional, float(drop_condition), none, steps, coupling)


def _the_same(structure: Any, params: Any, condition: Any) -> Any:
    return jax.tree.unflatten(structure, [])


def _constant(process: Any, params: Any, condition: Any) -> Any:
    return process


def _loss(
    made: Any,
    apply: Any,
    conditional: bool,
    drop: float,
    none: Any,
    steps: int | None,
    coupling: Any,
    params: Any,
    batch: Any,
    key: core.Key,
) -> jax.Array:
    name = "diffusion.loss"
    if conditional and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise core.bad_type(name, "batch", core.describe(batch), "a pair (examples, conditions)")
    xs, conditions = batch if conditional else (batch, None)
    count = jax.tree.leaves(xs)[0].shape[0]
    key = core.as_key(key, name)
    if drop:
        dropped = core.random.bernoulli(core.fold(key, 0), drop, (count,))
        structure, leaves = none
        conditions = jax.tree.map(
            lambda given, no: jnp.where(
                dropped.reshape(-1, *[1] * (given.ndim - 1)),
                jnp.broadcast_to(jnp.asarray(no, given.dtype), given.shape),
                given,
            ),
            conditions,
            jax.tree.unflatten(structure, leaves),
        )
    times = _times(core.fold(key, 1), count, steps, core.result_dtype(xs))
    keys = core.chain_keys(core.fold(key, 2), jnp.arange(count))
    noise = None
    if coupling is not None:
        noise = _coupled(core.fold(key, 3), made, params, conditions, xs, coupling)

    def one(x0: Any, t: jax.Array, key: core.Key, condition: Any, noise: Any) -> jax.Array:
        process = made(params, condition)
        check_process(name, process)
        process.check_data(name, x0)
        xt = process.corrupt(key, x0, t) if noise is None else process.interpolate(x0, noise, t)
        shape = jnp.shape(jax.tree.leaves(x0)[0])
        output = process.output(lambda *inputs: apply(params, *inputs), xt, t, condition, shape)
        return process.loss(output, x0, xt, t)

    return jnp.mean(jax.vmap(one)(xs, times, keys, conditions, noise))


def _coupled(key: core.Key, made: Any, params: Any, conditions: Any, xs: Any, coupling: Any) -> jax.Array:
    """A batch of noise in the order that a coupling gives it."""
    keys = core.chain_keys(core.fold(key, 0), jnp.arange(xs.shape[0]))
    draw = jax.vmap(lambda key, x, condition: made(params, condition).noise.draw(key, x.shape, x.dtype))
    return coupling(core.fold(key, 1), xs, draw(keys, xs, conditions), conditions)


def _times(key: core.Key, count: int, steps: int | None, dtype: Any) -> jax.Array:
    """Times (count,), one in each of as many equal parts of the unit interval.

    Each is uniform. A stride through the parts from a random start keeps examples that are neighbours apart in time,
    and costs nothing, where to sort a random order takes as long as a small network.
    """
    start = core.random.randint(core.fold(key, 0), (), 0, count)
    parts = (start + _stride(count) * jnp.arange(count)) % count
    times = (parts.astype(dtype) + core.random.uniform(core.fold(key, 1), (count,), dtype)) / count
    return times if steps is None else (jnp.floor(times * steps) + 1).clip(1, steps) / steps


def _stride(count: int) -> int:
    """A number without common factors with `count`: near the golden section of it, or of what 32 bits have room for."""
    stride = max(1, round(0.618034 * min(count, (2**31 - 1) // count - 1)))
    while math.gcd(stride, count) > 1:
        stride -= 1
    return stride
