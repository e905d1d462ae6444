"""Eight schools: the effect of coaching on test scores, estimated in eight schools with known standard errors.

Data: Rubin (1981), "Estimation in parallel randomized experiments". The effect of a school is `mean + spread * offset`
with a standard normal offset (the non-centred parameterisation): the posterior of the offsets hardly depends on the
spread, so the sampler meets no funnel, which it would if the effects themselves were sampled.

    jaxprob sample examples/eight_schools.py:posterior --out runs/eight_schools
"""

import jax.numpy as jnp
import numpy as np

from jaxprob import models
from jaxprob.distributions import HalfCauchy, Normal

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@models.joint
def eight_schools(standard_errors):
    """Estimated effect in each school, given its standard error: (school,)."""
    mean = yield "mean", Normal(0.0, 5.0)
    spread = yield "spread", HalfCauchy(5.0)
    offset = yield "offset", Normal(jnp.zeros_like(standard_errors), 1.0)
    effect = yield "effect", models.deterministic(mean + spread * offset)
    yield "estimate", Normal(effect, standard_errors)


posterior = eight_schools(STANDARD_ERRORS).condition(estimate=EFFECTS)
