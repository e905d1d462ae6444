"""A coupled quartic, whose curvature varies enough for trajectories of every kind: for JAX, and for NumPy."""

import jax.numpy as jnp
import numpy as np


def quartic(q):
    return -0.25 * jnp.sum(q**4) - 0.5 * (q[0] - 2 * q[1]) ** 2 - 0.1 * q[2] ** 2


def numpy_density(q):
    return -0.25 * np.sum(q**4) - 0.5 * (q[0] - 2 * q[1]) ** 2 - 0.1 * q[2] ** 2


def numpy_gradient(q):
    apart = q[0] - 2 * q[1]
    return -(q**3) - np.array([apart, -2 * apart, 0.2 * q[2]])
