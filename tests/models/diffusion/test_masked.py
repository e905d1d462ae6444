"""Masked diffusion against absorbing chains and laws that can be enumerated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import diffusion
from tests.models.diffusion import _token_oracles as oracles

MASK = oracles.VOCABULARY
STATES = jnp.asarray(oracles.states(MASK + 1))
EXAMPLES = jnp.asarray(oracles.EXAMPLES)
SCHEDULES = {
    "linear": (diffusion.linear_survival(), lambda t: 1 - t),
    "cosine": (diffusion.cosine_survival(), lambda t: 1 - jnp.cos(jnp.pi / 2 * (1 - t))),
}


def pair_weights(law, alpha):
    """p(x_0) q(x_t | x_0) for all pairs, (27, 64)."""
    rows = alpha * np.eye(MASK, MASK + 1)
    rows[:, MASK] = 1 - alpha
    return law[:, None] * np.array(
        [[oracles.joint(rows, x0, xt) for xt in oracles.states(MASK + 1)] for x0 in oracles.EXAMPLES]
    )


@functools.partial(jax.jit, static_argnames=("quantity", "process", "denoiser"))
def over_pairs(quantity, process, denoiser, t, s):
    """A quantity for all pairs of examples and states, (27, 64); what cannot be is of no use."""

    def one(x0, xt):
        output = denoiser(xt, t, None)
        if quantity == "rate":
            return process.bound_rate(output, x0, xt, t)
        return process.step_divergence(output, x0, xt, t, s)

    return jax.vmap(lambda x0: jax.vmap(lambda xt: one(x0, xt))(STATES))(EXAMPLES)


def expected(values, weights):
    return np.sum(np.where(weights > 0, np.asarray(values) * weights, 0))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("law", [oracles.correlated_law(), oracles.independent_law()[0]], ids=["joint", "sites"])
def test_bound_in_continuous_time_of_the_exact_denoiser_is_the_entropy(law, schedule):
    schedule, alpha = SCHEDULES[schedule]
    process, denoiser = diffusion.masked(MASK, schedule), oracles.exact_denoiser(law, "mask", alpha)
    nodes, shares = np.polynomial.legendre.leggauss(16)
    total = 0.0
    for t, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        rates = over_pairs("rate", process, denoiser, jnp.float32(t), jnp.float32(0))
        total += share * expected(rates, pair_weights(law, float(alpha(t))))
    # The integrand is smooth, and a polynomial for the linear schedule: what is left is rounding.
    np.testing.assert_allclose(total, oracles.entropy(law), atol=2e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_bound_in_discrete_time_is_that_of_the_absorbing_chain(steps):
    law = oracles.correlated_law()
    process, denoiser = diffusion.masked(MASK), oracles.exact_denoiser(law, "mask")
    total = 0.0
    for i in range(1, steps + 1):
        values = over_pairs("step", process, denoiser, jnp.float32(i / steps), jnp.float32((i - 1) / steps))
        total += expected(values, pair_weights(law, 1 - i / steps))
    np.testing.assert_allclose(total, oracles.factorized_bound(law, oracles.absorbing_matrices(steps)), rtol=1e-5)
    assert total > oracles.entropy(law) + 0.02  # tokens of one step are drawn apart


def test_bound_in_discrete_time_of_independent_tokens_is_the_entropy():
    law, _ = oracles.independent_law()
    process, denoiser = diffusion.masked(MASK), oracles.exact_denoiser(law, "mask")
    values = over_pairs("step", process, denoiser, jnp.float32(1), jnp.float32(0))
    np.testing.assert_allclose(expected(values, pair_weights(law, 0.0)), oracles.entropy(law), rtol=1e-5)


def test_corrupt_and_reverse_steps_have_the_laws_of_the_chain():
    # Counts of 3 x 40,000 draws; |z| < 4.5 is wrong once in 1e5 tests.
    process, matrices, number = diffusion.masked(MASK), oracles.absorbing_matrices(10), 40_000
    keys = jax.random.split(jax.random.key(0), 2 * number)
    x0 = jnp.array([0, 1, 2])
    corrupted = np.asarray(jax.jit(jax.vmap(lambda key: process.corrupt(key, x0, 0.7)))(keys[:number]))
    assert corrupted.dtype == np.int32
    probs = jnp.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]])
    xt = jnp.array([MASK, MASK, 2])
    step = jax.jit(jax.vmap(lambda key: process.reverse_step(key, xt, jnp.log(probs), 0.7, 0.4)))
    moved = np.asarray(step(keys[number:]))
    for site in range(3):
        rows = oracles.product(matrices, 0, 7)[site]
        reverse = sum(
            float(p) * oracles.token_posterior(matrices, v, int(xt[site]), 4, 7)
            for v, p in enumerate(probs[site])
            if site < 2
        )
        if site == 2:
            reverse = np.eye(MASK + 1)[2]
        for draws, law in ((corrupted[:, site], rows), (moved[:, site], reverse)):
            found = np.bincount(draws, minlength=MASK + 1)
            spread = np.sqrt(number * law * (1 - law))
            assert np.all(found[spread == 0] == number * law[spread == 0])
            some = spread > 0
            assert np.all(np.abs(found - number * law)[some] < 4.5 * spread[some])


@pytest.mark.parametrize("weighting", ["bound", "linear", "simple"])
def test_loss_is_the_weighted_cross_entropy(weighting):
    process = diffusion.masked(MASK, diffusion.polynomial_survival(2.0), weighting)
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    x0, xt, t = np.array([0, 1, 2, 1]), np.array([0, MASK, MASK, 1]), 0.3
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(log_probs[1, 1] + log_probs[2, 2])
    expected = {"bound": 2 / 0.3 * entropy, "linear": (1 - 0.09) * entropy / 4, "simple": entropy / 4}[weighting]
    np.testing.assert_allclose(process.loss(logits, x0, xt, t), expected, rtol=1e-5)


def test_logits_of_minus_infinity_rule_out_and_harm_nothing_else():
    process = diffusion.masked(3)
    x0, xt = jnp.array([0, 1]), jnp.array([MASK, 1])
    output = jnp.array([[0.0, -jnp.inf, 1.0], [-jnp.inf, -jnp.inf, jnp.nan]])  # the second is not looked at

    def loss(output, x0):
        return process.loss(output, x0, xt, 0.5)

    value, gradient = jax.value_and_grad(loss)(output, x0)
    np.testing.assert_allclose(value, 2 * np.log1p(np.e), rtol=1e-6)
    share = 1 / (1 + np.e)
    np.testing.assert_allclose(gradient, [[2 * (share - 1), 0, 2 * (1 - share)], [0, 0, 0]], rtol=1e-5)
    assert loss(output, jnp.array([1, 1])) == jnp.inf
    keys = jax.random.split(jax.random.key(1), 200)
    drawn = jax.vmap(lambda key: process.reverse_step(key, xt, output, 0.5, 0.0))(keys)
    assert set(np.asarray(drawn[:, 0])) == {0, 2}
    assert np.all(drawn[:, 1] == 1)


def test_log_clean_keeps_clean_tokens():
    process = diffusion.masked(3)
    output = jnp.zeros((2, 3)).at[0].set(jnp.array([5.0, -jnp.inf, jnp.nan]))
    probs = jnp.exp(process.log_clean(output, jnp.array([1, MASK]), 0.5))
    np.testing.assert_allclose(probs, [[0, 1, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6)


def test_float64_stays(x64):
    process = diffusion.masked(3)
    output = jnp.zeros((2, 3), jnp.float64)
    assert process.bound_rate(output, jnp.array([0, 1]), jnp.array([3, 3]), jnp.float64(0.5)).dtype == jnp.float64
    assert process.loss(output.astype(jnp.bfloat16), jnp.array([0, 1]), jnp.array([3, 3]), 0.5).dtype == jnp.float32


def test_bytes_have_room_for_the_mask():
    process = diffusion.masked(256)
    assert process.corrupt(jax.random.key(0), jnp.array([255, 0], jnp.uint8), 1.0).tolist() == [256, 256]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: diffusion.masked(1), ValueError, "vocabulary is 1; expected a whole number, 2 or more"),
        (lambda p: diffusion.masked(3, diffusion.cosine()), TypeError, "expected a survival schedule"),
        (lambda p: diffusion.masked(3, weighting="best"), ValueError, "weighting is 'best'; expected one of"),
        (lambda p: p.corrupt(jax.random.key(0), jnp.array([0, 3]), 0.5), ValueError, "tokens with 3 among them"),
        (lambda p: p.corrupt(jax.random.key(0), jnp.array([-1]), 0.5), ValueError, "expected tokens from 0 to 2"),
        (lambda p: p.corrupt(jax.random.key(0), jnp.array([0.0]), 0.5), TypeError, "of an integer dtype"),
        (lambda p: p.corrupt(jax.random.key(0), jnp.array([0]), 1.5), ValueError, "a time from 0"),
        (
            lambda p: p.bound_rate(jnp.zeros((2, 3)), jnp.array([0, 1]), jnp.array([3, 2]), 0.5),
            ValueError,
            "impossible",
        ),
        (
            lambda p: p.target(jnp.array([0]), jnp.array([1]), 0.5),
            ValueError,
            r"impossible after x0 at time 0.5.*\(0,\)",
        ),
        (lambda p: p.output(lambda x, t, c: x, jnp.array([0]), 0.5, None, (1,)), ValueError, r"expected \(1, 3\)"),
    ],
)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(diffusion.masked(3))
    assert "\n" not in str(caught.value)
