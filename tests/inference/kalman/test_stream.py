"""Filters one observation at a time: those of a whole series, for linear models and others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Independent, Normal, Poisson
from jaxprob.inference import kalman
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.kalman._models import make
from tests.inference.kalman.test_models import NILE, trend


def follows_the_filter(model, ys, tolerance, **options):
    found, state = kalman.filter(model, ys, **options), kalman.init(model)
    step = jax.jit(lambda model, state, y: kalman.step(model, state, y, **options))
    for t, y in enumerate(ys):
        state = step(model, state, y)
        np.testing.assert_allclose(state.mean, found.mean[t], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(state.factor, found.factor[t], rtol=10 * tolerance, atol=10 * tolerance)
        likelihood = found.log_likelihoods[t]
        np.testing.assert_allclose(state.log_likelihood, likelihood, rtol=tolerance, atol=tolerance)
    assert state.time == len(ys)
    assert state.mean.dtype == found.mean.dtype


def test_a_stream_is_the_filter():
    model, ys = make("random", gaps=True, dtype=np.float32)
    follows_the_filter(model, ys, 1e-5)


def test_a_stream_from_a_diffuse_state_is_the_filter(x64):
    """In float64: a slope near 8 is the difference of levels near 1,000, of which float32 has no more than 1e-5."""
    ys = np.asarray(NILE[:9, None], float)
    follows_the_filter(trend(dtype=np.float64), ys, 1e-9)


def pendulum(inputs):
    """Angle and speed with a push at each time, its angle seen through a sine with noise that grows in time."""

    def moved(x, t, push):
        return Independent(Normal(jnp.stack([x[0] + 0.1 * x[1], x[1] - jnp.sin(x[0]) + push]), jnp.array([0.1, 0.2])))

    def seen(x, t, push):
        return Independent(Normal(jnp.expand_dims(jnp.sin(x[0]), 0), 0.1 * (1 + jnp.asarray(t).astype(jnp.float32))))

    return StateSpaceModel(Independent(Normal(jnp.array([0.3, 0.0]), 0.5)), moved, seen, jnp.asarray(inputs))


@pytest.mark.parametrize("options", [{}, {"linearize": "cubature", "iterations": 2}])
def test_one_that_is_not_linear_has_times_inputs_and_gaps(options):
    ys = np.array([[0.2], [0.5], [np.nan], [0.9], [-0.3]], np.float32)
    model = pendulum(np.array([0.0, 0.5, -0.5, 1.0, 0.0], np.float32))
    follows_the_filter(model, ys, 1e-5, **options)


def test_counts_by_their_density(x64):
    model = StateSpaceModel(Normal(0.5, 1.0), lambda x, t: Normal(0.9 * x, 0.3), lambda x, t: Poisson(jnp.exp(x)))
    follows_the_filter(model, np.array([2.0, np.nan, 0.0, 7.0]), 1e-9, linearize="laplace")


def test_before_the_first_observation_it_has_the_law_of_the_model():
    state = kalman.init(pendulum(np.zeros(3, np.float32)))
    np.testing.assert_allclose(state.mean, [0.3, 0])
    np.testing.assert_allclose(state.factor @ state.factor.T, 0.25 * np.eye(2), rtol=1e-6)
    assert float(state.log_likelihood) == int(state.time) == 0


def test_bad_input():
    model = pendulum(np.zeros(3, np.float32))
    state = kalman.init(model)
    for y, options, message in (
        (np.zeros(2), {}, r"kalman.step: ys is of shape \(1, 2\); expected shape \(time, 1\)"),
        (0.1, {"linearize": "taylor"}, "kalman.step: linearize is 'taylor'"),
        (0.1, {"iterations": 0}, "kalman.step: iterations is 0; expected a number of linearisations, at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            kalman.step(model, state, y, **options)
    with pytest.raises(TypeError, match="kalman.init: model is 3; expected a LinearGaussian or a StateSpaceModel"):
        kalman.init(3)
