"""What all learnt samplers promise: exact weights for any parameters, two losses of one gradient, training, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprob
from jaxprob import distributions, learning, models, runtime
from jaxprob.inference import vi
from jaxprob.inference.diffusion import (
    WeightedDraws,
    controlled_monte_carlo,
    denoising_diffusion_sampler,
    fit_sampler,
    masked_sampler,
    path_integral_sampler,
    sampler_training,
)
from tests.inference.diffusion._densities import CENTER, LOG_Z, MEAN, SCALE, VARIANCE, Linear, log_density
from tests.runtime.test_resume import Stopper, short_chunks  # noqa: F401, a fixture

FACTORIES = {
    "path_integral_sampler": path_integral_sampler,
    "denoising_diffusion_sampler": denoising_diffusion_sampler,
    "controlled_monte_carlo": controlled_monte_carlo,
}
OPTIONS = {"initial": jnp.asarray(CENTER, jnp.float32), "scale": SCALE, "steps": 4, "network": Linear()}
EXTRA = {"controlled_monte_carlo": {"step_size": 0.1}}
every_sampler = pytest.mark.parametrize("name", FACTORIES)


def make(name, target=log_density, **options):
    return FACTORIES[name](target, **{**OPTIONS, **EXTRA.get(name, {}), **options})


@every_sampler
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_mean_weight_of_untrained_draws_is_the_normalizing_constant(name, dtype, x64):
    sampler = make(name, initial=jnp.asarray(CENTER, dtype))
    params = sampler.init(jax.random.key(2))
    draws = sampler.draw(jax.random.key(3), params, 100_000)
    assert draws.positions.dtype == draws.log_weights.dtype == dtype
    weights = np.exp(np.asarray(draws.log_weights, float) - LOG_Z)
    x = (np.asarray(draws.positions, float) - CENTER - SCALE * MEAN) / (SCALE * np.sqrt(VARIANCE))
    # Under the target x is standard normal: w, w x, w (x^2 - 1) and w x_0 x_1 have means 1 and 0.
    terms = np.concatenate(
        [[weights - 1], weights * x.T, weights * (x.T**2 - 1), [weights * x[:, 0] * x[:, 1]]], axis=0
    )
    z = terms.mean(axis=1) / (terms.std(axis=1) / math.sqrt(len(weights)))
    assert (np.abs(z) < 4.2).all()  # six numbers: fails once in 6,000
    assert weights.std() > 0.3
    np.testing.assert_allclose(draws.log_evidence, LOG_Z + np.log(weights.mean()), atol=1e-4)
    np.testing.assert_allclose(
        draws.log_evidence_error, weights.std(ddof=1) / weights.mean() / math.sqrt(len(weights)), rtol=1e-3
    )
    np.testing.assert_allclose(
        draws.effective_sample_size, weights.sum() ** 2 / (weights**2).sum() / len(weights), rtol=1e-3
    )


class At(Linear):
    """A network that is zero but at one time."""

    def __init__(self, time):
        self.time = time

    def apply(self, params, z, time, gradient):
        return jnp.where(time == self.time, super().apply(params, z, time, gradient), 0)


@every_sampler
def test_half_the_gradient_of_the_log_variance_is_that_of_the_divergence(name):
    """Of the network, whose gradient in one is through the paths and in the other through their probabilities.

    It is so for parameters that the law of the draws alone depends on: of controlled Monte Carlo those of time 0.
    """
    repeats, found = 300, []
    network = {"network": At(0.0)} if name == "controlled_monte_carlo" else {}
    for loss in ("reverse_kl", "log_variance"):
        sampler = make(name, loss=loss, paths=64, **network)
        params = sampler.init(jax.random.key(2))
        keys = jax.random.split(jax.random.key(5), repeats)
        run = jax.jit(jax.vmap(jax.value_and_grad(lambda p, k, s=sampler: s.loss(p, None, k)[0]), (None, 0)))
        values, gradients = run(params, keys)
        assert bool(jnp.all(jnp.isfinite(values)))
        found.append(np.asarray(gradients["network"], float).reshape(repeats, -1))
        center = np.abs(np.asarray(gradients["center"])).max()
        learnt = loss == "reverse_kl" and name == "controlled_monte_carlo"
        assert (center > 0) == learnt
    path, score = found[0], 0.5 * found[1]
    error = np.sqrt((path.var(axis=0, ddof=1) + score.var(axis=0, ddof=1)) / repeats)
    # 8 numbers: 4.2 standard errors fail once in 4,600.
    assert (np.abs(path.mean(axis=0) - score.mean(axis=0)) <= 4.2 * error + 1e-7).all()
    assert (np.abs(path.mean(axis=0)) > 8 * error).any()


def test_the_gradient_of_the_log_variance_by_the_reverse_is_that_of_finite_differences(x64):
    """At time 1 the drift is that of the reverse alone, on which no path depends."""
    initial = jnp.asarray(CENTER, jnp.float64)
    sampler = make("controlled_monte_carlo", initial=initial, loss="log_variance", paths=16, network=At(1.0))
    params = sampler.init(jax.random.key(2))
    loss = jax.jit(lambda p: sampler.loss({**params, "network": p}, None, jax.random.key(1))[0])
    gradient = np.asarray(jax.jit(jax.grad(loss))(params["network"]))
    steps = 1e-5 * np.eye(8).reshape(8, 4, 2)
    numeric = np.asarray([(loss(params["network"] + d) - loss(params["network"] - d)) / 2e-5 for d in steps])
    assert np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-6, atol=1e-7)


@every_sampler
def test_the_gradient_of_the_divergence_is_that_of_finite_differences(name, x64):
    sampler = make(name, initial=jnp.asarray(CENTER, jnp.float64), paths=8)
    params = sampler.init(jax.random.key(2))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss = jax.jit(lambda flat: sampler.loss(unravel(flat), None, jax.random.key(1))[0])
    gradient = np.asarray(jax.jit(jax.grad(loss))(flat))
    steps = 1e-5 * np.eye(flat.size)
    numeric = np.asarray([(loss(flat + d) - loss(flat - d)) / 2e-5 for d in steps])
    kept = np.asarray(
        jax.flatten_util.ravel_pytree({k: jnp.full_like(v, k == "network") for k, v in params.items()})[0]
    )
    if name != "controlled_monte_carlo":  # center and scale are as they are given
        np.testing.assert_array_equal(gradient[kept == 0], 0)
        numeric, gradient = numeric[kept == 1], gradient[kept == 1]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


@every_sampler
def test_training_makes_the_weights_more_equal(name):
    sampler = make(name, steps=16, paths=32)
    found = fit_sampler(sampler, jax.random.key(0), steps=200, optimizer=optax.adam(0.02))
    before = sampler.draw(jax.random.key(1), sampler.init(jax.random.key(0)), 2000)
    after = sampler.draw(jax.random.key(1), found.params, 2000)
    assert found.not_finite == 0
    assert after.effective_sample_size > max(0.4, 1.3 * before.effective_sample_size)
    assert abs(after.log_evidence - LOG_Z) < 4 * after.log_evidence_error
    assert found.info.elbo.shape == (200,)


@models.joint
def regression(x):
    slope = yield "slope", distributions.Normal(0.0, 1.0)
    level = yield "level", distributions.Normal(0.0, 1.0)
    yield "y", distributions.Normal(level + slope * x, 0.5)


@every_sampler
def test_a_posterior_is_a_target_and_its_positions_are_its_own(name):
    x, y = jnp.asarray([-1.0, 0.0, 1.0]), jnp.asarray([0.3, 0.1, 0.9])
    sampler = make(name, regression(x).condition(y=y), initial=None, scale=1.0)
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 50_000)
    assert set(draws.positions) == {"slope", "level"}
    assert draws.positions["slope"].shape == (50_000,)
    design = np.stack([np.ones(3), np.asarray(x)], axis=1)
    covariance = design @ design.T + 0.25 * np.eye(3)
    evidence = -0.5 * (
        np.asarray(y) @ np.linalg.solve(covariance, np.asarray(y)) + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )
    assert abs(draws.log_evidence - evidence) < 4.5 * draws.log_evidence_error < 0.2


def test_the_default_network_begins_without_control_and_learns_the_target():
    sampler = denoising_diffusion_sampler(log_density, initial=OPTIONS["initial"], scale=SCALE, steps=8, paths=32)
    params = sampler.init(jax.random.key(0))
    assert all(not np.any(part.weights[-1]) for part in params["network"].values())
    found = fit_sampler(sampler, jax.random.key(0), steps=200, optimizer=optax.adam(5e-3))
    assert sampler.draw(jax.random.key(1), found.params, 1000).effective_sample_size > 0.7


def test_a_flax_module_is_a_network():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, z, time, gradient):
            return nn.Dense(z.shape[0])(jnp.concatenate([z, jnp.expand_dims(time, 0), gradient]))

    sampler = make("path_integral_sampler", network=Net())
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 10)
    assert bool(jnp.all(jnp.isfinite(draws.log_weights)))


def test_learning_ascent_and_the_runtime_train_it(tmp_path):
    sampler = make("denoising_diffusion_sampler", paths=8)
    params = sampler.init(jax.random.key(0))
    init, step = learning.training(learning.Task(sampler.init, sampler.loss, optax.adam(1e-2)))
    _, info = jax.jit(step)(jax.random.key(1), init(params), None)
    ascended, _ = vi.ascent(sampler.objective).step(
        jax.random.key(1), vi.ascent(sampler.objective).init(params, jax.random.key(2))
    )
    assert info["finite"]
    assert not np.array_equal(ascended.position["network"], params["network"])
    algorithm = sampler_training(sampler)
    state = algorithm.init(params, jax.random.key(2))
    whole = runtime.run(algorithm, jax.random.key(3), state, 4, keep=lambda p: {})
    half = runtime.run(algorithm, jax.random.key(3), state, 2, keep=lambda p: {})
    rest = runtime.run(algorithm, jax.random.key(3), half.state, 2, keep=lambda p: {}, first_step=2)
    np.testing.assert_array_equal(rest.state.position["network"], whole.state.position["network"])


class CrashError(Exception):
    """What ends a run without a word."""


class Crasher(Stopper):
    """A progress object that ends the run at once, so that it must go on from its last checkpoint."""

    def update(self, status):
        if status["step"] >= self.at:
            raise CrashError


def test_training_that_is_stopped_and_that_crashes_has_the_bits_of_one_that_is_not(tmp_path, short_chunks):  # noqa: F811
    """With a buffer that is drawn anew every few steps, and the optimiser's state, both in the midst."""
    sampler = masked_sampler(lambda x: 0.7 * jnp.mean(x[1:] == x[:-1]), 3, 4, buffer=12, every=5)
    options = {
        "initial": sampler.init(jax.random.key(0)),
        "algorithm": sampler_training(sampler),
        "chains": 1,
        "draws": 24,
        "devices": 1,
    }
    key = jax.random.key(3)
    run = functools.partial(jaxprob.sample, lambda params: jnp.zeros(()), key, **options)
    whole = run(progress=False)
    out = {"out": tmp_path / "run", "checkpoint_every": 0.0}
    assert run(progress=Stopper(8), **out).status == "stopped"
    with pytest.raises(CrashError):
        run(progress=Crasher(16), resume=True, **out)
    resumed = run(progress=False, resume=True, **out)
    assert resumed.status == "finished"
    assert np.ptp(jax.tree.leaves(whole.draws)[0], axis=1).max() > 0
    for name in ("loss", "gradient_norm"):
        np.testing.assert_array_equal(resumed.stats[name], whole.stats[name])
    jax.tree.map(np.testing.assert_array_equal, resumed.draws, whole.draws)


