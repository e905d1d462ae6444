"""Mamba-2, gated linear attention, DeltaNet, Aaren and attention: whole layers against NumPy, and the contract."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.models.sequence._short_convolution import causal_convolution

WIDTH, TIME, BEFORE = 8, 23, 6

CORES = {
    "mamba2": sequence.mamba2(WIDTH, state=5, heads=4, groups=2, chunk=8),
    "gated_linear_attention": sequence.gated_linear_attention(WIDTH, heads=2, key_width=3, chunk=8, rank=3),
    "linear_attention": sequence.gated_linear_attention(WIDTH, heads=2, gate=False, convolution=3, chunk=8),
    "gated_delta_net": sequence.gated_delta_net(WIDTH, heads=2, value_width=5, chunk=8),
    "delta_net": sequence.gated_delta_net(WIDTH, heads=2, gate=False, convolution=1, chunk=8),
    "aaren": sequence.aaren(WIDTH, heads=2),
    "attention": sequence.attention(WIDTH, heads=2, context=9),
    "wide_attention": sequence.attention(WIDTH, heads=1, context=40, rotary=False),
}
ALL = pytest.mark.parametrize("name", CORES)


def some(*names):
    """These; the others are slow."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in CORES if name not in names]
    return pytest.mark.parametrize("name", [*names, *slow])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def normed(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def kernel(params, name):
    return params[name]["kernel"]


def convolved(params, xs):
    """silu of the causal convolution of one sequence, input by input."""
    if "convolve" not in params:
        return xs
    taps, ys = params["convolve"]["kernel"], np.zeros_like(xs)
    for t in range(len(xs)):
        ys[t] = sum(taps[j] * xs[t - j] for j in range(min(len(taps), t + 1)))
    return silu(ys + params["convolve"]["bias"])


def read_memory(q, k, v, log_decay, rate=None):
    """Of one head: all arrays time leading, the decay of a key channel or of all."""
    S, ys = np.zeros((q.shape[1], v.shape[1])), []
    for t in range(len(q)):
        S = np.exp(log_decay[t]).reshape(-1, 1) * S
        S = S + np.outer(k[t], v[t]) if rate is None else S + rate[t] * np.outer(k[t], v[t] - S.T @ k[t])
        ys.append(S.T @ q[t])
    return np.array(ys)


def split_heads(x, heads):
    return np.moveaxis(x.reshape(len(x), heads, -1), 1, 0)


def log_decay_of(params, steps):
    return -softplus(steps + params["decay_step_bias"]) * np.exp(params["decay_log_rate"])


def mamba2(net, params, xs):
    inner, n = net.heads * net.head_width, net.groups * net.state_size
    z, channels, steps = np.split(xs @ kernel(params, "project_in"), [inner, 2 * inner + 2 * n], 1)
    x, b, c = np.split(convolved(params, channels), [inner, inner + n], 1)
    sizes, decay, out = softplus(steps + params["decay_step_bias"]), log_decay_of(params, steps), []
    for h, head in enumerate(split_heads(x, net.heads)):
        maps = [split_heads(part, net.groups)[h * net.groups // net.heads] for part in (c, b)]
        y = read_memory(*maps, head * sizes[:, h : h + 1], decay[:, h])
        out.append(y + params["skip"][h] * head)
    return normed(np.concatenate(out, 1) * silu(z), params["norm"]["scale"]) @ kernel(params, "project_out")


def memory_core(net, params, xs):
    """Gated linear attention and DeltaNet, with and without gates."""
    channels = convolved(params, xs @ kernel(params, "project_in"))
    n = net.heads * net.key_width
    q, k, v = (split_heads(part, net.heads) for part in np.split(channels, [n, 2 * n], 1))
    delta, out = net.factory == "gated_delta_net", []
    for h in range(net.heads):
        decay, rate = np.zeros(len(xs)), None
        if delta:
            q[h], k[h] = (x[h] / np.sqrt(np.sum(x[h] ** 2, 1, keepdims=True) + 1e-6) for x in (q, k))
            rate = sigmoid(xs @ kernel(params, "project_rate"))[:, h]
            if net.gate:
                decay = log_decay_of(params, xs @ kernel(params, "project_decay"))[:, h]
        elif net.gate:
            up = params["decay_up"]
            logits = xs @ kernel(params, "decay_down") @ up["kernel"] + up["bias"]
            decay = np.log(sigmoid(split_heads(logits, net.heads)[h])) / 16
        y = read_memory(q[h] * (1 if delta else net.key_width**-0.5), k[h], v[h], decay, rate)
        out.append(normed(y, params["norm"]["scale"]))
    ys = np.concatenate(out, 1)
    return (ys * silu(xs @ kernel(params, "project_gate")) if net.gate else ys) @ kernel(params, "project_out")


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def aaren(net, params, xs):
    k, v = (split_heads(x, net.heads) for x in np.split(xs @ kernel(params, "project_in"), 2, 1))
    out = np.zeros((len(xs), net.heads, k.shape[2]))
    for h in range(net.heads):
        scores = k[h] @ params["query"][h] / np.sqrt(k.shape[2])
        for t in range(len(xs)):
            out[t, h] = softmax(scores[: t + 1]) @ v[h, : t + 1]
    return out.reshape(xs.shape) @ kernel(params, "project_out")


def attention(net, params, xs):
    q, k, v = (split_heads(x, net.heads) for x in np.split(xs @ kernel(params, "project_in"), 3, 1))
    width = k.shape[2]
    out = np.zeros((len(xs), net.heads, width))
    turn = 10_000.0 ** (-np.arange(width // 2) / (width / 2)) if net.rotary else np.zeros(width // 2)
    for h in range(net.heads):
        complex_q, complex_k = (x[h, :, : width // 2] + 1j * x[h, :, width // 2 :] for x in (q, k))
        for t in range(len(xs)):
            seen = np.arange(max(0, t + 1 - net.context), t + 1)
            turned = complex_k[seen] * np.exp(1j * np.multiply.outer(seen - t, turn))
            scores = np.real(np.conj(complex_q[t]) * turned).sum(1) / np.sqrt(width)
            out[t, h] = softmax(scores) @ v[h, seen]
    return out.reshape(xs.shape) @ kernel(params, "project_out")


ORACLES = {
    "mamba2": mamba2,
    "gated_linear_attention": memory_core,
    "gated_delta_net": memory_core,
    "aaren": aaren,
    "attention": attention,
}


@functools.cache
def parameters(name):
    """Larger than at first, so that no part of the layer is close to nothing; with an input and a state."""
    net, rng = CORES[name], np.random.default_rng(1)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((3, WIDTH)))
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), params)
    return params, jnp.asarray(rng.normal(size=(BEFORE + TIME, WIDTH)), jnp.float32)


@functools.cache
def compiled(name):
    net = CORES[name]
    return jax.jit(lambda params, xs, state, reset: net.apply(params, xs, state, reset))


@functools.cache
def warm(name):
    """A state that is not the initial one."""
    params, xs = parameters(name)
    return jax.jit(CORES[name].apply)(params, xs[:BEFORE])[1]


def close(got, wanted, tolerance=1e-5):
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def oracle(name, reset):
    """Each sequence between resets on its own, the first of them begun before."""
    params, xs = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters(name))
    edges = [0, *(np.flatnonzero(reset) + BEFORE), BEFORE + TIME]
    net = CORES[name]
    ys = [ORACLES[net.factory](net, params["params"], xs[i:j]) for i, j in itertools.pairwise(edges)]
    return np.concatenate(ys)[BEFORE:]


@ALL
@pytest.mark.parametrize("resets", [(), (0,), (4, 5, 17), (22,)])
def test_the_layer_is_the_loop_from_a_state_and_with_resets(name, resets):
    params, xs = parameters(name)
    reset = np.isin(np.arange(TIME), resets)
    ys, state = compiled(name)(params, xs[BEFORE:], warm(name), jnp.asarray(reset))
    close(ys, oracle(name, reset), 2e-5)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))


@ALL
def test_steps_are_the_sequence(name):
    """Outputs and states, with the state of one handed to the other."""
    net, (params, xs) = CORES[name], parameters(name)
    step = jax.jit(lambda params, x, state: net.apply(params, x, state, method="step"))
    no = jnp.zeros(TIME, bool)
    ys, final = compiled(name)(params, xs[BEFORE:], warm(name), no)
    state = warm(name)
    for x, y in zip(xs[BEFORE:], ys, strict=True):
        got, state = step(params, x, state)
        np.testing.assert_allclose(got, y, rtol=0, atol=2e-6 * np.abs(ys).max())
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    again, _ = compiled(name)(params, xs[:TIME], state, no.at[0].set(True))
    fresh, _ = compiled(name)(params, xs[:TIME], net.initial_state(), no)
    np.testing.assert_allclose(again, fresh, rtol=0, atol=1e-6 * np.abs(fresh).max())


def oracle_of_one(name):
    params, xs = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters(name))
    return ORACLES[CORES[name].factory](CORES[name], params["params"], xs[:1])[0]


