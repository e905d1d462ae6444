"""Discrete and mixed kernels in the battery: single sites, gradients, blocks, combinations, untrained proposals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case

PAIR = mcmc.joint_categorical_network(np.full(3, 2), hidden=(8,))
NUMBER = mcmc.mixture_density_network(num_components=3, hidden=(8,))


def untrained(network, inputs):
    """A distribution that is far from uniform, and wrong."""
    variables = network.init(jax.random.key(4), inputs)
    return network.apply(jax.tree.map(lambda w: 4 * w, variables), inputs)


def three_sites(log_density, start):
    """Proposes three sites at once, from a network that has learnt nothing."""

    def read(x):
        return x.ravel()[start : start + 3]

    def write(x, values):
        return x.ravel().at[start : start + 3].set(values).reshape(x.shape)

    def propose(rest):
        return untrained(PAIR, rest.astype(jnp.float32).ravel())

    return mcmc.block_metropolis(log_density, propose, mcmc.Block(read, write))


def discrete(name, kernel, **options):
    return Case(name, lambda target: kernel(target.log_density), ("ising",), kind="discrete", **options)


def mixed(name, blocks, order="systematic", **options):
    def build(target):
        # The labels of the target have three values, those of the Geweke model two.
        labels = 2 if target.table is None else 3
        return mcmc.gibbs(target.log_density, blocks(target.log_density, labels), order=order)

    return Case(name, build, ("labelled",), kind="mixed", **options)


def exact_label(log_density, labels):
    def draw(key, position):
        log_p = jax.vmap(lambda label: log_density({**position, "label": label}))(jnp.arange(labels, dtype=jnp.int32))
        return jax.random.categorical(key, log_p).astype(jnp.int32)

    return mcmc.Exact(draw)


def proposed_label(rest, labels):
    network = mcmc.joint_categorical_network(labels, hidden=(8,))
    return untrained(network, rest["x"].reshape(1))


def proposed_number(rest, dtype):
    return untrained(NUMBER, rest["label"].astype(dtype).reshape(1))


CASES = [
    discrete("discrete gibbs", partial(mcmc.discrete_gibbs, num_categories=2)),
    discrete("discrete gibbs, random", partial(mcmc.discrete_gibbs, num_categories=2, order="random")),
    discrete("metropolized gibbs", partial(mcmc.metropolized_gibbs, num_categories=2)),
    discrete("gibbs with gradients", partial(mcmc.gibbs_with_gradients, num_categories=2), transitions=12),
    discrete("discrete langevin", partial(mcmc.discrete_langevin, num_categories=2, step_size=0.6), transitions=10),
    discrete(
        "mixture of block proposals",
        lambda f: mcmc.mixture(
            [three_sites(f, 0), mcmc.discrete_gibbs(f, 2), three_sites(f, 1)], jnp.array([0.4, 0.2, 0.4])
        ),
        transitions=8,
    ),
    discrete(
        "cycle, states of two kinds",
        lambda f: mcmc.cycle([mcmc.gibbs_with_gradients(f, 2, balancing="barker"), three_sites(f, 1)]),
        transitions=12,
        moved=0.2,
    ),
    mixed(
        "gibbs of discrete and nuts",
        lambda f, labels: {
            "label": partial(mcmc.discrete_gibbs, num_categories=labels),
            "x": partial(mcmc.nuts, step_size=0.8),
        },
    ),
    mixed(
        "gibbs in random order",
        lambda f, labels: {
            "x": partial(mcmc.hmc, step_size=0.7, num_integration_steps=2),
            "label": partial(mcmc.metropolized_gibbs, num_categories=labels),
        },
        order="random",
    ),
    mixed(
        "gibbs, exact and hmc",
        lambda f, labels: {
            "label": exact_label(f, labels),
            "x": partial(mcmc.hmc, step_size=0.7, num_integration_steps=2),
        },
    ),
    mixed(
        "gibbs of untrained proposals",
        lambda f, labels: {
            "label": partial(mcmc.block_metropolis, proposal=partial(proposed_label, labels=labels)),
            "x": lambda g: mcmc.block_metropolis(g, partial(proposed_number, dtype=jnp.float32)),
        },
        transitions=6,
    ),
]
