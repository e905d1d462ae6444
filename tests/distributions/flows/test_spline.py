"""Rational-quadratic splines against the formulas of the paper in NumPy, at knots, at ends and beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxprob import distributions as d
from jaxprob.distributions import flows
from jaxprob.distributions.flows._spline import positive_slope
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
INTERVAL = 3.0
BINS = 5


def parameters(scale, seed=0, batch=(), bins=BINS):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(*batch, size)) for size in (bins, bins, bins - 1)]


def spline(scale=1.0, dtype=jnp.float32, **options):
    return flows.RationalQuadraticSpline(*(jnp.asarray(part, dtype) for part in parameters(scale, **options)), INTERVAL)


def knots(widths, heights, slopes):
    """Places, values and slopes at the knots, ends included, in float64."""
    places, values = (
        INTERVAL * (2 * np.concatenate([[0], np.cumsum(0.01 / len(part) + 0.99 * special.softmax(part))]) - 1)
        for part in (widths, heights)
    )
    shifted = np.log1p(np.exp(slopes + np.log(np.expm1(1 - 1e-3)))) + 1e-3
    return places, values, np.concatenate([[1], shifted, [1]])


def reference(u, places, values, slopes):
    """Equations 4 and 5 of Durkan et al. (2019), for one number."""
    if abs(u) > INTERVAL:
        return u, 0.0
    k = np.clip(np.searchsorted(places, u, side="right") - 1, 0, len(places) - 2)
    width, height = places[k + 1] - places[k], values[k + 1] - values[k]
    s, xi = height / width, (u - places[k]) / width
    below = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
    value = values[k] + height * (s * xi**2 + slopes[k] * xi * (1 - xi)) / below
    slope = s**2 * (slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2) / below**2
    return value, np.log(slope)


def points(scale, dtype):
    """Random points, the knots in the dtype's numbers, the ends and their neighbours, and far ones."""
    places = knots(*parameters(scale))[0]
    ends = np.nextafter(np.array([[-INTERVAL], [INTERVAL]], dtype), np.array([[-9, 9]], dtype)).reshape(-1)
    random = np.random.default_rng(1).uniform(-1.3 * INTERVAL, 1.3 * INTERVAL, 40)
    special_points = [0.0, -INTERVAL, INTERVAL, -30.0, 30.0, 1e4]
    return jnp.asarray(np.concatenate([random, places, ends, special_points]), dtype)


@functools.partial(jax.jit, static_argnums=2)
def mapped(made, u, inverse=False):
    """Value, log slope, and autodiff's slope of both."""
    move = made.inverse_and_log_det if inverse else made.forward_and_log_det
    value, log_det = move(u)
    slope, change = jax.vmap(jax.jacfwd(move))(u)
    return value, log_det, slope, change


