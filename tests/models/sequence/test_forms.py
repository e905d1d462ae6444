"""Every core in every form against its paper's step in double precision: outputs, last state and derivatives.

In float32 each is within 1e-4: outputs and the last state as a share of the largest number, the derivative with
respect to each array (parameters, inputs, state) as a share of the norm of that derivative. Inputs in bfloat16 leave
the outputs within 2 % of what the same rounded inputs give. States at first are not zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import scan
from jaxprob.models import sequence
from jaxprob.scan.monoids import RunningSoftmax
from tests.models.sequence._references import trajectory

WIDTH, CONTEXT = 4, 6


def by_method(factory, methods, **options):
    return {method: factory(method=method, **options) for method in methods}


AFFINE, CHUNKS = ("sequential", "chunked", "associative"), ("sequential", "chunked")
CORES = {
    "s4d": by_method(sequence.s4d, ("convolution", *AFFINE), width=WIDTH, state=4, step_min=1e-4),
    "s5": by_method(sequence.s5, AFFINE, width=WIDTH, state=8, step_min=1e-4),
    "lru": by_method(sequence.lru, AFFINE, width=WIDTH, state=5, radius_min=0.9, radius_max=0.9999),
    "mamba2": by_method(sequence.mamba2, CHUNKS, width=WIDTH, state=3, heads=4, groups=2),
    "gated_linear_attention": by_method(sequence.gated_linear_attention, CHUNKS, width=WIDTH, heads=2, rank=3),
    "gated_delta_net": by_method(sequence.gated_delta_net, CHUNKS, width=WIDTH, heads=2, key_width=3),
    "aaren": by_method(sequence.aaren, AFFINE, width=WIDTH, heads=2),
    "attention": {"blocks": sequence.attention(WIDTH, heads=2, context=CONTEXT)},
    "elman": {"sequential": sequence.elman(WIDTH)},
    "gru": {"sequential": sequence.gru(WIDTH, horizon=100)},
    "lstm": {"sequential": sequence.lstm(WIDTH, horizon=100, peephole=True)},
    "min_gru": by_method(sequence.min_gru, AFFINE, width=WIDTH, horizon=10_000),
    "min_lstm": by_method(sequence.min_lstm, AFFINE, width=WIDTH, horizon=10_000),
    "para_gru": by_method(sequence.para_gru, ("newton", "sequential"), width=WIDTH, horizon=100),
    "para_lstm": by_method(sequence.para_lstm, ("newton", "sequential"), width=WIDTH, horizon=100),
    "ar_net": {"whole": sequence.ar_net(WIDTH, order=5)},
}


@functools.cache
def parameters(name):
    """Those at first, and a little more where that is zero."""
    net, rng = next(iter(CORES[name].values())), np.random.default_rng(1)
    params = jax.jit(net.init)(jax.random.key(2), jnp.zeros((1, WIDTH)))

    def moved(path, leaf):
        scale = 0.01 if "decay" in jax.tree_util.keystr(path) else 0.1
        return leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(moved, params)


def problem(name, time, resets):
    net, rng = next(iter(CORES[name].values())), np.random.default_rng([3, time])
    xs = rng.normal(size=(time, WIDTH)).astype(np.float32)
    if name == "attention":
        state = rng.normal(size=(CONTEXT, WIDTH)).astype(np.float32)
    else:
        state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), net.initial_state())
    if name == "aaren":
        state = state._replace(sum=np.exp(state.sum))
    reset = np.zeros(time, bool)
    reset[[int(share * (time - 1)) for share in resets]] = True
    return parameters(name), xs, state, reset


def first_state(net, params, state):
    """A cache is filled by inputs, so that these are its state here."""
    return net.apply(params, state)[1] if net.factory == "attention" else state


def first_of_reference(net, state):
    """The same as the reference has it."""
    if net.factory == "attention":
        return {"inputs": state, "there": jnp.ones(CONTEXT, state.dtype)}
    if isinstance(state, RunningSoftmax):
        size = jnp.exp(state.max)
        return {"sum": state.sum * size, "values": state.numerator * jnp.expand_dims(size, 1)}
    if hasattr(state, "_asdict"):
        return {key: value for key, value in state._asdict().items() if value is not None}
    return state


def last(net, final):
    """Of a last state what both have: a mean of values, and nothing of a cache."""
    if net.factory == "attention":
        return []
    if isinstance(final, RunningSoftmax):
        return [final.numerator / jnp.expand_dims(final.sum, 1)]
    if net.factory == "aaren":
        return [final["values"] / jnp.expand_dims(final["sum"], 1)]
    if isinstance(final, dict) and "real" in final:
        return [final["real"], final["imaginary"]]
    return jax.tree.leaves(final)


def reference(net, params, xs, state, reset):
    return trajectory(net, params, xs, first_of_reference(net, state), reset)


def whole(net, params, xs, state, reset):
    return net.apply(params, xs, first_state(net, params, state), reset)


def steps(net, params, xs, state, reset):
    def one(state, x):
        begins, x = x
        state = jax.tree.map(lambda old, new: jnp.where(begins, new, old), state, net.initial_state())
        return net.apply(params, x, state, method="step")[::-1]

    final, ys = scan.scan(one, first_state(net, params, state), (reset, xs))
    return ys, final


def run_of(run, net, time, dtype):
    """Derivatives of a number in which each output and the last state weigh; outputs and last state."""
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(time, WIDTH)), dtype)

    def loss(params, xs, state, reset):
        ys, final = run(net, params, xs, state, reset)
        final = last(net, final)
        return jnp.sum(weights * ys) + sum(jnp.sum(jnp.sin(x)) for x in final), (ys, final)

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def errors(name, time, resets, *, long=False):
    """For each form, errors by what they are of."""
    params, xs, state, reset = problem(name, time, resets)
    if long:
        params, xs = long_memory(name), (0.3 + 0.5 * xs).astype(np.float32)
    net = next(iter(CORES[name].values()))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, xs, state))
        wanted = jax.tree.map(np.asarray, run_of(reference, net, time, jnp.float64)(*double, jnp.asarray(reset)))
    nets = {**CORES[name], "step": net}
    found = {}
    for form, net in nets.items():
        run = steps if form == "step" else whole
        given = jnp.asarray(reset) if resets or form == "step" else None
        if form == "convolution" and resets:
            continue
        got = run_of(run, net, time, jnp.float32)(params, *jax.tree.map(jnp.asarray, (xs, state)), given)
        found[form] = compared(got, wanted)
    return found


def compared(got, wanted):
    (gradient, (ys, final)), (exact, (outputs, state)) = got, wanted
    out = {"outputs": share(ys, outputs, np.inf)}
    out |= {f"state {i}": share(x, y, np.inf) for i, (x, y) in enumerate(zip(final, state, strict=True))}
    pairs = zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(exact), strict=True)
    # Some are zero, of the weights of a single value say, but for the rounding of the reference.
    largest = max(np.linalg.norm(np.ravel(x)) for x in jax.tree.leaves(exact))
    return out | {f"derivative {jax.tree_util.keystr(path)}": share(x, y, 2, largest) for (path, x), y in pairs}


def share(got, wanted, order, largest=0.0):
    """The size of the error, of that of what is wanted; of the largest of all where that is nothing but rounding."""
    got, wanted = (np.asarray(x, np.float64).ravel() for x in (got, wanted))
    assert got.shape == wanted.shape
    size = np.linalg.norm(wanted, order)
    return np.linalg.norm(got - wanted, order) / ((size if size > 1e-12 * largest else largest) or 1.0)


RESETS = (0.0, 0.4, 1.0)
# Those that compile quickly.
DEFAULT = ("lru", "attention", "elman", "gru", "lstm", "min_gru", "ar_net")
SLOW = [(1, (0.0,)), (7, ()), (1024, RESETS), (16_384, ()), (16_384, RESETS)]


@pytest.mark.parametrize(
    ("name", "time", "resets"),
    [(name, 7, RESETS) if name in DEFAULT else pytest.param(name, 7, RESETS, marks=pytest.mark.slow) for name in CORES]
    + [pytest.param(name, *case, marks=pytest.mark.slow) for name in CORES for case in SLOW],
)
def test_every_form_is_the_reference_with_its_derivatives(name, time, resets):
    for form, found in errors(name, time, resets).items():
        assert max(found.values()) < 1e-4, (form, found)


@pytest.mark.parametrize("name", CORES)
def test_parameters_in_bfloat16_are_numbers_like_others(name):
    """As `learning.Task(compute_dtype=jnp.bfloat16)` gives them."""
    net, (params, xs, state, _) = next(iter(CORES[name].values())), problem(name, 7, ())
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    apply = jax.jit(lambda params: net.apply(params, xs, first_state(net, params, state))[0])
    got, wanted = apply(low), apply(rounded)
    assert got.dtype == jnp.float32
    # What is made of parameters alone may be rounded to eight bits once more.
    assert share(got, wanted, np.inf) < 0.02


def long_memory(name):
    """Parameters with which decays reach 0.9999, and inputs whose mean is not zero."""
    params = jax.tree.map(jnp.asarray, parameters(name))
    p = params["params"]
    rates = jnp.array([1e-4, 3e-4, 1e-3, 1e-2, 0.1], jnp.float32)
    if name in ("s4d", "s5"):
        p |= {"decay_log_rate": jnp.zeros_like(p["decay_log_rate"]), "decay_log_step": jnp.log(rates[:WIDTH])}
    elif name == "lru":
        p |= {"decay_log_rate": jnp.log(rates)}
    elif name in ("mamba2", "gated_delta_net"):
        heads = p["decay_step_bias"].shape[0]
        p |= {"decay_log_rate": jnp.zeros(heads), "decay_step_bias": jnp.log(rates[:heads])}
    elif name == "gated_linear_attention":
        p["decay_up"] |= {"bias": p["decay_up"]["bias"] + 6.4}
    elif name in KEPT:
        p["inward"] |= {"bias": jnp.concatenate([jnp.full(WIDTH, float(x)) for x in KEPT[name]])}
    return params


# Biases of gates with which a unit keeps 0.9999 where its gates see nothing else.
KEPT = {
    "gru": (0, 9.2, 0),
    "lstm": (-9.2, 9.2, 0, 0),
    "min_gru": (-9.2, 0),
    "min_lstm": (9.2, -9.2, 0),
    "para_gru": (-9.2, 0, 0),
    "para_lstm": (9.2, 0, 0),
}


def errors_of_low_precision(name, time):
    """Of outputs and the last state, for inputs in bfloat16: largest by largest, and root mean square by that."""
    params, xs, state, reset = problem(name, time, (0.1,))
    params, xs = long_memory(name), jnp.asarray(0.3 + 0.5 * xs, jnp.bfloat16)
    net = next(iter(CORES[name].values()))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, xs, state))
        ys, final = jax.jit(functools.partial(reference, net))(*double, jnp.asarray(reset))
        wanted = jax.tree.map(np.asarray, (ys, last(net, final)))
    found = {}
    nets = {**CORES[name], "step": net}
    for form, net in nets.items():
        if form in ("associative", "convolution"):
            continue
        run = jax.jit(functools.partial(steps if form == "step" else whole, net))
        got, final = run(params, xs, jax.tree.map(jnp.asarray, state), jnp.asarray(reset))
        assert got.dtype == jnp.bfloat16
        assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(final))
        pairs = {"outputs": (got, wanted[0])}
        pairs |= {f"state {i}": pair for i, pair in enumerate(zip(last(net, final), wanted[1], strict=True))}
        found[form] = {f"{key} {order}": share(x, y, order) for key, (x, y) in pairs.items() for order in (2, np.inf)}
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CORES])
def test_low_precision_over_65536_steps(name):
    for form, found in errors_of_low_precision(name, 65_536).items():
        assert max(found.values()) < 0.02, (form, found)


# Not LRU, whose angles of size one are rounded before they are multiplied by 10,000; not gated linear attention, whose
# norm leaves next to nothing of the derivative with respect to decays that are all alike.
LONG = ("s4d", "s5", "mamba2", "gated_delta_net", "gru", "lstm", "min_gru", "min_lstm", "para_lstm")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in LONG])
def test_memories_of_10000_steps(name):
    """Where rounding to one side would add up: decays of 0.9999 all the time, and inputs whose mean is not zero."""
    for form, found in errors(name, 16_384, (0.1,), long=True).items():
        assert max(found.values()) < 1e-4, (form, found)
