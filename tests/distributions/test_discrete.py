"""Discrete distributions against SciPy in float64: masses, gradients, moments, cdfs, draws, and the edges."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import distributions as d
from tests.distributions._rows import Row, check_checkpoint, check_pytree, chi_square, quick

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def _around(mean, sd, widths, high=np.inf):
    """Counts from both ends and up to some standard deviations from the mean, that float32 holds exactly."""
    near = np.clip(np.round(mean + sd * np.linspace(-widths, widths, 15)), 0, high)
    ends = np.minimum([0, 1, 2, high if np.isfinite(high) else 7, np.round(mean / 3)], high)
    return np.float32(np.concatenate([near, ends])).astype(float)


def _negative_binomial(k, mean, r):
    """The log mass by SciPy's log-beta function, which has no cancellation for the settings used here."""
    return -special.betaln(k + 1, r) - np.log(k + r) - r * np.log1p(mean / r) + k * (np.log(mean) - np.log(r + mean))


P = np.float32([0.0, 1e-6, 0.3, 0.5, 0.999, 1.0])
# name: build from parameters of a dtype, parameters (held in float32), SciPy's log mass, its mean and sd, upper end.
MASSES = {
    "Poisson": (
        lambda rate: d.Poisson(rate),
        {"rate": [0.0, 0.1, 3.0, 100.0, 1e4, 1e6]},
        lambda k, rate: stats.poisson(rate).logpmf(k),
        lambda rate: (rate, np.sqrt(rate), np.inf),
        8,
    ),
    "Poisson log": (
        lambda log_rate: d.Poisson(log_rate=log_rate),
        {"log_rate": [-30.0, -2.0, 1.1, 9.2]},
        lambda k, log_rate: stats.poisson(np.exp(log_rate)).logpmf(k),
        lambda log_rate: (np.exp(log_rate), np.exp(log_rate / 2), np.inf),
        8,
    ),
    "NegativeBinomial": (
        lambda mean, r: d.NegativeBinomial(mean, r),
        {"mean": [0.01, 3.0, 3.0, 1e3, 1e6, 1e6, 1e6], "r": [10.0, 0.5, 1e6, 10.0, 1e-3, 0.5, 1e6]},
        _negative_binomial,
        lambda mean, r: (mean, np.sqrt(mean + mean**2 / r), np.inf),
        3,
    ),
    "NegativeBinomial log": (
        lambda log_mean, r: d.NegativeBinomial(log_mean=log_mean, concentration=r),
        {"log_mean": [-5.0, 1.1, 6.9], "r": [2.0, 1e3, 0.2]},
        lambda k, log_mean, r: _negative_binomial(k, np.exp(log_mean), r),
        lambda log_mean, r: (np.exp(log_mean), np.exp(log_mean) / np.sqrt(r), np.inf),
        3,
    ),
    "Binomial": (
        lambda n, p: d.Binomial(n, p),
        {"n": np.repeat([0, 1, 10, 1000, 10**6], len(P)), "p": np.tile(P, 5)},
        lambda k, n, p: stats.binom(n, p).logpmf(k),
        lambda n, p: (n * p, np.sqrt(n * p * (1 - p)), n),
        8,
    ),
    "Binomial logits": (
        lambda n, logits: d.Binomial(n, logits=logits),
        {"n": [10, 1000, 10**6], "logits": [-3.0, 0.5, 2.0]},
        lambda k, n, logits: stats.binom(n, special.expit(logits)).logpmf(k),
        lambda n, logits: (n * special.expit(logits), np.sqrt(n) * special.expit(logits) ** 0.5, n),
        4,
    ),
    "BetaBinomial": (
        lambda n, a, b: d.BetaBinomial(n, a, b),
        {
            "n": np.repeat([0, 10, 1000, 10**6], 4),
            "a": np.tile([1.0, 0.01, 300.0, 1e6], 4),
            "b": np.tile([1.0, 0.5, 20.0, 1e5], 4),
        },
        lambda k, n, a, b: stats.betabinom(n, a, b).logpmf(k),
        lambda n, a, b: (n * a / (a + b), np.sqrt(stats.betabinom(n, a, b).var()), n),
        4,
    ),
}


class Found(NamedTuple):
    """Our log masses (counts, settings), SciPy's, the same with a parameter changed, and our gradients."""

    counts: np.ndarray
    log_prob: np.ndarray
    expected: np.ndarray
    parameters: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