@some("mamba2", "gated_delta_net", "attention")
def test_one_time_and_many_sequences(name):
    net, (params, xs) = CORES[name], parameters(name)
    many = jnp.stack([xs[:TIME], xs[BEFORE:]])
    states = jax.tree.map(lambda x, y: jnp.stack([x, y]), warm(name), net.initial_state())
    reset = jnp.stack([jnp.arange(TIME) == 3, jnp.arange(TIME) == 30])
    ys, _ = jax.jit(jax.vmap(net.apply, (None, 0, 0, 0)))(params, many, states, reset)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], (many, states, reset))
        close(ys[i], compiled(name)(params, *one)[0], 2e-6)
    one, _ = compiled(name)(params, xs[:1], net.initial_state(), jnp.zeros(1, bool))
    close(one[0], oracle_of_one(name), 2e-5)


@some("mamba2", "attention")
def test_gradients_are_those_of_steps(name):
    """With respect to the parameters, the input and the state; through a loop over `step` for the other."""
    net, (params, xs) = CORES[name], parameters(name)
    xs = xs[BEFORE : BEFORE + 12]
    weights = jnp.asarray(np.random.default_rng(2).normal(size=xs.shape), jnp.float32)
    floats, rest = jax.tree.flatten(warm(name))
    count = floats.pop() if name.endswith("attention") and floats[-1].dtype == jnp.int32 else None

    def kept(state):
        """What is read again: not the places of a cache that hold nothing yet."""
        return jnp.sum(jnp.sin(state.keys[: BEFORE + 12] if count is not None else jax.tree.leaves(state)[-1]))

    def start(floats):
        return jax.tree.unflatten(rest, floats if count is None else [*floats, count])

    def whole(params, xs, floats):
        ys, final = net.apply(params, xs, start(floats))
        return jnp.sum(ys * weights) + kept(final)

    def stepped(params, xs, floats):
        def one(state, x):
            y, state = net.apply(params, x, state, method="step")
            return state, y

        final, ys = jax.lax.scan(one, start(floats), xs)
        return jnp.sum(ys * weights) + kept(final)

    got, wanted = (jax.jit(jax.grad(f, (0, 1, 2)))(params, xs, floats) for f in (whole, stepped))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.all(np.isfinite(x))
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(0.1, np.abs(y).max()))


