"""What the data say of the numbers of which nothing is known beforehand, and moments with those integrated out.

Innovations e_t + E_t z are standard normal, for the diffuse numbers z: a least-squares problem, kept as the triangular
root of [E e]^T [E e] and made larger by rotations as data come in. Where d = 0 there is nothing to it.

Source: de Jong (1991), "The diffuse Kalman filter"; the likelihood is the limit that Durbin & Koopman (2012) take in
section 7.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import scan
from jaxprob.inference.kalman._square_root import Moments, Seen, product, right_solve, triangularize


def information(innovations: jax.Array, method: str) -> jax.Array:
    """The roots of what is known after each time, (time, d + 1, d + 1), from the innovations (time, m, 1 + d).

    Their last row belongs to the innovations themselves.
    """
    rows = jnp.swapaxes(jnp.roll(innovations, -1, axis=2), 1, 2)

    def combine(before: jax.Array, after: jax.Array) -> jax.Array:
        return triangularize(jnp.concatenate([before, after], 1))

    start = jnp.zeros(rows.shape[1:2] * 2, rows.dtype)
    if method != "parallel":
        return scan.scan(lambda root, row: (combine(root, row),) * 2, start, rows)[1]
    return scan.associative(combine, jax.vmap(triangularize)(rows), method="parallel").states


def log_likelihoods(seen: Seen, roots: jax.Array | None) -> jax.Array:
    """The log likelihood of the data up to each time, (time,)."""
    if roots is None:
        return jnp.cumsum(_log_densities(seen))
    return log_likelihood(jnp.cumsum(jnp.sum(seen.log_scale, 1)), roots)


def total(seen: Seen, roots: jax.Array | None) -> jax.Array:
    """The log likelihood of all data, ()."""
    if roots is None:
        return _sum(_log_densities(seen))
    return log_likelihood(_sum(jnp.sum(seen.log_scale, 1)), roots[-1])


def _log_densities(seen: Seen) -> jax.Array:
    """Of the numbers of each time, (time,), where nothing is diffuse."""
    return -jnp.sum(seen.log_scale + 0.5 * seen.innovation[..., 0] ** 2, 1)


def _sum(terms: jax.Array, length: int = 128) -> jax.Array:
    """The sum of many terms, in parts: added up one by one, ten thousand equal ones lose half of float32's digits."""
    return jnp.sum(jnp.sum(jnp.pad(terms, (0, -terms.shape[0] % length)).reshape(-1, length), 1))


def log_likelihood(scales: jax.Array, roots: jax.Array) -> jax.Array:
    """The log likelihood (...), from the sum of `Seen.log_scale` so far (...) and the root of what is known."""
    diagonal = jnp.diagonal(roots, axis1=-2, axis2=-1)
    pivots = diagonal[..., :-1]
    return -scales - jnp.sum(jnp.log(jnp.where(pivots > 0, pivots, 1)), -1) - 0.5 * diagonal[..., -1] ** 2


class Known(NamedTuple):
    """What the data say of the diffuse numbers.

    Attributes:
      mean: (d,).
      root: (d, d), a root of the covariance.
      unknown: (d, d), columns of directions of which nothing is known; zeros else.
    """

    mean: jax.Array
    root: jax.Array
    unknown: jax.Array


def known(root: jax.Array) -> Known:
    """What is known by a root from `information`. A number that depends on unknown ones has mean zero."""
    d = root.shape[0] - 1
    lower, last = root[:d, :d], root[d, :d]
    eye = jnp.eye(d, dtype=root.dtype)
    there = jnp.expand_dims(jnp.diagonal(lower) > 0, 1)
    # The precision is lower @ lower.T, and the mean solves lower.T @ z = -last.
    inverse = right_solve(lower, jnp.where(there, eye, 0))
    unknown = jnp.where(there.T, 0, eye - product(lower, inverse).T)
    return Known(-jnp.sum(jnp.expand_dims(last, 1) * inverse, 0), inverse.T, unknown)


def integrate(moments: Moments, root: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The mean (n,) and root (n, n) of a state, whatever the diffuse numbers are.

    Where the data do not determine it yet the mean is NaN, and its variance inf.
    """
    if root is None:
        return moments.mean[:, 0], moments.factor
    mean, spread, unknown = known(root)
    effect = moments.mean[:, 1:]
    factor = triangularize(jnp.concatenate([moments.factor, product(effect, spread)], 1))
    lost = _depends(effect, unknown)
    factor = jnp.where(jnp.expand_dims(lost, 1), jnp.where(jnp.eye(lost.shape[0], dtype=bool), jnp.inf, 0), factor)
    return jnp.where(lost, jnp.nan, moments.mean[:, 0] + jnp.sum(effect * jnp.expand_dims(mean, 0), 1)), factor


def innovations(found: jax.Array, before: jax.Array) -> jax.Array:
    """Standardised innovations (m,) from their columns (m, 1 + d), whatever the diffuse numbers are.

    Each is seen after those before it. NaN where what is known does not predict the number.
    """
    roots, result = before, []
    for columns in found:
        mean, spread, unknown = known(roots)
        effect = columns[1:]
        variance = 1 + jnp.sum(jnp.sum(jnp.expand_dims(effect, 1) * spread, 0) ** 2)
        lost = _depends(jnp.expand_dims(effect, 0), unknown)[0]
        result.append(jnp.where(lost, jnp.nan, (columns[0] + jnp.sum(effect * mean)) / jnp.sqrt(variance)))
        row = jnp.expand_dims(jnp.roll(columns, -1), 1)
        roots = triangularize(jnp.concatenate([roots, row], 1))
    return jnp.stack(result)


def _depends(effects: jax.Array, unknown: jax.Array) -> jax.Array:
    """Which numbers (k,), that move with the diffuse ones by effects (k, d), are not known beyond rounding."""
    size = jnp.max(jnp.abs(effects), initial=0)
    return jnp.any(jnp.abs(product(effects, unknown)) > 64 * unknown.shape[0] * jnp.finfo(effects.dtype).eps * size, 1)
