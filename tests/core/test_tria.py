"""Triangular square roots: values against NumPy's float64 Cholesky and QR, derivatives against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core

SHAPES = [(1, 1), (3, 3), (3, 7), (4, 2)]
tria = jax.jit(core.tria)


def matrix(seed, n, m, rank, dtype=np.float32):
    """A random (n, m) matrix of a given rank, with rows at scales from 1e-4 to 1e4."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, m))
    return (a * 10.0 ** rng.uniform(-4, 4, size=(n, 1))).astype(dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SHAPES), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_it_is_a_lower_triangular_square_root(shape, rank, seed):
    a = matrix(seed, *shape, rank)
    factor = np.asarray(tria(a), np.float64)
    assert factor.shape == (shape[0], shape[0])
    np.testing.assert_array_equal(factor, np.tril(factor))
    assert (np.diag(factor) >= 0).all()
    # Stable row by row: the error of entry i, j is judged against the lengths of rows i and j.
    length = np.linalg.norm(a.astype(np.float64), axis=1)
    error = np.abs(factor @ factor.T - a.astype(np.float64) @ a.T.astype(np.float64))
    assert (error <= 30 * np.finfo(np.float32).eps * np.outer(length, length)).all()


def test_full_rank_equals_cholesky_and_keeps_what_squaring_loses(rng, x64):
    a = rng.normal(size=(3, 5))
    np.testing.assert_allclose(core.tria(a), np.linalg.cholesky(a @ a.T), rtol=1e-12)
    # [I; small]: a a^T is the identity to float32, and its factor has lost the 1e-5.
    low = jnp.array([[1.0, 0.0], [1.0, 1e-5]], jnp.float32)
    factor = core.tria(low)
    assert factor.dtype == jnp.float32
    np.testing.assert_allclose(factor[1, 1], 1e-5, rtol=1e-2)


@pytest.mark.parametrize(
    "a",
    [np.zeros((3, 3)), np.zeros((3, 1)), np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones((3, 4)), np.diag([1.0, 0.0, 2.0])],
    ids=["zero", "narrow zero", "zero row", "rank one", "zero in the middle"],
)
def test_singular_input_has_a_factor_and_finite_derivatives(a):
    a = a.astype(np.float32)
    np.testing.assert_allclose(core.matmul(tria(a), tria(a).T), a @ a.T, atol=2e-6)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(core.tria(a)))))(a)
    assert np.isfinite(gradient).all()


def downstream(factor, target):
    """Something that depends on the factor through L L^T, which is what filters do with one."""
    covariance = core.matmul(factor, factor.T)
    return jnp.sum(covariance * target) + jnp.sum(jnp.cos(covariance))


@pytest.mark.parametrize(("n", "m", "rank"), [(3, 5, 3), (3, 5, 2), (3, 5, 1), (3, 5, 0), (4, 2, 2), (4, 2, 1)])
def test_derivatives_through_the_square_are_right_at_any_rank(n, m, rank, x64):
    """The derivative of a function of L L^T equals that of the same function of a a^T, which has no factor in it."""
    target = np.random.default_rng(3).normal(size=(n, n))
    target = target + target.T

    def with_factor(a):
        return downstream(core.tria(a), target)

    def without(a):
        return jnp.sum((a @ a.T) * target) + jnp.sum(jnp.cos(a @ a.T))

    slopes = jax.jit(lambda a: (jax.grad(with_factor)(a), jax.grad(without)(a)))
    for seed in range(5):
        a = np.random.default_rng(seed).normal(size=(n, rank)) @ np.random.default_rng(seed + 9).normal(size=(rank, m))
        got, want = slopes(a)
        np.testing.assert_allclose(got, want, atol=1e-11 * (1 + np.abs(want).max()))


def test_derivatives_with_a_dependent_row_survive_another_tria(x64):
    """Two steps of a square-root filter from a known state: [F L, Q] with L = 0 and Q of rank one."""
    transition = jnp.array([[1.0, 1.0], [0.0, 1.0]])

    def noise(scale):
        return jnp.outer(jnp.array([0.5, 1.0]), jnp.array([1.0, 0.0])) * scale

    def last(scale, steps=3):
        factor = jnp.zeros((2, 2))
        for _ in range(steps):
            factor = core.tria(jnp.concatenate([core.matmul(transition, factor), noise(scale)], -1))
        return jnp.sum(core.matmul(factor, factor.T) * jnp.array([[1.0, 2.0], [2.0, 5.0]]))

    # The covariance after any number of steps is scale^2 times a constant.
    for steps in (1, 2, 3):
        value, slope = jax.jit(jax.value_and_grad(last), static_argnums=1)(0.7, steps)
        np.testing.assert_allclose(slope, 2 * value / 0.7, rtol=1e-12)


