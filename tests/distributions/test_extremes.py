"""Float32 at the edge of its range: extreme parameters and values, second derivatives at the centre."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import distributions as d

QUICK = {"xla_backend_optimization_level": 0}
TINY, HUGE = np.float32(1e-30), np.float32(1e30)

# Normal tail beyond 10^4: phi(x) / Phi(-10^4) with Phi(-y) = phi(y) / y (1 - 1 / y^2 + ...).
FAR_TAIL = SimpleNamespace(logpdf=lambda x: -(x - 1e4) * (x + 1e4) / 2 + np.log(1e4) + 1e-8)

# Distribution, value, SciPy's distribution with the same parameters.
VALUES = [
    (d.Normal(0.0, TINY), 0.0, stats.norm(0, TINY)),
    (d.Normal(0.0, HUGE), 1e30, stats.norm(0, HUGE)),
    (d.StudentT(3.0, 0.0, TINY), 1.0, stats.t(3, 0, TINY)),
    (d.StudentT(1e6, 0.0, HUGE), 3e30, stats.t(1e6, 0, HUGE)),
    (d.StudentT(1e-3), 1e20, stats.t(np.float32(1e-3))),
    (d.Cauchy(0.0, TINY), 1.0, stats.cauchy(0, TINY)),
    (d.Cauchy(0.0, 1.0), 1e30, stats.cauchy(0, 1)),
    (d.HalfCauchy(TINY), 1.0, stats.halfcauchy(0, TINY)),
    (d.HalfCauchy(HUGE), 1e-30, stats.halfcauchy(0, HUGE)),
    (d.HalfNormal(TINY), 0.0, stats.halfnorm(0, TINY)),
    (d.Laplace(0.0, HUGE), -1e30, stats.laplace(0, HUGE)),
    (d.Logistic(0.0, HUGE), -3e30, stats.logistic(0, HUGE)),
    (d.Exponential(HUGE), 0.0, stats.expon(0, 1 / float(HUGE))),
    (d.Exponential(TINY), 1e30, stats.expon(0, 1 / float(TINY))),
    (d.Gamma(1e-3, 1.0), 1e-35, stats.gamma(np.float32(1e-3))),
    (d.Gamma(1e6, 1.0), 1.001e6, stats.gamma(1e6)),
    (d.Gamma(2.0, HUGE), 1e-30, stats.gamma(2, scale=1 / float(HUGE))),
    (d.InverseGamma(1e6, 1e6), 1.002, stats.invgamma(1e6, scale=1e6)),
    (d.InverseGamma(1e-3, 1.0), 1e30, stats.invgamma(np.float32(1e-3))),
    (d.Weibull(0.5, HUGE), 1.0, stats.weibull_min(0.5, scale=HUGE)),
    (d.LogNormal(0.0, 30.0), 1e30, stats.lognorm(30)),
    (d.Beta(1e-3, 1e-3), 1e-30, stats.beta(np.float32(1e-3), np.float32(1e-3))),
    (d.Beta(1e6, 2e6), 0.3334, stats.beta(1e6, 2e6)),
    (d.Beta(1.0, 1e6), 0.0, stats.beta(1, 1e6)),
    (d.Beta(2.0, 1.0), 1.0, stats.beta(2, 1)),
    (d.Uniform(-HUGE, HUGE), 0.0, stats.uniform(-HUGE, 2 * float(HUGE))),
    (d.TruncatedNormal(0.0, 1.0, 1e4), 1.0001e4, FAR_TAIL),
    (d.TruncatedNormal(0.0, 1.0, -HUGE, HUGE), 0.5, stats.norm()),
    (d.TruncatedNormal(0.0, HUGE, 1.0, 2.0), 1.5, stats.uniform(1, 1)),
    (d.VonMises(0.0, 0.0), 2.0, stats.uniform(-np.pi, 2 * np.pi)),
    (d.VonMises(0.0, 1e6), 1e-3, stats.norm(0, 1e-3)),
]


def test_log_prob():
    found = jax.jit(lambda ds, xs: [d.log_prob(x) for d, x in zip(ds, xs, strict=True)], compiler_options=QUICK)(
        [row[0] for row in VALUES], [jnp.float32(row[1]) for row in VALUES]
    )
    for value, (distribution, x, frozen) in zip(found, VALUES, strict=True):
        expected = frozen.logpdf(float(np.float32(x)))
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-4, err_msg=f"{distribution}")


def test_slopes_are_finite():
    def slopes(distribution, x):
        return jax.grad(lambda d, x: d.log_prob(x), argnums=(0, 1))(distribution, x)

    rows = [row for row in VALUES if row[1] != 0 or isinstance(row[0], (d.Normal, d.HalfNormal, d.Exponential))]
    distributions, values = [row[0] for row in rows], [jnp.float32(row[1]) for row in rows]
    found = jax.jit(lambda ds, xs: [slopes(a, x) for a, x in zip(ds, xs, strict=True)], compiler_options=QUICK)
    for (distribution, x, _), slope in zip(rows, found(distributions, values), strict=True):
        for leaf in jax.tree.leaves(slope):
            assert np.isfinite(leaf), f"{distribution} at {x}"


def test_slopes_with_respect_to_tiny_scales():
    """Exact values that are representable, where a derivative through scale^-2 overflows."""
    scale = jnp.float32(TINY)
    for make in (lambda s: d.Normal(0.0, s), d.HalfNormal, lambda s: d.Cauchy(0.0, s), d.HalfCauchy):
        assert float(jax.grad(lambda s, make=make: make(s).log_prob(0.0))(scale)) == pytest.approx(-1e30, rel=1e-5)
    # Where x is far out in the tail, the density of a Cauchy variable is proportional to its scale.
    assert float(jax.grad(lambda s: d.HalfCauchy(s).log_prob(1.0))(scale)) == pytest.approx(1e30, rel=1e-5)
    assert float(jax.grad(lambda x: d.HalfCauchy(scale).log_prob(x))(1.0)) == pytest.approx(-2.0, rel=1e-5)


DRAWS = {
    "Normal": lambda s: d.Normal(0.0, s),
    "HalfCauchy": d.HalfCauchy,
    "StudentT": lambda s: d.StudentT(1e-3 + 0 * s),
    "Gamma": lambda s: d.Gamma(1e-3, s),
    "InverseGamma": lambda s: d.InverseGamma(1e-3, s),
    "Weibull": lambda s: d.Weibull(1e-3, s),
    "Beta": lambda s: d.Beta(1e-3 + 0 * s, 1e-3),
    "Exponential": d.Exponential,
    "LogNormal": lambda s: d.LogNormal(jnp.log(s), 50.0),
    "TruncatedNormal": lambda s: d.TruncatedNormal(0.0, s, s),
    "VonMises": lambda s: d.VonMises(0.0, s),
}


def test_draws_and_their_slopes_are_finite():
    """Scales of 1e-30 and 1e30, concentrations of 1e-3: draws lie in the support and can be differentiated."""

    @partial(jax.jit, compiler_options=QUICK)
    def program(scales, key):
        keys = dict(zip(DRAWS, jax.random.split(key, len(DRAWS)), strict=True))
        return {
            name: jax.jvp(lambda s, make=make, name=name: make(s).sample(keys[name], 500), (scales,), (scales,))
            for name, make in DRAWS.items()
        }

    scales = jnp.array([1e-30, 1.0, 1e30], jnp.float32)
    for name, (draws, slopes) in program(scales, jax.random.key(0)).items():
        assert np.isfinite(draws).all(), name
        assert np.isfinite(slopes).all(), name
        assert bool(DRAWS[name](scales).support.contains(draws).all()), name
        assert np.unique(np.asarray(draws)[:, 1]).size > 5, name


def test_curvature_at_the_centre():
    """Second derivatives at a mode, the start of every Laplace approximation: formulas with |x| lose them there."""
    rows = {
        "Normal": (d.Normal(1.0, 2.0), 1.0, -1 / 4),
        "StudentT": (d.StudentT(3.0, 1.0, 2.0), 1.0, -4 / 3 / 4),
        "Cauchy": (d.Cauchy(1.0, 2.0), 1.0, -2 / 4),
        "Logistic": (d.Logistic(1.0, 2.0), 1.0, -0.5 / 4),
        "HalfNormal": (d.HalfNormal(2.0), 0.0, -1 / 4),
        "HalfCauchy": (d.HalfCauchy(2.0), 0.0, -2 / 4),
        "TruncatedNormal": (d.TruncatedNormal(1.0, 2.0, -1.0, 3.0), 1.0, -1 / 4),
        "VonMises": (d.VonMises(1.0, 2.0), 1.0, -2.0),
        "Gamma": (d.Gamma(3.0, 2.0), 1.0, -2.0),
        "Beta": (d.Beta(2.0, 2.0), 0.5, -8.0),
    }
    found = jax.jit(
        lambda rows: {n: jax.grad(jax.grad(row.log_prob))(jnp.float32(x)) for n, (row, x) in rows.items()},
        compiler_options=QUICK,
    )({name: row[:2] for name, row in rows.items()})
    for name, (_, _, expected) in rows.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


def test_an_end_at_the_mode():
    """TruncatedNormal(0, s, low=0) is the half-normal distribution, slopes included."""

    def truncated(s, x):
        return d.TruncatedNormal(0.0, s, low=0.0).log_prob(x)

    def between(s, x):
        return d.TruncatedNormal(0.0, s, 0.0, 100.0).log_prob(x)

    def half(s, x):
        return d.HalfNormal(s).log_prob(x)

    def along_end(low, x):
        return d.TruncatedNormal(0.0, 1.0, low).log_prob(x)

    @partial(jax.jit, compiler_options=QUICK)
    def program(s, x):
        slopes = [jax.value_and_grad(function, (0, 1))(s, x) for function in (truncated, between, half)]
        return slopes, jax.grad(along_end)(0 * s, x)

    (one, two, expected), slope = program(jnp.float32(1.3), jnp.float32(0.7))
    np.testing.assert_allclose(jax.tree.leaves(one), jax.tree.leaves(expected), rtol=1e-5)
    np.testing.assert_allclose(jax.tree.leaves(two), jax.tree.leaves(expected), rtol=1e-5)
    np.testing.assert_allclose(slope, np.sqrt(2 / np.pi), rtol=1e-5)


def test_not_a_number_is_passed_on():
    distributions = [d.Normal(), d.HalfNormal(), d.Gamma(2.0), d.Beta(2.0, 2.0), d.Uniform(), d.VonMises()]
    distributions += [d.TruncatedNormal(0.0, 1.0, 0.0), d.LogNormal(), d.StudentT(3.0), d.HalfCauchy()]
    found = jax.jit(lambda ds: [d.log_prob(np.nan) for d in ds], compiler_options=QUICK)(distributions)
    assert np.isnan(found).all()


def test_ends_of_the_beta_distribution():
    """As SciPy has it: the density's limit, finite where the exponent is 0."""
    a, b = np.array([0.5, 1.0, 2.0]), np.array([2.0, 1.0, 0.5])
    found = d.Beta(a, b).log_prob(np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(found, stats.beta(a, b).logpdf([[0.0], [1.0]]), atol=1e-6)
