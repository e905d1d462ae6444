"""Pytrees as vectors, against NumPy on the concatenated leaves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


SHAPES = st.sampled_from([(), (2, 2), (0, 2)])
DTYPES = st.sampled_from([np.float32, jnp.bfloat16])


@st.composite
def trees(draw, depth=2):
    """Nested dicts, lists and tuples of floating arrays."""
    if depth == 0 or draw(st.booleans()):
        shape, seed = draw(SHAPES), draw(st.integers(0, 1000))
        return np.random.default_rng(seed).normal(size=shape).astype(draw(DTYPES))
    parts = [draw(trees(depth - 1)) for _ in range(draw(st.integers(0, 3)))]
    kind = draw(st.sampled_from(["dict", "list", "tuple", "pair", "none"]))
    if kind == "dict":
        return {f"name{i}": part for i, part in enumerate(parts)}
    if kind == "pair":
        return Pair(parts, None)
    return parts if kind == "list" else tuple(parts)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(trees())
def test_unravel_inverts_ravel(tree):
    vector, unravel = core.ravel(tree)
    assert vector.shape == (core.size(tree),)
    back = unravel(vector)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(np.float32(ours), np.float32(theirs))
    flat = [np.float32(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    np.testing.assert_array_equal(np.float32(vector), np.concatenate([*flat, np.zeros(0, np.float32)]))


def test_ravel_takes_the_highest_precision_and_gives_back_each(x64):
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.float64), "c": jnp.ones(1, jnp.float32)}
    vector, unravel = core.ravel(tree)
    assert vector.dtype == jnp.float64
    assert {k: v.dtype for k, v in unravel(2 * vector).items()} == {k: v.dtype for k, v in tree.items()}


def test_unravel_under_transformations():
    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    vector, unravel = core.ravel(tree)
    batch = jax.jit(jax.vmap(unravel))(jnp.stack([vector, 2 * vector]))
    np.testing.assert_array_equal(batch["b"][1], 2 * tree["b"])
    gradient = jax.grad(lambda v: jnp.sum(unravel(v)["a"] ** 2))(vector)
    np.testing.assert_array_equal(gradient, [0, 2, 4, 0, 0, 0, 0])


@pytest.mark.parametrize("length", [6, 8])
def test_unravel_of_a_wrong_length(length):
    _, unravel = core.ravel({"a": jnp.ones(3), "b": jnp.ones((2, 2))})
    with pytest.raises(ValueError) as caught:
        unravel(jnp.ones(length))
    assert str(caught.value) == f"unravel: vector is of shape ({length},); expected shape (7,)."


@pytest.mark.parametrize("leaf", [np.arange(3), 1, True, 1j, np.array(["a"]), jax.random.key(0), "x", object()])
def test_ravel_refuses_what_is_not_continuous(leaf):
    with pytest.raises(TypeError, match="ravel: leaf 'bad' is .*; expected a floating-point array"):
        core.ravel({"good": 1.0, "bad": leaf})
    with pytest.raises(
        TypeError,
        match=r"ravel: leaf 'bad' is of dtype int32; expected a floating-point array. Only continuous quantities",
    ):
        core.ravel({"good": 1.0, "bad": np.arange(3, dtype=np.int32)})


def test_empty_trees():
    vector, unravel = core.ravel({"a": (), "b": None})
    assert vector.shape == (0,)
    assert unravel(vector) == {"a": (), "b": None}
    assert core.size({}) == 0
    assert core.dot({}, {}) == core.norm({}) == core.norm(jnp.zeros((0,))) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_dot_and_norms(rng, dtype):
    with jax.enable_x64(dtype == np.float64):
        tree = {"a": jnp.asarray(rng.normal(size=(3, 2)), dtype), "b": (jnp.asarray(rng.normal(), dtype),)}
        other = jax.tree.map(lambda x: 2 * x + 1, tree)
        x, y = (np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(t)]) for t in (tree, other))
        tolerance = 8 * float(jnp.finfo(dtype).eps)
        product = jax.jit(core.dot)(tree, other)
        assert product.dtype == core.norm(tree).dtype == dtype
        assert abs(float(product) - x @ y) < tolerance * (abs(x) @ abs(y))
        orders = (1.0, 2.0, 3.0, np.inf)
        norms = jax.jit(lambda tree: [core.norm(tree, order) for order in orders])(tree)
        for order, norm in zip(orders, norms, strict=True):
            np.testing.assert_allclose(np.float64(norm), np.linalg.norm(x, order), rtol=tolerance)


def test_dot_and_norm_of_mixed_leaves():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": 2.0, "c": jnp.ones(2, jnp.float32), "d": jnp.arange(3)}
    product, norm = jax.jit(lambda t: (core.dot(t, t), core.norm(t)))(tree)
    assert product == 13
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(norm, np.sqrt(13.0), rtol=1e-6)


def test_dot_is_an_inner_product_of_equal_shapes():
    with pytest.raises(ValueError, match=r"dot: b, leaf 'a', is float32 of shape \(1, 3\); expected .* \(3, 1\)"):
        core.dot({"a": jnp.ones((3, 1))}, {"a": jnp.ones((1, 3))})
    with pytest.raises(ValueError, match="dot: b is without leaf 'a'; expected leaves"):
        core.dot({"a": 1.0}, {"b": 1.0})


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_neither_overflows_nor_underflows(scale):
    x = {"a": jnp.array([3.0, -4.0]) * scale, "b": jnp.array(12.0) * scale}
    value, gradient = jax.jit(jax.value_and_grad(core.norm))(x)
    np.testing.assert_allclose(value / scale, 13.0, rtol=1e-6)
    np.testing.assert_allclose(gradient["a"], [3 / 13, -4 / 13], rtol=1e-6)


def test_norm_of_what_is_not_finite():
    """A diverged position has no small norm."""
    assert np.isnan(core.norm({"a": jnp.array([1.0, jnp.nan])}))
    assert np.isnan(core.norm({"a": jnp.array([jnp.inf, jnp.nan])}))
    assert core.norm({"a": jnp.array([1.0, -jnp.inf])}) == jnp.inf


@pytest.mark.parametrize("order", [1.0, 2.0, np.inf])
def test_gradient_of_a_norm_at_zero(order):
    gradient = jax.jit(jax.grad(lambda x: core.norm(x, order)))({"a": jnp.zeros(2), "b": jnp.zeros(())})
    np.testing.assert_array_equal(core.ravel(gradient)[0], np.zeros(3))


def test_names():
    tree = {"layers": [{"kernel": 1.0}, {"kernel": 2.0}], "pair": Pair(3.0, (4.0, 5.0)), "theta": 6.0}
    names = ["layers.0.kernel", "layers.1.kernel", "pair.first", "pair.second.0", "pair.second.1", "theta"]
    assert [name for name, _ in core.named_leaves(tree)] == names
    assert [leaf for _, leaf in core.named_leaves(tree)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert core.named_leaves(7.0) == [("value", 7.0)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(trees())
def test_map_named_visits_each_leaf_with_its_name(tree):
    seen = core.map_named(lambda name, leaf, other: (name, leaf is other), tree, tree)
    assert jax.tree.leaves(seen, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2 and x[1] is True) == [
        (name, True) for name, _ in core.named_leaves(tree)
    ]


EXPECTED = {"a": jnp.ones(2), "b": (jnp.ones((), jnp.bfloat16), jax.random.key(0))}


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ({"a": jnp.ones(2)}, "f: x is without leaf 'b.0'; expected leaves ['a', 'b.0', 'b.1']."),
        ({**EXPECTED, "c": 1.0}, "f: x is with unknown leaf 'c'; expected leaves ['a', 'b.0', 'b.1']."),
        (
            {**EXPECTED, "a": jnp.ones(3)},
            "f: x, leaf 'a', is float32 of shape (3,); expected float32 of shape (2,).",
        ),
        (
            {**EXPECTED, "a": jnp.ones(2, jnp.int32)},
            "f: x, leaf 'a', is int32 of shape (2,); expected float32 of shape (2,).",
        ),
        ({**EXPECTED, "b": list(EXPECTED["b"])}, "f: x is a pytree PyTreeDef({'a': *, 'b': [*, *]}); expected"),
    ],
)
def test_check_same_structure_names_the_first_difference(got, error):
    with pytest.raises(ValueError) as caught:
        core.check_same_structure("f", "x", got, EXPECTED)
    assert str(caught.value).startswith(error)


def test_check_same_structure_accepts_equals():
    core.check_same_structure("f", "x", EXPECTED, EXPECTED)
    core.check_same_structure("f", "x", EXPECTED, jax.eval_shape(lambda: EXPECTED))
    core.check_same_structure("f", "x", {"a": jnp.ones(2, jnp.int32)}, {"a": jnp.ones(2)}, dtypes=False)
    # Two leaves of one dotted name are both looked at.
    twice = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="leaf 'a.b'"):
        core.check_same_structure("f", "x", twice, {"a.b": jnp.ones(3), "a": {"b": jnp.ones(2)}})
    with pytest.raises(ValueError, match="leaf 'a.b'"):
        core.check_same_structure("f", "x", twice, {"a.b": jnp.ones(2), "a": {"b": jnp.ones(3)}})


@pytest.mark.parametrize("order", [1.0, 2.0, jnp.inf])
@pytest.mark.parametrize("size", [3, 4096])
def test_the_norm_of_what_is_not_a_number_is_not_one(order, size):
    for rest in (0.0, 1.0):
        assert jnp.isnan(jax.jit(lambda x: core.norm(x, order))(jnp.full(size, rest).at[1].set(jnp.nan)))
