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


CASES = [
    case(
        "riemannian hmc",
        partial(mcmc.riemannian_hmc, step_size=0.5, num_integration_steps=3),
        ("funnel", "gaussian"),
        steps=600,
    ),
    case(
        "riemannian hmc, curved",
        partial(mcmc.riemannian_hmc, step_size=0.5, metric=curved, num_integration_steps=3),
        ("skewed",),
    ),
    case(
        "riemannian nuts",
        partial(mcmc.riemannian_nuts, step_size=0.5, max_tree_depth=4),
        ("funnel",),
        steps=400,
    ),
    case(
        "riemannian nuts, curved",
        partial(mcmc.riemannian_nuts, step_size=0.4, metric=curved, max_tree_depth=5),
        ("skewed",),
        steps=600,
    ),
]
