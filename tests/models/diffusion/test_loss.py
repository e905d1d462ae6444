"""The loss of denoisers: what it is smallest for, at which times, with which conditions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.models import diffusion


@core.pytree
class Recorder(diffusion.NoisingProcess):
    """A process whose loss is what the denoiser says, so that a test sees what it was given."""

    def corrupt(self, key, x0, t):
        return x0

    def loss(self, output, x0, xt, t):
        return output

    def output_shape(self, shape):
        return ()


def linear(params, x, t, condition):
    """The best denoiser of N(0, 0.5^2) in v form, plus what params add."""
    angle = 0.5 * jnp.pi * t
    alpha, sigma = jnp.cos(angle), jnp.sin(angle)
    variance = 0.25 * alpha**2 + sigma**2
    return (alpha * sigma * (1 - 0.25) / variance + params) * x


@pytest.mark.parametrize("weighting", ["simple", "bound", "min_snr"])
def test_the_exact_denoiser_has_the_smallest_loss(weighting):
    process = diffusion.variance_preserving(diffusion.cosine(), "v", weighting)
    objective = diffusion.loss(process, linear)
    keys = jax.random.split(jax.random.key(0), 64)

    @jax.jit
    @jax.vmap
    def slope(key):
        own, other = jax.random.split(key)
        batch = 0.5 * jax.random.normal(own, (512, 1))
        return jax.grad(objective)(jnp.float32(0.0), batch, other)

    slopes = np.asarray(slope(keys))
    # Five standard errors: a false alarm once in a million. Half of the noise's scale gives a slope 40 errors away.
    assert abs(slopes.mean()) < 5 * slopes.std(ddof=1) / 8

    @jax.jit
    @jax.vmap
    def losses(key):
        own, other = jax.random.split(key)
        batch = 0.5 * jax.random.normal(own, (4096, 1))
        return jax.vmap(lambda p: objective(p, batch, other))(jnp.float32([-0.5, 0.0, 0.5]))

    # One draw of the bound has the wrong order one time in ten; of the mean of 64 the gap is ten standard errors.
    values = np.asarray(losses(jax.random.split(jax.random.key(1), 64))).mean(0)
    assert values[1] < min(values[0], values[2])


def test_times_are_one_in_each_part():
    objective = diffusion.loss(Recorder(), lambda params, x, t, condition: t**params)
    keys = jax.random.split(jax.random.key(0), 200)
    batch = jnp.zeros((8, 1))
    values = np.asarray(jax.jit(jax.vmap(lambda key: objective(jnp.float32(1.0), batch, key)))(keys))
    # Times that are independent have means as far as 0.3 from a half.
    assert np.all(np.abs(values - 0.5) <= 1 / 16)
    assert values.std() > 0.5 * np.sqrt(1 / 12) / 8 / np.sqrt(8)
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(1 / 12) / 8 / np.sqrt(8 * 200)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65_536, 100_000])
def test_every_part_has_a_time_and_neighbours_are_apart(count):
    # The slope by the weight of an example is its time over the size of the batch.
    objective = diffusion.loss(Recorder(), lambda params, x, t, condition: params[x] * t)
    found = jax.grad(objective)(jnp.ones(count), jnp.arange(count), jax.random.key(6))
    found = count * np.asarray(found, np.float64)
    # In units of parts; float32 rounds times near 1 by 6e-8.
    away = np.abs(count * np.sort(found) - np.arange(count) - 0.5)
    assert away.max() < 0.5 + 2e-7 * count
    if count > 50:
        around = np.abs(np.diff(found))
        assert np.minimum(around, 1 - around).min() > 0.1


def test_times_have_no_order_in_the_batch():
    # What is recorded is the time of the first example alone.
    objective = diffusion.loss(Recorder(), lambda params, x, t, condition: x[0] * t)
    batch = jnp.zeros((8, 1)).at[0].set(8.0)
    keys = jax.random.split(jax.random.key(3), 300)
    times = np.asarray(jax.jit(jax.vmap(lambda key: objective(None, batch, key)))(keys))
    assert times.min() < 0.1
    assert times.max() > 0.9
    assert abs(times.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 300)


def test_steps_are_the_times_of_a_chain():
    objective = diffusion.loss(Recorder(), lambda params, x, t, condition: x[0] * t, steps=4)
    batch = jnp.zeros((6, 1)).at[0].set(6.0)
    keys = jax.random.split(jax.random.key(4), 400)
    times = np.asarray(jax.jit(jax.vmap(lambda key: objective(None, batch, key)))(keys))
    values, counts = np.unique(np.round(times, 5), return_counts=True)
    np.testing.assert_allclose(values, [0.25, 0.5, 0.75, 1.0])
    assert np.all(np.abs(counts - 100) < 5 * np.sqrt(400 * 0.25 * 0.75))


def test_conditions_are_dropped_as_often_as_asked():
    objective = diffusion.loss(
        Recorder(),
        lambda params, x, t, condition: condition["a"] + 10.0 * condition["b"][0],
        conditional=True,
        drop_condition=0.25,
        no_condition={"a": -1.0, "b": np.array([7.0, 7.0])},
    )
    batch = jnp.zeros((1, 2)), {"a": jnp.ones((1,)), "b": jnp.zeros((1, 2))}
    keys = jax.random.split(jax.random.key(5), 1000)
    values = np.asarray(jax.jit(jax.vmap(lambda key: objective(None, batch, key)))(keys))
    # Whole conditions give way, never a part of one.
    assert set(np.round(values).tolist()) == {1.0, 69.0}
    assert abs(np.mean(values > 50) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1000)


def test_a_learnt_schedule_is_trained_by_the_bound():
    def process(params, condition):
        return diffusion.variance_preserving(params["schedule"], "v", "bound")

    params = {"net": jnp.float32(0.1), "schedule": diffusion.learned(6.0, -4.0)}
    objective = diffusion.loss(process, lambda params, x, t, condition: params["net"] * x)
    gradient = jax.jit(jax.grad(objective))(params, jnp.ones((16, 2)), jax.random.key(0))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves)


def test_equal_losses_are_equal_functions():
    def make(**options):
        return diffusion.loss(diffusion.variance_preserving(diffusion.cosine(), "v"), linear, **options)

    assert make() == make()
    assert hash(make(steps=5)) == hash(make(steps=5))
    assert make() != make(steps=5)
    assert make() != diffusion.loss(diffusion.variance_preserving(diffusion.cosine(), "noise"), linear)
    classes = dict(conditional=True, drop_condition=0.1, no_condition=10)
    assert make(**classes) == make(**classes)


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (TypeError, lambda: diffusion.loss(3, linear), "process is"),
        (TypeError, lambda: diffusion.loss(diffusion.flow_matching(), None), "apply is"),
        (
            ValueError,
            lambda: diffusion.loss(diffusion.flow_matching(), linear, drop_condition=0.1),
            "drop_condition is 0.1",
        ),
        (
            ValueError,
            lambda: diffusion.loss(diffusion.flow_matching(), linear, conditional=True, drop_condition=1.0),
            "drop_condition is 1.0",
        ),
        (ValueError, lambda: diffusion.loss(diffusion.flow_matching(), linear, steps=0), "steps is 0"),
        (
            TypeError,
            lambda: diffusion.loss(diffusion.flow_matching(), linear, conditional=True)(
                0.0, jnp.ones((2, 1)), jax.random.key(0)
            ),
            "batch is",
        ),
        (
            ValueError,
            lambda: diffusion.loss(diffusion.flow_matching(), functools.partial(lambda *a: jnp.ones(3)))(
                0.0, jnp.ones((2, 1)), jax.random.key(0)
            ),
            "denoiser is one with output",
        ),
    ],
)
def test_wrong_arguments_are_told(error, make, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
