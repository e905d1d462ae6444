"""Iterated smoothers: a model is made linear at what the smoother found, and smoothed again, until nothing moves.

With Taylor expansions and noise that does not depend on the state this is the Gauss-Newton method for the most probable
path of states; with sigma points it is posterior linearisation. Each sweep is the smoother of a linear model, in
sequence or parallel in time.

Source: Bell (1994), "The iterated Kalman smoother as a Gauss-Newton method"; García-Fernández, Svensson & Särkkä
(2017), "Iterated posterior linearization smoother"; Särkkä & Svensson (2020), "Levenberg-Marquardt and line-search
extended Kalman smoothers"; Yaghoobi, Corenflos, Hassan & Särkkä (2021), "Parallel iterated extended and sigma-point
Kalman smoothers".
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import block_diag

from jaxprob import core
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _nonlinear as nonlinear
from jaxprob.inference.kalman._filter import RUN, as_request
from jaxprob.inference.kalman._fixed_point import fixed_point
from jaxprob.inference.kalman._linearize import Extended, Laplace, as_rule
from jaxprob.inference.kalman._smoother import Smoothed, smooth, smoothed
from jaxprob.inference.kalman._square_root import decorrelate, product
from jaxprob.inference.kalman._steps import Steps
from jaxprob.inference.kalman._sweeps import Path, apart, linearized, moments_of, pick_sweep
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel

SEARCHES = ("auto", "line", "levenberg_marquardt", "relax", None)
HALVINGS = 12  # of one step


@core.pytree
class IteratedSmoothed(Smoothed):
    """States given the whole series, of `iterated_smooth`; `log_likelihood` is that of the model made linear there.

    Attributes:
      iterations: (), sweeps that were made.
      change: (), how far one more sweep moves, in standard deviations.
      converged: (), bool: whether that is within the tolerance.
    """

    iterations: jax.Array
    change: jax.Array
    converged: jax.Array


class How(NamedTuple):
    """What a program is made for."""

    function: str
    method: str
    rule: Extended | Any
    search: str | None


def iterated_smooth(
    model: LinearGaussian | StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    linearize: Any = None,
    search: str | None = "auto",
    initial: Any = None,
    max_iterations: int = 50,
    tolerance: float | None = None,
    method: str = "auto",
) -> IteratedSmoothed:
    """The states given the whole series, where the model is linear around these very states.

    Args:
      model: a `StateSpaceModel`. A `LinearGaussian` is smoothed once.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      linearize: "extended" (the default: the mean is the most probable path where noise does not depend on the state),
        "unscented", "cubature", "gauss_hermite", or a rule such as `kalman.unscented(...)`.
      search: how far to go along each step. For "extended", so that a path never becomes less probable: "line" (halved
        until it does not) or "levenberg_marquardt" (held back by a penalty on its length); where noise has no variance,
        only the other terms count. For any rule: "relax" (halved whenever steps have become longer), or None for whole
        steps. "auto" is "line" for "extended" and "relax" else.
      initial: (time, n), a path to begin at; by default what `kalman.smooth` finds, which is not parallel in time.
      max_iterations: sweeps at the most.
      tolerance: what one more sweep may move, in standard deviations; by default the square root of the dtype's
        precision.
      method: "sequential", "parallel" in time, or "auto".

    Returns:
      `IteratedSmoothed`, differentiated at the fixed point: the derivatives are right where it converged.

    Raises:
      ValueError, TypeError: as `kalman.filter` does.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models.state_space import StateSpaceModel
    >>> model = StateSpaceModel(
    ...     Normal(0.0, 1.0), lambda x, t: Normal(jnp.sin(x), 0.5), lambda x, t: Normal(jnp.exp(x), 0.1)
    ... )
    >>> found = iterated_smooth(model, jnp.array([1.0, 2.0, 1.5]))
    >>> bool(found.converged), found.mean[:, 0].round(1).tolist()
    (True, [0.0, 0.699999988079071, 0.4000000059604645])
    """
    name = "kalman.iterated_smooth"
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise core.bad_value(name, "max_iterations", max_iterations, "a number of sweeps, at least 1")
    if tolerance is not None and not isinstance(tolerance, jax.core.Tracer) and not tolerance > 0:
        raise core.bad_value(name, "tolerance", tolerance, "a number above zero")
    if search not in SEARCHES:
        raise core.bad_value(name, "search", core.describe(search), f"one of {SEARCHES}")
    rule = as_rule(name, linearize)
    if isinstance(rule, Laplace):
        raise core.bad_value(name, "linearize", "'laplace'", "a rule that takes moments", "Use kalman.conjugate_smooth")
    if search == "auto":
        search = "line" if isinstance(rule, Extended) else "relax"
    if search not in ("relax", None) and not isinstance(rule, Extended):
        raise core.bad_value(name, "search", repr(search), "'relax' or None, or 'extended' for linearize")
    if not isinstance(model, StateSpaceModel) or not len(ys):
        found = smooth(model, ys, missing=missing, method=method if isinstance(model, LinearGaussian) else "auto")
        known = jnp.all(jnp.isfinite(found.mean))
        once = (jnp.ones((), int), jnp.zeros((), found.mean.dtype), known)
        return IteratedSmoothed(found.mean, found.factor, found.lag_one_covariance, found.log_likelihood, *once)
    values, seen, _ = as_request(name, model, ys, missing, "auto")
    method = pick_sweep(name, method, values.shape[0])
    dtype = conditional.working_dtype(model, values)
    if tolerance is None:
        tolerance = float(jnp.finfo(dtype).eps) ** 0.5
    if initial is not None:
        initial, n = core.as_float(initial), math.prod(model.state_shape)
        if initial.shape != (values.shape[0], n):
            raise core.bad_value(name, "initial", initial, f"an array of shape {(values.shape[0], n)}")
    return _iterate(model, values, seen, initial, max_iterations, tolerance, How(name, method, rule, search))


@functools.partial(jax.jit, static_argnames="how")
def _iterate(
    model: StateSpaceModel, ys: jax.Array, seen: jax.Array, initial: Any, most: Any, tolerance: Any, how: How
) -> IteratedSmoothed:
    low, dtype = ys.dtype, conditional.working_dtype(model, ys)
    ys, tolerance = ys.astype(dtype), jnp.asarray(tolerance, dtype)
    points = not isinstance(how.rule, Extended)

    def steps_at(path: Path) -> Steps:
        return linearized(how.function, model, ys, seen, how.rule, path)

    def sweep(path: Path) -> Path:
        mean, factor = moments_of(steps_at(path), how.method)
        return Path(mean, factor if points else None)

    def solve(start: Path) -> tuple[Path, jax.Array]:
        return _search(model, ys, seen, start, steps_at, most, tolerance, how)

    if initial is None:
        steps, _, moments, found = nonlinear.run(how.function, model, ys, seen, how.rule, 1)
        first = smoothed(steps, moments, found, how.method)
        start = Path(first.mean, first.factor if points else None)
    else:
        _, root = conditional.start(how.function, model, dtype)
        start = Path(initial.astype(dtype), jnp.broadcast_to(root, (ys.shape[0], *root.shape)) if points else None)
    path, iterations = fixed_point(sweep, jax.tree.map(lax.stop_gradient, start), solve)
    steps = steps_at(path)
    _, moments, found = RUN[how.method](steps)
    last = smoothed(steps, moments, found, how.method)
    change = lax.stop_gradient(apart(Path(last.mean, last.factor), path, tolerance))
    last = jax.tree.map(lambda leaf: leaf.astype(low), last)
    return IteratedSmoothed(
        mean=last.mean,
        factor=last.factor,
        lag_one_covariance=last.lag_one_covariance,
        log_likelihood=last.log_likelihood,
        iterations=iterations.astype(int),
        change=change.astype(low),
        converged=change <= tolerance,
    )


def _search(
    model: StateSpaceModel,
    ys: jax.Array,
    seen: jax.Array,
    start: Path,
    steps_at: Any,
    most: Any,
    tolerance: jax.Array,
    how: How,
) -> tuple[Path, jax.Array]:
    """Sweeps until one moves no further than the tolerance; the path, and how many there were."""
    dtype = start.mean.dtype
    eps = jnp.finfo(dtype).eps

    def relaxed(path: Path, state: Any) -> tuple[Path, jax.Array, Any]:
        share, before = state
        mean, factor = moments_of(steps_at(path), how.method)
        new = Path(mean, None if path.factor is None else factor)
        change = apart(Path(mean, factor), path, tolerance)
        if how.search == "relax":
            share = jnp.where(change < before, jnp.minimum(1.2 * share, 1), jnp.maximum(0.5 * share, 1 / 64))
        return jax.tree.map(lambda old, new: old + share * (new - old), path, new), change, (share, change)

    def line(path: Path, state: Any) -> tuple[Path, jax.Array, Any]:
        steps = steps_at(path)
        mean, factor = moments_of(steps, how.method)
        change = apart(Path(mean, factor), path, tolerance)
        move = mean - path.mean
        cost = functools.partial(_cost, how.function, model, ys, seen, steps)
        here, slope = jax.jvp(cost, (path.mean,), (move,))

        def too_far(carry: Any) -> jax.Array:
            size, halvings = carry
            enough = here + 1e-4 * size * jnp.minimum(slope, 0) + 8 * eps * jnp.abs(here)
            return ~(cost(path.mean + size * move) <= enough) & (halvings < HALVINGS)

        size, _ = core.while_loop(too_far, lambda c: (0.5 * c[0], c[1] + 1), (jnp.ones((), dtype), 0))
        return Path(path.mean + size * move, None), change, state

    def damped(path: Path, state: Any) -> tuple[Path, jax.Array, Any]:
        penalty, sd = state
        steps = steps_at(path)
        mean, factor = moments_of(_held(steps, path.mean, penalty, sd), how.method)
        # Without the penalty a step would be longer, by so much at the most in a direction of its own.
        change = apart(Path(mean, factor), path, tolerance) * (1 + penalty)
        cost = functools.partial(_cost, how.function, model, ys, seen, steps)
        here = cost(path.mean)
        better = cost(mean) <= here + 8 * eps * jnp.abs(here)
        moved = Path(jnp.where(better, mean, path.mean), None)
        # Far below one a penalty is none, and far above it no step is one.
        penalty = jnp.clip(jnp.where(better, 0.1 * penalty, 10 * penalty), 1e-8, 1e8)
        return moved, change, (penalty, jnp.sqrt(jnp.sum(factor**2, 2)))

    one = {None: relaxed, "relax": relaxed, "line": line, "levenberg_marquardt": damped}[how.search]
    state: Any = (jnp.ones((), dtype), jnp.full((), jnp.inf, dtype))
    if how.search == "levenberg_marquardt":
        state = (jnp.asarray(0.1, dtype), jnp.sqrt(jnp.sum(moments_of(steps_at(start), how.method)[1] ** 2, 2)))

    def going(carry: Any) -> jax.Array:
        change, count = carry[2:]
        return (change > tolerance) & (count < most)

    def body(carry: Any) -> Any:
        path, state, _, count = carry
        new, change, state = one(path, state)
        # A path that a sweep leaves where it is is the one: what is said of it then is what was seen.
        path = jax.tree.map(lambda old, new: jnp.where(change <= tolerance, old, new), path, new)
        return path, state, change, count + 1

    begin: Any = (start, state, jnp.full((), jnp.inf, dtype), 0)
    path, _, _, count = core.while_loop(going, body, begin)
    # As a number that derivatives can pass by.
    return path, count.astype(dtype)


def _held(steps: Steps, mean: jax.Array, penalty: jax.Array, sd: jax.Array) -> Steps:
    """The steps, in which each state is observed where it is as well, with a variance of its own over the penalty."""
    one = steps.varying
    times, n = mean.shape
    there = sd > 0
    weight = jnp.where(there, jnp.sqrt(penalty) / jnp.where(there, sd, 1), 0)
    rows = jax.vmap(jnp.diag)(weight)
    emission = jnp.concatenate([one.emission, rows], 1)
    values = jnp.concatenate([one.values, jnp.expand_dims(weight * mean, 2)], 1)
    if one.emission_covariance.ndim == 2:
        noise = jnp.concatenate([one.emission_covariance, jnp.ones_like(mean)], 1)
    else:
        eye = jnp.eye(n, dtype=mean.dtype)
        noise = jax.vmap(lambda block: block_diag(block, eye))(one.emission_covariance)
    seen = jnp.concatenate([one.seen, jnp.ones((times, n), bool)], 1)
    held = one._replace(emission=emission, values=values, emission_covariance=noise, seen=seen)
    return steps._replace(varying=held)


def _cost(
    function: str, model: StateSpaceModel, ys: jax.Array, seen: jax.Array, steps: Steps, path: jax.Array
) -> jax.Array:
    """Minus the log density of a path (time, n), less what does not depend on it, with the noise of given steps."""
    dtype = path.dtype
    all_seen = jnp.ones(path.shape, bool)
    moved = jax.vmap(lambda t, x: conditional.transition(function, model, t, dtype)(x)[0])
    looked = jax.vmap(lambda t, x: conditional.observation(function, model, t, dtype)(x)[0])
    times = jnp.arange(path.shape[0])
    one = steps.varying
    total = _distance(path[0] - steps.start.mean[:, 0], product(steps.start.factor, steps.start.factor.T), all_seen[0])
    noise = core.matmul(one.dynamics_root, jnp.swapaxes(one.dynamics_root, 1, 2))
    total += jnp.sum(jax.vmap(_distance)(path[1:] - moved(times, path)[:-1], noise[:-1], all_seen[1:]))
    residuals = jnp.where(seen, ys - looked(times, path), 0)
    return total + jnp.sum(jax.vmap(_distance)(residuals, one.emission_covariance, seen))


def _distance(residual: jax.Array, covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Half the squared length of a residual (k,) in standard deviations, of what has a variance and is seen."""
    values = jnp.expand_dims(residual, 1)
    if covariance.ndim == 2:
        _, covariance, values = decorrelate(values[:, :0], covariance, values, seen)
    there = seen & (covariance > 0)
    return 0.5 * jnp.sum(jnp.where(there, values[:, 0] ** 2 / jnp.where(there, covariance, 1), 0))
