"""The shared response model against the dense Gaussian process, and its steps against what they must not do."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

from jaxprob.inference import shared_response

TIMES = np.array([0.0, 1.0, 1.5, 4.0, 4.2, 7.0, 9.0, 9.5])


def make(dtype, subjects=2, voxels=4, latents=2, smoothness=1.5):
    rng = np.random.default_rng(1)
    model = shared_response.SharedResponse(
        loadings=rng.normal(size=(subjects, voxels, latents)).astype(dtype),
        mean=rng.normal(size=(subjects, voxels)).astype(dtype),
        noise=rng.uniform(0.2, 2, (subjects, voxels)).astype(dtype),
        lengthscales=np.array([2.0, 5.0], dtype),
        smoothness=smoothness,
    )
    responses = rng.normal(size=(subjects, len(TIMES), voxels)).astype(dtype)
    responses[0, 2, 1], responses[1, 5] = np.nan, np.nan
    return jax.tree.map(jax.numpy.asarray, model), responses


def dense(model, responses):
    """Log density of what is seen, mean (T, K) and covariance (T, K, K), from the joint normal law."""
    times = len(TIMES)
    loadings, mean, noise, scales = (
        np.asarray(x, float) for x in (model.loadings, model.mean, model.noise, model.lengthscales)
    )
    apart = np.abs(TIMES[:, None] - TIMES[None])
    prior = np.zeros((times, 2, times, 2))
    for k in range(2):
        r = np.sqrt(3) * apart / scales[k]
        prior[:, k, :, k] = np.eye(times) if model.smoothness is None else (1 + r) * np.exp(-r)
    prior = prior.reshape(2 * times, 2 * times)
    emission = np.einsum("svk,tu->stvuk", loadings, np.eye(times)).reshape(-1, 2 * times)
    values = (np.asarray(responses, float) - mean[:, None]).reshape(-1)
    variances = np.broadcast_to(noise[:, None], responses.shape).reshape(-1)
    seen = ~np.isnan(values)
    emission, values, variances = emission[seen], values[seen], variances[seen]
    covariance = emission @ prior @ emission.T + np.diag(variances)
    gain = np.linalg.solve(covariance, emission @ prior).T
    after = (prior - gain @ emission @ prior).reshape(times, 2, times, 2)
    total = scipy.stats.multivariate_normal(np.zeros(len(values)), covariance).logpdf(values)
    return total, (gain @ values).reshape(times, 2), np.einsum("titj->tij", after)


@pytest.mark.parametrize("smoothness", [1.5, None])
def test_the_posterior_is_that_of_the_dense_process(smoothness, x64):
    model, responses = make(np.float64, smoothness=smoothness)
    total, mean, covariance = dense(model, responses)
    found = shared_response.posterior(model, responses, TIMES)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-10)
    np.testing.assert_allclose(shared_response.log_likelihood(model, responses, TIMES), total, rtol=1e-10)
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-9)


def test_in_float32():
    model, responses = make(np.float32)
    total = dense(model, responses)[0]
    np.testing.assert_allclose(shared_response.log_likelihood(model, responses, TIMES), total, rtol=1e-5)


@pytest.mark.parametrize("smoothness", [1.5, None])
def test_expectation_maximization_never_falls(smoothness, x64):
    _, responses = make(np.float64)
    _, found = shared_response.fit(
        responses, TIMES, 2, smoothness=smoothness, lengthscale=3.0, num_steps=30, learning_rate=0.0
    )
    assert np.all(np.diff(found) > -1e-9)
    assert found[-1] > found[0] + 0.1


def test_lengthscales_climb(x64):
    rng = np.random.default_rng(2)
    times = np.arange(120.0)
    r = np.sqrt(3) * np.abs(times[:, None] - times[None]) / 6
    series = np.linalg.cholesky((1 + r) * np.exp(-r) + 1e-9 * np.eye(120)) @ rng.normal(size=120)
    responses = series[None, :, None] * rng.normal(size=(2, 1, 5)) + 0.3 * rng.normal(size=(2, 120, 5))
    model, found = shared_response.fit(responses, times, 1, smoothness=1.5, lengthscale=20.0, num_steps=100)
    assert found[-1] > found[0]
    slope = jax.grad(
        lambda x: shared_response.log_likelihood(dataclasses.replace(model, lengthscales=x), responses, times)
    )
    assert abs(float(slope(model.lengthscales)[0])) < 0.3  # it stands where the likelihood is flat
    # 120 times of lengthscale 6 are about 20 independent ones: the estimate is off by a fifth, twice that is rare.
    assert 6 / 1.7 < float(model.lengthscales[0]) < 6 * 1.7
    latents = shared_response.posterior(model, responses, times)
    assert abs(np.corrcoef(latents.mean[:, 0], series)[0, 1]) > 0.97
    # A subject that was there is projected onto what was found for it.
    loadings, mean, noise = shared_response.project(responses[1], latents)
    np.testing.assert_allclose(loadings, model.loadings[1], rtol=0.02, atol=0.02)
    np.testing.assert_allclose(noise, model.noise[1], rtol=0.02)
    assert mean.shape == (5,)


def test_orthonormal_loadings_explain_the_same(x64):
    model, responses = make(np.float64)
    latents = shared_response.posterior(model, responses, TIMES)
    loadings, moved = shared_response.orthonormalize(model, latents)
    np.testing.assert_allclose(np.einsum("svk,svl->kl", loadings, loadings), np.eye(2), atol=1e-12)
    np.testing.assert_allclose(
        np.einsum("svk,tk->stv", loadings, moved), np.einsum("svk,tk->stv", model.loadings, latents.mean), atol=1e-12
    )


def test_a_voxel_that_is_never_seen():
    _, responses = make(np.float32)
    responses[0, :, 3] = np.nan
    model, found = shared_response.fit(responses, TIMES, 1, lengthscale=3.0, num_steps=3)
    assert np.isfinite(found).all()
    assert np.all(np.asarray(model.loadings[0, 3]) == 0)


def test_bad_input():
    model, responses = make(np.float32)
    with pytest.raises(ValueError, match=r"shared_response.fit: latents is 9; expected an integer from 1 to 8"):
        shared_response.fit(responses, TIMES, 9)
    with pytest.raises(ValueError, match=r"shared_response.posterior: times is of shape \(3,\); expected shape \(8,\)"):
        shared_response.posterior(model, responses, TIMES[:3])
    with pytest.raises(ValueError, match=r"shared_response.posterior: responses is of .* expected 2 subjects"):
        shared_response.posterior(model, responses[:1], TIMES)
    with pytest.raises(TypeError, match="shared_response.log_likelihood: model is"):
        shared_response.log_likelihood(None, responses, TIMES)
