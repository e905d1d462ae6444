"""What conditions on data: `mcmc` (Markov chain Monte Carlo), `smc` (sequential Monte Carlo), `vi` (approximations).

In state-space models: `kalman` (Gaussian), `hmm` (discrete), `hgf` (hierarchical Gaussian), `crf` (linear chains of
labels), `particle` (any law, by particles); `parameter_posterior` and `state_posterior` are their posteriors for every
other method. By EM: `mixture` and `factor_analysis`. `diffusion` samples what a denoiser has learnt, and unnormalised
densities.
"""

from jaxprob.inference import crf as crf
from jaxprob.inference import diffusion as diffusion
from jaxprob.inference import factor_analysis as factor_analysis
from jaxprob.inference import hgf as hgf
from jaxprob.inference import hmm as hmm
from jaxprob.inference import kalman as kalman
from jaxprob.inference import mcmc as mcmc
from jaxprob.inference import mixture as mixture
from jaxprob.inference import particle as particle
from jaxprob.inference import shared_response as shared_response
from jaxprob.inference import smc as smc
from jaxprob.inference import vi as vi
from jaxprob.inference._parameters import parameter_posterior as parameter_posterior
from jaxprob.inference._states import state_posterior as state_posterior
