"""Populations in the battery: ensembles, replicas at several temperatures, and what many chains tune, once tuned."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _jittered, _meads
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric
from tests.inference.mcmc._case import Case


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


def to_a_wide_normal(log_density):
    kernel = partial(mcmc.hmc, step_size=0.35, num_integration_steps=4)

    def reference(q):
        return -0.125 * sum(jnp.sum(x * x) for x in jax.tree.leaves(q))

    betas = jnp.array([1.0, 0.5, 0.2, 0.0])
    return mcmc.parallel_tempering(kernel, log_density, reference=reference, inverse_temperatures=betas)


def jittered(log_density):
    target = as_log_density(log_density, "test")
    return _jittered.jittered_hmc(target, jnp.float32(0.45), as_metric(1.3, "test"), jnp.float32(2.5), 20, "test")


def meads_tuned(log_density):
    """The kernel that is left when the tuning of `meads` has stopped."""
    tuning = _meads.MEADSTuning(*(jnp.log(jnp.float32(x)) for x in (0.6, 0.8, 1.2)))
    made = mcmc.meads(log_density, num_steps=0)
    return made.finish(core.Shared(None, _meads.MEADSShared(jnp.int32(0), jnp.int32(0), tuning)))


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
    case("parallel tempering, hmc", to_a_wide_normal, ("path",), stationary=False),
    case("jittered hmc", jittered, ("skewed",)),
    case("meads, tuned", meads_tuned, ("skewed", "gaussian")),
]
