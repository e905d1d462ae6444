"""Noising processes: diffusion, flow matching, discrete diffusion and Bayesian flows behind one protocol."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxprob.models.diffusion._gaussian import Gaussian as Gaussian
from jaxprob.models.diffusion._gaussian import elucidated as elucidated
from jaxprob.models.diffusion._gaussian import flow_matching as flow_matching
from jaxprob.models.diffusion._gaussian import scaled_inputs as scaled_inputs
from jaxprob.models.diffusion._gaussian import sub_variance_preserving as sub_variance_preserving
from jaxprob.models.diffusion._gaussian import variance_exploding as variance_exploding
from jaxprob.models.diffusion._gaussian import variance_preserving as variance_preserving
from jaxprob.models.diffusion._loss import loss as loss
from jaxprob.models.diffusion._noise import Noise as Noise
from jaxprob.models.diffusion._noise import White as White
from jaxprob.models.diffusion._process import Denoiser as Denoiser
from jaxprob.models.diffusion._process import NoisingProcess as NoisingProcess
from jaxprob.models.diffusion._schedules import Schedule as Schedule
from jaxprob.models.diffusion._schedules import cosine as cosine
from jaxprob.models.diffusion._schedules import learned as learned
from jaxprob.models.diffusion._schedules import linear_beta as linear_beta
from jaxprob.models.diffusion._schedules import log_linear as log_linear
from jaxprob.models.diffusion._schedules import log_normal as log_normal
from jaxprob.models.diffusion._schedules import straight as straight

if TYPE_CHECKING:
    from jaxprob.models.diffusion import networks as networks


def __getattr__(name: str) -> Any:
    # Networks are Flax modules, and Flax takes its time to import.
    if name == "networks":
        return importlib.import_module("jaxprob.models.diffusion.networks")
    raise AttributeError(f"module 'jaxprob.models.diffusion' has no attribute {name!r}")
