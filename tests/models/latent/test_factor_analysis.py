"""Linear factors against dense normal laws and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn import decomposition

from jaxprob import learning, scan
from jaxprob.inference import factor_analysis, vi
from jaxprob.models import latent


def simulate(number=300, size=6, factors=2, seed=0, shared=False):
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(size, factors))
    noise = np.full(size, 0.3) if shared else rng.uniform(0.1, 1.0, size)
    return rng.normal(size=(number, factors)) @ loadings.T + 2 + np.sqrt(noise) * rng.normal(size=(number, size))


def make(dtype, shared=False):
    rng = np.random.default_rng(1)
    noise = 0.4 if shared else rng.uniform(0.1, 1, 6)
    return latent.FactorAnalysis(*(jnp.asarray(a, dtype) for a in (rng.normal(size=(6, 2)), rng.normal(size=6), noise)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shared", [False, True])
def test_likelihood_and_posterior_are_those_of_the_dense_law(dtype, shared, x64):
    model, x = make(dtype, shared), np.random.default_rng(2).normal(size=6)
    x[[1, 4]] = np.nan
    w, mean, noise = (np.asarray(a, float) for a in (model.loadings, model.mean, model.noise))
    seen = ~np.isnan(x)
    covariance = (w @ w.T + np.diag(np.broadcast_to(noise, 6)))[np.ix_(seen, seen)]
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    expected = scipy.stats.multivariate_normal(mean[seen], covariance).logpdf(x[seen])
    found = model.log_likelihood(jnp.asarray(x, dtype))
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    gain = w[seen].T @ np.linalg.inv(covariance)
    posterior = jax.jit(model.posterior)(jnp.asarray(x, dtype))
    np.testing.assert_allclose(posterior.mean(), gain @ (x - mean)[seen], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(posterior.covariance(), np.eye(2) - gain @ w[seen], rtol=tolerance, atol=tolerance)
    whole = jnp.zeros(6, dtype)
    np.testing.assert_allclose(model.marginal().log_prob(whole), model.log_likelihood(whole), rtol=tolerance)
    nothing = jnp.full(6, jnp.nan, dtype)
    assert model.log_likelihood(nothing) == 0
    np.testing.assert_allclose(model.posterior(nothing).covariance(), np.eye(2), atol=1e-6)
    assert found.dtype == posterior.mean().dtype == dtype
    gradient = jax.grad(lambda m: m.log_likelihood(jnp.asarray(x, dtype)))(model)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_float32_stays_right_where_noise_is_small_against_the_loadings():
    """Noise 1e-6 of the variances: 1 + W^T W is 1e6 times as large as its 1."""
    rng = np.random.default_rng(3)
    w, noise = rng.normal(size=(20, 3)), rng.uniform(0.5, 2, 20) * 1e-6
    model = latent.FactorAnalysis(*(jnp.asarray(a, jnp.float32) for a in (w, np.zeros(20), noise)))
    w, noise = np.asarray(model.loadings, float), np.asarray(model.noise, float)
    covariance = w @ w.T + np.diag(noise)
    x = np.float32(np.linalg.cholesky(covariance) @ rng.normal(size=20)).astype(float)
    inverse = np.linalg.inv(np.eye(3) + (w.T / noise) @ w)
    posterior = model.posterior(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(posterior.covariance(), inverse, rtol=1e-3, atol=1e-5 * inverse.max())
    np.testing.assert_allclose(posterior.mean(), inverse @ (w.T / noise) @ x, rtol=1e-4, atol=1e-5)
    residual = x - w @ (inverse @ (w.T / noise) @ x)
    z = inverse @ (w.T / noise) @ x
    log_det = np.log(noise).sum() - np.linalg.slogdet(inverse)[1]
    expected = -0.5 * ((residual**2 / noise).sum() + z @ z + log_det + 20 * np.log(2 * np.pi))
    np.testing.assert_allclose(model.log_likelihood(jnp.asarray(x, jnp.float32)), expected, rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_closed_maximum_likelihood_is_scikit_learns(dtype, x64):
    xs = simulate(shared=True)
    model = factor_analysis.probabilistic_pca(jnp.asarray(xs, dtype), 2)
    peer = decomposition.PCA(2).fit(xs)
    total = scipy.stats.multivariate_normal(peer.mean_, peer.get_covariance() * (299 / 300)).logpdf(xs).sum()
    found = jax.vmap(model.log_likelihood)(jnp.asarray(xs, dtype)).sum()
    np.testing.assert_allclose(found, total, rtol=1e-10 if dtype == "float64" else 1e-6)
    assert model.noise.dtype == dtype
    slope = jax.grad(lambda m: jax.vmap(m.log_likelihood)(jnp.asarray(xs, dtype)).mean())(model)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < (1e-10 if dtype == "float64" else 1e-3)


def test_em_reaches_scikit_learns_factor_analysis_and_never_falls():
    xs = simulate() * np.array([1, 10, 0.1, 1, 1, 1])
    fitted = factor_analysis.fit(jnp.asarray(xs, jnp.float32), 2, steps=400)
    peer = decomposition.FactorAnalysis(2, tol=1e-10, max_iter=5000, svd_method="lapack").fit(xs)
    assert bool(fitted.converged)
    # In float32, of a sum of about -2,000.
    np.testing.assert_allclose(fitted.log_likelihoods[-1], 300 * peer.score(xs), atol=0.02)
    assert np.diff(np.asarray(fitted.log_likelihoods)).min() > -2e-3
    assert float(fitted.log_likelihoods[0]) < float(fitted.log_likelihoods[-1]) - 1


def test_em_with_one_noise_reaches_the_closed_form_from_elsewhere(x64):
    xs = jnp.asarray(simulate(shared=True))
    start = latent.FactorAnalysis(jax.random.normal(jax.random.key(0), (6, 2)), jnp.zeros(6), jnp.ones(()))
    fitted = factor_analysis.fit(xs, 2, steps=300, start=start)
    closed = factor_analysis.probabilistic_pca(xs, 2)
    np.testing.assert_allclose(fitted.log_likelihoods[-1], jax.vmap(closed.log_likelihood)(xs).sum(), rtol=1e-8)
    np.testing.assert_allclose(
        fitted.model.marginal().covariance(), closed.marginal().covariance(), rtol=1e-4, atol=1e-4
    )
    assert np.diff(np.asarray(fitted.log_likelihoods)).min() > -1e-9


@pytest.mark.parametrize("noise", ["shared", pytest.param("each", marks=pytest.mark.slow)])
def test_with_missing_entries_em_climbs_to_a_stationary_point_of_what_is_seen(noise, x64):
    xs = simulate(200)
    xs[np.random.default_rng(4).random(xs.shape) < 0.3] = np.nan
    xs[0] = np.nan
    fitted = factor_analysis.fit(xs, 2, steps=600, noise=noise)
    assert fitted.model.noise.shape == (() if noise == "shared" else (6,))
    assert np.diff(np.asarray(fitted.log_likelihoods)).min() > -1e-9

    def total(model):
        seen = ~np.isnan(xs)
        w, mean, psi = (np.asarray(a, float) for a in (model.loadings, model.mean, model.noise))
        covariance = w @ w.T + np.diag(np.broadcast_to(psi, 6))
        return sum(
            scipy.stats.multivariate_normal(mean[s], covariance[np.ix_(s, s)]).logpdf(x[s])
            for x, s in zip(xs, seen, strict=True)
            if s.any()
        )

    np.testing.assert_allclose(fitted.log_likelihoods[-1], total(fitted.model), rtol=1e-10)
    # EM creeps at the end; at the start slopes are near 0.1.
    slope = jax.grad(lambda m: jax.vmap(m.log_likelihood)(jnp.asarray(xs)).mean())(fitted.model)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < 5e-4


def test_a_heywood_case_stops_at_the_floor():
    xs = simulate(100).astype(np.float32)
    xs[:, 1] = xs[:, 0]
    fitted = factor_analysis.fit(xs, 2, steps=100)
    assert np.all(np.isfinite(fitted.log_likelihoods))
    np.testing.assert_allclose(fitted.model.noise.min(), 1e-6 * xs[:, 0].var(), rtol=1e-2)
    constant = xs.copy()
    constant[:, 2] = 1
    assert np.all(np.isfinite(factor_analysis.fit(constant, 2, steps=5).log_likelihoods))


def test_the_bound_with_the_exact_recognition_is_the_log_likelihood():
    """The bar is 1e-2 nats; without noise of draws, whatever they are."""
    xs = jnp.asarray(simulate(shared=True), jnp.float32)
    for noise, model in (("shared", factor_analysis.probabilistic_pca(xs, 2)), ("each", make(jnp.float32))):
        exact = jax.vmap(model.log_likelihood)(xs).mean()
        for bound in ("elbo", "importance_weighted"):
            objective = vi.amortized_elbo(latent.linear(6, 2, noise), 3, kl="sampled", bound=bound)
            np.testing.assert_allclose(objective.loss(model.params(), xs, jax.random.key(0))[0], -exact, rtol=2e-5)
        closed = jax.jit(vi.amortized_elbo(latent.linear(6, 2, noise), 500).loss)(model.params(), xs, jax.random.key(0))
        np.testing.assert_allclose(closed[0], -exact, atol=0.02)


def test_training_the_linear_autoencoder_reaches_the_likelihood_of_probabilistic_pca():
    """S283 (a): within 1e-2 nats of the closed maximum; seen: 3e-4."""
    xs = jnp.asarray(simulate(shared=True), jnp.float32)
    objective = vi.amortized_elbo(latent.linear(6, 2), 1, kl="sampled", gradient="stick_the_landing")
    task = learning.Task(*objective, optax.adam(optax.cosine_decay_schedule(0.03, 2500)))
    training = learning.training(task)

    @jax.jit
    def run(key):
        def step(state, i):
            return training.step(jax.random.fold_in(key, i), state, xs)

        return scan.scan(step, training.init(task.init(key)), jnp.arange(2500))[0].params

    params = run(jax.random.key(0))
    exact = jax.vmap(factor_analysis.probabilistic_pca(xs, 2).log_likelihood)(xs).mean()
    found = -objective.loss(params, xs, jax.random.key(1))[0]
    assert abs(float(found - exact)) < 1e-2, (found, exact)


def test_equal_shapes_compile_once_and_bad_input_is_one_line():
    xs = simulate(20).astype(np.float32)
    before = factor_analysis._fit._cache_size()
    factor_analysis.fit(xs, 2, steps=2)
    factor_analysis.fit(xs + 1, 2, steps=2)
    assert factor_analysis._fit._cache_size() == before + 1
    infinite, never = xs.copy(), xs.copy()
    infinite[0, 0], never[:, 2] = np.inf, np.nan
    for message, call in {
        r"factor_analysis.fit: latents is 6; expected fewer than the 6 entries": lambda: factor_analysis.fit(xs, 6),
        r"factor_analysis.fit: xs is infinite somewhere": lambda: factor_analysis.fit(infinite, 2),
        r"factor_analysis.fit: xs is missing in all of column 2": lambda: factor_analysis.fit(never, 2),
        r"factor_analysis.fit: noise is 'all'; expected 'each' or 'shared'": lambda: factor_analysis.fit(
            xs, 2, noise="all"
        ),
        r"factor_analysis.fit: xs is of shape \(20,\)": lambda: factor_analysis.fit(xs[:, 0], 2),
        r"probabilistic_pca: xs is missing in part.*noise='shared'": lambda: factor_analysis.probabilistic_pca(
            np.where(xs > 3, np.nan, xs), 2
        ),
        r"FactorAnalysis: noise is of shape \(3,\)": lambda: latent.FactorAnalysis(
            jnp.ones((2, 1)), jnp.ones(2), jnp.ones(3)
        ),
        r"FactorAnalysis.posterior: x is of shape \(5, 6\).*vmap": lambda: make("float32").posterior(jnp.ones((5, 6))),
        r"latent.linear: noise is 'all'": lambda: latent.linear(3, 2, "all"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
