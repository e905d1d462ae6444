"""Filters of models that are not linear: Kalman filters on linear ones, polynomials, a filter on a grid, bad input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import (
    Cauchy,
    Delta,
    Dirichlet,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    Wishart,
)
from jaxprob.inference import kalman
from jaxprob.inference.kalman import _linearize as rules
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.kalman._models import make
from tests.inference.kalman._wrapped import grid_filter, wrap

RULES = ("extended", "unscented", "cubature", "gauss_hermite")
MOMENTS = ("mean", "covariance", "predicted_mean", "predicted_covariance", "innovation", "log_likelihoods")


def agree(found, expected, names, error):
    for name in names:
        one, other = (np.asarray(getattr(x, name), np.float64) for x in (found, expected))
        size = 1 + np.max(np.abs(other), initial=0)
        assert np.max(np.abs(one - other), initial=0) < error * size, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_on_a_linear_model_every_filter_is_the_kalman_filter(rule, dtype):
    """With missing entries and whole times, to rounding."""
    error = 2e-6 if dtype == np.float32 else 1e-14
    with jax.enable_x64(dtype == np.float64):
        model, ys = make("random", gaps=True, dtype=dtype)
        found = kalman.filter(wrap(model), ys, linearize=rule)
        agree(found, kalman.filter(model, ys), MOMENTS, error)
        assert found.mean.dtype == dtype


@pytest.mark.parametrize(("rule", "dtype"), [("extended", np.float32), ("cubature", np.float64)])
def test_so_are_smoothers(rule, dtype):
    with jax.enable_x64(dtype == np.float64):
        model, ys = make("random", gaps=True, dtype=dtype)
        found, expected = kalman.smooth(wrap(model), ys, linearize=rule), kalman.smooth(model, ys)
        names = ("mean", "covariance", "lag_one_covariance", "log_likelihood")
        agree(found, expected, names, 2e-6 if dtype == np.float32 else 1e-14)


SINGULAR = [("autoregression", "extended"), ("autoregression", "cubature"), ("known_start", "cubature")]


@pytest.mark.parametrize(("name", "rule"), [*SINGULAR, ("correlated_noise", "cubature")])
def test_noise_without_variance_and_a_known_start(name, rule, x64):
    """Q of rank one, R = 0, P0 = 0, R of rank one; linearised once and three times."""
    model, ys = make(name, gaps=True)
    expected = kalman.filter(model, ys)
    for iterations in (1, 3) if name == "autoregression" else (1,):
        found = kalman.filter(wrap(model), ys, linearize=rule, iterations=iterations)
        agree(found, expected, ("mean", "covariance", "predicted_covariance", "log_likelihoods"), 1e-7)


@pytest.mark.parametrize("rule", ["extended", "unscented"])
def test_iterations_count_an_observation_once(rule):
    model, ys = make("random", gaps=True, dtype=np.float32)
    expected = kalman.filter(model, ys)
    for iterations in (2, 7) if rule == "extended" else (3,):
        agree(kalman.filter(wrap(model), ys, linearize=rule, iterations=iterations), expected, MOMENTS, 3e-6)


def test_an_iterated_update_is_the_most_probable_state(x64):
    """One number seen through an exponential: the prior counts once, however often it is linearised."""
    model = StateSpaceModel(Normal(0.5, 1.0), lambda x, t: Normal(x, 1.0), lambda x, t: Normal(jnp.exp(x), 0.7))
    found = kalman.filter(model, np.array([3.0]), iterations=40)
    x = np.linspace(-2, 3, 5_000_001)
    x = x[np.argmin((x - 0.5) ** 2 + (3 - np.exp(x)) ** 2 / 0.49)]
    np.testing.assert_allclose(found.mean[0, 0], x, atol=2e-6)
    np.testing.assert_allclose(found.covariance[0, 0, 0], 1 / (1 + np.exp(2 * x) / 0.49), rtol=1e-5)


def test_a_linear_model_is_filtered_exactly_whatever_the_rule():
    model, ys = make("everything_varies", gaps=True, dtype=np.float32)
    expected = kalman.filter(model, ys)
    for rule in (*RULES, "laplace", kalman.unscented(0.5, 2.0, 1.0)):
        found = kalman.filter(model, ys, linearize=rule)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)


def normal_moment(powers):
    """E x^p y^q ... of independent standard normal numbers."""
    return np.prod([0 if p % 2 else math.prod(range(1, p, 2)) for p in powers])


@pytest.mark.parametrize(
    ("rule", "size", "degree"),
    [
        (kalman.cubature(), 3, 3),
        (kalman.unscented(), 1, 5),
        (kalman.unscented(), 4, 3),
        (kalman.unscented(1e-1, 2.0, 0.0), 3, 3),
        (kalman.gauss_hermite(2), 2, 3),
        (kalman.gauss_hermite(4), 2, 7),
    ],
)
def test_sigma_points_are_exact_for_polynomials_of_their_degree(rule, size, degree):
    points, weights, _, _ = rule.points(size)
    for powers in np.ndindex(*(degree + 1,) * size):
        if sum(powers) <= degree:
            assert abs(weights @ np.prod(points**powers, 1) - normal_moment(powers)) < 1e-9
    if isinstance(rule, rules.SigmaPoints) and rule.name == "gauss_hermite":
        top = (degree + 1,) + (0,) * (size - 1)
        assert abs(weights @ np.prod(points**top, 1) - normal_moment(top)) > 1


@pytest.mark.parametrize("rule", [kalman.unscented(), kalman.unscented(1.0, 2.0, -0.5), kalman.gauss_hermite(3)])
def test_what_a_regression_leaves_over_is_the_textbook_covariance(rule, x64, rng):
    """Omega = weighted covariance - A P A^T + mean noise; the second rule has a negative weight at the middle."""
    mean, factor = rng.normal(size=2), np.array([[0.7, 0.0], [0.3, 0.5]])

    def given(x):
        return jnp.stack([jnp.exp(x[0]), x[0] * x[1], x[1] ** 2]), jnp.stack([x[0] ** 2, 1 + x[1] ** 2, jnp.cosh(x[1])])

    found = rule.linearize(given, jnp.asarray(mean), jnp.asarray(factor))
    points, weights, spread, _ = rule.points(2)
    states = mean + points @ factor.T
    images = np.array([np.asarray(given(jnp.asarray(x))[0]) for x in states])
    noises = np.array([np.asarray(given(jnp.asarray(x))[1]) for x in states])
    middle = weights @ images
    central = weights.copy()
    if rule.name == "unscented":
        alpha, beta, _ = rule.parameters
        central[0] += 1 - alpha**2 + beta
    covariance = np.einsum("p,pi,pj->ij", central, images - middle, images - middle)
    cross = np.einsum("p,pi,pj->ij", weights, images - middle, states - mean)
    matrix = cross @ np.linalg.inv(factor @ factor.T)
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.offset, middle - matrix @ mean, rtol=1e-9, atol=1e-12)
    mixed = weights if weights.min() >= 0 else spread / spread.sum()
    expected = covariance - matrix @ factor @ factor.T @ matrix.T + np.diag(mixed @ noises)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_small_alpha_makes_no_variance_negative():
    """Weights of minus a million at the middle, in float32."""
    model = StateSpaceModel(
        Normal(jnp.zeros(2), 1.0), lambda x, t: Normal(jnp.sin(3 * x), 0.1), lambda x, t: Normal(x[0] ** 2 + x[1], 0.1)
    )
    ys = np.linspace(0, 3, 20).astype(np.float32)
    found = kalman.filter(model, ys, linearize=kalman.unscented(1e-3, 2.0, 0.0))
    assert np.isfinite(found.log_likelihood)
    assert np.isfinite(found.factor).all()


def decay(scale, x, t):
    return Normal(0.9 * x, scale)


def number(x, t):
    return Poisson(jnp.exp(1 + x))


def counts(scale=0.3):
    return StateSpaceModel(Normal(0.0, 1.0), jax.tree_util.Partial(decay, jnp.asarray(scale)), number)


YS = np.array([2.0, 5, 1, np.nan, 9, 7, 4, np.nan, np.nan, 0, 1, 2, 3, 8, 12, 3])


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def count_grid():
    log_factorial = np.vectorize(math.lgamma)
    return grid_filter(
        np.linspace(-5, 5, 2001),
        lambda x: normal(x, 0, 1),
        lambda x, after: normal(after, 0.9 * x, 0.3),
        lambda x, y: y * (1 + x) - np.exp(1 + x) - log_factorial(y + 1),
        YS,
    )


# Largest error of means and of deviations, in standard deviations, and of the log likelihood, as measured.
@pytest.mark.parametrize(
    ("rule", "mean_error", "sd_error", "likelihood_error"),
    [
        ("extended", 0.95, 0.25, 4.2),
        ("gauss_hermite", 0.45, 0.25, 3.9),
        ("laplace", 0.4, 0.15, 0.4),
    ],
)
def test_counts_against_a_grid(rule, mean_error, sd_error, likelihood_error):
    (mean, variance), (later_mean, later_variance), likelihood = count_grid()
    ys = YS.astype(np.float32)
    for found, m, v in (
        (kalman.filter(counts(), ys, linearize=rule), mean, variance),
        (kalman.smooth(counts(), ys, linearize=rule), later_mean, later_variance),
    ):
        assert np.max(np.abs(found.mean[:, 0] - m) / np.sqrt(v)) < mean_error
        assert np.max(np.abs(found.factor[:, 0, 0] / np.sqrt(v) - 1)) < sd_error
        assert abs(float(found.log_likelihood) - likelihood) < likelihood_error


def test_volatility_is_seen_by_its_density_alone(x64):
    """Returns with mean zero whatever the state: moments say nothing of it, the mode does."""
    model = StateSpaceModel(
        Normal(0.0, 1.0), lambda x, t: Normal(0.95 * x, 0.3), lambda x, t: Normal(jnp.zeros(()), jnp.exp(x / 2))
    )
    ys = np.array([0.1, -0.3, 0.2, 2.5, -3.0, 1.2, np.nan, -0.4, 0.0, 0.2])
    assert not np.any(kalman.filter(model, ys).mean)
    (mean, variance), _, likelihood = grid_filter(
        np.linspace(-8, 8, 2001),
        lambda x: normal(x, 0, 1),
        lambda x, after: normal(after, 0.95 * x, 0.3),
        lambda x, y: normal(y, 0, np.exp(x / 2)),
        ys,
    )
    found = kalman.filter(model, ys, linearize="laplace")
    assert np.max(np.abs(found.mean[:, 0] - mean) / np.sqrt(variance)) < 0.35
    assert abs(float(found.log_likelihood) - likelihood) < 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_laplace_filter_is_the_kalman_filter_where_all_is_normal(dtype):
    with jax.enable_x64(dtype == np.float64):
        model, ys = make("random", gaps=True, dtype=dtype)
        found, expected = kalman.filter(wrap(model), ys, linearize="laplace"), kalman.filter(model, ys)
        agree(found, expected, MOMENTS[:4] + MOMENTS[5:], 3e-6 if dtype == np.float32 else 1e-13)
        assert not np.any(found.innovation)


@pytest.mark.parametrize("rule", ["extended", pytest.param("unscented", marks=pytest.mark.slow), "laplace"])
def test_gradients_with_respect_to_parameters_and_closures(rule, x64):
    def parameter(scale):
        return kalman.log_likelihood(counts(scale), YS, linearize=rule)

    def closure(scale):
        model = dataclasses.replace(counts(), transition=lambda x, t: Normal(0.9 * x, scale))
        return kalman.log_likelihood(model, YS, linearize=rule)

    eps = 1e-5
    expected = (parameter(0.3 + eps) - parameter(0.3 - eps)) / (2 * eps)
    np.testing.assert_allclose(jax.grad(parameter)(0.3), expected, rtol=1e-6)
    if rule == "extended":
        np.testing.assert_allclose(jax.grad(closure)(jnp.asarray(0.3)), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", ["extended", "laplace"])
def test_short_and_empty_series(rule):
    for ys in (np.zeros(0, np.float32), np.array([3.0], np.float32), np.full(4, np.nan, np.float32)):
        found = kalman.filter(counts(), ys, linearize=rule)
        assert found.mean.shape == (len(ys), 1)
        assert np.isfinite(found.log_likelihood)
        if np.isnan(ys).all():
            assert found.log_likelihood == 0
            np.testing.assert_allclose(found.mean, 0, atol=1e-6)
            np.testing.assert_array_equal(found.mean, found.predicted_mean)
    slope = jax.grad(lambda scale: kalman.log_likelihood(counts(scale), ys, linearize=rule))(0.3)
    assert slope == 0


def test_inputs_shapes_and_a_state_that_moves_without_noise(x64):
    """A scalar state driven by inputs, with a law of one point; against sums."""
    model = StateSpaceModel(
        Normal(1.0, 2.0), lambda x, t, u: Delta(x + u), lambda x, t, u: Normal(x, 0.5), inputs=jnp.arange(6.0)
    )
    ys = np.array([1.0, 2.0, np.nan, 4.0, 8.0, 12.0])
    shift = np.concatenate([[0], np.cumsum(np.arange(5.0))])
    seen = ~np.isnan(ys)
    precision = 1 / 4 + seen.sum() / 0.25
    mean = (1 / 4 + np.sum((ys - shift)[seen]) / 0.25) / precision
    for rule in ("extended", "unscented"):
        found = kalman.smooth(model, ys, linearize=rule)
        np.testing.assert_allclose(found.mean[:, 0], mean + shift, rtol=1e-12)
        np.testing.assert_allclose(found.covariance[:, 0, 0], 1 / precision, rtol=1e-12)
    longer = dataclasses.replace(model, inputs=jnp.arange(9.0))
    ahead = kalman.forecast(longer, kalman.filter(longer.until(6), ys), steps=3, linearize="cubature")
    np.testing.assert_allclose(ahead.mean[:, 0], mean + shift[-1] + np.cumsum([5.0, 6, 7]), rtol=1e-12)
    np.testing.assert_allclose(ahead.covariance[:, 0, 0], 1 / precision + 0.25, rtol=1e-12)
    with pytest.raises(ValueError, match=r"until\(time\)"):
        kalman.filter(longer, ys)
    with pytest.raises(ValueError, match="inputs end"):
        kalman.forecast(model, kalman.filter(model, ys), steps=1)


def test_forecasts_and_draws_of_a_linear_model():
    model, ys = make("random", gaps=True, dtype=np.float32)
    filtered = kalman.filter(model, ys)
    for rule in ("extended", "unscented"):
        one, other = kalman.forecast(wrap(model), filtered, 3, linearize=rule), kalman.forecast(model, filtered, 3)
        agree(one, other, ("mean", "covariance", "state_mean", "state_covariance"), 3e-6)
    one, other = (kalman.sample(jax.random.key(0), m, ys, shape=(2,)) for m in (wrap(model), model))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    states, values = kalman.simulate(jax.random.key(0), wrap(model), 4)
    assert states.shape == (4, 3)
    assert values.shape == (4, 2)


def test_many_series_are_a_vmap_and_compile_nothing_anew():
    model, ys = counts(), np.stack([YS, YS[::-1]]).astype(np.float32)
    many = jax.vmap(lambda ys: kalman.filter(model, ys, linearize="laplace"))(ys)
    one = kalman.filter(model, ys[1], linearize="laplace")
    np.testing.assert_allclose(many.mean[1], one.mean, rtol=1e-4, atol=1e-5)
    from jaxprob.inference.kalman import _filter

    before = _filter._filter._cache_size()
    kalman.filter(model, ys[0], linearize=kalman.laplace())
    assert _filter._filter._cache_size() == before


def law(observation, initial=None):
    return StateSpaceModel(initial or Normal(jnp.zeros(2), 1.0), lambda x, t: initial or Normal(x, 1.0), observation)


ZEROS = np.zeros((3, 2), np.float32)
BAD = {
    "a law without moments of one event": (
        lambda: kalman.filter(law(lambda x, t: Dirichlet(1 + x**2)), ZEROS),
        "observation is a Dirichlet; expected a law with a mean",
    ),
    "a state with more axes": (
        lambda: kalman.filter(law(lambda x, t: Normal(x[0], 1.0), Normal(jnp.zeros((2, 2)), 1.0)), ZEROS),
        r"whose state has shape \(2, 2\)",
    ),
    "observations with more axes": (
        lambda: kalman.filter(law(lambda x, t: Wishart(4.0, jnp.eye(2))), ZEROS),
        r"whose observation has shape \(2, 2\)",
    ),
    "an unknown rule": (lambda: kalman.filter(law(lambda x, t: Normal(x, 1.0)), ZEROS, linearize="exact"), "linearize"),
    "in parallel": (lambda: kalman.filter(law(lambda x, t: Normal(x, 1.0)), ZEROS, method="parallel"), "not linear"),
    "no iteration": (lambda: kalman.filter(law(lambda x, t: Normal(x, 1.0)), ZEROS, iterations=0), "iterations is 0"),
    "the wrong axis first": (lambda: kalman.filter(law(lambda x, t: Normal(x, 1.0)), np.zeros((2, 3))), "Time leads"),
    "negative variances": (
        lambda: kalman.filter(law(lambda x, t: Normal(x, 1.0)), ZEROS, linearize=kalman.unscented(1.0, 0.0, -1.0)),
        "variances of 2 numbers may be negative",
    ),
    "too many points": (
        lambda: kalman.filter(
            law(lambda x, t: Normal(x[:2], 1.0), Normal(jnp.zeros(12), 1.0)), ZEROS, linearize="gauss_hermite"
        ),
        r"3\^12 points",
    ),
    "alpha of zero": (lambda: kalman.unscented(alpha=0.0), "alpha is 0.0"),
    "one node": (lambda: kalman.gauss_hermite(1), "order is 1"),
    "densities from both ends": (
        lambda: kalman.smooth(counts(), YS[:3], linearize="laplace", method="two_filter"),
        "'two_filter', with 'laplace'",
    ),
    "no forecast by density": (
        lambda: kalman.forecast(counts(), kalman.filter(counts(), YS[:3]), 1, linearize="laplace"),
        "takes moments",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_no_model():
    with pytest.raises(TypeError, match="StateSpaceModel"):
        kalman.filter(3, ZEROS)


def test_a_law_whose_moments_do_not_exist_has_no_likelihood():
    found = kalman.filter(law(lambda x, t: Cauchy(x, 1.0)), ZEROS)
    assert not np.isfinite(found.log_likelihood)


def test_events_and_entries_that_depend_are_read_alike():
    """Independent numbers as batch or event, positive ones, and a matrix, have the moments of a normal law."""
    laws = (
        lambda x, t: Normal(x, 2.0),
        lambda x, t: Independent(Normal(x, 2.0)),
        lambda x, t: MultivariateNormal(x, cholesky=2 * jnp.eye(2)),
        lambda x, t: Gamma((10 + x) ** 2 / 4, (10 + x) / 4),
    )
    shifts, ys = (0, 0, 0, 10), np.array([[1.0, 2], [np.nan, 0]], np.float32)
    found = [kalman.filter(law(one), ys + shift) for one, shift in zip(laws, shifts, strict=True)]
    for other in found[1:]:
        np.testing.assert_allclose(found[0].mean, other.mean, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(found[0].log_likelihood, other.log_likelihood, rtol=1e-4)
