"""Microcanonical kernels in the battery."""

from functools import partial

import numpy as np

from jaxprob.inference import mcmc
from tests.inference.mcmc._case import Case

DENSE = np.array([[1.0, 0.5, 0, 0.2], [0.5, 2, 0, 0], [0, 0, 0.7, 0.1], [0.2, 0, 0.1, 1.5]], np.float32)


def case(name, kernel, targets, **options):
    return Case(name, lambda target: kernel(target.log_density), targets, **options)


CASES = [
    case(
        "adjusted mclmc",
        partial(mcmc.adjusted_mclmc, step_size=1.6, num_integration_steps=(1, 4)),
        ("gaussian", "skewed", "funnel"),
    ),
    case(
        "adjusted mclmc, leapfrog and dense",
        partial(
            mcmc.adjusted_mclmc,
            step_size=1.2,
            num_integration_steps=3,
            inverse_mass_matrix=DENSE,
            integrator="leapfrog",
        ),
        ("skewed",),
    ),
    case("mclmc", partial(mcmc.mclmc, step_size=0.5, trajectory_length=2.0), ("skewed",), exact=False),
]
