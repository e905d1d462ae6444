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
    """What a time does to the mean x (n, 1 + d) and what is seen y (m, 1 + d) where covariances stand still.

    Attributes:
      after: (n, n + m), the next prediction from x and y, but for the offset.
      filtered: (n, n + m), the filtered mean; None where it is not asked for.
      factor: (n, n), root of the filtered covariance; likewise.
      seen: of innovations (m, n + m) and scales.
    """

    after: jax.Array
    filtered: Any
    factor: Any
    seen: Seen


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
    (m, n), dtype = constant.emission.shape, start.factor.dtype
    filtered = jnp.zeros((n, n + m), dtype)
    seen = Seen(jnp.zeros((m, n + m), dtype), jnp.zeros((m,), dtype))
    gains = Gains(filtered, filtered, jnp.zeros_like(start.factor), seen)
    return Carry(start, gains if keep else gains._replace(filtered=None, factor=None), jnp.array(False))


def _is_steady(carry: Carry, varying: Step) -> jax.Array:
    return core.all_of_batch(carry.still & jnp.all(varying.seen))


def _with_units(moments: Moments, step: Step) -> tuple[Moments, Step]:
    """With columns of units behind those of means and of numbers seen: what comes of them is what each number does."""
    m, n = step.emission.shape
    eye = jnp.eye(n + m, dtype=moments.mean.dtype)
    return (
        moments._replace(mean=jnp.concatenate([moments.mean, eye[:n]], 1)),
        step._replace(values=jnp.concatenate([step.values, eye[n:]], 1)),
    )


def _without_units(columns: int, moments: Moments, seen: Seen) -> tuple[Moments, Seen]:
    return moments._replace(mean=moments.mean[:, :columns]), seen._replace(innovation=seen.innovation[:, :columns])


def _step_by_step(carry: Carry, constant: Step, varying: Step, found: Callable[..., Any]) -> tuple[Carry, Any]:
    """The carry after a block, and at each of its times what is `found` of (predicted, filtered, seen).

    The last time leaves its gains, which are those of the next block if covariances stand still.
    """
    before, columns = carry.moments, carry.moments.mean.shape[1]

    def body(at: tuple[Moments, Gains], varying: Step) -> tuple[tuple[Moments, Gains], Any]:
        predicted, gains = at
        step = Steps(predicted, constant, varying).at(varying)
        after, filtered, seen = sequential.advance(*_with_units(predicted, step))
        units = Seen(seen.innovation[:, columns:], seen.log_scale)
        gains = gains._replace(after=after.mean[:, columns:], seen=units)
        if gains.factor is not None:
            gains = gains._replace(filtered=filtered.mean[:, columns:], factor=filtered.factor)
        after, seen = _without_units(columns, after, seen)
        filtered, _ = _without_units(columns, filtered, seen)
        return (after, gains), found(predicted, filtered, seen)

    # As in `sequential.all_times`.
    body = jax.checkpoint(body, prevent_cse=False) if carry.gains.factor is not None else body
    (after, gains), each = scan.scan(body, (before, carry.gains), varying)
    still = _stands_still(before.factor, after.factor, gains) & jnp.all(varying.seen[-1])
    return Carry(after, gains, still), each


def _stands_still(before: jax.Array, after: jax.Array, gains: Gains) -> jax.Array:
    """Whether a covariance did not move in a block, and no derivative of it would.

    One that began where it ends stands still from the first, and its derivatives may not: of those, a block leaves A^b
    dP (A^b)^T, for the closed loop A and its length b.
    """
    before, end, power = lax.stop_gradient((covariance_of(before), covariance_of(after), gains.after))
    n = end.shape[0]
    spread = jnp.sqrt(jnp.diagonal(end))
    rounding = 4 * n * jnp.finfo(end.dtype).eps
    still = jnp.all(jnp.abs(end - before) <= rounding * jnp.expand_dims(spread, 0) * jnp.expand_dims(spread, 1))
    # Of directions without variance there are no derivatives.
    inverse = jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 0)
    power = jnp.expand_dims(inverse, 1) * power[:, :n] * jnp.expand_dims(spread, 0)
    power = scan.repeat(lambda power, _: product(power, power), power, SQUARINGS)
    return still & jnp.all(power * power <= rounding)


