"""AR-Net against least squares, SciPy's Toeplitz solver and loops, in float64; and the checks of its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from jaxprob import learning, scan
from jaxprob.inference import kalman
from jaxprob.models import sequence, state_space

TRUE = np.array([0.2, 0.3, -0.5])


@functools.cache
def series():
    """An AR(3) of 20,000 values, as in the paper."""
    rng, y = np.random.default_rng(0), np.zeros(20_100)
    for t in range(3, len(y)):
        y[t] = TRUE @ y[t - 3 : t][::-1] + rng.normal()
    return y[100:].astype(np.float32)


def least_squares(y, order):
    """Coefficients, the latest lag first; the constant is fitted and left out."""
    rows = np.lib.stride_tricks.sliding_window_view(y.astype(np.float64), order + 1)
    design = np.c_[rows[:, -2::-1], np.ones(len(rows))]
    return np.linalg.solve(design.T @ design, design.T @ rows[:, -1])[:order]


def params_of(coefficients, bias):
    return {"params": {"coefficients": jnp.asarray(coefficients, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}


def loop(coefficients, bias, xs, state, reset):
    """y_t = bias + sum_i A_i x_{t+1-i}, with zeros before a reset."""
    past, ys = list(state), []
    for x, r in zip(xs, reset, strict=True):
        past = [np.zeros_like(x) for _ in past] if r else past
        past = [*past, x]
        ys.append(bias + sum(a @ p for a, p in zip(coefficients, past[::-1], strict=True)))
        past = past[1:]
    return np.stack(ys), np.array(past).reshape(len(coefficients) - 1, xs.shape[1])


@pytest.mark.parametrize("resets", [None, [], [0, 4, 5, 8]])
@pytest.mark.parametrize(("width", "order", "time"), [(1, 3, 9), (2, 4, 9), (3, 1, 9)])
def test_it_is_a_weighted_sum_of_the_last_inputs(rng, width, order, time, resets):
    coefficients, bias = rng.normal(size=(order, width, width)), rng.normal(size=width)
    xs, state = rng.normal(size=(time, width)), rng.normal(size=(order - 1, width))
    reset = np.zeros(time, bool)
    reset[resets or []] = True
    net, params = sequence.ar_net(width, order=order), params_of(coefficients, bias)
    given = None if resets is None else jnp.asarray(reset)
    ys, last = net.apply(params, jnp.asarray(xs, jnp.float32), jnp.asarray(state, jnp.float32), given)
    wanted, wanted_last = loop(coefficients, bias, xs, state, reset)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, wanted_last, rtol=1e-6)


@pytest.mark.parametrize("time", [1, 2, 7])
def test_it_goes_on_where_it_stopped_and_steps_agree(rng, time):
    net, xs = sequence.ar_net(2, order=4), jnp.asarray(rng.normal(size=(12, 2)), jnp.float32)
    params = net.init(jax.random.key(0), xs)
    ys, final = net.apply(params, xs)
    head, state = net.apply(params, xs[:time])
    tail, again = net.apply(params, xs[time:], state)
    np.testing.assert_allclose(np.concatenate([head, tail]), ys, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(again, final)
    state = None
    for x, y in zip(xs, ys, strict=True):
        got, state = net.apply(params, x, state, method="step")
        np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-6)


def test_parameters_are_made_with_resets_too(rng):
    net, xs = sequence.ar_net(2, order=3), jnp.ones((5, 2))
    params = jax.jit(net.init)(jax.random.key(0), xs, None, jnp.zeros(5, bool))
    assert params["params"]["coefficients"].shape == (3, 2, 2)
    assert float(jnp.abs(params["params"]["coefficients"]).max()) <= 6**-0.5


def test_bfloat16_goes_in_and_comes_out(rng):
    net = sequence.ar_net(1, order=16)
    xs = jnp.asarray(rng.normal(size=(64, 1)), jnp.bfloat16)
    params = net.init(jax.random.key(0), xs)
    ys, state = net.apply(params, xs)
    assert ys.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    wide, _ = net.apply(params, xs.astype(jnp.float32))
    np.testing.assert_allclose(ys.astype(jnp.float32), wide, rtol=2**-8)


def test_the_loss_is_that_of_one_step_ahead_and_its_gradient_that_of_least_squares(rng):
    y, order = rng.normal(size=(4, 12)), 3
    coefficients, bias = rng.normal(size=order), rng.normal()
    net = sequence.ar_net(1, order=order)
    params = params_of(coefficients.reshape(order, 1, 1), [bias])
    batch = jnp.asarray(y[..., None], jnp.float32)
    (value, metrics), gradient = jax.value_and_grad(sequence.ar_net_loss(net), has_aux=True)(params, batch, None)
    rows = np.lib.stride_tricks.sliding_window_view(y, order + 1, axis=1).reshape(-1, order + 1)
    design = rows[:, -2::-1]
    errors = design @ coefficients + bias - rows[:, -1]
    np.testing.assert_allclose(value, np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_error"], value)
    assert float(metrics["penalty"]) == 0
    wanted = 2 * design.T @ errors / len(errors)
    np.testing.assert_allclose(gradient["params"]["coefficients"][:, 0, 0], wanted, rtol=1e-4)
    np.testing.assert_allclose(gradient["params"]["bias"], [2 * errors.mean()], rtol=1e-4)


def test_the_penalty_is_that_of_the_paper(rng):
    weights = rng.normal(size=6)
    net = sequence.ar_net(1, order=6)
    params = params_of(weights.reshape(6, 1, 1), [0.0])
    loss = sequence.ar_net_loss(net, sparsity=0.25, strength=0.5, c1=2.0, c2=4.0)
    value, metrics = loss(params, jnp.zeros((1, 7, 1)), None)
    regular = np.mean(2 / (1 + np.exp(-2 * abs(weights) ** 0.25)) - 1)
    np.testing.assert_allclose(metrics["penalty"], 0.5 * (1 / 0.25 - 1) * regular, rtol=1e-5)
    np.testing.assert_allclose(value, metrics["squared_error"] + metrics["penalty"], rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-5, -1e-4, 1e3])
def test_the_gradient_of_the_penalty_is_finite(weight):
    net = sequence.ar_net(1, order=2)
    loss = sequence.ar_net_loss(net, sparsity=0.01)
    params = params_of(np.full((2, 1, 1), weight), [0.0])
    gradient = jax.grad(lambda p: loss(p, jnp.zeros((1, 3, 1)), None)[0])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def trained(order, sparsity, steps=600):
    """Coefficients after so many steps of Adam on windows of the series."""
    y, size = series(), 1_000
    windows = np.stack([y[s : s + order + size] for s in range(0, len(y) - order - size + 1, size)])[..., None]
    net, source = sequence.ar_net(1, order=order), learning.data.arrays(windows, 4)
    rate = optax.cosine_decay_schedule(0.01, steps)
    loss = sequence.ar_net_loss(net, sparsity=sparsity)
    task = learning.Task(lambda key: net.init(key, jnp.zeros((1, 1))), loss, optax.adam(rate))
    init, step = learning.training(task)

    @jax.jit
    def run(source, state, key):
        def one(state, index):
            return step(jax.random.fold_in(key, index), state, source.batch(index))

        return scan.scan(one, state, jnp.arange(steps))[0]

    state = run(source, init(task.init(jax.random.key(0))), jax.random.key(1))
    return np.asarray(state.params["params"]["coefficients"][:, 0, 0], np.float64)


def error_in_percent(found, order):
    """The paper's sTPE."""
    true = np.concatenate([TRUE, np.zeros(order - 3)])
    return 100 * abs(found - true).sum() / (abs(found) + abs(true)).sum()