def test_full_rank_derivatives_equal_those_of_cholesky(rng, x64):
    """First and second derivatives, forward and reverse, against JAX's own rule for the Cholesky factor."""
    a, direction, weight = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=(3, 3))

    def ours(a):
        return jnp.sum(jnp.sin(core.tria(a)) * weight)

    def theirs(a):
        return jnp.sum(jnp.sin(jnp.linalg.cholesky(a @ a.T)) * weight)

    np.testing.assert_allclose(jax.jit(jax.grad(ours))(a), jax.jit(jax.grad(theirs))(a), rtol=1e-10, atol=1e-11)
    tangent = jax.jit(lambda a, da: jax.jvp(core.tria, (a,), (da,))[1])(a, direction)
    np.testing.assert_array_equal(tangent, jnp.tril(tangent))

    def product(f):
        return jax.jit(jax.grad(lambda a: jnp.vdot(jax.grad(f)(a), direction)))(a)

    np.testing.assert_allclose(product(ours), product(theirs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_of_a_loop(outer, batched, x64):
    """From a known state with noise of rank one, where QR has no derivative; JAX forgets custom rules there."""

    def start(x):
        noise = jnp.outer(jnp.stack([0.5 * x[0], x[1]]), jnp.array([1.0, 0.0]))
        return jnp.array([[1.0, 0.0], [0.0, 1.0]]).at[0, 1].set(x[2]), noise

    def end(covariance):
        return jnp.sum(jnp.sin(covariance) * jnp.array([[1.0, 2.0], [2.0, 5.0]]))

    def with_factors(x):
        transition, noise = start(x)
        rows = jax.vmap(core.tria) if batched else core.tria

        def step(factor, _):
            both = jnp.concatenate([core.matmul(transition, factor), noise], -1)
            return rows(both[None])[0] if batched else rows(both), None

        factor, _ = jax.lax.scan(step, jnp.zeros((2, 2)), None, length=3)
        return end(factor @ factor.T)

    def without(x):
        transition, noise = start(x)
        covariance = jnp.zeros((2, 2))
        for _ in range(3):
            covariance = transition @ covariance @ transition.T + noise @ noise.T
        return end(covariance)

    x = jnp.array([0.7, 0.4, 0.9])
    got, want = jax.jit(outer(jax.grad(with_factors)))(x), jax.jit(jax.hessian(without))(x)
    assert np.abs(want).min() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_gradients_of_a_loop_over_sharded_rows():
    mesh = jax.make_mesh((8,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    chain = jax.sharding.PartitionSpec("chain")

    def total(rows):
        def step(factor, _):
            return core.tria(jnp.concatenate([factor, rows], -1)), None

        factor, _ = jax.lax.scan(step, jnp.zeros_like(rows), None, length=2)
        return jnp.sum(core.matmul(factor, jnp.swapaxes(factor, -1, -2)), (-2, -1))

    def slopes(rows):
        return jax.grad(lambda rows: jnp.sum(total(rows)))(rows)

    sharded = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=chain, out_specs=chain))
    rows = np.random.default_rng(0).normal(size=(8, 2, 2)).astype(np.float32)
    # The sum of the entries of 2 A A^T is twice the square of the sum of the rows of A.
    want = np.broadcast_to(4 * rows.sum(1, keepdims=True), rows.shape)
    np.testing.assert_allclose(sharded(rows), want, rtol=1e-4, atol=1e-4)


def test_rows_at_very_different_scales_count_as_independent(rng):
    """Rows of lengths 1, 1e-9 and 1e9 are not taken for dependent ones: d log det(a a^T) = 2 a^-T in float32."""
    a = (rng.normal(size=(3, 3)) * np.array([[1.0], [1e-9], [1e9]])).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda a: core.log_determinant(core.tria(a))))(a)
    np.testing.assert_allclose(gradient, 2 * np.linalg.inv(a.astype(np.float64)).T, rtol=1e-4)


def test_vmap_batch_and_jit_agree(rng):
    a = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    loop = np.stack([[tria(x) for x in row] for row in a])
    np.testing.assert_allclose(core.tria(a), loop, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(core.tria)))(a), loop, rtol=1e-6, atol=1e-6)
    last = np.moveaxis(a[0], 0, -1)
    np.testing.assert_allclose(jax.vmap(core.tria, -1, -1)(last), np.moveaxis(loop[0], 0, -1), rtol=1e-6, atol=1e-6)
    slopes = jax.jit(jax.vmap(jax.vmap(jax.grad(lambda a: core.tria(a).sum()))))(a)
    batched = jax.jit(jax.grad(lambda a: core.tria(a).sum()))(a)
    np.testing.assert_allclose(slopes, batched, rtol=1e-4, atol=1e-5)


