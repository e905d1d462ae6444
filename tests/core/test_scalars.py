"""Stable scalar functions against Python's decimal arithmetic with hundreds of digits.

Derivatives are compared with central differences of the decimal values, so that no formula is shared.
"""

import decimal
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core, scan

ONE = Decimal(1)
# Beyond this exp(-|x|) is below everything that is compared here.
FAR = Decimal(10) ** 6


def softplus(x):
    return x if x > FAR else (ONE + x.exp()).ln()


EXACT = {
    "log1mexp": (lambda x: (ONE - (-x).exp()).ln(), "positive"),
    "inverse_softplus": (lambda x: x if x > FAR else (x.exp() - 1).ln(), "positive"),
    "expm1_over_x": (lambda x: (x.exp() - 1) / x, "real"),
    "sqrt_one_minus_exp": (lambda x: (ONE - (-x).exp()).sqrt(), "positive"),
    "sigmoid": (lambda x: ONE / (ONE + (-x).exp()), "real"),
    "softplus": (softplus, "real"),
    "log_sigmoid": (lambda x: -softplus(-x), "real"),
    "logit": (lambda p: (p / (ONE - p)).ln(), "unit"),
    "safe_log": (lambda x: x.ln(), "positive"),
    "safe_sqrt": (lambda x: x.sqrt(), "positive"),
}


def function(name):
    if name == "sqrt_one_minus_exp":  # with a bound that is never reached on the grid
        return lambda x: core.sqrt_one_minus_exp(x, 1e38 if x.dtype == jnp.float32 else 1e300)
    return getattr(core, name)


def grid(kind, dtype):
    """From the smallest to the largest numbers, denser about 1, and beside every place where a formula changes."""
    ends = (-37, 38) if dtype == np.float32 else (-300, 300)
    joints = np.array([0.25, 0.5, np.log(2), 0.75, 0.8, 0.9, 1.0, 1.05, 1.1, 1.2, 80.0, 86.0, 90.0, 705.0, 712.0])
    points = np.concatenate([np.geomspace(10.0 ** ends[0], 10.0 ** ends[1], 12), np.geomspace(1e-3, 50, 14), joints])
    if kind == "unit":
        near_one, about_half = 1 - np.geomspace(2 * np.finfo(dtype).eps, 0.4, 8), np.geomspace(1e-6, 0.25, 6)
        points = np.concatenate([points[points < 1], near_one, 0.5 + about_half, 0.5 - about_half])
    if kind == "real":
        points = np.concatenate([points, -points])
    return np.unique(points.astype(dtype))


def error_in_eps(got, want, dtype, least=0.0):
    """Error in units of eps, relative to `want` or to `least`; what over- or underflows must do so in the result."""
    info = np.finfo(dtype)
    if abs(want) < 2 * float(info.tiny):
        return 0.0 if abs(got) < 4 * float(info.tiny) else np.inf
    if abs(want) > float(info.max):
        return 0.0 if np.isinf(got) and got * want > 0 else np.inf
    return abs(got - want) / (info.eps * max(abs(want), least))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXACT)
def test_value_and_derivative_are_right_to_a_few_eps(name, dtype):
    exact, kind = EXACT[name]
    x = grid(kind, dtype)
    with jax.enable_x64(dtype == np.float64):
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(function(name))))(x)
        assert values.dtype == slopes.dtype == dtype
    # At the root of log(exp(x) - 1) the error is that of exp(x) - 1 about 1; the others have theirs at exact points.
    least = 0.7 if name == "inverse_softplus" else 0.0
    # Enough digits for 1 - exp(-x) at the smallest x and for its difference over a step of 1e-30 x.
    digits = 100 if dtype == np.float32 else 380
    with decimal.localcontext(prec=digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN) as context:
        for signal in (decimal.Overflow, decimal.Underflow, decimal.InvalidOperation):
            context.traps[signal] = False
        for point, value, slope in zip(x, np.float64(values), np.float64(slopes), strict=True):
            at = Decimal(float(point))
            step = (max(abs(at), ONE) if kind == "real" else abs(at)) * Decimal("1e-30")
            slope_wanted = (exact(at + step) - exact(at - step)) / (2 * step)
            if slope_wanted.is_nan():  # both have overflowed
                slope_wanted = Decimal("inf")
            assert error_in_eps(value, float(exact(at)), dtype, least) < 4, point
            assert error_in_eps(slope, float(slope_wanted), dtype) < 4, point


