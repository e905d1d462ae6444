"""The filter parallel in time: as a tree, or in chunks; the likelihood is made of all innovations side by side.

The likelihood is no part of what is scanned: carried there it loses its digits, or is NaN, where noise is singular or
the initial state known.

In chunks, on a CPU: what a chunk of times makes of the state before it is linear, and what it says of that state is as
if numbers of it were observed. Both are what the plain filter finds when it is told that state, whose unit vectors are
carried along as columns that go the way of the mean. A second pass filters all chunks from where they begin.

Source: Yaghoobi, Corenflos, Hassan & Särkkä (2022), "Parallel square-root statistical linear regression for inference
in nonlinear state space models", for the tree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import scan
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, observe_one, predict, product, triangularize
from jaxprob.inference.kalman._steps import Step, Steps
from jaxprob.scan import monoids

# The most of them: with more the arrays of a step fall out of the fast part of a cache (benchmark on a CPU).
CHUNKS = 32


class Move(NamedTuple):
    """The move to a time from the one before; to the first time, from nowhere to where the state begins.

    Attributes:
      dynamics: (n, n).
      offset: (n, 1 + d).
      root: (n, n).
    """

    dynamics: jax.Array
    offset: jax.Array
    root: jax.Array


class Chunk(NamedTuple):
    """What a chunk of times is to the state before it: x after it is A x + b + U w, and z = Z x + N(0, I) was seen.

    Attributes:
      A: (n, n).
      b: (n, 1 + d).
      U: (n, n).
      Z: (n, n).
      z: (n, 1 + d).
    """

    A: jax.Array
    b: jax.Array
    U: jax.Array
    Z: jax.Array
    z: jax.Array


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`."""
    return (in_chunks if jax.default_backend() == "cpu" else as_tree)(steps, keep)


