"""Every core as the step of its paper, in double precision and by JAX so that derivatives come along.

Nothing here is the package's but the names of parameters and states. `trajectory` runs a step over a sequence.
"""

import functools

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, silu, softplus


def standard(function):
    """With NumPy's rules of promotion, which keep formulas short."""

    @functools.wraps(function)
    def wrapped(*arguments):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return wrapped


@standard
def trajectory(net, params, xs, state, reset):
    """Outputs and the last state of the reference of a core, from a state on and from the first one at a reset."""
    step, p = REFERENCES[net.factory], params["params"]
    fresh = jax.tree.map(jnp.zeros_like, state)

    def one(state, x):
        begins, x = x
        state = jax.tree.map(lambda old, new: jnp.where(begins, new, old), state, fresh)
        return step(net, p, state, x)

    final, ys = jax.lax.scan(one, state, (reset, xs))
    return ys, final


def pair(x):
    return x["real"] + 1j * x["imaginary"]


def weights(p, name):
    return p[f"{name}_real"] + 1j * p[f"{name}_imaginary"]


def held(p, step):
    """Zero-order hold: what multiplies the state and the input."""
    a = -jnp.exp(p["decay_log_rate"]) + 1j * p["decay_frequency"]
    return jnp.exp(a * step), (jnp.exp(a * step) - 1) / a


def s4d(net, p, state, x):
    decay, gain = held(p, jnp.exp(p["decay_log_step"])[:, None])
    h = decay * pair(state) + gain * weights(p, "input") * x[:, None]
    y = 2 * jnp.sum(weights(p, "output") * h, -1).real + p["skip"] * x
    return {"real": h.real, "imaginary": h.imag}, y


def s5(net, p, state, x):
    decay, gain = held(p, jnp.exp(p["decay_log_step"]))
    h = decay * pair(state) + gain * (weights(p, "input") @ x)
    return {"real": h.real, "imaginary": h.imag}, 2 * (weights(p, "output") @ h).real + p["skip"] * x


def lru(net, p, state, x):
    decay = jnp.exp(-jnp.exp(p["decay_log_rate"]) + 1j * jnp.exp(p["decay_log_phase"]))
    gain = jnp.sqrt(1 - jnp.exp(-2 * jnp.exp(p["decay_log_rate"])))
    h = decay * pair(state) + gain * (weights(p, "input") @ x)
    return {"real": h.real, "imaginary": h.imag}, (weights(p, "output") @ h).real + p["skip"] * x


def normed(x, p):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * p["norm"]["scale"]


def convolved(p, state, x):
    """The inputs that are kept and the silu of a convolution with them."""
    if "convolve" not in p:
        return None, x
    taps = p["convolve"]["kernel"]
    inputs = jnp.concatenate([state["convolution"], x[None]])
    return inputs[1:], silu(jnp.sum(taps[::-1] * inputs, 0) + p["convolve"]["bias"])


def remembered(window, memory):
    return {"memory": memory} if window is None else {"convolution": window, "memory": memory}


