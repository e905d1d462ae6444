"""Hamiltonian kernels in the battery."""

from functools import partial

import numpy as np

from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case

DENSE = np.array([[1.0, 0.5, 0, 0.2], [0.5, 2, 0, 0], [0, 0, 0.7, 0.1], [0.2, 0, 0.1, 1.5]], np.float32)


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


CASES = [
    case(
        "nuts",
        partial(mcmc.nuts, step_size=0.4),
        ("gaussian", "skewed", "funnel", "mixture", "beta-binomial", "path"),
        steps=600,
    ),
    case("nuts, dense", partial(mcmc.nuts, step_size=0.4, inverse_mass_matrix=DENSE), ("skewed",), steps=600),
    case("nuts, coarse", partial(mcmc.nuts, step_size=0.75), ("skewed",), steps=600),
    case("nuts, cut short", partial(mcmc.nuts, step_size=0.15, max_tree_depth=2), ("skewed",)),
    case("walnuts", partial(mcmc.walnuts, step_size=0.9), ("skewed", "funnel", "mixture", "path"), steps=600),
    case("walnuts, tight", partial(mcmc.walnuts, step_size=1.2, energy_tolerance=0.1), ("skewed",), steps=600),
    case(
        "hmc",
        partial(mcmc.hmc, step_size=0.3, num_integration_steps=6),
        ("gaussian", "skewed", "funnel", "mixture", "beta-binomial"),
    ),
    case(
        "hmc, dense and coarse",
        partial(mcmc.hmc, step_size=0.6, inverse_mass_matrix=DENSE, num_integration_steps=3),
        ("skewed",),
    ),
    case("hmc, jittered", partial(mcmc.hmc, step_size=0.65, num_integration_steps=(2, 7), jitter=0.3), ("skewed",)),
    case(
        "hmc, multinomial",
        partial(mcmc.hmc, step_size=0.7, num_integration_steps=4, multinomial=True),
        ("skewed", "funnel"),
    ),
    case(
        "generalized hmc",
        partial(mcmc.generalized_hmc, step_size=0.7, persistence=0.7, num_integration_steps=2),
        ("skewed", "mixture"),
        steps=4000,
    ),
    case(
        "generalized hmc, drifting",
        partial(mcmc.generalized_hmc, step_size=0.6, persistence=0.8, drift=0.3),
        ("skewed",),
        transitions=6,
        steps=4000,
    ),
]
