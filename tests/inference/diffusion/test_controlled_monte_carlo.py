"""Controlled Monte Carlo diffusions: one step by hand, and the drift that is exact for a Gaussian target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.inference.diffusion import controlled_monte_carlo
from tests.inference.diffusion._densities import CENTER, LOG_Z, MEAN, SCALE, VARIANCE, Control, gap, log_density

OPTIONS = {"initial": jnp.asarray(CENTER, jnp.float32), "scale": SCALE}


def test_one_step_has_the_law_and_the_mean_weight_given_its_end():
    """In one dimension z_0 given z_1 is Gaussian, and the mean weight given z_1 has a closed form."""
    size, slope, shift = 0.2, 0.5, 0.3

    def density(x):
        return -0.5 * x**2 / 0.49

    network = Control(lambda z, time: slope * z + shift + 0.1 * time)
    sampler = controlled_monte_carlo(density, initial=jnp.zeros(()), steps=1, step_size=size, network=network)
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 20_000)
    end = np.asarray(draws.positions, float)
    # pi_0 is N(0, 1), the drift there - z + slope z + shift.
    gain, offset = 1 + size * (slope - 1), size * shift
    law = stats.norm(offset, np.sqrt(gain**2 + 2 * size))
    assert stats.kstest(end, law.cdf).pvalue > 1e-4
    # Integrating z_0 out of B_0 gamma / (p(z_0) F_0) under p(z_0 | z_1) leaves gamma(z_1) / p(z_1).
    weights = np.exp(np.asarray(draws.log_weights, float)) / np.exp(-0.5 * end**2 / 0.49 - law.logpdf(end))
    moments = np.stack([weights - 1, (weights - 1) * end, (weights - 1) * end**2])
    z = moments.mean(axis=1) / (moments.std(axis=1) / np.sqrt(len(end)))
    assert (np.abs(z) < 4).all()  # fails once in 5,000
    assert weights.std() > 0.05


def exact(steps, size):
    """The drift that carries the annealed Gaussian laws along, in time k * size."""
    mean, variance = MEAN, VARIANCE

    def control(z, time):
        precision = 1 + time * (1 / variance - 1)
        slope_of_precision = 1 / variance - 1
        moved = time * mean / variance / precision
        velocity = mean / variance / precision**2
        # d log(sd) / d time = - precision' / (2 precision).
        return (velocity - slope_of_precision / (2 * precision) * (z - moved)) / (steps * size)

    def in_dtype(z, time):
        return control(z, time).astype(z.dtype)

    return Control(in_dtype)


def test_with_the_exact_drift_weights_become_equal_as_steps_become_short():
    few, many = (
        controlled_monte_carlo(
            log_density, network=exact(steps, 2 / steps), steps=steps, step_size=2 / steps, **OPTIONS
        )
        for steps in (40, 160)
    )
    (gap_few, spread_few), (gap_many, spread_many) = gap(few), gap(many)
    # The variance of a log weight goes as the length of a step, and the gap is half of it.
    assert 0.0 < gap_many < 0.05
    assert 2.5 < gap_few / gap_many < 6
    assert 1.6 < spread_few / spread_many < 2.4


def test_without_a_drift_slow_annealing_is_nearly_exact():
    sampler = controlled_monte_carlo(
        log_density, network=Control(lambda z, time: jnp.zeros_like(z)), steps=64, step_size=0.03, **OPTIONS
    )
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 4000)
    assert abs(draws.log_evidence - LOG_Z) < 4 * draws.log_evidence_error < 0.1
    mean = draws.population.expectation()
    number = 4000 * float(draws.effective_sample_size)
    assert number > 1000
    spread = SCALE * np.sqrt(VARIANCE / number)
    assert (np.abs(np.asarray(mean) - CENTER - SCALE * MEAN) < 4.5 * spread).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number, 1 or more"),
        ({"step_size": -1.0}, "step_size is -1.0; expected a positive number"),
    ],
)
def test_bad_schedules_are_told_in_one_line(options, message):
    with pytest.raises(ValueError, match=f"^controlled_monte_carlo: {message}"):
        controlled_monte_carlo(log_density, **OPTIONS, **options)
