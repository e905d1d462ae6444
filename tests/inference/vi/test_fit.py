"""Fits of guides: exact Gaussian posteriors, the optimum of mean field, gradients, batches, the run, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxprob import models, runtime
from jaxprob.distributions import HalfNormal, IndependentBijector, Normal, flows
from jaxprob.inference import vi

SIZE = 5


def gaussian(seed=0):
    """Mean, covariance and a log density that is not normalised."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(SIZE, SIZE))
    covariance = root @ root.T / SIZE + 0.2 * np.eye(SIZE)
    mean, precision = rng.normal(size=SIZE), np.linalg.inv(covariance)
    log_z = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1] - 3.0
    return mean, covariance, precision, log_z


def log_density(mean, precision, dtype=jnp.float32):
    mean, precision = jnp.asarray(mean, dtype), jnp.asarray(precision, dtype)

    def density(x):
        away = x - mean
        return -0.5 * jnp.dot(away, precision @ away, precision="highest") - 3.0

    return density


def test_full_rank_finds_an_exact_posterior():
    mean, covariance, precision, log_z = gaussian()
    found = vi.fit(log_density(mean, precision), jax.random.key(0), vi.full_rank(), initial=jnp.zeros(SIZE))
    bijector = found.guide.distribution.bijector
    factor = np.asarray(bijector.factor, float)
    assert found.converged
    assert found.not_finite == 0
    np.testing.assert_allclose(bijector.loc, mean, atol=1e-3)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-3)
    assert abs(found.elbo - log_z) < 1e-3


def test_mean_field_finds_its_optimum():
    mean, _, precision, log_z = gaussian()
    # Bishop (2006), section 10.1.2: variances 1 / precision_ii, too small, and the divergence that follows.
    variance = 1 / np.diag(precision)
    gap = 0.5 * (np.linalg.slogdet(np.linalg.inv(precision))[1] - np.log(variance).sum())
    found = vi.fit(log_density(mean, precision), jax.random.key(0), vi.mean_field(), initial=jnp.zeros(SIZE), draws=32)
    bijector = found.guide.distribution.bijector
    assert found.converged
    np.testing.assert_allclose(np.exp(2 * bijector.log_scale), variance, rtol=0.02)
    np.testing.assert_allclose(bijector.loc, mean, atol=0.02)
    # The standard error is that of independent steps, and the optimum is flat: 5 of them fail once in a million.
    assert abs(found.elbo - (log_z - gap)) < 5 * found.elbo_error + 1e-3
    assert found.elbo_error < 0.02


@pytest.mark.parametrize("gradient", ["stick_the_landing", "path", "entropy", "score"])
def test_gradients_are_unbiased(gradient, x64):
    mean, _, precision, _ = gaussian()
    density = log_density(mean, precision, jnp.float64)
    objective = vi.elbo(density, vi.mean_field(0.7), draws=3, gradient=gradient, initial=jnp.ones(SIZE))
    guide = objective.init(jax.random.key(0))

    def exact(guide):
        """Minus the bound in closed form."""
        loc, scale = guide.distribution.bijector.loc, jnp.exp(guide.distribution.bijector.log_scale)
        expected = density(loc) - 0.5 * jnp.sum(jnp.diag(jnp.asarray(precision)) * scale**2)
        return -(expected + jnp.sum(jnp.log(scale)) + 0.5 * SIZE * (1 + np.log(2 * np.pi)))

    keys = jax.random.split(jax.random.key(1), 4000)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda g, k: objective.loss(g, None, k)[0]), (None, 0)))(
        guide, keys
    )
    for found, truth in zip(
        jax.tree.leaves((losses, gradients)), jax.tree.leaves(jax.value_and_grad(exact)(guide)), strict=True
    ):
        error = np.std(found, axis=0) / np.sqrt(len(keys))
        # 11 numbers: |z| < 4.5 fails once in 13,000 for each of the gradients. Noise may be nil.
        assert (np.abs(np.mean(found, axis=0) - truth) < 4.5 * error + 1e-9).all()


def spline(key, shape, context_size, dtype):
    parts = [jnp.asarray(part, dtype) for part in ([0.8, -0.5, 0.3], [-0.4, 0.6, 0.1], [0.7, -0.9])]
    return IndependentBijector(flows.RationalQuadraticSpline(*parts, 3.0), 1)


