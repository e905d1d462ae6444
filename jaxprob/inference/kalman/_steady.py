"""The filter of a model in which nothing varies: once covariances stand still, what is left is a linear recurrence.

Time goes in blocks. A block in which something is missing, or before which covariances still moved, is filtered step by
step; the others take one product a step. Which are which is looked at when the program runs, and one program has both,
each once: loops over time are most of what there is to compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.kalman import _adjoint as adjoint
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._sharing import sharing
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, product
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of

BLOCK = 128  # times
SQUARINGS = BLOCK.bit_length() - 1


class Gains(NamedTuple):
    """What a time does to the mean x (n, 1 + d) and what is seen y (m, 1 + d) where covariances stand still.

    Attributes:
      after: (n, n + m), the next prediction from x and y, but for the offset.
      filtered: (n, n + m), the filtered mean.
      factor: (n, n), root of the filtered covariance.
      seen: of innovations (m, n + m) and scales.
    """

    after: jax.Array
    filtered: jax.Array
    factor: jax.Array
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

    def in_blocks(steps: Steps) -> Any:
        times = steps.varying.seen.shape[0]
        blocks = steps.varying._replace(
            values=_blocks(steps.varying.values, 0), seen=_blocks(steps.varying.seen, fill=True)
        )
        found = _kept(steps, blocks) if keep else _seen(steps.start, steps.constant, blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:times], found)

    found = sharing(in_blocks, lambda steps: sequential.all_times(steps, keep))(steps)
    return found if keep else (None, None, found)


def _blocks(array: jax.Array, fill: Any) -> jax.Array:
    """Time in blocks, (blocks, BLOCK, ...), the last one filled up."""
    widths = [(0, -array.shape[0] % BLOCK), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, widths, constant_values=fill).reshape(-1, BLOCK, *array.shape[1:])


def _begin(start: Moments, constant: Step) -> Carry:
    gains = jax.eval_shape(_gains, start.factor, constant)
    return Carry(start, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gains), jnp.array(False))


def _is_steady(carry: Carry, varying: Step) -> jax.Array:
    return core.all_of_batch(carry.still & jnp.all(varying.seen))


def _next(before: Moments, after: Moments, constant: Step) -> Carry:
    """The carry after a block that was gone through step by step."""
    gains = _gains(after.factor, constant)
    return Carry(after, gains, _stands_still(before.factor, after.factor, gains))


def _units(factor: jax.Array, constant: Step) -> tuple[Moments, Step]:
    """A time of which the columns of means and of numbers seen are units: what comes of them is what each does."""
    m, n = constant.emission.shape
    eye = jnp.eye(n + m, dtype=factor.dtype)
    return Moments(eye[:n], factor), constant._replace(values=eye[n:], seen=jnp.ones((m,), bool))


def _gains(factor: jax.Array, constant: Step) -> Gains:
    moments, step = _units(factor, constant)
    filtered, seen = observe(moments, step.emission, step.emission_covariance, step.values, step.seen)
    return Gains(product(step.dynamics, filtered.mean), filtered.mean, filtered.factor, seen)


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
        after, found = sequential.moments(Steps(carry.moments, constant, varying))
        return _next(carry.moments, after, constant), found

    def block(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        return lax.cond(_is_steady(carry, varying), steadily, step_by_step, carry, varying)

    found: tuple[Moments, Moments, Seen] = scan.scan(
        jax.checkpoint(block, prevent_cse=False), _begin(steps.start, constant), blocks
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

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Seen]:
        found, after = adjoint.seen(carry.moments, constant, varying)
        return _next(carry.moments, after, constant), found

    return scan.scan(block, _begin(start, constant), blocks)[1]


def _forward(start: Moments, constant: Step, blocks: Step) -> tuple[Seen, Any]:
    def block(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        steady = _is_steady(carry, varying)
        after, found = lax.cond(steady, steadily, step_by_step, carry, varying)
        return after, (*found, carry.gains, after.moments.factor, steady)

    def steadily(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        after, means, found = _steadily(carry.gains, constant, carry.moments, varying)
        return carry._replace(moments=after), (found, Moments(means, _repeat(carry.moments.factor)))

    def step_by_step(carry: Carry, varying: Step) -> tuple[Carry, Any]:
        found, after, predicted = adjoint.forward(carry.moments, constant, varying)
        return _next(carry.moments, after, constant), (found, predicted)

    _, (found, *kept) = scan.scan(block, _begin(start, constant), blocks)
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
            jnp.zeros_like(gains.filtered),
            jnp.zeros_like(gains.factor),
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
        # The gains for the blocks that follow were made of the last covariance.
        filtered, unobserve = adjoint.observed(*_units(end, constant))
        cotangent = Moments(product(constant.dynamics.T, of_gains.after), jnp.zeros_like(end))
        of_end, of_step = unobserve(cotangent, of_gains.seen)
        totals = totals._replace(
            dynamics=totals.dynamics + product(of_gains.after, filtered.mean.T),
            emission=totals.emission + of_step.emission,
            emission_covariance=totals.emission_covariance + of_step.emission_covariance,
        )
        of_after = Moments(of_after.mean, of_after.factor + of_end.factor)
        of_start, totals, each = adjoint.backward(
            Steps(of_after, constant, varying), predicted, end, of_after, of_seen, totals
        )
        return (of_start, jax.tree.map(jnp.zeros_like, of_gains), totals), each.values

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
