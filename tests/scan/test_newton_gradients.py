"""Derivatives of scan.newton: those of the recurrence, whatever the Jacobian, the method and the way there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxprob import scan
from tests.scan._cells import CELLS, INPUTS, exactly, run_exactly

STEPS, SIZE = 60, 8


def weigh(states, final):
    """A number in which every state counts, each with its own weight; nothing in it is linear."""
    total = 0.0
    for i, leaf in enumerate([*jax.tree.leaves(states), *jax.tree.leaves(final)]):
        xp = np if isinstance(leaf, np.ndarray) else jnp
        weights = np.cos(1.0 + i + np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)
        total = total + xp.sum(weights * leaf + 0.5 * leaf * leaf)
    return total


def sequential(step, init, xs, reverse=False, reset=None):
    """The oracle: a plain loop, all of whose derivatives are JAX's own."""
    reset = jnp.zeros(jax.tree.leaves(xs)[0].shape[0], bool) if reset is None else reset

    def body(state, x):
        restart, x = x
        after = step(jax.tree.map(lambda a, b: jnp.where(restart, a, b), init, state), x)
        return after, after

    final, states = jax.lax.scan(body, init, (reset, xs), reverse=reverse)
    return states, final


def newton(step, init, xs, reverse=False, reset=None, **options):
    result = scan.newton(step, init, xs, reverse=reverse, reset=reset, **options)
    return result.states, result.final


@functools.cache
def gradient(name, solve, reverse=False, **options):
    """Compiled gradient by parameters, initial state and inputs; the step closes over the parameters."""

    @jax.jit
    def run(params, init, xs, reset):
        def loss(params, init, xs):
            step = functools.partial(CELLS[name].step, params)
            return weigh(*solve(step, init, xs, reverse=reverse, reset=reset, **options))

        return jax.grad(loss, (0, 1, 2))(params, init, xs)

    return run


def problem(name, seed=0, steps=STEPS, size=SIZE, gain=0.7):
    rng = np.random.default_rng(seed)
    params = CELLS[name].init_params(rng, size, gain)
    init = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), CELLS[name].init_state(size))
    xs = rng.normal(size=(steps, INPUTS)).astype(np.float32)
    return params, jax.tree.map(lambda x: x.astype(np.float32), init), xs


