"""Breast cancer in 301 counties: the model of `jaxprob demo` as a file of its own.

The demo lives in the package, so that it runs where there is no examples folder; this is the same model and data, to be
sampled with settings of your choice:

    jaxprob sample examples/cancer.py:posterior --chains 8 --out runs/cancer
"""

import jax.numpy as jnp

from jaxprob.cli._demo import county_rates, load_counties

cases, women = load_counties()
program = county_rates(jnp.asarray(women))  # mu, tau, log_rate (301,), cases (301,)
posterior = program.condition(cases=jnp.asarray(cases))
