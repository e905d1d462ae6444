"""Discrete distributions against SciPy in float64: masses, gradients, moments, cdfs, draws, and the edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import distributions as d
from tests.distributions._rows import QUICK, Row, check_checkpoint, check_pytree, chi_square

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


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


def _setting(name, dtype):
    build, parameters, reference, moments, widths = MASSES[name]
    held = {k: np.asarray(v) if np.asarray(v).dtype.kind == "i" else np.float32(v) for k, v in parameters.items()}
    exact = {k: v.astype(float) for k, v in held.items()}
    count = len(next(iter(exact.values())))
    mean, sd, high = (np.broadcast_to(x, count).astype(float) for x in moments(**exact))
    columns = [_around(mean[i], sd[i], widths, high[i]) for i in range(count)]
    k = np.stack(columns, axis=1)
    arrays = {n: jnp.asarray(v if v.dtype.kind == "i" else v.astype(dtype)) for n, v in held.items()}
    return partial(build, **arrays), k, reference(k, **exact), arrays, build


@BOTH
@pytest.mark.parametrize("name", MASSES)
def test_log_mass_is_scipys_for_counts_up_to_a_million(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        _, k, expected, arrays, build = _setting(name, dtype)
        kind = int if name in ("Binomial", "Poisson") else dtype  # Counts come as either.

        @quick
        def program(arrays, k):
            floating = {n: v for n, v in arrays.items() if n != "n"}
            whole, pull = jax.vjp(lambda f: build(**{**arrays, **f}).log_prob(k), floating)
            return whole, pull(jnp.ones_like(whole))[0]

        found, gradient = program(arrays, jnp.asarray(k.astype(kind)))
    assert found.dtype == dtype
    assert all(bool(jnp.isfinite(g).all()) for g in gradient.values())
    found = np.asarray(found, float)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    finite = np.isfinite(expected)
    error = np.abs(found[finite] - expected[finite]) / np.maximum(1, np.abs(expected[finite]))
    # In float32 a log-gamma of 1e6 has an error of 1: this would find one of 1e-5.
    np.testing.assert_array_less(error, 1e-5 if dtype == np.float32 else 2e-8)


@pytest.mark.parametrize("name", MASSES)
def test_gradients_are_finite_differences_of_scipys_log_mass(name):
    build, parameters, reference, moments, _ = MASSES[name]
    held = {k: np.asarray(v) if np.asarray(v).dtype.kind == "i" else np.float32(v) for k, v in parameters.items()}
    exact = {k: v.astype(float) for k, v in held.items()}
    count = len(next(iter(exact.values())))
    inner = np.ones(count, bool)
    for parameter, value in exact.items():
        inner &= (value > 0) if parameter in ("rate", "mean", "n", "r", "a", "b") else np.ones(count, bool)
        inner &= (value > 1e-3) & (value < 0.9) if parameter == "p" else np.ones(count, bool)
    exact = {k: v[inner] for k, v in exact.items()}
    mean, sd, _ = moments(**exact)
    k = np.round(mean + np.array([[0.0], [1.5], [-1.0]]) * sd).clip(0)
    k = np.float32(np.minimum(k, exact["n"]) if "n" in exact else k).astype(float)
    arrays = {n: jnp.asarray(held[n][inner]) for n in held}
    floating = {n: v for n, v in arrays.items() if n != "n"}

    @quick
    def gradients(arrays, floating, k):
        one = lambda f, k: build(**{**arrays, **f}).log_prob(k).sum()  # noqa: E731
        return jax.vmap(jax.grad(one), (None, 0))(floating, k)

    found = gradients(arrays, floating, jnp.asarray(k, jnp.float32))
    for parameter in floating:
        value = exact[parameter]
        log_scale = parameter.startswith("log")
        step = 1e-4 if log_scale else 1e-4 * value
        at = lambda s, p=parameter, v=value, h=step: reference(k, **{**exact, p: v + s * h})  # noqa: E731
        expected = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
        # Relative to what one standard deviation of counts does to the gradient: that is what a sampler sees.
        scale = np.abs(expected).max(axis=0)
        noise = 1e-9 * np.abs(at(0)) / np.abs(step)
        error = np.abs(np.asarray(found[parameter], float) - expected)
        np.testing.assert_array_less(error, 1e-3 * scale + noise + 1e-30, err_msg=parameter)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: d.Bernoulli(p),
        lambda p: d.Bernoulli(logits=1e4 * (p - 0.5)),
        lambda p: d.Binomial(3, p),
        lambda p: d.Binomial(3, logits=1e4 * (p - 0.5)),
        lambda p: d.Categorical(jnp.stack([1 - p, p, 0 * p], axis=-1)),
        lambda p: d.Poisson(p),
        lambda p: d.Poisson(log_rate=2e4 * (p - 0.5)),
        lambda p: d.NegativeBinomial(p, 2.0),
        lambda p: d.NegativeBinomial(log_mean=2e4 * (p - 0.5), concentration=2.0),
        lambda p: d.BetaBinomial(3, 1e-6 + 1e8 * p, 2.0),
        lambda p: d.ZeroInflated(d.Poisson(2.0), p),
    ],
)
def test_what_is_no_count_is_impossible_and_gradients_are_finite_at_the_edges(build):
    p = jnp.array([0.0, 0.25, 1.0])
    values = jnp.array([-1.0, 0.5, 1e9 + 0.5, jnp.inf, -jnp.inf, 1.0, 0.0, 3.0])[:, None]

    @quick
    def program(p, values):
        found, pull = jax.vjp(lambda p: build(p).log_prob(values), p)
        return found, jax.vmap(lambda i: pull(jnp.zeros_like(found).at[i].set(1.0))[0])(jnp.arange(len(values)))

    found, gradients = program(p, values)
    unbounded = bool(build(p).support.contains(jnp.asarray(1e9)).all())
    assert (found[:2] == -jnp.inf).all()
    assert (found[3:5] == -jnp.inf).all()
    if not unbounded:
        assert (build(p).log_prob(4) == -jnp.inf).all()
    assert not jnp.isnan(found).any()
    assert jnp.isfinite(gradients).all()
    assert jnp.isnan(build(p).log_prob(jnp.nan)).all()


def test_values_and_gradients_at_certain_outcomes():
    cases = [
        (lambda p: d.Bernoulli(p).log_prob(1), 1.0, 0.0, 1.0),
        (lambda p: d.Bernoulli(p).log_prob(0), 0.0, 0.0, -1.0),
        (lambda p: d.Bernoulli(p).log_prob(0), 1.0, -np.inf, 0.0),
        (lambda x: d.Bernoulli(logits=x).log_prob(1), -1e4, -1e4, 1.0),
        (lambda x: d.Bernoulli(logits=x).log_prob(1), 1e4, 0.0, 0.0),
        (lambda p: d.Binomial(5, p).log_prob(0), 0.0, 0.0, -5.0),
        (lambda p: d.Binomial(5, p).log_prob(5), 1.0, 0.0, 5.0),
        (lambda p: d.Binomial(0, p).log_prob(0), 0.3, 0.0, 0.0),
        (lambda x: d.Binomial(5, logits=x).log_prob(5), -1e4, -5e4, 5.0),
        (lambda x: d.Binomial(5, logits=x).log_prob(0), -1e4, 0.0, 0.0),
        (lambda r: d.Poisson(r).log_prob(0), 0.0, 0.0, -1.0),
        (lambda r: d.Poisson(r).log_prob(0), 1e8, -1e8, -1.0),
        (lambda r: d.Poisson(r).log_prob(10**8), 1e8, -0.5 * np.log(2e8 * np.pi), 0.0),
        (lambda x: d.Poisson(log_rate=x).log_prob(2), -1e4, -2e4 - np.log(2), 2.0),
        (lambda m: d.NegativeBinomial(m, 2.0).log_prob(0), 0.0, 0.0, -1.0),
        (lambda x: d.NegativeBinomial(log_mean=x, concentration=2.0).log_prob(0), 1e4, 2 * np.log(2) - 2e4, -2.0),
        (lambda x: d.NegativeBinomial(log_mean=x, concentration=2.0).log_prob(3), -1e4, np.log(0.5) - 3e4, 3.0),
        (lambda r: d.NegativeBinomial(3.0, r).log_prob(2), 1e8, stats.poisson(3).logpmf(2), 0.0),
        (lambda x: d.Categorical(logits=jnp.stack([x, jnp.float32(-jnp.inf)])).log_prob(0), 2.0, 0.0, 0.0),
        (lambda x: d.Categorical(logits=jnp.stack([x, jnp.float32(-jnp.inf)])).log_prob(1), 2.0, -np.inf, -1.0),
        (lambda x: d.Categorical(logits=jnp.stack([x, 0 * x])).log_prob(1), 1e4, -1e4, -1.0),
    ]

    @quick
    def program(points):
        return [jax.value_and_grad(case[0])(at) for case, at in zip(cases, points, strict=True)]

    found = program([jnp.float32(case[1]) for case in cases])
    for i, ((_, _, value, gradient), (found_value, found_gradient)) in enumerate(zip(cases, found, strict=True)):
        # Two lines are sums of terms of the size of 1e8.
        rtol = 1e-6 if abs(value) < 1e5 else 1e-7
        np.testing.assert_allclose(found_value, value, rtol=rtol, err_msg=f"value {i}")
        np.testing.assert_allclose(found_gradient, gradient, rtol=1e-6, atol=1e-7, err_msg=f"gradient {i}")


def test_categorical_and_multinomial_masses():
    logits = np.float32([[0.3, -np.inf, 2.0], [1.0, 0.5, -4.0]])
    exact = special.log_softmax(logits.astype(float), axis=-1)
    values = np.array([0, 1, 2, 3, -1])
    for build in (d.Categorical(logits=logits), d.Categorical(special.softmax(logits, axis=-1))):
        found = build.log_prob(values[:, None])
        np.testing.assert_allclose(found[:3], exact.T, rtol=1e-6, atol=1e-6)
        assert (found[3:] == -jnp.inf).all()
        assert build.log_prob(jnp.zeros((4, 2), int)).shape == (4, 2)
        assert build.log_prob(True).shape == (2,)
        np.testing.assert_allclose(build.entropy(), stats.entropy(np.exp(exact), axis=-1), rtol=1e-6)
    assert d.Categorical([0.5, 0.5]).log_prob(0.5) == -jnp.inf
    gradient = jax.grad(lambda x: d.Categorical(logits=x).entropy())(jnp.asarray(logits[0]))
    assert jnp.isfinite(gradient).all()

    probs = np.float32([[0.2, 0.3, 0.5], [1e-4, 0.0, 1 - 1e-4]])
    exact = probs.astype(float) / probs.astype(float).sum(-1, keepdims=True)
    counts = np.array([[200_400, 299_800, 499_800], [110, 0, 999_890]])
    total = counts.sum(-1)
    expected = [stats.multinomial(n, p).logpmf(x) for n, p, x in zip(total, exact, counts, strict=True)]
    for build in (d.Multinomial(total, probs), d.Multinomial(10**6, logits=np.log(np.maximum(probs, 1e-38)))):
        np.testing.assert_allclose(build.log_prob(counts), expected, rtol=1e-5)
        assert (build.log_prob(counts + 1) == -jnp.inf).all()
        assert (build.log_prob(counts + np.array([0.5, -0.5, 0])) == -jnp.inf).all()
        assert (build.log_prob(counts + np.array([-300_000, 300_000, 0])) == -jnp.inf).all()
    np.testing.assert_allclose(d.Multinomial(4, probs).mean(), 4 * exact, rtol=1e-5)
    np.testing.assert_allclose(d.Multinomial(4, probs).variance(), 4 * exact * (1 - exact), rtol=1e-3, atol=1e-7)
    # The gradient with respect to logits of a softmax: counts less their expectation.
    gradient = jax.grad(lambda x: d.Multinomial(10, logits=x).log_prob(jnp.array([5, 0, 5])))
    np.testing.assert_allclose(
        gradient(jnp.asarray(logits[0])), [5 - 10 * special.expit(-1.7), 0, 5 - 10 * special.expit(1.7)], rtol=1e-5
    )


def test_moments_cdfs_and_quantiles_are_scipys():
    grid = np.array([-1.0, 0.0, 0.5, 1.0, 3.0, 10.0, 12.0])[:, None]
    p = np.float32([0.1, 0.45, 0.9])
    u = np.float32([0.0, 0.01, 0.3, 0.7, 0.999])[:, None]

    @partial(jax.jit, compiler_options=QUICK, static_argnums=3)
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
    ends = quick(lambda u: (d.Poisson(3.0).quantile(u), d.Binomial(7, 0.5).quantile(u)))(jnp.array([1.0, 1.5, -0.1]))
    np.testing.assert_array_equal(ends, [[np.inf, np.nan, np.nan], [7, np.nan, np.nan]])


# Pearson's and z tests below raise one false alarm in 10^6 each; a variance off by 3 % is found.
LEVEL, Z = 1e-6, 4.9
DRAWS = 100_000
SAMPLERS = {
    "Bernoulli": (
        lambda: d.Bernoulli(np.float32([0.003, 0.5, 0.9999])),
        lambda: stats.bernoulli(np.float32([0.003, 0.5, 0.9999]).astype(float)),
    ),
    "Poisson": (
        lambda: d.Poisson(np.float32([0.3, 5, 12, 100, 1e6, 1e8])),
        lambda: stats.poisson([0.3, 5, 12, 100, 1e6, 1e8]),
    ),
    "Binomial": (
        lambda: d.Binomial(np.array([10, 30, 40, 1000, 10**6, 10**8]), np.float32([0.3, 0.9, 0.5, 0.7, 1e-5, 0.01])),
        lambda: stats.binom(
            [10, 30, 40, 1000, 10**6, 10**8], np.float32([0.3, 0.9, 0.5, 0.7, 1e-5, 0.01]).astype(float)
        ),
    ),
    "NegativeBinomial": (
        lambda: d.NegativeBinomial(np.float32([3, 50, 1e3]), np.float32([0.5, 20, 1e6])),
        lambda: stats.nbinom([0.5, 20, 1e6], [0.5 / 3.5, 20 / 70, 1e6 / (1e6 + 1e3)]),
    ),
    "BetaBinomial": (
        lambda: d.BetaBinomial(np.array([10, 1000]), np.float32([0.2, 30]), np.float32([0.5, 40])),
        lambda: stats.betabinom([10, 1000], np.float32([0.2, 30]).astype(float), [0.5, 40]),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_have_the_distribution(name):
    ours, theirs = (make() for make in SAMPLERS[name])
    draws = np.asarray(quick(lambda b, k: b.sample(k, DRAWS))(ours, jax.random.key(5)))
    assert draws.dtype == np.int32
    mean, sd, kurtosis = theirs.mean(), theirs.std(), theirs.stats("k")
    standard = (draws - mean) / sd
    assert (np.abs(standard.mean(0)) * np.sqrt(DRAWS) < Z).all()
    if name != "Bernoulli":  # Whose mean is all there is, and whose variance is far from normal.
        error = np.sqrt((kurtosis + 2) / DRAWS)
        assert (np.abs((standard**2).mean(0) - 1) / error < Z).all()
    low, high = theirs.ppf(1e-3).astype(int), theirs.ppf(1 - 1e-3).astype(int)
    for i, column in enumerate(draws.T):
        cdf = lambda x, i=i: theirs.cdf(np.asarray(x)[:, None])[:, i]  # noqa: E731
        frozen = type("Frozen", (), {"cdf": staticmethod(cdf)})
        assert chi_square(column, frozen, low[i], high[i]) > LEVEL, (name, i)


def test_draws_of_categories():
    probs = np.float32([[0.05, 0.0, 0.95], [0.3, 0.3, 0.4]])
    draws = np.asarray(d.Categorical(probs).sample(jax.random.key(1), DRAWS))
    assert draws.dtype == np.int32
    for row, column in zip(probs, draws.T, strict=True):
        counts = np.bincount(column, minlength=3)
        assert (counts[row == 0] == 0).all()
        expected = row[row > 0].astype(float)
        assert stats.chisquare(counts[row > 0], expected / expected.sum() * DRAWS).pvalue > LEVEL
    # Gumbel noise in float32 by default never exceeds 16: an outcome of probability 1e-7 would not be drawn at all.
    rare = d.Categorical(logits=jnp.array([0.0, np.log(1e-6)])).sample(jax.random.key(0), 20_000_000)
    count = int(rare.sum())
    assert stats.poisson(20).cdf(count) > LEVEL / 2
    assert stats.poisson(20).sf(count - 1) > LEVEL / 2

    counts = np.asarray(d.Multinomial(np.array([50, 10**6]), probs).sample(jax.random.key(2), 4000), float)
    assert (counts.sum(-1) == [50, 10**6]).all()
    exact, n = probs.astype(float), np.array([[50.0], [1e6]])
    sd = np.sqrt(n * exact * (1 - exact))
    z = (counts - n * exact) / np.where(sd > 0, sd, 1)
    assert (np.abs(z.mean(0)) * np.sqrt(4000) < Z).all()
    covariance = np.einsum("nbi,nbj->bij", z, z) / 4000
    expected = -np.sqrt(exact[1, 0] * exact[1, 1] / ((1 - exact[1, 0]) * (1 - exact[1, 1])))
    assert abs(covariance[1, 0, 1] - expected) * np.sqrt(4000) < Z


def test_draws_at_the_edges():
    @quick
    def program(keys, rbg):
        return {
            "poisson": (d.Poisson(jnp.array([0.0, 1e-30])).sample(keys[0], 20), [0, 0]),
            "binomial": (
                d.Binomial(jnp.array([0, 7, 10**6, 10**6]), jnp.array([0.5, 1.0, 1.0, 0.0])).sample(keys[1], 20),
                [0, 7, 10**6, 0],
            ),
            "logits": (d.Binomial(9, logits=jnp.array([1e4, -1e4])).sample(keys[2], 20), [9, 0]),
            "negative": (d.NegativeBinomial(0.0, 2.0).sample(keys[3], (20, 1)), [0]),
            "bernoulli": (d.Bernoulli(jnp.array([0.0, 1.0])).sample(keys[4], 1000), [0, 1]),
            "categorical": (d.Categorical(logits=jnp.array([-jnp.inf, 0.0])).sample(keys[5], (1000, 1)), [1]),
            "beta-binomial": (d.BetaBinomial(5, 1e-6, 1e6).sample(keys[6], (20, 1)), [0]),
        }, d.Poisson(50.0).sample(rbg, 3)

    # Any implementation of keys will do; jax.random.poisson takes threefry alone.
    found, from_rbg = program(jax.random.split(jax.random.key(0), 7), jax.random.key(0, impl="rbg"))
    for name, (draws, expected) in found.items():
        assert (np.asarray(draws) == np.array(expected)).all(), name
    assert from_rbg.shape == (3,)


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
    cases = [
        (d.Bernoulli(jnp.array([0.2, 0.7])), 2),
        (d.Binomial(5, jnp.array([0.2, 0.7])), 6),
        (d.BetaBinomial(5, jnp.array([0.2, 0.7]), 1.0), 6),
        (d.Categorical(jnp.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])), 3),
    ]
    for one, count in cases:
        values = one.enumerate_support()
        assert values.shape == (count, 2)
        assert jnp.issubdtype(values.dtype, jnp.integer)
        np.testing.assert_array_equal(values[:, 0], np.arange(count))
        np.testing.assert_allclose(jnp.exp(one.log_prob(values)).sum(0), 1.0, rtol=1e-6)
        mean = (np.asarray(values) * np.exp(one.log_prob(values))).sum(0)
        if count != 3:
            np.testing.assert_allclose(mean, one.mean(), rtol=1e-6)
    # A Python number of trials is concrete inside jit too, where models are marginalised.
    assert jax.jit(lambda p: d.Binomial(3, p).enumerate_support())(0.5).shape == (4,)
    with pytest.raises(ValueError, match=r"^Binomial.enumerate_support: total_count is different .*Python integer\.$"):
        d.Binomial(np.array([2, 3]), 0.5).enumerate_support()
    with pytest.raises(ValueError, match="total_count is a traced"):
        jax.jit(lambda n: d.BetaBinomial(n, 1.0, 1.0).enumerate_support())(3)


ROWS = {
    "Bernoulli": Row(lambda t: d.Bernoulli(**t), {"probs": [0.2, 0.5, 0.9]}, 1),
    "Bernoulli logits": Row(lambda t: d.Bernoulli(**t), {"logits": [-3.0, 0.5, 4.0]}, 0),
    "Binomial": Row(lambda t: d.Binomial(**t), {"total_count": [5, 7, 100], "probs": [0.2, 0.5, 0.9]}, 3),
    "BetaBinomial": Row(
        lambda t: d.BetaBinomial(10, **t), {"concentration1": [0.2, 0.5, 9.0], "concentration0": [2.0, 1.0, 1.0]}, 3
    ),
    "Categorical": Row(lambda t: d.Categorical(**t), {"logits": [[0.0, 1.0], [2.0, 3.0], [0.0, -5.0]]}, 1),
    "Categorical probs": Row(lambda t: d.Categorical(**t), {"probs": [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]}, 1),
    "Multinomial": Row(
        lambda t: d.Multinomial(4, **t), {"logits": [[0.0, 1.0], [2.0, 3.0], [0.0, -5.0]]}, np.array([1, 3])
    ),
    "Poisson": Row(lambda t: d.Poisson(**t), {"rate": [0.3, 5.0, 1e4]}, 3),
    "Poisson log": Row(lambda t: d.Poisson(**t), {"log_rate": [-2.0, 0.0, 5.0]}, 3),
    "NegativeBinomial": Row(
        lambda t: d.NegativeBinomial(**t), {"mean": [0.3, 5.0, 1e4], "concentration": [1.0, 2.0, 3.0]}, 3
    ),
    "NegativeBinomial log": Row(
        lambda t: d.NegativeBinomial(**t), {"log_mean": [0.3, 5.0, -3.0], "concentration": [1.0, 2.0, 3.0]}, 3
    ),
}


@pytest.mark.parametrize("name", ROWS)
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