def relative(got, want):
    """The largest error of a leaf, relative to its largest entry."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(exactly(got)), jax.tree.leaves(exactly(want)), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        worst = max(worst, np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return worst


# --- equal to back-propagation through time


@pytest.mark.parametrize(
    ("name", "jacobian", "method", "reverse"),
    [
        ("elman", "dense", "sequential", False),
        ("gru", "dense", "chunked", True),
        ("lstm", "dense", "sequential", True),
        ("lstm", "dense", "chunked", False),
        ("diagonal_gru", "diagonal", "chunked", False),
        ("diagonal_gru", "diagonal", "associative", True),
        ("diagonal_lstm", "block", "sequential", False),
        ("diagonal_lstm", "block", "chunked", True),
        # Estimated Jacobians, which are not those of the gradient.
        ("elman", "diagonal", "sequential", True),
        ("elman", "diagonal", "chunked", False),
        ("lstm", "block", "chunked", True),
        ("lstm", "diagonal", "sequential", False),
    ],
)
def test_gradients_are_those_of_the_loop(name, jacobian, method, reverse):
    """By parameters closed over, initial state and inputs, with and without resets, to 1e-5 of the largest."""
    params, init, xs = problem(name)
    places = np.random.default_rng(1).choice(STEPS, 5, replace=False)
    for reset in (np.zeros(STEPS, bool), np.isin(np.arange(STEPS), places)):
        got = gradient(name, newton, reverse, jacobian=jacobian, method=method)(params, init, xs, reset)
        want = gradient(name, sequential, reverse)(params, init, xs, reset)
        assert relative(got, want) < 1e-5


@pytest.mark.parametrize("method", ["sequential", "chunked"])
@pytest.mark.parametrize("probes", [1, 2, 4])
def test_a_jacobian_without_a_diagonal(method, probes):
    """Units in a ring, each seeing the one before it: all of a derivative is off the diagonal.

    A derivative by any diagonal Jacobian would stay at the unit where the loss is; the true one goes round the ring.
    """
    steps = 12
    xs = 0.1 * np.random.default_rng(0).normal(size=(steps, 4)).astype(np.float32)

    def step(h, x):
        return jnp.tanh(0.8 * jnp.roll(h, 1) + x)

    def loss(xs):
        return scan.newton(step, jnp.zeros(4), xs, jacobian="diagonal", probes=probes, method=method).states[-1, 0]

    got = jax.jit(jax.grad(loss))(xs)
    states = run_exactly(lambda h, x: np.tanh(0.8 * np.roll(h, 1) + x), np.zeros(4), xs)
    slope, want = 1.0, np.zeros((steps, 4))
    for back in range(steps):
        t, unit = steps - 1 - back, -back % 4
        slope = slope * (1 - states[t, unit] ** 2)
        want[t, unit] = slope
        slope = slope * 0.8
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert np.count_nonzero(np.abs(want) > 1e-3) == steps


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_an_estimate_that_overflows(method):
    """A nilpotent Jacobian, whose estimated diagonal is 3: products of it overflow, the derivative does not."""
    a = jnp.asarray([[0.0, 3.0], [0.0, 0.0]])
    xs = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)

    def step(h, x):
        return jnp.matmul(a, jnp.tanh(h), precision="highest") + x

    def loss(solve):
        return lambda xs: weigh(*solve(step, jnp.zeros(2), xs))

    mine = functools.partial(newton, jacobian="diagonal", method=method)
    assert relative(jax.jit(jax.grad(loss(mine)))(xs), jax.grad(loss(sequential))(xs)) < 1e-5
    _, got = jax.jit(lambda x: jax.jvp(lambda xs: mine(step, jnp.zeros(2), xs), (x,), (x,)))(xs)
    _, want = jax.jvp(lambda xs: sequential(step, jnp.zeros(2), xs), (xs,), (xs,))
    assert relative(got, want) < 1e-5


def test_after_the_fallback():
    """A chaotic network: the derivative is along the states of the loop, and as large."""
    for jacobian in ("dense", "diagonal"):
        params, init, xs = problem("elman", steps=30, size=16, gain=4.0)
        options = dict(jacobian=jacobian, method="chunked", max_iterations=2)
        result = scan.newton(CELLS["elman"].bind(params), init, xs, **options)
        assert not result.converged
        if jacobian == "dense":
            assert result.unstable
        reset = np.zeros(30, bool)
        got = gradient("elman", newton, **options)(params, init, xs, reset)
        want = gradient("elman", sequential)(params, init, xs, reset)
        assert np.max(np.abs(want[1])) > 10
        assert relative(got, want) < 1e-4


def test_trees_and_tokens():
    """Inputs with integers among them, an embedding closed over, a state of leaves of several shapes."""
    rng = np.random.default_rng(0)
    xs = {"token": rng.integers(0, 5, 20), "u": rng.normal(size=20).astype(np.float32)}
    table = rng.normal(size=(5, 3)).astype(np.float32)

    def loss(solve, table, init, u):
        def step(state, x):
            a = jnp.tanh(0.5 * state["a"] * state["b"] + table[x["token"]])
            return {"a": a, "b": jnp.cos(x["u"] + 0.3 * jnp.sum(state["a"]))}

        return weigh(*solve(step, init, {"token": jnp.asarray(xs["token"]), "u": u}))

    init = {"a": np.ones(3, np.float32), "b": np.float32(0.5)}
    got, want = (
        jax.jit(jax.grad(functools.partial(loss, solve), (0, 1, 2)))(table, init, xs["u"])
        for solve in (newton, sequential)
    )
    assert relative(got, want) < 1e-5


def test_without_steps():
    """The final state is the initial one."""
    for jacobian in ("dense", "diagonal"):
        init = jnp.arange(3.0)

        def loss(init, xs, jacobian=jacobian):
            result = scan.newton(lambda h, x: jnp.tanh(h + x), init, xs, jacobian=jacobian)
            return jnp.sum(result.states) + jnp.sum(result.final**2)

        by_init, by_xs = jax.grad(loss, (0, 1))(init, jnp.zeros((0, 3)))
        np.testing.assert_array_equal(by_init, 2 * init)
        assert by_xs.shape == (0, 3)


def test_what_has_no_derivative():
    """The guess, the damping, the tolerance, and what is reported of the solution."""
    xs = jnp.ones((10, 2)) * 0.3

    def solve(guess, damping, tolerance, xs=xs):
        return scan.newton(
            lambda h, x: jnp.tanh(0.5 * h + x), jnp.zeros(2), xs, guess=guess, damping=damping, tolerance=tolerance
        )

    given = (jnp.ones((10, 2)), jnp.float32(0.1), jnp.float32(1e-5))
    for slope in jax.jit(jax.grad(lambda *x: jnp.sum(solve(*x).states), (0, 1, 2)))(*given):
        np.testing.assert_array_equal(slope, jnp.zeros_like(slope))

    def reported(xs):
        result = solve(*given, xs=xs)
        return result.residual + result.lyapunov_exponent

    np.testing.assert_array_equal(jax.jit(jax.grad(reported))(xs), jnp.zeros_like(xs))


# --- other derivatives


@pytest.mark.parametrize(("name", "jacobian"), [("gru", "dense"), ("gru", "diagonal"), ("diagonal_lstm", "block")])
def test_forward_derivatives(name, jacobian):
    params, init, xs = problem(name)
    rng = np.random.default_rng(5)
    along = jax.tree.map(lambda x: rng.normal(size=np.shape(x)).astype(np.float32), (params, init, xs))
    reset = np.arange(STEPS) % 17 == 5

    def pushed(solve, **options):
        def states(params, init, xs):
            return solve(functools.partial(CELLS[name].step, params), init, xs, reset=jnp.asarray(reset), **options)

        return jax.jit(lambda *x: jax.jvp(states, x, along)[1])(params, init, xs)

    assert relative(pushed(newton, jacobian=jacobian, method="chunked"), pushed(sequential)) < 1e-5


@pytest.mark.parametrize(
    ("name", "jacobian"), [("elman", "dense"), ("elman", "diagonal"), ("diagonal_gru", "diagonal")]
)
def test_hessian(name, jacobian):
    params, init, xs = problem(name, steps=9, size=2)

    def curvature(solve, **options):
        def loss(init, w, b):
            step = functools.partial(CELLS[name].step, {**params, last_w: w, last_b: b})
            return weigh(*solve(step, init, xs, **options))

        last_w, last_b = list(params)[-3], list(params)[-1]
        return jax.jit(jax.hessian(loss, (0, 1, 2)))(init, params[last_w], params[last_b])

    assert relative(curvature(newton, jacobian=jacobian), curvature(sequential)) < 1e-4


@pytest.mark.parametrize(("name", "jacobian"), [("elman", "dense"), ("elman", "diagonal"), ("diagonal_lstm", "block")])
def test_finite_differences(name, jacobian, x64):
    """Central differences of the float64 loop in NumPy along random directions, of parameters, state and inputs."""
    given = exactly(problem(name))
    params, init, xs = given
    reset = np.arange(STEPS) == 31
    slopes = gradient(name, newton, jacobian=jacobian, method="chunked")(params, init, xs, reset)
    assert {str(x.dtype) for x in jax.tree.leaves(slopes)} == {"float64"}
    rng, h = np.random.default_rng(2), 1e-5

    def loss(given):
        params, init, xs = given
        states = run_exactly(functools.partial(CELLS[name].step, params), init, xs, reset=reset)
        return weigh(states, jax.tree.map(lambda x: x[-1], states))

    for _ in range(3):
        along = jax.tree.map(lambda x: rng.normal(size=x.shape), given)
        ahead, behind = (jax.tree.map(lambda x, d, s=s: x + s * h * d, given, along) for s in (1, -1))
        want = (loss(ahead) - loss(behind)) / (2 * h)
        got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), exactly(slopes), along)))
        assert abs(got - want) < 1e-7 * max(1.0, abs(want))
    exact = gradient(name, sequential)(params, init, xs, reset)
    assert relative(slopes, exact) < 1e-12


def test_second_derivatives_by_finite_differences(x64):
    params, init, xs = exactly(problem("diagonal_gru", steps=7, size=2))

    @jax.jit
    def loss(w, xs):
        step = functools.partial(CELLS["diagonal_gru"].step, {**params, "wn": w})
        return weigh(*newton(step, init, xs, jacobian="diagonal"))

    check_grads(loss, (params["wn"], xs), order=2, modes=("rev",), atol=1e-5, rtol=1e-5)


def test_states_of_16_bits():
    """Derivatives come in the dtype of what they are by, and are those of the loop to a few per cent."""
    params, init, xs = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), problem("diagonal_gru"))
    reset = np.zeros(STEPS, bool)
    got = gradient("diagonal_gru", newton, jacobian="diagonal")(params, init, xs, reset)
    assert {str(x.dtype) for x in jax.tree.leaves(got)} == {"bfloat16"}
    wide = jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), (params, init, xs))
    want = gradient("diagonal_gru", sequential)(*wide, reset)
    assert relative(jax.tree.map(lambda x: x.astype(jnp.float32), got), want) < 0.1


# --- transformations and cost


@pytest.mark.parametrize(("name", "jacobian"), [("gru", "dense"), ("elman", "diagonal")])
def test_vmap_is_a_loop(name, jacobian):
    params, _, _ = problem(name)
    many = [problem(name, seed)[1:] for seed in range(3)]
    init, xs = jax.tree.map(lambda *x: np.stack(x), *many)
    reset = np.arange(STEPS) == 20
    one = gradient(name, newton, jacobian=jacobian, method="chunked")
    got = jax.jit(jax.vmap(one, (None, 0, 0, None)))(params, init, xs, reset)
    want = [one(params, *single, reset) for single in many]
    assert relative(got, jax.tree.map(lambda *x: np.stack(x), *want)) < 5e-6


def test_jit_is_eager():
    params, init, xs = problem("elman")

    def loss(params):
        return weigh(*newton(functools.partial(CELLS["elman"].step, params), init, xs, jacobian="diagonal"))

    params = jax.tree.map(jnp.asarray, params)
    assert relative(jax.grad(loss)(params), jax.jit(jax.grad(loss))(params)) < 2e-6


def test_inside_a_training_loop():
    """A scan over gradient steps, each warm-started from the trajectory before: loss goes down as with the loop."""
    params, init, xs = problem("diagonal_gru")
    goal = jnp.asarray(0.5 * np.sin(np.arange(STEPS))[:, None] * np.ones((1, SIZE)), jnp.float32)

    def train(solve, warm):
        def loss(params, guess):
            step = functools.partial(CELLS["diagonal_gru"].step, params)
            states = solve(step, init, xs, guess) if warm else solve(step, init, xs)[0]
            return jnp.mean((states - goal) ** 2), states

        def update(carry, _):
            params, guess = carry
            (value, states), slope = jax.value_and_grad(loss, has_aux=True)(params, guess)
            return (jax.tree.map(lambda p, g: p - 2.0 * g, params, slope), states), value

        start = (jax.tree.map(jnp.asarray, params), jnp.zeros((STEPS, SIZE)))
        return jax.jit(lambda: jax.lax.scan(update, start, length=15)[1])()

    def warm(step, init, xs, guess):
        return scan.newton(step, init, xs, guess=guess, jacobian="diagonal").states

    got, want = train(warm, True), train(sequential, False)
    assert want[-1] < 0.8 * want[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_memory_does_not_depend_on_iterations():
    """Of the compiled gradient, in bytes; a derivative through the iterations would keep each of them."""
    params, init, xs = problem("gru", steps=512)

    def size(solve, **options):
        def loss(params):
            return weigh(*solve(functools.partial(CELLS["gru"].step, params), init, xs, **options))

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    few, many = (size(newton, max_iterations=limit, method="sequential") for limit in (5, 100))
    assert few == many
    jacobians = 512 * SIZE * SIZE * 4
    # The Jacobians once or twice, and no more than a few trajectories beside them and the loop's own memory.
    assert few < size(sequential) + 4 * jacobians
