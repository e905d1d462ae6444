"""Riemannian kernels in the battery."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case

U = (0.5, -1.0, 0.3, 0.8)


def curved(position):
    """A metric that turns and stretches with the position, by factors that matter at these step sizes."""
    q = jnp.concatenate([x.ravel() for x in jax.tree.leaves(position)])
    z = jnp.asarray(U, q.dtype) + jnp.tanh(q)
    return jnp.diag(1 + 0.5 * jnp.sin(q)) + 0.5 * jnp.outer(z, z)


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


# Thousands of chains wait for the one that iterates longest, and SoftAbs takes an eigendecomposition an iteration.
SHORT = {"step_size": 0.5, "max_fixed_point_iterations": 8, "tolerance": 1e-4}

CASES = [
    case(
        "riemannian hmc",
        partial(mcmc.riemannian_hmc, num_integration_steps=2, **SHORT),
        ("funnel",),
        transitions=2,
        steps=300,
    ),
    case(
        "riemannian hmc, curved",
        partial(mcmc.riemannian_hmc, step_size=0.3, metric=curved, num_integration_steps=4),
        ("skewed",),
        steps=900,
        slow=True,
    ),
    case(
        "riemannian nuts",
        partial(mcmc.riemannian_nuts, max_tree_depth=2, **SHORT),
        ("funnel",),
        transitions=2,
        steps=600,
        slow=True,
    ),
    case(
        "riemannian nuts, curved",
        partial(mcmc.riemannian_nuts, metric=curved, max_tree_depth=3, **SHORT),
        ("skewed",),
        transitions=2,
        steps=600,
        slow=True,
    ),
]
