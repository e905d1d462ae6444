"""Every adaptive sampler through the front door: exact, resumed, on any devices; ensembles and tempering as given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import analysis, core
from jaxprob.inference import mcmc
from tests.runtime import _targets
from tests.runtime.test_resume import Stopper, short_chunks  # noqa: F401, a fixture

MEAN = np.array([1.0, -2.0, 0.5, 3.0, 0.0])
FACTOR = np.array(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.8, 0.6, 0.0, 0.0, 0.0],
        [-0.5, 0.5, 2.0, 0.0, 0.0],
        [0.0, 0.3, -1.0, 0.5, 0.0],
        [0.2, -0.4, 0.1, 0.3, 0.3],
    ]
)
SCALES = np.sqrt((FACTOR**2).sum(axis=1))


@core.pytree
class Gaussian:
    """A posterior with its numbers as leaves: correlated, mean MEAN and covariance FACTOR FACTOR'."""

    mean: jax.Array
    whitening: jax.Array

    def log_density(self, x):
        return -0.5 * jnp.sum(core.matvec(self.whitening, x - self.mean) ** 2)

    def initial(self, key):
        return 2 * jax.random.normal(key, (5,))


GAUSSIAN = Gaussian(jnp.asarray(MEAN, "float32"), jnp.asarray(np.linalg.inv(FACTOR), "float32"))


def wide(x):
    """A reference that is normalised and has mass wherever the target does."""
    return -0.5 * jnp.sum((x / 5) ** 2)


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    yield
    jax.clear_caches()


