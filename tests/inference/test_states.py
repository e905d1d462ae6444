"""Every state that a sampler hands out, as a pytree: out of jit, built under vmap, carried, differentiated, saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxprob import core, distributions
from jaxprob.analysis import online
from jaxprob.inference import mcmc
from jaxprob.models import joint


def log_density(q):
    return -0.5 * jnp.sum(q["a"] ** 2) - 0.5 * (q["b"] - q["a"][0]) ** 2


@joint
def regression(x):
    slope = yield "slope", distributions.Normal(0.0, 1.0)
    yield "y", distributions.Normal(slope * x, 1.0)


def position(theta):
    return {"a": jnp.stack([theta, 2 * theta]), "b": theta - 1}


KEY = jax.random.key(0)
# From one number to a pytree.
PYTREES = {
    "nuts": lambda theta: mcmc.nuts(log_density).init(position(theta), KEY),
    "hmc": lambda theta: mcmc.hmc(log_density).init(position(theta), KEY),
    "info": lambda theta: mcmc.hmc(log_density).step(
        jax.random.key(0), mcmc.hmc(log_density).init(position(theta), KEY)
    )[1],
    "warmup": lambda theta: mcmc.warmup(mcmc.nuts, log_density, num_steps=30).init(position(theta), KEY),
    "dense warmup": lambda theta: mcmc.warmup(mcmc.hmc, log_density, metric="dense").init(position(theta), KEY),
    "metric": lambda theta: mcmc.Metric(jnp.exp(theta) * jnp.ones(3)),
    "online": lambda theta: online.add(online.init(jnp.zeros((2, 3))), theta * jnp.ones((2, 3))),
    "posterior": lambda theta: regression(theta * jnp.arange(3.0)).condition(y=jnp.ones(3) * theta),
}


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, two)


@pytest.mark.parametrize("name", PYTREES)
def test_life_as_a_pytree(name, tmp_path):
    build = PYTREES[name]
    theta = jnp.array([0.5, 1.0, 2.0])

    def total(tree):
        return sum(jnp.sum(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))

    @jax.jit
    def program(theta):
        def step(tree, _):
            return tree, total(tree)

        one = build(theta[0])
        return (
            one,
            jax.vmap(build)(theta),
            jax.lax.scan(step, one, None, length=2),
            jax.grad(total, allow_int=True)(one),
        )

    one, batch, (carried, totals), slopes = program(theta)
    for index in range(3):
        same(jax.tree.map(lambda x, index=index: x[index], batch), build(theta[index]))
    same(one, build(theta[0]))
    same(carried, one)
    np.testing.assert_allclose(totals, total(one), rtol=1e-6)
    for x, slope in zip(jax.tree.leaves(one), jax.tree.leaves(slopes), strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_array_equal(slope, jnp.ones_like(x))

    ocp.save(tmp_path / "saved", one)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), one)
    same(ocp.load(tmp_path / "saved", abstract), one)


def test_a_gradient_goes_through_a_transition():
    """The slope of an HMC transition in its start is that of finite differences."""
    kernel = mcmc.hmc(log_density, 0.2, num_integration_steps=3)

    @jax.jit
    def end(theta):
        state = kernel.step(core.fold(KEY, 3), kernel.init(position(theta), KEY))[0]
        return state.position["a"][0] + state.log_density

    slope = jax.jit(jax.grad(end))(jnp.float32(0.5))
    expected = (end(jnp.float32(0.51)) - end(jnp.float32(0.49))) / 0.02
    np.testing.assert_allclose(slope, expected, rtol=1e-2)
