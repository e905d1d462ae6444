"""Doctor visits of 20,190 people in the RAND health insurance experiment: negative-binomial counts, shrunken effects.

Data: statsmodels' `randhie` (Deb and Trivedi, 2002; Manning et al., 1987). The count of visits has mean exp(intercept +
x @ effects) and variance mean + mean^2 / concentration; the effects of the standardised covariates share one scale,
which the data set (a hierarchical shrinkage prior).

The likelihood is a sum over people, so the people can be cut over devices: on four devices, two for chains and two for
data,

    jaxprob sample examples/doctor_visits.py:posterior --chains 2 --mesh chains=2,data=2 --out runs/doctor_visits
"""

import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm

from jaxprob import models
from jaxprob.distributions import HalfNormal, NegativeBinomial, Normal


@models.joint
def doctor_visits(x):
    """Visits of each person, given covariates x: (people, covariates), standardised."""
    intercept = yield "intercept", Normal(0.0, 2.0)
    scale = yield "scale", HalfNormal(0.5)
    effects = yield "effects", Normal(jnp.zeros(x.shape[1]), scale)
    concentration = yield "concentration", HalfNormal(2.0)
    log_mean = intercept + jnp.matmul(x, effects, precision="highest")
    yield "visits", NegativeBinomial(log_mean=log_mean, concentration=concentration)


def load() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The covariates (20190, 9), standardised; the visits (20190,); the names of the covariates."""
    data = sm.datasets.randhie.load_pandas().data
    covariates = data.drop(columns="mdvis")
    x = ((covariates - covariates.mean()) / covariates.std()).to_numpy(np.float32)
    return x, data["mdvis"].to_numpy(np.int32), list(covariates.columns)


def posterior() -> models.Posterior:
    """The model with the data."""
    x, visits, _ = load()
    return doctor_visits(x).condition(visits=visits)