@cache
def _found(name, dtype):
    build, parameters, reference, moments, widths = MASSES[name]
    held = {n: np.asarray(v) if np.asarray(v).dtype.kind == "i" else np.float32(v) for n, v in parameters.items()}
    exact = {n: v.astype(float) for n, v in held.items()}
    size = len(next(iter(exact.values())))
    mean, sd, high = (np.broadcast_to(x, size).astype(float) for x in moments(**exact))
    counts = np.stack([_around(mean[i], sd[i], widths, high[i]) for i in range(size)], axis=1)
    kind = int if name in ("Binomial", "Poisson") else dtype  # Counts come as either.

    @quick
    def program(arrays, counts):
        floating = {n: v for n, v in arrays.items() if n != "n"}
        log_prob, pull = jax.vjp(lambda f: build(**{**arrays, **f}).log_prob(counts), floating)
        if dtype == np.float64:
            return log_prob, {}
        rows = jnp.arange(len(counts))
        return log_prob, jax.vmap(lambda i: pull(jnp.zeros_like(log_prob).at[i].set(1.0))[0])(rows)

    with jax.enable_x64(dtype == np.float64):
        arrays = {n: jnp.asarray(v if n == "n" else v.astype(dtype)) for n, v in held.items()}
        log_prob, gradients = program(arrays, jnp.asarray(counts.astype(kind)))
        assert log_prob.dtype == dtype
    expected = reference(counts, **exact)
    return Found(counts, np.asarray(log_prob, float), expected, exact, jax.tree.map(np.asarray, gradients))


@BOTH
@pytest.mark.parametrize("name", MASSES)
def test_log_mass_is_scipys_for_counts_up_to_a_million(name, dtype):
    found = _found(name, dtype)
    np.testing.assert_array_equal(np.isneginf(found.log_prob), np.isneginf(found.expected))
    finite = np.isfinite(found.expected)
    error = np.abs(found.log_prob[finite] - found.expected[finite]) / np.maximum(1, np.abs(found.expected[finite]))
    # In float32 a log-gamma of 1e6 has an error of 1: this would find one of 1e-5.
    np.testing.assert_array_less(error, 1e-5 if dtype == np.float32 else 2e-8)


@pytest.mark.parametrize("name", MASSES)
def test_gradients_are_finite_differences_of_scipys_log_mass(name):
    found, reference = _found(name, np.float32), MASSES[name][2]
    for parameter, gradient in found.gradients.items():
        assert np.isfinite(gradient).all()
        value = found.parameters[parameter]
        step = np.full(len(value), 1e-4) if parameter.startswith("log") else 1e-4 * value
        inner = (step > 0) & ((value < 0.9995) | (parameter != "p"))
        step = np.where(inner, step, 1e-9)
        with np.errstate(all="ignore"):
            at = lambda c, p=parameter, v=value, h=step: reference(found.counts, **{**found.parameters, p: v + c * h})  # noqa: E731
            expected = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
        usable = inner & np.isfinite(expected)
        # Relative to the largest gradient over a few standard deviations of counts: that is what a sampler sees.
        scale = np.where(usable, np.abs(expected), 0).max(axis=0)
        noise = 1e-8 * np.abs(np.where(usable, found.expected, 0)) / step
        error = np.where(usable, np.abs(gradient - np.where(usable, expected, 0)), 0)
        np.testing.assert_array_less(error, 1e-3 * scale + noise + 1e-30, err_msg=parameter)
        assert usable.any()


