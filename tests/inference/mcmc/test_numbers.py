"""Numbers that a caller gives: one line says what is wrong with them, before anything is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import mcmc
from jaxprob.inference.mcmc._numbers import known_count, known_number, known_range


def density(q):
    return -0.5 * jnp.sum(q**2)


def share(value):
    return known_number("kernel", "share", value, lambda x: 0 <= x < 1, "a number from 0 to below 1")


@pytest.mark.parametrize("value", [0, 0.5, np.float64(0.5), jnp.asarray(0.5, jnp.bfloat16), jnp.int32(0), False])
def test_a_possible_number_is_an_array(value):
    array = share(value)
    assert isinstance(array, jax.Array)
    assert array.shape == ()
    assert float(array) == float(value)
    assert array.dtype == (jnp.bfloat16 if getattr(value, "dtype", None) == jnp.bfloat16 else jnp.float32)


def test_a_traced_number_is_taken_as_it_is():
    assert float(jax.jit(share)(3.0)) == 3.0
    assert float(jax.jit(lambda: share(0.5))()) == 0.5
    with pytest.raises(ValueError, match="share is a traced float32 array of shape"):
        jax.jit(share)(jnp.zeros(2))
    with pytest.raises(ValueError, match="share is 1.0"):
        jax.jit(lambda: share(1.0))()  # known, although inside a trace


@pytest.mark.parametrize(
    ("value", "kind", "got"),
    [
        (1.0, ValueError, "1.0"),
        (-1, ValueError, "-1.0"),
        (float("nan"), ValueError, "nan"),
        (np.zeros(2), ValueError, "a float32 array of shape (2,)"),
        ([0.1, 0.2], ValueError, "a float32 array of shape (2,)"),
        (1j, TypeError, "1j"),
        ("0.5", TypeError, "'0.5'"),
        (None, TypeError, "None"),
        (jax.random.key(0), TypeError, "a key<fry> array of shape ()"),
        (len, TypeError, "an object of type builtin_function_or_method"),
    ],
)
def test_what_is_no_possible_number_is_named_in_one_line(value, kind, got):
    with pytest.raises(kind, match=f"^kernel: share is {re.escape(got)}; expected a number from 0 to below 1.$"):
        share(value)


def test_counts_and_ranges():
    assert known_count("kernel", "steps", np.int32(3)) == 3
    assert known_range("kernel", "steps", 3) == (3, 3)
    assert known_range("kernel", "steps", (np.int64(2), 3)) == (2, 3)
    for value in (0, 2.5, "2", None, jnp.ones(2, int)):
        with pytest.raises(ValueError, match=r"^kernel: steps is .*; expected an integer of at least 1\.$"):
            known_count("kernel", "steps", value)
        with pytest.raises(ValueError, match=r"^kernel: steps is .*; expected an integer of at least 1, or a pair"):
            known_range("kernel", "steps", value)
    for value in ((3, 2), (1, 2, 3), (0, 2), (1.5, 2), ()):
        with pytest.raises(ValueError, match=rf"^kernel: steps is {re.escape(str(value))}; expected"):
            known_range("kernel", "steps", value)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: mcmc.hmc(density, "0.1"), "hmc: step_size is '0.1'; expected one finite number above zero."),
        (lambda: mcmc.hmc(density, jitter="a"), "hmc: jitter is 'a'; expected a number from 0 to below 1."),
        (lambda: mcmc.stretch(density, None), "stretch: scale is None; expected a finite number above one."),
        (lambda: mcmc.mclmc(density, 0.1, "l"), "mclmc: trajectory_length is 'l'; expected a finite number above 0."),
        (
            lambda: mcmc.adjusted_mclmc(density, 0.1, 2.5),
            "adjusted_mclmc: num_integration_steps is 2.5; expected an integer of at least 1, or a pair of them in "
            "order.",
        ),
    ],
)
def test_kernels_name_themselves(build, line):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(line)}$"):
        build()
