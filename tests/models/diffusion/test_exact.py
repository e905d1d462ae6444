"""The exact denoiser of mixtures against automatic derivatives of their densities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import diffusion
from jaxprob.models.diffusion._gaussian import PREDICTIONS, Gaussian
from jaxprob.models.diffusion._noise import White
from tests.models.diffusion import _mixture_oracles as oracles

SCALES = ("preserving", "exploding", "sub_preserving", "straight", "bayesian")


def process_of(scale="preserving", prediction="noise", schedule=None, noise=None):
    return Gaussian(schedule or diffusion.log_linear(9.0, -9.0), noise or White(), scale, prediction, "simple", 0.7)


def exact(process):
    return diffusion.gaussian_mixture_denoiser(process, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES)


@pytest.mark.parametrize("scale", SCALES)
def test_output_says_what_the_score_of_the_density_says(x64, scale):
    xs = np.random.default_rng(0).normal(size=(6, 2))
    denoisers = [(process_of(scale, prediction), exact(process_of(scale, prediction))) for prediction in PREDICTIONS]

    @jax.jit
    def all_of_them(x, t):
        outputs = [(process, denoiser(x, t)) for process, denoiser in denoisers]
        return [(process.clean(out, x, t), process.noise_of(out, x, t)) for process, out in outputs]

    for x, t in itertools.product(xs, (0.1, 0.4, 0.5, 0.8)):
        alpha, sigma = oracles.scales(scale, 9 - 18 * t)
        score = np.asarray(oracles.score(x, alpha, sigma))
        for clean, noise in all_of_them(x, t):
            np.testing.assert_allclose(noise, -sigma * score, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(clean, (x + sigma**2 * score) / alpha, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_keeps_its_digits_at_both_ends(prediction):
    # With log ratios of 15 and -15 a denoiser that takes the clean from the noise, or back, loses half of them.
    process = process_of("preserving", prediction, diffusion.cosine())
    denoiser = exact(process)
    for t, level in ((0.0, 15.0), (1.0, -15.0)):
        alpha, sigma = oracles.scales("preserving", level)
        x = np.array([0.3, -0.2], np.float32)
        with jax.enable_x64(True):
            score = np.asarray(oracles.score(x.astype(float), alpha, sigma))
        clean, noise = (x + sigma**2 * score) / alpha, -sigma * score
        output = denoiser(jnp.asarray(x), jnp.float32(t))
        assert output.dtype == jnp.float32
        sd = sigma * 0.7 / np.sqrt(0.49 * alpha**2 + sigma**2)
        expected = {
            "noise": noise,
            "clean": clean,
            "v": alpha * noise - sigma * clean,
            "score": score,
            "velocity": noise - clean,
            "preconditioned": (clean - 0.49 * alpha / (0.49 * alpha**2 + sigma**2) * x) / sd,
        }[prediction]
        # The last divides what is left of x_0 by sigma = 5e-4 at time 0, and float32 leaves 1e-4 of it there.
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=5e-4 if prediction == "preconditioned" else 1e-6)


def test_points_and_empty_components():
    process = process_of("preserving", "clean")
    denoiser = diffusion.gaussian_mixture_denoiser(process, [0.5, 0.5, 0.0], [[-1.0], [1.0], [0.2]], [[0.0]])
    for x, t in ((0.2, 0.5), (-0.4, 0.3)):
        alpha, sigma = oracles.scales("preserving", 9 - 18 * t)
        # E[x_0 | x_t] of a fair sign is a hyperbolic tangent.
        np.testing.assert_allclose(denoiser(jnp.array([x]), t), np.tanh(alpha * np.array([x]) / sigma**2), rtol=1e-5)
    assert np.isfinite(denoiser(jnp.array([1e4]), 0.0)).all()


def test_one_covariance_serves_all_and_the_denoiser_is_a_pytree():
    process = process_of()
    one = diffusion.gaussian_mixture_denoiser(process, [0.4, 0.6], oracles.MEANS, oracles.COVARIANCES[0])
    two = diffusion.gaussian_mixture_denoiser(process, [0.4, 0.6], oracles.MEANS, oracles.COVARIANCES[[0, 0]])
    xs = jnp.asarray(oracles.MEANS, jnp.float32)
    batched = jax.jit(lambda denoiser, xs: jax.vmap(lambda x: denoiser(x, 0.5, None))(xs))
    np.testing.assert_allclose(batched(one, xs), jnp.stack([two(x, 0.5) for x in xs]), rtol=1e-5)
    gradient = jax.grad(
        lambda means: jnp.sum(diffusion.gaussian_mixture_denoiser(process, [0.4, 0.6], means, jnp.eye(2))(xs[0], 0.5))
    )(xs)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [[1.0]], "weights is .*; expected probabilities"),
        ([1.5, -0.5], [[0.0], [1.0]], [[1.0]], "weights is .*; expected probabilities"),
        ([1.0], [0.0], [[1.0]], "means is of shape"),
        ([1.0], [[0.0], [1.0]], [[1.0]], "means is of shape"),
        ([1.0], [[0.0, 1.0]], [[1.0]], "covariances is of shape"),
        ([1.0], [[0.0, 1.0]], [[1.0, 0.5], [-0.5, 1.0]], "symmetric"),
        ([1.0], [[0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], "negative eigenvalues"),
    ],
)
def test_what_is_no_mixture_is_told(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        diffusion.gaussian_mixture_denoiser(process_of(), weights, means, covariances)


def test_other_processes_are_told():
    with pytest.raises(TypeError, match="process is"):
        diffusion.gaussian_mixture_denoiser(diffusion.masked(3), [1.0], [[0.0]], [[1.0]])
