"""Many numbers observed at a time, reduced to as many as there are states, with nothing lost.

With independent noise, what m numbers say of n states is `b = H^T R^-1 (y - d)` with the precision `A = H^T R^-1 H`.
With A = L L^T the same is said by n numbers `L^-1 b = L^T x + N(0, I)`. A filter then takes a time that does not depend
on m; where A is singular, some of the n are missing.

Source: Jungbacker & Koopman (2015), "Likelihood-based dynamic factor analysis for measurement and forecasting".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference.kalman._square_root import HALF_LOG_TAU, loop, square_root
from jaxprob.inference.kalman._steps import as_observations, working_dtype
from jaxprob.models.state_space import LinearGaussian

NAME = "kalman.collapse"


@core.pytree
class Collapsed:
    """A series reduced to as many numbers a time as there are states.

    Attributes:
      model: `LinearGaussian` with the states of the one that was given, and n observed numbers of unit noise.
      ys: (time, n), NaN where the observations say nothing.
      log_constants: (time,), what to add to the log-likelihood of each time to have that of the observations.
    """

    model: Any
    ys: jax.Array
    log_constants: jax.Array


def collapse(model: LinearGaussian, ys: Any, *, missing: Any = None) -> Collapsed:
    """The same inference from fewer numbers, for models that observe many more than they have states.

    `kalman.smooth(found.model, found.ys)` has the states, and `kalman.log_likelihood(found.model, found.ys) +
    found.log_constants.sum()` the likelihood, of `model` and `ys`. Innovations are others.

    Args:
      model: a `LinearGaussian` whose noise is independent: `emission_covariance` of shape (m,), all above zero.
      ys: (time, m). NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.

    Raises:
      ValueError: if the noise is not independent, or zero somewhere; or as `kalman.filter` does.

    >>> wide = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones((50, 1)), jnp.ones(50))
    >>> collapse(wide, jnp.ones((3, 50))).ys.shape
    (3, 1)
    """
    values, seen = as_observations(NAME, model, ys, missing)
    variances = model.emission_covariance
    if variances.ndim - ("emission_covariance" in model.time_varying) != 1:
        got = f"of shape {variances.shape}"
        raise core.bad_value(NAME, "emission_covariance", got, "variances (m,), as of independent noise")
    if not isinstance(variances, jax.core.Tracer) and not (np.asarray(variances) > 0).all():
        raise core.bad_value(NAME, "emission_covariance", "zero somewhere", "variances above zero")
    complete = not isinstance(seen, jax.core.Tracer) and bool(np.asarray(seen).all())
    same = complete and not {"emission", "emission_covariance"} & {*model.time_varying}
    emission, values, constants = _collapse(model, values, seen, same)
    n, kept = model.state_size, tuple(x for x in model.time_varying if not x.startswith("emission"))
    reduced = dataclasses.replace(
        model,
        emission=emission,
        emission_covariance=jnp.ones((n,), emission.dtype),
        emission_offset=jnp.zeros((n,), emission.dtype),
        time_varying=kept if same else (*kept, "emission"),
    )
    return Collapsed(reduced, values, constants)


@jax.jit(static_argnames="same")
def _collapse(
    model: LinearGaussian, ys: jax.Array, seen: jax.Array, same: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    dtype, narrow = working_dtype(model, ys), ys.dtype
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    offset, variances = (jnp.broadcast_to(x, ys.shape) for x in (model.emission_offset, model.emission_covariance))
    scales = jnp.sqrt(variances)
    gaps = jnp.where(seen, ys.astype(dtype) - offset, 0) / scales
    if same:
        rows = model.emission / jnp.expand_dims(jnp.sqrt(model.emission_covariance), -1)
        factors = _information_root(rows)
        values = jax.vmap(_forward_solve, in_axes=(None, 0))(factors, core.matmul(gaps, rows))
    else:
        rows = jnp.broadcast_to(model.emission, (*ys.shape, model.state_size)) / jnp.expand_dims(scales, -1)
        rows = jnp.where(jnp.expand_dims(seen, -1), rows, 0)
        factors = jax.vmap(_information_root)(rows)
        values = jax.vmap(_forward_solve)(factors, core.matvec(jnp.swapaxes(rows, 1, 2), gaps))
    there = ~jnp.isnan(values)
    used = jnp.sum(jnp.where(there, values, 0) ** 2, 1)
    counted = jnp.sum(seen, 1, dtype=dtype) - jnp.sum(there, 1, dtype=dtype)
    logs = jnp.sum(jnp.where(seen, jnp.log(scales), 0), 1)
    constants = -0.5 * (jnp.sum(gaps * gaps, 1) - used) - logs - HALF_LOG_TAU * counted
    result = jnp.swapaxes(factors, -1, -2), values, constants
    return jax.tree.map(lambda leaf: leaf.astype(narrow), result)


def _information_root(rows: jax.Array) -> jax.Array:
    return square_root(core.symmetrize(core.matmul(rows.T, rows)))


def _forward_solve(factor: jax.Array, vector: jax.Array) -> jax.Array:
    """L^-1 b, NaN in the rows of a zero pivot, which say nothing."""

    def row(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, solution = carry
        pivot = factor[i, i]
        there = pivot > 0
        value = jnp.where(there, rest[i] / jnp.where(there, pivot, 1), 0)
        return rest - factor[:, i] * value, solution.at[i].set(value)

    solution = loop(factor.shape[0], row, (vector, jnp.zeros_like(vector)))[1]
    return jnp.where(jnp.diagonal(factor) > 0, solution, jnp.nan)
