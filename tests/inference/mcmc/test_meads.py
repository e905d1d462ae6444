"""MEADS: a transition and what folds say against plain NumPy, a hundred scales, chains on any devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _meads
from jaxprob.inference.mcmc._log_density import as_log_density
from tests.inference.mcmc.test_chees import SCALES, run_pooled, wide_gaussian, z_scores

POOLED = core.Shared(0, None)


def steep(q):
    return -0.5 * jnp.sum(q**2) - 0.25 * jnp.sum(q**4)


def test_a_transition_is_that_of_plain_numpy(x64):
    step, damping, scale = 0.9, 0.4, np.array([0.7, 1.5])
    tuning = _meads.MEADSTuning(*(jnp.asarray(np.log(a)) for a in (step, damping, scale)))
    target = as_log_density(steep, "test")
    kernel = _meads._build(target, tuning)
    state = kernel.init(jnp.array([0.8, -0.3]), jax.random.key(0))
    x, z, u = np.array([0.8, -0.3]), np.asarray(state.momentum), float(state.slice)
    forgotten = 1 - np.exp(-2 * step * damping)

    def density(x):
        return -0.5 * np.sum(x**2) - 0.25 * np.sum(x**4)

    decisions = []
    for index in range(40):
        noise = np.asarray(jax.random.normal(core.fold(jax.random.key(index), 0), (2,), jnp.float64))
        z = np.sqrt(1 - forgotten) * z + np.sqrt(forgotten) * noise
        half = z + 0.5 * step * scale * (-x - x**3)
        y = x + step * scale * half
        w = half + 0.5 * step * scale * (-y - y**3)
        log_ratio = density(y) - 0.5 * w @ w - density(x) + 0.5 * z @ z
        u = u + forgotten / 2
        u = u - 2 if u >= 1 else u
        accepted = abs(u) < np.exp(log_ratio)
        x, z, u = (y, w, u / np.exp(log_ratio)) if accepted else (x, -z, u)
        state, info = kernel.step(jax.random.key(index), state)
        np.testing.assert_allclose(state.position, x, rtol=1e-8)
        np.testing.assert_allclose(state.momentum, z, rtol=1e-8)
        np.testing.assert_allclose(state.slice, u, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(info.acceptance_rate, min(1, np.exp(log_ratio)), rtol=1e-8)
        decisions.append(accepted)
    assert 0.3 < np.mean(decisions) < 0.97


def test_position_momentum_and_threshold_keep_their_law():
    """Exact draws of all three on a normal, ten coarse transitions: Kolmogorov-Smirnov, false alarm 1e-6 each."""
    chains = 20_000
    target = as_log_density(lambda q: -0.5 * jnp.sum(q**2), "test")
    tuning = _meads.MEADSTuning(*(jnp.log(a) for a in (jnp.float32(1.5), jnp.float32(0.3), jnp.ones(2))))
    kernel = _meads._build(target, tuning)

    @jax.jit
    @jax.vmap
    def run(key, position):
        def body(index, state):
            return kernel.step(core.fold(key, index), state)[0]

        state = jax.lax.fori_loop(1, 10, body, kernel.init(position, core.fold(key, 0)))
        return kernel.step(core.fold(key, 10), state)

    starts = jax.random.normal(jax.random.key(1), (chains, 2))
    state, info = run(jax.random.split(jax.random.key(2), chains), starts)
    assert info.acceptance_rate.mean() < 0.9
    for k in range(2):
        assert scipy.stats.kstest(np.asarray(state.position)[:, k], scipy.stats.norm.cdf).pvalue > 1e-6
        assert scipy.stats.kstest(np.asarray(state.momentum)[:, k], scipy.stats.norm.cdf).pvalue > 1e-6
    assert scipy.stats.kstest(np.asarray(state.slice), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-6
    together = np.stack([*state.position.T, *state.momentum.T, state.slice])
    for values in (together, together**2):
        assert np.abs(np.corrcoef(values)[np.triu_indices(5, 1)]).max() < 5 / np.sqrt(chains)


def test_what_a_fold_says(x64, rng):
    """Hoffman & Sountsov (2022), algorithm 3, with sums over pairs of different chains written out."""
    x, g = rng.normal(size=(7, 3)) * [1.0, 10.0, 0.1] + 5, rng.normal(size=(7, 3)) * [1.0, 0.1, 30.0]
    scale = x.std(axis=0)

    def largest(rows):
        pairs = [(rows[i] @ rows[j]) ** 2 for i in range(7) for j in range(7) if i != j]
        return np.mean(pairs) / np.mean([row @ row for row in rows])

    step = min(1, 0.5 / np.sqrt(largest(g * scale)))
    for transitions, floor in ((0, 1 / step), (10_000, 0)):
        damping = max(1 / np.sqrt(largest((x - x.mean(axis=0)) / scale)), floor)
        said = _meads._estimate(jnp.int32(transitions), jnp.asarray(x), jnp.asarray(g))
        np.testing.assert_allclose(jnp.exp(said.log_step_size), step, rtol=1e-9)
        np.testing.assert_allclose(jnp.exp(said.log_damping), damping, rtol=1e-9)
        np.testing.assert_allclose(jnp.exp(said.log_scale), scale, rtol=1e-9)


def test_a_fold_moves_with_what_the_one_before_says():
    """Chains of one fold change nothing for themselves: only for the fold after it."""
    tuning = mcmc.meads(lambda q: -0.5 * jnp.sum(q**2), num_steps=10, folds=4, axis_name="chain")

    def steps(positions):
        _, (_, info) = run_pooled(tuning, jax.random.key(0), 1, positions)
        return np.asarray(info.step_size[0]).reshape(4, 4)

    starts = jax.random.normal(jax.random.key(1), (16, 3))
    one, two = steps(starts), steps(starts.at[4:8].multiply(jnp.array([[30.0, 1.0, 1.0]])))
    assert (one == one[:, :1]).all()
    np.testing.assert_array_equal((one != two).all(axis=1), [False, False, True, False])
    np.testing.assert_array_equal((one != two).any(axis=1), [False, False, True, False])


def test_a_hundred_scales():
    """Tuned on 64 chains and frozen; of 200 z-scores none is above 5.5 (false alarm 2e-4)."""
    starts = jax.random.normal(jax.random.key(0), (64, 100))
    tuning = mcmc.meads(wide_gaussian, num_steps=1000, axis_name="chain")
    state, (draws, info) = run_pooled(tuning, jax.random.key(1), 3000, starts)
    draws, info = np.asarray(draws[1000:], float) / SCALES, jax.tree.map(lambda x: x[1000:], info)
    scores, shared = z_scores(draws), state.shared
    assert np.abs(scores).max() < 5.5
    assert np.mean(scores**2) < 1.5
    np.testing.assert_allclose(jnp.exp(shared.tuning.log_scale), SCALES, rtol=0.15)
    # In units of the scales all eigenvalues are 1: a step of 1 / 2 and a damping of 1, with the folds' errors.
    assert 0.35 < info.step_size[0, 0] < 0.55
    assert 0.7 < jnp.exp(shared.tuning.log_damping) < 1.1
    assert len(set(np.asarray(info.step_size).ravel().tolist())) == 1
    assert info.acceptance_rate.mean() > 0.85


def test_frozen_step_is_that_of_the_kernel():
    tuning = mcmc.meads(steep, num_steps=5, axis_name="chain")
    state, _ = run_pooled(tuning, jax.random.key(0), 8, jax.random.normal(jax.random.key(1), (8, 2)))
    kernel = tuning.finish(state)

    def keys():
        return jax.random.split(jax.random.key(3), 8)

    step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")
    warm, info = jax.jit(step)(keys(), state)
    plain, kernel_info = jax.jit(jax.vmap(kernel.step))(keys(), state.chain.kernel)
    for a, b in zip(jax.tree.leaves((warm.chain.kernel, info)), jax.tree.leaves((plain, kernel_info)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, warm.shared, state.shared)


def on_devices():
    """The states of sixteen chains on 1, 2 and 8 devices, beyond the end of the tuning."""

    def small(q):
        return -0.5 * jnp.sum(q["a"] ** 2) - 2 * (q["b"] - q["a"][0]) ** 2

    tuning, states = mcmc.meads(small, num_steps=25, axis_name=("devices", "chain")), []
    for devices in (1, 2, 8):
        mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        local = 16 // devices
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")

        def program(key, start, local=local, step=step):
            keys = core.chain_keys(key, jax.lax.axis_index("devices") * local + jnp.arange(local))

            def body(index, state):
                return step(jax.vmap(lambda key: core.fold(key, index + 1))(keys), state)[0]

            init = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")
            return jax.lax.fori_loop(0, 35, body, init(start, jax.vmap(lambda key: core.fold(key, 0))(keys)))

        specs = core.Shared(P("devices"), P())
        run = jax.shard_map(program, mesh=mesh, in_specs=(P(), P("devices")), out_specs=specs, check_vma=False)
        starts = {"a": jax.random.normal(jax.random.key(2), (16, 3)), "b": jnp.linspace(1, 2, 16)}
        states.append(jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(5), starts)))
    return states


def test_devices_change_next_to_nothing():
    one, *others = on_devices()
    for other in others:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one, other)


def test_devices_change_no_bit():
    one, *others = on_devices()
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_chains_at_one_point_and_holes():
    """Nothing learnt is ever NaN."""

    def log_density(q):
        return jnp.where(q[0] < 0.5, -0.5 * jnp.sum(q * q), jnp.nan)

    tuning = mcmc.meads(log_density, num_steps=60, axis_name="chain")
    for starts in (-jnp.ones((8, 3)), jnp.zeros((8, 3)), -jnp.abs(jax.random.normal(jax.random.key(0), (8, 3)))):
        state, (draws, _) = run_pooled(tuning, jax.random.key(1), 80, starts)
        for leaf in jax.tree.leaves((state, draws)):
            assert np.isfinite(np.asarray(leaf, float)).all()


def test_bad_arguments():
    with pytest.raises(TypeError, match="meads: log_density is 3"):
        mcmc.meads(3)
    with pytest.raises(ValueError, match="meads: num_steps is -1"):
        mcmc.meads(steep, num_steps=-1)
    with pytest.raises(ValueError, match="meads: folds is 1"):
        mcmc.meads(steep, folds=1)
    for chains in (4, 10):
        with pytest.raises(ValueError, match=f"the number of chains is {chains}; expected a multiple of 4 folds"):
            run_pooled(mcmc.meads(steep, axis_name="chain"), jax.random.key(0), 1, jnp.ones((chains, 2)))
