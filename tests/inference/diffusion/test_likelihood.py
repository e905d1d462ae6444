"""Bounds and likelihoods against closed forms, SciPy's densities and enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference import diffusion as inference
from jaxprob.models import diffusion
from tests.models.diffusion import _mixture_oracles as oracles
from tests.models.diffusion import _token_oracles as tokens

PROCESSES = {
    "preserving": diffusion.variance_preserving(prediction="v"),
    "exploding": diffusion.variance_exploding(),
    "sub_preserving": diffusion.sub_variance_preserving(prediction="clean"),
    "flow_matching": diffusion.flow_matching(),
    "elucidated": diffusion.elucidated(),
    "bayesian_flow": diffusion.bayesian_flow(),
}
SOME = "preserving", "flow_matching"
CASES = [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in PROCESSES]


def mixture(name):
    process = PROCESSES[name]
    return process, diffusion.gaussian_mixture_denoiser(process, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES)


def exact_log_density(xs):
    laws = [stats.multivariate_normal(m, c) for m, c in zip(oracles.MEANS, oracles.COVARIANCES, strict=True)]
    return np.log(sum(w * law.pdf(xs) for w, law in zip(oracles.WEIGHTS, laws, strict=True)))


DATA = oracles.draw(np.random.default_rng(0), 64)


# The likelihood.


@pytest.mark.parametrize("name", CASES)
def test_log_likelihood_of_the_exact_score_is_that_of_the_data(name):
    """With the schedules that processes have by default, whose ends are errors too."""
    result = inference.log_likelihood(*mixture(name), jnp.asarray(DATA, jnp.float32))
    assert result.converged.all()
    assert result.log_likelihood.dtype == jnp.float32
    np.testing.assert_allclose(result.log_likelihood, exact_log_density(DATA), atol=1e-3)
    np.testing.assert_array_equal(result.standard_error, 0)
    # Where data go to is noise: of 128 numbers, a mean square beyond four errors is a false alarm in 2e4 runs.
    latent = np.asarray(result.latent) / float(PROCESSES[name].scales(1.0)[1])
    assert abs(np.mean(latent**2) - 1) < 4 * np.sqrt(2 / 128)


def test_the_law_is_that_of_data_with_the_noise_of_time_zero():
    for process in (
        diffusion.variance_preserving(diffusion.log_linear(2.0, -15.0)),
        diffusion.flow_matching(diffusion.log_linear(2.0, -15.0)),
    ):
        denoiser = diffusion.gaussian_mixture_denoiser(process, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES)
        result = inference.log_likelihood(process, denoiser, jnp.asarray(DATA[:8], jnp.float32))
        # Of x over alpha, whose noise has a standard deviation of 1 / e.
        expected = [oracles.log_density(jnp.asarray(x, jnp.float32), 1.0, float(np.exp(-1))) for x in DATA[:8]]
        np.testing.assert_allclose(result.log_likelihood, expected, atol=1e-3)


@pytest.mark.slow
def test_fixed_steps_have_order_five(x64):
    run = functools.partial(inference.log_likelihood, *mixture("preserving"), jnp.asarray(DATA[:8]))
    coarse, half, fine = (run(steps=steps).log_likelihood for steps in (60, 120, 480))
    assert np.log2(np.abs(coarse - fine).max() / np.abs(half - fine).max()) > 4.5
    assert np.abs(coarse - fine).max() < 1e-6


def test_fixed_steps_have_derivatives(x64):
    process, denoiser = mixture("preserving")
    x = jnp.asarray(DATA[:8])
    gradient = jax.grad(lambda x: jnp.sum(inference.log_likelihood(process, denoiser, x, steps=80).log_likelihood))(x)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(oracles.log_density))(x), rtol=1e-3, atol=1e-2)


def test_random_probes_are_unbiased_and_know_their_error():
    x = jnp.asarray(np.repeat(DATA[:2], 200, 0), jnp.float32)
    result = inference.log_likelihood(*mixture("preserving"), x, steps=60, probes=4, key=jax.random.key(0))
    errors = (np.asarray(result.log_likelihood) - np.repeat(exact_log_density(DATA[:2]), 200)).reshape(2, 200)
    spread = errors.std(1, ddof=1)
    assert np.all(spread > 0.01)
    # 4.5 standard errors: a false alarm in 7e4 runs; 1e-3 is what the exact trace may be off.
    assert np.all(np.abs(errors.mean(1)) < 4.5 * spread / np.sqrt(200) + 1e-3)
    told = np.sqrt(np.mean(np.asarray(result.standard_error).reshape(2, 200) ** 2, 1))
    np.testing.assert_allclose(told, spread, rtol=0.25)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_results_have_the_dtype_of_data(x64, dtype):
    process, denoiser = mixture("preserving")
    x = jax.ShapeDtypeStruct((3, 2), dtype)
    result = jax.eval_shape(lambda x: inference.log_likelihood(process, denoiser, x), x)
    assert {result.log_likelihood.dtype, result.standard_error.dtype, result.latent.dtype} == {jnp.dtype(dtype)}
    for steps in (None, 5):
        bound = jax.eval_shape(
            lambda key, x, steps=steps: inference.negative_elbo(key, process, denoiser, x, steps=steps),
            jax.random.key(0),
            x,
        )
        assert {bound.nats.dtype, bound.standard_error.dtype} == {jnp.dtype(dtype)}


def test_too_few_steps_are_told():
    result = inference.log_likelihood(*mixture("preserving"), jnp.asarray(DATA[:2], jnp.float32), max_steps=3)
    assert not result.converged.any()
    assert np.isnan(result.log_likelihood).all()
    assert result.evaluations.tolist() == [19, 19]


def test_conditions_are_of_one_example_each():
    process = diffusion.variance_preserving(diffusion.cosine(), "clean")

    def denoiser(x, t, condition):
        """Of data N(condition, 0.25)."""
        alpha, sigma = process.scales(t)
        share = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return condition + share * (x - alpha * condition)

    x, conditions = jnp.array([[0.0], [0.0], [0.0]]), jnp.array([[0.0], [0.5], [-1.0]])
    expected = stats.norm(conditions[:, 0], 0.5).logpdf(0.0)
    result = inference.log_likelihood(process, denoiser, x, condition=conditions)
    np.testing.assert_allclose(result.log_likelihood, expected, atol=2e-3)
    bound = inference.negative_elbo(jax.random.key(0), process, denoiser, x, condition=conditions, draws=2048)
    assert np.all(np.abs(bound.nats + expected) < 4.5 * bound.standard_error)


# The bound.


def normal_denoiser(process, variance):
    return diffusion.gaussian_mixture_denoiser(process, [1.0], np.zeros((1, len(variance))), np.diag(variance))


@pytest.mark.parametrize("name", CASES)
def test_bound_in_continuous_time_is_the_entropy(name):
    """With the schedules that processes have by default."""
    process, variance = PROCESSES[name], np.array([0.09, 0.5])
    x = np.random.default_rng(1).normal(size=(4000, 2)) * np.sqrt(variance)
    bound = inference.negative_elbo(
        jax.random.key(0), process, normal_denoiser(process, variance), jnp.asarray(x, jnp.float32), draws=256
    )
    gap = np.asarray(bound.nats) + stats.norm(0, np.sqrt(variance)).logpdf(x).sum(1)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    # Without the linear guess's error taken off, it would be above 0.01.
    assert error < 0.0045
    # In mean over data, for the exact denoiser has no gap but that of the ends. A false alarm is one run in 7e4.
    assert abs(gap.mean()) < 4.5 * error


def test_the_error_of_a_linear_guess_is_taken_off_without_bias():
    """What `expected_error` is on average is the denoiser's error, also of one that has nothing of the guess."""
    x0 = jnp.array([0.8, -0.3, 1.5])
    for made in (diffusion.variance_preserving(), diffusion.elucidated(data_scale=0.5)):

        def apart(key, t, made=made):
            xt = made.corrupt(key, x0, t)
            output = made.from_clean(0.1 * xt, xt, t)
            return made.expected_error(output, x0, xt, t) - made._squared_error(output, x0, xt, t)

        times = jnp.stack([made.schedule.inverse(level) for level in (6.0, 1.0, -4.0)])
        keys = jax.random.split(jax.random.key(0), 10_000)
        gaps = np.asarray(jax.jit(jax.vmap(jax.vmap(apart, (0, None)), (None, 0)))(keys, times), float)
        # 4.5 standard errors: six comparisons, a false alarm in 2e4 runs.
        assert np.all(np.abs(gaps.mean(1)) < 4.5 * gaps.std(1) / 100 + 1e-6)
        assert np.all(gaps.std(1) > 1e-3)


