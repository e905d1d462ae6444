"""Monoids: their algebra on random and degenerate elements, their derivatives, and what they are for."""

import doctest
import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob.scan import monoids as m
from tests.scan._monoid_cases import CASES, check, dense_product, draw

COMBINE = {name: jax.jit(case.monoid.combine) for name, case in CASES.items()}
each_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
properties = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 3])


@each_case
@each_dtype
def test_identity_and_associativity(name, dtype):
    """e a = a = a e, and (a b) c = a (b c) = the product of the three, on degenerate elements too."""
    case, combine = CASES[name], COMBINE[name]
    eps = np.finfo(dtype).eps

    @properties
    @given(sizes, seeds)
    def holds(n, seed):
        (a, b, c), exactly = draw(name, seed, n, 3, dtype)
        identity = case.monoid.identity(jax.tree.map(jnp.asarray, a))
        for got in (combine(identity, a), combine(a, identity)):
            check(name, got, case.view(exactly[0]), case.tolerance(case, exactly[:1], eps), a)
        want, tolerance = case.product(exactly), case.tolerance(case, exactly, eps)
        check(name, combine(combine(a, b), c), want, tolerance, a)
        check(name, combine(a, combine(b, c)), want, tolerance, a)

    with jax.enable_x64(dtype == "float64"):
        holds()


@each_case
@each_dtype
def test_seven_elements_in_any_grouping(name, dtype):
    case, combine = CASES[name], COMBINE[name]

    @settings(properties, max_examples=8)
    @given(sizes, seeds)
    def holds(n, seed):
        elements, exactly = draw(name, seed, n, 7, dtype)
        a, b, c, d, e, f, g = elements
        want, tolerance = case.product(exactly), case.tolerance(case, exactly, np.finfo(dtype).eps)
        pairs = combine(combine(combine(a, b), combine(c, d)), combine(combine(e, f), g))
        check(name, functools.reduce(combine, elements), want, tolerance, a)
        check(name, functools.reduce(lambda y, x: combine(x, y), reversed(elements)), want, tolerance, a)
        check(name, pairs, want, tolerance, a)

    with jax.enable_x64(dtype == "float64"):
        holds()


def at(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


@each_case
def test_transformations(name, x64):
    """Eager, mapped, scanned from the identity and scanned as a tree: all give the products of NumPy.

    Under x64 float32 elements give float32 products.
    """
    case = CASES[name]
    combine, identity = case.monoid
    elements, exactly = draw(name, 1, 3, 5, "float32")
    prefixes = [exactly[: t + 1] for t in range(5)]
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), *elements)

    def right(got, factors):
        check(name, got, case.product(factors), case.tolerance(case, factors, np.finfo(np.float32).eps), elements[0])

    @jax.jit
    def run(stack):
        def step(product, element):
            product = combine(product, element)
            return product, product

        neighbours = jax.vmap(combine)(at(stack, slice(None, -1)), at(stack, slice(1, None)))
        scanned = jax.lax.scan(step, identity(at(stack, 0)), stack)[1]
        return neighbours, scanned, jax.lax.associative_scan(jax.vmap(combine), stack)

    neighbours, scanned, tree = run(stack)
    right(combine(*(at(stack, t) for t in (0, 1))), exactly[:2])
    for t in range(4):
        right(at(neighbours, t), exactly[t : t + 2])
    for t, factors in enumerate(prefixes):
        right(at(scanned, t), factors)
        right(at(tree, t), factors)


@each_case
def test_the_identity_starts_a_loop_inside_shard_map(name):
    """There a loop's carry must vary over the mesh as the elements do, and an array made of constants does not."""
    combine, identity = CASES[name].monoid
    elements, exactly = draw(name, 2, 3, 8, "float32")
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.PartitionSpec("device")

    def product(own):
        final = jax.lax.scan(lambda c, x: (combine(c, x), None), identity(at(own, 0)), own)[0]
        return jax.tree.map(lambda x: x[None], final)

    stack = jax.tree.map(lambda *xs: jnp.stack(xs), *elements)
    got = jax.jit(jax.shard_map(product, mesh=mesh, in_specs=over, out_specs=over))(stack)
    for t, e in enumerate(exactly):
        tolerance = CASES[name].tolerance(CASES[name], [e], np.finfo(np.float32).eps)
        check(name, at(got, t), CASES[name].view(e), tolerance, elements[0])


