"""Mixtures by EM against scikit-learn, NumPy and what EM must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.mixture import GaussianMixture

from jaxprob.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Mixture,
    MultivariateNormal,
    MultivariateNormalDiagonal,
    Poisson,
)
from jaxprob.inference import mixture


def blobs(number=300, seed=0):
    rng = np.random.default_rng(seed)
    means, kind = np.array([[0, 0, 0], [4, 4, 0], [-4, 5, 1]]), rng.integers(0, 3, number)
    roots = np.array([np.eye(3), np.diag([0.3, 2, 1]), [[1, 0, 0], [0.9, 0.3, 0], [0, 0.5, 1]]])
    return (means[kind] + np.einsum("nij,nj->ni", roots[kind], rng.normal(size=(number, 3)))) * [1, 1, 30]


MEANS = np.array([[1.0, 1, 0], [3, 3, 10], [-3, 4, -10]])
COVARIANCES = np.stack([np.diag([2.0, 3, 400])] * 3)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_from_the_same_start_it_is_scikit_learn(kind, x64):
    xs = blobs()
    covariances = COVARIANCES if kind == "full" else np.stack([np.diag(c) for c in COVARIANCES])
    inverses = np.linalg.inv(COVARIANCES) if kind == "full" else 1 / covariances
    weights = np.array([0.5, 0.3, 0.2])
    if kind == "full":
        components, family = MultivariateNormal(MEANS, covariance=covariances), mixture.full_normal()
    else:
        components, family = MultivariateNormalDiagonal(MEANS, np.sqrt(covariances)), mixture.diagonal_normal()
    for steps in (3, 40):
        peer = GaussianMixture(
            3, covariance_type=kind, tol=0, max_iter=steps, reg_covar=0, weights_init=weights, means_init=MEANS,
            precisions_init=inverses,
        )  # fmt: skip
        with pytest.warns(UserWarning, match="did not converge"):
            peer.fit(xs)
        found = mixture.fit_from(Mixture(weights, components), jnp.asarray(xs), family, steps=steps)
        np.testing.assert_allclose(found.log_likelihoods[-1], 300 * peer.score(xs), rtol=1e-9)
        np.testing.assert_allclose(found.model.weights, peer.weights_, rtol=1e-6)
        np.testing.assert_allclose(found.model.components.mean(), peer.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mixture.responsibilities(found.model, xs), peer.predict_proba(xs), atol=1e-6)
    assert bool(found.converged)
    assert not found.degenerate.any()


def test_from_its_own_starts_it_is_as_good_as_scikit_learns_best():
    xs = blobs()
    found = mixture.fit(jax.random.key(0), jnp.asarray(xs, jnp.float32), 3, starts=4, steps=100)
    peer = GaussianMixture(3, n_init=4, tol=1e-8, max_iter=1000, reg_covar=0, random_state=0).fit(xs)
    assert float(found.log_likelihoods[-1]) > 300 * peer.score(xs) - 0.05
    assert np.diff(np.asarray(found.log_likelihoods)).min() > -2e-3  # rounding of a sum of about -2,500
    assert bool(found.converged)
    assert found.smallest_weight == found.model.weights.min()
    assert 0.2 < float(found.smallest_weight) < 0.34


def draw(name, rng, number=400):
    kind = rng.integers(0, 2, number)
    if name == "poisson":
        return rng.poisson(np.array([[1.0, 8, 3], [6, 2, 3]])[kind])
    if name == "bernoulli":
        return (rng.random((number, 8)) < np.where(kind[:, None] == np.arange(8) % 2, 0.85, 0.2)).astype(int)
    return np.where(rng.random((number, 6)) < 0.7, kind[:, None], 2 + 0 * kind[:, None])


LAWS = {
    "poisson": lambda x, p: scipy.stats.poisson.logpmf(x, p.base.rate),
    "bernoulli": lambda x, p: scipy.stats.bernoulli.logpmf(x, p.base.probs),
    "categorical": lambda x, p: np.log(np.take_along_axis(np.asarray(p.base.probs, float)[None], x[..., None], 3))[
        ..., 0
    ],
}


@pytest.mark.parametrize("name", LAWS)
def test_counts_bits_and_categories(name, x64):
    xs = draw(name, np.random.default_rng(1))
    family = mixture.categorical(3) if name == "categorical" else getattr(mixture, name)()
    # float64, so that the oracle's likelihood can be close.
    found = mixture.fit(jax.random.key(0), jnp.asarray(xs), 2, family, starts=3, steps=60)
    components = found.model.components
    assert isinstance(components, Independent)
    assert isinstance(components.base, {"poisson": Poisson, "bernoulli": Bernoulli, "categorical": Categorical}[name])
    total = np.log(np.asarray(found.model.weights)) + _each(name, xs, components)
    np.testing.assert_allclose(found.log_likelihoods[-1], scipy.special.logsumexp(total, 1).sum(), rtol=1e-8)
    assert np.diff(np.asarray(found.log_likelihoods)).min() > -1e-9
    # Stationary: each component's means are those of the examples that are its own.
    shares = np.asarray(mixture.responsibilities(found.model, jnp.asarray(xs)))
    values = np.eye(3)[xs] if name == "categorical" else xs
    expected = np.einsum("nk,n...->k...", shares, values) / shares.sum(0).reshape(2, *(1,) * (values.ndim - 1))
    means = components.base.probs if name == "categorical" else components.mean()
    np.testing.assert_allclose(means, expected, atol=1e-3)
    assert abs(float(found.model.weights[0]) - 0.5) < 0.15


def _each(name, xs, components):
    with np.errstate(divide="ignore"):
        if name == "categorical":
            probs = np.asarray(components.base.probs, float)
            return np.log(np.stack([probs[k][np.arange(6)[None], xs].prod(1) for k in range(2)], 1))
        return LAWS[name](xs[:, None], components).sum(-1)


def test_a_component_that_would_collapse_is_held_and_said():
    """Many copies of one point: the likelihood of covariances has no bound without a floor."""
    rng = np.random.default_rng(0)
    xs = np.concatenate([rng.normal(size=(60, 2)) + 3, np.zeros((40, 2))]).astype(np.float32)
    found = mixture.fit(jax.random.key(0), xs, 2, starts=4, steps=60)
    assert np.all(np.isfinite(found.log_likelihoods))
    assert found.degenerate.tolist().count(True) == 1
    held = int(np.argmax(found.degenerate))
    spread = found.model.components.covariance()[held] / np.outer(xs.std(0), xs.std(0))
    np.testing.assert_allclose(np.linalg.eigvalsh(spread), 1e-6, rtol=1e-2)
    np.testing.assert_allclose(found.model.weights[held], 0.4, atol=0.01)
    assert np.diff(np.asarray(found.log_likelihoods)).min() > -0.01
    # One of the starts is regular where components are as many as kinds: it is kept, though it is less likely.
    line = mixture.fit(jax.random.key(1), np.stack([np.arange(20.0)] * 2, 1), 1, starts=1, steps=3)
    assert line.degenerate.tolist() == [True]


def test_a_degenerate_start_is_passed_over_for_a_regular_one():
    rng = np.random.default_rng(2)
    xs = np.concatenate([rng.normal(size=(50, 1)), rng.normal(size=(50, 1)) + 6, [[30.0]]]).astype(np.float32)
    found = [mixture.fit(jax.random.key(i), xs, 2, starts=1, steps=100) for i in range(12)]
    kinds = {bool(f.degenerate.any()) for f in found}
    assert kinds == {True, False}  # the outlier alone, or with one of the groups
    worst = next(i for i, f in enumerate(found) if f.degenerate.any())
    both = mixture.fit(jax.random.key(worst), xs, 2, starts=12, steps=100)
    assert not both.degenerate.any()


def test_a_component_without_examples_stays_where_it_is():
    xs = jnp.asarray(blobs(50))
    far = Mixture([0.5, 0.5], MultivariateNormalDiagonal(jnp.array([[0.0] * 3, [1e6] * 3]), jnp.full((2, 3), 5.0)))
    found = mixture.fit_from(far, xs, mixture.diagonal_normal(), steps=2)
    np.testing.assert_allclose(found.model.components.mean()[1], 1e6)
    np.testing.assert_allclose(found.model.components.mean()[0], xs.mean(0), rtol=1e-4, atol=1e-5)
    assert found.smallest_weight == 0
    assert found.degenerate.tolist() == [False, True]
    # Fewer kinds of examples than components.
    same = mixture.fit(jax.random.key(0), jnp.ones((5, 2)), 3, starts=2, steps=3)
    assert np.all(np.isfinite(same.log_likelihoods))


def test_under_jit_and_vmap_and_equal_shapes_compile_once():
    xs = jnp.asarray(blobs(60), jnp.float32)
    family = mixture.diagonal_normal()
    before = mixture._fit._cache_size()
    one = mixture.fit(jax.random.key(0), xs, 2, family, starts=2, steps=5)
    two = mixture.fit(jax.random.key(0), xs[::-1] * 2, 2, mixture.diagonal_normal(), starts=2, steps=5)
    assert mixture._fit._cache_size() == before + 1
    both = jax.vmap(lambda xs: mixture.fit(jax.random.key(0), xs, 2, family, starts=2, steps=5).log_likelihoods)(
        jnp.stack([xs, xs[::-1] * 2])
    )
    np.testing.assert_allclose(both, jnp.stack([one.log_likelihoods, two.log_likelihoods]), rtol=1e-4)


def test_bad_input_is_one_line():
    xs, key = jnp.ones((4, 2)), jax.random.key(0)
    for message, call in {
        r"mixture.fit: count is 5; expected at most the 4 examples": lambda: mixture.fit(key, xs, 5),
        r"mixture.fit: xs is of shape \(4,\); expected shape \(example, n\). Pass xs\[:, None\]": lambda: mixture.fit(
            key, xs[:, 0], 2
        ),
        r"mixture.fit: xs is something else somewhere; expected finite numbers": lambda: mixture.fit(key, xs / 0, 2),
        r"expected whole numbers, at least 0": lambda: mixture.fit(key, xs / 2, 2, mixture.poisson()),
        r"expected zeros and ones": lambda: mixture.fit(key, 2 * xs, 2, mixture.bernoulli()),
        r"expected whole numbers from 0 to 2": lambda: mixture.fit(key, 3 * xs, 2, mixture.categorical(3)),
        r"mixture.fit: steps is -1": lambda: mixture.fit(key, xs, 2, steps=-1),
        r"full_normal: floor is 0; expected a positive number": lambda: mixture.full_normal(0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="mixture.fit: family is poisson; expected a family of components"):
        mixture.fit(key, xs, 2, "poisson")
    model = Mixture([1.0], MultivariateNormalDiagonal(jnp.zeros((1, 2)), jnp.ones((1, 2))))
    with pytest.raises(TypeError, match="a mixture of MultivariateNormalDiagonal; expected one of components as"):
        mixture.fit_from(model, xs)
