"""The law test accepts what preserves the measure, and rejects what does not.

All thresholds on |z| are 4: a right transformation fails one of the comparisons below with probability of about 0.1 %.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import analysis

PARTICLES = 30
FUNCTIONS = [lambda x: 1.0, lambda x: x, lambda x: x**2, lambda x: (x > 1).astype(float)]


class Population(NamedTuple):
    samples: jax.Array
    log_weights: jax.Array


def program(key):
    """N(0, 1) weighted by exp(-(x - 1)^2 / 2): the measure N(x; 1/2, 1/2) exp(-1/4) / sqrt(2)."""
    x = jax.random.normal(key, (PARTICLES,))
    return Population(x, -0.5 * (x - 1) ** 2 - jnp.log(1.0 * PARTICLES))


EVIDENCE = np.exp(-0.25) / np.sqrt(2)


def multinomial(key, population):
    x, log_weights = population
    total = jax.nn.logsumexp(log_weights)
    index = jax.random.categorical(key, log_weights, shape=(2 * PARTICLES,))
    return Population(x[index], jnp.full(2 * PARTICLES, total - jnp.log(2.0 * PARTICLES)))


def forgets_the_evidence(key, population):
    return Population(multinomial(key, population).samples, jnp.full(2 * PARTICLES, -jnp.log(2.0 * PARTICLES)))


def keeps_the_weights(key, population):
    index = jax.random.categorical(key, population.log_weights, shape=(PARTICLES,))
    return Population(population.samples[index], population.log_weights[index])


def metropolis(key, population):
    """A random-walk step that leaves the normalised measure, N(1/2, 1/2), invariant; on particles resampled first."""
    resample_key, noise_key, accept_key = jax.random.split(key, 3)
    x, log_weights = multinomial(resample_key, population)
    proposal = x + jax.random.normal(noise_key, x.shape)
    log_ratio = -((proposal - 0.5) ** 2) + (x - 0.5) ** 2
    accept = jnp.log(jax.random.uniform(accept_key, x.shape)) < log_ratio
    return Population(jnp.where(accept, proposal, x), log_weights)


def walk(key, population):
    return population._replace(samples=population.samples + jax.random.normal(key, population.samples.shape))


def check(transform, **options):
    return analysis.check_measure_preserving(jax.random.key(3), transform, program, FUNCTIONS, 1000, **options)


def unlikely(key):
    """The same measure times exp(-2000): an evidence that no float32 can hold."""
    samples, log_weights = program(key)
    return Population(samples, log_weights - 2000)


@pytest.mark.parametrize(
    ("transform", "program"), [(multinomial, unlikely), pytest.param(metropolis, program, marks=pytest.mark.slow)]
)
def test_right_transformations_pass(transform, program):
    law = analysis.check_measure_preserving(jax.random.key(3), transform, program, FUNCTIONS, 1000)
    assert np.all(np.abs(law.z) < 4), law
    assert np.all(np.abs(law.ratio - 1) < 4 * law.standard_error), law
    assert np.all(law.standard_error < 0.05)


@pytest.mark.parametrize(
    ("transform", "wrong"),
    [
        (forgets_the_evidence, [0, 1, 2, 3]),
        pytest.param(keeps_the_weights, [0, 1], marks=pytest.mark.slow),
        pytest.param(walk, [2, 3], marks=pytest.mark.slow),
    ],
)
def test_wrong_transformations_fail(transform, wrong):
    law = check(transform)
    assert np.all(np.abs(np.asarray(law.z)[wrong]) > 8), law


def test_exact_integrals_may_be_given():
    exact = EVIDENCE * np.array([1, 0.5, 0.75, 0.2397501])  # P(N(1/2, 1/2) > 1) = 0.23975
    law = check(multinomial, expected=1.1 * exact)
    assert np.all(np.abs(law.ratio - 1 / 1.1) < 4 * law.standard_error), law
    # Ten per cent too much evidence is found.
    assert law.z[0] < -6


def test_particles_of_weight_zero_count_for_nothing():
    def some(key):
        x = jax.random.normal(key, (PARTICLES,))
        return Population(jnp.where(x > 0, x, -jnp.inf), jnp.where(x > 0, 0.0, -jnp.inf))

    law = analysis.check_measure_preserving(jax.random.key(3), lambda key, same: same, some, FUNCTIONS[:2], 500)
    np.testing.assert_array_equal(law.z, 0)
    np.testing.assert_array_equal(law.ratio, 1)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="^check_measure_preserving: test_functions is empty"):
        analysis.check_measure_preserving(jax.random.key(0), multinomial, program, [])
    with pytest.raises(ValueError, match="repeats is 1; expected 2 or more"):
        analysis.check_measure_preserving(jax.random.key(0), multinomial, program, FUNCTIONS, 1)
    with pytest.raises(ValueError, match=r"expected is .*\(3,\); expected 4 numbers"):
        check(multinomial, expected=np.ones(3))
    with pytest.raises(TypeError, match="^check_measure_preserving: key is 0"):
        analysis.check_measure_preserving(0, multinomial, program, FUNCTIONS)
