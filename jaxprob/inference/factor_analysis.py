"""Maximum likelihood of linear factors: probabilistic PCA in closed form, factor analysis by EM.

Entries may be missing: EM then maximises the likelihood of what is seen.

Source: Tipping & Bishop (1999), "Probabilistic principal component analysis", equations 7 and 8; Rubin & Thayer (1982),
"EM algorithms for ML factor analysis".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference._expectation_maximization import Fitted, check_steps, iterate
from jaxprob.models.latent import FactorAnalysis

# The least noise, of an entry's variance: without it the likelihood has no bound where a factor can follow an entry.
FLOOR = 1e-6


def probabilistic_pca(xs: Any, latents: int) -> FactorAnalysis:
    """The maximum-likelihood model with one noise variance, in closed form.

    Args:
      xs: (example, n), without missing entries.
      latents: number of factors, below n.

    Returns:
      `FactorAnalysis` with noise (); its loadings are orthogonal, the first the largest.

    Raises:
      ValueError: if a number is not finite, or there are as many factors as entries.

    >>> xs = jnp.array([[1.0, 1.1, 0.9], [-1.0, -0.9, -1.1], [2.0, 2.0, 2.1], [-2.0, -2.2, -1.9]])
    >>> probabilistic_pca(xs, 1).loadings[:, 0].round(1).tolist()
    [1.6..., 1.6..., 1.6...]

    Source: Tipping & Bishop (1999), equations 7 and 8.
    """
    name = "factor_analysis.probabilistic_pca"
    xs = _read(name, xs, latents)
    if not isinstance(xs, jax.core.Tracer) and np.isnan(np.asarray(xs)).any():
        todo = "Use factor_analysis.fit(xs, latents, noise='shared')"
        raise core.bad_value(name, "xs", "missing in part", "numbers", todo)
    return _closed(xs, latents)


@functools.partial(jax.jit, static_argnums=1)
def _closed(xs: jax.Array, latents: int) -> FactorAnalysis:
    number, size = xs.shape
    mean = jnp.mean(xs, 0)
    # Singular values of the data, whose squares are never formed and then taken apart again.
    away = xs - jnp.expand_dims(mean, 0)
    _, values, rows = jnp.linalg.svd(away / jnp.sqrt(jnp.asarray(number, xs.dtype)), full_matrices=False)
    noise = jnp.sum(values[latents:] ** 2) / (size - latents)
    noise = jnp.maximum(noise, FLOOR * jnp.sum(values**2) / size)
    values, rows = values[:latents], rows[:latents]
    kept = jnp.sqrt(jnp.maximum((values - jnp.sqrt(noise)) * (values + jnp.sqrt(noise)), 0))
    loadings = rows.T * jnp.expand_dims(kept, 0)
    # Fewer examples than factors: the others do nothing.
    loadings = jnp.pad(loadings, ((0, 0), (0, latents - loadings.shape[1])))
    signs = jnp.where(jnp.sum(loadings, 0) < 0, -1, 1).astype(loadings.dtype)
    return FactorAnalysis(loadings * jnp.expand_dims(signs, 0), mean, noise)


def fit(
    xs: Any,
    latents: int,
    *,
    noise: str = "each",
    steps: int = 200,
    tolerance: float = 1e-3,
    start: FactorAnalysis | None = None,
) -> Fitted:
    """The maximum-likelihood model by EM, from the principal components.

    Noise is held above a millionth of an entry's variance, where an entry is explained in full (a Heywood case).

    Args:
      xs: (example, n); NaN is missing.
      latents: number of factors, below n.
      noise: "each" for factor analysis, "shared" for probabilistic PCA (which has a closed form if nothing is missing).
      steps: how many, all of which are taken.
      tolerance: the gain of log likelihood in the last step up to which EM counts as converged.
      start: where to begin instead; its noise decides in place of `noise`.

    Returns:
      `Fitted`: the model, the log likelihoods of all examples, whether it has converged.

    Raises:
      ValueError: if a number is infinite, an entry is never seen, or there are as many factors as entries.

    >>> xs = jnp.array([[1.0, 1.1, 0.9], [-1.0, jnp.nan, -1.1], [2.0, 2.0, 2.1], [-2.0, -2.2, jnp.nan]])
    >>> bool(jnp.all(jnp.diff(fit(xs, 1, steps=5).log_likelihoods) > -1e-5))
    True

    Source: Rubin & Thayer (1982), with the mean among the loadings, as of a factor that is 1.
    """
    name = "factor_analysis.fit"
    check_steps(name, steps)
    if noise not in ("each", "shared"):
        raise core.bad_value(name, "noise", core.describe(noise), "'each' or 'shared'")
    xs = _read(name, xs, latents)
    if start is not None and start.loadings.shape != (xs.shape[1], latents):
        got, expected = f"with loadings {start.loadings.shape}", f"loadings ({xs.shape[1]}, {latents})"
        raise core.bad_value(name, "start", got, expected)
    return _fit(xs, tolerance, start, latents, noise == "shared", steps)


def _read(name: str, xs: Any, latents: int) -> jax.Array:
    xs = core.as_float(xs)
    if xs.ndim != 2 or 0 in xs.shape:
        raise core.bad_value(name, "xs", f"of shape {xs.shape}", "shape (example, n)")
    core.check_whole(name, latents=latents)
    if latents >= xs.shape[1]:
        raise core.bad_value(name, "latents", latents, f"fewer than the {xs.shape[1]} entries of an example")
    if not isinstance(xs, jax.core.Tracer):
        numbers = np.asarray(xs, np.float64)
        if np.isinf(numbers).any():
            raise core.bad_value(name, "xs", "infinite somewhere", "finite numbers, or NaN where one is missing")
        if (never := np.isnan(numbers).all(0)).any():
            raise core.bad_value(name, "xs", f"missing in all of column {never.argmax()}", "a number in each column")
    return xs.astype(core.accumulator_dtype(xs.dtype))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fit(xs: jax.Array, tolerance: Any, start: Any, latents: int, shared: bool, steps: int) -> Fitted:
    seen = ~jnp.isnan(xs)
    number = jnp.maximum(jnp.sum(seen, 0), 1).astype(xs.dtype)
    mean = jnp.sum(jnp.where(seen, xs, 0), 0) / number
    away = jnp.where(seen, xs - jnp.expand_dims(mean, 0), 0)
    variance = jnp.sum(away**2, 0) / number
    if start is None:
        # The scale of an entry does not matter to factor analysis, and so it should not to its start.
        scale = jnp.ones_like(variance) if shared else jnp.sqrt(jnp.where(variance > 0, variance, 1))
        first = _closed(away / jnp.expand_dims(scale, 0), latents)
        start = FactorAnalysis(first.loadings * jnp.expand_dims(scale, 1), mean, first.noise)
        start = start if shared else dataclasses.replace(start, noise=first.noise * scale**2)
    start = jax.tree.map(lambda leaf: leaf.astype(xs.dtype), start)
    floor = FLOOR * (jnp.mean(variance) if start.noise.ndim == 0 else variance)
    floor = jnp.maximum(floor, jnp.finfo(xs.dtype).tiny)

    def em_step(model: FactorAnalysis) -> tuple[FactorAnalysis, jax.Array]:
        total = jnp.sum(jax.vmap(model.log_likelihood)(xs))
        return _maximized(model, xs, seen, floor), total

    return iterate(em_step, start, steps, tolerance)


def _maximized(model: FactorAnalysis, xs: jax.Array, seen: jax.Array, floor: jax.Array) -> FactorAnalysis:
    """The model after a step: each entry is regressed on the factors and a constant, where it is seen."""
    posterior = jax.vmap(model.posterior)(xs)
    means, spread = posterior.mean(), posterior.covariance()
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    there = seen.astype(xs.dtype)
    away = jnp.where(seen, xs - jnp.expand_dims(model.mean, 0), 0)  # about zero, so that no sum below cancels
    wide = jnp.concatenate([means, jnp.ones_like(means[:, :1])], 1)
    within = precise("en,ekl->nkl", there, spread)
    moments = precise("en,ek,el->nkl", there, wide, wide) + jnp.pad(within, ((0, 0), (0, 1), (0, 1)))
    slopes = core.cholesky_solve(core.cholesky(moments), precise("en,ek->nk", away, wide), vector=True)
    loadings, shift = slopes[:, :-1], slopes[:, -1]
    residual = jnp.where(seen, away - core.matmul(wide, slopes.T), 0)
    square = jnp.sum(residual**2, 0) + precise("nk,nkl,nl->n", loadings, within, loadings)
    number = jnp.sum(there, 0)
    noise = jnp.sum(square) / jnp.sum(number) if model.noise.ndim == 0 else square / number
    return FactorAnalysis(loadings, model.mean + shift, jnp.maximum(noise, floor))