# Value and derivative at the ends of the range, from the limits.
ENDS = [
    ("log1mexp", 0.0, -np.inf, np.inf),
    ("log1mexp", np.inf, 0.0, 0.0),
    ("inverse_softplus", 0.0, -np.inf, np.inf),
    ("inverse_softplus", np.inf, np.inf, 1.0),
    ("expm1_over_x", 0.0, 1.0, 0.5),
    ("expm1_over_x", np.inf, np.inf, np.inf),
    ("expm1_over_x", -np.inf, 0.0, 0.0),
    ("sqrt_one_minus_exp", np.inf, 1.0, 0.0),
    ("sigmoid", 0.0, 0.5, 0.25),
    ("sigmoid", np.inf, 1.0, 0.0),
    ("sigmoid", -np.inf, 0.0, 0.0),
    ("softplus", np.inf, np.inf, 1.0),
    ("softplus", -np.inf, 0.0, 0.0),
    ("log_sigmoid", np.inf, 0.0, 0.0),
    ("log_sigmoid", -np.inf, -np.inf, 1.0),
    ("logit", 0.0, -np.inf, np.inf),
    ("logit", 0.5, 0.0, 4.0),
    ("logit", 1.0, np.inf, np.inf),
    ("safe_log", 0.0, -np.inf, 0.0),
    ("safe_log", np.inf, np.inf, 0.0),
    ("safe_sqrt", 0.0, 0.0, 0.0),
    ("safe_sqrt", np.inf, np.inf, 0.0),
]


@pytest.mark.parametrize("name", EXACT)
def test_ends_of_the_range(name):
    both = jax.jit(jax.vmap(jax.value_and_grad(getattr(core, name))))
    rows = [end for end in ENDS if end[0] == name]
    at, values, slopes = (jnp.array([row[i] for row in rows], jnp.float32) for i in (1, 2, 3))
    got = both(at)
    np.testing.assert_array_equal(got[0], values)
    np.testing.assert_array_equal(got[1], slopes)
    assert np.isnan(both(jnp.array([jnp.nan]))[0])
    if EXACT[name][1] != "real":
        assert np.isnan(both(jnp.array([-1.0]))[0])


def test_derivative_of_the_square_root_is_bounded():
    x = jnp.array([0.0, 1e-30, 1e-12, 1e-6, 1e-2])
    slope = jax.jit(jax.vmap(jax.grad(core.sqrt_one_minus_exp)))(x)
    assert (slope <= 1000.0).all()
    np.testing.assert_allclose(slope[3:], np.exp(-x[3:]) / (2 * np.sqrt(-np.expm1(-x[3:]))), rtol=1e-6)
    np.testing.assert_allclose(slope[:3], 1000.0, rtol=1e-6)
    assert jax.jit(jax.grad(lambda x: core.sqrt_one_minus_exp(x, max_derivative=5.0)))(1e-12) == 5.0
    assert np.isfinite(jax.jit(jax.grad(jax.grad(core.sqrt_one_minus_exp)))(0.0))

    def looped(x):
        return scan.scan(lambda total, x: (total + core.sqrt_one_minus_exp(x) ** 2, None), 0.0, x)[0]

    np.testing.assert_allclose(jax.jit(jax.hessian(looped))(x)[4, 4], -np.exp(-x[4]), rtol=1e-4)
    assert np.isfinite(jax.jit(jax.hessian(looped))(x)).all()


def test_higher_derivatives_of_the_zero_order_hold(x64):
    """The n-th derivative of (exp(x) - 1) / x at 0 is 1 / (n + 1)."""
    f = core.expm1_over_x
    for order in range(1, 4):
        f = jax.grad(f)
        np.testing.assert_allclose(jax.jit(jax.vmap(f))(jnp.array([0.0, 1e-9])), 1 / (order + 1), rtol=1e-8)


def test_zero_order_hold_of_complex_rates(x64):
    """Against the power series in longer arithmetic, and its derivative; 2 pi i is a root."""
    x = np.array([0.0, 1e-9j, 0.3 - 0.2j, 0.99j, 1.01j, -3 + 2j, 2j * np.pi])
    wide = x.astype(np.clongdouble)
    term, value, slope = np.ones_like(wide), np.zeros_like(wide), np.zeros_like(wide)
    for k in range(60):
        value, slope = value + term, slope + term * (k + 1) / (k + 2)
        term = term * wide / (k + 2)
    np.testing.assert_allclose(core.expm1_over_x(x), value, rtol=1e-13, atol=1e-15)
    got = jax.jit(jax.vmap(jax.grad(core.expm1_over_x, holomorphic=True)))(x)
    np.testing.assert_allclose(got, slope, rtol=1e-12)


def test_second_derivatives(x64):
    """Of the functions that log densities are made of, where Newton's method and Laplace's look."""
    x = np.array([-30.0, -3.0, -0.1, 0.0, 0.5, 4.0, 40.0])

    def second(f):
        return jax.jit(jax.vmap(jax.grad(jax.grad(f))))

    s = scipy.special.expit(x)
    bell = s * scipy.special.expit(-x)
    np.testing.assert_allclose(second(core.softplus)(x), bell, rtol=1e-14)
    np.testing.assert_allclose(second(core.log_sigmoid)(x), -bell, rtol=1e-14)
    positive = x[x > 0]
    curve = np.exp(positive) / np.expm1(positive) ** 2
    np.testing.assert_allclose(second(core.log1mexp)(positive), -curve, rtol=1e-13)
    np.testing.assert_allclose(second(core.inverse_softplus)(positive), -curve, rtol=1e-13)


