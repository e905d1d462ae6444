"""The filter of a model in which nothing varies: once covariances stand still, what is left is a linear recurrence.

Time goes in blocks. A block in which something is missing, or before which covariances still moved, is filtered step by
step; the others take one product a step. Which are which is looked at when the program runs, and one program has both,
each once: loops over time are most of what there is to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.kalman import _adjoint as adjoint
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._sharing import sharing
from jaxprob.inference.kalman._square_root import Moments, Seen, product
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of

BLOCK = 128  # times
SQUARINGS = BLOCK.bit_length() - 1


class Gains(NamedTuple):
    """What a time does where covariances stand still.

    Attributes:
      matrix: (n + m, n + m), or (n + m + n, n + m): to the mean x (n, 1 + d) and what is seen y (m, 1 + d), which make
        its columns. Rows are the next prediction, but for the offset; innovations; and the filtered mean, if asked for.
      log_scale: (m,), of the innovations.
      factor: (n, n), root of the filtered covariance; None where it is not asked for.
    """

    matrix: jax.Array
    log_scale: jax.Array
    factor: Any


class Carry(NamedTuple):
    """What goes from block to block.

    Attributes:
      moments: predicted, of the first time.
      gains: for a covariance like theirs.
      still: (), whether it stands still.
    """

    moments: Moments
    gains: Gains
    still: jax.Array


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`."""
    found = sharing(lambda steps: all_times(steps, keep), lambda steps: sequential.all_times(steps, keep))(steps)
    return found if keep else (None, None, found)


def all_times(steps: Steps, keep: bool) -> Any:
    """As `sequential.all_times`."""
    times = steps.varying.seen.shape[0]
    blocks = steps.varying._replace(
        values=_blocks(steps.varying.values, 0), seen=_blocks(steps.varying.seen, fill=True)
    )
    found = _kept(steps, blocks) if keep else _seen(steps.start, steps.constant, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:times], found)


def _blocks(array: jax.Array, fill: Any) -> jax.Array:
    """Time in blocks, (blocks, BLOCK, ...), the last one filled up."""
    widths = [(0, -array.shape[0] % BLOCK), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, widths, constant_values=fill).reshape(-1, BLOCK, *array.shape[1:])


def _begin(start: Moments, constant: Step, keep: bool) -> Carry:
    m, n = constant.emission.shape
    factor = jnp.zeros_like(start.factor)
    matrix = jnp.zeros((n + m + n if keep else n + m, n + m), factor.dtype)
    return Carry(start, Gains(matrix, matrix[0, n:], factor if keep else None), jnp.array(False))


def _complete(blocks: Step) -> jax.Array:
    """Blocks in which nothing is missing, (blocks,)."""
    return jnp.all(blocks.seen.reshape(blocks.seen.shape[0], -1), 1)


def _with_units(moments: Moments, step: Step) -> tuple[Moments, Step]:
    """With columns of units behind those of means and of numbers seen: what comes of them is what each number does."""
    m, n = step.emission.shape
    eye = jnp.asarray(np.eye(n + m), moments.mean.dtype)
    return (
        moments._replace(mean=jnp.concatenate([moments.mean, eye[:n]], 1)),
        step._replace(values=jnp.concatenate([step.values, eye[n:]], 1)),
    )


def _step_by_step(carry: Carry, constant: Step, varying: Step, found: Callable[..., Any]) -> tuple[Carry, Any]:
    """The carry after a block, and at each of its times what is `found` of (predicted, filtered, seen).

    The last time leaves its gains, which are those of the next block if covariances stand still.
    """
    before, columns, keep = carry.moments, carry.moments.mean.shape[1], carry.gains.factor is not None

    def body(at: tuple[Moments, Gains], varying: Step) -> tuple[tuple[Moments, Gains], Any]:
        predicted, _ = at
        step = Steps(predicted, constant, varying).at(varying)
        after, filtered, seen = sequential.advance(*_with_units(predicted, step))
        rows = [after.mean, seen.innovation, filtered.mean][: 3 if keep else 2]
        (after_mean, innovation, *filtered_mean), units = zip(*(_apart(row, columns) for row in rows), strict=True)
        gains = Gains(jnp.concatenate(units), seen.log_scale, filtered.factor if keep else None)
        at_this = (
            predicted,
            Moments(filtered_mean[0], filtered.factor) if keep else None,
            seen._replace(innovation=innovation),
        )
        return (Moments(after_mean, after.factor), gains), found(*at_this)

    # As in `sequential.all_times`.
    body = jax.checkpoint(body, prevent_cse=False) if keep else body
    (after, gains), each = scan.scan(body, (before, carry.gains), varying)
    still = _stands_still(before.factor, after.factor, gains) & jnp.all(varying.seen[-1])
    return Carry(after, gains, still), each


