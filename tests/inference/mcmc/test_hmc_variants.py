"""Variants of HMC: lengths and step sizes that vary, a choice from the whole trajectory, momenta that persist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc
from tests.inference._quartic import numpy_density, numpy_gradient, quartic


def energy(q, z):
    return -numpy_density(q) + 0.5 * z @ z


def leapfrog(q, z, step):
    z = z + 0.5 * step * numpy_gradient(q)
    q = q + step * z
    return q, z + 0.5 * step * numpy_gradient(q)


def test_lengths_and_step_sizes_vary_within_their_bounds():
    kernel = mcmc.hmc(quartic, 0.1, num_integration_steps=(3, 6), jitter=0.5)
    keys = jax.random.split(jax.random.key(0), 2000)
    state = kernel.init(jnp.ones(3), jax.random.key(1))
    _, info = jax.jit(jax.vmap(lambda key: kernel.step(key, state)))(keys)
    counts = np.bincount(np.asarray(info.num_steps), minlength=7)[3:]
    assert counts.sum() == 2000
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500 * 0.75))  # false alarm 6e-7 each
    sizes = np.asarray(info.step_size) / 0.1
    assert sizes.min() > 0.5 > sizes.min() - 0.01
    assert sizes.max() < 1.5 < sizes.max() + 0.01
    assert abs(sizes.mean() - 1) < 5 * np.sqrt(1 / 12 / 2000)


def test_a_transition_of_varied_length_is_that_of_numpy(x64, rng):
    cases, low, high, size, jitter = 100, 2, 6, 0.45, 0.4
    positions = rng.normal(size=(cases, 3))

    def keys():
        return jax.random.split(jax.random.key(7), cases)

    @jax.jit
    @jax.vmap
    def numbers(key):
        key, length_key, size_key = jax.random.split(key, 3)
        momentum_key, uniform_key = jax.random.split(key)
        return (
            jax.random.randint(length_key, (), low, high + 1, "int32"),
            jax.random.uniform(size_key, (), "float64", -1, 1),
            jax.random.normal(momentum_key, (3,), "float64"),
            jax.random.uniform(uniform_key, (), "float64"),
        )

    @jax.jit
    @jax.vmap
    def run(key, q):
        # A tuning value in another dtype than the position's, and known inside a jit.
        kernel = mcmc.hmc(quartic, size, num_integration_steps=(low, high), jitter=jnp.asarray(jitter, "float32"))
        return kernel.step(key, kernel.init(q, key))

    states, info = run(keys(), positions)
    moved = 0
    for case, (number, between, z, uniform) in enumerate(zip(*map(np.asarray, numbers(keys())), strict=True)):
        start = point = (positions[case], z)
        step = size * (1 + float(np.float32(jitter)) * between)
        for _ in range(number):
            point = leapfrog(*point, step)
        rate = min(1, np.exp(energy(*start) - energy(*point)))
        moved += uniform < rate
        np.testing.assert_allclose(info.acceptance_rate[case], rate, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(states.position[case], (point if uniform < rate else start)[0], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(info.step_size[case], step, rtol=1e-12)
        assert info.num_steps[case] == number
    assert 0.3 * cases < moved < 0.95 * cases


def test_the_choice_from_a_trajectory_is_that_of_numpy(x64, rng):
    cases, steps, size = 200, 5, 0.35
    positions = rng.normal(size=(cases, 3))
    kernel = mcmc.hmc(quartic, size, num_integration_steps=steps, multinomial=True)

    def keys():
        return jax.random.split(jax.random.key(7), cases)

    @jax.jit
    @jax.vmap
    def numbers(key):
        momentum_key, key = jax.random.split(key)
        leaf_key = core.fold(key, 1)
        uniforms = jax.vmap(lambda leaf: jax.random.uniform(core.fold(leaf_key, leaf), (), "float64"))
        back = jax.random.randint(core.fold(key, 0), (), 0, steps + 1, "int32")
        return jax.random.normal(momentum_key, (3,), "float64"), back, uniforms(jnp.arange(steps))

    run = jax.jit(jax.vmap(lambda key, q: kernel.step(key, kernel.init(q, key))))
    states, info = run(keys(), positions)
    momenta, backs, uniforms = jax.tree.map(np.asarray, numbers(keys()))
    moved = 0
    for case in range(cases):
        start = (positions[case], momenta[case])
        chosen, total, rates, point = start, 0.0, [], start
        for leaf in range(steps):
            if leaf == backs[case]:
                point = start
            point = leapfrog(*point, -size if leaf < backs[case] else size)
            weight = energy(*start) - energy(*point)
            total = np.logaddexp(total, weight)
            rates.append(min(1, np.exp(weight)))
            if uniforms[case, leaf] < np.exp(weight - total):
                chosen = point
        moved += chosen is not start
        np.testing.assert_allclose(states.position[case], chosen[0], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(info.acceptance_rate[case], np.mean(rates), rtol=1e-8)
    assert 0.5 * cases < moved < cases


@pytest.mark.parametrize("drift", [None, 0.3])
def test_transitions_with_persistent_momenta_are_those_of_numpy(drift, x64, rng):
    """Four in a row, so that what is carried on matters; with a diagonal metric."""
    cases, steps, size, persistence, mass = 100, 2, 0.6, 0.7, np.array([1.3, 0.5, 2.0])
    positions = rng.normal(size=(cases, 3))
    kernel = mcmc.generalized_hmc(
        quartic, size, mass, persistence=persistence, num_integration_steps=steps, drift=drift
    )

    def keys():
        return jax.random.split(jax.random.key(7), (cases, 5))

    @jax.jit
    @jax.vmap
    def numbers(keys):
        normal = jax.vmap(lambda key: jax.random.normal(core.fold(key, 0), (3,), "float64"))
        uniform = jax.vmap(lambda key: jax.random.uniform(core.fold(key, 1), (), "float64", -1, 1))
        return normal(keys), uniform(keys)

    @jax.jit
    @jax.vmap
    def run(keys, q):
        state, after = kernel.init(q, keys[0]), []
        for transition in range(1, 5):
            state, info = kernel.step(keys[transition], state)
            after.append((state, info))
        return after

    results = run(keys(), positions)
    normals, uniforms = map(np.asarray, numbers(keys()))
    root, moved = np.sqrt(mass), 0
    for case in range(cases):
        # In the coordinates q / root, where the metric is one.
        q, z, u = positions[case], normals[case, 0], uniforms[case, 0]
        for transition, (state, info) in enumerate(results, 1):
            z = persistence * z + np.sqrt(1 - persistence**2) * normals[case, transition]
            u = uniforms[case, transition] if drift is None else (u + drift + 1) % 2 - 1
            there, speed = q, z
            for _ in range(steps):
                speed = speed + 0.5 * size * root * numpy_gradient(there)
                there = there + size * root * speed
                speed = speed + 0.5 * size * root * numpy_gradient(there)
            ratio = np.exp(energy(q, z) - energy(there, speed))
            accepted = abs(u) < ratio
            q, z, u = (there, speed, u / ratio) if accepted else (q, -z, u)
            moved += accepted
            np.testing.assert_allclose(info.acceptance_rate[case], min(1, ratio), rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(state.position[case], q, rtol=1e-7, atol=1e-7)
            np.testing.assert_allclose(state.momentum[case], z, rtol=1e-7, atol=1e-7)
            np.testing.assert_allclose(state.slice[case], u, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(info.log_density[case], numpy_density(q), rtol=1e-7, atol=1e-9)
    assert 0.3 * 4 * cases < moved < 0.95 * 4 * cases


def test_fresh_momenta_make_it_hmc(rng):
    """Without persistence one transition has the law of HMC's, and forgets the momentum: false alarm 1e-6 a law."""
    position = jnp.asarray(rng.normal(size=3), jnp.float32)
    general = mcmc.generalized_hmc(quartic, 0.7, persistence=0.0, num_integration_steps=4)
    plain = mcmc.hmc(quartic, 0.7, num_integration_steps=4)

    def run(kernel, state, seed):
        keys = jax.random.split(jax.random.key(seed), 8000)
        new, info = jax.jit(jax.vmap(lambda key: kernel.step(key, state)))(keys)
        return np.column_stack([info.acceptance_rate, new.position, np.sum(new.position, axis=1), info.energy])

    state = general.init(position, jax.random.key(1))
    ours, theirs = run(general, state, 2), run(plain, plain.init(position, jax.random.key(1)), 3)
    for one, two in zip(ours.T, theirs.T, strict=True):
        assert scipy.stats.ks_2samp(one, two).pvalue > 1e-6
    assert 0.3 < ours[:, 0].mean() < 0.9
    np.testing.assert_array_equal(ours, run(general, state._replace(momentum=state.momentum + 3), 2))


