"""The training step: a pure function of a key, a state and a batch, for `jit`, `scan` and any sharding.

Source: Micikevicius et al. (2018), "Mixed precision training", for the master copy; Pascanu, Mikolov and Bengio (2013),
"On the difficulty of training recurrent neural networks", for clipping; Polyak and Juditsky (1992) for the average.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxprob import core, scan
from jaxprob.learning._ema import averaged
from jaxprob.learning._task import Task

_OWN = ("loss", "gradient_norm", "finite")


class TrainingState(NamedTuple):
    """What the next step of training needs.

    Attributes:
      params: pytree of parameters; the master copy where a task computes in another dtype.
      optimizer_state: of the task's optimiser.
      average: pytree like `params`, their moving average in float32 at least; None where the task has none.
      step: int32 scalar, number of steps taken.
    """

    params: Any
    optimizer_state: Any
    average: Any
    step: jax.Array

    @property
    def evaluation_params(self) -> Any:
        """The parameters to evaluate with: the average where there is one, in the dtypes of the parameters."""
        if self.average is None:
            return self.params
        return jax.tree.map(lambda m, p: m.astype(p.dtype), self.average, self.params)


class Training(NamedTuple):
    """The two pure functions of training.

    Attributes:
      init: `params -> TrainingState`.
      step: `(key, state, batch) -> (TrainingState, info)`.
    """

    init: Callable[[Any], TrainingState]
    step: Callable[[core.Key, TrainingState, Any], tuple[TrainingState, dict[str, jax.Array]]]


def training(task: Task) -> Training:
    """The training of a task as two pure functions.

    `step` computes the gradient g of the loss (the mean over micro-batches), scales it to min(1, max_gradient_norm /
    |g|) g, and lets the optimiser move the parameters. Its info has the scalars "loss", "gradient_norm" (before
    clipping), "finite" (whether both are) and the metrics of the loss. Where the loss or the gradient is not finite the
    state is returned as it was.

    Args:
      task: what is trained.

    Returns:
      `Training(init, step)`.

    Raises:
      TypeError: by `init`, if a parameter is not real and floating.
      ValueError: by `step`, when it is traced: if the loss is no scalar, a metric is none or is named like one of
        `step`'s own, or the micro-batches do not divide the batch.

    >>> task = Task(lambda key: jnp.zeros(()), lambda w, batch, key: jnp.mean((w - batch) ** 2), optax.sgd(0.5))
    >>> init, step = training(task)
    >>> state, info = step(jax.random.key(0), init(task.init(jax.random.key(1))), jnp.array([1.0, 3.0]))
    >>> f"{state.params:.3f} {info['loss']:.3f} {info['gradient_norm']:.3f}"
    '2.000 5.000 4.000'
    """
    optimizer = optax.with_extra_args_support(task.optimizer)

    def init(params: Any) -> TrainingState:
        params = jax.tree.map(jnp.asarray, params)
        _check_params(params)
        if task.compute_dtype is not None:
            params = _wide(params)
        with jax.numpy_dtype_promotion("standard"):
            optimizer_state = optimizer.init(params)
        # A copy, so that params and average may both be donated.
        average = None if task.ema is None else jax.tree.map(jnp.copy, _wide(params))
        return TrainingState(params, optimizer_state, average, jnp.zeros((), jnp.int32))

    def step(key: core.Key, state: TrainingState, batch: Any) -> tuple[TrainingState, dict[str, jax.Array]]:
        value, metrics, gradient = _gradient(task, state.params, batch, key)
        norm = _norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def move(state: TrainingState) -> TrainingState:
            scaled = gradient
            if task.max_gradient_norm is not None:
                scale = task.max_gradient_norm / jnp.maximum(norm, task.max_gradient_norm)
                scaled = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
            with jax.numpy_dtype_promotion("standard"):
                updates, optimizer_state = optimizer.update(scaled, state.optimizer_state, state.params, value=value)
                params = optax.apply_updates(state.params, updates)
            count = state.step + 1
            average = None if task.ema is None else averaged(state.average, params, task.ema, count)
            return TrainingState(params, optimizer_state, average, count)

        # Not `jnp.where` over the leaves: a loop could then not update them in place, and copied all of them (a third
        # more time a step for a small network).
        state = lax.cond(finite, move, lambda state: state, state)
        return state, {"loss": value, "gradient_norm": norm, "finite": finite, **metrics}

    return Training(init, step)


def evaluation(task: Task) -> Callable[[core.Key, Any, Any], dict[str, jax.Array]]:
    """The validation loss of a task: a pure function `(key, params, batch) -> info`, with "loss" and its metrics.

    Args:
      task: what is evaluated, in the dtype in which it computes.

    >>> task = Task(lambda key: jnp.zeros(()), lambda w, batch, key: jnp.mean((w - batch) ** 2), optax.sgd(0.5))
    >>> float(evaluation(task)(jax.random.key(0), jnp.ones(()), jnp.array([1.0, 3.0]))["loss"])
    2.0
    """

    judged = task if task.validation_loss is None else dataclasses.replace(task, loss=task.validation_loss)

    def evaluate(key: core.Key, params: Any, batch: Any) -> dict[str, jax.Array]:
        value, metrics = _loss(judged, params, batch, key)
        return {"loss": value, **metrics}

    return evaluate


def _wide(params: Any) -> Any:
    """Parameters in float32 at least."""
    return jax.tree.map(lambda p: p.astype(core.accumulator_dtype(p.dtype)), params)


def _check_params(params: Any) -> None:
    if not jax.tree.leaves(params):
        raise core.bad_value("training", "params", "without arrays", "a pytree with one parameter at least")
    for name, leaf in core.named_leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
            todo = "Store its real and imaginary parts" if is_complex else "Keep it out of the parameters"
            raise core.bad_type("training", f"parameter {name!r}", f"of {leaf.dtype}", "real floating numbers", todo)


def _gradient(task: Task, params: Any, batch: Any, key: core.Key) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """The loss, its metrics and its gradient, of a batch taken whole or in pieces."""

    value_and_gradient = jax.value_and_grad(functools.partial(_loss, task), has_aux=True)
    if task.micro_batches == 1:
        (value, metrics), gradient = value_and_gradient(params, batch, key)
        return value, metrics, gradient

    def add(total: Any, piece: Any) -> tuple[Any, Any]:
        found, gradient = value_and_gradient(params, *piece)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), found

    count = task.micro_batches
    pieces = _cut(batch, count), core.chain_keys(key, jnp.arange(count))
    zero = jax.tree.map(lambda p: jnp.zeros_like(p, core.accumulator_dtype(p.dtype)), params)
    total, found = scan.scan(add, zero, pieces)
    value, metrics = jax.tree.map(_mean, found)
    return value, metrics, jax.tree.map(lambda t, p: (t / count).astype(p.dtype), total, params)


def _loss(task: Task, params: Any, batch: Any, key: core.Key) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its metrics, in the dtype in which the task computes."""
    if task.compute_dtype is not None:
        params = jax.tree.map(lambda p: p.astype(task.compute_dtype), params)
    return _checked(task.loss(params, batch, key))


