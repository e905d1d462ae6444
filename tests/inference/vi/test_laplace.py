"""The Laplace approximation against closed forms, and what it says where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import jaxprob
from jaxprob import models
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, vi
from tests.inference.vi._gaussians import gaussian, root_of, whitened

DTYPES = ["float32", "float64"]


def covariance_of(result):
    root = root_of(result.inverse_mass_matrix)
    return root @ root.T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "offset", "spread"), [(1, 0.0, 0.0), (5, -1e4, 2.0), (100, 10.0, 1.5)])
def test_a_gaussian_is_its_own_approximation(size, offset, spread, dtype, x64):
    log_density, mean, covariance, evidence = gaussian(size, dtype, offset, spread)
    result = jax.jit(lambda start: vi.laplace(log_density, start))(jnp.zeros(size, dtype))
    assert result.mean.dtype == dtype
    assert bool(result.converged)
    eps = float(jnp.finfo(dtype).eps)
    away = (np.asarray(result.mean, float) - mean) / np.sqrt(np.diag(covariance))
    # Rounding of a position of a few units beside the smallest standard deviation.
    assert np.max(np.abs(away)) < 100 * eps * max(1, np.max(np.abs(mean) / np.sqrt(np.diag(covariance))))
    scale = np.linalg.cond(covariance / np.outer(*2 * [np.sqrt(np.diag(covariance))])) * eps
    np.testing.assert_allclose(whitened(covariance, result.inverse_mass_matrix), 1, atol=4 * scale)
    assert abs(float(result.log_evidence) - evidence) < 10 * size * scale + 4 * eps * abs(offset)


@pytest.mark.parametrize("condition", [1e4, 1e8])
def test_an_ill_conditioned_gaussian_in_fifty_dimensions(condition, x64):
    """Axes turned at random, so that no scaling of the scalars helps: mean and covariance to 1e-3, and the evidence."""
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    spectrum = np.exp(np.linspace(-0.5, 0.5, 50) * np.log(condition))
    precision, centre = jnp.asarray((axes / spectrum) @ axes.T), jnp.asarray(rng.normal(size=50))

    def log_density(x):
        return -0.5 * jnp.sum((x - centre) * jnp.matmul(precision, x - centre))

    result = jax.jit(lambda start: vi.laplace(log_density, start))(jnp.zeros(50))
    assert bool(result.converged)
    covariance = (axes * spectrum) @ axes.T
    white = np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(result.mean - centre))
    assert np.max(np.abs(white)) < 1e-3
    np.testing.assert_allclose(whitened(covariance, result.inverse_mass_matrix), 1, atol=1e-3)
    assert abs(float(result.log_evidence) - (25 * np.log(2 * np.pi) + 0.5 * np.sum(np.log(spectrum)))) < 1e-3


def test_the_mode_is_that_of_scipy(x64, rng):
    """A Poisson regression whose gradient is written out for SciPy's L-BFGS-B; the curvature in closed form."""
    x = rng.normal(size=(60, 4))
    y = rng.poisson(np.exp(x @ np.array([0.5, -0.3, 0.2, 0.0])))

    def objective(b):
        rate = np.exp(x @ b)
        return np.sum(rate) - y @ x @ b + 0.5 * b @ b, x.T @ (rate - y) + b

    found = scipy.optimize.minimize(objective, np.zeros(4), jac=True, method="L-BFGS-B", options={"gtol": 1e-10})
    xs, ys = jnp.asarray(x), jnp.asarray(y, float)

    def log_density(b):
        logits = jnp.matmul(xs, b)
        return jnp.sum(ys * logits - jnp.exp(logits)) - 0.5 * jnp.sum(b**2)

    result = vi.laplace(log_density, jnp.zeros(4))
    np.testing.assert_allclose(result.mean, found.x, atol=1e-6)
    hessian = (x.T * np.exp(x @ found.x)) @ x + np.eye(4)
    np.testing.assert_allclose(covariance_of(result), np.linalg.inv(hessian), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_diagonal_option_has_the_conditional_variances(dtype, x64):
    log_density, _, covariance, _ = gaussian(5, dtype, spread=1.0)
    result = vi.laplace(log_density, jnp.zeros(5, dtype), hessian="diagonal")
    assert bool(result.converged)
    factor = np.asarray(result.inverse_mass_matrix.factor)
    np.testing.assert_allclose(factor**2, 1 / np.diag(np.linalg.inv(covariance)), rtol=2e-5)


def test_a_curved_density_by_hand(x64):
    """The logit of a probability with posterior Beta(9, 16): mode, curvature and Laplace's evidence in closed form."""

    def log_density(position):
        return 9 * jax.nn.log_sigmoid(position["logit"]) + 16 * jax.nn.log_sigmoid(-position["logit"])

    result = vi.laplace(log_density, {"logit": jnp.float64(4.0)})
    p = 9 / 25
    variance = 1 / (25 * p * (1 - p))
    assert abs(float(result.mean["logit"]) - np.log(p / (1 - p))) < 1e-12
    np.testing.assert_allclose(float(result.inverse_mass_matrix.factor[0, 0]) ** 2, variance, rtol=1e-12)
    evidence = 9 * np.log(p) + 16 * np.log(1 - p) + 0.5 * np.log(2 * np.pi * variance)
    assert abs(float(result.log_evidence) - evidence) < 1e-12
    law = scipy.stats.norm(np.log(p / (1 - p)), np.sqrt(variance))
    np.testing.assert_allclose(float(result.log_prob({"logit": jnp.float64(0.3)})), law.logpdf(0.3), rtol=1e-12)


def test_bayesian_linear_regression_in_closed_form(x64, rng):
    """A posterior object: mean, covariance and log evidence of the conjugate model with known noise."""
    x = rng.normal(size=(40, 3)) * np.array([1.0, 10.0, 0.1])
    y = x @ np.array([1.0, -0.2, 4.0]) + 0.7 * rng.normal(size=40)

    @models.joint
    def regression(x):
        slope = yield "slope", Normal(jnp.zeros(3), 2.0)
        yield "y", Normal(jnp.sum(x * jnp.expand_dims(slope, 0), axis=1), 0.7)

    posterior = regression(jnp.asarray(x)).condition(y=jnp.asarray(y))
    result = vi.laplace(posterior, key=jax.random.key(0))
    precision = x.T @ x / 0.49 + np.eye(3) / 4
    np.testing.assert_allclose(result.mean["slope"], np.linalg.solve(precision, x.T @ y / 0.49), rtol=1e-9)
    covariance = covariance_of(result)
    np.testing.assert_allclose(covariance, np.linalg.inv(precision), rtol=1e-9, atol=1e-12)
    law = scipy.stats.multivariate_normal(np.zeros(40), 4 * x @ x.T + 0.49 * np.eye(40))
    np.testing.assert_allclose(float(result.log_evidence), law.logpdf(y), rtol=1e-10)


@pytest.mark.parametrize("unit", [1e-5, 1e5])
def test_units_do_not_matter(unit):
    """Scales of 1e-5 and 1e5 in float32, from a start of order one or of order one standard deviation."""

    def log_density(x):
        return -0.5 * jnp.sum((x / unit - 1) ** 2) - 0.25 * jnp.sum((x / unit - 1) ** 4)

    for start in (jnp.full(3, 3 * unit, jnp.float32), jnp.zeros(3, jnp.float32)):
        result = vi.laplace(log_density, start)
        assert bool(result.converged)
        np.testing.assert_allclose(result.mean, unit, rtol=1e-4)


def test_draws_have_the_law_that_log_prob_says(x64):
    log_density, mean, covariance, _ = gaussian(5, "float64", spread=1.0)
    result = vi.laplace(log_density, jnp.zeros(5))
    draws = np.asarray(jax.vmap(result.sample)(jax.random.split(jax.random.key(1), 20_000)))
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    white = (draws - mean) @ root.T
    for k in range(5):
        assert scipy.stats.kstest(white[:, k], scipy.stats.norm.cdf).pvalue > 1e-6  # false alarm
        for j in range(k):
            assert abs(np.mean(white[:, j] * white[:, k])) < 5 / np.sqrt(20_000)  # false alarm 6e-7
    law = scipy.stats.multivariate_normal(mean, covariance)
    np.testing.assert_allclose(jax.vmap(result.log_prob)(jnp.asarray(draws[:50])), law.logpdf(draws[:50]), rtol=1e-9)


def finite(result):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((result.mean, result.inverse_mass_matrix)))


