"""The log density of a posterior against densities written by hand with SciPy in float64, and Jacobians by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats as st
from jax.flatten_util import ravel_pytree

from jaxprob import models
from jaxprob.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Exponential,
    Flat,
    HalfCauchy,
    HalfNormal,
    LKJCholesky,
    Normal,
    Ordered,
    Poisson,
    Uniform,
)

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


@models.joint
def centred(sigma):
    mu = yield "mu", Normal(0.0, 5.0)
    tau = yield "tau", HalfCauchy(5.0)
    theta = yield "theta", Normal(jnp.full_like(sigma, mu), tau)
    yield "y", Normal(theta, sigma)


def centred_by_hand(u):
    mu, tau, theta = u["mu"], np.exp(u["tau"]), u["theta"]
    prior = st.norm.logpdf(mu, 0, 5) + st.halfcauchy.logpdf(tau, 0, 5) + st.norm.logpdf(theta, mu, tau).sum()
    return prior + u["tau"] + st.norm.logpdf(Y, theta, SIGMA).sum()


@models.joint
def non_centred(sigma):
    mu = yield "mu", Normal(0.0, 5.0)
    tau = yield "tau", HalfCauchy(5.0)
    raw = yield "raw", Normal(jnp.zeros_like(sigma), 1.0)
    theta = yield "theta", models.deterministic(mu + tau * raw)
    yield "y", Normal(theta, sigma)


def non_centred_by_hand(u):
    mu, tau, raw = u["mu"], np.exp(u["tau"]), u["raw"]
    prior = st.norm.logpdf(mu, 0, 5) + st.halfcauchy.logpdf(tau, 0, 5) + st.norm.logpdf(raw).sum()
    return prior + u["tau"] + st.norm.logpdf(Y, mu + tau * raw, SIGMA).sum()


X = np.random.default_rng(1).normal(size=(40, 3))
LABELS = (np.random.default_rng(2).uniform(size=40) < scipy.special.expit(X @ [1.0, -2.0, 0.5])).astype(int)


@models.joint
def logistic(x):
    intercept = yield "intercept", Normal(0.0, 10.0)
    slopes = yield "slopes", Normal(jnp.zeros(x.shape[1], x.dtype), 2.5)
    yield "labels", Bernoulli(logits=intercept + x @ slopes)


def logistic_by_hand(u):
    logits = u["intercept"] + X @ u["slopes"]
    prior = st.norm.logpdf(u["intercept"], 0, 10) + st.norm.logpdf(u["slopes"], 0, 2.5).sum()
    return prior - np.logaddexp(0, np.where(LABELS == 1, -logits, logits)).sum()


EXPOSURE = np.array([10.0, 100.0, 1000.0, 50.0])
COUNTS = np.array([0, 3, 20, 2])


@models.joint
def rates(exposure):
    mean = yield "mean", Normal(-4.0, 1.0)
    spread = yield "spread", HalfNormal(1.0)
    effect = yield "effect", Normal(jnp.full_like(exposure, mean), spread)
    rate = yield "rate", models.deterministic(jnp.exp(effect))
    yield "counts", Poisson(exposure * rate)


def rates_by_hand(u):
    spread = np.exp(u["spread"])
    prior = st.norm.logpdf(u["mean"], -4, 1) + st.halfnorm.logpdf(spread)
    prior += st.norm.logpdf(u["effect"], u["mean"], spread).sum() + u["spread"]
    return prior + st.poisson.logpmf(COUNTS, EXPOSURE * np.exp(u["effect"])).sum()


@models.joint
def nested_interval():
    top = yield "top", Exponential(0.5)
    part = yield "part", Uniform(0.0, top)
    yield "y", Normal(part, 1.0)


def nested_interval_by_hand(u):
    # The map of Uniform(0, top) depends on the value drawn before it.
    top, unit = np.exp(u["top"]), scipy.special.expit(u["part"])
    log_det = u["top"] + np.log(top) + np.log(unit) + np.log1p(-unit)
    return st.expon.logpdf(top, scale=2.0) - np.log(top) + log_det + st.norm.logpdf(0.7, top * unit, 1)


CASES = {
    "centred": (lambda: centred(SIGMA).condition(y=Y), centred_by_hand),
    "non_centred": (lambda: non_centred(SIGMA).condition(y=Y), non_centred_by_hand),
    "logistic": (lambda: logistic(X).condition(labels=LABELS), logistic_by_hand),
    "rates": (lambda: rates(EXPOSURE).condition(counts=COUNTS), rates_by_hand),
    "nested_interval": (lambda: nested_interval().condition(y=0.7), nested_interval_by_hand),
}


@pytest.mark.parametrize("name", CASES)
def test_log_density_by_hand(name):
    make, by_hand = CASES[name]
    posterior = make()
    density = jax.jit(lambda posterior, position: posterior.log_density(position))
    for seed in range(4):
        position = posterior.initial(jax.random.key(seed))
        expected = by_hand({name: np.asarray(value, np.float64) for name, value in position.items()})
        assert density(posterior, position).dtype == jnp.float32
        np.testing.assert_allclose(float(density(posterior, position)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["centred", "rates", "nested_interval"])
def test_log_density_in_float64(name, x64):
    make, by_hand = CASES[name]
    posterior = make()
    position = posterior.initial(jax.random.key(7))
    value, gradient = jax.jit(jax.value_and_grad(posterior.log_density))(position)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(float(value), by_hand({k: np.asarray(v) for k, v in position.items()}), rtol=1e-10)
    for leaf, site in position.items():
        step = jax.tree.map(jnp.zeros_like, position)
        step[leaf] = jnp.full_like(site, 1e-6)
        up, down = (by_hand({k: np.asarray(position[k] + s * step[k]) for k in position}) for s in (1, -1))
        np.testing.assert_allclose(float(jnp.sum(gradient[leaf])), (up - down) / 2e-6, rtol=1e-4, atol=1e-5)


@models.joint
def structured():
    weights = yield "weights", Dirichlet(jnp.array([2.0, 3.0, 4.0]))
    cuts = yield "cuts", Flat(Ordered(), (3,))
    factor = yield "factor", LKJCholesky(3, 2.0)
    yield "y", Normal(cuts * weights, 1.0 + factor[2, 1] ** 2)


def test_structured_supports_by_change_of_variables():
    # The density in unconstrained space is that of the free coordinates of each support, times |det| of the map onto
    # those coordinates, here by a dense Jacobian.
    y = jnp.array([0.1, 0.2, 0.4])
    posterior = structured().condition(y=y)
    assert posterior.dim == 2 + 3 + 3
    flat, unravel = ravel_pytree(posterior.initial(jax.random.key(3)))

    def coordinates(flat):
        draw = posterior.constrain(unravel(flat))
        return jnp.concatenate([draw["cuts"], draw["factor"][jnp.tril_indices(3, -1)], draw["weights"][:2]])

    position = unravel(flat)
    draw = {name: np.asarray(value, np.float64) for name, value in jax.jit(posterior.constrain)(position).items()}
    _, log_det = np.linalg.slogdet(np.asarray(jax.jit(jax.jacobian(coordinates))(flat), np.float64))
    weights, cuts, factor = draw["weights"], draw["cuts"], draw["factor"]
    assert abs(weights.sum() - 1) < 1e-6
    assert (np.diff(cuts) > 0).all()
    np.testing.assert_allclose(np.diag(factor @ factor.T), 1, rtol=1e-5)
    # The LKJ density of a 3 x 3 Cholesky factor with concentration 2 is proportional to L22^3 L33^2.
    constant = _lkj_constant(3, 2.0)
    expected = st.dirichlet.logpdf(weights / weights.sum(), [2, 3, 4]) + log_det
    expected += 3 * np.log(factor[1, 1]) + 2 * np.log(factor[2, 2]) - constant
    expected += st.norm.logpdf(np.asarray(y), cuts * weights, 1 + factor[2, 1] ** 2).sum()
    np.testing.assert_allclose(float(jax.jit(posterior.log_density)(position)), expected, rtol=1e-5, atol=1e-4)


def _lkj_constant(size, concentration):
    # Row r of the factor is a point x of the unit ball in r dimensions, with density (1 - |x|^2)^(shape - 1).
    total = 0.0
    for row in range(1, size):
        shape = concentration + (size - 1 - row) / 2
        total += 0.5 * row * np.log(np.pi) + scipy.special.gammaln(shape) - scipy.special.gammaln(shape + row / 2)
    return total


@pytest.mark.parametrize("name", CASES)
def test_constrain_and_back(name):
    posterior = CASES[name][0]()
    position = posterior.initial(jax.random.key(1))
    draw = jax.jit(posterior.constrain)(position)
    again = jax.jit(posterior.unconstrain)(draw)
    assert set(again) == set(posterior.names)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), again, position)


def test_log_density_is_log_prob_plus_log_determinant():
    posterior = centred(SIGMA).condition(y=Y)
    position = posterior.initial(jax.random.key(2))
    draw = posterior.constrain(position)
    expected = jax.jit(centred(SIGMA).log_prob)({**draw, "y": Y}) + position["tau"]
    np.testing.assert_allclose(jax.jit(posterior.log_density)(position), expected, rtol=1e-5)


def test_the_log_density_splits_into_a_prior_that_can_be_drawn_from_and_a_likelihood():
    y = np.array([0.3, -1.0, 2.0])

    @models.joint
    def model():
        scale = yield "scale", HalfNormal(2.0)
        mean = yield "mean", Normal(0.0, scale)
        noise = yield "noise", Normal(mean, 1.0)
        yield "seen", Normal(noise, 0.5)
        later = yield "later", Normal(noise, 1.0)  # given data that come before it
        yield "y", Normal(jnp.full(3, mean) + later, scale)

    posterior = model().substitute(noise=0.4).condition(y=y, seen=0.1)
    position = {"scale": jnp.log(1.5), "mean": jnp.float32(0.2), "later": jnp.float32(-0.3)}
    prior, likelihood = posterior.split_log_density(position)
    exact = st.halfnorm.logpdf(1.5, 0, 2) + np.log(1.5) + st.norm.logpdf(0.2, 0, 1.5) + st.norm.logpdf(-0.3, 0.4, 1)
    np.testing.assert_allclose(prior, exact, rtol=1e-5)
    rest = st.norm.logpdf(0.4, 0.2, 1) + st.norm.logpdf(0.1, 0.4, 0.5) + st.norm.logpdf(y, 0.2 - 0.3, 1.5).sum()
    np.testing.assert_allclose(likelihood, rest, rtol=1e-5)
    draws = jax.vmap(posterior.sample_prior)(jax.random.split(jax.random.key(0), 2000))
    assert set(draws) == {"scale", "mean", "later"}
    # Kolmogorov-Smirnov, false alarms 1 in 1,000 each.
    assert st.kstest(np.exp(draws["scale"]), st.halfnorm(0, 2).cdf).pvalue > 1e-3
    assert st.kstest(draws["mean"] / np.exp(draws["scale"]), st.norm.cdf).pvalue > 1e-3
    assert st.kstest(draws["later"], st.norm(0.4, 1).cdf).pvalue > 1e-3


def test_prior_draws_on_the_border_of_a_support_have_finite_positions():
    @models.joint
    def model():
        share = yield "share", Beta(0.01, 0.01)
        yield "y", Normal(share, 1.0)

    posterior = model().condition(y=0.0)
    draws = jax.vmap(posterior.sample_prior)(jax.random.split(jax.random.key(0), 500))
    values = np.asarray(jax.vmap(posterior.constrain)(draws)["share"])
    assert np.isfinite(draws["share"]).all()
    assert (values > 0.999).mean() == pytest.approx(0.5, abs=0.1)
    assert np.isfinite(np.asarray(jax.vmap(posterior.split_log_density)(draws))).all()
