"""Bijectors: inverses, log-determinants against autodiff and closed forms, extremes, composition."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from jaxprob import distributions as d

SCALAR = {
    "identity": d.Identity(),
    "affine": d.Affine(-1.5, -0.25),
    "exp": d.Exp(),
    "sigmoid": d.Sigmoid(),
    "softplus": d.Softplus(),
    "tanh": d.Tanh(),
    "interval": d.IntervalSigmoid(-3.0, -1.0),
    "interval ending at zero": d.IntervalSigmoid(-2.0, 0.0),
    "above": d.HalfLine(0.5),
    "below": d.HalfLine(0.5, above=False),
    "power of exp": d.Chain((d.Exp(), d.Power(-0.5))),
    "inverse": d.Inverse(d.Affine(2.0, 3.0)),
    "chain": d.Chain((d.Affine(0.3, 0.5), d.Softplus(), d.Inverse(d.Exp()), d.Tanh())),
}
# Each with the number of entries of u, and the entries of x that are free coordinates of the constrained set.
VECTOR = {
    "stick breaking": (d.StickBreaking(), 4, lambda x: x[:-1]),
    "ordering": (d.Ordering(), 4, lambda x: x),
    "triangular": (d.FillTriangular(), 6, lambda x: x[np.tril_indices(3)]),
    "outer product": (d.OuterProduct(), 6, lambda x: x[np.tril_indices(3)]),
    "correlation": (d.SignedStickBreaking(), 6, lambda x: x[np.tril_indices(4, -1)]),
    "independent": (d.IndependentBijector(d.Exp(), 1), 3, lambda x: x),
    "chain of ranks": (d.Chain((d.Affine(0.5, 0.25), d.Ordering(), d.Exp())), 3, lambda x: x),
    "inverse of a vector": (d.Chain((d.Ordering(), d.Inverse(d.Ordering()), d.Ordering())), 3, lambda x: x),
}
# Compiled without LLVM's optimisations, which take most of the time and change no rounding.
QUICK = {"xla_backend_optimization_level": 0}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def numbers(size, width):
    """Arrays of `size` float32 numbers of at most `width` in size."""
    return hnp.arrays(np.float32, size, elements=st.floats(-width, width, width=32))


@cache
def compiled(name):
    """`u -> x, log_det, inverse(x), inverse's log_det, autodiff's log_det` over a leading axis."""
    bijector, free = (SCALAR[name], lambda x: x) if name in SCALAR else VECTOR[name][::2]

    def one(u):
        x, log_det = bijector.forward_and_log_det(u)
        back, inverse_log_det = bijector.inverse_and_log_det(x)
        jacobian = jax.jacfwd(lambda u: free(bijector.forward(u)))(u)
        jacobian = jacobian if jacobian.ndim else jacobian.reshape(1, 1)
        return x, log_det, back, inverse_log_det, jnp.linalg.slogdet(jacobian)[1], bijector.forward(u)

    return jax.jit(jax.vmap(one), compiler_options=QUICK)


def check(name, dtype, u):
    with jax.enable_x64(dtype == np.float64):
        x, log_det, back, inverse_log_det, autodiff, forward = map(np.asarray, compiled(name)(u.astype(dtype)))
    assert x.dtype == log_det.dtype == back.dtype == dtype
    assert log_det.shape == (len(u),)
    # A rounding of x moves u by up to exp(8) roundings, and the determinants by as much.
    tolerance = 5e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(back, u, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(log_det, autodiff, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(forward, x)


@DTYPES
@pytest.mark.parametrize("name", SCALAR)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(u=numbers(16, 7.0))
def test_scalar_bijectors(name, dtype, u):
    check(name, dtype, u)


@DTYPES
@pytest.mark.parametrize("name", VECTOR)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_vector_bijectors(name, dtype, data):
    check(name, dtype, data.draw(numbers((8, VECTOR[name][1]), 2.0)))


# log |dx / du|, in float64 and by other formulas than ours.
CLOSED = {
    "exp": lambda u: u,
    "sigmoid": lambda u: -np.abs(u) - 2 * np.log1p(np.exp(-np.abs(u))),
    "softplus": lambda u: stats.logistic.logcdf(u),
    "tanh": lambda u: 2 * (math.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u)))),
    "interval": lambda u: math.log(2) + stats.logistic.logpdf(u),
    "below": lambda u: u,
}


@DTYPES
@pytest.mark.parametrize("name", CLOSED)
def test_log_det_far_out(name, dtype):
    u = np.array([-80.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 80.0])

    def program(u):
        x, log_det = SCALAR[name].forward_and_log_det(u)
        slope = jax.grad(lambda u: sum(SCALAR[name].forward_and_log_det(u)))(u)
        return x, log_det, slope, jax.hessian(lambda u: SCALAR[name].forward_and_log_det(u)[1])(u)

    with jax.enable_x64(dtype == np.float64):
        quick = jax.jit(jax.vmap(program), compiler_options=QUICK)
        x, log_det, slopes, second = map(np.asarray, quick(jnp.asarray(u.astype(dtype))))
    assert np.isfinite(x).all()
    assert np.isfinite(slopes).all()
    expected = CLOSED[name](u.astype(dtype).astype(float))
    np.testing.assert_allclose(log_det, expected, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=1e-7)
    # The curvature at 0, which a formula with |u| would lose.
    curvature = {"sigmoid": -0.5, "tanh": -2.0, "interval": -0.5, "softplus": -0.25}.get(name, 0.0)
    np.testing.assert_allclose(second[3], curvature, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["stick breaking", "ordering", "triangular", "correlation", "independent"])
def test_vector_bijectors_far_out(name):
    bijector, count, _ = VECTOR[name]
    signs = np.array([[(-1.0) ** (i // (k + 1)) for i in range(count)] for k in range(3)])
    u = np.concatenate([20 * signs, 80 * signs, -80 * signs]).astype(np.float32)

    @partial(jax.jit, compiler_options=QUICK)
    def program(u):
        (x, log_det), pull = jax.vjp(bijector.forward_and_log_det, u)
        # The gradient that a density of moderate slope sends back, and that of the log-determinant.
        weight = jnp.where(jnp.abs(x) > 1, 1 / jnp.maximum(jnp.abs(x), 1), 1)
        return x, log_det, pull((weight, jnp.zeros_like(log_det))), pull((jnp.zeros_like(x), jnp.ones_like(log_det)))

    for values in jax.tree.leaves(program(u)):
        assert np.isfinite(values).all()


def test_values():
    np.testing.assert_allclose(d.StickBreaking().forward(jnp.zeros(4)), np.full(5, 0.2), rtol=1e-6)
    np.testing.assert_allclose(d.Ordering().forward(jnp.array([1.0, 0.0, 0.0])), [1, 2, 3])
    np.testing.assert_allclose(d.FillTriangular().forward(jnp.array([0.0, 5.0, 0.0])), [[1, 0], [5, 1]])
    correlation = d.SignedStickBreaking().forward(jnp.array([0.3]))
    np.testing.assert_allclose(correlation, [[1, 0], [np.tanh(0.3), 1 / np.cosh(0.3)]], rtol=1e-6)
    np.testing.assert_allclose(d.Chain((d.Affine(1.0, 2.0), d.Exp())).forward(0.5), np.exp(2.0), rtol=1e-6)
    np.testing.assert_allclose(d.Power(2.0).forward(3.0), 9.0, rtol=1e-6)


def test_small_parts_keep_their_digits():
    x = np.array([1e-20, 1e-10, 1.0 - 1e-5, 1e-5 - 1e-10])
    u = d.StickBreaking().inverse(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(d.StickBreaking().forward(u), x.astype(np.float32), rtol=1e-5)
    near = jnp.array([[1.0, 0.0], [1.0, 1e-12]])
    np.testing.assert_allclose(
        d.SignedStickBreaking().forward(d.SignedStickBreaking().inverse(near)), near, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_radius_of_a_direction_is_chi_distributed(n):
    # p(u) = p(x) exp(log_det): the radius has density r^(n - 1) exp(log_det), whatever p is.
    u = np.random.default_rng(n).normal(size=(50, n)).astype(np.float32)
    x, log_det = d.Direction().forward_and_log_det(u)
    r = np.linalg.norm(u.astype(float), axis=-1)
    np.testing.assert_allclose(x, u / r[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_det + (n - 1) * np.log(r), stats.chi(n + 4).logpdf(r), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d.Direction().forward(d.Direction().inverse(x)), x, rtol=1e-6, atol=1e-6)
    if n == 2:
        angle, same = d.PlaneAngle().forward_and_log_det(u)
        np.testing.assert_allclose(angle, np.arctan2(u[:, 1], u[:, 0]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(same, log_det)
        np.testing.assert_allclose(d.PlaneAngle().forward(d.PlaneAngle().inverse(angle)), angle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bijector", [d.Direction(), d.PlaneAngle()])
def test_directions_at_and_far_from_the_origin(bijector):
    u = jnp.array([[0.0, 0.0], [1e-30, 0.0], [3e-30, 4e-30], [1e18, -1e18]])

    @partial(jax.jit, compiler_options=QUICK)
    def program(u):
        (x, log_det), pull = jax.vjp(bijector.forward_and_log_det, u)
        return x, log_det, pull((jnp.ones_like(x), jnp.ones_like(log_det)))[0][0]

    x, log_det, slopes = program(u)
    assert np.isfinite(x).all()
    assert np.isfinite(log_det[:3]).all()
    assert np.isfinite(slopes).all()
    if x.ndim == 2:
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-6)
        np.testing.assert_allclose(x[2], [0.6, 0.8], rtol=1e-6)


def test_directions_are_smooth_where_they_are_defined():
    hessian = jax.jit(jax.hessian(d.PlaneAngle().forward), compiler_options=QUICK)(jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(hessian, [[0.5, 0], [0, -0.5]], atol=1e-6)


def test_batches_of_parameters():
    bijector = d.IntervalSigmoid(jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 3.0, 10.0]))
    u = jnp.zeros((2, 3))
    x, log_det = bijector.forward_and_log_det(u)
    np.testing.assert_allclose(x, [[0.5, 2.0, 6.0]] * 2)
    np.testing.assert_allclose(log_det, np.log([[0.25, 0.5, 2.0]] * 2), rtol=1e-6)
    assert d.Affine(jnp.zeros(3), 2.0).forward_and_log_det(0.0)[1].shape == (3,)
    assert bijector.inverse(jnp.float32(1.0)).shape == (3,)


@pytest.mark.parametrize("name", VECTOR)
def test_shapes(name):
    bijector, count, _ = VECTOR[name]
    x = jax.eval_shape(bijector.forward, jnp.zeros((2, 5, count)))
    assert bijector.forward_shape((2, 5, count)) == x.shape
    assert bijector.inverse_shape(x.shape) == (2, 5, count)
    assert x.ndim - bijector.event_ndims_out == 3 - bijector.event_ndims_in
    swapped = d.Inverse(bijector)
    assert swapped.forward_shape(x.shape) == (2, 5, count)
    assert (swapped.event_ndims_in, swapped.event_ndims_out) == (bijector.event_ndims_out, bijector.event_ndims_in)


def test_integers_are_converted():
    assert d.Exp().inverse(1).dtype == jnp.float32
    assert d.Affine(jnp.float32(1), 2).forward(np.arange(3)).dtype == jnp.float32


def test_errors():
    with pytest.raises(ValueError, match=r"Affine: scale is 0.0; expected numbers other than 0"):
        d.Affine(0.0, 0.0)
    with pytest.raises(ValueError, match=r"forward: u is of length 4; expected a length n \(n \+ 1\) / 2"):
        d.FillTriangular().forward(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"forward: u is of length 2; expected a length n \(n - 1\) / 2"):
        d.SignedStickBreaking().forward(jnp.zeros(2))
    with pytest.raises(ValueError, match="Chain: bijectors is empty"):
        d.Chain(())
    with pytest.raises(ValueError, match="IntervalSigmoid: high is of shape"):
        d.IntervalSigmoid(jnp.zeros(2), jnp.ones(3))


def test_bijectors_are_pytrees():
    chains = jax.jit(jax.vmap(lambda s: d.Chain((d.Affine(0.0, s), d.Exp()))))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(chains.forward(jnp.ones(2)), np.exp([1.0, 2.0]), rtol=1e-6)
    grad = jax.grad(lambda b: b.forward(2.0))(d.Affine(1.0, 3.0))
    assert (float(grad.loc), float(grad.scale)) == (1.0, 2.0)


def test_bounds_are_differentiated():
    slopes = jax.grad(lambda low, high: d.IntervalSigmoid(low, high).forward(0.0), (0, 1))(1.0, 3.0)
    assert [float(slope) for slope in slopes] == [0.5, 0.5]
    assert float(jax.grad(lambda edge: d.HalfLine(edge).forward(-80.0))(1.0)) == pytest.approx(1.0)