INVERSES = [jax.jit(f) for f in (core.softplus, core.inverse_softplus, core.sigmoid, core.logit)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(-80, 80, width=32))
def test_inverses(x):
    softplus, inverse_softplus, sigmoid, logit = INVERSES
    eps = np.finfo(np.float32).eps
    y = np.float32(softplus(np.float32(x)))
    # Where softplus is flat its inverse amplifies the rounding of y by the inverse of its slope.
    np.testing.assert_allclose(inverse_softplus(y), x, rtol=4 * eps, atol=4 * eps * y * (1 + np.exp(-x)))
    p = np.float32(sigmoid(np.float32(x)))
    if p < 1:
        np.testing.assert_allclose(logit(p), x, rtol=4 * eps, atol=4 * eps / (1 - np.float64(p)))


def test_xlogy_and_xlog1py():
    x = np.array([0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.5, 0.0], np.float32)
    y = np.array([0.0, 0.5, np.inf, -1.0, 0.0, 3.0, 1e-30, np.nan], np.float32)
    np.testing.assert_allclose(core.xlogy(x, y), scipy.special.xlogy(x, y), rtol=1e-6)
    z = np.array([-1.0, 0.5, np.inf, -2.0, -1.0, 3.0, 1e-30, np.nan], np.float32)
    np.testing.assert_allclose(core.xlog1py(x, z), scipy.special.xlog1py(x, z), rtol=1e-6)
    assert jax.eval_shape(core.xlogy, jnp.arange(3), jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    for function, zero in ((core.xlogy, 0.0), (core.xlog1py, -1.0)):
        slopes = jax.jit(jax.grad(function, (0, 1)))
        assert np.isfinite(slopes(0.0, zero)).all()
        np.testing.assert_allclose(slopes(0.0, zero + 2.0), [np.log(2.0), 0.0])
        np.testing.assert_allclose(slopes(3.0, zero + 2.0), [np.log(2.0), 1.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_binomial_coefficients_of_whole_numbers(dtype):
    """Against exact integers, small and enormous; the last is lopsided far beyond what log-gamma could resolve."""
    pairs = [(n, k) for n in (0, 1, 2, 3, 5, 9, 17, 40, 1000) for k in sorted({0, 1, 2, 5, n // 3, n // 2, n - 1, n})]
    pairs = [(n, k) for n, k in pairs if 0 <= k <= n] + [(10**6, 10**5), (2**23, 3), (2**24, 2**23), (2**24 - 2, 1)]
    n, k = (np.array(z, np.float64) for z in zip(*pairs, strict=True))
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(jax.jit(core.log_binomial_coefficient)(n.astype(dtype), k.astype(dtype)), np.float64)
    # Stirling's series for the entropy-like sums too long for integers, SciPy in float64 for the others.
    want = -scipy.special.betaln(n - k + 1, k + 1) - np.log1p(n)
    small = n <= 1000
    want[small] = [
        float(decimal.Decimal(_choose(int(a), int(b))).ln()) for a, b in zip(n[small], k[small], strict=True)
    ]
    tolerance = 25 * np.finfo(dtype).eps if dtype == np.float64 else 12 * np.finfo(dtype).eps
    np.testing.assert_array_less(np.abs(got - want), tolerance * np.maximum(want, 1) + 1e-30)
    assert (got[(k == 0) | (k == n)] < 2 * np.finfo(dtype).eps).all()


def _choose(n, k):
    value = 1
    for i in range(k):
        value = value * (n - i) // (i + 1)
    return value


def test_log_binomial_coefficient_outside_and_derivative(x64):
    value = jax.jit(core.log_binomial_coefficient)
    np.testing.assert_array_equal(value(5.0, np.array([-1.0, 6.0])), -np.inf)
    assert np.isnan(value(np.nan, 1.0))
    slopes = jax.jit(jax.vmap(jax.grad(core.log_binomial_coefficient, (0, 1))))
    n, k = np.array([5.0, 5.0, 30.0, 30.0, 1e5, 1e5, 8.0]), np.array([0.0, 2.0, 3.0, 15.0, 40.0, 3e4, 4.0])
    digamma = scipy.special.digamma
    got = slopes(n, k)
    np.testing.assert_allclose(got[0], digamma(n + 1) - digamma(n - k + 1), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(got[1], digamma(n - k + 1) - digamma(k + 1), rtol=1e-10, atol=1e-13)
    assert np.isfinite(slopes(np.array([0.0, 5.0, 5.0]), np.array([0.0, -1.0, 6.0]))).all()


def test_dtypes_and_scalars():
    names = list(EXACT)
    call = jax.jit(lambda x: [getattr(core, name)(x) for name in names])
    for name, low, high in zip(names, call(jnp.full(2, 0.3, jnp.bfloat16)), call(jnp.full(2, 0.3)), strict=True):
        assert low.dtype == jnp.bfloat16, name
        np.testing.assert_allclose(np.float32(low), high, rtol=2**-6, err_msg=name)
    for name in names:
        function = getattr(core, name)
        assert jax.eval_shape(function, 1).dtype == jnp.float32, name
        # A Python scalar stays weak: it takes the dtype of what it meets.
        assert jax.eval_shape(lambda x, f=function: f(0.5) + x, jnp.ones((), jnp.bfloat16)).dtype == jnp.bfloat16, name
