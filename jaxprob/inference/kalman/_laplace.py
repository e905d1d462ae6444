"""The law of a state given an observation with any smooth density: the mode by damped Newton, and the curvature there.

Newton runs in units u of the predicted law, x = m + L u, where that is standard normal: no covariance is inverted. The
mode is differentiated by the implicit function theorem.

Source: Koyama, Castellanos Pérez-Bolde, Shalizi & Kass (2010), "Approximate methods for state-space models".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.kalman._square_root import Moments, product, triangularize

STEPS = 50  # of Newton at the most
HALVINGS = 20  # of one step


def condition(moments: Moments, log_density: Callable[[jax.Array], jax.Array]) -> tuple[Moments, jax.Array]:
    """Moments of the state given an observation, and the log density of that. NaN where no mode is found.

    Args:
      moments: of the state; one column of means.
      log_density: of the observation given the state, (n,) -> ().
    """
    middle, factor = moments.mean[:, 0], moments.factor

    def state(u: jax.Array) -> jax.Array:
        return middle + product(factor, jnp.expand_dims(u, 1))[:, 0]

    def height(u: jax.Array) -> jax.Array:
        return log_density(state(u)) - 0.5 * jnp.sum(u * u)

    start = jnp.zeros_like(middle)

    # A step below what rounding leaves of the state is none, however many standard deviations it is.
    def still(u: jax.Array, move: jax.Array) -> jax.Array:
        moved = product(jnp.abs(factor), jnp.expand_dims(jnp.abs(move), 1))[:, 0]
        return jnp.all(moved <= 8 * jnp.finfo(u.dtype).eps * jnp.maximum(jnp.abs(state(u)), jnp.abs(middle)))

    mode = lax.custom_root(jax.grad(height), start, lambda _, start: _newton(height, still, start), _tangent)
    precision = -jax.hessian(height)(mode)
    root = core.cholesky(precision)
    spread = core.solve_triangular(root, factor.T).T
    log_evidence = height(mode) - 0.5 * core.log_determinant(root)
    found = jnp.isfinite(log_evidence)
    mean, factor = jnp.where(found, state(mode), jnp.nan), jnp.where(found, triangularize(spread), jnp.nan)
    return Moments(jnp.expand_dims(mean, 1), factor), jnp.where(found, log_evidence, jnp.nan)


def _tangent(function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    return jnp.linalg.solve(jax.jacobian(function)(value), value)


def _newton(height: Callable[[jax.Array], jax.Array], still: Callable[..., jax.Array], start: jax.Array) -> jax.Array:
    """The mode; NaN where it is not found."""
    eps = jnp.finfo(start.dtype).eps

    def direction(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The step of Newton, and the square of its length in standard deviations."""
        slope, curvature = jax.grad(height)(u), -jax.hessian(height)(u)
        # Uphill wherever the density is not concave: curvatures count by their size.
        values, vectors = jnp.linalg.eigh(curvature)
        values = jnp.maximum(jnp.abs(values), eps)
        along = core.matvec(vectors.T, slope)
        return core.matvec(vectors, along / values), jnp.sum(along * along / values)

    def step(carry: Any) -> Any:
        u, _, count = carry
        move, squared = direction(u)
        here = height(u)
        # What rounding hides is no descent.
        least = here - 8 * eps * jnp.abs(here)

        def too_long(carry: Any) -> jax.Array:
            size, halvings = carry
            return ~(height(u + size * move) >= least) & (halvings < HALVINGS)

        size, _ = core.while_loop(too_long, lambda c: (0.5 * c[0], c[1] + 1), (jnp.ones_like(squared), 0))
        return u + size * move, jnp.where(still(u, move), 0, squared), count + 1

    def going(carry: Any) -> jax.Array:
        return (carry[1] > eps) & (carry[2] < STEPS)

    mode, squared, _ = core.while_loop(going, step, (start, jnp.full((), jnp.inf, start.dtype), 0))
    # The last step was taken from within the square root of eps of the mode, and Newton doubles the digits.
    return jnp.where(squared <= eps, mode, jnp.nan)