@pytest.mark.parametrize("hessian", ["full", "diagonal"])
def test_what_is_no_maximum_is_said_and_repaired(hessian):
    """A saddle at the start, where the gradient is zero: eigenvalues 1 and -4 become 1 and 4."""
    result = vi.laplace(lambda x: -0.5 * x[0] ** 2 + 2 * x[1] ** 2, jnp.zeros(2), hessian=hessian)
    assert not bool(result.negative_definite)
    assert not bool(result.converged)
    covariance = covariance_of(result)
    np.testing.assert_allclose(covariance, np.diag([1, 0.25]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hessian", ["full", "diagonal"])
@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: 0.0 * jnp.sum(x),  # flat
        lambda x: jnp.sum(x),  # no mode
        lambda x: jnp.exp(jnp.sum(x)),  # no mode, to infinity
        lambda x: jnp.nan * jnp.sum(x),
        lambda x: jnp.where(x[0] < -5, 0.0, -jnp.inf) - jnp.sum(x**2),  # none at the start
        lambda x: -jnp.sum(jnp.abs(x)),  # a mode without curvature
    ],
)
def test_no_failure_is_silent(log_density, hessian):
    result = jax.jit(lambda x: vi.laplace(log_density, x, hessian=hessian))(jnp.ones(3))
    assert not bool(result.converged)
    assert finite(result)
    assert not np.isnan(float(result.log_evidence))
    assert not np.isnan(float(result.distance))
    assert np.isfinite(np.asarray(result.sample(jax.random.key(0)))).all()


