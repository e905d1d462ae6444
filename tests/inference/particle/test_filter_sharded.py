"""Particles over eight devices: the evidence of one device where ancestors are drawn among all, no bias in islands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from jaxprob.distributions import Normal
from jaxprob.inference import particle, smc
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel, SwitchingLinearGaussian

A, Q, R = 0.9, 0.49, 0.25
YS = np.array([1.0, 0.2, 0.5, -0.4, 2.0], np.float32)


def log_seen(x, y):
    return -0.5 * (y - x) ** 2 / R - 0.5 * np.log(2 * np.pi * R)


MODEL = smc.FeynmanKac(
    initial=lambda key, y: jax.random.normal(key),
    log_initial_potential=log_seen,
    transition=lambda key, x, t, y: A * x + np.sqrt(Q) * jax.random.normal(key),
    log_potential=lambda old, x, t, y: log_seen(x, y),
)


def exact():
    mean, variance, total = 0.0, 1.0, 0.0
    for t, y in enumerate(YS.astype(np.float64)):
        if t:
            mean, variance = A * mean, A * A * variance + Q
        total += stats.norm.logpdf(y, mean, np.sqrt(variance + R))
        gain = variance / (variance + R)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    return mean, total


def spread_over_devices(resampler, number, model=MODEL, repeats=False):
    """A filter on eight devices: its evidence, effective sample sizes, and the last population; for a batch of keys."""

    def run(key):
        found = smc.run(key, model, jnp.asarray(YS), number // 8, resampler=resampler, axis_name="particles")
        last = found.state.population
        sizes = found.info.effective_sample_size
        return found.log_likelihood, sizes, last.particles, last.log_weights, found.failed_at

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("particles",))
    everywhere, cut = PartitionSpec(), PartitionSpec("particles")
    if repeats:
        run, cut = jax.vmap(run), PartitionSpec(None, "particles")
    specs = (everywhere, everywhere, cut, cut, everywhere)
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=everywhere, out_specs=specs))


@pytest.mark.parametrize("scheme", [smc.systematic, smc.multinomial])
def test_among_all_is_one_device(scheme):
    key = jax.random.key(0)
    total, sizes, particles, _, failed = spread_over_devices(smc.sharded("particles", scheme), 800)(key)
    one = smc.run(key, MODEL, jnp.asarray(YS), 800, resampler=smc.adaptive(scheme))
    np.testing.assert_allclose(total, one.log_likelihood, rtol=2e-5)
    np.testing.assert_allclose(sizes, one.info.effective_sample_size, rtol=1e-3)
    assert sizes.min() < 400  # it was resampled
    np.testing.assert_allclose(np.sort(particles), np.sort(one.state.population.particles), atol=1e-4)
    assert failed == -1


@pytest.mark.parametrize("across", [True, False])
def test_no_bias(across):
    mean, total = exact()
    run = spread_over_devices(smc.sharded("particles", across=across), 80, repeats=True)
    totals, _, particles, log_weights, _ = run(jax.random.split(jax.random.key(1), 2000))
    ratio = np.exp(np.asarray(totals, np.float64) - total)
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / np.sqrt(2000)
    weights = np.exp(np.asarray(log_weights, np.float64))
    means = (weights * np.asarray(particles, np.float64)).sum(1) / weights.sum(1)
    # The mean of Z times an estimate is unbiased, where that of the estimate alone is not.
    gaps = ratio * (means - mean)
    assert abs(gaps.mean()) < 3.5 * gaps.std() / np.sqrt(2000)


@pytest.mark.parametrize("across", [True, False])
def test_all_drawn_at_once(across):
    def draw(key, x, t, y):
        return A * x + np.sqrt(Q) * jax.random.normal(key, x.shape)

    model = MODEL._replace(transition=smc.Batched(draw))
    total, sizes, *_ = spread_over_devices(smc.sharded("particles", across=across), 80_000, model)(jax.random.key(3))
    np.testing.assert_allclose(total, exact()[1], atol=0.05)
    assert (sizes > 0).all()


def test_chunks_are_the_same_draws():
    whole = smc.run(jax.random.key(0), MODEL, jnp.asarray(YS), 100)
    for size in (7, 25, 1000):
        parts = smc.run(jax.random.key(0), smc.chunked(MODEL, size), jnp.asarray(YS), 100)
        np.testing.assert_allclose(parts.log_likelihood, whole.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(
            parts.state.population.particles, whole.state.population.particles, rtol=1e-4, atol=1e-5
        )


def test_bad_threshold():
    with pytest.raises(ValueError, match="sharded: threshold is 2"):
        smc.sharded("particles", threshold=2)


WALK = StateSpaceModel(Normal(0.0, 1.0), lambda x, t: Normal(A * x, 0.7), lambda x, t: Normal(x, 0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "all"},
        {"chunk": 5},
        {"proposal": particle.kalman_guided(), "look_ahead": "mean"},
        {"resampler": smc.always(smc.multinomial)},
        {"resampler": smc.optimal_transport(iterations=5)},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_filter_over_devices_is_that_of_one(options):
    key = jax.random.key(4)
    one = particle.filter(key, WALK, YS, particles=80, **options)
    many = particle.filter(key, WALK, YS, particles=80, devices=8, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), many, one)
    assert many.population.particles.sharding.shard_shape((80,)) == (10,)
    assert one.effective_sample_size.min() < 40 or "proposal" in options  # it was resampled


def test_devices_are_a_list_or_a_mesh_too():
    key = jax.random.key(4)
    one = particle.log_likelihood(key, WALK, YS, particles=80)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    for devices in (jax.devices()[2:4], mesh):
        total = particle.log_likelihood(key, WALK, YS, particles=80, devices=devices)
        np.testing.assert_allclose(total, one, rtol=1e-4)
        assert len(total.sharding.device_set) == (2 if devices is not mesh else 4)


@pytest.mark.parametrize("method", ["backward", "genealogy"])
def test_a_smoother_over_devices_is_that_of_one(method):
    one, many = (
        particle.smooth(jax.random.key(5), WALK, YS, particles=80, method=method, devices=n) for n in (None, 8)
    )
    np.testing.assert_allclose(many.trajectories, one.trajectories, atol=1e-4)
    np.testing.assert_allclose(many.mean, one.mean, atol=1e-4)


def test_rao_blackwellised_particles_over_devices_are_those_of_one():
    part = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    other = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), 4 * jnp.eye(1), jnp.eye(1), jnp.ones(1))
    model = SwitchingLinearGaussian([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [part, other])
    one, many = (particle.rao_blackwellised(jax.random.key(6), model, YS, particles=80, devices=n) for n in (None, 8))
    np.testing.assert_allclose(many.log_likelihoods, one.log_likelihoods, rtol=1e-4)
    np.testing.assert_allclose(many.mean.linear, one.mean.linear, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("devices", "error", "words"),
    [
        (9, ValueError, "devices is 9; expected a number from 1 to 8"),
        (0, ValueError, "devices is 0; expected a number from 1 to 8"),
        (True, TypeError, "devices is True; expected None, a number"),
        ([], TypeError, "devices is .*; expected None, a number"),
        (8, ValueError, "particles is 100; expected a multiple of the 8 devices"),
    ],
)
def test_devices_that_cannot_be(devices, error, words):
    for function in (particle.filter, particle.log_likelihood, particle.smooth):
        with pytest.raises(error, match=words) as caught:
            function(jax.random.key(0), WALK, YS, particles=100, devices=devices)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"particle.{function.__name__}: ")
