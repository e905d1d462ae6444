"""Where work runs: devices and meshes, chunked runs, checkpoints, draw stores, progress and reports."""

from jaxprob.runtime import _progress as progress
from jaxprob.runtime._distributed import connect as connect
from jaxprob.runtime._fit import FitResult as FitResult
from jaxprob.runtime._fit import fit as fit
from jaxprob.runtime._fit_cost import TrainingCost as TrainingCost
from jaxprob.runtime._fit_cost import training_cost as training_cost
from jaxprob.runtime._fit_job import NotFiniteError as NotFiniteError
from jaxprob.runtime._mesh import mesh as mesh
from jaxprob.runtime._report import report as report
from jaxprob.runtime._result import Result as Result
from jaxprob.runtime._result import load as load
from jaxprob.runtime._run import Run as Run
from jaxprob.runtime._run import run as run
from jaxprob.runtime._sample import sample as sample
from jaxprob.runtime._store import DrawStore as DrawStore
from jaxprob.runtime._store import MemoryStore as MemoryStore
from jaxprob.runtime._store import ZarrStore as ZarrStore
from jaxprob.runtime._until import Status as Status
from jaxprob.runtime._until import Until as Until
from jaxprob.runtime._until import effective_sample_size as effective_sample_size
from jaxprob.runtime._until import r_hat as r_hat
from jaxprob.runtime._until import wall_clock as wall_clock

__all__ = [
    "DrawStore",
    "FitResult",
    "MemoryStore",
    "NotFiniteError",
    "Result",
    "Run",
    "Status",
    "TrainingCost",
    "Until",
    "ZarrStore",
    "connect",
    "effective_sample_size",
    "fit",
    "load",
    "mesh",
    "progress",
    "r_hat",
    "report",
    "run",
    "sample",
    "training_cost",
    "wall_clock",
]
