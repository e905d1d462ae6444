"""What conditions on data: `mcmc` (Markov chain Monte Carlo), `smc` (sequential Monte Carlo), `vi` (approximations)."""

from jaxprob.inference import mcmc as mcmc
from jaxprob.inference import smc as smc
from jaxprob.inference import vi as vi
