"""A diagonal plus low rank, against dense float64 linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core


@jax.jit
def everything(d, u, b, x):
    return (
        core.woodbury_solve(d, u, b),
        core.woodbury_solve(d, u, x, vector=True),
        core.woodbury_log_determinant(d, u),
        core.woodbury_quadratic_form(d, u, x),
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from([(5, 2), (3, 5), (1, 1)]), st.integers(0, 2**32 - 1))
def test_equals_the_dense_matrix(shape, seed):
    rng = np.random.default_rng(seed)
    n, k = shape
    d, u = rng.uniform(0.3, 3, n), rng.normal(size=(n, k))
    b, x = rng.normal(size=(n, 2)), rng.normal(size=n)
    a = np.diag(d) + u @ u.T
    got = everything(*(z.astype(np.float32) for z in (d, u, b, x)))
    want = (np.linalg.solve(a, b), np.linalg.solve(a, x), np.linalg.slogdet(a)[1], x @ np.linalg.solve(a, x))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-5)


def test_small_noise_does_not_make_the_quadratic_form_negative():
    """d = 1e-8 in float32, x in the span of U: the difference of Woodbury's two terms is far below their rounding."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(6, 2)).astype(np.float32)
    d = np.full(6, 1e-8, np.float32)
    x = (u @ np.array([1.0, -2.0])).astype(np.float32)
    x64, u64 = x.astype(np.float64), u.astype(np.float64)
    # The rounding of x itself leaves the span by 1e-7, worth about 1e-14 / 1e-8 = 1e-6 in the form.
    want = x64 @ np.linalg.solve(np.diag(d.astype(np.float64)) + u64 @ u64.T, x64)
    _, _, determinant, got = everything(d, u, x[:, None], x)
    assert 4.9 < want < 5.1
    np.testing.assert_allclose(got, want, rtol=1e-3)
    want = np.linalg.slogdet(np.diag(d.astype(np.float64)) + u64 @ u64.T)[1]
    np.testing.assert_allclose(determinant, want, rtol=1e-5)


def test_low_rank_part_zero(x64):
    d, x = jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])
    zero = jnp.zeros((2, 1))
    np.testing.assert_allclose(everything(d, zero, x[:, None], x)[1], [2.0, 0.5])
    gradient = jax.jit(jax.grad(core.woodbury_log_determinant, (0, 1)))(d, zero)
    np.testing.assert_allclose(gradient[0], [1.0, 0.25])
    np.testing.assert_allclose(gradient[1], np.zeros((2, 1)))


def test_derivatives_equal_the_dense_ones(rng, x64):
    d, u, x = rng.uniform(0.5, 2, 4), rng.normal(size=(4, 2)), rng.normal(size=4)

    def ours(d, u, x):
        return core.woodbury_log_determinant(d, u) + core.woodbury_quadratic_form(d, u, x)

    def dense(d, u, x):
        a = jnp.diag(d) + u @ u.T
        return jnp.linalg.slogdet(a)[1] + x @ jnp.linalg.solve(a, x)

    slopes = jax.jit(lambda *z: (jax.grad(ours, (0, 1, 2))(*z), jax.grad(dense, (0, 1, 2))(*z)))
    for got, want in zip(*slopes(d, u, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("batch", "batch_x"), [((), (3,)), ((3,), ()), ((2, 1), (3,)), ((3,), (2, 3))])
def test_leading_axes_broadcast(rng, batch, batch_x):
    d, u, x = rng.uniform(0.5, 2, (*batch, 4)), rng.normal(size=(*batch, 4, 2)), rng.normal(size=(*batch_x, 4))
    a = np.zeros((*batch, 4, 4))
    a[..., np.arange(4), np.arange(4)] = d
    a = a + u @ np.swapaxes(u, -1, -2)
    want = (np.linalg.inv(a) @ x[..., None])[..., 0]
    low = [z.astype(np.float32) for z in (d, u, x)]
    columns, vectors, _, forms = everything(low[0], low[1], low[2][..., None], low[2])
    for got in (columns[..., 0], vectors):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forms, np.sum(x * want, -1), rtol=1e-4, atol=1e-5)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"woodbury_solve: diagonal is of shape \(3,\); expected shape \(..., 2\)."):
        core.woodbury_solve(jnp.ones(3), jnp.ones((2, 1)), jnp.ones(2), vector=True)
    with pytest.raises(ValueError, match=r"low_rank is of shape \(2,\); expected shape \(..., n, m\)."):
        core.woodbury_log_determinant(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"woodbury_quadratic_form: x is of shape \(3,\); expected shape \(..., 2\)."):
        core.woodbury_quadratic_form(jnp.ones(2), jnp.ones((2, 1)), jnp.ones(3))
