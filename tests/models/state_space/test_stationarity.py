"""Coefficients of stationary processes: maps onto them, what they contain, and the laws in which they stay."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxprob.models.state_space as ss
from jaxprob import core, models
from jaxprob import distributions as d
from jaxprob.inference import kalman

# Compiled without optimisations, which take most of the time and change no rounding.
QUICK = {"xla_backend_optimization_level": 0}
COVARIANCE = np.array([[2.0, 0.5], [0.5, 1.0]])


def largest_root(coefficients):
    return np.abs(np.roots(np.concatenate([[1.0], -np.asarray(coefficients, np.float64)]))).max(initial=0)


@pytest.mark.parametrize("p", [1, 2, 5])
def test_the_map_is_that_of_monahan(p, rng, x64):
    """As statsmodels has it, with other signs and x / sqrt(1 + x^2) for tanh; the determinant is that of autodiff."""
    tools = pytest.importorskip("statsmodels.tsa.statespace.tools")
    u = rng.normal(size=(4, p))

    @partial(jax.jit, compiler_options=QUICK)
    def program(u):
        x, log_det = d.PartialAutocorrelation().forward_and_log_det(u)
        back, inside = d.PartialAutocorrelation().inverse(x), d.Stationary().contains(x)
        average = d.Invertible().bijector.forward_and_log_det(u)
        jacobian = jax.vmap(jax.jacfwd(d.PartialAutocorrelation().forward))(u)
        return x, log_det, back, inside, jacobian, *average, d.Invertible().contains(average[0])

    x, log_det, back, inside, jacobian, average, same, invertible = program(u)
    for row, found in zip(u, x, strict=True):
        np.testing.assert_allclose(found, tools.constrain_stationary_univariate(-np.sinh(row)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(back, u, rtol=1e-8)
    assert inside.all()
    np.testing.assert_allclose(average, -x, rtol=1e-12)
    np.testing.assert_allclose(same, log_det, rtol=1e-12)
    assert invertible.all()


def test_the_area_of_the_triangle(x64):
    """The stationary coefficients of order two fill a triangle of area 4, whatever they are made of."""
    grid = np.linspace(-12, 12, 481)
    u = np.stack(np.meshgrid(grid, grid), -1)
    area = np.sum(np.exp(d.PartialAutocorrelation().forward_and_log_det(u)[1])) * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(area, 4, rtol=1e-8)


def test_what_is_stationary(rng, x64):
    """That is, all roots lie within the unit circle; of those within and outside by little, too."""
    for p in (1, 4):
        contains = jax.jit(d.Stationary().contains, compiler_options=QUICK)
        x = np.concatenate([rng.normal(size=(60, p)) / p, d.PartialAutocorrelation().forward(rng.normal(size=(60, p)))])
        sizes = np.array([largest_root(row) for row in x])
        edge = x / sizes[:, None] ** np.arange(1, p + 1)
        for scale, rows in ((1 - 1e-6, edge), (1 + 1e-6, edge), (1, x)):
            rows = rows * np.float64(scale) ** np.arange(1, p + 1)
            expected = np.array([largest_root(row) for row in rows]) < 1
            np.testing.assert_array_equal(contains(rows), expected)


def test_the_edge_belongs_and_nothing_beyond():
    inside = [[1.0, 0.0], [2.0, -1.0], [0.0, 1.0], [-2.0, -1.0]]
    outside = [[5.0, -1.0], [1.01, 0.0], [np.nan, 0.0], [0.0, np.inf], [0.0, 1.001]]
    found = d.Stationary().contains(jnp.array(inside + outside))
    assert found.tolist() == [True] * 4 + [False] * 5
    # Of numbers so far out that rounding leaves nothing but the edge, at any order.
    u = jnp.array(list(itertools.product([-80.0, -8.0, 0.7, 1.5, 8.0], repeat=4)))

    @partial(jax.jit, compiler_options=QUICK)
    def program(u):
        (x, log_det), pull = jax.vjp(d.PartialAutocorrelation().forward_and_log_det, u)
        return d.Stationary().contains(x), log_det, pull((jnp.ones_like(x), jnp.ones_like(log_det)))[0]

    inside, log_det, slope = program(u)
    assert inside.all()
    assert np.isfinite(log_det).all()
    assert np.isfinite(slope).all()
    assert d.Stationary().contains(jnp.zeros((3, 0))).tolist() == [True] * 3


def test_the_map_of_matrices_is_that_of_ansley_and_kohn(rng, x64):
    tools = pytest.importorskip("statsmodels.tsa.statespace.tools")
    support = d.StationaryMatrices(COVARIANCE)
    u = rng.normal(size=(3, 2, 2, 2))
    # Determinants by differences.
    steps = 1e-6 * np.eye(8).reshape(8, 2, 2, 2)

    @partial(jax.jit, compiler_options=QUICK)
    def program(u):
        x, log_det = support.bijector.forward_and_log_det(u)
        outside = jnp.stack([1.01 * jnp.eye(2), jnp.full((2, 2), jnp.nan)])
        return x, log_det, support.bijector.inverse(x), support.contains(x), support.contains(outside[:, None])

    x, log_det, back, inside, outside = program(np.concatenate([u, u[0] + steps, u[0] - steps]))
    for row, found in zip(u, x, strict=False):
        expected = tools.constrain_stationary_multivariate(list(row), COVARIANCE)[0]
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(back[:3], u, rtol=1e-7, atol=1e-9)
    slopes = (np.asarray(x[3:11]) - np.asarray(x[11:])).reshape(8, 8) / 2e-6
    np.testing.assert_allclose(log_det[0], np.linalg.slogdet(slopes)[1], rtol=1e-6)
    assert inside.all()
    assert not outside.any()
    assert support.bijector.forward_shape((3, 2, 2, 2)) == (3, 2, 2, 2)


@pytest.mark.slow
def test_matrices_in_float32(rng):
    u = rng.normal(size=(3, 2, 2, 2)).astype(np.float32)
    bijector = d.PartialAutocorrelationMatrices(COVARIANCE.astype(np.float32))
    x, log_det = jax.jit(bijector.forward_and_log_det)(u)
    assert x.dtype == log_det.dtype == np.float32
    with jax.enable_x64(True):
        expected, wanted = d.PartialAutocorrelationMatrices(COVARIANCE).forward_and_log_det(u.astype(np.float64))
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_det, wanted, rtol=1e-4)
    # One covariance for each.
    several = d.PartialAutocorrelationMatrices(np.stack([COVARIANCE, np.eye(2), COVARIANCE]).astype(np.float32))
    np.testing.assert_allclose(several.forward(u)[::2], x[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_joint_model_with_stationary_coefficients():
    """Uniform on them; the density in unconstrained space is finite with its derivatives, near the edge and far out."""
    ys = np.sin(np.arange(30.0) * 0.7).astype(np.float32)

    @models.joint
    def series():
        ar = yield "ar", d.Flat(d.Stationary(), (2,))
        ma = yield "ma", d.Flat(d.Invertible(), (1,))
        yield "ys", kalman.marginal(ss.arma(ar, ma, 0.5), 30)

    posterior = series().condition(ys=ys)
    density = jax.jit(jax.value_and_grad(posterior.log_density), compiler_options=QUICK)
    for u in ([0.0, 0.0], [1.0, -1.0], [3.0, -3.0]):
        value, gradient = density({"ar": jnp.array(u), "ma": jnp.array([0.5])})
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_law_that_a_recurrence_keeps(n, rng, x64):
    a = rng.normal(size=(3, n, n))
    a = a / (1.2 * np.abs(np.linalg.eigvals(a)).max(-1, initial=0.1))[:, None, None]
    q = a @ np.swapaxes(a, 1, 2) + np.eye(n)
    found = jax.vmap(core.discrete_lyapunov)(jnp.asarray(a), jnp.asarray(q))
    for row, (f, noise) in zip(found, zip(a, q, strict=True), strict=True):
        if n:
            np.testing.assert_allclose(row, scipy.linalg.solve_discrete_lyapunov(f, noise), rtol=1e-9)


def test_derivatives_of_that_law(rng, x64):
    a, q, weights = 0.5 * rng.normal(size=(3, 3)) / 2, np.diag([1.0, 2.0, 0.0]), rng.normal(size=(3, 3))

    def total(x):
        return jnp.sum(weights * core.discrete_lyapunov(x[0], x[1] @ x[1].T))

    def expected(x):
        return np.sum(weights * scipy.linalg.solve_discrete_lyapunov(x[0], x[1] @ x[1].T))

    point = np.stack([a, q])
    steps = 1e-6 * np.eye(18).reshape(18, 2, 3, 3)
    wanted = np.array([(expected(point + s) - expected(point - s)) / 2e-6 for s in steps])
    gradient = jax.jit(jax.grad(total))(jnp.asarray(point))
    np.testing.assert_allclose(np.ravel(gradient), wanted, rtol=1e-6, atol=1e-8)
    forward = jax.jit(jax.jacfwd(total))(jnp.asarray(point))
    np.testing.assert_allclose(forward, gradient, rtol=1e-10, atol=1e-12)


def test_where_there_is_no_law():
    one = jnp.ones((1, 1))
    for size in (1.0, -1.0, 1.5, 1e30):
        assert np.isnan(core.discrete_lyapunov(size * one, one)).all()
    assert np.isnan(core.discrete_lyapunov(jnp.array([[np.nan]]), one)).all()
    found = core.discrete_lyapunov(0.99999 * one, one)
    np.testing.assert_allclose(found, 1 / (1 - float(np.float32(0.99999)) ** 2), rtol=0.02)
    assert core.discrete_lyapunov(0.5 * one.astype(jnp.bfloat16), one.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="q is a float32 array of shape"):
        core.discrete_lyapunov(jnp.eye(2), one)
    with pytest.raises(ValueError, match="covariance is a float32 array"):
        d.PartialAutocorrelationMatrices(jnp.ones(3))
    with pytest.raises(ValueError, match="the argument is a float32 array"):
        d.PartialAutocorrelationMatrices(jnp.eye(2)).forward(jnp.ones((2, 3, 3)))
