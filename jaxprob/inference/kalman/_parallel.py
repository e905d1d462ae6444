"""The filter parallel in time: moments by an associative scan, and then all innovations side by side.

The likelihood is no part of what is scanned: carried there it loses its digits, or is NaN, where noise is singular or
the initial state known.

Source: Yaghoobi, Corenflos, Hassan & Särkkä (2022), "Parallel square-root statistical linear regression for inference
in nonlinear state space models".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import scan
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, predict, product, triangularize
from jaxprob.inference.kalman._steps import Step, Steps
from jaxprob.scan import monoids


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """As `sequential.run`."""
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
