"""Samplers, filters and fits inside a user's own `shard_map`, which looks at what varies over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxprob import scan
from jaxprob.distributions import Normal
from jaxprob.inference import diffusion as sampling
from jaxprob.inference import mcmc, particle, smc, vi
from jaxprob.models import diffusion
from jaxprob.models.state_space import StateSpaceModel

PARTS = {
    "log_prior": lambda x: -0.5 * jnp.sum(x**2),
    "log_likelihood": lambda x: -0.5 * jnp.sum((x - 4) ** 2),
    "sample_prior": lambda key: jax.random.normal(key, (2,)),
}
VOLATILITY = StateSpaceModel(
    Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, 0.3), lambda x, t: Normal(0.0, jnp.exp(x / 2))
)
RETURNS = jnp.linspace(-1, 1, 20)
PROCESS = diffusion.variance_preserving(diffusion.cosine(10.0, -10.0))


def log_density(x):
    return -0.5 * jnp.sum(x**2)


def chain(kernel):
    def run(key):
        algorithm = kernel(log_density)
        first, rest = jax.random.split(key)

        def one(state, key):
            state, _ = algorithm.step(key, state)
            return state, state.position

        return scan.scan(one, algorithm.init(jnp.zeros(2), first), jax.random.split(rest, 5))[1]

    return run


def population(sampler):
    return lambda key: smc.run_sampler(key, sampler(particles=32, **PARTS)).state.log_evidence


def denoiser(x, t, condition):
    """Of standard normal data."""
    return PROCESS.from_clean(PROCESS.scales(t)[0] * x, x, t)


slow = pytest.mark.slow
RUNS = {
    "hmc": chain(partial(mcmc.hmc, step_size=0.3, num_integration_steps=4)),
    "nuts": chain(partial(mcmc.nuts, step_size=0.3)),
    "mclmc": chain(partial(mcmc.mclmc, step_size=0.3, trajectory_length=1.0)),
    "tempered": population(smc.tempered),
    "persistent": population(smc.persistent),
    "nested": lambda key: smc.run_sampler(key, smc.nested(particles=128, moves=5, **PARTS)).state.log_evidence,
    "filter": lambda key: particle.log_likelihood(key, VOLATILITY, RETURNS, particles=64),
    "smooth": lambda key: particle.smooth(key, VOLATILITY, RETURNS, particles=32),
    "pathfinder": lambda key: vi.pathfinder(log_density, jnp.ones(2), key).elbo,
    "fit": lambda key: vi.fit(log_density, key, vi.mean_field(), initial=jnp.zeros(2), max_steps=20).elbo,
    "diffusion": lambda key: sampling.sample(key, PROCESS, denoiser, (4, 2), solver=sampling.ancestral(10)),
}
# JAX's check that keys are used once, which quick tests have, takes the keys of a `scan` inside `shard_map` for used.
QUICK = "filter", "tempered"


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in RUNS])
def test_the_same_as_without(name):
    mesh = jax.make_mesh((2,), ("chains",), axis_types=(AxisType.Auto,))
    spec, mapped = PartitionSpec("chains"), jax.vmap(RUNS[name])
    there = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec))
    found, expected = (run(jax.random.split(jax.random.key(0), 4)) for run in (there, jax.jit(mapped)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
