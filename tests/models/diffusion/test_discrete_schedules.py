"""Survival schedules: ends, derivatives, inverses, digits near time 0."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import diffusion

SCHEDULES = {
    "linear": (diffusion.linear_survival(), lambda t: 1 - t),
    "cosine": (diffusion.cosine_survival(), lambda t: 1 - math.cos(math.pi / 2 * (1 - t))),
    "polynomial": (diffusion.polynomial_survival(3.0), lambda t: 1 - t**3),
    "geometric": (
        diffusion.geometric_survival(1e-3, 5.0),
        lambda t: (math.exp(-(1e-3 ** (1 - t)) * 5**t) - math.exp(-5)) / (math.exp(-1e-3) - math.exp(-5)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_survival_is_the_formula_and_falls_from_one_to_nothing(name):
    schedule, formula = SCHEDULES[name]
    times = jnp.linspace(0.0, 1.0, 21)
    expected = np.array([formula(t) for t in np.linspace(0, 1, 21)])
    np.testing.assert_allclose(schedule(times), expected, atol=3e-6)
    np.testing.assert_allclose(schedule.noise(times), 1 - expected, atol=3e-6)
    assert [float(f(t)) for f in (schedule, schedule.noise) for t in (0.0, 1.0)] == [1, 0, 0, 1]
    assert np.all(np.diff(np.asarray(schedule(times))) < 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_slope_and_rate_are_finite_differences(name):
    schedule, formula = SCHEDULES[name]
    for t in (0.05, 0.4, 0.9):
        slope = (formula(t + 1e-5) - formula(t - 1e-5)) / 2e-5
        np.testing.assert_allclose(schedule.slope(t), slope, rtol=1e-4)
        np.testing.assert_allclose(schedule.rate(t), -slope / (1 - formula(t)), rtol=1e-4)
    for t in (0.0, 1e-30, 1.0):
        assert np.isfinite([schedule.slope(t), schedule.rate(t)]).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverse_gives_the_time_back(name):
    schedule = SCHEDULES[name][0]
    times = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(
        schedule.inverse(schedule.noise(times)), times, atol=2e-3 if name == "polynomial" else 1e-4
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_near_time_0_keeps_its_digits(name, x64):
    schedule = SCHEDULES[name][0]
    times = np.array([1e-8, 1e-6, 1e-4, 1e-2])
    exact = np.asarray(schedule.noise(jnp.asarray(times)))
    assert exact.dtype == np.float64
    np.testing.assert_allclose(schedule.noise(jnp.asarray(times, jnp.float32)), exact, rtol=3e-5)


def test_schedules_compile_once_for_equal_numbers():
    assert jax.tree.structure(diffusion.polynomial_survival(2)) == jax.tree.structure(
        diffusion.polynomial_survival(2.0)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffusion.polynomial_survival(0), "power is 0; expected a positive number"),
        (lambda: diffusion.geometric_survival(-1.0, 2.0), "least is -1.0; expected a positive number"),
        (lambda: diffusion.geometric_survival(2.0, 1.0), "least is 2.0; expected a total below greatest=1.0"),
    ],
)
def test_bad_numbers_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
