"""Targets of the runtime's tests, and a small algorithm whose info records the key it used."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


def elementwise(size=4):
    """Independent Laplace variables: arithmetic that does not depend on how many chains go through at once.

    No product meets a sum: XLA turns x * y + z into one rounding in some programs and two in others.
    """

    def log_density(position):
        total = jnp.zeros(())
        for i in range(size):
            total = total - jnp.abs(position[i]) / (i + 1.0)
        return total

    return log_density, lambda key: jax.random.normal(key, (size,))


def matrix(size=4):
    """A logistic regression: matrix products, whose last bits depend on the number of chains on a device."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(100, size)), jnp.float32)
    y = jnp.asarray(rng.random(100) < 0.5, jnp.float32)

    def log_density(position):
        logits = jnp.matmul(x, position, precision="highest")
        return jnp.sum(y * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(position**2)

    return log_density, lambda key: jax.random.normal(key, (size,))


class WalkState(NamedTuple):
    position: jax.Array
    log_density: jax.Array


class WalkInfo(NamedTuple):
    accepted: jax.Array
    key_data: jax.Array  # the first word of the key this step used


def random_walk(log_density, scale=0.5):
    """Random-walk Metropolis, written here so that the runtime is tested with an algorithm it does not know."""

    def init(position, key):
        return WalkState(position, log_density(position))

    def step(key, state):
        move, accept = jax.random.split(key)
        proposal = state.position + scale * jax.random.normal(move, state.position.shape, state.position.dtype)
        value = log_density(proposal)
        take = jnp.log(jax.random.uniform(accept)) < value - state.log_density
        new = jax.tree.map(lambda a, b: jnp.where(take, a, b), WalkState(proposal, value), state)
        return new, WalkInfo(take, jax.random.key_data(key)[0])

    return core.Algorithm(init, step)
