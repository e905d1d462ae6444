"""Objectives and their gradient estimators against closed forms, quadrature and enumeration.

Two draws of a guide of one number make expectations double integrals: 80 by 80 Gauss-Hermite nodes in float64, their
derivatives by central differences. Scores beyond 4.5 of means of independent repeats have a false-alarm rate of 7e-6.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxprob import core
from jaxprob.inference import vi
from jaxprob.inference.vi._guide import Family
from tests.inference.vi._gaussians import gaussian

LOC, LOG_SCALE = 0.4, -0.3  # of the guide
REPEATS = 20_000


def log_density(x):
    """Skewed, and not normalised."""
    return -0.5 * x**2 + jnp.log1p(0.5 * jnp.tanh(x)) + 0.7


def log_density_numpy(x):
    return -0.5 * x**2 + np.log1p(0.5 * np.tanh(x)) + 0.7


def guide_of_one_number(loc=LOC, log_scale=LOG_SCALE):
    guide = vi.mean_field().init(jax.random.key(0), jnp.zeros(()))
    return jax.tree.map(lambda leaf, value: jnp.full_like(leaf, value), guide, like(guide, [loc, log_scale]))


def like(tree, leaves):
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def estimates(objective, guide, repeats=REPEATS, seed=1):
    """Losses (repeat,) and gradients (repeat, parameter), all by one compiled function."""

    @jax.jit
    def run(objective, guide, keys):
        return jax.vmap(lambda key: jax.value_and_grad(lambda g: objective.loss(g, None, key)[0])(guide))(keys)

    losses, gradients = run(objective, guide, jax.random.split(jax.random.key(seed), repeats))
    leaves = [np.asarray(leaf, float).reshape(repeats, -1) for leaf in jax.tree.leaves(gradients)]
    return np.asarray(losses, float), np.concatenate(leaves, axis=1)


def z_scores(samples, expected):
    return (samples.mean(axis=0) - expected) / (samples.std(axis=0) / np.sqrt(len(samples)))


def pairs(loc, log_scale):
    """Nodes (node, node, 2), their weights (node, node), and log weights of the draws there."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1)
    draws = loc + np.exp(log_scale) * noise
    log_q = -0.5 * noise**2 - log_scale - 0.5 * np.log(2 * np.pi)
    return noise, np.outer(weights, weights), log_density_numpy(draws) - log_q


def slopes(function, step=1e-4):
    """Central differences with respect to the guide's location and log scale."""
    moved = [(step, 0), (-step, 0), (0, step), (0, -step)]
    a, b, c, d = (function(LOC + x, LOG_SCALE + y) for x, y in moved)
    return np.array([(a - b) / (2 * step), (c - d) / (2 * step)])


def bound_of_two(order):
    """Renyi's bound of two draws, of order 1 as a mean."""

    def bound(loc, log_scale):
        _, weights, log_weights = pairs(loc, log_scale)
        if order == 1:
            return np.sum(weights * log_weights.mean(axis=-1))
        power = 1 - order
        return np.sum(weights * (logsumexp(power * log_weights, axis=-1) - np.log(2)) / power)

    return bound


