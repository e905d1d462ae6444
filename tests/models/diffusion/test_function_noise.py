"""Noise that is a function, against covariance matrices in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

TIMES = np.array([0.0, 0.1, 0.15, 0.7, 2.0, 5.0])
OU = np.exp(-np.abs(TIMES[:, None] - TIMES) / 0.8)
RBF = 0.95 * np.exp(-0.5 * ((TIMES[:, None] - TIMES) / 0.8) ** 2) + 0.05 * np.eye(6)
LAWS = [
    pytest.param(lambda: diffusion.ornstein_uhlenbeck_noise(jnp.asarray(TIMES), 0.8), OU, id="ou"),
    pytest.param(lambda: diffusion.gaussian_process_noise(jnp.asarray(TIMES), 0.8, nugget=0.05), RBF, id="rbf"),
]


@pytest.mark.parametrize(("make", "covariance"), LAWS)
def test_the_factor_is_that_of_the_covariance(make, covariance, x64):
    noise = make()
    factor = np.asarray(jax.vmap(noise.shaped, out_axes=1)(jnp.eye(6)))
    assert np.allclose(factor @ factor.T, covariance, atol=1e-12)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    assert np.allclose(noise.whitened(noise.shaped(z)), z, atol=1e-10)
    assert noise.log_scale((6, 2)) == pytest.approx(np.linalg.slogdet(covariance)[1])
    process = diffusion.variance_preserving(noise=noise)
    x = np.random.default_rng(1).normal(size=6)
    # sigma is 1 at time 1 up to 3e-7.
    expected = stats.multivariate_normal(np.zeros(6), covariance).logpdf(x)
    assert process.prior_log_prob(jnp.asarray(x)) == pytest.approx(expected, rel=1e-5)


def test_a_kernel_of_the_user_and_double_precision(x64):
    noise = diffusion.gaussian_process_noise(jnp.asarray(TIMES), 0.8, kernel=lambda d: jnp.exp(-d), nugget=1e-6)
    assert np.allclose(noise.factor @ noise.factor.T, OU, atol=1e-5)
    assert noise.factor.dtype == jnp.float64
    single = diffusion.ornstein_uhlenbeck_noise(jnp.asarray(TIMES, jnp.float32), 0.8)
    assert single.shaped(jnp.ones(6, jnp.float32)).dtype == jnp.float32


def series_denoiser(prior):
    """The exact denoiser of a normal series of that covariance, for noise of covariance OU."""

    def denoiser(x, t, condition):
        process = diffusion.variance_preserving(
            noise=diffusion.ornstein_uhlenbeck_noise(jnp.asarray(TIMES, x.dtype), 0.8)
        )
        alpha, sigma = process.scales(t)
        cov, noise = jnp.asarray(prior, x.dtype), jnp.asarray(OU, x.dtype)
        x0 = alpha * cov @ jnp.linalg.solve(alpha**2 * cov + sigma**2 * noise, x)
        return process.from_clean(x0, x, t)

    return denoiser


@functools.cache
def ou_process():
    return diffusion.variance_preserving(noise=diffusion.ornstein_uhlenbeck_noise(jnp.asarray(TIMES, jnp.float32), 0.8))


def test_samples_and_the_bound_of_a_normal_series():
    """Covariance within 4.4 standard errors and 3 % for 300 steps; the bound is tight."""
    covariance = np.exp(-0.5 * ((TIMES[:, None] - TIMES) / 1.0) ** 2) + 0.2 * np.eye(6)
    process, denoiser = ou_process(), series_denoiser(covariance)
    xs = sampling.sample(jax.random.key(0), process, denoiser, (8000, 6), solver=sampling.ancestral(300))
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 8000)
    assert np.all(np.abs(np.cov(np.asarray(xs, np.float64).T) - covariance) < 4.4 * error + 0.04)
    x0 = np.random.default_rng(2).multivariate_normal(np.zeros(6), covariance, 2000).astype(np.float32)
    bound = sampling.negative_elbo(jax.random.key(1), process, denoiser, x0, draws=128)
    # Of this very data: the mean of their log densities is known.
    exact = -stats.multivariate_normal(np.zeros(6), covariance).logpdf(x0).mean()
    error = np.sqrt(np.mean(np.asarray(bound.standard_error) ** 2) / 2000)
    assert error < 0.15
    assert abs(np.mean(bound.nats) - exact) < 0.02 + 4.4 * error


def test_observed_values_of_a_series_give_its_conditional_law():
    """Forecasting by guidance: mean and deviation at the last two times given four, to 4.4 errors and 3 %."""
    covariance = OU + 0.3 * np.exp(-0.5 * (TIMES[:, None] - TIMES) ** 2)
    value = np.array([1.0, 0.8, 0.5, -0.5])
    known = covariance[:4, :4] + 0.01 * np.eye(4)
    gain = covariance[4:, :4] @ np.linalg.inv(known)
    mean, cov = gain @ value, covariance[4:, 4:] - gain @ covariance[:4, 4:]
    process, denoiser = ou_process(), series_denoiser(covariance)
    see = sampling.observed(process, denoiser, lambda x: x[:4], value, 0.1)
    guided = sampling.guided(process, denoiser, see)
    xs = np.asarray(sampling.sample(jax.random.key(3), process, guided, (4000, 6), solver=sampling.ancestral(300)))
    sd = np.sqrt(np.diag(cov))
    assert np.all(np.abs(xs[:, 4:].mean(0) - mean) < (4.4 / np.sqrt(4000) + 0.03) * sd)
    assert np.allclose(xs[:, 4:].std(0), sd, rtol=4.4 / np.sqrt(8000) + 0.03)


def test_each_series_has_times_of_its_own():
    """A process that is a function of the condition, in the loss and in sampling."""

    def process(times):
        return diffusion.variance_preserving(noise=diffusion.ornstein_uhlenbeck_noise(times, 1.0))

    times = jnp.stack([jnp.array([0.0, 0.01, 5.0]), jnp.array([0.0, 5.0, 5.01])])
    apply = lambda params, x, t, condition: params * x  # noqa: E731
    objective = diffusion.loss(lambda params, times: process(times), apply, conditional=True)
    batch = (jnp.zeros((2, 3)), times)
    assert np.isfinite(jax.grad(objective)(jnp.float32(0.5), batch, jax.random.key(0)))
    start = lambda x, t, condition: jnp.zeros_like(x)  # noqa: E731
    many = jnp.repeat(times, 200, 0)
    xs = sampling.sample(jax.random.key(0), process, start, (400, 3), condition=many, solver=sampling.ancestral(1))
    near, far = np.abs(np.diff(np.asarray(xs), axis=1)).reshape(2, 200, 2).mean(1).T
    assert near[0] < 0.3 * far[0]
    assert far[1] < 0.3 * near[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffusion.ornstein_uhlenbeck_noise(jnp.array([0.0, 0.0]), 1.0), "times is not rising; expected times"),
        (
            lambda: diffusion.ornstein_uhlenbeck_noise(jnp.zeros(()), 1.0),
            "expected a vector (time,) of one time or more",
        ),
        (lambda: diffusion.gaussian_process_noise(jnp.arange(3.0), 0.0), "lengthscale is 0.0; expected a positive"),
        (lambda: diffusion.gaussian_process_noise(jnp.arange(3.0), 1.0, nugget=2.0), "nugget is 2.0; expected a share"),
        (lambda: diffusion.variance_preserving(noise=1.0), "noise is 1.0; expected a law of noise"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
