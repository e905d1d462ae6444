"""What all recurrent cores promise: steps, pieces, resets, batches, low precision, gradients, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from jaxprob.models import sequence
from jaxprob.models.sequence._cells import orthogonal, remembering

CORES = {
    "elman": sequence.elman(4, state=6, activation="tanh"),
    "gru": sequence.gru(4),
    "lstm": sequence.lstm(4, state=6, peephole=True),
    "min_gru": sequence.min_gru(4, state=6, method="chunked", chunk=3),
    "min_lstm": sequence.min_lstm(4, positive=True, method="associative"),
    "para_gru": sequence.para_gru(4, state=6, method="newton"),
    "para_lstm": sequence.para_lstm(4, method="newton"),
}


@functools.cache
def made(name):
    net = CORES[name]
    return net, jax.jit(net.init)(jax.random.key(0), jnp.ones((6, 4))), jax.jit(net.apply)


def started(rng, name):
    net, params, whole = made(name)
    start = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), net.initial_state())
    return net, params, whole, jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), start


def by_step(net, params, xs, start, reset):
    def step(state, x):
        restart, x = x
        state = jax.tree.map(lambda a, b: jnp.where(restart, b, a), state, net.initial_state())
        return net.apply(params, x, state, method="step")[::-1]

    final, ys = scan.scan(step, start, (reset, xs))
    return ys, final


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("name", CORES)
def test_steps_pieces_and_resets(rng, name):
    net, params, whole, xs, start = started(rng, name)
    no, fresh, step = jnp.zeros(6, bool), net.initial_state(), jax.jit(functools.partial(by_step, net))
    for at, begin, middle in (([], start, None), ([3], start, fresh), ([0], fresh, None), ([0, 3], fresh, fresh)):
        reset = no.at[jnp.array(at, int)].set(True)
        found = whole(params, xs, start, reset)
        assert found[0].shape == (6, 4)
        close(step(params, xs, start, reset), found)
        head, state = whole(params, xs[:3], begin, no[:3])
        tail, final = whole(params, xs[3:], state if middle is None else middle, no[:3])
        close((np.concatenate([head, tail]), final), found)


@pytest.mark.parametrize("name", CORES)
def test_low_precision_keeps_the_state_in_float32(rng, name):
    _, params, whole, xs, start = started(rng, name)
    no = jnp.zeros(6, bool)
    rounded = xs.astype(jnp.bfloat16)
    low, state = whole(params, rounded, start, no)
    assert low.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    wanted = whole(params, rounded.astype(jnp.float32), start, no)[0]
    close(low.astype(jnp.float32), wanted, 0, 0.02 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize("name", ["lstm", "min_gru", "para_gru"])
def test_a_batch_is_a_vmap(rng, name):
    _, params, whole, xs, start = started(rng, name)
    no = jnp.zeros(6, bool)
    many, _ = jax.jit(jax.vmap(whole, (None, 0, None, None)))(params, jnp.stack([2 * xs, xs]), start, no)
    close(many[1], whole(params, xs, start, no)[0])


@pytest.mark.parametrize("name", ["gru", "min_gru", "min_lstm", "para_gru", "para_lstm"])
def test_gradients_are_those_of_the_steps(rng, name):
    net, params, _, xs, start = started(rng, name)
    weights, reset = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), jnp.zeros(6, bool).at[4].set(True)

    def gradient(run):
        return jax.jit(jax.grad(lambda *arguments: jnp.sum(weights * run(*arguments, reset)[0]), (0, 1, 2)))

    found, wanted = (gradient(run)(params, xs, start) for run in (net.apply, functools.partial(by_step, net)))
    close(found, wanted, 1e-4, 1e-4)


@pytest.mark.parametrize("name", ["elman", "lstm", "min_lstm", "para_lstm"])
def test_huge_inputs_saturate_and_stay_finite(rng, name):
    net, params, _, xs, start = started(rng, name)
    run = jax.jit(lambda params, xs: jax.value_and_grad(lambda p: jnp.sum(net.apply(p, xs, start)[0]))(params))
    for scale in (0.0, 1e4):
        value, gradient = run(params, scale * xs)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["gru", "para_lstm"])
def test_a_stack_of_them(rng, name):
    net, xs = sequence.stack(CORES[name], depth=2, output=3), jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), xs)
    found = jax.jit(net.apply)(params, xs)
    close(jax.jit(functools.partial(by_step, net))(params, xs, net.initial_state(), jnp.zeros(5, bool)), found)
    # A matrix between hidden units mixes channels; the others are mixed by a gate.
    assert ("unit" in params["params"]["layer"]["blocks_0"]) == (name != "gru")


@pytest.mark.parametrize("gates", [1, 3])
def test_each_recurrent_matrix_is_orthogonal(gates):
    made = np.asarray(orthogonal(gates)(jax.random.key(0), (5, 5 * gates), jnp.float32), np.float64)
    parts = np.split(made, gates, 1)
    for part in parts:
        np.testing.assert_allclose(part @ part.T, np.eye(5), atol=1e-6)
    assert all(not np.allclose(parts[0], other) for other in parts[1:])


def test_first_gates_remember_up_to_the_horizon():
    """A gate sigmoid(log n) = n / (n + 1) keeps for n + 1 steps; n is uniform from 1 to the horizon less one."""
    for sign in (1.0, -1.0):
        steps = np.exp(sign * np.asarray(remembering(101, sign)(jax.random.key(0), (10_000,), jnp.float32), float))
        assert steps.min() > 0.999
        assert steps.max() < 100.001
        assert abs(steps.mean() - 50.5) < 4 * 99 / np.sqrt(12 * 10_000)
    nets = [sequence.lstm(3, horizon=50), sequence.gru(3, horizon=50)]
    lstm, gru = (jax.jit(net.init)(jax.random.key(0), jnp.ones((1, 3)))["params"]["inward"]["bias"] for net in nets)
    assert (lstm[:3] < 0).all()
    assert (lstm[3:6] > 0).all()
    assert (lstm[6:] == 0).all()
    assert (gru[3:6] > 0).all()
    plain = jax.jit(sequence.lstm(3).init)(jax.random.key(0), jnp.ones((1, 3)))["params"]["inward"]["bias"]
    np.testing.assert_array_equal(plain, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequence.gru(0), r"sequence\.gru: width is 0; expected a whole number, 1 or more"),
        (lambda: sequence.gru(4, state=2.5), r"sequence\.gru: state is 2\.5; expected a whole number, 1 or more"),
        (lambda: sequence.lstm(4, horizon=1), r"sequence\.lstm: horizon is 1; expected a number of steps, 2 or more"),
        (lambda: sequence.lstm(4, peephole=1), "peephole is 1; expected True or False"),
        (lambda: sequence.lstm(4, forget_bias="1"), "forget_bias is 1; expected a number"),
        (lambda: sequence.elman(4, activation="sin"), "activation is sin; expected one of 'tanh', 'relu'"),
        (lambda: sequence.min_gru(4, method="newton"), r"sequence\.min_gru: method is newton; expected one of 'auto'"),
        (lambda: sequence.min_lstm(4, chunk=0), r"sequence\.min_lstm: chunk is 0"),
        (lambda: sequence.min_lstm(4, positive=None), "positive is None; expected True or False"),
        (lambda: sequence.para_gru(4, method="chunked"), "method is chunked; expected one of 'auto', 'newton'"),
        (lambda: sequence.para_lstm(4, max_iterations=0), "max_iterations is 0"),
    ],
)
def test_bad_options_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_state_of_another_core_is_one_line(rng):
    net, params, _, xs, _ = started(rng, "lstm")
    with pytest.raises(ValueError, match=r"sequence\.lstm: state is value \(6,\); expected c \(6,\), h \(6,\)"):
        net.apply(params, xs, CORES["elman"].initial_state())
