"""Chains that start at draws of an approximation: in the bulk, each at its own, by its own key, and resumable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxprob
from jaxprob import core, models
from jaxprob.distributions import HalfNormal, Normal
from jaxprob.inference import mcmc, vi
from jaxprob.runtime import _program
from tests.runtime.test_resume import Stopper, assert_same, short_chunks  # noqa: F401

NAMES = ["laplace", "pathfinder"]


@models.joint
def regression(x):
    """A slope far from where the prior would start it, a scale, and sharp data."""
    slope = yield "slope", Normal(jnp.zeros(3), 100.0)
    sigma = yield "sigma", HalfNormal(5.0)
    yield "y", Normal(jnp.sum(x * jnp.expand_dims(slope, 0), axis=1), sigma)


@pytest.fixture
def posterior(rng):
    x = rng.normal(size=(200, 3))
    y = x @ np.array([30.0, -20.0, 10.0]) + 0.1 * rng.normal(size=200)
    return regression(jnp.asarray(x, jnp.float32)).condition(y=jnp.asarray(y, jnp.float32))


class Seen(NamedTuple):
    log_density: jax.Array


def still(target):
    """An algorithm that stays where it starts, so that the first draws are the starts."""
    kernel = mcmc.nuts(target.log_density)
    return core.Algorithm(kernel.init, lambda key, state: (state, Seen(state.log_density)))


@pytest.mark.parametrize("name", NAMES)
def test_chains_start_in_the_bulk_each_at_its_own_place(posterior, name):
    """Twice the fall of the log density from the mode is chi-squared of 4, nearly: below its quantile of 1 - 1e-6."""
    run = jaxprob.sample(
        posterior, jax.random.key(0), initial=name, algorithm=still(posterior), chains=8, draws=1, devices=1
    )
    mode = vi.laplace(posterior, key=jax.random.key(1))
    heights = np.asarray(run.stats["log_density"])[:, 0]
    assert np.all(2 * (float(mode.log_density) - heights) < scipy.stats.chi2(4).isf(1e-6) + 2)
    assert len(np.unique(np.asarray(run.draws["sigma"])[:, 0])) >= 7
    # The prior, from which a posterior starts otherwise, is nowhere near.
    other = jaxprob.sample(posterior, jax.random.key(0), algorithm=still(posterior), chains=8, draws=1, devices=1)
    assert np.all(np.asarray(other.stats["log_density"]) < heights.min() - 1000)


def test_a_chain_starts_at_its_own_draw_however_many_there_are(posterior):
    def starts(chains, devices):
        options = {"algorithm": still(posterior), "chains": chains, "draws": 1, "devices": devices}
        return jaxprob.sample(posterior, jax.random.key(3), initial="pathfinder", **options).draws["slope"][:, 0]

    np.testing.assert_array_equal(starts(2, 1), starts(4, 2)[:2])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(posterior, name, tmp_path, short_chunks):  # noqa: F811
    options = {"initial": name, "chains": 2, "warmup": 100, "draws": 200, "devices": 1}
    whole = jaxprob.sample(posterior, jax.random.key(4), **options)
    stopped = jaxprob.sample(posterior, jax.random.key(4), out=tmp_path / "run", progress=Stopper(40), **options)
    assert stopped.status == "stopped"
    resumed = jaxprob.sample(posterior, jax.random.key(4), out=tmp_path / "run", resume=True, **options)
    assert resumed.status == "finished"
    assert_same(resumed.draws, whole.draws)
    assert np.max(np.abs(np.mean(np.asarray(resumed.draws["slope"]), (0, 1)) - np.array([30, -20, 10]))) < 0.1


def test_a_log_density_starts_at_draws_of_its_own_pathfinder():
    def log_density(x):
        return -0.5 * jnp.sum((x - 50.0) ** 2)

    found = jax.jit(lambda key: vi.pathfinder(log_density, jnp.zeros(3), key))(jax.random.key(0))
    kernel = mcmc.nuts(log_density, step_size=0.5, inverse_mass_matrix=found.inverse_mass_matrix)
    run = jaxprob.sample(log_density, jax.random.key(1), initial=found.initial, algorithm=kernel, chains=4, draws=20)
    assert np.max(np.abs(np.asarray(run.draws) - 50)) < 7  # of 240 standard normals: false alarm 1e-9


@pytest.mark.parametrize("name", ["values", "prior", "pathfinder", "guide"])
def test_a_start_is_unconstrained_once_whoever_draws_it(posterior, name):
    """A function of the user's gives values; methods of the posterior and of approximations give positions."""

    def values(key):
        slope, sigma = jnp.split(jax.random.normal(key, (4,)), [3])
        return {"slope": slope, "sigma": jnp.exp(sigma[0])}

    guide = vi.mean_field().init(jax.random.key(2), {"slope": jnp.zeros(3), "sigma": jnp.float32(-1.0)})
    draws = {"slope": jnp.arange(15.0).reshape(5, 3), "sigma": jnp.linspace(-2, 1, 5)}
    found = vi.Pathfinder(None, None, jnp.zeros(()), jnp.zeros(1), draws, jnp.ones(()), jnp.bool_(True))
    draw = {
        "values": values,
        "prior": posterior.sample_prior,
        "pathfinder": found.initial,
        "guide": guide.sample,
    }[name]
    run = jaxprob.sample(
        posterior, jax.random.key(5), initial=draw, algorithm=still(posterior), chains=3, draws=1, devices=1
    )
    for chain in range(3):
        drawn = draw(_program.start_key(core.fold(jax.random.key(5), chain), 0))
        expected = drawn if name == "values" else posterior.constrain(drawn)
        for quantity in ("slope", "sigma"):
            np.testing.assert_allclose(run.draws[quantity][chain, 0], expected[quantity], rtol=1e-5)


def no_mode():
    """The density has no bound where the scale goes to zero."""

    @models.joint
    def funnel():
        scale = yield "scale", HalfNormal(3.0)
        x = yield "x", Normal(jnp.zeros(9), scale)
        yield "y", Normal(jnp.sum(0.0 * x), 1.0)

    return funnel().condition(y=jnp.float32(0.0))


def impossible():
    @models.joint
    def program():
        x = yield "x", Normal(jnp.zeros(2), 1.0)
        yield "y", Normal(jnp.sqrt(-1 - x**2), 1.0)

    return program().condition(y=jnp.zeros(2))


def bare():
    return lambda x: -jnp.sum(x**2)


@pytest.mark.parametrize(
    ("target", "initial", "words"),
    [
        (no_mode, "Pathfinder", "sample: initial is 'Pathfinder'; expected 'laplace' or 'pathfinder'"),
        (no_mode, "laplace", "sample: initial is 'laplace', which found no mode"),
        (bare, "pathfinder", r"pass initial=vi.pathfinder\(log_density, start, key\).initial"),
        (bare, "laplace", r"pass initial=vi.laplace\(log_density, start\).sample"),
        (impossible, "pathfinder", "sample: initial is 'pathfinder', which found no finite log density"),
        (impossible, "laplace", "sample: initial is 'laplace', which found no mode"),
    ],
)
def test_what_cannot_start_is_said_in_one_line(target, initial, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        jaxprob.sample(target(), jax.random.key(0), initial=initial, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
