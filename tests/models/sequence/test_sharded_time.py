"""Linear cores with time over devices: the values and gradients of one device, and no (time, ...) array is gathered."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprob
from jaxprob import learning, runtime
from jaxprob.models import sequence

WIDTH, TIME, BATCH = 8, 64, 4

CORES = {
    "s4d": sequence.s4d(WIDTH, state=4),
    "s4d, recurrence": sequence.s4d(WIDTH, state=4, method="chunked"),
    "s5": sequence.s5(WIDTH, state=6),
    "lru": sequence.lru(WIDTH, state=6),
    "min_gru": sequence.min_gru(WIDTH),
    "min_lstm": sequence.min_lstm(WIDTH, state=5),
    "mamba2": sequence.mamba2(WIDTH, state=4, heads=2, chunk=4),
    "gated_linear_attention": sequence.gated_linear_attention(WIDTH, heads=2, chunk=4),
    "linear attention": sequence.gated_linear_attention(WIDTH, heads=2, gate=False, convolution=4, chunk=4),
    "gated_delta_net": sequence.gated_delta_net(WIDTH, heads=2, chunk=4),
    "gated_delta_net, steps": sequence.gated_delta_net(WIDTH, heads=2, method="sequential"),
    "aaren": sequence.aaren(WIDTH, heads=2),
}


def time_mesh(data=1, time=8):
    return Mesh(np.asarray(jax.devices()[: data * time]).reshape(data, time), ("data", "time"))


def close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        assert np.max(np.abs(a - b)[finite], initial=0.0) <= tolerance * max(
            1.0, np.max(np.abs(b[finite]), initial=0.0)
        )


def problem(core, resets, batch=BATCH, time=TIME):
    """Parameters, a state in the middle of a sequence, inputs, and resets at awkward places."""
    params = core.init(jax.random.key(0), jnp.zeros((2, WIDTH)))
    before = jax.random.normal(jax.random.key(1), (batch, 9, WIDTH))
    states = jax.vmap(lambda x: core.apply(params, x)[1])(before)
    xs = jax.random.normal(jax.random.key(2), (batch, time, WIDTH))
    # At the edges of pieces, beside them, first and last; one sequence has none.
    reset = np.zeros((batch, time), bool)
    for row, places in enumerate([(0, 8, 15), (7, 9, 63), (), (16, 17, 33)]):
        reset[row % batch, [p for p in places if p < time]] = True
    return params, states, xs, jnp.asarray(reset) if resets else None


def values(core):
    def run(params, states, xs, reset):
        return jax.vmap(lambda x, s, r: core.apply(params, x, s, r), (0, 0, None if reset is None else 0))(
            xs, states, reset
        )

    return run


def loss(core):
    def run(params, states, xs, reset):
        ys, after = values(core)(params, states, xs, reset)
        return jnp.mean(jnp.sin(ys)) + sum(jnp.mean(jnp.cos(x)) for x in jax.tree.leaves(after))

    return run


def put(mesh, params, states, xs, reset):
    def lie(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    cut = P("data", "time")
    return lie(params, P()), lie(states, P("data")), lie(xs, cut), None if reset is None else lie(reset, cut)


def on_mesh(mesh, function, arguments):
    """The function compiled for a mesh that is in force, with batch and time of its arguments cut."""
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*put(mesh, *arguments)).compile()


QUICK = {("s4d", False), ("s5", True), ("gated_delta_net", True)}


@pytest.mark.parametrize(
    ("name", "resets"),
    [
        pytest.param(name, resets, marks=() if (name, resets) in QUICK else pytest.mark.slow)
        for name in CORES
        for resets in (False, True)
    ],
)
def test_eight_devices_give_what_one_gives(name, resets):
    core = CORES[name]
    arguments = problem(core, resets)

    def both(params, states, xs, reset):
        gradient = jax.grad(loss(core), (0, 1, 2))(params, states, xs, reset)
        return values(core)(params, states, xs, reset), gradient

    wanted, wanted_gradient = jax.jit(both)(*arguments)
    mesh = time_mesh()
    got, gradient = on_mesh(mesh, both, arguments)(*put(mesh, *arguments))
    close(got, wanted, 1e-5)
    close(gradient, wanted_gradient, 1e-4)


def gathered(text):
    """The most numbers that one operation of a compiled program brings together from several devices."""
    sizes = [0]
    for line in text.splitlines():
        found = re.search(r" (?:all-gather|all-to-all)(?:-start)?\(", line)
        if found:
            shapes = re.findall(r"\w\[([\d,]*)\]", line[: found.start()])
            sizes.append(sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes))
    return max(sizes)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mamba2" else pytest.mark.slow) for name in CORES]
)
def test_nothing_as_long_as_time_is_gathered(name):
    core = CORES[name]
    arguments, mesh = problem(core, True, batch=2, time=2048), time_mesh(2, 4)
    text = on_mesh(mesh, jax.value_and_grad(loss(core)), arguments).as_text()
    assert 0 < gathered(text) < 2048
    # Without a short convolution nothing but the ends of pieces goes to other devices, and those are gathered.
    assert "collective-permute" in text or name in ("gated_linear_attention", "aaren")


def test_the_count_sees_a_gathered_sequence():
    mesh = time_mesh()
    xs = jax.device_put(jnp.zeros((2048, WIDTH)), NamedSharding(mesh, P("time")))
    for function in (lambda x: jnp.sort(x, 0), lambda x: jnp.fft.rfft(x, axis=0).real):
        assert gathered(jax.jit(function).lower(xs).compile().as_text()) >= 2048


def network(pool=None, **options):
    core = sequence.bidirectional(sequence.lru(WIDTH, state=4))
    return sequence.stack([sequence.mamba2(WIDTH, state=4, heads=2, chunk=4), core], 4, 3, pool=pool, **options)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [None, "mean", "last"])
def test_a_deep_network_on_data_and_time(pool):
    net = network(pool, remat=pool is None, mlp=2.0)
    params = net.init(jax.random.key(0), jnp.zeros((2, WIDTH)))
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)), net.initial_state())
    _, _, xs, reset = problem(CORES["lru"], True)

    def both(params, states, xs, reset):
        gradient = jax.grad(loss(net), (0, 2))(params, states, xs, reset)
        return values(net)(params, states, xs, reset), gradient

    arguments = (params, states, xs, reset)
    wanted, wanted_gradient = jax.jit(both)(*arguments)
    mesh = time_mesh(2, 4)
    got, gradient = on_mesh(mesh, both, arguments)(*put(mesh, *arguments))
    close(got, wanted, 1e-5)
    close(gradient, wanted_gradient, 1e-4)


def task(net, seen=None):
    def loss(params, batch, key):
        if seen is not None:
            seen.append(jax.sharding.get_abstract_mesh().shape)
        ys = jax.vmap(lambda xs: net.apply(params, xs)[0])(batch["xs"])
        return jnp.mean((ys - batch["ys"]) ** 2)

    return learning.Task(lambda key: net.init(key, jnp.zeros((1, 2))), loss, optax.adam(3e-3), ema=0.9)


def data(time=32):
    xs = np.random.default_rng(0).normal(size=(24, time, 2)).astype(np.float32)
    return learning.data.arrays({"xs": xs, "ys": np.cumsum(xs, 1)[..., :1] * np.float32(0.1)}, 8)


def test_fit_cuts_time():
    net = sequence.stack(sequence.s5(WIDTH, state=4), 2, 1)
    seen = []

    def fit(devices, task):
        options = {"validation": data(), "evaluate_every": 6, "log_every": 1, "progress": None}
        return jaxprob.fit(task, data(), steps=12, devices=devices, **options)

    alone, cut = fit(1, task(net)), fit(runtime.mesh(data=2, time=4), task(net, seen))
    assert {"data": 2, "model": 1, "time": 4} in seen
    for name, numbers in alone.history.items():
        np.testing.assert_allclose(cut.history[name], numbers, rtol=2e-4, atol=1e-5)
    close(cut.params, alone.params, 1e-4)


def test_what_cannot_be_cut_says_so():
    others = {
        "gru": sequence.gru(WIDTH),
        "lstm": sequence.lstm(WIDTH),
        "para_gru": sequence.para_gru(WIDTH),
        "attention": sequence.attention(WIDTH, heads=2),
    }
    for name, net in others.items():
        said = rf"^sequence.{name}: xs is cut in 8 pieces by the mesh's axis 'time'; expected a whole sequence"
        net = sequence.stack(net, 1, 1)
        params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 3)))
        with jax.set_mesh(time_mesh()), pytest.raises(ValueError, match=said) as caught:
            jax.eval_shape(net.apply, params, jnp.ones((16, 3)))
        assert "\n" not in str(caught.value)
    steps = {"steps": 3, "devices": runtime.mesh(data=2, time=4), "progress": None}
    with pytest.raises(ValueError, match=r"^sequence.gru: xs is cut in 4 pieces"):
        jaxprob.fit(task(sequence.gru(2)), data(), **steps)
    said = (
        r"^fit: devices is a mesh of 4 devices along 'time' for leaves of shapes \(8, 30, 2\), \(8, 30, 1\); expected"
    )
    with pytest.raises(ValueError, match=said) as caught:
        jaxprob.fit(task(sequence.stack(sequence.lru(WIDTH), 1, 1)), data(30), **steps)
    assert "\n" not in str(caught.value)
    net = sequence.lru(WIDTH)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, WIDTH)))
    with jax.set_mesh(time_mesh()):
        with pytest.raises(ValueError, match=r"^sequence.lru: xs is of 30 times; expected a multiple of the mesh's 8"):
            jax.eval_shape(net.apply, params, jnp.ones((30, WIDTH)))
        # One time is one time, and parameters are made with any number.
        for made, time in ((net, 3), (sequence.gru(WIDTH), 8)):
            jax.eval_shape(made.init, jax.random.key(0), jnp.ones((time, WIDTH)))
        jax.eval_shape(lambda params, x: net.apply(params, x, method="step"), params, jnp.ones(WIDTH))


@pytest.mark.slow
def test_a_piece_shorter_than_the_convolution():
    core = sequence.mamba2(WIDTH, state=2, heads=2, convolution=4, chunk=4)
    arguments, mesh = problem(core, True, batch=2, time=16), time_mesh()
    wanted = jax.jit(values(core))(*arguments)
    close(on_mesh(mesh, values(core), arguments)(*put(mesh, *arguments)), wanted, 1e-5)