def _means(gains: Gains, offset: jax.Array, mean: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean after a block, and those predicted at its times."""
    n = mean.shape[0]
    moved = _mapped(gains.after[:, n:], values)
    moved = moved.at[:, :, 0].add(offset)
    decay = gains.after[:, :n]
    end, after = scan.scan(lambda mean, moved: (product(decay, mean) + moved,) * 2, mean, moved)
    return end, jnp.concatenate([jnp.expand_dims(mean, 0), after[:-1]])


def _mapped(matrix: jax.Array, arrays: jax.Array) -> jax.Array:
    return jnp.einsum("ij,tjc->tic", matrix, arrays, precision="highest")


def _steadily(gains: Gains, constant: Step, moments: Moments, varying: Step) -> tuple[Moments, jax.Array, Seen]:
    """The prediction after a block in which covariances stand still, the means predicted, and what was seen."""
    n = moments.mean.shape[0]
    end, means = _means(gains, constant.dynamics_offset, moments.mean, varying.values)
    matrix = gains.seen.innovation
    innovations = _mapped(matrix[:, :n], means) + _mapped(matrix[:, n:], varying.values)
    seen = Seen(innovations, _repeat(gains.seen.log_scale))
    return Moments(end, moments.factor), means, seen


def _repeat(array: jax.Array) -> jax.Array:
    return jnp.broadcast_to(array, (BLOCK, *array.shape))


def _kept(steps: Steps, blocks: Step) -> tuple[Moments, Moments, Seen]:
    """Predicted and filtered moments and what was seen, in blocks."""
    constant = steps.constant

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        moments, gains, _ = carry
        n = moments.mean.shape[0]
        after, means, seen = _steadily(gains, constant, moments, varying)
        filtered = _mapped(gains.filtered[:, :n], means) + _mapped(gains.filtered[:, n:], varying.values)
        predicted = Moments(means, _repeat(moments.factor))
        return carry._replace(moments=after), (predicted, Moments(filtered, _repeat(gains.factor)), seen)

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda *found: found)

    def block(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return lax.cond(_is_steady(carry, varying), steadily, step_by_step, carry, varying)

    found: tuple[Moments, Moments, Seen] = scan.scan(
        jax.checkpoint(block, prevent_cse=False), _begin(steps.start, constant, keep=True), blocks
    )[1]
    return found


@jax.custom_vjp
def _seen(start: Moments, constant: Step, blocks: Step) -> Seen:
    """What was seen, in blocks: `adjoint.seen`, with its adjoint."""

    def block(carry: Carry, varying: Step) -> tuple[Carry, Seen]:
        return lax.cond(_is_steady(carry, varying), steadily, step_by_step, carry, varying)

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Seen]:
        after, _, found = _steadily(carry.gains, constant, carry.moments, varying)
        return carry._replace(moments=after), found

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda predicted, filtered, seen: seen)

    found: Seen = scan.scan(block, _begin(start, constant, keep=False), blocks)[1]
    return found


def _forward(start: Moments, constant: Step, blocks: Step) -> tuple[Seen, Any]:
    def block(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        steady = _is_steady(carry, varying)
        after, found = lax.cond(steady, steadily, step_by_step, carry, varying)
        return after, (*found, carry.gains, after.moments.factor, steady)

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        after, means, found = _steadily(carry.gains, constant, carry.moments, varying)
        return carry._replace(moments=after), (found, Moments(means, _repeat(carry.moments.factor)))

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return _step_by_step(carry, constant, varying, lambda predicted, filtered, seen: (seen, predicted))

    _, (found, *kept) = scan.scan(block, _begin(start, constant, keep=False), blocks)
    return found, (constant, blocks, *kept)


def _backward(kept: Any, of_found: Seen) -> Any:
    constant, blocks, predicted, gains, ends, steady = kept
    n = constant.emission.shape[1]

    def block(carry: Any, at: Any) -> tuple[Any, Any]:
        *_, steady = at
        return lax.cond(steady, steadily, step_by_step, carry, at)

    def steadily(carry: Any, at: Any) -> tuple[Any, Any]:
        of_after, of_gains, totals = carry
        varying, predicted, gains, _, of_seen, _ = at

        def back(of_mean: jax.Array, of_innovation: jax.Array) -> tuple[jax.Array, jax.Array]:
            before = product(gains.after[:, :n].T, of_mean) + product(gains.seen.innovation[:, :n].T, of_innovation)
            return before, of_mean

        of_start, of_means = scan.scan(back, of_after.mean, of_seen.innovation, reverse=True)
        both = jnp.concatenate([predicted.mean, varying.values], 1)
        more = Gains(
            _outer(of_means, both),
            None,
            None,
            Seen(_outer(of_seen.innovation, both), jnp.sum(of_seen.log_scale, 0)),
        )
        of_values = _mapped(gains.after[:, n:].T, of_means) + _mapped(
            gains.seen.innovation[:, n:].T, of_seen.innovation
        )
        totals = totals._replace(dynamics_offset=totals.dynamics_offset + jnp.sum(of_means[:, :, 0], 0))
        of_gains = jax.tree.map(jnp.add, of_gains, more)
        return (Moments(of_start, of_after.factor), of_gains, totals), of_values

    def step_by_step(carry: Any, at: Any) -> tuple[Any, Any]:
        of_after, of_gains, totals = carry
        varying, predicted, _, end, of_seen, _ = at
        columns = predicted.mean.shape[2]

        def back(carry: Any, at: Any) -> tuple[Any, Any]:
            of_after, of_gains, next_factor, totals = carry
            varying, moments, of_seen = at
            wide, step = _with_units(moments, Steps(moments, constant, varying).at(varying))
            of_after = of_after._replace(mean=jnp.concatenate([of_after.mean, of_gains.after], 1))
            of_units = of_gains.seen
            of_seen = Seen(
                jnp.concatenate([of_seen.innovation, of_units.innovation], 1), of_seen.log_scale + of_units.log_scale
            )
            before, of_step = adjoint.one_back(wide, step, next_factor, of_after, of_seen)
            totals = jax.tree.map(jnp.add, totals, adjoint.where_there(constant, of_step))
            before = before._replace(mean=before.mean[:, :columns])
            # Gains are those of the last time: of the times before it they have no cotangent.
            none = jax.tree.map(jnp.zeros_like, of_gains)
            return (before, none, moments.factor, totals), of_step.values[:, :columns]

        (of_start, of_gains, _, totals), of_values = scan.scan(
            back, (of_after, of_gains, end, totals), (varying, predicted, of_seen), reverse=True
        )
        return (of_start, of_gains, totals), of_values

    first: Any = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), (gains, Moments(predicted.mean[0], ends)))
    totals = adjoint.zeros_like(constant)
    (of_start, _, totals), of_values = scan.scan(
        block, (first[1], first[0], totals), (blocks, predicted, gains, ends, of_found, steady), reverse=True
    )
    return of_start, totals, blocks._replace(values=of_values, seen=None)


_seen.defvjp(_forward, _backward)


def _outer(ones: jax.Array, others: jax.Array) -> jax.Array:
    """The sum over times of the products of (t, i, c) and (t, j, c), (i, j)."""
    return jnp.einsum("tic,tjc->ij", ones, others, precision="highest")
