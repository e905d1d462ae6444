"""A bootstrap filter of `particles`, for benchmarks/smc.py: run by a Python that has it, which needs NumPy below 2.

Reads {"ys", "numbers", "repeats", "seed"} as JSON from standard input, writes seconds and log likelihoods of repeats.
"""

import json
import sys
import time

import numpy as np
import particles
from particles import state_space_models

asked = json.load(sys.stdin)
model = state_space_models.StochVol(mu=asked["mu"], rho=asked["rho"], sigma=asked["sigma"])
ys = np.array(asked["ys"])
np.random.seed(asked["seed"])  # noqa: NPY002 (`particles` draws from the global generator)


def run(number):
    kernels = state_space_models.Bootstrap(ssm=model, data=ys)
    found = particles.SMC(fk=kernels, N=number, resampling="systematic", ESSrmin=0.5, collect="off")
    began = time.perf_counter()
    found.run()
    return time.perf_counter() - began, float(found.logLt)


rows = {}
for number in asked["numbers"]:
    run(number)
    rows[number] = [run(number) for _ in range(asked["repeats"])]
print(json.dumps({"version": particles.__version__ if hasattr(particles, "__version__") else None, "rows": rows}))
