"""Learning linear-Gaussian models by expectation maximisation: each step raises the likelihood, or leaves it.

The M-steps are regressions, of each state on the one before and of what is observed on the states, whose cases are the
columns of a root of the smoothed moments. They are solved by rotations of that root, never by sums of squares: no
covariance loses its digits, and noise may be singular.

Source: Shumway & Stoffer (1982), "An approach to time series smoothing and forecasting using the EM algorithm".
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core
from jaxprob.inference._expectation_maximization import Fitted, check_steps, iterate
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman._filter import RUN, pick
from jaxprob.inference.kalman._maximize import GROUPS, NAMES, complete, learn_group, learn_rows
from jaxprob.inference.kalman._smoother import backward, whole
from jaxprob.inference.kalman._steps import Steps, as_observations, prepare
from jaxprob.models.state_space import LinearGaussian


class Expected(NamedTuple):
    """States given a series, as columns: the mean, and a root of the covariance beside it; time leading.

    Attributes:
      states: (time, n, 1 + n + d).
      before: (time - 1, n, 1 + 2 n + d), of each state but the last; its columns are those of `after`.
      after: (time - 1, n, 1 + 2 n + d), of the state after it.
    """

    states: jax.Array
    before: jax.Array
    after: jax.Array


def em_step(
    model: LinearGaussian,
    ys: Any,
    *,
    missing: Any = None,
    batched: bool = False,
    learn: Any = None,
    method: str = "auto",
) -> tuple[LinearGaussian, jax.Array]:
    """The model after one step of EM, one whose likelihood is not lower; and the log likelihood of the one given.

    Variances of zero stay zero, and so do directions without noise. With one series the variance of the initial state
    shrinks towards zero.

    Args:
      model: a `LinearGaussian`.
      ys: (time, m), or (time,) where m = 1; with a leading axis of series where `batched`. NaN is missing.
      missing: booleans, true where not observed; shorter series are padded, and missing there.
      batched: whether `ys` holds several independent series.
      learn: names of the entries to learn; by default all that can be. What varies in time is not learnt, nor is a
        matrix or offset whose noise varies, nor what is initial where something is diffuse.
      method: see `kalman.filter`.

    Returns:
      the model, and the log likelihood (), of all series, of the model before.

    Raises:
      ValueError: as `kalman.filter`; and for a name in `learn` that cannot be learnt.
      TypeError: if the model is none.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> after, before = em_step(walk, jnp.array([0.1, -0.1, 0.2, 0.0]), learn="emission_covariance")
    >>> print(f"{after.emission_covariance[0]:.2f} {before:.2f}")
    0.49 -5.46
    """
    values, seen, names, how = _checked("kalman.em_step", model, ys, missing, batched, learn, method)
    return _em_step(model, values, seen, names, how)


def fit(
    model: LinearGaussian,
    ys: Any,
    *,
    steps: int = 100,
    tolerance: float = 1e-4,
    missing: Any = None,
    batched: bool = False,
    learn: Any = None,
    method: str = "auto",
) -> Fitted:
    """A model fitted by so many steps of EM, from the one given.

    Args:
      model: a `LinearGaussian`, where to begin.
      ys: (time, m), or (time,) where m = 1; with a leading axis of series where `batched`. NaN is missing.
      steps: how many, all of which are taken.
      tolerance: the gain of log likelihood in the last step up to which EM counts as converged.
      missing: booleans, true where not observed.
      batched: whether `ys` holds several independent series.
      learn: see `em_step`.
      method: see `kalman.filter`.

    Returns:
      `Fitted`.

    Raises:
      ValueError, TypeError: as `em_step`.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> still = LinearGaussian(jnp.zeros(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.zeros((1, 1)), jnp.eye(1), jnp.ones(1))
    >>> found = fit(still, jnp.array([1.0, 3.0]), steps=3, learn=("emission_offset", "emission_covariance"))
    >>> found.model.emission_offset.round(3), found.model.emission_covariance.round(3), bool(found.converged)
    (Array([2.], dtype=float32), Array([1.], dtype=float32), True)
    """
    check_steps("kalman.fit", steps)
    values, seen, names, how = _checked("kalman.fit", model, ys, missing, batched, learn, method)
    return _fit(model, values, seen, tolerance, names, how, steps)


def _checked(
    function: str, model: LinearGaussian, ys: Any, missing: Any, batched: bool, learn: Any, method: str
) -> tuple[jax.Array, jax.Array, tuple[str, ...], str]:
    """Observations with an axis of series, the names to learn and the method."""
    if batched:
        ys = core.as_float(ys)
        if ys.ndim < 2 or not ys.shape[0]:
            raise core.bad_value(function, "ys", f"of shape {ys.shape}", "shape (series, time, m), of at least one")
        if not isinstance(ys, jax.core.Tracer) and np.isinf(np.asarray(ys)).any():
            raise core.bad_value(function, "ys", "infinite somewhere", "finite numbers, or NaN where one is missing")
        if missing is not None and np.shape(missing) != ys.shape:
            raise core.bad_value(function, "missing", missing, f"booleans of shape {ys.shape}")
        axes = (0, None if missing is None else 0)
        values, seen = jax.vmap(lambda ys, missing: as_observations(function, model, ys, missing), axes)(ys, missing)
    else:
        one = as_observations(function, model, ys, missing)
        values, seen = (jnp.expand_dims(array, 0) for array in one)
    return values, seen, _names(function, model, learn), pick(function, model, values.shape[1], method)


def _names(function: str, model: LinearGaussian, learn: Any) -> tuple[str, ...]:
    """The names to learn, in order."""
    excluded = {name: "which varies in time" for name in model.time_varying}
    for matrix, offset, covariance in GROUPS:
        if covariance in model.time_varying:
            for name in (matrix, offset):
                excluded.setdefault(str(name), f"while {covariance} varies in time")
    if model.diffuse_size:
        excluded |= dict.fromkeys(GROUPS[0][1:], "while the initial state is diffuse")
    if learn is None:
        return tuple(name for name in NAMES if name not in excluded)
    learn = (learn,) if isinstance(learn, str) else tuple(learn)
    for name in learn:
        if name not in NAMES:
            raise core.bad_value(function, "learn", repr(name), f"names of {NAMES}")
        if name in excluded:
            todo = "Leave it out, or maximise kalman.log_likelihood by its gradient"
            raise core.bad_value(function, "learn", f"{name!r}, {excluded[name]}", "what an M-step can learn", todo)
    return tuple(name for name in NAMES if name in learn)


@functools.partial(jax.jit, static_argnames=("learn", "method"))
def _em_step(
    model: LinearGaussian, ys: jax.Array, seen: jax.Array, learn: tuple[str, ...], method: str
) -> tuple[LinearGaussian, jax.Array]:
    dtype = core.result_dtype(*jax.tree.leaves(model), ys)
    if not ys.shape[1]:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), model), jnp.zeros((), dtype)
    exact = jax.tree.map(lambda leaf: leaf.astype(core.accumulator_dtype(dtype)), model)

    def expect(ys: jax.Array, seen: jax.Array) -> tuple[Expected, tuple[jax.Array, jax.Array], jax.Array]:
        steps = prepare(exact, ys, seen)
        expected, total = _expect(steps, method)
        step = steps.everywhere
        moved = core.matmul(step.dynamics[:-1], expected.before)
        moved = moved.at[:, :, 0].add(step.dynamics_offset[:-1])
        noise = -core.matmul(step.emission, expected.states)
        return expected, (expected.after - moved, noise.at[:, :, 0].add(step.values[..., 0])), total

    expected, (moves, noise), totals = jax.vmap(expect)(ys, seen)
    there = jnp.any(seen, 2)
    # What comes after all that was observed says nothing, and would only slow the steps down.
    alive = lax.cummax(there.astype(jnp.int32), axis=1, reverse=True) > 0
    first = expected.states[:, 0]
    begun = first.at[:, :, 0].add(-jnp.expand_dims(exact.initial_mean, 0))
    before, moves = (array.reshape(-1, *array.shape[2:]) for array in (expected.before, moves))
    states, noise, seen = (array.reshape(-1, *array.shape[2:]) for array in (expected.states, noise, seen))
    changes = learn_group(exact, GROUPS[0], learn, first, begun, alive[:, 0])
    changes |= learn_group(exact, GROUPS[1], learn, before, moves, alive[:, 1:].reshape(-1))
    if exact.emission_covariance.ndim - ("emission_covariance" in model.time_varying) == 1:
        changes |= learn_rows(exact, GROUPS[2], learn, states, noise, seen)
    else:
        if model.observation_size > 1 and "emission_covariance" not in model.time_varying:
            noise = jax.vmap(functools.partial(complete, exact.emission_covariance))(noise, seen)
            states = jnp.pad(states, ((0, 0), (0, 0), (0, model.observation_size)))
        changes |= learn_group(exact, GROUPS[2], learn, states, noise, jnp.any(seen, 1))
    entries = {name: changes.get(name, getattr(exact, name)).astype(dtype) for name in (*NAMES, "initial_diffuse")}
    return LinearGaussian(**entries, time_varying=model.time_varying), jnp.sum(totals).astype(dtype)


def _expect(steps: Steps, method: str) -> tuple[Expected, jax.Array]:
    """The states given a series, and its log likelihood."""
    _, moments, found = RUN[method](steps)
    roots = diffuse.information(found.innovation, method) if moments.mean.shape[2] > 1 else None
    back = backward(moments, steps.everywhere)
    smoothed = whole(moments, back, method)
    last = None if roots is None else jnp.broadcast_to(roots[-1], roots.shape)
    mean = jnp.expand_dims(jax.vmap(diffuse.integrate)(smoothed, last)[0], 2)
    effects = smoothed.mean[:, :, 1:]
    if roots is not None:
        effects = core.matmul(effects, diffuse.known(roots[-1]).root)
    after = smoothed.factor[1:]
    expected = Expected(
        states=jnp.concatenate([mean, smoothed.factor, effects], 2),
        before=jnp.concatenate([mean[:-1], core.matmul(back.gain, after), back.root, effects[:-1]], 2),
        after=jnp.concatenate([mean[1:], after, jnp.zeros_like(back.root), effects[1:]], 2),
    )
    return expected, diffuse.log_likelihoods(found, roots)[-1]


@functools.partial(jax.jit, static_argnames=("learn", "method", "steps"))
def _fit(
    model: LinearGaussian,
    ys: jax.Array,
    seen: jax.Array,
    tolerance: Any,
    learn: tuple[str, ...],
    method: str,
    steps: int,
) -> Fitted:
    return iterate(lambda model: _em_step(model, ys, seen, learn, method), model, steps, tolerance)
