"""Classification of streams: the same model's filter, Monte Carlo, long streams, digits whose labels change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian


def stream(seed, switching, times=3000, width=100):
    """Digits in random features of unit mean square; the labels are permuted anew every 300 steps where `switching`."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = digits.data / 16
    rng = np.random.default_rng(seed)
    weights, offset = rng.normal(size=(64, width)), 0.1 * rng.normal(size=width)
    index = rng.integers(0, len(images), times)
    features = np.maximum(0.5 * (images[index] - images.mean(0)) @ weights + offset, 0)
    features /= np.sqrt((features**2).sum(1).mean())
    labels = digits.target[index]
    if switching:
        labels = np.concatenate([rng.permutation(10)[labels[t : t + 300]] for t in range(0, times, 300)])
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels)


def accuracy(found, labels):
    return float(np.mean(np.argmax(found.log_probabilities, -1) == np.asarray(labels)))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_with_fixed_forgetting_it_is_the_kalman_filter_of_the_model(x64, rng, gamma):
    """With gamma = 1 recursive least squares. A label in eight is missing."""
    phi, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    labels[::8] = -1
    classifier = kalman.OnlineClassifier(
        3, 2, forgetting=gamma, forgetting_step=0.0, prior_variance=1.5, noise_variance=0.2
    )
    state, found = classifier.filter(phi, labels)
    one = kalman.ClassifierState(*jax.tree.map(jnp.copy, classifier.init()))
    for t in range(40):
        one, prediction = classifier.step(one, phi[t], labels[t])
        np.testing.assert_allclose(prediction.log_probabilities, found.log_probabilities[t], rtol=1e-12)
    for k in range(2):
        model = LinearGaussian(
            np.zeros(3),
            1.5 * np.eye(3),
            gamma * np.eye(3),
            (1 - gamma**2) * 1.5 * np.eye(3),
            phi[:, None],
            np.array([0.2]),
            time_varying=("emission",),
        )
        expected = kalman.filter(model, np.where(labels < 0, np.nan, (labels == k) - 0.5))
        np.testing.assert_allclose(one.mean[:, k], expected.mean[-1], rtol=1e-10)
        np.testing.assert_allclose(one.covariance, expected.covariance[-1], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(state.mean[:, k], expected.mean[-1], rtol=1e-10)
    if gamma == 1:
        seen = labels >= 0
        precision = np.eye(3) / 1.5 + phi[seen].T @ phi[seen] / 0.2
        target = (labels[seen, None] == np.arange(2)) - 0.5
        np.testing.assert_allclose(state.mean, np.linalg.solve(precision, phi[seen].T @ target / 0.2), rtol=1e-9)


def test_probabilities_are_those_of_monte_carlo(x64, rng):
    """Within 0.03 of a softmax averaged over 50,000 draws of the weights, whose own error is below 0.002."""
    phi, labels = rng.normal(size=(30, 4)) / 2, rng.integers(0, 3, 30)
    classifier = kalman.OnlineClassifier(4, 3, forgetting=0.95, forgetting_step=0.0, calibration_step=0.0)
    state = classifier.init()
    worst, widest = 0.0, 0.0
    for t in range(30):
        after, found = classifier.step(state, phi[t], labels[t])
        covariance = 0.95**2 * np.asarray(state.covariance) + (1 - 0.95**2) * np.eye(4)
        draws = rng.multivariate_normal(np.zeros(4), covariance, (50_000, 3))
        logits = 5 * (0.95 * phi[t] @ np.asarray(state.mean) + draws @ phi[t])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        expected = (weights / weights.sum(1, keepdims=True)).mean(0)
        worst = max(worst, np.abs(np.exp(found.log_probabilities) - expected).max())
        sure = np.exp(5 * 0.95 * phi[t] @ np.asarray(state.mean))
        widest = max(widest, np.abs(sure / sure.sum() - expected).max())
        state = after
    assert worst < 0.03
    assert widest > 0.1  # what ignoring the variance would give


def test_forgetting_and_calibration_follow_the_slope_of_the_log_probability(x64, rng):
    phi, labels = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    classifier = kalman.OnlineClassifier(3, 2, forgetting=0.97, forgetting_step=0.3, calibration_step=0.1, memory=0.5)
    state, _ = classifier.filter(phi[:19], labels[:19])

    def log_probability(shift, calibration):
        left = np.exp(-float(state.rate) * np.exp(shift))
        variance = phi[19] @ (left**2 * np.asarray(state.covariance) + (1 - left**2) * np.eye(3)) @ phi[19]
        a = np.exp(calibration)
        logits = a * left * phi[19] @ np.asarray(state.mean) / np.sqrt(1 + np.pi / 8 * 2 * a**2 * variance)
        return logits[labels[19]] - np.log(np.exp(logits).sum())

    h, a = 1e-5, float(state.log_calibration)
    slope = (log_probability(h, a) - log_probability(-h, a)) / (2 * h)
    of_calibration = (log_probability(0, a + h) - log_probability(0, a - h)) / (2 * h)
    after, found = classifier.step(state, phi[19], labels[19])
    square = 0.5 * state.square + 0.5 * slope**2
    np.testing.assert_allclose(found.log_probability, log_probability(0, a), rtol=1e-10)
    np.testing.assert_allclose(after.square, square, rtol=1e-6)
    np.testing.assert_allclose(np.log(after.rate / state.rate), 0.3 * slope / np.sqrt(square), rtol=1e-6)
    np.testing.assert_allclose(after.log_calibration, a + 0.1 * of_calibration, rtol=1e-8)


@pytest.mark.parametrize(("gamma", "step"), [(1.0, 0.0), (0.9999, 0.0), (0.999, 1.0)])
def test_the_covariance_stays_positive_after_a_hundred_thousand_steps(gamma, step):
    """float32, noise of 1e-6, features over four orders of magnitude, one never there, two the same."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(100_000, 12)) * np.logspace(0, -4, 12) / 3
    phi[:, 5], phi[:, 6] = 0, phi[:, 7]
    classifier = kalman.OnlineClassifier(12, 3, forgetting=gamma, forgetting_step=step, noise_variance=1e-6)
    state, found = classifier.filter(phi.astype(np.float32), rng.integers(0, 3, 100_000))
    covariance = np.asarray(state.covariance, np.float64)
    np.testing.assert_array_equal(covariance, covariance.T)
    deviation = np.sqrt(np.diag(covariance))
    assert np.linalg.eigvalsh(covariance / np.outer(deviation, deviation)).min() > -1e-6
    assert np.isfinite(found.log_probability).all()
    np.testing.assert_allclose(covariance[5, 5], 1, rtol=1e-3)


def test_it_follows_labels_that_change_and_loses_nothing_where_they_do_not():
    """Defaults, which were chosen on seeds 100 to 102; benchmarks/online_classifier.py has more seeds."""
    adaptive = kalman.OnlineClassifier(100, 10)
    never = kalman.OnlineClassifier(100, 10, forgetting=1.0)
    phi, labels = stream(0, False)
    still = accuracy(adaptive.filter(phi, labels)[1], labels)
    assert still > accuracy(never.filter(phi, labels)[1], labels) - 0.02
    assert still > 0.9
    phi, labels = stream(0, True)
    found = adaptive.filter(phi, labels)[1]
    assert accuracy(found, labels) > 2 * accuracy(never.filter(phi, labels)[1], labels)
    assert accuracy(found, labels) > 0.75
    assert (found.forgetting[305:315] < 0.95).any()  # just after a change
    assert (found.forgetting[550:600] > 0.99).mean() > 0.8


def test_going_on_dtypes_and_errors():
    phi, labels = jnp.ones((4, 2), jnp.bfloat16), jnp.array([0, 1, -1, 1])
    classifier = kalman.OnlineClassifier(2, 2)
    whole, found = classifier.filter(phi, labels)
    assert found.log_probability.dtype == jnp.float32
    assert found.log_probability[2] == 0
    half, _ = classifier.filter(phi[:2], labels[:2])
    again, _ = classifier.filter(phi[2:], labels[2:], half)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert classifier.filter(phi[:0], labels[:0])[1].log_probabilities.shape == (0, 2)
    with pytest.raises(ValueError, match="labels is from 0 to 2"):
        classifier.filter(phi, jnp.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="rows of 2 numbers"):
        classifier.filter(jnp.ones((4, 3)), labels)
    with pytest.raises(ValueError, match="integers of shape"):
        classifier.filter(phi, jnp.ones(4))
    with pytest.raises(ValueError, match="forgetting is 0"):
        kalman.OnlineClassifier(2, 2, forgetting=0.0)
    with pytest.raises(ValueError, match="classes is 0"):
        kalman.OnlineClassifier(2, 0)
