"""Markov chain Monte Carlo: Hamiltonian kernels, their warm-up, and Metropolis-Hastings."""

from jaxprob.inference.mcmc._hamiltonian import State as State
from jaxprob.inference.mcmc._hmc import HMCInfo as HMCInfo
from jaxprob.inference.mcmc._hmc import hmc as hmc
from jaxprob.inference.mcmc._interleave import interleave as interleave
from jaxprob.inference.mcmc._metric import Metric as Metric
from jaxprob.inference.mcmc._metropolis import MetropolisInfo as MetropolisInfo
from jaxprob.inference.mcmc._metropolis import MetropolisState as MetropolisState
from jaxprob.inference.mcmc._metropolis import metropolis_hastings as metropolis_hastings
from jaxprob.inference.mcmc._metropolis import metropolis_hastings_green as metropolis_hastings_green
from jaxprob.inference.mcmc._nuts import NUTSInfo as NUTSInfo
from jaxprob.inference.mcmc._nuts import nuts as nuts
from jaxprob.inference.mcmc._warmup import Warmup as Warmup
from jaxprob.inference.mcmc._warmup import WarmupChain as WarmupChain
from jaxprob.inference.mcmc._warmup import WarmupShared as WarmupShared
from jaxprob.inference.mcmc._warmup import warmup as warmup
