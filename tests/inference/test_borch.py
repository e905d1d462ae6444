"""S192: a model written once, sampled with NUTS, against long chains of an independent sampler on a density by hand.

Eight schools is compared with the reference draws in test_posteriordb. Here: logistic regression, and a Bayesian
network with two hidden layers of 32 on data with a gap. The variational half of the check comes with `inference.vi`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import models
from jaxprob.distributions import Bernoulli, Normal

numpyro = pytest.importorskip("numpyro")


def long_chains(log_density, start, *, warmup, draws, chains=4):
    """Draws (chain, draw, ...) of NumPyro's NUTS."""
    from numpyro.infer import MCMC, NUTS

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        mcmc = MCMC(
            NUTS(potential_fn=lambda q: -log_density(q)),
            num_warmup=warmup,
            num_samples=draws,
            num_chains=chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(8), (chains, *x.shape)), start)
        mcmc.run(jax.random.key(9), init_params=noise)
        return jax.tree.map(np.asarray, mcmc.get_samples(group_by_chain=True))


@models.joint
def logistic(x):
    bias = yield "bias", Normal(0.0, 1.0)
    slopes = yield "slopes", Normal(jnp.zeros(x.shape[1]), 1.0)
    yield "malignant", Bernoulli(logits=bias + jnp.matmul(x, slopes, precision="highest"))


def test_logistic_regression():
    """31 means within 0.1 sd: with 3,000 effective draws on both sides all hold but for a chance of 1e-3."""
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = jnp.asarray((data.data - data.data.mean(0)) / data.data.std(0), jnp.float32)
    y = jnp.asarray(data.target)
    posterior = logistic(x).condition(malignant=y)

    def by_hand(q):
        logits = q["bias"] + jnp.matmul(x, q["slopes"], precision="highest")
        prior = -0.5 * (jnp.sum(q["slopes"] ** 2) + q["bias"] ** 2) - 0.5 * 31 * np.log(2 * np.pi)
        return jnp.sum(jnp.where(y == 1, -jnp.logaddexp(0.0, -logits), -jnp.logaddexp(0.0, logits))) + prior

    position = posterior.initial(jax.random.key(3))
    np.testing.assert_allclose(posterior.log_density(position), by_hand(position), rtol=1e-5)
    result = jaxprob.sample(posterior, jax.random.key(1), chains=4, draws=1500, devices=2)
    reference = long_chains(by_hand, position, warmup=1000, draws=2500)
    assert result.summary().ess_bulk.min() > 3000
    for name in ("bias", "slopes"):
        error = (result.draws[name].mean((0, 1)) - reference[name].mean((0, 1))) / reference[name].std((0, 1))
        assert np.abs(error).max() < 0.1
        np.testing.assert_allclose(result.draws[name].std((0, 1)), reference[name].std((0, 1)), rtol=0.08)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = jnp.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(x)[..., 0]


@models.joint
def network(x):
    net = yield from models.random_net("net", Network(), x, prior=Normal(0.0, 0.5))
    yield "y", Normal(net(x), 0.1)


@pytest.mark.slow
def test_bayesian_network_on_data_with_a_gap():
    """Weights have many symmetric modes; what they predict is compared, inside the data and in the gap."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2, -0.7, 20), rng.uniform(0.7, 2, 20)])[:, None].astype(np.float32)
    y = (np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=40)).astype(np.float32)
    posterior = network(jnp.asarray(x)).condition(y=jnp.asarray(y))
    assert posterior.dim == 64 + 32 * 32 + 32 + 33

    def forward(q, x):
        for layer in ("Dense_0", "Dense_1"):
            kernel, bias = q[f"net.{layer}.kernel"], q[f"net.{layer}.bias"]
            x = jnp.tanh(jnp.matmul(x, kernel, precision="highest") + bias[None])
        return (jnp.matmul(x, q["net.Dense_2.kernel"], precision="highest") + q["net.Dense_2.bias"][None])[:, 0]

    def by_hand(q):
        likelihood = -0.5 * jnp.sum(((forward(q, jnp.asarray(x)) - y) / 0.1) ** 2) - 40 * np.log(0.1)
        prior = sum(-0.5 * jnp.sum((leaf / 0.5) ** 2) for leaf in q.values()) - posterior.dim * np.log(0.5)
        return likelihood + prior - 0.5 * (40 + posterior.dim) * np.log(2 * np.pi)

    position = posterior.initial(jax.random.key(3))
    np.testing.assert_allclose(posterior.log_density(position), by_hand(position), rtol=1e-5)
    grid = jnp.linspace(-2, 2, 9)[:, None]
    predict = jax.jit(jax.vmap(jax.vmap(lambda q: forward(q, grid))))
    start = jax.tree.map(lambda leaf: 0.1 * leaf, position)
    result = jaxprob.sample(posterior, jax.random.key(1), initial=start, chains=4, warmup=700, draws=1000, devices=2)
    ours = np.asarray(predict(jax.tree.map(jnp.asarray, result.draws)))
    theirs = np.asarray(predict(long_chains(by_hand, position, warmup=700, draws=1500)))
    table = jaxprob.analysis.summary({"y": ours})
    assert table.ess_bulk.min() > 1000
    error = (ours.mean((0, 1)) - theirs.mean((0, 1))) / theirs.std((0, 1))
    assert np.abs(error).max() < 0.1
    np.testing.assert_allclose(ours.std((0, 1)), theirs.std((0, 1)), rtol=0.1)
