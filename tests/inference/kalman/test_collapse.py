"""A series reduced to as many numbers as there are states: the same states and likelihood as of the whole."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._dense import condition
from tests.inference.kalman._models import random


def wide(rng, dtype, rank=3, m=12):
    """Three states; what is observed moves with `rank` of them."""
    entries = random(rng, n=3, m=m) | {"emission_covariance": rng.uniform(0.2, 3, m)}
    entries["emission"] = entries["emission"] * (np.arange(3) < rank)
    return LinearGaussian(**{name: np.asarray(x, dtype) for name, x in entries.items()})


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("rank", [3, 2])
def test_nothing_is_lost(gaps, rank, x64):
    rng = np.random.default_rng(3)
    model, ys = wide(rng, np.float64, rank), rng.normal(size=(7, 12))
    if gaps:
        ys[2], ys[4, 1:], ys[5, :7] = np.nan, np.nan, np.nan
    expected, mean, covariance = condition(model, ys)
    found = kalman.collapse(model, ys)
    smoothed = kalman.smooth(found.model, found.ys)
    np.testing.assert_allclose(smoothed.log_likelihood + found.log_constants.sum(), expected, rtol=1e-10)
    np.testing.assert_allclose(smoothed.mean, mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(smoothed.covariance, np.einsum("titj->tij", covariance), rtol=1e-8, atol=1e-9)
    each = kalman.filter(model, ys).log_likelihoods
    np.testing.assert_allclose(
        np.cumsum(found.log_constants) + kalman.filter(found.model, found.ys).log_likelihoods, each, rtol=1e-8
    )


def test_in_float32_and_with_what_varies():
    rng = np.random.default_rng(4)
    model, ys = wide(rng, np.float32), rng.normal(size=(7, 12)).astype(np.float32)
    varying = LinearGaussian(
        model.initial_mean,
        model.initial_covariance,
        model.dynamics,
        model.dynamics_covariance,
        np.asarray(model.emission) * np.linspace(0.5, 2, 7, dtype=np.float32)[:, None, None],
        model.emission_covariance,
        time_varying=("emission",),
    )
    for one in (model, varying):
        found = kalman.collapse(one, ys)
        assert found.ys.dtype == np.float32
        total = kalman.log_likelihood(found.model, found.ys) + found.log_constants.sum()
        np.testing.assert_allclose(total, condition(one, ys)[0], rtol=1e-5)


def test_gradient(x64):
    rng = np.random.default_rng(5)
    model, ys = wide(rng, np.float64), rng.normal(size=(5, 12))
    ys[1, 3] = np.nan

    def direct(emission):
        return kalman.log_likelihood(dataclasses.replace(model, emission=emission), ys)

    def reduced(emission):
        found = kalman.collapse(dataclasses.replace(model, emission=emission), ys)
        return kalman.log_likelihood(found.model, found.ys) + found.log_constants.sum()

    np.testing.assert_allclose(
        jax.grad(reduced)(model.emission), jax.grad(direct)(model.emission), rtol=1e-7, atol=1e-8
    )


def test_bad_input():
    rng = np.random.default_rng(0)
    model = LinearGaussian(**{name: np.float32(x) for name, x in random(rng).items()})
    with pytest.raises(
        ValueError, match=r"kalman.collapse: emission_covariance is of shape \(2, 2\); expected variances"
    ):
        kalman.collapse(model, np.zeros((3, 2)))
    noiseless = LinearGaussian(np.zeros(1), np.eye(1), np.eye(1), np.eye(1), np.ones((2, 1)), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="kalman.collapse: emission_covariance is zero somewhere"):
        kalman.collapse(noiseless, np.zeros((3, 2)))
