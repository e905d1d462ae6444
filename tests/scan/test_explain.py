"""`scan.explain`: the method and the reason, on the device where a call would run, and nothing runs."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxprob import scan
from tests.scan import _loops as loops

X = jnp.ones((100, 3))
CALLS = {
    "affine": (scan.affine, (X, X)),
    "affine, matrices": (scan.affine, (jnp.ones((100, 3, 3)), X, jnp.ones(3))),
    "affine, logarithm": (scan.affine, (scan.Exponential(-X), scan.Complex(X, X))),
    "associative": (scan.associative, (jnp.maximum, X)),
    "associative, monoid": (scan.associative, (scan.monoids.Monoid(jnp.add, jnp.zeros_like), X, jnp.zeros(3))),
}
each_call = pytest.mark.parametrize(("function", "args"), CALLS.values(), ids=CALLS)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What a machine says whose backend is a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@each_call
def test_on_cpu_a_loop(function, args):
    choice = scan.explain(function, *args, reverse=True)
    assert isinstance(choice, scan.Choice)
    assert choice.method == "sequential"
    assert re.fullmatch(r"sequential: [^\n]*cpu[^\n]*", str(choice))
    assert choice.reason in str(choice)


@each_call
@pytest.mark.parametrize("method", ["sequential", "chunked", "associative"])
def test_what_was_asked_for(function, args, method, on_a_gpu):
    choice = scan.explain(function, *args, method=method)
    assert choice.method == method
    assert "asked for" in choice.reason


@each_call
def test_on_a_gpu_something_else(function, args, on_a_gpu):
    """From some number of steps on; below it a loop. Both numbers are in the reason."""
    choice = scan.explain(function, *args)
    assert choice.method in ("chunked", "associative")
    assert "gpu" in choice.reason
    assert "100 steps" in choice.reason
    one = jax.tree.map(lambda x: x[:1] if getattr(x, "ndim", 0) > 1 else x, args)
    choice = scan.explain(function, *one)
    assert choice.method == "sequential"
    assert re.search(r"1 steps? .*fewer than \d+", choice.reason)


@pytest.mark.parametrize("how", ["device", "name", "configured"])
def test_the_default_device_is_respected(how, on_a_gpu):
    """A machine with a GPU on which the caller has chosen the CPU."""
    assert scan.explain(scan.affine, X, X).method != "sequential"
    if how == "configured":
        jax.config.update("jax_default_device", jax.devices("cpu")[1])
        try:
            assert scan.explain(scan.affine, X, X).method == "sequential"
        finally:
            jax.config.update("jax_default_device", None)
    else:
        with jax.default_device(jax.devices("cpu")[0] if how == "device" else "cpu"):
            choice = scan.explain(scan.affine, X, X)
        assert choice.method == "sequential"
        assert "cpu" in choice.reason


def test_what_auto_takes_is_what_runs(monkeypatch):
    """The program of `auto` is that of the method that is named."""

    def program(method):
        return jax.jit(lambda x: scan.affine(x, x, method=method)).lower(X).as_text()

    assert program("auto") == program("sequential")
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        named = scan.explain(scan.affine, X, X).method
        assert program("auto") == program(named) != program("sequential")


def test_scan_and_newton():
    choice = scan.explain(scan.scan, lambda s, x: (s + x, s), jnp.float32(0), X[:, 0])
    assert choice.method == "sequential"
    assert "scan.newton" in choice.reason
    choice = scan.explain(scan.newton, lambda s, x: jnp.tanh(s + x), jnp.zeros(3), X)
    assert choice.method == "newton"
    assert re.search(r"dense.*sequential.*cpu", choice.reason)
    choice = scan.explain(scan.newton, lambda s, x: jnp.tanh(s + x), jnp.zeros(3), X, method="chunked")
    assert "chunked: it was asked for" in choice.reason


def test_nothing_runs():
    def combine(before, after):
        raise AssertionError("combine was called")

    with loops.compilations() as compiled:
        assert scan.explain(scan.associative, combine, X).method == "sequential"
    assert compiled == []


@pytest.mark.parametrize(
    ("function", "args", "options", "match"),
    [
        (jnp.cumsum, (X,), {}, r"scan.explain: function is .*; expected scan.scan, scan.affine, scan.associative or"),
        (None, (), {}, r"scan.explain: function is None; expected "),
        (scan.affine, (X, X), {"method": "fast"}, r"scan.affine: method is fast; expected "),
        (scan.affine, (X[:5], X), {}, r"scan.affine: decay is of 5 steps of time; expected the 100 steps of increment"),
        (scan.associative, (jnp.add, {"a": X, "b": X[:5]}), {}, r"scan.associative: elements, leaf 'b', is of 5 steps"),
    ],
)
def test_errors_are_one_line(function, args, options, match):
    with pytest.raises(ValueError, match=f"^{match}") as raised:
        scan.explain(function, *args, **options)
    assert re.fullmatch(r"scan\.\w+: .+ is .+; expected [^\n]+\.", str(raised.value))


def test_an_argument_that_the_function_does_not_have():
    with pytest.raises(TypeError, match="bogus"):
        scan.explain(scan.affine, X, X, bogus=3)
