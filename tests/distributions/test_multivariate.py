"""Multivariate distributions against SciPy in float64: densities, gradients, moments, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import distributions as d
from tests.distributions._rows import Row, check_checkpoint, check_pytree, distance, quick

N = 4


@pytest.fixture
def problem(rng):
    """A mean, a covariance with condition number about 1e3 and points, as float32 holds them, in float64."""
    basis = np.linalg.qr(rng.normal(size=(N, N)))[0]
    covariance = (basis * [4.0, 1.0, 0.1, 0.004]) @ basis.T
    points = rng.multivariate_normal(np.arange(N), covariance, size=6) + 0.1
    exact = np.float32(np.arange(N)), np.float32((covariance + covariance.T) / 2), np.float32(points)
    return tuple(x.astype(float) for x in exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_normal_and_student_densities_are_scipys(problem, dtype):
    mean, covariance, points = problem
    diagonal, low_rank = np.float32([0.5, 1.0, 1e-3, 2.0]).astype(float), points[:2].T.copy()
    scale = np.sqrt(diagonal)
    with jax.enable_x64(dtype == np.float64):
        cast = lambda x: jnp.asarray(np.asarray(x).astype(dtype))  # noqa: E731
        factor = np.linalg.cholesky(covariance)
        structured = np.diag(diagonal) + low_rank @ low_rank.T
        pairs = [
            (d.MultivariateNormal(cast(mean), cast(covariance)), stats.multivariate_normal(mean, covariance)),
            (d.MultivariateNormal(cast(mean), cholesky=cast(factor)), stats.multivariate_normal(mean, covariance)),
            (
                d.MultivariateNormal(cast(mean), precision=cast(np.linalg.inv(covariance))),
                stats.multivariate_normal(mean, covariance),
            ),
            (
                d.MultivariateNormalDiagonal(cast(mean), cast(scale)),
                stats.multivariate_normal(mean, np.diag(cast(scale).astype(float) ** 2)),
            ),
            (
                d.MultivariateNormalLowRank(cast(mean), cast(diagonal), cast(low_rank)),
                stats.multivariate_normal(mean, structured),
            ),
            (
                d.MultivariateStudentT(5.0, cast(mean), cast(covariance)),
                stats.multivariate_t(mean, covariance, df=5),
            ),
            (
                d.MultivariateStudentT(2.5, cast(mean), precision=cast(np.linalg.inv(covariance))),
                stats.multivariate_t(mean, covariance, df=2.5),
            ),
        ]

        @quick
        def program(ours, x):
            slope = jax.grad(lambda x: ours.log_prob(x).sum())(x)
            return ours.log_prob(x), slope, ours.entropy(), ours.mean(), ours.variance(), ours.covariance()

        # A float32 covariance determines its inverse to eps times its condition number, about 1e-4.
        rtol = 1e-3 if dtype == np.float32 else 1e-9
        for i, (ours, theirs) in enumerate(pairs):
            log_prob, slope, entropy, found_mean, variance, found_covariance = program(ours, cast(points))
            assert log_prob.dtype == slope.dtype == entropy.dtype == dtype
            expected = theirs.logpdf(points)
            np.testing.assert_allclose(log_prob, expected, rtol=rtol, atol=rtol, err_msg=str(i))
            step = 1e-5 * np.eye(N)[:, None, :]
            numeric = (theirs.logpdf(points + step) - theirs.logpdf(points - step)).T / 2e-5
            np.testing.assert_allclose(slope, numeric, rtol=20 * rtol, atol=20 * rtol + 1e-4, err_msg=str(i))
            np.testing.assert_allclose(entropy, theirs.entropy(), rtol=rtol, atol=rtol)
            np.testing.assert_allclose(found_mean, mean, rtol=1e-6)
            exact = theirs.cov if hasattr(theirs, "cov") else theirs.shape * theirs.df / (theirs.df - 2)
            np.testing.assert_allclose(found_covariance, exact, rtol=rtol, atol=rtol)
            np.testing.assert_allclose(variance, np.diag(exact), rtol=rtol)


def test_low_rank_keeps_its_digits_where_the_diagonal_is_small(rng):
    # Woodbury's difference of squares would lose 1 / diagonal = 1e6 of float32's 1.6e7 parts.
    low_rank = np.float32(rng.normal(size=(5, 2)))
    x = np.float32(low_rank @ np.float32([1.0, -2.0]) + 1e-3 * rng.normal(size=5))
    ours = d.MultivariateNormalLowRank(0.0, jnp.full(5, 1e-6), low_rank)
    exact = np.diag(np.full(5, np.float32(1e-6).astype(float))) + low_rank.astype(float) @ low_rank.T.astype(float)
    expected = stats.multivariate_normal(np.zeros(5), exact).logpdf(x.astype(float))
    np.testing.assert_allclose(quick(lambda o, x: o.log_prob(x))(ours, x), expected, atol=1e-2)


def test_student_tends_to_the_normal_and_its_moments_cease_to_exist():
    x, eye = jnp.array([0.5, -1.0]), jnp.eye(2)

    @quick
    def program(df):
        heavy = d.MultivariateStudentT(df, 0.0, eye)
        one = d.MultivariateStudentT(3.0, 0.5, cholesky=jnp.array([[2.0]]))
        densities = heavy.log_prob(x)[2], d.MultivariateNormal(0.0, eye).log_prob(x)
        moments = heavy.mean(), heavy.variance(), heavy.covariance()
        return densities, moments, (one.log_prob(jnp.array([1.7])), one.entropy())

    densities, (mean, variance, covariance), one = program(jnp.array([0.5, 1.5, 1e7]))
    np.testing.assert_allclose(*densities, rtol=1e-6)
    assert jnp.isnan(mean[0]).all()
    assert (mean[1:] == 0).all()
    np.testing.assert_array_equal(jnp.isnan(variance).all(-1), [True, False, False])
    assert (variance[1] == jnp.inf).all()
    assert (covariance[1] == jnp.inf).all()
    np.testing.assert_allclose(one, [stats.t(3, 0.5, 2).logpdf(1.7), stats.t(3, 0.5, 2).entropy()], rtol=1e-6)


def test_infinite_and_missing_values():
    x = jnp.array([[jnp.inf, 0.0], [jnp.inf, -jnp.inf], [jnp.nan, 0.0], [0.0, 1.0]])
    for one in (
        d.MultivariateNormal(0.0, jnp.array([[2.0, 0.5], [0.5, 1.0]])),
        d.MultivariateNormalLowRank(0.0, jnp.ones(2), jnp.ones((2, 1))),
        d.MultivariateNormalDiagonal(0.0, jnp.ones(2)),
        d.MultivariateStudentT(3.0, 0.0, jnp.eye(2)),
    ):
        found = quick(lambda o: o.log_prob(x))(one)
        assert (found[:2] == -jnp.inf).all(), one
        assert jnp.isnan(found[2])
        assert jnp.isfinite(found[3])


def test_batches_broadcast(problem):
    mean, covariance, points = (np.float32(x) for x in problem)
    factor = np.linalg.cholesky(covariance.astype(float)).astype(np.float32)
    single = d.MultivariateNormal(mean, cholesky=factor)
    wide = d.MultivariateNormal(
        np.stack([mean, mean + 1]), cholesky=np.stack([factor, 2 * factor, 3 * factor])[:, None]
    )
    heavy = d.MultivariateStudentT(jnp.array([[3.0], [4.0], [5.0]]), np.stack([mean, mean]), cholesky=factor)
    low = d.MultivariateNormalLowRank(mean, np.ones((3, 1, N), np.float32), np.ones((2, N, 2), np.float32))
    spread = d.MultivariateNormalDiagonal(np.zeros((2, N), np.float32), np.ones((3, 1, N), np.float32))
    shape = lambda method, *args: jax.eval_shape(method, *args).shape  # noqa: E731
    for one in (wide, heavy, low, spread):
        assert one.batch_shape == (3, 2)
        assert shape(one.log_prob, points[0]) == shape(one.entropy) == (3, 2)
        assert shape(one.log_prob, points[:, None, None]) == (6, 3, 2)
        assert shape(one.mean) == shape(one.variance) == (3, 2, N)
        assert shape(one.covariance) == (3, 2, N, N)
        assert shape(lambda key, one=one: one.sample(key, 5), jax.random.key(0)) == (5, 3, 2, N)
    found = quick(lambda: (wide.log_prob(points[0])[0, 0], single.log_prob(points)[0]))()
    np.testing.assert_allclose(*found, rtol=1e-6)


# Squared Mahalanobis distances follow a chi-squared or F law: with 20,000 draws and a false alarm in 10^7, a cdf off by
# 0.041 is found (Dvoretzky, Kiefer, Wolfowitz, Massart). The other tests are z tests with a false alarm in 10^6.
DRAWS, Z = 20_000, 4.9
DISTANCE = np.sqrt(np.log(2e7) / (2 * DRAWS))


def test_draws_have_the_distribution(problem):
    mean, covariance, _ = (np.float32(x) for x in problem)
    low_rank = np.float32([[1.0], [0.5], [-2.0], [0.0]])
    cases = [
        (d.MultivariateNormal(mean, covariance), covariance, None),
        (d.MultivariateNormalLowRank(mean, jnp.full(N, 0.5), low_rank), 0.5 * np.eye(N) + low_rank @ low_rank.T, None),
        (d.MultivariateNormalDiagonal(mean, jnp.arange(1.0, N + 1)), np.diag(np.arange(1.0, N + 1) ** 2), None),
        (d.MultivariateStudentT(3.0, mean, covariance), covariance, 3.0),
        (d.MultivariateStudentT(0.5, mean, covariance), covariance, 0.5),
    ]
    draws = quick(lambda many, key: [one.sample(jax.random.fold_in(key, i), DRAWS) for i, one in enumerate(many)])
    for (_, scatter, df), x in zip(cases, draws([case[0] for case in cases], jax.random.key(7)), strict=True):
        white = np.linalg.solve(np.linalg.cholesky(scatter.astype(float)), (np.asarray(x, float) - mean).T)
        square = (white**2).sum(0)
        law = stats.chi2(N).cdf if df is None else (lambda q, df=df: stats.f(N, df).cdf(q / N))
        assert distance(square, law) < DISTANCE
        # Directions are uniform on the sphere: means 0, second moments 1 / n with variance 2 (n - 1) / (n^2 (n + 2)).
        unit = white / np.sqrt(square)
        assert (np.abs(unit.mean(1)) * np.sqrt(DRAWS * N) < Z).all()
        moments = unit @ unit.T / DRAWS - np.eye(N) / N
        error = np.where(np.eye(N, dtype=bool), np.sqrt(2 * (N - 1) / (N**2 * (N + 2))), np.sqrt(1 / (N * (N + 2))))
        assert (np.abs(moments) / error * np.sqrt(DRAWS) < Z).all()


def test_a_learnt_factor_with_numbers_above_its_diagonal_is_read_as_lower_triangular():
    dirty = jnp.array([[1.0, 5.0], [0.5, 2.0]])
    clean = jnp.tril(dirty)
    build = lambda factor: d.MultivariateNormal(jnp.zeros(2), cholesky=factor)  # noqa: E731
    program = quick(lambda f: (build(f).sample(jax.random.key(0)), build(f).covariance(), build(f).variance()))
    for found, expected in zip(program(dirty), program(clean), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("concentration", [[2.0, 3.0, 0.5], [2e6, 3e6, 1e6], [0.02, 5.0, 100.0], [1.0, 1.0, 1.0]])
def test_dirichlet_is_scipys(concentration):
    concentration = np.float32(concentration)
    exact = concentration.astype(float)
    theirs = stats.dirichlet(exact)
    x = np.float32(np.maximum(theirs.rvs(5, random_state=1), 1e-20))
    rounded = x.astype(float) / x.astype(float).sum(-1, keepdims=True)

    @quick
    def program(concentration, x):
        ours = d.Dirichlet(concentration)
        gradient = jax.grad(lambda a: d.Dirichlet(a).log_prob(x).sum())(concentration)
        return ours.log_prob(x), ours.entropy(), ours.mean(), ours.variance(), gradient

    log_prob, entropy, mean, variance, gradient = program(concentration, x)
    np.testing.assert_allclose(log_prob, [theirs.logpdf(row) for row in rounded], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(entropy, theirs.entropy(), rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(mean, theirs.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance, theirs.var(), rtol=1e-5)
    step = 1e-4 * exact
    for i in range(3):
        shift = np.eye(3)[i] * step[i]
        both = [np.sum([stats.dirichlet(exact + s * shift).logpdf(row) for row in rounded]) for s in (1, -1)]
        slope = (both[0] - both[1]) / (2 * step[i])
        np.testing.assert_allclose(gradient[i], slope, rtol=2e-3, atol=1e-6 * np.abs(both[0]) / step[i])


def test_dirichlet_at_the_boundary_and_outside():
    x = jnp.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.5, 0.4, 0.3], [0.5, 0.6, -0.1]])

    @quick
    def program(concentration, x, keys):
        density = lambda a, x: d.Dirichlet(a).log_prob(x)  # noqa: E731
        gradient = jax.grad(lambda a, x: density(a, x[jnp.array([0, 3, 4])]).sum(), (0, 1))(concentration, x)
        thin = d.Dirichlet(jnp.full(3, 1e-3)).sample(keys[1], DRAWS)
        return density(concentration, x), gradient, d.Dirichlet(concentration).sample(keys[0], DRAWS), thin

    found, gradient, draws, thin = program(jnp.array([1.0, 2.0, 0.5]), x, jax.random.split(jax.random.key(0)))
    limit = stats.dirichlet([1.0, 2.0, 0.5]).logpdf([1e-12, 0.5, 0.5 - 1e-12])
    np.testing.assert_allclose(found[0], limit, rtol=1e-6)
    np.testing.assert_array_equal(found[1:], [-np.inf, np.inf, -np.inf, -np.inf])
    assert all(bool(jnp.isfinite(g).all()) for g in gradient)
    for i, a in enumerate([1.0, 2.0, 0.5]):
        assert distance(np.asarray(draws, float)[:, i], stats.beta(a, 3.5 - a).cdf) < DISTANCE
    assert (thin > 0).all()
    batch = d.Dirichlet(jnp.ones((4, 3)))
    assert jax.eval_shape(batch.log_prob, jnp.ones((7, 1, 3))).shape == (7, 4)


ROWS = {
    "MultivariateNormal": Row(
        lambda t: d.MultivariateNormal(**t),
        {"loc": np.arange(6.0).reshape(3, 2), "covariance": np.eye(2) * np.array([1.0, 2.0, 3.0])[:, None, None]},
        np.array([0.5, 1.5]),
    ),
    "MultivariateNormal cholesky": Row(
        lambda t: d.MultivariateNormal(0.0, **t),
        {"cholesky": np.array([[1.0, 0.0], [0.5, 2.0]]) * np.array([1.0, 2.0, 3.0])[:, None, None]},
        np.array([0.5, 1.5]),
    ),
    "MultivariateNormal precision": Row(
        lambda t: d.MultivariateNormal(0.0, **t),
        {"precision": np.array([[1.0, 0.3], [0.3, 2.0]]) * np.array([1.0, 2.0, 3.0])[:, None, None]},
        np.array([0.5, 1.5]),
        variant=True,
    ),
    "MultivariateStudentT": Row(
        lambda t: d.MultivariateStudentT(**t),
        {"df": [1.0, 3.0, 9.0], "loc": np.arange(6.0).reshape(3, 2), "cholesky": np.broadcast_to(np.eye(2), (3, 2, 2))},
        np.array([0.5, 1.5]),
    ),
    "MultivariateNormalDiagonal": Row(
        lambda t: d.MultivariateNormalDiagonal(**t),
        {"loc": np.arange(6.0).reshape(3, 2), "scale": np.arange(1.0, 7.0).reshape(3, 2)},
        np.array([0.5, 1.5]),
    ),
    "MultivariateNormalLowRank": Row(
        lambda t: d.MultivariateNormalLowRank(**t),
        {
            "loc": np.arange(6.0).reshape(3, 2),
            "diagonal": np.arange(1.0, 7.0).reshape(3, 2),
            "low_rank": np.arange(1.0, 7.0).reshape(3, 2, 1),
        },
        np.array([0.5, 1.5]),
    ),
    "Dirichlet": Row(
        lambda t: d.Dirichlet(**t), {"concentration": [[1.0, 2.0], [0.5, 0.5], [100.0, 3.0]]}, np.array([0.25, 0.75])
    ),
}


@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].variant])
def test_transformations(name):
    check_pytree(ROWS[name])


def test_checkpoint(tmp_path):
    check_checkpoint(ROWS, tmp_path)


ASYMMETRIC, NEGATIVE = np.array([[1.0, 0.5], [0.0, 1.0]]), -np.eye(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.MultivariateNormal(0.0), "MultivariateNormal: covariance, cholesky or precision is not given"),
        (lambda: d.MultivariateNormal(0.0, np.eye(2), precision=np.eye(2)), "MultivariateNormal: covariance, cholesky"),
        (lambda: d.MultivariateNormal(np.zeros(3), np.eye(2)), "MultivariateNormal: loc is of shape (3,); expected"),
        (
            lambda: d.MultivariateNormal(0.0, np.ones(2)),
            "MultivariateNormal: covariance is of shape (2,); expected a sq",
        ),
        (lambda: d.MultivariateNormal(0.0, ASYMMETRIC), "MultivariateNormal: covariance is not symmetric"),
        (lambda: d.MultivariateNormal(0.0, NEGATIVE), "MultivariateNormal: covariance is not positive definite"),
        (lambda: d.MultivariateNormal(0.0, precision=NEGATIVE), "MultivariateNormal: precision is not positive"),
        (lambda: d.MultivariateNormal(0.0, cholesky=ASYMMETRIC), "MultivariateNormal: cholesky is a float32 array"),
        (lambda: d.MultivariateNormal(0.0, np.full((2, 2), np.nan)), "MultivariateNormal: covariance is nan at index"),
        (lambda: d.MultivariateNormal(np.zeros((3, 2)), np.stack([np.eye(2)] * 2)), "MultivariateNormal: the batch of"),
        (lambda: d.MultivariateStudentT(-1.0, 0.0, np.eye(2)), "MultivariateStudentT: df is -1.0; expected positive"),
        (lambda: d.MultivariateStudentT(np.ones(3), np.zeros((2, 2)), np.eye(2)), "MultivariateStudentT: df is of sha"),
        (lambda: d.MultivariateNormalDiagonal(0.0, 1.0), "MultivariateNormalDiagonal: scale is a scalar; expected a v"),
        (lambda: d.MultivariateNormalLowRank(0.0, np.ones(2), np.ones((1, 2))), "MultivariateNormalLowRank: low_rank"),
        (lambda: d.Dirichlet(1.0), "Dirichlet: concentration is a scalar; expected a vector"),
        (lambda: d.Dirichlet([1.0, 0.0]), "Dirichlet: concentration is 0.0 at index (1,); expected positive numbers"),
        (lambda: d.Dirichlet([1.0, 2.0]).log_prob(0.5), "Dirichlet.log_prob: value is of shape ()"),
    ],
)
def test_errors_are_one_line(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
