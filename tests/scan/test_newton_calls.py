"""scan.newton: states and inputs of any kind, transformations, and errors."""

import doctest
import functools
import importlib
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxprob import scan
from tests.scan._cells import CELLS, exactly, residual_exactly, run_exactly
from tests.scan._problems import difference, oracle, problem, solver

# --- states and inputs of any kind


def test_pytrees():
    """A dict of arrays of several shapes, a scalar among them, inputs in a dict, integers among them."""
    table = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)

    def step(state, x):
        xp = np if isinstance(x["token"], np.generic) else jnp
        rows = (exactly(table) if xp is np else jnp.asarray(table))[xp.int32(x["token"])]
        return {
            "a": xp.tanh(0.5 * state["a"] + rows * state["b"]),
            "b": xp.cos(x["u"]) + 0.2 * state["b"] * xp.sum(state["a"]),
        }

    rng = np.random.default_rng(1)
    xs = {"u": rng.normal(size=40).astype(np.float32), "token": rng.integers(0, 5, size=40).astype(np.int32)}
    init = {"a": np.zeros((2, 3), np.float32), "b": np.float32(0.3)}
    got = scan.newton(step, init, xs)
    assert got.converged
    want = run_exactly(step, init, xs)
    assert difference(got.states, want) < 1e-5
    assert jax.tree.map(np.shape, got.final) == jax.tree.map(np.shape, init)
    assert jax.tree.map(lambda x: x.dtype, got.states) == jax.tree.map(lambda x: x.dtype, init)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal", "block"])
def test_scalar_states_without_inputs(jacobian):
    got = scan.newton(lambda x, _: jnp.cos(x), 0.5, length=60, jacobian=jacobian)
    want = run_exactly(lambda x, _: np.cos(x), np.float64(0.5), None, steps=60)
    assert got.converged
    assert got.states.shape == (60,)
    assert got.final.shape == ()
    assert difference(got.states, want) < 1e-6
    assert abs(got.final - 0.7390851) < 1e-6  # the fixed point of the cosine
    # From its derivative there, -sin(0.7390851).
    assert abs(got.lyapunov_exponent - math.log(0.6736120)) < 0.02


def test_block_states_keep_their_shape():
    """Leaves (2, 4): each place is a unit."""

    def step(state, x):
        xp = np if isinstance(x, np.ndarray) else jnp
        a, b = state["a"], state["b"]
        return {"a": xp.tanh(0.5 * a - 0.8 * b + x), "b": xp.tanh(0.6 * a + 0.3 * b)}

    init = {"a": np.zeros((2, 4), np.float32), "b": np.ones((2, 4), np.float32)}
    xs = np.random.default_rng(0).normal(size=(50, 2, 4)).astype(np.float32)
    got = scan.newton(step, init, xs, jacobian="block")
    assert got.converged
    assert got.iterations <= 8
    assert difference(got.states, run_exactly(step, init, xs)) < 2e-6


def in_float32(tree):
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_states_of_16_bits(dtype):
    """As near to the exact states as the sequential scan in that precision is, up to a few roundings of a state."""
    eps = float(jnp.finfo(dtype).eps)
    for name in ("diagonal_gru", "diagonal_lstm") if dtype == "bfloat16" else ("diagonal_lstm",):

        @jax.jit
        def both(params, init, xs, cell=CELLS[name]):
            def step(state, x):
                return cell.step(params, state, x)

            def body(state, x):
                after = step(state, x)
                return after, after

            return scan.newton(step, init, xs, jacobian=cell.jacobian), jax.lax.scan(body, init, xs)[1]

        for seed in range(3):
            params, init, xs = jax.tree.map(lambda x: jnp.asarray(x, dtype), problem(name, seed, 200))
            got, sequential = both(params, init, xs)
            assert got.converged
            assert {str(leaf.dtype) for leaf in jax.tree.leaves((got.states, got.final))} == {dtype}
            assert got.residual.dtype == jnp.float32
            low = in_float32((params, init, xs))
            want = run_exactly(oracle(name, low[0]), low[1], low[2])
            error, rounding = difference(in_float32(got.states), want), difference(in_float32(sequential), want)
            assert error < 2 * rounding + 8 * eps, (name, seed, error, rounding)


