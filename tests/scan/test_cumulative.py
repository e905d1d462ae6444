"""Cumulative sums of integers beside NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.int16])
@pytest.mark.parametrize("number", [0, 1, 5, 1003])
def test_sums_wrap_round_as_numpys(dtype, number):
    limits = np.iinfo(dtype)
    values = np.random.default_rng(number).integers(limits.min, limits.max, number, dtype, endpoint=True)
    found = jax.jit(scan.cumulative_sum)(jnp.asarray(values))
    np.testing.assert_array_equal(found, np.cumsum(values, dtype=dtype), strict=True)


def test_rows():
    values = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(jax.vmap(scan.cumulative_sum)(values), np.cumsum(values, 1))


def test_numbers_that_would_be_rounded_are_refused():
    with pytest.raises(TypeError, match="integers"):
        scan.cumulative_sum(jnp.ones(3))
