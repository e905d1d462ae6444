"""Attention, state-space and gated layers, each one recurrence h_t = L_t h_{t-1} + B_t u_t, read out by C_t.

The forms are those of Sieber, Amo Alonso, Didier, Zeilinger and Orvieto (2024), "Understanding the differences in
foundation models: attention, state space models, and recurrent neural networks". The references are the layers as their
own papers write them, in float64 NumPy: attention matrices for all pairs of times, or explicit loops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan

WIDTH, STATE = 4, 6
LENGTHS = [1, 7, 200]


def run(method, decay, increment):
    """The one call that every layer makes."""
    return scan.affine(decay, increment, method=method).states


def dot(a, b):
    return jnp.matmul(a, b, precision="highest")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


# --- linear attention: Katharopoulos, Vyas, Pappas and Fleuret (2020), with feature map elu + 1


def linear_attention(method, q, k, v):
    """L = eta_{t-1} / eta_t, one number a step; B u = phi(k_t) v_t^T / eta_t; C = phi(q_t)^T / (phi(q_t) . keys).

    eta_t is the mass of all keys so far, so that the state is a mean over keys and does not grow with time; what the
    normalisation of the layer has beyond it depends on the query, and is divided out when it is read.
    """
    phi_q, phi_k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    eta = run(method, jnp.ones(1), jnp.sum(phi_k, -1))
    before = jnp.concatenate([jnp.ones(1), eta[:-1]])
    keys = run(method, before / eta, phi_k / eta[:, None])
    pairs = run(method, before / eta, phi_k[:, :, None] * v[:, None, :] / eta[:, None, None])
    return jnp.einsum("tk,tkv->tv", phi_q, pairs, precision="highest") / jnp.sum(phi_q * keys, -1, keepdims=True)


def linear_attention_reference(q, k, v):
    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    weights = np.tril(phi(q) @ phi(k).T)
    return weights / weights.sum(-1, keepdims=True) @ v


# --- softmax attention: Vaswani et al. (2017); as a recurrence over keys: Feng et al. (2024), "Attention as an RNN"


def softmax_attention(method, q, k, v):
    """The state of every query holds the softmax over the keys so far; query t is read at time t."""
    scores = dot(q, k.T).T / np.float32(np.sqrt(q.shape[-1]))
    steps = len(q)
    keys = scan.monoids.RunningSoftmax(
        scores, jnp.ones_like(scores), jnp.broadcast_to(v[:, None], (steps, steps, v.shape[-1]))
    )
    states = scan.associative(jax.vmap(scan.monoids.softmax.combine), keys, method=method).states
    here = jnp.arange(steps)
    return states.numerator[here, here] / states.sum[here, here][:, None]


def softmax_attention_reference(q, k, v):
    scores = q @ k.T / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


# --- S6: Gu and Dao (2023), "Mamba", with Delta B for the discretised B


def s6(method, u, w_delta, b_delta, log_a, w_b, w_c, skip):
    """L = exp(Delta_t A), elementwise (time, channel, state); B u = Delta_t B(u_t) u_t; C = C(u_t)."""
    delta = jax.nn.softplus(dot(u, w_delta) + b_delta[None])
    decay = scan.Exponential(-delta[:, :, None] * jnp.exp(log_a)[None])
    increment = (delta * u)[:, :, None] * dot(u, w_b)[:, None, :]
    states = run(method, decay, increment)
    return jnp.einsum("tcn,tn->tc", states, dot(u, w_c), precision="highest") + skip[None] * u


def s6_reference(u, w_delta, b_delta, log_a, w_b, w_c, skip):
    """As attention: y_i = sum_j C_i^T exp(A (Delta_{j+1} + ... + Delta_i)) B_j Delta_j u_j."""
    delta = softplus(u @ w_delta + b_delta)
    clock = np.cumsum(delta, 0)
    b, c, y = u @ w_b, u @ w_c, skip * u
    for i in range(len(u)):
        for j in range(i + 1):
            kernel = np.exp(-np.exp(log_a) * (clock[i] - clock[j])[:, None])
            y[i] = y[i] + kernel @ (c[i] * b[j]) * delta[j] * u[j]
    return y


# --- RG-LRU: De et al. (2024), "Griffin", equations 1 to 4


def rg_lru(method, x, w_a, b_a, w_x, b_x, rate):
    """L = a_t = a^(8 r_t), elementwise and by its logarithm; B u = sqrt(1 - a_t^2) (i_t x_t)."""
    log_a = -8 * jax.nn.softplus(rate)[None] * jax.nn.sigmoid(dot(x, w_a) + b_a[None])
    gated = jax.nn.sigmoid(dot(x, w_x) + b_x[None]) * x
    return run(method, scan.Exponential(log_a), jnp.sqrt(-jnp.expm1(2 * log_a)) * gated)


def rg_lru_reference(x, w_a, b_a, w_x, b_x, rate):
    h, states = np.zeros(x.shape[1]), []
    for u in x:
        r, i = sigmoid(w_a.T @ u + b_a), sigmoid(w_x.T @ u + b_x)
        a = sigmoid(-rate) ** (8 * r)  # the paper's a is sigmoid of a parameter, here of minus `rate`
        h = a * h + np.sqrt(1 - a**2) * (i * u)
        states.append(h)
    return np.stack(states)


# --- qLSTM: an LSTM whose gates see the input only


def qlstm(method, u, w_f, w_i, w_o, w_g):
    """L = f_t, elementwise; B u = i_t tanh(g_t); the read-out is not linear."""
    cells = run(method, jax.nn.sigmoid(dot(u, w_f)), jax.nn.sigmoid(dot(u, w_i)) * jnp.tanh(dot(u, w_g)))
    return jax.nn.sigmoid(dot(u, w_o)) * jnp.tanh(cells)


def qlstm_reference(u, w_f, w_i, w_o, w_g):
    c, outputs = np.zeros(w_f.shape[1]), []
    for x in u:
        c = sigmoid(x @ w_f) * c + sigmoid(x @ w_i) * np.tanh(x @ w_g)
        outputs.append(sigmoid(x @ w_o) * np.tanh(c))
    return np.stack(outputs)


# --- a gated linear recurrence with a matrix: DeltaNet, Schlag, Irie and Schmidhuber (2021), with keys of length one


def delta_net(method, q, k, v, beta):
    """L = I - beta_t k_t k_t^T, a matrix; B u = beta_t k_t v_t^T, one column of the state for each value."""
    rate = jax.nn.sigmoid(beta)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    decay = jnp.eye(k.shape[-1])[None] - rate[:, None, None] * k[:, :, None] * k[:, None, :]
    increment = rate[:, None, None] * v[:, :, None] * k[:, None, :]  # (time, value, key): the matrix acts on the last
    states = run(method, decay[:, None], increment)
    return jnp.einsum("tvk,tk->tv", states, q, precision="highest")


def delta_net_reference(q, k, v, beta):
    memory, outputs = np.zeros((v.shape[1], k.shape[1])), []
    for q_t, k_t, v_t, beta_t in zip(q, k, v, beta, strict=True):
        k_t = k_t / np.linalg.norm(k_t)
        memory = memory + sigmoid(beta_t) * np.outer(v_t - memory @ k_t, k_t)
        outputs.append(memory @ q_t)
    return np.stack(outputs)


LAYERS = {
    "linear attention": (linear_attention, linear_attention_reference, ["t4", "t4", "t3"]),
    "softmax attention": (softmax_attention, softmax_attention_reference, ["t4", "t4", "t3"]),
    "S6": (s6, s6_reference, ["t4", "44", "4", "46", "46", "46", "4"]),
    "RG-LRU": (rg_lru, rg_lru_reference, ["t4", "44", "4", "44", "4", "4"]),
    "qLSTM": (qlstm, qlstm_reference, ["t4", "46", "46", "46", "46"]),
    "DeltaNet": (delta_net, delta_net_reference, ["t4", "t4", "t3", "t"]),
}


def arguments(name, steps):
    """Normal arrays of the shapes of a layer, where t is time; keys and queries have large scores among them."""
    rng = np.random.default_rng(steps)
    shapes = [[steps if axis == "t" else int(axis) for axis in text] for text in LAYERS[name][2]]
    scale = {"softmax attention": 3.0, "S6": 0.5}.get(name, 1.0)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


@functools.cache
def layer(name, method):
    return jax.jit(functools.partial(LAYERS[name][0], method))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("steps", "method"), [(1, "sequential"), (7, "auto"), (200, "sequential"), (200, "chunked"), (200, "associative")]
)
def test_layer_is_its_reference(name, steps, method):
    """To 1e-5 of the largest output, or of one."""
    given = arguments(name, steps)
    want = LAYERS[name][1](*[x.astype(np.float64) for x in given])
    got = np.asarray(layer(name, method)(*given), np.float64)
    assert got.shape == want.shape
    assert np.max(np.abs(got - want)) < 1e-5 * max(1.0, np.max(np.abs(want)))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_causal(name):
    """What comes later changes nothing before it."""
    given = arguments(name, 7)
    short = [x[:5] if text[0] == "t" else x for x, text in zip(given, LAYERS[name][2], strict=True)]
    np.testing.assert_allclose(
        layer(name, "sequential")(*given)[:5], layer(name, "sequential")(*short), rtol=1e-6, atol=1e-6
    )


def test_linear_attention_is_a_selective_state_space_layer():
    """Equal Lambda, B and C make equal layers: S6's scan with the log of linear attention's decay as Delta A."""
    _, k, v = arguments("linear attention", 40)
    phi = jax.nn.elu(k) + 1
    eta = jnp.cumsum(jnp.sum(phi, -1))
    log_decay = jnp.log(jnp.concatenate([jnp.ones(1), eta[:-1]])) - jnp.log(eta)
    increment = phi[:, :, None] * v[:, None, :] / eta[:, None, None]
    as_s6 = run("chunked", scan.Exponential(log_decay), increment)
    as_attention = jnp.cumsum(phi[:, :, None] * v[:, None, :], 0) / eta[:, None, None]
    np.testing.assert_allclose(as_s6, as_attention, rtol=0, atol=1e-5)


def test_softmax_attention_with_scores_that_overflow():
    """Scores of 1e4: the exponential of any is inf or 0 in float32."""
    q, k, v = arguments("softmax attention", 30)
    q, k = 60 * q, 60 * k
    want = softmax_attention_reference(*[x.astype(np.float64) for x in (q, k, v)])
    for method in ("sequential", "chunked"):
        got = layer("softmax attention", method)(q, k, v)
        # A rounding of a score of 1e4 is 1e-3, and so is the relative error of its weight.
        np.testing.assert_allclose(got, want, rtol=0, atol=0.02)
