"""What conditions on data: `mcmc` (Markov chain Monte Carlo) and `smc` (sequential Monte Carlo)."""

from jaxprob.inference import mcmc as mcmc
from jaxprob.inference import smc as smc
