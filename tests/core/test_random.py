"""Random numbers beside those of jax, from the same keys: the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.core import random

DRAWS = {
    "bits": lambda r, key: r.bits(key, (3, 5)),
    "bits of 8": lambda r, key: r.bits(key, (7,), "uint8"),
    "bits of 16": lambda r, key: r.bits(key, (7,), "uint16"),
    "one": lambda r, key: r.bits(key),
    "none": lambda r, key: r.bits(key, (0, 3)),
    "integers": lambda r, key: r.randint(key, (4,), -5, 1000),
    "permutation": lambda r, key: r.permutation(key, 17),
    "signs": lambda r, key: r.rademacher(key, (9,)),
    "coins": lambda r, key: r.bernoulli(key, 0.3, (9,)),
    "uniform": lambda r, key: r.uniform(key, (2, 3, 4), jnp.float32, -1.0, 1.0),
    "categorical": lambda r, key: r.categorical(key, jnp.arange(4.0), shape=(20,)),
    "split": lambda r, key: jax.random.key_data(r.split(key, (2, 3))),
    "fold": lambda r, key: jax.random.key_data(r.fold_in(key, 2**32 - 1)),
}
# Transcendental functions may be rounded otherwise inside a fusion: to the last digits.
ROUNDED = {
    "normal": lambda r, key: r.normal(key, (1000,)),
    "exponential": lambda r, key: r.exponential(key, (100,)),
    "gumbel": lambda r, key: r.gumbel(key, (100,)),
    "logistic": lambda r, key: r.logistic(key, (100,)),
    "laplace": lambda r, key: r.laplace(key, (100,)),
    "cauchy": lambda r, key: r.cauchy(key, (100,)),
    "gamma": lambda r, key: r.loggamma(key, jnp.array([0.1, 1.0, 30.0])),
}


@pytest.fixture(autouse=True)
def keys_are_not_watched():
    """The numbers are those of jax itself where jax looks for keys that are used twice."""
    with jax.debug_key_reuse(False):
        yield


def drawn(draw, *keys):
    ours, theirs = (jax.jit(lambda *keys, r=r: draw(r, *keys)) for r in (random, jax.random))
    # The test would say nothing of a function that goes straight to jax.
    assert "written_out" in str(jax.make_jaxpr(lambda *keys: draw(random, *keys))(*keys)) or "fry_out" in str(
        jax.make_jaxpr(lambda *keys: draw(random, *keys))(*keys)
    )
    return np.asarray(ours(*keys)), np.asarray(theirs(*keys))


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_bits(name):
    ours, theirs = drawn(DRAWS[name], jax.random.key(7))
    np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("name", ROUNDED)
def test_the_same_numbers(name):
    ours, theirs = drawn(ROUNDED[name], jax.random.key(7))
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6, strict=True)


def test_in_float64():
    with jax.enable_x64(True):
        for draw in (lambda r, key: r.bits(key, (5,), "uint64"), lambda r, key: r.uniform(key, (5,), "float64")):
            np.testing.assert_array_equal(*drawn(draw, jax.random.key(7)), strict=True)


def test_of_many_keys():
    many = jax.random.split(jax.random.key(1), 6)
    draw = lambda r, keys: jax.vmap(lambda key: r.bits(r.fold_in(r.split(key)[1], 5), (4,)))(keys)  # noqa: E731
    np.testing.assert_array_equal(*drawn(draw, many), strict=True)


def test_keys_are_of_the_kind_that_was_given():
    for kind in ("threefry2x32", "rbg"):
        key = jax.random.key(0, impl=kind)
        assert jax.jit(random.split)(key).dtype == jax.jit(lambda key: random.fold_in(key, 1))(key).dtype == key.dtype
        assert jax.jit(random.uniform)(key) == jax.jit(jax.random.uniform)(key)
    with jax.threefry_partitionable(False):
        assert jax.jit(random.uniform)(jax.random.key(0)) == jax.jit(jax.random.uniform)(jax.random.key(0))


def test_legacy_keys():
    key = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(jax.jit(random.split)(key), jax.random.split(key))


def test_a_branch_and_a_loop():
    def draw(r, key):
        def body(i, total):
            return total + jax.lax.cond(i % 2 == 0, lambda: r.uniform(r.fold_in(key, i)), lambda: jnp.float32(0))

        return jax.lax.fori_loop(0, 5, body, jnp.float32(0))

    np.testing.assert_allclose(*drawn(draw, jax.random.key(0)), rtol=1e-6)