ALGORITHMS = {
    "chees": mcmc.chees,
    "snaper(target_acceptance=0.8)": partial(mcmc.snaper, target_acceptance=0.8),
    "meads(folds=2)": partial(mcmc.meads, folds=2),
    "mclmc_warmup": mcmc.mclmc_warmup,
    "mclmc_warmup(mclmc(integrator='leapfrog'))": partial(
        mcmc.mclmc_warmup, kernel=partial(mcmc.mclmc, integrator="leapfrog")
    ),
    "mclmc_warmup(adjusted_mclmc(num_integration_steps=(2, 4)))": partial(
        mcmc.mclmc_warmup, kernel=partial(mcmc.adjusted_mclmc, num_integration_steps=(2, 4))
    ),
    "adjusted_mclmc(num_integration_steps=(2, 4), metric='dense')": partial(
        mcmc.adjusted_mclmc, num_integration_steps=(2, 4)
    ),
    "tempering_warmup(hmc(num_integration_steps=4), reference=wide, target_acceptance=0.8)": partial(
        mcmc.tempering_warmup,
        partial(mcmc.hmc, num_integration_steps=4),
        reference=wide,
        target_acceptance=0.8,
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_moments_of_a_correlated_gaussian(name):
    """Means and standard deviations within five Monte Carlo errors: false alarm 6e-7 for each of ten numbers."""
    result = jaxprob.sample(
        GAUSSIAN, jax.random.key(1), algorithm=ALGORITHMS[name], chains=8, draws=2000, thin=2, devices=2
    )
    assert result.meta["algorithm"] == name
    z = (result.draws.mean((0, 1)) - MEAN) / np.asarray(jax.vmap(analysis.mcse_mean, -1)(result.draws))
    assert np.abs(z).max() < 5
    z = (result.draws.std((0, 1)) - SCALES) / np.asarray(jax.vmap(analysis.mcse_sd, -1)(result.draws))
    assert np.abs(z).max() < 5
    assert result.summary().ess_bulk.min() > 200
    assert "step_size" in result.stats or "barrier" in result.stats
    for stat in ("step_size", "trajectory_length"):  # tuned, and then left alone
        if stat in result.stats:
            assert len(np.unique(result.stats[stat])) == 1


def test_a_warm_up_takes_as_long_as_is_usual_for_it_or_as_is_asked():
    options = {"chains": 8, "draws": 2, "devices": 1}
    for algorithm, usual in ((mcmc.chees, 500), (mcmc.meads, 1000), (mcmc.nuts, 400)):
        assert jaxprob.sample(GAUSSIAN, jax.random.key(0), algorithm=algorithm, **options).meta["warmup"] == usual
    result = jaxprob.sample(GAUSSIAN, jax.random.key(0), algorithm=mcmc.chees, warmup=30, **options)
    assert result.meta["warmup"] == 30
    assert result.meta["aims"] == {"target_acceptance": 0.651}


@pytest.mark.parametrize("at", [40, 250], ids=["in warm-up", "in sampling"])
def test_stopped_and_resumed_the_draws_are_the_same(tmp_path, short_chunks, at):  # noqa: F811
    target, initial = _targets.elementwise()
    options = {"initial": initial, "algorithm": mcmc.chees, "chains": 8, "warmup": 200, "draws": 200}
    key = jax.random.key(3)
    whole = jaxprob.sample(target, key, devices=2, **options)
    stopped = jaxprob.sample(target, key, devices=2, out=tmp_path / "run", progress=Stopper(at), **options)
    assert stopped.status == "stopped"
    resumed = jaxprob.sample(target, key, devices=8, out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    np.testing.assert_array_equal(resumed.stats["step_size"], whole.stats["step_size"])
    with pytest.raises(ValueError, match=r'sample: algorithm is "snaper"; expected "chees"'):
        jaxprob.sample(target, key, out=tmp_path / "run", resume=True, **options | {"algorithm": mcmc.snaper})


@pytest.mark.parametrize("algorithm", [mcmc.chees, mcmc.snaper, partial(mcmc.meads, folds=4)])
def test_one_and_eight_devices_give_the_same_bits(algorithm):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "algorithm": algorithm, "chains": 8, "warmup": 60, "draws": 40}
    one, eight = (jaxprob.sample(target, jax.random.key(1), devices=number, **options) for number in (1, 8))
    np.testing.assert_array_equal(one.draws, eight.draws)
    np.testing.assert_array_equal(one.stats["step_size"], eight.stats["step_size"])


def normal(x):
    return -0.5 * jnp.sum((x / jnp.array([1.0, 3.0])) ** 2)


def test_an_ensemble_is_a_chain():
    def walkers(key):
        return jax.random.normal(key, (6, 2))

    result = jaxprob.sample(
        normal,
        jax.random.key(0),
        algorithm=mcmc.stretch(normal),
        initial=walkers,
        chains=4,
        warmup=100,
        draws=1000,
        devices=2,
    )
    assert result.draws.shape == (4, 1000, 6, 2)
    # Of 24 walkers each sum has an effective sample of a thousand or more: 5 standard errors of the sd are 11 %.
    np.testing.assert_allclose(result.draws.std((0, 1, 2)), [1.0, 3.0], rtol=0.11)
    assert 0.3 < result.stats["acceptance_rate"].mean() < 0.9


def ladder(log_density):
    return mcmc.parallel_tempering(
        partial(mcmc.random_walk_metropolis, step_size=1.0),
        log_density,
        inverse_temperatures=[1.0, 0.4, 0.1],
    )


def test_replicas_are_one_chain():
    result = jaxprob.sample(
        normal, jax.random.key(0), algorithm=ladder(normal), initial=jnp.zeros(2), chains=4, warmup=200, draws=4000
    )
    assert result.draws.shape == (4, 4000, 2)
    z = (result.draws.std((0, 1)) - [1.0, 3.0]) / np.asarray(jax.vmap(analysis.mcse_sd, -1)(result.draws))
    assert np.abs(z).max() < 5
    assert {"swap_rate", "log_evidence"} <= set(result.stats)


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
@pytest.mark.parametrize("kind", ["walkers", "replicas", "chees"])
def test_a_start_without_a_finite_density_is_one_line(kind, bad, tmp_path):
    """Of an ensemble one walker is enough: it would never move."""

    def log_density(x):
        return jnp.where(x[0] > 2.5, bad, 0.0) + normal(x)

    starts = jnp.stack([jnp.linspace(0.0, 3.0, 6), jnp.linspace(0.0, 1.0, 6) ** 2], axis=1)
    algorithm, initial = {
        "walkers": (mcmc.stretch(log_density), starts),
        "replicas": (ladder(log_density), starts[-1]),
        "chees": (mcmc.chees, starts[-1]),
    }[kind]
    with pytest.raises(ValueError, match=rf"^sample: initial is a position with log density {bad}; expected a finite"):
        jaxprob.sample(
            log_density, jax.random.key(0), algorithm=algorithm, initial=initial, chains=2, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_not_finite_at_any_replica_is_named():
    def log_density(x):
        return -jnp.sum(jnp.sqrt(jnp.abs(x)))

    algorithm = mcmc.parallel_tempering(
        partial(mcmc.hmc, step_size=0.5), log_density, inverse_temperatures=[1.0, 0.4, 0.1]
    )
    with pytest.raises(ValueError, match="a position where the gradient with respect to 'value' has -inf"):
        jaxprob.sample(log_density, jax.random.key(0), algorithm=algorithm, initial=jnp.zeros(2), chains=2)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (partial(mcmc.chees, steps=3), r"chees\(steps=3\) with .*unexpected keyword argument 'steps'; expected"),
        (partial(mcmc.chees, num_steps=3), r"chees\(num_steps=3\).*Set the length of the warm-up by sample"),
        (partial(mcmc.chees, 3), "chees with 1 arguments by place"),
        (partial(mcmc.meads, step_size=0.1), r"meads\(step_size=0\.1\), which fixes step_size"),
        (mcmc.tempering_warmup, "tempering_warmup with missing a required argument: 'kernel'"),
        (partial(mcmc.nuts, bla=3), r"nuts\(bla=3, .* with got an unexpected keyword argument 'bla'; expected options"),
        (partial(mcmc.snaper, target_acceptance=np.ones(2)), "snaper.*options that are numbers or strings"),
    ],
)
def test_options_that_will_not_do(algorithm, said):
    with pytest.raises(ValueError, match=f"^sample: algorithm is {said}"):
        jaxprob.sample(GAUSSIAN, jax.random.key(0), algorithm=algorithm, chains=8, draws=2)


def test_chains_that_make_no_folds():
    with pytest.raises(ValueError, match="meads: the number of chains is 4; expected a multiple of 4 folds"):
        jaxprob.sample(GAUSSIAN, jax.random.key(0), algorithm=mcmc.meads, chains=4, draws=2)


def test_what_has_no_moves_is_not_interleaved():
    with pytest.raises(ValueError, match="sample: interleave is True with chees and shard_map"):
        jaxprob.sample(GAUSSIAN, jax.random.key(0), algorithm=mcmc.chees, chains=8, draws=2, interleave=True)


def test_a_kernel_whose_tuned_arguments_have_no_defaults():
    def kernel(log_density, *, step_size, inverse_mass_matrix):
        return mcmc.hmc(log_density, step_size, inverse_mass_matrix, num_integration_steps=2)

    options = {"algorithm": partial(mcmc.warmup, kernel), "initial": jnp.float32(0.0), "warmup": 20, "draws": 5}
    result = jaxprob.sample(lambda x: -0.5 * x**2, jax.random.key(0), chains=2, devices=1, **options)
    assert result.draws.shape == (2, 5)
