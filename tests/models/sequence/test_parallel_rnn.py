"""The diagonal GRU and LSTM against their equations in float64 NumPy, by Newton's method and step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxprob.models import sequence

FACTORIES = {"para_gru": sequence.para_gru, "para_lstm": sequence.para_lstm}


def by_hand(name, params, xs, state, reset):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    gates, a, out = np.asarray(xs, np.float64) @ p["inward"]["kernel"] + p["inward"]["bias"], p["own"], []
    for x, restart in zip(gates, reset, strict=True):
        x0, x1, x2 = np.split(x, 3)
        if name == "para_gru":
            h = np.zeros_like(state) if restart else state
            z, r = expit(x0 + a[0] * h), expit(x1 + a[1] * h)
            state = (1 - z) * h + z * np.tanh(x2 + a[2] * r * h)
            out.append(state)
        else:
            c, h = (np.zeros_like(x0),) * 2 if restart else state
            f = expit(x0 + a[0] * h + a[3] * c)
            c = f * c + (1 - f) * np.tanh(x1 + a[1] * h)
            h = expit(x2 + a[2] * h + a[4] * c) * np.tanh(c)
            state = (c, h)
            out.append(h)
    return np.stack(out), state


def started(rng, name, time, scale=1.0):
    net, xs = FACTORIES[name](4), jnp.asarray(rng.normal(size=(time, 4)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), xs[:1])
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, jnp.float32), params)
    params["params"]["own"] = scale * params["params"]["own"]
    start = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-1, 1, x.shape), jnp.float32), net.initial_state())
    return params, xs, start


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("method", ["newton", "sequential"])
def test_it_is_the_equations(rng, name, method):
    net = FACTORIES[name](4, method=method)
    for time in (1, 7) if name == "para_gru" else (7,):
        params, xs, start = started(rng, name, time)
        reset = np.zeros(time, bool)
        reset[time // 2 + 1 :: 3] = True
        ys, last = jax.jit(net.apply)(params, xs, start, jnp.asarray(reset))
        first = (
            np.asarray(start, np.float64) if name == "para_gru" else (np.asarray(start["c"]), np.asarray(start["h"]))
        )
        wanted, state = by_hand(name, params, xs, first, reset)
        np.testing.assert_allclose(ys, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            last if name == "para_gru" else np.stack([last["c"], last["h"]]), state, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("time", [1024, pytest.param(16_384, marks=pytest.mark.slow)])
def test_newton_and_steps_agree_with_gradients_in_few_iterations(rng, name, time):
    params, xs, start = started(rng, name, time)
    weights = jnp.asarray(rng.normal(size=(time, 4)), jnp.float32)
    reset = jnp.zeros(time, bool).at[time // 3].set(True)
    found = []
    for method in ("newton", "sequential"):
        net = FACTORIES[name](4, method=method)

        def loss(params, xs, start, net=net):
            (ys, _), told = net.apply(params, xs, start, reset, mutable=["intermediates"])
            return jnp.mean(weights * ys), (ys, told)

        gradient, (ys, told) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, xs, start)
        found.append((ys, gradient))
        if method == "newton":
            report = told["intermediates"]["newton"][0]
            assert report["converged"]
            # S120: at most 8 for contractive cells, whatever the length.
            assert 2 <= report["iterations"] <= 8
            assert report["residual"] < 1e-5
        else:
            assert told == {}
    (ys, gradient), (wanted, exact) = found
    np.testing.assert_allclose(ys, wanted, rtol=1e-4, atol=1e-5)
    # As a share of the norm of each array's gradient.
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(np.linalg.norm(a - b), 1e-4 * np.linalg.norm(b)), gradient, exact
    )


def test_what_newton_does_not_solve_runs_step_by_step_and_says_so(rng):
    params, xs, start = started(rng, "para_gru", 300, scale=12.0)
    net = sequence.para_gru(4, method="newton", max_iterations=2)
    run = jax.jit(functools.partial(net.apply, mutable=["intermediates"]))
    (ys, _), told = run(params, xs, start)
    assert not told["intermediates"]["newton"][0]["converged"]
    wanted, _ = jax.jit(sequence.para_gru(4, method="sequential").apply)(params, xs, start)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-6)


def test_a_stack_reports_for_every_depth(rng):
    net = sequence.stack(sequence.para_gru(8, method="newton"), depth=3, output=1)
    xs = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), xs)
    _, told = jax.jit(lambda params, xs: net.apply(params, xs, mutable=["intermediates"]))(params, xs)
    report = told["intermediates"]["layer"]["blocks_0"]["core"]["newton"][0]
    assert report["converged"].tolist() == [True, True, True]


def test_auto_is_sequential_on_a_cpu(rng):
    params, xs, start = started(rng, "para_gru", 7)
    _, told = sequence.para_gru(4).apply(params, xs, start, mutable=["intermediates"])
    assert told == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_trained_by_newton_or_step_by_step_it_reaches_the_same_loss(name):
    """The delayed copy of a real series: 200 steps of Adam from the same parameters."""
    optax = pytest.importorskip("optax")
    losses = []
    for method in ("newton", "sequential"):
        net = sequence.stack(FACTORIES[name](16, method=method), depth=1, output=1)
        params = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, 1)))
        optimizer = optax.adam(1e-2)

        def loss(params, key, net=net):
            xs = jax.random.uniform(key, (16, 64, 1))
            ys, _ = jax.vmap(lambda xs: net.apply(params, xs))(xs)
            return jnp.mean((ys[:, 5:] - xs[:, :-5]) ** 2)

        @jax.jit
        def train(params, optimizer=optimizer, loss=loss):
            def step(carry, key):
                params, state = carry
                value, gradient = jax.value_and_grad(loss)(params, key)
                with jax.numpy_dtype_promotion("standard"):
                    updates, state = optimizer.update(gradient, state, params)
                    params = optax.apply_updates(params, updates)
                return (params, state), value

            return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 200))[1]

        losses.append(np.asarray(train(params)))
    newton, steps = losses
    assert newton[-20:].mean() < 0.8 * newton[:5].mean()
    np.testing.assert_allclose(newton[:20], steps[:20], rtol=1e-3)
    assert abs(newton[-20:].mean() / steps[-20:].mean() - 1) < 0.02
