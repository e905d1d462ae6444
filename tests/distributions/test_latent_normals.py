"""Normal vectors with a precision of rank one, and joined vectors, against NumPy's dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.distributions import MultivariateNormal, MultivariateNormalDiagonal, Poisson
from jaxprob.distributions._concatenated import Concatenated
from jaxprob.distributions._rank_one_precision import MultivariateNormalRankOnePrecision

LOC, D, U = np.array([0.5, -1.0, 2.0, 0.0]), np.array([0.5, 2.0, 1.0, 4.0]), np.array([3.0, -1.0, 0.5, 0.0])
COVARIANCE = np.linalg.inv(np.diag(D) + np.outer(U, U))


def rank_one(dtype):
    return MultivariateNormalRankOnePrecision(*(jnp.asarray(a, dtype) for a in (LOC, D, U)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_precision_of_rank_one_is_as_its_dense_covariance(dtype, x64):
    law, oracle = rank_one(dtype), scipy.stats.multivariate_normal(LOC, COVARIANCE)
    tolerance = {"rtol": 1e-12 if dtype == "float64" else 2e-5, "atol": 1e-13 if dtype == "float64" else 1e-6}
    x = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(law.log_prob(jnp.asarray(x, dtype)), oracle.logpdf(x), **tolerance)
    np.testing.assert_allclose(law.entropy(), oracle.entropy(), **tolerance)
    np.testing.assert_allclose(law.covariance(), COVARIANCE, **tolerance)
    np.testing.assert_allclose(law.variance(), np.diag(COVARIANCE), **tolerance)
    np.testing.assert_allclose(law.mean(), LOC)
    draw = law.sample(jax.random.key(0))
    assert draw.dtype == law.log_prob(draw).dtype == dtype
    assert law.log_prob(jnp.asarray([np.inf, 0, 0, 0], dtype)) == -np.inf
    gradient = jax.grad(lambda law: law.entropy() + jnp.sum(law.sample(jax.random.key(1))))(
        MultivariateNormalRankOnePrecision(jnp.zeros(4), jnp.ones(4), jnp.zeros(4))
    )
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_draws_have_its_moments():
    """Means and second moments as z-scores: 14 below 4.5, a false alarm in 10,000 runs."""
    draws = np.asarray(rank_one(np.float32).sample(jax.random.key(2), 20_000), float) - LOC
    products = draws[:, :, None] * draws[:, None]
    for values, expected in ((draws, np.zeros(4)), (products, COVARIANCE)):
        z = (values.mean(0) - expected) / (values.std(0) / np.sqrt(len(draws)))
        assert np.abs(z).max() < 4.5, z


def test_a_variance_keeps_its_digits_along_a_direction_of_great_precision():
    """One less own / (1 + all) would be 0 or noise in float32."""
    law = MultivariateNormalRankOnePrecision(jnp.zeros(2), jnp.ones(2), jnp.array([1e4, 1.0]))
    np.testing.assert_allclose(law.variance(), [2 / (2 + 1e8), (1 + 1e8) / (2 + 1e8)], rtol=1e-6)


def test_batches_are_loops_under_jit_and_vmap():
    locs = jnp.arange(8.0).reshape(2, 4)
    batch = MultivariateNormalRankOnePrecision(locs, jnp.asarray(D), jnp.asarray(U))
    assert batch.batch_shape == (2,)
    x = jnp.ones(4)
    each = jax.jit(
        jax.vmap(lambda m: MultivariateNormalRankOnePrecision(m, jnp.asarray(D), jnp.asarray(U)).log_prob(x))
    )
    np.testing.assert_allclose(batch.log_prob(x), each(locs), rtol=1e-5)
    assert batch.sample(jax.random.key(0), 3).shape == (3, 2, 4)
    assert batch.covariance().shape == (2, 4, 4)


def test_joined_vectors_are_their_parts():
    first = MultivariateNormalDiagonal(jnp.array([1.0, 2.0]), jnp.array([0.5, 3.0]))
    second = MultivariateNormal(jnp.zeros((3, 1)), covariance=jnp.full((1, 1), 2.0))
    both = Concatenated((first, second))
    assert (both.batch_shape, both.event_shape, both.sizes) == ((3,), (3,), (2, 1))
    draws, log_prob = both.sample_and_log_prob(jax.random.key(0), 2)
    assert draws.shape == (2, 3, 3)
    assert len(np.unique(np.asarray(draws))) == 18
    expected = scipy.stats.norm([1, 2, 0], [0.5, 3, np.sqrt(2)])
    np.testing.assert_allclose(log_prob, expected.logpdf(draws).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(both.entropy(), [expected.entropy().sum()] * 3, rtol=1e-6)
    np.testing.assert_allclose(both.mean(), [[1, 2, 0]] * 3)
    np.testing.assert_allclose(both.variance(), [[0.25, 9, 2]] * 3, rtol=1e-6)
    with pytest.raises(TypeError, match=r"Concatenated: parts\[1\] is an object of type Poisson; expected"):
        Concatenated((first, Poisson(1.0)))
    with pytest.raises(ValueError, match="Concatenated: parts is empty; expected"):
        Concatenated(())


def test_bad_parameters_are_told():
    name = "MultivariateNormalRankOnePrecision"
    with pytest.raises(ValueError, match=rf"{name}: direction is of shape \(3,\); expected shape \(\*batch, 2\)"):
        MultivariateNormalRankOnePrecision(0.0, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match=rf"{name}: diagonal is 0.0 at index \(1,\); expected positive"):
        MultivariateNormalRankOnePrecision(0.0, jnp.array([1.0, 0.0]), jnp.ones(2))