BOUNDED = {
    "Bernoulli": lambda p: d.Bernoulli(p),
    "Bernoulli logits": lambda p: d.Bernoulli(logits=1e4 * (p - 0.5)),
    "Binomial": lambda p: d.Binomial(3, p),
    "Binomial logits": lambda p: d.Binomial(3, logits=1e4 * (p - 0.5)),
    "BetaBinomial": lambda p: d.BetaBinomial(3, 1e-6 + 1e8 * p, 2.0),
    "Categorical": lambda p: d.Categorical(jnp.stack([1 - p, p, 0 * p], axis=-1)),
}
UNBOUNDED = {
    "Poisson": lambda p: d.Poisson(p),
    "Poisson log": lambda p: d.Poisson(log_rate=2e4 * (p - 0.5)),
    "NegativeBinomial": lambda p: d.NegativeBinomial(p, 2.0),
    "NegativeBinomial log": lambda p: d.NegativeBinomial(log_mean=2e4 * (p - 0.5), concentration=2.0),
    "ZeroInflated": lambda p: d.ZeroInflated(d.Poisson(2.0), p),
}


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
def test_what_is_no_count_is_impossible_and_gradients_are_finite_at_the_edges(name):
    build = {**BOUNDED, **UNBOUNDED}[name]
    none = [-1.0, 0.5, 2.5, jnp.inf, -jnp.inf] + [4.0, 1e9] * (name in BOUNDED)
    values = jnp.array([*none, 0.0, 1.0, 3.0])[:, None]

    @quick
    def program(p, values):
        found, pull = jax.vjp(lambda p: build(p).log_prob(values), p)
        gradients = jax.vmap(lambda i: pull(jnp.zeros_like(found).at[i].set(1.0))[0])(jnp.arange(len(values)))
        return found, gradients, build(p).log_prob(jnp.full((1,), jnp.nan))

    found, gradients, of_nan = program(jnp.array([0.0, 0.25, 1.0]), values)
    assert (found[: len(none)] == -jnp.inf).all()
    assert not jnp.isnan(found).any()
    assert jnp.isnan(of_nan).all()
    assert jnp.isfinite(gradients).all()


# Family: log mass of a parameter and a count; then parameter, count, value and derivative of the log mass.
CERTAIN = {
    "Bernoulli": (
        lambda p, k: d.Bernoulli(p).log_prob(k),
        [(1.0, 1, 0.0, 1.0), (0.0, 0, 0.0, -1.0), (1.0, 0, -np.inf, 0.0), (0.0, 1, -np.inf, 0.0)],
    ),
    "Bernoulli logits": (
        lambda x, k: d.Bernoulli(logits=x).log_prob(k),
        [(-1e4, 1, -1e4, 1.0), (1e4, 1, 0.0, 0.0), (1e4, 0, -1e4, -1.0), (-1e4, 0, 0.0, 0.0)],
    ),
    "Binomial": (lambda p, k: d.Binomial(5, p).log_prob(k), [(0.0, 0, 0.0, -5.0), (1.0, 5, 0.0, 5.0)]),
    "no trials": (lambda p, k: d.Binomial(0, p).log_prob(k), [(0.3, 0, 0.0, 0.0), (0.3, 1, -np.inf, 0.0)]),
    "Binomial logits": (
        lambda x, k: d.Binomial(5, logits=x).log_prob(k),
        [(-1e4, 5, -5e4, 5.0), (-1e4, 0, 0.0, 0.0), (1e4, 4, np.log(5) - 1e4, -1.0)],
    ),
    "Poisson": (
        lambda rate, k: d.Poisson(rate).log_prob(k),
        [(0.0, 0, 0.0, -1.0), (1e8, 0, -1e8, -1.0), (1e8, 10**8, -0.5 * np.log(2e8 * np.pi), 0.0)],
    ),
    "Poisson log": (lambda x, k: d.Poisson(log_rate=x).log_prob(k), [(-1e4, 2, -2e4 - np.log(2), 2.0)]),
    "NegativeBinomial": (lambda m, k: d.NegativeBinomial(m, 2.0).log_prob(k), [(0.0, 0, 0.0, -1.0)]),
    "NegativeBinomial log": (
        lambda x, k: d.NegativeBinomial(log_mean=x, concentration=2.0).log_prob(k),
        [(1e4, 0, 2 * np.log(2) - 2e4, -2.0), (-1e4, 3, np.log(0.5) - 3e4, 3.0)],
    ),
    "nearly Poisson": (
        lambda r, k: d.NegativeBinomial(3.0, r).log_prob(k),
        [(1e8, 2, stats.poisson(3).logpmf(2), 0.0), (1e8, 9, stats.poisson(3).logpmf(9), 0.0)],
    ),
    "Categorical": (
        lambda x, k: d.Categorical(logits=jnp.stack([x, 0 * x, jnp.full_like(x, -jnp.inf)])).log_prob(k),
        [(1e4, 1, -1e4, -1.0), (1e4, 0, 0.0, 0.0), (-1e4, 2, -np.inf, 0.0)],
    ),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_values_and_gradients_at_certain_outcomes(name):
    function, cases = CERTAIN[name]
    at, counts, values, gradients = (np.float32([case[i] for case in cases]) for i in range(4))
    found = quick(jax.vmap(jax.value_and_grad(function)))(at, counts)
    np.testing.assert_allclose(found[0], values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], gradients, rtol=1e-6, atol=1e-7)


