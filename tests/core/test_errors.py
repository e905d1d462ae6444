"""Messages in the one format, for whatever value is at fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.5, "3.5"),
        (-2, "-2"),
        (True, "True"),
        (None, "None"),
        ("abc", "'abc'"),
        (np.float64(3.5), "3.5"),
        (np.int32(7), "7"),
        (np.array(2.0), "2.0"),
        ((1, 2), "(1, 2)"),
        (np.zeros((2, 3)), "a float64 array of shape (2, 3)"),
        ({"a": 1}, "an object of type dict"),
        (list(range(100)), "an object of type list"),
    ],
)
def test_describe(value, text):
    assert core.describe(value) == text


def test_describe_arrays_of_jax():
    assert core.describe(jnp.zeros((2, 0), jnp.bfloat16)) == "a bfloat16 array of shape (2, 0)"
    assert core.describe(jnp.float32(1.5)) == "1.5"
    assert core.describe(jax.random.key(0)) == "a key<fry> array of shape ()"
    assert core.describe(jax.random.split(jax.random.key(0), 3)) == "a key<fry> array of shape (3,)"


def test_describe_what_cannot_be_read():
    """A traced or donated array is described without looking at its numbers."""
    seen = []
    jax.jit(lambda x: seen.append(core.describe(x)))(jnp.ones(3))
    assert seen == ["a traced float32 array of shape (3,)"]
    gone = jnp.zeros(())
    gone.delete()
    assert core.describe(gone) == "a float32 array of shape ()"


def test_a_long_text_is_cut():
    assert len(core.describe("x" * 1000)) == 80
    assert core.describe("x" * 1000).endswith("...")


def test_message_is_one_line_in_the_one_format():
    line = core.message("sample", "draws", -1, "a positive number", "Ask for at least one")
    assert line == "sample: draws is -1; expected a positive number. Ask for at least one."
    assert core.message("f", "x", "of shape (3,)", "shape (2,)") == "f: x is of shape (3,); expected shape (2,)."
    assert "\n" not in core.message("f", "x", "two\nlines", "one  line")


def test_kinds_of_errors():
    for maker, kind in ((core.bad_value, ValueError), (core.bad_type, TypeError)):
        error = maker("f", "x", np.zeros(3), "a number", "Pass one")
        assert type(error) is kind
        assert str(error) == "f: x is a float64 array of shape (3,); expected a number. Pass one."
