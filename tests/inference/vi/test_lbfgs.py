"""The quasi-Newton walk: its algebra against dense BFGS, its diagonal against the paper, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference.vi import _lbfgs as lbfgs
from jaxprob.inference.vi import _quasi_newton_metric as quasi_newton
from tests.inference.vi._gaussians import gaussian, root_of


def moves(size, count, seed=0):
    """Moves and changes of the gradient of a convex function; one tells of negative curvature, one is empty."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, size))
    hessian = np.diag(np.exp(rng.normal(size=size))) + 0.3 * np.ones((size, size))
    changes = steps @ hessian + 0.05 * rng.normal(size=(count, size))
    changes[2] *= -1
    steps[1] = changes[1] = 0
    return steps, changes


def dense_bfgs(variances, steps, changes):
    """Nocedal & Wright, equation 6.17, on matrices."""
    inverse = np.diag(variances)
    for s, y in zip(steps, changes, strict=True):
        if s @ y > 0:
            left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
            inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    return inverse


@pytest.mark.parametrize(("size", "count"), [(7, 5), (3, 8), (40, 6)])
def test_the_product_form_is_bfgs(size, count, x64):
    variances = np.exp(np.random.default_rng(1).normal(size=size))
    steps, changes = moves(size, count)
    metric = quasi_newton.from_moves(*map(jnp.asarray, (variances, steps, changes)))
    inverse = dense_bfgs(variances, steps, changes)
    root = root_of(metric)
    np.testing.assert_allclose(root @ root.T, inverse, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(float(metric.log_determinant), 0.5 * np.linalg.slogdet(inverse)[1], rtol=1e-9)
    vector = np.random.default_rng(2).normal(size=size)
    x = jnp.asarray(vector)
    np.testing.assert_allclose(metric.force(x), root.T @ vector, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(metric.whiten(x), np.linalg.solve(root, vector), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(metric.mass(x), np.linalg.solve(inverse, vector), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(metric.astype(jnp.float32).velocity(x.astype(jnp.float32)), root @ vector, rtol=1e-3)


def test_the_diagonal_is_that_of_the_paper(x64):
    """A move along an axis tells its variance exactly, and scales the others by as much as it was off."""
    before = np.array([2.0, 1.0, 0.5])
    for k in range(3):
        step = np.eye(3)[k] * 0.3
        after = lbfgs._variances(jnp.asarray(before), jnp.asarray(step), jnp.asarray(step * 50))
        np.testing.assert_allclose(after, np.where(np.arange(3) == k, 1 / 50, before / (50 * before[k])), rtol=1e-12)
    steps, changes = moves(30, 6)
    for s, y in zip(steps, changes, strict=True):
        if s @ y > 0:
            variances = lbfgs._variances(jnp.ones(30), jnp.asarray(s), jnp.asarray(y))
            a, b, c = y @ y, s @ y, s @ s  # Zhang et al. (2022), equation 5 with a unit diagonal
            np.testing.assert_allclose(variances, 1 / (a / b + y**2 / b - a * s**2 / (b * c)), rtol=1e-10)
            assert (np.asarray(variances) > 0).all()


def test_a_walk_costs_little_and_goes_up():
    """Monotone but for rounding; on a bad Gaussian in 50 dimensions no more than 200 iterations and 300 gradients."""
    count = 0
    log_density, _, _, _ = gaussian(50, "float32", spread=1.5)

    def counted(x):
        def add():
            nonlocal count
            count += 1

        jax.debug.callback(add)
        return log_density(x)

    from jaxprob.inference.mcmc._hamiltonian import flatten
    from jaxprob.inference.mcmc._log_density import as_log_density

    flat = flatten(as_log_density(counted, "test"), jnp.zeros(50))
    walk, heights = lbfgs.start(flat, jnp.zeros(50), 6), []
    advance = jax.jit(lambda walk: lbfgs.advance(flat, walk, 500, 1e-6))
    while bool(walk.active):
        walk = advance(walk)
        heights.append(float(walk.log_density))
    jax.effects_barrier()
    assert np.all(np.diff(heights) > -1e-3)
    assert abs(heights[-1]) < 1e-3
    assert len(heights) < 200
    assert count < 1.5 * len(heights) + 10
