"""Hidden Markov inference against the enumeration of all paths: K = 4, T = 6, impossible steps included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.distributions import Normal
from jaxprob.inference import hmm
from jaxprob.models.state_space import HiddenMarkov
from tests.inference.hmm import _enumeration as enumeration

METHODS = ("sequential", "parallel")
LOCS = np.array([-1.0, 0.0, 0.5, 2.0])
SCALES = np.array([0.5, 1.0, 1.5, 0.7])


def make(seed=0, times=6, varying=False, gap=False, dtype=np.float64):
    """A model, observations, and what enumeration needs of them: all in float64."""
    rng = np.random.default_rng(seed)
    initial = rng.dirichlet(np.ones(4))
    transition = rng.dirichlet(np.ones(4), (max(times - 1, 0), 4)) if varying else rng.dirichlet(np.ones(4), 4)
    initial[3] = 0
    initial /= initial.sum()
    transition[..., 0, 2] = transition[..., 3, :2] = 0
    transition /= transition.sum(-1, keepdims=True)
    ys = rng.normal(size=times) * 1.5
    densities = scipy.stats.norm.pdf(ys[:, None], LOCS, SCALES)
    if gap and times:
        ys[times // 2], densities[times // 2] = np.nan, 1
    emission = Normal(jnp.asarray(LOCS, dtype), jnp.asarray(SCALES, dtype))
    declared = ("transition",) if varying else ()
    model = HiddenMarkov(initial.astype(dtype), transition.astype(dtype), emission, time_varying=declared)
    return model, jnp.asarray(ys, dtype), (initial, transition, densities)


def check(method, error, **options):
    model, ys, oracle = make(**options)
    every, weight = enumeration.weights(*oracle)
    found = hmm.filter(model, ys, method=method)
    np.testing.assert_allclose(found.probabilities, enumeration.filtered(*oracle), atol=error)
    np.testing.assert_allclose(jnp.exp(found.predicted[1:]), enumeration.filtered(*oracle, upto=-1)[1:], atol=error)
    total = np.log(weight.sum())
    smoothed = hmm.smooth(model, ys, method=method)
    for value in (found.log_likelihood, smoothed.log_likelihood, hmm.log_likelihood(model, ys, method=method)):
        np.testing.assert_allclose(value, total, rtol=error)
    np.testing.assert_allclose(smoothed.probabilities, enumeration.smoothed(*oracle), atol=error)
    pairs = jnp.exp(hmm.pairwise(model, ys, method=method))
    np.testing.assert_allclose(pairs, enumeration.pairwise(*oracle), atol=error)
    for lag in (0, 2):
        expected = enumeration.filtered(*oracle, upto=lag)
        np.testing.assert_allclose(hmm.smooth(model, ys, lag=lag, method=method).probabilities, expected, atol=error)
    path = hmm.viterbi(model, ys, method=method)
    assert path.states.tolist() == every[weight.argmax()].tolist()
    np.testing.assert_allclose(path.log_probability, np.log(weight.max()), rtol=error)
    assert found.log_probabilities.dtype == smoothed.log_likelihood.dtype == pairs.dtype == ys.dtype


@pytest.mark.parametrize("method", METHODS)
def test_float32(method):
    for seed in range(5):
        check(method, 3e-6, seed=seed, gap=True, dtype=np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_float64_and_a_transition_that_varies(method, x64):
    check(method, 1e-12, varying=True)


def test_a_prefix_likelihood_is_that_of_the_prefix(x64):
    model, ys, (initial, transition, densities) = make()
    found = hmm.filter(model, ys).log_likelihoods
    expected = [np.log(enumeration.weights(initial, transition, densities[: t + 1])[1].sum()) for t in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_sampled_paths_have_the_posterior_law(method):
    """Chi-squared over all paths expected at least five times, the others together: false alarms 1 in 10,000."""
    model, ys, oracle = make(dtype=np.float32, gap=True)
    _, weight = enumeration.weights(*oracle)
    draws = np.asarray(hmm.sample(jax.random.key(3), model, ys, shape=(20_000,), method=method))
    place = 4 ** np.arange(5, -1, -1)
    counts, expected = np.bincount(draws @ place, minlength=4**6), 20_000 * weight / weight.sum()
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    counts, expected = (np.append(x[often], x[~often].sum()) for x in (counts, expected))
    assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(1 - 1e-4, len(counts) - 1)
    assert len(counts) > 50


def test_both_methods_draw_the_same_paths():
    model, ys, _ = make(dtype=np.float32)
    draws = [hmm.sample(jax.random.key(0), model, ys, shape=(100,), method=method) for method in METHODS]
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("times", [0, 1])
def test_one_time_and_none(method, times):
    model, ys, (initial, _, densities) = make(times=times, dtype=np.float32)
    found = hmm.filter(model, ys, method=method)
    total = np.log((initial * densities[0]).sum()) if times else 0
    smoothed = hmm.smooth(model, ys, method=method)
    for value in (found.log_likelihood, smoothed.log_likelihood, hmm.log_likelihood(model, ys, method=method)):
        np.testing.assert_allclose(value, total, rtol=1e-6)
    if times:
        expected = initial * densities[0] / (initial * densities[0]).sum()
        np.testing.assert_allclose(smoothed.probabilities[0], expected, atol=1e-6)
    assert found.log_probabilities.shape == smoothed.log_probabilities.shape == (times, 4)
    assert hmm.pairwise(model, ys, method=method).shape == (0, 4, 4)
    assert hmm.viterbi(model, ys, method=method).states.shape == (times,)
    assert hmm.sample(jax.random.key(0), model, ys, shape=(2,), method=method).shape == (2, times)
    gradient = jax.grad(lambda model: hmm.log_likelihood(model, ys, method=method))(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("method", METHODS)
def test_all_missing_is_the_prior(method):
    model, ys, (initial, transition, _) = make(dtype=np.float32)
    for values, missing in ((jnp.full_like(ys, jnp.nan), None), (ys, jnp.ones(6, bool))):
        found = hmm.smooth(model, values, missing=missing, method=method)
        assert found.log_likelihood == pytest.approx(0, abs=1e-6)
        expected = [initial @ np.linalg.matrix_power(transition, t) for t in range(6)]
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_padded_series_is_the_shorter_one(method):
    model, ys, _ = make(dtype=np.float32)
    padded = jnp.concatenate([ys[:4], jnp.full(2, jnp.nan)])
    np.testing.assert_allclose(
        hmm.log_likelihood(model, padded, method=method), hmm.log_likelihood(model, ys[:4], method=method), rtol=1e-6
    )
    np.testing.assert_allclose(
        hmm.smooth(model, padded, method=method).probabilities[:4],
        hmm.smooth(model, ys[:4], method=method).probabilities,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_a_vmap(method):
    model, ys, _ = make(dtype=np.float32)
    batch = jnp.stack([ys, ys[::-1], jnp.where(ys > 0, jnp.nan, ys)])
    found = jax.vmap(lambda ys: hmm.smooth(model, ys, method=method))(batch)
    for one, series in enumerate(batch):
        alone = hmm.smooth(model, series, method=method)
        np.testing.assert_allclose(found.log_likelihood[one], alone.log_likelihood, rtol=1e-6)
        np.testing.assert_allclose(found.probabilities[one], alone.probabilities, atol=1e-6)
