"""Noising processes: diffusion, flow matching, discrete diffusion and Bayesian flows behind one protocol."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxprob.models.diffusion._bayesian_flow import DiscreteBayesianFlow as DiscreteBayesianFlow
from jaxprob.models.diffusion._bayesian_flow import DiscretizedBayesianFlow as DiscretizedBayesianFlow
from jaxprob.models.diffusion._bayesian_flow import bayesian_flow as bayesian_flow
from jaxprob.models.diffusion._bayesian_flow import discrete_bayesian_flow as discrete_bayesian_flow
from jaxprob.models.diffusion._bayesian_flow import discretized_bayesian_flow as discretized_bayesian_flow
from jaxprob.models.diffusion._couplings import Plan as Plan
from jaxprob.models.diffusion._couplings import assignment as assignment
from jaxprob.models.diffusion._couplings import optimal_transport as optimal_transport
from jaxprob.models.diffusion._couplings import transport_plan as transport_plan
from jaxprob.models.diffusion._discrete_schedules import Survival as Survival
from jaxprob.models.diffusion._discrete_schedules import cosine_survival as cosine_survival
from jaxprob.models.diffusion._discrete_schedules import geometric_survival as geometric_survival
from jaxprob.models.diffusion._discrete_schedules import linear_survival as linear_survival
from jaxprob.models.diffusion._discrete_schedules import polynomial_survival as polynomial_survival
from jaxprob.models.diffusion._exact import GaussianMixtureDenoiser as GaussianMixtureDenoiser
from jaxprob.models.diffusion._exact import gaussian_mixture_denoiser as gaussian_mixture_denoiser
from jaxprob.models.diffusion._function_noise import GaussianProcessNoise as GaussianProcessNoise
from jaxprob.models.diffusion._function_noise import OrnsteinUhlenbeckNoise as OrnsteinUhlenbeckNoise
from jaxprob.models.diffusion._function_noise import gaussian_process_noise as gaussian_process_noise
from jaxprob.models.diffusion._function_noise import ornstein_uhlenbeck_noise as ornstein_uhlenbeck_noise
from jaxprob.models.diffusion._gaussian import Gaussian as Gaussian
from jaxprob.models.diffusion._gaussian import elucidated as elucidated
from jaxprob.models.diffusion._gaussian import flow_matching as flow_matching
from jaxprob.models.diffusion._gaussian import scaled_inputs as scaled_inputs
from jaxprob.models.diffusion._gaussian import sub_variance_preserving as sub_variance_preserving
from jaxprob.models.diffusion._gaussian import variance_exploding as variance_exploding
from jaxprob.models.diffusion._gaussian import variance_preserving as variance_preserving
from jaxprob.models.diffusion._interpolants import Endpoints as Endpoints
from jaxprob.models.diffusion._interpolants import Interpolated as Interpolated
from jaxprob.models.diffusion._interpolants import StochasticInterpolant as StochasticInterpolant
from jaxprob.models.diffusion._interpolants import stochastic_interpolant as stochastic_interpolant
from jaxprob.models.diffusion._loss import loss as loss
from jaxprob.models.diffusion._masked import Masked as Masked
from jaxprob.models.diffusion._masked import RoutedProcess as RoutedProcess
from jaxprob.models.diffusion._masked import masked as masked
from jaxprob.models.diffusion._noise import Noise as Noise
from jaxprob.models.diffusion._noise import White as White
from jaxprob.models.diffusion._process import Denoiser as Denoiser
from jaxprob.models.diffusion._process import NoisingProcess as NoisingProcess
from jaxprob.models.diffusion._reparameterized import Reparameterized as Reparameterized
from jaxprob.models.diffusion._reparameterized import RoutedTokens as RoutedTokens
from jaxprob.models.diffusion._reparameterized import reparameterized as reparameterized
from jaxprob.models.diffusion._schedules import Schedule as Schedule
from jaxprob.models.diffusion._schedules import cosine as cosine
from jaxprob.models.diffusion._schedules import learned as learned
from jaxprob.models.diffusion._schedules import linear_beta as linear_beta
from jaxprob.models.diffusion._schedules import log_linear as log_linear
from jaxprob.models.diffusion._schedules import log_normal as log_normal
from jaxprob.models.diffusion._schedules import straight as straight
from jaxprob.models.diffusion._tokens import TokenProcess as TokenProcess
from jaxprob.models.diffusion._uniform import Binomial as Binomial
from jaxprob.models.diffusion._uniform import Discrete as Discrete
from jaxprob.models.diffusion._uniform import Uniform as Uniform
from jaxprob.models.diffusion._uniform import binomial as binomial
from jaxprob.models.diffusion._uniform import discrete as discrete
from jaxprob.models.diffusion._uniform import uniform as uniform

if TYPE_CHECKING:
    from jaxprob.models.diffusion import networks as networks


def __getattr__(name: str) -> Any:
    # Networks are Flax modules, and Flax takes its time to import.
    if name == "networks":
        return importlib.import_module("jaxprob.models.diffusion.networks")
    raise AttributeError(f"module 'jaxprob.models.diffusion' has no attribute {name!r}")
