"""The best denoiser where the law of data is a mixture of normal laws: what samplers are tested with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.diffusion._gaussian import Gaussian


@core.pytree
class GaussianMixtureDenoiser:
    """See `gaussian_mixture_denoiser`. It is `(x, t, condition) -> output`; the condition is not used.

    Attributes:
      process: whose output it makes.
      log_weights: (component,).
      means: (component, d), in the coordinates in which noise is white.
      axes: (component, d, d), the eigenvectors of covariances in these coordinates, as columns.
      variances: (component, d), the eigenvalues.
    """

    process: Gaussian
    log_weights: jax.Array
    means: jax.Array
    axes: jax.Array
    variances: jax.Array

    def __call__(self, x: jax.Array, t: Any, condition: Any = None) -> jax.Array:
        process = self.process
        log_weights, means, axes, variances = (
            leaf.astype(x.dtype) for leaf in (self.log_weights, self.means, self.axes, self.variances)
        )
        alpha, sigma = process._scales_as(x, t)
        # Along the axes of each component, numbers are independent.
        away = process.noise.whitened(x)[None] - alpha * means
        away = core.matvec(jnp.swapaxes(axes, -1, -2), away)
        spread = alpha**2 * variances + sigma**2
        log_joint = log_weights - 0.5 * jnp.sum(away**2 / spread + jnp.log(spread), -1)
        shares = jax.nn.softmax(log_joint)[:, None]

        def expected(along: jax.Array, about: Any) -> jax.Array:
            white = jnp.sum(shares * (about + core.matvec(axes, along)), 0)
            return process.noise.shaped(white)

        # Each by itself, for one from the other would lose digits at one of the ends.
        clean = expected(alpha * variances / spread * away, means)
        noise = expected(sigma / spread * away, jnp.zeros_like(means))
        return process.encode(clean, noise, x, t)


def gaussian_mixture_denoiser(process: Gaussian, weights: Any, means: Any, covariances: Any) -> GaussianMixtureDenoiser:
    """The denoiser with the exact score, for data that are a mixture of normal laws; one component for a normal law.

    No trained denoiser is better: with it, a sampler's error is the sampler's own.

    Args:
      process: a Gaussian process.
      weights: (component,), the probabilities of the components.
      means: (component, d).
      covariances: (component, d, d), or (d, d) for all.

    Returns:
      a denoiser `(x, t, condition) -> output` of one example (d,), a pytree.

    Raises:
      TypeError: if the process is not Gaussian.
      ValueError: if shapes do not match, weights are no probabilities, or a covariance is known not to be symmetric and
        positive semi-definite.

    >>> from jaxprob.models.diffusion import variance_preserving
    >>> process = variance_preserving(prediction="clean")
    >>> denoiser = gaussian_mixture_denoiser(process, [0.5, 0.5], [[-1.0], [1.0]], [[0.0]])
    >>> [round(float(denoiser(jnp.array([x]), 0.5)[0]), 3) for x in (-9.0, 0.0, 9.0)]
    [-1.0, 0.0, 1.0]

    Source: Tweedie's formula; Robbins (1956), "An empirical Bayes approach to statistics".
    """
    name = "diffusion.gaussian_mixture_denoiser"
    if not isinstance(process, Gaussian):
        raise core.bad_type(name, "process", core.describe(process), "a Gaussian process")
    weights, means, covariances = core.as_float(weights), core.as_float(means), core.as_float(covariances)
    if weights.ndim != 1 or weights.shape[0] < 1:
        raise core.bad_value(name, "weights", f"of shape {weights.shape}", "(component,)")
    if means.ndim != 2 or means.shape[0] != weights.shape[0]:
        raise core.bad_value(name, "means", f"of shape {means.shape}", f"({weights.shape[0]}, d)")
    count, size = means.shape
    if covariances.shape not in ((size, size), (count, size, size)):
        raise core.bad_value(name, "covariances", f"of shape {covariances.shape}", f"({count}, {size}, {size})")
    if not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights, float)
        if not (np.all(values >= 0) and abs(values.sum() - 1) < 1e-3):
            raise core.bad_value(name, "weights", values.tolist(), "probabilities with sum 1")
    covariances = jnp.broadcast_to(covariances, (count, size, size))
    half = jax.vmap(jax.vmap(process.noise.whitened))(covariances)
    white = jax.vmap(jax.vmap(process.noise.whitened))(jnp.swapaxes(half, -1, -2))
    variances, axes = jnp.linalg.eigh(core.symmetrize(white))
    if not isinstance(variances, jax.core.Tracer):
        symmetric = np.allclose(covariances, np.swapaxes(covariances, -1, -2), atol=1e-5, rtol=1e-5)
        values = np.asarray(variances, float)
        if not symmetric or not np.all(values >= -1e-5 * np.abs(values).max()):
            todo = "A factor L gives L L^T"
            raise core.bad_value(name, "covariances", "not", "symmetric, without negative eigenvalues", todo)
    means = jax.vmap(process.noise.whitened)(means)
    return GaussianMixtureDenoiser(process, core.safe_log(weights), means, axes, jnp.maximum(variances, 0))
