"""minGRU and minLSTM against their equations in float64 NumPy, by every method and over long series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxprob.models import sequence

FACTORIES = {"min_gru": (sequence.min_gru, 2), "min_lstm": (sequence.min_lstm, 3)}


def by_hand(name, params, xs, h, reset, positive=False):
    """The recurrence as the paper writes it, with gates and not with their logarithms."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]["inward"])
    gates = np.split(np.asarray(xs, np.float64) @ p["kernel"] + p["bias"], FACTORIES[name][1], -1)
    value = np.where(gates[-1] >= 0, gates[-1] + 0.5, expit(gates[-1])) if positive else gates[-1]
    if name == "min_gru":
        take = expit(gates[0])
        keep = expit(-gates[0])
    else:
        f, i = expit(gates[0]), expit(gates[1])
        keep, take = f / (f + i), i / (f + i)
    out = []
    for a, b, restart in zip(keep, take * value, reset, strict=True):
        h = a * (np.zeros_like(h) if restart else h) + b
        out.append(h)
    return np.stack(out)


def random_params(rng, name, width=4, gate=0.0):
    gates = FACTORIES[name][1]
    bias = rng.normal(size=(gates, width))
    bias[0] += gate
    kernel = rng.normal(size=(width, gates * width)) / 2
    inward = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias.ravel(), jnp.float32)}
    return {"params": {"inward": inward}}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    ("method", "time", "positive"), [("sequential", 1, False), ("associative", 7, True), ("chunked", 1024, False)]
)
def test_it_is_the_paper(rng, name, method, time, positive):
    params, xs, h = random_params(rng, name), rng.normal(size=(time, 4)).astype(np.float32), rng.normal(size=4)
    reset = rng.uniform(size=time) < 0.1
    net = FACTORIES[name][0](4, method=method, positive=positive)
    run = jax.jit(net.apply)
    ys, last = run(params, jnp.asarray(xs), jnp.asarray(h, jnp.float32), jnp.asarray(reset))
    wanted = by_hand(name, params, xs, h, reset, positive)
    np.testing.assert_allclose(ys, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, wanted[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_methods_and_their_gradients_agree_over_16384_steps(rng, name):
    """With gates that keep for thousands of steps, and states that are not zero at first."""
    params = random_params(rng, name, gate=-8.0 if name == "min_gru" else 3.0)
    xs, h = jnp.asarray(rng.normal(size=(16_384, 4)), jnp.float32), jnp.asarray(rng.normal(size=4), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(16_384, 4)), jnp.float32)
    reset = jnp.zeros(16_384, bool).at[9_000].set(True)
    wanted = by_hand(name, params, xs, np.asarray(h, np.float64), np.asarray(reset))
    gradients = []
    for method in ("sequential", "chunked"):
        net = FACTORIES[name][0](4, method=method)

        def loss(params, h, net=net):
            ys, _ = net.apply(params, xs, h, reset)
            return jnp.mean(weights * ys), ys

        gradient, ys = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, h)
        assert np.max(np.abs(ys - wanted)) < 1e-4 * np.max(np.abs(wanted))
        gradients.append(gradient)
    # As a share of the norm of each array's gradient.
    jax.tree.map(lambda a, b: np.testing.assert_array_less(np.linalg.norm(a - b), 1e-4 * np.linalg.norm(b)), *gradients)


@pytest.mark.parametrize("name", FACTORIES)
def test_bfloat16_inputs_over_65536_steps_with_decays_up_to_09999(rng, name):
    params = random_params(rng, name)
    bias = params["params"]["inward"]["bias"]
    # Unit 0 keeps 0.9999 where its gate sees no input.
    kept = -np.log(9999.0) if name == "min_gru" else 9.2
    params["params"]["inward"]["bias"] = bias.at[0].set(kept)
    xs = jnp.asarray(rng.normal(0.3, 0.5, size=(65_536, 4)), jnp.bfloat16)
    ys, last = jax.jit(FACTORIES[name][0](4).apply)(params, xs)
    wanted = by_hand(name, params, np.asarray(xs.astype(jnp.float32)), np.zeros(4), np.zeros(65_536, bool))
    assert ys.dtype == jnp.bfloat16
    assert last.dtype == jnp.float32
    # Each unit by its own root mean square.
    size = np.sqrt(np.mean(wanted**2, 0))
    error = np.asarray(ys.astype(jnp.float32)) - wanted
    assert np.all(np.abs(error).max(0) < 0.02 * size)
    np.testing.assert_allclose(last, wanted[-1], rtol=1e-4, atol=1e-5)


def test_gates_that_are_shut_lose_nothing():
    """Both gates of a minLSTM near zero: f / (f + i) is a ratio of numbers that float32 cannot hold."""
    kernel = jnp.zeros((1, 3))
    params = {"params": {"inward": {"kernel": kernel, "bias": jnp.array([-200.0, -201.0, 1.0])}}}
    ys, _ = sequence.min_lstm(1).apply(params, jnp.zeros((1, 1)), jnp.array([3.0]))
    keep = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(ys[0, 0], keep * 3 + (1 - keep), rtol=1e-6)
