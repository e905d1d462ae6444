"""Pathfinder: Gaussians in closed form, hard targets, failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.inference import vi
from tests.inference.vi._gaussians import gaussian, root_of, whitened

DTYPES = ["float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_a_dense_gaussian_in_five_dimensions(offset, dtype, x64):
    """Mean within 0.1 standard deviations; divergence from the target, in closed form, and bound within 0.2."""
    log_density, mean, covariance, evidence = gaussian(5, dtype, offset)
    result = jax.jit(lambda x, key: vi.pathfinder(log_density, x, key))(jnp.zeros(5, dtype), jax.random.key(0))
    assert result.mean.dtype == result.draws.dtype == dtype
    assert result.draws.shape == (1000, 5)
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    assert np.max(np.abs(root @ (np.asarray(result.mean, float) - mean))) < 0.1
    eigenvalues = np.linalg.svd(root @ root_of(result.inverse_mass_matrix))[1] ** 2
    assert 0.5 * np.sum(eigenvalues - 1 - np.log(eigenvalues)) < 0.2
    assert abs(float(result.elbo) - evidence) < 0.2
    # Importance does the rest: 1,000 draws resampled from an effective number of 1,000 and more.
    assert float(result.ess) > 2000
    white = (np.asarray(result.draws, float) - mean) @ root.T
    assert np.max(np.abs(white.mean(axis=0))) < 5 * np.sqrt(2 / 1000)  # false alarm 3e-6
    assert np.max(np.abs(np.cov(white.T) - np.eye(5))) < 5 * np.sqrt(4 / 1000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_gaussian_in_a_hundred_dimensions(dtype, x64):
    """Six moves cannot hold a dense covariance of 100 dimensions: the mean is right, variances to a factor of 30."""
    log_density, mean, covariance, evidence = gaussian(100, dtype)
    result = jax.jit(lambda x, key: vi.pathfinder(log_density, x, key))(jnp.zeros(100, dtype), jax.random.key(0))
    assert bool(result.converged)
    assert np.max(np.abs(np.asarray(result.mean, float) - mean) / np.sqrt(np.diag(covariance))) < 0.1
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    eigenvalues = np.linalg.svd(root @ root_of(result.inverse_mass_matrix))[1] ** 2
    assert 1 / 30 < eigenvalues.min() < eigenvalues.max() < 10
    assert -30 < float(result.elbo) - evidence < 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_of_different_units(dtype, x64):
    """Standard deviations from 0.05 to 20: a fifth of the divergence of the best Gaussian without a diagonal, 176."""
    units = np.exp(np.linspace(-3, 3, 100))
    scale = jnp.asarray(units, dtype)
    result = jax.jit(lambda key: vi.pathfinder(lambda x: -0.5 * jnp.sum((x / scale) ** 2), jnp.ones(100, dtype), key))(
        jax.random.key(1)
    )
    ratio = np.mean(units.min() ** 2 / units**2) / units.min() ** 2  # of the best isotropic Gaussian
    isotropic = 0.5 * np.sum(np.log(units**2 * ratio))
    evidence = np.sum(np.log(units)) + 50 * np.log(2 * np.pi)
    assert -isotropic / 5 < float(result.elbo) - evidence < 0.5


def test_a_small_gaussian_is_found(x64):
    """Moves enough for its five dimensions, made for as long as they gain anything: mean and bound to 1e-3.

    Variances to 2 %: the walk ends where rounding hides what a move gains, and has few moves near the mode.
    """
    log_density, mean, covariance, evidence = gaussian(5, "float64", spread=2.0)
    result = jax.jit(lambda key: vi.pathfinder(log_density, jnp.zeros(5), key, memory=40, tolerance=1e-20))(
        jax.random.key(0)
    )
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    np.testing.assert_allclose(root @ (np.asarray(result.mean) - mean), 0, atol=1e-3)
    np.testing.assert_allclose(whitened(covariance, result.inverse_mass_matrix), 1, atol=0.02)
    assert abs(float(result.elbo) - evidence) < 1e-3


def test_the_bound_is_what_it_is_in_closed_form(x64):
    """The evidence less the divergence of two Gaussians, within five standard errors of 20,000 draws."""
    log_density, mean, covariance, evidence = gaussian(30, "float64")
    result = jax.jit(lambda key: vi.pathfinder(log_density, jnp.zeros(30), key, num_draws=20_000))(jax.random.key(3))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    singular = np.linalg.svd(whitening @ root_of(result.inverse_mass_matrix))[1] ** 2
    away = whitening @ (np.asarray(result.mean) - mean)
    divergence = 0.5 * np.sum(singular - 1 - np.log(singular)) + 0.5 * away @ away
    error = np.sqrt(np.sum((singular - 1) ** 2) / 2 + away @ away * singular.max()) / np.sqrt(20_000)
    assert divergence > 20 * error
    assert abs(float(result.elbo) - (evidence - divergence)) < 5 * error  # false alarm 6e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_have_the_law_that_log_prob_says(dtype, x64):
    log_density, _, _, _ = gaussian(5, dtype)
    result = vi.pathfinder(log_density, jnp.zeros(5, dtype), jax.random.key(0))
    root = root_of(result.inverse_mass_matrix)
    mean = np.asarray(result.mean, float)
    draws = jax.vmap(result.sample)(jax.random.split(jax.random.key(1), 10_000))
    white = np.linalg.solve(root, (np.asarray(draws, float) - mean).T)
    for k in range(5):
        assert scipy.stats.kstest(white[k], scipy.stats.norm.cdf).pvalue > 1e-6  # false alarm
        for j in range(k):
            assert abs(np.mean(white[j] * white[k])) < 0.05  # five standard errors
    law = scipy.stats.multivariate_normal(mean, root @ root.T)
    ours = jax.vmap(result.log_prob)(draws[:50])
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        ours, law.logpdf(np.asarray(draws[:50], float)), rtol=1e-4 if dtype == "float32" else 1e-9
    )


def test_a_funnel_is_no_trap():
    """The mode of a funnel has no bottom: the best Gaussian is not there."""

    def log_density(q):
        v, x = q["v"], q["x"]
        return -0.5 * (v / 3) ** 2 - 4.5 * v - 0.5 * jnp.sum(x * x) * jnp.exp(-v)

    def draw(key):
        return {"v": jax.random.uniform(key, (), jnp.float32, -2, 2), "x": jnp.ones(9)}

    result = jax.jit(lambda key: vi.pathfinder(log_density, draw, key, num_paths=8))(jax.random.key(2))
    assert np.isfinite(float(result.elbo))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(result))
    # The mode is at v = -40.5; the evidence is log(3) + 5 log(2 pi) = 10.3, and the best path comes near.
    assert 6 < float(result.elbo) < 10.4
    assert float(result.mean["v"]) > -8
    densities = jax.vmap(log_density)(result.draws)
    assert bool(jnp.all(jnp.isfinite(densities)))


@pytest.mark.parametrize("hole", [-np.inf, np.nan])
def test_a_target_that_is_nothing_in_part_of_space(hole):
    """A half of a Gaussian, cut through its mode: evidence log(1/2) + 3/2 log(2 pi). Starts beyond are drawn again."""

    def log_density(x):
        return jnp.where(x[0] > 0, -0.5 * jnp.sum(x**2), hole)

    result = vi.pathfinder(log_density, jnp.array([-1.0, 0.5, 0.5]), jax.random.key(0))
    evidence = np.log(0.5) + 1.5 * np.log(2 * np.pi)
    assert evidence - 1.5 < float(result.elbo) < evidence + 0.2
    draws = np.asarray(result.draws)
    assert (draws[:, 0] > 0).all()
    assert abs(draws[:, 0].mean() - np.sqrt(2 / np.pi)) < 0.15
    assert np.isfinite(
        np.asarray(jax.vmap(log_density)(jax.vmap(result.initial)(jax.random.split(jax.random.key(1)))))
    ).all()


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_nothing_found_is_said(value):
    """By an error where it is known, and by the result in somebody's `jit`."""

    def log_density(x):
        return value + 0 * jnp.sum(x)

    with pytest.raises(ValueError, match="pathfinder: initial is a position with log density .*100 starts") as caught:
        vi.pathfinder(log_density, jnp.ones(3), jax.random.key(0), num_draws=10)
    assert "\n" not in str(caught.value)
    result = jax.jit(lambda key: vi.pathfinder(log_density, jnp.ones(3), key, num_draws=10))(jax.random.key(0))
    assert float(result.elbo) == -np.inf
    assert not bool(result.converged)
    assert float(result.ess) == 0
    assert np.isfinite(np.asarray(result.draws)).all()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(result.inverse_mass_matrix))


