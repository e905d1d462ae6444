"""scan.affine: what it says of arguments that do not fit."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxprob import scan
from jaxprob.scan import Complex, Exponential
from tests.scan import _loops as loops

# --- errors

B = jnp.zeros((4, 3))
ERRORS = {
    "decay without time": ((jnp.ones(()), B), {}, r"decay is a scalar; expected .*time.*\. Write decay\[None\]"),
    "decay of another length": (
        (jnp.ones((5, 3)), B),
        {},
        r"decay is of 5 steps of time; expected the 4 steps of incre",
    ),
    "decay of another width": ((jnp.ones((4, 2)), B), {}, r"decay is of shape \(4, 2\); expected "),
    "matrix of another size": ((jnp.ones((4, 2, 2)), B), {}, r"decay is of shape \(4, 2, 2\); expected .* n = 3"),
    "matrix not square": ((jnp.ones((4, 3, 2)), B), {}, r"decay is of shape \(4, 3, 2\); expected "),
    "matrix of numbers": ((jnp.ones((4, 1, 1)), jnp.zeros(4)), {}, r"decay is of shape \(4, 1, 1\); expected "),
    "logarithm of a matrix": ((Exponential(jnp.ones((4, 3, 3))), B), {}, r"decay is of shape \(4, 3, 3\); expected "),
    "two axes too many": ((jnp.ones((4, 1, 3, 3)), B), {}, r"decay is of shape \(4, 1, 3, 3\); expected "),
    "increment without time": ((jnp.ones(1), jnp.ones(())), {}, r"increment is a scalar; expected "),
    "init of another shape": (
        (B, B, jnp.zeros(2)),
        {},
        r"init is of shape \(2,\); expected the shape of a state, \(3,\)",
    ),
    "init with time": ((B, B, jnp.zeros((1, 3))), {}, r"init is of shape \(1, 3\); expected "),
    "reset of another length": (
        (B, B),
        {"reset": jnp.zeros(3, bool)},
        r"reset is of shape \(3,\); expected shape \(4,\)",
    ),
    "no such method": (
        (B, B),
        {"method": "fast"},
        r"method is fast; expected 'auto', 'parallel' or one of 'sequential', ",
    ),
    "chunk 0": ((B, B), {"chunk": 0}, r"chunk is 0; expected "),
    "chunk not whole": ((B, B), {"chunk": 1.5}, r"chunk is 1\.5; expected "),
    "mesh without axis_name": (
        (B, B),
        {"mesh": jax.make_mesh((8,), ("time",))},
        r"axis_name is None; expected an axis of the mesh, \('time',\)",
    ),
    "no such axis": (
        (B, B),
        {"mesh": jax.make_mesh((8,), ("time",)), "axis_name": "space"},
        r"axis_name is space; expected an axis of the mesh, \('time',\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_and_come_before_compiling(name):
    args, options, match = ERRORS[name]
    with loops.compilations() as compiled, pytest.raises(ValueError, match=f"^scan.affine: {match}") as raised:
        jax.jit(lambda: scan.affine(*args, **options))()
    assert re.fullmatch(r"scan\.affine: .+ is .+; expected [^\n]+\.", str(raised.value))
    assert compiled == []


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((B, B, None, jnp.zeros(4)), r"scan.affine: reset is of dtype float32; expected booleans"),
        (
            (jax.random.split(jax.random.key(0), 4), B),
            r"scan.affine: decay is a key<fry> array of .*; expected .*numbers",
        ),
        ((B, "x"), r"scan.affine: increment is .*; expected .*numbers"),
        ((None, B), r"scan.affine: decay is None; expected .*numbers"),
        ((B, Complex(B, jnp.zeros((5, 3)))), r"scan.affine: increment is .*Complex; expected .*numbers"),
    ],
    ids=["reset", "keys", "text", "None", "two shapes"],
)
def test_what_is_not_made_of_numbers(args, match):
    with pytest.raises(TypeError, match=f"^{match}") as raised:
        scan.affine(*args[:3], reset=args[3] if len(args) > 3 else None)
    assert re.fullmatch(r"scan\.affine: .+ is .+; expected [^\n]+\.", str(raised.value))
