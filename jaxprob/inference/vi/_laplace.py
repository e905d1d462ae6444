"""The Laplace approximation: a Gaussian at a mode with the curvature there.

L-BFGS finds the mode roughly and Newton's method exactly. How far the gradient says the mode still is, in standard
deviations, is part of the result, and so is whether the curvature is that of a maximum.

Source: Tierney & Kadane (1986), "Accurate approximations for posterior moments and marginal densities"; MacKay (2003),
"Information theory, inference, and learning algorithms", chapter 27.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import Flat, flatten, to_vector
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.vi import _lbfgs as lbfgs
from jaxprob.inference.vi._start import as_target, check_start

MEMORY = 10  # moves that L-BFGS remembers
NEWTON = 10  # Newton steps at the most
COLUMNS = 64  # of a Hessian that are computed at once


@core.pytree
class Laplace:
    """A Gaussian approximation.

    Attributes:
      mean: pytree, the mode.
      inverse_mass_matrix: a `mcmc.Metric` that holds the factor of the covariance: (size, size), or (size,) if it is
        diagonal. Kernels take it as their `inverse_mass_matrix`.
      log_density: (), at the mode.
      log_evidence: (), of the log density's normalising constant: log density + log |det L| + size / 2 * log(2 pi).
      distance: (), how far the mode still is, in standard deviations, by the gradient.
      negative_definite: (), bool, whether the Hessian is that of a maximum. Where it is not, the absolute values of the
        eigenvalues stand for what they are not (for `hessian="diagonal"` those of its entries), and where it is not
        finite the identity does.
      converged: (), bool: all is finite, the Hessian is negative definite and the distance within the tolerance.
    """

    mean: Any
    inverse_mass_matrix: Metric
    log_density: jax.Array
    log_evidence: jax.Array
    distance: jax.Array
    negative_definite: jax.Array
    converged: jax.Array

    def sample(self, key: core.Key) -> Any:
        """One draw, a position: where a chain of the log density starts (of a posterior: `initial="laplace"`)."""
        mean, unravel = to_vector(self.mean)
        factor = self.inverse_mass_matrix
        return unravel(mean + factor.velocity(core.random.normal(core.as_key(key, "sample"), mean.shape, mean.dtype)))

    def log_prob(self, position: Any) -> jax.Array:
        """Log density of the Gaussian at a position, ()."""
        core.check_same_structure("log_prob", "position", position, self.mean, dtypes=False)
        mean, _ = to_vector(self.mean)
        away = core.ravel(position)[0].astype(mean.dtype) - mean
        white = self.inverse_mass_matrix.whiten(away)
        return -0.5 * jnp.sum(white**2) - _log_volume(self.inverse_mass_matrix, mean.size)


class _Newton(NamedTuple):
    """The carry of Newton's method."""

    position: jax.Array  # (size,)
    log_density: jax.Array  # ()
    gradient: jax.Array  # (size,)
    metric: Metric
    negative_definite: jax.Array  # (), bool
    distance: jax.Array  # ()
    iterations: jax.Array  # ()
    active: jax.Array  # (), bool


def laplace(
    log_density: Any,
    initial: Any = None,
    key: core.Key | None = None,
    *,
    hessian: str = "full",
    max_steps: int = 500,
    tolerance: Any = 1e-2,
) -> Laplace:
    """The Laplace approximation N(mode, (-Hessian)^-1).

    Costs some 1.2 gradients for each iteration of L-BFGS, and as many gradients as a position has scalars for each
    Hessian, of which 2 or 3 are needed. With `hessian="diagonal"` the same number, but no matrix is kept; its variances
    are those of each scalar given all others, smaller than the marginal ones.

    Args:
      log_density: `position -> scalar` on unconstrained positions, or a posterior.
      initial: a position to start from; a function `key -> position`; by default the posterior's own.
      key: for a function that draws the start.
      hessian: "full" or "diagonal".
      max_steps: iterations of L-BFGS at the most.
      tolerance: (), distance of the mode, in standard deviations, up to which the result counts as converged.

    Returns:
      a `Laplace`. A search that fails says so in `converged`, and all its numbers are finite but for those of a traced
      start without density, where `log_density` and `log_evidence` are -inf.

    Raises:
      TypeError: if `log_density` is neither a function nor a posterior, or no key is given where one is needed.
      ValueError: for no `initial` where one is needed or one without a finite log density, another `hessian`, or
        `max_steps` below 1.

    >>> result = laplace(lambda q: -0.5 * ((q - 1) ** 2).sum(), jnp.zeros(2))
    >>> result.mean.tolist(), bool(result.converged), round(float(result.log_evidence), 4)
    ([1.0, 1.0], True, 1.8379)
    """
    target, position, draw = as_target(log_density, initial, "laplace")
    if hessian not in ("full", "diagonal"):
        raise core.bad_value("laplace", "hessian", core.describe(hessian), "'full' or 'diagonal'")
    if max_steps < 1:
        raise core.bad_value("laplace", "max_steps", max_steps, "an integer of at least 1")
    if draw is not None:
        position = draw(core.as_key(key, "laplace"))
    flat = flatten(target, position)
    vector = core.ravel(position)[0].astype(flat.dtype)
    check_start(flat.evaluate(vector)[0], "laplace")
    walk = lbfgs.maximise(flat, vector, MEMORY, max_steps, 1e-8)
    last = _newton(flat, walk, hessian)
    finite = jnp.isfinite(last.log_density) & jnp.isfinite(last.distance)
    height = jnp.where(jnp.isfinite(last.log_density), last.log_density, -jnp.inf)
    return Laplace(
        mean=flat.unravel(last.position),
        inverse_mass_matrix=last.metric,
        log_density=height,
        log_evidence=height + _log_volume(last.metric, flat.size),
        distance=last.distance,
        negative_definite=last.negative_definite,
        converged=finite & last.negative_definite & (last.distance <= core.as_float(tolerance).astype(flat.dtype)),
    )