@DTYPES
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_it_is_the_formula_and_its_slope(scale, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        u = points(scale, dtype)
        value, log_det, slope, _ = mapped(spline(scale, dtype), u)
        expected = np.array([reference(float(one), *knots(*parameters(scale))) for one in u]).T
        tolerance = 1e-4 if dtype == jnp.float32 else 1e-10
        np.testing.assert_allclose(value, expected[0], atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(log_det, expected[1], atol=tolerance)
        np.testing.assert_allclose(np.log(slope), expected[1], atol=tolerance)
        assert value.dtype == log_det.dtype == dtype
        assert np.ptp(log_det) > 0.5


@DTYPES
def test_the_inverse_is_one_both_ways(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        # Slopes between 1 / 20 and 20: a rounding of x moves u by up to 20.
        made, tolerance = spline(2.0, dtype), 1e-4 if dtype == jnp.float32 else 1e-10
        u = points(2.0, dtype)
        x, log_det, *_ = mapped(made, u)
        back, back_log_det, slope, _ = mapped(made, x, True)
        np.testing.assert_allclose(back, u, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(back_log_det, -log_det, atol=tolerance)
        np.testing.assert_allclose(np.log(slope), back_log_det, atol=tolerance)
        before, before_log_det, *_ = mapped(made, u, True)
        again, again_log_det, *_ = mapped(made, before)
        np.testing.assert_allclose(again, u, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(again_log_det, -before_log_det, atol=tolerance)


def test_parameters_of_zero_are_the_identity():
    u = points(1.0, jnp.float32)
    value, log_det, *_ = mapped(flows.SplineTransformer(BINS, INTERVAL)(jnp.zeros(3 * BINS - 1)), u)
    np.testing.assert_allclose(value, u, atol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-6)
    one_bin = flows.RationalQuadraticSpline(jnp.ones(1), jnp.ones(1), jnp.ones(0), INTERVAL)
    for inverse in (False, True):
        value, _, slope, _ = mapped(one_bin, u, inverse)
        np.testing.assert_allclose(value, u, atol=1e-6)
        np.testing.assert_allclose(slope, 1, atol=1e-6)  # in the middle of the bin, 0, as well


def test_parameters_are_in_order():
    raw = np.random.default_rng(0).normal(size=3 * BINS - 1).astype(np.float32)
    made = flows.SplineTransformer(BINS, INTERVAL)(jnp.asarray(raw))
    values = [reference(u, *knots(raw[:BINS], raw[BINS : 2 * BINS], raw[2 * BINS :]))[0] for u in (-1.0, 0.5, 2.0)]
    np.testing.assert_allclose(made.forward(jnp.array([-1.0, 0.5, 2.0])), values, rtol=1e-5)


def test_gradients_are_finite_differences(x64):
    direction = [jnp.asarray(part) for part in parameters(1.0, 7)]
    u = jnp.linspace(-3.5, 3.5, 12)

    def total(step, u, inverse):
        made = jax.tree.map(lambda a, b: a + step * b, spline(1.0, jnp.float64), spline_of(direction))
        value, log_det = made.inverse_and_log_det(u) if inverse else made.forward_and_log_det(u)
        return jnp.sum(jnp.sin(value) + jnp.cos(3 * log_det))

    @functools.partial(jax.jit, static_argnums=2)
    def derivatives(step, u, inverse):
        along = jax.grad(total)
        return total(step, u, inverse), along(step, u, inverse), jax.grad(along)(step, u, inverse)

    for inverse in (False, True):
        width = 1e-5
        low, middle, high = (derivatives(step, u, inverse) for step in (-width, 0.0, width))
        for order in (0, 1):
            np.testing.assert_allclose(
                (high[order] - low[order]) / (2 * width), middle[order + 1], rtol=1e-6, atol=1e-7
            )
        assert abs(middle[1]) > 0.1


def test_slopes_far_below_have_the_gradient_of_their_logistic():
    raw = np.array([-35.0, -20.0, -10.0, -5.0, 0.0, 5.0, 30.0])
    slopes, gradients = jax.vmap(jax.value_and_grad(positive_slope))(jnp.asarray(raw, jnp.float32))
    shifted = raw + np.log(np.expm1(1 - 1e-3))
    np.testing.assert_allclose(slopes, np.logaddexp(0, shifted) + 1e-3, rtol=1e-5)
    np.testing.assert_allclose(gradients, special.expit(shifted), rtol=1e-5)


def test_the_gradient_by_all_parameters_is_a_difference(x64):
    direction = spline_of([jnp.asarray(part) for part in parameters(1.0, 7)])
    u = jnp.linspace(-3.5, 3.5, 12)

    @jax.jit
    @jax.value_and_grad
    def total(step):
        made = jax.tree.map(lambda a, b: a + step * b, spline(1.0, jnp.float64), direction)
        value, log_det = made.forward_and_log_det(u)
        return jnp.sum(jnp.sin(value) + jnp.cos(3 * log_det))

    low, middle, high = (total(step) for step in (-1e-5, 0.0, 1e-5))
    np.testing.assert_allclose((high[0] - low[0]) / 2e-5, middle[1], rtol=1e-6)
    assert abs(middle[1]) > 0.1


def spline_of(parts):
    return flows.RationalQuadraticSpline(*parts, INTERVAL)


@pytest.mark.parametrize("inverse", [False, True])
def test_everything_is_finite_far_out_and_with_large_parameters(inverse):
    u = jnp.asarray([-1e4, 1e4, 0.0, -INTERVAL, INTERVAL, 1.0, -2.9999, 2.9999], jnp.float32)

    @jax.jit
    def gradients(made, u):
        def total(made, u):
            return sum(map(jnp.sum, made.inverse_and_log_det(u) if inverse else made.forward_and_log_det(u)))

        return jax.value_and_grad(total, (0, 1))(made, u)

    for scale in (0.0, 1.0, 30.0, 1e4):
        for seed in range(4):
            for leaf in jax.tree.leaves(gradients(spline(scale, seed=seed), u)):
                assert np.isfinite(leaf).all(), (scale, seed)
    assert np.isnan(spline().forward(jnp.nan))


def test_axes_of_parameters_broadcast():
    made = spline(batch=(3, 1))
    u = jnp.linspace(-2, 2, 8).reshape(2, 1, 4)
    x, log_det = made.forward_and_log_det(u)
    assert x.shape == log_det.shape == (2, 3, 4)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i, 0], made)
        np.testing.assert_allclose(x[:, i], one.forward(u[:, 0]), rtol=1e-6)
        np.testing.assert_allclose(one.inverse(x[1, i, 2]), u[1, 0, 2], atol=1e-5)
    back = jax.jit(jax.vmap(lambda made, x: made.inverse(x)))(made, x[0])
    np.testing.assert_allclose(back, np.broadcast_to(u[0], (3, 4)), atol=1e-5)


def test_densities_have_mass_one_and_draws_have_them():
    one = d.Transformed(flows.StandardNormal(1), d.IndependentBijector(spline(), 1))
    check.check_mass(one, 1)
    check.check_draws(d.Transformed(flows.StandardNormal(2), d.IndependentBijector(spline(0.5, batch=(2,)), 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.RationalQuadraticSpline(jnp.ones(3), jnp.ones(3), jnp.ones(3)), r"widths is of shape \(3,\)"),
        (lambda: flows.RationalQuadraticSpline(jnp.ones(3), jnp.ones(2), jnp.ones(2)), r"widths is of shape \(3,\)"),
        (lambda: flows.RationalQuadraticSpline(1.0, jnp.ones(2), jnp.ones(2)), r"widths is of shape \(\)"),
        (lambda: flows.RationalQuadraticSpline(jnp.ones(2), jnp.ones(2), jnp.ones(1), -1.0), r"interval is -1\.0"),
        (lambda: flows.SplineTransformer(0), "bins is 0"),
        (lambda: flows.SplineTransformer(8, float("inf")), "interval is inf"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