def test_few_steps_are_not_taken_for_enough():
    def rosenbrock(x):
        return -((1 - x[0]) ** 2) - 100 * (x[1] - x[0] ** 2) ** 2

    start = jnp.array([-1.9, 2.0])
    result = vi.laplace(rosenbrock, start)
    assert bool(result.converged)
    np.testing.assert_allclose(result.mean, [1, 1], rtol=1e-4)


def test_a_hole_beside_the_mode_is_walked_round():
    """The density is zero beyond 2, where the first long steps of a line search end."""

    def log_density(x):
        return jnp.where(jnp.all(x < 2), -0.5 * jnp.sum((x - 1.9) ** 2), -jnp.inf)

    result = vi.laplace(log_density, jnp.full(3, -1e3))
    assert bool(result.converged)
    np.testing.assert_allclose(result.mean, 1.9, rtol=1e-5)


def test_jit_and_vmap_change_nothing():
    def log_density(q):
        return -jnp.sum(jnp.cosh(q["a"] - 1)) - 0.5 * (q["b"] - q["a"][0]) ** 2

    starts = {"a": jax.random.normal(jax.random.key(0), (4, 2)), "b": jnp.arange(4.0)}
    together = jax.jit(jax.vmap(lambda start: vi.laplace(log_density, start)))(starts)
    assert bool(jnp.all(together.converged))
    for index in range(4):
        alone = vi.laplace(log_density, jax.tree.map(lambda leaf, index=index: leaf[index], starts))
        for one, two in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[index], two, rtol=1e-4, atol=1e-4)


def test_low_precision_positions_are_worked_on_in_float32():
    result = vi.laplace(lambda x: -0.5 * jnp.sum((x - 1) ** 2), jnp.zeros(3, jnp.bfloat16))
    assert result.mean.dtype == jnp.bfloat16
    assert result.inverse_mass_matrix.factor.dtype == jnp.float32
    assert result.sample(jax.random.key(0)).dtype == jnp.bfloat16
    assert bool(result.converged)


def test_kernels_and_runs_start_from_it():
    log_density, _, covariance, _ = gaussian(5, "float32", spread=2.0)
    result = vi.laplace(log_density, jnp.zeros(5))
    kernel = mcmc.nuts(log_density, step_size=0.7, inverse_mass_matrix=result.inverse_mass_matrix)
    run = jaxprob.sample(log_density, jax.random.key(1), initial=result.sample, algorithm=kernel, chains=4, draws=500)
    draws = np.asarray(run.draws).reshape(-1, 5)
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    ratio = np.linalg.eigvalsh(root @ np.cov(draws.T) @ root.T)
    assert 0.6 < ratio.min() < ratio.max() < 1.6  # 2,000 draws, an effective 1,000 at least: 0.88 to 1.12 expected


def test_bad_input_is_one_line():
    def log_density(x):
        return -jnp.sum(x**2)

    for call, error, words in (
        (lambda: vi.laplace(3, jnp.zeros(2)), TypeError, "laplace: log_density is 3"),
        (lambda: vi.laplace(log_density), ValueError, "laplace: initial is None"),
        (lambda: vi.laplace(log_density, lambda key: jnp.zeros(2)), TypeError, "laplace: key is None"),
        (lambda: vi.laplace(log_density, jnp.zeros(2), hessian="low"), ValueError, "laplace: hessian is 'low'"),
        (lambda: vi.laplace(log_density, jnp.zeros(2), max_steps=0), ValueError, "laplace: max_steps is 0"),
        (lambda: vi.laplace(lambda x: x, jnp.zeros(2)), ValueError, "log_density: its value is"),
        (
            lambda: vi.laplace(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2)),
            ValueError,
            "laplace: initial is a position wi",
        ),
        (lambda: vi.laplace(log_density, jnp.zeros(2)).log_prob(jnp.zeros(3)), ValueError, "log_prob: position"),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
