"""Sequential Monte Carlo: populations of weighted particles, resampling, and what runs on them.

A sampler of populations is a factory `(posterior, *, particles, ...) -> core.Algorithm` whose state has `population`,
`log_evidence` and `done`; `run_sampler` runs any of them, and so does `jaxprob.sample(..., algorithm=...)`.
"""

from jaxprob.inference.smc._annealed import AnnealedInfo as AnnealedInfo
from jaxprob.inference.smc._annealed import AnnealedState as AnnealedState
from jaxprob.inference.smc._annealed import annealed as annealed
from jaxprob.inference.smc._conditional_resampling import conditional as conditional
from jaxprob.inference.smc._data_tempered import DataTemperedInfo as DataTemperedInfo
from jaxprob.inference.smc._data_tempered import DataTemperedState as DataTemperedState
from jaxprob.inference.smc._data_tempered import data_tempered as data_tempered
from jaxprob.inference.smc._each import Batched as Batched
from jaxprob.inference.smc._feynman_kac import FeynmanKac as FeynmanKac
from jaxprob.inference.smc._feynman_kac import ParticleInfo as ParticleInfo
from jaxprob.inference.smc._feynman_kac import ParticleState as ParticleState
from jaxprob.inference.smc._feynman_kac import Run as Run
from jaxprob.inference.smc._feynman_kac import begin as begin
from jaxprob.inference.smc._feynman_kac import chunked as chunked
from jaxprob.inference.smc._feynman_kac import run as run
from jaxprob.inference.smc._feynman_kac import step as step
from jaxprob.inference.smc._nested import NestedInfo as NestedInfo
from jaxprob.inference.smc._nested import NestedState as NestedState
from jaxprob.inference.smc._nested import nested as nested
from jaxprob.inference.smc._persistent import PersistentInfo as PersistentInfo
from jaxprob.inference.smc._persistent import PersistentState as PersistentState
from jaxprob.inference.smc._persistent import persistent as persistent
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
from jaxprob.inference.smc._run import SamplerRun as SamplerRun
from jaxprob.inference.smc._run import run_sampler as run_sampler
from jaxprob.inference.smc._sharded import sharded as sharded
from jaxprob.inference.smc._tempered import TemperedInfo as TemperedInfo
from jaxprob.inference.smc._tempered import TemperedState as TemperedState
from jaxprob.inference.smc._tempered import tempered as tempered
from jaxprob.inference.smc._transport import Transport as Transport
from jaxprob.inference.smc._transport import optimal_transport as optimal_transport
from jaxprob.inference.smc._transport import transport as transport
