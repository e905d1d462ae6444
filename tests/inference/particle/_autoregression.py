"""An autoregression seen with noise, one observation missing: its joint normal law in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.distributions import Normal
from jaxprob.models.state_space import StateSpaceModel

YS = np.array([0.3, 1.4, np.nan, 2.0, 0.5, -0.7])
PARAMETERS = np.array([0.8, -0.5])  # dynamics, log of the standard deviation of the innovations
NOISE, START = 0.6, 1.5


def _next(parameters, x, t):
    return Normal(parameters[0] * x, jnp.exp(parameters[1]))


def _seen(x, t):
    return Normal(x, jnp.full_like(x, NOISE))


def model_of(parameters):
    parameters = jnp.asarray(parameters)
    dtype = parameters.dtype
    initial = Normal(jnp.zeros((), dtype), jnp.asarray(START, dtype))
    return StateSpaceModel(initial, jax.tree_util.Partial(_next, parameters), _seen)


def joint(parameters, steps):
    """Covariance of the states (steps, steps)."""
    phi, q = parameters[0], np.exp(parameters[1])
    # x = L e with independent e.
    root = np.array([[phi ** (i - j) if j <= i else 0.0 for j in range(steps)] for i in range(steps)])
    return root @ np.diag([START**2] + [q**2] * (steps - 1)) @ root.T


def smoothed(parameters=PARAMETERS, ys=YS):
    """Mean and covariance of the states given the observations."""
    seen = ~np.isnan(ys)
    prior = joint(parameters, len(ys))
    gain = np.linalg.solve(prior[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum()), prior[seen]).T
    return gain @ ys[seen], prior - gain @ prior[seen]


def log_likelihood(parameters=PARAMETERS, ys=YS):
    seen = ~np.isnan(ys)
    covariance = joint(parameters, len(ys))[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum())
    quadratic = ys[seen] @ np.linalg.solve(covariance, ys[seen])
    return -0.5 * (quadratic + np.linalg.slogdet(covariance)[1] + seen.sum() * np.log(2 * np.pi))


def score(parameters=PARAMETERS, step=1e-5):
    """Gradient of the log likelihood by central differences."""
    ahead = np.eye(len(parameters)) * step
    return np.array([log_likelihood(parameters + e) - log_likelihood(parameters - e) for e in ahead]) / (2 * step)
