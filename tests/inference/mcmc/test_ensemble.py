"""Ensembles: a step against plain NumPy, affine invariance, and what is no ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.inference import mcmc

ROOT = np.array([[2.0, 0.0, 0.0], [-1.5, 0.3, 0.0], [4.0, 2.0, 0.5]])
SHIFT = np.array([3.0, -100.0, 0.1])


def log_density(x):
    """Not a Gaussian, and not symmetric."""
    return -0.5 * jnp.sum(x**2) - 0.3 * x[0] * x[1] - jnp.exp(0.5 * x[2])


def numpy_step(kind, key, position, density, parameters):
    """Foreman-Mackey et al. (2013), algorithm 3, and ter Braak (2006), walker by walker."""
    position, half, size = np.array(position), len(position) // 2, position.shape[1]
    rates = []
    for turn in (0, 1):
        moving, others = [0, half] if turn == 0 else [half, 0]
        turn_key = core.fold(key, turn)
        move_key = core.fold(turn_key, 0)
        others = position[others : others + half].copy()
        if kind == "stretch":
            u = np.asarray(jax.random.uniform(core.fold(move_key, 0), (half,), jnp.float64))
            picks = np.asarray(jax.random.randint(core.fold(move_key, 1), (half,), 0, half))
        else:
            z = np.asarray(jax.random.normal(core.fold(move_key, 0), (half,), jnp.float64))
            one = np.asarray(jax.random.randint(core.fold(move_key, 1), (half,), 0, half))
            two = (one + np.asarray(jax.random.randint(core.fold(move_key, 2), (half,), 1, half))) % half
        for k in range(half):
            x = position[moving + k]
            if kind == "stretch":
                (a,) = parameters
                factor = ((a - 1) * u[k] + 1) ** 2 / a
                proposal = others[picks[k]] + factor * (x - others[picks[k]])
                extra = (size - 1) * np.log(factor)
            else:
                gamma, sigma = parameters
                assert one[k] != two[k]
                proposal, extra = x + gamma * (1 + sigma * z[k]) * (others[one[k]] - others[two[k]]), 0.0
            log_ratio = density(proposal) - density(x) + extra
            rates.append(np.exp(min(log_ratio, 0)))
            threshold = -np.asarray(jax.random.exponential(core.fold(turn_key, 1, k), (), jnp.float64))
            if threshold <= log_ratio:
                position[moving + k] = proposal
    return position, np.mean(rates)


@pytest.mark.parametrize("kind", ["stretch", "evolution"])
def test_a_step_is_that_of_plain_numpy(kind, x64, rng):
    starts = jnp.asarray(rng.normal(size=(12, 3)))
    if kind == "stretch":
        kernel, parameters = mcmc.stretch(log_density, scale=2.5), (2.5,)
    else:
        kernel, parameters = mcmc.differential_evolution(log_density, sigma=0.1), (2.38 / np.sqrt(6), 0.1)
    state, expected = kernel.init(starts, jax.random.key(0)), np.asarray(starts)
    density = jax.jit(log_density)
    step = jax.jit(kernel.step)
    rates = []
    for index in range(5):
        state, info = step(jax.random.key(index), state)
        expected, rate = numpy_step(kind, jax.random.key(index), expected, lambda x: float(density(x)), parameters)
        np.testing.assert_allclose(state.position, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(info.acceptance_rate, rate, rtol=1e-9)
        np.testing.assert_allclose(state.log_density, [log_density(x) for x in state.position], rtol=1e-12)
        np.testing.assert_allclose(info.log_density, state.log_density.mean(), rtol=1e-12)
        rates.append(rate)
    assert 0.2 < np.mean(rates) < 0.9


@pytest.mark.parametrize("make", [mcmc.stretch, mcmc.differential_evolution])
def test_affine_invariance(make, x64, rng):
    """An affine map of the target and of the start is the same map of all draws."""
    inverse = jnp.asarray(np.linalg.inv(ROOT))

    def mapped(y):
        return log_density(inverse @ (y - jnp.asarray(SHIFT)))

    def run(kernel, starts):
        def body(index, state):
            return kernel.step(core.fold(jax.random.key(3), index), state)[0]

        return jax.jit(lambda x: jax.lax.fori_loop(0, 100, body, kernel.init(x, jax.random.key(0))))(starts)

    starts = rng.normal(size=(10, 3))
    plain = np.asarray(run(make(log_density), jnp.asarray(starts)).position)
    other = np.asarray(run(make(mapped), jnp.asarray(starts @ ROOT.T + SHIFT)).position)
    assert np.mean(plain != starts) > 0.99
    np.testing.assert_allclose((other - SHIFT) @ np.linalg.inv(ROOT).T, plain, rtol=1e-6, atol=1e-6)


def test_positions_are_pytrees_of_any_precision(rng):
    starts = {
        "a": jnp.asarray(rng.normal(size=(8, 2, 1)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=8), jnp.bfloat16),
    }
    kernel = mcmc.stretch(lambda q: -0.5 * jnp.sum(q["a"] ** 2) - 0.5 * q["b"].astype(jnp.float32) ** 2)
    state = kernel.init(starts, jax.random.key(0))
    after, _ = jax.jit(kernel.step)(jax.random.key(1), state)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_bad_arguments(rng):
    with pytest.raises(TypeError, match="stretch: log_density is 3; expected a function"):
        mcmc.stretch(3)
    with pytest.raises(ValueError, match="stretch: scale is 1.0; expected a finite number above one"):
        mcmc.stretch(log_density, scale=1.0)
    with pytest.raises(ValueError, match="differential_evolution: gamma is 0"):
        mcmc.differential_evolution(log_density, gamma=0.0)
    with pytest.raises(ValueError, match="differential_evolution: sigma is -1"):
        mcmc.differential_evolution(log_density, sigma=-1.0)
    kernel, key = mcmc.stretch(log_density), jax.random.key(0)
    walkers = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    for few in (walkers[:4], walkers[:7]):
        with pytest.raises(
            ValueError, match=rf"ensemble of {len(few)} walkers for positions of 3 scalars; expected an"
        ):
            kernel.init(few, key)
    with pytest.raises(ValueError, match="expected an even number of at least 4"):
        mcmc.differential_evolution(log_density).init(walkers[:2, :1], key)
    with pytest.raises(ValueError, match=r"leaves of shapes \[\(\)\]"):
        kernel.init(jnp.float32(1.0), key)
    for flat in (jnp.ones((8, 3)), walkers.at[:, 2].set(walkers[:, 0] - walkers[:, 1])):
        with pytest.raises(ValueError, match="walkers lie in a plane"):
            kernel.init(flat, key)
        jax.jit(kernel.init)(flat, key)  # what is not known cannot be refused
