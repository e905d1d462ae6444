"""Distributions of one number through jit, vmap, scan, grad, shard_map and a checkpoint, all in one program."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxprob import distributions as d

QUICK = {"xla_backend_optimization_level": 0}


def build(x):
    """Every distribution, from one positive number below 1."""
    return {
        "Normal": d.Normal(x, 1.0),
        "HalfNormal": d.HalfNormal(x),
        "LogNormal": d.LogNormal(x, x),
        "StudentT": d.StudentT(x, 0.0, x),
        "Cauchy": d.Cauchy(x, x),
        "HalfCauchy": d.HalfCauchy(x),
        "Laplace": d.Laplace(x, x),
        "Logistic": d.Logistic(x, x),
        "Gamma": d.Gamma(x, x),
        "InverseGamma": d.InverseGamma(x, x),
        "Exponential": d.Exponential(x),
        "Weibull": d.Weibull(x, x),
        "Beta": d.Beta(x, x),
        "Uniform": d.Uniform(-x, x),
        "TruncatedNormal": d.TruncatedNormal(x, x, -0.5, x),
        "TruncatedNormal above": d.TruncatedNormal(x, x, -x),
        "VonMises": d.VonMises(x, x),
        "Flat": d.Flat(d.Interval(-x, x)),
        "Delta": d.Delta(x),
    }


NAMES = list(build(0.5))
XS = np.array([0.3, 0.5, 0.8], np.float32)
# Drawn under vmap: one of each kind of sampler, for the sake of compile time.
DRAWN = ("Normal", "HalfCauchy", "Gamma", "Exponential", "Weibull", "Uniform", "VonMises", "Delta")
AT = 0.25  # Inside every support but Delta's.


@cache
def everything():
    """One compiled program of every transformation, on every distribution."""

    def log_probs(distributions):
        return {name: distribution.log_prob(AT) for name, distribution in distributions.items()}

    @partial(jax.jit, compiler_options=QUICK)
    def program(xs, key):
        def step(carried, _):
            return carried, log_probs(carried)

        batch = jax.vmap(build)(xs)
        last, scanned = jax.lax.scan(step, build(xs[0]), None, length=2)
        drawn = {name: batch[name] for name in DRAWN}
        keys = dict(zip(drawn, jax.random.split(key, (len(drawn), 3)), strict=True))
        return {
            "batch": batch,
            "last": last,
            "scanned": scanned,
            "of the batch": log_probs(batch),
            "mapped": jax.vmap(log_probs)(batch),
            "mapped draws": {n: jax.vmap(lambda d, k: d.sample(k, (2,)))(drawn[n], keys[n]) for n in drawn},
            "slopes": jax.jvp(lambda x: log_probs(build(x)), (xs[0],), (jnp.ones_like(xs[0]),))[1],
        }

    return program(jnp.asarray(XS), jax.random.key(0))


@cache
def eager():
    return [{n: np.asarray(dist.log_prob(AT)) for n, dist in build(jnp.asarray(x)).items()} for x in XS]


@pytest.mark.parametrize("name", NAMES)
def test_transformations_agree(name):
    found, one = everything(), build(jnp.asarray(XS[0]))[name]
    expected = np.array([log_prob[name] for log_prob in eager()])
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(found["mapped"][name], expected)
    # Built under vmap: a batch of three. Returned from jit: an ordinary distribution.
    batch, last = found["batch"][name], found["last"][name]
    assert (batch.batch_shape, batch.event_shape, last.batch_shape) == ((3,), (), ())
    close(found["of the batch"][name], expected)
    close(found["scanned"][name], [expected[0]] * 2)
    close(last.log_prob(AT), expected[0])
    assert jax.tree.structure(last) == jax.tree.structure(one)
    for leaf, same in zip(jax.tree.leaves(last), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(leaf, same)
        assert leaf.dtype == same.dtype
    assert np.isfinite(found["slopes"][name])
    assert found["slopes"][name] != 0 or name in ("Flat", "Delta")
    if name in DRAWN:
        draws = found["mapped draws"][name]
        assert draws.shape == (3, 2)
        assert bool(batch.support.contains(jnp.swapaxes(draws, 0, 1)).all())
        # Every distribution of the batch has a key of its own, and so has every draw.
        if name != "Delta":
            assert np.unique(draws).size == 6


def test_one_key_gives_the_same_draws_eagerly_and_compiled():
    with jax.debug_key_reuse(False):
        key = jax.random.key(7)
        distribution = d.Logistic(1.0, 2.0)
        draws = jax.jit(lambda dist: dist.sample(key, 5))(distribution)
        np.testing.assert_allclose(distribution.sample(key, 5), draws, rtol=1e-5)
        np.testing.assert_allclose(distribution.sample(jax.random.key_data(key), 5), draws, rtol=1e-5)


@pytest.mark.parametrize("varying", ["key", "both"])
def test_draws_inside_shard_map(varying):
    """Samplers with a loop inside make a carry that varies over the mesh as the keys do, whatever the parameters."""
    mesh = jax.make_mesh((2,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    over_chains = PartitionSpec("chain")

    @partial(jax.jit, compiler_options=QUICK)
    @partial(jax.shard_map, mesh=mesh, in_specs=(over_chains, PartitionSpec()), out_specs=over_chains)
    def draw(x, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("chain"))
        x = jnp.full(2, 2.0) if varying == "key" else x
        made = (d.VonMises(0.0, x), d.Gamma(x, 1.0), d.StudentT(x), d.Poisson(x), d.Poisson(9e6 * x))
        made += (d.Binomial(10**6, x / 9), d.NegativeBinomial(1e6 * x, 2.0), d.Truncated(d.Poisson(1e6 * x), 1e5, None))
        keys = jax.random.split(key, len(made) + 1)
        draws = [dist.sample(k).astype(float) for dist, k in zip(made, keys[1:], strict=True)]
        counts = d.Multinomial(10**6, probs=jnp.stack([x / 9, 1 - x / 9], -1)).sample(keys[0])[..., 0]
        return jnp.stack([*draws, counts.astype(float)], axis=-1)

    draws = draw(jnp.array([0.5, 2.0, 3.0, 4.0]), jax.random.key(0))
    assert draws.shape == (4, 9)
    assert np.unique(np.delete(draws, 3, axis=1)).size == 4 * 8


def test_checkpoint(tmp_path):
    from orbax.checkpoint import v1 as ocp

    saved = jax.tree.map(jnp.asarray, build(jnp.asarray(XS)))
    ocp.save(tmp_path / "all", saved)
    loaded = ocp.load(tmp_path / "all", saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for before, after in zip(jax.tree.leaves(saved), jax.tree.leaves(loaded), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(loaded["Normal"].log_prob(AT), saved["Normal"].log_prob(AT))
