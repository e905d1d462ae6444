"""Smoothers: states given the whole series, their covariances with those of the next time, and draws of whole paths.

Going back, x_t given x_{t+1} and the observations so far is N(G x_{t+1} + g, D D^T), with G, g and D from one
rotation of the joint root of both states. No covariance is inverted, so that noise may be singular and states known.

Source: Rauch, Tung & Striebel (1965); Park & Kailath (1996), "New square-root smoothing algorithms".
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman import _two_filter as two_filter
from jaxprob.inference.kalman._filter import How, as_request, run
from jaxprob.inference.kalman._linearize import Laplace
from jaxprob.inference.kalman._square_root import Moments, Seen, product, right_solve, triangularize
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel
from jaxprob.scan import monoids


@core.pytree
class Smoothed:
    """States given the whole series.

    Attributes:
      mean: (time, n).
      factor: (time, n, n), lower-triangular root of the covariance.
      lag_one_covariance: (time - 1, n, n), of the state of a time (rows) and that of the next (columns); None with a
        `lag`.
      log_likelihood: (), of the observations.
    """

    mean: jax.Array
    factor: jax.Array
    lag_one_covariance: Any
    log_likelihood: jax.Array

    @property
    def covariance(self) -> jax.Array:
        """(time, n, n)."""
        return covariance_of(self.factor)


class Backward(NamedTuple):
    """x_t = G x_{t+1} + g + D w, given the observations up to t; time leading.

    Attributes:
      gain: G, (time, n, n).
      offset: g, (time, n, 1 + d).
      root: D, (time, n, n).
    """

    gain: jax.Array
    offset: jax.Array
    root: jax.Array


def smooth(
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    lag: int | None = None,
    method: str = "auto",
    linearize: Any = None,
    iterations: int = 1,
) -> Smoothed:
    """The states of a model given all that has been observed.

    Args:
      model: a `LinearGaussian`, or a `StateSpaceModel`, which is smoothed along the steps that its filter made linear;
        `kalman.iterated_smooth` makes them linear again at what was found.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      lag: None for the whole series; else each state is given the observations of its own time and of so many after
        it, as they would be known in a stream (fixed lag).
      method: see `kalman.filter`; or "two_filter", which combines the filter with another one from the end back, that
        carries information.
      linearize: see `kalman.filter`.
      iterations: see `kalman.filter`.

    Returns:
      `Smoothed`.

    Raises:
      ValueError, TypeError: as `kalman.filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> print(*(f"{x:.3f}" for x in smooth(walk, jnp.array([1.0, jnp.nan, 3.0])).mean[:, 0]))
    0.857 1.571 2.286
    """
    forward = "sequential" if method == "two_filter" else method
    values, seen, how = as_request("kalman.smooth", model, ys, missing, forward, linearize, iterations)
    if method == "two_filter":
        if lag is not None:
            raise core.bad_value("kalman.smooth", "method", "'two_filter', with a lag", "another, or no lag")
        if isinstance(how.rule, Laplace):
            raise core.bad_value("kalman.smooth", "method", "'two_filter', with 'laplace'", "'auto' with densities")
        how = how._replace(method=method)
    if lag is not None and (isinstance(lag, bool) or not isinstance(lag, int) or lag < 0):
        raise core.bad_value("kalman.smooth", "lag", lag, "a number of times, at least 0, or None for all")
    return _smooth(model, values, seen, how, None if lag is None or lag >= values.shape[0] - 1 else lag)


def sample(
    key: core.Key,
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    shape: Any = (),
    method: str = "auto",
    linearize: Any = None,
    iterations: int = 1,
) -> jax.Array:
    """Draws of the whole path of states given all that has been observed.

    Args:
      key: random key.
      model: a `LinearGaussian`; or a `StateSpaceModel`, whose draws are those of the steps that its filter made linear.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      shape: of independent draws.
      method: see `kalman.filter`.
      linearize: see `kalman.filter`.
      iterations: see `kalman.filter`.

    Returns:
      shape + (time, n).

    Raises:
      ValueError, TypeError: as `kalman.filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> sample(jax.random.key(0), walk, jnp.array([1.0, jnp.nan, 3.0]), shape=(5,)).shape
    (5, 3, 1)
    """
    values, seen, how = as_request("kalman.sample", model, ys, missing, method, linearize, iterations)
    shape = core.as_shape("kalman.sample", shape)
    return _sample(core.as_key(key, "kalman.sample"), model, values, seen, shape, how)


def backward(moments: Moments, steps: Step) -> Backward:
    """The laws of each state given the next, from filtered moments; all with time leading, the last time left out."""
    return jax.vmap(reverse)(*jax.tree.map(lambda leaf: leaf[:-1], (moments, steps)))


def reverse(moments: Moments, step: Step) -> Backward:
    """The law of one state given the next, from filtered moments."""
    n = moments.factor.shape[0]
    noise = step.dynamics_root
    moved = jnp.concatenate([product(step.dynamics, moments.factor), noise], 1)
    joint = jnp.concatenate([moved, jnp.concatenate([moments.factor, jnp.zeros_like(noise)], 1)])
    joint = triangularize(joint)
    gain = right_solve(joint[:n, :n], joint[n:, :n])
    ahead = product(step.dynamics, moments.mean).at[:, 0].add(step.dynamics_offset)
    return Backward(gain, moments.mean - product(gain, ahead), joint[n:, n:])


@functools.partial(jax.jit, static_argnames=("how", "lag"))
def _smooth(model: Any, ys: jax.Array, seen: jax.Array, how: How, lag: int | None) -> Smoothed:
    steps, _, moments, found = run(model, ys, seen, how)
    result = smoothed(steps, moments, found, how.method, lag)
    return jax.tree.map(lambda leaf: leaf.astype(ys.dtype), result)


def smoothed(steps: Steps, moments: Moments, found: Seen, method: str, lag: int | None = None) -> Smoothed:
    """States given the whole series, from what a filter found."""
    times, diffused = moments.mean.shape[0], moments.mean.shape[2] > 1
    roots = diffuse.information(found.innovation, method) if diffused else None
    likelihood = diffuse.log_likelihoods(found, roots)[-1:].sum()
    back = backward(moments, steps.everywhere)
    if lag is None:
        last = None
        after = two_filter.whole(steps, moments) if method == "two_filter" else whole(moments, back, method)
        crossed = core.matmul(back.gain, covariance_of(after.factor[1:]))
        if roots is not None:
            last = jnp.broadcast_to(roots[-1], roots.shape)
            effects = core.matmul(after.mean[:, :, 1:], diffuse.known(roots[-1]).root)
            crossed = crossed + core.matmul(effects[:-1], jnp.swapaxes(effects[1:], 1, 2))
    else:
        after, crossed = _fixed_lag(moments, back, lag), None
        last = None if roots is None else roots[jnp.minimum(jnp.arange(times) + lag, times - 1)]
    return Smoothed(*jax.vmap(diffuse.integrate)(after, last), crossed, likelihood)


def whole(moments: Moments, back: Backward, method: str) -> Moments:
    """Moments of all states given everything observed, and the diffuse numbers."""
    if not moments.mean.shape[0]:
        return moments
    last = jax.tree.map(lambda leaf: leaf[-1:], moments)
    if method != "parallel":
        start = jax.tree.map(lambda leaf: leaf[0], last)
        found = scan.scan(lambda after, one: (_before(after, one),) * 2, start, back, reverse=True)[1]
        return jax.tree.map(lambda one, other: jnp.concatenate([one, other]), found, last)

    def one_column(offset: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        elements = monoids.SquareRootSmootherElement(
            E=jnp.concatenate([back.gain, jnp.zeros_like(last.factor)]),
            g=jnp.concatenate([offset, mean]),
            D=jnp.concatenate([back.root, last.factor]),
        )
        combine = monoids.square_root_gaussian_smoother.combine
        states = scan.associative(combine, elements, reverse=True, method="parallel").states
        return states.g, states.D

    return Moments(*jax.vmap(one_column, in_axes=2, out_axes=(2, None))(back.offset, last.mean))


def _before(after: Moments, one: Backward) -> Moments:
    mean = product(one.gain, after.mean) + one.offset
    return Moments(mean, triangularize(jnp.concatenate([product(one.gain, after.factor), one.root], 1)))


def _fixed_lag(moments: Moments, back: Backward, lag: int) -> Moments:
    """Moments of each state given what is observed up to `lag` times after it, for all times side by side."""
    times = moments.mean.shape[0]

    def earlier(found: Moments, index: Any) -> Moments:
        # `found` at t is the law of the state at t + distance, and becomes that one time before; the end is cut off.
        distance = lag - index
        at = jnp.arange(times) + distance - 1
        one = jax.tree.map(lambda leaf: leaf[jnp.clip(at, 0, times - 2)], back)
        moved = jax.vmap(_before)(found, one)
        inside = at <= times - 2
        return jax.tree.map(lambda new, old: jnp.where(jnp.expand_dims(inside, (1, 2)), new, old), moved, found)

    ahead = jax.tree.map(lambda leaf: leaf[jnp.minimum(jnp.arange(times) + lag, times - 1)], moments)
    return scan.repeat(earlier, ahead, lag) if lag else ahead


@functools.partial(jax.jit, static_argnames=("how", "shape"))
def _sample(key: core.Key, model: Any, ys: jax.Array, seen: jax.Array, shape: tuple[int, ...], how: How) -> jax.Array:
    steps, _, moments, found = run(model, ys, seen, how)
    back = backward(moments, steps.everywhere)
    times, n, columns = moments.mean.shape
    root = diffuse.information(found.innovation, how.method)[-1] if columns > 1 else None

    def one(key: core.Key) -> jax.Array:
        state_key, diffuse_key = core.random.split(key)
        noise = core.random.normal(state_key, (times, n), moments.mean.dtype)
        weights = jnp.ones((1,), moments.mean.dtype)
        if root is not None:
            mean, spread, _ = diffuse.known(root)
            drawn = mean + core.matvec(spread, core.random.normal(diffuse_key, (columns - 1,), mean.dtype))
            weights = jnp.concatenate([weights, drawn])
        last = core.matvec(moments.mean[-1], weights) + core.matvec(moments.factor[-1], noise[-1])
        increments = core.matvec(back.offset, weights) + core.matvec(back.root, noise[:-1])
        method = how.method if how.method == "parallel" else "sequential"
        earlier = scan.affine(back.gain, increments, last, reverse=True, method=method).states
        return jnp.concatenate([earlier, jnp.expand_dims(last, 0)])

    draws = jax.vmap(one)(core.random.split(key, math.prod(shape)))
    return draws.reshape(*shape, times, n).astype(ys.dtype)