def test_an_accepted_step_leads_back_when_it_is_turned_round(x64, rng):
    """Skew-reversible: (q, z) goes to (q', z'), and (q', -z') to (q, -z); the acceptance variable is restored too."""

    @jax.jit
    def step(persistence, state):
        # A persistence of 1, which a known one may not be, leaves the momentum to the integrator alone.
        kernel = mcmc.generalized_hmc(quartic, 0.4, persistence=persistence, num_integration_steps=3, drift=0.0)
        return kernel.step(jax.random.key(0), state)[0]

    init, accepted = mcmc.generalized_hmc(quartic, 0.4).init, 0
    for case in range(60):
        start = init(jnp.asarray(rng.normal(size=3)), jax.random.key(case))
        there = step(1.0, start)
        if np.array_equal(there.position, start.position):
            np.testing.assert_array_equal(there.momentum, -start.momentum)
            assert there.slice == start.slice
            continue
        back = step(1.0, there._replace(momentum=-there.momentum))
        np.testing.assert_allclose(back.position, start.position, atol=1e-10)
        np.testing.assert_allclose(back.momentum, -start.momentum, atol=1e-10)
        np.testing.assert_allclose(back.slice, start.slice, atol=1e-10)
        np.testing.assert_allclose(back.log_density, start.log_density, atol=1e-10)
        accepted += 1
    assert 20 < accepted < 60


