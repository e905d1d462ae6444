"""Parallel tempering: temperatures keep their laws, modes far apart get their weights, the ladder learns its path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _parallel_tempering as tempering

POOLED = core.Shared(0, None)
WALK = partial(mcmc.random_walk_metropolis, step_size=1.0)
HMC = partial(mcmc.hmc, step_size=0.4, num_integration_steps=4)


def two_bumps(x):
    return jnp.logaddexp(np.log(0.3) - 2 * (x + 2) ** 2, np.log(0.7) - 0.5 * (x - 1) ** 2)


def wide(x):
    return -0.5 * (x / 3) ** 2


def run_pooled(tuning, key, chains, num_steps, positions):
    state = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")(positions, jax.random.split(key, chains))

    def body(state, index):
        keys = jax.vmap(lambda chain: core.fold(key, chain, index))(jnp.arange(chains))
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")
        return step(keys, state)

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(num_steps)))(state)


def run_chains(algorithm, seed, chains, num_steps, position):
    @jax.jit
    @jax.vmap
    def run(key):
        def body(state, index):
            state, info = algorithm.step(core.fold(key, index), state)
            return state, (core.position_of(state), info)

        state = algorithm.init(position, core.fold(key, 2**31))
        return jax.lax.scan(body, state, jnp.arange(num_steps))[1]

    return run(jax.random.split(jax.random.key(seed), chains))


@pytest.mark.parametrize("kernel", [WALK, HMC])
def test_each_temperature_keeps_its_law(kernel):
    """Exact draws at four temperatures, three transitions: Kolmogorov-Smirnov at each, false alarm 1e-6 each."""
    betas, chains, rng = np.array([1.0, 0.6, 0.3, 0.0]), 16_000, np.random.default_rng(0)
    grid = np.linspace(-20, 20, 200_001)
    bumps = np.logaddexp(np.log(0.3) - 2 * (grid + 2) ** 2, np.log(0.7) - 0.5 * (grid - 1) ** 2)
    laws = []
    for beta in betas:
        density = np.exp((1 - beta) * -0.5 * (grid / 3) ** 2 + beta * bumps)
        law = np.cumsum(density)
        laws.append(law / law[-1])
    draws = np.stack([np.interp(rng.uniform(size=chains), law, grid) for law in laws], axis=1)
    parts, _ = tempering.path("test", two_bumps, wide, None, None)

    @jax.jit
    @jax.vmap
    def run(key, positions):
        state = tempering.restart(kernel, parts, jnp.asarray(betas, jnp.float32), None, positions, core.fold(key, 0))
        algorithm = mcmc.parallel_tempering(kernel, two_bumps, reference=wide, inverse_temperatures=betas)
        for index in range(1, 4):
            state, info = algorithm.step(core.fold(key, index), state)
        return state, info

    state, info = run(jax.random.split(jax.random.key(1), chains), jnp.asarray(draws, jnp.float32))
    after = np.asarray(core.position_of(state.replicas), float)
    assert 0.2 < info.swap_rate.mean() < 0.9
    for k in range(4):
        assert scipy.stats.kstest(after[:, k], lambda x, k=k: np.interp(x, grid, laws[k])).pvalue > 1e-6, k
    # Replicas are independent of each other.
    assert np.abs(np.corrcoef(after.T)[np.triu_indices(4, 1)]).max() < 5 / np.sqrt(chains)
    np.testing.assert_array_equal(state.position, state.replicas.position[:, 0])


def test_states_are_right_for_their_temperature(x64):
    """After swaps every replica's log density and gradient are those at its place on the ladder."""
    betas = jnp.array([1.0, 0.5, 0.2, 0.0])
    for kernel in (HMC, WALK):
        algorithm = mcmc.parallel_tempering(kernel, two_bumps, reference=wide, inverse_temperatures=betas)
        state = algorithm.init(jnp.float64(0.3), jax.random.key(0))
        swapped = 0
        for index in range(12):
            before = core.position_of(state.replicas)
            state, _ = jax.jit(algorithm.step)(jax.random.key(index), state)
            x = core.position_of(state.replicas)
            swapped += int(jnp.any(x[:-1] == before[1:]))
            exact = (1 - betas) * jax.vmap(wide)(x) + betas * jax.vmap(two_bumps)(x)
            np.testing.assert_allclose(state.replicas.log_density, exact, rtol=1e-10)
            if kernel is HMC:
                gradient = (1 - betas) * jax.vmap(jax.grad(wide))(x) + betas * jax.vmap(jax.grad(two_bumps))(x)
                np.testing.assert_allclose(state.replicas.log_density_gradient, gradient, rtol=1e-9, atol=1e-12)
    assert swapped


