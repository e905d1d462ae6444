"""State-space duality, linear attention and the delta rule, against loops and quadratic forms in float64 NumPy."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.models.sequence._chunks import cumulative, product

HEADS, KEY, VALUE = 2, 4, 3
NAMES = ["state_space_duality", "linear_attention", "plain_linear_attention", "delta_rule"]


def log_decays(rng, shape, kind):
    if kind == "mixed":
        return rng.choice([-50.0, -30.0, -3.0, -0.3, -1e-3, -1e-6, -1e-6, -1e-6], shape)
    return -rng.uniform(*{"usual": (1e-3, 1.0), "strong": (10, 50), "weak": (1e-6, 1e-5)}[kind], shape)


def problem(rng, name, time, kind="usual"):
    """The arguments of a function, by name, up to the state."""
    q, k = rng.normal(size=(2, time, HEADS, KEY))
    v = rng.normal(size=(time, HEADS, VALUE))
    if name == "state_space_duality":
        return {"x": v, "log_decay": log_decays(rng, (time, HEADS), kind), "b": k[:, :1], "c": q[:, :1]}
    if name == "plain_linear_attention":
        return {"queries": q, "keys": k, "values": v}
    if name == "linear_attention":
        return {"queries": q, "keys": k, "values": v, "log_decay": log_decays(rng, k.shape, kind)}
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    rate = rng.uniform(0, 1, (time, HEADS))
    return {"queries": q, "keys": k, "values": v, "rate": rate, "log_decay": log_decays(rng, rate.shape, kind)}


def loop(name, args, state, reset):
    """One step after another, head by head, with explicit matrices."""
    if name == "state_space_duality":
        q, k = (np.repeat(args[x], HEADS, 1) for x in "cb")
        v = args["x"]
    else:
        q, k, v = args["queries"], args["keys"], args["values"]
    ys, last = np.zeros(v.shape), []
    for h in range(HEADS):
        S = state[h].astype(np.float64)
        for t in range(len(v)):
            if reset[t]:
                S = np.zeros_like(S)
            if name == "linear_attention":
                S = np.diag(np.exp(args["log_decay"][t, h])) @ S
            elif "log_decay" in args:
                S = np.exp(args["log_decay"][t, h]) * S
            rate = 1.0
            if name == "delta_rule":
                rate = args["rate"][t, h]
                S = (np.eye(KEY) - rate * np.outer(k[t, h], k[t, h])) @ S
            S = S + rate * np.outer(k[t, h], v[t, h])
            ys[t, h] = S.T @ q[t, h]
        last.append(S)
    return ys, np.stack(last)


def call(name, args, state=None, reset=None, **options):
    reset = None if reset is None else jnp.asarray(reset)
    return compiled(name, tuple(options.items()))(args, state, reset)


@functools.cache
def compiled(name, options):
    """One program for all tests that differ in numbers only."""
    function = getattr(sequence, name.removeprefix("plain_"))
    return jax.jit(lambda args, state, reset: function(**args, state=state, reset=reset, **dict(options)))


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def close(got, wanted, tolerance):
    """To a fraction of the largest number."""
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(1e-30, np.abs(wanted).max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("time", "chunk", "kind"), [(1, 64, "usual"), (7, 64, "mixed"), (75, 32, "usual")])
def test_chunks_and_steps_are_the_loop(rng, name, time, chunk, kind):
    args, state = problem(rng, name, time, kind), rng.normal(size=(HEADS, KEY, VALUE))
    reset = rng.random(time) < 0.08
    wanted, last = loop(name, args, state, reset)
    for method in ("chunked", "sequential"):
        ys, final = call(name, single(args), single(state), reset, chunk=chunk, method=method)
        close(ys, wanted, 1e-5)
        close(final, last, 1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, 31, 32, 74])
def test_a_reset_forgets_the_state_whatever_it_is(rng, name, place):
    """Also at the first step, at the last one, and on both sides of the border of two chunks."""
    args, reset = problem(rng, name, 75), np.arange(75) == place
    wanted, last = loop(name, args, np.full((HEADS, KEY, VALUE), 1e10), reset)
    ys, final = call(name, single(args), jnp.full((HEADS, KEY, VALUE), 1e10, jnp.float32), jnp.asarray(reset), chunk=32)
    close(ys[place:], wanted[place:], 1e-5)
    close(final, last, 1e-5)


@pytest.mark.parametrize("name", [x for x in NAMES if x != "plain_linear_attention"])
@pytest.mark.parametrize("kind", ["strong", "weak", "mixed"])
def test_any_decay(rng, name, kind):
    """To 2e-5 and not only finite: weak decays after strong ones keep their digits."""
    args, state = problem(rng, name, 256, kind), rng.normal(size=(HEADS, KEY, VALUE))
    wanted, last = loop(name, args, state, np.zeros(256, bool))
    ys, final = call(name, single(args), single(state), chunk=128)
    close(ys, wanted, 2e-5)
    close(final, last, 2e-5)

    gradient = gradient_of(name)(single(args), single(state))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


@functools.cache
def gradient_of(name):
    def loss(args, state):
        ys, final = call(name, args, state, chunk=128)
        return jnp.sum(jnp.square(ys)) + jnp.sum(final)

    return jax.jit(jax.grad(loss))


def test_a_decay_of_zero_forgets():
    ones = jnp.ones((3, 1, 1))
    decay = jnp.array([[0.0], [-jnp.inf], [0.0]])
    assert sequence.state_space_duality(ones, decay, ones, ones)[0].ravel().tolist() == [1, 1, 2]
    assert sequence.linear_attention(ones, ones, ones, decay[:, None])[0].ravel().tolist() == [1, 1, 2]
    gradient = jax.grad(lambda x: jnp.sum(sequence.state_space_duality(ones, x, ones, ones)[0]))(decay)
    np.testing.assert_allclose(gradient.ravel(), [0, 0, 1], atol=1e-6)


def test_products_of_weak_decays_behind_strong_ones():
    """Plain sums would lose them: 3,000 + 0.001 has four digits of the latter in float32."""
    decay = np.r_[np.full(60, -50.0), np.full(60, -1e-3)].astype(np.float32)
    sums = cumulative(jnp.asarray(decay))
    last, before = (jax.tree.map(lambda x, i=i: x[i], sums) for i in (119, 59))
    found = product(last, before, jnp.bool_(True))
    np.testing.assert_allclose(found, np.exp(np.sum(decay[60:].astype(np.float64))), rtol=3e-7)


def test_duality_is_a_masked_matrix(rng):
    """The quadratic form M_ts = c_t . b_s exp(sum of log decays between), for one group of heads and for two."""
    for groups in (1, 2):
        x, a = rng.normal(size=(20, 4, 3)), -rng.uniform(0, 1, (20, 4))
        b, c = rng.normal(size=(2, 20, groups, 5))
        wanted = np.zeros_like(x)
        for h in range(4):
            sums = np.cumsum(a[:, h])
            mask = np.tril(np.exp(sums[:, None] - sums[None]))
            wanted[:, h] = (mask * (c[:, h * groups // 4] @ b[:, h * groups // 4].T)) @ x[:, h]
        for method in ("chunked", "sequential"):
            ys, _ = sequence.state_space_duality(*single((x, a, b, c)), chunk=8, method=method)
            close(ys, wanted, 1e-5)


def test_the_delta_rule_replaces_and_linear_attention_adds():
    """Two keys at right angles, the first written twice."""
    keys = jnp.expand_dims(jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), 1)
    values = jnp.array([3.0, 5.0, 7.0, 0.0]).reshape(4, 1, 1)
    rate = jnp.array([[1.0], [1.0], [1.0], [0.0]])
    assert sequence.delta_rule(keys, keys, values, rate)[0].ravel().tolist() == [3, 5, 7, 7]
    assert sequence.linear_attention(keys, keys, values)[0].ravel().tolist() == [3, 5, 10, 10]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_chunks_are_those_of_the_loop(rng, name):
    args, state = single(problem(rng, name, 40)), single(rng.normal(size=(HEADS, KEY, VALUE)))
    reset, weights = jnp.arange(40) == 21, single(rng.normal(size=(40, HEADS, VALUE)))

    def gradients(method):
        def loss(args, state):
            ys, final = call(name, args, state, reset, chunk=16, method=method)
            return jnp.sum(weights * ys) + jnp.sum(jnp.sin(final))

        return jax.jit(jax.grad(loss, (0, 1)))(args, state)

    chunked, stepped = (jax.tree.leaves(gradients(method)) for method in ("chunked", "sequential"))
    for got, wanted in zip(chunked, stepped, strict=True):
        assert np.abs(wanted).max() > 0
        close(got, wanted, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_low_and_high_precision(rng, name):
    args = problem(rng, name, 50)
    low = {key: jnp.asarray(x, jnp.float32 if key == "log_decay" else jnp.bfloat16) for key, x in args.items()}
    rounded = {key: np.asarray(x, np.float64) for key, x in low.items()}
    wanted, _ = loop(name, rounded, np.zeros((HEADS, KEY, VALUE)), [0] * 50)
    ys, final = call(name, low, chunk=16)
    assert ys.dtype == jnp.bfloat16
    assert final.dtype == jnp.float32
    close(np.asarray(ys, np.float64), wanted, 0.005)
    with jax.enable_x64(True):
        ys, final = call(name, {k: jnp.asarray(x) for k, x in args.items()}, chunk=16)
        assert ys.dtype == final.dtype == jnp.float64
        close(ys, loop(name, args, np.zeros((HEADS, KEY, VALUE)), [0] * 50)[0], 1e-12)


def test_vmap_is_many(rng):
    for name in ("linear_attention", "delta_rule"):
        args = [single(problem(rng, name, 9)) for _ in range(2)]
        many = jax.tree.map(lambda *x: jnp.stack(x), *args)
        function = getattr(sequence, name.removeprefix("plain_"))
        ys, final = jax.jit(jax.vmap(lambda args, function=function: function(**args, chunk=4)))(many)
        for i, one in enumerate(args):
            wanted, last = call(name, one, chunk=4)
            close(ys[i], wanted, 1e-6)
            close(final[i], last, 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("time", [1024, pytest.param(16_384, marks=pytest.mark.slow)])
def test_long_sequences(rng, name, time):
    args, state = problem(rng, name, time), rng.normal(size=(HEADS, KEY, VALUE))
    reset = rng.random(time) < 3 / time
    wanted, last = loop(name, args, state, reset)
    for method in ("chunked", "sequential"):
        ys, final = call(name, single(args), single(state), jnp.asarray(reset), chunk=60, method=method)
        close(ys, wanted, 1e-4)
        close(final, last, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in NAMES if x != "plain_linear_attention"])
def test_bfloat16_inputs_over_65536_steps(rng, name):
    """Decays up to 0.9999, which bfloat16 would round to 1."""
    time = 65_536
    args = problem(rng, name, time)
    args["log_decay"] = np.log(rng.uniform(0.99, 0.9999, args["log_decay"].shape))
    low = {key: jnp.asarray(x, jnp.float32 if key == "log_decay" else jnp.bfloat16) for key, x in args.items()}
    ys, final = call(name, low)
    wanted, last = loop(name, args, np.zeros((HEADS, KEY, VALUE)), np.zeros(time, bool))
    close(np.asarray(ys, np.float64), wanted, 0.02)
    close(final, last, 0.02)


def test_bad_input():
    x = jnp.ones((5, 4, 3))
    with pytest.raises(ValueError, match="linear_attention: keys is of shape .*expected .*time = 5"):
        sequence.linear_attention(x, x[1:], x)
    with pytest.raises(ValueError, match="no time"):
        sequence.linear_attention(x[:0], x[:0], x[:0])
    with pytest.raises(ValueError, match="vmap"):
        sequence.linear_attention(x[None], x[None], x[None])
    with pytest.raises(ValueError, match="state is of shape"):
        sequence.linear_attention(x, x, x, state=jnp.ones((4, 3, 2)))
    with pytest.raises(ValueError, match="reset is bool of shape"):
        sequence.linear_attention(x, x, x, reset=jnp.zeros(4, bool))
    with pytest.raises(ValueError, match="rate is of shape"):
        sequence.delta_rule(x, x, x, x)
    with pytest.raises(ValueError, match="state_space_duality: b is of 3 groups; expected a number that divides the 4"):
        sequence.state_space_duality(x, x[..., 0], x[:, :3], x[:, :3])
    with pytest.raises(ValueError, match="method is fast; expected one of 'auto'"):
        sequence.linear_attention(x, x, x, method="fast")
    with pytest.raises(ValueError, match="chunk is 0"):
        sequence.linear_attention(x, x, x, chunk=0)


def test_batches_end_on_a_machine_of_two_threads():
    """Where LAPACK shares a batch out to as many threads as wait for it, a program never ends."""
    program = textwrap.dedent("""
        import jax, jax.numpy as jnp
        from jaxprob.models import sequence
        xs = jax.random.normal(jax.random.key(0), (16, 1024, 64))
        net = sequence.gated_delta_net(64)
        params = net.init(jax.random.key(1), xs[0])
        run = jax.jit(lambda params: jax.vmap(lambda x: net.apply(params, x)[0])(xs).sum())
        print([float(run(params)) == float(run(params)) for _ in range(40)])
    """)
    environment = os.environ | {"PJRT_NPROC": "2", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == str([True] * 40), done.stderr
