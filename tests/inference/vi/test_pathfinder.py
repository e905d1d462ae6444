"""Pathfinder: its quasi-Newton algebra against dense BFGS, Gaussians in closed form, hard targets, failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxprob
from jaxprob import models
from jaxprob.distributions import HalfNormal, Normal
from jaxprob.inference import mcmc, vi
from jaxprob.inference.mcmc import _low_rank_metric as low_rank
from jaxprob.inference.vi import _lbfgs as lbfgs

DTYPES = ["float32", "float64"]


def gaussian(size, dtype, offset=0.0, spread=0.5, seed=1):
    """A log density, its mean, covariance and log normalising constant; the covariance is dense."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, 2 * size)) / np.sqrt(2 * size)
    units = np.exp(spread * rng.normal(size=size))
    covariance = (root @ root.T) * np.outer(units, units)
    mean = 3 * rng.normal(size=size)
    precision, centre = jnp.asarray(np.linalg.inv(covariance), dtype), jnp.asarray(mean, dtype)

    def log_density(x):
        z = x - centre
        return jnp.asarray(offset, dtype) - 0.5 * jnp.sum(z * jnp.matmul(precision, z, precision="highest"))

    return log_density, mean, covariance, offset + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]


def root_of(metric):
    size = metric.factor.size
    return np.asarray(jax.vmap(metric.velocity)(jnp.eye(size, dtype=metric.factor.dtype)), float).T


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
    metric = low_rank.from_moves(*map(jnp.asarray, (variances, steps, changes)))
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


def test_the_diagonal_meets_the_secant_equation_along_an_axis(x64):
    """Of a diagonal quadratic, moves along the axes find the diagonal exactly; what is found stays positive."""
    hessian, variances = np.array([0.01, 1.0, 50.0]), jnp.ones(3)
    for k in range(3):
        step = np.eye(3)[k] * 0.3
        variances = lbfgs._variances(variances, jnp.asarray(step), jnp.asarray(step * hessian))
    np.testing.assert_allclose(variances, 1 / hessian, rtol=1e-12)
    steps, changes = moves(30, 6)
    for s, y in zip(steps, changes, strict=True):
        if s @ y > 0:
            variances = lbfgs._variances(jnp.ones(30), jnp.asarray(s), jnp.asarray(y))
            a, b, c = y @ y, s @ y, s @ s  # Zhang et al. (2022), equation 5 with a unit diagonal
            np.testing.assert_allclose(variances, 1 / (a / b + y**2 / b - a * s**2 / (b * c)), rtol=1e-10)
            assert (np.asarray(variances) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_a_dense_gaussian_in_five_dimensions(offset, dtype, x64):
    """Mean within 0.1 standard deviations, variances in every direction within a factor of 2, bound within 0.2."""
    log_density, mean, covariance, evidence = gaussian(5, dtype, offset)
    result = jax.jit(lambda x, key: vi.pathfinder(log_density, x, key))(jnp.zeros(5, dtype), jax.random.key(0))
    assert result.mean.dtype == result.draws.dtype == dtype
    assert result.draws.shape == (1000, 5)
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    assert np.max(np.abs(root @ (np.asarray(result.mean, float) - mean))) < 0.1
    eigenvalues = np.linalg.svd(root @ root_of(result.inverse_mass_matrix))[1] ** 2
    assert 0.5 < eigenvalues.min() < eigenvalues.max() < 2
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
    # Independent scalars of different units are another matter: a diagonal holds them.
    units = jnp.asarray(np.exp(np.linspace(-3, 3, 100)), dtype)
    result = vi.pathfinder(lambda x: -0.5 * jnp.sum((x / units) ** 2), jnp.ones(100, dtype), jax.random.key(1))
    eigenvalues = np.linalg.svd(root_of(result.inverse_mass_matrix) / np.asarray(units, float)[:, None])[1] ** 2
    assert -12 < float(result.elbo) - float(np.sum(np.log(np.asarray(units)))) - 50 * np.log(2 * np.pi) < 0.5


def test_the_bound_is_what_it_is_in_closed_form(x64):
    """The evidence less the divergence of two Gaussians, within five standard errors of 20,000 draws."""
    log_density, mean, covariance, evidence = gaussian(30, "float64")
    result = vi.pathfinder(log_density, jnp.zeros(30), jax.random.key(3), num_draws=20_000)
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


def test_a_regression_like_those_of_posteriordb(x64, rng):
    """Intercept, two slopes in very different units and a scale: against the moments of a long run of NUTS."""
    x = np.stack([np.ones(80), rng.normal(size=80), 1e3 * rng.normal(size=80) + 5e3], axis=1)
    y = x @ np.array([1.0, 2.0, 1e-3]) + 1.5 * rng.normal(size=80)

    @models.joint
    def regression(x):
        beta = yield "beta", Normal(jnp.zeros(3), 10.0)
        sigma = yield "sigma", HalfNormal(5.0)
        yield "y", Normal(jnp.sum(x * jnp.expand_dims(beta, 0), axis=1), sigma)

    posterior = regression(jnp.asarray(x)).condition(y=jnp.asarray(y))
    result = jax.jit(lambda key: vi.pathfinder(posterior, key=key, elbo_draws=50))(jax.random.key(0))
    kernel = mcmc.nuts(posterior.log_density, step_size=0.6, inverse_mass_matrix=result.inverse_mass_matrix)
    run = jaxprob.sample(posterior, jax.random.key(1), initial=result.initial, algorithm=kernel, chains=4, draws=500)
    exact = {name: np.asarray(value).reshape(2000, -1) for name, value in run.draws.items()}
    ours = jax.vmap(posterior.constrain)(result.draws)
    for name, draws in exact.items():
        approximate = np.asarray(ours[name]).reshape(1000, -1)
        assert np.all(np.abs(approximate.mean(0) - draws.mean(0)) < 0.3 * draws.std(0)), name
        assert np.all(np.abs(np.log(approximate.std(0) / draws.std(0))) < np.log(1.4)), name


def test_a_funnel_is_no_trap():
    """The mode of a funnel has no bottom: the best Gaussian is not there."""

    def log_density(q):
        v, x = q["v"], q["x"]
        return -0.5 * (v / 3) ** 2 - 4.5 * v - 0.5 * jnp.sum(x * x) * jnp.exp(-v)

    def draw(key):
        return {"v": jax.random.uniform(key, (), jnp.float32, -2, 2), "x": jnp.ones(9)}

    result = vi.pathfinder(log_density, draw, jax.random.key(2), num_paths=8)
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
    result = vi.pathfinder(lambda x: value + 0 * jnp.sum(x), jnp.ones(3), jax.random.key(0), num_draws=10)
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

    result = vi.pathfinder(log_density, draw, jax.random.key(1), num_paths=6)
    assert {-2.8, 1.8} == {round(value, 1) for value in np.asarray(result.path_elbo).tolist()}  # log(2 pi) + log weight
    assert np.mean(np.asarray(result.draws)[:, 0] > 0) > 0.97


def test_paths_and_keys_side_by_side_are_those_of_a_loop():
    log_density, _, _, _ = gaussian(4, "float32")
    start = jnp.zeros(4)
    few, many = (vi.pathfinder(log_density, start, jax.random.key(0), num_paths=n) for n in (1, 5))
    np.testing.assert_allclose(many.path_elbo[0], few.path_elbo[0], rtol=1e-4)
    middle = vi.pathfinder(log_density, start, jax.random.key(0), num_paths=3)
    np.testing.assert_allclose(many.path_elbo[:3], middle.path_elbo, rtol=1e-4)

    def one(key):
        return vi.pathfinder(log_density, start, key, num_paths=2, num_draws=50)

    together = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 3))
    for index in range(3):
        alone = one(jax.random.split(jax.random.key(5), 3)[index])
        np.testing.assert_allclose(together.path_elbo[index], alone.path_elbo, rtol=1e-3)
        np.testing.assert_allclose(together.mean[index], alone.mean, rtol=1e-3, atol=1e-3)


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