def test_a_path_into_the_wrong_mode_loses():
    """Modes of weight 0.99 and 0.01, and paths that end in either: draws are shared out by weight."""

    def log_density(x):
        return jnp.logaddexp(np.log(0.99) - 0.5 * jnp.sum((x - 4) ** 2), np.log(0.01) - 0.5 * jnp.sum((x + 4) ** 2))

    def draw(key):
        return jnp.where(jax.random.bernoulli(key), 3.0, -3.0) * jnp.ones(2)

    result = jax.jit(lambda key: vi.pathfinder(log_density, draw, key, num_paths=6))(jax.random.key(1))
    assert {-2.8, 1.8} == {round(value, 1) for value in np.asarray(result.path_elbo).tolist()}  # log(2 pi) + log weight
    assert np.mean(np.asarray(result.draws)[:, 0] > 0) > 0.97


def test_paths_and_keys_side_by_side_are_those_of_a_loop():
    log_density, _, _, _ = gaussian(4, "float32")

    def some(number):
        return jax.jit(lambda key: vi.pathfinder(log_density, jnp.zeros(4), key, num_paths=number, num_draws=50))

    two, three = some(2), some(3)
    together = jax.jit(jax.vmap(two))(jax.random.split(jax.random.key(5), 3))
    for index in range(3):
        alone, more = (of(jax.random.split(jax.random.key(5), 3)[index]) for of in (two, three))
        np.testing.assert_allclose(together.path_elbo[index], alone.path_elbo, rtol=1e-3)
        np.testing.assert_allclose(together.mean[index], alone.mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(more.path_elbo[:2], alone.path_elbo, rtol=1e-4)


def test_low_precision_positions_are_worked_on_in_float32():
    result = vi.pathfinder(lambda x: -0.5 * jnp.sum((x - 1) ** 2), jnp.zeros(3, jnp.bfloat16), jax.random.key(0))
    assert result.mean.dtype == result.draws.dtype == jnp.bfloat16
    assert result.inverse_mass_matrix.factor.dtype == jnp.float32
    assert result.sample(jax.random.key(1)).dtype == jnp.bfloat16


def test_bad_input_is_one_line():
    def log_density(x):
        return -jnp.sum(x**2)

    def call(*args, **options):
        return lambda: vi.pathfinder(*args, **options)

    start, key = jnp.zeros(2), jax.random.key(0)
    for attempt, error, words in (
        (call(3, start, key), TypeError, "pathfinder: log_density is 3"),
        (call(log_density, None, key), ValueError, "pathfinder: initial is None"),
        (call(log_density, start), TypeError, "pathfinder: key is None"),
        (call(log_density, start, key, num_paths=0), ValueError, "pathfinder: num_paths is 0"),
        (call(log_density, start, key, num_draws=1.5), ValueError, "pathfinder: num_draws is 1.5"),
        (call(log_density, start, key, memory=0), ValueError, "pathfinder: memory is 0"),
        (call(lambda x: x, start, key), ValueError, "log_density: its value is"),
        (lambda: call(log_density, start, key)().log_prob(jnp.zeros(3)), ValueError, "log_prob: position"),
    ):
        with pytest.raises(error, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