CASES = {
    "path": (0, lambda: vi.importance_weighted(log_density, vi.mean_field(), draws=2, gradient="path", initial=0.0)),
    "doubly": (0, lambda: vi.importance_weighted(log_density, vi.mean_field(), draws=2, initial=0.0)),
    "vimco": (0, lambda: vi.importance_weighted(log_density, vi.mean_field(), draws=2, gradient="vimco", initial=0.0)),
    "renyi 0.5": (0.5, lambda: vi.renyi(log_density, vi.mean_field(), draws=2, initial=0.0)),
    "renyi 2": (2, lambda: vi.renyi(log_density, vi.mean_field(), order=2.0, draws=2, initial=0.0)),
    **{
        gradient: (
            1,
            lambda gradient=gradient: vi.elbo(log_density, vi.mean_field(), draws=2, gradient=gradient, initial=0.0),
        )
        for gradient in ("stick_the_landing", "path", "entropy", "score", "fitted_score")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_have_no_bias(name):
    order, build = CASES[name]
    losses, gradients = estimates(build(), guide_of_one_number())
    bound = bound_of_two(order)
    assert abs(z_scores(losses, -bound(LOC, LOG_SCALE))) < 4.5
    assert np.max(np.abs(z_scores(gradients, -slopes(bound)))) < 4.5
    # What the scores would detect: an error of a twentieth.
    errors = gradients.std(axis=0) / np.sqrt(REPEATS)
    assert np.all(errors < 0.05 * np.abs(slopes(bound)) + 0.02)


def test_the_inclusive_divergence_of_two_draws():
    """The estimator's own mean, since normalised weights have a bias; it has no noise where the guide is exact."""
    objective = vi.forward_kl(log_density, vi.mean_field(), draws=2, initial=0.0)
    losses, gradients = estimates(objective, guide_of_one_number())
    noise, weights, log_weights = pairs(LOC, LOG_SCALE)
    shares = softmax(log_weights, axis=-1)
    scores = np.stack([noise / np.exp(LOG_SCALE), noise**2 - 1], axis=-1)  # of location and log scale
    expected = -np.sum(weights[..., None, None] * shares[..., None] * scores, axis=(0, 1, 2))
    assert np.max(np.abs(z_scores(gradients, expected))) < 4.5
    divergence = np.sum(weights * np.sum(shares * np.log(2 * shares), axis=-1))
    assert abs(z_scores(losses, divergence)) < 4.5
    exact = vi.forward_kl(lambda x: -0.5 * x**2, vi.mean_field(), draws=4, initial=0.0)
    losses, gradients = estimates(exact, guide_of_one_number(0.0, 0.0), 10)
    assert np.max(np.abs(losses)) < 1e-6
    assert np.max(np.abs(gradients)) < 1e-6


def test_the_inclusive_divergence_of_many_draws():
    """Of a normal target from a wider guide, in closed form: log scales, log ratio + (1 + m^2) / (2 s^2) - 1 / 2."""
    objective = vi.forward_kl(lambda x: -0.5 * x**2, vi.mean_field(), draws=20_000, initial=0.0)
    loc, scale = 0.5, 1.5
    losses, gradients = estimates(objective, guide_of_one_number(loc, np.log(scale)), 20)
    # The bias is 1e-4 or less, a tenth of the errors.
    assert abs(z_scores(losses, np.log(scale) + (1 + loc**2) / (2 * scale**2) - 0.5)) < 6  # Student's, of 19: 1e-5
    assert np.max(np.abs(z_scores(gradients, [loc / scale**2, 1 - (1 + loc**2) / scale**2]))) < 6


def test_the_bound_rises_with_draws():
    """Means over the same keys, each above the one before by six errors and below the evidence, in closed form."""
    target = lambda x: -0.5 * jnp.sum(x**2)  # noqa: E731
    guide = guide_of_one_number(1.0, -0.5)
    losses = [
        estimates(vi.importance_weighted(target, vi.mean_field(), draws=draws, initial=0.0), guide, 4000)[0]
        for draws in (1, 4, 16)
    ]
    for fewer, more in itertools.pairwise(losses):
        assert z_scores(fewer - more, 0.0) > 6
    assert z_scores(losses[-1] + 0.5 * np.log(2 * np.pi), 0.0) > 6


def test_noise_relative_to_the_gradient_falls_with_draws_if_doubly_reparameterized():
    """Rainforth's law: ratios of mean to noise go as draws to the power -1/2 by the path, and 1/2 doubly."""
    target = lambda x: -0.5 * jnp.sum(x**2)  # noqa: E731
    guide, ratios = guide_of_one_number(0.4, 0.3), {}
    for gradient in ("path", "doubly_reparameterized"):
        for draws in (8, 128):
            objective = vi.importance_weighted(target, vi.mean_field(), draws=draws, gradient=gradient, initial=0.0)
            gradients = estimates(objective, guide, 4000)[1]
            ratios[gradient, draws] = np.abs(gradients.mean(axis=0)) / gradients.std(axis=0)
    rise = ratios["doubly_reparameterized", 128] / ratios["doubly_reparameterized", 8]
    assert np.all((rise > 2.5) & (rise < 6))  # sixteen times the draws: 4
    assert np.all(ratios["path", 128] < 0.6 * ratios["path", 8])
    assert np.all(ratios["doubly_reparameterized", 128] > 8 * ratios["path", 128])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dense_gaussian(dtype, x64):
    """Five numbers: the mean of gradients in closed form, and that with a path is less noisy."""
    density, mean, covariance, _ = gaussian(5, dtype)
    guide = vi.mean_field(0.5).init(jax.random.key(0), jnp.zeros(5, dtype))
    precision = np.linalg.inv(covariance)
    expected = np.concatenate([-precision @ mean, 0.25 * np.diag(precision) - 1])
    noise = {}
    for gradient in ("score", "path"):
        objective = vi.elbo(density, vi.mean_field(), draws=8, gradient=gradient, initial=jnp.zeros(5, dtype))
        gradients = estimates(objective, guide, 4000)[1]
        assert np.max(np.abs(z_scores(gradients, expected))) < 5  # ten parameters: 6e-6
        noise[gradient] = gradients.var(axis=0).sum()
    assert noise["path"] < 0.2 * noise["score"]


def test_a_fitted_baseline_takes_noise_away():
    """A guide three times too wide: baselines of the least noise leave 0.43 and 0.6 of that, from many draws."""
    noise = {}
    for gradient in ("score", "fitted_score"):
        objective = vi.elbo(lambda x: -4.5 * x**2, vi.mean_field(), draws=256, gradient=gradient, initial=0.0)
        gradients = estimates(objective, guide_of_one_number(0.0, 0.0), 4000)[1]
        assert np.max(np.abs(z_scores(gradients, [0.0, 8.0]))) < 4.5
        noise[gradient] = gradients.var(axis=0)
    np.testing.assert_allclose(noise["fitted_score"] / noise["score"], [96 / 160, 384 / 896], rtol=0.15)


def test_one_draw_has_no_baseline():
    one = [
        estimates(vi.elbo(log_density, vi.mean_field(), gradient=gradient, initial=0.0), guide_of_one_number(), 50)[1]
        for gradient in ("score", "fitted_score")
    ]
    np.testing.assert_allclose(one[0], one[1], rtol=1e-5, atol=1e-6)


@core.pytree
class CategoricalGuide:
    logits: jax.Array

    def sample(self, key, shape=()):
        return jax.random.categorical(key, self.logits, shape=(shape,) if isinstance(shape, int) else shape)

    def log_prob(self, position):
        return jax.nn.log_softmax(self.logits)[position]


def test_vimco_of_categories_by_enumeration():
    logits, table = np.array([0.3, -0.8, 0.5]), np.array([0.2, 1.5, -1.0])

    def bound(logits, draws):
        log_q = logits - logsumexp(logits)
        log_w = table - log_q
        index = np.indices((3,) * draws).reshape(draws, -1)
        return np.sum(np.exp(log_q[index].sum(axis=0)) * (logsumexp(log_w[index], axis=0) - np.log(draws)))

    family = Family("categorical", lambda key, position: CategoricalGuide(jnp.asarray(logits, jnp.float32)))
    target = lambda x: jnp.asarray(table, jnp.float32)[x]  # noqa: E731
    draws = 3
    objective = vi.importance_weighted(target, family, draws=draws, gradient="vimco", initial=0.0)
    losses, gradients = estimates(objective, objective.init(jax.random.key(0)))
    expected = [(bound(logits + h, draws) - bound(logits - h, draws)) / 2e-5 for h in 1e-5 * np.eye(3)]
    assert abs(z_scores(losses, -bound(logits, draws))) < 4.5
    assert np.max(np.abs(z_scores(gradients, -np.asarray(expected)))) < 4.5


def test_fits_end_where_they_should():
    """The forward divergence fits a mean field to the target's own variances, the ELBO to those of its precision."""
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    target = lambda x: -0.5 * jnp.sum(x * jnp.matmul(precision, x, precision="highest"))  # noqa: E731
    wide = vi.mean_field(1.5)
    objectives = {
        1.0: vi.forward_kl(target, wide, draws=256, initial=jnp.zeros(2)),
        0.36: vi.importance_weighted(target, wide, draws=1, initial=jnp.zeros(2)),
    }
    for variance, objective in objectives.items():
        found = vi.fit(objective, jax.random.key(0), max_steps=3000)
        scales = np.exp(jax.tree.leaves(found.guide)[1])
        np.testing.assert_allclose(scales**2, variance, rtol=0.05)


def test_other_data_compile_nothing():
    traces = []

    def density(data, x):
        traces.append(1)
        return -0.5 * jnp.sum((x - data) ** 2)

    build = {
        "iw": lambda p: vi.importance_weighted(p, vi.mean_field(), initial=jnp.zeros(2)),
        "forward": lambda p: vi.forward_kl(p, vi.mean_field(), initial=jnp.zeros(2)),
        "renyi": lambda p: vi.renyi(p, vi.mean_field(), order=float(p.args[0][0]), initial=jnp.zeros(2)),
    }
    run = jax.jit(lambda objective, guide, key: objective.loss(guide, None, key)[0])
    guide = vi.mean_field().init(jax.random.key(0), jnp.zeros(2))
    for make in build.values():
        values, counts = [], []
        for level in (0.25, 2.0):
            objective = make(jax.tree_util.Partial(density, jnp.full(2, level)))
            values.append(float(run(objective, guide, jax.random.key(1))))
            counts.append(len(traces))
        assert counts[0] == counts[1]
        assert values[0] != values[1]


def test_bad_arguments():
    family, start = vi.mean_field(), jnp.zeros(())
    cases = {
        r"importance_weighted: gradient is 'score'; expected one of": lambda: vi.importance_weighted(
            log_density, family, gradient="score", initial=start
        ),
        r"importance_weighted: draws is 1; expected a whole number, 2 or more": lambda: vi.importance_weighted(
            log_density, family, gradient="vimco", draws=1, initial=start
        ),
        r"renyi: order is nan; expected a finite number": lambda: vi.renyi(
            log_density, family, order=float("nan"), initial=start
        ),
        r"renyi: draws is 0": lambda: vi.renyi(log_density, family, draws=0, initial=start),
        r"forward_kl: draws is 1; expected a whole number, 2 or more": lambda: vi.forward_kl(
            log_density, family, draws=1, initial=start
        ),
        r"forward_kl: initial is None; expected a position": lambda: vi.forward_kl(log_density, family),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="renyi: guide is 3; expected a family"):
        vi.renyi(log_density, 3, initial=start)
    with pytest.raises(TypeError, match="renyi: order is 'one'"):
        vi.renyi(log_density, family, order="one", initial=start)
