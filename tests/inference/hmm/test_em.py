"""EM: the likelihood never falls, and parameters move to where enumeration says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Categorical, Independent, Laplace, MultivariateNormal, Normal, Poisson
from jaxprob.inference import hmm
from jaxprob.models.state_space import HiddenMarkov, explicit_durations
from tests.inference.hmm import _enumeration as enumeration
from tests.inference.hmm.test_exact import make

TRANSITION = np.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]], np.float32)
INITIAL = np.array([0.5, 0.5, 0.0], np.float32)


def cases():
    rng = np.random.default_rng(0)
    ys = rng.normal(size=40).astype(np.float32) + np.repeat([0, 4, -3, 1], 10).astype(np.float32)
    pairs = np.stack([ys, ys + rng.normal(size=40)], 1).astype(np.float32)
    counts = rng.poisson(np.repeat([1, 8, 3, 15], 10)).astype(np.int32)
    means, eye = jnp.array([-1.0, 0.0, 2.0]), jnp.broadcast_to(jnp.eye(2), (3, 2, 2))
    both = jnp.stack([means, means + 0.5], 1)
    probs = jnp.asarray(rng.dirichlet(np.ones(4), 3), jnp.float32)
    return {
        "Normal": (Normal(means, 1.0), ys),
        "Normal entries": (Normal(both, 1.0), np.where(rng.uniform(size=pairs.shape) < 0.2, np.nan, pairs)),
        "Independent": (Independent(Normal(both, 1.0), 1), pairs),
        "Poisson": (Poisson(jnp.array([1.0, 4.0, 9.0])), counts),
        "Poisson log": (Poisson(log_rate=jnp.array([0.0, 1.0, 2.0])), counts),
        "Categorical": (Categorical(probs), counts % 4),
        "Categorical logits": (Categorical(logits=jnp.log(probs)), counts % 4),
        "MultivariateNormal": (MultivariateNormal(both, eye), np.where(pairs[:, :1] > 4.5, np.nan, pairs)),
    }


@pytest.mark.parametrize("name", cases())
def test_the_likelihood_never_falls(name):
    emission, ys = cases()[name]
    found = hmm.fit(HiddenMarkov(INITIAL, TRANSITION, emission), ys, steps=25)
    gains = np.diff(found.log_likelihoods)
    assert (gains > -1e-5 * np.abs(found.log_likelihoods[1:])).all()
    assert gains[0] > 0.1
    np.testing.assert_allclose(found.log_likelihoods[-1], hmm.log_likelihood(found.model, ys), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(found.model.transition, 1), 1, rtol=1e-5)
    assert (np.asarray(found.model.transition)[TRANSITION == 0] == 0).all()
    assert found.model.initial[2] == 0


def test_one_step_is_the_counts_of_enumeration(x64):
    model, ys, oracle = make(gap=True)
    after, total = hmm.em_step(model, ys)
    np.testing.assert_allclose(total, hmm.log_likelihood(model, ys), rtol=1e-10)
    states, pairs = enumeration.smoothed(*oracle), enumeration.pairwise(*oracle)
    np.testing.assert_allclose(after.initial, states[0], atol=1e-12)
    counts = pairs.sum(0)
    np.testing.assert_allclose(after.transition, counts / counts.sum(1, keepdims=True), atol=1e-12)
    seen = ~np.isnan(ys)
    weights, values = states[seen], np.asarray(ys)[seen]
    mean = weights.T @ values / weights.sum(0)
    np.testing.assert_allclose(after.emission.loc, mean, rtol=1e-10)
    variance = (weights * (values[:, None] - mean) ** 2).sum(0) / weights.sum(0)
    np.testing.assert_allclose(after.emission.scale, np.sqrt(variance), rtol=1e-10)


def test_a_maximum_is_where_the_gradient_vanishes(x64):
    """Of the likelihood in unconstrained parameters."""
    rng = np.random.default_rng(1)
    ys = rng.normal(size=30) + np.repeat([0, 3, 0], 10)
    model = HiddenMarkov([0.5, 0.5], [[0.8, 0.2], [0.2, 0.8]], Normal(jnp.array([0.0, 2.0]), 1.0))
    found = hmm.fit(model, ys, steps=300, tolerance=1e-9)
    assert found.converged

    def likelihood(logits, loc, log_scale):
        transition = jax.nn.softmax(logits, axis=1)
        emission = Normal(loc, jnp.exp(log_scale))
        return hmm.log_likelihood(dataclasses.replace(found.model, transition=transition, emission=emission), ys)

    emission = found.model.emission
    slopes = jax.grad(likelihood, argnums=(0, 1, 2))(
        jnp.log(found.model.transition), emission.loc, jnp.log(emission.scale)
    )
    assert all(float(jnp.max(jnp.abs(slope))) < 1e-4 for slope in slopes)


def test_several_series_are_counted_together(x64):
    """A padded batch is as its series; one series twice is as one."""
    model, ys, _ = make(gap=True)
    one = hmm.em_step(model, ys)[0]
    twice = hmm.em_step(model, jnp.stack([ys, ys]), batched=True)[0]
    padded = jnp.concatenate([jnp.stack([ys, ys]), jnp.full((2, 3), jnp.nan)], 1)
    for other in (twice, hmm.em_step(model, padded, batched=True)[0]):
        np.testing.assert_allclose(one.emission.scale, other.emission.scale, rtol=1e-12)
        np.testing.assert_allclose(one.initial, other.initial, atol=1e-12)
    np.testing.assert_allclose(one.transition, twice.transition, atol=1e-12)


def test_states_that_share_an_emission():
    """Of explicit durations: there are as many distributions as before."""
    emission, ys = cases()["Normal"]
    base = HiddenMarkov(INITIAL, TRANSITION, emission)
    model = explicit_durations(base, np.full((3, 3), 1 / 3, np.float32))
    found = hmm.fit(model, ys, steps=5)
    assert found.model.emission.batch_shape == (3,)
    assert (np.diff(found.log_likelihoods) > -1e-3).all()


def test_a_state_that_is_never_visited_keeps_its_parameters():
    ys = np.zeros(4, np.float32)
    model = HiddenMarkov(jnp.array([1.0, 0.0]), jnp.eye(2), Normal(jnp.array([0.1, 5.0]), jnp.array([1.0, 2.0])))
    found = hmm.fit(model, ys, steps=3).model
    assert found.emission.loc.tolist() == [0.0, 5.0]
    assert found.emission.scale[1] == 2
    np.testing.assert_array_equal(found.transition, np.eye(2))
    assert np.isfinite(found.emission.scale).all()
    nothing = hmm.em_step(model, ys[:0])[0]
    assert nothing.emission.loc.tolist() == pytest.approx([0.1, 5.0])


def test_an_own_m_step():
    def medians(emission, ys, weights):
        """Weighted means, as good as any number for a test."""
        return Laplace(jnp.sum(weights * ys[:, None], 0) / jnp.sum(weights, 0), emission.scale)

    _, ys = cases()["Normal"]
    model = HiddenMarkov(INITIAL, TRANSITION, Laplace(jnp.array([-1.0, 0.0, 2.0]), jnp.ones(3)))
    after = hmm.em_step(model, ys, maximize=medians)[0]
    weights = hmm.smooth(model, ys).probabilities
    np.testing.assert_allclose(after.emission.loc, weights.T @ ys / weights.sum(0), rtol=1e-4)


def test_errors():
    model = HiddenMarkov(INITIAL, TRANSITION, Laplace(jnp.zeros(3), jnp.ones(3)))
    with pytest.raises(TypeError, match="by its gradient"):
        hmm.em_step(model, np.zeros(3, np.float32))
    emission, ys = cases()["MultivariateNormal"]
    ys = ys.copy()
    ys[0, 0] = np.nan
    with pytest.raises(ValueError, match="missing in part of a vector"):
        hmm.fit(HiddenMarkov(INITIAL, TRANSITION, emission), ys)
