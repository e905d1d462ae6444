"""Sums in a fixed order: right against NumPy, and the same bits in every batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 32, 33, 1000])
def test_sums_and_products_are_numpys(size, rng):
    x, y = rng.normal(size=(2, size, 3)).astype(np.float32)
    np.testing.assert_allclose(core.ordered_sum(jnp.asarray(x)), x.astype(float).sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(core.ordered_dot(jnp.asarray(x), jnp.asarray(y)), (x * y).sum(0), rtol=1e-5, atol=1e-4)


def test_not_a_number_stays_one():
    assert jnp.isnan(core.ordered_dot(jnp.array([1.0, jnp.nan]), jnp.ones(2)))
    assert core.ordered_dot(jnp.array([1.0, jnp.inf]), jnp.ones(2)) == jnp.inf


@pytest.mark.parametrize("size", [3, 8, 20, 50])
def test_no_batch_changes_a_bit(size, rng):
    """A recurrence of products of a matrix and a vector, mapped over batches of 1, 2, 4 and 16."""
    matrix, starts = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((size, size), (16, size)))

    @jax.jit
    def run(starts):
        def step(_, x):
            return jax.vmap(lambda x: jnp.clip(core.ordered_dot(jnp.expand_dims(x, 1), matrix), -1, 1))(x)

        return jax.lax.fori_loop(0, 20, step, starts)

    whole = np.asarray(run(starts))
    for batch in (1, 2, 4):
        parts = [run(starts[first : first + batch]) for first in range(0, 16, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
