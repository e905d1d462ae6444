"""The filter of a model in which nothing varies: covariances settle, and what is left is a linear recurrence.

Until then it is the sequential filter. Whether they have settled is looked at when the program runs, and so is whether
anything is missing: if they have not, or something is, the sequential filter does it all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core, scan
from jaxprob.inference.kalman import _adjoint as adjoint
from jaxprob.inference.kalman import _sequential as sequential
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, product
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of

SETTLING = 256  # times after which covariances are looked at
HALF = SETTLING // 2


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`, for more than `SETTLING` times."""
    begin, middle, start = _begin(steps, keep)
    # What the branch not taken would keep for a gradient is not made.
    return lax.cond(
        _settled(steps, middle, start),
        lambda steps, begin, start: _steady(steps, begin, start, keep),
        jax.checkpoint(lambda steps, *_: sequential.run(steps, keep)),
        *(steps, begin, start),
    )


def gradient(function: Any, steps: Steps) -> tuple[jax.Array, Steps]:
    """As `adjoint.gradient`; each branch has a derivative of its own, and nothing is kept for the one not taken."""
    # The first times are gone through once, before it is known which branch follows, and are gone back through in the
    # branch that stands on them: loops are most of what there is to compile.
    (begin, middle, start), back = adjoint.pullback(lambda steps: _begin(steps, keep=False), steps)

    def settled(steps: Steps) -> tuple[jax.Array, Steps]:
        def total(everything: Any) -> jax.Array:
            steps, begin, start = everything
            return function(_steady(steps, begin, start, keep=False)[2])

        value, (slopes, of_begin, of_start) = adjoint.gradient(total, (steps, begin, start))
        earlier = back((of_begin, jax.tree.map(jnp.zeros_like, middle), of_start))
        return value, jax.tree.map(jnp.add, slopes, earlier)

    return lax.cond(
        _settled(steps, middle, start),
        settled,
        lambda steps: adjoint.gradient(lambda steps: function(sequential.run(steps, keep=False)[2]), steps),
        steps,
    )


def _begin(steps: Steps, keep: bool) -> tuple[Any, Moments, Moments]:
    """The first times as `sequential.run` has them, the prediction at their middle and that after them."""
    # Told that nothing is missing: then covariances do not depend on the data, and a batch of series shares them.
    varying, constant = steps.varying._replace(seen=None), steps.constant._replace(seen=_every(steps))

    def times(tree: Any, first: int, end: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[first:end], tree)

    if keep:
        begin = sequential.run(Steps(steps.start, constant, times(varying, 0, SETTLING + 1)))
        middle, start = (jax.tree.map(lambda leaf, at=at: leaf[at], begin[0]) for at in (HALF, SETTLING))
        return times(begin, 0, SETTLING), middle, start
    # One loop over both halves, which is compiled once.
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, HALF, *leaf.shape[1:]), times(varying, 0, SETTLING))

    def half(moments: Moments, varying: Step) -> tuple[Moments, Any]:
        found, after = adjoint.seen(moments, constant, varying)
        return after, (found, after)

    start, (found, ends) = scan.scan(half, steps.start, halves)
    found = jax.tree.map(lambda leaf: leaf.reshape(SETTLING, *leaf.shape[2:]), found)
    return (None, None, found), jax.tree.map(lambda leaf: leaf[0], ends), start


def _settled(steps: Steps, middle: Moments, start: Moments) -> jax.Array:
    """Whether nothing is missing and covariances stand still.

    Over half of the times, so that covariances which settle slowly are not taken for settled.
    """
    before, end = (covariance_of(lax.stop_gradient(moments.factor)) for moments in (middle, start))
    spread = jnp.sqrt(jnp.diagonal(end))
    rounding = 4 * end.shape[0] * jnp.finfo(end.dtype).eps
    still = jnp.all(jnp.abs(end - before) <= rounding * jnp.expand_dims(spread, 0) * jnp.expand_dims(spread, 1))
    return core.all_of_batch(jnp.all(steps.varying.seen)) & still


def _steady(steps: Steps, begin: Any, start: Moments, keep: bool) -> tuple[Any, Any, Seen]:
    more: Any = _recurrence(steps, start, jax.tree.map(lambda leaf: leaf[SETTLING:], steps.varying))
    if not keep:
        more = None, None, more[2]
    whole: tuple[Any, Any, Seen] = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), begin, more)
    return whole


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
