"""Variational smoothing of observations with any smooth density: each is stood in for by a normal one, a site.

Sites follow natural gradients of the evidence lower bound: their precision is minus the expected curvature of the log
density, and each sweep is one smoother of a linear model, in sequence or parallel in time.

Source: Khan & Lin (2017), "Conjugate-computation variational inference"; Chang, Wilkinson, Khan & Solin (2020), "Fast
variational learning in state-space Gaussian process models".
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _nonlinear as nonlinear
from jaxprob.inference.kalman._filter import RUN, as_request
from jaxprob.inference.kalman._fixed_point import fixed_point
from jaxprob.inference.kalman._linearize import Extended, Laplace, SigmaPoints, as_rule, cubature, gauss_hermite
from jaxprob.inference.kalman._smoother import smoothed
from jaxprob.inference.kalman._square_root import Moments, product, right_solve, square_root
from jaxprob.inference.kalman._steps import Step, Steps, covariance_of
from jaxprob.inference.kalman._sweeps import Path, apart, moments_of, pick_sweep
from jaxprob.models.state_space import StateSpaceModel

MOST_POINTS = 300  # of the default rule for expectations
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@core.pytree
class ConjugateSmoothed:
    """The normal law nearest to the states given the whole series, of `conjugate_smooth`.

    Attributes:
      mean: (time, n).
      factor: (time, n, n), lower-triangular root of the covariance.
      lag_one_covariance: (time - 1, n, n), of the state of a time (rows) and that of the next (columns).
      elbo: (), evidence lower bound: the log likelihood of the observations is no smaller, but for the error of the
        expectations, where transitions are linear.
      iterations: (), sweeps that were made.
      change: (), how far one more sweep moves, in standard deviations.
      converged: (), bool: whether that is within the tolerance, and every site says all that its gradient does.
    """

    mean: jax.Array
    factor: jax.Array
    lag_one_covariance: jax.Array
    elbo: jax.Array
    iterations: jax.Array
    change: jax.Array
    converged: jax.Array

    @property
    def covariance(self) -> jax.Array:
        """(time, n, n)."""
        return covariance_of(self.factor)


class Sites(NamedTuple):
    """exp(shift^T x - x^T precision x / 2) for each time.

    Attributes:
      shift: (time, n).
      precision: (time, n, n).
    """

    shift: jax.Array
    precision: jax.Array


class How(NamedTuple):
    """What a program is made for."""

    function: str
    method: str
    expectation: SigmaPoints
    rule: Any


def conjugate_smooth(
    model: StateSpaceModel,
    ys: Any,
    *,
    missing: Any = None,
    expectation: SigmaPoints | str | None = None,
    linearize: Any = None,
    learning_rate: Any = 1.0,
    max_iterations: int = 100,
    tolerance: float | None = None,
    method: str = "auto",
) -> ConjugateSmoothed:
    """The normal law of all states that is nearest to their law given the observations, in Kullback-Leibler divergence.

    Args:
      model: a `StateSpaceModel` whose observations have smooth log densities. Where these are not concave, negative
        expected curvature counts as none.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.
      expectation: sigma points for expectations of log densities; by default the Gauss-Hermite rule of the highest
        order that stays below 300 points, "cubature" for more than 5 numbers in a state.
      linearize: rule for transitions that are not linear, "extended" by default; then there is no bound.
      learning_rate: of natural gradients, above 0 and at most 1. Less than 1 if sites oscillate.
      max_iterations: sweeps at the most.
      tolerance: what one more sweep may move, in standard deviations; by default the square root of the dtype's
        precision.
      method: "sequential", "parallel" in time, or "auto"; it begins at the smoother of the Laplace filter, which is
        sequential.

    Returns:
      `ConjugateSmoothed`, differentiated at the fixed point: the derivatives are right where it converged.

    Raises:
      ValueError, TypeError: as `kalman.filter` does.

    >>> from jaxprob.distributions import Normal, Poisson
    >>> counts = StateSpaceModel(
    ...     Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, 0.3), lambda x, t: Poisson(jnp.exp(x))
    ... )
    >>> found = conjugate_smooth(counts, jnp.array([0, 3, jnp.nan, 4]))
    >>> bool(found.converged), f"{found.elbo:.2f}"
    (True, '-7.23')
    """
    name = "kalman.conjugate_smooth"
    if not isinstance(model, StateSpaceModel):
        raise core.bad_type(name, "model", model, "a StateSpaceModel", "Use kalman.smooth for a LinearGaussian")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise core.bad_value(name, "max_iterations", max_iterations, "a number of sweeps, at least 1")
    for argument, value, most in (("tolerance", tolerance, math.inf), ("learning_rate", learning_rate, 1)):
        if value is not None and not isinstance(value, jax.core.Tracer) and not 0 < value <= most:
            raise core.bad_value(name, argument, value, "a number above zero" + (", at most 1" if most == 1 else ""))
    values, seen, _ = as_request(name, model, ys, missing, "auto")
    method = pick_sweep(name, method, values.shape[0])
    if expectation is None:
        n = math.prod(model.state_shape)
        order = min(int(MOST_POINTS ** (1 / max(n, 1)) + 1e-9), 20)
        expectation = gauss_hermite(order) if order > 2 else cubature()
    points, rule = as_rule(name, expectation), as_rule(name, linearize)
    if not isinstance(points, SigmaPoints):
        raise core.bad_value(name, "expectation", core.describe(expectation), "a rule with sigma points")
    if isinstance(rule, Laplace):
        raise core.bad_value(name, "linearize", "'laplace'", "a rule for transitions")
    if tolerance is None:
        tolerance = float(jnp.finfo(conditional.working_dtype(model, values)).eps) ** 0.5
    return _iterate(model, values, seen, learning_rate, max_iterations, tolerance, How(name, method, points, rule))


@functools.partial(jax.jit, static_argnames="how")
def _iterate(
    model: StateSpaceModel, ys: jax.Array, seen: jax.Array, rate: Any, most: Any, tolerance: Any, how: How
) -> ConjugateSmoothed:
    low, dtype = ys.dtype, conditional.working_dtype(model, ys)
    ys, tolerance, rate = ys.astype(dtype), jnp.asarray(tolerance, dtype), jnp.asarray(rate, dtype)
    filled = conditional.filled(model, ys, seen)

    def steps_at(path: Path, sites: Sites) -> Steps:
        return _steps(how, model, path, sites)

    def sites_at(path: Path) -> Sites:
        return _sites(how, model, filled, seen, path)

    def sweep(path: Path) -> Path:
        return Path(*moments_of(steps_at(path, sites_at(path)), how.method))

    def solve(start: Path) -> tuple[Path, jax.Array]:
        def body(carry: Any) -> Any:
            path, old, _, count = carry
            sites = jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, old, sites_at(path))
            new = Path(*moments_of(steps_at(path, sites), how.method))
            # With a rate below one a sweep goes as much less far.
            change = apart(new, path, tolerance) / rate
            path = jax.tree.map(lambda old, new: jnp.where(change <= tolerance, old, new), path, new)
            return path, sites, change, count + 1

        def going(carry: Any) -> jax.Array:
            return (carry[2] > tolerance) & (carry[3] < most)

        begin: Any = (start, sites_at(start), jnp.full((), jnp.inf, dtype), 0)
        path, _, _, count = core.while_loop(going, body, begin)
        return path, count.astype(dtype)

    steps, _, moments, found = nonlinear.run(how.function, model, ys, seen, Laplace(), 1)
    first = smoothed(steps, moments, found, how.method)
    start = jax.tree.map(lax.stop_gradient, Path(first.mean, first.factor))
    path, iterations = fixed_point(sweep, start, solve)
    sites = sites_at(path)
    steps = steps_at(path, sites)
    _, moments, found = RUN[how.method](steps)
    last = smoothed(steps, moments, found, how.method)
    here = Path(last.mean, last.factor)
    expected = jnp.sum(jax.vmap(lambda *at: _expected(how, model, *at)(at[3]))(*_along(filled, seen, here)))
    # What the sites themselves expect is taken away from the evidence of the model that has them.
    one = steps.varying
    apart_from = one.values[..., 0] - core.matvec(one.emission, here.mean)
    spread = jnp.sum(core.matmul(one.emission, here.factor) ** 2)
    of_sites = -0.5 * (jnp.sum(apart_from**2) + spread) - HALF_LOG_TAU * apart_from.size
    elbo = last.log_likelihood + expected - of_sites
    change = lax.stop_gradient(apart(here, path, tolerance))
    kept = core.matvec(jnp.swapaxes(one.emission, 1, 2), one.values[..., 0])
    lost = core.norm(kept - sites.shift, jnp.inf) > jnp.sqrt(jnp.finfo(dtype).eps) * core.norm(sites.shift, jnp.inf)
    last = jax.tree.map(lambda leaf: leaf.astype(low), last)
    return ConjugateSmoothed(
        mean=last.mean,
        factor=last.factor,
        lag_one_covariance=last.lag_one_covariance,
        elbo=elbo.astype(low),
        iterations=iterations.astype(int),
        change=change.astype(low),
        converged=(change <= tolerance) & ~lost,
    )


def _along(ys: jax.Array, seen: jax.Array, path: Path) -> tuple[jax.Array, ...]:
    return jnp.arange(ys.shape[0]), ys, seen, *path


def _expected(
    how: How, model: StateSpaceModel, time: Any, y: jax.Array, seen: jax.Array, mean: jax.Array, factor: jax.Array
) -> Any:
    """The expectation () of the log density of an observation, as a function of the mean of the state."""
    rule = how.expectation.points(mean.shape[0])
    density = conditional.log_density(model, time, y, seen)
    offsets = core.matmul(jnp.asarray(rule.points, mean.dtype), factor.T)
    weights = jnp.asarray(rule.weights, mean.dtype)
    return lambda mean: jnp.sum(weights * jax.vmap(density)(jnp.expand_dims(mean, 0) + offsets))


def _sites(how: How, model: StateSpaceModel, ys: jax.Array, seen: jax.Array, path: Path) -> Sites:
    """The natural gradients of expected log densities at the laws of a path."""

    def one(*at: Any) -> Sites:
        expected, mean = _expected(how, model, *at), at[3]
        precision = positive_part(-jax.hessian(expected)(mean))
        return Sites(jax.grad(expected)(mean) + core.matvec(precision, mean), precision)

    return jax.vmap(one)(*_along(ys, seen, path))


def _steps(how: How, model: StateSpaceModel, path: Path, sites: Sites) -> Steps:
    """A linear model whose observations are the sites."""
    dtype = path.mean.dtype
    mean, root = conditional.start(how.function, model, dtype)

    def one(time: jax.Array, mean: jax.Array, factor: jax.Array, site: Sites) -> Step:
        rule: Extended = how.rule
        given = conditional.transition(how.function, model, time, dtype)
        move = rule.linearize(given, mean, factor, True)
        root = square_root(site.precision)
        # The values v with root v = shift, by substitution: both orders turned around.
        turned = right_solve(jnp.flip(root.T), jnp.expand_dims(jnp.flip(site.shift), 0))
        values, n = jnp.expand_dims(jnp.flip(turned[0]), 1), mean.shape[0]
        noise = conditional.root_of(move.covariance)
        return Step(move.matrix, move.offset, noise, root.T, jnp.ones((n,), dtype), values, jnp.ones((n,), bool))

    times = jnp.arange(path.mean.shape[0])
    start = Moments(jnp.expand_dims(mean, 1), root)
    return Steps(start, nonlinear.NOTHING, jax.vmap(one)(times, *path, sites))


@jax.custom_jvp
def positive_part(matrix: jax.Array) -> jax.Array:
    """The symmetric matrix (n, n) with negative eigenvalues put to zero; as it is where there are none."""
    values, vectors = jnp.linalg.eigh(matrix)
    clipped = core.symmetrize(product(vectors * jnp.expand_dims(jnp.maximum(values, 0), 0), vectors.T))
    return jnp.where(values[0] >= -_rounding(values), core.symmetrize(matrix), clipped)


@positive_part.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """By divided differences of max(., 0), which equal eigenvalues do not upset."""
    values, vectors = jnp.linalg.eigh(primals[0])
    moved = core.symmetrize(tangents[0])
    one, other = jnp.expand_dims(values, 1), jnp.expand_dims(values, 0)
    equal = jnp.abs(one - other) <= _rounding(values)
    difference = (jnp.maximum(one, 0) - jnp.maximum(other, 0)) / jnp.where(equal, 1, one - other)
    difference = jnp.where(equal, jnp.where(one + other > 0, 1, 0).astype(values.dtype), difference)
    turned = difference * product(vectors.T, product(moved, vectors))
    clipped = core.symmetrize(product(vectors, product(turned, vectors.T)))
    return positive_part(primals[0]), jnp.where(values[0] >= -_rounding(values), moved, clipped)


def _rounding(values: jax.Array) -> jax.Array:
    return 8 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