@pytest.mark.parametrize("steps", [7, pytest.param(40, marks=pytest.mark.slow)])
def test_bound_in_discrete_time_is_its_closed_form(steps):
    process, variance = diffusion.variance_preserving(diffusion.log_linear(7.0, -4.0), "noise"), np.array([0.09, 0.5])
    levels = 7 - 11 * np.arange(steps + 1) / steps
    # E |noise - E[noise]|^2 is the share of alpha^2 variance in the variance of x_t.
    ratio = np.exp(levels[1:, None]) * variance
    terms = 0.5 * np.expm1(levels[:-1] - levels[1:])[:, None] * ratio / (1 + ratio)
    ends = 0.5 * np.exp(-4) * variance.sum() + 2 * 0.5 * (np.log(2 * np.pi) + 1 - 7)
    x = np.random.default_rng(2).normal(size=(4000, 2)) * np.sqrt(variance)
    # In the log ratio this schedule is even in time; another one with the same ends gives the same steps.
    other = diffusion.variance_preserving(diffusion.cosine(7.0, -4.0), "noise")
    for made, draws, grid in ((process, None, "time"), (process, 16, "time"), (other, None, "log_ratio")):
        bound = inference.negative_elbo(
            jax.random.key(1),
            made,
            normal_denoiser(made, variance),
            jnp.asarray(x, jnp.float32),
            steps=steps,
            draws=draws,
            grid=grid,
        )
        nats = np.asarray(bound.nats)
        error = nats.std(ddof=1) / np.sqrt(len(nats))
        assert error < 0.12
        assert abs(nats.mean() - terms.sum() - ends) < 4.5 * error


