"""Recommendation: the law of counts, what the recognition sees, and measures of rankings by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.inference import vi
from jaxprob.models import latent

MODEL = latent.multinomial_autoencoder(6, 2, 4)
X = jnp.array([2, 0, 1, 0, 0, 3])


def params():
    found = MODEL.init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.5 * jax.random.normal(jax.random.key(p.size), p.shape), found)


def test_the_likelihood_is_multinomial_and_the_recognition_sees_a_unit_vector():
    p, z = params(), jnp.array([0.3, -1.0])
    law = MODEL.likelihood(p, z)
    probs = np.exp(jax.nn.log_softmax(p["decoder"](z)))
    np.testing.assert_allclose(law.mean(), probs, rtol=1e-5)
    expected = scipy.stats.multinomial(6, probs / probs.sum()).logpmf(np.asarray(X))
    np.testing.assert_allclose(law.log_prob(X), expected, rtol=1e-4)
    guide = MODEL.recognition(p, X)
    unit = np.asarray(X, np.float32) / np.linalg.norm(np.asarray(X, float))
    np.testing.assert_allclose(guide.mean(), p["encoder"](jnp.asarray(unit, jnp.float32))[:2], rtol=1e-5)
    np.testing.assert_allclose(MODEL.recognition(p, 7 * X).mean(), guide.mean(), rtol=1e-5)
    assert np.all(np.isfinite(MODEL.recognition(p, 0 * X).mean()))
    with pytest.raises(NotImplementedError):
        law.sample(jax.random.key(0))


def test_annealed_training_with_dropout_is_one_loss():
    batch = {"counts": jnp.stack([X, X[::-1], 0 * X]), "step": jnp.asarray(3)}

    @jax.jit
    def loss(p, batch, key, rate):
        objective = vi.amortized_elbo(MODEL, kl_weight=rate * batch["step"], corrupt=latent.dropout(0.5))
        return objective.loss(p, batch["counts"], key)

    value, metrics = loss(params(), batch, jax.random.key(0), 0.05)
    np.testing.assert_allclose(value, -metrics["log_likelihood"] + 0.15 * metrics["kl"], rtol=1e-5)
    gradient = jax.grad(lambda p: loss(p, batch, jax.random.key(0), 0.05)[0])(params())
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))
    plain = vi.amortized_elbo(MODEL, kl_weight=0.15).loss(params(), batch["counts"], jax.random.key(0))[0]
    assert abs(float(plain - value)) > 1e-3


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    dropped = np.asarray(latent.dropout(0.25)(jax.random.key(0), jnp.full(10_000, 3.0)))
    assert set(np.round(dropped, 5).tolist()) == {0.0, 4.0}
    assert abs((dropped == 0).mean() - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 10_000)


def test_what_was_chosen_is_not_recommended():
    p = params()
    scores = latent.recommend(MODEL, p, X)
    assert np.isneginf(scores).tolist() == (np.asarray(X) > 0).tolist()
    at_mean = jax.nn.log_softmax(p["decoder"](MODEL.recognition(p, X).mean()))
    np.testing.assert_allclose(scores[1], at_mean[1], rtol=1e-4)


def test_measures_of_a_ranking_by_hand():
    scores, held = jnp.array([5.0, 1, 4, 2, 3]), jnp.array([0, 1, 1, 0, 1])
    # Ranked: items 0, 2, 4, 3, 1, of which the second, third and fifth are wanted.
    for number, recall, gain in (
        (1, 0, 0),
        (2, 1 / 2, (1 / np.log2(3)) / (1 + 1 / np.log2(3))),
        (3, 2 / 3, (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2)),
        (5, 1, (1 / np.log2(3) + 1 / 2 + 1 / np.log2(6)) / (1 + 1 / np.log2(3) + 1 / 2)),
    ):
        np.testing.assert_allclose(latent.recall_at(scores, held, number), recall, rtol=1e-6)
        found = latent.normalized_discounted_cumulative_gain_at(scores, held, number)
        np.testing.assert_allclose(found, gain, rtol=1e-6)
    assert np.isnan(latent.recall_at(scores, 0 * held, 2))
    assert np.isnan(latent.normalized_discounted_cumulative_gain_at(scores, 0 * held, 2))
    many = jax.vmap(lambda s, h: latent.recall_at(s, h, 2))(jnp.stack([scores, -scores]), jnp.stack([held, held]))
    np.testing.assert_allclose(many, [0.5, 0.5])


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"recall_at: number is 4; expected at most the 3 items"):
        latent.recall_at(jnp.ones(3), jnp.ones(3), 4)
    with pytest.raises(ValueError, match=r"recall_at: held_out is of shape \(2,\) beside scores of shape \(3,\)"):
        latent.recall_at(jnp.ones(3), jnp.ones(2), 1)
    with pytest.raises(ValueError, match="latent.dropout: rate is 1; expected a number from 0"):
        latent.dropout(1)
    with pytest.raises(ValueError, match="latent.multinomial_autoencoder: items is 0"):
        latent.multinomial_autoencoder(0, 2)
