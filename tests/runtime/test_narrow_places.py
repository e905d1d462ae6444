"""The default hands over to WALNUTS after a warm-up that found narrow places: exact, resumed, on any devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import analysis, core, runtime
from jaxprob.inference import mcmc
from tests.runtime.test_resume import Stopper, short_chunks  # noqa: F401, a fixture

KEY = jax.random.key(5)


def funnel(x):
    """Neal's: v ~ N(0, 3), nine others ~ N(0, exp(v / 2)); x = (v, others)."""
    v, others = x[0], x[1:]
    return -0.5 * (v / 3) ** 2 - 0.5 * jnp.sum(others**2) * jnp.exp(-v) - 0.5 * others.size * v


def narrow_laplace(x):
    """x[0] ~ Laplace(0, 2), x[1] ~ Laplace(0, exp(2 x[0])); no rounded product meets a sum, as in `_targets`."""
    return -jnp.abs(x[0]) / 2 - jnp.exp(jnp.log(jnp.abs(x[1])) - 2 * x[0]) - 2 * x[0]


def gaussian(x):
    return -0.5 * jnp.sum(x**2)


def start(key, size=10):
    return jax.random.uniform(key, (size,), minval=-2, maxval=2)


OPTIONS = {"initial": partial(start, size=2), "chains": 8, "warmup": 200, "draws": 150}


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    yield
    jax.clear_caches()


def test_narrow_places_are_found_and_said(tmp_path):
    result = jaxprob.sample(funnel, KEY, initial=start, draws=300, out=tmp_path / "run")
    assert result.algorithm == "nuts(metric='dense'), then walnuts(max_halvings=5) for narrow places"
    assert result.algorithm in repr(runtime.load(tmp_path / "run"))
    assert 1 <= result.stats["num_halvings"].max() <= 5
    assert result.meta["times"]["compile"] > 0


def test_without_narrow_places_it_is_nuts():
    result = jaxprob.sample(gaussian, KEY, initial=start, draws=50)
    assert result.algorithm == "nuts(metric='dense')"
    assert "num_halvings" not in result.stats
    named = jaxprob.sample(gaussian, KEY, initial=start, draws=50, algorithm=mcmc.nuts)
    np.testing.assert_array_equal(named.draws, result.draws)


def test_a_kernel_that_was_asked_for_stays():
    result = jaxprob.sample(funnel, KEY, initial=start, draws=50, algorithm=mcmc.nuts)
    assert result.algorithm == "nuts(metric='dense')"
    assert "num_halvings" not in result.stats
    assert "went_on" not in result.meta


def test_options_of_the_warm_up_alone_are_options_of_the_default():
    algorithm = partial(mcmc.warmup, metric="diagonal", max_tree_depth=7)
    result = jaxprob.sample(funnel, KEY, initial=start, draws=100, algorithm=algorithm)
    assert result.algorithm.startswith("nuts(max_tree_depth=7, metric='diagonal'), then walnuts(max_halvings=5)")
    assert result.stats["tree_depth"].max() <= 7


@pytest.mark.parametrize("at", [60, 230], ids=["in warm-up", "in sampling"])
def test_stopped_and_resumed_on_other_devices_the_draws_are_the_same(tmp_path, short_chunks, at):  # noqa: F811
    whole = jaxprob.sample(narrow_laplace, KEY, devices=2, **OPTIONS)
    assert "went_on" in whole.meta
    stopped = jaxprob.sample(narrow_laplace, KEY, devices=2, out=tmp_path / "run", progress=Stopper(at), **OPTIONS)
    assert stopped.status == "stopped"
    resumed = jaxprob.sample(narrow_laplace, KEY, devices=8, out=tmp_path / "run", resume=True, **OPTIONS)
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    for name, values in whole.stats.items():
        np.testing.assert_array_equal(resumed.stats[name], values)
    longer = jaxprob.sample(
        narrow_laplace, KEY, devices=4, out=tmp_path / "run", resume=True, **OPTIONS | {"draws": 200}
    )
    assert longer.draws.shape[:2] == (8, 200)
    np.testing.assert_array_equal(longer.draws[:, :150], whole.draws)
    assert longer.algorithm == whole.algorithm
    with pytest.raises(ValueError, match=r'sample: narrow is null; expected "walnuts\(max_halvings=5\)"'):
        jaxprob.sample(narrow_laplace, KEY, out=tmp_path / "run", resume=True, algorithm=mcmc.nuts, **OPTIONS)