def test_float64(x64):
    for name in ("elman", "diagonal_lstm"):
        params, init, xs = problem(name, 0, 100)
        params, init, xs = exactly((params, init, xs))
        got = solver(name, method="chunked")(params, init, xs)
        assert got.converged
        assert {str(x.dtype) for x in jax.tree.leaves((got.states, got.residual, got.lyapunov_exponent))} == {"float64"}
        assert (got.iterations.dtype, got.first_nonfinite.dtype) == (jnp.int32, jnp.int32)
        assert difference(got.states, run_exactly(oracle(name, params), init, xs)) < 1e-14
        assert got.residual < 1e-14


# --- transformations


def test_vmap_is_a_loop():
    """Elements that take different numbers of iterations, one of them chaotic and one not a number."""
    params = [problem("elman", seed, 60, 16, gain, 0.1) for seed, gain in ((0, 0.5), (1, 1.0), (2, 8.0), (3, 0.5))]
    params[3][2][20] = np.nan
    batch = jax.tree.map(lambda *x: np.stack(x), *params)
    solve = solver("elman", method="chunked")
    many = jax.jit(jax.vmap(solve))(*batch)
    assert np.asarray(many.converged).tolist() == [True, True, False, False]
    for i, one in enumerate(params):
        single = solve(*one)
        assert many.converged[i] == single.converged
        assert many.iterations[i] == single.iterations
        assert many.first_nonfinite[i] == single.first_nonfinite
        if i != 2:
            np.testing.assert_allclose(many.states[i], single.states, rtol=0, atol=2e-6)
            np.testing.assert_allclose(many.lyapunov_exponent[i], single.lyapunov_exponent, atol=1e-4)
        else:
            assert residual_exactly(oracle("elman", one[0]), many.states[i], one[1], one[2]) < 4e-6


def test_sequences_over_devices():
    """Inside `shard_map`, a sequence on each device, with other numbers of iterations; no device waits for another."""
    params, init, _ = problem("elman", 0, 1)
    xs = np.stack([problem("elman", seed, 40, inputs=10.0**-seed)[2] for seed in range(8)])
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.vmap(functools.partial(solver("elman"), params, init))
    spread = jax.shard_map(each, mesh=mesh, in_specs=P("sequence"), out_specs=P("sequence"), check_vma=False)
    got, want = jax.jit(spread)(xs), jax.jit(each)(xs)
    assert len(set(np.asarray(want.iterations).tolist())) > 1
    np.testing.assert_array_equal(got.iterations, want.iterations)
    np.testing.assert_array_equal(got.converged, want.converged)
    assert difference(got.states, want.states) < 2e-6


def test_jit_is_eager():
    params, init, xs = problem("gru", 0, 50)
    eager = scan.newton(CELLS["gru"].bind(params), init, xs)
    jitted = solver("gru")(params, init, xs)
    assert difference(eager.states, jitted.states) < 2e-6
    assert eager.iterations == jitted.iterations
    assert eager.converged
    assert isinstance(eager, scan.NewtonResult)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_the_step_is_traced_once(jacobian):
    """Once for a function and shapes, its derivatives included; nothing in the values of arguments traces again."""
    traces = 0

    def step(state, x):
        nonlocal traces
        traces += 1
        return jnp.tanh(0.5 * state + x)

    def total(xs, **options):
        return jnp.sum(scan.newton(step, jnp.zeros(2), xs, jacobian=jacobian, **options).states)

    xs = jnp.ones((30, 2))
    total(xs)
    assert traces == 1
    total(2 * xs)
    jax.grad(total)(xs)
    total(xs, max_iterations=3, damping=0.5)
    total(xs, max_iterations=4, damping=0.25)
    assert traces <= 2
    jax.jit(jax.grad(total))(xs)
    jax.vmap(total)(xs[None])
    assert traces <= 3
    seen = traces
    total(xs)
    jax.grad(total)(xs)
    assert traces == seen


def test_the_step_may_be_let_go():
    """What is kept of a step does not keep it alive, and its result outlives it."""

    def make():
        weight = jnp.asarray(0.5)
        return scan.newton(lambda state, x: jnp.tanh(weight * state + x), jnp.zeros(2), jnp.ones((5, 2)))

    assert make().converged
    assert make().converged


def test_keys_and_integers_closed_over():
    table = jnp.asarray([[0.1, 0.2], [0.3, 0.4]])
    which = jnp.asarray([1, 0])

    def total(scale):
        def step(state, x):
            return jnp.tanh(scale * state[which] + table[x])

        return jnp.sum(scan.newton(step, jnp.zeros(2), jnp.asarray([0, 1, 1, 0])).states)

    value, slope = jax.jit(jax.value_and_grad(total))(0.5)
    step = 1e-2
    assert abs(slope - (total(0.5 + step) - total(0.5 - step)) / (2 * step)) < 1e-3
    assert np.isfinite(value)