def _apart(array: jax.Array, columns: int) -> tuple[jax.Array, jax.Array]:
    return array[:, :columns], array[:, columns:]


def _stands_still(before: jax.Array, after: jax.Array, gains: Gains) -> jax.Array:
    """Whether a covariance did not move in a block, and no derivative of it would.

    One that began where it ends stands still from the first, and its derivatives may not: of those, a block leaves A^b
    dP (A^b)^T, for the closed loop A and its length b.
    """
    n = after.shape[0]
    before, end, power = lax.stop_gradient((covariance_of(before), covariance_of(after), gains.matrix[:n, :n]))
    spread = jnp.sqrt(jnp.sum(lax.stop_gradient(after) ** 2, 1))
    rounding = 4 * n * jnp.finfo(end.dtype).eps
    still = jnp.all(jnp.abs(end - before) <= rounding * jnp.expand_dims(spread, 0) * jnp.expand_dims(spread, 1))
    # Of directions without variance there are no derivatives.
    inverse = jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0)
    power = jnp.expand_dims(inverse, 1) * power * jnp.expand_dims(spread, 0)
    power = scan.repeat(lambda power, _: product(power, power), power, SQUARINGS)
    return still & jnp.all(power * power <= rounding)


def _mapped(matrix: jax.Array, arrays: jax.Array) -> jax.Array:
    return jnp.einsum("ij,tjc->tic", matrix, arrays, precision="highest")


def _steadily(gains: Gains, constant: Step, mean: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
    """The prediction of a mean after a block in which covariances stand still, and at each of its times.

    Returns:
      (n, 1 + d), predicted after the block; (t, n, 1 + d), at its times; and (t, m, 1 + d) or (t, m + n, 1 + d),
      innovations and, if the gains have rows for them, filtered means.
    """
    n = mean.shape[0]
    of_seen = _mapped(gains.matrix[:, n:], values)
    moved = of_seen[:, :n].at[:, :, 0].add(constant.dynamics_offset)
    decay = gains.matrix[:n, :n]
    end, after = scan.scan(lambda mean, moved: (product(decay, mean) + moved,) * 2, mean, moved)
    means = jnp.concatenate([jnp.expand_dims(mean, 0), after[:-1]])
    return end, means, _mapped(gains.matrix[n:, :n], means) + of_seen[:, n:]


def _repeat(array: jax.Array) -> jax.Array:
    return jnp.broadcast_to(array, (BLOCK, *array.shape))


def _kept(steps: Steps, blocks: Step) -> tuple[Moments, Moments, Seen]:
    """Predicted and filtered moments and what was seen, in blocks."""
    constant = steps.constant

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        moments, gains, _ = carry
        m = varying.seen.shape[1]
        end, means, found = _steadily(gains, constant, moments.mean, varying.values)
        predicted, filtered = Moments(means, _repeat(moments.factor)), Moments(found[:, m:], _repeat(gains.factor))
        after = carry._replace(moments=moments._replace(mean=end))
        return after, (predicted, filtered, Seen(found[:, :m], _repeat(gains.log_scale)))

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda *found: found)

    def block(carry: Carry, at: tuple[Step, jax.Array]) -> tuple[Carry, Any]:
        varying, complete = at
        return lax.cond(core.all_of_batch(carry.still & complete), steadily, step_by_step, carry, varying)

    found: tuple[Moments, Moments, Seen] = scan.scan(
        jax.checkpoint(block, prevent_cse=False), _begin(steps.start, constant, keep=True), (blocks, _complete(blocks))
    )[1]
    return found


@jax.custom_vjp
def _seen(start: Moments, constant: Step, blocks: Step) -> Seen:
    """What was seen, in blocks: `adjoint.seen`, with its adjoint."""

    def block(carry: Carry, at: tuple[Step, jax.Array]) -> tuple[Carry, Any]:
        varying, complete = at
        return lax.cond(core.all_of_batch(carry.still & complete), steadily, step_by_step, carry, varying)

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Seen]:
        end, _, innovations = _steadily(carry.gains, constant, carry.moments.mean, varying.values)
        after = carry._replace(moments=carry.moments._replace(mean=end))
        return after, Seen(innovations, _repeat(carry.gains.log_scale))

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda predicted, filtered, seen: seen)

    found: Seen = scan.scan(block, _begin(start, constant, keep=False), (blocks, _complete(blocks)))[1]
    return found


