"""Gaussian diffusion in all its forms against closed forms in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxprob import core
from jaxprob.models import diffusion
from jaxprob.models.diffusion._gaussian import PREDICTIONS, WEIGHTINGS, Gaussian
from jaxprob.models.diffusion._noise import Noise, White
from tests.models.diffusion import _mixture_oracles as oracles

SCALES = ("preserving", "exploding", "sub_preserving", "straight", "bayesian")
FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])


@core.pytree
class Correlated(Noise):
    """Noise with a factor of its covariance."""

    factor: jax.Array

    def shaped(self, z):
        return core.matvec(self.factor.astype(z.dtype), z)

    def whitened(self, x):
        return core.solve_triangular(self.factor.astype(x.dtype), x, vector=True)

    def log_scale(self, shape):
        return 0.5 * core.log_determinant(self.factor)


SCHEDULES = {
    "cosine": diffusion.cosine(),
    "log_linear": diffusion.log_linear(8.0, -6.0),
    "linear_beta": diffusion.linear_beta(),
    "straight": diffusion.straight(),
    "log_normal": diffusion.log_normal(),
    "learned": diffusion.learned(9.0, -7.0),
    "accuracy": diffusion.bayesian_flow().schedule,
}


def scrambled(schedule):
    """With parameters that training might have made."""
    leaves, structure = jax.tree.flatten(schedule)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [jnp.asarray(np.asarray(leaf, float) + 0.5 * rng.normal(size=leaf.shape)) for leaf in leaves]
    )


# Schedules.


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_and_invert_and_have_slopes(x64, name):
    schedule = scrambled(SCHEDULES[name])
    times = jnp.linspace(0.0, 1.0, 201)
    levels = np.asarray(jax.jit(jax.vmap(schedule))(times))
    assert np.all(np.diff(levels) < 0)
    assert np.all(np.isfinite(levels))
    np.testing.assert_allclose(jax.jit(schedule.inverse)(jnp.asarray(levels)), times, atol=1e-9)
    beyond = jax.jit(schedule.inverse)(jnp.array([levels[0] + 3, levels[-1] - 3]))
    np.testing.assert_allclose(beyond, [0.0, 1.0], atol=1e-9)
    inside, step = times[5:-5:10], 1e-6
    differences = (jax.vmap(schedule)(inside + step) - jax.vmap(schedule)(inside - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule.slope))(inside), differences, rtol=1e-5)


def test_schedules_have_their_closed_forms(x64):
    t = np.linspace(0.05, 0.95, 7)
    # Between wide ends alpha is the cosine of pi t / 2.
    np.testing.assert_allclose(diffusion.cosine(60.0, -60.0)(t), -2 * np.log(np.tan(np.pi * t / 2)), atol=1e-9)
    # DDPM: alpha^2 is the exponential of minus the integral of a rate from 0.1 to 20.
    start = 1e-3 + (1 - 1e-3) * t
    survival = np.exp(-(0.1 * start + 0.5 * start**2 * 19.9))
    np.testing.assert_allclose(diffusion.linear_beta(start=1e-3)(t), np.log(survival / (1 - survival)), rtol=1e-9)
    np.testing.assert_allclose(diffusion.straight(1e-9)(t), 2 * np.log((1 - t) / t), atol=1e-6)
    # EDM: the logarithm of the scale is normal, cut at the ends; with a floor of its density where the ends are far.
    near = diffusion.log_normal(smallest=0.02, largest=5.0)
    law = stats.truncnorm((np.log(0.02) + 1.2) / 1.2, (np.log(5.0) + 1.2) / 1.2, -1.2, 1.2)
    np.testing.assert_allclose(near(t), -2 * law.ppf(t), rtol=1e-9)
    np.testing.assert_allclose(near(np.array([0.0, 1.0])), -2 * np.log([0.02, 5.0]), rtol=1e-6)
    for schedule, smallest, largest in (
        (diffusion.log_normal(), 0.001, 2000.0),
        (diffusion.log_normal(smallest=0.2, largest=2000.0), 0.2, 2000.0),
        (diffusion.log_normal(smallest=50.0, largest=90.0), 50.0, 90.0),
    ):
        low, high = ((np.log(end) + 1.2) / 1.2 for end in (smallest, largest))
        units = np.linspace(low, high, 200_001)
        mass = integrate.cumulative_simpson(np.maximum(stats.norm.pdf(units), stats.norm.pdf(3)), x=units, initial=0)
        quantiles = np.interp(t, mass / mass[-1], units)
        np.testing.assert_allclose(schedule(t), -2 * (-1.2 + 1.2 * quantiles), atol=1e-6)
        np.testing.assert_allclose(schedule(np.array([0.0, 1.0])), -2 * np.log([smallest, largest]), rtol=1e-9)
    # A learnt one begins as a straight line between its ends, up to its sigmoids.
    assert np.abs(diffusion.learned(9.0, -7.0)(t) - (9 - 16 * t)).max() < 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_scales_solve_their_equations(x64, scale):
    process = Gaussian(diffusion.log_linear(12.0, -12.0), White(), scale)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(process.scales(t), oracles.scales(scale, 12 - 24 * t), rtol=1e-9)
        up, down = process.slopes(t)
        (a0, s0), (a1, s1) = (oracles.scales(scale, 12 - 24 * (t + e)) for e in (-1e-6, 1e-6))
        np.testing.assert_allclose([up, down], [(a1 - a0) / 2e-6, (s1 - s0) / 2e-6], rtol=1e-4, atol=1e-8)


# What a denoiser says.


@pytest.mark.parametrize("scale", SCALES)
def test_outputs_say_clean_and_noise_and_velocity(x64, scale):
    rng = np.random.default_rng(1)
    x0, noise = rng.normal(size=(2, 3))
    processes = [Gaussian(diffusion.log_linear(6.0, -6.0), White(), scale, p, "simple", 0.7) for p in PREDICTIONS]

    @jax.jit
    def all_of_them(x0, noise, t):
        told = []
        for process in processes:
            xt = process.interpolate(x0, noise, t)
            output = process.encode(x0, noise, xt, t)
            others = process.from_clean(x0, xt, t), process.from_noise(noise, xt, t), process.target(x0, xt, t)
            read = process.clean(output, xt, t), process.noise_of(output, xt, t)
            told.append((xt, output, others, read, process.velocity(output, xt, t), process.score(output, xt, t)))
        return told

    for t in (0.1, 0.5, 0.95):
        alpha, sigma = oracles.scales(scale, 6 - 12 * t)
        xt = alpha * x0 + sigma * noise
        (a0, s0), (a1, s1) = (oracles.scales(scale, 6 - 12 * (t + e)) for e in (-1e-6, 1e-6))
        variance = alpha**2 * 0.49 + sigma**2
        expected = {
            "noise": noise,
            "clean": x0,
            "v": alpha * noise - sigma * x0,
            "score": -noise / sigma,
            "velocity": noise - x0,
            "preconditioned": (x0 - alpha * 0.49 / variance * xt) / (sigma * 0.7 / np.sqrt(variance)),
        }
        for prediction, (got, output, others, (clean, other), velocity, score) in zip(
            PREDICTIONS, all_of_them(x0, noise, t), strict=True
        ):
            np.testing.assert_allclose(got, xt, rtol=1e-9)
            for said in (output, *others):
                np.testing.assert_allclose(said, expected[prediction], rtol=1e-7)
            np.testing.assert_allclose(clean, x0, rtol=1e-7)
            np.testing.assert_allclose(other, noise, rtol=1e-7)
            np.testing.assert_allclose(score, -noise / sigma, rtol=1e-7)
            moved = ((a1 - a0) * x0 + (s1 - s0) * noise) / 2e-6
            np.testing.assert_allclose(velocity, moved, rtol=1e-4, atol=1e-7)


def test_correlated_noise_in_every_form(x64):
    x0, z = np.random.default_rng(2).normal(size=(2, 3))
    noise, t = FACTOR @ z, 0.4
    for scale, prediction in itertools.product(("preserving", "exploding"), PREDICTIONS):
        process = Gaussian(diffusion.log_linear(6.0, -6.0), Correlated(jnp.asarray(FACTOR)), scale, prediction)
        xt = process.interpolate(x0, noise, t)
        output = process.target(x0, xt, t)
        np.testing.assert_allclose(process.clean(output, xt, t), x0, rtol=1e-7)
        np.testing.assert_allclose(process.noise_of(output, xt, t), noise, rtol=1e-7)
        np.testing.assert_allclose(process.score(output, xt, t), -z / float(process.scales(t)[1]), rtol=1e-7)


# Learning.


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("noise", ["white", "correlated"])
def test_loss_with_the_weight_of_the_bound_is_its_rate(x64, scale, noise):
    law = White() if noise == "white" else Correlated(jnp.asarray(FACTOR))
    x0, z, off = np.random.default_rng(3).normal(size=(3, 3))
    processes = [
        Gaussian(diffusion.cosine(8.0, -7.0), law, scale, prediction, "bound", 0.7) for prediction in PREDICTIONS
    ]

    @jax.jit
    def both(t):
        values = []
        for process in processes:
            xt = process.interpolate(x0, process.noise.shaped(jnp.asarray(z)), t)
            output = process.target(x0, xt, t) + off
            values.append((process.loss(output, x0, xt, t), process.bound_rate(output, x0, xt, t)))
        return values

    for t in (0.05, 0.5, 0.9):
        for loss, rate in both(t):
            np.testing.assert_allclose(loss, rate, rtol=1e-7)


def test_bound_rate_is_half_of_what_the_log_ratio_loses_times_the_error_of_the_noise(x64):
    process = diffusion.variance_preserving(diffusion.log_linear(6.0, -4.0), "noise")
    x0, noise, off = np.random.default_rng(4).normal(size=(3, 3))
    xt = process.interpolate(x0, noise, 0.3)
    np.testing.assert_allclose(process.bound_rate(noise + off, x0, xt, 0.3), 0.5 * 10 * off @ off, rtol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_errors_of_data_by_a_ratio_that_is_cut(x64, prediction):
    process = Gaussian(diffusion.log_linear(6.0, -6.0), White(), "preserving", prediction, "min_snr", 0.7)
    x0, noise, off = np.random.default_rng(5).normal(size=(3, 3))
    for t in (0.2, 0.7):  # ratios of 37 and 0.09
        xt = process.interpolate(x0, noise, t)
        output = process.from_clean(x0 + off, xt, t)
        expected = min(np.exp(6 - 12 * t), 5) * np.mean(off**2)
        np.testing.assert_allclose(process.loss(output, x0, xt, t), expected, rtol=1e-7)


def test_the_simple_loss_is_a_mean_square():
    process = diffusion.flow_matching()
    x0, xt = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
    output = process.target(x0, xt, 0.3) + jnp.array([1.0, 3.0])
    np.testing.assert_allclose(process.loss(output, x0, xt, 0.3), 5.0, rtol=1e-5)


# The model.


def posterior(scale, x0, xt, t, s):
    """Mean and variance of x_s given x_t and x_0, by the product of two normal densities."""
    (alpha, sigma), (before, spread) = (oracles.scales(scale, 6 - 12 * time) for time in (t, s))
    ratio = alpha / before
    noise = sigma**2 - ratio**2 * spread**2
    precision = 1 / spread**2 + ratio**2 / noise
    return (before * x0 / spread**2 + ratio * xt / noise) / precision, 1 / precision


@pytest.mark.parametrize("scale", SCALES)
def test_reverse_steps_are_posteriors_and_divergences_are_between_them(x64, scale):
    process = Gaussian(diffusion.log_linear(6.0, -6.0), White(), scale, "v")
    x0, noise, wrong = np.random.default_rng(6).normal(size=(3, 3))
    t, s = 0.6, 0.35
    alpha, sigma = oracles.scales(scale, 6 - 12 * t)
    xt = alpha * x0 + sigma * noise
    output = process.from_clean(jnp.asarray(wrong), jnp.asarray(xt), t)
    mean, variance = posterior(scale, wrong, xt, t, s)
    drawn = process.reverse_step(jax.random.key(0), xt, output, t, s)
    z = jax.random.normal(jax.random.key(0), (3,), jnp.float64)
    np.testing.assert_allclose(drawn, mean + np.sqrt(variance) * z, rtol=1e-6)
    true, _ = posterior(scale, x0, xt, t, s)
    divergence = process.step_divergence(output, x0, jnp.asarray(xt), t, s)
    np.testing.assert_allclose(divergence, np.sum((true - mean) ** 2) / (2 * variance), rtol=1e-6)
    # Without randomness the step stays on the line of x_0 and noise.
    before, spread = oracles.scales(scale, 6 - 12 * s)
    for eta in (0.0, 0.5):
        # DDIM's equation 16, of the preserving form, whose alpha^2 is a function of the ratio.
        (late, _), (soon, _) = (oracles.scales("preserving", 6 - 12 * time) for time in (t, s))
        share = eta**2 * (1 - soon**2) / (1 - late**2) * (1 - late**2 / soon**2) / (1 - soon**2)
        stepped = process.reverse_step(jax.random.key(0), xt, output, t, s, randomness=eta)
        along = before * wrong + spread * np.sqrt(1 - share) * (xt - alpha * wrong) / sigma
        np.testing.assert_allclose(stepped, along + spread * np.sqrt(share) * z, rtol=1e-6)


def test_short_steps_of_the_divergence_have_the_rate_of_the_bound(x64):
    process = diffusion.variance_preserving()
    x0, xt, output = np.random.default_rng(7).normal(size=(3, 3))
    t, step = 0.4, 1e-6
    rate = process.bound_rate(output, x0, xt, t)
    np.testing.assert_allclose(process.step_divergence(output, x0, xt, t, t - step) / step, rate, rtol=1e-4)


@pytest.mark.parametrize("noise", ["white", "correlated"])
def test_ends_of_the_bound_and_the_prior(x64, noise):
    law, factor = (White(), np.eye(3)) if noise == "white" else (Correlated(jnp.asarray(FACTOR)), FACTOR)
    x0 = np.array([0.3, -1.0, 2.0])
    for scale in SCALES:
        process = Gaussian(diffusion.log_linear(5.0, -3.0), law, scale)
        covariance = factor @ factor.T
        alpha, sigma = oracles.scales(scale, -3)
        prior = stats.multivariate_normal(np.zeros(3), sigma**2 * covariance)
        np.testing.assert_allclose(process.prior_log_prob(jnp.asarray(x0)), prior.logpdf(x0), rtol=1e-9)
        divergence = 0.5 * alpha**2 / sigma**2 * x0 @ np.linalg.solve(covariance, x0)
        np.testing.assert_allclose(process.prior_divergence(x0), divergence, rtol=1e-9)
        rebuilt = stats.multivariate_normal(np.zeros(3), np.exp(-5) * covariance).entropy()
        np.testing.assert_allclose(process.bound_ends(x0), divergence + rebuilt, rtol=1e-9)
        draws = jax.vmap(lambda key, process=process: process.sample_prior(key, (3,)))(
            jax.random.split(jax.random.key(1), 4000)
        )
        # Six entries, of 4000 draws each: five standard errors are passed by chance once in 3e5 runs.
        spread = np.cov(np.asarray(draws).T) / sigma**2
        error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 4000)
        assert np.all(np.abs(spread - covariance) < 5 * error)


PROCESSES = {
    "preserving": diffusion.variance_preserving,
    "exploding": diffusion.variance_exploding,
    "sub_preserving": diffusion.sub_variance_preserving,
    "flow_matching": diffusion.flow_matching,
}


@pytest.mark.parametrize("name", PROCESSES)
def test_all_is_finite_at_both_ends_in_float32(name):
    x0 = jnp.array([0.5, -1.0])

    @jax.jit
    def everything(t):
        values = []
        for prediction in PREDICTIONS:
            process = PROCESSES[name](prediction=prediction, weighting="bound")
            xt = process.corrupt(jax.random.key(0), x0, t)
            output = process.target(x0, xt, t) + 0.1
            read = process.clean(output, xt, t), process.noise_of(output, xt, t), process.velocity(output, xt, t)
            values.append((xt, output, process.loss(output, x0, xt, t), process.bound_rate(output, x0, xt, t), *read))
            values.append([dataclasses.replace(process, weighting=weighting).weight(t) for weighting in WEIGHTINGS])
        return values

    for t in (0.0, 1.0):
        for leaf in jax.tree.leaves(everything(jnp.float32(t))):
            assert leaf.dtype == jnp.float32
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("make", [diffusion.elucidated, diffusion.bayesian_flow, diffusion.variance_exploding])
def test_float32_tells_the_times_next_to_noise_apart(make):
    process = make()
    # The last times that float32 has before 1: levels that far from each other would be steps of any grid.
    last = np.float32(1) - np.float32(2.0**-24) * np.arange(4, dtype=np.float32)
    levels = np.asarray(jax.jit(jax.vmap(process.log_ratio))(last))
    assert np.all(np.isfinite(levels))
    assert np.all(np.abs(np.diff(levels)) < 2)
    assert levels[0] < -15 + 1e-3


def test_edm_is_exploding_noise_with_inputs_of_unit_variance():
    process = diffusion.elucidated(data_scale=0.5)
    denoiser = diffusion.scaled_inputs(process, lambda params, x, t, condition: params * x)
    sigma = float(np.exp(-0.5 * process.log_ratio(0.7)))
    x = jnp.array([3.0])
    np.testing.assert_allclose(denoiser(2.0, x, 0.7), 6 / np.sqrt(0.25 + sigma**2), rtol=1e-5)
    # Nothing said is the best linear guess.
    np.testing.assert_allclose(process.clean(0 * x, x, 0.7), 3 * 0.25 / (0.25 + sigma**2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_of_data_is_kept(x64, dtype):
    process = diffusion.variance_preserving(prediction="v")
    x0 = jnp.ones((2,), dtype)
    xt = process.corrupt(jax.random.key(0), x0, 0.5)
    output = process.target(x0, xt, 0.5)
    drawn = process.reverse_step(jax.random.key(1), xt, output, 0.5, 0.4)
    numbers = process.loss(output, x0, xt, 0.5), process.step_divergence(output, x0, xt, 0.5, 0.4), xt, output, drawn
    assert {leaf.dtype for leaf in numbers} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: diffusion.variance_preserving(prediction="epsilon"), "prediction is 'epsilon'"),
        (ValueError, lambda: diffusion.flow_matching(weighting="snr"), "weighting is 'snr'"),
        (TypeError, lambda: diffusion.variance_exploding(lambda t: -t), "expected a schedule"),
        (TypeError, lambda: diffusion.variance_preserving(noise=1.0), "expected a law of noise"),
        (ValueError, lambda: diffusion.elucidated(0.0), "data_scale is 0.0"),
        (ValueError, lambda: diffusion.cosine(-1.0, 1.0), "lowest is 1.0"),
        (ValueError, lambda: diffusion.log_linear(90.0, -1.0), "highest is 90.0"),
        (ValueError, lambda: diffusion.linear_beta(2.0, 1.0), "last is 1.0"),
        (ValueError, lambda: diffusion.straight(0.5), "margin is 0.5"),
        (ValueError, lambda: diffusion.log_normal(smallest=2.0, largest=1.0), "smallest is 2.0"),
        (ValueError, lambda: diffusion.learned(bumps=0), "bumps is 0"),
        (ValueError, lambda: diffusion.variance_preserving().corrupt(jax.random.key(0), jnp.ones(2), 1.5), "t is 1.5"),
        (ValueError, lambda: diffusion.flow_matching().target(jnp.ones(2), jnp.ones(2), -0.1), "t is -0.1"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(error, make, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_denoiser_of_another_shape_is_told():
    process = diffusion.variance_preserving()
    with pytest.raises(ValueError, match=r"denoiser is one with output \(1,\); expected \(2,\)"):
        process.output(lambda x, t, condition: x[:1], jnp.ones(2), 0.5, None, (2,))
