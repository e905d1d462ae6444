"""S4D, S5 and LRU as loops in float64 NumPy, and what every one of them is held to."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxprob import scan

METHODS = ("sequential", "chunked", "associative")


def numbers(params):
    """Parameters in double precision, and complex weights of pairs."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params["params"].items()}
    for name in ("input", "output"):
        p[name] = p.pop(f"{name}_real") + 1j * p.pop(f"{name}_imaginary")
    return p


def continuous(p, discretization="zoh", rate=1.0):
    """Decay and gain of each mode of S4D or S5, by the textbook formulas."""
    a = -np.exp(p["decay_log_rate"]) + 1j * p["decay_frequency"]
    step = rate * np.exp(p["decay_log_step"])
    step = step[:, None] if a.ndim == 2 else step
    if discretization == "zoh":
        return np.exp(a * step), (np.exp(a * step) - 1) / a
    return (1 + a * step / 2) / (1 - a * step / 2), step / (1 - a * step / 2)


def s4d(params, xs, state, reset, discretization="zoh", rate=1.0):
    p = numbers(params)
    decay, gain = continuous(p, discretization, rate)

    def output(x, u):
        return 2 * (p["output"] * x).sum(-1).real + p["skip"] * u

    return loop(decay, [gain * p["input"] * u[:, None] for u in xs], output, xs, state, reset)


def s5(params, xs, state, reset, discretization="zoh", rate=1.0):
    p = numbers(params)
    decay, gain = continuous(p, discretization, rate)

    def output(x, u):
        return 2 * (p["output"] @ x).real + p["skip"] * u

    return loop(decay, [gain * (p["input"] @ u) for u in xs], output, xs, state, reset)


def lru(params, xs, state, reset):
    p = numbers(params)
    decay = np.exp(-np.exp(p["decay_log_rate"]) + 1j * np.exp(p["decay_log_phase"]))
    gain = np.sqrt(1 - abs(decay) ** 2)

    def output(x, u):
        return (p["output"] @ x).real + p["skip"] * u

    return loop(decay, [gain * (p["input"] @ u) for u in xs], output, xs, state, reset)


def loop(decay, increments, output, xs, state, reset):
    x = np.asarray(state.real, np.float64) + 1j * np.asarray(state.imaginary, np.float64)
    ys = []
    for u, b, r in zip(xs, increments, reset, strict=True):
        x = decay * (0 if r else x) + b
        ys.append(output(x, u))
    return np.stack(ys), x


def problem(net, steps, resets=(), seed=0):
    """Parameters, inputs, a state and a mask, drawn."""
    rng = np.random.default_rng([seed, steps])
    xs = rng.normal(size=(steps, net.width)).astype(np.float32)
    params = net.init(jax.random.key(seed), jnp.zeros((1, net.width)))
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), net.initial_state())
    reset = np.zeros(steps, bool)
    reset[list(resets)] = True
    return params, xs, state, reset


def close(got, wanted, tolerance):
    """Errors as a share of the largest number."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    size = np.max(np.abs(wanted))
    error = np.max(np.abs(got - wanted)) / (size if size > 0 else 1.0)
    assert error < tolerance, error


def as_numbers(state):
    return np.asarray(state.real) + 1j * np.asarray(state.imaginary)


def agrees(net, oracle, steps, resets=(), tolerance=1e-4):
    """A sequence against the loop, from a state on."""
    params, xs, state, reset = problem(net, steps, resets)
    ys, final = jax.jit(net.apply)(params, jnp.asarray(xs), state, jnp.asarray(reset) if resets else None)
    wanted, last = oracle(params, xs, state, reset)
    close(ys, wanted, tolerance)
    close(as_numbers(final), last, tolerance)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, final, ys))} == {np.dtype(np.float32)}


def steps_agree(net, oracle, steps):
    params, xs, state, reset = problem(net, steps)
    step = jax.jit(lambda x, state: net.apply(params, x, state, method="step"))
    wanted, last = oracle(params, xs, state, reset)
    ys = []
    for x in xs:
        y, state = step(jnp.asarray(x), state)
        ys.append(y)
    close(np.stack(ys), wanted, 1e-5)
    close(as_numbers(state), last, 1e-5)


def goes_on(net):
    """Two pieces are the whole, and no state is the initial one."""
    params, xs, _, _ = problem(net, 20)
    ys, final = net.apply(params, jnp.asarray(xs))
    head, state = net.apply(params, jnp.asarray(xs[:3]), net.initial_state())
    tail, last = net.apply(params, jnp.asarray(xs[3:]), state)
    close(np.concatenate([head, tail]), np.asarray(ys), 1e-5)
    close(as_numbers(last), as_numbers(final), 1e-5)


def loss_of(net, xs, state, reset):
    """A number in which every output and the last state weigh."""

    def loss(params, state):
        ys, final = net.apply(params, xs, state, reset)
        weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        last = sum(jnp.sum(x * jnp.sin(jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))) for x in final)
        return jnp.sum(weights * ys) + last

    return jax.grad(loss, (0, 1)), loss


def gradients_agree(nets, steps, resets=(), tolerance=1e-4):
    """The derivatives of one core by several methods, each leaf by its own size."""
    params, xs, state, reset = problem(nets[0], steps, resets)
    found = []
    for net in nets:
        grad, _ = loss_of(net, jnp.asarray(xs), state, jnp.asarray(reset) if resets else None)
        found.append(jax.jit(grad)(params, state))
    for other in found[1:]:
        jax.tree.map(lambda a, b: close(a, b, tolerance), other, found[0])


def gradients_are_differences(net, steps):
    """Against central differences in float64, along every coordinate of every leaf."""
    params, xs, state, _ = problem(net, steps)
    double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, state))
    grad, loss = loss_of(net, jnp.asarray(xs, jnp.float64), None, None)
    flat, back = ravel_pytree(double)
    both = jax.jit(jax.vmap(lambda x: loss(*back(x))))
    found = ravel_pytree(jax.jit(grad)(*double))[0]
    h = 1e-5
    moved = h * jnp.eye(flat.size)
    wanted = (both(jnp.expand_dims(flat, 0) + moved) - both(jnp.expand_dims(flat, 0) - moved)) / (2 * h)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def low_precision(net, oracle, params, steps=65_536):
    """bfloat16 in and out, for memories of 10,000 steps: what the loop makes of the same rounded inputs."""
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(steps, net.width)) + 0.5, jnp.bfloat16)
    ys, final = jax.jit(net.apply)(params, xs)
    assert ys.dtype == jnp.bfloat16
    assert final.real.dtype == jnp.float32
    wanted, last = oracle(params, np.asarray(xs, np.float64), net.initial_state(), np.zeros(steps, bool))
    close(np.asarray(ys, np.float64), wanted, 0.02)
    close(as_numbers(final), last, 0.02)


def batches_are_loops(net):
    params, _, _, _ = problem(net, 1)
    rng = np.random.default_rng(2)
    xs = jnp.asarray(rng.normal(size=(3, 33, net.width)), jnp.float32)
    ys, states = jax.vmap(lambda x: net.apply(params, x))(xs)
    for i in range(3):
        y, state = net.apply(params, xs[i])
        close(ys[i], y, 1e-5)
        close(as_numbers(scan.Complex(states.real[i], states.imaginary[i])), as_numbers(state), 1e-5)