def test_low_precision_positions_are_worked_on_in_float32():
    result = vi.pathfinder(lambda x: -0.5 * jnp.sum((x - 1) ** 2), jnp.zeros(3, jnp.bfloat16), jax.random.key(0))
    assert result.mean.dtype == result.draws.dtype == jnp.bfloat16
    assert result.inverse_mass_matrix.factor.dtype == jnp.float32
    assert result.sample(jax.random.key(1)).dtype == jnp.bfloat16


def test_kernels_move_in_its_metric():
    """NUTS in a metric of low rank, against the exact law: 32 chains, errors from the chains' own means."""
    log_density, mean, covariance, _ = gaussian(5, "float32", spread=2.0)
    result = vi.pathfinder(log_density, jnp.zeros(5), jax.random.key(0))
    kernel = mcmc.nuts(log_density, step_size=0.5, inverse_mass_matrix=result.inverse_mass_matrix)

    @jax.jit
    @jax.vmap
    def chain(key):
        def step(state, index):
            state, info = kernel.step(jax.random.fold_in(key, index), state)
            return state, (state.position, info)

        state = kernel.init(result.initial(jax.random.fold_in(key, 2**31)), jax.random.fold_in(key, 2**31 + 1))
        return jax.lax.scan(step, state, jnp.arange(300))[1]

    draws, info = chain(jax.random.split(jax.random.key(4), 32))
    assert not np.any(np.asarray(info.diverging))
    white = (np.asarray(draws, float) - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    for j in range(5):
        for values, truth in [(white[..., j], 0)] + [(white[..., j] * white[..., k], float(j == k)) for k in range(5)]:
            of_chains = values.mean(axis=1)
            error = of_chains.std(ddof=1) / np.sqrt(32)
            assert error < 0.05
            assert abs(of_chains.mean() - truth) < 6 * error  # Student t, 31: false alarm 1.2e-6


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
