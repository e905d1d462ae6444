"""Mixtures, independent, transformed, truncated, zero-inflated and empirical distributions against SciPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import distributions as d
from tests.distributions._rows import QUICK, Row, check_checkpoint, check_pytree, chi_square, distance

# With 20,000 draws and a false alarm in 10^7 a cdf off by 0.041 is found; z tests have a false alarm in 10^6.
DRAWS, Z = 20_000, 4.9
DISTANCE = np.sqrt(np.log(2e7) / (2 * DRAWS))
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


@BOTH
def test_transforming_a_normal_by_exp_gives_scipys_lognormal(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours = d.Transformed(d.Normal(jnp.asarray(0.25, dtype), jnp.asarray(0.5, dtype)), d.Exp())
        theirs = stats.lognorm(0.5, scale=np.exp(0.25))
        x = jnp.asarray(np.array([0.0, -1.0, 1e-3, 0.25, 1.0, 2.5, 40.0], dtype))
        u = jnp.asarray(np.array([0.001, 0.5, 0.99], dtype))
        found = quick(lambda o, x, u: (o.log_prob(x), o.cdf(x), o.quantile(u)))(ours, x, u)
        rtol = 1e-5 if dtype == np.float32 else 1e-12
        for got, expected in zip(
            found, (theirs.logpdf(np.asarray(x, float)), theirs.cdf(x), theirs.ppf(u)), strict=True
        ):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-7)
        assert isinstance(ours.support, d.Positive)


def test_transformed_by_a_decreasing_map_and_a_chain():
    ours = d.Transformed(d.Normal(0.5, 1.0), d.Affine(jnp.array([0.0, 3.0]), -2.0))
    theirs = stats.norm([-1.0, 2.0], 2.0)
    x = np.float32([[-3.0], [0.2], [4.0]])
    np.testing.assert_allclose(ours.log_prob(x), theirs.logpdf(x), rtol=1e-6)
    np.testing.assert_allclose(ours.cdf(x), theirs.cdf(x), rtol=1e-6)
    np.testing.assert_allclose(ours.quantile(np.float32([[0.1], [0.7]])), theirs.ppf([[0.1], [0.7]]), rtol=1e-5)
    # Reciprocals of gamma variables.
    ours = d.Transformed(d.Gamma(3.0, 2.0), d.Power(-1.0))
    np.testing.assert_allclose(
        ours.log_prob(np.float32([0.3, 2.0])), stats.invgamma(3, scale=2).logpdf([0.3, 2.0]), rtol=1e-5
    )
    np.testing.assert_allclose(ours.cdf(np.float32([0.3, 2.0])), stats.invgamma(3, scale=2).cdf([0.3, 2.0]), rtol=1e-5)
    # A uniform variable through a chain: both edges of its image are known.
    ours = d.Transformed(d.Uniform(0.0, 1.0), d.Chain((d.Affine(1.0, 2.0), d.Exp())))
    x = np.float32([np.e * 1.001, 10.0, np.e**3 * 0.999, 2.7, 20.2])
    np.testing.assert_allclose(ours.log_prob(x), stats.loguniform(np.e, np.e**3).logpdf(x), rtol=1e-5)
    np.testing.assert_allclose(ours.cdf(x), stats.loguniform(np.e, np.e**3).cdf(x), rtol=1e-4)
    np.testing.assert_allclose(ours.support.bijector.forward(0.0), np.exp(2.0), rtol=1e-6)
    back = d.Transformed(d.LogNormal(0.0, 30.0), d.Inverse(d.Exp()))
    np.testing.assert_allclose(back.log_prob(-60.0), stats.norm(0, 30).logpdf(-60), rtol=1e-5)
    assert isinstance(back.support, d.Real)


def test_transformed_vectors(rng):
    base = d.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 0.5]]))
    simplex = d.Transformed(base, d.StickBreaking())
    assert simplex.event_shape == (3,)
    assert isinstance(simplex.support, d.Simplex)
    x = jnp.array([0.2, 0.5, 0.3])
    # The density of a map of vectors from autodiff's Jacobian, in the first two coordinates.
    u = d.StickBreaking().inverse(x)
    jacobian = jax.jacfwd(lambda u: d.StickBreaking().forward(u)[:2])(u)
    np.testing.assert_allclose(simplex.log_prob(x), base.log_prob(u) - jnp.linalg.slogdet(jacobian)[1], rtol=1e-5)
    assert simplex.log_prob(jnp.array([0.2, 0.5, 0.4])) == -jnp.inf
    assert simplex.sample(jax.random.key(0), 4).shape == (4, 3)
    # A map of single numbers acts on each entry of a vector.
    logs = d.Transformed(base, d.Exp())
    assert logs.event_shape == (2,)
    np.testing.assert_allclose(
        logs.log_prob(jnp.array([0.5, 2.0])), base.log_prob(jnp.log(jnp.array([0.5, 2.0]))), rtol=1e-5
    )
    assert logs.log_prob(jnp.array([-0.5, 2.0])) == -jnp.inf
    # Batch axes that the bijector adds get draws of their own, in front and where the base has length one.
    for base_loc in (0.0, jnp.zeros(1)):
        spread = d.Transformed(d.Normal(base_loc, 1.0), d.Affine(jnp.arange(3.0), 2.0))
        draws = np.asarray(spread.sample(jax.random.key(1), 2000))
        assert draws.shape == (2000, 3)
        assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.11
        np.testing.assert_allclose(draws.mean(0), np.arange(3), atol=0.22)


def test_transformed_outside_its_support_has_no_nan_gradient():
    def density(loc, edge, x):
        chain = d.Chain((d.Exp(), d.Affine(edge, 1.0)))
        return d.Transformed(d.Normal(loc, 1.0), chain).log_prob(x)

    values, gradients = jax.value_and_grad(lambda a: density(a[0], a[1], a[2]))(jnp.array([0.5, 2.0, 1.0]))
    assert values == -jnp.inf
    assert (gradients == 0).all()
    assert jnp.isnan(density(0.5, 2.0, jnp.nan))


def test_independent_adds_up():
    base = d.Gamma(jnp.arange(1.0, 7.0).reshape(2, 3), 2.0)
    x = np.float32(np.linspace(0.2, 3, 12).reshape(2, 2, 3))
    theirs = stats.gamma(np.arange(1.0, 7.0).reshape(2, 3), scale=0.5)
    for ndims, axes in ((1, (-1,)), (2, (-2, -1))):
        ours = d.Independent(base, ndims)
        assert ours.batch_shape == (2, 3)[: 2 - ndims]
        assert ours.event_shape == (2, 3)[2 - ndims :]
        np.testing.assert_allclose(ours.log_prob(x), theirs.logpdf(x).sum(axes), rtol=1e-6)
        np.testing.assert_allclose(ours.entropy(), theirs.entropy().sum(axes), rtol=1e-5)
        np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=1e-6)
        np.testing.assert_allclose(ours.variance(), theirs.var(), rtol=1e-6)
        assert ours.sample(jax.random.key(0), 4).shape == (4, 2, 3)
        assert ours.support.event_ndims == ndims
        assert ours.support.contains(x).shape == (2, 2)[: 3 - ndims]
    assert d.Independent(base).event_shape == (2, 3)
    nested = d.Independent(d.Dirichlet(jnp.ones((4, 3))), 1)
    assert nested.event_shape == (4, 3)
    assert nested.log_prob(jnp.full((4, 3), 1 / 3)).shape == ()
    assert nested.support.bijector.inverse_shape((4, 3)) == (4, 2)


@BOTH
def test_mixtures_are_sums(dtype):
    weights, loc, scale = np.float32([0.3, 0.6, 0.1]), np.float32([-1.0, 2.0, 40.0]), np.float32([1.0, 0.5, 3.0])
    x = np.float32([[-50.0], [-1.0], [0.3], [2.5], [60.0]])
    exact = weights.astype(float) / weights.astype(float).sum()
    theirs = stats.norm(loc.astype(float), scale.astype(float))
    with jax.enable_x64(dtype == np.float64):
        cast = lambda a: jnp.asarray(a.astype(dtype))  # noqa: E731
        family = d.Mixture(cast(exact), d.Normal(cast(loc), cast(scale)))
        logits = d.Mixture(components=d.Normal(cast(loc), cast(scale)), logits=cast(np.log(exact) + 5))
        several = d.Mixture(cast(exact), tuple(d.Normal(cast(loc)[i], cast(scale)[i]) for i in range(3)))
        program = quick(lambda m, x: (m.log_prob(x), m.cdf(x), m.mean(), m.variance()))
        rtol = 1e-5 if dtype == np.float32 else 1e-10
        mean = (exact * theirs.mean()).sum()
        variance = (exact * (theirs.var() + theirs.mean() ** 2)).sum() - mean**2
        for ours in (family, logits, several):
            found = program(ours, cast(x[:, 0]))
            expected = (
                special.logsumexp(theirs.logpdf(x), b=exact, axis=-1),
                (exact * theirs.cdf(x)).sum(-1),
                mean,
                variance,
            )
            for got, want in zip(found, expected, strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7 if dtype == np.float32 else 0)


def test_a_component_without_density_leaves_gradients_finite_and_right():
    def density(logits, rate, x):
        both = (d.Normal(0.0, 1.0), d.Exponential(rate), d.Uniform(-3.0, -2.0))
        return d.Mixture(components=both, logits=logits).log_prob(x)

    logits = jnp.array([0.5, 0.0, -jnp.inf])
    value, gradient = quick(jax.value_and_grad(density, (0, 1, 2)))(logits, 2.0, -1.0)
    w = special.softmax([0.5, 0.0])
    np.testing.assert_allclose(value, np.log(w[0]) + stats.norm.logpdf(-1), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [w[1], -w[1], 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradient[1], 0.0)
    np.testing.assert_allclose(gradient[2], 1.0, rtol=1e-6)
    # Nothing has density: -inf, and still no NaN.
    two = lambda w: d.Mixture(w, d.Uniform(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))).log_prob(9.0)  # noqa: E731
    value, gradient = jax.value_and_grad(two)(jnp.array([0.5, 0.5]))
    assert value == -jnp.inf
    assert (gradient == 0).all()
    # A weight of zero silences a component, infinite density and infinite variance included.
    spike = d.Mixture(jnp.array([1.0, 0.0]), d.Beta(jnp.array([2.0, 0.5]), 1.0))
    np.testing.assert_allclose(spike.log_prob(0.5), np.log(2 * 0.5), atol=1e-6)
    assert spike.log_prob(0.0) == -jnp.inf
    heavy = d.Mixture(jnp.array([1.0, 0.0]), (d.Normal(1.0, 2.0), d.Cauchy(0.0, 1.0)))
    assert heavy.mean() == 1
    assert heavy.variance() == 4


def test_mixture_draws_pick_components():
    weights = np.float32([0.2, 0.5, 0.3])
    family = d.Mixture(weights, d.Normal(jnp.array([-4.0, 0.0, 3.0]), jnp.array([1.0, 0.1, 2.0])))
    theirs = stats.norm([-4.0, 0.0, 3.0], [1.0, 0.1, 2.0])
    cdf = lambda x: (weights.astype(float) * theirs.cdf(x[:, None])).sum(-1)  # noqa: E731
    several = d.Mixture(weights, (d.Normal(-4.0, 1.0), d.Normal(0.0, 0.1), d.Normal(3.0, 2.0)))
    for i, ours in enumerate((family, several)):
        draws = np.asarray(quick(lambda o, k: o.sample(k, DRAWS))(ours, jax.random.key(i)), float)
        assert distance(draws, cdf) < DISTANCE
    # A component that gives NaN and does not occur is not looked at.
    broken = jax.jit(lambda s: d.Mixture(jnp.array([1.0, 0.0]), d.Normal(0.0, s)).sample(jax.random.key(2), 50))
    assert jnp.isfinite(broken(jnp.array([1.0, jnp.nan]))).all()
    # Weights with a batch that the components do not have: every entry draws for itself.
    wide = d.Mixture(
        jnp.array([[1.0, 0.0], [0.5, 0.5]]), d.MultivariateNormal(jnp.array([[0.0, 0], [9, 9]]), jnp.eye(2))
    )
    assert wide.shape == (2, 2)
    draws = np.asarray(wide.sample(jax.random.key(3), 4000))
    np.testing.assert_allclose(draws.mean(0), [[0, 0], [4.5, 4.5]], atol=4.9 * np.sqrt(1 + 20.25) / 63)
    np.testing.assert_allclose(wide.mean(), [[0, 0], [4.5, 4.5]])
    np.testing.assert_allclose(wide.variance(), [[1, 1], [21.25, 21.25]])
    assert abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) < 4.9 / 63
    counts = d.Mixture([0.5, 0.5], d.Poisson(jnp.array([1.0, 50.0])))
    assert counts.is_discrete
    assert counts.sample(jax.random.key(4), 3).dtype == jnp.int32


def test_supports_of_mixtures():
    half = jnp.array([0.5, 0.5])
    one = lambda *members: d.Mixture(half, members).support  # noqa: E731
    assert isinstance(one(d.Normal(0.0, 1.0), d.Exponential(1.0)), d.Real)
    assert isinstance(one(d.Exponential(1.0), d.Gamma(1.0, 1.0)), d.Positive)
    mixed = one(d.Beta(1.0, 1.0), d.Uniform(-1.0, 0.5))
    np.testing.assert_array_equal(mixed.contains(jnp.array([-1.5, -0.5, 0.9, 1.5])), [False, True, True, False])
    counts = one(d.Poisson(1.0), d.Binomial(3, 0.5))
    np.testing.assert_array_equal(counts.contains(jnp.array([-1, 0, 7])), [False, True, True])
    batch = d.Mixture(half, d.Uniform(jnp.array([[0.0, 4.0], [1.0, 2.0]]), 5.0)).support
    np.testing.assert_array_equal(batch.contains(jnp.array([0.5, 0.5])), [True, False])
    vectors = d.Mixture(half, d.Independent(d.Uniform(jnp.zeros((2, 3)), jnp.array([[1.0], [2.0]])), 1)).support
    np.testing.assert_array_equal(vectors.contains(jnp.array([[1.5, 0.5, 2.0], [0.1, 0.1, 2.1]])), [True, False])


def test_zero_inflated_is_the_mixture_with_zero():
    rate, gate = np.float32([2.0, 100.0, 1e-3]), np.float32([0.25, 1e-6, 0.9])
    ours = d.ZeroInflated(d.Poisson(rate), gate)
    k = np.array([0, 1, 5, 130])[:, None]
    exact, open_gate = stats.poisson(rate.astype(float)), 1 - gate.astype(float)
    with np.errstate(divide="ignore"):
        expected = np.where(k == 0, np.logaddexp(np.log(gate.astype(float)), np.log(open_gate) + exact.logpmf(0)), 0)
        expected = np.where(k == 0, expected, np.log(open_gate) + exact.logpmf(k))
    np.testing.assert_allclose(ours.log_prob(k), expected, rtol=3e-6)
    support = np.arange(200)[:, None]
    mass = np.exp(np.asarray(ours.log_prob(support), float))
    np.testing.assert_allclose(ours.mean(), (support * mass).sum(0), rtol=1e-5)
    np.testing.assert_allclose(ours.variance(), (support**2 * mass).sum(0) - (support * mass).sum(0) ** 2, rtol=1e-4)
    np.testing.assert_allclose(ours.cdf(3), mass[:4].sum(0), rtol=1e-5)
    assert (ours.log_prob(jnp.array([[-1.0], [0.5]])) == -jnp.inf).all()
    # The derivative at a gate of zero is (1 - f) / f, and both ends have finite ones.
    slope = jax.vmap(jax.grad(lambda g, k: d.ZeroInflated(d.Poisson(2.0), g).log_prob(k)), (0, None))
    np.testing.assert_allclose(slope(jnp.array([0.0, 1.0]), 0), [np.expm1(2), 1 - np.exp(-2)], rtol=1e-5)
    np.testing.assert_allclose(slope(jnp.array([0.0]), 3), [-1.0])
    assert jnp.isfinite(slope(jnp.array([0.0, 1.0]), 3)).all()
    # Zero is almost impossible under the base: the gate alone explains it.
    far = jax.value_and_grad(lambda g: d.ZeroInflated(d.Poisson(1e4), g).log_prob(0))(0.3)
    np.testing.assert_allclose(far, [np.log(0.3), 1 / 0.3], rtol=1e-5)
    draws = np.asarray(d.ZeroInflated(d.Poisson(2.0), 0.25).sample(jax.random.key(0), DRAWS))
    assert draws.dtype == np.int32
    zero = 0.25 + 0.75 * np.exp(-2)
    assert abs((draws == 0).mean() - zero) / np.sqrt(zero * (1 - zero) / DRAWS) < Z


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_truncated_normal_is_scipys_in_both_tails(dtype):
    low = np.array([-1.0, 3.0, 8.0, -9.0, -0.5])
    high = np.array([2.0, 4.0, 9.0, -8.0, 6.0])
    theirs = stats.truncnorm(low, high, 1, 2)
    points = np.float32(theirs.ppf(np.array([0.05, 0.5, 0.95])[:, None])).astype(float)
    with jax.enable_x64(dtype == np.float64):
        cast = lambda a: jnp.asarray(np.asarray(a).astype(dtype))  # noqa: E731
        ours = d.Truncated(d.Normal(cast(1.0), cast(2.0)), cast(1 + 2 * low), cast(1 + 2 * high))

        @partial(jax.jit, compiler_options=QUICK)
        def program(o, x):
            inside, slope = jax.vjp(lambda o, x: o.log_prob(x), o, x)
            return inside, o.cdf(x), slope(jnp.ones_like(inside))

        log_prob, cdf, gradients = program(ours, cast(points))
        rtol = 2e-5 if dtype == np.float32 else 1e-10
        np.testing.assert_allclose(log_prob, theirs.logpdf(points), rtol=rtol, atol=rtol)
        np.testing.assert_allclose(cdf, theirs.cdf(points), rtol=2 * rtol, atol=rtol)
        assert log_prob.dtype == cdf.dtype == dtype
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
        np.testing.assert_allclose(gradients[1], -(points - 1) / 4, rtol=1e-5)
        outside = ours.log_prob(jnp.stack([ours.low - 0.25, ours.high + 0.25]))
        assert (outside == -jnp.inf).all()
        np.testing.assert_array_equal(ours.cdf(ours.low - 1), np.zeros(5))
        np.testing.assert_array_equal(ours.cdf(ours.high + 1), np.ones(5))
    if dtype == np.float32:
        draws = np.asarray(jax.jit(lambda o, k: o.sample(k, DRAWS))(ours, jax.random.key(0)), float)
        for i in range(5):
            one = stats.truncnorm(low[i], high[i], 1, 2)
            assert distance(draws[:, i], one.cdf) < DISTANCE
        assert bool(ours.support.contains(draws.astype(np.float32)).all())


def test_truncated_with_one_end_and_other_bases():
    upper = d.Truncated(d.Normal(0.0, 1.0), low=6.0)
    assert isinstance(upper.support, d.GreaterThan)
    np.testing.assert_allclose(upper.log_prob(6.25), stats.truncnorm(6, np.inf).logpdf(6.25), rtol=1e-5)
    lower = d.Truncated(d.Laplace(0.0, 1.0), low=-np.inf, high=-20.0)
    assert isinstance(lower.support, d.LessThan)
    np.testing.assert_allclose(lower.log_prob(-21.5), -1.5, rtol=1e-5)
    # The mirrored tail of a symmetric law, where a difference of cdfs is 0 in float32.
    np.testing.assert_allclose(d.Truncated(d.Logistic(0.0, 1.0), low=30.0).log_prob(31.0), -1.0, rtol=1e-5)
    middle = d.Truncated(d.Exponential(2.0), 1.0, 3.0)
    np.testing.assert_allclose(middle.log_prob(2.0), stats.truncexpon(4, 1, 0.5).logpdf(2), rtol=1e-5)
    draws = np.asarray(middle.sample(jax.random.key(0), DRAWS), float)
    assert distance(draws, stats.truncexpon(4, 1, 0.5).cdf) < DISTANCE
    gamma = d.Truncated(d.Gamma(2.0, 1.0), high=1.5)
    np.testing.assert_allclose(gamma.log_prob(0.5), stats.gamma(2).logpdf(0.5) - stats.gamma(2).logcdf(1.5), rtol=1e-5)
    assert gamma.log_prob(-0.5) == -jnp.inf
    beta = d.Truncated(d.Beta(2.0, 2.0), low=0.5).support
    np.testing.assert_array_equal(beta.contains(jnp.array([0.4, 0.7, 1.1])), [False, True, False])
    # Beyond the smallest number that float32 has, the answer is NaN and not a number made up.
    assert jnp.isnan(d.Truncated(d.Normal(0.0, 1.0), low=20.0).log_prob(20.5))
    assert jnp.isnan(d.Truncated(d.Normal(0.0, 1.0), low=0.0).log_prob(jnp.nan))
    with pytest.raises(NotImplementedError, match=r"^Gamma.quantile"):
        gamma.sample(jax.random.key(0))


def test_truncated_counts():
    # The zero-truncated Poisson law at a small rate: 1 - exp(-rate) must not cancel.
    rate = np.float32([1e-6, 0.5, 30.0])
    ours = d.Truncated(d.Poisson(rate), low=1)
    exact = rate.astype(float)
    expected = stats.poisson(exact).logpmf(2) - np.log(-np.expm1(-exact))
    np.testing.assert_allclose(ours.log_prob(2), expected, rtol=1e-5)
    assert (ours.log_prob(0) == -jnp.inf).all()
    np.testing.assert_array_equal(ours.support.contains(jnp.array([0, 1, 1])), [False, True, True])
    draws = np.asarray(jax.jit(lambda o, k: o.sample(k, DRAWS))(ours, jax.random.key(0)))
    assert draws.dtype == np.int32
    assert draws.min() == 1
    assert draws[:, 0].max() == 1
    mean = exact / -np.expm1(-exact)
    sd = np.sqrt(mean * (1 + exact - mean))
    assert (np.abs(draws.mean(0) - mean)[1:] / sd[1:] * np.sqrt(DRAWS) < Z).all()
    for ours, theirs, low, high in (
        (d.Truncated(d.Binomial(20, 0.3), 4, 9), stats.binom(20, 0.3), 4, 9),
        (d.Truncated(d.Binomial(20, 0.3), 12), stats.binom(20, 0.3), 12, 20),
        (d.Truncated(d.NegativeBinomial(5.0, 2.0), 3, 40), stats.nbinom(2, 2 / 7), 3, 40),
        (d.Truncated(d.Poisson(3.0), 2.5, 5.5), stats.poisson(3), 3, 5),
        (d.Truncated(d.Poisson(3.0), 4, 4), stats.poisson(3), 4, 4),
    ):
        k = np.arange(low - 2, high + 3)
        inside = (k >= low) & (k <= high)
        mass = np.where(inside, theirs.pmf(k), 0)
        mass = mass / mass.sum()
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(ours.log_prob(k), np.log(mass), rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(ours.cdf(k), np.cumsum(mass), rtol=1e-4, atol=1e-6)
        x = np.asarray(ours.sample(jax.random.key(1), DRAWS))
        frozen = type(
            "Frozen", (), {"cdf": staticmethod(lambda q, k=k, m=mass: np.array([m[k <= e].sum() for e in q]))}
        )
        assert x.min() >= low
        assert x.max() <= high
        assert low == high or chi_square(x, frozen, low - 1, high) > 1e-6
    # Within a compiled program the ends may be traced.
    traced = jax.jit(lambda low: d.Truncated(d.Poisson(2.0), low).log_prob(3))(1)
    np.testing.assert_allclose(traced, stats.poisson(2).logpmf(3) - np.log(-np.expm1(-2)), rtol=1e-5)


def test_empirical():
    ours = d.Empirical([1.0, 2.0, 2.0, 6.0], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(jnp.exp(ours.log_prob(jnp.array([1.0, 2.0, 6.0, 3.0]))), [0.1, 0.5, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(ours.mean(), 3.5)
    np.testing.assert_allclose(ours.variance(), 0.1 + 2 + 14.4 - 12.25, rtol=1e-6)
    np.testing.assert_allclose(ours.cdf(jnp.array([0.0, 1.0, 2.5, 9.0])), [0, 0.1, 0.6, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(ours.quantile(jnp.array([0.0, 0.05, 0.5, 0.7, 1.0])), [1, 1, 2, 6, 6])
    shuffled = d.Empirical([6.0, 2.0, 1.0], logits=jnp.log(jnp.array([4.0, 5.0, 1.0])))
    np.testing.assert_array_equal(shuffled.quantile(jnp.array([0.05, 0.5, 0.7])), [1, 2, 6])
    counts = np.bincount(np.asarray(ours.sample(jax.random.key(0), DRAWS), int), minlength=7)[[1, 2, 6]]
    assert stats.chisquare(counts, DRAWS * np.array([0.1, 0.5, 0.4])).pvalue > 1e-6
    # Values of zero weight are never drawn, trailing ones included.
    never = d.Empirical(jnp.arange(4), jnp.array([0.0, 0.5, 0.5, 0.0]))
    draws = never.sample(jax.random.key(1), 5000)
    assert draws.dtype == jnp.int32
    assert set(np.unique(draws)) == {1, 2}
    assert never.log_prob(3) == -jnp.inf
    assert jnp.isfinite(jax.grad(lambda w: d.Empirical(jnp.arange(4), w).log_prob(3))(never.weights)).all()
    # Vectors, and large integers that float32 cannot tell apart.
    rows = d.Empirical(jnp.array([[1, 2], [3, 4], [1, 2]]))
    np.testing.assert_allclose(jnp.exp(rows.log_prob(jnp.array([[1, 2], [1, 4]]))), [2 / 3, 0], rtol=1e-6)
    assert rows.sample(jax.random.key(2), 5).shape == (5, 2)
    np.testing.assert_allclose(rows.mean(), [5 / 3, 8 / 3], rtol=1e-6)
    big = d.Empirical(jnp.array([2**24, 2**24 + 1]))
    np.testing.assert_allclose(jnp.exp(big.log_prob(2**24)), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(rows.support.contains(jnp.array([[3, 4], [4, 3]])), [True, False])
    batch = d.Empirical(jnp.arange(12.0).reshape(2, 3, 2), jnp.array([[1.0, 0, 0], [0, 0.5, 0.5]]), event_ndims=1)
    assert (batch.batch_shape, batch.event_shape) == ((2,), (2,))
    draws = batch.sample(jax.random.key(3), 500)
    assert draws.shape == (500, 2, 2)
    assert (draws[:, 0] == jnp.array([[0.0, 1.0]])).all()
    assert set(np.unique(draws[:, 1, 0])) == {8.0, 10.0}


SMALL = np.array([[0.0, 1.0], [2.0, 3.0], [-1.0, 5.0]])
ROWS = {
    "Independent": Row(lambda t: d.Independent(d.Normal(**t), 1), {"loc": SMALL, "scale": [1.0, 2.0, 3.0]}, np.ones(2)),
    "Transformed": Row(
        lambda t: d.Transformed(d.Normal(t["loc"], 1.0), d.Chain((d.Exp(), d.Affine(t["shift"], 2.0)))),
        {"loc": [0.0, 1.0, 2.0], "shift": [0.0, -1.0, 0.5]},
        1.5,
    ),
    "Transformed vector": Row(
        lambda t: d.Transformed(d.MultivariateNormal(t["loc"], jnp.eye(2)), d.StickBreaking()),
        {"loc": SMALL},
        np.array([0.2, 0.3, 0.5]),
    ),
    "Mixture": Row(
        lambda t: d.Mixture(components=d.Normal(t["loc"], 1.0), logits=t["logits"]),
        {"loc": SMALL, "logits": SMALL},
        0.5,
    ),
    "Mixture of several": Row(
        lambda t: d.Mixture(t["weights"], (d.Normal(t["loc"], 1.0), d.Exponential(1.0))),
        {"loc": [0.0, 1.0, 2.0], "weights": [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]},
        0.5,
    ),
    "ZeroInflated": Row(
        lambda t: d.ZeroInflated(d.Poisson(t["rate"]), t["gate"]),
        {"rate": [0.3, 5.0, 80.0], "gate": [0.2, 0.5, 0.9]},
        0,
    ),
    "Truncated": Row(
        lambda t: d.Truncated(d.Normal(t["loc"], 1.0), t["low"], 4.0),
        {"loc": [0.0, 1.0, 9.0], "low": [-1.0, 0.0, 0.2]},
        0.5,
    ),
    "Truncated counts": Row(lambda t: d.Truncated(d.Poisson(t["rate"]), low=1), {"rate": [0.3, 5.0, 80.0]}, 2),
    "Empirical": Row(
        lambda t: d.Empirical(jnp.arange(2.0), t["weights"]), {"weights": [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]}, 1.0
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
        (lambda: d.Independent(d.Normal(0.0, 1.0), 1), "Independent: ndims is 1; expected 0 to 0"),
        (lambda: d.Independent(3.0), "Independent: base is 3.0; expected a distribution"),
        (lambda: d.Transformed(d.Poisson(1.0), d.Exp()), "Transformed: base is discrete; expected a continuous"),
        (lambda: d.Transformed(d.Normal(0.0, 1.0), jnp.exp), "Transformed: bijector is an object of type"),
        (
            lambda: d.Transformed(d.Normal(np.zeros(3), 1.0), d.StickBreaking()),
            "Transformed: bijector is one of events",
        ),
        (
            lambda: d.Transformed(d.MultivariateNormal(0.0, np.eye(2)), d.Direction()),
            "Transformed: bijector is an object",
        ),
        (
            lambda: d.Transformed(d.Normal(np.zeros(3), 1.0), d.Affine(np.zeros(2))),
            "Transformed: base is of shape (3,)",
        ),
        (lambda: d.Mixture([0.5, 0.5], d.Normal(np.zeros(3), 1.0)), "Mixture: components is of batch shape (3,)"),
        (lambda: d.Mixture([0.5, 0.6], d.Normal(np.zeros(2), 1.0)), "Mixture: weights is summing to 1.1"),
        (lambda: d.Mixture([0.5, 0.5], [d.Normal(0.0, 1.0)]), "Mixture: components is 1 distributions; expected 2"),
        (lambda: d.Mixture([0.5, 0.5], (d.Normal(0.0, 1.0), d.Poisson(1.0))), "Mixture: components is discrete and"),
        (lambda: d.Mixture([0.5, 0.5], (d.Normal(0.0, 1.0), d.Dirichlet([1.0]))), "Mixture: components[1] is of event"),
        (lambda: d.Mixture(components=d.Normal(np.zeros(2), 1.0)), "Mixture: weights or logits is not given"),
        (lambda: d.ZeroInflated(d.Normal(0.0, 1.0), 0.1), "ZeroInflated: base is an object of type Normal"),
        (lambda: d.ZeroInflated(d.Poisson(1.0), 1.1), "ZeroInflated: gate is 1.1; expected numbers between 0 and 1"),
        (lambda: d.Truncated(d.Normal(0.0, 1.0), 2.0, 1.0), "Truncated: high is 1.0; expected numbers above low"),
        (lambda: d.Truncated(d.Dirichlet([1.0, 1.0]), 0.0), "Truncated: base is an object of type Dirichlet"),
        (lambda: d.Truncated(d.Poisson(1.0), 4, 3), "Truncated: high is 3; expected numbers not below low"),
        (lambda: d.Empirical([]), "Empirical: values is of shape (0,)"),
        (lambda: d.Empirical([1.0, 2.0], [0.5, 0.6]), "Empirical: weights is summing to 1.1"),
        (lambda: d.Empirical([1.0, 2.0], [1.0]), "Empirical: weights is of shape (1,); expected shape (2,)"),
    ],
)
def test_errors_are_one_line(make, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