def test_the_entropy_gradient_of_a_flow_is_unbiased(x64):
    def density(x):
        return -0.5 * jnp.sum((x - 0.3) ** 2) - jnp.sum(jnp.cos(x))

    family = vi.blocks({"x": vi.flow(flows.Architecture("spline", spline), 0.7)}, rest=vi.mean_field(0.5))
    position = {"x": jnp.ones(1), "y": jnp.zeros(())}
    objective = vi.elbo(lambda q: density(q["x"]) - q["y"] ** 2, family, draws=3, gradient="entropy", initial=position)
    guide = objective.init(jax.random.key(0))
    with pytest.raises(NotImplementedError):
        guide.entropy()
    z = np.linspace(-9, 9, 20_001)
    weights = jnp.asarray(stats.norm.pdf(z) * (z[1] - z[0]))
    rows = jnp.asarray(z)[:, None]

    def exact(guide):
        """Minus the bound by quadrature: of both, E[log p + log |dx/dz|] and the entropy of a standard normal z."""
        x, log_det = guide.guides[0].distribution.bijector.forward_and_log_det(rows)
        y = guide.guides[1].distribution.bijector
        flow = jnp.sum(weights * (jax.vmap(density)(x) + log_det))
        return -(flow - y.loc[0] ** 2 - jnp.exp(2 * y.log_scale[0]) + y.log_scale[0] + 1 + np.log(2 * np.pi))

    keys = jax.random.split(jax.random.key(1), 4000)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda g, k: objective.loss(g, None, k)[0]), (None, 0)))(
        guide, keys
    )
    found, truth = (jax.tree.leaves(x) for x in ((losses, gradients), jax.jit(jax.value_and_grad(exact))(guide)))
    for one, expected in zip(found, truth, strict=True):
        error = np.std(one, axis=0) / np.sqrt(len(keys))
        # 13 numbers: |z| < 4.5 fails once in 11,000.
        assert (np.abs(np.mean(one, axis=0) - expected) < 4.5 * error + 1e-9).all()
        assert (error < 0.05 * np.abs(expected) + 0.02).all()


def test_noise_of_stick_the_landing_vanishes_at_the_optimum(x64):
    mean, covariance, precision, _ = gaussian()
    objective = vi.elbo(log_density(mean, precision, jnp.float64), vi.full_rank(), initial=jnp.asarray(mean))
    guide = objective.init(jax.random.key(0))
    factor = np.linalg.cholesky(covariance)
    guide = jax.tree.unflatten(jax.tree.structure(guide), [mean, np.log(np.diag(factor)), factor])
    gradient = jax.grad(lambda g: objective.loss(g, None, jax.random.key(2))[0])(guide)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)


@models.joint
def regression(x):
    slope = yield "slope", Normal(0.0, 2.0)
    noise = yield "noise", HalfNormal(1.0)
    yield "y", Normal(slope * x, noise)


def data(number=40):
    rng = np.random.default_rng(3)
    x = rng.normal(size=number).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(1.5 * x + 0.5 * rng.normal(size=number).astype(np.float32))}


def test_batches_are_weighted_for_all_data():
    everything = data()
    posterior = regression(everything["x"]).condition(y=everything["y"])
    target = vi.subsampled(
        lambda b: regression(b["x"]).condition(y=b["y"]), 40, jax.tree.map(lambda a: a[:8], everything)
    )
    position = posterior.initial(jax.random.key(0))
    parts = [target.log_density(position, jax.tree.map(lambda a: a[i : i + 8], everything)) for i in range(0, 40, 8)]  # noqa: B023
    np.testing.assert_allclose(np.mean(parts), posterior.log_density(position), rtol=1e-5)


def test_a_posterior_compiles_once():
    traced = []

    @models.joint
    def program(x):
        traced.append(1)
        slope = yield "slope", Normal(0.0, 2.0)
        yield "y", Normal(slope * x, 0.5)

    everything = data()
    fits = []
    for shift in (0.0, 1.0):
        posterior = program(everything["x"]).condition(y=everything["y"] + shift)
        before = len(traced)
        fits.append(vi.fit(posterior, jax.random.key(0), vi.mean_field(), max_steps=500))
        fits[-1] = fits[-1], len(traced) - before
    # The survey of the sites may be made anew; what is compiled is not.
    assert fits[1][1] <= 2 < fits[0][1]
    assert fits[0][0].elbo != fits[1][0].elbo


def test_runs_under_the_runtime():
    mean, _, precision, log_z = gaussian()
    objective = vi.elbo(log_density(mean, precision), vi.full_rank(), draws=4, initial=jnp.zeros(SIZE))
    algorithm = vi.ascent(objective, optax.adam(0.05))
    state = algorithm.init(objective.init(jax.random.key(0)), jax.random.key(1))
    run = runtime.run(algorithm, jax.random.key(2), state, 2000, keep=lambda guide: guide.distribution.bijector.loc)
    assert run.draws.shape == (1, 2000, SIZE)
    np.testing.assert_allclose(run.state.settled.distribution.bijector.loc, mean, atol=0.02)
    assert abs(run.state.elbo - log_z) < 0.02


