"""Linear models written as state-space models of distributions, and a filter on a grid in float64 NumPy."""

import jax
import numpy as np

from jaxprob.distributions import MultivariateNormal
from jaxprob.models.state_space import StateSpaceModel


def _move(entries, x, t):
    return MultivariateNormal(entries[0] @ x + entries[1], cholesky=entries[2])


def wrap(model):
    """A `LinearGaussian` in which nothing varies as a `StateSpaceModel`; covariances may be singular."""

    def root(covariance):
        covariance = np.asarray(covariance, np.float64)
        covariance = np.diag(covariance) if covariance.ndim == 1 else covariance
        values, vectors = np.linalg.eigh(covariance)
        lower = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0))).T)[1].T
        lower = lower * np.where(np.diag(lower) < 0, -1, 1)
        return jax.numpy.asarray(lower, model.dynamics.dtype)

    def law(mean, covariance):
        # Leaf by leaf: a factor that is known would be asked to be positive definite.
        one = MultivariateNormal(mean, cholesky=jax.numpy.eye(len(mean), dtype=mean.dtype))
        return jax.tree.unflatten(jax.tree.structure(one), [mean, root(covariance)])

    transition = (model.dynamics, model.dynamics_offset, root(model.dynamics_covariance))
    observation = (model.emission, model.emission_offset, root(model.emission_covariance))
    return StateSpaceModel(
        law(model.initial_mean, model.initial_covariance),
        jax.tree_util.Partial(_move, transition),
        jax.tree_util.Partial(_move, observation),
    )


def grid_filter(points, start, move, look, ys):
    """Filtered means and variances (time,), smoothed ones, and the log likelihood, of a state on a line.

    Args:
      points: (k,), evenly spaced.
      start: log density of the first state at points.
      move: `(x (k, 1), x' (1, k)) -> ` log density of x' after x.
      look: `(x (k,), y) -> ` log density of an observation.
      ys: (time,), NaN where missing.
    """
    width = points[1] - points[0]
    step = np.exp(move(points[:, None], points[None, :])) * width
    law, total, filtered = np.exp(start(points)) * width, 0.0, []
    for t, y in enumerate(ys):
        law = law if t == 0 else filtered[-1] @ step
        law = law * (1 if np.isnan(y) else np.exp(look(points, y)))
        total += np.log(law.sum())
        filtered.append(law / law.sum())
    after, smoothed = np.ones_like(points), []
    for t in range(len(ys))[::-1]:
        both = filtered[t] * after
        smoothed.append(both / both.sum())
        likelihood = 1 if np.isnan(ys[t]) else np.exp(look(points, ys[t]))
        after = step @ (likelihood * after)
        after = after / after.max()

    def summary(laws):
        laws = np.array(laws)
        means = laws @ points
        return means, laws @ points**2 - means**2

    return summary(filtered), summary(smoothed[::-1]), total
