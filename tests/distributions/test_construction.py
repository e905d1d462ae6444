"""How distributions are built and called: shapes, dtypes, checks, error lines; and what is not imported for it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import distributions as d
from tests.distributions._cases import CASES

F32 = jnp.float32


def abstract(name, dtype, shapes):
    """A distribution of the table with parameters of given shapes, for use inside `eval_shape`."""
    values = [
        np.full(shape, values[0], dtype) for values, shape in zip(CASES[name].parameters.values(), shapes, strict=True)
    ]
    return CASES[name].make(**dict(zip(CASES[name].parameters, map(jnp.asarray, values), strict=True)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", CASES)
def test_shapes_and_dtypes(name, dtype):
    """Traced only: parameters (2, 1), (3,), (), ... make a batch (2, 3), or what is left of it."""
    count = len(CASES[name].parameters)
    shapes = [(2, 1), (3,), (), (1, 3)][:count]
    batch = np.broadcast_shapes(*shapes)
    with jax.enable_x64(dtype == jnp.float64):

        def program(key):
            distribution = abstract(name, dtype, shapes)
            x = distribution.sample(key, (5,))
            scalar = jnp.zeros((), dtype)
            names = [n for n in ("cdf", "quantile") if n not in CASES[name].missing]
            return {
                "draw": distribution.sample(jax.random.fold_in(key, 1)),
                "draws": x,
                "log_prob": distribution.log_prob(x),
                "log_prob of a scalar": distribution.log_prob(scalar),
                "log_prob of more axes": distribution.log_prob(x[None]),
                **{n: getattr(distribution, n)() for n in ("mean", "variance", "entropy")},
                **{n: getattr(distribution, n)(scalar) for n in names},
            }

        found = jax.eval_shape(program, jax.random.key(0))
        expected = {"draws": (5, *batch), "log_prob": (5, *batch), "log_prob of more axes": (1, 5, *batch)}
        for what, array in found.items():
            assert array.shape == expected.get(what, batch), what
            assert array.dtype == dtype, what
            assert not array.weak_type or what in ("mean", "variance", "entropy"), what
        distribution = abstract(name, dtype, shapes)
        assert (distribution.batch_shape, distribution.event_shape) == (batch, ())
        assert [p.shape for p in distribution.parameters] == shapes


@pytest.mark.parametrize("name", CASES)
def test_python_numbers_take_the_dtype_of_what_they_meet(name):
    case = CASES[name]
    numbers = {parameter: float(values[0]) for parameter, values in case.parameters.items()}
    inside = float(case.points(np.float32)[3, 0])
    with jax.enable_x64(True):
        draw, low, high, whole = jax.eval_shape(
            lambda key: (
                case.make(**numbers).sample(key),
                case.make(**numbers).log_prob(jnp.asarray(inside, F32)),
                case.make(**numbers).log_prob(inside),
                case.make(**numbers).log_prob(jnp.asarray(1)),
            ),
            jax.random.key(0),
        )
    assert (draw.dtype, low.dtype, high.dtype, whole.dtype) == (np.float64, np.float32, np.float64, np.float64)


def test_integers_are_data_and_parameters():
    np.testing.assert_allclose(d.Normal(0, 2).log_prob(np.array([0, 1])), [-1.6120857, -1.7370857], rtol=1e-6)
    assert d.Normal(jnp.arange(3), 1).sample(jax.random.key(0)).dtype == F32


def test_shapes_of_draws():
    for shape, expected in ((np.int64(3), (3,)), ([2, 3], (2, 3)), ((), ())):
        assert d.Normal().sample(jax.random.key(0), shape).shape == expected


def test_lists_are_parameters():
    assert d.Normal([0.0, 1.0], 1.0).batch_shape == (2,)


def line(error, match, *arguments, **keywords):
    make, *arguments = arguments
    with pytest.raises(error) as raised:
        make(*arguments, **keywords)
    assert str(raised.value).startswith(match), str(raised.value)
    assert "\n" not in str(raised.value)


def test_errors_of_sizes():
    line(
        ValueError,
        "Normal: scale is of shape (4,); expected a shape that broadcasts with loc of shape (3,).",
        d.Normal,
        jnp.zeros(3),
        jnp.ones(4),
    )
    line(ValueError, "StudentT: scale is of shape (2,); expected", d.StudentT, jnp.ones(3), 0.0, jnp.ones(2))
    line(ValueError, "Uniform: high is of shape (3,); expected", d.Uniform, jnp.zeros(2), jnp.ones(3))
    # Sizes are known inside jit as well.
    line(ValueError, "Normal: scale is of shape (4,)", jax.jit(d.Normal), jnp.zeros(3), jnp.ones(4))


def test_errors_of_values():
    line(ValueError, "Normal: scale is -1.0; expected positive numbers. Build it", d.Normal, 0.0, -1.0)
    line(ValueError, "Normal: scale is 0; expected positive numbers.", d.Normal, 0.0, 0)
    line(ValueError, "Normal: loc is nan; expected finite numbers.", d.Normal, jnp.nan)
    line(ValueError, "Gamma: rate is -2.0 at index (1,); expected positive", d.Gamma, 1.0, jnp.array([1.0, -2.0]))
    line(ValueError, "Beta: concentration0 is nan at index (0, 1); expected", d.Beta, 1.0, np.array([[1.0, np.nan]]))
    line(ValueError, "Exponential: rate is inf; expected positive numbers.", d.Exponential, np.inf)
    line(ValueError, "Uniform: high is 0.0; expected numbers above low, here 0.0.", d.Uniform, 0.0, jnp.zeros(2))
    line(ValueError, "TruncatedNormal: high is 1.0; expected numbers above low", d.TruncatedNormal, 0.0, 1.0, 2.0, 1.0)
    line(ValueError, "VonMises: concentration is -1.0; expected non-negative", d.VonMises, 0.0, -1.0)
    line(ValueError, "Normal: scale is -1.0 at index (2,)", d.Normal, 0.0, jnp.array([1, 1, -1], jnp.bfloat16))
    # A Python number is concrete inside jit too.
    line(ValueError, "Normal: scale is -1.0", jax.jit(lambda x: d.Normal(x, -1.0)), 0.0)


def test_errors_of_types():
    line(TypeError, "Normal: loc is None; expected a real number or an array of them.", d.Normal, None)
    line(TypeError, "Normal: scale is one; expected a real number", d.Normal, 0.0, "one")
    line(TypeError, "Normal: loc is 1j; expected a real number", d.Normal, 1j)
    line(TypeError, "Normal: loc is a complex64 array of shape (2,); expected", d.Normal, jnp.ones(2, complex))
    line(TypeError, "Normal: loc is an object of type dict; expected", d.Normal, {})
    line(TypeError, "Normal.sample: key is 0; expected one random key.", d.Normal().sample, 0)
    line(TypeError, "Normal.log_prob: value is None; expected a number", d.Normal().log_prob, None)
    line(TypeError, "Flat: on is 3; expected a support.", d.Flat, 3)
    line(TypeError, "Flat.sample: the distribution is improper; expected", d.Flat().sample, jax.random.key(0))


def test_errors_of_calls():
    normal = d.Normal(jnp.zeros(3), 1.0)
    line(
        ValueError,
        "Normal.log_prob: value is of shape (2,); expected a shape that broadcasts with (3,).",
        normal.log_prob,
        jnp.zeros(2),
    )
    line(ValueError, "Normal.cdf: value is of shape (2,); expected", normal.cdf, jnp.zeros(2))
    line(ValueError, "Normal.quantile: value is of shape (2,); expected", normal.quantile, jnp.zeros(2))
    line(
        NotImplementedError,
        "Gamma.quantile: the distribution is a Gamma; expected one whose",
        d.Gamma(1.0).quantile,
        0.5,
    )
    line(NotImplementedError, "Flat.mean: the distribution is a Flat; expected one whose mean", d.Flat().mean)
    line(ValueError, "Flat: size is (); expected at least 1 axes.", d.Flat, d.Simplex())
    line(ValueError, "Delta: event_ndims is 2; expected a number from 0 to 1.", d.Delta, jnp.zeros(2), 2)


@pytest.mark.parametrize("shape", [2.0, (2, -1), "ab", None, -1])
def test_errors_of_sample_shapes(shape):
    line(ValueError, "Normal.sample: shape is ", d.Normal().sample, jax.random.key(0), shape)


def test_tracers_and_rebuilding_are_never_checked():
    negative = jax.jit(d.Normal)(0.0, -1.0)
    assert float(negative.scale) == -1.0
    leaves, structure = jax.tree.flatten(d.Normal(jnp.zeros(3), 1.0))
    assert jax.tree.unflatten(structure, [object(), None]).scale is None
    assert jax.tree.map(lambda leaf: leaf.shape, d.Normal(jnp.zeros(3), 1.0)).loc == (3,)
    assert len(leaves) == 2


def test_parameters_keep_their_shapes_and_freeze():
    normal = d.Normal(jnp.zeros((2, 1)), jnp.ones(3))
    assert (normal.loc.shape, normal.scale.shape, normal.batch_shape, normal.shape) == ((2, 1), (3,), (2, 3), (2, 3))
    with pytest.raises(AttributeError):
        normal.loc = 1.0


def test_flat_and_delta():
    flat = d.Flat(d.Simplex(), (2, 3))
    assert (flat.batch_shape, flat.event_shape) == ((2,), (3,))
    np.testing.assert_array_equal(flat.log_prob(jnp.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]])), [0, -np.inf])
    assert d.Flat(size=3).log_prob(jnp.zeros((4, 3))).shape == (4, 3)
    assert np.isnan(d.Flat().log_prob(np.nan))
    assert d.Flat(d.Interval(jnp.zeros(4), 1.0)).log_prob(0.5).shape == (4,)
    assert float(jax.grad(d.Flat(d.Positive()).log_prob)(2.0)) == 0

    delta = d.Delta(jnp.arange(3.0), event_ndims=1)
    np.testing.assert_array_equal(delta.log_prob(jnp.array([[0.0, 1, 2], [0, 1, 3]])), [0, -np.inf])
    assert delta.is_discrete
    assert d.Delta(3).sample(jax.random.key(0), (2,)).dtype == jnp.int32
    np.testing.assert_array_equal(d.Delta(3.0).cdf(jnp.array([2.9, 3.0])), [0, 1])
    assert float(d.Delta(3.0).mean() + d.Delta(3.0).variance() + d.Delta(3.0).entropy()) == 3.0
    assert float(d.Delta(3.0).quantile(0.2)) == 3.0


def test_supports_of_the_distributions():
    expected = {"Beta": "UnitInterval", "Uniform": "Interval", "TruncatedNormal": "Interval", "VonMises": "Angle"}
    expected |= {"TruncatedNormal above": "GreaterThan", "TruncatedNormal below": "LessThan"}
    expected |= dict.fromkeys(["HalfNormal", "HalfCauchy", "Exponential"], "NonNegative")
    expected |= dict.fromkeys(["LogNormal", "Gamma", "InverseGamma", "Weibull"], "Positive")
    for name, case in CASES.items():
        assert type(case.build(np.float32).support).__name__ == expected.get(name, "Real")
    assert type(d.TruncatedNormal(0.0, 1.0, -np.inf, 2.0).support).__name__ == "LessThan"
    assert type(d.TruncatedNormal().support).__name__ == "Real"


def test_nothing_heavy_is_imported_and_no_backend_started():
    program = """
import sys, jaxprob
from jaxprob import distributions as d
import jax
assert not jax._src.xla_bridge.backends_are_initialized()
jax.config.update("jax_platforms", "cpu")
d.Normal(0.0, 1.0).log_prob(1.0), d.HalfCauchy(1.0).log_prob(1.0), d.Gamma(1.0).log_prob(1.0)
assert not {"distrax", "tensorflow_probability", "flax", "orbax", "scipy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
