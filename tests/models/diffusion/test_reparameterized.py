"""Routing of tokens against the plain chains, and what holds for all processes of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import core
from jaxprob.models import diffusion
from tests.models.diffusion import _token_oracles as oracles

SIZE = oracles.VOCABULARY


POSSIBLE = [("mask", token, clean) for clean in range(3) for token in (clean, SIZE)]
POSSIBLE += [("uniform", token, clean) for clean in range(3) for token in range(3)]


@pytest.mark.parametrize(("noise", "token", "clean"), POSSIBLE)
def test_routed_posterior_is_that_of_the_chain(noise, token, clean):
    """Of one token of three: the flags summed out, by their own posterior at time t, from the routes at s."""
    process = diffusion.reparameterized(SIZE, noise)
    matrices = oracles.absorbing_matrices(10) if noise == "mask" else oracles.uniform_matrices(10)
    t, s, size = 0.7, 0.4, process.states
    fresh = np.eye(size)[SIZE] if noise == "mask" else np.full(size, 1 / SIZE)
    # P(noisy | x_t, x_0) by Bayes' rule; then what the process does with either flag, from its own routes.
    as_noise, as_data = 0.7 * fresh[token], 0.3 * (token == clean)
    noisy = as_noise / (as_noise + as_data)
    cleared, kept = float(process.cleared(t, s)), float(process.schedule(t) / process.schedule(s))
    remains = kept * np.eye(size)[token] + (1 - kept) * fresh
    routed = noisy * (cleared * np.eye(size)[clean] + (1 - cleared) * remains) + (1 - noisy) * np.eye(size)[token]
    np.testing.assert_allclose(routed, oracles.token_posterior(matrices, clean, token, 4, 7), atol=1e-6)


def test_reverse_steps_follow_their_routes():
    # 40,000 draws of the joint law of token and flag; |z| < 4.5 for 12 counts is wrong once in 10,000 seeds.
    process, number = diffusion.reparameterized(SIZE, "uniform"), 40_000
    xt = diffusion.RoutedTokens(jnp.array([0, 2]), jnp.array([True, False]))
    output = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0]]))
    keys = jax.random.split(jax.random.key(3), number)
    drawn = jax.jit(jax.vmap(lambda key: process.reverse_step(key, xt, output, 0.7, 0.4)))(keys)
    assert np.all(drawn.tokens[:, 1] == 2)
    assert not np.any(drawn.noisy[:, 1])
    cleared, kept = 3 / 7, 0.3 / 0.6
    data = cleared * np.array([0.1, 0.6, 0.3])
    noise = (1 - cleared) * (kept * np.eye(3)[0] + (1 - kept) / 3)
    for flag, law in ((False, data), (True, noise)):
        chosen = np.asarray(drawn.tokens[:, 0])[np.asarray(drawn.noisy[:, 0]) == flag]
        found = np.bincount(chosen, minlength=3)
        assert np.all(np.abs(found - number * law) < 4.5 * np.sqrt(number * law * (1 - law)))


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_corrupt_has_the_law_of_the_chain(noise):
    process, number = diffusion.reparameterized(SIZE, noise), 40_000
    keys = jax.random.split(jax.random.key(4), number)
    drawn = jax.device_get(jax.jit(jax.vmap(lambda key: process.corrupt(key, jnp.array([1]), 0.3)))(keys))
    matrices = oracles.absorbing_matrices(10) if noise == "mask" else oracles.uniform_matrices(10)
    law = oracles.product(matrices, 0, 3)[1]
    found = np.bincount(np.asarray(drawn.tokens[:, 0]), minlength=len(law))
    assert np.all(np.abs(found - number * law) <= 4.5 * np.sqrt(number * law * (1 - law)))
    assert abs(np.sum(drawn.noisy) - 0.3 * number) < 4.5 * np.sqrt(number * 0.3 * 0.7)
    assert np.all(drawn.tokens[:, 0][~drawn.noisy[:, 0]] == 1)


def test_loss_has_the_weights_of_the_paper():
    logits, x0 = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), jnp.array([0, 0])
    xt = diffusion.RoutedTokens(jnp.array([1, 0]), jnp.array([True, False]))
    entropy = np.log(np.e + 2) - 1
    for weighting, weight in (("linear", 0.75), ("reciprocal", 4.0)):
        process = diffusion.reparameterized(SIZE, "uniform", weighting=weighting)
        np.testing.assert_allclose(process.loss(logits, x0, xt, 0.25), weight * entropy / 2, rtol=1e-6)
    np.testing.assert_allclose(process.bound_rate(logits, x0, xt, 0.25), 4 * entropy, rtol=1e-6)
    np.testing.assert_allclose(process.step_divergence(logits, x0, xt, 0.25, 0.2), 0.2 * entropy, rtol=1e-5)


def test_flags_of_masks_are_masked_diffusion():
    routed, plain = diffusion.reparameterized(SIZE), diffusion.masked(SIZE)
    output = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    for i in range(20):
        key = jax.random.key(i)
        first, second = routed.corrupt(key, jnp.array([0, 1, 2]), 0.6), plain.corrupt(key, jnp.array([0, 1, 2]), 0.6)
        assert first.tokens.tolist() == second.tolist()
        first, second = (
            p.reverse_step(core.fold(key, 1), x, output, 0.6, 0.3) for p, x in ((routed, first), (plain, second))
        )
        assert first.tokens.tolist() == second.tolist()
        assert (first.tokens == SIZE).tolist() == first.noisy.tolist()


# What holds for every process of tokens.

PROCESSES = {
    "masked": diffusion.masked(SIZE),
    "masked, linear": diffusion.masked(SIZE, diffusion.cosine_survival(), "linear"),
    "masked, simple": diffusion.masked(SIZE, diffusion.polynomial_survival(2.0), "simple"),
    "uniform": diffusion.uniform(SIZE, diffusion.cosine_survival()),
    "uniform, simple": diffusion.uniform(SIZE, weighting="simple"),
    "discrete": diffusion.discrete(oracles.uniform_matrices(10)),
    "discrete, simple": diffusion.discrete(oracles.absorbing_matrices(10), SIZE, "simple"),
    "routed masks": diffusion.reparameterized(SIZE, "mask", diffusion.geometric_survival(), "reciprocal"),
    "routed uniform": diffusion.reparameterized(SIZE, "uniform"),
    "binomial": diffusion.binomial(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_everything_is_finite_at_the_ends_of_time_in_float32(name):
    process = PROCESSES[name]
    x0 = jnp.array([0, 1, 1, 0])
    output = jnp.asarray(np.random.default_rng(1).normal(size=process.output_shape((4,))), jnp.float32)

    @jax.jit
    @jax.vmap
    def at(key, t, s):
        xt = process.corrupt(core.fold(key, 0), x0, t)
        values = {}
        for method, given in (("loss", (t,)), ("bound_rate", (t,)), ("step_divergence", (t, s))):
            values[method] = jax.value_and_grad(lambda o, m=method, g=given: getattr(process, m)(o, x0, xt, *g))(output)
        return values, process.weight(t), process.reverse_step(core.fold(key, 1), xt, output, t, s)

    times = jnp.array([0.0, 1e-30, 1e-7, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-7, 1.0], jnp.float32)
    keys = jax.random.split(jax.random.key(5), 8)
    values, weights, moved = at(keys, times, 0.5 * times)
    for leaf in jax.tree.leaves((values, weights)):
        assert np.isfinite(leaf).all()
        assert leaf.dtype == jnp.float32
    for leaf in jax.tree.leaves(moved):
        assert set(np.ravel(leaf).tolist()) <= set(range(process.states))
    for method in values:
        assert np.all(np.asarray(values[method][0]) >= -1e-6)
    steps = values["step_divergence"][0]
    assert steps[0] == pytest.approx(0, abs=1e-6)
    assert steps[5] > 0.01
    # Jitted and mapped it is what it is by itself.
    alone = process.loss(output, x0, process.corrupt(core.fold(keys[5], 0), x0, times[5]), times[5])
    np.testing.assert_allclose(values["loss"][0][5], alone, rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_true_law_is_where_the_gradient_of_the_loss_vanishes(name):
    """For independent tokens the exact logits are those of the sites, at every time and for every noise."""
    process = PROCESSES[name]
    _, sites = oracles.independent_law()
    if name == "binomial":
        truth = jnp.asarray([-0.5, 0.2, 1.5])
        draw = lambda key: jax.random.bernoulli(key, jax.nn.sigmoid(truth)).astype(jnp.int32)  # noqa: E731
    else:
        truth = jnp.asarray(np.log(sites), jnp.float32)
        draw = lambda key: jax.random.categorical(key, truth).astype(jnp.int32)  # noqa: E731
    objective = diffusion.loss(process, lambda params, x, t, condition: params)

    @jax.jit
    @jax.vmap
    def gradients(key):
        batch = jax.vmap(draw)(jax.random.split(core.fold(key, 0), 256))
        return jax.grad(objective)(truth, batch, core.fold(key, 1)), jax.grad(objective)(
            truth + 0.6 * jnp.cos(jnp.arange(truth.size, dtype=truth.dtype)).reshape(truth.shape),
            batch,
            core.fold(key, 1),
        )

    at_truth, beside = gradients(jax.random.split(jax.random.key(6), 64))

    def z(values):
        return np.mean(values, axis=0) / (np.std(values, axis=0) / 8 + 1e-9)

    # 9 scores from 64 repeats: |z| < 4.5 is wrong once in 3,000 seeds, and other logits are told apart.
    assert np.abs(z(at_truth)).max() < 4.5
    assert np.abs(z(beside)).max() > 8


def test_losses_train():
    process = diffusion.masked(SIZE)
    _, sites = oracles.independent_law()
    objective = diffusion.loss(process, lambda params, x, t, condition: params, steps=20)
    optimizer = optax.adam(0.1)

    @jax.jit
    def train(key):
        def step(carry, i):
            params, state = carry
            logits = jnp.asarray(np.log(sites), jnp.float32)
            batch = jax.random.categorical(core.fold(key, i, 0), logits, shape=(256, 3)).astype(jnp.int32)
            gradient = jax.grad(objective)(params, batch, core.fold(key, i, 1))
            with jax.numpy_dtype_promotion("standard"):
                change, state = optimizer.update(gradient, state)
            return (params + change, state), None

        params = jnp.zeros((3, 3))
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(200))
        return jax.nn.softmax(params)

    np.testing.assert_allclose(train(jax.random.key(7)), sites, atol=0.08)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: diffusion.reparameterized(1), ValueError, "vocabulary is 1"),
        (lambda: diffusion.reparameterized(3, "gaussian"), ValueError, "noise is 'gaussian'; expected one of"),
        (lambda: diffusion.reparameterized(3, weighting="bound"), ValueError, "weighting is 'bound'"),
        (lambda: diffusion.reparameterized(3, schedule="cosine"), TypeError, "expected a survival schedule"),
        (
            lambda: diffusion.loss(diffusion.masked(3), lambda p, x, t, c: p)(
                jnp.zeros(3), jnp.zeros((4, 2)), jax.random.key(0)
            ),
            TypeError,
            "of an integer dtype",
        ),
    ],
)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