def test_jit_and_vmap_change_nothing():
    sampler = make("controlled_monte_carlo")
    params, key = sampler.init(jax.random.key(0)), jax.random.key(1)
    alone = sampler.draw(key, params, 5)
    inside = jax.jit(lambda s, p, k: s.draw(k, p, 5))(sampler, params, key)
    both = jax.vmap(lambda k: sampler.draw(k, params, 5))(jnp.stack([key, jax.random.key(9)]))
    for other in (inside.log_weights, both.log_weights[0], sampler.draw(key, params, 9).log_weights[:5]):
        np.testing.assert_allclose(other, alone.log_weights, rtol=1e-5, atol=1e-5)


def test_summaries_of_few_or_impossible_draws():
    none = WeightedDraws(jnp.zeros(3), jnp.full(3, -jnp.inf))
    assert none.effective_sample_size == 0
    assert jnp.isneginf(none.log_evidence)
    assert jnp.isnan(none.log_evidence_error)
    one = WeightedDraws(jnp.zeros(1), jnp.asarray([2.0]))
    assert one.effective_sample_size == 1
    assert one.log_evidence == 2
    assert jnp.isnan(one.log_evidence_error)
    half = WeightedDraws(jnp.arange(2.0), jnp.asarray([jnp.log(3.0), -jnp.inf]))
    np.testing.assert_allclose(half.effective_sample_size, 0.5)
    np.testing.assert_allclose(half.log_evidence, np.log(1.5), rtol=1e-6)
    np.testing.assert_allclose(half.log_evidence_error, 1.0, rtol=1e-6)  # sd 3 / sqrt 2 of the mean, over 1.5 sqrt 2
    np.testing.assert_allclose(half.population.expectation(), 0.0)


