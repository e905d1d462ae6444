"""Variants of HMC: lengths and step sizes that vary, a choice from the whole trajectory, momenta that persist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_fresh_momenta_make_it_hmc(rng):
    """Without persistence the acceptance rate has the law of HMC's: the same trajectories from the same momenta."""
    position = jnp.asarray(rng.normal(size=3), jnp.float32)
    general = mcmc.generalized_hmc(quartic, 0.7, persistence=0.0, num_integration_steps=4)
    plain = mcmc.hmc(quartic, 0.7, num_integration_steps=4)
    rates = []
    for kernel in (general, plain):
        state = kernel.init(position, jax.random.key(1))
        keys = jax.random.split(jax.random.key(2), 4000)
        rates.append(np.asarray(jax.jit(jax.vmap(lambda k, s=state, f=kernel: f.step(k, s)))(keys)[1].acceptance_rate))
    error = np.sqrt(rates[0].var() / 4000 + rates[1].var() / 4000)
    assert abs(rates[0].mean() - rates[1].mean()) < 5 * error
    assert 0.3 < rates[0].mean() < 0.98


def test_an_accepted_step_leads_back_when_it_is_turned_round(x64, rng):
    """Skew-reversible: (q, z) goes to (q', z'), and (q', -z') to (q, -z); the acceptance variable is restored too."""
    kernel = mcmc.generalized_hmc(quartic, 0.2, persistence=1 - 1e-16, num_integration_steps=3, drift=0.0)
    step = jax.jit(kernel.step)
    back_again = 0
    for case in range(30):
        start = kernel.init(jnp.asarray(rng.normal(size=3)), jax.random.key(case))
        there, _ = step(jax.random.key(0), start)
        if np.array_equal(there.position, start.position):
            np.testing.assert_allclose(there.momentum, -start.momentum, rtol=1e-6)
            assert there.slice == start.slice
            continue
        back, _ = step(jax.random.key(0), there._replace(momentum=-there.momentum))
        np.testing.assert_allclose(back.position, start.position, atol=1e-6)
        np.testing.assert_allclose(back.momentum, -start.momentum, atol=1e-6)
        np.testing.assert_allclose(back.slice, start.slice, rtol=1e-6)
        back_again += 1
    assert back_again > 15


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


def test_energy_error_is_of_second_order(x64, rng):
    errors = []
    for size in (0.1, 0.05):
        kernel = mcmc.hmc(quartic, size, num_integration_steps=int(1 / size))
        state = kernel.init(jnp.asarray(rng.normal(size=3) * 0 + 0.7), jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 500)
        rates = jax.jit(jax.vmap(lambda key, f=kernel, s=state: f.step(key, s)))(keys)[1].acceptance_rate
        errors.append(float(jnp.mean(1 - rates)))
    assert 3.3 < errors[0] / errors[1] < 4.7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mcmc.hmc(quartic, num_integration_steps=(3, 2)), "hmc: num_integration_steps is (3, 2); expected"),
        (lambda: mcmc.hmc(quartic, jitter=1.0), "hmc: jitter is 1.0; expected a number from 0 to below 1"),
        (lambda: mcmc.generalized_hmc(quartic, persistence=1.0), "generalized_hmc: persistence is 1.0; expected"),
        (lambda: mcmc.generalized_hmc(quartic, num_integration_steps=0), "generalized_hmc: num_integration_steps is 0"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
