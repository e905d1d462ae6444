"""The filter of a model in which nothing varies: covariances settle, and what is left is a linear recurrence.

Until then it is the sequential filter. Whether they have settled is looked at when the program runs, and so is whether
anything is missing: if they have not, or something is, the sequential filter does it all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import scan
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, product
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of

SETTLING = 256  # times after which covariances are looked at


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`, for more than `SETTLING` times."""
    first = jax.tree.map(lambda leaf: leaf[: SETTLING + 1], steps.varying)
    # Told that nothing is missing: then covariances do not depend on the data, and a batch of series shares them.
    told = steps._replace(varying=first._replace(seen=None), constant=steps.constant._replace(seen=_every(steps)))
    begin = sequential.run(told)
    predicted = begin[0]
    begin, start = jax.tree.map(lambda leaf: leaf[:-1], begin), jax.tree.map(lambda leaf: leaf[-1], predicted)
    # Over half of the times, so that covariances which settle slowly are not taken for settled.
    middle, end = (covariance_of(predicted.factor[time]) for time in (SETTLING // 2, SETTLING))
    spread = jnp.sqrt(jnp.diagonal(end))
    rounding = 4 * end.shape[0] * jnp.finfo(end.dtype).eps
    settled = jnp.all(jnp.abs(end - middle) <= rounding * jnp.expand_dims(spread, 0) * jnp.expand_dims(spread, 1))

    def steady(steps: Steps, begin: Any, start: Moments) -> Any:
        more = _recurrence(steps, start, jax.tree.map(lambda leaf: leaf[SETTLING:], steps.varying))
        whole = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), begin, more)
        return whole if keep else whole[2]

    def stepwise(steps: Steps, *_: Any) -> Any:
        found = sequential.run(steps, keep)
        return found if keep else found[2]

    complete = _all_of_batch(lax.stop_gradient(steps.varying.seen))
    # What the branch not taken would keep for a gradient is not made.
    found = lax.cond(complete & lax.stop_gradient(settled), steady, jax.checkpoint(stepwise), steps, begin, start)
    return found if keep else (None, None, found)


def _every(steps: Steps) -> jax.Array:
    return jnp.ones(steps.varying.seen.shape[1:], bool)


def _recurrence(steps: Steps, start: Moments, rest: Step) -> tuple[Moments, Moments, Seen]:
    """What is left once covariances stand still: x+ = (F M) x + F K y + b, where filtering maps x to M x + K y."""
    constant = steps.constant
    n, m, dtype = start.mean.shape[0], constant.emission.shape[0], start.mean.dtype
    basis = Moments(jnp.concatenate([jnp.eye(n, dtype=dtype), jnp.zeros((n, m), dtype)], 1), start.factor)
    units = jnp.concatenate([jnp.zeros((m, n), dtype), jnp.eye(m, dtype=dtype)], 1)
    filtered, seen = observe(basis, constant.emission, constant.emission_covariance, units, _every(steps))
    values = rest.values
    times, columns = values.shape[0], values.shape[2]

    def mapped(matrix: jax.Array, arrays: jax.Array) -> jax.Array:
        return jnp.einsum("ij,tjc->tic", matrix, arrays, precision="highest")

    increments = mapped(product(constant.dynamics, filtered.mean[:, n:]), values)
    increments = increments.at[:, :, 0].add(constant.dynamics_offset)
    decay = product(constant.dynamics, filtered.mean[:, :n])
    # Columns are blocks of one state.
    states = scan.affine(
        jnp.broadcast_to(decay, (1, 1, n, n)), jnp.swapaxes(increments, 1, 2), start.mean.T, method="sequential"
    ).states
    means = jnp.swapaxes(jnp.concatenate([jnp.expand_dims(start.mean.T, 0), states[:-1]]), 1, 2)
    innovations = mapped(seen.innovation[:, :n], means) + mapped(seen.innovation[:, n:], values)
    after = mapped(filtered.mean[:, :n], means) + mapped(filtered.mean[:, n:], values)

    def repeat(array: jax.Array) -> jax.Array:
        return jnp.broadcast_to(array, (times, *array.shape))

    assert innovations.shape == (times, m, columns)
    return (
        Moments(means, repeat(start.factor)),
        Moments(after, repeat(filtered.factor)),
        Seen(innovations, repeat(seen.log_scale)),
    )


@jax.custom_batching.custom_vmap
def _all_of_batch(seen: jax.Array) -> jax.Array:
    """Whether all is true, in all of a batch: one answer for all, so that a branch on it stays a branch under vmap."""
    return jnp.all(seen)


@_all_of_batch.def_vmap
def _(axis_size: int, in_batched: Any, seen: jax.Array) -> tuple[jax.Array, bool]:
    return _all_of_batch(seen), False
