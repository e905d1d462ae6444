"""scan.newton: the right trajectory in few iterations, or a plain statement that it was not found."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from tests.scan._cells import CELLS, exactly, residual_exactly, run_exactly
from tests.scan._problems import EPS, SOLVED, difference, each_cell, each_method, oracle, problem, solver

# --- stable cells


@each_cell
def test_few_iterations_whatever_the_length(name):
    """At most 8 iterations at 128, 1,024 and 8,192 steps, and the states of the float64 loop to 1e-5."""
    counts = []
    for steps in (128, 1024, 8192):
        # The tree takes longest to compile: one dense and one diagonal cell.
        tree = ["associative"] if name in ("gru", "diagonal_gru") else []
        methods = {128: ["sequential", *tree], 1024: ["chunked"], 8192: ["sequential"]}[steps]
        for seed in (0, 2) if steps < 8192 else (0,):
            params, init, xs = problem(name, seed, steps)
            want = run_exactly(oracle(name, params), init, xs)
            for method in methods:
                got = solver(name, method=method)(params, init, xs)
                case = f"{name} {steps} {seed} {method}: {got._replace(states=None, final=None)}"
                assert got.converged, case
                assert not got.unstable, case
                assert got.lyapunov_exponent < -0.1, case  # or it is not the stable cell that was meant
                assert got.iterations <= 8, case
                assert got.first_nonfinite == -1, case
                assert difference(got.states, want) < 1e-5, case
                assert difference(got.final, jax.tree.map(lambda x: x[-1], got.states)) == 0, case
                counts.append(int(got.iterations))
    assert max(counts) - min(counts) <= 2, counts


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("name", "method"),
    [("gru", "sequential"), ("elman", "chunked"), ("diagonal_gru", "chunked"), ("diagonal_lstm", "sequential")],
)
def test_resets_and_reverse(name, method, reverse):
    """Resets at random places, at the first step, the last and next to each other, in both directions."""
    params, _, xs = problem(name, 0, 67)
    rng = np.random.default_rng(1)
    init = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), CELLS[name].init_state(8))
    for places in ([], [0], [66], [1, 2, 3, 40], list(range(67)), rng.choice(67, 9, replace=False)):
        reset = np.isin(np.arange(67), places)
        got = solver(name, method=method, reverse=reverse)(params, init, xs, reset=reset)
        want = run_exactly(oracle(name, params), init, xs, reverse=reverse, reset=reset)
        assert got.converged
        assert got.iterations <= 8
        assert difference(got.states, want) < 2e-6
        assert difference(got.final, jax.tree.map(lambda x: x[0 if reverse else -1], want)) < 2e-6


def test_without_steps_and_with_one():
    for name in ("diagonal_gru", "diagonal_lstm"):
        params, init, xs = problem(name, 0, 1)
        init = jax.tree.map(lambda x: x + np.float32(0.25), init)
        nothing = solver(name)(params, init, xs[:0])
        assert jax.tree.map(np.shape, nothing.states) == jax.tree.map(lambda x: (0, *x.shape), init)
        assert difference(nothing.final, init) == 0
        assert nothing.converged
        assert not nothing.unstable
        assert (nothing.iterations, nothing.residual, nothing.first_nonfinite) == (0, 0, -1)
        for method in ("sequential", "chunked", "associative") if name == "diagonal_gru" else ("sequential",):
            one = solver(name, method=method)(params, init, xs)
            assert one.converged
            assert difference(one.states, run_exactly(oracle(name, params), init, xs)) < 1e-6


def elman(method="sequential", fallback=True):
    """The solver of the next tests, one program for all of them: every option is always an argument."""
    solve = solver("elman", method=method, fallback=fallback)

    def run(params, init, xs, guess=None, damping=0.0, max_iterations=50):
        guess = np.broadcast_to(init, (len(xs), *init.shape)) if guess is None else guess
        return solve(params, init, xs, guess=guess, damping=damping, max_iterations=max_iterations)

    return run


@each_method
def test_guesses(method):
    """The true trajectory needs no iteration; that of parameters nearby fewer than none at all; any one will do."""
    params, init, xs = problem("elman", 3, 200, gain=1.0)
    solve = elman(method)
    cold = solve(params, init, xs)
    assert cold.iterations >= 5
    true = run_exactly(oracle("elman", params), init, xs).astype(np.float32)
    known = solve(params, init, xs, guess=true)
    assert known.converged
    assert known.iterations == 0
    assert difference(known.states, true) == 0
    nearby = jax.tree.map(lambda x: (x * 1.01).astype(np.float32), params)
    warm = solve(nearby, init, xs, guess=cold.states)
    assert warm.converged
    assert 0 < warm.iterations < solve(nearby, init, xs).iterations
    for guess in (np.full_like(true, 1e3), np.full_like(true, np.inf), np.full_like(true, np.nan)):
        found = solve(params, init, xs, guess=guess)
        assert difference(found.states, true) < 1e-6
        assert found.converged == bool(np.isfinite(guess).all())


def test_no_iterations():
    """Only the guess is looked at."""
    params, init, xs = problem("elman", 0, 200)
    true = run_exactly(oracle("elman", params), init, xs).astype(np.float32)
    for fallback in (True, False):
        solve = functools.partial(elman(fallback=fallback), params, init, xs, max_iterations=0)
        got = solve(guess=np.full_like(true, 0.5))
        assert not got.converged
        assert got.iterations == 0
        assert difference(got.states, true if fallback else np.full_like(true, 0.5)) < 1e-6
        step = oracle("elman", params)
        assert abs(got.residual - residual_exactly(step, got.states, init, xs)) < 4 * EPS
        assert solve(guess=true).converged


def test_the_limit_of_iterations_is_kept():
    params, init, xs = problem("elman", 3, 200, gain=1.0)
    needed = int(elman(fallback=False)(params, init, xs).iterations)
    for limit in (1, needed - 2, needed, needed + 5):
        got = elman(fallback=False)(params, init, xs, max_iterations=limit)
        assert got.iterations == min(limit, needed)
        exact = residual_exactly(oracle("elman", params), got.states, init, xs)
        assert got.converged == (exact < SOLVED)
        assert got.converged == (limit >= needed)
        assert abs(got.residual - exact) < 4 * EPS * max(1.0, float(np.max(np.abs(got.states))))


def test_damping():
    """At 1 it is the fixed-point iteration, which is right up to step k after k iterations; between, between."""
    params, init, xs = problem("elman", 1, 200)
    want = run_exactly(oracle("elman", params), init, xs)
    counts = []
    for damping in (0.0, 0.3, 1.0):
        got = elman()(params, init, xs, damping=damping, max_iterations=100)
        assert got.converged
        assert difference(got.states, want) < 1e-5
        counts.append(int(got.iterations))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    got = elman(fallback=False)(params, init, xs, damping=1.0, max_iterations=3)
    iterate = np.zeros((200, 8))
    for _ in range(3):
        before = np.concatenate([np.zeros((1, 8)), iterate[:-1]])
        iterate = np.stack([oracle("elman", params)(h, x) for h, x in zip(before, exactly(xs), strict=True)])
    assert difference(got.states, iterate) < 1e-6


def test_tolerance():
    """It decides what counts as solved, and how far Newton goes."""
    params, init, xs = problem("elman", 3, 200, gain=1.0)
    step, iterations = oracle("elman", params), []
    for tolerance in (1e-1, 1e-3, 2e-6):
        got = solver("elman", fallback=False)(params, init, xs, tolerance=tolerance)
        exact = residual_exactly(step, got.states, init, xs)
        assert got.converged
        assert exact <= tolerance + 4 * EPS
        iterations.append(int(got.iterations))
    assert iterations[0] < iterations[-1]
    impossible = solver("elman", fallback=False)(params, init, xs, tolerance=1e-12)
    assert not impossible.converged
    assert residual_exactly(step, impossible.states, init, xs) < 2e-6
    assert not solver("elman", fallback=True)(params, init, xs, tolerance=1e-12).converged


@each_method
def test_estimated_jacobians(method):
    """Quasi-Newton on a dense cell: the same states in more iterations; as many probes as units make it exact."""
    params, init, xs = problem("gru", 0, 128)
    want = run_exactly(oracle("gru", params), init, xs)
    newton = solver("gru", method="sequential")(params, init, xs)
    counts = {}
    for probes in (1, 3, 8) if method == "sequential" else (1,):
        got = solver("gru", "diagonal", method=method, probes=probes)(params, init, xs)
        assert got.converged
        assert difference(got.states, want) < 1e-5
        counts[probes] = int(got.iterations)
    assert counts[1] > newton.iterations
    assert min(counts.values()) == counts[max(counts)]
    if method == "chunked":
        return
    # A dense LSTM taken for one of units by themselves.
    params, init, xs = problem("lstm", 0, 128)
    got = solver("lstm", "block", method=method)(params, init, xs)
    assert got.converged
    assert difference(got.states, run_exactly(oracle("lstm", params), init, xs)) < 1e-5


def test_as_many_probes_as_units_are_the_jacobian():
    """One fixed iteration with the diagonal (the blocks) of the Jacobian, against the same in float64 NumPy."""
    params, init, xs = problem("elman", 0, 40)
    got = solver("elman", "diagonal", probes=8, fallback=False)(params, init, xs, max_iterations=1)
    wh, drive = exactly(params["wh"]), exactly(xs) @ exactly(params["uh"]).T + exactly(params["bh"])
    value = np.tanh(drive)  # the first guess is zero everywhere
    state, states = np.zeros(8), []
    for t in range(40):
        state = (1 - value[t] ** 2) * np.diag(wh) * state + value[t]
        states.append(state)
    assert difference(got.states, np.stack(states)) < 1e-6


# --- chaos, and the promise never to report a false success


def growth(jacobians):
    """Mean logarithmic growth of a product of matrices, first one first, in float64 NumPy."""
    product, total = np.eye(jacobians.shape[-1]), 0.0
    for jacobian in jacobians:
        product = jacobian @ product
        size = np.linalg.norm(product)
        product, total = product / size, total + np.log(size)
    return total / len(jacobians)


def elman_jacobians(params, states):
    return (1 - exactly(states)[:, :, None] ** 2) * exactly(params["wh"])[None]


@each_method
@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_chaos(jacobian, method):
    """tanh networks of gain up to 8: `converged` is never said of what is not, and the fallback is the recurrence."""
    steps, size, chaotic = 300, 32, 0
    for gain in (1.5, 2.0, 3.0, 4.0, 8.0):
        for seed in range(3):
            params, init, xs = problem("elman", seed, steps, size, gain, inputs=0.05)
            step = oracle("elman", params)
            for fallback in (True, False):
                got = solver("elman", jacobian, method=method, fallback=fallback)(params, init, xs)
                exact = residual_exactly(step, got.states, init, xs)
                case = f"gain {gain} seed {seed} fallback {fallback}: {exact} {got._replace(states=None, final=None)}"
                if got.converged:
                    assert exact < SOLVED, case
                if fallback:
                    assert exact < 4e-6, case
                    assert abs(got.residual - exact) < 4e-6, case
                    assert got.first_nonfinite == -1, case
                if fallback and jacobian == "dense":
                    exponent = growth(elman_jacobians(params, got.states))
                    assert abs(got.lyapunov_exponent - exponent) < 10 / steps, case
                    assert got.unstable == (got.lyapunov_exponent > 0), case
                    if gain >= 3:
                        assert exponent > 0.1
                        assert got.unstable, case
                        assert not got.converged, case
                        chaotic += 1
    assert chaotic == (9 if jacobian == "dense" else 0)


@pytest.mark.parametrize("name", ["gru", "diagonal_gru", "diagonal_lstm"])
def test_no_false_success_of_gated_cells(name):
    solved = 0
    for gain in (2.0, 4.0, 8.0):
        for seed in range(4):
            params, init, xs = problem(name, seed, 300, 8, gain)
            for fallback in (True, False):
                got = solver(name, fallback=fallback, method="sequential")(params, init, xs)
                exact = residual_exactly(oracle(name, params), got.states, init, xs)
                size = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(got.states))
                case = f"gain {gain} seed {seed} {got._replace(states=None, final=None)}"
                if got.converged:
                    assert exact < SOLVED * max(1.0, size), case
                    solved += 1
                if fallback:
                    assert exact < 4 * gain * EPS * max(1.0, size), case  # a sum of that size is rounded
    assert solved > 0


def test_the_fallback_is_the_sequential_scan():
    """To the bit, where the exponent is positive: a different rounding would end somewhere else."""
    params, init, xs = problem("elman", 0, 300, 32, 8.0, inputs=0.05)

    @jax.jit
    def sequential(params, init, xs):
        def body(h, x):
            after = CELLS["elman"].step(params, h, x)
            return after, after

        return jax.lax.scan(body, init, xs)[1]

    want = np.asarray(sequential(params, init, xs))
    got = solver("elman", method="sequential")(params, init, xs)
    assert got.unstable
    np.testing.assert_array_equal(got.states, want)
    moved = np.asarray(sequential(params, init + np.float32(1e-6), xs))
    assert np.max(np.abs(moved - want)) > 1  # this is chaos


def test_a_large_number_in_the_state_hides_nothing():
    """A counter up to 1e5 has a rounding of 1e-2; the network beside it is still held to its own."""
    steps = 100

    @jax.jit
    def solve(params, xs):
        def step(state, x):
            return {"count": state["count"] + 1000.0, "h": CELLS["elman"].step(params, state["h"], x)}

        init = {"count": jnp.float32(0), "h": jnp.zeros(16)}
        return scan.newton(step, init, xs, fallback=False)

    converged = 0
    for seed in range(4):
        params, init, xs = problem("elman", seed, steps, 16, 2.0, inputs=0.1)
        got = solve(params, xs)
        if got.converged:
            assert residual_exactly(oracle("elman", params), got.states["h"], init, xs) < SOLVED
            converged += 1
    assert converged > 0


def test_an_overflow_on_the_way_is_not_the_end():
    """Products of Jacobians along the first guess come to 1e38 and beyond, while the cell itself is stable."""
    for seed in (7, 10):
        params, init, xs = problem("elman", seed, 1024, 8, 1.5)
        got = solver("elman", method="sequential")(params, init, xs)
        first = solver("elman", method="sequential", fallback=False)(params, init, xs, max_iterations=1)
        assert np.max(np.abs(first.states)) > 1e30
        assert got.lyapunov_exponent < -0.1
        assert got.converged
        assert difference(got.states, run_exactly(oracle("elman", params), init, xs)) < 2e-5


# --- growth of small differences


@each_method
def test_exponent_of_linear_recurrences(method):
    """x -> A x + u: the logarithm of the spectral radius, up to log(condition) / steps; solved at once."""
    steps = 1001
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turn = np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])

    @jax.jit
    def solve(a, xs):
        step = lambda x, u: jnp.matmul(a, x, precision="highest") + u  # noqa: E731
        return scan.newton(step, jnp.zeros(4), xs, method=method, chunk=37)

    def beside(block):
        return np.block([[block, np.zeros((2, 2))], [np.zeros((2, 2)), 0.3 * np.eye(2)]])

    for core, radius in (
        (np.diag([0.97, -0.8, 0.3, 0.1]), 0.97),
        (np.diag([0.5, -1.01, 0.3, 0.1]), 1.01),
        (beside(0.95 * turn), 0.95),
        (beside(1.02 * turn), 1.02),
    ):
        xs = rng.normal(size=(steps, 4)).astype(np.float32)
        got = solve((basis @ core @ basis.T).astype(np.float32), xs)
        assert got.converged
        assert got.iterations <= 2
        assert abs(got.lyapunov_exponent - math.log(radius)) < 3 / steps
        assert got.unstable == (radius > 1)


@each_method
def test_exponent_of_units_by_themselves(method):
    """Diagonal: the largest mean of log |a|, exactly; block: the block that grows fastest."""
    rng = np.random.default_rng(0)
    decays = rng.uniform(-1.1, 1.1, size=(101, 5)).astype(np.float32)
    got = scan.newton(lambda x, a: a * x + 1.0, jnp.zeros(5), decays, jacobian="diagonal", method=method, chunk=7)
    want = np.max(np.mean(np.log(np.abs(decays.astype(np.float64))), 0))
    assert abs(got.lyapunov_exponent - want) < 1e-6

    radius, angle = np.array([0.9, 1.01, 0.5], np.float32), 0.3

    def step(state, u):
        x, y = state
        return radius * (math.cos(angle) * x - math.sin(angle) * y) + u, radius * (
            math.sin(angle) * x + math.cos(angle) * y
        )

    init = (jnp.zeros(3), jnp.zeros(3))
    got = scan.newton(step, init, jnp.ones((1001, 1)) * jnp.ones((1, 3)), jacobian="block", method=method, chunk=37)
    assert abs(got.lyapunov_exponent - math.log(1.01)) < 3 / 1001
    assert got.unstable


@each_method
def test_exponent_knows_the_order_of_the_steps(method):
    """The spectral radius of C B A is not that of A B C."""
    rng = np.random.default_rng(3)
    matrices = rng.normal(size=(3, 3, 3)).astype(np.float32) * np.float32(0.5)
    forward, backward = (
        math.log(np.max(np.abs(np.linalg.eigvals(np.linalg.multi_dot(exactly(order)))))) / 3
        for order in (matrices[::-1], matrices)
    )
    assert abs(forward - backward) > 0.05
    which = np.arange(999) % 3
    for reverse, want in ((False, forward), (True, backward)):
        got = scan.newton(
            lambda x, i: jnp.matmul(jnp.asarray(matrices)[i], x, precision="highest"),
            jnp.ones(3),
            which,
            method=method,
            chunk=100,
            reverse=reverse,
        )
        assert abs(got.lyapunov_exponent - want) < 0.01


@each_method
def test_exponent_of_chaotic_maps(method, x64):
    """The logistic map at 4 has ln 2 (Ulam and von Neumann); the Hénon map 0.41922 (Sprott 2003).

    Exponents over T steps from 20 random starts scattered by 0.007 (Hénon, T = 3,000; measured in NumPy): four times
    that is allowed.
    """
    steps = 3001

    def logistic(x, _):
        return 4 * x * (1 - x)

    def henon(state, _):
        x, y = state
        return 1 - 1.4 * x**2 + y, 0.3 * x

    for step, init, want, jacobians in (
        (logistic, np.float64(0.3), math.log(2), lambda x: (4 - 8 * x)[:, None, None]),
        (
            henon,
            (np.float64(0.1), np.float64(0.1)),
            0.41922,
            lambda s: np.stack(
                [np.stack([-2.8 * s[0], np.ones(len(s[0]))], -1), np.tile([0.3, 0.0], (len(s[0]), 1))], 1
            ),
        ),
    ):
        true = run_exactly(step, init, None, steps=steps)
        before = jax.tree.map(lambda x, first: np.concatenate([[first], x[:-1]]), true, init)
        known = scan.newton(step, init, length=steps, guess=true, method=method)
        assert known.converged
        assert known.iterations == 0
        assert known.unstable
        assert abs(known.lyapunov_exponent - want) < 0.03
        assert abs(known.lyapunov_exponent - growth(jacobians(before))) < 3 / steps
        start = jax.tree.map(lambda x: np.full(steps, x), init)
        found = scan.newton(step, init, length=steps, guess=start, method=method)
        assert found.unstable
        assert abs(found.lyapunov_exponent - want) < 0.03
        assert residual_exactly(lambda s, _, step=step: step(s, None), found.states, init, np.zeros(steps)) < 1e-14


# --- what is not a number


@each_method
def test_the_first_state_that_is_not_finite(method):
    """At one or more steps an input is NaN or inf; what comes before is right, and what comes after a reset."""
    decay, steps = np.asarray([0.5, -0.9, 0.1], np.float32), 64

    @functools.partial(jax.jit, static_argnames=("reverse", "fallback"))
    def solve(xs, reset, reverse=False, fallback=True):
        return scan.newton(
            lambda state, u: jnp.asarray(decay) * state + u,
            jnp.ones(3),
            xs,
            jacobian="diagonal",
            reset=reset,
            reverse=reverse,
            fallback=fallback,
            method=method,
        )

    def exact(state, u):
        return exactly(decay) * state + u

    good = np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)
    at_30 = np.arange(steps) == 30
    for bad in (np.nan, np.inf, -np.inf):
        for places in ([], [0], [63], [20], [20, 41], [62, 1]):
            xs = good.copy()
            xs[places, 1] = bad
            for reverse in (False, True):
                for reset in (at_30, at_30 & False):
                    got = solve(xs, reset, reverse=reverse)
                    first = (max(places) if reverse else min(places)) if places else -1
                    assert got.first_nonfinite == first
                    assert got.converged == (not places)
                    assert np.isfinite(got.residual) == (not places)
                    want = run_exactly(exact, np.ones(3), good, reverse=reverse, reset=reset)
                    keep = slice(first + 1, None) if reverse or not places else slice(0, first)
                    assert difference(got.states[keep], want[keep]) < 1e-6
                    if places == [20] and not reverse and reset[30]:
                        assert difference(got.states[30:], want[30:]) < 1e-6
                        assert difference(got.final, want[-1]) < 1e-6
    xs[20, 1] = np.nan
    hopeless = solve(xs, at_30, fallback=False)
    assert not hopeless.converged
    assert not np.isfinite(hopeless.residual)


def test_parameters_and_states_that_are_not_numbers():
    params, init, xs = problem("gru", 0, 50)
    broken = dict(params, wn=np.where(np.arange(64).reshape(8, 8) == 9, np.nan, params["wn"]).astype(np.float32))
    for given, start in ((broken, init), (params, np.full_like(init, np.nan))):
        for reverse, first in ((False, 0), (True, 49)):
            got = solver("gru", method="sequential", reverse=reverse)(given, start, xs)
            assert not got.converged
            assert not np.isfinite(got.residual)
            assert got.first_nonfinite == first
            assert got.iterations == 0


def test_a_nan_in_a_wide_state_is_seen():
    """XLA's maximum on a CPU loses a NaN among many numbers."""
    xs = np.zeros((512, 64), np.float32)
    xs[300] = np.nan
    got = scan.newton(lambda h, x: jnp.tanh(0.5 * h + x), jnp.zeros(64), xs, jacobian="diagonal")
    assert not got.converged
    assert got.first_nonfinite == 300


def test_a_recurrence_that_grows_beyond_all_numbers():
    got = scan.newton(lambda x, _: x * x + 2.0, jnp.zeros(1), length=50, jacobian="diagonal")
    assert not got.converged
    assert got.first_nonfinite == 7  # 2, 6, 38, 1446, 2.1e6, 4.4e12, 1.9e25, then beyond 3.4e38
    np.testing.assert_allclose(got.states[:4, 0], [2, 6, 38, 1446], rtol=1e-6)
    assert got.unstable or not np.isfinite(got.lyapunov_exponent)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_time_of_a_nan_is_known_without_a_fallback(reverse):
    """Newton gives up at once and the states are the guess, which is finite."""
    xs = np.zeros((40, 3), np.float32)
    xs[[11, 25]] = np.nan
    got = scan.newton(lambda x, u: jnp.tanh(0.5 * x + u), jnp.ones(3), xs, reverse=reverse, fallback=False)
    assert not got.converged
    assert got.residual == np.inf
    assert got.first_nonfinite == (25 if reverse else 11)
