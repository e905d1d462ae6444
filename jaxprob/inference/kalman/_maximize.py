"""M-steps of linear-Gaussian models: regressions whose cases are the columns of a root of the smoothed moments.

A case is a mean, in its first column, and beside it a root of a covariance. Rotations of all columns solve a regression
and leave a root of what is left; no sum of squares is formed. What depends on what comes before it keeps its
coefficients, as they are all changes of those so far.

Source: Shumway & Stoffer (1982), "An approach to time series smoothing and forecasting using the EM algorithm".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman._square_root import right_solve, square_root, triangularize
from jaxprob.inference.kalman._steps import covariance_of
from jaxprob.models.state_space import LinearGaussian

# What is learnt together: a matrix, an offset, and the covariance of what is left.
GROUPS = (
    (None, "initial_mean", "initial_covariance"),
    ("dynamics", "dynamics_offset", "dynamics_covariance"),
    ("emission", "emission_offset", "emission_covariance"),
)
NAMES = tuple(name for group in GROUPS for name in group if name)


def complete(noise: jax.Array, residuals: jax.Array, seen: jax.Array) -> jax.Array:
    """Residuals (m, c + m) of all numbers of a time, from those (m, c) of the ones seen: the others by their law.

    Noise that is missing is `B` times the noise that was seen, and more of its own, in the columns that are added.
    """
    order = jnp.argsort(~seen, stable=True)
    there = seen[order]
    root = square_root(noise[jnp.expand_dims(order, 1), jnp.expand_dims(order, 0)])
    one, other = jnp.expand_dims(there, 1), jnp.expand_dims(there, 0)
    fill = right_solve(jnp.where(one & other, root, 0), jnp.where(~one & other, root, 0))
    back = jnp.argsort(order)
    whole = (fill + jnp.diag(there.astype(root.dtype)))[jnp.expand_dims(back, 1), jnp.expand_dims(back, 0)]
    known = core.matmul(whole, jnp.where(jnp.expand_dims(seen, 1), residuals, 0))
    return jnp.concatenate([known, jnp.where(one | other, 0, root)[back]], 1)


def _regress(states: jax.Array, residuals: jax.Array, there: jax.Array, shifts: bool) -> tuple[jax.Array, jax.Array]:
    """The regression of residuals (cases, r, c) on states (cases, p, c), and on a constant if `shifts`.

    Each case is a mean, in its first column, and a root of a covariance; those not `there` (cases,) do not count.

    Returns:
      coefficients (r, p), that of the constant first, zero for what depends on those before it; and a root (r, r) of
      the sum over the cases of what is left.
    """
    rows = [states, residuals]
    if shifts:
        rows.insert(0, jnp.zeros_like(residuals[:, :1]).at[:, :, 0].set(1))
    cases = jnp.where(jnp.expand_dims(there, (1, 2)), jnp.concatenate(rows, 1), 0)
    size = cases.shape[1] - residuals.shape[1]
    # What depends on what comes before is judged on a small square: on all the columns rounding adds up.
    root = triangularize(core.tria(jnp.moveaxis(cases, 1, 0).reshape(cases.shape[1], -1)))
    return right_solve(root[:size, :size], root[size:, :size]), root[size:, size:]


def learn_group(
    model: LinearGaussian, group: Any, learn: tuple[str, ...], states: Any, residuals: Any, there: Any
) -> dict[str, jax.Array]:
    """New entries of a group from `residuals`, those that the entries so far leave."""
    matrix, offset, _ = group
    used = states if matrix in learn else states[:, :0]
    coefficients, root = _regress(used, residuals, there, offset in learn)
    spread = covariance_of(root) / jnp.maximum(jnp.sum(there), 1).astype(root.dtype)
    return _moved(model, group, learn, coefficients, spread, jnp.any(there))


def learn_rows(
    model: LinearGaussian, group: Any, learn: tuple[str, ...], states: Any, residuals: Any, seen: Any
) -> dict[str, jax.Array]:
    """As `learn_group`, where noise is independent: a regression for each number observed, one after the other."""
    matrix, offset, _ = group
    used = states if matrix in learn else states[:, :0]

    def row(_: Any, xs: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        residuals, there = xs
        coefficients, root = _regress(used, jnp.expand_dims(residuals, 1), there, offset in learn)
        return None, (coefficients[0], root[0, 0])

    coefficients, root = scan.scan(row, None, (jnp.moveaxis(residuals, 1, 0), seen.T))[1]
    spread = root**2 / jnp.maximum(jnp.sum(seen, 0), 1).astype(root.dtype)
    return _moved(model, group, learn, coefficients, spread, jnp.any(seen, 0))


def _moved(
    model: LinearGaussian, group: Any, learn: tuple[str, ...], coefficients: jax.Array, spread: jax.Array, any_: Any
) -> dict[str, jax.Array]:
    """The entries of a group that are learnt; those of which nothing was seen stay as they are."""
    matrix, offset, covariance = group
    shifts = int(offset in learn)
    changes = {}
    if matrix in learn:
        changes[matrix] = getattr(model, matrix) + coefficients[:, shifts:]
    if offset in learn:
        changes[offset] = getattr(model, offset) + coefficients[:, 0]
    if covariance in learn:
        changes[covariance] = jnp.where(any_, spread, getattr(model, covariance))
    return changes
