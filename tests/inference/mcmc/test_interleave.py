"""Chains that do not wait for each other: the draws of `vmap`, chain by chain, with few idle moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core, scan
from jaxprob.inference import mcmc

CHAINS = 16


def centred(q):
    """Eight schools, centred: short trees in the wide part, deep ones in the neck."""
    y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    tau = jnp.exp(q["log_tau"])
    prior = -0.5 * (q["mu"] / 5) ** 2 + q["log_tau"] - jnp.log1p((tau / 5) ** 2)
    group = -0.5 * jnp.sum(((q["theta"] - q["mu"]) / tau) ** 2) - 8 * q["log_tau"]
    return prior + group - 0.5 * jnp.sum(((y - q["theta"]) / sigma) ** 2)


def key_of(chain, step):
    return core.fold(jax.random.key(3), chain, step)


def starts(kernel, chains=CHAINS):
    rng = np.random.default_rng(1)
    positions = {
        "mu": rng.normal(size=chains),
        "log_tau": rng.normal(size=chains),
        "theta": rng.normal(size=(chains, 8)),
    }
    positions = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), positions)
    return jax.vmap(kernel.init)(positions, jax.random.split(jax.random.key(0), chains))


def in_step(kernel, states, number):
    def row(states, step):
        keys = jax.vmap(key_of, in_axes=(0, None))(jnp.arange(CHAINS), step)
        states, info = jax.vmap(kernel.step)(keys, states)
        return states, (states.position, info)

    return jax.jit(lambda states: scan.scan(row, states, jnp.arange(number)))(states)


def same(one, two):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), one, two)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (mcmc.nuts, {"step_size": 0.3}),
        (mcmc.nuts, {"step_size": 0.05, "max_tree_depth": 4}),
        (mcmc.walnuts, {"step_size": 1.0, "max_halvings": 5}),
    ],
)
def test_draws_are_those_of_chains_in_lock_step(make, options):
    kernel = make(centred, **options)
    states = starts(kernel)
    last, (draws, info) = in_step(kernel, states, 30)
    free_last, (free_draws, free_info) = jax.jit(lambda s, n: mcmc.interleave(kernel, key_of, s, n, 40))(states, 30)
    same(free_last, last)
    same(jax.tree.map(lambda x: x[:30], free_draws), draws)
    same(jax.tree.map(lambda x: x[:30], free_info), info)
    assert all(np.all(np.asarray(x[30:]) == 0) for x in jax.tree.leaves(free_draws))
    assert np.asarray(info.num_steps).std() > 0.5  # the chains do differ


def test_rows_of_several_transitions():
    kernel = mcmc.nuts(centred, step_size=0.3)
    states = starts(kernel)
    last, (draws, info) = in_step(kernel, states, 12)

    def combine(old, new):
        return new[0], new[1]._replace(num_steps=old[1].num_steps + new[1].num_steps)

    run = jax.jit(lambda s, n, thin: mcmc.interleave(kernel, key_of, s, n, 6, combine=combine, thin=thin))
    for thin in (1, 3):
        free_last, (free_draws, free_info) = run(states, 4, thin)
        if thin == 3:
            same(free_last, last)
        same(jax.tree.map(lambda x: x[:4], free_draws), jax.tree.map(lambda x, k=thin: x[k - 1 : 4 * k : k], draws))
        taken = np.asarray(info.num_steps)[: 4 * thin].reshape(4, thin, CHAINS).sum(1)
        np.testing.assert_array_equal(free_info.num_steps[:4], taken)
    assert run._cache_size() == 1


@pytest.mark.slow
def test_few_moves_are_idle():
    """Iterations of 64 chains are those that the slowest chain needs in all, and far fewer than in lock-step."""
    kernel = mcmc.nuts(centred, step_size=0.2)
    moves = []

    def counted(work):
        jax.debug.callback(lambda _: moves.append(1), work.trajectory.leaves[()])
        return kernel.move(work)

    states = starts(kernel, 64)
    free = kernel._replace(move=counted)
    _, (_, info) = jax.block_until_ready(jax.jit(lambda s: mcmc.interleave(free, key_of, s, 100, 100))(states))
    jax.effects_barrier()
    taken, longest = np.asarray(info.num_steps), np.asarray(info.num_steps).max(axis=1)
    iterations = len(moves) / 64  # the callback is called for each chain
    assert iterations < 1.05 * taken.sum(axis=0).max()
    assert iterations < 0.65 * longest.sum()


def test_no_rows_and_one_chain():
    kernel = mcmc.nuts(centred, step_size=0.3)
    states = starts(kernel, 1)
    last, (draws, _) = jax.jit(lambda s: mcmc.interleave(kernel, key_of, s, 0, 2))(states)
    same(last, states)
    assert np.all(np.asarray(draws["mu"]) == 0)


def test_a_kernel_without_moves():
    with pytest.raises(
        TypeError, match="interleave: kernel is an object of type Algorithm; expected an algorithm made"
    ):
        mcmc.interleave(mcmc.hmc(centred), key_of, None, 1, 1)
