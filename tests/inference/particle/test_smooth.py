"""Particle smoothers against the joint normal law of an autoregression and the enumerated law of a finite chain.

Repeats are mapped; z-scores of their mean, |z| < 4.5: below 1e-3 false alarms in a run of this file.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Normal
from jaxprob.inference import hmm, kalman, particle, smc
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian
from tests.inference.particle import _autoregression as oracle
from tests.inference.particle import _finite as finite

REPEATS, NUMBER = 64, 400
PARAMETERS = jnp.asarray(oracle.PARAMETERS, jnp.float32)
YS = jnp.asarray(oracle.YS, jnp.float32)


def z_scores(samples, exact):
    samples = np.asarray(samples, np.float64)
    return (samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def log_bound(x, t, datum):
    law = oracle.model_of(PARAMETERS).observed(x, t)
    top = -0.5 * np.log(2 * np.pi) - PARAMETERS[1]
    return top + jnp.where(datum.seen, law.log_prob(datum.values), 0)


METHODS = {
    "backward": {},
    "rejection": {"log_bound": log_bound, "tries": 8},
    "mcmc": {"steps": 6},
    "paris": {"links": 2},
    "genealogy": {},
    "fixed_lag": {"lag": 1},
}


@functools.cache
def repeats(method):
    model = oracle.model_of(PARAMETERS)
    run = lambda key: particle.smooth(  # noqa: E731
        key, model, YS, particles=NUMBER, draws=200, method=method, **METHODS[method]
    )
    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), REPEATS))


def exact_law(method):
    if method != "fixed_lag":
        mean, covariance = oracle.smoothed()
        return mean, np.diag(covariance)
    parts = [oracle.smoothed(ys=oracle.YS[: s + 2]) for s in range(len(oracle.YS))]
    return np.array([m[s] for s, (m, _) in enumerate(parts)]), np.array([c[s, s] for s, (_, c) in enumerate(parts)])


@pytest.mark.parametrize("method", METHODS)
def test_means_and_variances_are_those_of_the_normal_law(method):
    found, (mean, variance) = repeats(method), exact_law(method)
    z = z_scores(found.mean, mean)
    z2 = z_scores(found.variance + found.mean**2, variance + mean**2)
    drawn = z_scores(found.trajectories.mean(1), mean)
    print(f"{method}: z {np.abs(z).max():.2f} {np.abs(z2).max():.2f} {np.abs(drawn).max():.2f}")
    assert np.abs(z).max() < 4.5
    assert np.abs(z2).max() < 4.5
    assert np.abs(drawn).max() < 4.5
    assert found.trajectories.shape == (REPEATS, 200, len(oracle.YS))
    assert (np.asarray(found.failed_at) == -1).all()
    assert found.mean.dtype == jnp.float32


@pytest.mark.parametrize("method", ["backward", "rejection", "mcmc", "paris", "genealogy"])
def test_trajectories_have_the_covariances_of_neighbours(method):
    mean, covariance = oracle.smoothed()
    paths = np.asarray(repeats(method).trajectories, np.float64)
    products = (paths[:, :, 1:] * paths[:, :, :-1]).mean(1)
    z = z_scores(products, np.diag(covariance, 1) + mean[1:] * mean[:-1])
    print(f"{method}: z {np.abs(z).max():.2f}")
    assert np.abs(z).max() < 4.5


def test_rejection_says_how_it_went_and_when_the_bound_is_none():
    info = repeats("rejection").info
    assert info.num_exact.shape == (REPEATS, len(oracle.YS) - 1)
    assert 0.2 < float(info.acceptance_rate.mean()) < 0.9
    assert 0 < float(info.num_exact.mean()) < 100
    assert not info.bound_exceeded.any()
    low = particle.smooth(
        jax.random.key(0), oracle.model_of(PARAMETERS), YS, particles=50, method="rejection", log_bound=-3.0
    )
    assert bool(low.info.bound_exceeded.any())


def test_backward_renews_early_times_and_ancestors_do_not():
    several = lambda found: np.mean([len(np.unique(row)) for row in np.asarray(found.trajectories[:, :, 0])])  # noqa: E731
    assert several(repeats("backward")) > 1.2 * several(repeats("genealogy"))


@pytest.mark.parametrize("method", ["backward", pytest.param("paris", marks=pytest.mark.slow)])
def test_a_finite_chain_is_smoothed_as_enumeration_says(method):
    every, law, _ = finite.paths(3)
    run = lambda key: particle.smooth(key, finite.model(True), jnp.arange(3), particles=64, draws=64, method=method)  # noqa: E731
    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 500))
    exact = law @ every
    z = z_scores(found.mean, exact)
    print(f"finite {method}: {np.abs(z).max():.2f}")
    # The estimate is a ratio: its bias is of order 1/64 of a variance below 1/4.
    assert np.abs(np.asarray(found.mean).mean(0) - exact).max() < 4.5 * np.asarray(found.mean).std(0).max() / 22 + 2e-3
    assert found.trajectories.dtype == jnp.int32


@pytest.mark.slow
def test_specialised_models_are_smoothed_as_their_own_smoothers_do():
    hidden = HiddenMarkov(
        jnp.asarray(finite.INITIAL, jnp.float32),
        jnp.asarray(finite.MATRIX, jnp.float32),
        Normal(jnp.array([-1.0, 1.0]), 1.0),
    )
    linear = LinearGaussian(
        jnp.zeros(1), 2.25 * jnp.eye(1), 0.8 * jnp.eye(1), 0.5 * jnp.eye(1), jnp.eye(1), 0.4 * jnp.ones(1)
    )
    ys = jnp.array([0.5, -0.3, jnp.nan, 1.2])
    run = lambda model: jax.jit(  # noqa: E731
        jax.vmap(lambda key: particle.smooth(key, model, ys, particles=200, draws=200).mean)
    )(jax.random.split(jax.random.key(0), 100))
    z = z_scores(run(hidden), np.asarray(hmm.smooth(hidden, ys).probabilities)[:, 1])
    z2 = z_scores(run(linear)[:, :, 0], np.asarray(kalman.smooth(linear, ys).mean)[:, 0])
    print(f"hidden {np.abs(z).max():.2f}, linear {np.abs(z2).max():.2f}")
    assert np.abs(z).max() < 4.5
    assert np.abs(z2).max() < 4.5


@pytest.mark.parametrize("method", ["rejection", "paris"])
def test_double_precision_is_kept(method, x64):
    model = oracle.model_of(jnp.asarray(oracle.PARAMETERS))
    options = METHODS[method] | ({"log_bound": 1.0} if method == "rejection" else {})
    found = particle.smooth(
        jax.random.key(0), model, jnp.asarray(oracle.YS[:3]), particles=20, draws=5, method=method, **options
    )
    assert {leaf.dtype for leaf in (found.trajectories, found.mean, found.variance, found.log_likelihood)} == {
        jnp.dtype("float64")
    }


LINKS = {
    "two": {"links": 2},
    "all": {"links": None},
    "rejection": {"links": 2, "log_bound": log_bound},
}


@pytest.mark.parametrize(
    "case", ["two", *(pytest.param(case, marks=pytest.mark.slow) for case in ("all", "rejection"))]
)
def test_a_sum_is_smoothed_in_one_pass(case):
    mean, covariance = oracle.smoothed()
    second = covariance + np.outer(mean, mean)
    exact = sum(second[t, t] - 2 * second[t, t - 1] + second[t - 1, t - 1] for t in range(1, len(mean))) + mean[0]

    def run(key):
        return particle.additive(
            key,
            oracle.model_of(PARAMETERS),
            YS,
            lambda old, x, t, y: (x - old) ** 2,
            lambda x, y: x,
            particles=200,
            **LINKS[case],
        ).mean

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), 100))
    z = z_scores(found, exact)
    print(f"additive {case}: {np.asarray(found).mean():.4f} against {exact:.4f}, z {z:.2f}")
    assert abs(z) < 4.5


@pytest.mark.parametrize(
    "options",
    [pytest.param({"links": 2}, marks=pytest.mark.slow), {"links": None}, {"method": "backward", "draws": 100}],
)
def test_the_score_is_that_of_the_normal_law(options):
    exact = oracle.score()

    def run(key):
        return particle.score(
            key, oracle.model_of, PARAMETERS, YS, particles=200, **({"method": "paris"} | options)
        ).gradient

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 100))
    z = z_scores(found, exact)
    print(f"score {options}: {np.asarray(found).mean(0)} against {exact}, z {z}")
    assert np.abs(z).max() < 4.5


def test_one_time_and_an_impossible_series():
    model = oracle.model_of(PARAMETERS)
    for method, options in METHODS.items():
        found = particle.smooth(jax.random.key(0), model, YS[:1], particles=20, draws=5, method=method, **options)
        assert found.trajectories.shape == (5, 1)
        assert bool(jnp.isfinite(found.mean).all())
    far = jnp.array([0.0, 1e20])
    found = particle.smooth(jax.random.key(0), model, far, particles=20)
    assert int(found.failed_at) == 1
    assert bool(jnp.isnan(found.mean).all())


def test_bad_arguments_are_one_line():
    model, key = oracle.model_of(PARAMETERS), jax.random.key(0)
    for options in (
        {"method": "forward"},
        {"particles": 0},
        {"method": "fixed_lag"},
        {"method": "rejection"},
        {"method": "genealogy", "resampler": smc.optimal_transport()},
        {"draws": 0},
    ):
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            particle.smooth(key, model, YS, **options)
    without = finite.model()._replace(log_kernel=None)
    with pytest.raises(ValueError, match="log_kernel"):
        particle.smooth(key, without, jnp.arange(3))


def test_lines_of_descent():
    ancestors = jnp.array([[0, 1, 2], [2, 0, 0], [1, 1, 0]])
    assert particle.trace(ancestors, jnp.arange(3)).tolist() == [[0, 0, 2], [1, 1, 0], [0, 1, 2]]
    assert particle.num_distinct(ancestors).tolist() == [2, 2, 3]
