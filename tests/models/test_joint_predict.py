"""Prediction and pointwise likelihood over draws, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxprob import models
from jaxprob.distributions import Bernoulli, HalfNormal, MultivariateNormal, Normal
from jaxprob.models import _draws

KEY = jax.random.key(5)


@models.joint
def line(x):
    slope = yield "slope", Normal(0.0, 2.0)
    noise = yield "noise", HalfNormal(1.0)
    mean = yield "mean", models.deterministic(slope * x)
    yield "y", Normal(mean, noise)
    yield "flag", Bernoulli(logits=slope)


X = np.array([0.5, -1.0, 2.0])
Y = np.array([1.0, 0.0, 3.0])


@pytest.fixture(scope="module")
def posterior():
    return line(X).condition(y=Y, flag=1)


def test_posterior_predictive_moments(posterior):
    # Draws from N(1, 0.1^2) for the slope: y | x has mean x and variance 0.01 x^2 + noise^2. 40000 draws; each of the
    # six z-scores lies beyond 4.5 with probability 7e-6.
    slope = 1 + 0.1 * jax.random.normal(jax.random.key(1), (4, 10_000))
    y = posterior.predict(KEY, {"slope": slope, "noise": jnp.full((4, 10_000), 0.5)})["y"]
    assert y.shape == (4, 10_000, 3)
    flat = np.asarray(y, np.float64).reshape(-1, 3)
    variance = 0.01 * X**2 + 0.25
    assert (np.abs(flat.mean(axis=0) - X) < 4.5 * np.sqrt(variance / len(flat))).all()
    assert (np.abs(flat.var(axis=0) / variance - 1) < 4.5 * np.sqrt(2 / len(flat))).all()


def test_prior_predictive_moments(posterior):
    # y_i = slope x_i + noise e has variance 4 x_i^2 + 1 and is not Gaussian: the variance's error comes from its draws.
    y = np.asarray(posterior.prior_predict(KEY, 40_000)["y"], np.float64)
    assert y.shape == (40_000, 3)
    variance = 4 * X**2 + 1
    squares = y**2
    assert (np.abs(y.mean(axis=0)) < 4.5 * np.sqrt(variance / len(y))).all()
    assert (np.abs(squares.mean(axis=0) - variance) < 4.5 * squares.std(axis=0) / np.sqrt(len(y))).all()


def test_pointwise_log_likelihood(posterior):
    draws = {"slope": jnp.array([[0.3, 1.0]]), "noise": jnp.array([[0.5, 2.0]]), "mean": jnp.zeros((1, 2, 3))}
    found = posterior.log_likelihood(draws)
    assert found["y"].shape == (1, 2, 3)
    assert found["flag"].shape == (1, 2)
    for i, (slope, noise) in enumerate([(0.3, 0.5), (1.0, 2.0)]):
        np.testing.assert_allclose(found["y"][0, i], st.norm.logpdf(Y, slope * X, noise), rtol=1e-5)
        np.testing.assert_allclose(found["flag"][0, i], st.bernoulli.logpmf(1, 1 / (1 + np.exp(-slope))), rtol=1e-5)


def test_one_value_for_each_event():
    @models.joint
    def vectors():
        loc = yield "loc", Normal(0.0, 1.0)
        yield "y", MultivariateNormal(jnp.zeros((2, 3)) + loc, jnp.eye(3))

    y = np.arange(6.0).reshape(2, 3)
    found = vectors().condition(y=y).log_likelihood({"loc": jnp.array([0.0, 1.0])})["y"]
    expected = [st.norm.logpdf(y, loc).sum(axis=1) for loc in (0.0, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_any_leading_shape_and_any_batching_give_the_same(posterior, monkeypatch):
    latent = {"slope": jnp.linspace(-2, 2, 7), "noise": jnp.linspace(0.5, 2, 7)}
    whole = posterior.predict(KEY, latent)
    likelihood = posterior.log_likelihood(latent)["y"]
    one = posterior.predict(jax.random.fold_in(KEY, 0), {name: value[0] for name, value in latent.items()})
    assert one["y"].shape == (3,)
    monkeypatch.setattr(_draws, "BUDGET", 20)  # two draws at a time, and one left over
    for name, value in posterior.predict(KEY, latent).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.log_likelihood(latent)["y"], likelihood, rtol=1e-5)
    shaped = posterior.predict(KEY, {name: value[:6].reshape(2, 3) for name, value in latent.items()})
    np.testing.assert_allclose(shaped["y"].reshape(6, 3), whole["y"][:6], rtol=1e-5, atol=1e-5)


def test_draws_differ(posterior):
    same = {"slope": jnp.ones(500), "noise": jnp.ones(500)}
    y = np.asarray(posterior.predict(KEY, same)["y"])
    assert len(np.unique(y)) == y.size


def test_new_data_from_old_draws():
    draws = {"slope": jnp.array([2.0, -1.0]), "noise": jnp.full(2, 1e-6), "mean": jnp.zeros((2, 3))}
    found = line(np.array([10.0, 20.0])).predict(KEY, {name: draws[name] for name in ("slope", "noise")})
    assert set(found) == {"mean", "y", "flag"}
    np.testing.assert_allclose(found["y"], [[20.0, 40.0], [-10.0, -20.0]], rtol=1e-4)


def test_replicated_data_feed_what_depends_on_them():
    @models.joint
    def steps():
        first = yield "first", Normal(100.0, 1e-3)
        yield "second", Normal(first, 1e-3)

    # What is observed is drawn anew, and so is what follows from it.
    predicted = steps().condition(first=100.01, second=100.02).predict(KEY, {})
    assert abs(predicted["second"] - predicted["first"]) < 0.01
    assert predicted["first"] != 100.01
