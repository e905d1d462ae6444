"""Metropolis, Langevin, slice, latent-Gaussian and two-stage kernels in the battery."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case
from tests.inference.mcmc._cases_hamiltonian import DENSE


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


def latent(name, kernel, **options):
    return Case(name, lambda target: kernel(target.log_likelihood, *target.prior), ("path",), kind="latent", **options)


def normals(key, like):
    """Standard normals shaped like a position."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [jax.random.normal(core.fold(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


class Wide(NamedTuple):
    """Independent Student t with 3 degrees of freedom, shaped like a position and off centre."""

    like: Any

    def sample(self, key):
        leaves, structure = jax.tree.flatten(self.like)
        drawn = [1.2 * jax.random.t(core.fold(key, i), 3.0, x.shape, x.dtype) + 0.3 for i, x in enumerate(leaves)]
        return jax.tree.unflatten(structure, drawn)

    def log_prob(self, position):
        return -2 * sum(jnp.sum(jnp.log1p(((x - 0.3) / 1.2) ** 2 / 3)) for x in jax.tree.leaves(position))


def independent(log_density):
    """The proposal is told the shapes of a position, and nothing else."""

    def at(position):
        return mcmc.independent_metropolis(log_density, Wide(jax.tree.map(jnp.zeros_like, position)))

    return core.Algorithm(
        lambda position, key: at(position).init(position, key), lambda key, state: at(state.position).step(key, state)
    )


def distorted(log_density):
    """Another density: wider tails, and waves along each coordinate."""

    def surrogate(position):
        return 0.7 * log_density(position) + 0.4 * sum(jnp.sum(jnp.sin(2 * x)) for x in jax.tree.leaves(position))

    return surrogate


def drift(key, position):
    """An autoregression, which is not symmetric."""
    return jax.tree.map(lambda x, z: 0.8 * x + 0.9 * z, position, normals(key, position))


def drift_ratio(old, new):
    def log_q(after, before):
        errors = jax.tree.map(lambda y, x: -0.5 * jnp.sum(((y - 0.8 * x) / 0.9) ** 2), after, before)
        return sum(jax.tree.leaves(errors))

    return log_q(old, new) - log_q(new, old)


def two_stages(log_density):
    return mcmc.delayed_acceptance(log_density, distorted(log_density), drift, drift_ratio)


def inner_chain(log_density):
    inner = mcmc.barker(distorted(log_density), 1.0)
    return mcmc.surrogate_transition(log_density, inner, num_steps=2)


CASES = [
    case("random walk", partial(mcmc.random_walk_metropolis, step_size=0.9), ("skewed", "mixture")),
    case(
        "random walk, dense",
        partial(mcmc.random_walk_metropolis, step_size=0.9, inverse_mass_matrix=DENSE),
        ("skewed",),
    ),
    case("independent", independent, ("skewed", "mixture")),
    case("mala", partial(mcmc.mala, step_size=0.8), ("skewed", "beta-binomial")),
    case("barker", partial(mcmc.barker, step_size=1.2), ("skewed", "mixture")),
    case("barker, dense", partial(mcmc.barker, step_size=1.2, inverse_mass_matrix=DENSE), ("skewed",)),
    case("coordinate slice", partial(mcmc.coordinate_slice, widths=1.5), ("skewed", "funnel"), steps=600),
    case(
        "coordinate slice, few steps",
        partial(mcmc.coordinate_slice, widths=0.5, max_steps=3, random_order=True),
        ("skewed",),
    ),
    case("hit and run", mcmc.hit_and_run_slice, ("skewed", "mixture")),
    case(
        "hit and run, dense, few steps",
        partial(mcmc.hit_and_run_slice, width=1.2, inverse_mass_matrix=DENSE, max_steps=2),
        ("skewed",),
    ),
    latent("elliptical slice", mcmc.elliptical_slice),
    latent("crank-nicolson", partial(mcmc.preconditioned_crank_nicolson, step_size=0.4)),
    latent("marginal latent", partial(mcmc.marginal_latent_gaussian, step_size=0.8)),
    case("delayed acceptance", two_stages, ("skewed",)),
    case("surrogate transition", inner_chain, ("skewed",)),
]