@some("aaren", "wide_attention")
def test_gradients_from_the_initial_state_are_finite(name):
    net, (params, xs) = CORES[name], parameters(name)
    reset = jnp.arange(TIME) == 5
    got = jax.jit(jax.grad(lambda p, x: jnp.sum(net.apply(p, x, None, reset)[0]), (0, 1)))(params, xs[:TIME])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got))


@ALL
def test_low_precision(name):
    net, (params, xs) = CORES[name], parameters(name)
    low, no = xs[:TIME].astype(jnp.bfloat16), jnp.zeros(TIME, bool)
    ys, state = compiled(name)(params, low, net.initial_state(), no)
    assert ys.dtype == jnp.bfloat16
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(state))
    wanted, _ = compiled(name)(params, low.astype(jnp.float32), net.initial_state(), no)
    close(np.asarray(ys, np.float64), wanted, 0.02)


@some("attention")
def test_double_precision_goes_in_and_out(name):
    """The state stays in single precision."""
    params, xs = jax.tree.map(np.asarray, parameters(name))
    with jax.enable_x64(True):
        ys, state = jax.jit(CORES[name].apply)(params, jnp.asarray(xs, jnp.float64))
        assert ys.dtype == jnp.float64
        assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(state))
    close(ys[:1], [oracle_of_one(name)], 2e-5)


