"""The denoising diffusion sampler: without control, and with the control that is exact for a Gaussian target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference.diffusion import denoising_diffusion_sampler
from tests.inference.diffusion._densities import CENTER, LOG_Z, MEAN, SCALE, VARIANCE, ZERO, Control, gap, log_density

OPTIONS = {"initial": jnp.asarray(CENTER, jnp.float32), "scale": SCALE}


def test_without_control_the_weight_is_the_ratio_of_target_to_reference():
    sampler = denoising_diffusion_sampler(log_density, network=ZERO, steps=5, **OPTIONS)
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 5000)
    x = np.asarray(draws.positions, float)
    reference = stats.norm(CENTER, SCALE)
    target = stats.norm(CENTER + SCALE * MEAN, SCALE * np.sqrt(VARIANCE))
    expected = LOG_Z + (target.logpdf(x) - reference.logpdf(x)).sum(axis=1)
    np.testing.assert_allclose(draws.log_weights, expected, atol=1e-4)
    # Two tests at 1 in 10,000.
    assert all(stats.kstest(x[:, i], stats.norm(CENTER[i], SCALE).cdf).pvalue > 1e-4 for i in range(2))


def exact(steps):
    """The control for a Gaussian target: the slope of the log ratio of the noised target to N(0, 1)."""
    left = np.geomspace(4.0, 1e-3, steps)

    def control(z, time):
        signal = jnp.exp(-jnp.asarray(left, z.dtype)[jnp.round(time * steps).astype(jnp.int32)])
        mean, variance = (jnp.asarray(v, z.dtype) for v in (MEAN, VARIANCE))
        return z - (z - signal * mean) / (signal**2 * variance + 1 - signal**2)

    return Control(control)


def test_with_the_exact_control_weights_become_equal_as_steps_become_short():
    few, many = (
        denoising_diffusion_sampler(log_density, network=exact(steps), steps=steps, **OPTIONS) for steps in (40, 160)
    )
    (gap_few, spread_few), (gap_many, spread_many) = gap(few), gap(many)
    # The variance of a log weight goes as the length of a step, and the gap is half of it.
    assert 0.0 < gap_many < 0.02
    assert 2.5 < gap_few / gap_many < 6
    assert 1.6 < spread_few / spread_many < 2.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number, 1 or more"),
        ({"horizon": 0.0}, "horizon is 0.0; expected a positive number"),
        ({"last": 5.0}, r"last is 5.0; expected less than horizon, 4.0"),
    ],
)
def test_bad_schedules_are_told_in_one_line(options, message):
    with pytest.raises(ValueError, match=f"^denoising_diffusion_sampler: {message}"):
        denoising_diffusion_sampler(log_density, **OPTIONS, **options)
