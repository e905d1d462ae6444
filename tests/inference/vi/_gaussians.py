"""Gaussian targets of the tests, with what is known of them in closed form."""

import jax
import jax.numpy as jnp
import numpy as np


def gaussian(size, dtype, offset=0.0, spread=0.5, seed=1):
    """A log density, its mean, covariance (dense, in units that differ) and log normalising constant."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, 2 * size)) / np.sqrt(2 * size)
    units = np.exp(spread * rng.normal(size=size))
    covariance = (root @ root.T) * np.outer(units, units)
    mean = 3 * rng.normal(size=size)
    precision, centre = jnp.asarray(np.linalg.inv(covariance), dtype), jnp.asarray(mean, dtype)

    def log_density(x):
        z = x - centre
        return jnp.asarray(offset, dtype) - 0.5 * jnp.sum(z * jnp.matmul(precision, z, precision="highest"))

    return log_density, mean, covariance, offset + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]


def root_of(metric):
    size = metric.factor.shape[0]
    return np.asarray(jax.vmap(metric.velocity)(jnp.eye(size, dtype=metric.factor.dtype)), float).T


def whitened(covariance, metric):
    """Eigenvalues of a metric's covariance in units of another: all one if they are the same."""
    return np.linalg.svd(np.linalg.inv(np.linalg.cholesky(covariance)) @ root_of(metric))[1] ** 2