def invariants(name, view):
    """What has a derivative: of a running softmax the mean and the log sum, not the maximum at ties."""
    floats = [x for x in view if np.issubdtype(x.dtype, np.floating)]
    if "softmax" in name:
        floats = [floats[2] / floats[1], floats[0] + jnp.log(floats[1])]
    return [jnp.where(jnp.isfinite(x), x, 0.0) for x in floats]


def slopes(name):
    """Derivatives, with respect to all floating leaves of a pair, of a weighted sum of the product's entries."""
    case = CASES[name]

    def total(leaves, pair, factors):
        fixed, structure = jax.tree.flatten(pair)
        own = iter(leaves)
        full = [next(own) if np.issubdtype(x.dtype, np.floating) else x for x in fixed]
        return weighted(name, case.view(case.monoid.combine(*jax.tree.unflatten(structure, full))), factors)

    return jax.jit(jax.grad(total))


def weighted(name, view, factors):
    return sum(jnp.sum(x * f[: x.size].reshape(x.shape)) for x, f in zip(invariants(name, view), factors, strict=False))


def float_leaves(tree):
    return [x for x in jax.tree.leaves(tree) if np.issubdtype(np.asarray(x).dtype, np.floating)]


def direction(name, rng, x):
    """A random change of an array, none where it is infinite or not a number with a derivative."""
    if not np.issubdtype(x.dtype, np.floating):
        return np.zeros_like(x)
    d = rng.normal(size=x.shape) * (1 + np.abs(np.where(np.isfinite(x), x, 0.0)))
    d = d + d.T if x.ndim == 2 and "gaussian" in name else d  # covariances stay symmetric
    return np.where(np.isfinite(x), d, 0.0)


def difference(name, pair, ways, factors, step=1e-5):
    """The central difference of the NumPy product."""

    def value(h):
        moved = jax.tree.map(lambda x, d: x if x.dtype == bool else x + h * d, pair, ways)
        return float(weighted(name, CASES[name].product(moved), factors))

    return (value(step) - value(-step)) / (2 * step)


@pytest.mark.parametrize("name", [name for name in CASES if name != "composition"])
def test_derivatives_are_finite_and_those_of_the_product(name):
    """At ties, zero and singular covariances, impossible steps; against differences with a step of 1e-5.

    Those err by 1e-10 of the third derivative and 1e-11 of the value, far below the 1e-5 of the terms allowed.
    """
    rng = np.random.default_rng(0)
    narrow = slopes(name)
    for seed in range(20):
        pair, _ = draw(name, seed, 1, 2, "float32", spread=0.3)
        got = narrow(float_leaves(pair), pair, rng.normal(size=(5, 1)).astype(np.float32))
        assert all(np.isfinite(x).all() for x in got), seed
    with jax.enable_x64(True):
        grad = slopes(name)
        for seed in range(20):
            pair, _ = draw(name, seed, 3, 2, "float64", spread=0.3)
            factors = rng.normal(size=(5, 9))
            got = grad(float_leaves(pair), pair, factors)
            assert all(np.isfinite(x).all() for x in got), seed
            if CASES[name].smooth:
                ways = jax.tree.map(lambda x: direction(name, rng, x), pair)
                terms = [np.sum(x * d) for x, d in zip(got, float_leaves(ways), strict=True)]
                error = abs(sum(terms) - difference(name, pair, ways, factors))
                assert error <= 1e-5 * (1 + sum(map(abs, terms))), (seed, terms, error)


# --- softmax


def attention(scores, values):
    """The mean and the log sum of weights of one query, over the keys one after the other."""
    element = m.RunningSoftmax(scores, jnp.ones_like(scores), values)
    start = m.softmax.identity(jax.tree.map(lambda x: x[0], element))
    final = jax.lax.scan(lambda c, x: (m.softmax.combine(c, x), None), start, element)[0]
    return final.numerator / final.sum, final.max + jnp.log(final.sum)


@pytest.mark.parametrize(
    "scores",
    [[0.3, -1.2, 2.0, 0.7], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 2.0, 2.0], [1e4, 1e4 - 1, -1e4, 9999.5], [-1e4] * 4],
    ids=["regular", "all tied", "tied", "large", "low"],
)
def test_softmax_has_the_derivatives_of_the_naive_formula(scores, rng, x64):
    scores, values, weight = jnp.array(scores), rng.normal(size=(4, 2)), rng.normal(size=2)

    def ours(scores, values):
        mean, log_sum = attention(scores, values)
        return mean @ weight + jnp.sin(log_sum / 1e4)

    def naive(scores, values):
        return jax.nn.softmax(scores) @ values @ weight + jnp.sin(jax.nn.logsumexp(scores) / 1e4)

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(scores, values) for f in (ours, naive))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15), got, want)


