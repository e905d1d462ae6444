"""What the approximations are for: posteriors with known moments, and metrics of kernels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxprob
from jaxprob import models
from jaxprob.distributions import HalfNormal, Normal
from jaxprob.inference import mcmc, vi
from tests.inference.vi._gaussians import gaussian


def test_a_regression_in_closed_form(x64, rng):
    """Intercept, two slopes in very different units and a scale: against quadrature over the scale.

    The effective number of draws is 600 and more: means within 5 standard errors of as many (false alarm 3e-6), spreads
    within 20 %.
    """
    x = np.stack([np.ones(80), rng.normal(size=80), 1e3 * rng.normal(size=80) + 5e3], axis=1)
    y = x @ np.array([1.0, 2.0, 1e-3]) + 1.5 * rng.normal(size=80)

    @models.joint
    def regression(x):
        beta = yield "beta", Normal(jnp.zeros(3), 10.0)
        sigma = yield "sigma", HalfNormal(5.0)
        yield "y", Normal(jnp.sum(x * jnp.expand_dims(beta, 0), axis=1), sigma)

    posterior = regression(jnp.asarray(x)).condition(y=jnp.asarray(y))
    result = jax.jit(lambda key: vi.pathfinder(posterior, key=key, elbo_draws=50))(jax.random.key(0))
    grid, logs, means, squares = np.linspace(0.8, 4, 400), [], [], []
    for sigma in grid:
        covariance = 100 * x @ x.T + sigma**2 * np.eye(80)
        marginal = -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y))
        logs.append(marginal + scipy.stats.halfnorm(scale=5).logpdf(sigma))
        precision = x.T @ x / sigma**2 + np.eye(3) / 100
        means.append(np.append(np.linalg.solve(precision, x.T @ y) / sigma**2, sigma))
        squares.append(np.append(np.diag(np.linalg.inv(precision)), 0) + means[-1] ** 2)
    weights = np.exp(np.array(logs) - np.max(logs))
    evidence = np.max(logs) + np.log(np.sum(weights) * (grid[1] - grid[0]))
    weights /= weights.sum()
    mean = weights @ np.array(means)
    sd = np.sqrt(weights @ np.array(squares) - mean**2)
    assert float(result.ess) > 600
    values = jax.vmap(posterior.constrain)(result.draws)
    draws = np.concatenate([np.asarray(values["beta"]), np.asarray(values["sigma"])[:, None]], axis=1)
    assert np.max(np.abs(draws.mean(0) - mean) / sd) < 5 / np.sqrt(375)  # 600 and the 1,000 resampled from them
    assert np.max(np.abs(np.log(draws.std(0) / sd))) < np.log(1.2)
    assert evidence - 0.3 < float(result.elbo) < evidence + 0.1


def test_a_posterior_of_posteriordb(posteriordb):
    """Kid scores on the IQ of the mother: means within 0.2 reference sds, sds within 15 %."""
    content = json.loads((posteriordb / "kidiq-kidscore_momiq.json").read_text())
    reference = content["reference"]
    score, iq = (jnp.asarray(content["data"][name], jnp.float32) for name in ("kid_score", "mom_iq"))

    def log_density(q):  # flat on the coefficients, half-Cauchy of scale 2.5 on sigma
        sigma = jnp.exp(q["log_sigma"])
        residual = (score - q["a"] - q["b"] * iq) / sigma
        return (
            -0.5 * jnp.sum(residual**2) - score.size * q["log_sigma"] - jnp.log1p((sigma / 2.5) ** 2) + q["log_sigma"]
        )

    start = {"a": jnp.float32(0), "b": jnp.float32(0), "log_sigma": jnp.float32(3)}
    result = jax.jit(lambda key: vi.pathfinder(log_density, start, key))(jax.random.key(0))
    assert float(result.ess) > 300
    draws = {"beta[1]": result.draws["a"], "beta[2]": result.draws["b"], "sigma": jnp.exp(result.draws["log_sigma"])}
    for name, values in draws.items():
        of = reference[name]
        assert abs(float(np.mean(values)) - of["mean"]) < 0.2 * of["sd"], name
        assert abs(np.log(float(np.std(values)) / of["sd"])) < np.log(1.15), name


def test_kernels_move_in_its_metric():
    """NUTS in a metric of low rank, against the exact law: 32 chains, errors from the chains' own means."""
    log_density, mean, covariance, _ = gaussian(5, "float32", spread=2.0)
    result = vi.pathfinder(log_density, jnp.zeros(5), jax.random.key(0))
    kernel = mcmc.nuts(log_density, step_size=0.5, inverse_mass_matrix=result.inverse_mass_matrix)

    @jax.jit
    @jax.vmap
    def chain(key):
        def step(state, index):
            state, info = kernel.step(jax.random.fold_in(key, index), state)
            return state, (state.position, info)

        state = kernel.init(result.initial(jax.random.fold_in(key, 2**31)), jax.random.fold_in(key, 2**31 + 1))
        return jax.lax.scan(step, state, jnp.arange(300))[1]

    draws, info = chain(jax.random.split(jax.random.key(4), 32))
    assert not np.any(np.asarray(info.diverging))
    white = (np.asarray(draws, float) - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    for j in range(5):
        for values, truth in [(white[..., j], 0)] + [(white[..., j] * white[..., k], float(j == k)) for k in range(5)]:
            of_chains = values.mean(axis=1)
            error = of_chains.std(ddof=1) / np.sqrt(32)
            assert error < 0.05
            assert abs(of_chains.mean() - truth) < 6 * error  # Student t, 31: false alarm 1.2e-6


@pytest.mark.parametrize("method", ["laplace", "pathfinder"])
def test_an_ill_conditioned_gaussian_takes_far_fewer_leapfrogs(method):
    """Standard deviations from 0.01 to 1: less than a fifth of those of the identity metric.

    Of the coordinates for Pathfinder, whose few moves leave wide directions across them too narrow; turned for Laplace.
    """
    axes = np.eye(20) if method == "pathfinder" else np.linalg.qr(np.random.default_rng(3).normal(size=(20, 20)))[0]
    spectrum = np.logspace(-4, 0, 20)
    precision = jnp.asarray((axes / spectrum) @ axes.T, jnp.float32)

    def log_density(x):
        return -0.5 * jnp.sum(x * jnp.matmul(precision, x, precision="highest"))

    if method == "laplace":
        found = jax.jit(lambda: vi.laplace(log_density, jnp.ones(20)))()
    else:
        found = jax.jit(lambda key: vi.pathfinder(log_density, jnp.ones(20), key))(jax.random.key(0))

    def leapfrogs(metric, step_size):
        kernel = mcmc.nuts(log_density, step_size=step_size, inverse_mass_matrix=metric)
        run = jaxprob.sample(log_density, jax.random.key(1), initial=found.sample, algorithm=kernel, chains=4, draws=50)
        assert float(np.mean(run.stats["acceptance_rate"])) > 0.7
        return float(np.mean(run.stats["num_steps"]))

    # The identity's step is bounded by the narrowest direction, of standard deviation 0.01.
    assert leapfrogs(found.inverse_mass_matrix, 0.5) < leapfrogs(1.0, 0.01) / 5
