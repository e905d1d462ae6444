"""Particle MCMC and SMC^2 against posteriors on a grid, and particle Gibbs by the joint test.

Many chains are mapped and start from a law that is known; z-scores are over chains, which are independent, |z| < 4.5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import Normal
from jaxprob.inference import particle, smc
from jaxprob.models.state_space import StateSpaceModel
from tests.inference.particle import _autoregression as oracle
from tests.inference.particle import _finite as finite

YS = jnp.asarray(oracle.YS, jnp.float32)
PRIOR_MEAN, PRIOR_SD = 0.4, 0.5
SPREAD = float(oracle.PARAMETERS[1])


def model_of(phi):
    return oracle.model_of(jnp.stack([phi, jnp.full_like(phi, SPREAD)]))


def log_prior(phi):
    return Normal(jnp.full_like(phi, PRIOR_MEAN), PRIOR_SD).log_prob(phi)


@functools.cache
def grid():
    """Mean, second moment and log evidence of the posterior of the dynamics, by a sum over a grid in float64."""
    phis = np.linspace(PRIOR_MEAN - 6 * PRIOR_SD, PRIOR_MEAN + 6 * PRIOR_SD, 1201)
    values = np.array([oracle.log_likelihood(np.array([phi, SPREAD])) for phi in phis])
    prior = np.exp(-0.5 * ((phis - PRIOR_MEAN) / PRIOR_SD) ** 2) / (PRIOR_SD * np.sqrt(2 * np.pi))
    weights = np.exp(values) * prior * (phis[1] - phis[0])
    return weights @ phis / weights.sum(), weights @ phis**2 / weights.sum(), np.log(weights.sum())


def z_scores(samples, exact):
    samples = np.asarray(samples, np.float64)
    return (samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


@pytest.mark.parametrize("refresh", [pytest.param(1.0, marks=pytest.mark.slow), 0.3])
def test_marginal_metropolis_has_the_posterior_of_the_grid(refresh):
    kernel = particle.marginal_metropolis(
        log_prior, model_of, YS, particles=12, step_size=0.7, refresh=refresh, resampler=smc.always()
    )

    def chain(key):
        first, start, rest = jax.random.split(key, 3)
        state = kernel.init(PRIOR_MEAN + PRIOR_SD * jax.random.normal(first), start)

        def one(state, index):
            state, info = kernel.step(jax.random.fold_in(rest, index), state)
            return state, (state.position, info.accepted)

        return jax.lax.scan(one, state, jnp.arange(350))[1]

    positions, accepted = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 100))
    kept = np.asarray(positions[:, 50:], np.float64)
    mean, second, _ = grid()
    z = z_scores(np.stack([kept.mean(1), (kept**2).mean(1)], 1), np.array([mean, second]))
    print(f"refresh {refresh}: accepted {float(accepted.mean()):.3f}, mean {kept.mean():.4f} ({mean:.4f}), z {z}")
    assert np.abs(z).max() < 4.5
    assert 0.2 < float(accepted.mean()) < 0.8


def test_twisted_particles_leave_hardly_any_noise_in_the_likelihood():
    """Of a linear-Gaussian model the twisting functions are exact, and so is the likelihood: the chain is marginal."""

    def init(proposal, particles, phi, key):
        kernel = particle.marginal_metropolis(log_prior, model_of, YS, particles=particles, proposal=proposal)
        return kernel.init(jnp.float32(phi), key).log_likelihood

    keys = jax.random.split(jax.random.key(3), 20)
    exact = oracle.log_likelihood(np.array([0.5, SPREAD]))
    steered, plain = jax.jit(
        lambda keys: [jax.vmap(functools.partial(init, how, 12, 0.5))(keys) for how in (particle.twisted(1), None)]
    )(keys)
    print(f"sd of the log likelihood: twisted {steered.std():.5f}, by the laws of the model {plain.std():.3f}")
    np.testing.assert_allclose(steered, exact, atol=1e-3)
    assert plain.std() > 0.2


@pytest.mark.parametrize("proposal", [particle.twisted(1), particle.kalman_guided()], ids=["twisted", "guided"])
def test_chains_of_other_proposals_have_the_posterior_of_the_grid(proposal):
    # Few particles and rough functions: what is exact is so whatever they are.
    kernel = particle.marginal_metropolis(
        log_prior, model_of, YS, particles=4, step_size=0.9, refresh=0.5, proposal=proposal
    )

    def chain(key):
        first, start, rest = jax.random.split(key, 3)
        state = kernel.init(PRIOR_MEAN + PRIOR_SD * jax.random.normal(first), start)
        one = lambda state, index: (kernel.step(jax.random.fold_in(rest, index), state)[0],) * 2  # noqa: E731
        return jax.lax.scan(one, state, jnp.arange(120))[1].position

    kept = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(5), 200))[:, 30:], np.float64)
    mean, second, _ = grid()
    z = z_scores(np.stack([kept.mean(1), (kept**2).mean(1)], 1), np.array([mean, second]))
    assert np.abs(z).max() < 4.5


def test_smc2_and_exchange_take_a_proposal():
    algorithm = particle.smc2(log_prior, model_of, YS, particles=4, threshold=0.0, proposal=particle.kalman_guided())
    phi = jnp.linspace(0.0, 0.8, 5)

    @jax.jit
    def run():
        state, _ = algorithm.step(jax.random.key(1), algorithm.init(phi, jax.random.key(0)))
        new = particle.exchange(jax.random.key(2), state, model_of, YS, particles=4, proposal=particle.kalman_guided())
        return state, new

    # Two normal observations by the best proposal: the weights vary through the first state alone.
    exact = [oracle.log_likelihood(np.array([x, SPREAD]), oracle.YS[:2]) for x in np.asarray(phi)]
    for state in run():
        np.testing.assert_allclose(state.log_likelihood, exact, atol=0.5)


def test_proposals_that_do_not_go_with_a_model():
    walk = lambda phi: broken_above(9, 1, 0.0)(phi)  # noqa: E731
    for proposal in (particle.kalman_guided(), particle.twisted(1)):
        kernel = particle.marginal_metropolis(log_prior, walk, THREE, particles=2, proposal=proposal)
        with pytest.raises(ValueError, match="proposal is .*; expected None for a smc.FeynmanKac"):
            kernel.init(jnp.float32(0.0), jax.random.key(0))
    algorithm = particle.smc2(log_prior, model_of, YS, particles=2, proposal=particle.twisted(1))
    with pytest.raises(TypeError, match="proposal is .*; expected one such as particle.guided"):
        algorithm.init(jnp.zeros(2), jax.random.key(0))
    with pytest.raises(ValueError, match="twisted: iterations is 0"):
        particle.twisted(0)


def test_a_part_of_the_random_numbers_is_kept_and_the_estimate_is_not_made_anew():
    kernel = particle.marginal_metropolis(log_prior, model_of, YS, particles=10, step_size=0.3, refresh=0.5)
    state = kernel.init(jnp.float32(0.5), jax.random.key(0))
    step = jax.jit(kernel.step)
    kept = []
    for seed in range(8):
        new, info = step(jax.random.key(seed + 1), state)
        same = (np.asarray(new.randomness) == np.asarray(state.randomness)).all(1)
        if bool(info.accepted):
            kept.append(same.mean())
        else:
            assert same.all()
            assert float(new.log_likelihood) == float(state.log_likelihood)
        state = new
    assert kept
    assert 0 < np.mean(kept) < 1


def test_smc2_has_the_evidence_and_the_posterior_of_the_grid():
    algorithm = particle.smc2(log_prior, model_of, YS, particles=40, threshold=0.6, moves=2)

    def run(key):
        first, start, rest = jax.random.split(key, 3)
        state = algorithm.init(PRIOR_MEAN + PRIOR_SD * jax.random.normal(first, (64,)), start)
        body = lambda state, index: algorithm.step(jax.random.fold_in(rest, index), state)  # noqa: E731
        state, info = jax.lax.scan(body, state, jnp.arange(len(oracle.YS)))
        population = state.population
        moments = population.expectation(lambda phi: jnp.stack([phi, phi**2]))
        return state.log_evidence, moments, info, state.time

    evidence, moments, info, time = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 48))
    mean, second, log_evidence = grid()
    z = z_scores(np.exp(np.asarray(evidence, np.float64) - log_evidence), 1.0)
    z2 = z_scores(moments, np.array([mean, second]))
    print(f"smc2: evidence {np.asarray(evidence).mean():.4f} ({log_evidence:.4f}), z {z:.2f}, moments z {z2}")
    print(f"moved {float(info.moved.mean()):.2f}, sd of the evidence {np.asarray(evidence).std():.3f}")
    assert abs(z) < 4.5
    assert np.abs(z2).max() < 4.5
    # The last step of six is beyond the last of the six data, of which init takes one.
    assert (np.asarray(time) == len(oracle.YS) - 1).all()
    assert (np.asarray(info.log_increment)[:, -1] == 0).all()
    assert 0 < float(info.moved.mean()) < 1


def test_an_exchange_of_filters_keeps_evidence_and_posterior():
    few = particle.smc2(log_prior, model_of, YS[:3], particles=5, threshold=0.0)

    def run(key):
        first, start, for_step, for_exchange = jax.random.split(key, 4)
        state = few.init(PRIOR_MEAN + PRIOR_SD * jax.random.normal(first, (64,)), start)
        state, _ = few.step(for_step, state)
        new = particle.exchange(for_exchange, state, model_of, YS[:3], particles=8)
        phi = new.position
        return integral(new, jnp.ones_like(phi)), integral(new, phi), new

    def integral(state, values):
        weights = jnp.exp(state.log_weights - jax.nn.logsumexp(state.log_weights))
        return jnp.exp(state.log_evidence) * jnp.sum(weights * values)

    ones, phis, new = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(4), 300))
    assert new.filters.population.log_weights.shape == (300, 64, 8)
    phi = np.linspace(PRIOR_MEAN - 6 * PRIOR_SD, PRIOR_MEAN + 6 * PRIOR_SD, 1201)
    likelihood = np.exp([oracle.log_likelihood(np.array([x, SPREAD]), oracle.YS[:2]) for x in phi])
    prior = np.exp(-0.5 * ((phi - PRIOR_MEAN) / PRIOR_SD) ** 2) / (PRIOR_SD * np.sqrt(2 * np.pi)) * (phi[1] - phi[0])
    # Both are unbiased: the mass, and the integral of the parameter.
    z = z_scores(np.stack([ones, phis], 1), np.array([(prior * likelihood).sum(), (prior * likelihood * phi).sum()]))
    print(f"exchange: z {z}")
    assert np.abs(z).max() < 4.5


THREE = jnp.array([0.5, -0.2, 1.0])


def broken_above(limit, time, value):
    """A model whose potential at a time is a given value where the parameter is above a limit, and nowhere else."""

    def potential(phi, x, t, y):
        return jnp.where((phi > limit) & (t == time), value, -0.5 * (y - x) ** 2)

    def model_of(phi):
        return smc.FeynmanKac(
            initial=lambda key, y: jax.random.normal(key),
            log_initial_potential=lambda x, y: potential(phi, x, 0, y),
            transition=lambda key, x, t, y: phi * x + jax.random.normal(key),
            log_potential=lambda old, x, t, y: potential(phi, x, t, y),
        )

    return model_of


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("time", [0, 2])
def test_a_proposal_without_a_likelihood_is_rejected_and_told(value, time):
    prior = lambda phi: jnp.where(phi > 4, -jnp.inf, -0.5 * phi**2)  # noqa: E731
    kernel = particle.marginal_metropolis(prior, broken_above(0, time, value), THREE, particles=5, step_size=3.0)
    states, infos = jax.vmap(lambda key: kernel.step(jax.random.fold_in(key, 1), kernel.init(jnp.float32(-0.1), key)))(
        jax.random.split(jax.random.key(0), 100)
    )
    told = np.asarray(infos.failed_at)
    assert set(told) == {-1, time}
    assert (np.asarray(states.position) <= 0).all()
    assert (~np.asarray(infos.accepted))[told == time].all()
    np.testing.assert_array_equal(np.asarray(infos.log_likelihood)[told == time], value)
    # Where the prior is zero the model need not be one, and nothing is amiss.
    outside = (np.asarray(infos.log_likelihood) == -np.inf) & (told == -1)
    assert outside.any()
    assert 0.3 < np.mean(told == time) < 0.5
    # A chain that begins where there is none is told of by its state, and leaves.
    state = kernel.init(jnp.float32(1.0), jax.random.key(1))
    np.testing.assert_equal(float(state.log_likelihood), value)
    np.testing.assert_equal(float(state.log_density), value)
    moved, info = jax.vmap(lambda key: kernel.step(key, state))(jax.random.split(jax.random.key(2), 50))
    assert (np.asarray(info.accepted) == (np.asarray(moved.position) <= 0)).all()
    assert np.asarray(info.accepted).any()


def test_smc2_tells_of_parameters_whose_likelihood_is_no_number():
    @jax.jit
    def run(limit, time, value, threshold):
        model = broken_above(limit, time, value)
        options = {"particles": 4, "threshold": threshold, "moves": 1}
        algorithm = particle.smc2(lambda phi: -0.5 * phi**2, model, THREE, **options)
        state = algorithm.init(jnp.linspace(-1.0, 1.0, 32), jax.random.key(0))
        body = lambda state, index: algorithm.step(jax.random.fold_in(jax.random.key(1), index), state)  # noqa: E731
        return jax.lax.scan(body, state, jnp.arange(2))

    for time in (0, 2):
        state, info = run(0.0, time, np.nan, 0.0)
        assert int(state.failed_at) == time
        np.testing.assert_array_equal(info.failed, [0, 0.5 if time == 2 else 0])
        assert (np.asarray(state.log_weights) > -np.inf).sum() == 16
        impossible, info = run(0.0, time, -np.inf, 0.0)
        assert int(impossible.failed_at) == -1
        assert (np.asarray(info.failed) == 0).all()
        np.testing.assert_allclose(impossible.log_evidence, state.log_evidence, rtol=1e-5)
        assert np.isfinite(float(state.log_evidence))
    # Proposals are told of as well: parameters above the limit come by moves alone.
    state, info = run(1.01, 0, np.nan, 0.999)
    assert np.asarray(info.moved).all()
    assert int(state.failed_at) == 0
    assert (np.asarray(info.failed) == 0).all()
    assert (np.asarray(state.position) <= 1.01).all()
    # Where no parameter is left there is no evidence, now and later.
    state, _ = run(-9.0, 1, -np.inf, 0.5)
    assert float(state.log_evidence) == -np.inf


def test_an_exchange_tells_of_filters_that_fail():
    whole, broken = broken_above(9, 1, 0.0), broken_above(0, 1, np.nan)

    @jax.jit
    def run():
        algorithm = particle.smc2(lambda phi: -0.5 * phi**2, whole, THREE, particles=4, threshold=0.0)
        state, _ = algorithm.step(jax.random.key(1), algorithm.init(jnp.linspace(-1.0, 1.1, 8), jax.random.key(0)))
        return state, particle.exchange(jax.random.key(2), state, broken, THREE, particles=6)

    state, new = run()
    assert int(state.failed_at) == -1
    assert int(new.failed_at) == 1
    assert (np.asarray(new.log_weights) == -np.inf).sum() == 4


OBSERVED_SD, INNOVATION, STEPS, CHAINS = 0.7, 0.5, 4, 4096


def _next(phi, x, t):
    return Normal(phi * x, jnp.full_like(x, INNOVATION))


def _seen(x, t):
    return Normal(x, jnp.full_like(x, OBSERVED_SD))


def joint_model(phi):
    return StateSpaceModel(Normal(jnp.float32(0), jnp.float32(1)), jax.tree_util.Partial(_next, phi), _seen)


@pytest.mark.parametrize("options", [{"method": "ancestor_sampling"}, {"method": "backward", "threshold": 0.7}])
def test_particle_gibbs_with_a_parameter_keeps_the_joint_law(options):
    """Geweke's joint test: parameter, states and data, each drawn given the others, stay as the model draws them."""

    def chain(key):
        first, rest = jax.random.split(key)
        for_phi, for_model = jax.random.split(first)
        phi = 0.5 * jax.random.normal(for_phi)
        states, ys = joint_model(phi).sample(for_model, STEPS)
        start = phi, states, ys

        def one(carry, index):
            phi, states, _ = carry
            for_states, for_phi, for_ys = jax.random.split(jax.random.fold_in(rest, index), 3)
            # Data first, so that the last states are looked at beside the data that they were drawn given.
            ys = states + OBSERVED_SD * jax.random.normal(for_ys, states.shape)
            kernel = particle.gibbs(joint_model(phi), ys, particles=4, **options)
            states = kernel.step(for_states, particle.GibbsState(states))[0].position
            precision = 1 / 0.5**2 + jnp.sum(states[:-1] ** 2) / INNOVATION**2
            mean = jnp.sum(states[:-1] * states[1:]) / INNOVATION**2 / precision
            phi = mean + jax.random.normal(for_phi) / jnp.sqrt(precision)
            return (phi, states, ys), None

        end = jax.lax.scan(one, start, jnp.arange(12))[0]
        return start, end

    start, end = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(2), CHAINS))
    phi, states, ys = (np.asarray(leaf, np.float64) for leaf in end)
    functions = {
        "phi": (phi, 0),
        "phi^2": (phi**2, 0.25),
        "x_0": (states[:, 0], 0),
        "x_0^2": (states[:, 0] ** 2, 1),
        "x_0 x_1": (states[:, 0] * states[:, 1], 0),
        "phi x_0 x_1": (phi * states[:, 0] * states[:, 1], 0.25),
        "x_1^2": (states[:, 1] ** 2, 0.25 + INNOVATION**2),
        "y_1^2": (ys[:, 1] ** 2, 0.25 + INNOVATION**2 + OBSERVED_SD**2),
        "x_1 y_1": (states[:, 1] * ys[:, 1], 0.25 + INNOVATION**2),
        "x_0 y_0": (states[:, 0] * ys[:, 0], 1),
        "|phi| < 0.3": (np.abs(phi) < 0.3, 0.4514938),
    }
    z = {name: z_scores(values, exact) for name, (values, exact) in functions.items()}
    print(options, {name: f"{value:.2f}" for name, value in z.items()})
    assert max(map(abs, z.values())) < 4.5
    # Nothing is where it was: the test would say little of a chain that stays.
    assert np.abs(np.corrcoef(np.asarray(start[0]), phi)[0, 1]) < 0.5


