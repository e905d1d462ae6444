"""The front door with samplers of populations: exact evidence, the same bits on any devices and after any stop."""

import copy
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxprob
from jaxprob import models, runtime
from jaxprob.distributions import Normal
from jaxprob.inference import mcmc, smc
from jaxprob.runtime import _checkpoint, _directory
from jaxprob.runtime._job import Tally
from tests.runtime.test_resume import Stopper, short_chunks  # noqa: F401

KEY = jax.random.key(5)


class State(NamedTuple):
    population: smc.Population
    log_evidence: jax.Array
    done: jax.Array


class Info(NamedTuple):
    effective_sample_size: jax.Array


Y = np.array([1.2, 0.3, 2.0, 1.1])


@models.joint
def conjugate(y):
    mean = yield "mean", Normal(0.0, 3.0)
    yield "twice", models.deterministic(2 * mean)
    yield "y", Normal(jnp.full_like(y, mean), 1.0)


COVARIANCE = np.eye(4) + 9
EVIDENCE = stats.multivariate_normal(cov=COVARIANCE).logpdf(Y)
VARIANCE = 1 / (4 + 1 / 9)
POSTERIOR = conjugate(jnp.asarray(Y, jnp.float32)).condition(y=Y)
# The random walk multiplies and adds nothing that XLA might round once in one program and twice in another.
WALK = partial(mcmc.random_walk_metropolis, step_size=0.5, inverse_mass_matrix=1.0)


@pytest.fixture(scope="module")
def result():
    return jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(particles=1000), chains=4, devices=2)


def test_particles_become_draws_and_the_evidence_is_there(result):
    assert result.draws["mean"].shape == (4, 1000)
    np.testing.assert_allclose(result.draws["twice"], 2 * result.draws["mean"], rtol=1e-6)
    draws = result.draws["mean"].ravel()
    mean = VARIANCE * Y.sum()
    # Five standard errors of 4,000 particles that are worth at least a fourth of as many draws.
    assert abs(draws.mean() - mean) < 5 * np.sqrt(VARIANCE / 1000)
    assert draws.std() == pytest.approx(np.sqrt(VARIANCE), rel=0.05)
    assert result.log_evidence.shape == (4,)
    np.testing.assert_allclose(result.log_evidence, EVIDENCE, atol=0.2)
    assert len(np.unique(result.log_evidence)) == 4
    assert result.summary().r_hat.max() < 1.02
    # What one chain says of its own error is about that of the four, whose standard deviation is known to a third.
    assert result.log_evidence_variance.shape == (4,)
    spread = result.log_evidence.std(ddof=1)
    assert 0.3 < np.sqrt(result.log_evidence_variance.mean()) / spread < 3
    assert (result.stats["inverse_temperature"] == 1).all()
    assert "done" not in result.stats


def test_the_diagnosis_gives_the_log_evidence(result):
    text = " ".join(str(result.diagnose()).split())
    assert "The log evidence is -" in text
    assert "from the spread of the chains" in text


def test_fewer_draws_are_spread_over_all_particles():
    few = jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(move=WALK, particles=400), draws=40, devices=1)
    every = jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(move=WALK, particles=400), devices=1)
    np.testing.assert_array_equal(few.log_evidence, every.log_evidence)
    for one, other in zip(few.draws["mean"], every.draws["mean"], strict=True):
        places = [np.flatnonzero(other == x) for x in one]
        assert all(x.size for x in places)
        first = np.array([x[0] for x in places])
        assert (np.abs(first - 10 * np.arange(40)) <= 11).all()


class StopperOfDraws(Stopper):
    """Waits for draws, not for steps."""

    def update(self, status):
        if status["phase"] == "sampling":
            super().update(status)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stopper", [Stopper(2), StopperOfDraws(100)], ids=["on the way", "while draws are written"])
def test_stopped_on_two_devices_and_resumed_on_others(tmp_path, short_chunks, monkeypatch, stopper, devices):  # noqa: F811
    monkeypatch.setattr("jaxprob.runtime._loop.FIRST_CHUNK", 2)
    options = {"algorithm": smc.tempered(move=WALK, particles=400, effective_sample_size=0.9), "chains": 8}
    whole = jaxprob.sample(POSTERIOR, KEY, devices=2, **options)
    stopped = jaxprob.sample(POSTERIOR, KEY, devices=2, out=tmp_path / "run", progress=copy.copy(stopper), **options)
    assert stopped.status == "stopped"
    assert stopped.draws["mean"].shape[1] < 400
    step = _checkpoint.steps(tmp_path / "run" / _directory.CHECKPOINTS)[-1]
    assert (step < 10**6) == (type(stopper) is Stopper)
    resumed = jaxprob.sample(POSTERIOR, KEY, devices=devices, out=tmp_path / "run", resume=True, **options)
    assert resumed.status == "finished"
    # On as many devices to the bit; sums over particles may round otherwise where fewer populations go together.
    rtol = 0 if devices == 2 else 2e-6
    np.testing.assert_allclose(resumed.draws["mean"], whole.draws["mean"], rtol=rtol)
    np.testing.assert_allclose(resumed.log_evidence, whole.log_evidence, rtol=rtol)
    assert runtime.load(tmp_path / "run").draws["mean"].shape == (8, 400)
    with pytest.raises(ValueError, match="populations is 100; expected 400, as in the run"):
        jaxprob.sample(POSTERIOR, KEY, devices=2, out=tmp_path / "run", resume=True, draws=100, **options)


