"""Closed divergences against NumPy's dense formula in float64, and against draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import (
    Bernoulli,
    Categorical,
    Cauchy,
    Independent,
    MultivariateNormal,
    MultivariateNormalDiagonal,
    MultivariateNormalLowRank,
    Normal,
    flows,
)
from jaxprob.distributions._concatenated import Concatenated
from jaxprob.distributions._rank_one_precision import MultivariateNormalRankOnePrecision
from jaxprob.inference import vi

LOC, OTHER = np.array([0.3, -1.0, 2.0]), np.array([0.0, 0.5, 1.0])
SCALE, WIDE = np.array([0.5, 1.0, 2.0]), np.array([1.5, 0.7, 3.0])
U = np.array([2.0, -0.5, 1.0])
DENSE = np.array([[2.0, 0.3, -0.4], [0.3, 1.0, 0.2], [-0.4, 0.2, 0.5]])


def dense(mean, cov, other_mean, other_cov):
    inverse = np.linalg.inv(other_cov)
    away = other_mean - mean
    log_ratio = np.linalg.slogdet(other_cov)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(inverse @ cov) + away @ inverse @ away - len(mean) + log_ratio)


GUIDES = {
    "diagonal": (lambda a: MultivariateNormalDiagonal(a(LOC), a(SCALE)), np.diag(SCALE**2)),
    "dense": (lambda a: MultivariateNormal(a(LOC), covariance=a(DENSE)), DENSE),
    "low rank": (
        lambda a: MultivariateNormalLowRank(a(LOC), a(SCALE), a(U)[:, None]),
        np.diag(SCALE) + np.outer(U, U),
    ),
    "rank one": (
        lambda a: MultivariateNormalRankOnePrecision(a(LOC), a(SCALE), a(U)),
        np.linalg.inv(np.diag(SCALE) + np.outer(U, U)),
    ),
    "parts": (
        lambda a: Concatenated(
            (
                MultivariateNormalDiagonal(a(LOC[:1]), a(SCALE[:1])),
                MultivariateNormal(a(LOC[1:]), covariance=a(DENSE[1:, 1:])),
            )
        ),
        np.block([[SCALE[:1, None] ** 2, np.zeros((1, 2))], [np.zeros((2, 1)), DENSE[1:, 1:]]]),
    ),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_vectors_are_as_the_dense_formula_says(name, dtype, x64):
    make, cov = GUIDES[name]
    guide = make(lambda a: jnp.asarray(a, dtype))
    prior = MultivariateNormalDiagonal(jnp.asarray(OTHER, dtype), jnp.asarray(WIDE, dtype))
    standard = flows.StandardNormal(3, dtype)
    found = vi.kl_divergence(guide, prior), vi.kl_divergence(guide, standard)
    expected = dense(LOC, cov, OTHER, np.diag(WIDE**2)), dense(LOC, cov, np.zeros(3), np.eye(3))
    np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == "float64" else 1e-5)
    assert all(x.dtype == dtype for x in found)
    if name == "dense":
        other = np.diag(WIDE) + np.outer(U, U)
        full = MultivariateNormal(jnp.asarray(OTHER, dtype), covariance=jnp.asarray(other, dtype))
        np.testing.assert_allclose(vi.kl_divergence(guide, full), dense(LOC, cov, OTHER, other), rtol=1e-5)


def test_single_numbers_and_categories():
    p, r = np.array([0.2, 0.8, 0.0]), np.array([0.5, 0.25, 0.25])
    categories = 0.2 * np.log(0.2 / 0.5) + 0.8 * np.log(0.8 / 0.25)
    assert np.isclose(vi.kl_divergence(Categorical(p), Categorical(r)), categories)
    assert np.isclose(vi.kl_divergence(Categorical(p), Categorical(logits=jnp.log(7 * r))), categories)
    assert vi.kl_divergence(Categorical(r), Categorical(p)) == np.inf
    flips = 0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(0.8 / 0.4)
    assert np.isclose(vi.kl_divergence(Bernoulli(0.2), Bernoulli(0.6)), flips)
    assert vi.kl_divergence(Bernoulli(0.0), Bernoulli(0.0)) == 0
    one = [
        dense(np.array([a]), np.array([[b]]), np.array([c]), np.array([[d]]))
        for a, b, c, d in zip(LOC, SCALE**2, OTHER, WIDE**2, strict=True)
    ]
    q, prior = Normal(jnp.asarray(LOC), jnp.asarray(SCALE)), Normal(jnp.asarray(OTHER), jnp.asarray(WIDE))
    np.testing.assert_allclose(vi.kl_divergence(q, prior), one, rtol=1e-5)
    np.testing.assert_allclose(vi.kl_divergence(Independent(q), Independent(prior)), sum(one), rtol=1e-5)


def test_it_keeps_its_digits_near_zero_and_its_gradient_is_finite():
    """A difference of terms of order one would be off by 1e-7, and the divergence is 5e-9."""
    near = vi.kl_divergence(Normal(jnp.float32(1e-4), jnp.float32(1.0)), Normal(0.0, 1.0))
    np.testing.assert_allclose(near, 5e-9, rtol=1e-3)
    logits = jnp.array([0.0, -jnp.inf])
    gradient = jax.grad(lambda x: vi.kl_divergence(Categorical(logits=x), Categorical([0.5, 0.5])))(logits)
    assert jnp.all(jnp.isfinite(gradient))


def test_it_is_the_mean_over_draws():
    """Four z-scores below 4: a false alarm in 4,000 runs."""
    prior = MultivariateNormalDiagonal(jnp.asarray(OTHER), jnp.asarray(WIDE))
    for i, (make, _) in enumerate(GUIDES.values()):
        guide = make(jnp.asarray)
        draws, log_q = guide.sample_and_log_prob(jax.random.key(i), 4000)
        terms = np.asarray(log_q - prior.log_prob(draws), float)
        z = (terms.mean() - float(vi.kl_divergence(guide, prior))) / (terms.std() / np.sqrt(4000))
        assert abs(z) < 4, (i, z)


def test_a_batch_is_a_loop_and_what_has_no_closed_form_says_so():
    guides = MultivariateNormalRankOnePrecision(
        jnp.stack([jnp.asarray(LOC), jnp.asarray(OTHER)]), jnp.asarray(SCALE), jnp.asarray(U)
    )
    prior = flows.StandardNormal(3)
    each = [
        vi.kl_divergence(MultivariateNormalRankOnePrecision(m, jnp.asarray(SCALE), jnp.asarray(U)), prior)
        for m in (jnp.asarray(LOC), jnp.asarray(OTHER))
    ]
    np.testing.assert_allclose(vi.kl_divergence(guides, prior), jnp.stack(each), rtol=1e-6)
    with pytest.raises(TypeError, match=r"kl_divergence: q is a Cauchy beside a Normal; expected a pair"):
        vi.kl_divergence(Cauchy(0.0, 1.0), Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"kl_divergence: p is of event shape \(2,\); expected the event shape \(3,\)"):
        vi.kl_divergence(prior, flows.StandardNormal(2))
    with pytest.raises(TypeError, match="kl_divergence: p is 1.0; expected a distribution"):
        vi.kl_divergence(prior, 1.0)