@pytest.mark.parametrize("order", [10, pytest.param(1_000, marks=pytest.mark.slow)])
def test_trained_without_a_penalty_it_finds_what_least_squares_finds(order):
    assert abs(trained(order, None) - least_squares(series(), order)).max() <= 0.02


@pytest.mark.parametrize("order", [10, pytest.param(1_000, marks=pytest.mark.slow)])
def test_with_a_penalty_it_finds_the_lags(order):
    found = trained(order, 3 / order)
    assert np.flatnonzero(abs(found) > 0.05).tolist() == [0, 1, 2]
    assert error_in_percent(found, order) < 15
    assert order == 10 or error_in_percent(least_squares(series(), order), order) > 60


@pytest.mark.parametrize("order", [1, 2, 30])
def test_yule_walker_solves_its_equations(order):
    y = series()[:2_000].astype(np.float64) + 3
    centred = y - y.mean()
    r = np.array([centred[k:] @ centred[: len(y) - k] for k in range(order + 1)]) / len(y)
    wanted = scipy.linalg.solve_toeplitz(r[:-1], r[1:])
    found, variance = sequence.yule_walker(jnp.asarray(y, jnp.float32), order)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(variance, r[0] - wanted @ r[1:], rtol=1e-5)


def test_yule_walker_is_close_to_least_squares_for_a_long_series():
    found, variance = sequence.yule_walker(series(), 10)
    np.testing.assert_allclose(found, least_squares(series(), 10), atol=2e-3)
    np.testing.assert_allclose(variance, 1.0, rtol=0.04)  # four standard errors of a variance of 20,000 values