def test_every_executor_and_a_ready_kernel_give_the_same_draws():
    whole = jaxprob.sample(narrow_laplace, KEY, devices=1, **OPTIONS)
    mapped = jaxprob.sample(narrow_laplace, KEY, devices=4, executor="pmap", **OPTIONS)
    np.testing.assert_array_equal(mapped.draws, whole.draws)
    # Thinned draws of a run are every third of its draws; the functional interface gives them too.
    thinned = jaxprob.sample(narrow_laplace, KEY, devices=2, thin=3, **OPTIONS | {"draws": 50})
    np.testing.assert_array_equal(thinned.draws, whole.draws[:, 2::3])
    with jax.debug_key_reuse(False):
        chain = _by_hand(steps=5)
    np.testing.assert_allclose(chain, whole.draws[3, :5], rtol=1e-5, atol=1e-6)


def _by_hand(steps):
    """The first draws of chain 3 by the functional interface."""
    tuning = mcmc.warmup(
        mcmc.nuts, narrow_laplace, num_steps=200, metric="dense", narrow_acceptance=0.7, axis_name="chain"
    )
    keys = [core.fold(KEY, chain) for chain in range(8)]
    starts = jnp.stack([OPTIONS["initial"](core.fold(key, jnp.uint32(2**31), 0)) for key in keys])
    axes = core.Shared(0, None)
    state = jax.vmap(tuning.init, in_axes=(0, None), out_axes=axes, axis_name="chain")(starts, jax.random.key(0))
    step = jax.jit(jax.vmap(tuning.step, in_axes=(0, axes), out_axes=(axes, 0), axis_name="chain"))
    for t in range(200):
        state, _ = step(jnp.stack([core.fold(key, t) for key in keys]), state)
    assert bool(state.shared.narrow)
    kernel = mcmc.walnuts(
        narrow_laplace,
        step_size=state.shared.step_size,
        inverse_mass_matrix=state.shared.metric.inverse_mass,
        max_halvings=5,
    )
    chain = jax.tree.map(lambda x: x[3], state.chain.kernel)
    draws = []
    for t in range(steps):
        chain, _ = jax.jit(kernel.step)(core.fold(keys[3], 200 + t), chain)
        draws.append(chain.position)
    return np.stack(draws)


def test_the_acceptance_aimed_at_in_narrow_places():
    tuned = {}
    for name, options in {
        "usual": {},
        "walnuts": {"narrow_acceptance": 0.7},
        "given": {"target_acceptance": 0.8},
        "both": {"target_acceptance": 0.8, "narrow_acceptance": 0.7},
    }.items():
        algorithm = partial(mcmc.warmup, mcmc.nuts, **options)
        result = jaxprob.sample(funnel, KEY, initial=start, chains=8, draws=20, algorithm=algorithm)
        tuned[name] = float(result.stats["step_size"].mean())
    assert tuned["given"] > 1.5 * tuned["usual"]
    assert tuned["walnuts"] > 1.1 * tuned["given"]
    assert tuned["both"] > 1.1 * tuned["given"]
    for value in (0.0, 1.0, "high"):
        with pytest.raises((ValueError, TypeError), match="warmup: narrow_acceptance"):
            mcmc.warmup(mcmc.nuts, funnel, narrow_acceptance=value)


@pytest.mark.slow
def test_the_default_is_exact_on_a_funnel():
    """Mean, mean square and tail shares of v against its normal law, by z; bounds 4.5, false-alarm rate 5e-5 in all.

    Of 64 chains, since a single NUTS of one step size is off by 5 standard errors there and by none with four.
    """
    result = jaxprob.sample(funnel, jax.random.key(1), initial=start, chains=64, draws=1000)
    assert "went_on" in result.meta
    v = np.asarray(result.draws[..., 0], np.float64)
    for values, wanted in ((v, 0.0), (v**2, 9.0), (v < -3.0, 0.15866), (v > 3.0, 0.15866), (v < -6.0, 0.02275)):
        values = values.astype(np.float64)
        error = float(analysis.mcse_mean(values))
        assert abs(values.mean() - wanted) < 4.5 * error
