"""LRU against a complex loop in float64 NumPy, and the laws of its first parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.models import sequence
from tests.models.sequence import _diagonal as check


def net_of(**options):
    return sequence.lru(**{"width": 3, "state": 5, **options})


@pytest.mark.parametrize(
    "options", [{"method": "sequential"}, {"method": "chunked", "chunk": 3}, {"method": "associative"}], ids=str
)
@pytest.mark.parametrize(("steps", "resets"), [(1, ()), (7, ()), (50, (0, 20, 49))])
def test_a_sequence_is_the_loop(options, steps, resets):
    check.agrees(net_of(**options), check.lru, steps, resets, tolerance=1e-5)


@pytest.mark.parametrize(("steps", "resets"), [(1024, ()), (1024, (0, 300, 1023)), (16_384, ())])
@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_long_sequences(method, steps, resets):
    check.agrees(net_of(radius_min=0.9, radius_max=0.9999, method=method), check.lru, steps, resets)


@pytest.mark.slow
@pytest.mark.parametrize("resets", [(), (0, 9000)])
def test_very_long_sequences_as_a_tree(resets):
    check.agrees(net_of(radius_min=0.9, radius_max=0.9999, method="associative"), check.lru, 16_384, resets)


def test_steps_are_the_loop():
    check.steps_agree(net_of(), check.lru, 30)


def test_a_sequence_goes_on():
    check.goes_on(net_of())


def test_gradients_are_equal_between_methods():
    check.gradients_agree([net_of(method=method) for method in check.METHODS], 40, (0, 13))


@pytest.mark.usefixtures("x64")
def test_gradients_are_central_differences():
    check.gradients_are_differences(net_of(width=2, state=3, radius_min=0.5), 20)


def test_decays_begin_uniform_on_a_ring():
    """Squares of moduli and phases by Kolmogorov and Smirnov's test, at a level of 1 in 1,000 each, seed fixed."""
    net = sequence.lru(2, state=2000, radius_min=0.6, radius_max=0.95, phase_max=0.5)
    p = check.numbers(net.init(jax.random.key(1), jnp.zeros((1, 2))))
    squares = np.exp(-2 * np.exp(p["decay_log_rate"]))
    assert stats.kstest(squares, stats.uniform(0.6**2, 0.95**2 - 0.6**2).cdf).pvalue > 1e-3
    phases = np.exp(p["decay_log_phase"])
    assert stats.kstest(phases, stats.uniform(0, 0.5).cdf).pvalue > 1e-3
    assert abs(stats.pearsonr(squares, phases).statistic) < 0.1


@pytest.mark.parametrize("radii", [(0.0, 1e-3), (0.0, 0.99), (0.999, 0.9999), (0.0, 1 - 1e-9)])
def test_extreme_rings_are_finite(radii):
    net = net_of(state=1000, radius_min=radii[0], radius_max=radii[1])
    params = net.init(jax.random.key(0), jnp.zeros((1, 3)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    grads = jax.grad(lambda params: jnp.sum(net.apply(params, jnp.ones((9, 3)))[0]))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("log_rate", [-40.0, -18.0, -8.0, 0.0, 4.0])
def test_the_factor_of_the_inputs_keeps_its_digits_near_one(log_rate):
    """sqrt(1 - |a|^2) is 0 in float32 for |a| = exp(-1e-8), unless by expm1; the derivative is finite."""
    net = sequence.lru(1, state=1)
    params = net.init(jax.random.key(0), jnp.zeros((1, 1)))
    one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    params["params"] |= {"decay_log_rate": jnp.full(1, log_rate), "input_real": one, "input_imaginary": none}

    def state(log_rate):
        changed = {"params": params["params"] | {"decay_log_rate": log_rate}}
        return net.apply(changed, jnp.ones((1, 1)))[1].real[0]

    value, slope = jax.value_and_grad(state)(params["params"]["decay_log_rate"])
    rate = math.exp(log_rate)
    np.testing.assert_allclose(value, math.sqrt(-math.expm1(-2 * rate)), rtol=1e-5)
    assert 0 <= slope[0] < np.inf
    if log_rate >= -8:
        wanted = rate * math.exp(-2 * rate) / math.sqrt(-math.expm1(-2 * rate))
        np.testing.assert_allclose(slope[0], wanted, rtol=1e-5, atol=1e-37)


def test_white_noise_keeps_its_size():
    """The stationary state of unit noise has variance 1 in each mode (B of one input, of modulus one).

    4,000 series of a process that forgets in 10 steps: a standard error of 2 %, at five of them 1 in 10^6.
    """
    net = sequence.lru(1, state=4, radius_min=0.5, radius_max=0.9)
    params = net.init(jax.random.key(0), jnp.zeros((1, 1)))
    params["params"] |= {"input_real": jnp.ones((4, 1)), "input_imaginary": jnp.zeros((4, 1))}
    noise = jax.random.normal(jax.random.key(1), (4000, 100, 1))
    states = jax.vmap(lambda xs: net.apply(params, xs)[1])(noise)
    np.testing.assert_allclose(np.mean(abs(check.as_numbers(states)) ** 2, 0), 1.0, atol=0.12)


def test_bfloat16_inputs_and_long_memories():
    net = net_of(width=2, state=2)
    params, *_ = check.problem(net, 1)
    # exp(-1e-4) and exp(-1e-3) a step.
    params["params"] |= {"decay_log_rate": jnp.log(jnp.array([1e-4, 1e-3]))}
    check.low_precision(net, check.lru, params)


def test_batches():
    check.batches_are_loops(net_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": -1}, r"width is -1; expected a whole number, 1 or more"),
        ({"state": 0}, r"state is 0; expected a whole number, 1 or more"),
        ({"radius_min": -0.1}, r"radius_min is -0\.1; expected a number from 0 to less than 1"),
        ({"radius_max": 1.0}, r"radius_max is 1\.0; expected a number from 0 to less than 1"),
        ({"radius_min": 0.99}, r"radius_min is 0\.99; expected less than radius_max, 0\.99"),
        ({"phase_max": 0.0}, r"phase_max is 0\.0; expected a positive number"),
        ({"method": "newton"}, r"method is newton; expected one of 'auto'"),
        ({"chunk": 2.0}, r"chunk is 2\.0; expected a whole number, 1 or more"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=r"^sequence\.lru: " + message) as error:
        net_of(**options)
    assert "\n" not in str(error.value)
