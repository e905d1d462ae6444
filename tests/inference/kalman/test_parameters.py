"""The posterior of the parameters of a state-space model, its states integrated out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import analysis
from jaxprob.distributions import Beta, Exponential, LogNormal, Normal, Poisson
from jaxprob.inference import hmm, kalman, parameter_posterior
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel
from tests.inference.kalman.test_models import NILE

START = (1000.0, 40_000.0)
PRIORS = {"noise": (9.5, 1.0), "level": (7.0, 1.5)}


def build(parameters):
    """A local level, of logs of variances."""
    one = jnp.ones((1, 1), parameters["noise"].dtype)
    level = jnp.exp(parameters["level"]) * one
    noise = jnp.expand_dims(jnp.exp(parameters["noise"]), 0)
    return LinearGaussian(START[0] * one[0], START[1] * one, one, level, one, noise)


def grid(ys):
    """Moments of the posterior by a sum over a grid of 200 x 200 points, in float64 NumPy."""
    noise, level = np.meshgrid(np.linspace(8.3, 10.8, 200), np.linspace(1.0, 11.5, 200), indexing="ij")
    mean, variance = START
    total = np.zeros_like(noise)
    for name, logs in (("noise", noise), ("level", level)):
        total -= 0.5 * ((logs - PRIORS[name][0]) / PRIORS[name][1]) ** 2
    for y in ys:
        if not np.isnan(y):
            spread = variance + np.exp(noise)
            total -= 0.5 * ((y - mean) ** 2 / spread + np.log(2 * np.pi * spread))
            gain = variance / spread
            mean, variance = mean + gain * (y - mean), variance * (1 - gain)
        variance = variance + np.exp(level)
    weights = np.exp(total - total.max())
    weights /= weights.sum()
    assert max(weights[0].sum(), weights[-1].sum(), weights[:, 0].sum(), weights[:, -1].sum()) < 1e-4
    centers = {"noise": (weights * noise).sum(), "level": (weights * level).sum()}
    squares = {name: (logs - centers[name]) ** 2 for name, logs in (("noise", noise), ("level", level))}
    spreads = {name: np.sqrt((weights * square).sum()) for name, square in squares.items()}
    return centers, spreads, total, (noise, level)


def nile(gap=True):
    return np.where(np.arange(100) % 9 == 4, np.nan, NILE) if gap else NILE


@pytest.mark.slow
def test_nuts_over_the_variances_of_the_nile():
    """Means and standard deviations of both within 4 standard errors (false alarms: 1 in 4,000)."""
    posterior = parameter_posterior(build, {name: Normal(*prior) for name, prior in PRIORS.items()}, nile())
    result = jaxprob.sample(posterior, jax.random.key(0), draws=500)
    centers, spreads, _, _ = grid(nile().astype(float))
    for name in PRIORS:
        draws = jnp.asarray(result.draws[name])
        assert abs(draws.mean() - centers[name]) / analysis.mcse_mean(draws) < 4
        assert abs(draws.std() - spreads[name]) / analysis.mcse_sd(draws) < 4
        assert analysis.mcse_mean(draws) < 0.1 * spreads[name]


def test_the_density_is_that_of_the_grid():
    posterior = parameter_posterior(build, {name: Normal(*prior) for name, prior in PRIORS.items()}, nile())
    _, _, total, (noise, level) = grid(nile().astype(float))
    points = ((10, 20), (100, 100), (150, 90))
    found = [posterior.log_density({"noise": jnp.float32(noise[p]), "level": jnp.float32(level[p])}) for p in points]
    # The grid leaves out what the priors are divided by.
    np.testing.assert_allclose(np.diff(found), np.diff([total[p] for p in points]), rtol=1e-3, atol=2e-3)


def chain(parameters):
    stay = parameters["stay"]
    transition = jnp.stack([jnp.stack([stay, 1 - stay]), jnp.stack([1 - stay, stay])])
    return HiddenMarkov(jnp.array([0.5, 0.5]), transition, Poisson(jnp.stack([jnp.ones(()), parameters["rate"]])))


def test_a_hidden_markov_model():
    counts = np.array([0, 1, 2, 9, 8, 0, 1], np.int32)
    missing = np.arange(7) == 2
    priors = {"stay": Beta(2.0, 1.0), "rate": Exponential(0.2)}
    posterior = parameter_posterior(chain, priors, counts, missing=missing)
    position = posterior.initial(jax.random.key(0))
    values = posterior.constrain(position)
    expected = hmm.log_likelihood(chain(values), counts, missing=missing)
    expected += priors["stay"].log_prob(values["stay"]) + priors["rate"].log_prob(values["rate"])
    # Of the maps from the line: a logistic function and an exponential.
    expected += jnp.log(values["stay"] * (1 - values["stay"])) + jnp.log(values["rate"])
    np.testing.assert_allclose(posterior.log_density(position), expected, rtol=1e-5)
    assert all(np.isfinite(slope) for slope in jax.grad(posterior.log_density)(position).values())


def walk(parameters):
    scale = parameters["scale"]
    return StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(jnp.sin(x), scale), lambda x, t: Normal(x, 0.5))


@pytest.mark.slow
def test_prior_and_posterior_prediction_have_the_shape_of_the_series():
    posterior = parameter_posterior(chain, {"stay": Beta(2.0, 1.0), "rate": Exponential(0.2)}, np.arange(7))
    counts = posterior.prior_predict(jax.random.key(0), 3)["ys"]
    assert counts.shape == (3, 7)
    assert counts.dtype == jnp.int32
    posterior = parameter_posterior(build, {name: Normal(*prior) for name, prior in PRIORS.items()}, nile())
    assert posterior.prior_predict(jax.random.key(0), 3)["ys"].shape == (3, 100)


def test_a_state_space_model_by_a_gaussian_filter():
    ys = jnp.array([0.3, jnp.nan, 1.0, 0.5])
    posterior = parameter_posterior(walk, {"scale": LogNormal(0.0, 1.0)}, ys, linearize="unscented")
    position = {"scale": jnp.float32(0.1)}
    expected = kalman.log_likelihood(walk({"scale": jnp.exp(jnp.float32(0.1))}), ys, linearize="unscented")
    expected += Normal(0.0, 1.0).log_prob(0.1)
    np.testing.assert_allclose(posterior.log_density(position), expected, rtol=1e-5)


def test_errors():
    with pytest.raises(TypeError, match="expected a Distribution"):
        parameter_posterior(build, {"noise": 1.0}, NILE)
    with pytest.raises(jaxprob.models.ModelError, match="returns 3"):
        parameter_posterior(lambda parameters: 3, {"noise": Normal(0.0, 1.0)}, NILE)
    with pytest.raises(ValueError, match="not that of the series"):
        parameter_posterior(build, {"ys": Normal(0.0, 1.0)}, NILE)
