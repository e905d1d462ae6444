"""Guided samples against conditional laws in closed form and by simulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

PROCESS = diffusion.variance_preserving(diffusion.cosine(12.0, -12.0))
MEAN = np.array([0.5, -1.0, 0.3])
COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.8]])


def normal_denoiser(process, mean, covariance):
    """The exact denoiser of normal data, by Bayes' rule."""

    def denoiser(x, t, condition):
        alpha, sigma = process.scales(t)
        mu, cov = jnp.asarray(mean, x.dtype), jnp.asarray(covariance, x.dtype)
        total = alpha**2 * cov + sigma**2 * jnp.eye(len(mean), dtype=x.dtype)
        x0 = mu + alpha * cov @ jnp.linalg.solve(total, x - alpha * mu)
        return process.from_clean(x0, x, t)

    return denoiser


NORMAL = normal_denoiser(PROCESS, MEAN, COVARIANCE)
WEIGHTS, CENTRES, SCALES = (
    np.array([0.5, 0.3, 0.2]),
    np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 2.0]]),
    np.array([1.0, 0.6, 0.5]),
)


def mixture(x, t, condition):
    alpha, sigma = PROCESS.scales(t)
    scales, centres = jnp.asarray(SCALES, x.dtype), jnp.asarray(CENTRES, x.dtype)
    variance = (alpha * scales) ** 2 + sigma**2
    away = x[None] - alpha * centres
    weights = jax.nn.softmax(
        jnp.log(jnp.asarray(WEIGHTS, x.dtype)) - 0.5 * jnp.sum(away**2, 1) / variance - jnp.log(variance)
    )
    x0 = jnp.sum(weights[:, None] * (centres + (alpha * scales**2 / variance)[:, None] * away), 0)
    return PROCESS.from_clean(x0, x, t)


@functools.cache
def truth(quantity, level):
    """Draws of the mixture in the event, and its probability, by a million draws."""
    rng = np.random.default_rng(0)
    which = rng.choice(3, 1_000_000, p=WEIGHTS)
    x = CENTRES[which] + SCALES[which][:, None] * rng.normal(size=(1_000_000, 2))
    inside = quantity(x.T) > level
    return x[inside], inside.mean()


def first(x):
    return x[0]


def square(x):
    return (x**2).sum(0)


def test_observations_of_normal_data_give_the_exact_posterior():
    """Mean within 4.4 standard errors plus what 200 steps leave, covariance within 4 %: inpainting and a sum."""
    operator = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, -1.0]])
    value, noise = np.array([1.5, -0.2]), np.array([0.1, 0.4])
    gain = COVARIANCE @ operator.T @ np.linalg.inv(operator @ COVARIANCE @ operator.T + np.diag(noise**2))
    mean = MEAN + gain @ (value - operator @ MEAN)
    covariance = COVARIANCE - gain @ operator @ COVARIANCE
    see = sampling.observed(PROCESS, NORMAL, lambda x: jnp.asarray(operator, x.dtype) @ x, value, noise)
    guided = sampling.guided(PROCESS, NORMAL, see)
    xs = sampling.sample(jax.random.key(0), PROCESS, guided, (8000, 3), solver=sampling.ancestral(400))
    xs = np.asarray(xs, np.float64)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(xs.mean(0) - mean) < (4.4 / np.sqrt(8000) + 0.02) * sd)
    assert np.allclose(np.cov(xs.T), covariance, atol=0.06 * sd.max() ** 2)
    assert np.allclose(xs.std(0), sd, rtol=0.05)


def test_conjugate_gradients_are_the_factorised_gradient(x64):
    """For many observations; and the log density itself is that of the exact predictive law, at every time."""
    rng = np.random.default_rng(1)
    operator, value = rng.normal(size=(2, 3)), np.array([0.4, -1.0])
    see = lambda x: jnp.asarray(operator) @ x  # noqa: E731
    dense = sampling.observed(PROCESS, NORMAL, see, value, 0.3)
    free = sampling.observed(PROCESS, NORMAL, see, value, 0.3, iterations=10)
    for t in (0.02, 0.5, 0.98):
        x = jnp.asarray(rng.normal(size=3))
        alpha, sigma = (float(scale) for scale in PROCESS.scales(t))
        joint = (
            COVARIANCE
            - alpha**2 * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(3)) @ COVARIANCE
        )
        x0 = MEAN + alpha * COVARIANCE @ np.linalg.solve(
            alpha**2 * COVARIANCE + sigma**2 * np.eye(3), np.asarray(x) - alpha * MEAN
        )
        law = stats.multivariate_normal(operator @ x0, operator @ joint @ operator.T + 0.09 * np.eye(2))
        assert dense(x, t, None) + np.log(1 / (2 * np.pi)) == pytest.approx(law.logpdf(value), rel=1e-6)
        assert np.allclose(jax.grad(dense)(x, t, None), jax.grad(free)(x, t, None), rtol=1e-6, atol=1e-9)


