"""Sampling, guidance and likelihood of diffusion models, and samplers of densities that are learnt diffusions."""

from jaxprob.inference.diffusion._ancestral import ancestral as ancestral
from jaxprob.inference.diffusion._sample import sample as sample
from jaxprob.inference.diffusion._solver import DiffusionInfo as DiffusionInfo
from jaxprob.inference.diffusion._solver import DiffusionState as DiffusionState
from jaxprob.inference.diffusion._solver import Solver as Solver
from jaxprob.inference.diffusion._solver import Step as Step