def mamba2(net, p, state, x):
    inner, n = net.heads * net.head_width, net.groups * net.state_size
    z, channels, d = jnp.split(x @ p["project_in"]["kernel"], [inner, 2 * inner + 2 * n])
    window, channels = convolved(p, state, channels)
    u, b, c = jnp.split(channels, [inner, inner + n])
    u = u.reshape(net.heads, -1)
    b, c = (jnp.repeat(part.reshape(net.groups, -1), net.heads // net.groups, 0) for part in (b, c))
    size = softplus(d + p["decay_step_bias"])
    decay = jnp.exp(-size * jnp.exp(p["decay_log_rate"]))
    memory = decay[:, None, None] * state["memory"] + b[:, :, None] * (size[:, None] * u)[:, None]
    y = jnp.einsum("hnv,hn->hv", memory, c) + p["skip"][:, None] * u
    return remembered(window, memory), normed(y.ravel() * silu(z), p) @ p["project_out"]["kernel"]


def of_heads(net, p, state, x):
    window, channels = convolved(p, state, x @ p["project_in"]["kernel"])
    n = net.heads * net.key_width
    return window, [part.reshape(net.heads, -1) for part in jnp.split(channels, [n, 2 * n])]


def read(p, x, memory, query):
    y = normed(jnp.einsum("hkv,hk->hv", memory, query), p).ravel()
    return y * silu(x @ p["project_gate"]["kernel"]) @ p["project_out"]["kernel"]


def gated_linear_attention(net, p, state, x):
    window, (q, k, v) = of_heads(net, p, state, x)
    logits = x @ p["decay_down"]["kernel"] @ p["decay_up"]["kernel"] + p["decay_up"]["bias"]
    decay = sigmoid(logits).reshape(k.shape) ** (1 / 16)
    memory = decay[:, :, None] * state["memory"] + k[:, :, None] * v[:, None]
    return remembered(window, memory), read(p, x, memory, q / jnp.sqrt(net.key_width))


def gated_delta_net(net, p, state, x):
    window, (q, k, v) = of_heads(net, p, state, x)
    q, k = (part / jnp.sqrt(jnp.sum(part**2, 1, keepdims=True) + 1e-6) for part in (q, k))
    size = softplus(x @ p["project_decay"]["kernel"] + p["decay_step_bias"])
    memory = jnp.exp(-size * jnp.exp(p["decay_log_rate"]))[:, None, None] * state["memory"]
    wanted = v - jnp.einsum("hkv,hk->hv", memory, k)
    memory = memory + sigmoid(x @ p["project_rate"]["kernel"])[:, None, None] * k[:, :, None] * wanted[:, None]
    return remembered(window, memory), read(p, x, memory, q)


def aaren(net, p, state, x):
    """The state is the sum of exponentials and that of weighted values."""
    k, v = (part.reshape(net.heads, -1) for part in jnp.split(x @ p["project_in"]["kernel"], 2))
    weight = jnp.exp(jnp.sum(k * p["query"], 1) / jnp.sqrt(k.shape[1]))
    total, values = state["sum"] + weight, state["values"] + weight[:, None] * v
    return {"sum": total, "values": values}, (values / total[:, None]).ravel() @ p["project_out"]["kernel"]


def attention(net, p, state, x):
    """The state is the last `context` inputs, and which of them there were."""
    inputs, there = (
        jnp.concatenate([old[1:], new[None]]) for old, new in ((state["inputs"], x), (state["there"], jnp.ones(())))
    )
    whole = (inputs @ p["project_in"]["kernel"]).reshape(net.context, 3, net.heads, -1)
    half = whole.shape[3] // 2
    q, k = (whole[:, i, :, :half] + 1j * whole[:, i, :, half:] for i in (0, 1))
    turn = jnp.arange(net.context)[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    scores = jnp.real(jnp.conj(q[-1]) * k * jnp.exp(1j * (turn - turn[-1]))[:, None]).sum(-1) / jnp.sqrt(2 * half)
    share = there[:, None] * jnp.exp(scores)
    y = jnp.einsum("th,thd->hd", share / share.sum(0), whole[:, 2])
    return {"inputs": inputs, "there": there}, y.ravel() @ p["project_out"]["kernel"]


def gates(p, x, h=None):
    inward = x @ p["inward"]["kernel"] + p["inward"]["bias"]
    return inward if h is None else inward + h @ p["recurrent"]


def elman(net, p, h, x):
    h = jnp.tanh(gates(p, x, h))
    return h, h


def gru(net, p, h, x):
    inward, back = jnp.split(gates(p, x), 3), jnp.split(h @ p["recurrent"], 3)
    z = sigmoid(inward[1] + back[1])
    new = jnp.tanh(inward[2] + sigmoid(inward[0] + back[0]) * (back[2] + p["candidate_bias"]))
    h = (1 - z) * new + z * h
    return h, h


def lstm(net, p, state, x):
    i, f, g, o = jnp.split(gates(p, x, state["h"]), 4)
    c = state["c"]
    c = sigmoid(f + p["peepholes"][1] * c) * c + sigmoid(i + p["peepholes"][0] * c) * jnp.tanh(g)
    h = sigmoid(o + p["peepholes"][2] * c) * jnp.tanh(c)
    return {"c": c, "h": h}, h


def min_gru(net, p, h, x):
    z, value = jnp.split(gates(p, x), 2)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * value
    return h, h


def min_lstm(net, p, h, x):
    f, i, value = jnp.split(gates(p, x), 3)
    f, i = sigmoid(f), sigmoid(i)
    h = (f * h + i * value) / (f + i)
    return h, h


def para_gru(net, p, h, x):
    (z, r, new), a = jnp.split(gates(p, x), 3), p["own"]
    z = sigmoid(z + a[0] * h)
    h = (1 - z) * h + z * jnp.tanh(new + a[2] * sigmoid(r + a[1] * h) * h)
    return h, h


def para_lstm(net, p, state, x):
    (f, new, o), a, (c, h) = jnp.split(gates(p, x), 3), p["own"], (state["c"], state["h"])
    f = sigmoid(f + a[0] * h + a[3] * c)
    c = f * c + (1 - f) * jnp.tanh(new + a[1] * h)
    h = sigmoid(o + a[2] * h + a[4] * c) * jnp.tanh(c)
    return {"c": c, "h": h}, h


def ar_net(net, p, state, x):
    inputs = jnp.concatenate([state, x[None]])
    return inputs[1:], jnp.einsum("koi,ki->o", p["coefficients"][::-1], inputs) + p["bias"]


REFERENCES = {
    function.__name__: function
    for function in (
        s4d, s5, lru, mamba2, gated_linear_attention, gated_delta_net, aaren, attention,
        elman, gru, lstm, min_gru, min_lstm, para_gru, para_lstm, ar_net,
    )
}  # fmt: skip
