"""The filter with information instead of covariances: from nothing known at all, and with many numbers at a time.

A state is known by equations `Z^T x = z` with independent standard normal errors. New observations are more equations,
a step in time is the elimination of the state before, and both are rotations. Zero information is zeros.

Source: Bierman (1977), "Factorization methods for discrete sequential estimation", chapters 5 and 6.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman import _diffuse as diffuse
from jaxprob.inference.kalman._square_root import HALF_LOG_TAU, Moments, triangularize
from jaxprob.inference.kalman._steps import Step, as_observations, covariance_of, prepare
from jaxprob.models.state_space import LinearGaussian


@core.pytree
class InformationFiltered:
    """What an information filter found.

    Attributes:
      root: Z, (time, n, n), lower triangular: the information of the observations up to a time is `Z Z^T`.
      vector: (time, n), the information times the mean.
      mean: (time, n), of the state given the observations up to its time; NaN where they do not determine it.
      factor: (time, n, n), root of its covariance; rows of inf where undetermined.
      log_likelihoods: (time,), of the observations up to each time; NaN until the state is determined.
    """

    root: jax.Array
    vector: jax.Array
    mean: jax.Array
    factor: jax.Array
    log_likelihoods: jax.Array

    @property
    def information(self) -> jax.Array:
        """(time, n, n), the inverse covariance."""
        return covariance_of(self.root)

    @property
    def covariance(self) -> jax.Array:
        """(time, n, n), of the state given the observations up to its time."""
        return covariance_of(self.factor)

    @property
    def log_likelihood(self) -> jax.Array:
        """(), of all observations; 0 for none."""
        totals = self.log_likelihoods
        return totals[..., -1] if totals.shape[-1] else jnp.zeros(totals.shape[:-1], totals.dtype)


def information_filter(model: LinearGaussian, ys: Any, *, missing: Any = None) -> InformationFiltered:
    """The states of a model given what has been observed so far, by their information.

    What is diffuse of the initial state starts from zero information, exactly. The numbers observed at a time are first
    reduced to n, for all times side by side: with many more numbers than states this is the cheaper filter. It divides
    by noise: both noises must be positive definite, and so must be the initial covariance where nothing is diffuse.
    Results are NaN otherwise; `kalman.filter` takes any model.

    Args:
      model: a `LinearGaussian`.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.

    Returns:
      `InformationFiltered`.

    Raises:
      ValueError, TypeError: as `kalman.filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> one = jnp.eye(1)
    >>> walk = LinearGaussian(jnp.zeros(1), 0 * one, one, one, one, jnp.ones(1), initial_diffuse=one)
    >>> found = information_filter(walk, jnp.array([1.0, jnp.nan, 3.0]))
    >>> print(*(f"{x:.2f}" for x in found.information[:, 0, 0]), f"{found.log_likelihood:.3f}")
    1.00 0.50 1.33 -3.031
    """
    return _information_filter(model, *as_observations("kalman.information_filter", model, ys, missing))


@jax.jit
def _information_filter(model: LinearGaussian, ys: jax.Array, seen: jax.Array) -> InformationFiltered:
    steps = prepare(model, ys, seen)
    every = steps.everywhere
    n, dtype = model.state_size, steps.start.mean.dtype
    observed, log_scales = jax.vmap(_reduced)(every)

    def body(carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array, Step]) -> tuple[Any, Any]:
        known, total = carry
        rows, log_scale, step = xs
        known = triangularize(jnp.concatenate([known, rows], 1))
        total = total - log_scale - 0.5 * known[n, n] ** 2
        known = known.at[n, n].set(0)
        pivots = jnp.diagonal(known)[:n]
        likelihood = jnp.where(jnp.all(pivots > 0), total + n * HALF_LOG_TAU - _log_product(pivots), jnp.nan)
        # Equations of x (first) and of the state after it, whitened: W (x' - F x - b) = 0.
        white = core.solve_triangular(step.dynamics_root, jnp.eye(n, dtype=dtype))
        moved = jnp.concatenate([step.dynamics, jnp.expand_dims(step.dynamics_offset, 1)], 1)
        moved = core.matmul(white, moved)
        none = jnp.zeros((n, n), dtype)
        both = [
            jnp.concatenate([known[:n, :n], -moved[:, :n].T], 1),
            jnp.concatenate([none, white.T], 1),
            jnp.concatenate([known[n:, :n], moved[:, n:].T], 1),
        ]
        joint = triangularize(jnp.concatenate(both))
        after = joint[n:, n:].at[n, n].set(0)
        total = total + _log_product(jnp.diagonal(white)) - _log_product(jnp.diagonal(joint)[:n])
        return (after, total), (known, likelihood)

    known, likelihoods = scan.scan(body, _start(steps.start), (observed, log_scales, every))[1]
    # In the terms of the diffuse numbers: the state is those numbers, of which the equations say everything.
    unit = Moments(jnp.concatenate([jnp.zeros((n, 1), dtype), jnp.eye(n, dtype=dtype)], 1), jnp.zeros((n, n), dtype))
    mean, factor = jax.vmap(lambda known: diffuse.integrate(unit, known.at[n].multiply(-1)))(known)
    roots, last = known[:, :n, :n], known[:, n, :n]
    result = InformationFiltered(roots, core.matvec(roots, last), mean, factor, likelihoods)
    return jax.tree.map(lambda leaf: leaf.astype(ys.dtype), result)


def _log_product(pivots: jax.Array) -> jax.Array:
    """The log of the product of those that are not zero."""
    # NaN stays NaN.
    return jnp.sum(jnp.log(jnp.where(pivots == 0, 1, jnp.abs(pivots))))


def _reduced(step: Step) -> tuple[jax.Array, jax.Array]:
    """What is observed at a time as equations (n + 1, n + 1), and the log of what its density is divided by."""
    there, noise = step.seen, step.emission_covariance
    rows = jnp.where(jnp.expand_dims(there, 1), jnp.concatenate([step.emission, step.values[:, :1]], 1), 0)
    if noise.ndim == 1:
        scale = jnp.sqrt(jnp.where(there, noise, 1))
        white = rows / jnp.expand_dims(scale, 1)
    else:
        both = jnp.expand_dims(there, 0) & jnp.expand_dims(there, 1)
        factor = core.cholesky(jnp.where(both, noise, jnp.diag((~there).astype(noise.dtype))))
        scale, white = jnp.diagonal(factor), core.solve_triangular(factor, rows)
    return core.tria(white.T), jnp.sum(jnp.where(there, HALF_LOG_TAU + jnp.log(scale), 0))


def _start(start: Moments) -> tuple[jax.Array, jax.Array]:
    """Equations (n + 1, n + 1) of the first state, and the log of what its density is divided by."""
    n, columns = start.mean.shape
    # W (x - m - A z) = 0, of which z is eliminated.
    white = core.solve_triangular(start.factor, jnp.eye(n, dtype=start.mean.dtype))
    moved = core.matmul(white, start.mean)
    equations = triangularize(jnp.concatenate([-moved[:, 1:].T, white.T, moved[:, :1].T]))
    d = columns - 1
    total = _log_product(jnp.diagonal(white)) - n * HALF_LOG_TAU - _log_product(jnp.diagonal(equations)[:d])
    known = equations[d:, d:].at[n, n].set(0)
    return known, total