@pytest.mark.parametrize("lack", [1e-3, 1e-4, 1e-5])
def test_a_persistence_near_one_keeps_the_scale_of_momenta(lack):
    """In float32: on a flat density a step adds noise alone, whose size says what variance the momenta would have."""
    kernel = mcmc.generalized_hmc(lambda q: 0.0 * jnp.sum(q), persistence=1 - lack)
    state = kernel.init(jnp.zeros(1), jax.random.key(0))
    state, _ = kernel.step(jax.random.key(1), state._replace(momentum=jnp.zeros(1)))
    noise = float(jax.random.normal(core.fold(jax.random.key(1), 0), (1,))[0])
    kept = float(np.float32(1 - lack))
    assert abs((float(state.momentum[0]) / noise) ** 2 / (1 - kept**2) - 1) < 1e-6


def test_tuning_values_may_be_arrays_known_in_a_jit_or_tracers():
    """The same draws whichever they are."""
    share = jnp.asarray(0.3, "float32")

    def run(value):
        position, key = jnp.ones(3), jax.random.key(0)
        kernels = (
            mcmc.hmc(quartic, 0.5, num_integration_steps=3, jitter=value),
            mcmc.generalized_hmc(quartic, 0.5, persistence=value, drift=value),
        )
        return [kernel.step(core.fold(key, i), kernel.init(position, key))[0] for i, kernel in enumerate(kernels)]

    traced = jax.jit(run)(share)
    for other in (jax.jit(lambda: run(share))(), jax.jit(lambda: run(0.3))(), run(share)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, traced)


def test_momentum_and_variable_keep_their_laws(rng):
    """Momenta stay standard normal and the acceptance variable uniform, together with the position: 5 sd, 6e-7 each."""
    chains = 20_000
    kernel = mcmc.generalized_hmc(lambda q: -0.5 * q * q, 1.2, persistence=0.6, drift=0.25)
    starts = jnp.asarray(rng.normal(size=chains), jnp.float32)

    @jax.jit
    @jax.vmap
    def run(key, q):
        state = kernel.init(q, core.fold(key, 0))
        return jax.lax.fori_loop(0, 7, lambda i, s: kernel.step(core.fold(key, i + 1), s)[0], state)

    state = run(jax.random.split(jax.random.key(5), chains), starts)
    q, z, u = (np.asarray(x, float).ravel() for x in (state.position, state.momentum, state.slice))
    for values, sd in ((z**2 - 1, np.sqrt(2)), (q**2 - 1, np.sqrt(2)), (q * z, 1.0), (z, 1.0), (u, 3**-0.5)):
        assert abs(values.mean()) < 5 * sd / np.sqrt(chains)
    assert abs((u**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / chains)
    assert abs(np.mean(np.abs(u) * (q**2 - 1))) < 5 * np.sqrt(2 / 3 / chains)


def test_energy_error_is_of_second_order(x64):
    errors = []
    for size in (0.1, 0.05):
        kernel = mcmc.hmc(quartic, size, num_integration_steps=int(1 / size))
        state = kernel.init(jnp.full(3, 0.7), jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 500)
        rates = jax.jit(jax.vmap(lambda key, f=kernel, s=state: f.step(key, s)))(keys)[1].acceptance_rate
        errors.append(float(jnp.mean(1 - rates)))
    assert 3.3 < errors[0] / errors[1] < 4.7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mcmc.hmc(quartic, num_integration_steps=(3, 2)), "hmc: num_integration_steps is (3, 2); expected"),
        (lambda: mcmc.hmc(quartic, jitter=1.0), "hmc: jitter is 1.0; expected a number from 0 to below 1"),
        (
            lambda: mcmc.hmc(quartic, num_integration_steps=(1, 2, 3)),
            "hmc: num_integration_steps is (1, 2, 3); expected",
        ),
        (lambda: mcmc.hmc(quartic, num_integration_steps=2.5), "hmc: num_integration_steps is 2.5; expected"),
        (lambda: mcmc.hmc(quartic, jitter=-0.5), "hmc: jitter is -0.5; expected"),
        (lambda: mcmc.hmc(quartic, jitter=jnp.zeros(2)), "hmc: jitter is a float32 array of shape (2,); expected"),
        (lambda: mcmc.generalized_hmc(quartic, drift=np.nan), "generalized_hmc: drift is nan; expected"),
        (lambda: mcmc.generalized_hmc(quartic, drift=jnp.zeros(3)), "generalized_hmc: drift is a float32 array"),
        (lambda: mcmc.generalized_hmc(quartic, persistence=jnp.zeros(3)), "generalized_hmc: persistence is a float32"),
        (lambda: mcmc.generalized_hmc(quartic, persistence=1.0), "generalized_hmc: persistence is 1.0; expected"),
        (lambda: mcmc.generalized_hmc(quartic, num_integration_steps=0), "generalized_hmc: num_integration_steps is 0"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
