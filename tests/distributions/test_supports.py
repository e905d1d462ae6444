"""Supports: what they contain, and that their maps reach nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import distributions as d

INF, NAN = np.inf, np.nan
UPPER = [[1.0, 0.5], [0.0, 1.0]]
LOWER = [[1.0, 0.0], [0.5, 1.0]]
UNIT = [[1.0, 0.0], [0.6, 0.8]]

INSIDE_AND_OUTSIDE = {
    "real": (d.Real(), [0.0, -3e38], [INF, NAN]),
    "real vector": (d.RealVector(), [[0.0, 1.0]], [[0.0, INF], [NAN, 0.0]]),
    "positive": (d.Positive(), [1e-30, 3.0], [0.0, -1.0, INF, NAN]),
    "non-negative": (d.NonNegative(), [0.0, 3.0], [-1e-30, INF, NAN]),
    "unit interval": (d.UnitInterval(), [0.0, 0.5, 1.0], [-1e-6, 1.001, NAN]),
    "interval": (d.Interval(-1.0, 2.0), [-1.0, 0.0, 2.0], [-1.001, 2.001, NAN]),
    "greater than": (d.GreaterThan(2.0), [2.0, 5.0], [1.999, INF, NAN]),
    "less than": (d.LessThan(2.0), [2.0, -5.0], [2.001, -INF, NAN]),
    "simplex": (
        d.Simplex(),
        [[0.2, 0.3, 0.5], [0.33333, 0.33333, 0.33334], [0, 0, 1]],
        [[0.5, 0.4, 0], [-0.5, 0.5, 1]],
    ),
    "ordered": (d.Ordered(), [[1.0, 2.0, 2.0]], [[2.0, 1.0, 3.0], [0.0, 1.0, NAN], [0.0, 1.0, INF]]),
    "Cholesky factor": (d.CholeskyFactor(), [LOWER], [UPPER, [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [NAN, 1.0]]]),
    "correlation factor": (d.CorrelationCholesky(), [UNIT], [LOWER, [[1.0, 0.0], [0.6, -0.8]], UPPER]),
    "positive definite": (d.PositiveDefinite(), [[[2.0, 1.0], [1.0, 2.0]]], [[[1.0, 2.0], [2.0, 1.0]], LOWER]),
    "sphere": (d.Sphere(), [[0.6, -0.8]], [[0.6, 0.7], [0.0, 0.0], [NAN, 0.0]]),
    "angle": (d.Angle(), [0.0, -7.0], [INF, NAN]),
    "boolean": (d.Boolean(), [0, 1], [2, -1]),
    "non-negative integer": (d.NonNegativeInteger(), [0.0, 7.0], [-1.0, 0.5, INF, NAN]),
    "integer interval": (d.IntegerInterval(1, 3), [1.0, 3.0], [0.0, 4.0, 1.5, NAN]),
    "counts": (d.CountVector(3), [[1.0, 2.0], [3.0, 0.0]], [[1.0, 1.0], [1.5, 1.5], [4.0, -1.0]]),
    "point": (d.Point(2.0), [2.0], [1.0, NAN]),
    "independent": (d.IndependentSupport(d.Positive(), 1), [[1.0, 2.0]], [[1.0, -2.0], [0.0, 0.0]]),
}


@pytest.mark.parametrize("name", INSIDE_AND_OUTSIDE)
def test_contains(name):
    support, inside, outside = INSIDE_AND_OUTSIDE[name]
    found = support.contains(jnp.asarray(np.array(inside + outside)))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [True] * len(inside) + [False] * len(outside))
    np.testing.assert_array_equal(support.contains(np.array(inside[0])), True)
    assert np.ndim(inside[0]) == support.event_ndims


def test_integers_and_booleans_are_looked_at_as_they_are():
    assert d.Positive().contains(3)
    assert d.Real().contains(np.arange(3)).all()
    np.testing.assert_array_equal(d.Boolean().contains(jnp.array([True, False])), [True, True])
    assert d.NonNegativeInteger().contains(jnp.array(4))
    np.testing.assert_array_equal(d.CountVector(jnp.array([3, 4])).contains(jnp.array([[1, 2], [1, 2]])), [True, False])


def test_edges_are_batches():
    interval = d.Interval(jnp.array([0.0, 1.0]), 3.0)
    np.testing.assert_array_equal(interval.contains(0.5), [True, False])
    np.testing.assert_array_equal(
        interval.contains(jnp.array([[0.5, 0.5], [2.0, 4.0]])), [[True, False], [True, False]]
    )
    inner = d.IndependentSupport(interval, 1)
    np.testing.assert_array_equal(inner.contains(jnp.array([[0.5, 0.5], [2.0, 2.0]])), [False, True])


CONTINUOUS = {
    "real": (d.Real(), (4,)),
    "real vector": (d.RealVector(), (4,)),
    "positive": (d.Positive(), (4,)),
    "non-negative": (d.NonNegative(), (4,)),
    "unit interval": (d.UnitInterval(), (4,)),
    "interval": (d.Interval(np.array([1.0, -3.0, -1.0, 0.0], np.float32), 5.0), (4,)),
    "greater than": (d.GreaterThan(3.0), (4,)),
    "less than": (d.LessThan(-3.0), (4,)),
    "simplex": (d.Simplex(), (4,)),
    "ordered": (d.Ordered(), (4,)),
    "Cholesky factor": (d.CholeskyFactor(), (6,)),
    "correlation factor": (d.CorrelationCholesky(), (6,)),
    "positive definite": (d.PositiveDefinite(), (3,)),
    "sphere": (d.Sphere(), (4,)),
    "angle": (d.Angle(), (2,)),
    "independent": (d.IndependentSupport(d.UnitInterval(), 1), (4,)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_map_reaches_the_support_and_nothing_else(name):
    support, shape = CONTINUOUS[name]
    # Normal numbers, and patterns of -80, -20, 20 and 80, beyond what float32 can tell from an edge.
    rng = np.random.default_rng(0)
    size = 2.0 if name == "positive definite" else 80.0
    u = np.concatenate([rng.normal(size=(20, *shape)), rng.choice([-size, -size / 4, size / 4, size], (20, *shape))])

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def program(u):
        x, log_det = support.bijector.forward_and_log_det(u)
        return x, log_det, support.contains(x), support.bijector.forward(support.bijector.inverse(x[:20]))

    x, log_det, inside, again = program(jnp.asarray(u, jnp.float32))
    assert bool(inside.all())
    assert log_det.shape == inside.shape
    assert np.isfinite(log_det).all()
    assert support.bijector.event_ndims_out == support.event_ndims
    assert support.bijector.inverse_shape(x.shape) == u.shape
    np.testing.assert_allclose(again, x[:20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["unit interval", "interval", "greater than", "less than", "simplex"])
def test_the_map_stays_off_the_edges(name):
    """A density that is infinite on an edge must not be reached by rounding."""
    support, shape = CONTINUOUS[name]
    u = jnp.stack([jnp.full(shape, -100.0), jnp.full(shape, 100.0)])[:, :4]
    x = np.asarray(support.bijector.forward(u), np.float32)
    if name in ("unit interval", "simplex"):
        assert (x > 0).all()
        assert (x < 1).all() or name == "simplex"
    if name in ("interval", "greater than"):
        low = np.asarray(support.low)
        assert (x[:, low != 0] > low[low != 0]).all() if low.ndim else (x > low).all()
    if name in ("interval", "less than"):
        assert (x < np.asarray(support.high)).all()


@pytest.mark.parametrize("name", ["boolean", "non-negative integer", "integer interval", "counts", "point"])
def test_discrete_supports_have_no_map(name):
    support = INSIDE_AND_OUTSIDE[name][0]
    assert support.is_discrete
    assert d.IndependentSupport(support, 1).is_discrete
    with pytest.raises(TypeError, match=r"bijector: the support is discrete; expected a continuous one"):
        support.bijector


@pytest.mark.parametrize("name", CONTINUOUS)
def test_supports_are_pytrees(name):
    support, _ = CONTINUOUS[name]
    assert not support.is_discrete
    again = jax.jit(lambda s: s)(support)
    assert jax.tree.structure(again) == jax.tree.structure(support)
    assert repr(again).startswith(type(support).__name__)


def test_errors():
    with pytest.raises(
        ValueError, match=r"Interval: high is of shape \(3,\); expected a shape that broadcasts with low"
    ):
        d.Interval(jnp.zeros(2), jnp.ones(3))
    with pytest.raises(ValueError, match=r"Interval: high is 1.0; expected numbers above low, here 2.0"):
        d.Interval(2.0, 1.0)
    with pytest.raises(ValueError, match="GreaterThan: low is nan; expected finite numbers"):
        d.GreaterThan(jnp.nan)
    with pytest.raises(TypeError, match="LessThan: high is None; expected a real number"):
        d.LessThan(None)
