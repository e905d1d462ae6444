"""Networks of denoisers against NumPy in double precision; conditions, places in any order, precisions, bad inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob.models.diffusion import networks
from jaxprob.models.diffusion.networks._layers import Attention, GroupNorm, normalized
from tests.models.diffusion._network_references import REFERENCES, attention, group_norm, norm

LOCATIONS = np.array([[0.0, 1.0], [0.3, 0.2], [-2.0, 0.4], [1.0, 3.0], [0.31, 0.2]])
THERE = np.array([True, True, False, True, True])

# A network, an example, a condition, and the shape of the output.
CASES = {
    "perceptron": (networks.perceptron(8, 2), (3, 2), None, (3, 2)),
    "perceptron of tokens": (networks.perceptron(8, 2, vocabulary=4, classes=3), (2, 3), 1, (2, 3, 4)),
    "perceptron of a number": (networks.perceptron(8, 1, output=2), (), None, (2,)),
    "unet": (networks.unet(4, (1, 2), 2, heads=2, groups=2, features=3), (4, 6), "vector", (4, 6)),
    "unet of colours": (
        networks.unet(4, (1, 1, 2), 1, heads=1, groups=2, output=2, classes=3),
        (4, 8, 3),
        2,
        (4, 8, 3, 2),
    ),
    "unet of tokens": (networks.unet(4, (1,), 1, heads=1, groups=4, vocabulary=3), (3, 5), None, (3, 5, 3)),
    "transformer of tokens": (networks.diffusion_transformer(8, 2, 2, vocabulary=4), (6,), None, (6, 4)),
    "transformer of images": (
        networks.diffusion_transformer(8, 2, 2, patch=(2, 3), features=3),
        (4, 6, 2),
        "vector",
        (4, 6, 2),
    ),
    "transformer of series": (networks.diffusion_transformer(8, 1, 1, patch=2, output=3), (6,), None, (6, 3)),
    "transformer of probabilities": (networks.diffusion_transformer(8, 2, 4), (5, 3), None, (5, 3)),
    "set": (networks.set_attention(8, 2, 2), (5, 2), "points", (5, 2)),
    "set of numbers": (networks.set_attention(8, 1, 2, output=2), (5,), "points", (5, 2)),
    "relative set": (networks.set_attention(12, 2, 2, relative=True), (5, 2), "points", (5, 2)),
}

# For programs that take XLA some seconds.
UNET = pytest.param("unet", marks=pytest.mark.slow)


def example(name, seed=0, dtype=jnp.float32):
    net, shape, condition, _ = CASES[name]
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    if net.vocabulary:
        x = jnp.asarray(rng.integers(0, net.vocabulary + 1, shape), jnp.int32)
    if condition == "vector":
        condition = jnp.asarray(rng.normal(size=3), dtype)
    elif condition == "points":
        condition = networks.Points(jnp.asarray(LOCATIONS, dtype), jnp.asarray(THERE))
    elif condition is not None:
        condition = jnp.int32(condition)
    return x, jnp.asarray(rng.uniform(), jnp.float32), condition


@functools.cache
def made(name):
    """A network, its parameters at first and some that are nowhere zero, and its compiled program."""
    net = CASES[name][0]
    first = jax.jit(net.init)(jax.random.key(0), *example(name))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), first)
    return net, first, params, jax.jit(net.apply)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("name", CASES)
def test_is_the_network_of_the_papers(name):
    net, _, params, apply = made(name)
    x, t, condition = example(name)
    got = apply(params, x, t, condition)
    assert got.shape == CASES[name][3]
    assert got.dtype == jnp.float32
    p = double(params)["params"]
    if isinstance(condition, networks.Points):
        condition = (LOCATIONS, THERE)
    elif condition is not None:
        condition = np.asarray(condition)
    x = np.asarray(x) if net.vocabulary else double(x)
    expected = REFERENCES[net.factory](net, p, x, float(t), condition).reshape(got.shape)
    # Float32 through some twenty layers.
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_zero_at_first(name):
    _, first, _, apply = made(name)
    assert np.array_equal(apply(first, *example(name)), np.zeros(CASES[name][3]))


def test_a_unet_attends_at_its_lowest_level_only():
    parts = made("unet of colours")[1]["params"]
    assert {name for name, part in parts.items() if "attention" in part} == {"blocks_down_2"}


def test_layers_start_from_different_numbers():
    kernel = made("perceptron")[1]["params"]["blocks"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


@pytest.mark.parametrize("name", ["perceptron of tokens", "unet", "transformer of images", "set"])
def test_a_batch_is_its_examples(name):
    net, _, params, apply = made(name)
    examples = [example(name, seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    got = jax.jit(jax.vmap(net.apply, (None, 0, 0, 0)))(params, *batch)
    expected = [apply(params, *one) for one in examples]
    np.testing.assert_allclose(got, np.stack(expected), rtol=1e-4, atol=1e-5)
    if name.startswith("perceptron"):  # others take seconds without a compiler
        np.testing.assert_allclose(net.apply(params, *examples[0]), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["perceptron of tokens", UNET, "unet of tokens", "transformer of images", "set"])
def test_every_parameter_has_a_gradient(name):
    net, _, params, _ = made(name)
    x, t, condition = example(name)
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=CASES[name][3]), jnp.float32)

    def total(params):
        outputs = [net.apply(params, x, t, condition)]
        if net.features:  # a vector of NaN stands for none, for which there is another parameter
            outputs.append(net.apply(params, x, t, jnp.full(3, jnp.nan)))
        return sum(jnp.sum(weights * output) for output in outputs)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
        assert np.isfinite(leaf).all(), path
        assert (np.abs(leaf) > 0).any(), path


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_ends_of_time_have_finite_gradients(t):
    net, _, params, _ = made("perceptron")
    x, _, _ = example("perceptron")
    slopes = jax.jit(jax.grad(lambda x, t: jnp.sum(net.apply(params, x, t)), (0, 1)))(x, jnp.float32(t))
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("name", ["perceptron", "unet", "transformer of tokens", "set", "relative set"])
def test_times_are_told_apart(name):
    _, _, params, apply = made(name)
    x, _, condition = example(name)
    times = [0.0, 1e-3, 0.01, 0.3, 0.5, 0.99, 0.999, 1.0]
    outputs = np.stack([apply(params, x, jnp.float32(t), condition).reshape(-1) for t in times])
    assert np.isfinite(outputs).all()
    gaps = np.abs(outputs[:, None] - outputs[None]).max(-1)
    assert gaps[~np.eye(len(times), dtype=bool)].min() > 1e-3


FACTORIES = {
    "perceptron": (lambda depth: networks.perceptron(8, depth), "perceptron"),
    "unet": (lambda depth: networks.unet(4, (1, 2), depth, heads=2, groups=2, features=3), "unet"),
    "transformer": (lambda depth: networks.diffusion_transformer(8, depth, 2, vocabulary=4), "transformer of tokens"),
    "set": (lambda depth: networks.set_attention(8, depth, 2), "set"),
}


def equations(jaxpr):
    """Equations of a program, those of its parts among them."""
    inner = [
        part
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for part in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    parts = [getattr(part, "jaxpr", part) for part in inner]
    return len(jaxpr.eqns) + sum(equations(part) for part in parts if hasattr(part, "eqns"))


@pytest.mark.parametrize("name", FACTORIES)
def test_depth_does_not_make_the_program_longer(name):
    make, case = FACTORIES[name]
    sizes = []
    for depth in (1, 5):
        net = make(depth)
        params = jax.eval_shape(net.init, jax.random.key(0), *example(case))
        jaxpr = jax.make_jaxpr(jax.grad(lambda params, net=net: jnp.sum(net.apply(params, *example(case)))))(params)
        sizes.append(equations(jaxpr.jaxpr))
        blocks = next(part for part in params["params"] if part.startswith("blocks"))
        assert {leaf.shape[0] for leaf in jax.tree.leaves(params["params"][blocks])} == {depth}
    assert sizes[0] == sizes[1] > 50


@pytest.mark.parametrize("name", ["perceptron of tokens", "unet of tokens", "set", "relative set"])
def test_bfloat16_is_near_float32(name):
    net, _, params, apply = made(name)
    x, t, condition = example(name, dtype=jnp.bfloat16)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    got = jax.jit(net.apply)(half, x, t, condition)
    assert got.dtype == jnp.bfloat16
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    widened = [
        leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf for leaf in jax.tree.leaves((x, t, condition))
    ]
    exact = apply(full, *jax.tree.unflatten(jax.tree.structure((x, t, condition)), widened))
    # Three digits of each number; sums and norms kept in float32.
    assert np.abs(np.asarray(got, np.float32) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["perceptron of tokens", "unet", "transformer of tokens", "set", "relative set"])
def test_float64_is_kept(name, x64):
    net, _, params, _ = made(name)
    x, t, condition = example(name, dtype=jnp.float64)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    got = jax.jit(net.apply)(params, x, t, condition)
    assert got.dtype == jnp.float64
    if isinstance(condition, networks.Points):
        condition = (LOCATIONS, THERE)
    elif condition is not None:
        condition = np.asarray(condition)
    expected = REFERENCES[net.factory](net, double(params)["params"], np.asarray(x), float(t), condition)
    np.testing.assert_allclose(got, expected.reshape(got.shape), rtol=1e-9, atol=1e-9)


# Layers.


def test_norms_of_large_numbers_and_soft_max_of_large_scores(rng):
    x = rng.normal(size=(4, 3, 6)) + 1000
    net = GroupNorm(2)
    params = net.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    expected = group_norm(double(params)["params"], x, 2)
    # An offset of a thousand costs float32 four digits of its seven.
    np.testing.assert_allclose(net.apply(params, jnp.asarray(x, jnp.float32)), expected, atol=2e-3)
    x = 5 * rng.normal(size=(7, 6))
    net = Attention(3)
    params = net.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    seen = np.arange(7) != 2
    got = net.apply(params, jnp.asarray(x, jnp.float32), jnp.asarray(seen))
    np.testing.assert_allclose(got, attention(double(params)["params"], x, 3, seen), rtol=1e-4, atol=1e-4)


def test_norms_and_scores_of_bfloat16_are_kept_in_float32(rng):
    """Where what goes in is exact, so that only the last rounding, of a 256th, is left."""
    x = jnp.asarray(2 * rng.normal(size=(4, 3, 6)) + 100.24, jnp.bfloat16)  # of which 100.24 is not one
    exact, net = double(x), GroupNorm(2)
    params = net.init(jax.random.key(0), x)
    got = net.apply(params, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(double(got), group_norm(double(params)["params"], exact, 2), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(double(normalized(x)), norm(exact), rtol=1e-2, atol=1e-3)
    # Scores are halves up to some hundreds, next to each other in places: bfloat16 knows even numbers there.
    places = rng.permutation(20)[:8]
    x = np.stack([np.full(8, 15.0), places - 10.0, np.arange(8.0), np.zeros(8)], -1)
    params = {"project_in": {"kernel": np.concatenate([np.eye(4)] * 3, -1), "bias": np.zeros(12)}}
    params["project_out"] = {"kernel": np.eye(4), "bias": np.zeros(4)}
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    got = Attention(1).apply({"params": half}, jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_allclose(double(got), attention(params, x, 1), rtol=2e-2, atol=2e-2)


# Conditions.


def test_the_label_after_the_last_is_none_and_labels_differ():
    _, _, params, apply = made("perceptron of tokens")
    x, t, _ = example("perceptron of tokens")
    none, *labelled = (np.asarray(apply(params, x, t, label)) for label in (None, *map(jnp.int32, range(4))))
    assert np.array_equal(none, labelled[3])
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(labelled) for b in labelled[:i])
    assert np.isnan(apply(params, x, t, jnp.int32(4))).all()
    assert np.isnan(apply(params, x, t, jnp.int32(-1))).all()


def test_a_vector_of_nan_is_none_and_one_nan_is_none_no_more():
    _, _, params, apply = made("transformer of images")
    x, t, condition = example("transformer of images")
    none = apply(params, x, t, None)
    assert np.array_equal(none, apply(params, x, t, jnp.full(3, jnp.nan)))
    assert np.abs(none - apply(params, x, t, condition)).max() > 1e-3
    assert np.isnan(apply(params, x, t, condition.at[0].set(jnp.nan))).all()


def test_parameters_do_not_depend_on_whether_there_was_a_condition():
    for name in ("perceptron of tokens", "unet"):
        net, first, _, _ = made(name)
        x, t, _ = example(name)
        bare = jax.eval_shape(net.init, jax.random.key(0), x, t)
        assert jax.tree.map(jnp.shape, bare) == jax.tree.map(jnp.shape, first)


# Tokens.


@pytest.mark.parametrize("name", ["perceptron of tokens", "transformer of tokens", "unet of tokens"])
def test_tokens_that_do_not_exist_give_nan(name):
    net, _, params, apply = made(name)
    x, t, condition = example(name)
    for wrong in (-1, net.vocabulary + 1):
        assert np.isnan(apply(params, jnp.full_like(x, wrong), t, condition)).all()
    masked = apply(params, jnp.full_like(x, net.vocabulary), t, condition)
    assert np.abs(masked - apply(params, jnp.zeros_like(x), t, condition)).max() > 1e-3


def test_transformers_know_the_order_of_sites_and_serve_any_number():
    _, _, params, apply = made("transformer of tokens")
    x, t, _ = jnp.array([0, 1, 2, 3, 4, 0]), jnp.float32(0.4), None
    assert np.abs(apply(params, x, t, None)[::-1] - apply(params, x[::-1], t, None)).max() > 1e-3
    assert apply(params, jnp.zeros(9, jnp.int32), t, None).shape == (9, 4)


# Points.


@pytest.mark.parametrize("name", ["set", "relative set"])
def test_points_move_with_their_outputs(rng, name):
    _, _, params, apply = made(name)
    x, t, (locations, there) = example(name)
    order = rng.permutation(5)
    got = apply(params, x[order], t, networks.Points(locations[order], there[order]))
    np.testing.assert_allclose(got, apply(params, x, t, networks.Points(locations, there))[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["set", "relative set"])
def test_points_that_are_not_there_are_as_if_left_out(name):
    net, _, params, apply = made(name)
    x, t, (locations, there) = example(name)
    lost = ~there
    x, locations = x.at[lost].set(jnp.nan), locations.at[lost].set(jnp.inf)
    got = apply(params, x, t, networks.Points(locations, there))
    rest = apply(params, x[there], t, networks.Points(locations[there]))
    np.testing.assert_allclose(got[there], rest, rtol=1e-5, atol=1e-5)
    assert np.array_equal(got[lost], np.zeros((1, 2)))
    nobody = apply(params, x, t, networks.Points(locations, jnp.zeros(5, bool)))
    assert np.array_equal(nobody, np.zeros((5, 2)))
    slopes = jax.jit(jax.grad(lambda p, there: jnp.sum(net.apply(p, x, t, networks.Points(locations, there)))))
    for some in (there, jnp.zeros(5, bool)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(params, some)))


def test_places_matter_and_a_bare_array_says_them():
    _, _, params, apply = made("set of numbers")
    x, t, (locations, _) = example("set of numbers")
    bare = apply(params, x, t, locations)
    assert np.array_equal(bare, apply(params, x, t, networks.Points(locations)))
    # Waves are from 0.1 to 10 long: a hundredth is seen, and so is one.
    for step in (0.01, 1.0):
        assert np.abs(bare - apply(params, x, t, locations.at[0, 0].add(step))).max() > 1e-3


def test_relative_locations_may_all_be_moved_but_not_one_of_them():
    _, _, params, apply = made("relative set")
    x, t, (locations, there) = example("relative set")
    got = apply(params, x, t, networks.Points(locations, there))
    moved = apply(params, x, t, networks.Points(locations + jnp.array([[3.7, -12.0]]), there))
    np.testing.assert_allclose(got, moved, rtol=1e-4, atol=1e-4)
    for coordinate in (0, 1):
        other = locations.at[0, coordinate].add(0.01)
        assert np.abs(got - apply(params, x, t, networks.Points(other, there))).max() > 1e-3


# Learning.


@pytest.mark.parametrize("name", ["perceptron", UNET, "unet of tokens", "transformer of tokens", "set"])
def test_learns_a_small_regression(name):
    """Outputs at four times of four examples, from none of which the others follow."""
    net, first, _, _ = made(name)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[example(name, seed) for seed in range(4)])
    shape = (4, *CASES[name][3])
    wanted = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    if name == "set":
        wanted = jnp.where(jnp.asarray(THERE)[None, :, None], wanted, 0)
    optimizer = optax.adam(2e-2)

    def loss(params):
        return jnp.mean((jax.vmap(net.apply, (None, 0, 0, 0))(params, *batch) - wanted) ** 2)

    def step(carry, _):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, change), state), value

    _, values = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 150))((first, optimizer.init(first)))
    assert values[-1] < 0.1 * values[0]


# Bad arguments.


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: networks.perceptron(0), "networks.perceptron: width is 0; expected a whole number, 1 or more."),
        (lambda: networks.perceptron(depth=1.5), "networks.perceptron: depth is 1.5; expected a whole number"),
        (lambda: networks.perceptron(vocabulary=0), "networks.perceptron: vocabulary is 0; expected a whole number"),
        (
            lambda: networks.perceptron(output=2, vocabulary=3),
            "output is 2; expected None beside vocabulary=3. Give one.",
        ),
        (
            lambda: networks.perceptron(classes=2, features=3),
            "classes is 2; expected None beside features=3. Give one.",
        ),
        (lambda: networks.unet(heads=5), "networks.unet: heads is 5; expected a number that divides the width 64."),
        (lambda: networks.unet(width=12), "networks.unet: groups is 8; expected a number that divides the width 12."),
        (lambda: networks.unet(multiples=()), "networks.unet: multiples is (); expected a tuple of whole numbers"),
        (lambda: networks.unet(multiples=(1, 0)), "networks.unet: multiples is 0; expected a whole number, 1 or more."),
        (lambda: networks.diffusion_transformer(heads=3), "heads is 3; expected a number that divides the width 128."),
        (lambda: networks.diffusion_transformer(6, heads=1, patch=(2, 2)), "width is 6; expected a multiple of 4."),
        (lambda: networks.diffusion_transformer(patch=(1, 1, 1)), "patch is (1, 1, 1); expected one number"),
        (lambda: networks.diffusion_transformer(patch=0), "patch is 0; expected a whole number, 1 or more."),
        (lambda: networks.set_attention(wavelengths=(1.0, 0.1)), "wavelengths is (1.0, 0.1); expected a pair"),
        (lambda: networks.set_attention(wavelengths=(0.0, 1.0)), "wavelengths is 0.0; expected a positive number."),
        (lambda: networks.set_attention(wavelengths=3.0), "wavelengths is 3.0; expected a pair"),
        (
            lambda: networks.set_attention(12, heads=4, relative=True),
            "width is 12, 3 for each head; expected an even number for each head where locations are relative.",
        ),
        (lambda: networks.set_attention(relative=1), "relative is 1; expected True or False."),
    ],
)
def test_bad_options(make, line):
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


ZEROS = jnp.zeros


@pytest.mark.parametrize(
    ("name", "x", "t", "condition", "line"),
    [
        ("unet", ZEROS((5, 6)), 0.5, None, "x is of 5 x 6 places; expected a height and a width that 2 divides"),
        ("unet", ZEROS((2, 4, 6, 1)), 0.5, None, "expected (height, width) or (height, width, channel). Use jax.vmap"),
        ("unet", ZEROS(4), 0.5, None, "x is of shape (4,); expected (height, width) or (height, width, channel)."),
        ("unet", ZEROS((4, 6, 2)), 0.5, None, "x is of 2 numbers at a place; expected 1, as for init."),
        ("unet", ZEROS((4, 0)), 0.5, None, "x is of shape (4, 0); expected at least one number."),
        ("unet", ZEROS((4, 6)), ZEROS(3), None, "t is of shape (3,); expected a scalar, the time of one example."),
        ("unet", ZEROS((4, 6)), 0.5, ZEROS(2), "condition is of shape (2,); expected 3 floating numbers"),
        ("unet", ZEROS((4, 6)), 0.5, jnp.arange(3), "condition is of int32; expected 3 floating numbers"),
        ("unet", ZEROS((4, 6), int), 0.5, None, "x is of int32; expected floating numbers. vocabulary=K embeds"),
        ("perceptron", ZEROS(5), 0.5, None, "networks.perceptron: x is of 5 numbers at a place; expected 6, as for"),
        ("perceptron", ZEROS((3, 2)), 0.5, 1, "condition is 1; expected None. Give the network classes="),
        ("perceptron of tokens", ZEROS((2, 3)), 0.5, None, "x is of float32; expected integers, the tokens."),
        (
            "perceptron of tokens",
            ZEROS((2, 3), int),
            0.5,
            1.0,
            "condition is of float32; expected an integer label below 3",
        ),
        ("perceptron of tokens", ZEROS((2, 3), int), 0.5, True, "condition is of bool; expected an integer label"),
        (
            "perceptron of tokens",
            ZEROS((2, 3), int),
            0.5,
            ZEROS(2, int),
            "condition is of shape (2,); expected an integer",
        ),
        (
            "transformer of images",
            ZEROS((4, 7, 2)),
            0.5,
            None,
            "x is of (4, 7) places; expected whole patches of 2 x 3.",
        ),
        (
            "transformer of tokens",
            ZEROS((2, 3, 4), int),
            0.5,
            None,
            "expected (site,) or (site, channel). Use jax.vmap",
        ),
        ("set", ZEROS((5, 2)), 0.5, None, "condition is None; expected locations (5,) or (5, coordinate)"),
        ("set", ZEROS((5, 2)), 0.5, ZEROS(4), "condition is of shape (4,); expected locations (5,)"),
        ("set", ZEROS((5, 2)), 0.5, ZEROS(5), "x is of 34 numbers at a place; expected 66, as for init."),
        (
            "relative set",
            ZEROS((5, 2)),
            0.5,
            ZEROS((5, 4)),
            "condition is locations of 4 coordinates; expected at most 3, half of the width of a head.",
        ),
        (
            "set",
            ZEROS((5, 2)),
            0.5,
            networks.Points(ZEROS((5, 2)), ZEROS(5)),
            "condition.there is float32 of shape (5,); expected booleans (5,).",
        ),
    ],
)
def test_bad_inputs(name, x, t, condition, line):
    net, _, params, _ = made(name)
    with pytest.raises((TypeError, ValueError)) as caught:
        net.apply(params, x, t, condition)
    assert line in str(caught.value)
    assert str(caught.value).startswith(f"networks.{net.factory}: ")
    assert "\n" not in str(caught.value)
