"""A stack equals its blocks one after another, whole, in pieces and by steps; depth does not make programs longer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.models.sequence import Core
from jaxprob.models.sequence._core import linear_states


class Decay(Core):
    """s_t = a s_{t-1} + x_t with a learned a, y = s."""

    factory = "decay"

    def setup(self):
        self.a = self.param("a", jax.random.uniform, (self.width,), jnp.float32)
        self.one = self.param("one", lambda key: jnp.ones(self.width, jnp.float32))

    def initial_state(self):
        return jnp.zeros(self.width, jnp.float32)

    def run(self, xs, state, reset, deterministic):
        ys, state = linear_states(self.a[None], xs.astype(jnp.float32), state, reset)
        return ys.astype(xs.dtype), state

    def step(self, x, state=None, *, deterministic=True):
        state = x.astype(jnp.float32) + self.a * (self.initial_state() if state is None else state)
        return state.astype(x.dtype), state


class Paired(Decay):
    """Another structure of state."""

    mixes_channels = True

    def initial_state(self):
        return {"s": jnp.zeros(self.width, jnp.float32)}

    def run(self, xs, state, reset, deterministic):
        ys, s = super().run(xs, state["s"], reset, deterministic)
        return ys, {"s": s}

    def step(self, x, state=None, *, deterministic=True):
        y, s = super().step(x, state["s"])
        return y, {"s": s}


PATTERN = [Decay(width=4), Paired(width=4)]
NETS = {
    "plain": (sequence.stack(Decay(width=4), depth=3, output=2), (3,)),
    "pattern": (sequence.stack(PATTERN, depth=4, output=2, norm="layer", mlp=2, inputs=None), (4,)),
    "tokens": (sequence.stack(Decay(width=4), depth=2, vocabulary=5, remat=True), ()),
    "mean": (sequence.stack(PATTERN, depth=2, output=2, pool="mean"), (3,)),
    "last": (sequence.stack(Decay(width=4), depth=2, output=2, pool="last"), (3,)),
}


def inputs(rng, shape, time=6):
    return jnp.asarray(rng.normal(size=(time, *shape)), jnp.float32) if shape else jnp.asarray(rng.integers(0, 5, time))


@functools.cache
def made(name):
    """A network, its parameters, and its two compiled programs, which take a state and resets."""
    net, shape = NETS[name]
    params = jax.jit(net.init)(jax.random.key(0), inputs(np.random.default_rng(0), shape))
    return net, params, jax.jit(net.apply), jax.jit(lambda params, x, state: net.apply(params, x, state, method="step"))


def started(rng, name):
    net, params, whole, _ = made(name)
    start = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, size=x.shape), jnp.float32), net.initial_state())
    return params, whole, inputs(rng, NETS[name][1]), start


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("name", NETS)
def test_steps_pieces_and_resets(rng, name):
    params, whole, xs, start = started(rng, name)
    net, _, _, step = made(name)
    no, fresh = jnp.zeros(6, bool), net.initial_state()
    ys, final = whole(params, xs, start, no)
    state, by_step = start, []
    for x in xs:
        y, state = step(params, x, state)
        by_step.append(y)
    close((by_step[-1] if net.pool else np.stack(by_step), state), (ys, final))
    # Halves: going on, and beginning anew.
    for reset, begin, middle in (
        (no, start, None),
        (no.at[3].set(True), start, fresh),
        (no.at[0].set(True), fresh, None),
    ):
        ys, final = whole(params, xs, start, reset)
        head, state = whole(params, xs[:3], begin, no[:3])
        tail, again = whole(params, xs[3:], state if middle is None else middle, no[:3])
        close((tail if net.pool else np.concatenate([head, tail]), again), (ys, final))


def test_what_is_not_a_number_does_not_cross_a_reset_into_the_mean(rng):
    params, whole, xs, start = started(rng, "mean")
    ys, state = whole(params, xs.at[1].set(jnp.nan), start, jnp.zeros(6, bool).at[3].set(True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((ys, state)))


def test_blocks_one_after_another(rng):
    params, whole, xs, start = started(rng, "pattern")
    layer, x = params["params"]["layer"], xs
    for repeat in range(2):
        for index, core in enumerate(PATTERN):
            own = jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], layer[f"blocks_{index}"])
            state = jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], start[index])
            x, _ = jax.jit(sequence.block(core, norm="layer", mlp=2).apply)({"params": own}, x, state)
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    wanted = x @ np.asarray(params["params"]["head"]["kernel"])
    found, _ = whole(params, xs, start, jnp.zeros(6, bool))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_every_depth_has_an_initialisation_of_its_own_and_constants_stay_constant():
    net = NETS["plain"][0]
    layer = jax.jit(net.init)(jax.random.key(0), jnp.ones((2, 3)))["params"]["layer"]["blocks_0"]
    for leaf in (layer["core"]["a"], layer["unit"]["dense"]["kernel"]):
        assert leaf.shape[0] == 3
        assert len({float(x) for x in leaf.reshape(3, -1)[:, 0]}) == 3
    np.testing.assert_array_equal(layer["core"]["one"], np.ones((3, 4)))
    # As one that is made by itself: the fan of a kernel does not see the depth.
    net = sequence.stack(Decay(width=64), depth=8)
    wide = jax.jit(net.init)(jax.random.key(0), jnp.ones((2, 3)))["params"]["layer"]
    kernel = wide["blocks_0"]["unit"]["dense"]["kernel"]
    assert abs(float(jnp.std(kernel)) * 8 - 1) < 0.02


@pytest.mark.parametrize("remat", [False, True])
def test_a_program_does_not_grow_with_depth(remat):
    def size(depth):
        net = sequence.stack(PATTERN, depth=depth, output=2, mlp=2, remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((5, 3)))

        def loss(params, xs):
            return jnp.sum(net.apply(params, xs)[0])

        return jax.jit(jax.grad(loss)).lower(params, jnp.ones((5, 3))).as_text().count("\n")

    assert size(2) == size(8) > 100


def test_recomputing_changes_no_gradient_and_keeps_less(rng):
    xs = inputs(rng, (3,), 50)
    plain, remat = (sequence.stack(Decay(width=16), depth=6, output=1, mlp=4, remat=flag) for flag in (False, True))
    params = jax.jit(plain.init)(jax.random.key(0), xs)
    programs = [
        jax.jit(jax.grad(lambda params, net=net: jnp.sum(net.apply(params, xs)[0] ** 2))).lower(params).compile()
        for net in (plain, remat)
    ]
    gradients = [program(params) for program in programs]
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients))
    close(*gradients, 1e-4, 1e-5 * largest)
    kept = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert kept[1] < 0.6 * kept[0]


def test_dropout_differs_between_depths(rng):
    net = sequence.stack(Decay(width=64), depth=2, inputs=None, norm=None, dropout=0.5)
    xs = inputs(rng, (64,))
    params = jax.jit(net.init)(jax.random.key(0), xs)
    dropped = jax.jit(lambda key: net.apply(params, xs, deterministic=False, rngs={"dropout": key})[0])
    run = [dropped(jax.random.key(k)) for k in (1, 1, 2)]
    np.testing.assert_array_equal(run[0], run[1])
    # A number that is dropped at both depths is as it came: one in four, and one in two if the mask were the same.
    share = float(jnp.mean(jnp.abs(run[2] - xs) < 1e-6))
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / xs.size)


def test_a_token_that_does_not_exist_gives_nan(rng):
    params, whole, _, start = started(rng, "tokens")
    ys, _ = whole(params, jnp.array([0, 4, -1, 5, 1, 2]), start, jnp.array([0, 0, 0, 1, 0, 0], bool))
    assert np.isfinite(ys[:2]).all()
    assert np.isnan(ys[2:]).all()


@pytest.mark.parametrize("name", ["pattern", "mean"])
def test_low_precision_and_batches(rng, name):
    params, whole, xs, start = started(rng, name)
    no = jnp.zeros(6, bool)
    ys, state = whole(params, xs.astype(jnp.bfloat16), start, no)
    assert ys.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    wanted, _ = whole(params, xs, start, no)
    np.testing.assert_allclose(ys.astype(jnp.float32), wanted, rtol=0.1, atol=0.1)
    many, _ = jax.jit(jax.vmap(whole, (None, 0, None, None)))(params, jnp.stack([2 * xs, xs]), start, no)
    np.testing.assert_allclose(many[1], wanted, rtol=1e-4, atol=1e-5)


def test_float64_stays_float64(rng, x64):
    net, xs = NETS["mean"][0], jnp.asarray(rng.normal(size=(6, 3)))
    params = jax.jit(net.init)(jax.random.key(0), xs)
    ys, _ = jax.jit(net.apply)(params, xs, None, jnp.zeros(6, bool))
    assert ys.dtype == jnp.float64
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("plain", (jnp.ones((7, 2)),), r"sequence\.stack: xs is of shape \(7, 2\); expected \(time, 3\)\."),
        ("plain", (jnp.ones((8, 7, 3)),), r"of shape \(8, 7, 3\); expected \(time, 3\)\. Use jax\.vmap for a batch"),
        ("plain", (jnp.ones(7),), r"xs is of shape \(7,\); expected \(time, 3\)"),
        ("plain", (jnp.ones((0, 3)),), r"xs is of shape \(0, 3\); expected at least one time and one feature"),
        ("plain", (jnp.ones((7, 3), int),), "xs is of int32; expected floating numbers. vocabulary=K embeds K tokens"),
        ("pattern", (jnp.ones((7, 3)),), r"xs is of shape \(7, 3\); expected \(time, 4\)"),
        ("tokens", (jnp.ones(7),), "xs is of float32; expected integers, the tokens"),
        ("tokens", (jnp.ones((7, 1), int),), r"xs is of shape \(7, 1\); expected \(time,\)"),
        ("plain", (jnp.ones((7, 0)),), r"xs is of shape \(7, 0\); expected \(time, 3\)"),
        ("plain", (jnp.ones((7, 3)), jnp.ones((2, 4))), r"state is value \(2, 4\); expected value \(3, 4\), that"),
        ("pattern", (jnp.ones((7, 4)), jnp.ones((2, 4))), r"expected 0 \(2, 4\), 1\.s \(2, 4\), that of this core"),
        ("plain", (jnp.ones((7, 3)), None, jnp.zeros(6, bool)), r"reset is bool of shape \(6,\); expected booleans"),
    ],
)
def test_bad_input_is_one_line(name, arguments, message):
    net, params, _, _ = made(name)
    with pytest.raises(ValueError, match=message) as error:
        net.apply(params, *arguments)
    assert "\n" not in str(error.value)


def test_bad_input_of_a_step_is_one_line():
    for name, x, message in (
        ("plain", jnp.ones((1, 3)), r"x is of shape \(1, 3\); expected \(3,\)"),
        ("tokens", jnp.ones(1, int), r"x is of shape \(1,\); expected \(\)"),
        ("tokens", jnp.ones(()), "x is of float32; expected integers, the tokens"),
    ):
        net, params, _, _ = made(name)
        with pytest.raises(ValueError, match=rf"sequence\.stack: {message}"):
            net.apply(params, x, method="step")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 2), "core is .*; expected a core, or a pattern of at least one"),
        (((Decay(width=4), Decay(width=5)), 2), r"core is of widths \[4, 5\]; expected cores of one width"),
        ((PATTERN, 3), "depth is 3; expected a multiple of 2, the number of cores that repeat"),
        ((Decay(width=4), 0), "depth is 0; expected a whole number, 1 or more"),
        ((Decay(width=4), 1, 0), "output is 0; expected a whole number, 1 or more, or None"),
    ],
)
def test_bad_options_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        sequence.stack(*arguments)


def test_options_by_name():
    with pytest.raises(ValueError, match="pool is max; expected one of 'mean', 'last', None"):
        sequence.stack(Decay(width=4), 1, pool="max")
    with pytest.raises(ValueError, match="inputs is conv; expected one of 'dense', None"):
        sequence.stack(Decay(width=4), 1, inputs="conv")
    with pytest.raises(TypeError, match=r"sequence\.stack: core is 4; expected a sequence core"):
        sequence.stack(4, 1)
