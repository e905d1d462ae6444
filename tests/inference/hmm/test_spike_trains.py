"""Spike trains with weights that switch: densities against loops in NumPy, and what a fit by gradients finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxprob.distributions import Normal, Poisson
from jaxprob.inference import hmm
from jaxprob.models.state_space import FreeWeights, HiddenMarkov, OneHotWeights, spike_trains

INITIAL, TRANSITION = np.array([0.6, 0.4]), np.array([[0.9, 0.1], [0.2, 0.8]])
ADAM, SLOW = optax.adam(0.05), optax.adam(0.005)


def log_prior(parameters):
    return parameters.log_prior()


def relax(key, parameters):
    return parameters.relaxed(key)


def one_hot(rng, states=2, neurons=3):
    square = (neurons, neurons)
    strength = rng.normal(size=(states, *square))
    return OneHotWeights(rng.normal(size=(states, *square, 3)), rng.normal(size=(*square, 3)), strength)


def rates(bias, weights, counts, decay, lags):
    """(T, K, N), one number at a time."""
    times, (states, neurons) = len(counts), bias.shape
    found = np.zeros((times, states, neurons))
    for t in range(times):
        past = sum(decay ** (age - 1) * counts[t - age] for age in range(1, lags + 1) if t >= age)
        found[t] = np.log1p(np.exp(bias + weights @ (past + np.zeros(neurons))))
    return found


def test_the_density_is_that_of_a_loop(x64, rng):
    counts, bias = rng.poisson(1.0, size=(25, 3)), rng.normal(size=(2, 3))
    connections = one_hot(rng)
    exp = np.exp(np.asarray(connections.logits) / 0.5)
    pattern = exp / exp.sum(-1, keepdims=True)
    weights = (pattern[..., 2] - pattern[..., 0]) * np.log1p(np.exp(np.asarray(connections.strength)))
    np.testing.assert_allclose(connections.weights(), weights, rtol=1e-12)
    decay = np.array([0.5, 0.0, 0.8])
    model = spike_trains(INITIAL, TRANSITION, bias, connections, decay=decay, lags=4)
    scores = stats.poisson.logpmf(counts[:, None], rates(bias, weights, counts, decay, 4)).sum(-1)
    total, alpha = 0.0, INITIAL
    for score in scores:
        joint = alpha * np.exp(score)
        total += np.log(joint.sum())
        alpha = joint / joint.sum() @ TRANSITION
    np.testing.assert_allclose(hmm.log_likelihood(model, counts), total, rtol=1e-10)


def test_priors(x64, rng):
    """Up to a constant: the differences of two."""

    def reference(connections):
        own, shared = (
            np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            for logits in (np.asarray(connections.logits), np.asarray(connections.prior_logits))
        )
        strength = np.log1p(np.exp(np.asarray(connections.strength)))
        divergence = stats.entropy(own, np.broadcast_to(shared, own.shape), axis=-1).sum()
        return -divergence + stats.halfnorm.logpdf(strength).sum()

    one, two = one_hot(rng), one_hot(rng)
    np.testing.assert_allclose(one.log_prior() - two.log_prior(), reference(one) - reference(two), rtol=1e-10)
    values, shared = rng.normal(size=(2, 2, 3, 3)), rng.normal(size=(2, 3, 3))
    found = [FreeWeights(v, s, 0.3, 2.0).log_prior() for v, s in zip(values, shared, strict=True)]
    expected = [
        stats.norm.logpdf(v, s, 0.3).sum() + stats.norm.logpdf(s, 0, 2.0).sum()
        for v, s in zip(values, shared, strict=True)
    ]
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1], rtol=1e-10)
    assert FreeWeights(values[0]).log_prior() == 0


def test_relaxed_patterns_are_draws_of_the_categorical(rng):
    """Gumbel-max: 20,000 draws of one connection; z-scores below 4.5, false alarm 2e-5."""
    logits = jnp.array([0.5, -1.0, 0.2])
    connections = OneHotWeights(
        jnp.broadcast_to(logits, (20_000, 1, 1, 3)), jnp.zeros((1, 1, 3)), jnp.zeros((20_000, 1, 1)), temperature=0.01
    )
    weights = np.asarray(connections.relaxed(jax.random.key(0)).weights()).ravel() / np.log(2)
    p = np.asarray(jax.nn.softmax(logits))
    for value, share in zip((-1, 0, 1), p, strict=True):
        count = (np.abs(weights - value) < 0.5).sum()
        assert abs(count - 20_000 * share) < 4.5 * np.sqrt(20_000 * share * (1 - share))
    assert (np.abs(weights - np.round(weights)) < 0.01).mean() > 0.95


def test_what_a_model_draws_has_its_rates():
    """20,000 times of one state, whose spikes excite the first neuron; z-scores below 5 of sums against rates."""
    weights = jnp.array([[[0.2, 0.5], [0.0, -0.4]]])
    model = spike_trains([1.0], [[1.0]], jnp.array([[-0.5, 0.0]]), FreeWeights(weights), lags=5)
    counts = np.asarray(model.sample(jax.random.key(1), 20_000)[1])
    expected = rates(np.array([[-0.5, 0.0]]), np.asarray(weights), counts, 0.5, 5)[:, 0]
    assert (np.abs((counts - expected).sum(0)) < 5 * np.sqrt(expected.sum(0))).all()
    # A martingale difference times what is known before is one, too.
    noise = (counts[1:] - expected[1:]) * counts[:-1]
    assert (np.abs(noise.sum(0)) < 5 * np.sqrt((expected[1:] * counts[:-1] ** 2).sum(0))).all()


def test_rates_that_underflow_have_finite_gradients():
    counts = jnp.array([[0], [3], [0]])

    def density(bias):
        return hmm.log_likelihood(spike_trains([1.0], [[1.0]], bias, FreeWeights(jnp.zeros((1, 1, 1)))), counts)

    np.testing.assert_allclose(density(jnp.array([[-150.0]])), 3 * -150 - np.log(6), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(density)(jnp.array([[-150.0]])), [[3.0]], rtol=1e-5)


@pytest.mark.slow
def test_gradients_reach_the_maximum_that_closed_forms_reach(rng):
    ys = jnp.asarray(rng.poisson(np.repeat([2, 9, 2], 20)), jnp.int32)
    model = HiddenMarkov(INITIAL, TRANSITION, Poisson(log_rate=jnp.array([0.5, 1.5])))
    closed = hmm.fit(model, ys, steps=100)
    found = hmm.fit_by_gradient(model, ys, ADAM, steps=100)
    np.testing.assert_allclose(found.log_likelihoods[-1], closed.log_likelihoods[-1], atol=1e-3)
    np.testing.assert_allclose(found.model.emission.log_rate, closed.model.emission.log_rate, atol=5e-3)
    np.testing.assert_allclose(found.model.transition, closed.model.transition, atol=5e-3)
    np.testing.assert_allclose(found.log_likelihoods[-1], hmm.log_likelihood(found.model, ys), rtol=1e-5)
    np.testing.assert_allclose(found.log_likelihoods[0], hmm.log_likelihood(model, ys), rtol=1e-5)
    both = hmm.fit_by_gradient(model, jnp.stack([ys, ys]), ADAM, steps=100, batched=True)
    np.testing.assert_allclose(both.log_likelihoods[-1], 2 * closed.log_likelihoods[-1], atol=1e-2)
    assert bool(found.converged)


def law(parameters, inputs, previous):
    return Normal(jnp.expand_dims(parameters, 0), 1.0)


def prior_of_mean(parameters):
    return -0.5 * (parameters - 3) ** 2 / 0.5**2


def test_a_prior_gives_the_posterior_mode_and_missing_is_not_seen():
    """One state: the mean of three numbers with unit noise under N(3, 0.5^2)."""
    ys = jnp.array([0.0, jnp.nan, 1.0, 0.5])
    model = HiddenMarkov([1.0], [[1.0]], jax.tree_util.Partial(law, jnp.float32(0)))
    found = hmm.fit_by_gradient(model, ys, ADAM, steps=60, log_prior=prior_of_mean)
    np.testing.assert_allclose(found.model.emission.args[0], (1.5 + 3 / 0.25) / (3 + 1 / 0.25), atol=2e-3)


def test_small_steps_never_lower_the_penalised_likelihood():
    rng = np.random.default_rng(3)
    counts = jnp.asarray(rng.poisson(np.repeat([0.5, 3, 0.5], 30)[:, None] * np.ones(3)), jnp.int32)
    connections = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one_hot(rng))
    model = spike_trains(INITIAL, TRANSITION, jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), connections)
    found = hmm.fit_by_gradient(model, counts, SLOW, steps=30, log_prior=log_prior)
    assert (np.diff(found.log_likelihoods) > -1e-3).all()
    assert found.log_likelihoods[-1] > found.log_likelihoods[0] + 5
    after = found.model.emission.args[0]
    np.testing.assert_array_equal(after.decay, model.emission.args[0].decay)
    np.testing.assert_array_equal(after.connections.temperature, 0.5)
    total = hmm.log_likelihood(found.model, counts) + after.log_prior()
    np.testing.assert_allclose(found.log_likelihoods[-1], total, rtol=1e-5)


def test_errors():
    bias, free = jnp.zeros((2, 3)), FreeWeights(jnp.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"connections is of shape \(2, 2, 2\)"):
        spike_trains(INITIAL, TRANSITION, bias, FreeWeights(jnp.zeros((2, 2, 2))))
    with pytest.raises(TypeError, match="connections"):
        spike_trains(INITIAL, TRANSITION, bias, jnp.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="decay"):
        spike_trains(INITIAL, TRANSITION, bias, free, decay=1.0)
    with pytest.raises(ValueError, match="lags is 0"):
        spike_trains(INITIAL, TRANSITION, bias, free, lags=0)
    model = spike_trains(INITIAL, TRANSITION, bias, free)
    with pytest.raises(ValueError, match="expected a random key beside"):
        hmm.fit_by_gradient(model, jnp.zeros((4, 3)), ADAM, relax=relax)
    with pytest.raises(ValueError, match="updates is 0"):
        hmm.fit_by_gradient(model, jnp.zeros((4, 3)), ADAM, updates=0)
