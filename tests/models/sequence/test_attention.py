"""Attention with a cache: the window, the ring buffer and its counter (whole layers are in test_matrix_cores.py)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.models.sequence._attention import _rotated

WIDTH, HEADS, CONTEXT = 8, 2, 5
NET = sequence.attention(WIDTH, HEADS, context=CONTEXT)


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(3)
    xs = jnp.asarray(rng.normal(size=(400, WIDTH)), jnp.float32)
    params = jax.jit(NET.init)(jax.random.key(0), xs)
    return params, xs, jax.jit(NET.apply), jax.jit(lambda p, x, s: NET.apply(p, x, s, method="step"))


def window_attention(params, xs, context, rotary=True):
    """In float64, one time after another, over the inputs of the window alone."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    q, k, v = np.split(np.asarray(xs, np.float64) @ params["project_in"]["kernel"], 3, 1)
    out = np.zeros(xs.shape)
    d = WIDTH // HEADS
    angles = 10_000.0 ** (-2 * np.arange(d // 2) / d)
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        for t in range(len(xs)):
            scores = {}
            for s in range(max(0, t - context + 1), t + 1):
                a, b = q[t, part], k[s, part]
                cos, sin = (f((t - s) * angles * rotary) for f in (np.cos, np.sin))
                even, odd = a[: d // 2] * cos - a[d // 2 :] * sin, a[: d // 2] * sin + a[d // 2 :] * cos
                scores[s] = (even @ b[: d // 2] + odd @ b[d // 2 :]) / np.sqrt(d)
            total = sum(np.exp(x) for x in scores.values())
            out[t, part] = sum(np.exp(x) / total * v[s, part] for s, x in scores.items())
    return out @ params["project_out"]["kernel"]


@pytest.mark.parametrize("time", [1, 7, 300])
def test_a_window_that_slides_over_blocks(layer, time):
    """300 steps are three blocks, the last of them not full."""
    params, xs, run, _ = layer
    ys, _ = run(params, xs[:time])
    np.testing.assert_allclose(ys, window_attention(params, xs[:time], CONTEXT), rtol=0, atol=1e-5)


def test_the_ring_and_its_counter(layer):
    """Input i is at i modulo context; the counter never overflows."""
    params, xs, run, step = layer
    state, kernel = NET.initial_state(), np.asarray(params["params"]["project_in"]["kernel"])
    keys = (np.asarray(xs) @ kernel[:, WIDTH : 2 * WIDTH]).reshape(-1, HEADS, WIDTH // HEADS)
    ys, whole = run(params, xs[:23])
    for t in range(23):
        y, state = step(params, xs[t], state)
        np.testing.assert_allclose(y, ys[t], rtol=0, atol=2e-6)
        assert state.count == (t + 1 if t + 1 < CONTEXT else CONTEXT + (t + 1) % CONTEXT)
        for i in range(max(0, t - CONTEXT + 1), t + 1):
            np.testing.assert_allclose(state.keys[i % CONTEXT], keys[i], rtol=0, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), state, whole)


@pytest.mark.parametrize("first", [1, 3, 5, 6, 13])
def test_pieces_of_any_length_are_the_whole(layer, first):
    params, xs, run, _ = layer
    wanted, last = run(params, xs[:16])
    head, state = run(params, xs[:first])
    tail, final = run(params, xs[first:16], state)
    np.testing.assert_allclose(np.concatenate([head, tail]), wanted, rtol=0, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), final, last)


@pytest.mark.parametrize("places", [(0,), (9,), (15,), (3, 4, 14)])
def test_resets(layer, places):
    """What comes after is as if nothing had been before, also what is kept; the start of the last is in the ring."""
    params, xs, run, _ = layer
    _, state = run(params, xs[100:107])
    reset = jnp.isin(jnp.arange(16), jnp.array(places))
    ys, final = run(params, xs[:16], state, reset)
    edges = [*places, 16]
    for i, j in itertools.pairwise(edges):
        wanted, last = run(params, xs[i:j])
        np.testing.assert_allclose(ys[i:j], wanted, rtol=0, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), final, last)


def test_only_distances_matter(layer):
    """The same inputs long after the first give the same outputs: nothing turns by a large angle."""
    params, xs, run, _ = layer
    ys, _ = run(params, jnp.concatenate([xs[:40]] * 8))
    np.testing.assert_allclose(ys[-30:], ys[10:40], rtol=0, atol=1e-6)


def test_rotations_know_distances_only(rng):
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 6)), jnp.float32) for _ in range(2))
    near, far = (
        jnp.sum(_rotated(q, np.array([a])) * _rotated(k, np.array([b]))) for a, b in ((3, 1), (1_000_003, 1_000_001))
    )
    np.testing.assert_allclose(near, far, rtol=0, atol=1e-5)
    assert not np.allclose(near, jnp.sum(q * k), atol=1e-3)


def test_large_scores_stay_finite(layer):
    params, xs, run, _ = layer
    ys, _ = run(params, 1e4 * xs[:16])
    assert np.all(np.isfinite(ys))


@pytest.mark.slow
def test_a_long_sequence(layer):
    params, net = layer[0], sequence.attention(WIDTH, HEADS, context=300)
    long = jnp.asarray(np.random.default_rng(4).normal(size=(16_384, WIDTH)), jnp.float32)
    ys, _ = jax.jit(net.apply)(params, long)
    wanted = window_attention(params, np.asarray(long[-400:]), 300)
    np.testing.assert_allclose(ys[-100:], wanted[-100:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ys[:400], window_attention(params, np.asarray(long[:400]), 300), rtol=0, atol=1e-5)


def test_memory_grows_with_time_only():
    """The compiled gradient of 4,096 steps needs far less than one matrix of scores (time, time) a head: 134 MB."""
    net = sequence.attention(WIDTH, HEADS, context=128)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((4096, WIDTH)))
    gradient = jax.jit(jax.grad(lambda params, xs: jnp.sum(net.apply(params, xs)[0])))
    memory = gradient.lower(shapes, jax.ShapeDtypeStruct((4096, WIDTH), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 12e6