@pytest.mark.parametrize("masked", [[0], [3], [0, 1], [1, 2], [0, 1, 3]])
def test_softmax_of_masked_keys_is_that_of_the_others(masked, rng):
    """With a score of -inf the value may be anything: NaN reaches neither the mean nor a derivative."""
    scores, values = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    kept = [k for k in range(4) if k not in masked]
    want = attention(scores[kept], values[kept])
    scores[masked], values[masked] = -np.inf, np.nan

    mean, log_sum = attention(scores, values)
    np.testing.assert_allclose(mean, want[0], rtol=1e-6)
    np.testing.assert_allclose(log_sum, want[1], rtol=1e-6)
    slope_scores, slope_values = jax.grad(lambda *args: jnp.sum(attention(*args)[0]), (0, 1))(scores, values)
    assert np.isfinite(slope_scores).all()
    np.testing.assert_array_equal(slope_values[np.array(masked)], 0.0)
    assert (slope_values[np.array(kept)] > 0).all()


def test_softmax_where_everything_is_masked_says_so_and_is_finite(rng):
    values = rng.normal(size=(4, 2)).astype(np.float32)
    scores = np.full(4, -np.inf, np.float32)
    mean, log_sum = attention(scores, values)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    assert log_sum == -np.inf
    assert all(np.isfinite(x).all() for x in jax.grad(lambda *args: attention(*args)[0].sum(), (0, 1))(scores, values))


# --- hidden Markov models


def hidden_markov_model(seed, states, steps):
    """Log weights of the first state, and of each step to the next one, with impossible ones."""
    rng = np.random.default_rng(seed)
    first, matrices = rng.normal(size=states), rng.normal(size=(steps, states, states))
    matrices = np.where(rng.random(matrices.shape) < 0.25, -np.inf, matrices)
    matrices[:, 0, 0] = rng.normal(size=steps)  # one path is possible
    return first, matrices


def all_paths(first, matrices):
    """(path, score) of every sequence of states."""
    for path in itertools.product(range(len(first)), repeat=len(matrices) + 1):
        yield path, first[path[0]] + sum(a[i, j] for a, i, j in zip(matrices, path[:-1], path[1:], strict=True))