def test_isotropic_guidance_of_data_wider_than_said_does_not_diverge():
    """Deviations of 10 where 1 is said, and correlated: undamped, 100 steps end 1e5 away."""
    covariance = 50 * (np.eye(3) + 1)
    denoiser = normal_denoiser(PROCESS, np.zeros(3), covariance)
    value = jnp.array([6.0, -4.0])
    gain = covariance[:, :2] @ np.linalg.inv(covariance[:2, :2] + 0.01 * np.eye(2))
    left = np.sqrt(np.diag(covariance - gain @ covariance[:2]))

    solver = sampling.ancestral(100)

    def ends(key, told):
        guided = sampling.guided(PROCESS, denoiser, told)
        return np.asarray(sampling.sample(jax.random.key(key), PROCESS, guided, (500, 3), solver=solver))

    xs = ends(0, sampling.observed(PROCESS, denoiser, lambda x: x[:2], value, 0.1, covariance="isotropic"))
    # What is seen is known to 0.1; what is not, to 8.2, of which the mean of 500 draws has 0.37.
    assert np.all(np.abs(xs.mean(0) - gain @ np.asarray(value)) < [0.1, 0.1, 4 * left[2] / np.sqrt(500)])
    assert np.all(np.abs(xs.std(0) / left - 1) < 0.2)

    event = sampling.above(PROCESS, denoiser, lambda x: x[0] - x[1], 25.0, covariance="isotropic")
    apart = ends(1, event) @ [1.0, -1.0, 0.0]
    # Of a normal law with deviation 10, beyond 2.5 deviations: 28.2 on average.
    assert np.mean(apart > 25) > 0.9
    assert 25 < apart.mean() < 31


def test_isotropic_guidance_of_data_as_said_is_matched_guidance(x64):
    """Independent data of unit variance have the covariance that is said, so that nothing is damped."""
    x, operator = jnp.array([0.4, -1.2, 2.0]), jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])

    def told(covariance, kind, t):
        denoiser = normal_denoiser(PROCESS, np.zeros(3), covariance)
        see = functools.partial(sampling.observed, PROCESS, denoiser, lambda x: operator @ x, jnp.ones(2), 0.3)
        event = sampling.above(PROCESS, denoiser, lambda x: x[0] - x[2], 1.0, covariance=kind)
        every = see(covariance=kind), see(covariance=kind, iterations=9), event
        return [jax.value_and_grad(one)(x, t, None) for one in every]

    for t in (0.1, 0.5, 0.9):
        as_said = [jax.jit(told, static_argnums=1)(jnp.eye(3), kind, t) for kind in ("matched", "isotropic")]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *as_said)
        wider = jax.jit(told, static_argnums=1)(9 * jnp.eye(3) + 4, "isotropic", t)
        # A factorisation and conjugate gradients make it shorter by the same.
        np.testing.assert_allclose(wider[1][1], wider[0][1], rtol=1e-5)


