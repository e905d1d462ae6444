"""Hierarchical Gaussian filters against Kalman filters, and against the published equations in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Bernoulli
from jaxprob.inference import hgf, kalman
from jaxprob.models.state_space import LinearGaussian
from tests.inference.hgf import _loop


def generalised():
    return {
        "x3": hgf.state(mean=-0.2, precision=3.0, log_variance=-3.0),
        "x4": hgf.state(mean=0.4, precision=0.8, log_variance=-2.0),
        "u": hgf.continuous("x1", log_variance=-0.5),
        "x2": hgf.state(mean=0.1, precision=1.5, log_variance=-2.5, volatility_parents={"x3": 1.2}),
        "x1": hgf.state(
            mean=0.2,
            precision=2.0,
            log_variance=-1.5,
            drift=0.05,
            autoregression=0.9,
            center=0.3,
            value_parents={"x4": (0.4, jnp.tanh)},
            volatility_parents={"x2": 0.7},
        ),
    }


def three_levels():
    return {
        "u": hgf.binary("x2"),
        "x2": hgf.state(log_variance=-2.0, volatility_parents={"x3": 0.9}),
        "x3": hgf.state(mean=1.0, log_variance=-3.0),
    }


def in_columns(beliefs, names):
    return np.stack([*(beliefs.mean[name] for name in names), *(beliefs.precision[name] for name in names)], 1)


@pytest.mark.parametrize("autoregression", [1.0, 0.8])
def test_a_level_of_fixed_volatility_is_a_kalman_filter(x64, rng, autoregression):
    times = 200
    ys = np.cumsum(rng.normal(size=times))
    ys[rng.uniform(size=times) < 0.1] = np.nan
    steps = rng.uniform(0.2, 3, times)
    level = hgf.state(mean=0.5, precision=0.7, log_variance=-0.4, autoregression=autoregression, center=2.0)
    network = hgf.Network({"u": hgf.continuous({"level": 1.5}, log_variance=0.3, offset=-1.0), "level": level})
    found = hgf.filter(network, ys, time_steps=steps)
    keep, noise = autoregression**steps, np.exp(-0.4) * steps
    model = LinearGaussian(
        initial_mean=np.array([2 + keep[0] * (0.5 - 2)]),
        initial_covariance=np.array([[keep[0] ** 2 / 0.7 + noise[0]]]),
        dynamics=keep[1:, None, None],
        dynamics_covariance=noise[1:, None, None],
        dynamics_offset=(2 * (1 - keep[1:]))[:, None],
        emission=np.array([[1.5]]),
        emission_covariance=np.array([np.exp(0.3)]),
        emission_offset=np.array([-1.0]),
        time_varying=("dynamics", "dynamics_covariance", "dynamics_offset"),
    )
    expected = kalman.filter(model, ys)
    np.testing.assert_allclose(found.mean["level"], expected.mean[:, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(1 / found.precision["level"], expected.covariance[:, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(-np.cumsum(found.surprise), expected.log_likelihoods, rtol=1e-12)


@pytest.mark.parametrize("enhanced", [True, False])
def test_a_generalised_network(x64, enhanced):
    rng = np.random.default_rng(1)
    ys, steps = np.cumsum(0.5 * rng.normal(size=150)), rng.uniform(0.3, 2, 150)
    ys[[0, 40, 41, 42]] = np.nan
    found = hgf.filter(hgf.Network(generalised(), enhanced=enhanced), ys, time_steps=steps)
    rows, surprises = _loop.generalised(ys, steps, enhanced)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(in_columns(found, ("x1", "x2", "x3", "x4")), rows, rtol=1e-10)
    np.testing.assert_allclose(found.surprise, surprises, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("enhanced", [True, False])
def test_the_binary_filter_of_three_levels(x64, enhanced):
    ys = np.random.default_rng(2).binomial(1, np.repeat([0.9, 0.2, 0.8, 0.1], 50))
    found = hgf.filter(hgf.Network(three_levels(), enhanced=enhanced), ys)
    rows, surprises = _loop.binary(ys, -2.0, -3.0, 0.9, enhanced)
    np.testing.assert_allclose(in_columns(found, ("x2", "x3")), rows, rtol=1e-10)
    np.testing.assert_allclose(found.surprise, surprises, rtol=1e-10)


@pytest.mark.parametrize("enhanced", [True, False])
def test_noise_that_a_state_drives(x64, rng, enhanced):
    nodes = {
        "a": hgf.continuous("x1", log_variance=np.log(0.5)),
        "b": hgf.continuous({"x1": 2.0}, log_variance=-1.0, volatility_parents={"x2": 0.8}),
        "x1": hgf.state(log_variance=-2.0),
        "x2": hgf.state(log_variance=-3.0),
    }
    ys = rng.normal(size=(100, 2)) * [1, 3]
    found = hgf.filter(hgf.Network(nodes, enhanced=enhanced), ys)
    rows, surprises = _loop.noisy(ys, enhanced)
    np.testing.assert_allclose(in_columns(found, ("x1", "x2")), rows, rtol=1e-10)
    np.testing.assert_allclose(found.surprise, surprises, rtol=1e-10)


def test_categories_move_by_the_slope_and_curvature_of_their_log_probability(x64, rng):
    nodes = {"u": hgf.categorical({"c": 1.0, "a": 0.5, "b": 2.0})}
    nodes |= {name: hgf.state(mean=mean, log_variance=-1.0) for name, mean in (("a", 0.3), ("b", -0.2), ("c", 0.1))}
    ys = rng.integers(0, 3, 20)
    found = hgf.filter(hgf.Network(nodes), ys)
    mean, precision, strengths = np.array([0.1, 0.3, -0.2]), np.ones(3), np.array([1, 0.5, 2])
    for t, y in enumerate(ys):
        weights = np.exp(strengths * mean)
        p = weights / weights.sum()
        np.testing.assert_allclose(found.expected_mean["u"][t], p, rtol=1e-10)
        np.testing.assert_allclose(found.surprise[t], -np.log(p[y]), rtol=1e-10)
        precision = 1 / (1 / precision + np.exp(-1)) + strengths**2 * p * (1 - p)
        mean = mean + strengths * ((np.arange(3) == y) - p) / precision
        np.testing.assert_allclose([found.mean[name][t] for name in "cab"], mean, rtol=1e-10)
        np.testing.assert_allclose([found.precision[name][t] for name in "cab"], precision, rtol=1e-10)


def test_enhanced_precisions_stay_positive_where_standard_ones_do_not():
    """A level of which little is known before the first leap, and which moves little between times."""
    nodes = {
        "u": hgf.continuous("x1", log_variance=-3.0),
        "x1": hgf.state(precision=1.0, log_variance=-2.0, volatility_parents="x2"),
        "x2": hgf.state(precision=1.0, log_variance=-2.0),
    }
    ys = jnp.concatenate([jnp.full(5, 8.0), jnp.zeros(20), jnp.full(20, 3.0)])
    assert np.isnan(hgf.filter(hgf.Network(nodes, enhanced=False), ys).precision["x2"]).all()
    found = hgf.filter(hgf.Network(nodes), ys)
    assert (found.precision["x2"] > 0).all()
    assert np.isfinite(found.surprise).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_the_filter_and_keep_the_dtype(dtype):
    with jax.enable_x64(dtype == np.float64):
        ys = np.array([0.3, np.nan, 2.0], dtype)
        network = jax.tree.map(lambda leaf: leaf.astype(dtype), hgf.Network(generalised()))
        found = hgf.filter(network, ys, time_steps=np.array([1, 2, 0.5], dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype)}
        beliefs = hgf.init(network)
        for t, dt in enumerate((1.0, 2.0, 0.5)):
            beliefs = hgf.step(network, beliefs, ys[t], dt)
            jax.tree.map(lambda one, row, t=t: np.testing.assert_allclose(one, row[t], rtol=1e-5), beliefs, found)
        empty = hgf.filter(network, ys[:0])
        assert empty.mean["x1"].shape == (0,)
        assert hgf.log_likelihood(network, ys[:0]) == 0


def test_what_is_not_informed_is_predicted():
    """Of two branches only one is seen."""
    nodes = {"a": hgf.continuous("x"), "b": hgf.binary("y"), "z": hgf.state()}
    nodes |= {name: hgf.state(log_variance=0.0, volatility_parents="z") for name in "xy"}
    found = hgf.filter(hgf.Network(nodes), np.array([[np.nan, 1], [np.nan, np.nan]], np.float32))
    for name in "xz":
        np.testing.assert_array_equal(found.mean[name][1], found.expected_mean[name][1])
        np.testing.assert_array_equal(found.precision[name][1], found.expected_precision[name][1])
    assert found.mean["x"][0] == 0
    assert found.mean["y"][0] > 0
    assert found.mean["z"][0] != 0
    assert found.surprise[1] == 0


def test_gradients_and_many_subjects(x64):
    ys = np.random.default_rng(3).binomial(1, 0.7, size=(2, 30)).astype(float)
    ys[0, 5] = np.nan
    responses = np.array([[1.0, 0.0, np.nan]] * 10).reshape(30)
    network = hgf.Network(three_levels())

    def density(omega, ys, responses=None):
        choice = None if responses is None else (lambda beliefs: Bernoulli(logits=3 * beliefs.expected_mean["x2"]))
        return hgf.log_likelihood(network.replace("x2", log_variance=omega), ys, responses, choice)

    together = jax.vmap(density, (None, 0))(-2.0, ys)
    np.testing.assert_allclose(together, [density(-2.0, one) for one in ys], rtol=1e-12)
    for given in (None, responses):
        slope = (density(-2.0 + 1e-5, ys[0], given) - density(-2.0 - 1e-5, ys[0], given)) / 2e-5
        np.testing.assert_allclose(jax.grad(density)(-2.0, ys[0], given), slope, rtol=1e-6)
    p = 1 / (1 + np.exp(-3 * hgf.filter(network, ys[0]).expected_mean["x2"]))
    expected = np.nansum(np.where(responses == 1, np.log(p), np.where(responses == 0, np.log(1 - p), np.nan)))
    np.testing.assert_allclose(density(-2.0, ys[0], responses), expected, rtol=1e-12)


def test_a_second_call_compiles_nothing(caplog):
    ys = jnp.array([0.1, 0.2])
    hgf.filter(hgf.Network(three_levels()).replace("x2", log_variance=-1.0), ys * 0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        hgf.filter(hgf.Network(three_levels()).replace("x2", log_variance=-3.0), ys * 0)
    assert not [record for record in caplog.records if "_filter" in record.message and "Compiling" in record.message]


def test_errors():
    level = hgf.state()
    with pytest.raises(ValueError, match="a parent of 'u' is 'x'"):
        hgf.Network({"u": hgf.continuous("x"), "level": level})
    with pytest.raises(ValueError, match="a parent of 'u' is 'v'"):
        hgf.Network({"u": hgf.continuous("v"), "v": hgf.binary("x"), "x": level})
    with pytest.raises(ValueError, match="cycle"):
        hgf.Network(
            {"u": hgf.continuous("x"), "x": hgf.state(volatility_parents="y"), "y": hgf.state(value_parents="x")}
        )
    with pytest.raises(ValueError, match="cycle"):
        hgf.Network({"u": hgf.continuous("x", volatility_parents="x"), "x": level})
    with pytest.raises(ValueError, match="all states"):
        hgf.Network({"x": level})
    with pytest.raises(ValueError, match="precision is 0"):
        hgf.state(precision=0.0)
    with pytest.raises(ValueError, match="value_parents is empty"):
        hgf.binary(())
    network = hgf.Network({"u": hgf.binary("x"), "x": level})
    with pytest.raises(ValueError, match=r"2 of 'u'; expected 0 to 1"):
        hgf.filter(network, jnp.array([0, 2]))
    with pytest.raises(ValueError, match=r"shape \(time, 1\)"):
        hgf.filter(network, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="time_steps"):
        hgf.filter(network, jnp.zeros(2), time_steps=jnp.array([1.0, -1.0]))
    with pytest.raises(TypeError, match="network"):
        hgf.filter(level, jnp.zeros(2))
    with pytest.raises(ValueError, match="responses or response"):
        hgf.log_likelihood(network, jnp.zeros(2), jnp.zeros(2))


def test_a_volatility_that_switches_is_followed():
    """Noise of variance 0.1 on a walk whose steps have variance 0.01 or 4, in blocks of 100: 5 series.

    The Kalman filter gets the best of 25 variances for each series, afterwards; the numbers of the network were chosen
    on other seeds. The mean gain is 0.22 with a standard deviation of 0.07 between series: false alarm below
    1e-6.
    """
    gains = []
    network = hgf.Network(
        {
            "u": hgf.continuous("x1", log_variance=np.log(0.1)),
            "x1": hgf.state(log_variance=-2.0, volatility_parents="x2"),
            "x2": hgf.state(log_variance=-3.0),
        }
    )
    single = hgf.Network({"u": hgf.continuous("x1", log_variance=np.log(0.1)), "x1": hgf.state()})
    grid = jnp.linspace(-5, 2, 25)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sd = np.repeat([0.1, 2, 0.1, 2, 0.1, 2, 0.1, 2, 0.1, 2], 100)
        ys = jnp.asarray(np.cumsum(sd * rng.normal(size=1000)) + np.sqrt(0.1) * rng.normal(size=1000), jnp.float32)
        fixed = jax.vmap(lambda omega, ys=ys: hgf.log_likelihood(single.replace("x1", log_variance=omega), ys))(grid)
        gains.append((hgf.log_likelihood(network, ys) - jnp.max(fixed)) / 1000)
    assert np.mean(gains) > 0.05
