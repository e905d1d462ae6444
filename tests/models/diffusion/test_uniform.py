"""Uniform, binomial and general discrete diffusion against products of transition matrices and enumerated laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import diffusion
from tests.models.diffusion import _token_oracles as oracles

SIZE = oracles.VOCABULARY
STATES = jnp.asarray(oracles.states(SIZE))
EXAMPLES = jnp.asarray(oracles.EXAMPLES)


def near_matrices(steps):
    """Tokens wander to their neighbours, with a chance that grows: no two rows alike, not symmetric."""
    step = np.array([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.0, 0.2, 0.8]])
    return np.array([(1 - share) * np.eye(SIZE) + share * step for share in np.linspace(0.3, 1.0, steps)])


def chains(steps):
    return {
        "uniform": (diffusion.uniform(SIZE), oracles.uniform_matrices(steps)),
        "discrete": (diffusion.discrete(near_matrices(steps)), near_matrices(steps)),
    }


def pair_weights(law, rows):
    return law[:, None] * np.array(
        [[oracles.joint(rows, x0, xt) for xt in oracles.states(SIZE)] for x0 in oracles.EXAMPLES]
    )


def over_pairs(function):
    """A function of (x0, xt, t) for all pairs, jitted: (27, 27)."""
    return jax.jit(lambda t: jax.vmap(lambda x0: jax.vmap(lambda xt: function(x0, xt, t))(STATES))(EXAMPLES))


def matrix_denoiser(law, matrices):
    """Exact logits for times i / steps, given the likelihoods of the chain."""
    products = jnp.asarray(np.array([oracles.product(matrices, 0, i) for i in range(len(matrices) + 1)]), jnp.float32)

    def denoise(x, t, condition):
        rows = products[jnp.round(t * len(matrices)).astype(int)]
        likelihood = rows[EXAMPLES, x[None]]
        logits = []
        for site in range(3):
            weights = jnp.asarray(law, jnp.float32)
            for other in {0, 1, 2} - {site}:
                weights = weights * likelihood[:, other]
            logits.append(jnp.stack([jnp.sum(jnp.where(EXAMPLES[:, site] == v, weights, 0)) for v in range(SIZE)]))
        return jnp.log(jnp.stack(logits))

    return denoise


@pytest.mark.parametrize("name", ["uniform", "discrete"])
@pytest.mark.parametrize(("first", "last"), [(2, 3), (0, 4), (1, 5), (0, 1)])
def test_reverse_transitions_are_those_of_the_chain(name, first, last):
    process, matrices = chains(5)[name]
    t, s = last / 5, first / 5
    probs = np.array([0.2, 0.0, 0.8])
    for token in range(SIZE):
        # Certain outputs, and mixtures of them by Bayes' rule.
        likelihood = oracles.product(matrices, 0, last)[:, token]
        exact = np.exp(np.asarray(process.log_clean(jnp.log(jnp.asarray([probs])), jnp.array([token]), t)))[0]
        mixed = probs * likelihood / (probs @ likelihood)
        np.testing.assert_allclose(exact, mixed, atol=2e-6)
        found = np.exp(np.asarray(process.log_reverse(jnp.log(jnp.asarray([probs])), jnp.array([token]), t, s)))[0]
        parts = [
            weight * oracles.token_posterior(matrices, v, token, first, last)
            for v, weight in enumerate(mixed)
            if weight
        ]
        np.testing.assert_allclose(found, sum(parts), atol=3e-6)


@pytest.mark.parametrize("name", ["uniform", "discrete"])
def test_draws_have_the_laws_of_the_chain(name):
    # 40,000 draws of three tokens; |z| < 4.5 for 27 counts is wrong once in 5,000 seeds.
    process, matrices = chains(5)[name]
    number = 40_000
    keys = jax.random.split(jax.random.key(2), 3 * number)
    x0 = jnp.array([0, 1, 2])
    output = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2]]))
    corrupted = jax.jit(jax.vmap(lambda key: process.corrupt(key, x0, 0.6)))(keys[:number])
    moved = jax.jit(jax.vmap(lambda key: process.reverse_step(key, x0, output, 0.6, 0.2)))(keys[number : 2 * number])
    prior = jax.jit(jax.vmap(lambda key: process.sample_prior(key, (3,))))(keys[2 * number :])
    reverse = np.exp(np.asarray(process.log_reverse(output, x0, 0.6, 0.2)))
    ends = np.tile(oracles.product(matrices, 0, 5).mean(axis=0), (3, 1))
    for draws, laws in ((corrupted, oracles.product(matrices, 0, 3)), (moved, reverse), (prior, ends)):
        assert draws.dtype == jnp.int32
        found = np.array([np.bincount(np.asarray(draws)[:, site], minlength=SIZE) for site in range(3)])
        assert np.all(np.abs(found - number * laws) < 4.5 * np.sqrt(number * laws * (1 - laws)))


@pytest.mark.parametrize("name", ["uniform", "discrete"])
@pytest.mark.parametrize("which", ["joint", "sites"])
def test_bound_in_discrete_time_is_that_of_the_chain(name, which):
    law = oracles.correlated_law() if which == "joint" else oracles.independent_law()[0]
    process, matrices = chains(3)[name]
    denoiser = matrix_denoiser(law, matrices)
    divergence = over_pairs(lambda x0, xt, t: process.step_divergence(denoiser(xt, t, None), x0, xt, t, t - 1 / 3))
    total = 0.0
    for i in range(1, 4):
        values = np.asarray(divergence(jnp.float32(i / 3)))
        weights = pair_weights(law, oracles.product(matrices, 0, i))
        total += np.sum(np.where(weights > 0, values, 0) * weights)
    expected = oracles.factorized_bound(law, matrices)
    np.testing.assert_allclose(total, expected, rtol=2e-5)
    # Steps, and what the prior does not know of the data: for independent tokens there is no more.
    ends = oracles.product(matrices, 0, 3)
    prior = ends.mean(axis=0)
    losses = np.sum(ends * np.log(ends / prior), axis=1)[oracles.EXAMPLES].sum(axis=1)
    found = np.array([process.bound_ends(x0) for x0 in EXAMPLES])
    np.testing.assert_allclose(found, losses, atol=1e-6)
    if which == "sites":
        marginals = oracles.independent_law()[1] @ ends
        known = np.sum(marginals * np.log(marginals / prior))
        np.testing.assert_allclose(total + law @ losses, oracles.entropy(law) + known, atol=2e-5)


@pytest.mark.parametrize("which", ["joint", "sites"])
def test_bound_of_uniform_noise_in_continuous_time_of_the_exact_denoiser_is_the_entropy(which):
    law = oracles.correlated_law() if which == "joint" else oracles.independent_law()[0]
    process, denoiser = diffusion.uniform(SIZE), oracles.exact_denoiser(law, "uniform")
    rates = over_pairs(lambda x0, xt, t: process.bound_rate(denoiser(xt, t, None), x0, xt, t))
    nodes, shares = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for u, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        t = u**3  # for the logarithm of t in the rate
        weights = pair_weights(law, (1 - t) * np.eye(SIZE) + t / SIZE)
        total += share * 3 * u**2 * np.sum(np.asarray(rates(jnp.float32(t))) * weights)
    np.testing.assert_allclose(total, oracles.entropy(law), atol=1e-4)


@pytest.mark.parametrize("schedule", [diffusion.cosine_survival(), diffusion.geometric_survival(1e-3, 8.0)])
def test_rate_is_the_limit_of_steps(schedule, x64):
    process = diffusion.uniform(4, schedule)
    rng = np.random.default_rng(1)
    output, x0, xt = jnp.asarray(rng.normal(size=(3, 4))), jnp.array([0, 1, 2]), jnp.array([0, 2, 3])
    for t in (0.05, 0.5, 0.95):
        gap = 1e-5 * min(t, 1 - t)
        by_steps = process.step_divergence(output, x0, xt, jnp.float64(t), jnp.float64(t - gap)) / gap
        np.testing.assert_allclose(process.bound_rate(output, x0, xt, jnp.float64(t)), by_steps, rtol=2e-4)
        flow = (jnp.exp(process.log_reverse(output, xt, jnp.float64(t), jnp.float64(t - gap)))) / gap
        rates = process.reverse_rates(output, xt, jnp.float64(t))
        away = np.arange(4) != np.asarray(xt)[:, None]
        np.testing.assert_allclose(np.asarray(rates)[away], np.asarray(flow)[away], rtol=2e-3)
        assert np.all(np.asarray(rates)[~away] == 0)


def test_rate_in_float32_is_that_in_float64(x64):
    process = diffusion.uniform(50)
    rng = np.random.default_rng(2)
    output, x0 = rng.normal(size=(6, 50)), jnp.array([0, 1, 2, 3, 4, 5])
    for xt in (x0, x0 + 7):
        for t in (2e-6, 1e-3, 0.3, 0.9, 0.999, 0.99999):
            exact = process.bound_rate(jnp.asarray(output), x0, xt, jnp.float64(t))
            rough = process.bound_rate(jnp.asarray(output, jnp.float32), x0, xt, jnp.float32(t))
            assert rough.dtype == jnp.float32
            np.testing.assert_allclose(rough, exact, rtol=2e-3)


def test_a_matrix_chain_of_masks_is_masked_diffusion():
    matrices = oracles.absorbing_matrices(4)
    by_matrices, process = diffusion.discrete(matrices, vocabulary=SIZE), diffusion.masked(SIZE)
    output = jnp.asarray(np.random.default_rng(3).normal(size=(3, SIZE)), jnp.float32)
    x0, noise = jnp.array([0, 1, 2]), jnp.full(3, SIZE)
    some = noise.at[1].set(1)
    assert by_matrices.states == SIZE + 1
    assert by_matrices.sample_prior(jax.random.key(0), (5,)).tolist() == [SIZE] * 5
    np.testing.assert_allclose(by_matrices.bound_ends(x0), 0, atol=1e-6)
    for xt, t, s in ((some, 0.75, 0.5), (noise, 1.0, 0.25), (some, 0.25, 0.0)):
        found = by_matrices.step_divergence(output, x0, xt, t, s)
        np.testing.assert_allclose(found, process.step_divergence(output, x0, xt, t, s), rtol=1e-4)


def test_binomial_is_uniform_diffusion_of_two_tokens():
    bits, pairs = diffusion.binomial(), diffusion.uniform(2)
    odds = jnp.array([0.3, -2.0, 5.0, -jnp.inf])
    logits = jnp.stack([jnp.zeros(4), odds], -1).at[3].set(jnp.array([0.0, -jnp.inf]))
    x0, xt = jnp.array([1, 0, 1, 0]), jnp.array([1, 1, 0, 1])
    for method in ("loss", "bound_rate"):
        found = getattr(bits, method)(odds, x0, xt, 0.4)
        np.testing.assert_allclose(found, getattr(pairs, method)(logits, x0, xt, 0.4), rtol=1e-5)
    found = bits.step_divergence(odds, x0, xt, 0.4, 0.2)
    np.testing.assert_allclose(found, pairs.step_divergence(logits, x0, xt, 0.4, 0.2), rtol=1e-5)
    assert bits.output_shape((4,)) == (4,)
    # The reverse transition of one bit, by hand: odds of 1 at s given a 1 at t.
    kept, alpha = 0.6 / 0.8, 0.8
    p = alpha / (1 + np.exp(-0.3)) + (1 - alpha) / 2
    odd = p * (kept + (1 - kept) / 2) / ((1 - p) * (1 - kept) / 2)
    np.testing.assert_allclose(np.exp(bits.log_reverse(odds, xt, 0.4, 0.2)[0, 1]), odd / (1 + odd), rtol=1e-5)


def test_logits_of_minus_infinity_rule_out():
    process = diffusion.uniform(3, weighting="simple")
    output, x0, xt = jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([2]), jnp.array([1])

    def value(output, function):
        return function(output, x0, xt, 0.5)

    for function in (process.loss, process.bound_rate, lambda *given: process.step_divergence(*given, 0.2)):
        found, gradient = jax.value_and_grad(value)(output, function)
        assert np.isfinite(found)
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(process.loss(output, x0, xt, 0.5), np.log(2), rtol=1e-6)
    assert process.loss(output, jnp.array([1]), xt, 0.5) == jnp.inf


def test_discrete_times_between_steps_are_those_of_the_end():
    process = diffusion.discrete(near_matrices(7))
    ends = [int(process.step_of(jnp.float32(i / 7))) for i in range(8)]
    assert ends == list(range(8))
    assert [int(process.step_of(t)) for t in (1e-3, 0.5 / 7, 1.5 / 7, 0.999)] == [1, 1, 2, 7]
    x0, output = jnp.array([0]), jnp.zeros((1, 3))
    rate = process.bound_rate(output, x0, x0, 2.5 / 7)
    np.testing.assert_allclose(rate, 7 * process.step_divergence(output, x0, x0, 3 / 7, 2 / 7), rtol=1e-6)


SUMS = "probabilities that sum to one"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffusion.uniform(1), "vocabulary is 1; expected a whole number, 2 or more"),
        (lambda: diffusion.uniform(2.5), "vocabulary is 2.5"),
        (lambda: diffusion.uniform(3, weighting="linear"), "weighting is 'linear'"),
        (lambda: diffusion.binomial(weighting="linear"), "binomial: weighting"),
        (lambda: diffusion.discrete(np.zeros((0, 3, 3))), r"transitions is of shape \(0, 3, 3\); expected \(steps"),
        (lambda: diffusion.discrete(np.ones((2, 3, 4)) / 4), r"of shape \(2, 3, 4\)"),
        (lambda: diffusion.discrete(np.ones((2, 1, 1))), r"of shape \(2, 1, 1\)"),
        (
            lambda: diffusion.discrete(np.array([[[1, 0], [0, 0.0]]])),
            r"\[0.0, 0.0\] in row 1 of step 0; expected " + SUMS,
        ),
        (lambda: diffusion.discrete(np.array([[[1.5, -0.5], [0, 1]]])), SUMS),
        (lambda: diffusion.discrete(np.array([[[np.nan, 0.5], [0, 1]]])), SUMS),
        (lambda: diffusion.discrete(np.eye(3)[None], vocabulary=4), "vocabulary is 4; expected at most"),
        (lambda: diffusion.uniform(3).corrupt(jax.random.key(0), jnp.array([5]), 0.5), "tokens with 5 among them"),
        (
            lambda: diffusion.uniform(3).loss(jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1]), 0.0),
            "impossible after x0",
        ),
        (
            lambda: diffusion.discrete(near_matrices(4)).step_divergence(
                jnp.zeros((1, 3)), jnp.array([0]), jnp.array([2]), 0.25, 0.0
            ),
            "impossible after x0 at time 0.25",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