def test_steps_without_a_bound_move_nothing_and_are_counted():
    def density(x):
        return jnp.where(x > 1.0, jnp.nan, -0.5 * x**2)

    objective = vi.elbo(density, vi.mean_field(1.0), draws=1, initial=jnp.zeros(()))
    init, step = vi.ascent(objective)
    states, infos = [init(objective.init(jax.random.key(0)), jax.random.key(1))], []
    for i in range(20):
        state, info = jax.jit(step)(jax.random.key(i), states[-1])
        states.append(state)
        infos.append(bool(info.finite))
    assert 0 < sum(infos) < 20
    for before, after, finite in zip(states[:-1], states[1:], infos, strict=True):
        same = all(
            np.array_equal(a, b, equal_nan=True)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        )
        assert same is not finite
    found = vi.fit(density, jax.random.key(4), vi.mean_field(0.2), draws=1, initial=jnp.zeros(()), max_steps=1000)
    assert found.not_finite > 0
    assert np.isfinite(found.guide.sample(jax.random.key(0)))


def test_a_fit_that_is_cut_short_says_so():
    mean, _, precision, _ = gaussian()
    found = vi.fit(log_density(mean, precision), jax.random.key(0), initial=jnp.zeros(SIZE), max_steps=300)
    assert not found.converged
    assert found.num_steps == 300
    assert (found.elbos != 0).sum() == 300


def test_a_bound_that_is_not_finite_names_the_site():
    @models.joint
    def program():
        scale = yield "scale", HalfNormal(1.0)
        yield "y", Normal(jnp.log(-scale), 1.0)

    posterior = program().condition(y=jnp.array(-1.0))
    with pytest.raises(ValueError, match=r"vi.fit: initial is .* site 'y' has log density nan"):
        vi.fit(posterior, jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vi.elbo(lambda x: x, "full", initial=jnp.zeros(())), "guide"),
        (lambda: vi.elbo(lambda x: x, vi.full_rank(), draws=0, initial=jnp.zeros(())), "draws is 0"),
        (lambda: vi.elbo(lambda x: x, vi.full_rank(), gradient="none", initial=jnp.zeros(())), "gradient"),
        (lambda: vi.elbo(lambda x: x, vi.full_rank()), "initial"),
        (lambda: vi.elbo(3.0, vi.full_rank(), initial=jnp.zeros(())), "log_density"),
        (lambda: vi.ascent("objective"), "objective"),
        (lambda: vi.ascent(vi.elbo(lambda x: x, vi.full_rank(), initial=jnp.zeros(())), "adam"), "optimizer"),
        (lambda: vi.ascent(vi.elbo(lambda x: x, vi.full_rank(), initial=jnp.zeros(())), window=1), "window is 1"),
        (lambda: vi.ascent(vi.elbo(lambda x: x, vi.full_rank(), initial=jnp.zeros(())), factor=1.0), "factor is 1.0"),
        (lambda: vi.subsampled(lambda b: b, 3, {"x": jnp.zeros(5)}), "size is 3"),
        (lambda: vi.subsampled(lambda b: b, 3, {"x": jnp.zeros(())}), "batch"),
        (lambda: vi.fit(lambda x: x * jnp.nan, jax.random.key(0), initial=jnp.zeros(())), "bound is nan"),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_posterior_in_awkward_units_is_fitted_from_where_it_lies():
    @models.joint
    def program(x):
        offset = yield "offset", Normal(0.0, 1e5)
        slope = yield "slope", Normal(0.0, 1e5)
        yield "y", Normal(offset + slope * x, 1000.0)

    x = 60 + 4 * np.random.default_rng(0).normal(size=200)
    y = -61_000 + 1_262 * x + 1000 * np.random.default_rng(1).normal(size=200)
    design = np.stack([np.ones(200), x], axis=1)
    covariance = np.linalg.inv(design.T @ design / 1e6 + np.eye(2) / 1e10)
    mean = covariance @ design.T @ y / 1e6
    posterior = program(jnp.asarray(x, jnp.float32)).condition(y=jnp.asarray(y, jnp.float32))
    found = vi.fit(posterior, jax.random.key(0))
    draws = found.guide.sample(jax.random.key(1), 20_000)
    draws = np.stack([draws["offset"], draws["slope"]], axis=1).astype(float)
    assert found.converged
    # The covariance of draws with a relative error of sqrt(2 / 20,000): 4.5 of them, and 1 % of the fit.
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(covariance)), rtol=0.035)
    assert (np.abs(draws.mean(0) - mean) < 0.05 * np.sqrt(np.diag(covariance))).all()


def test_a_fit_shorter_than_a_window_gives_what_it_has():
    mean, _, precision, _ = gaussian()
    found = vi.fit(
        log_density(mean, precision), jax.random.key(0), vi.mean_field(), initial=jnp.zeros(SIZE), max_steps=150
    )
    loc = np.asarray(found.guide.distribution.bijector.loc)
    # Adam moves by 0.05 a step: half of the steps' mean way from zero, towards the mean and not past it by much.
    assert np.abs(loc - mean).max() < 0.5 * np.abs(mean).max()
    assert not found.converged
    bounds = np.asarray(found.elbos)
    np.testing.assert_allclose(found.elbo, bounds.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.elbo_error, bounds.std(ddof=1) / np.sqrt(150), rtol=1e-3)
