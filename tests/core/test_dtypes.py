"""The dtype policy, with and without 64-bit arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_floating_arrays_keep_their_dtype(dtype):
    for value in (np.ones(2, dtype), jnp.ones(2, dtype)):
        assert core.as_float(value).dtype == dtype
        assert (core.as_float(2.0) * core.as_float(value)).dtype == dtype
        assert (core.as_float(2) * core.as_float(value)).dtype == dtype
        assert (core.as_float(True) * core.as_float(value)).dtype == dtype


def test_python_numbers_of_any_size():
    assert core.as_float(10**20) == 1e20
    assert core.as_float(3).dtype == jnp.float32
    assert core.as_float(3).weak_type


@pytest.mark.parametrize("value", [np.arange(3), np.array([True]), [1, 2], np.int8(3), np.ones(2)])
def test_everything_else_takes_the_default_float(value):
    assert core.as_float(value).dtype == jnp.float32
    with jax.enable_x64(True):
        assert core.as_float(value).dtype == jnp.float64


def test_float64_stays_under_x64(x64):
    assert core.as_float(np.ones(2)).dtype == jnp.float64
    assert core.as_float(np.ones(2, np.float32)).dtype == jnp.float32


@pytest.mark.parametrize("value", [1j, np.ones(2, np.complex64), jax.random.key(0), object()])
def test_what_is_not_a_real_number(value):
    with pytest.raises(TypeError):
        core.as_float(value)
    with pytest.raises(TypeError, match=r"^as_float: value is of dtype complex64; expected real numbers.$"):
        core.as_float(np.complex64(1))


def test_traced_values():
    assert jax.eval_shape(core.as_float, jax.ShapeDtypeStruct((2,), jnp.int32)).dtype == jnp.float32
    assert jax.eval_shape(core.as_float, jax.ShapeDtypeStruct((2,), jnp.bfloat16)).dtype == jnp.bfloat16


def test_result_dtype():
    low, single, whole = jnp.ones(2, jnp.bfloat16), np.ones(2, np.float32), jnp.arange(2)
    assert core.result_dtype(low, 1.0, 3, whole) == jnp.bfloat16
    assert core.result_dtype({"a": low, "b": (single, None)}) == jnp.float32
    assert core.result_dtype(low, np.ones(2, np.float16)) == jnp.float32
    assert core.result_dtype(jax.ShapeDtypeStruct((2,), jnp.bfloat16)) == jnp.bfloat16
    assert core.result_dtype() == core.result_dtype(whole, jax.random.key(0), True) == jnp.float32


def test_result_dtype_under_x64(x64):
    assert core.result_dtype(np.ones(2, np.float32), 1.0) == jnp.float32
    assert core.result_dtype(np.ones(2, np.float32), np.ones(2)) == jnp.float64
    assert core.result_dtype(1.0) == core.result_dtype() == jnp.float64


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(jnp.bfloat16, "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_accumulator_dtype(dtype, wide):
    got = core.accumulator_dtype(dtype)
    assert isinstance(got, np.dtype)
    assert got == wide