@pytest.mark.slow
def test_a_stack_of_each():
    """Scanned over depth, with the state of one depth as of all."""
    for name in ("gated_delta_net", "attention", "aaren"):
        net, xs = sequence.stack(CORES[name], depth=2, output=3), parameters(name)[1]
        params = jax.jit(net.init)(jax.random.key(0), xs)
        run = jax.jit(net.apply)
        ys, _ = run(params, xs)
        _, state = run(params, xs[:BEFORE])
        tail, _ = run(params, xs[BEFORE:], state)
        close(tail, ys[BEFORE:], 1e-5)


def test_what_a_convolution_keeps(rng):
    xs, taps, state = rng.normal(size=(6, 2)), rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    whole = np.concatenate([state, xs])
    wanted = np.array([sum(taps[j] * whole[t + 3 - j] for j in range(4)) for t in range(6)])
    single = [jnp.asarray(x, jnp.float32) for x in (xs, taps, state)]
    ys, kept = causal_convolution(*single, None)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept, xs[3:], rtol=1e-6)
    ys, kept = causal_convolution(*single, jnp.arange(6) == 4)
    np.testing.assert_allclose(ys[:4], wanted[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ys[4:], [taps[0] * xs[4], taps[0] * xs[5] + taps[1] * xs[4]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept, [[0, 0], *xs[4:]], rtol=1e-6)
    _, kept = causal_convolution(single[0][:1], *single[1:], None)
    np.testing.assert_allclose(kept, [*state[1:], xs[0]], rtol=1e-6)


def test_bad_arguments():
    for function in (sequence.gated_linear_attention, sequence.gated_delta_net, sequence.aaren, sequence.attention):
        with pytest.raises(ValueError, match=r"heads is 3; expected a number that divides the width 8"):
            function(8, heads=3)
        with pytest.raises(ValueError, match="width is 0; expected a whole number"):
            function(0)
    assert sequence.gated_delta_net(8, heads=3, key_width=4, value_width=5).initial_state().memory.shape == (3, 4, 5)
    with pytest.raises(ValueError, match="mamba2: heads is 5; expected a number that divides expand \\* width = 16"):
        sequence.mamba2(8, heads=5)
    with pytest.raises(ValueError, match="mamba2: heads is 4, with heads of 8"):
        sequence.mamba2(8, heads=4, head_width=8)
    with pytest.raises(ValueError, match="mamba2: groups is 3"):
        sequence.mamba2(8, heads=4, groups=3)
    with pytest.raises(ValueError, match="method is associative"):
        sequence.mamba2(8, method="associative")
    with pytest.raises(ValueError, match="rank is 0"):
        sequence.gated_linear_attention(8, rank=0)
    with pytest.raises(ValueError, match="context is -1"):
        sequence.attention(8, context=-1)
    with pytest.raises(ValueError, match="heads of an even width, not 1"):
        sequence.attention(8, heads=8)
    xs = jnp.ones((4, 8))
    net = sequence.attention(8, context=5)
    with pytest.raises(ValueError, match=r"sequence.attention: state is .*expected .*keys \(5, 4, 2\)"):
        net.init(jax.random.key(0), xs, sequence.attention(8, context=4).initial_state())
    with pytest.raises(ValueError, match="sequence.mamba2: x is of shape"):
        sequence.mamba2(8).init(jax.random.key(0), xs, method="step")
