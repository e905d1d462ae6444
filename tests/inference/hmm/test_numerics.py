"""Hidden Markov likelihoods where numbers are awkward: long series, far tails, impossible steps, gradients, dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxprob.distributions import Categorical, Normal
from jaxprob.inference import hmm
from jaxprob.inference.hmm import _scaled as scaled
from jaxprob.inference.hmm._scores import chain_of
from jaxprob.models.state_space import HiddenMarkov
from tests.inference.hmm import _enumeration as enumeration
from tests.inference.hmm.test_exact import LOCS, METHODS, SCALES, make
from tests.scan._loops import compilations


@pytest.mark.parametrize("method", METHODS)
def test_a_long_series_in_float32(method):
    """20,000 times against a float64 recursion; gaps, and an observation far from all states."""
    rng = np.random.default_rng(1)
    model, _, (initial, transition, _) = make(dtype=np.float32)
    ys = rng.choice(LOCS, 20_000) + rng.normal(size=20_000)
    ys[rng.uniform(size=20_000) < 0.01] = np.nan
    ys[7_000] = 60.0
    ys = ys.astype(np.float32)
    densities = scipy.stats.norm.logpdf(np.nan_to_num(ys.astype(np.float64))[:, None], LOCS, SCALES)
    densities[np.isnan(ys)] = 0
    total = enumeration.forward(initial, transition, densities)
    found = hmm.filter(model, ys, method=method).log_likelihood
    assert abs(float(found) - total) < 1e-6 * abs(total)
    if method == "sequential":
        assert abs(float(hmm.log_likelihood(model, ys, method=method)) - total) < 1e-6 * abs(total)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("states", [3, 16])
def test_states_that_never_change_are_not_forgotten(states, method):
    """Each state is a hypothesis: the first half of the series is 10,000 nats against the one that wins in the end."""
    locs = np.linspace(-1, 1, states)
    ys = np.concatenate([np.full(50, -10.0), np.full(60, 10.0)]) * 10
    eye = np.eye(states, dtype=np.float32)
    initial = np.full(states, 1 / states, np.float32)
    model = HiddenMarkov(initial, eye, Normal(jnp.asarray(locs, jnp.float32), jnp.float32(1)))
    sums = scipy.stats.norm.logpdf(ys[:, None], locs.astype(np.float32), 1).sum(0)
    total = scipy.special.logsumexp(sums - np.log(states))
    found = hmm.smooth(model, ys.astype(np.float32), method=method)
    assert abs(float(found.log_likelihood) - total) < 1e-5 * abs(total)
    np.testing.assert_allclose(found.probabilities, np.broadcast_to(np.eye(states)[-1], (110, states)), atol=1e-3)
    if states == 3:
        assert hmm.viterbi(model, ys.astype(np.float32), method=method).states.tolist() == [2] * 110


def underflow(kind):
    """Models of four states, and scores by hand: what underflows in float32 is all that is left in the end."""
    rng = np.random.default_rng(5)
    initial, locs = rng.dirichlet(np.ones(4)), np.array([-30.0, -10.0, 10.0, 30.0])
    ys = locs[rng.integers(4, size=12)] + rng.normal(size=12)
    if kind == "dense":  # far tails, and any state can follow
        transition = rng.dirichlet(np.ones(4), 4)
    elif kind == "one way":  # the first state is given up a few times before it turns out to have been left late
        transition = np.triu(rng.dirichlet(np.ones(4), 4))
        ys = np.array([10.0, 10.0, -30.0, -30.0, -10.0, -10.0, 10.0, 10.0, 30.0, 30.0, 30.0, 30.0])
    elif kind == "rare":  # steps of 1e-33, the only ones to where the rest of the series is
        transition = np.array([[1.0, 1.0, 1e-33, 1e-33]] * 2 + [[1e-33, 1e-33, 1.0, 1.0]] * 2)
        ys = np.where(np.arange(12) < 6, -10.0, 10.0)
        locs, ys = np.array([-10.0, -10.5, 10.0, 10.5]) / 2, ys / 2
    elif kind == "two rare":  # one after the other, the one way to the end: their product underflows
        transition = np.array(
            [[1.0, 1e-18, 0.0, 0.0], [0.0, 1.0, 1e-30, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
        )
        initial, locs = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 0.5, 3.0, 3.5])
        ys = np.where(np.arange(12) < 2, 0.0, 3.0)
    else:  # sparse, and nothing far
        transition = np.triu(rng.dirichlet(np.ones(4), 4)) + 0.1 * np.eye(4)
        locs, ys = locs / 20, np.sort(ys) / 20
    transition = transition / transition.sum(1, keepdims=True)
    return initial, transition, locs, ys


def by_logarithms(initial, transition, densities):
    """Log likelihood, filtered and smoothed log probabilities (time, K), in logarithms of float64."""
    add, times = scipy.special.logsumexp, len(densities)
    with np.errstate(divide="ignore"):
        steps, before = np.log(transition), np.log(initial) + densities[0]
    weights = [before]
    for t in range(1, times):
        weights.append(add(weights[-1][:, None] + steps, 0) + densities[t])
    after = np.zeros((times, len(initial)))
    for t in reversed(range(times - 1)):
        after[t] = add(steps + densities[t + 1] + after[t + 1], 1)
    weights = np.array(weights)
    total = add(weights[-1])
    return total, weights - add(weights, 1, keepdims=True), weights + after - total


def normal_model(initial, transition, locs):
    arrays = (jnp.asarray(x, jnp.float32) for x in (initial, transition, locs, 1.0))
    initial, transition, locs, scale = arrays
    return HiddenMarkov(initial, transition, Normal(locs, scale))


@pytest.mark.parametrize("kind", ["dense", "one way", "rare", "two rare", "sparse"])
def test_what_underflows_is_not_lost(kind):
    initial, transition, locs, ys = underflow(kind)
    total, filtered, smoothed = by_logarithms(initial, transition, scipy.stats.norm.logpdf(ys[:, None], locs, 1))
    model, values = normal_model(initial, transition, locs), jnp.asarray(ys, jnp.float32)
    found, smooth = hmm.filter(model, values), hmm.smooth(model, values)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-5)
    assert abs(float(smooth.log_likelihood) - total) < 1e-5 * abs(total)
    np.testing.assert_allclose(
        np.maximum(found.log_probabilities, -2e3), np.maximum(filtered, -2e3), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(smooth.probabilities, np.exp(smoothed), atol=2e-4)
    # What is scaled is right, and says so, unless something is lost.
    chain = chain_of(model, values, jnp.ones(values.shape, bool), False)
    right = bool(scaled.forward(chain)[1]), bool(scaled.backward(chain)[1])
    assert right[0] == (kind in ("dense", "sparse"))
    assert right[1] == right[0] or kind == "two rare"


def test_one_series_of_a_batch_that_underflows():
    initial, transition, locs, ys = underflow("one way")
    batch = np.stack([ys, np.full(12, -30.0)])
    model = normal_model(initial, transition, locs)
    found = jax.vmap(lambda ys: hmm.smooth(model, ys))(jnp.asarray(batch, jnp.float32))
    for series, value, probabilities in zip(batch, found.log_likelihood, found.probabilities, strict=True):
        total, _, smoothed = by_logarithms(initial, transition, scipy.stats.norm.logpdf(series[:, None], locs, 1))
        np.testing.assert_allclose(value, total, rtol=1e-5)
        np.testing.assert_allclose(probabilities, np.exp(smoothed), atol=2e-4)


@pytest.mark.parametrize("states", [3, 16])
def test_many_states_take_products_of_matrices(states, x64):
    """Against a recursion of products, with steps that are impossible."""
    rng = np.random.default_rng(2)
    transition = rng.dirichlet(np.ones(states), states) * (rng.uniform(size=(states, states)) < 0.5) + np.eye(states)
    transition /= transition.sum(1, keepdims=True)
    initial, ys, locs = rng.dirichlet(np.ones(states)), rng.normal(size=40) * 3, rng.normal(size=states) * 3
    model = HiddenMarkov(initial, transition, Normal(jnp.asarray(locs), 1.0))
    total = enumeration.forward(initial, transition, scipy.stats.norm.logpdf(ys[:, None], locs, 1))
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), total, rtol=1e-12)
    # The expected counts are those of the pairs, one at a time.
    gradient = jax.grad(lambda model: hmm.log_likelihood(model, ys))(model).transition
    counts = jnp.sum(jnp.exp(hmm.pairwise(model, ys)), 0)
    np.testing.assert_allclose(gradient * transition, counts, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("varying", [False, True])
def test_gradients_are_those_of_differences(method, varying, x64):
    """Of the likelihood by enumeration; impossible steps have none."""
    model, ys, (initial, transition, _) = make(varying=varying, gap=True)
    values, eps = np.asarray(ys), 1e-6

    def likelihood(initial, transition, locs):
        densities = scipy.stats.norm.pdf(np.nan_to_num(values)[:, None], locs, SCALES)
        densities[np.isnan(values)] = 1
        return np.log(enumeration.weights(initial, transition, densities)[1].sum())

    found = jax.grad(lambda model: hmm.log_likelihood(model, ys, method=method))(model)
    arrays = [initial, transition, LOCS]
    for place, gradient in enumerate((found.initial, found.transition, found.emission.loc)):
        expected = np.zeros_like(arrays[place])
        for index in np.ndindex(expected.shape):
            if place == 2 or arrays[place][index] > 0:
                ends = []
                for sign in (1, -1):
                    moved = [array.copy() for array in arrays]
                    moved[place][index] += sign * eps
                    ends.append(likelihood(*moved))
                expected[index] = (ends[0] - ends[1]) / (2 * eps)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives(x64):
    model, ys, _ = make()

    def likelihood(shift):
        emission = Normal(model.emission.loc + shift, model.emission.scale)
        return hmm.log_likelihood(dataclasses.replace(model, emission=emission), ys)

    eps = 1e-5
    slope = jax.grad(likelihood)
    expected = (slope(eps) - slope(-eps)) / (2 * eps)
    np.testing.assert_allclose(jax.grad(slope)(0.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(slope)(0.0), expected, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_impossible_observations(method):
    """The likelihood is zero, states have no law, and no gradient is NaN."""
    eye, ys = jnp.eye(2, dtype=jnp.float32), jnp.array([0, 1, 1])
    model = HiddenMarkov(jnp.array([1.0, 0.0]), eye, Categorical(jnp.array([[1.0, 0.0], [0.0, 1.0]])))
    assert hmm.log_likelihood(model, ys, method=method) == -jnp.inf
    found = hmm.smooth(model, ys, method=method)
    assert found.log_likelihood == -jnp.inf
    assert (found.log_probabilities == -jnp.inf).all()
    assert hmm.viterbi(model, ys, method=method).log_probability == -jnp.inf
    assert hmm.filter(model, ys, method=method).log_likelihoods.tolist() == [0.0, -jnp.inf, -jnp.inf]
    for function in (
        lambda model: hmm.log_likelihood(model, ys, method=method),
        lambda model: hmm.filter(model, ys[:1], method=method).log_probabilities[0, 0],
    ):
        gradient = jax.grad(function)(model)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_filter_are_finite(method):
    model, ys, _ = make(gap=True, dtype=np.float32)
    for function in (
        lambda model: hmm.filter(model, ys, method=method).log_likelihood,
        lambda model: hmm.smooth(model, ys, method=method).probabilities[2, 1],
    ):
        gradient = jax.grad(function)(model)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    direct = jax.grad(lambda model: hmm.log_likelihood(model, ys, method=method))(model)
    through = jax.grad(lambda model: hmm.filter(model, ys, method=method).log_likelihood)(model)
    for one, other in zip(jax.tree.leaves(direct), jax.tree.leaves(through), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_low_precision_is_summed_in_float32():
    model, ys, _ = make(dtype=np.float32)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    found = hmm.filter(low, ys.astype(jnp.bfloat16))
    assert found.log_probabilities.dtype == found.log_likelihood.dtype == jnp.bfloat16
    back = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    exact = hmm.filter(back, ys.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(found.log_likelihoods, exact.log_likelihoods.astype(jnp.bfloat16))


def test_a_second_call_compiles_nothing():
    model, ys, _ = make(dtype=np.float32)
    calls = (
        lambda ys: hmm.filter(model, ys),
        lambda ys: hmm.log_likelihood(model, ys),
        lambda ys: hmm.smooth(model, ys),
        lambda ys: hmm.viterbi(model, ys),
        lambda ys: hmm.sample(jax.random.key(1), model, ys),
    )
    for call in calls:
        jax.block_until_ready(call(ys))
        with compilations() as names:
            jax.block_until_ready(call(ys))
        assert names == []