def test_paths_of_one_law_are_one_path():
    """A reference that is the prior, and the prior and likelihood apart; a power is a flat reference."""

    def likelihood(x):
        return -2 * (x - 1) ** 2

    def posterior(x):
        return wide(x) + likelihood(x)

    betas = [1.0, 0.4, 0.1]
    pairs = [
        (dict(log_density=posterior, reference=wide), dict(log_prior=wide, log_likelihood=likelihood)),
        (dict(log_density=posterior), dict(log_density=posterior, reference=lambda x: 0.0 * x)),
    ]
    for pair in pairs:
        one, two = (mcmc.parallel_tempering(HMC, inverse_temperatures=betas, **options) for options in pair)
        for a, b in zip(*(run_chains(x, 3, 4, 20, jnp.float32(0.0))[0] for x in (one, two)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_round_trips_of_a_conveyor():
    """Where the target is the reference every swap is made, and positions go round like on a belt."""
    kernel = mcmc.parallel_tempering(WALK, wide, reference=wide, inverse_temperatures=[1.0, 0.7, 0.3, 0.2, 0.0])
    _, info = run_chains(kernel, 0, 1, 60, jnp.float32(0.0))
    belt, trips, counts = [False] * 4 + [True], 0, []
    for step in range(60):
        for k in range(step % 2, 4, 2):
            belt[k], belt[k + 1] = belt[k + 1], belt[k]
        trips += belt[0]
        belt[0], belt[-1] = False, True
        counts.append(trips)
    np.testing.assert_array_equal(info.round_trips[0], counts)
    np.testing.assert_allclose(info.swap_rate, 1)
    np.testing.assert_allclose(info.barrier, 0, atol=1e-5)
    np.testing.assert_allclose(info.log_evidence, 0, atol=1e-5)
    assert trips > 20


SIZE = 3


def far_apart(x):
    """Modes at -5 and 5 in each dimension's diagonal, 10 sd apart, of weights 0.3 and 0.7."""
    shift = jnp.ones(SIZE, x.dtype) * (5 / np.sqrt(SIZE))
    left, right = (-0.5 * jnp.sum((x - sign * shift) ** 2) for sign in (-1, 1))
    return jnp.logaddexp(np.log(0.3) + left, np.log(0.7) + right)


def reference(x):
    return -0.5 * jnp.sum((x / 6) ** 2) - SIZE * np.log(6)


def test_modes_ten_standard_deviations_apart():
    """The weight of a mode by z-score, 64 chains from the wrong mode; false alarm of |t| < 5 with 63: 5e-6."""
    start = -jnp.ones(SIZE) * (5 / np.sqrt(SIZE))
    draws, _ = run_chains(HMC(far_apart), 1, 64, 1000, start)
    assert (np.asarray(draws).sum(axis=2) < 0).all()  # the kernel alone never gets there
    tuning = mcmc.tempering_warmup(
        partial(mcmc.hmc, num_integration_steps=4),
        far_apart,
        reference=reference,
        num_steps=300,
        num_temperatures=8,
        target_acceptance=0.8,
        axis_name="chain",
    )
    state, _ = run_pooled(tuning, jax.random.key(2), 64, 300, jnp.broadcast_to(start, (64, SIZE)))
    kernel = tuning.finish(state)

    @jax.jit
    @jax.vmap
    def sample(key, state):
        def body(state, index):
            state, info = kernel.step(core.fold(key, index), state)
            return state, (state.position, info)

        return jax.lax.scan(body, state, jnp.arange(1500))[1]

    draws, info = sample(jax.random.split(jax.random.key(3), 64), state.chain.kernel)
    right = (np.asarray(draws).sum(axis=2) > 0).mean(axis=1)
    error = right.std(ddof=1) / 8
    assert error < 0.02
    assert abs(right.mean() - 0.7) < 5 * error
    assert abs(info.acceptance_rate.mean() - 0.8) < 0.08
    assert info.round_trips[:, -1].min() > 20
    # log Z of the target over that of the reference, both with density (2 pi)^(-3/2) left out: 0.
    evidence = np.asarray(info.log_evidence)[:, -1]
    assert abs(evidence.mean()) < 5 * evidence.std(ddof=1) / 8 + 0.02  # and the bias of the log of a mean


def gaussian_barrier(dimensions, wide_scale, narrow_scale):
    """Lambda of the path between centred Gaussians: d G log(s0 / s1), G the Gini index of a Gamma(d / 2)."""
    shape = dimensions / 2
    gini = np.exp(scipy.special.gammaln(shape + 0.5) - scipy.special.gammaln(shape + 1)) / np.sqrt(np.pi)
    return dimensions * gini * np.log(wide_scale / narrow_scale)


def test_the_closed_form_of_the_barrier(rng):
    """Half the mean distance of two log ratios along the path, by Monte Carlo and quadrature."""
    betas, nodes = np.polynomial.legendre.leggauss(40)
    betas, nodes = (betas + 1) / 2, nodes / 2
    rates = []
    for beta in betas:
        precision = (1 - beta) / 9 + beta / 0.25
        x = rng.chisquare(4, size=(2, 100_000)) / precision
        rates.append(0.5 * np.abs(0.5 * (1 / 0.25 - 1 / 9) * (x[0] - x[1])).mean())
    np.testing.assert_allclose(nodes @ rates, gaussian_barrier(4, 3, 0.5), rtol=0.01)


def test_the_ladder_of_a_gaussian_path():
    """Rejections alike, the barrier and the evidence as in closed form.

    Rejections come from 64 chains of 1,000 transitions, with standard errors of about 0.002; what is left of the 0.02
    is the last round's error and that of linear interpolation. The sum of the rejections is below Lambda, by a share
    that falls as their square (Syed et al. 2021, theorem 2): 5 % where they are 0.39, and so 2 % where they are 0.26.
    """
    size, s0, s1 = 4, 3.0, 0.05

    def prior(x):
        return -0.5 * jnp.sum((x / s0) ** 2) - size * np.log(s0)

    def likelihood(x):
        return -0.5 * (1 / s1**2 - 1 / s0**2) * jnp.sum(x**2)

    tuning = mcmc.tempering_warmup(
        partial(mcmc.hmc, num_integration_steps=5),
        log_prior=prior,
        log_likelihood=likelihood,
        num_steps=600,
        num_temperatures=24,
        target_acceptance=0.8,
        axis_name="chain",
    )
    state, _ = run_pooled(tuning, jax.random.key(5), 64, 600, jnp.zeros((64, size)))
    parts, _ = tempering.path("test", None, None, prior, likelihood)
    shared = state.shared

    @jax.jit
    @jax.vmap
    def sample(key, state):
        def body(state, index):
            new = tempering.transition(
                partial(mcmc.hmc, num_integration_steps=5),
                parts,
                shared.inverse_temperatures,
                shared.step_sizes,
                core.fold(key, index),
                state,
            )
            return new.state, (1 - new.swaps, new.rates, new.info)

        return jax.lax.scan(body, state, jnp.arange(1000))[1]

    rejections, rates, info = sample(jax.random.split(jax.random.key(6), 64), state.chain.kernel)
    mean = np.asarray(rejections, float).mean(axis=(0, 1))
    barrier = gaussian_barrier(size, s0, s1)
    assert np.abs(mean - mean.mean()).max() < 0.02
    assert abs(mean.sum() / barrier - 1) < 0.03
    np.testing.assert_allclose(info.barrier.mean(), mean.sum(), rtol=1e-3)
    # Dual averaging had 120 transitions for each step size, and errs on the small side.
    rates = np.asarray(rates).mean(axis=(0, 1))
    assert abs(rates.mean() - 0.8) < 0.1
    assert np.abs(rates - 0.8).max() < 0.17
    evidence = np.asarray(info.log_evidence, float)[:, -1]
    exact = size * np.log(s1) - size * np.log(s0)
    error = evidence.std(ddof=1) / 8
    assert error < 0.05
    assert abs(evidence.mean() - exact) < 5 * error


def test_devices_change_no_bit():
    tuning = mcmc.tempering_warmup(
        WALK, two_bumps, reference=wide, num_steps=25, num_temperatures=4, axis_name=("devices", "chain")
    )
    states = []
    for devices in (1, 2, 8):
        mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        local = 16 // devices
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")

        def program(key, start, local=local, step=step):
            keys = core.chain_keys(key, jax.lax.axis_index("devices") * local + jnp.arange(local))

            def body(index, state):
                return step(jax.vmap(lambda key: core.fold(key, index))(keys), state)[0]

            init = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")
            return jax.lax.fori_loop(0, 30, body, init(start, keys))

        specs = core.Shared(P("devices"), P())
        run = jax.shard_map(program, mesh=mesh, in_specs=(P(), P("devices")), out_specs=specs, check_vma=False)
        states.append(jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(5), jnp.linspace(-1, 1, 16))))
    assert not np.array_equal(states[0].shared.inverse_temperatures[1:3], [8 / 27, 1 / 27])
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_bad_arguments():
    make = partial(mcmc.parallel_tempering, WALK, inverse_temperatures=[1.0, 0.5])
    with pytest.raises(TypeError, match="log_density is missing; expected either log_density, or log_prior"):
        make()
    with pytest.raises(TypeError, match="log_density is given with a prior"):
        make(wide, log_prior=wide, log_likelihood=wide)
    with pytest.raises(TypeError, match="parallel_tempering: log_likelihood is None"):
        make(log_prior=wide)
    with pytest.raises(TypeError, match="parallel_tempering: kernel is 3"):
        mcmc.parallel_tempering(3, wide, inverse_temperatures=[1.0, 0.5])
    for betas in ([1.0], [0.9, 0.5], [1.0, 1.0], [1.0, 0.2, 0.5], [1.0, -0.1], [1.0, 0.0], 1.0, [1.0, np.nan]):
        with pytest.raises(ValueError, match="inverse_temperatures is"):
            mcmc.parallel_tempering(WALK, wide, inverse_temperatures=betas)
    mcmc.parallel_tempering(WALK, two_bumps, reference=wide, inverse_temperatures=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"step_sizes is of shape \(3,\)"):
        make(wide, step_sizes=jnp.ones(3))
    tune = partial(mcmc.tempering_warmup, WALK, wide)
    with pytest.raises(ValueError, match="tempering_warmup: hottest is 0"):
        tune()
    for name, value in (("num_steps", -1), ("num_temperatures", 1), ("hottest", 1.0), ("target_acceptance", 1.0)):
        with pytest.raises(ValueError, match=f"tempering_warmup: {name} is {value}"):
            tune(**{"hottest": 0.1, name: value})