def in_chunks(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `run`, by two passes over chunks of times, side by side."""
    every, start = steps.everywhere, steps.start
    times = every.seen.shape[0]
    n, columns = start.mean.shape
    length = -(-times // min(CHUNKS, math.isqrt(times - 1) + 1))
    offsets = jnp.pad(jnp.expand_dims(every.dynamics_offset[:-1], 2), ((0, 0), (0, 0), (0, columns - 1)))
    first = Move(jnp.zeros_like(start.factor), start.mean, start.factor)
    rest = Move(every.dynamics[:-1], offsets, every.dynamics_root[:-1])
    moves = jax.tree.map(lambda one, all: jnp.concatenate([jnp.expand_dims(one, 0), all]), first, rest)

    # The last n columns are for the unit vectors of the state before a chunk.
    looks = (*every[3:5], jnp.pad(every.values, ((0, 0), (0, 0), (0, n))), every.seen)

    def cut(all: jax.Array) -> jax.Array:
        # Times after the last one have nothing but zeros, and are cut off again.
        all = jnp.pad(all, [(0, -times % length)] + [(0, 0)] * (all.ndim - 1))
        return all.reshape(-1, length, *all.shape[1:])

    cuts = jax.tree.map(cut, (moves, looks))

    def advance(filtered: Moments, xs: Any) -> tuple[Moments, tuple[Moments, Moments, Seen]]:
        move, look = xs
        predicted = predict(filtered, *move)
        after, seen = observe(predicted, *look)
        return after, (predicted, after, seen)

    body = jax.checkpoint(advance, prevent_cse=False)

    def summed_up(end: Moments, innovations: jax.Array) -> Chunk:
        # Innovations are e - E x: of x they say what Z x does, for the triangle [Z^T 0; z^T r] of the rows [E^T; e^T].
        e, slopes = jnp.split(innovations.reshape(-1, columns + n).T, [columns])
        root = triangularize(jnp.concatenate([-slopes, e]), once=True)
        return Chunk(end.mean[:, columns:], end.mean[:, :columns], end.factor, root[:n, :n].T, root[n:, :n].T)

    def see(filtered: Moments, one: Any) -> tuple[Moments, None]:
        row, value = one
        return observe_one(filtered, row, jnp.ones_like(row[0]), value, jnp.bool_(True))[0], None

    def pass_on(filtered: Moments, chunk: Chunk) -> tuple[Moments, Moments]:
        known, _ = scan.scan(see, filtered, (chunk.Z, chunk.z))
        return predict(known, chunk.A, chunk.b, chunk.U), filtered

    def filter_all(begins: Moments, _: Any) -> tuple[Moments, Any]:
        ends, found = jax.vmap(lambda begin, xs: scan.scan(body, begin, xs))(begins, cuts)
        chunks = jax.vmap(summed_up)(ends, found[2].innovation)
        begins = scan.scan(pass_on, jax.tree.map(jnp.zeros_like, start), chunks)[1]
        return begins._replace(mean=jnp.pad(begins.mean, ((0, 0), (0, 0), (0, n)))), found

    # The first pass knows where chunks begin, zero but for a unit vector; the second has what was filtered up to there.
    # One program does both.
    count = jax.tree.leaves(cuts)[0].shape[0]
    begin = Moments(jnp.eye(n, columns + n, k=columns, dtype=start.mean.dtype), jnp.zeros_like(start.factor))
    begins = jax.tree.map(lambda one: jnp.broadcast_to(one, (count, *one.shape)), begin)
    found = jax.tree.map(lambda all: all[1], scan.scan(filter_all, begins, None, length=2)[1])
    predicted, filtered, seen = jax.tree.map(lambda all: all.reshape(-1, *all.shape[2:])[:times], found)
    seen = seen._replace(innovation=seen.innovation[..., :columns])
    if not keep:
        return None, None, seen
    return *(moments._replace(mean=moments.mean[..., :columns]) for moments in (predicted, filtered)), seen


def as_tree(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `run`, by an associative scan of the moments."""
    every = steps.everywhere
    n = steps.start.mean.shape[0]
    before = Step(*(jnp.concatenate([entry[:1], entry[:-1]]) for entry in every))
    elements = jax.vmap(element)(before, every)
    first = observe(steps.start, *(leaf[0] for leaf in every[3:]))[0]
    zero = jnp.zeros((n, n), first.mean.dtype)
    start = monoids.SquareRootFilterElement(zero, first.mean, first.factor, jnp.zeros_like(first.mean), zero)
    elements = jax.tree.map(lambda all, one: all.at[0].set(one), elements, start)

    def one_column(b: jax.Array, eta: jax.Array) -> tuple[jax.Array, jax.Array]:
        filtered = scan.associative(
            monoids.square_root_gaussian_filter.combine, elements._replace(b=b, eta=eta), method="parallel"
        ).states
        return filtered.b, filtered.U

    means, factors = jax.vmap(one_column, in_axes=(2, 2), out_axes=(2, None))(elements.b, elements.eta)
    filtered = Moments(means, factors)
    moved = jax.vmap(predict)(filtered, every.dynamics, every.dynamics_offset, every.dynamics_root)
    predicted = jax.tree.map(lambda one, all: jnp.concatenate([one[None], all[:-1]]), steps.start, moved)
    after, seen = jax.vmap(observe)(predicted, *every[3:])
    return (predicted, after, seen) if keep else (None, None, seen)


def element(before: Step, step: Step) -> Any:
    """Prediction from the time before, and conditioning: as a map of the state there, and a likelihood of it."""
    n = before.dynamics.shape[0]
    columns = step.values.shape[1]
    dtype = step.values.dtype
    # The state of the time before enters by its unit vectors: columns that go the way of the mean.
    offset = jnp.zeros((n, columns), dtype).at[:, 0].set(before.dynamics_offset)
    mean = jnp.concatenate([offset, before.dynamics], 1)
    values = jnp.concatenate([step.values, jnp.zeros((step.values.shape[0], n), dtype)], 1)
    moments = Moments(mean, triangularize(before.dynamics_root))
    filtered, seen = observe(moments, step.emission, step.emission_covariance, values, step.seen)
    # Innovations are e - E x: x has the information E^T E, and the root of that.
    e, slopes = seen.innovation[:, :columns], -seen.innovation[:, columns:]
    return monoids.SquareRootFilterElement(
        A=filtered.mean[:, columns:],
        b=filtered.mean[:, :columns],
        U=filtered.factor,
        eta=product(slopes.T, e),
        Z=triangularize(slopes.T),
    )
