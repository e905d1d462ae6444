"""Mixtures of normal laws under Gaussian noise, in closed form and without the code that is tested."""

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [0.8, -0.4]])
COVARIANCES = np.array([[[0.09, 0.02], [0.02, 0.04]], [[0.25, -0.1], [-0.1, 0.16]]])


def scales(scale, log_ratio):
    """alpha and sigma by the equation that names a scale."""
    r = np.exp(0.5 * np.float64(log_ratio))
    alpha = {
        "preserving": r / np.sqrt(1 + r**2),
        "exploding": 1.0,
        "sub_preserving": 2 * r / (1 + np.sqrt(1 + 4 * r**2)),
        "straight": r / (1 + r),
        "bayesian": r**2 / (1 + r**2),
    }[scale]
    return alpha, alpha / r


def log_density(x, alpha=1.0, sigma=0.0, weights=WEIGHTS, means=MEANS, covariances=COVARIANCES):
    """Of alpha x_0 + sigma noise at x (d,), by matrices and determinants."""
    x = jnp.asarray(x)
    total = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        spread = alpha**2 * jnp.asarray(covariance, x.dtype) + sigma**2 * jnp.eye(len(mean), dtype=x.dtype)
        away = x - alpha * jnp.asarray(mean, x.dtype)
        log_scale = 0.5 * jnp.linalg.slogdet(2 * np.pi * spread)[1]
        total.append(np.log(weight) - log_scale - 0.5 * away @ jnp.linalg.solve(spread, away))
    return jax.nn.logsumexp(jnp.stack(total))


def score(x, alpha, sigma, **law):
    return jax.grad(lambda x: log_density(x, alpha, sigma, **law))(x)


def draw(rng, count, weights=WEIGHTS, means=MEANS, covariances=COVARIANCES):
    """Data, (count, d)."""
    which = rng.choice(len(weights), size=count, p=weights)
    normal = np.stack([rng.multivariate_normal(m, c, size=count) for m, c in zip(means, covariances, strict=True)])
    return normal[which, np.arange(count)]


def moments(weights=WEIGHTS, means=MEANS, covariances=COVARIANCES):
    """Mean and covariance."""
    mean = weights @ means
    second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(weights, means, covariances, strict=True))
    return mean, second - np.outer(mean, mean)