def test_a_linear_tail_event_is_hit_and_its_law_is_right():
    """A 3.3 % event of a mixture: 90 % of samples in it, conditional means within 2 %, deviations within 5 %."""
    draws, _ = truth(first, 2.75)
    event = sampling.above(PROCESS, mixture, first, 2.75)
    guided = sampling.guided(PROCESS, mixture, event)
    solver = sampling.ancestral(300)
    xs = np.asarray(sampling.sample(jax.random.key(1), PROCESS, guided, (4000, 2), solver=solver), np.float64)
    assert np.mean(xs[:, 0] > 2.75) > 0.9
    assert np.allclose(xs.mean(0), draws.mean(0), rtol=0.02, atol=3 * draws.std(0).max() / np.sqrt(4000))
    assert np.allclose(xs.std(0), draws.std(0), rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_twisted_particles_take_back_the_bias_of_a_multimodal_event():
    """|x|^2 > 9: means are 0.2 off under guidance alone; four runs of particles are right, and so is the evidence."""
    draws, probability = truth(square, 9.0)
    event = sampling.above(PROCESS, mixture, square, 9.0)
    solver, guided = sampling.ancestral(300), sampling.guided(PROCESS, mixture, event)
    xs = np.asarray(sampling.sample(jax.random.key(2), PROCESS, guided, (4000, 2), solver=solver))
    runs = [
        sampling.twisted(
            jax.random.key(10 + seed), PROCESS, mixture,
            lambda x: jnp.where(square(x) > 9, 0.0, -jnp.inf), event, (2,), particles=4000, steps=300,
        )
        for seed in range(4)
    ]  # fmt: skip
    assert [int(run.failed_at) for run in runs] == [-1] * 4
    mean = np.mean([run.population.expectation() for run in runs], 0)
    assert np.max(np.abs(xs.mean(0) - draws.mean(0))) > 0.15
    assert np.max(np.abs(mean - draws.mean(0))) < 0.06
    assert np.mean(np.exp([float(run.log_evidence) for run in runs])) == pytest.approx(probability, rel=0.1)


def test_twisted_particles_estimate_the_evidence_of_normal_data():
    """Exact twists: the weights hardly vary, whatever the number of particles; the evidence is the normal density."""
    value, noise = 2.0, 0.5
    see = sampling.observed(PROCESS, NORMAL, lambda x: x[:1], jnp.array([value]), noise)
    found = sampling.twisted(
        jax.random.key(3), PROCESS, NORMAL,
        lambda x: -0.5 * ((value - x[0]) / noise) ** 2 - jnp.log(noise) - 0.5 * jnp.log(2 * jnp.pi),
        see, (3,), particles=2000, steps=200, caution=0.0,
    )  # fmt: skip
    exact = stats.norm(MEAN[0], np.sqrt(COVARIANCE[0, 0] + noise**2)).logpdf(value)
    assert float(found.log_evidence) == pytest.approx(exact, abs=0.06)
    assert np.all(found.effective_sample_size > 1200)


def test_particles_condition_without_any_guidance():
    """A twist that says little leaves weights to do it all: the oracle of the weights. z < 4.4 over 2,000 draws."""
    found = sampling.twisted(
        jax.random.key(4), PROCESS, NORMAL,
        lambda x: x[0] - x[1], lambda x, t, condition: 0.1 * x[0], (3,), particles=2000, steps=200,
    )  # fmt: skip
    direction = np.array([1.0, -1.0, 0.0])
    exact = direction @ MEAN + 0.5 * direction @ COVARIANCE @ direction
    assert float(found.log_evidence) == pytest.approx(exact, abs=4.4 * np.sqrt(np.expm1(1.3) / 2000) + 0.03)


def test_guidance_adds_to_the_score_in_every_prediction(x64):
    """And with correlated noise: the score with respect to x, whatever the output stands for."""
    x, gradient = jnp.array([0.3, -0.7]), jnp.array([1.0, 2.0])
    for prediction in ("noise", "clean", "v", "score", "velocity", "preconditioned"):
        process = diffusion.variance_preserving(prediction=prediction)
        plain = lambda x, t, condition: process.from_clean(0.5 * x, x, t)  # noqa: B023, E731
        guided = sampling.guided(process, plain, lambda x, t, condition: x @ gradient, 3.0)
        before = process.score(plain(x, 0.4, None), x, 0.4)
        assert np.allclose(process.score(guided(x, 0.4, None), x, 0.4) - before, 3 * gradient)


def test_guidance_with_noise_that_is_a_function(x64):
    """In the coordinates L^-1 x the gradient is L^T g, with L the Cholesky factor in NumPy."""
    times, gradient = np.array([0.0, 0.1, 0.4]), np.array([1.0, -2.0, 0.5])
    process = diffusion.variance_preserving(noise=diffusion.ornstein_uhlenbeck_noise(jnp.asarray(times), 0.8))
    factor = np.linalg.cholesky(np.exp(-np.abs(times[:, None] - times) / 0.8))
    plain = lambda x, t, condition: process.from_clean(0.5 * x, x, t)  # noqa: E731
    guided = sampling.guided(process, plain, lambda x, t, condition: x @ gradient)
    x = jnp.array([0.3, -0.7, 1.0])
    moved = process.score(guided(x, 0.4, None), x, 0.4) - process.score(plain(x, 0.4, None), x, 0.4)
    assert np.allclose(moved, factor.T @ gradient)


def test_classifier_free_guidance_sharpens_as_the_formula_says():
    """Of normal laws with one variance: with + (scale - 1) times the difference of means, at every time."""
    denoisers = [normal_denoiser(PROCESS, np.full(2, m), np.eye(2)) for m in (0.0, 1.0)]
    either = lambda x, t, c: jnp.where(c == 0, denoisers[0](x, t, c), denoisers[1](x, t, c))  # noqa: E731
    guided = sampling.classifier_free(either, 2.5, jnp.int32(0))
    condition = jnp.ones(4000, jnp.int32)
    xs = sampling.sample(
        jax.random.key(5), PROCESS, guided, (4000, 2), condition=condition, solver=sampling.ancestral(100)
    )
    assert np.allclose(np.mean(xs, 0), 2.5, atol=4.4 / np.sqrt(4000) + 0.02)


def test_composition_multiplies_densities():
    """Two normal densities over a base: the product's mean, for precisions that add."""
    parts = [normal_denoiser(PROCESS, np.array([m, 0.0]), np.eye(2)) for m in (1.0, -1.0)]
    base = normal_denoiser(PROCESS, np.zeros(2), np.eye(2))
    both = sampling.composed(PROCESS, parts, jnp.array([1.0, 0.5]), base)
    xs = sampling.sample(jax.random.key(6), PROCESS, both, (4000, 2), solver=sampling.ancestral(100))
    # p_0 (p_1 / p_0) (p_2 / p_0)^(1/2) of unit variances: mean 1 - 1/2, and unit variance.
    assert np.allclose(np.mean(xs, 0), [0.5, 0.0], atol=4.4 / np.sqrt(4000) + 0.02)
    assert np.allclose(np.std(xs, 0), 1.0, atol=4.4 / np.sqrt(8000) + 0.03)
    logits = lambda value: lambda x, t, condition: jnp.full((*x.shape, 3), value)  # noqa: E731
    tokens = diffusion.discrete_bayesian_flow(3)
    mixed = sampling.composed(tokens, [logits(1.0), logits(2.0)], jnp.array([1.0, 2.0]))
    assert np.allclose(mixed(jnp.zeros(2), 0.5, None), 5.0)


@pytest.mark.parametrize("covariance", ["matched", "isotropic"])
def test_events_are_finite_at_both_ends(covariance):
    """In float32, far from the event and inside it."""
    event = sampling.above(PROCESS, mixture, first, 3.0, covariance=covariance)
    for t in (0.0, 1e-6, 0.5, 1.0):
        for x in (jnp.array([-30.0, 4.0]), jnp.array([40.0, 0.0]), jnp.zeros(2)):
            value, gradient = jax.value_and_grad(event)(x, jnp.float32(t), None)
            assert value.dtype == jnp.float32
            assert np.isfinite(gradient).all()
            assert np.isfinite(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling.guided(diffusion.discrete_bayesian_flow(3), NORMAL, first), "expected a Gaussian process"),
        (lambda: sampling.guided(PROCESS, 3, first), "denoiser is 3; expected a function"),
        (lambda: sampling.above(PROCESS, NORMAL, first, 0.0, covariance="x"), "covariance is 'x'; expected one of"),
        (
            lambda: sampling.above(PROCESS, NORMAL, lambda x: x, 0.0)(jnp.zeros(3), 0.5, None),
            "quantity is of shape (3,)",
        ),
        (lambda: sampling.observed(PROCESS, NORMAL, first, 1.0, 0.0), "noise_scale is 0.0; expected positive numbers"),
        (
            lambda: sampling.observed(PROCESS, NORMAL, first, jnp.zeros(2), 1.0)(jnp.zeros(3), 0.5, None),
            "operator is of shape (); expected (2,)",
        ),
        (lambda: sampling.composed(PROCESS, []), "denoisers is []; expected a list of one denoiser or more"),
        (lambda: sampling.composed(PROCESS, [NORMAL], jnp.ones(2)), "expected (1,), one for each denoiser"),
        (
            lambda: sampling.twisted(jax.random.key(0), PROCESS, NORMAL, first, first, 3, particles=0),
            "particles is 0; expected a whole number, 1 or more",
        ),
        (lambda: sampling.classifier_free(None, 1.0), "denoiser is None; expected a function"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
