"""Bayesian flow networks against products of observations, exact posteriors by enumeration, and entropies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

# Three sites of three tokens, with probabilities that no product has.
TABLE = np.random.default_rng(0).dirichlet(np.full(27, 0.3)).reshape(3, 3, 3)
ENTROPY = float(-np.sum(TABLE * np.log(np.maximum(TABLE, 1e-300))))
STATES = np.array(list(itertools.product(range(3), repeat=3)))
TOKENS = diffusion.discrete_bayesian_flow(3, accuracy=4.0)


def exact_tokens(x, t, condition):
    """Log p(x0_i | beliefs): the prior times the factors of the beliefs, enumerated."""
    joint = jnp.asarray(TABLE, x.dtype) * x[0][:, None, None] * x[1][None, :, None] * x[2][None, None, :]
    marginals = jnp.stack([joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1))])
    return jnp.log(marginals / joint.sum())


def bound_of_tokens(key, x0, steps=None):
    """An estimate of the bound of one example."""
    keys = jax.random.split(key, 4)
    denoise = lambda x, t: TOKENS.output(exact_tokens, x, t, None, (3,))  # noqa: E731
    if steps is None:
        t = jax.random.uniform(keys[0])
        xt = TOKENS.corrupt(keys[1], x0, t)
        rate = TOKENS.bound_rate(denoise(xt, t), x0, xt, t)
    else:
        i = jax.random.randint(keys[0], (), 1, steps + 1).astype(jnp.float32)
        t, s = i / steps, (i - 1) / steps
        xt = TOKENS.corrupt(keys[1], x0, t)
        rate = steps * TOKENS.step_divergence(denoise(xt, t), x0, xt, t, s, keys[2])
    return rate, TOKENS.bound_ends(x0, keys[3], denoise)


@functools.cache
def data(count):
    index = jax.random.choice(jax.random.key(7), 27, (count,), p=jnp.asarray(TABLE.ravel()))
    return jnp.asarray(STATES)[index]


def test_tokens_bound_is_the_entropy_of_the_source():
    """|z| < 4.4: a false alarm in 1e5. The standard error is below 0.1 bit, what the bar asks for."""
    xs = data(40_000)
    rate, ends = jax.vmap(bound_of_tokens)(jax.random.split(jax.random.key(1), len(xs)), xs)
    total = np.asarray(rate + ends, np.float64)
    error = total.std() / np.sqrt(len(total))
    assert error < 0.02
    # Continuous time, with the best denoiser, loses nothing.
    assert abs(total.mean() - ENTROPY) < 4.4 * error


def test_tokens_bound_in_steps_is_above_the_continuous_one_and_converges_to_it():
    """Differences over the same data: 2 % at 200 steps and above at 2, each with |z| < 4.4 in its favour."""
    xs = data(40_000)
    rates = {}
    for steps in (2, 200, None):
        keys = jax.random.split(jax.random.key(2), len(xs))
        rates[steps] = np.asarray(jax.vmap(functools.partial(bound_of_tokens, steps=steps))(keys, xs)[0], np.float64)
    mean = {steps: rate.mean() for steps, rate in rates.items()}
    error = {steps: rate.std() / np.sqrt(rate.size) for steps, rate in rates.items()}
    assert mean[2] > mean[None] + 4.4 * np.hypot(error[2], error[None])
    assert abs(mean[200] - mean[None]) < 0.02 * mean[None] + 4.4 * np.hypot(error[200], error[None])
    assert np.hypot(error[200], error[None]) < 0.02 * mean[None]


def test_tokens_samples_have_the_joint_law_of_the_data():
    """Chi-square with 26 degrees of freedom, p > 1e-4."""
    table = TABLE.ravel()
    xs = sampling.sample(jax.random.key(3), TOKENS, exact_tokens, (4000, 3), solver=sampling.ancestral(300))
    counts = np.bincount(np.asarray(xs) @ np.array([9, 3, 1]), minlength=27)
    likely = 4000 * table > 2
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = 4000 * np.append(table[likely], table[~likely].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_observations_of_tokens_add_up():
    """Beliefs after k observations are those after one of the summed accuracy: mean and covariance in closed form."""
    beta, count = 4.0 * 0.6**2, 40_000
    xt = np.asarray(
        jax.vmap(lambda key: TOKENS.corrupt(key, jnp.array(1), 0.4))(jax.random.split(jax.random.key(4), count)),
        np.float64,
    )
    mean = beta * np.array([-1.0, 2.0, -1.0])
    assert np.all(np.abs(xt.mean(0) - mean) < 4.4 * np.sqrt(3 * beta / count))
    assert np.allclose(np.cov(xt.T), 3 * beta * np.eye(3), atol=4.4 * 3 * beta * np.sqrt(2 / count))


def test_a_belief_is_the_product_of_observations(x64):
    """Bayes' rule with the densities of observations, in NumPy."""
    rng, accuracies = np.random.default_rng(5), [0.2, 0.7, 1.1]
    logits, xt = np.zeros(3), np.zeros(3)
    for accuracy in accuracies:
        y = accuracy * (3 * np.eye(3)[2] - 1) + np.sqrt(3 * accuracy) * rng.normal(size=3)
        logits += [
            stats.norm.logpdf(y, accuracy * (3 * np.eye(3)[k] - 1), np.sqrt(3 * accuracy)).sum() for k in range(3)
        ]
        xt += y
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    seen = []
    TOKENS.output(lambda x, t, c: seen.append(x) or x, jnp.asarray(xt)[None], 0.5, None, (1,))
    assert np.allclose(seen[0][0], expected, atol=1e-12)
    logs = diffusion.discrete_bayesian_flow(3, inputs="logits")
    logs.output(lambda x, t, c: seen.append(x) or x, jnp.asarray(xt)[None], 0.5, None, (1,))
    assert np.allclose(seen[1][0], np.log(expected), atol=1e-12)


