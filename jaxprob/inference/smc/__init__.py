"""Sequential Monte Carlo: populations of weighted particles and the valid transformations of them."""

from jaxprob.inference.smc._population import Population as Population
from jaxprob.inference.smc._population import advance as advance
from jaxprob.inference.smc._population import resample as resample
from jaxprob.inference.smc._population import reweight as reweight
from jaxprob.inference.smc._population import spawn as spawn
from jaxprob.inference.smc._resampling import Scheme as Scheme
from jaxprob.inference.smc._resampling import multinomial as multinomial
from jaxprob.inference.smc._resampling import systematic as systematic
