"""Mixtures, independent, transformed, truncated, zero-inflated and empirical distributions against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import distributions as d
from tests.distributions._rows import (
    Row,
    cdf,
    check_checkpoint,
    check_pytree,
    chi_square,
    contains,
    distance,
    log_prob,
    moments,
    quantile,
    quick,
    sample,
)

# With 20,000 draws and a false alarm in 10^7 a cdf off by 0.041 is found; z tests have a false alarm in 10^6.
DRAWS, Z = 20_000, 4.9
DISTANCE = np.sqrt(np.log(2e7) / (2 * DRAWS))
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def float32(*values):
    return np.float32(values)


@BOTH
def test_transforming_a_normal_by_exp_gives_scipys_lognormal(dtype):
    with jax.enable_x64(dtype == np.float64):
        ours = d.Transformed(d.Normal(jnp.asarray(0.25, dtype), jnp.asarray(0.5, dtype)), d.Exp())
        theirs = stats.lognorm(0.5, scale=np.exp(0.25))
        x = jnp.asarray(np.array([0.0, -1.0, 1e-3, 0.25, 1.0, 2.5, 40.0], dtype))
        u = jnp.asarray(np.array([0.001, 0.5, 0.99], dtype))
        found = quick(lambda o, x, u: (o.log_prob(x), o.cdf(x), o.quantile(u)))(ours, x, u)
        rtol = 1e-5 if dtype == np.float32 else 1e-12
        for got, want in zip(found, (theirs.logpdf(np.asarray(x, float)), theirs.cdf(x), theirs.ppf(u)), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)
        assert isinstance(ours.support, d.Positive)


def test_transformed_by_decreasing_maps():
    ours = d.Transformed(d.Normal(0.5, 1.0), d.Affine(jnp.array([0.0, 3.0]), -2.0))
    theirs = stats.norm([-1.0, 2.0], 2.0)
    x, u = np.float32([[-3.0], [0.2], [4.0]]), np.float32([[0.1], [0.7]])
    found = quick(lambda o, x, u: (o.log_prob(x), o.cdf(x), o.quantile(u)))(ours, x, u)
    for got, want in zip(found, (theirs.logpdf(x), theirs.cdf(x), theirs.ppf(u)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    # Reciprocals of gamma variables.
    ours, theirs, x = d.Transformed(d.Gamma(3.0, 2.0), d.Power(-1.0)), stats.invgamma(3, scale=2), float32(0.3, 2.0)
    found = quick(lambda o, x: (o.log_prob(x), o.cdf(x)))(ours, x)
    np.testing.assert_allclose(found, [theirs.logpdf(x), theirs.cdf(x)], rtol=1e-5)


def test_transformed_by_chains_and_inverses():
    # A uniform variable through a chain: both edges of its image are known.
    ours = d.Transformed(d.Uniform(0.0, 1.0), d.Chain((d.Affine(1.0, 2.0), d.Exp())))
    theirs, x = stats.loguniform(np.e, np.e**3), float32(np.e * 1.001, 10.0, np.e**3 * 0.999, 2.7, 20.2)
    found, below, inner = quick(lambda o, x: (o.log_prob(x), o.cdf(x), o.support.bijector.forward(0.0)))(ours, x)
    np.testing.assert_allclose(found, theirs.logpdf(x), rtol=1e-5)
    np.testing.assert_allclose(below, theirs.cdf(x), rtol=1e-4)
    np.testing.assert_allclose(inner, np.exp(2.0), rtol=1e-6)
    # The logarithm of a positive variable is any real number, also where its exponential underflows.
    back = d.Transformed(d.LogNormal(0.0, 30.0), d.Inverse(d.Exp()))
    np.testing.assert_allclose(log_prob(back, -60.0), stats.norm(0, 30).logpdf(-60), rtol=1e-5)
    assert isinstance(back.support, d.Real)


def test_transformed_vectors():
    base = d.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 0.5]]))
    simplex, logs = d.Transformed(base, d.StickBreaking()), d.Transformed(base, d.Exp())
    assert simplex.event_shape == (3,)
    assert isinstance(simplex.support, d.Simplex)
    assert logs.event_shape == (2,)
    x, off = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.2, 0.5, 0.4])
    y = jnp.array([[0.5, 2.0], [-0.5, 2.0]])

    @quick
    def program(simplex, logs, x, y):
        # The density of a map of vectors from autodiff's Jacobian, in the first two coordinates.
        u = d.StickBreaking().inverse(x)
        jacobian = jax.jacfwd(lambda u: d.StickBreaking().forward(u)[:2])(u)
        expected = simplex.base.log_prob(u) - jnp.linalg.slogdet(jacobian)[1]
        return simplex.log_prob(x), expected, simplex.log_prob(off), logs.log_prob(y), base.log_prob(jnp.log(y[0]))

    found = program(simplex, logs, x, y)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert found[2] == -jnp.inf
    # A map of single numbers acts on each entry of a vector.
    np.testing.assert_allclose(found[3][0], found[4] - np.log(0.5) - np.log(2.0), rtol=1e-5)
    assert found[3][1] == -jnp.inf


@pytest.mark.parametrize("loc", [0.0, np.zeros(1)], ids=["in front", "of length one"])
def test_batch_axes_that_a_bijector_adds_get_draws_of_their_own(loc):
    spread = d.Transformed(d.Normal(loc, 1.0), d.Affine(jnp.arange(3.0), 2.0))
    draws = np.asarray(sample(spread, jax.random.key(1), 2000), float)
    assert draws.shape == (2000, 3)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() * np.sqrt(2000) < Z
    assert (np.abs(draws.mean(0) - np.arange(3)) / 2 * np.sqrt(2000) < Z).all()


@pytest.mark.parametrize("shape", [(), (5,)])
def test_draws_come_with_their_log_densities(shape):
    laws = [
        d.Transformed(d.Normal(0.5, 2.0), d.Exp()),
        d.Transformed(d.Normal(np.zeros(1), 1.0), d.Affine(jnp.arange(3.0), 2.0)),  # adds to the batch
        d.Independent(d.Normal(jnp.zeros(3), 1.0)),
        d.Gamma(jnp.ones(2), 2.0),
    ]
    for law in laws:
        draws, log_prob = law.sample_and_log_prob(jax.random.key(0), shape)
        np.testing.assert_array_equal(draws, law.sample(jax.random.key(0), shape))
        assert log_prob.shape == shape + law.batch_shape
        np.testing.assert_allclose(log_prob, law.log_prob(draws), rtol=1e-5, atol=1e-5)
    draws, log_prob = laws[0].sample_and_log_prob(jax.random.key(1), shape)  # one by hand: a log-normal density
    np.testing.assert_allclose(log_prob, stats.lognorm(2.0, scale=np.exp(0.5)).logpdf(draws), rtol=1e-4)


def test_transformed_outside_its_support_has_no_nan_gradient():
    def density(loc, edge, x):
        chain = d.Chain((d.Exp(), d.Affine(edge, 1.0)))
        return d.Transformed(d.Normal(loc, 1.0), chain).log_prob(x)

    program = quick(jax.value_and_grad(density, (0, 1, 2)))
    value, gradients = program(0.5, 2.0, 1.0)
    assert value == -jnp.inf
    assert all(g == 0 for g in gradients)
    assert jnp.isnan(program(0.5, 2.0, jnp.nan)[0])


def test_independent_adds_up():
    base = d.Gamma(jnp.arange(1.0, 7.0).reshape(2, 3), 2.0)
    x = np.float32(np.linspace(0.2, 3, 12).reshape(2, 2, 3))
    theirs = stats.gamma(np.arange(1.0, 7.0).reshape(2, 3), scale=0.5)
    for ndims, axes in ((1, (-1,)), (2, (-2, -1))):
        ours = d.Independent(base, ndims)
        assert ours.batch_shape == (2, 3)[: 2 - ndims]
        assert ours.event_shape == (2, 3)[2 - ndims :]
        found = quick(lambda o, x: (o.log_prob(x), o.entropy(), o.mean(), o.variance(), o.support.contains(x)))(ours, x)
        np.testing.assert_allclose(found[0], theirs.logpdf(x).sum(axes), rtol=1e-6)
        np.testing.assert_allclose(found[1], theirs.entropy().sum(axes), rtol=1e-5)
        np.testing.assert_allclose(found[2], theirs.mean(), rtol=1e-6)
        np.testing.assert_allclose(found[3], theirs.var(), rtol=1e-6)
        assert found[4].shape == (2, 2)[: 3 - ndims]
        assert jax.eval_shape(lambda key, o=ours: o.sample(key, 4), jax.random.key(0)).shape == (4, 2, 3)
        assert ours.support.event_ndims == ndims
    assert d.Independent(base).event_shape == (2, 3)
    nested = d.Independent(d.Dirichlet(jnp.ones((4, 3))), 1)
    assert nested.event_shape == (4, 3)
    assert jax.eval_shape(nested.log_prob, jnp.ones((5, 4, 3))).shape == (5,)
    assert nested.support.bijector.inverse_shape((4, 3)) == (4, 2)


@BOTH
def test_mixtures_are_sums(dtype):
    weights, loc, scale = float32(0.3, 0.6, 0.1), float32(-1.0, 2.0, 40.0), float32(1.0, 0.5, 3.0)
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
        density, below = special.logsumexp(theirs.logpdf(x), b=exact, axis=-1), (exact * theirs.cdf(x)).sum(-1)
        for ours in (family, logits, several):
            found = program(ours, cast(x[:, 0]))
            for got, want in zip(found, (density, below, mean, variance), strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7 if dtype == np.float32 else 0)


def test_a_component_without_density_leaves_gradients_finite_and_right():
    def density(logits, rate, x):
        both = (d.Normal(0.0, 1.0), d.Exponential(rate), d.Uniform(-3.0, -2.0))
        return d.Mixture(components=both, logits=logits).log_prob(x)

    @quick
    def program(logits, weights):
        nothing = lambda w: d.Mixture(w, d.Uniform(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))).log_prob(9.0)  # noqa: E731
        return jax.value_and_grad(density, (0, 1, 2))(logits, 2.0, -1.0), jax.value_and_grad(nothing)(weights)

    (value, gradient), nothing = program(jnp.array([0.5, 0.0, -jnp.inf]), jnp.array([0.5, 0.5]))
    w = special.softmax([0.5, 0.0])
    np.testing.assert_allclose(value, np.log(w[0]) + stats.norm.logpdf(-1), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [w[1], -w[1], 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradient[1], 0.0)
    np.testing.assert_allclose(gradient[2], 1.0, rtol=1e-6)
    # Nothing has density: -inf, and still no NaN.
    assert nothing[0] == -jnp.inf
    assert (nothing[1] == 0).all()


def test_a_weight_of_zero_silences_infinite_densities_and_variances():
    spike = d.Mixture(jnp.array([1.0, 0.0]), d.Beta(jnp.array([2.0, 0.5]), 1.0))
    np.testing.assert_allclose(log_prob(spike, jnp.array([0.5, 0.0])), [0.0, -np.inf], atol=1e-6)
    heavy = d.Mixture(jnp.array([1.0, 0.0]), (d.Normal(1.0, 2.0), d.Cauchy(0.0, 1.0)))
    np.testing.assert_array_equal(moments(heavy), [1.0, 4.0])


def test_mixture_draws_pick_components():
    weights, loc, scale = float32(0.2, 0.5, 0.3), float32(-4.0, 0.0, 3.0), float32(1.0, 0.1, 2.0)
    theirs = stats.norm(loc.astype(float), scale.astype(float))
    exact = weights.astype(float) / weights.astype(float).sum()
    family = d.Mixture(weights, d.Normal(loc, scale))
    several = d.Mixture(weights, tuple(d.Normal(a, b) for a, b in zip(loc, scale, strict=True)))
    for i, ours in enumerate((family, several)):
        draws = np.asarray(sample(ours, jax.random.key(i), DRAWS), float)
        assert distance(draws, lambda x: (exact * theirs.cdf(x[:, None])).sum(-1)) < DISTANCE
    # A component that gives NaN and does not occur is not looked at.
    broken = quick(lambda s: d.Mixture(jnp.array([1.0, 0.0]), d.Normal(0.0, s)).sample(jax.random.key(2), 50))
    assert jnp.isfinite(broken(jnp.array([1.0, jnp.nan]))).all()
    counts = d.Mixture([0.5, 0.5], d.Poisson(jnp.array([1.0, 50.0])))
    assert counts.is_discrete
    assert jax.eval_shape(lambda key: counts.sample(key, 3), jax.random.key(4)).dtype == jnp.int32


def test_every_entry_of_a_batch_of_weights_draws_for_itself():
    loc = jnp.array([[0.0, 0.0], [9.0, 9.0]])
    wide = d.Mixture(jnp.array([[1.0, 0.0], [0.5, 0.5]]), d.MultivariateNormal(loc, jnp.eye(2)))
    assert wide.shape == (2, 2)
    draws = np.asarray(sample(wide, jax.random.key(3), 4000), float)
    np.testing.assert_allclose(draws.mean(0), [[0, 0], [4.5, 4.5]], atol=Z * np.sqrt((1 + 20.25) / 4000))
    assert abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) * np.sqrt(4000) < Z
    mean, variance = moments(wide)
    np.testing.assert_allclose(mean, [[0, 0], [4.5, 4.5]])
    np.testing.assert_allclose(variance, [[1, 1], [21.25, 21.25]])
    assert jax.eval_shape(wide.log_prob, jnp.ones((5, 1, 2))).shape == (5, 2)


def test_supports_of_mixtures():
    half = jnp.array([0.5, 0.5])
    one = lambda *members: d.Mixture(half, members)  # noqa: E731
    assert isinstance(one(d.Normal(0.0, 1.0), d.Exponential(1.0)).support, d.Real)
    assert isinstance(one(d.LogNormal(0.0, 1.0), d.Gamma(1.0, 1.0)).support, d.Positive)
    cases = [
        (one(d.Exponential(1.0), d.Gamma(1.0, 1.0)), [-1.0, 2.0], [False, True]),
        (one(d.Beta(1.0, 1.0), d.Uniform(-1.0, 0.5)), [-1.5, -0.5, 0.9, 1.5], [False, True, True, False]),
        (one(d.Poisson(1.0), d.Binomial(3, 0.5)), [-1, 0, 7], [False, True, True]),
        (d.Mixture(half, d.Uniform(jnp.array([[0.0, 4.0], [1.0, 2.0]]), 5.0)), [0.5, 0.5], [True, False]),
        (
            d.Mixture(half, d.Independent(d.Uniform(jnp.zeros((2, 3)), jnp.array([[1.0], [2.0]])), 1)),
            [[1.5, 0.5, 2.0], [0.1, 0.1, 2.1]],
            [True, False],
        ),
    ]
    for ours, x, expected in cases:
        np.testing.assert_array_equal(contains(ours, jnp.array(x)), expected)


def test_zero_inflated_is_the_mixture_with_zero():
    rate, gate = float32(2.0, 100.0, 1e-3), float32(0.25, 1e-6, 0.9)
    ours = d.ZeroInflated(d.Poisson(rate), gate)
    exact, shut = stats.poisson(rate.astype(float)), gate.astype(float)
    k = np.arange(200)[:, None]
    found, mean, variance, below = quick(lambda o, k: (o.log_prob(k), o.mean(), o.variance(), o.cdf(3)))(ours, k)
    expected = np.log1p(-shut) + exact.logpmf(k)
    expected[0] = np.logaddexp(np.log(shut), expected[0])
    np.testing.assert_allclose(found, expected, rtol=5e-6)
    mass = np.exp(expected)
    np.testing.assert_allclose(mean, (k * mass).sum(0), rtol=1e-5)
    np.testing.assert_allclose(variance, (k**2 * mass).sum(0) - (k * mass).sum(0) ** 2, rtol=1e-4)
    np.testing.assert_allclose(below, mass[:4].sum(0), rtol=1e-5)


def test_zero_inflated_gradients_at_the_ends_and_draws():
    density = lambda gate, rate, k: d.ZeroInflated(d.Poisson(rate), gate).log_prob(k)  # noqa: E731
    gates, rates = float32(0.0, 1.0, 0.0, 1.0, 0.3), float32(2.0, 2.0, 2.0, 2.0, 1e4)
    counts = float32(0, 0, 3, 3, 0)
    value, slope = quick(jax.vmap(jax.value_and_grad(density)))(gates, rates, counts)
    # At a gate of zero the derivative is (1 - f) / f; at a rate of 1e4 the gate alone explains a zero.
    np.testing.assert_allclose(value, [-2, 0, stats.poisson(2).logpmf(3), -np.inf, np.log(0.3)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope[jnp.array([0, 1, 2, 4])], [np.expm1(2), 1 - np.exp(-2), -1, 1 / 0.3], rtol=1e-5)
    assert jnp.isfinite(slope).all()
    ours = d.ZeroInflated(d.Poisson(2.0), 0.25)
    draws, outside = quick(lambda o, key, k: (o.sample(key, DRAWS), o.log_prob(k)))(
        ours, jax.random.key(0), float32(-1, 0.5)
    )
    assert (outside == -jnp.inf).all()
    assert draws.dtype == np.int32
    zero = 0.25 + 0.75 * np.exp(-2)
    assert abs((np.asarray(draws) == 0).mean() - zero) / np.sqrt(zero * (1 - zero) / DRAWS) < Z


@BOTH
def test_truncated_normal_is_scipys_in_both_tails(dtype):
    low = np.array([-1.0, 3.0, 8.0, -9.0, -0.5])
    high = np.array([2.0, 4.0, 9.0, -8.0, 6.0])
    theirs = stats.truncnorm(low, high, 1, 2)
    points = np.float32(theirs.ppf(np.array([0.05, 0.5, 0.95])[:, None])).astype(float)
    with jax.enable_x64(dtype == np.float64):
        cast = lambda a: jnp.asarray(np.asarray(a).astype(dtype))  # noqa: E731
        ours = d.Truncated(d.Normal(cast(1.0), cast(2.0)), cast(1 + 2 * low), cast(1 + 2 * high))

        @quick
        def program(o, x, key):
            inside, slope = jax.vjp(lambda o, x: o.log_prob(x), o, x)
            beyond = jnp.stack([o.low - 0.25, o.high + 0.25])
            outside = o.log_prob(beyond), o.cdf(beyond)
            draws = o.sample(key, DRAWS)
            return inside, o.cdf(x), slope(jnp.ones_like(inside)), outside, draws, o.support.contains(draws)

        density, below, gradients, outside, draws, inside = program(ours, cast(points), jax.random.key(0))
        rtol = 2e-5 if dtype == np.float32 else 1e-10
        np.testing.assert_allclose(density, theirs.logpdf(points), rtol=rtol, atol=rtol)
        np.testing.assert_allclose(below, theirs.cdf(points), rtol=2 * rtol, atol=rtol)
        assert density.dtype == below.dtype == draws.dtype == dtype
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
        np.testing.assert_allclose(gradients[1], -(points - 1) / 4, rtol=1e-5)
        assert (outside[0] == -jnp.inf).all()
        np.testing.assert_array_equal(outside[1], [[0.0] * 5, [1.0] * 5])
        assert inside.all()
    for i in range(5):
        assert distance(np.asarray(draws, float)[:, i], stats.truncnorm(low[i], high[i], 1, 2).cdf) < DISTANCE


def test_truncated_with_one_end_and_other_bases():
    # Tails of symmetric laws where a difference of cdfs is 0 in float32, among others.
    cases = [
        (d.Truncated(d.Normal(0.0, 1.0), low=6.0), 6.25, stats.truncnorm(6, np.inf).logpdf(6.25), d.GreaterThan),
        (d.Truncated(d.Laplace(0.0, 1.0), low=-np.inf, high=-20.0), -21.5, -1.5, d.LessThan),
        (d.Truncated(d.Logistic(0.0, 1.0), low=30.0), 31.0, -1.0, d.GreaterThan),
        (d.Truncated(d.Exponential(2.0), 1.0, 3.0), 2.0, stats.truncexpon(4, 1, 0.5).logpdf(2), d.Interval),
        (
            d.Truncated(d.Gamma(2.0, 1.0), high=1.5),
            0.5,
            stats.gamma(2).logpdf(0.5) - stats.gamma(2).logcdf(1.5),
            d.Interval,
        ),
        (d.Truncated(d.Gamma(2.0, 1.0), high=1.5), -0.5, -np.inf, d.Interval),
        # Beyond the smallest number that float32 has, the answer is NaN and not a number made up.
        (d.Truncated(d.Normal(0.0, 1.0), low=20.0), 20.5, np.nan, d.GreaterThan),
        (d.Truncated(d.Normal(0.0, 1.0), low=0.0), np.nan, np.nan, d.GreaterThan),
    ]
    for ours, x, expected, support in cases:
        np.testing.assert_allclose(log_prob(ours, np.float32(x)), expected, rtol=1e-5)
        assert isinstance(ours.support, support)
    draws = np.asarray(sample(cases[3][0], jax.random.key(0), DRAWS), float)
    assert distance(draws, stats.truncexpon(4, 1, 0.5).cdf) < DISTANCE
    beta = d.Truncated(d.Beta(2.0, 2.0), low=0.5)
    np.testing.assert_array_equal(contains(beta, float32(0.4, 0.7, 1.1)), [False, True, False])
    with pytest.raises(NotImplementedError, match=r"^Gamma.quantile"):
        cases[4][0].sample(jax.random.key(0))


def test_counts_from_one_on():
    # At a small rate 1 - exp(-rate) must not cancel, whether the end is a number or traced.
    rate, n = float32(1e-6, 0.5, 30.0), 4000
    exact = rate.astype(float)

    @quick
    def program(rate, low, key):
        fixed, traced = d.Truncated(d.Poisson(rate), 1), d.Truncated(d.Poisson(rate), low)
        hurdle = lambda r: d.Truncated(d.NegativeBinomial(2.0, r), low=1).log_prob(4)  # noqa: E731
        masses = [jnp.stack([one.log_prob(2), one.log_prob(0), one.log_prob(0.5)]) for one in (fixed, traced)]
        inside = fixed.support.contains(jnp.array([0, 1, 1]))
        return masses, inside, fixed.sample(key, n), jax.value_and_grad(hurdle)(jnp.float32(0.5))

    masses, inside, draws, hurdle = program(rate, 1, jax.random.key(0))
    for mass in masses:
        np.testing.assert_allclose(mass[0], stats.poisson(exact).logpmf(2) - np.log(-np.expm1(-exact)), rtol=1e-5)
        assert (mass[1:] == -jnp.inf).all()
    np.testing.assert_array_equal(inside, [False, True, True])
    assert draws.dtype == np.int32
    assert draws.min() == 1
    assert draws[:, 0].max() == 1
    mean = exact / -np.expm1(-exact)
    sd = np.sqrt(mean * (1 + exact - mean))
    assert (np.abs(np.asarray(draws, float).mean(0) - mean)[1:] / sd[1:] * np.sqrt(n) < Z).all()

    def exact_hurdle(r):  # of a negative binomial; it has a gradient in its concentration
        law = stats.nbinom(r, r / (r + 2))
        return law.logpmf(4) - np.log1p(-law.pmf(0))

    slope = (exact_hurdle(0.5 + 1e-5) - exact_hurdle(0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(hurdle, [exact_hurdle(0.5), slope], rtol=1e-5)


TRUNCATED = [
    (lambda low, high: d.Truncated(d.Binomial(20, 0.3), low, high), stats.binom(20, 0.3), 4, 9),
    (lambda low, high: d.Truncated(d.NegativeBinomial(5.0, 2.0), low, high), stats.nbinom(2, 2 / 7), 3, 40),
    (lambda low, high: d.Truncated(d.Poisson(3.0), low, high + 0.5), stats.poisson(3), 10, 12),
]


def _check_counts(density, below, draws, theirs, low, high):
    k = np.arange(low - 2, high + 3)
    mass = np.where((k >= low) & (k <= high), theirs.pmf(k), 0)
    mass = mass / mass.sum()
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(density, np.log(mass), rtol=2e-5, atol=3e-6)
    np.testing.assert_allclose(below, np.cumsum(mass), rtol=1e-4, atol=1e-6)
    frozen = type("Frozen", (), {"cdf": staticmethod(lambda q: np.array([mass[k <= e].sum() for e in q]))})
    assert draws.min() >= low
    assert draws.max() <= high
    assert low == high or chi_square(np.asarray(draws), frozen, low - 1, high) > 1e-6
    return mass[2:-2], k[2:-2]


@pytest.mark.parametrize(("make", "theirs", "low", "high"), TRUNCATED[2:], ids=["Poisson"])
def test_truncated_counts_with_traced_ends(make, theirs, low, high):
    @quick
    def program(low, high, k, key):
        ours = make(low, high)
        return ours.log_prob(k), ours.cdf(k), ours.sample(key, 2000)

    found = program(low, high, np.arange(low - 2, high + 3), jax.random.key(1))
    _check_counts(*found, theirs, low, high)


@pytest.mark.parametrize(
    ("make", "theirs", "low", "high"),
    [
        *TRUNCATED,
        (lambda low, high: d.Truncated(d.BetaBinomial(20, 2.0, 3.0), low), stats.betabinom(20, 2, 3), 12, 20),
        (lambda low, high: d.Truncated(d.Poisson(3.0), 3.5, 4), stats.poisson(3), 4, 4),
        (lambda low, high: d.Truncated(d.Bernoulli(0.3), high=0), stats.bernoulli(0.3), 0, 0),
    ],
)
def test_truncated_counts_with_few_outcomes(make, theirs, low, high):
    ours = make(low, high)

    @quick
    def program(k, key):
        one = make(low, high)
        return one.log_prob(k), one.cdf(k), one.sample(key, 4000), one.mean(), one.variance(), one.enumerate_support()

    *found, mean, variance, values = program(np.arange(low - 2, high + 3), jax.random.key(1))
    mass, k = _check_counts(*found, theirs, low, high)
    np.testing.assert_allclose(mean, (mass * k).sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, (mass * (k - (mass * k).sum()) ** 2).sum(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(values, k)
    assert ours.is_discrete


def test_a_batch_between_two_numbers():
    rates, k = float32(0.5, 3.0, 30.0), np.arange(12)[:, None]
    expected = stats.poisson(rates.astype(float)).pmf(k) * ((k >= 2) & (k <= 9))
    expected = expected / expected.sum(0)
    found = quick(lambda r, low: [d.Truncated(d.Poisson(r), end, 9).log_prob(k) for end in (2, low)])(rates, 2)
    for log_mass in found:
        np.testing.assert_allclose(jnp.exp(log_mass), expected, rtol=2e-4, atol=1e-7)


def test_empirical_numbers():
    ours = d.Empirical([1.0, 2.0, 2.0, 6.0], [0.1, 0.2, 0.3, 0.4])

    @quick
    def program(ours, key):
        density = jnp.exp(ours.log_prob(jnp.array([1.0, 2.0, 6.0, 3.0])))
        below, above = ours.cdf(jnp.array([0.0, 1.0, 2.5, 9.0])), ours.quantile(jnp.array([0.0, 0.05, 0.5, 0.7, 1.0]))
        return density, ours.mean(), ours.variance(), below, above, ours.sample(key, DRAWS)

    density, mean, variance, below, above, draws = program(ours, jax.random.key(0))
    np.testing.assert_allclose(density, [0.1, 0.5, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(mean, 3.5)
    np.testing.assert_allclose(variance, 0.1 + 2 + 14.4 - 12.25, rtol=1e-6)
    np.testing.assert_allclose(below, [0, 0.1, 0.6, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(above, [1, 1, 2, 6, 6])
    counts = np.bincount(np.asarray(draws, int), minlength=7)[[1, 2, 6]]
    assert stats.chisquare(counts, DRAWS * np.array([0.1, 0.5, 0.4])).pvalue > 1e-6
    shuffled = d.Empirical([6.0, 2.0, 1.0], logits=jnp.log(jnp.array([4.0, 5.0, 1.0])))
    np.testing.assert_array_equal(quantile(shuffled, jnp.array([0.05, 0.5, 0.7])), [1, 2, 6])
    np.testing.assert_allclose(cdf(shuffled, 2.0), 0.6, rtol=1e-6)


def test_empirical_values_of_no_weight_are_never_drawn():
    @quick
    def program(weights, key):
        gradient = jax.grad(lambda w: d.Empirical(jnp.arange(4), w).log_prob(3))(weights)
        never = d.Empirical(jnp.arange(4), weights)
        return never.sample(key, 5000), never.log_prob(3), gradient

    draws, density, gradient = program(jnp.array([0.0, 0.5, 0.5, 0.0]), jax.random.key(1))
    assert draws.dtype == jnp.int32
    assert set(np.unique(draws)) == {1, 2}
    assert density == -jnp.inf
    assert jnp.isfinite(gradient).all()


def test_empirical_vectors_batches_and_large_integers():
    rows = d.Empirical(jnp.array([[1, 2], [3, 4], [1, 2]]))
    x = jnp.array([[1, 2], [1, 4]])
    density, inside = quick(lambda o, x: (jnp.exp(o.log_prob(x)), o.support.contains(x)))(rows, x)
    np.testing.assert_allclose(density, [2 / 3, 0], rtol=1e-6)
    np.testing.assert_array_equal(inside, [True, False])
    np.testing.assert_allclose(moments(rows)[0], [5 / 3, 8 / 3], rtol=1e-6)
    assert sample(rows, jax.random.key(2), 5).shape == (5, 2)
    # A float32 cannot tell these two apart.
    np.testing.assert_allclose(log_prob(d.Empirical(jnp.array([2**24, 2**24 + 1])), 2**24), np.log(0.5), rtol=1e-6)
    batch = d.Empirical(jnp.arange(12.0).reshape(2, 3, 2), jnp.array([[1.0, 0, 0], [0, 0.5, 0.5]]), event_ndims=1)
    assert (batch.batch_shape, batch.event_shape) == ((2,), (2,))
    draws = sample(batch, jax.random.key(3), 500)
    assert draws.shape == (500, 2, 2)
    assert (draws[:, 0] == jnp.array([[0.0, 1.0]])).all()
    assert set(np.unique(draws[:, 1, 0])) == {8.0, 10.0}


SMALL = np.array([[0.0, 1.0], [2.0, 3.0], [-1.0, 5.0]])
ROWS = {
    "Independent": Row(lambda t: d.Independent(d.Normal(**t), 1), {"loc": SMALL, "scale": np.exp(SMALL)}, np.ones(2)),
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
        lambda t: d.Mixture(components=d.Normal(t["loc"], t["scale"]), logits=t["logits"]),
        {"loc": SMALL, "scale": np.exp(SMALL), "logits": SMALL},
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
    "Truncated counts": Row(lambda t: d.Truncated(d.Bernoulli(t["probs"]), low=0), {"probs": [0.3, 0.5, 0.8]}, 1),
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
