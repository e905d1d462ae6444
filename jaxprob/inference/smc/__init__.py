"""Sequential Monte Carlo: populations of weighted particles, resampling, and what runs on them."""

from jaxprob.inference.smc._conditional_resampling import conditional as conditional
from jaxprob.inference.smc._feynman_kac import Batched as Batched
from jaxprob.inference.smc._feynman_kac import FeynmanKac as FeynmanKac
from jaxprob.inference.smc._feynman_kac import ParticleInfo as ParticleInfo
from jaxprob.inference.smc._feynman_kac import ParticleState as ParticleState
from jaxprob.inference.smc._feynman_kac import Run as Run
from jaxprob.inference.smc._feynman_kac import begin as begin
from jaxprob.inference.smc._feynman_kac import run as run
from jaxprob.inference.smc._feynman_kac import step as step
from jaxprob.inference.smc._population import Population as Population
from jaxprob.inference.smc._population import advance as advance
from jaxprob.inference.smc._population import resample as resample
from jaxprob.inference.smc._population import reweight as reweight
from jaxprob.inference.smc._population import spawn as spawn
from jaxprob.inference.smc._resampler import Resampled as Resampled
from jaxprob.inference.smc._resampler import Resampler as Resampler
from jaxprob.inference.smc._resampler import adaptive as adaptive
from jaxprob.inference.smc._resampler import always as always
from jaxprob.inference.smc._resampler import soft as soft
from jaxprob.inference.smc._resampling import Scheme as Scheme
from jaxprob.inference.smc._resampling import killing as killing
from jaxprob.inference.smc._resampling import multinomial as multinomial
from jaxprob.inference.smc._resampling import residual as residual
from jaxprob.inference.smc._resampling import ssp as ssp
from jaxprob.inference.smc._resampling import stratified as stratified
from jaxprob.inference.smc._resampling import systematic as systematic