def test_categorical_masses():
    logits = np.float32([[0.3, -np.inf, 2.0], [1.0, 0.5, -4.0]])
    exact = special.log_softmax(logits.astype(float), axis=-1)
    values = np.array([0, 1, 2, 3, -1])

    @quick
    def program(logits):
        both = d.Categorical(logits=logits), d.Categorical(jax.nn.softmax(logits))
        shapes = [o.log_prob(x).shape for o in both for x in (jnp.zeros((4, 2), int), True, jnp.zeros((4, 1)))]
        assert shapes == [(4, 2), (2,), (4, 2)] * 2
        slope = jax.grad(lambda x: d.Categorical(logits=x).entropy().sum())(logits)
        return [(o.log_prob(values[:, None]), o.entropy()) for o in both], slope, both[0].log_prob(0.5)

    found, slope, between = program(logits)
    for log_prob, entropy in found:
        np.testing.assert_allclose(log_prob[:3], exact.T, rtol=1e-6, atol=1e-6)
        assert (log_prob[3:] == -jnp.inf).all()
        np.testing.assert_allclose(entropy, stats.entropy(np.exp(exact), axis=-1), rtol=1e-6)
    assert jnp.isfinite(slope).all()
    assert (between == -jnp.inf).all()


def test_multinomial_masses():
    probs = np.float32([[0.2, 0.3, 0.5], [1e-4, 0.0, 1 - 1e-4]])
    exact = probs.astype(float) / probs.astype(float).sum(-1, keepdims=True)
    counts = np.array([[200_400, 299_800, 499_800], [110, 0, 999_890]])
    expected = [stats.multinomial(10**6, p).logpmf(x) for p, x in zip(exact, counts, strict=True)]
    none = np.stack([counts + 1, counts + np.array([0.5, -0.5, 0]), counts + np.array([-300_000, 300_000, 0])])
    logits = np.float32([0.3, -np.inf, 2.0])

    @quick
    def program(probs, logits, x):
        both = d.Multinomial(10**6, probs), d.Multinomial(np.array([10**6, 10**6]), logits=jnp.log(probs))
        slope = jax.grad(lambda z: d.Multinomial(10, logits=z).log_prob(jnp.array([5, 0, 5])))(logits)
        return [o.log_prob(x) for o in both], both[0].mean(), both[1].variance(), slope

    found, mean, variance, slope = program(probs, logits, np.concatenate([counts[None], none]).astype(np.float32))
    for log_prob in found:
        np.testing.assert_allclose(log_prob[0], expected, rtol=1e-5)
        assert (log_prob[1:] == -jnp.inf).all()
    np.testing.assert_allclose(mean, 1e6 * exact, rtol=1e-5)
    np.testing.assert_allclose(variance, 1e6 * exact * (1 - exact), rtol=1e-3, atol=1e-3)
    # With respect to the logits: counts less their expectation.
    left = special.expit(-1.7)
    np.testing.assert_allclose(slope, [5 - 10 * left, 0, 10 * left - 5], rtol=1e-5)


