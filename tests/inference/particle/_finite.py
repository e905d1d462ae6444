"""A hidden Markov chain of two states whose smoothing law is enumerated, as a Feynman-Kac model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.inference import smc

INITIAL = np.array([0.35, 0.65])
MATRIX = np.array([[0.85, 0.15], [0.4, 0.6]])
POTENTIALS = np.array([[0.9, 0.2], [0.15, 1.0], [0.8, 0.25], [0.3, 1.0]])


def paths(steps):
    """All trajectories (2^steps, steps) and their smoothing probabilities, by enumeration."""
    every = np.array(list(itertools.product(range(2), repeat=steps)))
    law = INITIAL[every[:, 0]] * POTENTIALS[0, every[:, 0]]
    for t in range(1, steps):
        law = law * MATRIX[every[:, t - 1], every[:, t]] * POTENTIALS[t, every[:, t]]
    return every, law / law.sum(), law.sum()


def model(look_ahead=False):
    log_initial, log_matrix = (jnp.log(jnp.asarray(a, jnp.float32)) for a in (INITIAL, MATRIX))
    table = jnp.log(jnp.asarray(POTENTIALS, jnp.float32))
    draw = lambda key, logits: jax.random.categorical(key, logits).astype(jnp.int32)  # noqa: E731
    return smc.FeynmanKac(
        initial=lambda key, row: draw(key, log_initial),
        log_initial_potential=lambda x, row: table[row, x],
        transition=lambda key, old, t, row: draw(key, log_matrix[old]),
        log_potential=lambda old, x, t, row: table[row, x],
        log_look_ahead=(lambda old, t, row: 0.7 * table[row, old]) if look_ahead else None,
        log_kernel=lambda old, x, t, row: log_matrix[old, x] + table[row, x],
    )