def test_log_matmul_sums_over_all_paths_and_its_derivatives_are_expected_counts(x64):
    first, matrices = hidden_markov_model(0, 3, 5)
    paths = [(path, np.exp(score)) for path, score in all_paths(first, matrices)]
    total = sum(weight for _, weight in paths)
    counts = np.zeros_like(matrices)
    for path, weight in paths:
        for t in range(5):
            counts[t, path[t], path[t + 1]] += weight / total

    @jax.jit
    @jax.value_and_grad
    def log_likelihood(matrices):
        prefixes = jax.lax.associative_scan(jax.vmap(m.log_matmul.combine), matrices)
        return jax.nn.logsumexp(first[:, None] + prefixes[-1])

    value, slope = log_likelihood(matrices)
    np.testing.assert_allclose(value, np.log(total), rtol=1e-13)
    np.testing.assert_allclose(slope, counts, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tied", [False, True])
def test_max_plus_running_max_and_composition_give_the_path_of_viterbi(seed, tied, x64):
    """Scores from a forward scan, back-pointers from the scores, the path from a reverse scan of the back-pointers."""
    states, steps = 3, 5
    first, matrices = hidden_markov_model(seed, states, steps)
    if tied:
        first, matrices = np.round(first), np.round(matrices)
    paths = dict(all_paths(first, matrices))
    best = max(paths.values())

    prefixes = jax.lax.associative_scan(jax.vmap(m.max_plus.combine), matrices)
    scores = np.concatenate([first[None], np.max(first[:, None] + np.asarray(prefixes), 1)])
    back_pointers = np.argmax(scores[:-1, :, None] + matrices, 1)
    candidates = m.RunningMax(jnp.asarray(scores[-1]), jnp.arange(states))
    last = jax.tree.map(lambda x: x[-1], jax.lax.associative_scan(jax.vmap(m.running_max.combine), candidates))
    np.testing.assert_allclose(last.value, best, rtol=1e-14)

    # `before` is later in time: from the last state through the back-pointers of the last step, then of those before.
    to_earlier = jax.lax.associative_scan(jax.vmap(m.composition.combine), jnp.asarray(back_pointers), reverse=True)
    path = (*(int(maps[last.index]) for maps in to_earlier), int(last.index))
    np.testing.assert_allclose(paths[path], best, rtol=1e-14)
    if not tied:
        assert path == max(paths, key=paths.get)


def test_derivatives_of_max_plus_count_the_steps_of_the_best_path():
    best = jax.grad(lambda a, b: m.max_plus.combine(a, b)[0, 0], (0, 1))
    a, b = jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [0.5, 0.0]])
    np.testing.assert_array_equal(best(a, b)[0], [[0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(best(a, b)[1], [[0.0, 0.0], [1.0, 0.0]])
    for slope in best(jnp.full((2, 2), -jnp.inf), b):
        np.testing.assert_array_equal(slope, 0.0)


def test_running_max_of_integers_and_the_earlier_of_equals():
    def element(value, index):
        return m.RunningMax(jnp.array(value), jnp.array(index))

    lowest = element(-(2**31), 4)
    for pair in ((m.running_max.identity(lowest), lowest), (lowest, m.running_max.identity(lowest))):
        assert jax.tree.map(int, m.running_max.combine(*pair)) == (-(2**31), 4)
    assert int(m.running_max.combine(element(2, 9), element(2, 1)).index) == 9


# --- resets


def test_a_reset_starts_anew_whatever_came_before(rng):
    """Segments equal products of their own; a NaN before a reset reaches neither values nor derivatives."""
    lifted = m.with_resets(m.affine_dense)
    decay, increment = rng.normal(size=(6, 2, 2)), rng.normal(size=(6, 2))
    decay[0], increment[0] = np.nan, np.inf
    reset = np.array([False, True, True, False, True, False])
    elements = m.Affine(*(jnp.asarray(x, jnp.float32) for x in (decay, increment)))

    @jax.jit
    def run(elements):
        return jax.lax.associative_scan(jax.vmap(lifted.combine), m.Resettable(reset, elements))

    got = run(elements)
    np.testing.assert_array_equal(got.reset, [False, True, True, True, True, True])
    for start, stop in ((1, 2), (2, 4), (4, 6)):
        for t in range(start, stop):
            want = dense_product([m.Affine(decay[k], increment[k]) for k in range(start, t + 1)])
            np.testing.assert_allclose(got.element.decay[t], want[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got.element.increment[t], want[1], rtol=1e-5, atol=1e-6)

    slope = jax.grad(lambda elements: jnp.sum(run(elements).element.increment[2:]))(elements)
    assert all(np.isfinite(leaf).all() for leaf in slope)
    for leaf in slope:
        np.testing.assert_array_equal(leaf[:2], 0.0)
    # The sum is of e_2, e_2 e_3, e_4 and e_4 e_5: the increment of e_2 counts once, and once through the decay of e_3.
    np.testing.assert_allclose(slope.increment[2], 1 + decay[3].sum(0), rtol=1e-5)


def hypotenuse(a, b):
    return jnp.sqrt(a * a + b * b)


def sum_of_tangents(a, b):
    """The tangent of a sum of two angles."""
    return (a + b) / (1 - a * b)


@pytest.mark.parametrize(
    ("combine", "identity", "a", "b"),
    [
        (hypotenuse, None, jnp.inf, 2.0),
        (hypotenuse, jnp.zeros_like, jnp.inf, 2.0),
        # At b b = 1 the element itself could not stand in for what is forgotten.
        (sum_of_tangents, jnp.zeros_like, jnp.nan, 1.0),
    ],
)
def test_what_is_dropped_is_not_differentiated_where_it_has_no_derivative(combine, identity, a, b):
    lifted = m.with_resets(m.Monoid(combine, identity))
    assert (lifted.identity is None) == (identity is None)

    def forgotten(a, b):
        return lifted.combine(m.Resettable(jnp.array(False), a), m.Resettable(jnp.array(True), b)).element

    value, slopes = jax.value_and_grad(forgotten, (0, 1))(a, b)
    assert (float(value), *map(float, slopes)) == (b, 0.0, 1.0)


# --- the rest


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"monoids.log_matmul: before is of shape \(3,\); expected one square matrix"):
        m.log_matmul.combine(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"monoids.max_plus: after is of shape \(2, 2\); expected shape \(3, 3\)"):
        m.max_plus.combine(jnp.zeros((3, 3)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"matmul: b is of shape \(2, 2\)"):
        m.affine_dense.combine(m.Affine(jnp.eye(2), jnp.zeros(2)), m.Affine(jnp.eye(3), jnp.zeros(3)))


@pytest.mark.parametrize("module", ["monoids", "_gaussian_monoids"])
def test_examples(module):
    module = importlib.import_module(f"jaxprob.scan.{module}")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed == 0