def test_moments_cdfs_and_quantiles_are_scipys():
    grid = np.array([-1.0, 0.0, 0.5, 1.0, 3.0, 10.0, 12.0])[:, None]
    p = np.float32([0.1, 0.45, 0.9])
    u = np.float32([0.0, 0.01, 0.3, 0.7, 0.999])[:, None]

    @partial(quick, static_argnums=3)
    def program(ours, grid, u, has_cdf):
        return ours.mean(), ours.variance(), *((ours.cdf(grid), ours.quantile(u)) if has_cdf else ())

    pairs = [
        (d.Bernoulli(p), stats.bernoulli(p.astype(float))),
        (d.Binomial(10, p), stats.binom(10, p.astype(float))),
        (d.BetaBinomial(10, 2 * p, 3.0), stats.betabinom(10, 2 * p.astype(float), 3)),
        (d.Poisson(10 * p), stats.poisson(10 * p.astype(float))),
        (d.NegativeBinomial(10 * p, 2.5), stats.nbinom(2.5, 2.5 / (2.5 + 10 * p.astype(float)))),
    ]
    for ours, theirs in pairs:
        has_cdf = not isinstance(ours, d.BetaBinomial)
        found = program(ours, jnp.asarray(grid, jnp.float32), u, has_cdf)
        np.testing.assert_allclose(found[0], theirs.mean(), rtol=1e-6)
        np.testing.assert_allclose(found[1], theirs.var(), rtol=1e-6)
        if has_cdf:
            np.testing.assert_allclose(found[2], theirs.cdf(grid), rtol=2e-5, atol=1e-6)
            np.testing.assert_array_equal(found[3], np.maximum(theirs.ppf(u.astype(float)), 0))
    np.testing.assert_allclose(d.Bernoulli(p).entropy(), stats.bernoulli(p.astype(float)).entropy(), rtol=1e-6)
    # Where jax.scipy's incomplete gamma and beta functions are off by 0.8 in float32.
    n, p = 10**6, np.float32(0.3)
    k = np.float32([999_000, 1_000_000, 1_001_500]), np.float32([299_500, 300_000, 300_700])
    found = quick(lambda k, p: (d.Poisson(1e6).cdf(k[0]), d.Binomial(n, p).cdf(k[1])))(k, p)
    np.testing.assert_allclose(found[0], stats.poisson(1e6).cdf(k[0]), atol=2e-5)
    np.testing.assert_allclose(found[1], stats.binom(n, float(p)).cdf(k[1]), atol=5e-5)
    ends = quick(lambda u: (d.Poisson(3.0).quantile(u), d.Binomial(7, 0.5).quantile(u)))(jnp.array([1.0, 1.5, -0.1]))
    np.testing.assert_array_equal(ends, [[np.inf, np.nan, np.nan], [7, np.nan, np.nan]])