update = jax.jit(core.cholesky_update, static_argnums=2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([(1, 1), (4, 1), (4, 3), (3, 6)]), st.sampled_from([1, -1]), st.integers(0, 2**32 - 1))
def test_update_and_downdate_equal_the_factor_of_the_changed_matrix(shape, sign, seed):
    rng = np.random.default_rng(seed)
    n, k = shape
    root = rng.normal(size=(n, n + 2)) / np.sqrt(n)
    vectors = rng.normal(size=(n, k)) / np.sqrt(n)
    small = root @ root.T + 0.1 * np.eye(n)
    large = small + vectors @ vectors.T
    start, end = (small, large) if sign == 1 else (large, small)
    got = update(np.linalg.cholesky(start).astype(np.float32), vectors.astype(np.float32), sign)
    np.testing.assert_allclose(got, np.linalg.cholesky(end), atol=2e-5)


def test_downdate_is_accurate_close_to_singular(x64):
    """1 - (1 - 1e-12)^2 is 2e-12, and its root is right to the conditioning of the problem."""
    got = update(jnp.eye(1), jnp.array([[1.0 - 1e-12]]), -1)
    np.testing.assert_allclose(got, np.sqrt(2e-12), rtol=1e-3)


@pytest.mark.parametrize("size", [1.0, 1.0000001, 2.0, np.nan])
def test_downdate_that_is_not_positive_definite_is_nan(size, x64):
    vector = np.array([[0.0], [size], [0.0]])
    assert np.isnan(update(jnp.eye(3), vector, -1)).all()
    assert np.isnan(update(jnp.zeros((3, 3)), vector, -1)).all()


def test_update_of_a_singular_factor(rng):
    vectors = rng.normal(size=(3, 1)).astype(np.float32)
    got = update(jnp.zeros((3, 3)), vectors, 1)
    np.testing.assert_allclose(got @ got.T, vectors @ vectors.T, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_derivatives_of_updates(rng, x64, sign):
    """Against the Cholesky factor of the changed matrix, at V = 0 as well, where |v| has no derivative."""
    root, weight = rng.normal(size=(3, 6)), rng.normal(size=(3, 3))
    factor = np.linalg.cholesky(root @ root.T)

    @jax.jit
    def both(factor, vectors):
        def ours(factor, vectors):
            return jnp.sum(core.cholesky_update(factor, vectors, sign) * weight)

        def theirs(factor, vectors):
            return jnp.sum(jnp.linalg.cholesky(factor @ factor.T + sign * vectors @ vectors.T) * weight)

        return jax.grad(ours, (0, 1))(factor, vectors), jax.grad(theirs, (0, 1))(factor, vectors)

    for vectors in (0.3 * rng.normal(size=(3, 2)), np.zeros((3, 2)), np.array([[0.0, 0.0], [0.2, 0.0], [0.0, 0.0]])):
        ours, theirs = both(factor, vectors)
        np.testing.assert_allclose(jnp.tril(ours[0]), jnp.tril(theirs[0]), atol=1e-10)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-10)


def test_updates_broadcast(rng):
    factor = np.tile(np.eye(3, dtype=np.float32), (4, 1, 1))
    vectors = (0.2 * rng.normal(size=(2, 1, 3, 2))).astype(np.float32)
    for sign in (1, -1):
        got = update(factor, vectors, sign)
        assert got.shape == (2, 4, 3, 3)
        square = vectors.astype(np.float64) @ np.swapaxes(vectors, -1, -2)
        want = np.linalg.cholesky(np.broadcast_to(np.eye(3) + sign * square, (2, 4, 3, 3)))
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_updates_of_sharded_factors_by_replicated_vectors():
    """One factor on each device, the same vectors on all: every carry must vary over the mesh as its inputs do."""
    mesh = jax.make_mesh((8,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    chain, everywhere = jax.sharding.PartitionSpec("chain"), jax.sharding.PartitionSpec()

    def both(factor, vectors):
        return core.cholesky_update(core.cholesky_update(factor, vectors), vectors, -1)

    sharded = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=(chain, everywhere), out_specs=chain))
    factors = jnp.arange(1.0, 9.0)[:, None, None] * jnp.broadcast_to(jnp.eye(3), (8, 3, 3))
    np.testing.assert_allclose(sharded(factors, 0.5 * jnp.ones((3, 1))), factors, atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"tria: a is of shape \(3,\); expected shape \(..., n, m\)."):
        core.tria(jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"vectors is of shape \(3,\); expected shape \(..., 3, k\). Write one vector v"
    ):
        core.cholesky_update(jnp.eye(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"cholesky_update: sign is 2; expected \+1 or -1."):
        core.cholesky_update(jnp.eye(3), jnp.ones((3, 1)), 2)
