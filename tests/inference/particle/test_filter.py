"""Particle filters against exact ones: Kalman recursions and enumeration in float64, evidence without bias."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.distributions import Categorical, Empirical, MultivariateNormal, Normal, Poisson, Uniform
from jaxprob.inference import particle, smc
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel, SwitchingLinearGaussian

A, Q, R = 0.9, 0.49, 0.25
YS = np.array([1.0, np.nan, 0.5, -0.4], np.float32)
WALK = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(A * x, 0.7), lambda x, t: Normal(x, 0.5))
LINEAR = LinearGaussian(jnp.zeros(1), jnp.eye(1), A * jnp.eye(1), Q * jnp.eye(1), jnp.eye(1), jnp.full(1, R))
GUIDE = particle.guided(
    initial=lambda y: Normal(0.7 * y, 0.6), transition=lambda old, t, y: Normal(0.5 * (A * old + y), 0.7)
)


def kalman(ys, a=A, q=Q, h=1.0, r=R, mean=0.0, variance=1.0):
    """Means, variances and log likelihoods so far, of numbers, in float64."""
    found, total = [], 0.0
    for t, y in enumerate(np.asarray(ys, np.float64)):
        if t:
            mean, variance = a * mean, a * a * variance + q
        if not np.isnan(y):
            spread = h * h * variance + r
            total += stats.norm.logpdf(y, h * mean, np.sqrt(spread))
            gain = h * variance / spread
            mean, variance = mean + gain * (y - h * mean), (1 - gain * h) * variance
        found.append((mean, variance, total))
    return np.array(found).T


def unbiased(log_estimates, exact):
    """Standard errors by which the mean of estimates is off, at 3 a false alarm in 370."""
    ratio = np.exp(np.asarray(log_estimates, np.float64) - exact)
    return abs(ratio.mean() - 1) / (ratio.std() / np.sqrt(ratio.size)), ratio.std()


def keys(number, seed=2):
    return jax.random.split(jax.random.key(seed), number)


CASES = {
    "bootstrap": {},
    "guided": {"proposal": GUIDE},
    "extended": {"proposal": particle.kalman_guided()},
    "unscented": {"proposal": particle.kalman_guided("unscented")},
    "laplace": {"proposal": particle.kalman_guided("laplace")},
    "auxiliary": {"look_ahead": "mean"},
    "look_ahead": {"look_ahead": lambda old, t, y: -0.5 * (y - A * old) ** 2},
    "chunks": {"chunk": 30},
    "multinomial": {"resampler": smc.always(smc.multinomial)},
}


@pytest.mark.parametrize("case", CASES)
def test_unbiased_and_right(case):
    options = CASES[case]
    mean, variance, totals = kalman(YS)
    estimates = jax.vmap(lambda key: particle.log_likelihood(key, WALK, YS, particles=100, **options))(keys(4000))
    off, spread = unbiased(estimates, totals[-1])
    assert off < 3
    if "proposal" in options and case != "guided":
        # What is best for a linear model: only the resampling and the first states differ.
        bootstrap = jax.vmap(lambda key: particle.log_likelihood(key, WALK, YS, particles=100))(keys(1000))
        assert spread < 0.7 * unbiased(bootstrap, totals[-1])[1]
    found = particle.filter(jax.random.key(1), WALK, YS, particles=20_000, **options)
    error = np.sqrt(variance / (np.asarray(found.effective_sample_size) / 3))
    assert (np.abs(found.mean - mean) < 4 * error).all()
    np.testing.assert_allclose(found.variance, variance, rtol=0.15)
    np.testing.assert_allclose(found.log_likelihoods, totals, atol=0.1)
    assert found.failed_at == -1
    assert found.log_likelihood == found.log_likelihoods[-1]
    assert found.particles is None


@pytest.mark.parametrize("guided", [False, True])
def test_linear_gaussian_and_parts_missing(guided):
    rng = np.random.default_rng(0)
    matrix, noise = np.array([[0.9, 0.2], [-0.1, 0.7]]), np.array([[0.3, 0.1], [0.1, 0.2]])
    dense = np.array([[0.5, 0.2], [0.2, 0.4]])
    model = LinearGaussian(jnp.zeros(2), jnp.eye(2), matrix, noise, np.eye(2), dense)
    ys = rng.normal(size=(4, 2)).astype(np.float32)
    ys[1, 0], ys[2] = np.nan, np.nan
    mean, cov, total, means = np.zeros(2), np.eye(2), 0.0, []
    for t, y in enumerate(ys.astype(np.float64)):
        if t:
            mean, cov = matrix @ mean, matrix @ cov @ matrix.T + noise
        seen = ~np.isnan(y)
        if seen.any():
            rows = np.eye(2)[seen]
            spread = rows @ (cov + dense) @ rows.T
            total += stats.multivariate_normal.logpdf(y[seen], rows @ mean, spread)
            gain = cov @ rows.T @ np.linalg.inv(spread)
            mean, cov = mean + gain @ (y[seen] - rows @ mean), cov - gain @ rows @ cov
        means.append(mean)
    proposal = particle.kalman_guided() if guided else None
    run = jax.vmap(lambda key: particle.filter(key, model, ys, particles=1000, proposal=proposal))(keys(30))
    assert unbiased(run.log_likelihood, total)[0] < 3.5
    z = (np.mean(run.mean, 0) - np.array(means)) / (np.std(run.mean, 0) / np.sqrt(30))
    assert np.abs(z).max() < 4.5


def test_hidden_markov():
    initial, matrix = np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.2, 0.8]])
    model = HiddenMarkov(initial, matrix, Normal(jnp.array([0.0, 3.0]), 1.0))
    ys, weights, total = np.array([0.2, np.nan, 2.5, 3.0], np.float32), initial, 0.0
    for t, y in enumerate(ys):
        weights = weights @ matrix if t else weights
        weights = weights * (1 if np.isnan(y) else stats.norm.pdf(y, [0, 3], 1))
        total += np.log(weights.sum())
        weights = weights / weights.sum()
    run = jax.vmap(lambda key: particle.filter(key, model, ys, particles=100))(keys(4000))
    assert unbiased(run.log_likelihood, total)[0] < 3
    last = run.population
    assert last.particles.dtype == jnp.int32
    np.testing.assert_allclose(np.mean(run.mean[:, -1]), weights[1], atol=0.01)


def test_laws_that_do_not_take_an_axis_have_a_key_each():
    # Empirical laws: the atoms are a leading axis of their own.
    def law(x, t):
        return Empirical(jnp.stack([x, x + 1.0, x - 1.0]))

    model = StateSpaceModel(Normal(0.0, 1.0), law, lambda x, t: Normal(x, 0.5))
    ys = np.array([0.3, -0.5], np.float32)
    first = stats.norm.pdf(ys[0], 0, np.sqrt(1.25))
    posterior = ys[0] / 1.25
    second = np.mean([stats.norm.pdf(ys[1], posterior + d, np.sqrt(0.2 + 0.25)) for d in (0, 1, -1)])
    found = jax.vmap(lambda key: particle.log_likelihood(key, model, ys, particles=100))(keys(4000))
    assert unbiased(found, np.log(first * second))[0] < 3


def test_everything_is_kept_and_streams_agree():
    found = particle.filter(jax.random.key(0), WALK, YS, particles=50, keep="all")
    assert found.particles.shape == found.log_weights.shape == found.ancestors.shape == (4, 50)
    np.testing.assert_array_equal(found.ancestors[0], np.arange(50))
    np.testing.assert_array_equal(found.particles[-1], found.population.particles)
    weights = np.exp(np.asarray(found.log_weights, np.float64))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(found.mean, (weights * found.particles).sum(1), atol=1e-5)
    np.testing.assert_allclose(found.effective_sample_size, 1 / (weights**2).sum(1), rtol=1e-4)
    some = particle.filter(jax.random.key(0), WALK, YS, particles=50, keep=lambda p: jnp.max(p.particles))
    np.testing.assert_array_equal(some.kept, found.particles.max(1))

    # A stream with the keys of the filter is the filter.
    key = jax.random.key(0)
    state = particle.init(jax.random.fold_in(key, 0), WALK, YS[0], particles=50)
    for t in range(1, 4):
        state = particle.step(jax.random.fold_in(key, t), WALK, state, YS[t])
        np.testing.assert_allclose(state.mean, found.mean[t], atol=1e-5)
        np.testing.assert_allclose(state.variance, found.variance[t], atol=1e-5)
        np.testing.assert_allclose(state.log_likelihood, found.log_likelihoods[t], atol=1e-4)
    assert state.failed_at == -1
    assert state.particles.time == 3


@pytest.mark.parametrize("number", [13, 51])
def test_a_number_of_particles_that_nothing_divides(number):
    """Code for what is left over of a loop, fused with that of random numbers, once kept XLA from ever finishing."""
    found = particle.filter(jax.random.key(0), WALK, YS, particles=number)
    mean, variance, _ = kalman(YS)
    # Weights are uneven, so that a third of the particles count; five standard errors.
    assert np.all(np.abs(found.mean - mean) < 5 * np.sqrt(3 * variance / number))


def test_first_and_second_noise_differ():
    # With the same key for x_0 and its first step, the noise would be the same.
    model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(0.0 * x, 1.0))
    found = particle.filter(jax.random.key(0), model, jnp.zeros(2), particles=5000, keep="all")
    first, step = found.particles[0], found.particles[1] - found.particles[0]
    assert abs(np.corrcoef(first, step)[0, 1]) < 0.06  # four standard errors


def test_failures_are_values():
    model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Uniform(x - 1.0, x + 1.0))
    found = particle.filter(jax.random.key(0), model, jnp.array([0.0, 0.5, 1e4, 0.0]), particles=100)
    assert found.failed_at == 2
    assert np.isfinite(found.log_likelihoods[:2]).all()
    assert (found.log_likelihoods[2:] == -np.inf).all()
    assert np.isnan(found.mean[2])

    def observed(x, t):
        return Normal(jnp.where(jnp.asarray(t) == 1, x * jnp.nan, x), 1.0)

    broken = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(x, 1.0), observed)
    found = particle.filter(jax.random.key(0), broken, jnp.zeros(3), particles=100)
    assert found.failed_at == 1
    assert np.isnan(found.log_likelihood)
    state = particle.init(jax.random.key(0), model, 0.0, particles=100)
    for t, y in enumerate((0.5, 1e4, 0.0)):
        state = particle.step(jax.random.key(t + 1), model, state, y)
    assert state.failed_at == 2
    assert state.log_likelihood == -np.inf

    # Draws that the model calls impossible count for nothing; one the proposal itself calls impossible fails.
    bounded = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Uniform(x - 1.0, x + 1.0), lambda x, t: Normal(x, 1.0))
    outside = particle.guided(transition=lambda old, t, y: Uniform(old + 5.0, old + 6.0))
    found = particle.filter(jax.random.key(0), bounded, jnp.zeros(2), particles=100, proposal=outside)
    assert found.failed_at == 1
    assert found.log_likelihood == -np.inf


def test_bad_input():
    key, ys = jax.random.key(0), jnp.zeros(3)
    for options, words in (
        ({"particles": 0}, "particle.filter: particles is 0"),
        ({"keep": "some"}, "particle.filter: keep is some"),
        ({"look_ahead": "far"}, "look_ahead is far"),
        ({"proposal": 3}, "proposal is 3"),
        ({"chunk": 0}, "smc.chunked: size is 0"),
        ({"missing": jnp.zeros(2, bool)}, "particle.filter: missing is a bool array of shape"),
        ({"missing": jnp.zeros(3)}, "particle.filter: missing is"),
    ):
        with pytest.raises((ValueError, TypeError), match=words) as error:
            particle.filter(key, WALK, ys, **options)
        assert "\n" not in str(error.value)
    for values in (jnp.zeros((3, 2)), jnp.zeros(0), jnp.array([0.0, jnp.inf])):
        with pytest.raises(ValueError, match="particle.filter: ys is"):
            particle.filter(key, WALK, values)
    with pytest.raises(TypeError, match="model is 3"):
        particle.filter(key, 3, ys)
    wide = particle.guided(transition=lambda old, t, y: Normal(jnp.zeros(2), 1.0))
    with pytest.raises(
        ValueError, match=r"particle.guided: transition is a function that returns a law of shape \(2,\)"
    ):
        particle.filter(key, WALK, ys, proposal=wide)
    eye = np.eye(1)
    diffuse = LinearGaussian(np.zeros(1), eye, eye, eye, eye, np.ones(1), initial_diffuse=eye)
    with pytest.raises(ValueError, match="diffuse"):
        particle.filter(key, diffuse, jnp.zeros((3, 1)))


def test_gradients_are_finite_with_missing_observations():
    def value(scale):
        rate = jax.tree_util.Partial(lambda scale, x, t: Poisson(jnp.exp(scale * x)), scale)
        model = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(0.9 * x, 0.5), rate)
        return particle.log_likelihood(jax.random.key(0), model, jnp.array([1.0, jnp.nan, 3.0]), particles=50)

    found, slope = jax.value_and_grad(value)(jnp.float32(0.5))
    assert np.isfinite(found)
    assert np.isfinite(slope)


@pytest.mark.parametrize("guided", [False, True])
def test_rao_blackwellised(guided):
    def regime(q, r):
        return LinearGaussian(np.zeros(1), np.eye(1), A * np.eye(1), q * np.eye(1), np.eye(1), np.full(1, r))

    matrix, noises = np.array([[0.9, 0.1], [0.2, 0.8]]), [(0.1, 0.5), (4.0, 1.0)]
    model = SwitchingLinearGaussian([0.5, 0.5], matrix, [regime(*noise) for noise in noises])
    logs, lasts = [], []
    for path in itertools.product((0, 1), repeat=4):
        mean, variance, total = 0.0, 1.0, np.log(0.5) + sum(np.log(matrix[a, b]) for a, b in itertools.pairwise(path))
        for t, (k, y) in enumerate(zip(path, YS.astype(np.float64), strict=True)):
            q, r = noises[k]
            if t:
                mean, variance = A * mean, A * A * variance + q
            if not np.isnan(y):
                total += stats.norm.logpdf(y, mean, np.sqrt(variance + r))
                gain = variance / (variance + r)
                mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        logs.append(total)
        lasts.append((mean, variance, path[-1]))
    exact = np.logaddexp.reduce(logs)
    shares, (means, variances, ends) = np.exp(np.array(logs) - exact), np.array(lasts).T
    mean = shares @ means
    proposal = particle.guided(transition=lambda old, t, y: Categorical(jnp.array([0.4, 0.6]))) if guided else None

    def run(key):
        return particle.rao_blackwellised(key, model, YS, particles=100, proposal=proposal)

    found = jax.jit(jax.vmap(run))(keys(4000))
    off, spread = unbiased(found.log_likelihood, exact)
    assert off < 3
    assert spread < 0.2
    many = particle.rao_blackwellised(jax.random.key(0), model, YS, particles=20_000, proposal=proposal)
    np.testing.assert_allclose(many.mean.linear[-1, 0], mean, atol=0.01)
    np.testing.assert_allclose(many.variance.linear[-1, 0], shares @ (variances + means**2) - mean**2, rtol=0.03)
    np.testing.assert_allclose(many.mean.sampled[-1], shares @ ends, atol=0.02)


def test_rao_blackwellised_linear_model_in_two_parts():
    # u is sampled and moves x by its noise: u' = 0.8 u + v, x' = 0.9 x + u' + w, y = x + e.
    model = particle.ConditionallyLinear(
        Normal(0.0, 1.0),
        lambda u, t: Normal(0.8 * u, 0.6),
        lambda u: (jnp.zeros(1), jnp.eye(1)),
        lambda old, u, t: (0.9 * jnp.eye(1), jnp.reshape(u, 1), 0.2 * jnp.eye(1)),
        lambda u, t: (jnp.eye(1), jnp.zeros(1), jnp.full(1, 0.5)),
    )
    move = np.array([[0.8, 0.0], [0.8, 0.9]])
    noise = np.array([[0.36, 0.36], [0.36, 0.36 + 0.2]])
    mean, cov, total, row = np.zeros(2), np.eye(2), 0.0, np.array([0.0, 1.0])
    for t, y in enumerate(YS.astype(np.float64)):
        if t:
            mean, cov = move @ mean, move @ cov @ move.T + noise
        if not np.isnan(y):
            spread = row @ cov @ row + 0.5
            total += stats.norm.logpdf(y, row @ mean, np.sqrt(spread))
            gain = cov @ row / spread
            mean, cov = mean + gain * (y - row @ mean), cov - np.outer(gain, row @ cov)

    def run(key):
        return particle.rao_blackwellised(key, model, YS, particles=100)

    found = jax.jit(jax.vmap(run))(keys(4000))
    assert unbiased(found.log_likelihood, total)[0] < 3
    np.testing.assert_allclose(np.mean(found.mean.sampled[:, -1]), mean[0], atol=0.02)
    np.testing.assert_allclose(np.mean(found.mean.linear[:, -1, 0]), mean[1], atol=0.02)


def test_controlled():
    mean, variance, totals = kalman(YS)
    found = particle.controlled(jax.random.key(0), WALK, YS, particles=2000)
    np.testing.assert_allclose(found.log_likelihood, totals[-1], atol=1e-3)  # log psi is quadratic: nothing is left
    np.testing.assert_allclose(found.effective_sample_size, 2000, rtol=1e-3)
    np.testing.assert_allclose(found.mean, mean, atol=0.1)
    np.testing.assert_allclose(found.variance, variance, rtol=0.25)

    volatility = StateSpaceModel(
        Normal(-1.0, 0.69), lambda x, t: Normal(-1 + 0.9 * (x + 1), 0.3), lambda x, t: Normal(0.0, jnp.exp(x / 2))
    )
    _, ys = volatility.sample(jax.random.key(5), 30)
    # Exact, on a grid.
    grid = np.linspace(-5, 4, 2001)
    density = stats.norm.pdf(grid, -1, 0.69)
    kernel = stats.norm.pdf(grid[None], -1 + 0.9 * (grid[:, None] + 1), 0.3) * (grid[1] - grid[0])
    exact = 0.0
    for t, y in enumerate(np.asarray(ys, np.float64)):
        density = density @ kernel if t else density
        density = density * stats.norm.pdf(y, 0, np.exp(grid / 2))
        mass = density.sum() * (grid[1] - grid[0])
        exact, density = exact + np.log(mass), density / mass

    def steered(key):
        return particle.controlled(key, volatility, ys, particles=100).log_likelihood

    estimates = jax.jit(jax.vmap(steered))(keys(1000))
    plain = jax.vmap(lambda key: particle.log_likelihood(key, volatility, ys, particles=100))(keys(1000, 3))
    off, spread = unbiased(estimates, exact)
    assert off < 3
    assert unbiased(plain, exact)[0] < 3
    assert spread < 0.25 * unbiased(plain, exact)[1]


def test_dtypes(x64):
    found = particle.filter(jax.random.key(0), WALK, np.array([1.0, np.nan], np.float32), particles=10)
    model = StateSpaceModel(
        Normal(jnp.float64(0), jnp.float64(1)), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(x, 1.0)
    )
    double = particle.filter(jax.random.key(0), model, np.array([1.0, np.nan]), particles=10)
    assert double.mean.dtype == double.log_likelihood.dtype == jnp.float64
    assert found.log_likelihood.dtype == jnp.float32


def test_multivariate_and_odd_shapes():
    model = StateSpaceModel(
        MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        lambda x, t: Normal(jnp.sin(x), 0.1),
        lambda x, t: Normal(jnp.stack([x, -x]), 1.0),
    )
    ys = np.zeros((1, 2, 3), np.float32)
    found = particle.filter(jax.random.key(0), model, ys, particles=2)
    assert found.mean.shape == (1, 3)
    ys = np.concatenate([ys, ys])
    ys[1, 0, 1] = np.nan
    assert particle.filter(jax.random.key(0), model, ys, particles=2).failed_at == -1
