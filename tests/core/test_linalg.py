"""Products, Cholesky factors and triangular solves against float64 NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxprob import core

EPS = {np.float32: np.finfo(np.float32).eps, np.float64: np.finfo(np.float64).eps}


def spd(rng, n, batch=()):
    """Well conditioned: eigenvalues between 0.5 and about 4."""
    a = rng.normal(size=(*batch, n, n)) / np.sqrt(n)
    return a @ np.swapaxes(a, -1, -2) + 0.5 * np.eye(n)


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    with jax.enable_x64(request.param == np.float64):
        yield request.param


def close(got, want, dtype, factor=50):
    got = np.asarray(got, np.float64)
    assert got.shape == np.shape(want)
    np.testing.assert_array_less(np.abs(got - want), factor * EPS[dtype] * (1 + np.abs(want).max()))


def test_products_broadcast_and_keep_dtype(rng, dtype):
    a, b, x = rng.normal(size=(5, 3, 4)), rng.normal(size=(4, 2)), rng.normal(size=(2, 5, 4))
    got = core.matmul(a.astype(dtype), b.astype(dtype))
    assert got.dtype == dtype
    close(got, a @ b, dtype)
    close(core.matvec(a.astype(dtype), x.astype(dtype)), np.einsum("bij,abj->abi", a, x), dtype)
    close(core.matvec(a[0].astype(dtype), x.astype(dtype)), np.einsum("ij,abj->abi", a[0], x), dtype)


def test_every_product_asks_for_the_highest_precision(rng):
    a = spd(rng, 4).astype(np.float32)
    d, u, x = jnp.ones(4), jnp.ones((4, 2)), jnp.ones(4)

    def everything(a, d, u, x):
        factor = core.cholesky(core.matmul(a, a), jitter=1.0)
        parts = [
            core.matvec(factor, x),
            core.cholesky_solve(factor, x, vector=True),
            core.tria(jnp.concatenate([factor, u], -1)),
            core.cholesky_update(factor, 0.01 * u, -1),
            core.woodbury_solve(d, u, x, vector=True),
            core.woodbury_quadratic_form(d, u, x),
        ]
        return sum(jnp.sum(part) for part in parts)

    text = jax.jit(jax.value_and_grad(everything, (0, 1, 2, 3))).lower(a, d, u, x).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 10
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_symmetrize_is_exactly_symmetric(rng, dtype):
    a = rng.normal(size=(2, 3, 3)).astype(dtype)
    got = np.asarray(core.symmetrize(a))
    np.testing.assert_array_equal(got, np.swapaxes(got, -1, -2))
    close(got, (a + np.swapaxes(a, -1, -2)) / 2, dtype)


def test_cholesky_value_and_derivative(rng, dtype):
    a = spd(rng, 4, (3,))
    got = core.cholesky(a.astype(dtype))
    assert got.dtype == dtype
    close(got, np.linalg.cholesky(a), dtype)
    # d log det A = A^-1.
    gradient = jax.jit(jax.grad(lambda a: core.log_determinant(core.cholesky(a)).sum()))(a.astype(dtype))
    close(gradient, np.linalg.inv(a), dtype, 200)


@pytest.mark.parametrize(
    "a",
    [
        np.zeros((3, 3)),
        np.ones((3, 3)),
        np.diag([1.0, -1.0, 1.0]),
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.full((2, 2), np.nan),
    ],
    ids=["zero", "rank one", "negative", "indefinite", "nan"],
)
def test_cholesky_of_what_has_none_is_nan(a, dtype):
    assert np.isnan(core.cholesky(a.astype(dtype))).any()
    assert np.isnan(jax.jit(core.cholesky)(a.astype(dtype))).any()


def test_one_bad_matrix_leaves_the_others(rng):
    a = np.stack([spd(rng, 3), -np.eye(3), spd(rng, 3)]).astype(np.float32)
    got = np.asarray(core.cholesky(a))
    assert np.isnan(got[1]).any()
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_jitter_is_scaled_by_eps_and_trace(dtype, scale):
    a = scale * np.diag([1.0, 2.0, 6.0])
    got = np.asarray(core.cholesky(a.astype(dtype), jitter=1e4), np.float64)
    want = np.sqrt(np.diag(a) + 1e4 * EPS[dtype] * 3.0 * scale)
    np.testing.assert_allclose(np.diag(got), want, rtol=4 * EPS[dtype])
    singular = (scale * np.ones((3, 3))).astype(dtype)
    assert np.isfinite(core.cholesky(singular, jitter=10.0)).all()
    # Without it nothing is added, not even at rounding level.
    exact = np.asarray(core.cholesky(np.diag([4.0, 9.0]).astype(dtype)))
    np.testing.assert_array_equal(exact, np.diag([2.0, 3.0]))


def test_jitter_may_be_traced_and_is_per_matrix(rng):
    a = np.stack([np.eye(2), 100 * np.eye(2)]).astype(np.float32)
    got = jax.jit(core.cholesky)(a, jnp.float32(1e5))
    added = np.asarray(got)[:, 0, 0] ** 2 - a[:, 0, 0]
    np.testing.assert_allclose(added, 1e5 * EPS[np.float32] * np.array([1, 100]), rtol=1e-3)


@jax.jit
def every_solve(factor, b, v):
    return (
        core.solve_triangular(factor, b),
        core.solve_triangular(factor, b, transpose=True),
        core.solve_triangular(factor, v, vector=True),
        core.solve_triangular(factor, v, transpose=True, vector=True),
        core.cholesky_solve(factor, b),
        core.cholesky_solve(factor, v, vector=True),
        core.quadratic_form(factor, v),
    )


@pytest.mark.parametrize(
    ("batch_factor", "batch_b"), [((), ()), ((), (2, 5)), ((5,), ()), ((5,), (2, 1)), ((2, 1), (5,))]
)
def test_solves_broadcast_leading_axes(rng, dtype, batch_factor, batch_b):
    factor = np.linalg.cholesky(spd(rng, 3, batch_factor))
    inverse = np.linalg.inv(factor)
    transposed = np.swapaxes(inverse, -1, -2)
    full = transposed @ inverse
    b, v = rng.normal(size=(*batch_b, 3, 2)), rng.normal(size=(*batch_b, 3))
    want = [inverse @ b, transposed @ b]
    want += [(m @ v[..., None])[..., 0] for m in (inverse, transposed)]
    want += [full @ b, (full @ v[..., None])[..., 0], np.einsum("...i,...ij,...j->...", v, full, v)]
    for ours, theirs in zip(every_solve(*(z.astype(dtype) for z in (factor, b, v))), want, strict=True):
        assert ours.dtype == dtype
        close(ours, theirs, dtype, 200)


def test_many_vectors_share_one_factor(rng):
    """The factor is not copied for each vector: it stays 3 x 3 in the program."""
    program = jax.make_jaxpr(lambda L, x: core.solve_triangular(L, x, vector=True))(jnp.eye(3), jnp.ones((7, 3)))
    assert "7,3,3" not in str(program)


def test_upper_triangle_of_a_factor_is_not_read(rng):
    factor = np.linalg.cholesky(spd(rng, 3)).astype(np.float32)
    dirty = factor + np.triu(np.full((3, 3), 7, np.float32), 1)
    x = np.ones(3, np.float32)
    for function in (core.solve_triangular, core.cholesky_solve):
        np.testing.assert_array_equal(function(factor, x, vector=True), function(dirty, x, vector=True))


def test_log_determinant(rng, dtype):
    a = spd(rng, 4, (2,))
    want = np.linalg.slogdet(a)[1]
    close(core.log_determinant(np.linalg.cholesky(a).astype(dtype)), want, dtype)
    # A factor whose diagonal has negative signs is one of the same matrix.
    close(core.log_determinant(-np.linalg.cholesky(a).astype(dtype)), want, dtype)


def test_log_determinant_of_a_singular_matrix():
    value, gradient = jax.jit(jax.value_and_grad(core.log_determinant))(jnp.diag(jnp.array([1.0, 0.0])))
    assert value == -jnp.inf
    np.testing.assert_array_equal(gradient, np.diag([2.0, 0.0]))


def test_bfloat16_is_computed_in_float32(rng):
    a = jnp.asarray(spd(rng, 3), jnp.bfloat16)
    factor = core.cholesky(a)
    assert factor.dtype == jax.eval_shape(core.tria, a).dtype == jnp.bfloat16
    assert jax.eval_shape(core.cholesky_update, factor, a).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(factor, np.float32), np.linalg.cholesky(np.asarray(a, np.float32)), rtol=2**-8, atol=2**-9
    )
    assert all(z.dtype == jnp.bfloat16 for z in jax.eval_shape(every_solve, factor, a, a[0]))


def test_second_derivatives_of_a_gaussian_log_density(rng, x64):
    """The Hessian in the mean is minus the precision."""
    a, x = spd(rng, 3), rng.normal(size=3)
    factor = core.cholesky(a)
    hessian = jax.jit(jax.hessian(lambda m: -0.5 * core.quadratic_form(factor, x - m)))(np.zeros(3))
    np.testing.assert_allclose(hessian, -scipy.linalg.inv(a), rtol=1e-12)


def test_vmap_is_the_same_as_batches(rng):
    a, b = spd(rng, 3, (4,)).astype(np.float32), rng.normal(size=(4, 3, 2)).astype(np.float32)
    for function in (core.matmul, core.solve_triangular, core.cholesky_solve, lambda a, b: core.cholesky(a)):
        mapped, batched = jax.jit(lambda a, b, f=function: (jax.vmap(f)(a, b), f(a, b)))(a, b)
        np.testing.assert_allclose(mapped, batched, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (
            lambda: core.matmul(jnp.ones(3), jnp.ones((3, 3))),
            "matmul: a is of shape (3,); expected shape (..., n, m).",
        ),
        (
            lambda: core.matmul(jnp.ones((3, 2)), jnp.ones((3, 3))),
            "matmul: b is of shape (3, 3); expected shape (..., 2, k).",
        ),
        (lambda: core.matvec(jnp.ones((3, 2)), 1.0), "matvec: x is of shape (); expected shape (..., 2)."),
        (
            lambda: core.cholesky(jnp.ones((3, 2))),
            "cholesky: a is of shape (3, 2); expected shape (..., n, n).",
        ),
        (
            lambda: core.solve_triangular(jnp.eye(3), jnp.ones(3)),
            "solve_triangular: b is of shape (3,); expected shape (..., 3, k). "
            "Pass vector=True if its last axis is one vector.",
        ),
        (
            lambda: core.cholesky_solve(jnp.eye(3), jnp.ones((3, 2)), vector=True),
            "cholesky_solve: b is of shape (3, 2); expected shape (..., 3).",
        ),
        (
            lambda: core.quadratic_form(jnp.eye(3), jnp.ones(2)),
            "quadratic_form: x is of shape (2,); expected shape (..., 3).",
        ),
    ],
)
def test_wrong_shapes(call, error):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == error