def _forward(start: Moments, constant: Step, blocks: Step) -> tuple[Seen, Any]:
    def block(carry: Carry, at: tuple[Step, jax.Array]) -> tuple[Carry, Any]:
        varying, complete = at
        steady = core.all_of_batch(carry.still & complete)
        after, (found, predicted) = lax.cond(steady, steadily, step_by_step, carry, varying)
        return after, (found, predicted, carry.gains.matrix, steady)

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        end, means, innovations = _steadily(carry.gains, constant, carry.moments.mean, varying.values)
        after = carry._replace(moments=carry.moments._replace(mean=end))
        predicted = Moments(means, _repeat(carry.moments.factor))
        return after, (Seen(innovations, _repeat(carry.gains.log_scale)), _packed(predicted))

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda predicted, filtered, seen: (seen, _packed(predicted)))

    after, (found, *kept) = scan.scan(block, _begin(start, constant, keep=False), (blocks, _complete(blocks)))
    return found, (constant, blocks, after.moments.factor, *kept)


def _backward(kept: Any, of_found: Seen) -> Any:
    constant, blocks, last, predicted, matrices, steady = kept
    n = constant.emission.shape[1]
    columns = predicted.shape[3] - n

    def block(carry: Any, at: Any) -> tuple[Any, Any]:
        *_, steady = at
        return lax.cond(steady, steadily, step_by_step, carry, at)

    def steadily(carry: Any, at: Any) -> tuple[Any, Any]:
        of_after, of_gains, next_factor, totals = carry
        varying, predicted, matrix, of_seen, _ = at

        def back(of_mean: jax.Array, of_innovation: jax.Array) -> tuple[jax.Array, jax.Array]:
            both = jnp.concatenate([of_mean, of_innovation])
            return product(matrix[:, :n].T, both), both

        of_start, of_rows = scan.scan(back, of_after.mean, of_seen.innovation, reverse=True)
        # A row that is one in the mean's column adds up cotangents of the offset with those of the gains.
        ones = jnp.broadcast_to(jnp.asarray(np.eye(1, columns), predicted.dtype), (BLOCK, 1, columns))
        both = jnp.concatenate([predicted[:, :, :columns], varying.values, ones], 1)
        outer = jnp.einsum("tic,tjc->ij", of_rows, both, precision="highest")
        of_gains = Gains(of_gains.matrix + outer[:, :-1], of_gains.log_scale + jnp.sum(of_seen.log_scale, 0), None)
        totals = totals._replace(dynamics_offset=totals.dynamics_offset + outer[:n, -1])
        return (Moments(of_start, of_after.factor), of_gains, next_factor, totals), _mapped(matrix[:, n:].T, of_rows)

    def step_by_step(carry: Any, at: Any) -> tuple[Any, Any]:
        varying, predicted, _, of_seen, _ = at

        def back(carry: Any, at: Any) -> tuple[Any, Any]:
            of_after, of_gains, next_factor, totals = carry
            varying, predicted, of_seen = at
            moments = Moments(*_apart(predicted, columns))
            wide, step = _with_units(moments, Steps(moments, constant, varying).at(varying))
            of_after = of_after._replace(mean=jnp.concatenate([of_after.mean, of_gains.matrix[:n]], 1))
            of_seen = Seen(
                jnp.concatenate([of_seen.innovation, of_gains.matrix[n:]], 1), of_seen.log_scale + of_gains.log_scale
            )
            before, of_step = adjoint.one_back(wide, step, next_factor, of_after, of_seen)
            totals = jax.tree.map(jnp.add, totals, adjoint.where_there(constant, of_step))
            before = before._replace(mean=before.mean[:, :columns])
            # Gains are those of the last time: of the times before it they have no cotangent.
            none = jax.tree.map(jnp.zeros_like, of_gains)
            return (before, none, moments.factor, totals), of_step.values[:, :columns]

        return scan.scan(back, carry, (varying, predicted, of_seen), reverse=True)

    of_start = jax.tree.map(jnp.zeros_like, Moments(*_apart(predicted[0, 0], columns)))
    of_gains = Gains(jnp.zeros_like(matrices[0]), jnp.zeros_like(of_found.log_scale[0, 0]), None)
    (of_start, _, _, totals), of_values = scan.scan(
        block,
        (of_start, of_gains, last, adjoint.zeros_like(constant)),
        (blocks, predicted, matrices, of_found, steady),
        reverse=True,
    )
    return of_start, totals, blocks._replace(values=of_values, seen=None)


def _packed(moments: Moments) -> jax.Array:
    """As one array, (..., n, 1 + d + n)."""
    return jnp.concatenate([moments.mean, moments.factor], -1)


_seen.defvjp(_forward, _backward)