def test_gibbs_refuses_what_is_not_exact():
    model, data = finite.model(), jnp.arange(3)
    for options, says in (
        ({"method": "ancestor_sampling", "scheme": smc.systematic}, "multinomial"),
        ({"method": "ancestor_sampling", "threshold": 0.5}, "threshold"),
        ({"method": "ancestors"}, "method"),
        ({"particles": 1}, "particles"),
        ({"scheme": smc.ssp}, "scheme"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            particle.gibbs(model, data, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="log_kernel"):
        particle.gibbs(model._replace(log_kernel=None), data)


def test_other_bad_arguments_are_one_line():
    for make in (
        lambda: particle.marginal_metropolis(log_prior, model_of, YS, particles=0),
        lambda: particle.marginal_metropolis(log_prior, model_of, YS, particles=5, refresh=0.0),
        lambda: particle.marginal_metropolis(log_prior, model_of, YS[:0], particles=5),
        lambda: particle.smc2(log_prior, model_of, YS, particles=5, threshold=2.0),
        lambda: particle.smc2(log_prior, model_of, YS, particles=5, moves=0),
        lambda: particle.score(jax.random.key(0), model_of, jnp.float32(0.1), YS, method="fixed_lag"),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            make()
    with pytest.raises(TypeError, match="log_prior"):
        particle.smc2(None, model_of, YS, particles=5)


def test_a_trajectory_of_one_time():
    for method in ("ancestor_sampling", "backward", "genealogy"):
        kernel = particle.gibbs(finite.model(), jnp.arange(1), particles=3, method=method)
        state, _ = kernel.step(jax.random.key(1), kernel.init(None, jax.random.key(0)))
        assert state.position.shape == (1,)
        assert state.position.dtype == jnp.int32