def _newton(flat: Flat, walk: lbfgs.Walk, hessian: str) -> _Newton:
    """Newton's method for as long as it comes closer, and the curvature where it ends."""

    def look(position: jax.Array, log_density: jax.Array, gradient: jax.Array, iterations: jax.Array) -> _Newton:
        curvature = _full(flat, position) if hessian == "full" else _diagonal(flat, position)
        metric, negative_definite = _factorise(-curvature)
        white = metric.force(gradient)
        distance = jnp.sqrt(core.ordered_dot(white, white))
        distance = jnp.where(jnp.isnan(distance), jnp.inf, distance)
        active = jnp.isfinite(log_density) & negative_definite & jnp.isfinite(distance) & (distance > 0)
        return _Newton(position, log_density, gradient, metric, negative_definite, distance, iterations, active)

    def step(newton: _Newton) -> _Newton:
        position = newton.position + newton.metric.velocity(newton.metric.force(newton.gradient))
        new = look(position, *flat.evaluate(position), newton.iterations + 1)
        better = new.negative_definite & jnp.isfinite(new.log_density) & (new.distance < 0.5 * newton.distance)
        chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, newton)
        active = better & new.active & (new.iterations < NEWTON)
        return chosen._replace(iterations=new.iterations, active=newton.active & active)

    first = look(walk.position, walk.log_density, walk.gradient, jnp.int32(0))
    return core.while_loop(lambda newton: newton.active, step, first)


def _product_with_hessian(flat: Flat, position: jax.Array, direction: jax.Array) -> jax.Array:
    return jax.jvp(lambda x: flat.evaluate(x)[1], (position,), (direction,))[1]


def _full(flat: Flat, position: jax.Array) -> jax.Array:
    """The Hessian (size, size), some columns at a time so that memory does not grow with all of them."""
    eye = jnp.eye(flat.size, dtype=flat.dtype)
    return core.symmetrize(lax.map(lambda e: _product_with_hessian(flat, position, e), eye, batch_size=COLUMNS))


def _diagonal(flat: Flat, position: jax.Array) -> jax.Array:
    """The diagonal of the Hessian (size,), without the rest of it."""

    def entry(index: jax.Array) -> jax.Array:
        direction = (jnp.arange(flat.size) == index).astype(flat.dtype)
        return _product_with_hessian(flat, position, direction)[index]

    return lax.map(entry, jnp.arange(flat.size), batch_size=COLUMNS)


def _factorise(precision: jax.Array) -> tuple[Metric, jax.Array]:
    """The metric with the inverse of a matrix, or diagonal, and whether it is positive definite; repaired if not."""
    finite = jnp.all(jnp.isfinite(precision))
    if precision.ndim == 1:
        positive = finite & jnp.all(precision > 0)
        usable = jnp.where(finite, jnp.abs(precision), 1)
        return Metric(1 / jnp.sqrt(jnp.maximum(usable, _smallest(usable)))), positive
    # As a correlation, whose conditioning does not depend on the units of the parameters.
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    precision = jnp.where(finite, precision, eye)
    diagonal = jnp.abs(jnp.diagonal(precision))
    scale = jnp.sqrt(jnp.maximum(diagonal, _smallest(diagonal)))
    scaled = precision / (jnp.expand_dims(scale, 1) * jnp.expand_dims(scale, 0))
    root = _inverse_root(scaled)
    positive = finite & jnp.all(jnp.isfinite(root))
    root = core.cond(positive, lambda: root, lambda: _inverse_root(_positive(scaled)))
    return Metric(root / jnp.expand_dims(scale, 1)), positive


def _inverse_root(matrix: jax.Array) -> jax.Array:
    """The lower Cholesky factor of the inverse; not finite where the matrix is not positive definite."""
    # Backwards, the inverse of an upper triangle is the lower one that is wanted.
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return core.solve_triangular(core.cholesky(matrix[::-1, ::-1]), eye).T[::-1, ::-1]


def _positive(matrix: jax.Array) -> jax.Array:
    """The matrix with the absolute values of its eigenvalues, none of them next to nothing."""
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.abs(values)
    values = jnp.maximum(values, _smallest(values))
    return core.matmul(vectors * jnp.expand_dims(values, 0), vectors.T)


def _smallest(values: jax.Array) -> jax.Array:
    """What counts as positive beside the largest of some numbers."""
    largest = jnp.max(values)
    return jnp.where(largest > 0, 10 * values.size * jnp.finfo(values.dtype).eps * largest, 1)


def _log_volume(metric: Metric, size: int) -> jax.Array:
    """log |det L| + size / 2 * log(2 pi)."""
    diagonal = jnp.diagonal(metric.factor) if metric.factor.ndim == 2 else metric.factor
    return jnp.sum(jnp.log(diagonal)) + 0.5 * size * math.log(2 * math.pi)
