"""The law of every building block, E[sum_i w_i f(x_i)] = integral of f dmu, and of their compositions on exact models.

Oracles: quadrature, and Kalman and dense Gaussian algebra, in NumPy float64. Seeds are fixed and false-alarm rates
stated; for each kind of test a building block that is wrong in one respect is shown to be caught.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core, scan
from jaxprob.analysis import check_measure_preserving
from jaxprob.inference import mcmc, smc


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles for the shortest compile time: these programs run once, on little data."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# --- one building block at a time -------------------------------------------------------------------------------

PARTICLES, REPEATS = 12, 16 * 256  # whole batches, so that a check compiles one loop
FUNCTIONS = [
    lambda x: 1.0,
    lambda x: x,
    lambda x: x**2,
    lambda x: jnp.where(x > 0.5, 1.0, 0.0),
    lambda x: jnp.cos(3 * x),
]
GRID = np.linspace(-9, 9, 3601)
ON_GRID = np.stack([np.ones_like(GRID), GRID, GRID**2, np.where(GRID > 0.5, 1.0, 0.0), np.cos(3 * GRID)])


def potential(x):
    return 0.8 * jnp.sin(2 * x) - 0.3 * x * x + 1.0


PRIOR = np.exp(-0.5 * GRID**2) / np.sqrt(2 * np.pi)
TILTED = PRIOR * np.exp(0.8 * np.sin(2 * GRID) - 0.3 * GRID**2 + 1.0)
KERNEL = np.exp(-0.5 * ((GRID[None, :] - np.sin(GRID)[:, None]) / 0.6) ** 2) / (0.6 * np.sqrt(2 * np.pi))


def integrals(density):
    return ON_GRID @ density * (GRID[1] - GRID[0])


def pair(population):
    return population.particles, population.log_weights + population.log_scale


def prior(key):
    return pair(smc.spawn(key, jax.random.normal, PARTICLES))


def tilted(key):
    return pair(smc.reweight(smc.spawn(key, jax.random.normal, PARTICLES), potential))


def on_populations(transform):
    return lambda key, weighted: pair(transform(key, smc.Population(*weighted)))


class Gaussian(NamedTuple):
    """Independent normal variables of mean zero."""

    like: jax.Array
    scale: float

    def sample(self, key):
        return self.scale * jax.random.normal(key, self.like.shape)

    def log_prob(self, value):
        return jnp.sum(-0.5 * (value / self.scale) ** 2)


def move(kernel):
    """A step of MCMC as a kernel of particles."""
    return lambda key, x: kernel.step(core.fold(key, 1), kernel.init(x, core.fold(key, 0)))[0].position


def log_tilted(x):
    return potential(x) - 0.5 * x * x


def stretch(determinant):
    """x goes to x exp(v), whose determinant is exp(v)."""
    return mcmc.metropolis_hastings_green(
        log_tilted, lambda x: Gaussian(x, 0.8), lambda x, v: (x * jnp.exp(v), -v, determinant * v)
    )


def skewed():
    """Proposes x / 2 + noise."""
    return mcmc.metropolis_hastings(
        log_tilted,
        lambda key, x: 0.5 * x + 0.7 * jax.random.normal(key),
        lambda x, y: 0.5 * ((y - 0.5 * x) ** 2 - (x - 0.5 * y) ** 2) / 0.49,
    )


def independent_step(key, x):
    return jnp.sin(x) + 0.6 * jax.random.normal(key)


LAWFUL = {  # program, transformation, density of the measure afterwards
    "spawn": (prior, lambda key, population: population, PRIOR),
    "reweight": (prior, lambda key, population: smc.reweight(population, potential), TILTED),
    "advance": (
        tilted,
        lambda key, population: smc.advance(key, population, independent_step),
        TILTED @ KERNEL * (GRID[1] - GRID[0]),
    ),
    "resample, systematic": (tilted, smc.resample, TILTED),
    "resample to fewer, multinomial": (tilted, lambda key, p: smc.resample(key, p, smc.multinomial, 5), TILTED),
    "metropolis-hastings": (tilted, lambda key, p: smc.advance(key, p, move(skewed())), TILTED),
    "metropolis-hastings-green": (tilted, lambda key, p: smc.advance(key, p, move(stretch(1.0))), TILTED),
}


def wrong_resample(key, population):
    return smc.Population(smc.resample(key, population).particles, jnp.full(PARTICLES, -np.log(PARTICLES)))


def wrong_scheme(key, log_weights, num_draws):
    """Off by one."""
    return (smc.systematic(key, log_weights, num_draws) + 1) % PARTICLES


UNLAWFUL = {
    "weights normalised": (
        prior,
        lambda key, p: smc.Population(p.particles, jnp.log(smc.reweight(p, potential).weights)),
        TILTED,
    ),
    "evidence forgotten": (tilted, wrong_resample, TILTED),
    "off by one": (tilted, lambda key, p: smc.resample(key, p, wrong_scheme), TILTED),
    "no determinant": (tilted, lambda key, p: smc.advance(key, p, move(stretch(0.0))), TILTED),
}


def largest_z(case):
    """The largest |z|, against the same populations before where that is the measure, else against quadrature."""
    program, transform, density = case
    expected = None if program is tilted and density is TILTED else integrals(density)
    law = check_measure_preserving(
        jax.random.key(21), on_populations(transform), program, FUNCTIONS, REPEATS, expected=expected
    )
    # What changes by rounding alone has tiny standard errors: a change of 1e-5 counts as none.
    return np.max(np.where(np.abs(law.ratio - 1) < 1e-5, 0, np.abs(law.z)))


@pytest.mark.parametrize("name", LAWFUL)
def test_every_building_block_obeys_the_law(name):
    """False alarms: 5 z-scores at 4 a case, 3e-4; 35 in all, 0.2 %."""
    assert largest_z(LAWFUL[name]) < 4


@pytest.mark.parametrize("name", UNLAWFUL)
def test_a_wrong_building_block_is_caught(name):
    assert largest_z(UNLAWFUL[name]) > 6


# --- compositions, on a linear Gaussian model -------------------------------------------------------------------

TIMES, PHI, Q, R, P0 = 10, 0.9, 0.5, 0.2, 1.5  # x_0 ~ N(0, P0), x_t = PHI x_{t-1} + N(0, Q), y_t = x_t + N(0, R)


def series():
    rng = np.random.default_rng(12)
    x = [rng.normal() * np.sqrt(P0)]
    for _ in range(TIMES - 1):
        x.append(PHI * x[-1] + rng.normal() * np.sqrt(Q))
    return np.array(x) + rng.normal(size=TIMES) * np.sqrt(R)


def kalman(ys):
    """Log evidence and filtered means, by recursion."""
    mean, var, log_z, means = 0.0, P0, 0.0, []
    for t, y in enumerate(ys):
        if t:
            mean, var = PHI * mean, PHI**2 * var + Q
        s = var + R
        log_z += -0.5 * (np.log(2 * np.pi * s) + (y - mean) ** 2 / s)
        mean, var = mean + var / s * (y - mean), var * R / s
        means.append(mean)
    return log_z, np.array(means)


def dense(ys):
    """Log evidence and smoothed means, from the joint covariance of all times."""
    to_states = np.array([[PHI ** (i - j) if j <= i else 0.0 for j in range(TIMES)] for i in range(TIMES)])
    cov = to_states @ np.diag([P0] + [Q] * (TIMES - 1)) @ to_states.T
    total = cov + R * np.eye(TIMES)
    solved = np.linalg.solve(total, ys)
    log_z = -0.5 * (ys @ solved + np.linalg.slogdet(2 * np.pi * total)[1])
    return log_z, cov @ solved


def observe(x, y):
    return -0.5 * (y - x) ** 2 / R - 0.5 * np.log(2 * np.pi * R)


def test_the_oracles_agree():
    ys = series()
    (log_z, filtered), (log_z_dense, smoothed) = kalman(ys), dense(ys)
    np.testing.assert_allclose(log_z, log_z_dense, rtol=1e-12)
    np.testing.assert_allclose(filtered[-1], smoothed[-1], rtol=1e-12)


def test_evidence_of_a_composition_is_unbiased():
    """spawn, then reweight, resample and advance through time: N = 60, 2,000 repeats.

    E[Zhat] / Z = 1 and E[Zhat mean of x_T] / Z = the filtered mean, within 3 standard errors: false-alarm rate 0.5 %.
    E[log Zhat] lies below log Z: were it unbiased, false-alarm rate 3e-7.
    """
    repeats, ys = 2000, jnp.asarray(series(), jnp.float32)
    log_z, filtered = kalman(series())

    def once(key):
        def transition(key, x):
            return PHI * x + np.float32(Q**0.5) * jax.random.normal(key)

        def step(population, t):
            population = smc.resample(core.fold(key, t, 0), population)
            population = smc.advance(core.fold(key, t, 1), population, transition)
            return smc.reweight(population, lambda x: observe(x, ys[t]))

        population = smc.spawn(core.fold(key, 0), lambda key: np.float32(P0**0.5) * jax.random.normal(key), 60)
        population = smc.reweight(population, lambda x: observe(x, ys[0]))
        population = scan.repeat(lambda population, i: step(population, i + 1), population, TIMES - 1)
        return population.log_evidence, population.expectation()

    log_evidence, means = jax.jit(jax.vmap(once))(core.chain_keys(jax.random.key(31), jnp.arange(repeats)))
    gap = np.asarray(log_evidence, np.float64) - log_z
    ratio, error = np.exp(gap).mean(), np.exp(gap).std() / np.sqrt(repeats)
    assert error < 0.02
    assert abs(ratio - 1) < 3 * error
    weighted = np.exp(gap) * (np.asarray(means, np.float64) - filtered[-1])
    assert abs(weighted.mean()) < 3 * weighted.std() / np.sqrt(repeats)
    bias, bias_error = gap.mean(), gap.std() / np.sqrt(repeats)
    assert bias < -5 * bias_error


def log_joint(path, t, ys, power):
    """Log density of the states and observations (to a power) up to time t; the rest of `path` is not looked at."""
    before = jnp.concatenate([jnp.zeros(1), PHI * path[:-1]])
    variance = jnp.where(jnp.arange(TIMES) == 0, P0, Q)
    terms = -0.5 * (path - before) ** 2 / variance + power * observe(path, ys)
    return jnp.sum(jnp.where(jnp.arange(TIMES) <= t, terms, 0.0))


def test_resample_move_finds_the_smoothing_means():
    """Paths, moved by Metropolis-Hastings-Green after each multinomial resampling: N = 100, 400 repeats.

    For each time E[Zhat mean of x_t] / Z is the smoothed mean, and so is the mean itself up to a bias of 1 / N. False
    alarms: 20 z-scores at 3.9, 0.2 %. Filtered means are told apart from smoothed ones, and a move that leaves out
    half of what the data say is caught.
    """
    repeats, ys = 400, jnp.asarray(series(), jnp.float32)
    (log_z, filtered), (_, smoothed) = kalman(series()), dense(series())
    index = jnp.arange(TIMES)

    @jax.jit
    def run(key, power):
        def once(key):
            def step(population, t):
                def extend(key, path):
                    mean = jnp.where(t == 0, 0.0, PHI * path[t - 1])
                    return path.at[t].set(mean + jnp.where(t == 0, P0, Q) ** 0.5 * jax.random.normal(key))

                walk = mcmc.metropolis_hastings_green(
                    lambda path: log_joint(path, t, ys, power),
                    lambda path: Gaussian(path, 0.4),
                    lambda path, v: (jnp.where(index <= t, path + v, path), -v, 0.0),
                )
                population = smc.advance(core.fold(key, t, 0), population, extend)
                population = smc.reweight(population, lambda path: observe(path[t], ys[t]))
                population = smc.resample(core.fold(key, t, 1), population, smc.multinomial)
                return smc.advance(core.fold(key, t, 2), population, move(walk))

            start = smc.spawn(core.fold(key, TIMES), lambda key: jnp.zeros(TIMES), 100)
            population = scan.repeat(step, start, TIMES)
            return population.log_evidence, population.expectation()

        return jax.vmap(once)(core.chain_keys(key, jnp.arange(repeats)))

    def z_scores(power):
        log_evidence, means = (np.asarray(x, np.float64) for x in run(jax.random.key(41), jnp.float32(power)))
        errors = means - smoothed
        weighted = np.exp(log_evidence - log_z)[:, None] * errors
        se = errors.std(axis=0) / np.sqrt(repeats)
        return np.concatenate([weighted.mean(0) / weighted.std(0) * np.sqrt(repeats), errors.mean(0) / se]), se

    z, se = z_scores(1.0)
    assert np.all(np.abs(z) < 3.9)
    assert np.max(np.abs(filtered - smoothed) / se) > 30
    assert np.max(np.abs(z_scores(0.5)[0])) > 6