# --- errors

MESSAGE = re.compile(r"scan\.newton: .+ is [^\n]+; expected [^\n]+")
ONES = np.ones((4, 2), np.float32)
ZEROS = np.zeros(2, np.float32)


def never(state, x):
    raise AssertionError("the step was run")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(init=np.zeros(2, np.int32)), TypeError, ["init", "int32", "floating"]),
        (dict(init={"a": ZEROS, "n": np.int32(0)}), TypeError, ["'n'", "int32"]),
        (dict(init={}), ValueError, ["init", "without arrays"]),
        (
            dict(init={"c": ZEROS, "h": np.zeros(3, np.float32)}, jacobian="block"),
            ValueError,
            ["one shape", "(2,)", "(3,)"],
        ),
        (dict(jacobian="full"), ValueError, ["jacobian", "full", "'dense', 'diagonal', 'block'"]),
        (dict(probes=0), ValueError, ["probes", "0"]),
        (dict(probes=True), ValueError, ["probes", "True"]),
        (dict(probes=1.5), ValueError, ["probes", "1.5"]),
        (dict(damping=-0.1), ValueError, ["damping", "-0.1", "0 to 1"]),
        (dict(damping=1.1), ValueError, ["damping", "1.1"]),
        (dict(damping="much"), ValueError, ["damping", "much"]),
        (dict(damping=np.zeros(2)), ValueError, ["damping", "(2,)"]),
        (dict(damping=math.nan), ValueError, ["damping", "nan"]),
        (dict(tolerance=0.0), ValueError, ["tolerance", "positive"]),
        (dict(tolerance=-1e-3), ValueError, ["tolerance", "-0.001"]),
        (dict(tolerance=math.nan), ValueError, ["tolerance", "nan"]),
        (dict(max_iterations=-1), ValueError, ["max_iterations", "-1"]),
        (dict(max_iterations=2.5), ValueError, ["max_iterations", "2.5"]),
        (dict(guess=np.zeros((3, 2), np.float32)), ValueError, ["guess", "(3, 2)", "(4, 2)"]),
        (dict(guess=np.zeros((4, 3), np.float32)), ValueError, ["guess", "(4, 3)"]),
        (dict(guess={"a": ONES}), ValueError, ["guess"]),
        (dict(xs={"a": ONES, "b": ONES[:3]}), ValueError, ["'b'", "3 steps", "4 steps"]),
        (dict(xs=np.float32(1)), ValueError, ["xs", "scalar"]),
        (dict(xs=None), ValueError, ["xs", "length"]),
        (dict(xs=None, length=-1), ValueError, ["length", "-1"]),
        (dict(length=5), ValueError, ["4 steps", "5 steps"]),
        (dict(reset=np.zeros(3, bool)), ValueError, ["reset", "(3,)", "(4,)"]),
        (dict(reset=np.zeros(4, np.float32)), TypeError, ["reset", "float32", "boolean"]),
        (dict(method="fast"), ValueError, ["method", "fast"]),
        (dict(chunk=0), ValueError, ["chunk", "0"]),
    ],
)
def test_errors(options, error, says):
    given = dict(init=ZEROS, xs=ONES) | options
    with pytest.raises(error, match=MESSAGE) as caught:
        scan.newton(never, **given)
    text = str(caught.value)
    assert "\n" not in text
    for part in says:
        assert part in text, text


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda s, x: {"a": s["a"], "b": s["b"][:1]}, ["'b'", "(1,)", "(2,)"]),
        (lambda s, x: {"a": s["a"].astype(jnp.bfloat16), "b": s["b"]}, ["'a'", "bfloat16", "float32"]),
        (lambda s, x: {"a": s["a"]}, ["state after a step"]),
        (lambda s, x: (s["a"], s["b"]), ["state after a step"]),
    ],
)
def test_steps_that_change_the_state(step, says):
    init = {"a": ZEROS, "b": ZEROS}
    with pytest.raises((ValueError, TypeError), match=MESSAGE) as caught:
        scan.newton(step, init, ONES)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value), str(caught.value)


def test_documentation():
    """The examples in the documentation, and every option of the signature described."""
    for module in ("_newton", "_jacobians", "_growth"):
        result = doctest.testmod(
            importlib.import_module(f"jaxprob.scan.{module}"), extraglobs={"jnp": jnp, "newton": scan.newton}
        )
        assert result.failed == 0
    for argument in inspect.signature(scan.newton).parameters:
        assert f"{argument}:" in scan.newton.__doc__