def test_the_belief_about_numbers_is_that_of_a_normal_prior_and_observations():
    process = diffusion.bayesian_flow(0.05)
    for t in (0.0, 0.3, 0.9):
        accuracy = 0.05 ** (-2 * (1 - t)) - 1
        alpha, sigma = process.scales(t)
        assert alpha == pytest.approx(accuracy / (1 + accuracy), rel=2e-4)
        assert sigma == pytest.approx(np.sqrt(accuracy) / (1 + accuracy), rel=2e-4)
        # The loss of the paper, equation 95, in units of the data.
        x0, output, xt = jnp.float32(0.4), jnp.float32(0.1), jnp.float32(0.3)
        expected = -np.log(0.05) * (0.4 - float(process.clean(output, xt, t))) ** 2 / 0.05 ** (2 * (1 - t))
        assert process.loss(output, x0, xt, t) == pytest.approx(expected, rel=2e-3)


def test_a_step_of_numbers_is_an_observation_and_bayes_rule():
    """Mean and variance of x_s given x_t and x_0: of (rho x_t + a y) / (rho + a) for y ~ Normal(x_0, 1 / a)."""
    process, t, s, x0 = diffusion.bayesian_flow(0.05, prediction="clean"), 0.6, 0.5, 0.7
    rho, after = (0.05 ** (-2 * (1 - time)) for time in (t, s))
    a = after - rho
    keys = jax.random.split(jax.random.key(6), 40_000)
    xs = jax.vmap(lambda key: process.reverse_step(key, jnp.float32(0.2), jnp.float32(x0), t, s))(keys)
    xs = np.asarray(xs, np.float64)
    assert abs(xs.mean() - (rho * 0.2 + a * x0) / after) < 4.4 * np.sqrt(a) / after / 200
    assert xs.var() == pytest.approx(a / after**2, rel=4.4 * np.sqrt(2 / 40_000))


BINS = diffusion.discretized_bayesian_flow(6)
MASSES = np.array([0.05, 0.4, 0.05, 0.3, 0.0, 0.2])


