"""The contract of an algorithm, on a tiny one: one chain, many chains, and chains that share their tuning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class State(NamedTuple):
    position: jax.Array


class Info(NamedTuple):
    step: jax.Array


def walk(scale):
    def init(position, key):
        return State(position + jax.random.normal(key, position.shape))

    def step(key, state):
        move = scale * jax.random.normal(key, state.position.shape)
        return State(state.position + move), Info(jnp.sqrt(jnp.sum(move * move)))

    return core.Algorithm(init, step)


def pooled(axis_name="chain"):
    """Shares the mean position of all chains."""

    def init(position, key):
        return core.Shared(State(position), jnp.zeros(()))

    def step(key, state):
        moved = state.chain.position + jax.random.normal(key)
        return core.Shared(State(moved), jax.lax.pmean(moved, axis_name)), Info(moved)

    return core.Algorithm(init, step)


def test_position_of():
    position = {"x": jnp.ones(2)}
    assert core.position_of(State(position)) is position
    assert core.position_of(core.Shared(State(position), None)) is position
    assert core.position_of(core.Shared(core.Shared(State(position), None), None)) is position


def test_one_chain_is_a_scan_and_many_are_a_vmap():
    algorithm = walk(jnp.float32(0.5))
    keys = core.chain_keys(jax.random.key(0), jnp.arange(3))

    def run(key):
        state = algorithm.init(jnp.zeros(2), core.fold(key, 0))
        return jax.lax.scan(lambda s, i: algorithm.step(core.fold(key, 1, i), s), state, jnp.arange(5))

    states, infos = jax.jit(jax.vmap(run))(keys)
    assert isinstance(states, State)
    assert isinstance(infos, Info)
    assert infos.step.shape == (3, 5)
    for i in range(3):
        one, _ = jax.jit(run)(keys[i])
        np.testing.assert_allclose(states.position[i], one.position, rtol=1e-6)


def test_shared_states_under_vmap():
    """The mapping that `Shared` documents: chains are mapped, what they share is one."""
    algorithm = pooled()
    mapped = jax.vmap(
        algorithm.step, in_axes=(0, core.Shared(0, None)), out_axes=(core.Shared(0, None), 0), axis_name="chain"
    )
    state = core.Shared(State(jnp.arange(4.0)), jnp.zeros(()))
    keys = core.chain_keys(jax.random.key(1), jnp.arange(4))
    state, info = jax.jit(mapped)(keys, state)
    assert state.shared.shape == ()
    np.testing.assert_allclose(state.shared, jnp.mean(state.chain.position), rtol=1e-6)
    assert info.step.shape == (4,)
