"""The path-integral sampler: without control, and with the control that is exact for a Gaussian target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference.diffusion import path_integral_sampler
from tests.inference.diffusion._densities import CENTER, LOG_Z, MEAN, SCALE, VARIANCE, ZERO, Control, gap, log_density

OPTIONS = {"initial": jnp.asarray(CENTER, jnp.float32), "scale": SCALE}


def test_without_control_the_weight_is_the_ratio_of_target_to_reference():
    sampler = path_integral_sampler(log_density, network=ZERO, steps=5, **OPTIONS)
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 5000)
    x = np.asarray(draws.positions, float)
    reference = stats.norm(CENTER, SCALE)
    target = stats.norm(CENTER + SCALE * MEAN, SCALE * np.sqrt(VARIANCE))
    expected = LOG_Z + (target.logpdf(x) - reference.logpdf(x)).sum(axis=1)
    np.testing.assert_allclose(draws.log_weights, expected, atol=1e-4)
    # Two tests at 1 in 10,000.
    assert all(stats.kstest(x[:, i], stats.norm(CENTER[i], SCALE).cdf).pvalue > 1e-4 for i in range(2))


def exact(z, time):
    """The control for a Gaussian target: the ratio to N(0, 1) is a Gaussian of z at time 1, and wider before."""
    variance = 1 / (1 / VARIANCE - 1)
    mean = variance * MEAN / VARIANCE
    mean, variance = jnp.asarray(mean, z.dtype), jnp.asarray(variance, z.dtype)
    return (mean - z) / (variance + 1 - time)


def test_with_the_exact_control_weights_become_equal_as_steps_become_short():
    few, many = (
        path_integral_sampler(log_density, network=Control(exact), steps=steps, **OPTIONS) for steps in (40, 160)
    )
    (gap_few, spread_few), (gap_many, spread_many) = gap(few), gap(many)
    # The variance of a log weight goes as the length of a step, and the gap is half of it.
    assert 0.0 < gap_many < 0.02
    assert 2.5 < gap_few / gap_many < 6
    assert 1.6 < spread_few / spread_many < 2.4


def test_the_control_is_asked_for_at_the_time_a_step_begins():
    seen = Control(lambda z, time: jnp.full_like(z, jnp.where((time == 0) | (time == 0.5), 0, 1)))
    draws = []
    for network in (ZERO, seen):
        sampler = path_integral_sampler(log_density, network=network, steps=2, **OPTIONS)
        draws.append(sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 10).positions)
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(ValueError, match=r"^path_integral_sampler: steps is .*; expected a whole number, 1 or more"):
        path_integral_sampler(log_density, steps=steps, **OPTIONS)