def _checked(result: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss in float32 at least and its metrics, checked."""
    value, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(metrics, dict):
        raise core.bad_type("training", "the metrics of the loss", metrics, "a dict of scalars")
    if not jax.tree_util.all_leaves([value]):
        raise core.bad_type("training", "the loss", value, "a scalar, or (scalar, dict of metrics)")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        got = f"{jnp.result_type(value)} of shape {jnp.shape(value)}"
        raise core.bad_value("training", "the loss", got, "a floating scalar", "Take the mean over the batch")
    for name, metric in metrics.items():
        if name in _OWN:
            raise core.bad_value("training", f"metric {name!r}", "named like one of the step", f"a name not in {_OWN}")
        if not jax.tree_util.all_leaves([metric]):
            raise core.bad_type("training", f"metric {name!r}", metric, "a scalar")
        if jnp.shape(metric) != ():
            raise core.bad_value("training", f"metric {name!r}", f"of shape {jnp.shape(metric)}", "a scalar")
    value = jnp.asarray(value)
    return value.astype(core.accumulator_dtype(value.dtype)), {name: jnp.asarray(m) for name, m in metrics.items()}


def _cut(batch: Any, count: int) -> Any:
    """A batch (example, ...) as pieces (piece, example, ...): piece i has the examples i, i + count, ..."""
    shapes = [(name, jnp.shape(leaf)) for name, leaf in core.named_leaves(batch)]
    for name, shape in shapes:
        got = f"of {shape[0]} examples" if shape else "a scalar"
        if not shape or shape[0] % count:
            expected = f"a number of examples that micro_batches={count} divides"
        elif shape[0] != shapes[0][1][0]:
            expected = f"{shapes[0][1][0]}, as leaf {shapes[0][0]!r}"
        else:
            continue
        raise core.bad_value("training", f"batch, leaf {name!r},", got, expected)
    return jax.tree.map(lambda x: jnp.swapaxes(jnp.reshape(x, (-1, count, *jnp.shape(x)[1:])), 0, 1), batch)


def _mean(values: jax.Array) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return jnp.mean(values, dtype=core.accumulator_dtype(values.dtype))
    return jnp.mean(values.astype(jnp.float32))


def _norm(gradient: Any) -> jax.Array:
    """The Euclidean norm over all leaves, in float32 at least; infinite above 1e19, in one pass over the leaves."""
    leaves = [g.astype(core.accumulator_dtype(g.dtype)) for g in jax.tree.leaves(gradient)]
    with jax.numpy_dtype_promotion("standard"):
        # As products, since XLA adds up squares one by one on CPU.
        return jnp.sqrt(sum(jnp.tensordot(g, g, g.ndim, precision=lax.Precision.HIGHEST) for g in leaves))