def test_weighted_populations_are_drawn_from_by_their_weights():
    def importance(posterior, *, particles=2000):
        """Importance sampling from the prior: one step, after which particles keep their weights."""

        def init(position, key):
            population = smc.spawn(key, posterior.sample_prior, particles)
            return State(population, population.log_evidence, jnp.bool_(False))

        def step(key, state):
            population = smc.reweight(state.population, lambda q: posterior.split_log_density(q)[1])
            return State(population, population.log_evidence, jnp.bool_(True)), Info(population.effective_sample_size)

        return jaxprob.core.Algorithm(init, step)

    result = jaxprob.sample(POSTERIOR, KEY, algorithm=importance, devices=1)
    draws = result.draws["mean"].ravel()
    assert draws.size == 8000
    assert abs(draws.mean() - VARIANCE * Y.sum()) < 0.08  # ESS of about 4 x 300
    assert draws.std() == pytest.approx(np.sqrt(VARIANCE), rel=0.1)
    np.testing.assert_allclose(result.log_evidence, EVIDENCE, atol=0.3)


def test_a_log_density_with_a_reference_is_sampled_too():
    result = jaxprob.sample(
        lambda x: -0.5 * (x - 2) ** 2 / 0.25 + 3.0,
        KEY,
        algorithm=smc.tempered(
            reference=lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi), sample_prior=jax.random.normal, particles=1000
        ),
        devices=1,
    )
    assert result.draws.shape == (4, 1000)
    assert abs(result.draws.mean() - 2) < 0.05
    np.testing.assert_allclose(result.log_evidence, 3 + 0.5 * np.log(2 * np.pi * 0.25), atol=0.2)


def test_a_likelihood_that_is_zero_everywhere_is_told():
    @models.joint
    def impossible():
        x = yield "x", Normal(0.0, 1.0)
        yield "y", Normal(x + jnp.inf, 1.0)

    with pytest.raises(
        ValueError, match="posterior is of log evidence .* chain 0; expected a likelihood that is finite"
    ):
        jaxprob.sample(impossible().condition(y=0.0), KEY, algorithm=smc.tempered(particles=10), devices=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 200}, "draws is 200; expected at most the number of particles, 100"),
        ({"initial": {"mean": 0.0}}, r"initial is .*; expected None for tempered\(particles=100\)"),
        ({"thin": 2}, "thin is 2; expected 1"),
        ({"warmup": 1}, "warmup is 1, after which 4 of 4 populations are not done"),
        ({"warmup": 0}, "warmup is 0; expected None"),
        ({"interleave": True}, "interleave is True"),
    ],
)
def test_what_does_not_go_with_populations_is_told(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(particles=100), devices=1, **options)
    assert "\n" not in str(caught.value)


def test_there_is_no_evidence_of_a_chain():
    result = jaxprob.sample(POSTERIOR, KEY, chains=1, warmup=5, draws=5)
    with pytest.raises(ValueError, match="log_evidence is not estimated"):
        result.log_evidence
    with pytest.raises(ValueError, match="log_evidence_variance is not estimated"):
        result.log_evidence_variance


@pytest.mark.parametrize("sampler", [smc.nested, pytest.param(smc.persistent, marks=pytest.mark.slow)])
def test_draws_of_weighted_samplers_look_like_independent_ones(sampler):
    result = jaxprob.sample(POSTERIOR, KEY, algorithm=sampler(particles=500), chains=4, devices=1)
    assert result.draws["mean"].shape == (4, 500)
    assert result.summary().r_hat.max() < 1.05
    assert result.summary().ess_tail.min() > 500
    assert result.draws["mean"].std() == pytest.approx(np.sqrt(VARIANCE), rel=0.1)
    np.testing.assert_allclose(result.log_evidence, EVIDENCE, atol=0.4)


class Progress:
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def update(self, status):
        self.told.append(status)

    start = phase = finish = close = lambda self, *_: None


def test_steps_of_a_population_end_where_it_is_done():
    tally = Tally()
    rows = {"sample_stats/log_evidence": np.array([[-1.0, -2.0], [-3.0, -2.0]])}
    tally.add_populations(np.array([[False, False], [False, True]]), 0)
    tally.add(rows, True)
    assert [chain["steps"] for chain in tally.chains(0)] == [2, 2]
    assert [chain["log_evidence"] for chain in tally.chains(0)] == [-3.0, -2.0]
    tally.add_populations(np.array([[False, True], [True, True], [True, True]]), 2)
    assert [chain["steps"] for chain in tally.chains(0)] == [4, 2]
    assert "divergences" not in tally.chains(0)[0]


def test_progress_may_be_asked_for_by_true(capsys):
    jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(particles=100), chains=1, devices=1, progress=True)
    told = capsys.readouterr().out
    assert "log evidence" in told
    assert "inverse temperature 1" in told


def test_progress_knows_no_total_until_populations_are_done():
    progress = Progress()
    jaxprob.sample(POSTERIOR, KEY, algorithm=smc.tempered(particles=100), devices=1, progress=progress)
    assert progress.told[0]["phase"] == "warm-up"
    assert progress.told[0]["total"] is None
    first = progress.told[0]["chains"][0]
    assert set(first) == {"draws", "steps", "inverse_temperature", "acceptance_rate", "log_evidence", "step_size"} | (
        {"gradients_per_draw"} & set(first)
    )
    assert 1 <= first["steps"] < 30
    assert 0 < first["inverse_temperature"] <= 1
    last = progress.told[-1]["chains"]
    assert all(chain["inverse_temperature"] == 1 for chain in last)
    assert progress.told[-1]["step"] == progress.told[-1]["total"] == 100


def test_a_kernel_with_particles_is_no_population():
    from jaxprob.inference import particle
    from jaxprob.runtime._population import is_population

    assert is_population(smc.nested)
    assert is_population(smc.tempered(particles=10))
    assert not is_population(particle.marginal_metropolis)
    assert not is_population(partial(mcmc.nuts, max_tree_depth=3))
