"""The contract of sequence cores, on a core small enough to be its own oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from jaxprob.models.sequence import Core
from jaxprob.models.sequence._core import linear_states, recurrent_states


class Decay(Core):
    """y_t = x_t + 0.5 y_{t-1}."""

    factory = "decay"

    def initial_state(self):
        return jnp.zeros(self.width)

    def run(self, xs, state, reset, deterministic):
        return linear_states(jnp.full((1, self.width), 0.5), xs, state, reset)

    def step(self, x, state=None, *, deterministic=True):
        y = x + 0.5 * (self.initial_state() if state is None else state)
        return y, y


def loop(decays, increments, state, reset):
    states = []
    for a, b, r in zip(decays, increments, reset, strict=True):
        state = a * (np.zeros_like(state) if r else state) + b
        states.append(state)
    return np.stack(states), state


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("method", ["sequential", "chunked", "associative"])
def test_a_reset_goes_to_the_initial_state_and_not_to_the_state_passed_in(rng, first, method):
    b, state = rng.normal(size=(11, 3)).astype(np.float32), np.full(3, 100, np.float32)
    reset = np.zeros(11, bool)
    reset[[4, 5, 9]] = True
    reset[0] = first
    a = rng.uniform(0.5, 1, (11, 3)).astype(np.float32)
    states, final = linear_states(jnp.asarray(a), jnp.asarray(b), jnp.asarray(state), jnp.asarray(reset), method=method)
    wanted, last = loop(a, b, state, reset)
    np.testing.assert_allclose(states, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(final, last, rtol=1e-5, atol=1e-5)


def test_complex_states_are_reset_too(rng):
    a = rng.normal(size=(1, 2)) + 1j * rng.normal(size=(1, 2))
    a, b, state = (a / abs(a) * 0.9).astype(np.complex64), rng.normal(size=(6, 2)) * (1 + 1j), np.full(2, 7 + 1j)
    reset = np.array([False, False, True, False, False, False])
    pair = [scan.Complex(jnp.float32(x.real), jnp.float32(x.imag)) for x in (a, b, state)]
    states, final = linear_states(*pair, jnp.asarray(reset))
    wanted, last = loop(np.broadcast_to(a, (6, 2)), b, state, reset)
    np.testing.assert_allclose(
        np.asarray(states.real) + 1j * np.asarray(states.imaginary), wanted, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(final.imaginary, last.imag, rtol=1e-5, atol=1e-5)


def test_a_non_linear_recurrence_is_reset_to_the_fresh_state(rng):
    xs, reset = rng.normal(size=7).astype(np.float32), np.array([0, 0, 1, 0, 0, 1, 0], bool)

    def step(h, x):
        h = jnp.tanh(0.7 * h + x)
        return h, h

    h, wanted = 0.3, []
    for x, r in zip(xs, reset, strict=True):
        h = np.tanh(0.7 * (0.1 if r else h) + x)
        wanted.append(h)
    ys, final = recurrent_states(step, jnp.float32(0.3), jnp.asarray(xs), jnp.float32(0.1), jnp.asarray(reset))
    np.testing.assert_allclose(ys, wanted, rtol=1e-5)
    np.testing.assert_allclose(final, wanted[-1], rtol=1e-5)


def test_a_core_goes_on_where_it_stopped_and_steps_agree(rng):
    net, xs = Decay(width=2), jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    ys, final = net.apply({}, xs)
    head, state = net.apply({}, xs[:2])
    tail, again = net.apply({}, xs[2:], state)
    np.testing.assert_allclose(np.concatenate([head, tail]), ys, rtol=1e-6)
    np.testing.assert_allclose(again, final, rtol=1e-6)
    state = None
    for x, y in zip(xs, ys, strict=True):
        got, state = net.apply({}, x, state, method="step")
        np.testing.assert_allclose(got, y, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros((3, 4)),), r"sequence\.decay: xs is of shape \(3, 4\); expected \(time, 2\)"),
        ((jnp.zeros((8, 3, 2)),), r"of shape \(8, 3, 2\); expected \(time, 2\)\. Use jax\.vmap for a batch"),
        ((jnp.zeros((0, 2)),), "xs is a sequence of no time; expected at least one time"),
        ((jnp.zeros((3, 2), int),), "xs is of int32; expected floating numbers"),
        ((jnp.zeros((3, 2)), jnp.zeros(3)), r"state is value \(3,\); expected value \(2,\), that of this core"),
        ((jnp.zeros((3, 2)), {"a": jnp.zeros(2)}), r"state is a \(2,\)"),
        ((jnp.zeros((3, 2)), None, jnp.zeros(2, bool)), r"reset is bool of shape \(2,\); expected booleans"),
        ((jnp.zeros((3, 2)), None, jnp.zeros(3)), r"reset is float32 of shape \(3,\)"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Decay(width=2).apply({}, *arguments)
    assert "\n" not in str(error.value)


def test_a_batch_is_a_vmap(rng):
    xs = jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32)
    net = Decay(width=2)
    ys, states = jax.vmap(lambda x: net.apply({}, x))(xs)
    assert ys.shape == (3, 5, 2)
    np.testing.assert_allclose(states, ys[:, -1])
