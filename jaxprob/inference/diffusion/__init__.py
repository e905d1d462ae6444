"""Sampling, guidance and likelihood of diffusion models, and samplers of densities that are learnt diffusions."""

from jaxprob.inference.diffusion._ancestral import ancestral as ancestral
from jaxprob.inference.diffusion._controlled_monte_carlo import controlled_monte_carlo as controlled_monte_carlo
from jaxprob.inference.diffusion._ddim import ddim as ddim
from jaxprob.inference.diffusion._denoising_diffusion_sampler import (
    denoising_diffusion_sampler as denoising_diffusion_sampler,
)
from jaxprob.inference.diffusion._discrete_solvers import remasking as remasking
from jaxprob.inference.diffusion._discrete_solvers import tau_leaping as tau_leaping
from jaxprob.inference.diffusion._discrete_solvers import top_k as top_k
from jaxprob.inference.diffusion._dpm_solver import dpm_solver as dpm_solver
from jaxprob.inference.diffusion._guidance import classifier_free as classifier_free
from jaxprob.inference.diffusion._guidance import composed as composed
from jaxprob.inference.diffusion._guidance import guided as guided
from jaxprob.inference.diffusion._likelihood import LogLikelihood as LogLikelihood
from jaxprob.inference.diffusion._likelihood import NegativeElbo as NegativeElbo
from jaxprob.inference.diffusion._likelihood import bits_per_dimension as bits_per_dimension
from jaxprob.inference.diffusion._likelihood import dequantize as dequantize
from jaxprob.inference.diffusion._likelihood import log_likelihood as log_likelihood
from jaxprob.inference.diffusion._likelihood import negative_elbo as negative_elbo
from jaxprob.inference.diffusion._masked_sampler import masked_sampler as masked_sampler
from jaxprob.inference.diffusion._moment_matching import above as above
from jaxprob.inference.diffusion._moment_matching import observed as observed
from jaxprob.inference.diffusion._neural_sampler import NeuralSampler as NeuralSampler
from jaxprob.inference.diffusion._neural_sampler import SamplerFit as SamplerFit
from jaxprob.inference.diffusion._neural_sampler import SamplerTrainingInfo as SamplerTrainingInfo
from jaxprob.inference.diffusion._neural_sampler import SamplerTrainingState as SamplerTrainingState
from jaxprob.inference.diffusion._neural_sampler import WeightedDraws as WeightedDraws
from jaxprob.inference.diffusion._neural_sampler import fit_sampler as fit_sampler
from jaxprob.inference.diffusion._neural_sampler import sampler_training as sampler_training
from jaxprob.inference.diffusion._path_integral import path_integral_sampler as path_integral_sampler
from jaxprob.inference.diffusion._probability_flow import adaptive as adaptive
from jaxprob.inference.diffusion._probability_flow import euler as euler
from jaxprob.inference.diffusion._probability_flow import heun as heun
from jaxprob.inference.diffusion._sample import sample as sample
from jaxprob.inference.diffusion._solver import DiffusionInfo as DiffusionInfo
from jaxprob.inference.diffusion._solver import DiffusionState as DiffusionState
from jaxprob.inference.diffusion._solver import Solver as Solver
from jaxprob.inference.diffusion._solver import Step as Step
from jaxprob.inference.diffusion._stochastic import annealed_langevin as annealed_langevin
from jaxprob.inference.diffusion._stochastic import euler_maruyama as euler_maruyama
from jaxprob.inference.diffusion._stochastic import predictor_corrector as predictor_corrector
from jaxprob.inference.diffusion._stochastic import sde_dpm_solver as sde_dpm_solver
from jaxprob.inference.diffusion._twisted import TwistedSamples as TwistedSamples
from jaxprob.inference.diffusion._twisted import twisted as twisted