@every_sampler
def test_a_density_of_minus_infinity_beyond_a_wall_has_no_weight_there(name):
    def half_normal(x):
        return jnp.where(x > 0, -0.5 * x**2, -jnp.inf)

    sampler = make(name, half_normal, initial=jnp.zeros(()), scale=1.0)
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 20_000)
    assert (np.isneginf(draws.log_weights) == (np.asarray(draws.positions) <= 0)).all()
    assert abs(draws.log_evidence - 0.5 * math.log(math.pi / 2)) < 4 * draws.log_evidence_error < 0.2


@every_sampler
@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_density_that_is_of_no_use_at_the_start_is_told(name, value):
    sampler = make(name, lambda x: jnp.sum(x) * 0 + value)
    told = "NaN at 64" if jnp.isnan(value) else "not finite at any"
    with pytest.raises(ValueError, match=f"^fit_sampler: log_density is {told} of 64 draws of the start; expected num"):
        fit_sampler(sampler, jax.random.key(0), steps=2)


class Wrong(Linear):
    def apply(self, params, z, time, gradient):
        return jnp.zeros(3)


@every_sampler
def test_bad_arguments_are_told_in_one_line(name):
    cases = [
        ({"target": lambda x: x}, ValueError, r"the value of log_density is of shape \(2,\); expected one number"),
        ({"target": 3.0}, TypeError, "log_density is 3.0"),
        ({"initial": None}, ValueError, "initial is None; expected a position"),
        ({"scale": 0.0}, ValueError, "scale is 0.0; expected a positive number"),
        ({"paths": 1}, ValueError, "paths is 1; expected a whole number, 2 or more"),
        ({"loss": "kl"}, ValueError, "loss is 'kl'; expected one of"),
        ({"network": 3}, TypeError, "network is 3; expected a network with init and apply"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=f"^{name}: {message}") as error:
            make(name, **{"target": log_density, **options})
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"^{name}: the output of network is of shape \(3,\); expected shape \(2,\)"):
        make(name, network=Wrong()).init(jax.random.key(0))


def test_training_takes_learnt_samplers_and_optimizers_only():
    sampler = make("path_integral_sampler")
    with pytest.raises(TypeError, match=r"^sampler_training: sampler is .*; expected a learnt sampler"):
        sampler_training(lambda x: x)
    with pytest.raises(TypeError, match=r"^sampler_training: optimizer is 0.1; expected an optax optimiser"):
        sampler_training(sampler, 0.1)
    with pytest.raises(ValueError, match=r"^fit_sampler: steps is 0"):
        fit_sampler(sampler, jax.random.key(0), steps=0)
    with pytest.raises(TypeError, match=r"^path_integral_sampler.draw: key is"):
        sampler.draw(3, sampler.init(jax.random.key(0)), 5)
