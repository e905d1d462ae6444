"""Stochastic-gradient kernels against stationary laws in closed form, and estimators against all their batches."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.inference import mcmc

CHAINS = 4000


def log_prior(q):
    return -0.5 * jnp.sum(q["a"] ** 2) - 0.25 * q["b"] ** 4


def log_likelihood(q, row):
    x, y = row
    return -jnp.cosh(y - jnp.sum(q["a"] * x) - q["b"])


def rows(rng):
    return jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=4))


@pytest.mark.parametrize("kind", ["minibatch", "control variate"])
@pytest.mark.parametrize("replace", [True, False])
def test_estimators_are_unbiased_over_all_their_batches(kind, replace, x64, rng):
    data = rows(rng)
    position = {"a": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(0.3)}
    if kind == "minibatch":
        estimator = mcmc.minibatch_gradient(log_prior, log_likelihood, data, 2, replace=replace)
    else:
        centre = {"a": jnp.asarray([0.5, -0.5]), "b": jnp.asarray(0.1)}
        estimator = mcmc.control_variate_gradient(log_prior, log_likelihood, data, 2, centre, replace=replace)
        exact = estimator.at(jnp.array([0, 1]), centre)  # no noise at the centre
        other = estimator.at(jnp.array([2, 3]), centre)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), exact, other)

    def whole(q):
        return log_prior(q) + sum(log_likelihood(q, (data[0][i], data[1][i])) for i in range(4))

    batches = list(itertools.product(range(4), repeat=2) if replace else itertools.combinations(range(4), 2))
    found = [estimator.at(jnp.array(batch), position) for batch in batches]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mean, jax.grad(whole)(position))
    # And every batch is drawn equally often: chi-squared with a false alarm below 1e-6.
    drawn = np.asarray(jax.vmap(estimator.draw)(jax.random.split(jax.random.key(0), 4800)))
    drawn = drawn if replace else np.sort(drawn, axis=1)
    counts = np.array([np.sum(np.all(drawn == np.array(batch), axis=1)) for batch in batches])
    assert counts.sum() == 4800
    expected = 4800 / len(batches)
    degrees = len(batches) - 1
    assert np.sum((counts - expected) ** 2) / expected < degrees + 6 * np.sqrt(2 * degrees) + 12


def stationary(kernel, scale, steps, seed=0):
    """Draws of many chains after they have forgotten a start from N(0, scale^2)."""

    @jax.jit
    @jax.vmap
    def run(key, start):
        state = kernel.init(start, core.fold(key, 0))
        return jax.lax.fori_loop(0, steps, lambda i, s: kernel.step(core.fold(key, i + 1), s)[0], state).position

    starts = jnp.broadcast_to(jnp.asarray(scale), (CHAINS, 3)) * jax.random.normal(jax.random.key(99), (CHAINS, 3))
    return np.asarray(run(jax.random.split(jax.random.key(seed), CHAINS), starts), float).ravel()


def noisy(variance, scale):
    """The gradient of N(0, scale^2) with noise that nobody told the kernel of."""

    def gradient(key, q):
        return -q / scale**2 + jnp.sqrt(jnp.asarray(variance, q.dtype)) * jax.random.normal(key, q.shape, q.dtype)

    return gradient


def check_variance(draws, expected):
    error = expected * np.sqrt(2 / len(draws))
    assert abs(np.mean(draws**2) - expected) < 5 * error  # false alarm 6e-7


@pytest.mark.parametrize(("size", "noise"), [(1.0, 0.0), (2.0, 0.0), (0.5, 4.0)])
def test_sgld_has_the_variance_of_its_closed_form(size, noise):
    scale = 1.5
    draws = stationary(mcmc.sgld(noisy(noise, scale), size), scale, 150)
    expected = scale**2 / (1 - size / (4 * scale**2)) * (1 + size * noise / 4)
    check_variance(draws, expected)
    assert abs(expected / scale**2 - 1) > 5 * np.sqrt(2 / len(draws))  # the bias is one that the test can see


def test_the_metric_scales_both_parts_of_sgld():
    """With the inverse mass s^2 the variance is that of a unit Gaussian, times s^2."""
    scale = 30.0
    draws = stationary(mcmc.sgld(noisy(0.0, scale), 0.5, scale**2), scale, 100)
    check_variance(draws, scale**2 / (1 - 0.5 / 4))


def test_sghmc_allows_for_the_noise_it_is_told_of():
    size, friction, noise = 0.1, 2.0, 8.0
    told = mcmc.sghmc(noisy(noise, 1.0), size, friction=friction, gradient_variance=noise)
    untold = mcmc.sghmc(noisy(noise, 1.0), size, friction=friction)
    draws = [stationary(kernel, 1.0, 300) for kernel in (told, untold)]
    error = np.sqrt(2 / len(draws[0]))
    assert abs(np.mean(draws[0] ** 2) - 1) < 5 * error + 2 * size**2
    # To first order the variance is 1 + e V / (2 C) where it is not told.
    assert abs(np.mean(draws[1] ** 2) - (1 + size * noise / (2 * friction))) < 5 * error + 0.03


def test_sgnht_finds_out_what_the_noise_is():
    """With noise of variance 60 in 20 dimensions SGLD is 75 % too wide; the thermostat is not."""
    size, noise = 0.05, 60.0

    @jax.jit
    @jax.vmap
    def run(key):
        kernel = mcmc.sgnht(noisy(noise, 1.0), size)
        state = kernel.init(jnp.zeros(20), core.fold(key, 0))
        return jax.lax.fori_loop(0, 2000, lambda i, s: kernel.step(core.fold(key, i + 1), s)[0], state).position

    draws = np.asarray(run(jax.random.split(jax.random.key(3), 600)), float).ravel()
    assert abs(np.mean(draws**2) - 1) < 0.1
    plain = stationary(mcmc.sgld(noisy(noise, 1.0), size), 1.0, 300)
    assert np.mean(plain**2) > 1.5


def test_preconditioning_evens_out_scales():
    scales = jnp.array([0.2, 1.0, 5.0])
    draws = stationary(mcmc.psgld(lambda key, q: -q / scales**2, 0.02, decay=0.9999), scales, 4000).reshape(-1, 3)
    ratio = draws.std(axis=0) / np.asarray(scales)
    assert np.all(np.abs(ratio - 1) < 0.15)


def test_a_regression_from_batches(rng):
    """Bayesian linear regression with known noise: mean within 0.1 sd, variance within a quarter (system S300)."""
    number, size = 200, 3
    x = rng.normal(size=(number, size)) @ np.array([[1.0, 0.5, 0], [0, 1, 0.3], [0, 0, 1]])
    y = x @ np.array([1.0, -0.5, 2.0]) + rng.normal(size=number)
    precision = x.T @ x + np.eye(size)
    mean, covariance = np.linalg.solve(precision, x.T @ y), np.linalg.inv(precision)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    parts = (
        lambda q: -0.5 * jnp.sum(q * q),
        lambda q, row: -0.5 * (row[1] - jnp.sum(q * row[0])) ** 2,
        data,
        20,
    )
    kernels = {
        "sghmc": mcmc.sghmc(mcmc.control_variate_gradient(*parts, jnp.asarray(mean, jnp.float32)), 0.02, friction=5.0),
        "sgld": mcmc.sgld(mcmc.control_variate_gradient(*parts, jnp.asarray(mean, jnp.float32)), 5e-4),
    }
    for kernel in kernels.values():

        @jax.jit
        @jax.vmap
        def run(key, kernel=kernel):
            state = kernel.init(jnp.zeros(size), core.fold(key, 0))
            return jax.lax.fori_loop(0, 3000, lambda i, s: kernel.step(core.fold(key, i + 1), s)[0], state).position

        draws = np.asarray(run(jax.random.split(jax.random.key(1), 3000)), float)
        sd = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(draws.mean(0) - mean) < 0.1 * sd)
        assert np.all(np.abs(np.log(draws.var(0) / sd**2)) < np.log(1.25))


@pytest.mark.parametrize("kernel", [mcmc.sgld, mcmc.psgld, mcmc.sghmc, mcmc.sgnht])
def test_a_gradient_that_is_not_finite_moves_nothing(kernel):
    algorithm = kernel(lambda key, q: jnp.where(q > 0, jnp.nan, -q), 0.1)
    step = jax.jit(algorithm.step)
    state, info = step(jax.random.key(1), algorithm.init(jnp.array([1.0, -1.0]), jax.random.key(0)))
    assert bool(info.diverging)
    assert bool(jnp.isfinite(state.position).all())
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("kernel", [mcmc.sgld, mcmc.psgld, mcmc.sghmc, mcmc.sgnht])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes_are_kept(kernel, dtype, x64):
    algorithm = kernel(lambda key, q: jax.tree.map(jnp.negative, q), 0.1)
    state = jax.eval_shape(algorithm.init, {"a": jax.ShapeDtypeStruct((3,), dtype)}, jax.random.key(0))
    after, info = jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert after.position["a"].dtype == dtype
    assert all(x.shape == () for x in info)


def test_bad_arguments():
    with pytest.raises(TypeError, match="sgld: gradient is 3; expected a function of a key and a position"):
        mcmc.sgld(3)
    with pytest.raises(ValueError, match="sghmc: friction is"):
        mcmc.sghmc(partial(noisy, 0.0), friction=-1.0)
    with pytest.raises(ValueError, match="minibatch_gradient: batch_size is 9"):
        mcmc.minibatch_gradient(log_prior, log_likelihood, (jnp.ones((4, 2)), jnp.ones(4)), 9)
