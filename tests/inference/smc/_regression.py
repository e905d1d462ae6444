"""A conjugate linear regression in closed form, computed by NumPy and SciPy, and independent runs of a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxprob.inference import smc

NOISE = 0.5


def regression(size, number, seed=0):
    """A linear regression with a standard normal prior: its parts, log evidence, posterior mean and covariance."""
    draw = np.random.default_rng(seed)
    design = draw.normal(size=(number, size)) * np.linspace(0.5, 2, size)
    values = design @ draw.normal(size=size) + NOISE * draw.normal(size=number)
    evidence = stats.multivariate_normal(cov=design @ design.T + NOISE**2 * np.eye(number)).logpdf(values)
    covariance = np.linalg.inv(np.eye(size) + design.T @ design / NOISE**2)
    mean = covariance @ design.T @ values / NOISE**2
    x, y = jnp.asarray(design, jnp.float32), jnp.asarray(values, jnp.float32)

    def log_likelihood(q):
        constant = number * np.log(NOISE * np.sqrt(2 * np.pi))
        return -0.5 * jnp.sum((y - (x * jnp.expand_dims(q, 0)).sum(1)) ** 2) / NOISE**2 - constant

    parts = {
        "log_prior": lambda q: -0.5 * jnp.sum(q**2) - 0.5 * size * np.log(2 * np.pi),
        "log_likelihood": log_likelihood,
        "sample_prior": lambda key: jax.random.normal(key, (size,)),
    }
    return parts, evidence, mean, covariance


def repeats(algorithm, number, seed=0, **options):
    run = jax.jit(jax.vmap(lambda key: smc.run_sampler(key, algorithm, **options)))
    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(seed), number)))


def regression_by_datum(size, number, seed=0):
    """The same with a likelihood of one datum: its parts, log evidences of the first data, posterior moments."""
    draw = np.random.default_rng(seed)
    design = draw.normal(size=(number, size)) * np.linspace(0.5, 2, size)
    values = design @ draw.normal(size=size) + NOISE * draw.normal(size=number)
    parts, _, mean, covariance = regression(size, number, seed)
    del parts["log_likelihood"]

    def log_likelihood(q, datum):
        constant = np.log(NOISE * np.sqrt(2 * np.pi))
        return -0.5 * (datum["y"] - jnp.sum(datum["x"] * q)) ** 2 / NOISE**2 - constant

    data = {"x": jnp.asarray(design, jnp.float32), "y": jnp.asarray(values, jnp.float32)}
    marginal = design @ design.T + NOISE**2 * np.eye(number)
    evidences = [stats.multivariate_normal(cov=marginal[:n, :n]).logpdf(values[:n]) for n in range(1, number + 1)]
    return parts | {"log_likelihood": log_likelihood, "data": data}, np.array(evidences), mean, covariance


def moments(population):
    """Means (run, size) and second moments about the mean of all runs (size,) of weighted particles, by NumPy."""
    weights = np.exp(population.log_weights.astype(float))
    weights = np.expand_dims(weights / weights.sum(1, keepdims=True), -1)
    means = (weights * population.particles).sum(1)
    return means, (weights * (population.particles - means.mean(0)) ** 2).sum(1).mean(0)