def test_yule_walker_of_a_constant_series_and_its_dtype(x64):
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        found, variance = sequence.yule_walker(jnp.full(9, 2.0, dtype), 2)
        assert found.dtype == variance.dtype == dtype
        assert found.tolist() == [0, 0]
        assert float(variance) == 0


def test_coefficients_go_into_state_space_models(rng):
    """The one-step forecast of the Kalman filter is the output of the network, once it has seen enough."""
    coefficients = np.array([0.5, -0.3])
    y = np.zeros(40)
    for t in range(2, 40):
        y[t] = coefficients @ y[t - 2 : t][::-1] + rng.normal()
    net, params = sequence.ar_net(1, order=2), params_of(coefficients.reshape(2, 1, 1), [0.0])
    ys, _ = net.apply(params, jnp.asarray(y[:, None], jnp.float32))
    model = state_space.autoregressive(params["params"]["coefficients"][:, 0, 0], 1.0)
    filtered = kalman.filter(model, jnp.asarray(y[:, None], jnp.float32))
    forecast = kalman.forecast(model, filtered, steps=1)
    np.testing.assert_allclose(np.ravel(forecast.mean)[0], ys[-1, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequence.ar_net(0, order=1), r"sequence\.ar_net: width is 0; expected a whole number, 1 or more"),
        (lambda: sequence.ar_net(1, order=1.5), r"order is 1\.5"),
        (lambda: sequence.ar_net_loss(None), r"ar_net_loss: net is None; expected what sequence\.ar_net returned"),
        (lambda: sequence.ar_net_loss(sequence.ar_net(1, order=1), sparsity=0), "sparsity is 0; expected a fraction"),
        (lambda: sequence.ar_net_loss(sequence.ar_net(1, order=1), sparsity=1.5), r"sparsity is 1\.5"),
        (
            lambda: sequence.ar_net_loss(sequence.ar_net(1, order=1), c2=-1.0),
            r"c2 is -1\.0; expected a positive number",
        ),
        (
            lambda: sequence.ar_net_loss(sequence.ar_net(1, order=3))(None, jnp.zeros((2, 3, 1)), None),
            r"batch is of shape \(2, 3, 1\); expected \(batch, time, 1\) with more than 3 times, the order",
        ),
        (lambda: sequence.yule_walker(jnp.zeros((5, 1)), 2), r"series is of shape \(5, 1\); expected one number"),
        (lambda: sequence.yule_walker(jnp.zeros(5), 5), "more than 5 times, the order"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