def test_masses_of_bins_are_those_of_a_normal_law(x64):
    """In both tails, where a difference of distribution functions near 1 has no digits."""
    t = 0.3
    share = 1 - (1 / 6) ** (2 * (1 - t))
    edges = np.linspace(-1, 1, 7)
    for xt, noise, log_scale in ((0.1, 0.3, -0.2), (4.0, -1.0, -2.0), (-3.0, 2.0, -2.0)):
        mean = xt / share - np.sqrt((1 - share) / share) * noise
        law = stats.norm(mean, np.sqrt((1 - share) / share) * np.exp(log_scale))
        upper = np.log((-np.diff(np.append(np.insert(law.sf(edges[1:-1]), 0, 1.0), 0.0))).clip(1e-320))
        lower = np.log(np.diff(np.append(np.insert(law.cdf(edges[1:-1]), 0, 0.0), 1.0)).clip(1e-320))
        expected = lower if mean < 0 else upper
        got = BINS.log_probs(jnp.array([[noise, log_scale]]), jnp.array([xt]), t)[0]
        assert np.allclose(np.exp(got).sum(), 1, atol=1e-12)
        assert np.allclose(got[expected > -700], expected[expected > -700], rtol=1e-7, atol=1e-7)
        assert np.all(np.isfinite(jax.jacfwd(BINS.log_probs)(jnp.zeros((1, 2)), jnp.array([xt]), t)))


def test_discretised_steps_and_rates_agree_with_quadrature(x64):
    """The step's divergence is that of an observation from a mixture, integrated on a grid; its limit is the rate."""
    t, x0 = 0.4, jnp.array([5])
    xt, output = jnp.array([0.2]), jnp.array([[0.1, 0.3]])
    log_probs = np.asarray(BINS.log_probs(output, xt, t))[0]
    centres = (2 * np.arange(6) + 1) / 6 - 1
    for s in (0.3, 0.399):
        a = 36.0 ** (1 - s) - 36.0 ** (1 - t)
        y = np.linspace(centres[5] - 9 / np.sqrt(a), centres[5] + 9 / np.sqrt(a), 20_001)
        sender = stats.norm.logpdf(y, centres[5], a**-0.5)
        receiver = np.logaddexp.reduce(log_probs + stats.norm.logpdf(y[:, None], centres, a**-0.5), 1)
        exact = np.sum(np.exp(sender) * (sender - receiver)) * (y[1] - y[0])
        keys = jax.random.split(jax.random.key(int(1000 * s)), 100_000)
        draws = np.asarray(jax.vmap(lambda key: BINS.step_divergence(output, x0, xt, t, s, key))(keys))  # noqa: B023
        assert abs(draws.mean() - exact) < 4.4 * draws.std() / np.sqrt(draws.size)
        if s == 0.399:
            assert BINS.bound_rate(output, x0, xt, t) * (t - s) == pytest.approx(exact, rel=0.01)


def test_a_discretised_step_is_an_observation_and_bayes_rule():
    """Of a bin that the output is sure of: mean and variance of (rho x_t + a y) / (rho + a), y ~ Normal(c, 1 / a)."""
    t, s, xt = 0.5, 0.4, jnp.full((1,), 0.2)
    rho, after = 36.0 ** (1 - t), 36.0 ** (1 - s)
    keys = jax.random.split(jax.random.key(10), 20_000)
    output = exact_bins(xt, t, None)
    xs = np.asarray(jax.vmap(lambda key: BINS.reverse_step(key, xt, output, t, s))(keys), np.float64)
    a, centre = after - rho, 1 / 6
    assert abs(xs.mean() - (rho * 0.2 + a * centre) / after) < 4.4 * np.sqrt(a / 20_000) / after
    assert xs.var() == pytest.approx(a / after**2, rel=4.4 * np.sqrt(2 / 20_000))


def exact_bins(x, t, condition):
    """The output whose law of bins is as near as a normal law can be: here only for one bin of data."""
    share = BINS._share(t)
    target = BINS.centres(jnp.full(x.shape, 3), x.dtype)
    noise = (x - share * target) / jnp.sqrt(share * (1 - share) + 1e-12)
    return jnp.stack([noise, jnp.full_like(x, -4.0)], -1)