# Pearson's and z tests below raise one false alarm in 10^6 each; a variance off by 4 % is found.
LEVEL, Z = 1e-6, 4.9
DRAWS = 40_000
TRIALS = np.array([10, 30, 40, 1000, 10**6, 10**8, 0, 7, 10**6, 10**6])
CHANCES = np.float32([0.3, 0.9, 0.5, 0.7, 1e-5, 0.01, 0.5, 1.0, 1.0, 0.0])
RATES = np.float32([0.3, 5, 12, 100, 1e6, 1e8, 0, 1e-30])
MEANS, SHAPES = np.float32([3, 50, 1e3, 0]), np.float32([0.5, 20, 1e6, 2])
ONES, ZEROS = np.float32([0.2, 30, 1e-6]), np.float32([0.5, 40, 1e6])
SAMPLERS = {
    "Poisson": (lambda: d.Poisson(RATES), lambda: stats.poisson(RATES.astype(float))),
    "Binomial": (lambda: d.Binomial(TRIALS, CHANCES), lambda: stats.binom(TRIALS, CHANCES.astype(float))),
    "NegativeBinomial": (
        lambda: d.NegativeBinomial(MEANS, SHAPES),
        lambda: stats.nbinom(SHAPES.astype(float), SHAPES.astype(float) / (SHAPES.astype(float) + MEANS)),
    ),
    "BetaBinomial": (
        lambda: d.BetaBinomial(np.array([10, 1000, 5]), ONES, ZEROS),
        lambda: stats.betabinom([10, 1000, 5], ONES.astype(float), ZEROS.astype(float)),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_have_the_distribution(name):
    ours, theirs = (make() for make in SAMPLERS[name])
    draws = np.asarray(quick(lambda b, k: b.sample(k, DRAWS))(ours, jax.random.key(5)))
    assert draws.dtype == np.int32
    mean, sd = theirs.mean(), theirs.std()
    certain = sd < 1e-5
    np.testing.assert_array_equal(draws[:, certain], np.broadcast_to(np.round(mean[certain]), (DRAWS, certain.sum())))
    for i in np.flatnonzero(~certain):
        standard = (draws[:, i] - mean[i]) / sd[i]
        assert abs(standard.mean()) * np.sqrt(DRAWS) < Z
        error = np.sqrt((np.broadcast_to(theirs.stats("k"), len(mean))[i] + 2) / DRAWS)
        assert abs((standard**2).mean() - 1) / error < Z, (name, i)
        cdf = lambda x, i=i: theirs.cdf(np.asarray(x)[:, None])[:, i]  # noqa: E731
        frozen = type("Frozen", (), {"cdf": staticmethod(cdf)})
        low, high = (int(theirs.ppf(u)[i]) for u in (1e-3, 1 - 1e-3))
        assert chi_square(draws[:, i], frozen, low, high) > LEVEL, (name, i)


def test_draws_of_bernoulli_variables():
    p = np.float32([0.003, 0.5, 0.9999, 0.0, 1.0])
    draws = np.asarray(quick(lambda p, k: d.Bernoulli(p).sample(k, DRAWS))(p, jax.random.key(0)), float)
    sd = np.sqrt(p.astype(float) * (1 - p.astype(float)))
    assert (draws[:, 3:] == [0, 1]).all()
    assert (np.abs(draws.mean(0) - p)[:3] / sd[:3] * np.sqrt(DRAWS) < Z).all()
    # Any implementation of keys will do; jax.random.poisson takes threefry alone.
    rbg = jax.random.key(0, impl="rbg")
    assert jax.eval_shape(lambda key: d.Poisson(50.0).sample(key, 3), rbg).shape == (3,)


def test_draws_of_categories():
    probs = np.float32([[0.05, 0.0, 0.95], [0.3, 0.3, 0.4]])
    draws = np.asarray(quick(lambda p, k: d.Categorical(p).sample(k, DRAWS))(probs, jax.random.key(1)))
    assert draws.dtype == np.int32
    for row, column in zip(probs, draws.T, strict=True):
        counts = np.bincount(column, minlength=3)
        assert (counts[row == 0] == 0).all()
        expected = row[row > 0].astype(float)
        assert stats.chisquare(counts[row > 0], expected / expected.sum() * DRAWS).pvalue > LEVEL
    total = np.array([50, 10**6])
    counts = quick(lambda p, k: d.Multinomial(total, p).sample(k, 4000))(probs, jax.random.key(2))
    counts = np.asarray(counts, float)
    assert (counts.sum(-1) == total).all()
    exact, n = probs.astype(float), np.array([[50.0], [1e6]])
    sd = np.sqrt(n * exact * (1 - exact))
    z = (counts - n * exact) / np.where(sd > 0, sd, 1)
    assert (np.abs(z.mean(0)) * np.sqrt(4000) < Z).all()
    covariance = np.einsum("nbi,nbj->bij", z, z) / 4000
    expected = -np.sqrt(exact[1, 0] * exact[1, 1] / ((1 - exact[1, 0]) * (1 - exact[1, 1])))
    assert abs(covariance[1, 0, 1] - expected) * np.sqrt(4000) < Z


def test_draws_are_integers_of_the_default_size_and_densities_keep_their_dtype(x64):
    for one in (
        d.Bernoulli(0.5),
        d.Binomial(5, 0.5),
        d.BetaBinomial(5, 1.0, 1.0),
        d.Poisson(3.0),
        d.NegativeBinomial(3.0, 1.0),
        d.Categorical([0.5, 0.5]),
        d.Multinomial(3, [0.5, 0.5]),
    ):
        assert jax.eval_shape(lambda k, one=one: one.sample(k, 2), jax.random.key(0)).dtype == jnp.int64
    assert d.Poisson(jnp.float32(3.0)).log_prob(2).dtype == jnp.float32
    assert d.Binomial(5, jnp.float32(0.3)).log_prob(np.int64(2)).dtype == jnp.float32


def test_enumerating_a_finite_support():
    p = np.float32([0.2, 0.7])
    probs = np.float32([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])

    # A Python number of trials is concrete inside jit too, where models are marginalised.
    @quick
    def program(p, probs):
        many = d.Bernoulli(p), d.Binomial(5, p), d.BetaBinomial(5, p, 1.0), d.Categorical(probs)
        return [(one.enumerate_support(), jnp.exp(one.log_prob(one.enumerate_support()))) for one in many]

    exact = p.astype(float)
    references = stats.bernoulli(exact), stats.binom(5, exact), stats.betabinom(5, exact, 1)
    found = program(p, probs)
    for (values, mass), theirs in zip(found, references, strict=False):
        assert jnp.issubdtype(values.dtype, jnp.integer)
        count = theirs.support()[1] + 1
        np.testing.assert_array_equal(values, np.tile(np.arange(np.max(count))[:, None], 2))
        np.testing.assert_allclose(mass, theirs.pmf(np.asarray(values)), rtol=1e-5)
    np.testing.assert_array_equal(found[3][0], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_allclose(found[3][1], probs.T, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^Binomial.enumerate_support: total_count is different .*Python integer\.$"):
        d.Binomial(np.array([2, 3]), 0.5).enumerate_support()
    with pytest.raises(ValueError, match="total_count is a traced"):
        jax.jit(lambda n: d.BetaBinomial(n, 1.0, 1.0).enumerate_support())(3)


ROWS = {
    "Bernoulli": Row(lambda t: d.Bernoulli(**t), {"probs": [0.2, 0.5, 0.9]}, 1),
    "Bernoulli logits": Row(lambda t: d.Bernoulli(**t), {"logits": [-3.0, 0.5, 4.0]}, 0, variant=True),
    "Binomial": Row(lambda t: d.Binomial(**t), {"total_count": [5, 7, 100], "probs": [0.2, 0.5, 0.9]}, 3),
    "BetaBinomial": Row(
        lambda t: d.BetaBinomial(10, **t),
        {"concentration1": [0.2, 0.5, 9.0], "concentration0": [2.0, 1.0, 1.0]},
        3,
    ),
    "Categorical": Row(lambda t: d.Categorical(**t), {"logits": [[0.0, 1.0], [2.0, 3.0], [0.0, -5.0]]}, 1),
    "Categorical probs": Row(
        lambda t: d.Categorical(**t), {"probs": [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]}, 1, variant=True
    ),
    "Multinomial": Row(
        lambda t: d.Multinomial(4, **t), {"logits": [[0.0, 1.0], [2.0, 3.0], [0.0, -5.0]]}, np.array([1, 3])
    ),
    "Poisson": Row(lambda t: d.Poisson(**t), {"rate": [0.3, 5.0, 1e4]}, 3),
    "Poisson log": Row(lambda t: d.Poisson(**t), {"log_rate": [-2.0, 0.0, 5.0]}, 3, variant=True),
    "NegativeBinomial": Row(
        lambda t: d.NegativeBinomial(**t), {"mean": [0.3, 5.0, 1e4], "concentration": [1.0, 2.0, 3.0]}, 3
    ),
    "NegativeBinomial log": Row(
        lambda t: d.NegativeBinomial(**t),
        {"log_mean": [0.3, 5.0, -3.0], "concentration": [1.0, 2.0, 3.0]},
        3,
        variant=True,
    ),
}


@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].variant])
def test_transformations(name):
    check_pytree(ROWS[name])


def test_checkpoint(tmp_path):
    check_checkpoint(ROWS, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.Bernoulli(), "Bernoulli: probs or logits is not given; expected exactly one of them"),
        (lambda: d.Bernoulli(0.5, logits=0.0), "Bernoulli: probs or logits is given twice"),
        (lambda: d.Bernoulli(1.5), "Bernoulli: probs is 1.5; expected numbers between 0 and 1. Use logits"),
        (lambda: d.Bernoulli(np.array([0.1, np.nan])), "Bernoulli: probs is nan at index"),
        (lambda: d.Binomial(2.5, 0.5), "Binomial: total_count is 2.5; expected whole numbers"),
        (lambda: d.Binomial(-1, 0.5), "Binomial: total_count is -1; expected non-negative numbers"),
        (lambda: d.Binomial(np.ones(3, int), np.full(2, 0.5)), "Binomial: probs is of shape"),
        (lambda: d.BetaBinomial(3, 0.0, 1.0), "BetaBinomial: concentration1 is 0.0; expected positive numbers"),
        (
            lambda: d.Categorical([0.5, 0.6]),
            "Categorical: probs is summing to 1.1; expected probabilities that sum to 1",
        ),
        (lambda: d.Categorical(0.5), "Categorical: probs is of shape"),
        (lambda: d.Categorical(logits=[-np.inf, -np.inf]), "Categorical: logits is -inf for every outcome"),
        (lambda: d.Multinomial(np.ones(3, int), np.full((2, 2), 0.5)), "Multinomial: total_count is of shape"),
        (lambda: d.Poisson(-1.0), "Poisson: rate is -1.0; expected non-negative numbers"),
        (lambda: d.NegativeBinomial(1.0, 0.0), "NegativeBinomial: concentration is 0.0; expected positive numbers"),
        (lambda: d.NegativeBinomial(np.ones(2), np.ones(3)), "NegativeBinomial: concentration is of shape"),
        (lambda: d.Multinomial(3, [0.5, 0.5]).log_prob(np.ones(3)), "Multinomial.log_prob: value is of shape"),
    ],
)
def test_errors_are_one_line(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
