"""Stochastic interpolants of normal ends, for which velocity, score and law of samples are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import diffusion as samplers
from jaxprob.models import diffusion
from jaxprob.models.diffusion import Endpoints, Interpolated, stochastic_interpolant

PATHS = ("linear", "trigonometric", "encoder_decoder")
# Of data and of the source, in two dimensions.
MEANS = np.array([[1.5, -0.5], [-2.0, 1.0]])
SCALES = np.array([[0.5, 1.2], [1.0, 0.3]])


def coefficients(path, t, a=2.0, margin=1e-4):
    """Table 2 of the paper."""
    inner = margin + (1 - 2 * margin) * t
    gamma = np.sqrt(a * inner * (1 - inner))
    if path == "linear":
        return 1 - t, t, gamma
    if path == "trigonometric":
        return np.sqrt(1 - gamma**2) * np.cos(np.pi * t / 2), np.sqrt(1 - gamma**2) * np.sin(np.pi * t / 2), gamma
    there = np.cos(np.pi * t) ** 2
    return there * (t < 0.5), there * (t > 0.5), np.sin(np.pi * inner) ** 2


def law(path, t, **options):
    """Mean and variance of x_t."""
    alpha, beta, gamma = coefficients(path, t, **options)
    mean = alpha * MEANS[0] + beta * MEANS[1]
    return mean, (alpha * SCALES[0]) ** 2 + (beta * SCALES[1]) ** 2 + gamma**2


def slope(function, t, step=1e-6):
    return jax.tree.map(lambda after, before: (after - before) / (2 * step), function(t + step), function(t - step))


def exact(process):
    """The best denoiser: expectations given x_t of jointly normal numbers."""

    def denoise(x, t, condition):
        means, scales = (jnp.asarray(ends, x.dtype) for ends in (MEANS, SCALES))
        alpha, beta, gamma = (c.astype(x.dtype) for c in process.coefficients(t))
        alpha_slope, beta_slope, _ = (c.astype(x.dtype) for c in process.slopes(t))
        variance = (alpha * scales[0]) ** 2 + (beta * scales[1]) ** 2 + gamma**2
        away = (x - alpha * means[0] - beta * means[1]) / variance
        data = means[0] + alpha * scales[0] ** 2 * away
        source = means[1] + beta * scales[1] ** 2 * away
        return jnp.stack([alpha_slope * data + beta_slope * source, gamma * away], -1)

    return denoise


def ends(key, number):
    noise = jax.random.normal(key, (2, number, 2))
    drawn = jnp.asarray(MEANS[:, None], jnp.float32) + jnp.asarray(SCALES[:, None], jnp.float32) * noise
    return Endpoints(*drawn)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("t", [0.03, 0.3, 0.49, 0.8])
def test_velocity_and_score_of_normal_ends(rng, path, t, x64):
    """A normal law with mean m and variance c moves by m' + c' (x - m) / (2 c)."""
    process = stochastic_interpolant(path, latent_scale=1.5)
    np.testing.assert_allclose(process.coefficients(t), coefficients(path, t, 1.5), rtol=1e-12)
    expected = slope(lambda t: coefficients(path, t, 1.5), t)
    np.testing.assert_allclose(process.slopes(t), expected, rtol=1e-6, atol=1e-8)
    x = rng.normal(size=2)
    (mean, variance), (moves, widens) = (f(lambda t: law(path, t, a=1.5), t) for f in (lambda f, t: f(t), slope))
    output = exact(process)(jnp.asarray(x), jnp.asarray(t), None)
    velocity = moves + 0.5 * widens / variance * (x - mean)
    score = -(x - mean) / variance
    np.testing.assert_allclose(process.velocity(output, x, t), velocity, rtol=1e-6)
    np.testing.assert_allclose(process.score(output, x, t), score, rtol=1e-9)
    gamma = coefficients(path, t, 1.5)[2]
    np.testing.assert_allclose(process.drift(output, x, t, 0.7), velocity + 0.7 * gamma * score, rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_paths_have_their_law_and_targets_are_unbiased(path):
    """20,000 paths at one time; 12 z-scores a path, above 4.5 once in 10,000 times."""
    process, t = stochastic_interpolant(path), jnp.float32(0.35)
    keys = jax.random.split(jax.random.key(0), 20_001)
    drawn = ends(keys[-1], 20_000)

    def one(key, x0):
        xt = process.corrupt(key, x0, t)
        error = process.target(x0, xt, t) - exact(process)(xt.position, t, None)
        return xt.position, jnp.stack([error, error * jnp.expand_dims(xt.position, -1)])

    positions, errors = jax.jit(jax.vmap(one))(keys[:-1], drawn)
    mean, variance = law(path, 0.35)
    away = (np.asarray(positions) - mean) / np.sqrt(variance)
    for numbers in (away, away**2 - 1, np.asarray(errors).reshape(20_000, -1)):
        z = numbers.mean(0) / (numbers.std(0) / np.sqrt(20_000))
        assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("diffusion_", [0.0, 1.0])
def test_samples_have_the_law_of_data(path, diffusion_):
    """4,000 samples: 12 z-scores beyond what 200 steps of order one are off by, above 4 once in 2,600 times."""
    process = stochastic_interpolant(path, diffusion=diffusion_)
    start = ends(jax.random.key(0), 4000).source
    solver = samplers.ancestral(200)
    got = samplers.sample(jax.random.key(1), process, exact(process), (4000, 2), solver=solver, start=start)
    away = (np.asarray(got) - MEANS[0]) / SCALES[0]
    for numbers, bias in ((away, 0.02), (away**2 - 1, 0.05)):
        z = np.abs(numbers.mean(0)) - bias
        assert (z / (numbers.std(0) / np.sqrt(4000))).max() < 4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_ends_of_time_are_finite_in_float32(path, t):
    process, key = stochastic_interpolant(path), jax.random.key(0)
    x0 = Endpoints(jnp.ones(3), -jnp.ones(3))
    xt = process.corrupt(key, x0, t)
    np.testing.assert_allclose(xt.position, (1.0, -1.0)[int(t)], atol=0.08)
    output = jnp.ones((3, 2))
    found = [
        xt,
        process.target(x0, xt, t),
        process.loss(output, x0, xt, t),
        process.velocity(output, xt.position, t),
        process.score(output, xt.position, t),
        process.reverse_step(jax.random.key(1), xt.position, output, t, 0.5 * t),
        jax.grad(lambda output: process.loss(output, x0, xt, t))(output),
    ]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_loss_is_least_for_the_best_denoiser_and_takes_a_coupling():
    process = stochastic_interpolant()
    best = exact(process)
    objective = diffusion.loss(process, lambda params, x, t, condition: best(x, t, condition) + params[None])
    batch = ends(jax.random.key(2), 2000)
    value, gradient = jax.value_and_grad(objective)(jnp.zeros(2), batch, jax.random.key(0))
    # A shift of both outputs by 1 adds 1; the error of 4,000 numbers of variance about one is 0.03.
    assert objective(jnp.ones(2), batch, jax.random.key(0)) > value + 0.8
    assert np.abs(gradient).max() < 0.1
    coupling = diffusion.optimal_transport(0.0)
    source = coupling(jax.random.key(1), batch.data[:50], batch.source[:50])
    assert np.array_equal(np.sort(source, 0), np.sort(batch.source[:50], 0))
    assert np.sum((source - batch.data[:50]) ** 2) < np.sum((batch.source[:50] - batch.data[:50]) ** 2)


def test_an_array_is_joined_to_normal_numbers():
    """Of 4,000: z-scores, above 4 once in 4,000 times; the source is not the latent."""
    process = stochastic_interpolant()
    keys = jax.random.split(jax.random.key(0), 4000)
    xt = jax.vmap(lambda key: process.corrupt(key, jnp.float32(2.0), 0.5))(keys)
    prior = jax.vmap(lambda key: process.sample_prior(key, (3,)))(keys[:2000])
    assert prior.shape == (2000, 3)
    for drawn in (xt.source, xt.latent, prior.reshape(-1)[:4000], xt.source * xt.latent):
        assert abs(np.mean(drawn)) * np.sqrt(4000) < 4
        assert abs(np.mean(np.square(drawn)) - 1) * np.sqrt(4000 / 8) < 4
    gamma = coefficients("linear", 0.5)[2]
    np.testing.assert_allclose(xt.position, 1 + 0.5 * xt.source + gamma * xt.latent, rtol=1e-5, atol=1e-5)


def test_precision_is_kept(x64):
    process = stochastic_interpolant("trigonometric")
    for dtype in (jnp.float32, jnp.float64):
        xt = process.corrupt(jax.random.key(0), jnp.ones(3, dtype), 0.3)
        assert {leaf.dtype for leaf in xt} == {jnp.dtype(dtype)}
        output = jnp.ones((3, 2), dtype)
        assert process.target(jnp.ones(3, dtype), xt, 0.3).dtype == dtype
        assert process.loss(output, jnp.ones(3, dtype), xt, 0.3).dtype == dtype
        assert process.reverse_step(jax.random.key(0), xt.position, output, 0.3, 0.2).dtype == dtype
        assert process.sample_prior(jax.random.key(0), (3,), dtype).dtype == dtype


def test_a_bound_that_is_not_there_is_told_in_one_line():
    process, x = stochastic_interpolant(), jnp.zeros(2)
    expected = "StochasticInterpolant: bound_ends is not there; expected a process that has it."
    with pytest.raises(TypeError, match=expected) as caught:
        process.bound_ends(x)
    assert "\n" not in str(caught.value)
    expected = r"^diffusion.negative_elbo: process is .*StochasticInterpolant; expected a process with a variational"
    with pytest.raises(TypeError, match=expected):
        samplers.negative_elbo(jax.random.key(0), process, lambda x, t, c: jnp.zeros((2, 2)), jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda p: stochastic_interpolant("straight"), "path is 'straight'; expected one of ('linear', 'trigon"),
        (lambda p: stochastic_interpolant(latent_scale=0.0), "latent_scale is 0.0; expected a positive number."),
        (
            lambda p: stochastic_interpolant("trigonometric", latent_scale=4.0),
            "latent_scale is 4.0; expected less than 4.",
        ),
        (lambda p: stochastic_interpolant(diffusion=-1.0), "diffusion is -1.0; expected a number, 0 or more."),
        (lambda p: stochastic_interpolant(margin=0.5), "margin is 0.5; expected a share below 1/2."),
        (lambda p: p.corrupt(jax.random.key(0), jnp.ones(2), 1.5), "corrupt: t is 1.5; expected a time from 0"),
        (
            lambda p: p.target(jnp.ones(2), jnp.ones(2), 0.5),
            "target: xt is a float32 array of shape (2,); expected what",
        ),
        (
            lambda p: p.check_data("diffusion.loss", Endpoints(jnp.ones(2), jnp.ones(3))),
            "diffusion.loss: source is of shape (3,); expected (2,), as the data.",
        ),
        (
            lambda p: p.output(lambda x, t, condition: x, Interpolated(*jnp.ones((3, 2))), 0.5, None, (2,)),
            "denoiser is one with output (2,); expected (2, 2) for one of shape (2,).",
        ),
    ],
)
def test_bad_arguments(call, line):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(stochastic_interpolant())
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
