"""Populations in the battery: ensembles, replicas at several temperatures."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


def to_a_prior(target):
    """From the posterior of a path to its prior; elsewhere to a wide normal."""
    kernel = partial(mcmc.hmc, step_size=0.35, num_integration_steps=4)
    betas = jnp.array([1.0, 0.5, 0.2, 0.0])

    def reference(q):
        return -0.125 * sum(jnp.sum(x * x) for x in jax.tree.leaves(q))

    return mcmc.parallel_tempering(kernel, target.log_density, reference=reference, inverse_temperatures=betas)


CASES: list[Case] = [
    case("stretch", mcmc.stretch, ("gaussian", "skewed", "mixture"), walkers=10),
    case("differential evolution", mcmc.differential_evolution, ("gaussian", "skewed"), walkers=10),
    case(
        "parallel tempering, random walk",
        partial(
            mcmc.parallel_tempering,
            partial(mcmc.random_walk_metropolis, step_size=1.2),
            inverse_temperatures=[1.0, 0.6, 0.3],
        ),
        ("skewed", "mixture"),
        stationary=False,
    ),
    Case("parallel tempering, hmc", to_a_prior, ("path",), stationary=False),
]
