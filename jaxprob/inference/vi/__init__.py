"""Variational inference: guides, the bounds they are fitted by, and Gaussian approximations at or near a mode."""

from jaxprob.inference.vi._fit import AscentInfo as AscentInfo
from jaxprob.inference.vi._fit import AscentState as AscentState
from jaxprob.inference.vi._fit import Fit as Fit
from jaxprob.inference.vi._fit import ascent as ascent
from jaxprob.inference.vi._fit import fit as fit
from jaxprob.inference.vi._guide import BlockGuide as BlockGuide
from jaxprob.inference.vi._guide import Family as Family
from jaxprob.inference.vi._guide import Guide as Guide
from jaxprob.inference.vi._guide import blocks as blocks
from jaxprob.inference.vi._guide import flow as flow
from jaxprob.inference.vi._guide import full_rank as full_rank
from jaxprob.inference.vi._guide import low_rank as low_rank
from jaxprob.inference.vi._guide import mean_field as mean_field
from jaxprob.inference.vi._laplace import Laplace as Laplace
from jaxprob.inference.vi._laplace import laplace as laplace
from jaxprob.inference.vi._layout import Layout as Layout
from jaxprob.inference.vi._objective import Objective as Objective
from jaxprob.inference.vi._objective import Target as Target
from jaxprob.inference.vi._objective import elbo as elbo
from jaxprob.inference.vi._objective import subsampled as subsampled
from jaxprob.inference.vi._pathfinder import Pathfinder as Pathfinder
from jaxprob.inference.vi._pathfinder import pathfinder as pathfinder
from jaxprob.inference.vi._quasi_newton_metric import QuasiNewtonMetric as QuasiNewtonMetric
