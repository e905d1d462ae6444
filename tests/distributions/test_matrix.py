"""Distributions of matrices: closed forms and integrals for LKJ, SciPy for Wishart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import distributions as d
from tests.distributions._rows import Row, check_checkpoint, check_pytree, distance, log_prob, quick

# With 20,000 draws and a false alarm in 10^7 a cdf off by 0.041 is found; z tests have a false alarm in 10^6.
DRAWS, Z = 20_000, 4.9
DISTANCE = np.sqrt(np.log(2e7) / (2 * DRAWS))


def test_lkj_of_two_is_a_beta_law():
    r = np.float32([-0.99, -0.3, 0.0, 0.5, 0.9999])
    factors = np.zeros((5, 2, 2), np.float32)
    factors[:, 0, 0], factors[:, 1, 0], factors[:, 1, 1] = 1, r, np.sqrt(1 - r.astype(float) ** 2)
    eta = np.float32([0.5, 1.0, 4.0, 1e5])
    found = log_prob(d.LKJCholesky(2, eta), factors[:, None])
    exact = r.astype(float)[:, None]
    # The diagonal is what the density reads; it rounds by eps, which a power of eta multiplies.
    expected = stats.beta(eta.astype(float), eta.astype(float)).logpdf((exact + 1) / 2) - np.log(2)
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2:4, 3], expected[2:4, 3], rtol=1e-5)


@pytest.mark.parametrize("eta", [1.0, 2.5])
def test_lkj_of_three_integrates_to_one(eta, x64):
    # Gauss's rule over the first row's angle and the second row's disc, in coordinates that are smooth at the edges.
    nodes, weights = np.polynomial.legendre.leggauss(24)
    angle, w_angle = nodes * np.pi / 2, weights * np.pi / 2
    radius, w_radius = (nodes + 1) * np.pi / 4, weights * np.pi / 4
    turn = np.arange(8) * np.pi / 4
    a, b, t = np.meshgrid(angle, radius, turn, indexing="ij")
    factors = np.zeros((*a.shape, 3, 3))
    factors[..., 0, 0] = 1
    factors[..., 1, 0], factors[..., 1, 1] = np.sin(a), np.cos(a)
    factors[..., 2, 0], factors[..., 2, 1] = np.sin(b) * np.cos(t), np.sin(b) * np.sin(t)
    factors[..., 2, 2] = np.cos(b)
    density = np.exp(log_prob(d.LKJCholesky(3, eta), factors)) * np.cos(a) * np.sin(b) * np.cos(b)
    total = np.einsum("abt,a,b->", density, w_angle, w_radius) * np.pi / 4
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_lkj_is_proportional_to_a_power_of_the_determinant(rng):
    # The change of variables from L to L L^T has log-determinant sum_i (n - i) log L_ii, i from 1.
    n = 5
    factors = np.linalg.cholesky(np.stack([np.corrcoef(rng.normal(size=(n, 40))) for _ in range(3)]))
    density = lambda eta: np.asarray(log_prob(d.LKJCholesky(n, eta), np.float32(factors)), float)  # noqa: E731
    log_det = 2 * np.log(np.diagonal(factors, 0, -2, -1)).sum(-1)
    change = (np.log(np.diagonal(factors, 0, -2, -1)) * np.arange(n - 1, -1, -1)).sum(-1)
    uniform = density(1.0) - change
    np.testing.assert_allclose(uniform, uniform[0], atol=2e-5)
    ratio = density(3.5) - density(1.0) - 2.5 * log_det
    np.testing.assert_allclose(ratio, ratio[0], atol=2e-5)


def test_lkj_draws_have_beta_marginals():
    eta = np.float32([0.7, 1.0, 6.0])
    ours = d.LKJCholesky(4, eta)
    draws, inside = quick(lambda o, k: ((x := o.sample(k, DRAWS)), o.support.contains(x)))(ours, jax.random.key(0))
    assert draws.shape == (DRAWS, 3, 4, 4)
    assert inside.all()
    factors = np.asarray(draws, float)
    correlations = factors @ np.swapaxes(factors, -1, -2)
    for b, one in enumerate(eta.astype(float)):
        shape = one + 4 / 2 - 1
        for i in range(4):
            for j in range(i):
                unit = (correlations[:, b, i, j] + 1) / 2
                assert distance(unit, stats.beta(shape, shape).cdf) < DISTANCE, (b, i, j)
    # Correlations of disjoint and of overlapping pairs are uncorrelated.
    pairs = np.stack([correlations[:, 0, i, j] for i in range(4) for j in range(i)])
    cross = np.corrcoef(pairs) - np.eye(6)
    assert np.abs(cross).max() * np.sqrt(DRAWS) < Z + 1
    # The log-determinant tells a wrong joint law from a right one with the same marginals: E log det R for eta = 1 is a
    # sum of digammas, from log L_ii^2 ~ log Beta(eta + (n - i) / 2, (i - 1) / 2).
    from scipy.special import digamma, polygamma

    i = np.arange(2, 5)
    a, total = 1 + (4 - i) / 2, 1 + (4 - i) / 2 + (i - 1) / 2
    log_det = 2 * np.log(np.diagonal(factors[:, 1], 0, -2, -1)).sum(-1)
    sd = np.sqrt((polygamma(1, a) - polygamma(1, total)).sum() / DRAWS)
    assert abs(log_det.mean() - (digamma(a) - digamma(total)).sum()) / sd < Z


def test_lkj_edges():
    outside = jnp.array([[[1.0, 0.0], [0.9, 0.9]], [[1.0, 0.0], [0.6, -0.8]], [[1.0, 0.1], [0.6, 0.8]]])

    @quick
    def program(eta, x, key):
        found, pull = jax.vjp(lambda eta, x: d.LKJCholesky(2, eta).log_prob(x), eta, x)
        one = d.LKJCholesky(1, eta)
        return found, pull(jnp.ones_like(found)), one.log_prob(jnp.ones((1, 1))), one.sample(key)

    found, gradients, certain, draw = program(jnp.float32(2.0), outside, jax.random.key(0))
    assert (found == -jnp.inf).all()
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    assert certain == 0
    np.testing.assert_array_equal(draw, [[1.0]])


@pytest.fixture
def scale(rng):
    root = rng.normal(size=(3, 3))
    matrix = np.float32(root @ root.T + 0.5 * np.eye(3))
    return ((matrix + matrix.T) / 2).astype(float)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_wishart_is_scipys(scale, dtype):
    df = np.float32([2.5, 5.0, 1e4, 1e6]).astype(float)
    points = np.stack([stats.wishart(max(f, 3.0), scale).rvs(3, random_state=0) for f in df], axis=1)
    points = np.float32((points + np.swapaxes(points, -1, -2)) / 2).astype(float)

    @quick
    def program(df, scale, x):
        ours = d.Wishart(df, scale)
        density = lambda df: d.Wishart(df, scale).log_prob(x).sum()  # noqa: E731
        return ours.log_prob(x), ours.mean(), ours.variance(), jax.grad(density)(df)

    with jax.enable_x64(dtype == np.float64):
        log_prob, mean, variance, gradient = program(*(jnp.asarray(a.astype(dtype)) for a in (df, scale, points)))
    assert log_prob.dtype == mean.dtype == gradient.dtype == dtype
    for i, f in enumerate(df):
        theirs = stats.wishart(f, scale)
        expected = np.array([theirs.logpdf(x) for x in points[:, i]])
        np.testing.assert_allclose(log_prob[:, i], expected, rtol=1e-5 if dtype == np.float32 else 1e-8)
        np.testing.assert_allclose(mean[i], theirs.mean(), rtol=1e-5)
        np.testing.assert_allclose(variance[i], theirs.var(), rtol=1e-5)
        step = 1e-3 * (f - 2)
        shifted = [sum(stats.wishart(f + s * step, scale).logpdf(x) for x in points[:, i]) for s in (1, -1)]
        noise = 1e-9 * abs(shifted[0]) / step
        np.testing.assert_allclose(
            gradient[i], (shifted[0] - shifted[1]) / (2 * step), rtol=1e-3, atol=1e-3 / f + noise
        )


def test_wishart_draws_and_outside(scale):
    ours = d.Wishart(jnp.array([2.5, 7.0]), np.float32(scale))
    bad = jnp.stack([-jnp.eye(3), jnp.eye(3).at[0, 1].set(0.5), jnp.zeros((3, 3))])[:, None]

    @quick
    def program(ours, bad, key):
        found, pull = jax.vjp(lambda df, x: d.Wishart(df, cholesky=ours.cholesky).log_prob(x), ours.df, bad)
        return ours.sample(key, DRAWS), ours.mean(), ours.variance(), found, pull(jnp.ones_like(found))

    draws, mean, variance, outside, gradients = program(ours, bad, jax.random.key(1))
    assert (outside == -jnp.inf).all()
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    draws = np.asarray(draws, float)
    assert draws.shape == (DRAWS, 2, 3, 3)
    assert np.abs((draws.mean(0) - mean) / np.sqrt(variance / DRAWS)).max() < Z
    # a^T X a / a^T S a is chi-squared with df degrees, and 1 / (X^-1)_ii S^-1_ii with df - n + 1.
    inverse = np.linalg.inv(draws)
    for i, df in enumerate((2.5, 7.0)):
        assert distance(draws[:, i].sum((-1, -2)) / scale.sum(), stats.chi2(df).cdf) < DISTANCE
        conditional = 1 / inverse[:, i, 0, 0] * np.linalg.inv(scale)[0, 0]
        assert distance(conditional, stats.chi2(df - 2).cdf) < DISTANCE


ROWS = {
    "LKJCholesky": Row(
        lambda t: d.LKJCholesky(2, **t), {"concentration": [0.5, 1.0, 3.0]}, np.array([[1.0, 0.0], [0.6, 0.8]])
    ),
    "Wishart": Row(
        lambda t: d.Wishart(**t),
        {"df": [2.0, 3.0, 9.0], "scale": np.eye(2) * np.array([1.0, 2.0, 3.0])[:, None, None]},
        np.array([[1.0, 0.3], [0.3, 2.0]]),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_transformations(name):
    check_pytree(ROWS[name])


def test_checkpoint(tmp_path):
    check_checkpoint(ROWS, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.LKJCholesky(0, 1.0), "LKJCholesky: dimension is 0; expected a positive Python integer"),
        (lambda: d.LKJCholesky(2.5, 1.0), "LKJCholesky: dimension is 2.5; expected a positive Python integer"),
        (lambda: d.LKJCholesky(2, -1.0), "LKJCholesky: concentration is -1.0; expected positive numbers"),
        (lambda: d.Wishart(1.0, np.eye(3)), "Wishart: df is 1.0; expected numbers above n - 1 = 2"),
        (lambda: d.Wishart(3.0), "Wishart: scale or cholesky is not given"),
        (lambda: d.Wishart(3.0, -np.eye(2)), "Wishart: scale is not positive definite"),
        (lambda: d.Wishart(np.full(3, 4.0), np.stack([np.eye(2)] * 2)), "Wishart: df is of shape (3,)"),
        (lambda: d.Wishart(3.0, np.eye(2)).log_prob(jnp.eye(3)), "Wishart.log_prob: value is of shape (3, 3)"),
    ],
)
def test_errors_are_one_line(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
