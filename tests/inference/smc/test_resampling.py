"""Every scheme draws a particle as often as its weight says; a conditional one keeps the law of the reference.

Oracles: NumPy in float64, and the law of a two-state model by enumeration. Seeds are fixed; a z-score of 5 has a false
alarm in 1.7 million, and fewer than 200 are looked at.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import smc

SCHEMES = ["multinomial", "stratified", "systematic", "residual", "ssp", "killing"]
CONDITIONAL = ["multinomial", "stratified", "systematic", "residual", "killing"]
WEIGHTS = np.array([0.05, 0.0, 0.42, 0.13, 0.4])
REPEATS = 40_000

START, POTENTIAL = np.array([0.5, 0.5]), np.array([[0.15, 1.0], [0.7, 0.3]])
MOVE = np.array([[0.8, 0.2], [0.1, 0.9]])
LAW = (START * POTENTIAL[0])[:, None] * MOVE * POTENTIAL[1][None, :]
LAW = LAW / LAW.sum()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_particle_is_drawn_as_often_as_its_weight_says(name):
    scheme, number = getattr(smc, name), WEIGHTS.size
    log_weights = jnp.log(jnp.asarray(WEIGHTS, jnp.float32)) - 1000

    @jax.jit
    def offspring(key):
        ancestors = jax.vmap(lambda k: scheme(k, log_weights, number))(jax.random.split(key, REPEATS))
        return jnp.sum(jnp.expand_dims(ancestors, 2) == jnp.arange(number).reshape(1, 1, -1), axis=1)

    found = np.asarray(offspring(jax.random.key(1)), float)
    assert (found.sum(1) == number).all()
    assert (found[:, 1] == 0).all()
    error = found.std(0) / np.sqrt(REPEATS) + 1e-9
    z = (found.mean(0) - number * WEIGHTS) / error
    assert np.abs(z[WEIGHTS > 0]).max() < 5, z


def discrepancy(scheme, number):
    """The largest z-score of the law after one step of conditional SMC from the exact law."""
    initial, potential, move = (jnp.log(jnp.asarray(x, jnp.float32)) for x in (START, POTENTIAL, MOVE))

    def one(key, reference):
        first, again, second, last = jax.random.split(key, 4)
        x0 = jax.random.categorical(first, initial, shape=(number,)).at[0].set(reference // 2)
        x0 = x0[scheme(again, potential[0][x0], number)]
        x1 = jax.random.categorical(second, move[x0]).at[0].set(reference % 2)
        chosen = jax.random.categorical(last, potential[1][x1])
        return 2 * x0[chosen] + x1[chosen]

    references = np.random.default_rng(3).choice(4, REPEATS, p=LAW.ravel())
    keys = jax.random.split(jax.random.key(2), REPEATS)
    ends = np.asarray(jax.jit(jax.vmap(one))(keys, jnp.asarray(references, jnp.int32)))
    share, exact = np.bincount(ends, minlength=4) / REPEATS, LAW.ravel()
    return np.abs((share - exact) / np.sqrt(exact * (1 - exact) / REPEATS)).max()


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_schemes_keep_the_law_of_the_reference(name, number):
    assert discrepancy(smc.conditional(getattr(smc, name)), number) < 5


def test_a_reference_that_is_merely_put_first_is_found_out():
    def wrong(key, log_weights, number):
        return smc.systematic(key, log_weights, number).at[0].set(0)

    assert discrepancy(wrong, 2) > 8


@pytest.mark.parametrize("name", SCHEMES)
def test_without_a_usable_total_ancestors_are_still_particles(name):
    scheme = getattr(smc, name)
    for log_weights in (jnp.full((5,), -jnp.inf), jnp.array([0.0, jnp.nan, 0.0, 0.0, 0.0])):
        ancestors = np.asarray(scheme(jax.random.key(4), log_weights, 5))
        assert ancestors.shape == (5,)
        assert ((ancestors >= 0) & (ancestors < 5)).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_million_particles_in_float32(name):
    number = 2**20
    log_weights = np.random.default_rng(5).normal(size=number).astype(np.float32)
    log_weights[::3] = -np.inf
    ancestors = np.asarray(getattr(smc, name)(jax.random.key(6), jnp.asarray(log_weights), number))
    assert (ancestors % 3 != 0).all()
    weights = np.exp(log_weights.astype(float))
    weights = weights / weights.sum()
    # Eighths of the index range get their share: independent draws are the worst case.
    share = np.bincount(ancestors // (number // 8), minlength=8) / number
    exact = weights.reshape(8, -1).sum(1)
    assert (np.abs(share - exact) < 5 * np.sqrt(exact * (1 - exact) / number)).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_ancestors_are_int32_in_float64_too(name, x64):
    log_weights = jnp.log(jnp.asarray(WEIGHTS, jnp.float64))
    schemes = [getattr(smc, name)] + ([smc.conditional(getattr(smc, name))] if name in CONDITIONAL else [])
    for scheme in schemes:
        ancestors = scheme(jax.random.key(0), log_weights, WEIGHTS.size)
        assert ancestors.dtype == jnp.int32
        assert np.all(WEIGHTS[np.asarray(ancestors[1:])] > 0)


def test_soft_resampling_of_no_mass_keeps_none():
    population = smc.Population(jnp.arange(4.0), jnp.full(4, -jnp.inf))
    new, ancestors = smc.soft(0.5)(jax.random.key(0), population)
    assert float(new.log_evidence) == -np.inf
    assert sorted(ancestors.tolist()) == [0, 1, 2, 3]
    np.testing.assert_allclose(new.log_weights, np.full(4, -np.log(4)), rtol=1e-6)


def test_soft_resampling_stands_for_the_same_measure():
    """The mean of 20,000 weighted means against the weights themselves, within 5 standard errors (false alarm 6e-7)."""
    log_weights = jnp.log(jnp.array([0.5, 0.0, 0.2, 0.3]))
    population = smc.Population(jnp.array([1.0, 2.0, 4.0, 8.0]), log_weights)

    def one(key):
        new, _ = smc.soft(0.6, smc.multinomial)(key, population)
        return jnp.sum(jnp.exp(new.log_weights + new.log_scale) * new.particles)

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20_000)), np.float64)
    assert abs(found.mean() - (0.5 + 0.8 + 2.4)) < 5 * found.std() / np.sqrt(found.size)