def test_discretised_samples_are_what_the_denoiser_is_sure_of():
    xs = sampling.sample(jax.random.key(9), BINS, exact_bins, (50, 2), solver=sampling.ancestral(30))
    assert xs.dtype == jnp.int32
    assert np.all(xs == 3)


@pytest.mark.parametrize("process", [TOKENS, BINS], ids=["tokens", "bins"])
def test_everything_is_finite_at_both_ends_and_keeps_its_dtype(process):
    x0 = jnp.array([0, 2])
    shape = process.output_shape((2,))
    for t, s in ((0.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1e-6, 0.0)):
        xt = process.corrupt(jax.random.key(0), x0, jnp.float32(t))
        assert xt.dtype == jnp.float32

        def all_of(output):
            keys = [jax.random.key(i) for i in (1, 2, 3)]
            values = (
                process.loss(output, x0, xt, t),  # noqa: B023
                process.bound_rate(output, x0, xt, t),  # noqa: B023
                process.step_divergence(output, x0, xt, t, s, keys[0]),  # noqa: B023
                process.bound_ends(x0, keys[1], lambda x, t: output),
                jnp.sum(process.reverse_step(keys[2], xt, output, t, s)),  # noqa: B023
            )
            return jnp.stack(values)

        values, gradients = all_of(jnp.ones(shape)), jax.jacrev(all_of)(jnp.ones(shape))
        assert np.all(np.isfinite(values))
        assert np.all(np.isfinite(gradients))
        assert values.dtype == jnp.float32


def test_double_precision_is_kept(x64):
    for process in (TOKENS, BINS):
        xt = process.corrupt(jax.random.key(0), jnp.array([0, 2]), jnp.float64(0.5))
        assert xt.dtype == jnp.float64
        output = jnp.zeros(process.output_shape((2,)))
        assert process.loss(output, jnp.array([0, 2]), xt, 0.5).dtype == jnp.float64
        assert process.reverse_step(jax.random.key(0), xt, output, 0.5, 0.4).dtype == jnp.float64


def test_losses_train(x64):
    """The best constant output is the law of the data at a time when nothing is seen."""
    objective = diffusion.loss(TOKENS, lambda params, x, t, condition: jnp.broadcast_to(params, (1, 3)))
    xs = jnp.asarray(np.repeat([0, 1, 2], [500, 300, 200]))[:, None]
    gradient = jax.grad(objective)(jnp.log(jnp.array([0.5, 0.3, 0.2])), xs, jax.random.key(0))
    assert np.all(np.abs(gradient) < 0.15)  # against 4 x 0.25 elsewhere
    wrong = jax.grad(objective)(jnp.zeros(3), xs, jax.random.key(0))
    assert np.max(np.abs(wrong)) > 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffusion.discrete_bayesian_flow(1), "vocabulary is 1; expected a whole number, 2 or more"),
        (lambda: diffusion.discrete_bayesian_flow(3, accuracy=0.0), "accuracy is 0.0; expected a positive number"),
        (lambda: diffusion.discrete_bayesian_flow(3, inputs="x"), "inputs is 'x'; expected 'probabilities' or"),
        (lambda: diffusion.discretized_bayesian_flow(0), "bins is 0; expected a whole number, 2 or more"),
        (lambda: diffusion.bayesian_flow(1.5), "smallest is 1.5; expected a standard deviation below 1"),
        (
            lambda: TOKENS.check_data("f", jnp.array([0, 3])),
            "f: x0 is tokens with 3 among them; expected",
        ),
        (
            lambda: TOKENS.check_data("f", jnp.array([0.5])),
            "f: x0 is a float32 array of shape (1,); expected tokens, of an integer dtype",
        ),
        (lambda: TOKENS.corrupt(jax.random.key(0), jnp.array([0]), 1.5), "corrupt: t is 1.5; expected a time from 0"),
        (lambda: TOKENS.step_divergence(jnp.zeros((1, 3)), 0, jnp.zeros((1, 3)), 0.5, 0.4), "key is None; expected"),
        (
            lambda: TOKENS.output(lambda x, t, c: x[..., :2], jnp.zeros((4, 3)), 0.5, None, (4,)),
            "denoiser is one with output (4, 2); expected (4, 3)",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
