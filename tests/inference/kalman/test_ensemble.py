"""Ensemble filters: the Kalman filter on linear models, within errors that fall with the members; bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Normal, Poisson
from jaxprob.inference import kalman
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.kalman._models import make
from tests.inference.kalman._wrapped import wrap

MEMBERS, RUNS = 400, 64


@pytest.mark.parametrize("update", ["stochastic", "square_root"])
@pytest.mark.parametrize("name", ["random", "autoregression"])
def test_on_a_linear_model_it_is_the_kalman_filter(name, update):
    """Means over 64 ensembles within 5 standard errors and a bias of 5 / members, of the size of what is estimated.

    36 numbers or fewer in each of four tests: false alarms 1 in 10,000.
    """
    model, ys = make(name, gaps=True, dtype=np.float32)
    exact = kalman.filter(model, ys)
    run = jax.vmap(lambda key: kalman.ensemble_filter(key, model, ys, members=MEMBERS, update=update))
    found = run(jax.random.split(jax.random.key(1), RUNS))
    variance = np.einsum("tii->ti", np.asarray(exact.covariance, np.float64))
    prior = np.einsum("tii->ti", np.asarray(exact.predicted_covariance, np.float64))
    for one, expected, scale in (
        (found.mean, exact.mean, np.sqrt(prior)),
        (found.variance, variance, prior),
        (found.log_likelihoods, exact.log_likelihoods, np.ones(len(ys))),
    ):
        one, expected = np.asarray(one, np.float64), np.asarray(expected, np.float64)
        error = 5 * np.std(one, 0) / np.sqrt(RUNS)
        assert np.all(np.abs(one.mean(0) - expected) < error + 5 / MEMBERS * (scale + np.abs(expected)) + 1e-6)
    spread = np.std(found.mean, 0) / np.sqrt(prior + 1e-6)
    assert np.max(spread) < 5 / np.sqrt(MEMBERS)


@pytest.mark.parametrize("update", ["stochastic", "square_root"])
def test_one_observation_is_the_textbook_update(update, x64):
    """The mean of the deterministic one is that of a Kalman gain of sample covariances, and so is its covariance."""
    model, ys = make("random", dtype=np.float64)
    before = kalman.ensemble_filter(jax.random.key(3), model, np.full((1, 2), np.nan), members=7, update=update).members
    found = kalman.ensemble_filter(jax.random.key(3), model, ys[:1], members=7, update=update)
    before, h = np.asarray(before), np.asarray(model.emission)
    covariance = np.cov(before.T)
    total = h @ covariance @ h.T + np.asarray(model.emission_covariance)
    gain = covariance @ h.T @ np.linalg.inv(total)
    residual = ys[0] - h @ before.mean(0) - np.asarray(model.emission_offset)
    if update == "square_root":
        np.testing.assert_allclose(found.mean[0], before.mean(0) + gain @ residual, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.cov(np.asarray(found.members).T), covariance - gain @ h @ covariance, atol=1e-12)
        expected = -0.5 * (
            residual @ np.linalg.solve(total, residual) + np.linalg.slogdet(total)[1] + 2 * np.log(2 * np.pi)
        )
        np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-9)
    # However its noise is drawn, each member moves along the gain of a single number.
    one = np.array([[ys[0, 0], np.nan]])
    moved = kalman.ensemble_filter(jax.random.key(3), model, one, members=7, update=update).members - before
    np.testing.assert_allclose(moved / moved[:, :1], np.tile(covariance @ h[0] / (covariance @ h[0])[0], (7, 1)))


def test_a_model_of_distributions_and_its_gradient():
    model, ys = make("random", gaps=True, dtype=np.float32)
    found = kalman.ensemble_filter(jax.random.key(0), wrap(model), ys, members=20_000)
    exact = kalman.filter(model, ys)
    sd = np.sqrt(np.einsum("tii->ti", np.asarray(exact.predicted_covariance)))
    # 27 numbers within 6 standard errors of members that share their past.
    assert np.max(np.abs(found.mean - exact.mean) / sd) < 6 / np.sqrt(20_000)

    def likelihood(scale):
        counts = StateSpaceModel(
            Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, scale), lambda x, t: Poisson(jnp.exp(1 + x))
        )
        return kalman.ensemble_filter(
            jax.random.key(0), counts, np.array([2.0, np.nan, 5.0], np.float32)
        ).log_likelihood

    slope = jax.grad(likelihood)(jnp.float32(0.3))
    difference = (likelihood(jnp.float32(0.31)) - likelihood(jnp.float32(0.29))) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=0.02)


@pytest.mark.slow
def test_short_series_missing_ones_and_inflation():
    model, ys = make("random", dtype=np.float32)
    for few in (ys[:0], ys[:1], np.full((3, 2), np.nan, np.float32)):
        found = kalman.ensemble_filter(jax.random.key(0), model, few, members=10)
        assert found.mean.shape == (len(few), 3)
        assert np.isfinite(found.members).all()
        if np.isnan(few).all():
            assert found.log_likelihood == 0
            np.testing.assert_array_equal(found.mean, found.predicted_mean)
    plain = kalman.ensemble_filter(jax.random.key(0), model, ys[:1], members=10)
    wider = kalman.ensemble_filter(jax.random.key(0), model, ys[:1], members=10, inflation=1.5)
    np.testing.assert_allclose(wider.predicted_variance, 2.25 * plain.predicted_variance, rtol=1e-5)
    varies, ys = make("everything_varies", dtype=np.float32)
    cut = dataclasses.replace(
        varies, **{k: getattr(varies, k)[:8] for k in ("dynamics", "dynamics_covariance", "dynamics_offset")}
    )
    one, other = (kalman.ensemble_filter(jax.random.key(0), m, ys, members=10).mean for m in (varies, cut))
    np.testing.assert_array_equal(one, other)


BAD = {
    "one member": (lambda m, ys: kalman.ensemble_filter(jax.random.key(0), m, ys, members=1), "members is 1"),
    "an unknown update": (lambda m, ys: kalman.ensemble_filter(jax.random.key(0), m, ys, update="best"), "update"),
    "a diffuse start": (
        lambda m, ys: kalman.ensemble_filter(
            jax.random.key(0), dataclasses.replace(m, initial_diffuse=np.eye(3, dtype=np.float32)), ys
        ),
        "diffuse start",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        call(*make("random", dtype=np.float32))
    assert "\n" not in str(error.value)