def test_a_wrong_denoiser_has_a_larger_bound():
    process = PROCESSES["preserving"]
    x = jnp.asarray(0.3 * np.random.default_rng(3).normal(size=(500, 2)), jnp.float32)
    right, wrong = (
        inference.negative_elbo(jax.random.key(0), process, normal_denoiser(process, [v, v]), x) for v in (0.09, 0.5)
    )
    # KL[N(0, 0.09), N(0, 0.5)] in two dimensions is 0.89.
    assert abs(np.mean(wrong.nats - right.nats) - (0.18 - 1 - np.log(0.18))) < 0.15


@pytest.mark.parametrize("steps", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_standard_errors_are_those_of_repeats(steps):
    process = PROCESSES["preserving"]
    denoiser = normal_denoiser(process, np.array([0.09, 0.5]))
    x = jnp.asarray(np.tile([[0.3, -0.6]], (400, 1)), jnp.float32)
    bound = inference.negative_elbo(jax.random.key(4), process, denoiser, x, steps=steps, draws=32)
    told = np.sqrt(np.mean(np.asarray(bound.standard_error) ** 2))
    # The spread of 400 repeats is known to 3.5 %.
    np.testing.assert_allclose(told, np.std(bound.nats, ddof=1), rtol=0.2)


def test_examples_have_keys_of_their_own_index():
    process, x = PROCESSES["preserving"], jnp.asarray(DATA[:5], jnp.float32)
    denoiser = normal_denoiser(process, np.array([0.09, 0.5]))
    run = functools.partial(inference.negative_elbo, jax.random.key(0), process, denoiser, draws=16)
    np.testing.assert_allclose(run(x).nats[:3], run(x[:3]).nats, rtol=1e-5)
    same = run(jnp.broadcast_to(x[:1], x.shape)).nats
    assert len(set(np.asarray(same).tolist())) == 5


@pytest.mark.parametrize("steps", [None, 30])
def test_tokens_have_the_bound_of_their_law(steps):
    law = tokens.correlated_law()
    process = diffusion.masked(tokens.VOCABULARY)
    denoiser = tokens.exact_denoiser(law, "mask", lambda t: 1 - t)
    which = np.random.default_rng(5).choice(len(law), p=law, size=2000)
    x = jnp.asarray(np.asarray(tokens.EXAMPLES)[which])
    bound = inference.negative_elbo(
        jax.random.key(0), process, denoiser, x, steps=steps, draws=64 if not steps else None
    )
    gap = np.asarray(bound.nats) + np.log(law[which])
    error = np.sqrt(gap.var() / len(gap))
    entropy_gap = gap.mean() if steps is None else min(gap.mean(), 0.0)
    # In continuous time the exact denoiser loses nothing; in steps it loses what the tokens of a step share.
    assert abs(entropy_gap) < 4.5 * error + 1e-3
    if steps:
        assert gap.mean() < 0.05


def test_processes_that_need_keys_and_the_denoiser_get_them():
    process = diffusion.discrete_bayesian_flow(2)
    law = np.array([0.2, 0.8])

    def denoiser(x, t, condition):
        """The exact posterior of one token from the flat belief x, which has the likelihood as odds."""
        return jnp.log(x) + jnp.log(jnp.asarray(law[None], x.dtype))

    which = np.random.default_rng(6).choice(2, p=law, size=(3000, 1))
    for steps in (None, 20):
        bound = inference.negative_elbo(jax.random.key(0), process, denoiser, jnp.asarray(which), steps=steps, draws=40)
        gap = np.asarray(bound.nats) + np.log(law[which[:, 0]])
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        if steps is None:
            assert abs(gap.mean()) < 4.5 * error
        else:
            assert -4.5 * error < gap.mean() < 0.05


# Whole numbers.


def levels_denoiser(process, law, middles):
    def denoiser(x, t, condition):
        alpha, sigma = process.scales(t)
        away = (x[:, None] - alpha * middles[None]) / sigma
        return jax.nn.softmax(jnp.log(law)[None] - 0.5 * away**2, -1) @ middles

    return denoiser


@pytest.mark.parametrize("highest", [7.0, pytest.param(12.0, marks=pytest.mark.slow)])
def test_discretised_data_have_the_bound_of_their_law(highest):
    """Data are a normal law in 16 parts; at a log ratio of 7 noise is half a part wide, and the last step counts."""
    process = diffusion.variance_preserving(diffusion.log_linear(highest, -8.0), "clean")
    edges = np.linspace(-1, 1, 17)
    law = np.diff(stats.norm(0.1, 0.4).cdf(edges))
    law /= law.sum()
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
    denoiser = levels_denoiser(process, jnp.asarray(law, jnp.float32), middles)
    x = np.random.default_rng(7).choice(16, p=law, size=(2000, 2))
    bound = inference.negative_elbo(jax.random.key(0), process, denoiser, jnp.asarray(x), levels=16, draws=512)
    gap = np.asarray(bound.nats) + np.log(law[x]).sum(1)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert error < 0.015
    # With much noise at the end the levels are told apart without their law, which costs a little.
    assert -4.5 * error < gap.mean() < 4.5 * error + (0.15 if highest == 7.0 else 0.002)


def test_dequantised_data_are_even_in_their_parts():
    x = jnp.asarray(np.random.default_rng(8).integers(0, 4, (50, 40)))
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        y, log_volume = inference.dequantize(jax.random.key(0), x, 4, (low, high))
        parts = (np.asarray(y) - low) / (high - low) * 4
        np.testing.assert_array_equal(np.floor(parts), x)
        assert stats.kstest((parts - np.asarray(x)).ravel(), "uniform").pvalue > 1e-4
        np.testing.assert_allclose(log_volume, 2000 * np.log((high - low) / 4))


def test_bits_of_an_even_law():
    # 256 equally likely levels of 5 numbers, by their probability and by the density 1/2 on [-1, 1].
    nats = 5 * np.log(256)
    np.testing.assert_allclose(inference.bits_per_dimension(nats, (5,)), 8.0, rtol=1e-6)
    np.testing.assert_allclose(inference.bits_per_dimension(5 * np.log(2), 5, levels=256), 8.0, rtol=1e-6)
    np.testing.assert_allclose(inference.bits_per_dimension(0.0, (5, 1), 256, (0.0, 1.0)), 8.0, rtol=1e-6)
    assert inference.bits_per_dimension(jnp.zeros(3), 5).shape == (3,)


KEY, VP = jax.random.key(0), PROCESSES["preserving"]


def says_x(x, t, condition):
    return x


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (TypeError, lambda: inference.negative_elbo(KEY, 3, says_x, jnp.ones((2, 1))), "process is"),
        (TypeError, lambda: inference.negative_elbo(KEY, VP, None, jnp.ones((2, 1))), "denoiser is"),
        (
            TypeError,
            lambda: inference.negative_elbo(KEY, diffusion.stochastic_interpolant(), says_x, jnp.ones((2, 1))),
            "process is .* expected a process with a variational bound. A stochastic interpolant has none",
        ),
        (
            ValueError,
            lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), steps=2, grid="karras"),
            "grid is 'karras'; expected one of",
        ),
        (
            ValueError,
            lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), grid="log_ratio"),
            "grid is 'log_ratio' without steps; expected 'time'",
        ),
        (
            ValueError,
            lambda: inference.negative_elbo(
                KEY, diffusion.masked(3), says_x, jnp.ones((2, 1), int), steps=2, grid="log_ratio"
            ),
            "grid is 'log_ratio' for Masked; expected 'time'",
        ),
        (TypeError, lambda: inference.negative_elbo(0, VP, says_x, jnp.ones((2, 1))), "key is"),
        (ValueError, lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones(())), "x is of shape"),
        (ValueError, lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), draws=3), "draws is 3"),
        (ValueError, lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), steps=0), "steps is 0"),
        (
            ValueError,
            lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), condition=jnp.ones(3)),
            "condition is of shape",
        ),
        (
            ValueError,
            lambda: inference.negative_elbo(KEY, VP, lambda x, t, c: x[0], jnp.ones((2, 1))),
            "denoiser is one with output",
        ),
        (
            ValueError,
            lambda: inference.negative_elbo(KEY, diffusion.masked(3), says_x, jnp.array([[3]])),
            "masked|Masked|negative_elbo",
        ),
        (TypeError, lambda: inference.negative_elbo(KEY, VP, says_x, jnp.ones((2, 1)), levels=4), "x is of dtype"),
        (ValueError, lambda: inference.negative_elbo(KEY, VP, says_x, jnp.array([[4]]), levels=4), "x is outside"),
        (TypeError, lambda: inference.log_likelihood(diffusion.masked(3), says_x, jnp.ones((2, 1))), "process is"),
        (TypeError, lambda: inference.log_likelihood(VP, says_x, jnp.ones((2, 1)), probes=2), "key is"),
        (ValueError, lambda: inference.log_likelihood(VP, says_x, jnp.ones((2, 1)), tolerance=0.0), "tolerance is 0.0"),
        (ValueError, lambda: inference.log_likelihood(VP, says_x, jnp.ones((2, 1)), steps=0), "steps is 0"),
        (ValueError, lambda: inference.dequantize(KEY, jnp.array([256]), 256), "x is outside"),
        (TypeError, lambda: inference.dequantize(KEY, jnp.array([0.5]), 256), "x is of dtype"),
        (ValueError, lambda: inference.dequantize(KEY, jnp.array([0]), 1), "levels is 1"),
        (ValueError, lambda: inference.dequantize(KEY, jnp.array([0]), 4, (1.0, 0.0)), "interval is"),
        (ValueError, lambda: inference.bits_per_dimension(1.0, (0, 3)), "shape is"),
    ],
)
def test_wrong_arguments_are_told(error, make, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
